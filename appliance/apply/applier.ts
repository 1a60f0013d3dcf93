/**
 * Apply: takes durable frames from the journal in order and makes the replica disks what they say. It is idempotent
 * redo: `applied` advances only after the disks are flushed, and after a crash or an error apply starts again there.
 *
 * Data is written as it comes (`writtenSeq`); the flush, and with it `appliedSeq`, follows at most FLUSH_MS or
 * FLUSH_BYTES later, because a flush costs the same for one frame as for a hundred.
 */
import { EventEmitter } from 'node:events';
import { type UndError, undError } from '../../protocol/errors.ts';
import {
  FRAME_HEADER_BYTES,
  type FrameExtent,
  type FrameHeader,
  unpackFrame,
} from '../../protocol/frame.ts';
import { type Mark, readMark } from '../../protocol/marks.ts';
import type { JournalFrame, JournalReader } from '../journal/journal.ts';
import { coalesce } from './coalesce.ts';
import type { ReplicaDisk } from './replica-disk.ts';

const BATCH_BYTES = 16 * 1024 * 1024;
const BATCH_FRAMES = 256;
const FLUSH_BYTES = 128 * 1024 * 1024;
const FLUSH_MS = 500;
/** An idle source ticks every second; that alone is not worth a flush each time. */
const IDLE_FLUSH_MS = 5_000;

export type ApplyState =
  | { name: 'running' }
  | { name: 'paused'; reason: string }
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

  constructor(host: ApplierHost, appliedSeq: number) {
    super();
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
    if (this.#loop) return;
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

  #throwIfNotRunning(): void {
    if (this.#state.name === 'error') throw this.#state.error;
    if (this.#state.name === 'paused') {
      throw undError('UND_APPLY_PAUSED', { job: this.#host.jobId, reason: this.#state.reason });
    }
  }

  #setState(state: ApplyState): void {
    this.#state = state;
    this.emit('change');
  }

  async #run(): Promise<void> {
    const reader = this.#host.reader(this.#appliedSeq + 1);
    let unflushedBytes = 0;
    let flushDueMs = Number.POSITIVE_INFINITY;
    try {
      while (!this.#stopping) {
        const { bytes, data } = await this.#applyBatch(reader);
        if (bytes > 0) {
          unflushedBytes += bytes;
          const withinMs = data ? FLUSH_MS : IDLE_FLUSH_MS;
          flushDueMs = Math.min(flushDueMs, performance.now() + withinMs);
          this.emit('change');
        }
        const due = performance.now() >= flushDueMs || unflushedBytes >= FLUSH_BYTES;
        if (this.#writtenSeq > this.#appliedSeq && (due || (this.#flushNow && bytes === 0))) {
          await this.#flush();
          unflushedBytes = 0;
          flushDueMs = Number.POSITIVE_INFINITY;
        } else if (bytes === 0) {
          this.#flushNow = false;
          await this.#idle(flushDueMs - performance.now());
        }
      }
      if (this.#writtenSeq > this.#appliedSeq) await this.#flush();
    } catch (error) {
      this.#setState({ name: 'error', error: this.#asError(error) });
    } finally {
      await reader.close();
    }
  }

  async #idle(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = Number.isFinite(ms) ? setTimeout(resolve, Math.max(0, ms)) : undefined;
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
      if (this.#stopping || this.#flushNow) this.#wake();
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

  /** @returns bytes unpacked (0 if nothing was there), and whether there was more than ticks among them */
  async #applyBatch(reader: JournalReader): Promise<{ bytes: number; data: boolean }> {
    const sizes = this.#host.diskSizes();
    const batch: Array<{ header: FrameHeader; mark: Mark | null }> = [];
    const unpacking: Array<Promise<FrameExtent[]>> = [];
    let bytes = 0;
    while (bytes < BATCH_BYTES && batch.length < BATCH_FRAMES) {
      const next: JournalFrame | null = await reader.next();
      if (!next) break;
      const { header, frame } = next;
      const unpacked = unpackFrame(header, frame.subarray(FRAME_HEADER_BYTES), sizes);
      // Awaited below, all together; until then a rejection is not unhandled.
      unpacked.catch(() => {});
      unpacking.push(unpacked);
      batch.push({ header, mark: header.kind === 'mark' ? readMark(header, frame) : null });
      bytes += FRAME_HEADER_BYTES + header.unpackedBytes;
    }
    if (batch.length === 0) return { bytes: 0, data: false };
    const extents = (await Promise.all(unpacking)).flat();
    for (const [index, writes] of coalesce(extents)) {
      const disk = this.#disks!.get(index);
      if (!disk) throw undError('UND_INTERNAL', { reason: `replica disk ${index} is not open` });
      await disk.apply(writes).catch((error) => {
        throw this.#diskError(index, error);
      });
    }
    for (const { header, mark } of batch) this.#host.onWritten(header, mark);
    this.#writtenSeq = batch.at(-1)!.header.seq;
    return { bytes, data: batch.some(({ mark }) => mark?.type !== 'tick') };
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
