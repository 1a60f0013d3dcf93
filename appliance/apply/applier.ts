/**
 * Apply: takes durable frames from the journal in order and makes the replica disks what they say. It is idempotent
 * redo: `applied` advances only after the disks are flushed, and after a crash or an error apply starts again there.
 *
 * Data is written as it comes (`writtenSeq`), and the next batch is read meanwhile. The flush, and with it `appliedSeq`,
 * begins at most FLUSH_MS or FLUSH_BYTES later, because a flush costs the same for one frame as for a hundred. It runs
 * beside the writing and covers what was written before it began, no more.
 *
 * Whoever needs the disks at a standstill (`between`) is served when little is left to flush: flushes run beside the
 * writing until then, so that the disks stand still for one short flush and the work itself.
 *
 * The gate: before the first frame that makes a good replica inconsistent for a while (a mirror, a new epoch, lost
 * order), everything before it is flushed and the host is asked to protect the point. As long as that fails apply waits,
 * says why, and asks again; the journal goes on.
 */
import { EventEmitter } from 'node:events';
import { totalmem } from 'node:os';
import { type UndError, undError } from '../../protocol/errors.ts';
import type { FrameHeader } from '../../protocol/frame.ts';
import { type Mark, readMark } from '../../protocol/marks.ts';
import type { JournalFrame, JournalReader } from '../journal/journal.ts';
import { BatchWriter, FrameBatch } from './frame-batch.ts';
import type { ReplicaDisk } from './replica-disk.ts';

const MIB = 1024 * 1024;
/**
 * The more is flushed at once, the more of it the kernel can put together before it writes. A share of the memory: what
 * several jobs leave unflushed must not come near a fifth of it, from where on the kernel holds up whoever writes.
 */
const FLUSH_BYTES = Math.min(256 * MIB, Math.max(64 * MIB, totalmem() / 64));
/** When there is much at once, the disk is at work early; each flush that follows takes twice as much. */
const FIRST_FLUSH_BYTES = 32 * MIB;
const FLUSH_MS = 500;
/** So much is written beside a flush; then it is waited for. */
const BESIDE_BYTES = 2 * FLUSH_BYTES;
/** What may be left to flush when the disks come to a standstill, and what is written beside the flushes until then. */
const STANDSTILL_BYTES = 8 * MIB;
const STANDSTILL_BESIDE_BYTES = 32 * MIB;
const STANDSTILL_BATCH_BYTES = 2 * MIB;
/** More flushes are not waited for: the disks take no more than comes. */
const STANDSTILL_FLUSHES = 3;
/** An idle source ticks every second; that alone is not worth a flush each time. */
const IDLE_FLUSH_MS = 5_000;
const GATE_RETRY_MS = 5_000;
/**
 * When all is written, so long until more is looked for, unless somebody waits for it: a batch costs what it costs, however
 * little is in it, and of a block that is written many times in a row, such as the end of a database's log, one is left.
 */
const GATHER_MS = 100;

export type ApplyState =
  | { name: 'running' }
  | { name: 'paused'; reason: string }
  /** At the gate: the point before it is not protected yet. */
  | { name: 'waiting'; reason: string }
  | { name: 'error'; error: UndError };

export interface ApplierHost {
  jobId: string;
  /** A cursor over the journal's durable frames. */
  reader(fromSeq: number): JournalReader;
  diskId(index: number): string;
  diskSizes(): readonly number[];
  /** Called in order with every frame that has been written to the disks. */
  onWritten(header: FrameHeader, mark: Mark | null): void;
  /**
   * A flush begins, of everything that `onWritten` was called with up to `seq`. What it returns is called when that is
   * durable on the disks: it persists so, then lets the journal go on. One at a time.
   */
  onFlush(seq: number): () => Promise<void>;
  /** Asked once for each frame, in order, before it is applied: why the point before it is to be protected first, or null. */
  gate(header: FrameHeader, mark: Mark | null): string | null;
  /** Everything before the gate is on the disks, flushed. A rejection is asked again. */
  beforeUnordered(reason: string): Promise<void>;
}

/** What is read from the journal and not applied yet: a frame that stands at the gate is looked at again. */
interface Source {
  reader: JournalReader;
  held: JournalFrame | null;
}

/** A batch as it was read from the journal. */
interface Read {
  frames: FrameBatch;
  about: Array<{ header: FrameHeader; mark: Mark | null }>;
}

export interface ApplierEvents {
  change: [];
}

