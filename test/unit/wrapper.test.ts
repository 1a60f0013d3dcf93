/** What the forced command refuses before it asks libvirt anything; the rest is in test/integration/wrapper.test.ts. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import t, { type Test } from 'tap';

const WRAPPER = new URL('../../image/host/understudy-host-shell', import.meta.url).pathname;
const CONFIG = { appliance: 'appl', pools: ['default'], networks: ['default'] };

async function ask(t: Test, directory: string, text: string | undefined) {
  const { stdout, stderr, exitCode } = await execa(
    '/usr/bin/python3',
    ['-I', WRAPPER, join(directory, 'host.json')],
    {
      reject: false,
      extendEnv: false,
      env: { PATH: '/nonexistent', ...(text !== undefined && { SSH_ORIGINAL_COMMAND: text }) },
      input: 'never read',
    },
  );
  t.equal(stderr, '', 'no traceback');
  return { ...(JSON.parse(stdout) as { ok: boolean; code: string; params: object }), exitCode };
}

/** Also what only looks like the request that opens a session. */
const NO_REQUESTS = [
  '',
  'sh',
  '{}',
  '[]',
  '{"verb":null}',
  '{"verb":"nope"}',
  '{"verb":"session" }',
  '{"verb":"session","vm":"x"}',
  '{"verb":"vm-start"}',
  '{"verb":"vm-start","vm":5}',
  '{"verb":"vm-start","vm":"-x"}',
  `{"verb":"${'x'.repeat(100_000)}"}`,
  `{"verb":"${'é'.repeat(50_000)}"}`,
  '['.repeat(90_000),
  `{"verb":"vm-start","vm":${'9'.repeat(6000)}}`,
];

t.test('requests that are none', async (t) => {
  const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
  for (const text of [undefined, ...NO_REQUESTS]) {
    t.match(
      await ask(t, directory, text),
      { ok: false, code: /^UND_HV_(REFUSED|BAD_NAME)$/, exitCode: 1 },
      String(text).slice(0, 40),
    );
  }
});

t.test('a configuration that is wrong opens nothing', async (t) => {
  for (const config of [
    '',
    'no json',
    '{}',
    JSON.stringify({ ...CONFIG, appliance: '-x' }),
    JSON.stringify({ ...CONFIG, pools: 'default' }),
    JSON.stringify({ ...CONFIG, networks: undefined }),
    JSON.stringify({ ...CONFIG, networks: [1] }),
    JSON.stringify({ ...CONFIG, virtType: 'lxc' }),
    JSON.stringify({ ...CONFIG, consoleDir: 'relative' }),
  ]) {
    const directory = t.testdir({ 'host.json': config });
    t.match(
      await ask(t, directory, '{"verb":"vm-list"}'),
      { ok: false, code: 'UND_HV_FAILED', params: { action: /^read / }, exitCode: 1 },
      config,
    );
  }
});

/** A session with the wrapper, as bytes. */
function session(t: Test, directory: string, wrapper = WRAPPER) {
  const child = spawn('/usr/bin/python3', ['-I', wrapper, join(directory, 'host.json')], {
    env: { PATH: '/nonexistent', SSH_ORIGINAL_COMMAND: '{"verb":"session"}' },
  });
  t.teardown(() => child.kill('SIGKILL'));
  const ended = once(child, 'close').then(([code]) => code as number | null);
  child.stdin.on('error', () => {});
  let complaints = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    complaints += text;
  });
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  return {
    pid: child.pid!,
    write: (text: string | Buffer) => child.stdin.write(text),
    /** The next line; undefined at the end. */
    line: async () => (await lines.next()).value as string | undefined,
    /** Everything that is still answered when nothing more is said, sorted. */
    async rest() {
      child.stdin.end();
      const found: string[] = [];
      for (let next = await lines.next(); !next.done; next = await lines.next()) {
        found.push(next.value);
      }
      t.equal(await ended, 0);
      t.equal(complaints, '', 'no traceback');
      return found.sort();
    },
  };
}

const GREETING = '{"ok": true, "result": {"session": 1}}';
const NOPE = 'nope';
const nope = (number: number) => `${number} {"verb":"${NOPE}"}\n`;
const refusal = (number: number, reason = `there is no verb '${NOPE}'`) =>
  `${number} ${JSON.stringify({
    ok: false,
    code: 'UND_HV_REFUSED',
    params: { action: 'make this request', reason },
  })
    .replace(/([:,])"/g, '$1 "')
    .replaceAll(':{', ': {')
    .replaceAll(':false', ': false')}`;

