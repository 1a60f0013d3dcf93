/**
 * The journal: the stream of one protection job, frame by frame as it came, in append-only segments.
 *
 * Two families of segments, so that a mirror never evicts history: `s-` holds captured writes, blocks read again and
 * marks (the history), `m-` holds frames of mirror runs, which leave as soon as they are applied. Sequence numbers are
 * contiguous over both. Journals of before kept blocks read again in `m-`: a frame is read from where it is.
 * A segment is nothing but frames, one after the other; its name carries the first sequence number in it.
 *
 * `durable` advances only after fdatasync of everything up to it (one for all frames that wait: a group commit). At
 * open, what follows the last applied frame is verified, and everything from the first torn, damaged or missing frame
 * on is cut off: none of it was acknowledged, or, if it was, the handshake sees the regression.
 */
import { randomUUID } from 'node:crypto';
import { type FileHandle, open, readdir, rm, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import { FRAME_HEADER_BYTES, type FrameHeader, readHeader } from '../../protocol/frame.ts';
import { makeDirDurably, readJson, syncDir, writeJsonDurably } from './durable-file.ts';
import { headersFrom, type JournalHeader } from './header-scan.ts';
import {
  FAMILIES,
  type Family,
  familyOf,
  type JournalFrame,
  parseSegmentName,
  type Segment,
  SegmentScan,
  segmentName,
} from './segment.ts';
import { SegmentFile } from './segment-file.ts';
import { type JournalReport, type SeqRange, verifySegments } from './verify.ts';

export type { JournalFrame } from './segment.ts';
export type { JournalFault, JournalReport, SeqRange } from './verify.ts';

const Identity = Type.Object({
  version: Type.Literal(1),
  journalId: Type.String(),
  jobId: Type.String(),
  epoch: Type.Integer({ minimum: 1 }),
});
type Identity = Static<typeof Identity>;

export interface JournalOptions {
  jobId: string;
  dir: string;
  /** The frame up to which everything is on the replica disks, durably. */
  appliedSeq: number;
  segmentBytes?: number;
  /** History and what is not applied together keep below this; what is not applied is never evicted for it. */
  limitBytes: number;
  /** How old history may get, counted back from the newest frame: null for no limit by age. */
  maxAgeMs?: number | null;
  /** The appliance's clock, in milliseconds. */
  now?: () => number;
}

/** What limits the history. Both hold at once. */
export interface Retention {
  limitBytes: number;
  maxAgeMs: number | null;
}

/** A part of the history, for figures. */
export interface HistorySegment {
  firstSeq: number;
  bytes: number;
  firstMs: number;
  lastMs: number;
}

interface Pending {
  header: FrameHeader;
  frame: Buffer;
}

const DEFAULT_SEGMENT_BYTES = 64 * 1024 * 1024;
/** A segment of a quiet source is closed after this, so that history leaves by the hour and not by the week. */
const SEGMENT_MS = 60 * 60 * 1000;
/** What became durable a moment ago stays in memory for the follower, up to so much; a slower one reads the disk. */
const RECENT_BYTES = 32 * 1024 * 1024;
const RECENT_FRAMES = 1024;
/** No group commit is larger, so that an ack is never far away. */
const GROUP_BYTES = 16 * 1024 * 1024;

export interface JournalEvents {
  /** Frames up to this one are durable, in order; called once per group commit with the frames of the group. */
  durable(frames: readonly JournalFrame[]): void;
  /** Nothing more is taken until `retry`; everything that was not durable is forgotten. */
  failed(error: UndError): void;
}

export class Journal {
  readonly #dir: string;
  readonly #jobId: string;
  readonly #segmentBytes: number;
  readonly #events: JournalEvents;
  readonly #now: () => number;
  #retention: Retention;
  /** See `keepFromSeq`. */
  #keepFromSeq: number | null = null;
  #verifying = 0;
  #identity: Identity;
  #segments: Record<Family, Segment[]> = { s: [], m: [] };
  #open: Record<Family, SegmentFile | undefined> = { s: undefined, m: undefined };
  #pending: Pending[] = [];
  #pendingBytes = 0;
  #durableSeq: number;
  #writtenSeq: number;
  #appliedSeq: number;
  #unappliedBytes = 0;
  /** [seq, cumulative bytes] of what is not applied would grow without bound; the sum of sizes per seq is enough. */
  #unappliedSizes: Array<[seq: number, bytes: number]> = [];
  #follower: JournalReader | undefined;
  /** Contiguous, up to `durableSeq`, for the follower. */
  #recent: JournalFrame[] = [];
  #recentBytes = 0;
  #flushing: Promise<void> | undefined;
  #error: UndError | undefined;
  #closed = false;
  #waiters: Array<() => void> = [];

  private constructor(options: JournalOptions, identity: Identity, events: JournalEvents) {
    this.#dir = options.dir;
    this.#jobId = options.jobId;
    this.#segmentBytes = options.segmentBytes ?? DEFAULT_SEGMENT_BYTES;
    this.#now = options.now ?? Date.now;
    this.#retention = { limitBytes: options.limitBytes, maxAgeMs: options.maxAgeMs ?? null };
    this.#identity = identity;
    this.#events = events;
    this.#durableSeq = options.appliedSeq;
    this.#writtenSeq = options.appliedSeq;
    this.#appliedSeq = options.appliedSeq;
  }

  /**
   * Open or create the journal in `dir`, and recover it.
   * @returns the journal and, in order, every frame after `appliedSeq` (headers and marks only: payloads of data frames are left out)
   * @throws UND_JOURNAL_IO, UND_JOURNAL_CORRUPT (its identity file)
   */
  static async open(
    options: JournalOptions,
    events: JournalEvents,
    onRecovered: (frame: JournalFrame) => void,
  ): Promise<Journal> {
    try {
      await makeDirDurably(options.dir);
      const path = join(options.dir, 'journal.json');
      let identity = await readJson(path);
      if (identity === undefined) {
        identity = { version: 1, journalId: randomUUID(), jobId: options.jobId, epoch: 1 };
        await writeJsonDurably(path, identity);
      }
      if (!Value.Check(Identity, identity) || identity.jobId !== options.jobId) {
        throw undError('UND_JOURNAL_CORRUPT', {
          job: options.jobId,
          segment: 'journal.json',
          offsetBytes: 0,
          reason: 'it is not the identity of this job',
        });
      }
      const journal = new Journal(options, identity, events);
      await journal.#recover(onRecovered);
      return journal;
    } catch (error) {
      throw journalError(error, options.jobId);
    }
  }

  get jobId(): string {
    return this.#jobId;
  }

  get journalId(): string {
    return this.#identity.journalId;
  }

  get epoch(): number {
    return this.#identity.epoch;
  }

  get durableSeq(): number {
    return this.#durableSeq;
  }

  /** The last frame taken; frames after `durableSeq` may still be lost. */
  get takenSeq(): number {
    return this.#writtenSeq;
  }

  get error(): UndError | undefined {
    return this.#error;
  }

  get retention(): Retention {
    return this.#retention;
  }

  set retention(retention: Retention) {
    this.#retention = retention;
  }

  /**
   * The sequence number of the oldest checkpoint: history is of use from there on. Age alone does not evict a frame
   * behind it; a limit by size does. Null: there is no checkpoint.
   */
  get keepFromSeq(): number | null {
    return this.#keepFromSeq;
  }

  set keepFromSeq(seq: number | null) {
    this.#keepFromSeq = seq;
  }

  /** The oldest frame of the history; the one that comes next while there is none. */
  get oldestSeq(): number {
    return this.#segments.s[0]?.firstSeq ?? this.#durableSeq + 1;
  }

  /** The history by segments, oldest first. */
  history(): HistorySegment[] {
    return this.#segments.s.map(({ firstSeq, bytes, firstMs, lastMs }) => ({
      firstSeq,
      bytes,
      firstMs,
      lastMs,
    }));
  }

  /**
   * About how much a replay of everything behind `seq` would unpack, to within a segment. What was there when the journal
   * was opened, and was not read since, counts as well packed as the rest is.
   */
  replayBytes(seq: number): number {
    let known = 0;
    let knownPacked = 0;
    let sum = 0;
    let unknownPacked = 0;
    for (const { firstSeq, bytes, unpackedBytes } of this.#segments.s) {
      known += unpackedBytes ?? 0;
      knownPacked += unpackedBytes === null ? 0 : bytes;
      if (firstSeq <= seq) continue;
      sum += unpackedBytes ?? 0;
      unknownPacked += unpackedBytes === null ? bytes : 0;
    }
    return sum + unknownPacked * Math.max(1, known / Math.max(1, knownPacked));
  }

  /** Bytes of segments on the journal disk. */
  get bytes(): number {
    let sum = 0;
    for (const family of FAMILIES)
      for (const segment of this.#segments[family]) sum += segment.bytes;
    return sum;
  }

  /** Bytes of frames that are taken and not applied. */
  get unappliedBytes(): number {
    return this.#unappliedBytes;
  }

  /** Begin a new epoch; durable when it resolves. Frames of older epochs stay valid where they are. */
  async beginEpoch(): Promise<number> {
    const next = { ...this.#identity, epoch: this.#identity.epoch + 1 };
    await writeJsonDurably(join(this.#dir, 'journal.json'), next).catch((error) => {
      throw journalError(error, this.#jobId);
    });
    this.#identity = next;
    return next.epoch;
  }

  /**
   * Take a checked frame whose sequence number is `takenSeq + 1`. It is written and synced in the background;
   * `events.durable` tells when. Resolves when the journal has room for the next one.
   */
  async append(header: FrameHeader, frame: Buffer): Promise<void> {
    if (this.#error) throw this.#error;
    if (this.#closed) throw undError('UND_INTERNAL', { reason: 'the journal is closed' });
    if (header.seq !== this.#writtenSeq + 1) {
      throw undError('UND_FRAME_GAP', {
        seq: header.seq,
        job: this.#jobId,
        expected: this.#writtenSeq + 1,
      });
    }
    this.#writtenSeq = header.seq;
    this.#pending.push({ header, frame });
    this.#pendingBytes += frame.length;
    this.#countUnapplied(header.seq, frame.length);
    this.#flushing ??= this.#flush().finally(() => {
      this.#flushing = undefined;
    });
    while (this.#pendingBytes >= 2 * GROUP_BYTES && !this.#error) {
      await new Promise<void>((resolve) => this.#waiters.push(resolve));
    }
  }

  #countUnapplied(seq: number, bytes: number): void {
    this.#unappliedBytes += bytes;
    const last = this.#unappliedSizes.at(-1);
    // One entry per 4 MiB: precise enough for a limit, and bounded.
    if (last && last[1] < 4 * 1024 * 1024) {
      last[0] = seq;
      last[1] += bytes;
    } else {
      this.#unappliedSizes.push([seq, bytes]);
    }
  }

  async #flush(): Promise<void> {
    // One turn of the loop later: frames that arrived together are synced together.
    await new Promise((resolve) => setImmediate(resolve));
    while (this.#pending.length > 0 && !this.#error) {
      let bytes = 0;
      let count = 0;
      for (const { frame } of this.#pending) {
        if (count > 0 && bytes + frame.length > GROUP_BYTES) break;
        bytes += frame.length;
        count++;
      }
      const group = this.#pending.slice(0, count);
      const sizes = { s: this.#tail('s')?.bytes, m: this.#tail('m')?.bytes };
      const counts = { s: this.#segments.s.length, m: this.#segments.m.length };
      try {
        for (const family of FAMILIES) {
          await this.#write(
            family,
            group.filter(({ header }) => familyOf(header) === family),
          );
        }
      } catch (error) {
        this.#error = journalError(error, this.#jobId);
        await this.#rollBack(counts, sizes).catch(() => {});
        this.#forgetPending();
        this.#events.failed(this.#error);
        return;
      }
      this.#pending.splice(0, count);
      this.#pendingBytes -= bytes;
      this.#durableSeq = group.at(-1)!.header.seq;
      this.#remember(group);
      this.#wake();
      this.#events.durable(group);
    }
  }

  #remember(group: readonly JournalFrame[]): void {
    if (!this.#follower) return;
    for (const frame of group) {
      this.#recent.push(frame);
      this.#recentBytes += frame.frame.length;
    }
    while (this.#recentBytes > RECENT_BYTES || this.#recent.length > RECENT_FRAMES) {
      this.#recentBytes -= this.#recent.shift()!.frame.length;
    }
  }

  #forgetRecent(): void {
    this.#recent = [];
    this.#recentBytes = 0;
  }

  #wake(): void {
    for (const resolve of this.#waiters.splice(0)) resolve();
  }

  #forgetPending(): void {
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#writtenSeq = this.#durableSeq;
    this.#wake();
  }

  #tail(family: Family): Segment | undefined {
    return this.#segments[family].at(-1);
  }

  async #write(family: Family, frames: readonly Pending[]): Promise<void> {
    if (frames.length === 0) return;
    let segment = this.#tail(family);
    const now = this.#now();
    const old = family === 's' && segment && Math.abs(now - segment.firstMs) >= SEGMENT_MS;
    if (!segment || segment.bytes >= this.#segmentBytes || old) {
      await this.#closeHandle(family);
      const firstSeq = frames[0]!.header.seq;
      const path = join(this.#dir, segmentName(family, firstSeq));
      this.#open[family] = await SegmentFile.create(path);
      segment = {
        ...{ family, firstSeq, path, bytes: 0, unpackedBytes: 0 },
        ...{ lastSeq: firstSeq, firstMs: now, lastMs: now },
      };
      this.#segments[family].push(segment);
      await syncDir(this.#dir);
    }
    this.#open[family] ??= await SegmentFile.open(segment.path, segment.bytes);
    const file = this.#open[family];
    await file.append(frames.map(({ frame }) => frame));
    await file.datasync();
    segment.bytes = file.bytes;
    for (const { header } of frames) {
      segment.unpackedBytes = (segment.unpackedBytes ?? 0) + header.unpackedBytes;
    }
    segment.lastSeq = frames.at(-1)!.header.seq;
    segment.lastMs = now;
  }

  /** After a failed write: forget segments begun in it and what was written behind the last durable frame. */
  async #rollBack(
    counts: Record<Family, number>,
    sizes: Record<Family, number | undefined>,
  ): Promise<void> {
    for (const family of FAMILIES) {
      await this.#closeHandle(family).catch(() => {});
      for (const segment of this.#segments[family].splice(counts[family])) {
        await unlink(segment.path).catch(() => {});
      }
      const tail = this.#tail(family);
      const bytes = sizes[family];
      if (tail && bytes !== undefined) {
        tail.bytes = bytes;
        const handle = await open(tail.path, 'r+');
        try {
          await handle.truncate(bytes);
        } finally {
          await handle.close();
        }
      }
    }
  }

  /**
   * Try again after a failure: cut the segments back to the last durable frame.
   * @throws UND_JOURNAL_IO if the journal disk still does not work
   */
  async retry(): Promise<void> {
    if (!this.#error) return;
    try {
      await this.#rollBack(
        { s: this.#segments.s.length, m: this.#segments.m.length },
        { s: this.#tail('s')?.bytes, m: this.#tail('m')?.bytes },
      );
      // A full journal disk: the oldest history goes before intake stops.
      const full = (this.#error.cause as NodeJS.ErrnoException | undefined)?.code === 'ENOSPC';
      await this.#evict(full);
    } catch (error) {
      throw journalError(error, this.#jobId);
    }
    this.#error = undefined;
  }

  /** Forget every frame that is not applied; the caller begins a new epoch. */
  async dropUnapplied(): Promise<void> {
    await this.settle();
    for (const family of FAMILIES) {
      await this.#closeHandle(family);
    }
    await this.#cutAfter(this.#appliedSeq);
    this.#forgetRecent();
    this.#durableSeq = this.#appliedSeq;
    this.#writtenSeq = this.#appliedSeq;
    this.#unappliedBytes = 0;
    this.#unappliedSizes = [];
  }

  /** Resolves when everything taken is durable (or the journal has failed). */
  async settle(): Promise<void> {
    while (this.#flushing) await this.#flushing;
  }

  /**
   * Frames up to `seq` are on the replica disks, durably, and the caller has made that known durably: mirror frames
   * up to there leave, and history may.
   */
  async applied(seq: number): Promise<void> {
    this.#appliedSeq = seq;
    while (this.#unappliedSizes.length > 0 && this.#unappliedSizes[0]![0] <= seq) {
      this.#unappliedBytes -= this.#unappliedSizes.shift()![1];
    }
    if (this.#unappliedSizes.length === 0) this.#unappliedBytes = 0;
    await this.#evict();
  }

  async #evict(makeRoom = false): Promise<void> {
    if (this.#verifying > 0 && !makeRoom) return;
    const mirror = this.#segments.m;
    while (mirror.length > 0 && this.#endOf(mirror, 0) <= this.#appliedSeq) {
      // The segment that is being written has frames on the way.
      if (mirror.length === 1 && this.#flushing) break;
      await this.#dropFirst('m');
    }
    const history = this.#segments.s;
    const { limitBytes } = this.#retention;
    let over = makeRoom || this.bytes > limitBytes || this.#tooOld();
    while (over && history.length > 1 && this.#endOf(history, 0) <= this.#appliedSeq) {
      await this.#dropFirst('s');
      over = this.bytes > limitBytes || this.#tooOld();
    }
  }

  /**
   * The oldest segment lies behind the kept time, counted back from the newest one: while a source is away, its
   * history stays.
   */
  #tooOld(): boolean {
    const { maxAgeMs } = this.#retention;
    const oldest = this.#segments.s[0];
    const newest = this.#tail('s');
    if (maxAgeMs === null || !oldest || !newest) return false;
    if (this.#keepFromSeq !== null && this.#endOf(this.#segments.s, 0) >= this.#keepFromSeq) {
      return false;
    }
    return newest.lastMs - oldest.lastMs > maxAgeMs;
  }

  /** Let go at once of what the limits no longer keep. */
  async trim(): Promise<void> {
    await this.#evict();
  }

  /**
   * The journal disk runs short: the oldest history goes, whatever the limits say.
   * @returns whether something went
   */
  async makeRoom(): Promise<boolean> {
    const before = this.oldestSeq;
    await this.#evict(true);
    return this.oldestSeq > before;
  }

  #endOf(segments: readonly Segment[], index: number): number {
    const next = segments[index + 1];
    return next ? next.firstSeq - 1 : segments[index]!.lastSeq;
  }

  /** Forgotten before it is closed: a write may open the next one meanwhile. */
  async #closeHandle(family: Family): Promise<void> {
    const handle = this.#open[family];
    this.#open[family] = undefined;
    await handle?.close();
  }

  async #dropFirst(family: Family): Promise<void> {
    const segments = this.#segments[family];
    const segment = segments.shift()!;
    if (segments.length === 0) {
      await this.#closeHandle(family);
    }
    await unlink(segment.path);
  }

  /** Reads durable frames in order, beginning with `fromSeq`. */
  reader(fromSeq: number): JournalReader {
    return new JournalReader(this, fromSeq);
  }

  /**
   * As `reader`, for the one reader that goes along with the journal: it gets frames from memory that have just become
   * durable, each once. A new follower takes the place of the one before it.
   */
  follower(fromSeq: number): JournalReader {
    this.#forgetRecent();
    this.#follower = new JournalReader(this, fromSeq);
    return this.#follower;
  }

  /** @internal for JournalReader: the frame, if it is still in memory for this reader; it is handed out once. */
  takeRecent(reader: JournalReader, seq: number): JournalFrame | undefined {
    if (reader !== this.#follower) return undefined;
    while (this.#recent[0] && this.#recent[0].header.seq < seq) {
      this.#recentBytes -= this.#recent.shift()!.frame.length;
    }
    if (this.#recent[0]?.header.seq !== seq) return undefined;
    const found = this.#recent.shift()!;
    this.#recentBytes -= found.frame.length;
    return found;
  }

  /** @internal for JournalReader: it is closed. */
  unfollow(reader: JournalReader): void {
    if (reader !== this.#follower) return;
    this.#follower = undefined;
    this.#forgetRecent();
  }

  /** @internal for JournalReader: the segment of a family that may hold `seq`, or follows it. */
  segmentFor(family: Family, seq: number): Segment | undefined {
    const segments = this.#segments[family];
    return segments.findLast((segment) => segment.firstSeq <= seq) ?? segments[0];
  }

  /** @internal for JournalReader */
  segmentAfter(segment: Segment): Segment | undefined {
    return this.#segments[segment.family].find(({ firstSeq }) => firstSeq > segment.firstSeq);
  }

  async #recover(onRecovered: (frame: JournalFrame) => void): Promise<void> {
    for (const name of (await readdir(this.#dir)).sort()) {
      const parsed = parseSegmentName(name);
      if (!parsed) continue;
      const { family, firstSeq } = parsed;
      const path = join(this.#dir, name);
      const { size, mtimeMs } = await stat(path);
      const segments = this.#segments[family];
      segments.push({
        family,
        firstSeq,
        path,
        bytes: size,
        unpackedBytes: null,
        lastSeq: firstSeq,
        // A segment begins where the one before it ended; for the oldest one nothing else is known.
        firstMs: segments.at(-1)?.lastMs ?? mtimeMs,
        lastMs: mtimeMs,
      });
    }
    // Everything is readable for the scan; afterwards only what proved contiguous is.
    this.#durableSeq = Number.MAX_SAFE_INTEGER;
    const reader = this.reader(this.#appliedSeq + 1);
    let last = this.#appliedSeq;
    try {
      for (;;) {
        const next = await reader.next();
        if (!next) break;
        last = next.header.seq;
        this.#countUnapplied(last, next.frame.length);
        onRecovered(next);
        next.release?.();
      }
    } catch {
      // Torn or damaged from here on: cut off below.
    } finally {
      await reader.close();
    }
    this.#durableSeq = last;
    this.#writtenSeq = last;
    await this.#cutAfter(last);
  }

  /** Remove every frame after `seq`, which was never acknowledged or is damaged. */
  async #cutAfter(seq: number): Promise<void> {
    for (const family of FAMILIES) {
      const segments = this.#segments[family];
      const keep = segments.filter((segment) => segment.firstSeq <= seq);
      for (const segment of segments.slice(keep.length)) await unlink(segment.path);
      this.#segments[family] = keep;
      const tail = keep.at(-1);
      if (!tail) continue;
      const handle = await open(tail.path, 'r+');
      try {
        const { end, unpackedBytes } = await endOfSeq(handle, tail.bytes, seq);
        // Before it is written to again: from then on it is added to.
        tail.unpackedBytes = unpackedBytes;
        if (end < tail.bytes) {
          await handle.truncate(end);
          await handle.sync();
          tail.bytes = end;
        }
      } finally {
        await handle.close();
      }
      tail.lastSeq = seq;
    }
    await syncDir(this.#dir);
  }

  /**
   * The headers of what is there, in order, from `fromSeq` to the last durable frame. Not an error: holes where mirror
   * frames have left, and what is damaged.
   */
  headers(fromSeq: number): AsyncGenerator<JournalHeader> {
    return headersFrom(this.#segments, fromSeq, this.#durableSeq);
  }

  /**
   * Read everything there is and check it: every frame whole, numbers rising, and none missing in `whole` (rising
   * ranges) and behind the applied frame. Nothing leaves the journal meanwhile, unless its disk is full.
   * @param onProgress bytes read so far
   * @throws UND_JOURNAL_IO if the journal disk does not answer; faults of the journal are in the report
   */
  async verify(
    whole: readonly SeqRange[] = [],
    onProgress?: (bytes: number) => void,
  ): Promise<JournalReport> {
    this.#verifying++;
    try {
      const unapplied = { fromSeq: this.#appliedSeq + 1, toSeq: this.#durableSeq };
      const ranges = whole
        .map(({ fromSeq, toSeq }) => ({
          fromSeq: Math.max(fromSeq, this.oldestSeq),
          toSeq: Math.min(toSeq, this.#appliedSeq),
        }))
        .filter(({ fromSeq, toSeq }) => fromSeq <= toSeq);
      return await verifySegments(
        this.#segments,
        this.#durableSeq,
        [...ranges, unapplied],
        onProgress,
      );
    } catch (error) {
      throw journalError(error, this.#jobId);
    } finally {
      this.#verifying--;
    }
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.settle();
    for (const family of FAMILIES) {
      await this.#closeHandle(family);
    }
  }

  /** Close and remove every file of the journal. */
  async destroy(): Promise<void> {
    await this.close();
    await rm(this.#dir, { recursive: true, force: true });
  }
}

function journalError(error: unknown, job: string): UndError {
  const errno = error as NodeJS.ErrnoException;
  if (typeof errno?.syscall === 'string') {
    return undError('UND_JOURNAL_IO', { job, reason: errno.message }, { cause: error });
  }
  return asUndError(error);
}

/**
 * Where the frames up to `seq` end in a segment, and what they unpack to; reads headers only, and stops at the first that
 * is none.
 */
async function endOfSeq(
  handle: FileHandle,
  bytes: number,
  seq: number,
): Promise<{ end: number; unpackedBytes: number }> {
  const head = Buffer.alloc(FRAME_HEADER_BYTES);
  let at = 0;
  let unpackedBytes = 0;
  while (at + FRAME_HEADER_BYTES <= bytes) {
    await handle.read(head, 0, FRAME_HEADER_BYTES, at);
    let header: FrameHeader;
    try {
      header = readHeader(head);
    } catch {
      break;
    }
    const end = at + FRAME_HEADER_BYTES + header.packedBytes;
    if (header.seq > seq || end > bytes) break;
    at = end;
    unpackedBytes += header.unpackedBytes;
  }
  return { end: at, unpackedBytes };
}

/** A cursor over both families that gives the durable frames in order of their sequence numbers. */
export class JournalReader {
  readonly #journal: Journal;
  #nextSeq: number;
  #scans: Record<Family, SegmentScan | undefined> = { s: undefined, m: undefined };

  constructor(journal: Journal, fromSeq: number) {
    this.#journal = journal;
    this.#nextSeq = fromSeq;
  }

  /** The sequence number that `next` will give. */
  get nextSeq(): number {
    return this.#nextSeq;
  }

  /**
   * The next durable frame, or null if there is none yet.
   * @throws UND_FRAME_INVALID, UND_FRAME_CHECKSUM if what is on the journal disk is damaged; UND_HISTORY_GONE if the
   *   frame has left the journal
   */
  async next(): Promise<JournalFrame | null> {
    if (this.#nextSeq > this.#journal.durableSeq) return null;
    const recent = this.#journal.takeRecent(this, this.#nextSeq);
    if (recent) {
      // What it reads from the disk next may be far behind where it read last.
      await this.#closeScans();
      this.#nextSeq++;
      return recent;
    }
    for (const family of FAMILIES) {
      for (;;) {
        this.#scans[family] ??= this.#scanAt(family);
        const scan = this.#scans[family];
        if (!scan) break;
        const header = await scan.peek();
        if (!header) {
          const after = this.#journal.segmentAfter(scan.segment);
          if (!after || after.firstSeq > this.#nextSeq) break;
          await scan.close();
          this.#scans[family] = new SegmentScan(after);
          continue;
        }
        if (header.seq < this.#nextSeq) {
          scan.skip(header);
          continue;
        }
        if (header.seq > this.#nextSeq) break;
        const found = await scan.next();
        if (found) this.#nextSeq++;
        return found;
      }
    }
    throw undError('UND_HISTORY_GONE', { job: this.#journal.jobId, seq: this.#nextSeq });
  }

  #scanAt(family: Family): SegmentScan | undefined {
    const segment = this.#journal.segmentFor(family, this.#nextSeq);
    return segment && new SegmentScan(segment);
  }

  async close(): Promise<void> {
    this.#journal.unfollow(this);
    await this.#closeScans();
  }

  async #closeScans(): Promise<void> {
    for (const family of FAMILIES) {
      await this.#scans[family]?.close();
      this.#scans[family] = undefined;
    }
  }
}
