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

// Red with a code that nothing throws any more.
t.test('every coded error is used outside the registry', async (t) => {
  const { ERRORS } = await import('../../protocol/errors.ts');
  const used = new Set<string>();
  for (const file of await tracked()) {
    if (!/^(agent|appliance|image|protocol|scripts)\//.test(file)) continue;
    if (file === 'protocol/errors.ts' || !statSync(join(root, file)).isFile()) continue;
    for (const [code] of readFileSync(join(root, file), 'utf8').matchAll(/\bUND_[A-Z0-9_]+/g)) {
      used.add(code);
    }
  }
  t.ok(used.size > 50, 'codes were found');
  t.same(
    Object.keys(ERRORS).filter((code) => !used.has(code)),
    [],
  );
});

// Red without mtools in the list of packages.
t.test('the appliance image has what guest preparation starts', async (t) => {
  const { PREPARE_PROGRAMS } = await import('../../appliance/recovery/prepare-guest/programs.ts');
  // In every Debian (essential, or of priority required).
  const always = new Set(['mount', 'util-linux']);
  const build = readFileSync(join(root, 'image/appliance/build.sh'), 'utf8');
  const packages = new Set(/^ +(linux-image-amd64\S+) /m.exec(build)?.[1]?.split(','));
  t.ok(packages.has('systemd-sysv'), 'the list was found');
  for (const [program, name] of Object.entries(PREPARE_PROGRAMS)) {
    t.ok(always.has(name) || packages.has(name), `${program} of ${name}`);
  }
});

t.test('every test file is picked up by a stage', async (t) => {
  const files = (await tracked()).filter((file) => file.endsWith('.test.ts'));
  for (const file of files) {
    t.match(file, /^test\/(static|unit|integration|e2e)\/[^/]+\.test\.ts$/, file);
  }
  t.ok(readdirSync(join(root, 'test')).length > 0);
});
