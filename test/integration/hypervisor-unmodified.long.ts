/**
 * The conformance test against a libvirt that nobody has touched: a Debian 12 in a VM of the lab, with AppArmor
 * enforced and QEMU as a user of its own, let in by install-host.sh, driven over SSH. Its VMs run in emulation inside
 * emulation, so this takes long and is not part of `scripts/test`:
 *
 *   node test/integration/hypervisor-unmodified.long.ts
 */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { sshTransport } from '../../appliance/hypervisor/libvirt/transport.ts';
import { type Fixture, hypervisorConformance } from './hypervisor-conformance.ts';
import {
  APPLIANCE,
  type Lab,
  ROOT,
  startAppliance,
  startLab,
  tinyGuest,
  waitFor,
} from './hypervisor-lab.ts';

t.setTimeout(5_400_000);

let lab: Lab | undefined;
let fixture: Fixture | undefined;
const keys = await mkdtemp('/tmp/und-hv-');
t.teardown(async () => {
  await fixture?.hypervisor.close();
  await lab?.down();
  await rm(keys, { recursive: true, force: true });
});

const image = join(ROOT, 'build/unmodified-host');
const ADDRESS = '192.168.150.30';
const MAC = '52:54:00:aa:00:30';
await execa(join(ROOT, 'test/integration/hypervisor-unmodified-image.sh'), { stdio: 'inherit' });
lab = await startLab('hvu');
const one = lab;
const overlay = join(one.poolDir, 'host.qcow2');
await execa('qemu-img', [
  ...['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', join(image, 'disk.qcow2'), overlay],
]);
await one.exec([
  ...['virsh', 'net-update', 'default', 'add', 'ip-dhcp-host'],
  ...[`<host mac='${MAC}' ip='${ADDRESS}'/>`, '--live'],
]);
await one.exec(
  ['virsh', 'create', '/dev/stdin'],
  `<domain type='${one.virtType}'><name>host</name><memory unit='MiB'>2048</memory><vcpu>2</vcpu>
   <os><type arch='x86_64' machine='q35'>hvm</type>
     <kernel>${image}/vmlinuz</kernel><initrd>${image}/initrd.img</initrd>
     <cmdline>root=/dev/vda rw console=ttyS0 quiet mitigations=off nowatchdog no5lvl tsc=reliable no_timer_check</cmdline></os>
   <features><acpi/><apic/></features>
   <cpu mode='${one.virtType === 'kvm' ? 'host-passthrough' : 'maximum'}'/>
   <devices>
     <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='${overlay}'/><target dev='vda' bus='virtio'/></disk>
     <interface type='network'><mac address='${MAC}'/><source network='default'/><model type='virtio'/></interface>
     <serial type='pty'><log file='${one.dir}/console/host.console'/></serial>
     <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
   </devices></domain>`,
);

