/** Frames that are written to the disks together: unpacked in the thread pool, the last writer wins. */
import { type UndError, undError } from '../../protocol/errors.ts';
import { FRAME_HEADER_BYTES, type FrameExtent, unpackFrame } from '../../protocol/frame.ts';
import type { JournalFrame } from '../journal/journal.ts';
import { coalesce } from './coalesce.ts';
import type { ReplicaDisk } from './replica-disk.ts';

const BATCH_BYTES = 16 * 1024 * 1024;
const BATCH_FRAMES = 256;

export class FrameBatch {
  readonly #sizes: readonly number[];
  readonly #unpacking: Array<Promise<FrameExtent[]>> = [];
  #bytes = 0;

  /** @param sizes of the disks, by index: what no extent may go past */
  constructor(sizes: readonly number[]) {
    this.#sizes = sizes;
  }

  /** Unpacked; 0 while there is no frame in it. */
  get bytes(): number {
    return this.#bytes;
  }

  get full(): boolean {
    return this.#bytes >= BATCH_BYTES || this.#unpacking.length >= BATCH_FRAMES;
  }

  /** Begins to unpack the frame, which follows the one before. */
  add({ header, frame }: JournalFrame): void {
    const unpacked = unpackFrame(header, frame.subarray(FRAME_HEADER_BYTES), this.#sizes);
    // Awaited in `apply`, all together; until then a rejection is not unhandled.
    unpacked.catch(() => {});
    this.#unpacking.push(unpacked);
    this.#bytes += FRAME_HEADER_BYTES + header.unpackedBytes;
  }

  /**
   * @param failed makes the error of a disk's failure
   * @throws UND_FRAME_INVALID; what `failed` makes
   */
  async apply(
    disks: ReadonlyMap<number, ReplicaDisk>,
    failed: (index: number, cause: NodeJS.ErrnoException) => UndError,
  ): Promise<void> {
    const extents = (await Promise.all(this.#unpacking)).flat();
    for (const [index, writes] of coalesce(extents)) {
      const disk = disks.get(index);
      if (!disk) throw undError('UND_INTERNAL', { reason: `replica disk ${index} is not open` });
      await disk.apply(writes).catch((error) => {
        throw failed(index, error);
      });
    }
  }
}
