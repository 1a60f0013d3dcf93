/**
 * scripts/deploy with the real image, from the first boot to an appliance that was taken over by a new VM. Its boots last
 * minutes without KVM, so this is not part of `scripts/test`:
 *
 *   sudo scripts/test long
 */
import { readFileSync } from 'node:fs';
import { cp, mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import type { HostView } from '../../appliance/api/schema.ts';
import { ApplianceClient } from '../../scripts/lib/api-client.ts';
import { bootSectorImage } from './boot-sector.ts';
import { ROOT, startLab, waitFor } from './hypervisor-lab.ts';

t.setTimeout(3 * 3600_000);
await execa(join(ROOT, 'scripts/build-images'), ['appliance'], {
  stdout: 'ignore',
  stderr: 'inherit',
});
const lab = await startLab('deploylong');
t.teardown(() => lab.down());
const work = await mkdtemp(join(tmpdir(), 'deploy-long-'));
t.teardown(() => rm(work, { recursive: true, force: true }));
const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
const image = join(ROOT, `build/images/understudy-appliance-${version}.qcow2`);
const consoleLog = join(lab.dir, 'log/qemu/understudy-console.log');
const keys = join(lab.dir, 'ssh/authorized_keys');
const WHERE = ['--pool', 'default', '--network', 'default', '--journal-size', '1'];
const json = join(work, 'deployed.json');

async function deploy(...args: string[]): Promise<{ code: number; said: string }> {
  const { exitCode, all } = await execa(
    join(ROOT, 'scripts/deploy'),
    [
      ...['--host', 'host', '--ssh-config', join(lab.dir, 'ssh/config'), '--json', json],
      ...['--host-dir', join(lab.dir, 'host'), '--authorized-keys', keys],
      ...['--virt-type', lab.virtType, '--memory', '1536', ...args],
    ],
    { all: true, reject: false, stdin: 'ignore' },
  );
  console.error(all);
  return { code: exitCode ?? -1, said: all };
}
type Deployed = { address: string; caSha256: string; version: string };
const deployed = async (): Promise<Deployed> => JSON.parse(await readFile(json, 'utf8'));

const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
async function page(address: string): Promise<ApplianceClient> {
  const port = await freePort();
  await execa(join(ROOT, 'scripts/lab'), ['forward', String(port), `${address}:443`], {
    env: { LAB_NAME: lab.name },
  });
  const client = new ApplianceClient(`https://127.0.0.1:${port}`);
  await client.trustOnFirstUse();
  return client;
}
/** The appliance has reached its host over SSH, by the key that it was given: it knows the pools there. */
async function reachesItsHost(t: import('tap').Test, client: ApplianceClient): Promise<void> {
  const host = await waitFor(
    'the appliance to know its host',
    () => client.call<HostView>('/api/host'),
    300_000,
  );
  t.match(host.pools, [{ name: 'default' }]);
  t.match(host.vms, [{ name: 'understudy', isAppliance: true }]);
}

const PASSWORD = 'a-password-of-my-own';
let first: Deployed;
let client: ApplianceClient;

t.test('a new appliance by DHCP: its page, its first password, its host', async (t) => {
  const { code, said } = await deploy(...WHERE, '--dhcp', '--image', image);
  t.equal(code, 0, said);
  first = await deployed();
  t.match(first.address, /^192\.168\.150\.1\d\d$/, 'an address of the DHCP range');
  client = await page(first.address);
  const password = await waitFor(
    'the first password on the console',
    async () => /First login: +admin \/ (\S+)/.exec(await readFile(consoleLog, 'utf8'))?.[1],
  );
  await client.login('admin', password, PASSWORD);
  await reachesItsHost(t, client);
});

t.test('an upgrade that does not come up: the old system is back, with its state', async (t) => {
  const bad = await bootSectorImage(work, `${version}+dead`, '\r\nKernel panic\r\n', true);
  const { code, said } = await deploy('--upgrade', '--image', bad);
  t.not(code, 0);
  t.match(said, /runs again and its page answers/);
  const again = await page(first.address);
  await again.login('admin', PASSWORD);
  await reachesItsHost(t, again);
});

t.test('an upgrade in place keeps the CA, the users and the way to the host', async (t) => {
  const next = join(work, `understudy-appliance-${version}+next.qcow2`);
  await cp(image, next);
  const { code, said } = await deploy('--upgrade', '--image', next);
  t.equal(code, 0, said);
  const now = await deployed();
  t.match(now, { caSha256: first.caSha256, version: `${version}+next` });
  const upgraded = await page(now.address);
  await upgraded.login('admin', PASSWORD);
  await reachesItsHost(t, upgraded);
});

t.test("--adopt: a new VM with the old one's data disk, at a fixed address", async (t) => {
  const oldKey = (await readFile(keys, 'utf8')).trim().split('\n').at(-1);
  await lab.exec(['virsh', 'destroy', 'understudy']);
  await lab.exec(['virsh', 'undefine', 'understudy']);
  const address = '192.168.150.50';
  const fixed = ['--ip', `${address}/24`, '--gateway', '192.168.150.1', '--dns', '192.168.150.1'];
  const { code, said } = await deploy(...WHERE, ...fixed, '--image', image, '--adopt');
  t.equal(code, 0, said);
  t.match(await deployed(), { address, caSha256: first.caSha256 });
  t.notMatch(await readFile(keys, 'utf8'), oldKey);
  const adopted = await page(address);
  await adopted.login('admin', PASSWORD);
  await reachesItsHost(t, adopted);
});
