/**
 * The journal: the stream of one protection job, frame by frame as it came, in append-only segments.
 *
 * Two families of segments, so that a mirror never evicts history: `s-` holds captured writes and marks (the history),
 * `m-` holds mirror frames, which leave as soon as they are applied. Sequence numbers are contiguous over both.
 * A segment is nothing but frames, one after the other; its name carries the first sequence number in it.
 *
 * `durable` advances only after fdatasync of everything up to it (one for all frames that wait: a group commit). At
 * open, what follows the last applied frame is verified, and everything from the first torn, damaged or missing frame
 * on is cut off: none of it was acknowledged, or, if it was, the handshake sees the regression.
 */
import { randomUUID } from 'node:crypto';
import { type FileHandle, mkdir, open, readdir, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import {
  checkFrame,
  FRAME_HEADER_BYTES,
  type FrameHeader,
  readHeader,
} from '../../protocol/frame.ts';
import { readJson, syncDir, writeJsonDurably } from './durable-file.ts';

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
}

export interface JournalFrame {
  header: FrameHeader;
  /** Header and payload. */
  frame: Buffer;
}

type Family = 's' | 'm';
const FAMILIES: readonly Family[] = ['s', 'm'];

interface Segment {
  family: Family;
  firstSeq: number;
  path: string;
  bytes: number;
  /** Of the segment that is being written; for the others it is known by where the next begins. */
  lastSeq: number;
}

interface Pending {
  header: FrameHeader;
  frame: Buffer;
}

const DEFAULT_SEGMENT_BYTES = 64 * 1024 * 1024;
/** No group commit is larger, so that an ack is never far away. */
const GROUP_BYTES = 16 * 1024 * 1024;

const familyOf = (header: FrameHeader): Family => (header.kind === 'mirror' ? 'm' : 's');

