/**
 * The post-hooks that are owed: an agent that ends between a hook's `pre` and its `post` must not leave the application
 * held. Before a `pre` is begun it is noted; whoever comes next calls the `post`, and only then strikes the note out.
 *
 * The note lies on the agent's tmpfs: it outlives every end of the agent, and goes with the applications at a reboot.
 */
import { mkdir, readdir, readFile, rename, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import type { HookReport } from '../../protocol/marks.ts';
import {
  HOOK_LIMIT_MS,
  type Hook,
  type HookRunOptions,
  runHook,
  systemdRuns,
  userHooks,
} from './hooks.ts';

const Note = Type.Object({
  point: Type.Object({ pointId: Type.String(), name: Type.String() }),
  mountPoints: Type.Array(Type.String()),
  /** The agent that noted it: while it lives it calls them itself. */
  pid: Type.Integer(),
  startTicks: Type.String(),
  /** In the order in which their `pre` was begun. */
  begun: Type.Array(Type.Object({ name: Type.String(), path: Type.String() })),
});
type Note = Static<typeof Note>;

export interface OwedPostsOptions {
  runDir: string;
  /** The user's hooks: they are looked at again before they are run. */
  hooksDir: string;
  log(level: 'info' | 'warning' | 'error', text: string): void;
}

const FILE = 'owed-posts.json';
const LOOK_MS = 100;

export class OwedPosts {
  readonly #options: OwedPostsOptions;
  readonly #file: string;
  /** A point's hooks and the settling come one after the other. */
  #chain: Promise<unknown> = Promise.resolve();

  constructor(options: OwedPostsOptions) {
    this.#options = options;
    this.#file = join(options.runDir, FILE);
  }

  /** Take a point when everything of earlier ones is settled; what is asked for meanwhile waits. */
  during<T>(act: () => Promise<T>): Promise<T> {
    return this.#inOrder(async () => {
      await this.#settle();
      return act();
    });
  }

  /** Call what an ended agent owes; never throws. Nothing while the agent that owes it is still there to do it. */
  settle(): Promise<HookReport[]> {
    return this.#inOrder(() => this.#settle());
  }

  /** @throws what the file system says: then the hook must not be begun */
  async begin(hook: Hook, { point, mountPoints }: HookRunOptions): Promise<void> {
    const before = (await this.#read())?.begun ?? [];
    const { name, path } = hook;
    await this.#write({
      point,
      mountPoints: [...mountPoints],
      pid: process.pid,
      startTicks: (await startTicks(process.pid)) ?? '',
      begun: [...before, { name, path }],
    });
  }

  /** Its `post` has been called, or there is none. Never throws: the other hooks' must be called, too. */
  async paid(name: string): Promise<void> {
    try {
      const note = await this.#read();
      if (!note) return;
      const begun = note.begun.filter((hook) => hook.name !== name);
      if (begun.length > 0) await this.#write({ ...note, begun });
      else await unlink(this.#file);
    } catch (error) {
      const { message } = error as Error;
      this.#options.log('error', `hook ${name}: its post may be called again: ${message}`);
    }
  }

  #inOrder<T>(act: () => Promise<T>): Promise<T> {
    const mine = this.#chain.then(act);
    this.#chain = mine.catch(() => {});
    return mine;
  }

  async #settle(): Promise<HookReport[]> {
    const { log, runDir } = this.#options;
    const reports: HookReport[] = [];
    try {
      const note = await this.#read();
      if (!note) return reports;
      const mine = note.pid === process.pid;
      if (!mine && (await startTicks(note.pid)) === note.startTicks) return reports;
      const users = await userHooks(this.#options.hooksDir);
      for (const { name, path } of note.begun.toReversed()) {
        await ended(path);
        const refused = users.find((user) => user.path === path)?.refused ?? null;
        const report = await runHook({ name, path, refused }, 'post', {
          runDir,
          point: note.point,
          mountPoints: note.mountPoints,
          asUnit: await systemdRuns(),
        });
        // After the call: an end of this process in between means a second call, never none.
        await this.paid(name);
        reports.push(report);
        log(
          report.outcome === 'done' ? 'warning' : 'error',
          `hook ${name}: its post was owed since point "${note.point.name}", during which the agent ended: ${report.outcome} ${report.text}`.trim(),
        );
      }
    } catch (error) {
      log('error', `post-hooks that are owed could not be called: ${(error as Error).message}`);
      // One that cannot be understood must not keep all later points from their hooks.
      if (!(error as NodeJS.ErrnoException).code) await unlink(this.#file).catch(() => {});
    }
    return reports;
  }

  async #read(): Promise<Note | null> {
    const text = await readFile(this.#file, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return null;
      throw error;
    });
    if (text === null) return null;
    const note: unknown = JSON.parse(text);
    if (!Value.Check(Note, note)) throw new Error(`${this.#file} does not match`);
    return note;
  }

  /** Either the old or the new one after a kill; no flush, because nothing of it is to outlive the system. */
  async #write(note: Note): Promise<void> {
    await mkdir(this.#options.runDir, { recursive: true, mode: 0o700 });
    await writeFile(`${this.#file}.new`, JSON.stringify(note), { mode: 0o600 });
    await rename(`${this.#file}.new`, this.#file);
  }
}

/** When a process began, in ticks since the boot, and the group that it is in; null if there is none. */
async function statOf(pid: number): Promise<{ group: number; startTicks: string } | null> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => null);
  // Its name, in brackets, may hold anything.
  const fields = text?.slice(text.lastIndexOf(')') + 2).split(' ');
  // A zombie has ended.
  if (!fields || fields[0] === 'Z') return null;
  return { group: Number(fields[2]), startTicks: fields[19]! };
}

const startTicks = async (pid: number): Promise<string | null> =>
  (await statOf(pid))?.startTicks ?? null;

/** The hook's call that an ended agent left running: the leader of its group, not what it has left behind on purpose. */
async function callOf(path: string): Promise<number | null> {
  const ends = ['pre', 'post'].map((phase) => `\0${path}\0${phase}\0`);
  for (const name of await readdir('/proc')) {
    const pid = Number(name);
    if (!Number.isInteger(pid)) continue;
    const line = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    if (!ends.some((end) => `\0${line}`.endsWith(end))) continue;
    if ((await statOf(pid))?.group === pid) return pid;
  }
  return null;
}

/**
 * Resolves when no call of the hook runs: a `pre` that ends behind its `post` would hold what nobody lets go. One that
 * takes longer than a hook may is ended with its group, as its own agent would have done.
 */
async function ended(path: string): Promise<void> {
  const end = performance.now() + HOOK_LIMIT_MS;
  for (;;) {
    const pid = await callOf(path);
    if (pid === null) return;
    if (performance.now() >= end) {
      try {
        process.kill(-pid, 'SIGKILL');
      } catch {
        // It ended just now.
      }
    }
    await sleep(LOOK_MS);
  }
}
