/**
 * The scripts that bring applications to rest before a point and let them go on after it. docs/quiesce.md says what a
 * script may count on.
 */
import { spawn } from 'node:child_process';
import { access, constants, readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { HookReport } from '../../protocol/marks.ts';

export interface Hook {
  name: string;
  path: string;
  /** Why it is not run although it should be: then it counts as failed. */
  refused: string | null;
}

/** Exit status of a hook whose application does not run on this server. */
const NOT_HERE = 77;
export const HOOK_LIMIT_MS = 30_000;
/** All pre-hooks together: what they hold, such as a lock, must not be held long. */
const PRE_LIMIT_MS = 60_000;
const SAID_CHARS = 300;

/** Names that editors and package managers leave behind, and files that are no program. */
const isHookName = (name: string): boolean => /^[A-Za-z0-9][A-Za-z0-9_-]*(\.sh)?$/.test(name);

/**
 * Pure: which of the user's and the ready hooks run, in order of their names. A ready hook runs unless the user's folder
 * has one of the same name; those that are off by default only come in by being linked from there.
 */
export function chooseHooks(
  ready: readonly { name: string; path: string; auto: boolean }[],
  users: readonly { name: string; path: string; executable: boolean; refused: string | null }[],
): Hook[] {
  const hooks: Hook[] = [];
  for (const { name, path, auto } of ready) {
    if (auto && !users.some((user) => user.name === name))
      hooks.push({ name, path, refused: null });
  }
  for (const { name, path, executable, refused } of users) {
    if (isHookName(name) && executable) hooks.push({ name, path, refused });
  }
  return hooks.sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** The user's hooks in a folder that need not exist. They run as root: only root may be able to change them. */
export async function userHooks(
  dir: string,
): Promise<{ name: string; path: string; executable: boolean; refused: string | null }[]> {
  const names = await readdir(dir).catch(() => [] as string[]);
  return Promise.all(
    names.map(async (name) => {
      const path = join(dir, name);
      const found = await stat(path).catch(() => null);
      const executable =
        found?.isFile() === true &&
        (found.mode & 0o111) !== 0 &&
        (await access(path, constants.X_OK).then(
          () => true,
          () => false,
        ));
      let refused: string | null = null;
      if (executable && (found.uid !== 0 || (found.mode & 0o022) !== 0)) {
        refused = 'it does not belong to root, or others may write to it';
      }
      return { name, path, executable, refused };
    }),
  );
}

export interface HookRunOptions {
  /** Handed to the hooks; a tmpfs where a hook may keep what its `post` needs. */
  runDir: string;
  point: { pointId: string; name: string };
  /** That will be frozen: what lies elsewhere need not be brought to rest. */
  mountPoints: readonly string[];
  limitMs?: number;
  /** True: each hook becomes a unit of its own, because the agent's own unit has few rights. */
  asUnit?: boolean;
}

/** Where it stands whose `post` is owed, whatever becomes of this process: `OwedPosts`. */
export interface HookNotes {
  /** @throws if it cannot be noted: then the hook is not begun */
  begin(hook: Hook, options: HookRunOptions): Promise<void>;
  paid(name: string): Promise<void>;
}

/** systemd is what started this system. */
export const systemdRuns = (): Promise<boolean> =>
  access('/run/systemd/system').then(
    () => true,
    () => false,
  );

function command(
  hook: Hook,
  phase: 'pre' | 'post',
  limitMs: number,
  env: Record<string, string>,
  asUnit: boolean,
): string[] {
  if (!asUnit) return [hook.path, phase];
  return [
    'systemd-run',
    '--quiet',
    '--wait',
    '--pipe',
    '--collect',
    '--service-type=exec',
    // What `pre` leaves running for `post`, such as a session that holds a lock, must stay.
    '--property=KillMode=process',
    ...Object.entries(env).map(([name, value]) => `--setenv=${name}=${value}`),
    '--',
    // Not the unit's own limit: with that kill mode it would end the script alone and leave the command that it hangs in.
    // This one ends the group, also when the agent has died; and it is found by the environment's PATH.
    '/usr/bin/env',
    'timeout',
    '--signal=KILL',
    `${limitMs / 1000}`,
    hook.path,
    phase,
  ];
}

/** Run one hook; never throws. */
export async function runHook(
  hook: Hook,
  phase: 'pre' | 'post',
  options: HookRunOptions,
): Promise<HookReport> {
  const startedAt = performance.now();
  const limitMs = options.limitMs ?? HOOK_LIMIT_MS;
  const report = (outcome: HookReport['outcome'], text: string): HookReport => ({
    name: hook.name,
    phase,
    outcome,
    ms: Math.round(performance.now() - startedAt),
    text: text.trim().slice(-SAID_CHARS),
  });
  if (hook.refused) return report('failed', hook.refused);
  const env = {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    LC_ALL: 'C',
    UNDERSTUDY_POINT_ID: options.point.pointId,
    UNDERSTUDY_POINT_NAME: options.point.name,
    UNDERSTUDY_RUN_DIR: options.runDir,
    UNDERSTUDY_AGENT_PID: String(process.pid),
    UNDERSTUDY_MOUNTS: options.mountPoints.join('\n'),
  };
  const [program, ...args] = command(hook, phase, limitMs, env, options.asUnit ?? false);
  // A group of its own, so that at the limit all that it started ends with it.
  const child = spawn(program!, args, {
    env,
    cwd: '/',
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let said = '';
  const hear = (chunk: Buffer) => {
    said = (said + chunk.toString('utf8')).slice(-4 * SAID_CHARS);
  };
  child.stdout.on('data', hear);
  child.stderr.on('data', hear);
  return new Promise((resolve) => {
    let late = false;
    const timer = setTimeout(
      () => {
        late = true;
        try {
          process.kill(-child.pid!, 'SIGKILL');
        } catch {
          // It ended just now.
        }
      },
      // The limit within the unit comes first; this one is for a systemd that does not answer.
      options.asUnit ? limitMs + 5_000 : limitMs,
    );
    child.once('error', (error) => {
      clearTimeout(timer);
      resolve(report('failed', `it cannot be started: ${error.message}`));
    });
    // Not `close`: what it leaves running may hold its output open.
    child.once('exit', (code, signal) => {
      clearTimeout(timer);
      setImmediate(() => {
        child.stdout.destroy();
        child.stderr.destroy();
        if (late || (options.asUnit && performance.now() - startedAt >= limitMs)) {
          resolve(report('timed-out', `${said.trim()}\nended after ${limitMs / 1000} s`));
        } else if (code === 0) resolve(report('done', said));
        else if (code === NOT_HERE) resolve(report('skipped', said));
        else resolve(report('failed', said.trim() || `exit status ${code ?? signal}`));
      });
    });
  });
}

/**
 * Run the pre-hooks in order, up to the first that fails.
 * @returns their reports, and the hooks that were begun: each of them is owed its `post`
 */
export async function runPre(
  hooks: readonly Hook[],
  options: HookRunOptions,
  notes: HookNotes,
): Promise<{ reports: HookReport[]; begun: Hook[]; failed: HookReport | null }> {
  const reports: HookReport[] = [];
  const begun: Hook[] = [];
  const end = performance.now() + PRE_LIMIT_MS;
  for (const hook of hooks) {
    const left = Math.max(1, end - performance.now());
    try {
      if (!hook.refused) await notes.begin(hook, options);
    } catch (error) {
      const text = `it was not begun, because that could not be noted: ${(error as Error).message}`;
      const failed: HookReport = { name: hook.name, phase: 'pre', outcome: 'failed', ms: 0, text };
      return { reports: [...reports, failed], begun, failed };
    }
    begun.push(hook);
    const limitMs = Math.min(options.limitMs ?? HOOK_LIMIT_MS, left);
    const report = await runHook(hook, 'pre', { ...options, limitMs });
    reports.push(report);
    // One that found nothing to bring to rest has nothing to let go on.
    if (report.outcome === 'skipped') await notes.paid(hook.name);
    if (report.outcome === 'failed' || report.outcome === 'timed-out') {
      return { reports, begun, failed: report };
    }
  }
  return { reports, begun, failed: null };
}

/** Run `post` of those that were begun, the last one first, each whatever became of the others. */
export async function runPost(
  begun: readonly Hook[],
  pre: readonly HookReport[],
  options: HookRunOptions,
  notes: HookNotes,
): Promise<HookReport[]> {
  const reports: HookReport[] = [];
  for (const hook of begun.toReversed()) {
    if (pre.find(({ name }) => name === hook.name)?.outcome === 'skipped') continue;
    if (hook.refused) continue;
    reports.push(await runHook(hook, 'post', options));
    await notes.paid(hook.name);
  }
  return reports;
}

/** The text of a file, or null. */
export const textOf = (path: string): Promise<string | null> =>
  readFile(path, 'utf8').catch(() => null);
