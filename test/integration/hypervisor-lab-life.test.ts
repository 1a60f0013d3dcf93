/** The lab itself: it starts, survives the death of its "host", is reached from the machine, and leaves nothing. */
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { ROOT, waitFor } from './hypervisor-lab.ts';

t.setTimeout(300_000);

const NAMES = ['life1', 'life2'];
const script = join(ROOT, 'scripts/lab');
const lab = (name: string, ...args: string[]) => execa(script, args, { env: { LAB_NAME: name } });
const holder = (name: string) =>
  Number(readFileSync(join(ROOT, 'build/lab', name, 'holder'), 'utf8').split(' ')[0]);

t.teardown(async () => {
  for (const name of NAMES) await lab(name, 'down');
});
for (const name of NAMES) await lab(name, 'down');

/** The processes of a process namespace. */
function processesIn(namespace: string): number[] {
  return readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .filter((pid) => {
      try {
        return readlinkSync(`/proc/${pid}/ns/pid`) === namespace;
      } catch {
        return false;
      }
    })
    .map(Number);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => server.once('listening', resolve));
  const address = server.address();
  await new Promise((resolve) => server.close(resolve));
  return typeof address === 'object' && address ? address.port : 0;
}

t.test('two labs side by side, each its own', { timeout: 120_000 }, async (t) => {
  for (const name of NAMES) await lab(name, 'up');
  const before = holder('life1');
  await lab('life1', 'up');
  t.equal(holder('life1'), before, 'up again changes nothing');
  const xml = `<domain type='qemu'><name>one</name><memory unit='MiB'>32</memory><os><type arch='x86_64' machine='q35'>hvm</type></os><devices><interface type='network'><source network='default'/></interface></devices></domain>`;
  const define = ['sh', '-c', 'echo "$1" | virsh define /dev/stdin', 'sh', xml];
  await lab('life1', 'exec', ...define);
  t.match((await lab('life1', 'exec', 'virsh', 'list', '--all', '--name')).stdout, 'one');
  t.notMatch((await lab('life2', 'exec', 'virsh', 'list', '--all', '--name')).stdout, 'one');
  for (const name of NAMES) {
    t.match((await lab(name, 'exec', 'ip', '-br', 'address')).stdout, '192.168.150.1/24');
  }
  t.notMatch((await execa('ip', ['-br', 'link'])).stdout, /virbr/, 'nothing of it out here');
});

t.test("a port of a lab on the machine's loopback", { timeout: 60_000 }, async (t) => {
  const port = await freePort();
  await lab('life1', 'forward', String(port), '192.168.150.1:22');
  await lab('life1', 'forward', String(port), '192.168.150.1:22');
  await t.rejects(lab('life1', 'forward', String(port), '192.168.150.1:23'), {
    message: /forwarded to/,
  });
  const probe = `exec 3<>/dev/tcp/127.0.0.1/${port}; read -r line <&3; echo "$line"`;
  t.match((await execa('bash', ['-c', probe])).stdout, /^SSH-/);
  const { stdout } = await execa('ss', ['-Hltn', `sport = :${port}`]);
  t.match(stdout, `127.0.0.1:${port}`);
  t.notMatch(stdout, /0\.0\.0\.0:\d+ +0\.0\.0\.0|\*:\d/, 'on loopback only');
});

t.test('its administrator reaches the target host by SSH', { timeout: 60_000 }, async (t) => {
  const config = join(ROOT, 'build/lab/life1/ssh/config');
  const { stdout } = await execa('ssh', ['-F', config, 'host', 'virsh', 'list', '--all', '--name']);
  t.match(stdout, 'one');
});

t.test(
  'after the death of the host it comes back with its VMs',
  { timeout: 120_000 },
  async (t) => {
    await lab('life1', 'exec', 'virsh', 'start', 'one');
    const namespace = readlinkSync(`/proc/${holder('life1')}/ns/pid`);
    process.kill(holder('life1'), 'SIGKILL');
    await waitFor('its processes to end', async () => processesIn(namespace).length === 0);
    await t.rejects(lab('life1', 'status'), { message: /exit code 1/ });
    await t.rejects(lab('life1', 'exec', 'true'), { message: /exit code 1/ });
    await lab('life1', 'up');
    t.equal((await lab('life1', 'exec', 'virsh', 'domstate', 'one')).stdout.trim(), 'shut off');
    await lab('life1', 'exec', 'virsh', 'start', 'one');
    t.equal((await lab('life1', 'exec', 'virsh', 'domstate', 'one')).stdout.trim(), 'running');
  },
);

t.test('down: no process, mount, file or lock is left', { timeout: 60_000 }, async (t) => {
  for (const name of NAMES) {
    const namespace = readlinkSync(`/proc/${holder(name)}/ns/pid`);
    t.ok(processesIn(namespace).length > 3);
    await lab(name, 'down');
    t.same(processesIn(namespace), []);
    t.notOk(existsSync(join(ROOT, 'build/lab', name)));
    t.notOk(existsSync(join(ROOT, `build/lab/.${name}.lock`)));
    t.notMatch(readFileSync('/proc/mounts', 'utf8'), `/lab/${name}/`);
    await lab(name, 'down');
  }
});
