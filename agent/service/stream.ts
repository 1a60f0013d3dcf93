/** Ties the source's stream to the service: which helper, which folders. */

import { createCapture, freeze, openBlockReader } from '../capture/capture.ts';
import { openFileMap } from '../capture/file-map.ts';
import type { AgentPaths } from '../config.ts';
import { activeSwap, checkNow, findUnneeded, type UnneededEdges } from '../mirror/unneeded.ts';
import { SourceStream } from '../source-stream.ts';
import type { Log } from './log.ts';
import { createQuiesce, flush } from './quiesce.ts';
import type { Stream } from './run.ts';

/** @param helperPath the capture helper of this build, or undefined to look for one at the first use */
export function createStream(paths: AgentPaths, helperPath: string | undefined, log: Log): Stream {
  const helper = { helperPath };
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
    quiesce: createQuiesce(paths, helper),
    flush,
    unneeded: (devicePath, sizeBytes, exclusions) =>
      findUnneeded(devicePath, sizeBytes, exclusions, edges),
    checkExcluded: (files, exclusions) => checkNow(files, exclusions, edges),
    log,
  });
}
