/** Ties the quiescing to this agent's paths: which hooks, which helper. */

import type { HelperOptions } from '../capture/capture.ts';
import { freeze } from '../capture/capture.ts';
import type { AgentPaths } from '../config.ts';
import { findFileSystems } from '../quiesce/find-file-systems.ts';
import { chooseHooks, systemdRuns, userHooks } from '../quiesce/hooks.ts';
import { type QuiesceRequest, quiesce } from '../quiesce/quiesce.ts';
import { ensureReadyHooks } from '../quiesce/ready-hooks.ts';

/** What SourceStreamOptions asks for. */
export const createQuiesce =
  (paths: Pick<AgentPaths, 'hooksDir' | 'programDir' | 'runDir'>, helper: HelperOptions) =>
  (request: QuiesceRequest) =>
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
    });
