/**
 * An agent's hooks in a process of its own, so that it can be killed: FOLDER ROOT [DISK...] takes a point without a
 * capture, and holds between `pre` and `post` from when FOLDER/held is there until FOLDER/go is. What the hooks said is
 * in FOLDER/report.json then, beside what this process may not do itself. FOLDER ROOT limit HOOK: that hook with a short
 * limit. FOLDER ROOT settle: what another one owes.
 */
import { spawnSync } from 'node:child_process';
import { chownSync, existsSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { agentPaths } from '../../agent/config.ts';
import { runHook, systemdRuns } from '../../agent/quiesce/hooks.ts';
import { OwedPosts } from '../../agent/quiesce/owed.ts';
import { log } from '../../agent/service/log.ts';
import { createQuiesce } from '../../agent/service/quiesce.ts';
import type { HookReport } from '../../protocol/marks.ts';
import { until } from './stream.lab.ts';

const [dir, root, ...rest] = process.argv.slice(2) as [string, string, ...string[]];
const tell = (name: string, value: unknown) => {
  writeFileSync(join(dir, `${name}.new`), JSON.stringify(value));
  renameSync(join(dir, `${name}.new`), join(dir, name));
};
const paths = agentPaths(root);
mkdirSync(paths.runDir, { recursive: true });
const owed = new OwedPosts({ ...paths, log });
const point = { pointId: 'point', name: 'two\nlines, 100 % of "$HOME"' };

/** What only somebody with all rights can do. */
function forbidden(): string[] {
  const found: string[] = [];
  writeFileSync(join(dir, 'mine'), '');
  try {
    chownSync(join(dir, 'mine'), 65534, 65534);
  } catch {
    found.push('chown');
  }
  if (spawnSync('unshare', ['--mount', 'true']).status !== 0) found.push('unshare');
  return found;
}

if (rest[0] === 'limit') {
  const path = rest[1]!;
  const hook = { name: basename(path), path, refused: null };
  const options = {
    runDir: paths.runDir,
    point,
    mountPoints: [],
    limitMs: 5000,
    asUnit: await systemdRuns(),
  };
  tell('report.json', { hooks: [await runHook(hook, 'pre', options)] });
} else if (rest[0] === 'settle') {
  tell('settling', true);
  tell('settled.json', await owed.settle());
} else {
  let hooks: HookReport[] = [];
  const postHooks = await createQuiesce(
    paths,
    {},
    owed,
  )({
    point,
    devicePaths: rest,
    ready: async () => {
      tell('held', true);
      await until('the word to go on', () => existsSync(join(dir, 'go')));
    },
    mark: async () => {},
    marked: (state) => {
      hooks = state.hooks;
    },
  });
  tell('report.json', { hooks, postHooks, forbidden: forbidden() });
}
