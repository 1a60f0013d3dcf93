/**
 * For the tests of hypervisor and wrapper: a lab of their own, and in it a tiny guest (Debian's kernel, busybox) that
 * stands in for the appliance and runs what it is told.
 */
import { existsSync, readdirSync } from 'node:fs';
import { chmod, cp, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import { execa } from 'execa';

export const ROOT = new URL('../..', import.meta.url).pathname.replace(/\/$/, '');

export interface Lab {
  name: string;
  dir: string;
  poolDir: string;
  virtType: string;
  /** Runs a command on the lab's target host; throws when it fails. */
  exec(command: string[], input?: string): Promise<string>;
  /** The command line that puts a program onto the lab's target host. */
  launcher: string[];
  down(): Promise<void>;
}

/** `stock`: with the distribution's own settings of libvirt, where QEMU is not root. */
export async function startLab(name: string, libvirt: 'plain' | 'stock' = 'plain'): Promise<Lab> {
  const env = { LAB_NAME: name, LAB_LIBVIRT: libvirt };
  const script = join(ROOT, 'scripts/lab');
  // What an earlier run that was killed has left.
  await execa(script, ['down'], { env });
  await execa(script, ['up'], { env });
  const dir = join(ROOT, 'build/lab', name);
  const settings = await readFile(join(dir, 'lab.env'), 'utf8');
  // What `scripts/lab exec` does, without its start-up.
  const [pid = ''] = (await readFile(join(dir, 'holder'), 'utf8')).split(' ');
  const launcher = ['nsenter', '-t', pid, '-n', '-m', '-p', `--wd=${ROOT}`, '--'];
  return {
    name,
    dir,
    poolDir: join(dir, 'images'),
    virtType: /^LAB_VIRT_TYPE=(\w+)$/m.exec(settings)?.[1] ?? 'qemu',
    launcher,
    async exec(command, input = '') {
      // Through cat: Node's pipes are sockets, and those cannot be opened again as /dev/stdin.
      const piped = ['sh', '-c', 'cat | "$@"', 'sh', ...command];
      const [program = '', ...rest] = [...launcher, ...piped];
      return (await execa(program, rest, { input })).stdout;
    },
    async down() {
      await execa(script, ['down'], { env });
    },
  };
}

/** Polls until `probe` gives something other than undefined or false; says what it waited for when it gives up. */
export async function waitFor<T>(
  what: string,
  probe: () => Promise<T | undefined | false>,
  limitMs = 120_000,
): Promise<T> {
  const end = performance.now() + limitMs;
  let last: unknown;
  while (performance.now() < end) {
    try {
      const value = await probe();
      if (value !== undefined && value !== false) return value;
    } catch (error) {
      last = error;
    }
    await sleep(250);
  }
  throw new Error(`gave up waiting for ${what}`, { cause: last });
}

const MODULES = [
  ...['virtio_ring', 'virtio', 'virtio_pci_legacy_dev', 'virtio_pci_modern_dev', 'virtio_pci'],
  ...['scsi_common', 'scsi_mod', 't10-pi', 'crc64-rocksoft', 'sd_mod', 'virtio_scsi'],
  ...['failover', 'net_failover', 'virtio_net'],
];

const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
# Twice, so that their order does not matter.
for module in $(cat /modules.list /modules.list); do insmod /modules/$module.ko 2>/dev/null; done
ip link set lo up; ip link set eth0 up
udhcpc -i eth0 -s /udhcpc -q -t 30 -T 1
echo TINY GUEST UP
exec nc -ll -p 7000 -e /bin/sh
`;

const UDHCPC = `#!/bin/sh
[ "$1" = bound ] && ip addr add $ip/$mask dev eth0
exit 0
`;

/** Kernel and initramfs of the tiny guest, made once. */
export async function tinyGuest(): Promise<{ kernel: string; initrd: string }> {
  const dir = join(ROOT, 'build/tiny-guest');
  const result = { kernel: join(dir, 'vmlinuz'), initrd: join(dir, 'initrd.gz') };
  if (existsSync(result.initrd)) return result;
  const work = join(dir, 'work');
  await rm(work, { recursive: true, force: true });
  await mkdir(join(work, 'deb'), { recursive: true });
  const { stdout } = await execa('apt-cache', ['depends', 'linux-image-cloud-amd64']);
  const image = /Depends: (linux-image-\S+)/.exec(stdout)?.[1];
  if (!image) throw new Error('apt knows no linux-image-cloud-amd64');
  await execa('apt-get', ['download', '-qq', image, 'busybox-static'], { cwd: join(work, 'deb') });
  for (const deb of readdirSync(join(work, 'deb'))) {
    await execa('dpkg-deb', ['-x', join(work, 'deb', deb), join(work, 'x')]);
  }
  const version = image.replace('linux-image-', '');
  const root = join(work, 'root');
  for (const name of ['bin', 'proc', 'sys', 'dev', 'modules']) {
    await mkdir(join(root, name), { recursive: true });
  }
  await cp(join(work, 'x/bin/busybox'), join(root, 'bin/busybox'));
  const files = readdirSync(join(work, 'x/lib/modules', version, 'kernel'), {
    recursive: true,
    encoding: 'utf8',
  });
  const present = MODULES.filter((module) => {
    const file = files.find((one) => one.endsWith(`/${module}.ko`));
    return file !== undefined;
  });
  for (const module of present) {
    const file = files.find((one) => one.endsWith(`/${module}.ko`))!;
    await cp(
      join(work, 'x/lib/modules', version, 'kernel', file),
      join(root, `modules/${module}.ko`),
    );
  }
  await writeFile(join(root, 'modules.list'), `${present.join('\n')}\n`);
  await writeFile(join(root, 'init'), INIT);
  await writeFile(join(root, 'udhcpc'), UDHCPC);
  for (const name of ['init', 'udhcpc', 'bin/busybox']) await chmod(join(root, name), 0o755);
  const names = ['.', ...readdirSync(root, { recursive: true, encoding: 'utf8' })].join('\n');
  const archive = await execa(join(root, 'bin/busybox'), ['cpio', '-o', '-H', 'newc'], {
    cwd: root,
    input: names,
    encoding: 'buffer',
  });
  await cp(join(work, 'x/boot', `vmlinuz-${version}`), result.kernel);
  await writeFile(result.initrd, gzipSync(archive.stdout, { level: 1 }));
  await rm(work, { recursive: true });
  return result;
}

export const APPLIANCE = 'understudy-appliance';
const MAC = '52:54:00:aa:00:01';

/** A target host on which the stand-in for the appliance is to run. */
export interface TargetHost {
  exec(command: string[], input?: string): Promise<string>;
  virtType: string;
  /** Directory of the pool "default". */
  poolDir: string;
  consoleDir: string;
  /** The first three numbers of the network "default". */
  prefix: string;
  /** The tiny guest's files, as the host has them. */
  kernel: string;
  initrd: string;
}

export interface TinyGuest {
  mac: string;
  address: string;
  /** Runs a shell script in the guest; its output. */
  run(script: string): Promise<string>;
}

/**
 * Defines and starts the stand-in for the appliance, as an administrator's deployment would: with a virtio-scsi
 * controller and a disk of its own in its lasting definition.
 */
export async function startAppliance(host: TargetHost, bootMs = 120_000): Promise<TinyGuest> {
  const address = `${host.prefix}.20`;
  const own = `${host.poolDir}/understudy-appliance-journal.qcow2`;
  await host.exec(['qemu-img', 'create', '-q', '-f', 'qcow2', own, '8M']);
  const lease = `<host mac='${MAC}' name='appliance' ip='${address}'/>`;
  await host.exec(['virsh', 'net-update', 'default', 'add', 'ip-dhcp-host', lease, '--live']);
  const xml = `
    <domain type='${host.virtType}'>
      <name>${APPLIANCE}</name>
      <memory unit='MiB'>160</memory>
      <vcpu>1</vcpu>
      <os>
        <type arch='x86_64' machine='q35'>hvm</type>
        <kernel>${host.kernel}</kernel><initrd>${host.initrd}</initrd>
        <cmdline>console=ttyS0 quiet mitigations=off nowatchdog no5lvl ipv6.disable=1 tsc=reliable no_timer_check</cmdline>
      </os>
      <features><acpi/><apic/></features>
      <cpu mode='${host.virtType === 'kvm' ? 'host-model' : 'maximum'}'/>
      <devices>
        <disk type='file' device='disk'>
          <driver name='qemu' type='qcow2'/><source file='${own}'/><target dev='sda' bus='scsi'/>
          <serial>ownjournal</serial>
        </disk>
        <controller type='scsi' index='0' model='virtio-scsi'/>
        <interface type='network'>
          <mac address='${MAC}'/><source network='default'/><model type='virtio'/>
        </interface>
        <serial type='pty'><log file='${host.consoleDir}/${APPLIANCE}.console'/></serial>
        <video><model type='vga'/></video>
      </devices>
    </domain>`;
  await host.exec(['virsh', 'define', '/dev/stdin'], xml);
  await host.exec(['virsh', 'start', APPLIANCE]);
  const connect = `exec 3<>/dev/tcp/${address}/7000; cat >&3; cat <&3`;
  const run = async (script: string): Promise<string> => {
    const input = `{\n${script}\n} 2>&1; echo "=$?="; exit\n`;
    const said = await host.exec(['bash', '-c', connect], input);
    const match = /^([\s\S]*)=(\d+)=\s*$/.exec(said);
    if (!match) throw new Error(`the guest broke off: ${said}`);
    if (match[2] !== '0') throw new Error(`in the guest: exit ${match[2]}: ${match[1]}`);
    return match[1]!.trim();
  };
  await waitFor(
    'the tiny guest to answer',
    async () => (await run('echo ready')) === 'ready',
    bootMs,
  );
  return { mac: MAC, address, run };
}