/** @fires change when its state or its figures changed */
export class Applier extends EventEmitter<ApplierEvents> {
  readonly #host: ApplierHost;
  readonly #gatherMs: number;
  #disks: Map<number, ReplicaDisk> | undefined;
  #state: ApplyState = { name: 'paused', reason: 'the replica disks are not open' };
  #writtenSeq: number;
  #appliedSeq: number;
  #loop: Promise<void> | undefined;
  #wake: (() => void) | undefined;
  #endGather: (() => void) | undefined;
  #flushNow = false;
  /** The flush that runs beside the writing, and what failed it. */
  #flushing: Promise<void> | null = null;
  #flushFault: UndError | null = null;
  /** Given to be written, and not there yet. */
  #unwrittenBytes = 0;
  /** Written and in no flush that has begun. */
  #unflushedBytes = 0;
  #flushDueMs = Number.POSITIVE_INFINITY;
  /** So much is due for a flush, while there is more to write. */
  #flushBytes = FIRST_FLUSH_BYTES;
  /** Flushes that were begun for those who wait for a standstill. */
  #standstillFlushes = 0;
  #stopping = false;
  #limit: { seq: number } | null = null;
  #requests: Array<{ work(stillSinceMs: number): Promise<void>; reject(error: UndError): void }> =
    [];

  /**
   * @param appliedSeq up to there everything is on the disks
   * @param gatherMs how long more is waited for when all is written and nobody waits
   */
  constructor(host: ApplierHost, appliedSeq: number, gatherMs = GATHER_MS) {
    super();
    // Each comparison of a verification waits for its frame.
    this.setMaxListeners(64);
    this.#host = host;
    this.#gatherMs = gatherMs;
    this.#writtenSeq = appliedSeq;
    this.#appliedSeq = appliedSeq;
  }

  get state(): ApplyState {
    return this.#state;
  }

  /** On the disks and flushed. */
  get appliedSeq(): number {
    return this.#appliedSeq;
  }

  /** On the disks, as a reader of them sees it; a crash may take it back to `appliedSeq`. */
  get writtenSeq(): number {
    return this.#writtenSeq;
  }

