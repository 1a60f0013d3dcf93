/**
 * One attempt at one disk's mirror run: read every block from the cursor on, leave out what need not go, and put the
 * rest into the stream where it can't land over a newer write (touched.ts has the rule, docs/stream.md the argument).
 * Every run, whatever its kind, drains the disk's dirty map before it ends; a drain is a run of nothing else.
 */
import type { MirrorKind } from '../../protocol/control.ts';
import type { FrameExtent } from '../../protocol/frame.ts';
import { CHUNK_BYTES } from '../../protocol/hash-tree.ts';
import type { BlockReader, Extent } from '../capture/capture.ts';
import { chunkExtents, subtractSpans } from './chunk.ts';
import { type CompareHost, compareDisk } from './compare.ts';
import { drainDirty } from './drain.ts';
import type { Span, Touched } from './touched.ts';

/** Reads under way at once. */
const READ_AHEAD = 4;
/** What was passed over is told at least so often, so that progress is seen and a resumed run need not repeat it. */
const PROGRESS_BYTES = 256 * 1024 * 1024;

export interface MirrorAsk {
  disk: number;
  run: number;
  kind: MirrorKind;
  reason: string;
  startBytes: number;
  endBytes: number;
  cursorBytes: number;
  skippedBytes: number;
}

export interface MirrorHost extends CompareHost {
  /** Every captured write of the disk that is sequenced from now on is remembered in the returned tracker. */
  track(disk: number): { touched: Touched; stop(): void };
  /** Resolves when it is acknowledged: hashes that are asked for before it would be of an older replica. */
  markStart(ask: MirrorAsk): Promise<void>;
  /** Resolves when the frame of the mark is acknowledged. */
  markEnd(ask: MirrorAsk): Promise<void>;
  /** Every write issued before has completed when it resolves. */
  barrier(): Promise<void>;
  takeDirty(disk: number, maxBytes?: number, fromBytes?: number): Promise<Extent[]>;
  clearDirty(disk: number, extents: Extent[]): Promise<void>;
  markDirty(disk: number, extents: Extent[]): Promise<void>;
  openReader(disk: number): Promise<BlockReader>;
  /** Sorted spans that need not be mirrored: unallocated by a map that may be trusted, excluded, or active swap. */
  unneeded(disk: number): Promise<Span[]>;
  /** Sorted spans that are unallocated by maps that are read now and may be trusted. */
  free(disk: number): Promise<Span[]>;
  /** Sorted spans that stay out of the stream altogether: active swap. */
  leftOut(disk: number): readonly Span[];
  /** What an earlier look left out, and should not be left out any more, is dirty when it resolves. */
  settle(disk: number): Promise<void>;
  /**
   * Resolves when every record that was in the ring at the call is sequenced.
   * @throws when order is lost: writes that a read has seen may be in no record
   */
  overtaken(): Promise<void>;
  /** Put a frame into the stream, now. */
  emit(ask: MirrorAsk, cursorBytes: number, skippedBytes: number, extents: FrameExtent[]): void;
  /** Figures for the status message. */
  progress(ask: MirrorAsk, cursorBytes: number, skippedBytes: number): void;
}

interface Chunk {
  span: Span;
  /** Null: nothing of it is needed. */
  data: Promise<{ data: Buffer; zero: boolean }> | null;
}

/**
 * From here on a drain is worth the maps of free blocks, which take a moment's freeze: so much at once is a trim of free
 * space as a rule.
 */
const LARGE_DRAIN_BYTES = 1024 * 1024 * 1024;

const bytesOf = (spans: ReadonlyArray<{ lengthBytes: number }>): number =>
  spans.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);

/** @throws the signal's reason, or what went wrong: UND_SOURCE_READ_FAILED, UND_LINK_CLOSED, an error of the appliance */
export async function runMirror(
  host: MirrorHost,
  ask: MirrorAsk,
  signal: AbortSignal,
): Promise<void> {
  const { disk } = ask;
  let tracker: ReturnType<MirrorHost['track']> | undefined;
  let reader: BlockReader | undefined;
  const taken: Extent[] = [];
  try {
    if (ask.kind === 'difference') await takeAhead(host, ask, taken);
    tracker = host.track(disk);
    await host.markStart(ask);
    await host.barrier();
    signal.throwIfAborted();
    reader = await host.openReader(disk);
    const at =
      ask.kind === 'drain'
        ? { cursorBytes: ask.startBytes, skippedBytes: 0 }
        : await mirrorBlocks(host, ask, reader, tracker.touched, signal);
    await host.settle(disk);
    if (ask.kind === 'drain' && ask.endBytes - ask.startBytes > LARGE_DRAIN_BYTES) {
      at.skippedBytes = await takeFree(host, disk, taken);
      at.cursorBytes += at.skippedBytes;
    }
    const begunBytes = at.cursorBytes;
    await drainDirty(
      {
        takeDirty: (index, maxBytes, fromBytes) => host.takeDirty(index, maxBytes, fromBytes),
        leftOut: () => host.leftOut(disk),
        overtaken: () => host.overtaken(),
        track: (index) => host.track(index),
        barrier: () => host.barrier(),
        room: () => host.room(),
        read: (bytes) => host.read(bytes),
        emit: (drainedBytes, extents) => {
          if (ask.kind === 'drain')
            at.cursorBytes = Math.min(begunBytes + drainedBytes, ask.endBytes);
          host.emit(ask, at.cursorBytes, at.skippedBytes, extents);
          host.progress(ask, at.cursorBytes, at.skippedBytes);
        },
      },
      disk,
      reader,
      taken,
      signal,
    );
    // A read may have seen a write whose record was not sequenced yet. With it the end mark is a point to recover to.
    await host.overtaken();
    await host.markEnd(ask);
    await host.clearDirty(disk, taken);
    taken.length = 0;
  } finally {
    tracker?.stop();
    if (taken.length > 0) await host.markDirty(disk, taken).catch(() => {});
    await reader?.close();
  }
}

