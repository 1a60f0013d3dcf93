/**
 * Sends the blocks that a disk's dirty map names: writes that were tracked and not captured. One sweep upwards takes all
 * that was dirty when it began, and that is everything that was missed: order is held again by then, so what is marked
 * later (failed and overlapping writes) is in the stream and is only read again for certainty, by reread.ts.
 *
 * The rule of touched.ts holds, with a tracker for each take, begun when every record of before the take is numbered: a
 * write that failed, or overlapped another one in flight, marked its blocks because its record is not what the disk
 * holds, so that record must not cut them.
 */
import type { FrameExtent } from '../../protocol/frame.ts';
import type { BlockReader, Extent } from '../capture/capture.ts';
import { chunkExtents, subtractSpans } from './chunk.ts';
import type { Span, Touched } from './touched.ts';

/** Taken at a time: what the agent's death makes dirty, and sends, again. */
const TAKE_BYTES = 64 * 1024 * 1024;
const READ_BYTES = 1024 * 1024;
/** Dirty blocks that lie so close are read at once; what lies between them is not sent. */
const GAP_BYTES = 32 * 1024;
const READ_AHEAD = 8;
const FRAME_BYTES = 1024 * 1024;

export interface DrainHost {
  takeDirty(disk: number, maxBytes: number, fromBytes: number): Promise<Extent[]>;
  /** Resolves when every record that was in the ring at the call is sequenced. */
  overtaken(): Promise<void>;
  /** Every captured write of the disk that is sequenced from now on is remembered in the returned tracker. */
  track(disk: number): { touched: Touched; stop(): void };
  /** Sorted spans that stay out of the stream altogether: active swap. */
  leftOut(): readonly Span[];
  /** Every write issued before has completed when it resolves. */
  barrier(): Promise<void>;
  /** Resolves when replication has left room for a mirror frame. */
  room(): Promise<void>;
  /** Put a frame into the stream, now. */
  emit(drainedBytes: number, extents: FrameExtent[]): void;
  /** Bytes read, for the figures. */
  read(bytes: number): void;
}

/** One read: a span of the disk, and the dirty parts of it. */
export interface DrainRead extends Span {
  parts: Span[];
}

/** Pure: neighbouring extents (sorted) become one read where little lies between them; none is longer than `READ_BYTES`. */
export function planReads(extents: readonly Extent[]): DrainRead[] {
  const reads: DrainRead[] = [];
  for (const extent of extents) {
    const end = extent.offsetBytes + extent.lengthBytes;
    for (let at = extent.offsetBytes; at < end; ) {
      const last = reads.at(-1);
      const lastEnd = last ? last.offsetBytes + last.lengthBytes : 0;
      const room = last ? last.offsetBytes + READ_BYTES - at : 0;
      if (last && at - lastEnd <= GAP_BYTES && room > 0) {
        const lengthBytes = Math.min(end - at, room);
        last.parts.push({ offsetBytes: at, lengthBytes });
        last.lengthBytes = at + lengthBytes - last.offsetBytes;
        at += lengthBytes;
        continue;
      }
      const lengthBytes = Math.min(end - at, READ_BYTES);
      const part = { offsetBytes: at, lengthBytes };
      reads.push({ ...part, parts: [part] });
      at += lengthBytes;
    }
  }
  return reads;
}

/**
 * @param taken gets what is taken: the caller clears it once everything is acknowledged, or marks it dirty again
 * @throws the signal's reason, UND_SOURCE_READ_FAILED, UND_CAPTURE_…
 */
export async function drainDirty(
  host: DrainHost,
  disk: number,
  reader: BlockReader,
  taken: Extent[],
  signal: AbortSignal,
): Promise<void> {
  let fromBytes = 0;
  let drainedBytes = 0;
  for (;;) {
    signal.throwIfAborted();
    const extents = await host.takeDirty(disk, TAKE_BYTES, fromBytes);
    if (extents.length === 0) return;
    taken.push(...extents);
    await host.overtaken();
    const tracker = host.track(disk);
    try {
      drainedBytes = await drainTaken(
        host,
        disk,
        reader,
        tracker.touched,
        extents,
        drainedBytes,
        signal,
      );
    } finally {
      tracker.stop();
    }
    const last = extents.at(-1)!;
    fromBytes = last.offsetBytes + last.lengthBytes;
  }
}

/** @returns drainedBytes with those of the extents */
async function drainTaken(
  host: DrainHost,
  disk: number,
  reader: BlockReader,
  touched: Touched,
  extents: readonly Extent[],
  before: number,
  signal: AbortSignal,
): Promise<number> {
  let drainedBytes = before;
  // A block may have been marked by a write that has not landed.
  await host.barrier();
  const leftOut = host.leftOut();
  const reads = planReads(extents.flatMap((extent) => subtractSpans(extent, leftOut)));
  const ahead: Array<Promise<{ data: Buffer; zero: boolean }>> = [];
  let read: Array<{ parts: Span[]; offsetBytes: number; data: Buffer }> = [];
  let readBytes = 0;
  for (const [at, { offsetBytes, parts }] of reads.entries()) {
    for (let next = at + ahead.length; ahead.length < READ_AHEAD && next < reads.length; next++) {
      const one = reader.read(reads[next]!.offsetBytes, reads[next]!.lengthBytes);
      one.catch(() => {});
      ahead.push(one);
    }
    const { data } = await ahead.shift()!;
    host.read(data.length);
    read.push({ parts, offsetBytes, data });
    readBytes += data.length;
    if (readBytes < FRAME_BYTES && at + 1 < reads.length) continue;
    await host.room();
    signal.throwIfAborted();
    // From here to emit nothing is awaited: what is sent is cut by all that is numbered before it.
    const frame: FrameExtent[] = [];
    for (const { parts, offsetBytes, data } of read) {
      for (const part of parts) {
        drainedBytes += part.lengthBytes;
        const spans = touched.untouched(part.offsetBytes, part.lengthBytes);
        frame.push(...chunkExtents(disk, 'drain', offsetBytes, data, spans));
      }
    }
    host.emit(drainedBytes, frame);
    read = [];
    readBytes = 0;
  }
  return drainedBytes;
}