  /** Begin or go on, also after an error: everything after `appliedSeq` is applied again. */
  resume(disks: Map<number, ReplicaDisk>): void {
    this.#disks = disks;
    if (this.#loop) {
      this.poke();
      return;
    }
    this.#stopping = false;
    this.#writtenSeq = this.#appliedSeq;
    this.#setState({ name: 'running' });
    this.#loop = this.#run().finally(() => {
      this.#loop = undefined;
    });
  }

  /** Stop after what is under way; the disks can be closed when it resolves. */
  async pause(reason: string): Promise<void> {
    this.#stopping = true;
    this.#hurry();
    await this.#loop;
    this.#disks = undefined;
    if (this.#state.name !== 'error') this.#setState({ name: 'paused', reason });
  }

  /** There may be more to apply. */
  poke(): void {
    this.#wake?.();
  }

  /**
   * Resolves when everything up to `seq` is on the disks and flushed.
   * @throws the error that stopped apply; UND_INTERNAL if it is paused
   */
  async drain(seq: number): Promise<void> {
    while (this.#appliedSeq < seq) {
      this.#throwIfNotRunning();
      this.#flushNow = true;
      this.#hurry();
      await new Promise<void>((resolve) => this.once('change', () => resolve()));
    }
  }

  /**
   * Resolves when everything up to `seq` can be read from the disks.
   * @throws as drain
   */
  async reached(seq: number): Promise<void> {
    while (this.#writtenSeq < seq) {
      this.#throwIfNotRunning();
      this.#hurry();
      await new Promise<void>((resolve) => this.once('change', () => resolve()));
    }
  }

  /**
   * Runs `work` between two batches: everything written is flushed, and nothing is written until it settles.
   * @param work is told since when the disks stand still (by performance.now)
   * @param mayGoOn asked when `work` has failed; if not, apply stops with UND_APPLY_CHECKPOINT_UNKNOWN, and not one more
   *   frame is written
   * @throws what `work` throws; the error that stopped apply; UND_APPLY_PAUSED if it is paused, waits, or is paused before
   */
  async between<T>(
    work: (stillSinceMs: number) => Promise<T>,
    mayGoOn: () => boolean = () => true,
  ): Promise<T> {
    this.#throwIfNotRunning();
    if (this.#state.name === 'waiting') throw this.#paused(this.#state.reason);
    return await new Promise<T>((resolve, reject) => {
      const stopOr = (error: unknown) => {
        reject(error);
        if (mayGoOn()) return;
        const { message } = this.#asError(error);
        throw undError(
          'UND_APPLY_CHECKPOINT_UNKNOWN',
          { job: this.#host.jobId, reason: message },
          { cause: error },
        );
      };
      this.#requests.push({
        work: (stillSinceMs) => work(stillSinceMs).then(resolve, stopOr),
        reject,
      });
      this.#hurry();
    });
  }

  /** The last frame that may be applied, until the function that it returns is called. One at a time. */
  limit(seq: number): () => void {
    const mine = { seq };
    this.#limit = mine;
    return () => {
      if (this.#limit !== mine) return;
      this.#limit = null;
      this.poke();
    };
  }

  moveLimit(seq: number): void {
    if (this.#limit) this.#limit.seq = seq;
    this.poke();
  }

  #throwIfNotRunning(): void {
    if (this.#state.name === 'error') throw this.#state.error;
    if (this.#state.name === 'paused') throw this.#paused(this.#state.reason);
  }

  #paused(reason: string): UndError {
    return undError('UND_APPLY_PAUSED', { job: this.#host.jobId, reason });
  }

  #setState(state: ApplyState): void {
    this.#state = state;
    this.emit('change');
  }

  async #run(): Promise<void> {
    const source: Source = { reader: this.#host.reader(this.#appliedSeq + 1), held: null };
    const writer = new BatchWriter(this.#disks!, (index, error) => this.#diskError(index, error));
    this.#flushFault = null;
    this.#unwrittenBytes = 0;
    this.#unflushedBytes = 0;
    this.#flushDueMs = Number.POSITIVE_INFINITY;
    try {
      while (!this.#stopping) {
        if (this.#mayStandStill()) await this.#serve(writer);
        const { read, gate } = await this.#read(source);
        if (read) {
          this.#unwrittenBytes += read.frames.bytes;
          await writer.write(read.frames, () => this.#written(read));
          if (gate === null && !read.frames.full) await this.#gather();
        } else {
          // Nothing was there to read meanwhile.
          await writer.settled();
        }
        if (gate !== null) {
          await this.#standStill(writer);
          await this.#protect(gate);
          continue;
        }
        const waiting = this.#requests.length > 0;
        if (this.#unflushedBytes >= (waiting ? STANDSTILL_BESIDE_BYTES : BESIDE_BYTES)) {
          await this.#flushing;
        }
        if (this.#flushFault) throw this.#flushFault;
        if (this.#isFlushDue(read === null)) {
          if (waiting) this.#standstillFlushes++;
          this.#beginFlush();
        }
        if (read === null) await this.#idle(this.#flushDueMs - performance.now());
      }
      await this.#standStill(writer);
    } catch (error) {
      // Nothing is under way any more when it is known.
      await Promise.allSettled([writer.settled(), this.#flushing]);
      this.#setState({ name: 'error', error: this.#asError(error) });
    } finally {
      for (const { reject } of this.#requests.splice(0)) reject(this.#paused('it stopped'));
      await source.reader.close();
    }
  }

  /** Somebody waits for the disks to stand still, and it would be for a short flush only. */
  #mayStandStill(): boolean {
    if (this.#requests.length === 0 || this.#flushing) return false;
    const leftBytes = this.#unwrittenBytes + this.#unflushedBytes;
    return leftBytes <= STANDSTILL_BYTES || this.#standstillFlushes >= STANDSTILL_FLUSHES;
  }

  async #serve(writer: BatchWriter): Promise<void> {
    const stillSinceMs = performance.now();
    this.#standstillFlushes = 0;
    await this.#standStill(writer);
    for (const request of this.#requests.splice(0)) await request.work(stillSinceMs);
  }

  /** Everything that was read is on the disks and flushed when it resolves. */
  async #standStill(writer: BatchWriter): Promise<void> {
    await writer.settled();
    await this.#flushing;
    if (!this.#flushFault && this.#writtenSeq > this.#appliedSeq) {
      this.#beginFlush();
      await this.#flushing;
    }
    if (this.#flushFault) throw this.#flushFault;
  }

  /** Returns when the point is protected, or apply is being stopped: then the gate is met again at the next start. */
  async #protect(reason: string): Promise<void> {
    while (!this.#stopping) {
      try {
        await this.#host.beforeUnordered(reason);
        if (this.#state.name === 'waiting') this.#setState({ name: 'running' });
        return;
      } catch (error) {
        const { message } = this.#asError(error);
        for (const { reject } of this.#requests.splice(0)) reject(this.#paused(message));
        this.#setState({ name: 'waiting', reason: message });
        await this.#idle(GATE_RETRY_MS);
      }
    }
  }

  /** Somebody waits for what is there, or for the end. */
  #hurry(): void {
    this.#endGather?.();
    this.poke();
  }

  async #gather(): Promise<void> {
    if (this.#requests.length > 0 || this.#flushNow || this.#stopping) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, this.#gatherMs);
      this.#endGather = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#endGather = undefined;
  }

  async #idle(ms: number): Promise<void> {
    // A flush that ends wakes it; until then there is nothing that could be done for these.
    const mayServe = this.#requests.length > 0 && !this.#flushing;
    if (this.#stopping || mayServe) return;
    await new Promise<void>((resolve) => {
      const timer =
        Number.isFinite(ms) && !this.#flushing ? setTimeout(resolve, Math.max(0, ms)) : undefined;
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
    this.#wake = undefined;
  }

  /** @param idle there is nothing to read */
  #isFlushDue(idle: boolean): boolean {
    if (this.#flushing) return false;
    // All is flushed, and with that who waits for it has been served, or waits for frames that are not there yet.
    if (this.#writtenSeq === this.#appliedSeq) {
      this.#flushNow = false;
      return false;
    }
    return (
      (this.#flushNow && idle) ||
      this.#requests.length > 0 ||
      this.#unflushedBytes >= this.#flushBytes ||
      performance.now() >= this.#flushDueMs
    );
  }

  /** Of what is written now; `appliedSeq` follows when it is over. What fails it is thrown by the loop. */
  #beginFlush(): void {
    const seq = this.#writtenSeq;
    const flushed = this.#host.onFlush(seq);
    const much = this.#unflushedBytes >= this.#flushBytes;
    this.#flushBytes = much ? Math.min(2 * this.#flushBytes, FLUSH_BYTES) : FIRST_FLUSH_BYTES;
    this.#unflushedBytes = 0;
    this.#flushDueMs = Number.POSITIVE_INFINITY;
    const flush = async () => {
      for (const [index, disk] of this.#disks!) {
        await disk.sync().catch((error) => {
          throw this.#diskError(index, error);
        });
      }
      await flushed();
      this.#appliedSeq = seq;
    };
    this.#flushing = flush()
      .catch((error) => {
        this.#flushFault = this.#asError(error);
      })
      .finally(() => {
        this.#flushing = null;
        this.emit('change');
        this.poke();
      });
  }

  /** @returns what is to be written next, if anything is there, and why the frame that follows has to wait, if it has to */
  async #read(source: Source): Promise<{ read: Read | null; gate: string | null }> {
    const maxBytes = this.#requests.length > 0 ? STANDSTILL_BATCH_BYTES : undefined;
    const frames = new FrameBatch(this.#host.diskSizes(), maxBytes);
    const read: Read = { frames, about: [] };
    let gate: string | null = null;
    while (!frames.full) {
      const next: JournalFrame | null = source.held ?? (await source.reader.next());
      source.held = null;
      if (!next) break;
      const { header, frame } = next;
      if (this.#limit && header.seq > this.#limit.seq) {
        source.held = next;
        break;
      }
      const mark = header.kind === 'mark' ? readMark(header, frame) : null;
      gate = this.#host.gate(header, mark);
      if (gate !== null) {
        source.held = next;
        break;
      }
      frames.add(next);
      read.about.push({ header, mark });
    }
    return { read: read.about.length > 0 ? read : null, gate };
  }

  #written({ frames, about }: Read): void {
    for (const { header, mark } of about) this.#host.onWritten(header, mark);
    this.#writtenSeq = about.at(-1)!.header.seq;
    this.#unwrittenBytes -= frames.bytes;
    this.#unflushedBytes += frames.bytes;
    const withinMs = about.some(({ mark }) => mark?.type !== 'tick') ? FLUSH_MS : IDLE_FLUSH_MS;
    this.#flushDueMs = Math.min(this.#flushDueMs, performance.now() + withinMs);
    this.emit('change');
  }

  #diskError(index: number, cause: NodeJS.ErrnoException): UndError {
    const params = { disk: this.#host.diskId(index), job: this.#host.jobId, reason: cause.message };
    const full = cause.code === 'ENOSPC' || cause.code === 'EDQUOT';
    return undError(full ? 'UND_APPLY_NO_SPACE' : 'UND_APPLY_WRITE_FAILED', params, { cause });
  }

  #asError(error: unknown): UndError {
    const coded = error as UndError;
    if (typeof coded.code === 'string' && coded.code.startsWith('UND_')) return coded;
    return undError(
      'UND_INTERNAL',
      { reason: String((error as Error)?.message ?? error) },
      { cause: error },
    );
  }
}
