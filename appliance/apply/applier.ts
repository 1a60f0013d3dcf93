/**
 * Apply: takes durable frames from the journal in order and makes the replica disks what they say. It is idempotent
 * redo: `applied` advances only after the disks are flushed, and after a crash or an error apply starts again there.
 *
 * Data is written as it comes (`writtenSeq`); the flush, and with it `appliedSeq`, follows at most FLUSH_MS or
 * FLUSH_BYTES later, because a flush costs the same for one frame as for a hundred.
 *
 * The gate: before the first frame that makes a good replica inconsistent for a while (a mirror, a new epoch, lost
 * order), everything before it is flushed and the host is asked to protect the point. As long as that fails apply waits,
 * says why, and asks again; the journal goes on.
 */
import { EventEmitter } from 'node:events';
import { type UndError, undError } from '../../protocol/errors.ts';
import type { FrameHeader } from '../../protocol/frame.ts';
import { type Mark, readMark } from '../../protocol/marks.ts';
import type { JournalFrame, JournalReader } from '../journal/journal.ts';
import { FrameBatch } from './frame-batch.ts';
import type { ReplicaDisk } from './replica-disk.ts';

const FLUSH_BYTES = 128 * 1024 * 1024;
const FLUSH_MS = 500;
/** An idle source ticks every second; that alone is not worth a flush each time. */
const IDLE_FLUSH_MS = 5_000;
const GATE_RETRY_MS = 5_000;

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
  /** Everything up to `seq` is durable on the disks: persist that, then let the journal go on. */
  onFlushed(seq: number): Promise<void>;
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

export interface ApplierEvents {
  change: [];
}

/** @fires change when its state or its figures changed */
export class Applier extends EventEmitter<ApplierEvents> {
  readonly #host: ApplierHost;
  #disks: Map<number, ReplicaDisk> | undefined;
  #state: ApplyState = { name: 'paused', reason: 'the replica disks are not open' };
  #writtenSeq: number;
  #appliedSeq: number;
  #loop: Promise<void> | undefined;
  #wake: (() => void) | undefined;
  #flushNow = false;
  #stopping = false;
  #limit: { seq: number } | null = null;
  #requests: Array<{ work(): Promise<void>; reject(error: UndError): void }> = [];

  constructor(host: ApplierHost, appliedSeq: number) {
    super();
    // Each comparison of a verification waits for its frame.
    this.setMaxListeners(64);
    this.#host = host;
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
    this.poke();
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
      this.poke();
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
      await new Promise<void>((resolve) => this.once('change', () => resolve()));
    }
  }

  /**
   * Runs `work` between two batches: everything written is flushed, and nothing is written until it settles.
   * @param mayGoOn asked when `work` has failed; if not, apply stops with UND_APPLY_CHECKPOINT_UNKNOWN, and not one more
   *   frame is written
   * @throws what `work` throws; the error that stopped apply; UND_APPLY_PAUSED if it is paused, waits, or is paused before
   */
  async between<T>(work: () => Promise<T>, mayGoOn: () => boolean = () => true): Promise<T> {
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
      this.#requests.push({ work: () => work().then(resolve, stopOr), reject });
      this.poke();
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
    let unflushedBytes = 0;
    let flushDueMs = Number.POSITIVE_INFINITY;
    try {
      while (!this.#stopping) {
        if (this.#requests.length > 0) {
          if (this.#writtenSeq > this.#appliedSeq) await this.#flush();
          for (const request of this.#requests.splice(0)) await request.work();
        }
        const { bytes, data, gate } = await this.#applyBatch(source);
        if (bytes > 0) {
          unflushedBytes += bytes;
          const withinMs = data ? FLUSH_MS : IDLE_FLUSH_MS;
          flushDueMs = Math.min(flushDueMs, performance.now() + withinMs);
          this.emit('change');
        }
        const due =
          gate !== null || performance.now() >= flushDueMs || unflushedBytes >= FLUSH_BYTES;
        if (this.#writtenSeq > this.#appliedSeq && (due || (this.#flushNow && bytes === 0))) {
          await this.#flush();
          unflushedBytes = 0;
          flushDueMs = Number.POSITIVE_INFINITY;
        } else if (bytes === 0 && gate === null) {
          this.#flushNow = false;
          await this.#idle(flushDueMs - performance.now());
        }
        if (gate !== null) await this.#protect(gate);
      }
      if (this.#writtenSeq > this.#appliedSeq) await this.#flush();
    } catch (error) {
      this.#setState({ name: 'error', error: this.#asError(error) });
    } finally {
      for (const { reject } of this.#requests.splice(0)) reject(this.#paused('it stopped'));
      await source.reader.close();
    }
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

  async #idle(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = Number.isFinite(ms) ? setTimeout(resolve, Math.max(0, ms)) : undefined;
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      const urgent = this.#flushNow && this.#state.name === 'running';
      if (this.#stopping || urgent || this.#requests.length > 0) this.#wake();
    });
    this.#wake = undefined;
  }

  async #flush(): Promise<void> {
    const seq = this.#writtenSeq;
    for (const [index, disk] of this.#disks!) {
      await disk.sync().catch((error) => {
        throw this.#diskError(index, error);
      });
    }
    await this.#host.onFlushed(seq);
    this.#appliedSeq = seq;
    this.emit('change');
  }

  /**
   * @returns bytes unpacked (0 if nothing was there), whether there was more than ticks among them, and why the frame that
   *   follows has to wait, if it has to
   */
  async #applyBatch(
    source: Source,
  ): Promise<{ bytes: number; data: boolean; gate: string | null }> {
    const frames = new FrameBatch(this.#host.diskSizes());
    const batch: Array<{ header: FrameHeader; mark: Mark | null }> = [];
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
      batch.push({ header, mark });
    }
    const { bytes } = frames;
    if (batch.length === 0) return { bytes: 0, data: false, gate };
    await frames.apply(this.#disks!, (index, error) => this.#diskError(index, error));
    for (const { header, mark } of batch) this.#host.onWritten(header, mark);
    this.#writtenSeq = batch.at(-1)!.header.seq;
    return { bytes, data: batch.some(({ mark }) => mark?.type !== 'tick'), gate };
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
