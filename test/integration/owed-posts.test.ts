/** Post-hooks that an agent owes that was killed, with real hooks, processes and kills. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { agentPaths } from '../../agent/config.ts';
import { OwedPosts } from '../../agent/quiesce/owed.ts';
import { removeTraces } from '../../agent/service/uninstall.ts';
import type { HookReport } from '../../protocol/marks.ts';
import { until } from './stream.lab.ts';

const skip = process.getuid?.() === 0 ? false : 'hooks belong to root';
const HOOK_AGENT = join(import.meta.dirname, 'hook-agent.ts');
t.setTimeout(180_000);

class Lab {
  readonly dir: string;
  readonly root: string;
  readonly paths: ReturnType<typeof agentPaths>;
  readonly #t: Test;

  constructor(t: Test) {
    this.#t = t;
    this.dir = fs.mkdtempSync(join(tmpdir(), 'understudy-owed-'));
    this.root = this.at('agent');
    this.paths = agentPaths(this.root);
    fs.mkdirSync(this.paths.hooksDir, { recursive: true });
    t.teardown(() => fs.rmSync(this.dir, { recursive: true, force: true }));
    // None of the ready ones: what else runs on this machine is not asked.
    fs.symlinkSync('/dev/null', join(this.paths.hooksDir, '50-postgresql'));
  }

  at(name: string): string {
    return join(this.dir, name);
  }

  /** Each call is a line `PHASE NAME` of the log; `more` runs behind it. */
  hook(name: string, more = ''): void {
    const text = `#!/bin/sh\necho "$1 ${name}" >>${this.at('log')}\n${more}\n`;
    fs.writeFileSync(join(this.paths.hooksDir, name), text, { mode: 0o755 });
  }

  log(): string[] {
    if (!fs.existsSync(this.at('log'))) return [];
    return fs.readFileSync(this.at('log'), 'utf8').trim().split('\n');
  }

  agent(...args: string[]): ChildProcess {
    const child = spawn(process.execPath, [HOOK_AGENT, this.dir, this.root, ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#t.teardown(() => child.kill('SIGKILL'));
    return child;
  }

  /** An agent that waits between `pre` and `post`. */
  async holding(): Promise<ChildProcess> {
    fs.rmSync(this.at('held'), { force: true });
    const child = this.agent();
    await until('the hooks to hold', () => fs.existsSync(this.at('held')), 30_000);
    return child;
  }

  async killed(child: ChildProcess): Promise<void> {
    const ended = once(child, 'exit');
    child.kill('SIGKILL');
    await ended;
  }

  /** What a process of its own, such as systemd starts at the agent's end, calls. */
  settle(): { reports: HookReport[]; said: string } {
    const args = [HOOK_AGENT, this.dir, this.root, 'settle'];
    const { stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    return { reports: JSON.parse(fs.readFileSync(this.at('settled.json'), 'utf8')), said: stderr };
  }
}

// Seen red without the note (nothing was called), with the note struck out by nobody (called again), and with the begun
// hooks in their own order.
t.test(
  'killed between pre and post: each post is called, once, in reverse',
  { skip },
  async (t) => {
    const lab = new Lab(t);
    lab.hook('10-a');
    lab.hook('20-b', '[ "$1" = pre ] || { echo "no answer"; exit 3; }');
    lab.hook('30-absent', 'exit 77');
    const agent = await lab.holding();
    // Seen red without the look at the process: the application went on in the middle of the point.
    t.same(lab.settle().reports, [], 'nothing while the agent lives: it does that itself');
    await lab.killed(agent);
    const { reports, said } = lab.settle();
    t.same(
      reports.map(({ phase, name, outcome, text }) => `${phase} ${name} ${outcome} ${text}`.trim()),
      ['post 20-b failed no answer', 'post 10-a done'],
    );
    t.match(said, /hook 20-b: its post was owed since point .*: failed no answer/);
    t.match(said, /hook 10-a: its post was owed since point .*: done/);
    t.same(lab.settle().reports, [], 'no more is owed');
    const called = ['pre 10-a', 'pre 20-b', 'pre 30-absent', 'post 20-b', 'post 10-a'];
    t.same(lab.log(), called);

    // The next agent, without anybody in between: before its own point.
    await lab.killed(await lab.holding());
    fs.writeFileSync(lab.at('go'), '');
    await once(lab.agent(), 'exit');
    t.same(lab.log().slice(5), [...called, ...called]);
    t.same(fs.readdirSync(lab.paths.runDir), [], 'and a point that ends well leaves no note');
  },
);

// Seen red without the wait: `post` was called while `pre` still ran, and what `pre` held then stayed held.
t.test('killed while a pre runs: its post comes behind its end', { skip }, async (t) => {
  const lab = new Lab(t);
  const holds = `if [ "$1" = pre ]; then until [ -e ${lab.at('end')} ]; do sleep 0.05; done; touch ${lab.at('lock')}; else rm -f ${lab.at('lock')}; fi`;
  lab.hook('10-a');
  lab.hook('20-slow', holds);
  const agent = lab.agent();
  await until('the slow one', () => lab.log().includes('pre 20-slow'), 30_000);
  await lab.killed(agent);
  const settling = lab.agent('settle');
  await until('the one that settles', () => fs.existsSync(lab.at('settling')), 30_000);
  await sleep(1000);
  t.same(lab.log(), ['pre 10-a', 'pre 20-slow']);
  fs.writeFileSync(lab.at('end'), '');
  await once(settling, 'exit');
  t.same(lab.log().slice(2), ['post 20-slow', 'post 10-a']);
  t.notOk(fs.existsSync(lab.at('lock')), 'nothing is held');
});

// Seen red with the note struck out before the call: what was being called when the second one was killed got lost.
t.test('killed while it settles: nothing is lost', { skip }, async (t) => {
  const lab = new Lab(t);
  lab.hook('10-a');
  lab.hook('20-b', `[ "$1" = pre ] || until [ -e ${lab.at('end')} ]; do sleep 0.05; done`);
  await lab.killed(await lab.holding());
  const settling = lab.agent('settle');
  await until('the first post', () => lab.log().includes('post 20-b'), 30_000);
  await lab.killed(settling);
  fs.writeFileSync(lab.at('end'), '');
  lab.settle();
  t.same(lab.log(), ['pre 10-a', 'pre 20-b', 'post 20-b', 'post 20-b', 'post 10-a']);
});

// Seen red with the settling behind the removal of the run folder.
t.test('an uninstallation calls what is owed before anything is removed', { skip }, async (t) => {
  const lab = new Lab(t);
  lab.hook('10-a', `[ "$1" = pre ] || [ -d ${lab.paths.runDir} ] || echo late >>${lab.at('log')}`);
  await lab.killed(await lab.holding());
  const said: string[] = [];
  const owed = new OwedPosts({ ...lab.paths, log: (_level, text) => said.push(text) });
  t.same(await removeTraces(lab.paths, async () => ({ ok: true, text: '' }), owed), []);
  t.same(lab.log(), ['pre 10-a', 'post 10-a']);
  t.match(said, [/its post was owed/]);
  t.notOk(fs.existsSync(lab.paths.runDir));
});

t.test(
  'what cannot be noted is not begun; an unreadable note is in nobody’s way',
  { skip },
  async (t) => {
    const lab = new Lab(t);
    lab.hook('10-a');
    fs.mkdirSync(join(lab.paths.runDir, 'owed-posts.json.new'), { recursive: true });
    fs.writeFileSync(lab.at('go'), '');
    const first = lab.agent();
    await once(first, 'exit');
    const report = () =>
      JSON.parse(fs.readFileSync(lab.at('report.json'), 'utf8')) as { hooks: HookReport[] };
    t.match(report().hooks, [
      { name: '10-a', outcome: 'failed', text: /could not be noted: EISDIR/ },
    ]);
    t.same(lab.log(), [], 'neither pre nor post');
    fs.rmdirSync(join(lab.paths.runDir, 'owed-posts.json.new'));
    fs.writeFileSync(join(lab.paths.runDir, 'owed-posts.json'), '{"begun":');
    await once(lab.agent(), 'exit');
    t.same(lab.log(), ['pre 10-a', 'post 10-a']);
  },
);
