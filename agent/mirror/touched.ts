/**
 * Pure: which sectors of a disk a captured write has touched since the tracker was made, and what of a block read from
 * the disk may therefore go into the stream.
 *
 * The rule (docs/stream.md argues it): a block that was read is put into the stream without the sectors that any
 * record numbered before it touches. A sector that is cut is in the stream already, from a write; a sector that is left
 * has no write before this place in the stream, and one that comes later comes later in the stream too.
 */
import { SECTOR_BYTES } from '../../protocol/frame.ts';

const BLOCK_BYTES = 4096;
const SECTORS_PER_BLOCK = BLOCK_BYTES / SECTOR_BYTES;

export interface Span {
  offsetBytes: number;
  lengthBytes: number;
}

/** A bit per 4 KiB for blocks touched whole, and a sparse map of sector masks for those touched in part. */
export class Touched {
  #whole: Uint8Array;
  #partial = new Map<number, number>();

  constructor(sizeBytes: number) {
    this.#whole = new Uint8Array(Math.ceil(sizeBytes / BLOCK_BYTES / 8));
  }

  /** A captured write or zero of this extent is in the stream. Extents behind the disk's end are cut. */
  add(offsetBytes: number, lengthBytes: number): void {
    const end = Math.min(offsetBytes + lengthBytes, this.#whole.length * 8 * BLOCK_BYTES);
    let at = offsetBytes;
    while (at < end) {
      const block = Math.floor(at / BLOCK_BYTES);
      const blockEnd = (block + 1) * BLOCK_BYTES;
      if (at % BLOCK_BYTES === 0 && end >= blockEnd) {
        // Whole bytes of the map at once: discards are large.
        if (block % 8 === 0 && end - at >= 8 * BLOCK_BYTES) {
          const blocks = Math.floor((end - at) / BLOCK_BYTES / 8) * 8;
          this.#whole.fill(0xff, block / 8, (block + blocks) / 8);
          at += blocks * BLOCK_BYTES;
          continue;
        }
        this.#setWhole(block);
      } else {
        const first = Math.floor((at % BLOCK_BYTES) / SECTOR_BYTES);
        const last = Math.ceil((Math.min(end, blockEnd) - block * BLOCK_BYTES) / SECTOR_BYTES);
        let mask = this.#partial.get(block) ?? 0;
        for (let sector = first; sector < last; sector++) mask |= 1 << sector;
        if (mask === (1 << SECTORS_PER_BLOCK) - 1) this.#setWhole(block);
        else this.#partial.set(block, mask);
      }
      at = Math.min(end, blockEnd);
    }
  }

  #setWhole(block: number): void {
    this.#whole[block >> 3] = this.#whole[block >> 3]! | (1 << (block & 7));
    this.#partial.delete(block);
  }

  /** The touched sectors of a block, as a mask. */
  #mask(block: number): number {
    if ((this.#whole[block >> 3] ?? 0) & (1 << (block & 7))) return (1 << SECTORS_PER_BLOCK) - 1;
    return this.#partial.get(block) ?? 0;
  }

  /** What of the extent no captured write has touched, as sorted spans of whole sectors. */
  untouched(offsetBytes: number, lengthBytes: number): Span[] {
    const spans: Span[] = [];
    const end = offsetBytes + lengthBytes;
    let open = -1;
    const close = (at: number) => {
      if (open >= 0) spans.push({ offsetBytes: open, lengthBytes: at - open });
      open = -1;
    };
    for (let at = offsetBytes; at < end; ) {
      const block = Math.floor(at / BLOCK_BYTES);
      const blockEnd = Math.min(end, (block + 1) * BLOCK_BYTES);
      const mask = this.#mask(block);
      if (mask === 0) {
        if (open < 0) open = at;
        at = blockEnd;
        continue;
      }
      for (; at < blockEnd; at += SECTOR_BYTES) {
        const sector = (at % BLOCK_BYTES) / SECTOR_BYTES;
        if (mask & (1 << sector)) close(at);
        else if (open < 0) open = at;
      }
    }
    close(end);
    return spans;
  }
}
