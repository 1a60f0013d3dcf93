import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { freeze } from '../../agent/capture/capture.ts';
import { CaptureLab, childrenWith, run, unable, until } from './capture.lab.ts';

const skip = unable();

t.setTimeout(240_000);

t.before(() => {
  if (!skip) run('scripts/build-capture');
});

/** Writes a file in a process of its own, which hangs as long as the file system is frozen. */
function writer(path: string) {
  const child = spawn('sh', ['-c', `echo x > ${path}`], { stdio: 'ignore' });
  const state = { ended: false };
  child.once('exit', () => {
    state.ended = true;
  });
  const hangs = () => {
    try {
      const stat = fs.readFileSync(`/proc/${child.pid}/stat`, 'utf8');
      return stat.slice(stat.lastIndexOf(')') + 2)[0] === 'D';
    } catch {
      return false;
    }
  };
  return { state, hangs };
}

function twoMounts(lab: CaptureLab): string[] {
  return [0, 1].map(() => {
    const disk = lab.disk(16, { random: false });
    run('mkfs.ext4', '-q', '-F', disk.dev);
    return lab.mount(disk.dev);
  });
}

/** The freezer's two processes: our child and its child. */
function freezerPids(mount: string): number[] {
  const parents = childrenWith(mount);
  const children = parents.flatMap((pid) =>
    fs
      .readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
      .trim()
      .split(' ')
      .filter(Boolean)
      .map(Number),
  );
  return [...parents, ...children];
}

t.test('frozen until thawed', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const mounts = twoMounts(lab);
  const held = await freeze(mounts, 20_000);
  t.ok(held.frozenAtBootNs > 0n);
  const writers = mounts.map((m) => writer(join(m, 'file')));
  await until('both writers to hang', () => writers.every((w) => w.hangs()));
  t.equal(await held.thaw(), true);
  await until('both writers to end', () => writers.every((w) => w.state.ended));
});

t.test('the watchdog thaws in time', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const mounts = twoMounts(lab);
  const held = await freeze(mounts, 3000);
  const writers = mounts.map((m) => writer(join(m, 'file')));
  await until('both writers to end', () => writers.every((w) => w.state.ended));
  t.equal(await held.thaw(), false, 'and says so');
});

for (const [which, name] of [
  [0, 'the watcher'],
  [1, 'the holder'],
] as const) {
  t.test(`kill -9 of ${name} leaves nothing frozen`, { skip }, async (t) => {
    const lab = new CaptureLab(t);
    const mounts = twoMounts(lab);
    const held = await freeze(mounts, 10_000);
    const pids = freezerPids(mounts[0]!);
    t.equal(pids.length, 2);
    process.kill(pids[which]!, 'SIGKILL');
    const writers = mounts.map((m) => writer(join(m, 'file')));
    await until('both writers to end', () => writers.every((w) => w.state.ended));
    t.equal(await held.thaw(), false);
  });
}

/**
 * An agent in a process of its own that freezes and then does nothing more. The limit is far behind the test's own: only
 * the agent's end can thaw (seen red with a holder that does not look at the end of its input).
 */
async function agentThatFreezes(lab: CaptureLab, mounts: string[], group?: string) {
  const program = `
    import { freeze } from ${JSON.stringify(join(process.cwd(), 'agent/capture/freezer.ts'))};
    await freeze(${JSON.stringify(mounts)}, 600_000);
    console.log('frozen');
    setInterval(() => {}, 1000);`;
  // A shell enters the group first, so that everything the agent starts is born in it.
  const agent = spawn(
    '/bin/sh',
    [
      '-c',
      `${group ? `echo 0 >${group}/cgroup.procs &&` : ''} exec "$@"`,
      'sh',
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      '--input-type=module',
      '-e',
      program,
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  lab.later(() => agent.kill('SIGKILL'));
  await once(agent.stdout, 'data');
  return agent;
}

t.test('kill -9 of the agent in the freeze thaws', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const mounts = twoMounts(lab);
  const agent = await agentThatFreezes(lab, mounts);
  const writers = mounts.map((m) => writer(join(m, 'file')));
  await until('both writers to hang', () => writers.every((w) => w.hangs()));
  agent.kill('SIGKILL');
  await until('both writers to end', () => writers.every((w) => w.state.ended));
  t.pass('thawed');
});

/** Where control groups can be made and killed as a whole, or undefined. */
function cgroupRoot(): string | undefined {
  return ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'].find((root) => {
    const group = join(root, `understudy-probe-${process.pid}`);
    try {
      fs.mkdirSync(group);
      const able = fs.existsSync(join(group, 'cgroup.kill'));
      fs.rmdirSync(group);
      return able;
    } catch {
      return false;
    }
  });
}

const root = skip ? undefined : cgroupRoot();
const noGroups = !root && 'no control groups that can be killed';

// Seen red with a freezer that stays in the group: both file systems stayed frozen.
t.test(
  "kill -9 of the agent's whole control group thaws",
  { skip: skip || noGroups },
  async (t) => {
    const lab = new CaptureLab(t);
    const mounts = twoMounts(lab);
    const group = join(root!, `understudy-test-${process.pid}`);
    fs.mkdirSync(group);
    lab.later(() => fs.rmdirSync(group));
    await agentThatFreezes(lab, mounts, group);
    lab.later(() => {
      for (const mount of mounts) spawnSync('fsfreeze', ['-u', mount]);
    });
    const writers = mounts.map((m) => writer(join(m, 'file')));
    await until('both writers to hang', () => writers.every((w) => w.hangs()));
    fs.writeFileSync(join(group, 'cgroup.kill'), '1');
    await until('both writers to end', () => writers.every((w) => w.state.ended));
    const empty = () => fs.readFileSync(join(group, 'cgroup.procs'), 'utf8').trim() === '';
    await until('the group to be empty', empty);
    t.pass('thawed, and all of the group is gone');
  },
);

t.test('what cannot be frozen is synced and named', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const [first] = twoMounts(lab) as [string, string];
  const held = await freeze([lab.dir, first], 20_000);
  t.same(held.skipped, [lab.dir], 'a tmpfs');
  t.equal(held.heldNs, null);
  t.equal(await held.thaw(), true);
  t.ok((held.heldNs ?? 0n) > 0n);
});

t.test('one that cannot be frozen: all are thawed, and told which', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const [first, second] = twoMounts(lab) as [string, string];
  run('fsfreeze', '-f', second);
  let frozen = true;
  lab.later(() => frozen && run('fsfreeze', '-u', second));
  await t.rejects(freeze([first, second], 5000), {
    code: 'UND_FREEZE_FAILED',
    params: { mountPoint: second },
  });
  const w = writer(join(first, 'file'));
  await until('the writer to end', () => w.state.ended);
  run('fsfreeze', '-u', second);
  frozen = false;
  await t.rejects(freeze(['/does-not-exist'], 5000), { code: 'UND_FREEZE_FAILED' });
});
