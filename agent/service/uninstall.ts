/** Takes the agent off its machine, every trace of it. Run as root on the source server. */
import { access, rm, rmdir } from 'node:fs/promises';
import { execa } from 'execa';
import { undError } from '../../protocol/errors.ts';
import { type AgentPaths, agentPaths, EARLY_UNIT_NAME, traces, UNIT_NAME } from '../config.ts';
import { OwedPosts } from '../quiesce/owed.ts';
import { createIsolator } from './isolation.ts';
import { log } from './log.ts';

export type Systemctl = (...args: string[]) => Promise<{ ok: boolean; text: string }>;

export const systemctl: Systemctl = async (...args) => {
  const { failed, all } = await execa('systemctl', args, {
    reject: false,
    all: true,
    timeout: 90_000,
    stdin: 'ignore',
  });
  return { ok: !failed, text: all ?? '' };
};

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

/**
 * Removes everything that the agent put on this machine. Works on a half-installed one; what is gone is no error.
 * The service's process is not stopped here: `uninstall` stops it before, the service itself ends after.
 * @returns paths that could not be removed
 */
export async function removeTraces(
  paths: AgentPaths = agentPaths(),
  run = systemctl,
  owed = new OwedPosts({ ...paths, log }),
): Promise<string[]> {
  // First: the hooks that come with the agent go, too.
  await owed.settle();
  await run('disable', UNIT_NAME);
  // Where there is no nft, nothing was cut off.
  await createIsolator()
    .release()
    .catch(() => undefined);
  const left: string[] = [];
  for (const path of traces(paths)) {
    await rm(path, { recursive: true, force: true }).catch(() =>
      rmdir(path).catch(() => undefined),
    );
    if (await exists(path)) left.push(path);
  }
  await run('daemon-reload');
  await run('reset-failed', UNIT_NAME, EARLY_UNIT_NAME);
  return left;
}

/**
 * Stops the service and removes every trace of the agent from this machine.
 * @throws UND_UNINSTALL_INCOMPLETE
 */
export async function uninstall(paths: AgentPaths = agentPaths(), run = systemctl): Promise<void> {
  await run('stop', UNIT_NAME);
  const left = await removeTraces(paths, run);
  if (left.length > 0) {
    throw undError('UND_UNINSTALL_INCOMPLETE', { source: 'this machine', left: left.join(', ') });
  }
}
