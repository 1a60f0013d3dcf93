/** Ties the source's stream to the service: which helper, which folders. */

import { createCapture, freeze, openBlockReader } from '../capture/capture.ts';
import type { AgentPaths } from '../config.ts';
import { activeSwap, findUnneeded } from '../mirror/unneeded.ts';
import { SourceStream } from '../source-stream.ts';
import type { Log } from './log.ts';
import { createQuiesce } from './quiesce.ts';
import type { Stream } from './run.ts';

/** @param helperPath the capture helper of this build, or undefined to look for one at the first use */
export function createStream(paths: AgentPaths, helperPath: string | undefined, log: Log): Stream {
  const helper = { helperPath };
  return new SourceStream({
    createCapture: () => createCapture(helper),
    openReader: (devicePath) => openBlockReader(devicePath, helper),
    pinDir: paths.pinDir,
    runDir: paths.runDir,
    activeSwap,
    quiesce: createQuiesce(paths, helper),
    unneeded: (devicePath, sizeBytes) =>
      findUnneeded(devicePath, sizeBytes, {
        openReader: (path) => openBlockReader(path, helper),
        freeze: (mountPoints, timeoutMs) => freeze(mountPoints, timeoutMs, helper),
        log,
      }),
    log,
  });
}
