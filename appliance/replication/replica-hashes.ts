/** The replica's side of a comparison: hashes of a range of a replica disk (protocol/hash-tree.ts). */
import {
  BLOCK_BYTES,
  CHUNK_BYTES,
  compared,
  comparedBytes,
  HASH_BYTES,
  hashOf,
} from '../../protocol/hash-tree.ts';

/** Ranges read and hashed at once. */
const AHEAD = 4;
const MAX_KEPT = 16;

export interface HashRange {
  offsetBytes: number;
  lengthBytes: number;
  /** One hash for each so many bytes. */
  chunkBytes: number;
  /** From offsetBytes on; null: everything is compared. */
  mask: Buffer | null;
}

/** Whether a mask that came over the link is one of this range. */
export const isMaskOf = (mask: Buffer, lengthBytes: number): boolean =>
  mask.length === Math.ceil(Math.ceil(lengthBytes / BLOCK_BYTES) / 8);

/** @throws what `read` throws */
export async function hashRange(
  range: HashRange,
  read: (offsetBytes: number, lengthBytes: number) => Promise<Buffer>,
): Promise<Buffer> {
  const { lengthBytes, chunkBytes, mask } = range;
  const count = Math.ceil(lengthBytes / chunkBytes);
  const hashes: Buffer[] = new Array(count);
  // Small ones are read together: a piece is one read whatever the grain.
  const perRead = Math.max(1, Math.floor(CHUNK_BYTES / chunkBytes));
  let next = 0;
  const some = async () => {
    while (next < count) {
      const first = next;
      next = Math.min(count, first + perRead);
      const from = first * chunkBytes;
      const length = Math.min(lengthBytes - from, (next - first) * chunkBytes);
      const last = next;
      const isRead = comparedBytes(mask, from, length) > 0;
      const data = isRead ? await read(range.offsetBytes + from, length) : null;
      for (let at = first; at < last; at++) {
        const inData = at * chunkBytes - from;
        const chunk = data?.subarray(inData, inData + chunkBytes) ?? Buffer.alloc(0);
        hashes[at] = await hashOf(
          data ? compared(chunk as Buffer<ArrayBuffer>, mask, at * chunkBytes) : new Uint8Array(),
        );
      }
    }
  };
  await Promise.all(Array.from({ length: AHEAD }, some));
  return Buffer.concat(hashes, count * HASH_BYTES);
}

/** The newest answers, so that the hashes of a span whose one hash differed need not be taken again. */
export class KeptHashes {
  #kept = new Map<string, Buffer>();

  take(key: string): Buffer | undefined {
    const hashes = this.#kept.get(key);
    this.#kept.delete(key);
    return hashes;
  }

  keep(key: string, hashes: Buffer): void {
    this.#kept.set(key, hashes);
    for (const old of this.#kept.keys()) {
      if (this.#kept.size <= MAX_KEPT) break;
      this.#kept.delete(old);
    }
  }
}
