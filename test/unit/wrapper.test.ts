/** What the forced command refuses before it asks libvirt anything; the rest is in test/integration/wrapper.test.ts. */
import { join } from 'node:path';
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

t.test('requests that are none', async (t) => {
  const directory = t.testdir({ 'host.json': JSON.stringify(CONFIG) });
  for (const text of [
    undefined,
    '',
    'sh',
    '{}',
    '[]',
    '{"verb":null}',
    '{"verb":"nope"}',
    '{"verb":"vm-start"}',
    '{"verb":"vm-start","vm":5}',
    '{"verb":"vm-start","vm":"-x"}',
    `{"verb":"${'x'.repeat(100_000)}"}`,
    '['.repeat(90_000),
    `{"verb":"vm-start","vm":${'9'.repeat(6000)}}`,
  ]) {
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