t.test(
  'a session refuses what a single call refuses, in the same words, and goes on',
  async (t) => {
    const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
    const one = session(t, directory);
    t.equal(await one.line(), GREETING);
    for (const [at, text] of [...NO_REQUESTS, '{"verb":"session"}'].entries()) {
      one.write(`${at} ${text}\n`);
      const [, number, said] = /^(\d+) (.*)$/.exec((await one.line()) ?? '') ?? [];
      t.equal(Number(number), at);
      if (text === '{"verb":"session"}') {
        t.match(
          JSON.parse(said!),
          { ok: false, code: 'UND_HV_REFUSED' },
          'no session in a session',
        );
        continue;
      }
      const { exitCode, ...single } = await ask(t, directory, text);
      t.same(JSON.parse(said!), single, text.slice(0, 40));
    }
    t.same(await one.rest(), []);
  },
);

t.test(
  'a session: several lines at once, a line in pieces, a line that does not end',
  async (t) => {
    const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
    const one = session(t, directory);
    t.equal(await one.line(), GREETING);
    one.write(nope(1) + nope(2) + nope(3).slice(0, 9));
    t.same([await one.line(), await one.line()].sort(), [refusal(1), refusal(2)]);
    one.write(nope(3).slice(9));
    t.equal(await one.line(), refusal(3));
    one.write(nope(4).trim());
    t.same(await one.rest(), [], 'half a request is none, however whole it looks');
  },
);

// Red when a line is looked for in the text of a request, or when its text is put together from two lines.
t.test(
  'a session: a line break in a request makes two lines, each checked by itself',
  async (t) => {
    const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
    const one = session(t, directory);
    t.equal(await one.line(), GREETING);
    one.write(`1 {"verb":"vm-state","vm":"a\n2 {"verb":"nope"}\n`);
    t.same([await one.line(), await one.line()].sort(), [
      refusal(1, 'the request is not JSON'),
      refusal(2),
    ]);
    for (const text of ['\r', '\0', '\u2028', '\x0b']) {
      one.write(`3 {"verb":"no${text}pe"}\n`);
      t.match(
        await one.line(),
        /^3 \{"ok": false, "code": "UND_HV_REFUSED"/,
        `U+${text.charCodeAt(0)}`,
      );
    }
    one.write(Buffer.from('4 {"verb":"\xff\xfe"}\n', 'latin1'));
    t.match(await one.line(), /^4 \{"ok": false, "code": "UND_HV_REFUSED"/, 'no UTF-8');
    one.write(`5 {"verb":"vm-state","vm":"a\n"}\n`);
    t.equal(await one.line(), undefined, 'the rest is no line of a session: it is over');
    t.same(await one.rest(), []);
  },
);

t.test('a session ends at what is no line of it', async (t) => {
  const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
  for (const text of [
    '',
    'x',
    '1',
    '1{}',
    '-1 {}',
    ' 1 {}',
    '1x {}',
    `${'1'.repeat(16)} {}`,
    'id',
  ]) {
    const one = session(t, directory);
    one.write(`${text}\n${nope(7)}`);
    t.same(await one.rest(), [GREETING], JSON.stringify(text));
  }
});

t.test('a session: a line that is too long is refused and passed over, unread', async (t) => {
  const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
  const one = session(t, directory);
  t.equal(await one.line(), GREETING);
  const highest = async () =>
    Number(/^VmHWM:\s+(\d+) kB$/m.exec(await readFile(`/proc/${one.pid}/status`, 'utf8'))![1]);
  const before = await highest();
  // A request that would do for itself, and blanks without an end behind it.
  one.write(`1 {"verb":"nope"}`);
  const blanks = Buffer.alloc(1024 * 1024, ' ');
  for (let n = 0; n < 64; n++)
    if (!one.write(blanks)) await new Promise((done) => setTimeout(done));
  t.equal(await one.line(), refusal(1, 'the request is too long'));
  one.write(`\n${nope(2)}`);
  t.equal(await one.line(), refusal(2), 'the next one is as good as any');
  t.ok((await highest()) - before < 8 * 1024, `${before} kB before, ${await highest()} kB after`);
  one.write('x'.repeat(200_000));
  t.same(await one.rest(), [], 'and one without a number ends it');
});

// Red without the look at its own file: the old program goes on answering.
t.test('a session begins nothing once its wrapper was replaced or removed', async (t) => {
  const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
  const wrapper = join(directory, 'wrapper');
  for (const change of [
    async () => {
      await copyFile(WRAPPER, `${wrapper}.new`);
      await rename(`${wrapper}.new`, wrapper);
    },
    () => rm(wrapper),
  ]) {
    await copyFile(WRAPPER, wrapper);
    const one = session(t, directory, wrapper);
    t.equal(await one.line(), GREETING);
    one.write(nope(1));
    t.equal(await one.line(), refusal(1));
    await change();
    one.write(nope(2));
    t.equal(await one.line(), '2 -');
    t.same(await one.rest(), []);
  }
});

t.test('a session reads the configuration for each request', async (t) => {
  const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
  const one = session(t, directory);
  t.equal(await one.line(), GREETING);
  await rm(join(directory, 'host.json'));
  one.write('1 {"verb":"vm-list"}\n');
  t.match(
    await one.line(),
    /^1 .*"action": "read /,
    'an appliance that was removed reaches nothing',
  );
  t.same(await one.rest(), []);
});