const knownHosts = join(keys, 'known_hosts');
const quote = (word: string) => `'${word.replaceAll("'", `'\\''`)}'`;
const [enter = '', ...inside] = one.launcher;
const ssh = [
  ...['ssh', '-i', join(image, 'key'), '-o', `UserKnownHostsFile=${knownHosts}`],
  ...['-o', 'StrictHostKeyChecking=accept-new', '-o', 'BatchMode=yes', '-o', 'ConnectTimeout=10'],
  ...['-o', 'ControlMaster=auto', '-o', `ControlPath=${keys}/a-%C`, '-o', 'ControlPersist=300'],
];
async function onHost(command: string[], input: string | Buffer = ''): Promise<string> {
  // Through cat, as in a lab: sshd's pipes may be sockets too.
  const line = `cat | ${command.map(quote).join(' ')}`;
  const { stdout } = await execa(enter, [...inside, ...ssh, `root@${ADDRESS}`, line], { input });
  return stdout;
}
await waitFor('the unmodified host to answer', () => onHost(['virsh', 'version']), 600_000);
await waitFor(
  'AppArmor and libvirt to be ready',
  async () =>
    (await onHost(['systemctl', 'is-system-running', '--wait']).catch((e) => e.stdout)) && true,
  600_000,
);
const put = async (from: string, to: string) =>
  onHost(['sh', '-c', `cat >${quote(to)}`], await readFile(from));
const { kernel, initrd } = await tinyGuest();
await onHost(['mkdir', '-p', '/root/install', '/srv/boot', '/srv/small']);
for (const name of ['install-host.sh', 'understudy-host-shell']) {
  await put(join(ROOT, 'image/host', name), `/root/install/${name}`);
}
await put(kernel, '/srv/boot/vmlinuz');
await put(initrd, '/srv/boot/initrd.gz');
await onHost(['virsh', 'net-start', 'default']);
await onHost(
  ['virsh', 'net-create', '/dev/stdin'],
  `<network><name>isolated</name><bridge name='virbr9'/><ip address='192.168.151.1' netmask='255.255.255.0'/></network>`,
);
await onHost(['mount', '-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', '/srv/small']);
for (const [name, path] of [
  ['default', '/var/lib/libvirt/images'],
  ['small', '/srv/small'],
]) {
  await onHost(
    ['virsh', 'pool-create', '/dev/stdin'],
    `<pool type='dir'><name>${name}</name><target><path>${path}</path></target></pool>`,
  );
}
await onHost(['virsh', 'pool-define-as', 'lvm', 'logical', '--source-name', 'nosuchvg']);
await execa('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(keys, 'key')]);
await onHost([
  ...['bash', '/root/install/install-host.sh', '--appliance', APPLIANCE, '--virt-type', 'qemu'],
  ...['--key', (await readFile(join(keys, 'key.pub'), 'utf8')).trim()],
]);

// Before the first test: tap ends a file when no test is pending.
const guest = await startAppliance(
  {
    exec: onHost,
    virtType: 'qemu',
    poolDir: '/var/lib/libvirt/images',
    consoleDir: '/var/log/libvirt/qemu',
    prefix: '192.168.122',
    kernel: '/srv/boot/vmlinuz',
    initrd: '/srv/boot/initrd.gz',
  },
  1_200_000,
);

t.test('the host is unmodified: AppArmor enforced', { timeout: 300_000 }, async (t) => {
  t.match(await onHost(['cat', '/sys/module/apparmor/parameters/enabled']), 'Y');
  t.match(
    await onHost(['sh', '-c', 'grep libvirtd /sys/kernel/security/apparmor/profiles']),
    /enforce/,
  );
  t.equal(
    await onHost(['sh', '-c', 'grep -cv -e "^#" -e "^$" /etc/libvirt/qemu.conf || true']),
    '0',
    'not one setting of qemu.conf',
  );
});

t.test('the VM is confined by AppArmor and not root', { timeout: 300_000 }, async (t) => {
  t.match(
    await onHost(['sh', '-c', 'ps -eo user:20,label:60,comm | grep qemu-system']),
    /^libvirt-qemu +libvirt-[0-9a-f-]+ \(enforce\)/,
  );
});

await onHost(
  ['virsh', 'define', '/dev/stdin'],
  `<domain type='qemu'><name>somebody-elses</name><memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>`,
);
fixture = {
  hypervisor: new LibvirtHypervisor(
    sshTransport({
      host: ADDRESS,
      keyFile: join(keys, 'key'),
      knownHostsFile: knownHosts,
      controlDir: keys,
      launcher: one.launcher,
    }),
  ),
  applianceVm: APPLIANCE,
  ownSerial: 'ownjournal',
  applianceMac: guest.mac,
  applianceAddress: guest.address,
  run: guest.run,
  freeze: () => onHost(['virsh', 'suspend', APPLIANCE]),
  pool: 'default',
  unusablePool: 'lvm',
  smallPool: 'small',
  network: 'default',
  isolatedNetwork: 'isolated',
  foreignVm: 'somebody-elses',
  autostarts: async (vm) => /^Autostart: +enable/m.test(await onHost(['virsh', 'dominfo', vm])),
  imageInfo: async (disk) =>
    JSON.parse(await onHost(['qemu-img', 'info', '-U', '--output=json', disk.path])),
};
const ready = fixture;
hypervisorConformance(() => ready, 1_200_000);
