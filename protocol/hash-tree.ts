/**
 * Pure, but for the hashing: the tree of hashes that source and replica are compared by. One hash stands for a span of
 * 64 MiB and is the hash of its chunks' hashes; a chunk of 1 MiB is told from its pieces of 64 KiB only when it differs.
 * Blocks that are not compared (free, excluded, swap) are passed over in the data itself, by a mask that both sides use.
 */
export const SPAN_BYTES = 64 * 1024 * 1024;
export const CHUNK_BYTES = 1024 * 1024;
export const PIECE_BYTES = 64 * 1024;
/** A bit of a mask stands for so much. */
export const BLOCK_BYTES = 4096;
/** The first bytes of a SHA-256. */
export const HASH_BYTES = 16;

/** Hashed in the thread pool: the event loop, and a second processor, have other things to do. */
export async function hashOf(data: Uint8Array<ArrayBuffer>): Promise<Buffer> {
  const digest = await crypto.subtle.digest('SHA-256', data);
  return Buffer.from(digest, 0, HASH_BYTES);
}

/**
 * Which blocks of a span are compared: bit n of byte n/8 for the block at n * BLOCK_BYTES behind the span's start. A block
 * that is unneeded in part is compared as a whole.
 * @param unneeded sorted and disjoint, or overlapping: whatever one of them covers whole is left out
 * @returns null if all of them are
 */
export function maskOf(
  span: { offsetBytes: number; lengthBytes: number },
  unneeded: ReadonlyArray<{ offsetBytes: number; lengthBytes: number }>,
): Buffer | null {
  const blocks = Math.ceil(span.lengthBytes / BLOCK_BYTES);
  const mask = Buffer.alloc(Math.ceil(blocks / 8), 0xff);
  let all = true;
  for (const { offsetBytes, lengthBytes } of unneeded) {
    const first = Math.max(0, Math.ceil((offsetBytes - span.offsetBytes) / BLOCK_BYTES));
    const endBytes = Math.min(offsetBytes + lengthBytes - span.offsetBytes, span.lengthBytes);
    const isEnd = endBytes === span.lengthBytes;
    const end = isEnd ? blocks : Math.floor(endBytes / BLOCK_BYTES);
    for (let block = first; block < end; block++) {
      mask[block >> 3] = mask[block >> 3]! & ~(1 << (block & 7));
      all = false;
    }
  }
  return all ? null : mask;
}

/** Whether the block at `block * BLOCK_BYTES` behind the mask's start is compared. */
export const isCompared = (mask: Uint8Array | null, block: number): boolean =>
  mask === null || ((mask[block >> 3] ?? 0) & (1 << (block & 7))) !== 0;

/**
 * What of `data` is compared, joined.
 * @param atBytes where `data` begins, behind the mask's start; a multiple of BLOCK_BYTES
 */
export function compared(
  data: Buffer<ArrayBuffer>,
  mask: Uint8Array | null,
  atBytes: number,
): Buffer<ArrayBuffer> {
  if (mask === null) return data;
  const parts: Buffer<ArrayBuffer>[] = [];
  let from = -1;
  for (let at = 0; at < data.length; at += BLOCK_BYTES) {
    const is = isCompared(mask, (atBytes + at) / BLOCK_BYTES);
    if (is && from < 0) from = at;
    if (!is && from >= 0) {
      parts.push(data.subarray(from, at));
      from = -1;
    }
  }
  if (from === 0) return data;
  if (from > 0) parts.push(data.subarray(from));
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
}

/** How much of [atBytes, atBytes + lengthBytes) behind the mask's start is compared. */
export function comparedBytes(
  mask: Uint8Array | null,
  atBytes: number,
  lengthBytes: number,
): number {
  if (mask === null) return lengthBytes;
  let bytes = 0;
  for (let at = 0; at < lengthBytes; at += BLOCK_BYTES) {
    if (isCompared(mask, (atBytes + at) / BLOCK_BYTES)) {
      bytes += Math.min(BLOCK_BYTES, lengthBytes - at);
    }
  }
  return bytes;
}
