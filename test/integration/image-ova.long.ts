/**
 * The built OVA, imported by hand as an import dialog would: the hardware that its descriptor names (AHCI, E1000, two disks
 * and nothing else), its disks converted, a CD-ROM made as image/README.md says. It boots, forms its data disk, reaches its
 * host, and takes replica disks though no importer gives it a virtio-scsi controller. Minutes without KVM:
 *
 *   sudo scripts/test long
 */
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { XMLParser } from 'fast-xml-parser';
import t from 'tap';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { localTransport } from '../../appliance/hypervisor/libvirt/transport.ts';
import { ROOT, startLab, waitFor } from './hypervisor-lab.ts';

t.setTimeout(2 * 3600_000);
await execa(join(ROOT, 'scripts/build-images'), ['appliance'], {
  stdout: 'ignore',
  stderr: 'inherit',
});
const lab = await startLab('ovalong');
t.teardown(() => lab.down());
const work = await mkdtemp(join(tmpdir(), 'ova-long-'));
t.teardown(() => rm(work, { recursive: true, force: true }));
const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
const VM = 'imported';
const ADDRESS = '192.168.150.60';

// ---- the OVA, read as an importer reads it

await execa('tar', [
  '-xf',
  join(ROOT, `build/images/understudy-appliance-${version}.ova`),
  '-C',
  work,
]);
const name = `understudy-appliance-${version}`;
await execa('sha256sum', ['--check', '--strict', '-'], {
  cwd: work,
  input: (await readFile(join(work, `${name}.mf`), 'utf8')).replace(
    /^SHA256\((.*)\)= (.*)$/gm,
    '$2  $1',
  ),
});
const system = new XMLParser({ ignoreAttributes: false, parseTagValue: false }).parse(
  await readFile(join(work, `${name}.ovf`), 'utf8'),
).Envelope.VirtualSystem.VirtualHardwareSection;
const items = system.Item as Record<string, string>[];
const quantity = (type: string) =>
  items.find((item) => item['rasd:ResourceType'] === type)?.['rasd:VirtualQuantity'];
const kinds = (type: string) =>
  items
    .filter((item) => item['rasd:ResourceType'] === type)
    .map((item) => item['rasd:ResourceSubType']);
if (`${kinds('20')} ${kinds('10')}` !== 'vmware.sata.ahci E1000')
  throw new Error('the descriptor names other hardware: change this machine too');
for (const n of [1, 2]) {
  await execa('qemu-img', [
    ...['convert', '-f', 'vmdk', '-O', 'qcow2', join(work, `${name}-disk${n}.vmdk`)],
    join(lab.poolDir, `${VM}-${n}.qcow2`),
  ]);
}

// ---- the CD-ROM of image/README.md, and the key that the host's administrator lets in

