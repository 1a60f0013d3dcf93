/** A thread of small-writes.ts: writes what it is lent, and gives it back. */
import { writeSync } from 'node:fs';
import { isMainThread, parentPort } from 'node:worker_threads';

/** This very file, or what scripts/build-appliance makes of it beside the service. */
export const SMALL_WRITES_WORKER = new URL(
  import.meta.url.endsWith('.ts') ? import.meta.url : './small-writes-worker.mjs',
  import.meta.url,
);

export interface WritesAsk {
  fd: number;
  /** The writes' data, one behind the other. */
  data: ArrayBuffer;
  /** Offset and length of each, in bytes. */
  spans: Float64Array;
}

export interface WritesAnswer {
  data: ArrayBuffer;
  error: { message: string; code: string | undefined } | null;
}

function writeAll({ fd, data, spans }: WritesAsk): WritesAnswer['error'] {
  const bytes = new Uint8Array(data);
  let from = 0;
  try {
    for (let index = 0; index < spans.length; index += 2) {
      let at = spans[index]!;
      for (let left = spans[index + 1]!; left > 0; ) {
        const wrote = writeSync(fd, bytes, from, left, at);
        if (wrote === 0) return { message: `nothing was written at ${at}`, code: undefined };
        from += wrote;
        at += wrote;
        left -= wrote;
      }
    }
    return null;
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    return { message, code };
  }
}

// Where this file is part of the service itself, nobody is there to ask.
if (!isMainThread && parentPort) {
  const port = parentPort;
  port.on('message', (ask: WritesAsk) => {
    const answer: WritesAnswer = { data: ask.data, error: writeAll(ask) };
    port.postMessage(answer, [answer.data]);
  });
}
