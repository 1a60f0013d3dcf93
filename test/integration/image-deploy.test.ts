/** scripts/deploy against real libvirt and sshd in a lab, as far as it comes without booting anything. Needs root. */
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { ROOT, startLab } from './hypervisor-lab.ts';

t.setTimeout(300_000);
const lab = await startLab('deploytest');
t.teardown(() => lab.down());
const work = await mkdtemp(join(tmpdir(), 'deploy-test-'));
t.teardown(() => rm(work, { recursive: true, force: true }));
const image = join(work, 'understudy-appliance-0.0.1.qcow2');
await execa('qemu-img', ['create', '-q', '-f', 'qcow2', image, '16M']);
const keys = join(lab.dir, 'ssh/authorized_keys');
const keysBefore = await readFile(keys, 'utf8');

const WHERE = ['--pool', 'default', '--network', 'default'];
const HOW = ['--dhcp', '--journal-size', '1', '--image', image];
async function deploy(...args: string[]): Promise<{ code: number; said: string }> {
  const { exitCode, all } = await execa(
    join(ROOT, 'scripts/deploy'),
    [
      ...['--host', 'host', '--ssh-config', join(lab.dir, 'ssh/config')],
      ...['--host-dir', join(lab.dir, 'host'), '--authorized-keys', keys, '--virt-type', 'qemu'],
      ...args,
    ],
    { all: true, reject: false, stdin: 'ignore' },
  );
  return { code: exitCode ?? -1, said: all };
}

/** Nothing of an appliance is on the host: no disk, no key, no VM. */
async function untouched(t: Test): Promise<void> {
  const volumes = await lab.exec(['virsh', 'vol-list', 'default']);
  t.notMatch(volumes, /appliance-/, volumes);
  t.equal(await readFile(keys, 'utf8'), keysBefore);
  t.notMatch(await lab.exec(['virsh', 'list', '--all', '--name']), /understudy/);
}

const refusals: [string, string[], RegExp][] = [
  ['a name that is not one', [...WHERE, ...HOW, '--name', 'a b'], /--name: lower-case/],
  ['neither --ip nor --dhcp', [...WHERE, '--image', image], /say --dhcp, or --ip/],
  ['both', [...WHERE, ...HOW, '--ip', '192.0.2.1/24'], /--ip or --dhcp, not both/],
  [
    'an address without its prefix',
    [...WHERE, '--image', image, '--ip', '192.0.2.1'],
    /--ip: not an IP address with its prefix/,
  ],
  [
    'a gateway elsewhere',
    [...WHERE, '--image', image, '--ip', '192.0.2.1/24', '--gateway', '192.0.3.1'],
    /is not in the network of --ip/,
  ],
  [
    'a DNS server that is a name',
    [...WHERE, '--image', image, '--ip', '192.0.2.1/24', '--dns', 'dns'],
    /--dns: not an IP address/,
  ],
  [
    'a journal of no size',
    [...WHERE, ...HOW, '--journal-size', '0'],
    /--journal-size: a number of at least 1/,
  ],
  [
    'an image that is not there',
    [...WHERE, '--dhcp', '--image', `${work}/none.qcow2`],
    /no such image/,
  ],
  [
    'a pool that is not there',
    ['--pool', 'nowhere', '--network', 'default', ...HOW],
    /there is no storage pool named nowhere/,
  ],
  [
    'a network that is not there',
    ['--pool', 'default', '--network', 'nowhere', ...HOW],
    /there is no active network named nowhere/,
  ],
  [
    'a pool that is too small',
    [...WHERE, ...HOW, '--journal-size', '9999999'],
    /GiB free; the appliance needs 10000004 GiB/,
  ],
  [
    'a host without SSH at that port',
    [...WHERE, ...HOW, '--host-port', '9'],
    /no SSH server with an ed25519 key answers/,
  ],
  ['an upgrade of nothing', ['--upgrade', '--image', image], /there is no VM named understudy/],
];
for (const [what, args, said] of refusals) {
  t.test(`refuses ${what}, and touches nothing`, async (t) => {
    const result = await deploy(...args);
    t.not(result.code, 0);
    t.match(result.said, said);
    await untouched(t);
  });
}

t.test(
  'a VM that cannot start is taken back whole: its disks, its key, its definition',
  async (t) => {
    const result = await deploy(...WHERE, ...HOW, '--memory', '9999999');
    t.not(result.code, 0);
    t.match(result.said, /taking back what was done/);
    await untouched(t);
  },
);

t.test('a name in use is refused, and an upgrade of a VM that deploy did not make', async (t) => {
  await lab.exec(
    ['virsh', 'define', '/dev/stdin'],
    `<domain type='qemu'><name>other</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os></domain>`,
  );
  t.match(
    (await deploy(...WHERE, ...HOW, '--name', 'other')).said,
    /a VM named other is on host already/,
  );
  t.match(
    (await deploy('--upgrade', '--name', 'other', '--image', image)).said,
    /was not made by this script/,
  );
  await untouched(t);
});

t.test('a data disk of an earlier appliance is not touched without a word', async (t) => {
  await lab.exec([
    'virsh',
    'vol-create-as',
    'default',
    'appliance-understudy-data.qcow2',
    '1M',
    '--format',
    'qcow2',
  ]);
  t.match(
    (await deploy(...WHERE, ...HOW)).said,
    /has a data disk of an earlier appliance .*--adopt uses it/,
  );
  await lab.exec(['virsh', 'vol-delete', '--pool', 'default', 'appliance-understudy-data.qcow2']);
  await untouched(t);
});