await execa('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(work, 'admin')]);
await mkdir(join(work, 'cd/host'), { recursive: true });
await execa('ssh-keygen', [
  '-q',
  '-t',
  'ed25519',
  '-N',
  '',
  '-f',
  join(work, 'cd/host/id_ed25519'),
]);
await execa(
  join(ROOT, 'scripts/lab'),
  ['admit', VM, await readFile(join(work, 'cd/host/id_ed25519.pub'), 'utf8')],
  { env: { LAB_NAME: lab.name } },
);
await rm(join(work, 'cd/host/id_ed25519.pub'));
await writeFile(
  join(work, 'cd/network'),
  `ADDRESS=${ADDRESS}/24\nGATEWAY=192.168.150.1\nDNS=192.168.150.1\n`,
);
const [type, key] = (await readFile(join(lab.dir, 'ssh/host_key.pub'), 'utf8')).split(' ');
await writeFile(
  join(work, 'cd/host/host.json'),
  JSON.stringify({
    ...{ transport: 'ssh', address: '192.168.150.1', port: 22, user: 'root' },
    ...{ hostKey: `${type} ${key}`, applianceVmName: VM },
  }),
);
await writeFile(join(work, 'cd/authorized_keys'), await readFile(join(work, 'admin.pub')));
const iso = join(lab.poolDir, `${VM}.iso`);
await execa('genisoimage', ['-quiet', '-R', '-V', 'UNDERSTUDY', '-o', iso, join(work, 'cd')]);

// ---- the machine

const disk = (file: string, target: string, kind: string, format: string) =>
  `<disk type='file' device='${kind}'><driver name='qemu' type='${format}'/><source file='${file}'/>
   <target dev='${target}' bus='sata'/></disk>`;
await lab.exec(
  ['virsh', 'define', '/dev/stdin'],
  `<domain type='${lab.virtType}'><name>${VM}</name><memory unit='MiB'>${quantity('4')}</memory>
   <vcpu>${quantity('3')}</vcpu><os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os>
   <features><acpi/><apic/></features>
   <cpu mode='${lab.virtType === 'kvm' ? 'host-passthrough' : 'maximum'}'/>
   <devices>
     <controller type='sata' index='0'/>
     ${disk(join(lab.poolDir, `${VM}-1.qcow2`), 'sda', 'disk', 'qcow2')}
     ${disk(join(lab.poolDir, `${VM}-2.qcow2`), 'sdb', 'disk', 'qcow2')}
     ${disk(iso, 'sdc', 'cdrom', 'raw')}
     <interface type='network'><source network='default'/><model type='e1000'/></interface>
     <serial type='pty'><log file='${lab.dir}/console/${VM}.console'/></serial>
     <video><model type='vga'/></video>
   </devices></domain>`,
);
await lab.exec(['virsh', 'start', VM]);
const [enter = '', ...inside] = lab.launcher;
async function ssh(command: string): Promise<string> {
  const options = ['BatchMode=yes', 'StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null'];
  const { stdout } = await execa(enter, [
    ...[...inside, 'ssh', '-i', join(work, 'admin'), ...options.flatMap((one) => ['-o', one])],
    ...['-o', 'LogLevel=ERROR', '-o', 'ConnectTimeout=10', `root@${ADDRESS}`, command],
  ]);
  return stdout;
}
await waitFor(
  'the page of the imported appliance',
  () => lab.exec(['curl', '-ksSf', '--max-time', '20', `https://${ADDRESS}/api/ca.pem`]),
  15 * 60_000,
);

t.test('its second disk has become the data disk; no unit has failed', async (t) => {
  // By size: which SATA disk is sda is a matter of luck.
  const size = await ssh('lsblk -bdno SIZE,FSTYPE $(findmnt -nro SOURCE /var/lib/understudy)');
  t.match(size.trim(), /^34359738368 +ext4$/);
  t.equal(await ssh('systemctl --failed --plain --no-legend'), '');
});

t.test(
  'replica disks: the first attach gives it the controller, the guest sees them',
  async (t) => {
    const hypervisor = new LibvirtHypervisor(
      localTransport({
        command: [
          ...lab.launcher,
          ...['/usr/bin/python3', '-I', join(lab.dir, 'host/lib/understudy-host-shell')],
          join(lab.dir, `host/etc/${VM}.json`),
        ],
      }),
    );
    t.teardown(() => hypervisor.close());
    t.notMatch(await lab.exec(['virsh', 'dumpxml', VM]), /virtio-scsi/, 'none before');
    for (const serial of ['u00000000000000000a1', 'u00000000000000000b2']) {
      const made = await hypervisor.createDisk({
        pool: 'default',
        name: serial,
        sizeBytes: 8 << 20,
      });
      await hypervisor.attachDisk(VM, made, { serial });
      const link = `/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_${serial}`;
      await waitFor(`${link} in the guest`, () => ssh(`readlink -e ${link}`), 300_000);
      await ssh(`echo written | dd of=${link} conv=fsync status=none`);
      await hypervisor.detachDisk(VM, serial);
      const { stdout } = await execa('qemu-io', [
        ...['-r', '-f', 'qcow2', '-c', 'read -v 0 8', made.path],
      ]);
      t.match(stdout, 'written');
    }
  },
);
