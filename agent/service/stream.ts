/** Ties the source's stream to the service: which helper, which folders. */

import { createCapture, freeze, openBlockReader } from '../capture/capture.ts';
import { openFileMap } from '../capture/file-map.ts';
import type { AgentPaths } from '../config.ts';
import {
  activeSwap,
  checkNow,
  findUnneeded,
  partsOf,
  type UnneededEdges,
} from '../mirror/unneeded.ts';
import type { OwedPosts } from '../quiesce/owed.ts';
import { EarlyBoot } from '../restart/early-boot.ts';
import { SourceStream } from '../source-stream.ts';
import type { Log } from './log.ts';
import type { ProcessorShare } from './processor-share.ts';
import { createQuiesce, flush } from './quiesce.ts';
import type { Stream } from './run.ts';
import { systemctl } from './uninstall.ts';

/**
 * @param helperPath the capture helper of this build, or undefined to look for one at the first use
 * @param share of the processors, where the system lets the agent have a say in it
 */
export function createStream(
  paths: AgentPaths,
  helperPath: string | undefined,
  share: ProcessorShare | null,
  owed: OwedPosts,
  log: Log,
): Stream {
  const helper = { helperPath };
  const quiesce = createQuiesce(paths, helper, owed);
  const edges: UnneededEdges = {
    openReader: (path) => openBlockReader(path, helper),
    openFileMap: () => openFileMap(helper),
    freeze: (mountPoints, timeoutMs) => freeze(mountPoints, timeoutMs, helper),
    log,
  };
  return new SourceStream({
    createCapture: () => createCapture(helper),
    openReader: edges.openReader,
    pinDir: paths.pinDir,
    runDir: paths.runDir,
    activeSwap,
    // Writers wait for the thaw: now the agent must get to run.
    quiesce: (request) => (share ? share.during(() => quiesce(request)) : quiesce(request)),
    flush,
    earlyBoot: new EarlyBoot(paths, systemctl, edges.openFileMap, log),
    unneeded: (devicePath, sizeBytes, exclusions) =>
      findUnneeded(devicePath, sizeBytes, exclusions, edges),
    deviceAt: async (devicePath, sizeBytes, offsetBytes) => {
      const parts = await partsOf(devicePath, sizeBytes);
      return parts.find((part) => part.offsetBytes === offsetBytes)?.dev ?? null;
    },
    checkExcluded: (files, exclusions) => checkNow(files, exclusions, edges),
    log,
  });
}
