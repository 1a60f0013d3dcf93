/**
 * The libvirt driver against a real libvirt: over the wrapper locally, and over SSH as in production. With Debian's own
 * settings of libvirt, as users have it: QEMU is a user of its own, and libvirt hands images over to it and back.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import type { DiskRef } from '../../appliance/hypervisor/hypervisor.ts';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { localTransport, sshTransport } from '../../appliance/hypervisor/libvirt/transport.ts';
import { type Fixture, hypervisorConformance } from './hypervisor-conformance.ts';
import {
  APPLIANCE,
  type Lab,
  ROOT,
  startAppliance,
  startLab,
  tinyGuest,
} from './hypervisor-lab.ts';

t.setTimeout(900_000);

let lab: Lab | undefined;
let fixture: Fixture | undefined;
const keys = await mkdtemp('/tmp/und-hv-');

t.teardown(async () => {
  await fixture?.hypervisor.close();
  await lab?.down();
  await rm(keys, { recursive: true, force: true });
});

// Not a test of its own: without it none of the others can run.
lab = await startLab('hv', 'stock');
const one = lab;
await execa('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(keys, 'key')]);
const { stdout: publicKey } = await execa('cat', [join(keys, 'key.pub')]);
await execa(join(ROOT, 'scripts/lab'), ['admit', APPLIANCE, publicKey], {
  env: { LAB_NAME: one.name },
});
const poolXml = (name: string, path: string) =>
  `<pool type='dir'><name>${name}</name><target><path>${path}</path></target></pool>`;
const small = join(one.dir, 'small');
await one.exec(['mkdir', '-p', small]);
await one.exec(['mount', '-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', small]);
await one.exec(['virsh', 'pool-create', '/dev/stdin'], poolXml('small', small));
await one.exec(['virsh', 'pool-define-as', 'lvm', 'logical', '--source-name', 'nosuchvg']);
const guest = await startAppliance({
  ...one,
  ...(await tinyGuest()),
  consoleDir: join(one.dir, 'console'),
  prefix: '192.168.150',
});
await one.exec(
  ['virsh', 'define', '/dev/stdin'],
  `<domain type='qemu'><name>somebody-elses</name><memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os></domain>`,
);
fixture = {
  hypervisor: new LibvirtHypervisor(
    localTransport({
      command: [
        ...one.launcher,
        ...['/usr/bin/python3', '-I', join(one.dir, 'host/lib/understudy-host-shell')],
        join(one.dir, 'host/etc', `${APPLIANCE}.json`),
      ],
    }),
    { detachTimeoutMs: 30_000 },
  ),
  applianceVm: APPLIANCE,
  ownSerial: 'ownjournal',
  applianceMac: guest.mac,
  applianceAddress: guest.address,
  run: guest.run,
  freeze: () => one.exec(['virsh', 'suspend', APPLIANCE]),
  pool: 'default',
  unusablePool: 'lvm',
  smallPool: 'small',
  network: 'default',
  isolatedNetwork: 'isolated',
  foreignVm: 'somebody-elses',
  autostarts: async (vm) => /^Autostart: +enable/m.test(await one.exec(['virsh', 'dominfo', vm])),
  imageInfo: async (disk) =>
    JSON.parse(await one.exec(['qemu-img', 'info', '-U', '--output=json', disk.path])),
};
const ready = fixture;

hypervisorConformance(() => ready);

// Red without the verb controller-add: libvirt makes up an lsilogic controller for the first disk, or refuses it.
t.test(
  'an imported appliance has no virtio-scsi controller: it is given one, or told how to get one',
  { timeout: 240_000 },
  async (t) => {
    const pool = one.poolDir;
    for (const [machine, controllers] of [
      ['pc', `<controller type='scsi' index='0' model='lsilogic'/>`],
      // Its PCIe ports are filled below: nothing more can be added while it runs.
      ['q35', ''],
    ]) {
      const vm = `imported-${machine}`;
      await one.exec([
        ...['qemu-img', 'create', '-q', '-f', 'qcow2', `${pool}/${vm}-system.qcow2`, '1M'],
      ]);
      await one.exec(
        ['virsh', 'define', '/dev/stdin'],
        `<domain type='qemu'><name>${vm}</name><memory unit='MiB'>32</memory>
        <os><type arch='x86_64' machine='${machine}'>hvm</type></os><features><acpi/></features>
        <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
          <source file='${pool}/${vm}-system.qcow2'/><target dev='hda' bus='${machine === 'pc' ? 'ide' : 'sata'}'/></disk>
          ${controllers}<memballoon model='none'/></devices></domain>`,
      );
      const start = () => one.exec(['virsh', 'start', '--paused', vm]);
      await start();
      const config = join(one.dir, `host/etc/${vm}.json`);
      await writeFile(
        config,
        JSON.stringify({ appliance: vm, pools: '*', networks: '*', virtType: 'qemu' }),
      );
      const hypervisor = new LibvirtHypervisor(
        localTransport({
          command: [
            ...one.launcher,
            ...['/usr/bin/python3', '-I', join(one.dir, 'host/lib/understudy-host-shell'), config],
          ],
        }),
      );
      t.teardown(() => hypervisor.close());
      const disks: DiskRef[] = [];
      for (const n of [1, 2]) {
        disks.push(
          await hypervisor.createDisk({ pool: 'default', name: `${vm}-${n}`, sizeBytes: 1 << 20 }),
        );
      }
      const attach = (n: number) =>
        hypervisor.attachDisk(vm, disks[n]!, { serial: `u${machine}${n}` });
      if (machine === 'q35') {
        const filler = `<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>`;
        const fill = () => one.exec(['virsh', 'attach-device', vm, '/dev/stdin', '--live'], filler);
        let ports = 0;
        while (ports < 32 && (await fill().catch(() => false))) ports++;
        t.ok(ports < 32, `${ports} free ports were filled`);
        const refusal = { code: 'UND_HV_NO_CONTROLLER', params: { vm } };
        await t.rejects(attach(0), { ...refusal, params: { reason: /PCI/ } });
        await t.rejects(attach(0), { ...refusal, params: { reason: /not powered off/ } });
        await one.exec(['virsh', 'destroy', vm]);
        await start();
      }
      await attach(0);
      await attach(1);
      const kinds = async (...options: string[]) =>
        [
          ...(await one.exec(['virsh', 'dumpxml', ...options, vm])).matchAll(
            /<controller type='scsi' .*model='([^']*)'/g,
          ),
        ].map((found) => found[1]);
      const expected = machine === 'pc' ? ['lsilogic', 'virtio-scsi'] : ['virtio-scsi'];
      t.same(await kinds(), expected, `${machine}: as it runs`);
      t.same(await kinds('--inactive'), expected, `${machine}: for its next start`);
      t.same(
        (await hypervisor.listAttachedDisks(vm)).slice(1).map((disk) => [disk.serial, disk.bus]),
        [
          [`u${machine}0`, 'scsi'],
          [`u${machine}1`, 'scsi'],
        ],
      );
      await one.exec(['virsh', 'destroy', vm]);
      await one.exec(['virsh', 'undefine', vm]);
    }
  },
);

const overSsh = (changes: { port?: number; knownHostsFile?: string; keyFile?: string }) =>
  new LibvirtHypervisor(
    sshTransport({
      host: '192.168.150.1',
      keyFile: join(keys, 'key'),
      knownHostsFile: join(one.dir, 'ssh/known_hosts'),
      controlDir: keys,
      launcher: one.launcher,
      ...changes,
    }),
  );

t.test(
  'over SSH with the restricted key: the same answers, many at once',
  { timeout: 120_000 },
  async (t) => {
    const hypervisor = overSsh({});
    t.teardown(() => hypervisor.close());
    const lists = await Promise.all(Array.from({ length: 12 }, () => hypervisor.listNetworks()));
    for (const list of lists) t.same(list, lists[0]);
    t.same(await hypervisor.listVms(), await ready.hypervisor.listVms());
    await t.rejects(hypervisor.startVm('nosuchvm'), { code: 'UND_HV_VM_NOT_FOUND' });
  },
);

t.test('over SSH: a host that cannot be reached or trusted', { timeout: 120_000 }, async (t) => {
  await t.rejects(overSsh({ port: 9 }).listPools(), {
    code: 'UND_HV_UNREACHABLE',
    params: { reason: /refused/ },
  });
  const stranger = join(keys, 'stranger');
  await execa('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', stranger]);
  const { stdout } = await execa('cut', ['-d', ' ', '-f1,2', `${stranger}.pub`]);
  await writeFile(join(keys, 'changed_hosts'), `192.168.150.1 ${stdout}\n`);
  await t.rejects(overSsh({ knownHostsFile: join(keys, 'changed_hosts') }).listPools(), {
    code: 'UND_HV_UNREACHABLE',
    params: { reason: /verification failed/ },
  });
  await t.rejects(overSsh({ keyFile: stranger }).listPools(), {
    code: 'UND_HV_UNREACHABLE',
    params: { reason: /denied/ },
  });
});
