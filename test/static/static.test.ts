import { execFile } from 'node:child_process';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';

const run = promisify(execFile);
const root = join(import.meta.dirname, '../..');

/** Runs a checker; on failure the subtest's diagnostics carry what it said. */
async function clean(t: Test, command: string, args: string[]) {
  try {
    await run(command, args, { cwd: root, maxBuffer: 64 << 20 });
    t.pass(`${command} is content`);
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string };
    t.fail(`${command} ${args.join(' ')}`, { said: `${stdout}${stderr}`.slice(-8000).split('\n') });
  }
}

/** Files that git knows, so generated trees never count. */
async function tracked(): Promise<string[]> {
  const { stdout } = await run('git', ['ls-files'], { cwd: root });
  return stdout.split('\n').filter(Boolean);
}

t.test('types: appliance, agent, protocol, scripts and tests', (t) =>
  clean(t, 'tsc', ['--noEmit', '-p', '.']).then(() => t.end()),
);
t.test('types: the page', (t) =>
  clean(t, 'tsc', ['--noEmit', '-p', 'appliance/web']).then(() => t.end()),
);
t.test('biome: format and lint', (t) =>
  clean(t, 'node_modules/@biomejs/cli-linux-x64/biome', ['check', '.']).then(() => t.end()),
);

t.test('shellcheck', async (t) => {
  const scripts = (await tracked()).filter((file) => {
    if (!statSync(join(root, file)).isFile()) return false;
    if (file.endsWith('.sh')) return true;
    return /^#!.*\b(ba)?sh\b/.test(readFileSync(join(root, file), 'utf8').slice(0, 64));
  });
  t.ok(scripts.length > 0, 'there are scripts to check');
  await clean(t, 'shellcheck', ['-x', '-S', 'warning', ...scripts]);
});

t.test('lock files name no registry', async (t) => {
  for (const lock of ['package-lock.json', 'appliance/web/package-lock.json']) {
    t.notMatch(readFileSync(join(root, lock), 'utf8'), /"resolved":/, lock);
  }
});

t.test('every dependency has its reason written down', async (t) => {
  const reasons = readFileSync(join(root, 'docs/dependencies.md'), 'utf8');
  for (const manifest of ['package.json', 'appliance/web/package.json']) {
    const { dependencies = {}, devDependencies = {} } = JSON.parse(
      readFileSync(join(root, manifest), 'utf8'),
    );
    for (const name of Object.keys({ ...dependencies, ...devDependencies })) {
      t.ok(reasons.includes(`\`${name}\``), `${name} (${manifest})`);
    }
  }
});

t.test('every test file is picked up by a stage', async (t) => {
  const files = (await tracked()).filter((file) => file.endsWith('.test.ts'));
  for (const file of files) {
    t.match(file, /^test\/(static|unit|integration|e2e)\/[^/]+\.test\.ts$/, file);
  }
  t.ok(readdirSync(join(root, 'test')).length > 0);
});
