/** The driver's end of a session with the wrapper, against the wrapper itself: what becomes of a call when that dies, hangs, is old or replaced. */
import { copyFile, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { SESSION_REQUEST, Sessions } from '../../appliance/hypervisor/libvirt/session.ts';
import { localTransport } from '../../appliance/hypervisor/libvirt/transport.ts';

const WRAPPER = new URL('../../image/host/understudy-host-shell', import.meta.url).pathname;
const TRANSPORT = new URL('../../appliance/hypervisor/libvirt/transport.ts', import.meta.url);
const NOPE = '{"verb":"nope"}';
const REFUSED = { stdout: /there is no verb/ };

/** Nothing in these tests reaches a libvirt: the wrapper refuses before. */
function setUp(t: Test) {
  const dir = t.testdir({
    'host.json': JSON.stringify({ appliance: 'appl', pools: ['default'], networks: ['default'] }),
    started: '',
  });
  // Each start leaves a line, its process number.
  const counted = `echo $$ >>${dir}/started; exec /usr/bin/python3 -I "$0" ${dir}/host.json`;
  const command = (wrapper = WRAPPER) => ['sh', '-c', counted, wrapper];
  const sessions = (wrapper?: string, options = {}) => {
    const made = new Sessions({
      command: command(wrapper),
      env: { SSH_ORIGINAL_COMMAND: SESSION_REQUEST },
      ...options,
    });
    t.teardown(() => made.close());
    return made;
  };
  const starts = async () =>
    (await readFile(join(dir, 'started'), 'utf8')).trim().split('\n').map(Number);
  return { dir, command, sessions, starts };
}

async function old(t: Test, dir: string): Promise<string> {
  const wrapper = join(dir, 'wrapper');
  const text = await readFile(WRAPPER, 'utf8');
  const before = text.replace(`SESSION_REQUEST = '{"verb":"session"}'`, 'SESSION_REQUEST = None');
  t.not(before, text);
  await writeFile(wrapper, before);
  return wrapper;
}

const gone = async (pid: number) => {
  for (let n = 0; n < 300; n++) {
    try {
      process.kill(pid, 0);
    } catch {
      return true;
    }
    await sleep(50);
  }
  return false;
};

t.test('many calls go through one process, each with its own answer', async (t) => {
  const { command, starts } = setUp(t);
  const transport = localTransport({ command: command() });
  t.teardown(() => transport.close());
  const names = Array.from({ length: 30 }, (_, n) => `-${n}\n${n} {"verb":"nope"}`);
  await Promise.all(
    names.map((vm) =>
      t.rejects(transport.call('vm-start', { vm }), {
        code: 'UND_HV_BAD_NAME',
        params: { name: `'${vm.replace('\n', '\\n')}'` },
      }),
    ),
  );
  t.equal((await starts()).length, 1);
  await transport.close();
  t.ok(await gone((await starts())[0]!), 'closed');
  await t.rejects(transport.call('vm-start', { vm: '-' }), { code: 'UND_HV_BAD_NAME' });
  t.equal((await starts()).length, 2, 'and opened again when it is needed');
});

t.test(
  'a wrapper that knows no sessions gets single calls, and is asked again later',
  async (t) => {
    const { dir, command, sessions, starts } = setUp(t);
    const wrapper = await old(t, dir);
    const transport = localTransport({ command: command(wrapper) });
    t.teardown(() => transport.close());
    for (let n = 0; n < 3; n++) {
      await t.rejects(transport.call('vm-start', { vm: '-' }), { code: 'UND_HV_BAD_NAME' });
    }
    t.equal((await starts()).length, 4, 'once in vain');
    const patient = sessions(wrapper);
    const eager = sessions(wrapper, { askAgainMs: 0 });
    for (const made of [patient, eager]) t.equal(await made.exchange(NOPE, 60_000), null);
    await copyFile(WRAPPER, wrapper);
    t.equal(await patient.exchange(NOPE, 60_000), null, 'not at once');
    t.match(await eager.exchange(NOPE, 60_000), REFUSED);
  },
);

t.test(
  'a session that dies in the middle: the outcome is unknown; the next call opens one',
  async (t) => {
    const { command, starts } = setUp(t);
    const transport = localTransport({ command: command() });
    t.teardown(() => transport.close());
    await t.rejects(transport.call('vm-start', { vm: '-' }), { code: 'UND_HV_BAD_NAME' });
    const [pid = 0] = await starts();
    process.kill(pid, 'SIGSTOP');
    const calls = [1, 2, 3].map((vm) => transport.call('vm-start', { vm }));
    await sleep(100);
    process.kill(pid, 'SIGKILL');
    for (const call of calls) await t.rejects(call, { code: 'UND_HV_UNREACHABLE' });
    await t.rejects(transport.call('vm-start', { vm: '-' }), { code: 'UND_HV_BAD_NAME' });
    t.equal((await starts()).length, 2);
  },
);

// Red when the session is kept: every later call hangs as well.
t.test(
  'a session that hangs: its calls run out of time, others are asked in a new one',
  async (t) => {
    const { sessions, starts } = setUp(t);
    const made = sessions();
    t.match(await made.exchange(NOPE, 60_000), REFUSED);
    const [pid = 0] = await starts();
    process.kill(pid, 'SIGSTOP');
    t.match(await made.exchange(NOPE, 300), { timedOut: true, stdout: '' });
    t.match(await made.exchange(NOPE, 60_000), REFUSED);
    t.equal((await starts()).length, 2);
    t.ok(await gone(pid), 'and it is ended');
  },
);

t.test('a way to the host on which nobody greets runs out of time, too', async (t) => {
  const made = new Sessions({ command: ['sleep', '60'] });
  t.teardown(() => made.close());
  t.match(await made.exchange(NOPE, 300), { timedOut: true });
});

t.test('a wrapper that was replaced meanwhile is asked in a new session', async (t) => {
  const { dir, sessions, starts } = setUp(t);
  const wrapper = join(dir, 'wrapper');
  await copyFile(WRAPPER, wrapper);
  const made = sessions(wrapper);
  t.match(await made.exchange(NOPE, 60_000), REFUSED);
  await copyFile(WRAPPER, `${wrapper}.new`);
  await rename(`${wrapper}.new`, wrapper);
  const both = await Promise.all([made.exchange(NOPE, 60_000), made.exchange(NOPE, 60_000)]);
  t.match(both, [REFUSED, REFUSED]);
  t.equal((await starts()).length, 2);
  t.ok(await gone((await starts())[0]!), 'the old one is closed');
});

t.test('one that nobody uses is closed', async (t) => {
  const { sessions, starts } = setUp(t);
  const made = sessions(undefined, { idleMs: 300 });
  t.match(await made.exchange(NOPE, 60_000), REFUSED);
  t.ok(await gone((await starts())[0]!));
  t.match(await made.exchange(NOPE, 60_000), REFUSED);
});

t.test('no way to the host: its own words', async (t) => {
  const failing = localTransport({ command: ['sh', '-c', 'echo no route >&2; exit 255'] });
  await t.rejects(failing.call('vm-list'), {
    code: 'UND_HV_UNREACHABLE',
    params: { reason: 'no route' },
  });
  const missing = localTransport({ command: ['/nonexistent/ssh'] });
  await t.rejects(missing.call('vm-list'), {
    code: 'UND_HV_UNREACHABLE',
    params: { reason: /ENOENT/ },
  });
});

t.test('a hostile host: what is no answer ends the session', async (t) => {
  const greet = `echo '{"ok": true, "result": {"session": 1}}'; read line;`;
  for (const say of [
    'echo garbage; cat',
    'tr "\\0" x </dev/zero',
    'echo 1 !; cat',
    'echo "1 no json"; cat',
  ]) {
    const transport = localTransport({ command: ['sh', '-c', `${greet} ${say}`] });
    t.teardown(() => transport.close());
    await t.rejects(transport.call('vm-list'), { code: 'UND_HV_UNREACHABLE' }, say);
    // The one that talks without an end is a child of what was killed.
    await sleep(200);
    t.ok(process.memoryUsage.rss() < 700e6, 'it is not listened to any more');
  }
});

t.test('an open session does not keep a process from its end', async (t) => {
  const { dir, command } = setUp(t);
  const script = join(dir, 'script.ts');
  await writeFile(
    script,
    `import { localTransport } from ${JSON.stringify(TRANSPORT.href)};
     const transport = localTransport({ command: ${JSON.stringify(command())} });
     await transport.call('vm-start', { vm: '-' }).catch((error) => console.log(error.code));`,
  );
  const { stdout } = await execa(process.execPath, [script], { timeout: 30_000 });
  t.equal(stdout, 'UND_HV_BAD_NAME');
});
