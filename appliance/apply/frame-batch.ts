/**
 * Frames that are written to the disks together: unpacked in the thread pool, the last writer wins; and how batches follow
 * one another.
 */
import { type UndError, undError } from '../../protocol/errors.ts';
import { type ExtentTable, FRAME_HEADER_BYTES, unpackTable } from '../../protocol/frame.ts';
import type { JournalFrame } from '../journal/journal.ts';
import { coalesce } from './coalesce.ts';
import { type PreparedWrites, prepareWrites, type ReplicaDisk } from './replica-disk.ts';

const BATCH_BYTES = 16 * 1024 * 1024;
const BATCH_FRAMES = 256;

export class FrameBatch {
  readonly #sizes: readonly number[];
  readonly #maxBytes: number;
  #unpacking: Array<Promise<ExtentTable>> = [];
  #prepared: Promise<Map<number, PreparedWrites>> | undefined;
  /** Of what is looked at until it is written. */
  readonly #releases: Array<() => void> = [];
  #frames = 0;
  #bytes = 0;

  /**
   * @param sizes of the disks, by index: what no extent may go past
   * @param maxBytes unpacked, with which it is full
   */
  constructor(sizes: readonly number[], maxBytes = BATCH_BYTES) {
    this.#sizes = sizes;
    this.#maxBytes = maxBytes;
  }

  /** Unpacked; 0 while there is no frame in it. */
  get bytes(): number {
    return this.#bytes;
  }

  get full(): boolean {
    return this.#bytes >= this.#maxBytes || this.#frames >= BATCH_FRAMES;
  }

  /** Begins to unpack the frame, which follows the one before; not after `prepare`. It is released here. */
  add({ header, frame, release }: JournalFrame): void {
    const unpacked = unpackTable(header, frame.subarray(FRAME_HEADER_BYTES), this.#sizes);
    // Awaited in `prepare`, all together; until then a rejection is not unhandled.
    unpacked.catch(() => {});
    if (release) {
      // What is not packed is written from where it lies.
      if (header.codec === 'none') this.#releases.push(release);
      else unpacked.then(release, release);
    }
    this.#unpacking.push(unpacked);
    this.#frames++;
    this.#bytes += FRAME_HEADER_BYTES + header.unpackedBytes;
  }

  /** Makes of all frames what the disks take, which needs no disk yet. */
  prepare(): Promise<Map<number, PreparedWrites>> {
    if (!this.#prepared) {
      this.#prepared = this.#prepare();
      // Awaited in `apply`; until then a rejection is not unhandled.
      this.#prepared.catch(() => {});
    }
    return this.#prepared;
  }

  async #prepare(): Promise<Map<number, PreparedWrites>> {
    const tables = await Promise.all(this.#unpacking);
    // What the frames were is not needed any more, and it is large.
    this.#unpacking = [];
    for (const { release } of tables) if (release) this.#releases.push(release);
    return new Map([...coalesce(tables)].map(([index, one]) => [index, prepareWrites(one)]));
  }

  /**
   * @param failed makes the error of a disk's failure
   * @throws UND_FRAME_INVALID; what `failed` makes
   */
  async apply(
    disks: ReadonlyMap<number, ReplicaDisk>,
    failed: (index: number, cause: NodeJS.ErrnoException) => UndError,
  ): Promise<void> {
    try {
      for (const [index, writes] of await this.prepare()) {
        const disk = disks.get(index);
        if (!disk) throw undError('UND_INTERNAL', { reason: `replica disk ${index} is not open` });
        await disk.write(writes).catch((error) => {
          throw failed(index, error);
        });
      }
    } finally {
      for (const release of this.#releases.splice(0)) release();
    }
  }
}

/**
 * Writes batches in order, one at a time: while one is written, the next may be read and prepared, and no more than that.
 * Two at once could leave the older of two writes of a place.
 */
export class BatchWriter {
  readonly #disks: ReadonlyMap<number, ReplicaDisk>;
  readonly #failed: (index: number, cause: NodeJS.ErrnoException) => UndError;
  #last: Promise<void> = Promise.resolve();

  /** @param failed makes the error of a disk's failure */
  constructor(
    disks: ReadonlyMap<number, ReplicaDisk>,
    failed: (index: number, cause: NodeJS.ErrnoException) => UndError,
  ) {
    this.#disks = disks;
    this.#failed = failed;
  }

  /**
   * Begins to write the batch when the one before is on the disks, which is when it resolves.
   * @param written called when this one is
   * @throws what a batch before failed with; nothing more is written then
   */
  async write(batch: FrameBatch, written: () => void): Promise<void> {
    batch.prepare();
    await this.#last;
    this.#last = batch.apply(this.#disks, this.#failed).then(written);
    // Thrown where it is awaited; until then it is not unhandled.
    this.#last.catch(() => {});
  }

  /**
   * Nothing is under way any more when it settles.
   * @throws what a batch failed with
   */
  settled(): Promise<void> {
    return this.#last;
  }
}
