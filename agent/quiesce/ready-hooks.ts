/**
 * The hooks that come with the agent: carried inside its executable, written beside it at every start, so that they are
 * those of this very build.
 */
import { chmod, mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { writeDurably } from '../config.ts';
import { textOf } from './hooks.ts';

/** Set by scripts/build-agent: the scripts' texts by name. */
declare const UNDERSTUDY_HOOKS: Record<string, string> | undefined;

/**
 * PostgreSQL's is harmless and on wherever a server runs. That of MySQL and MariaDB takes a global read lock, which can
 * hold writers up behind a long query: it is off until it is linked from the user's folder.
 */
const READY = [
  { name: '50-postgresql', auto: true },
  { name: '60-mysql', auto: false },
] as const;

/** Writes the ready hooks to `dir` if they are not there; returns them. */
export async function ensureReadyHooks(
  dir: string,
): Promise<{ name: string; path: string; auto: boolean }[]> {
  if (typeof UNDERSTUDY_HOOKS !== 'object') {
    // Run from the sources.
    const sources = join(process.cwd(), 'agent/quiesce/hooks');
    return READY.map(({ name, auto }) => ({ name, path: join(sources, name), auto }));
  }
  await mkdir(dir, { recursive: true, mode: 0o755 });
  const hooks: { name: string; path: string; auto: boolean }[] = [];
  for (const { name, auto } of READY) {
    const path = join(dir, name);
    const wanted = UNDERSTUDY_HOOKS[name]!;
    if ((await textOf(path)) !== wanted) await writeDurably(path, wanted, 0o755);
    await chmod(path, 0o755);
    hooks.push({ name, path, auto });
  }
  return hooks;
}