const segmentName = (family: Family, firstSeq: number): string =>
  `${family}-${String(firstSeq).padStart(16, '0')}.seg`;

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
  #limitBytes: number;
  #identity: Identity;
  #segments: Record<Family, Segment[]> = { s: [], m: [] };
  #open: Record<Family, FileHandle | undefined> = { s: undefined, m: undefined };
  #pending: Pending[] = [];
  #pendingBytes = 0;
  #durableSeq: number;
  #writtenSeq: number;
  #appliedSeq: number;
  #unappliedBytes = 0;
  /** [seq, cumulative bytes] of what is not applied would grow without bound; the sum of sizes per seq is enough. */
  #unappliedSizes: Array<[seq: number, bytes: number]> = [];
  #flushing: Promise<void> | undefined;
  #error: UndError | undefined;
  #closed = false;
  #waiters: Array<() => void> = [];

  private constructor(options: JournalOptions, identity: Identity, events: JournalEvents) {
    this.#dir = options.dir;
    this.#jobId = options.jobId;
    this.#segmentBytes = options.segmentBytes ?? DEFAULT_SEGMENT_BYTES;
    this.#limitBytes = options.limitBytes;
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
      await mkdir(options.dir, { recursive: true, mode: 0o700 });
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

  get limitBytes(): number {
    return this.#limitBytes;
  }

  set limitBytes(bytes: number) {
    this.#limitBytes = bytes;
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
      this.#wake();
      this.#events.durable(group);
    }
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
    if (!segment || segment.bytes >= this.#segmentBytes) {
      await this.#open[family]?.close();
      const firstSeq = frames[0]!.header.seq;
      const path = join(this.#dir, segmentName(family, firstSeq));
      this.#open[family] = await open(path, 'w', 0o600);
      segment = { family, firstSeq, path, bytes: 0, lastSeq: firstSeq };
      this.#segments[family].push(segment);
      await syncDir(this.#dir);
    }
    this.#open[family] ??= await open(segment.path, 'r+');
    const handle = this.#open[family];
    let at = segment.bytes;
    // The kernel takes at most 1024 buffers at a time.
    for (let index = 0; index < frames.length; index += 1000) {
      const buffers = frames.slice(index, index + 1000).map(({ frame }) => frame);
      at += await writeAll(handle, buffers, at);
    }
    await handle.datasync();
    segment.bytes = at;
    segment.lastSeq = frames.at(-1)!.header.seq;
  }

  /** After a failed write: forget segments begun in it and what was written behind the last durable frame. */
  async #rollBack(
    counts: Record<Family, number>,
    sizes: Record<Family, number | undefined>,
  ): Promise<void> {
    for (const family of FAMILIES) {
      await this.#open[family]?.close().catch(() => {});
      this.#open[family] = undefined;
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
      await this.#open[family]?.close();
      this.#open[family] = undefined;
    }
    await this.#cutAfter(this.#appliedSeq);
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
    const mirror = this.#segments.m;
    while (mirror.length > 0 && this.#endOf(mirror, 0) <= this.#appliedSeq) {
      // The segment that is being written has frames on the way.
      if (mirror.length === 1 && this.#flushing) break;
      await this.#dropFirst('m');
    }
    const history = this.#segments.s;
    let over = makeRoom || this.bytes > this.#limitBytes;
    while (over && history.length > 1 && this.#endOf(history, 0) <= this.#appliedSeq) {
      await this.#dropFirst('s');
      over = this.bytes > this.#limitBytes;
    }
  }

  #endOf(segments: readonly Segment[], index: number): number {
    const next = segments[index + 1];
    return next ? next.firstSeq - 1 : segments[index]!.lastSeq;
  }

  async #dropFirst(family: Family): Promise<void> {
    const segments = this.#segments[family];
    const segment = segments.shift()!;
    if (segments.length === 0) {
      await this.#open[family]?.close();
      this.#open[family] = undefined;
    }
    await unlink(segment.path);
  }

  /** Reads durable frames in order, beginning with `fromSeq`. */
  reader(fromSeq: number): JournalReader {
    return new JournalReader(this, fromSeq);
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
      const match = /^([sm])-(\d{16})\.seg$/.exec(name);
      if (!match) continue;
      const family = match[1] as Family;
      const path = join(this.#dir, name);
      const handle = await open(path, 'r');
      const { size } = await handle.stat().finally(() => handle.close());
      const firstSeq = Number(match[2]);
      this.#segments[family].push({ family, firstSeq, path, bytes: size, lastSeq: firstSeq });
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
        const end = await endOfSeq(handle, tail.bytes, seq);
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
   * Read everything there is and check it: every frame whole, sequence numbers rising in each family, and contiguous
   * over both behind the applied frame.
   * @throws UND_JOURNAL_CORRUPT with segment and offset
   */
  async verify(): Promise<{ frames: number; bytes: number; firstSeq: number; lastSeq: number }> {
    const result = { frames: 0, bytes: 0, firstSeq: 0, lastSeq: 0 };
    const unapplied: number[] = [];
    const until = this.#durableSeq;
    const applied = this.#appliedSeq;
    for (const family of FAMILIES) {
      let previous = -1;
      for (const segment of [...this.#segments[family]]) {
        const scan = new SegmentScan(segment);
        try {
          for (;;) {
            const offsetBytes = scan.offsetBytes;
            const corrupt = (reason: string, cause?: unknown) =>
              undError(
                'UND_JOURNAL_CORRUPT',
                { job: this.#jobId, segment: segment.path.split('/').at(-1), offsetBytes, reason },
                { cause },
              );
            const found = await scan.next().catch((cause) => {
              throw corrupt((cause as Error).message, cause);
            });
            if (!found || found.header.seq > until) break;
            const { seq } = found.header;
            if (seq <= previous) throw corrupt(`frame ${seq} follows frame ${previous}`);
            previous = seq;
            if (seq > applied) unapplied.push(seq);
            result.frames++;
            result.bytes += found.frame.length;
            result.firstSeq = result.firstSeq === 0 ? seq : Math.min(result.firstSeq, seq);
            result.lastSeq = Math.max(result.lastSeq, seq);
          }
        } finally {
          await scan.close();
        }
      }
    }
    unapplied.sort((a, b) => a - b);
    unapplied.forEach((seq, index) => {
      if (seq !== applied + 1 + index) {
        throw undError('UND_JOURNAL_CORRUPT', {
          job: this.#jobId,
          segment: 'the sequence',
          offsetBytes: 0,
          reason: `frame ${applied + 1 + index} is missing`,
        });
      }
    });
    return result;
  }

  async close(): Promise<void> {
    this.#closed = true;
    await this.settle();
    for (const family of FAMILIES) {
      await this.#open[family]?.close();
      this.#open[family] = undefined;
    }
  }

  /** Close and remove every file of the journal. */
  async destroy(): Promise<void> {
    await this.close();
    await rm(this.#dir, { recursive: true, force: true });
  }
}

async function writeAll(handle: FileHandle, buffers: Buffer[], at: number): Promise<number> {
  let total = 0;
  for (const buffer of buffers) total += buffer.length;
  const { bytesWritten } = await handle.writev(buffers, at);
  if (bytesWritten === total) return total;
  // A short write (a full disk, a signal): the rest in one piece, which says the error if there is one.
  const rest = Buffer.concat(buffers).subarray(bytesWritten);
  for (let done = 0; done < rest.length; ) {
    const step = await handle.write(rest, done, rest.length - done, at + bytesWritten + done);
    done += step.bytesWritten;
  }
  return total;
}

function journalError(error: unknown, job: string): UndError {
  const errno = error as NodeJS.ErrnoException;
  if (typeof errno?.syscall === 'string') {
    return undError('UND_JOURNAL_IO', { job, reason: errno.message }, { cause: error });
  }
  return asUndError(error);
}

/** Where the frames up to `seq` end in a segment; reads headers only, and stops at the first that is none. */
async function endOfSeq(handle: FileHandle, bytes: number, seq: number): Promise<number> {
  const head = Buffer.alloc(FRAME_HEADER_BYTES);
  let at = 0;
  while (at + FRAME_HEADER_BYTES <= bytes) {
    await handle.read(head, 0, FRAME_HEADER_BYTES, at);
    let header: FrameHeader;
    try {
      header = readHeader(head);
    } catch {
      return at;
    }
    if (header.seq > seq) return at;
    const end = at + FRAME_HEADER_BYTES + header.packedBytes;
    if (end > bytes) return at;
    at = end;
  }
  return at;
}

const SCAN_BYTES = 1024 * 1024;

/** Reads a segment's frames one after the other, checking each. It sees frames appended meanwhile. */
class SegmentScan {
  readonly segment: Segment;
  #handle: FileHandle | undefined;
  #buffer: Buffer = Buffer.alloc(0);
  #bufferAt = 0;
  offsetBytes = 0;

  constructor(segment: Segment) {
    this.segment = segment;
  }

  /** Bytes [offset, offset + length), or null if the segment does not have them. */
  async #bytes(offset: number, length: number): Promise<Buffer | null> {
    const from = offset - this.#bufferAt;
    if (from >= 0 && from + length <= this.#buffer.length) {
      return this.#buffer.subarray(from, from + length);
    }
    if (offset + length > this.segment.bytes) return null;
    this.#handle ??= await open(this.segment.path, 'r');
    const size = Math.min(Math.max(length, SCAN_BYTES), this.segment.bytes - offset);
    const buffer = Buffer.allocUnsafe(size);
    const { bytesRead } = await this.#handle.read(buffer, 0, size, offset);
    if (bytesRead < length) return null;
    // A fresh buffer each time: frames handed out are views into the old one.
    this.#buffer = buffer.subarray(0, bytesRead);
    this.#bufferAt = offset;
    return this.#buffer.subarray(0, length);
  }

  async peek(): Promise<FrameHeader | null> {
    if (this.offsetBytes >= this.segment.bytes) return null;
    const head = await this.#bytes(this.offsetBytes, FRAME_HEADER_BYTES);
    if (!head) throw torn(this.segment.bytes - this.offsetBytes);
    return readHeader(head);
  }

  /** Pass over the frame that `peek` showed, unread. */
  skip(header: FrameHeader): void {
    this.offsetBytes += FRAME_HEADER_BYTES + header.packedBytes;
  }

  async next(): Promise<JournalFrame | null> {
    const header = await this.peek();
    if (!header) return null;
    const length = FRAME_HEADER_BYTES + header.packedBytes;
    const frame = await this.#bytes(this.offsetBytes, length);
    if (!frame) throw torn(this.segment.bytes - this.offsetBytes);
    checkFrame(frame);
    this.offsetBytes += length;
    return { header, frame };
  }

  async close(): Promise<void> {
    await this.#handle?.close();
    this.#handle = undefined;
  }
}

const torn = (bytes: number) =>
  undError('UND_FRAME_INVALID', { seq: '?', reason: `only ${bytes} bytes of it are there` });

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
   * @throws UND_FRAME_INVALID, UND_FRAME_CHECKSUM if what is on the journal disk is damaged
   */
  async next(): Promise<JournalFrame | null> {
    if (this.#nextSeq > this.#journal.durableSeq) return null;
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
    return null;
  }

  #scanAt(family: Family): SegmentScan | undefined {
    const segment = this.#journal.segmentFor(family, this.#nextSeq);
    return segment && new SegmentScan(segment);
  }

  async close(): Promise<void> {
    for (const family of FAMILIES) {
      await this.#scans[family]?.close();
      this.#scans[family] = undefined;
    }
  }
}
