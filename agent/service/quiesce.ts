/** Ties the quiescing to this agent's paths: which hooks, which helper. */

import { execa } from 'execa';
import { undError } from '../../protocol/errors.ts';
import type { HelperOptions } from '../capture/capture.ts';
import { freeze } from '../capture/capture.ts';
import type { AgentPaths } from '../config.ts';
import { findFileSystems } from '../quiesce/find-file-systems.ts';
import { chooseHooks, systemdRuns, userHooks } from '../quiesce/hooks.ts';
import type { OwedPosts } from '../quiesce/owed.ts';
import { type QuiesceRequest, quiesce } from '../quiesce/quiesce.ts';
import { ensureReadyHooks } from '../quiesce/ready-hooks.ts';

const FLUSH_LIMIT_MS = 300_000;

/**
 * `syncfs` of each file system on these disks; of no other one: a dead network mount must not hold it up.
 * @throws UND_HANDOVER_FAILED
 */
export async function flush(devicePaths: readonly string[]): Promise<void> {
  const mountPoints = await findFileSystems(devicePaths);
  if (mountPoints.length === 0) return;
  const { failed, shortMessage } = await execa('sync', ['-f', '--', ...mountPoints], {
    reject: false,
    stdin: 'ignore',
    timeout: FLUSH_LIMIT_MS,
  });
  if (!failed) return;
  throw undError('UND_HANDOVER_FAILED', {
    source: 'this machine',
    reason: `its file systems could not be flushed: ${shortMessage}`,
  });
}

/** What SourceStreamOptions asks for. */
export const createQuiesce =
  (
    paths: Pick<AgentPaths, 'hooksDir' | 'programDir' | 'runDir'>,
    helper: HelperOptions,
    owed: OwedPosts,
  ) =>
  (request: QuiesceRequest) =>
    owed.during(() =>
      quiesce(request, {
        findFileSystems,
        freeze: (mountPoints, timeoutMs) => freeze(mountPoints, timeoutMs, helper),
        findHooks: async () =>
          chooseHooks(
            await ensureReadyHooks(`${paths.programDir}/hooks`),
            await userHooks(paths.hooksDir),
          ),
        hookOptions: async (point, mountPoints) => ({
          runDir: paths.runDir,
          point,
          mountPoints,
          asUnit: await systemdRuns(),
        }),
        hookNotes: owed,
      }),
    );