/**
 * What is dirty now is read by this run, as far as the run still comes by it; the rest is left to its end. Not in a full
 * run: it passes over zeroes, and a zero that was missed lies over something on the replica.
 */
async function takeAhead(host: MirrorHost, ask: MirrorAsk, taken: Extent[]): Promise<void> {
  const inRun = ({ offsetBytes, lengthBytes }: Extent) =>
    offsetBytes >= ask.cursorBytes && offsetBytes + lengthBytes <= ask.endBytes;
  const dirty = await host.takeDirty(ask.disk);
  taken.push(...dirty.filter(inRun));
  const rest = dirty.filter((extent) => !inRun(extent));
  if (rest.length > 0) await host.markDirty(ask.disk, rest);
  // As in a drain: the records of the writes that marked them are not to cut them.
  if (taken.length > 0) await host.overtaken();
}

/**
 * What is dirty now and free behind that need not be read: what is allocated later is written later, and order is held.
 * The maps come second, so that nothing is left out that is marked from now on, such as a write that failed.
 * @returns its bytes
 */
async function takeFree(host: MirrorHost, disk: number, taken: Extent[]): Promise<number> {
  const dirty = await host.takeDirty(disk);
  taken.push(...dirty);
  await host.overtaken();
  const free = (await host.free(disk)).flatMap(wholeGrains);
  const needed = dirty.flatMap((extent) => subtractSpans(extent, free));
  await host.markDirty(disk, needed);
  taken.length = 0;
  for (const extent of dirty) taken.push(...subtractSpans(extent, needed));
  return bytesOf(taken);
}

/** The dirty map knows no smaller parts, also where its grain is large. */
const DIRTY_GRAIN_BYTES = 64 * 1024;

function wholeGrains({ offsetBytes, lengthBytes }: Span): Span[] {
  const grain = DIRTY_GRAIN_BYTES;
  const from = Math.ceil(offsetBytes / grain) * grain;
  const end = Math.floor((offsetBytes + lengthBytes) / grain) * grain;
  return end > from ? [{ offsetBytes: from, lengthBytes: end - from }] : [];
}

/** What is to be sent of the blocks up to `endBytes`. */
interface Part {
  endBytes: number;
  /** Spans that were read and must go, each with its data. */
  pieces: Array<Span & { data: Buffer }>;
}

/** Every block of [cursorBytes, endBytes) that must go. */
async function mirrorBlocks(
  host: MirrorHost,
  ask: MirrorAsk,
  reader: BlockReader,
  touched: Touched,
  signal: AbortSignal,
): Promise<{ cursorBytes: number; skippedBytes: number }> {
  const { disk, kind } = ask;
  const unneeded = await host.unneeded(disk);
  let { cursorBytes, skippedBytes } = ask;
  let toldBytes = cursorBytes;
  const parts =
    kind === 'difference'
      ? compareDisk(host, ask, reader, unneeded, signal)
      : readDisk(host, ask, reader, unneeded);
  for await (const { endBytes, pieces } of parts) {
    signal.throwIfAborted();
    const extents: FrameExtent[] = [];
    let inStreamBytes = 0;
    if (pieces.length > 0) {
      await host.room();
      signal.throwIfAborted();
      for (const piece of pieces) {
        const needed = subtractSpans(piece, unneeded);
        const spans = needed.flatMap((part) =>
          touched.untouched(part.offsetBytes, part.lengthBytes),
        );
        inStreamBytes += bytesOf(needed) - bytesOf(spans);
        extents.push(...chunkExtents(disk, kind, piece.offsetBytes, piece.data, spans));
      }
    }
    skippedBytes += endBytes - cursorBytes - inStreamBytes - bytesOf(extents);
    cursorBytes = endBytes;
    if (
      extents.length > 0 ||
      cursorBytes - toldBytes >= PROGRESS_BYTES ||
      cursorBytes >= ask.endBytes
    ) {
      host.emit(ask, cursorBytes, skippedBytes, extents);
      toldBytes = cursorBytes;
    }
    host.progress(ask, cursorBytes, skippedBytes);
  }
  return { cursorBytes, skippedBytes };
}

/** Everything that is needed and, for a replica that reads as zeroes, not zero. */
async function* readDisk(
  host: MirrorHost,
  ask: MirrorAsk,
  reader: BlockReader,
  unneeded: readonly Span[],
): AsyncGenerator<Part> {
  const queue: Chunk[] = [];
  let nextBytes = ask.cursorBytes;
  const fill = () => {
    while (queue.length < READ_AHEAD && nextBytes < ask.endBytes) {
      const lengthBytes = Math.min(CHUNK_BYTES, ask.endBytes - nextBytes);
      const span = { offsetBytes: nextBytes, lengthBytes };
      const isNeeded = subtractSpans(span, unneeded).length > 0;
      const data = isNeeded ? reader.read(nextBytes, lengthBytes) : null;
      data?.catch(() => {});
      queue.push({ span, data });
      nextBytes += lengthBytes;
    }
  };
  for (fill(); queue.length > 0; fill()) {
    const { span, data: reading } = queue.shift()!;
    const part: Part = { endBytes: span.offsetBytes + span.lengthBytes, pieces: [] };
    if (reading) {
      const { data, zero } = await reading;
      host.read(data.length);
      if (!zero) part.pieces.push({ ...span, data });
    }
    yield part;
  }
}
