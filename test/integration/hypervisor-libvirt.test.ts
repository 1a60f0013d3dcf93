/**
 * The libvirt driver against a real libvirt: over the wrapper locally, and over SSH as in production. With Debian's own
 * settings of libvirt, as users have it: QEMU is a user of its own, and libvirt hands images over to it and back.
 */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
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
