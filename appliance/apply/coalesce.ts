/** Pure: what a run of extents, in order, leaves on the disks. */
import type { FrameExtent } from '../../protocol/frame.ts';

/** Non-overlapping, sorted by offset; `data` is null for zeroes. */
export interface DiskWrite {
  offsetBytes: number;
  lengthBytes: number;
  data: Uint8Array | null;
}

/** Sorted, disjoint, merged intervals of one disk. */
class Covered {
  #starts: number[] = [];
  #ends: number[] = [];

  /** Add [from, to) and call `fresh` for each part of it that was not covered before. */
  add(from: number, to: number, fresh: (from: number, to: number) => void): void {
    // First interval that ends at or after `from`; touching ones are merged.
    let low = 0;
    let high = this.#ends.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ends[middle]! < from) low = middle + 1;
      else high = middle;
    }
    let at = from;
    let start = from;
    let end = to;
    let next = low;
    for (; next < this.#starts.length && this.#starts[next]! <= to; next++) {
      const coveredFrom = this.#starts[next]!;
      const coveredTo = this.#ends[next]!;
      if (coveredFrom > at) fresh(at, coveredFrom);
      at = Math.max(at, coveredTo);
      start = Math.min(start, coveredFrom);
      end = Math.max(end, coveredTo);
    }
    if (at < to) fresh(at, to);
    this.#starts.splice(low, next - low, start);
    this.#ends.splice(low, next - low, end);
  }
}

/**
 * The last writer wins: walk the extents from the newest to the oldest and keep of each what no newer one covers.
 * @returns per disk index, what is to be written
 */
export function coalesce(extents: readonly FrameExtent[]): Map<number, DiskWrite[]> {
  const writes = new Map<number, DiskWrite[]>();
  const covered = new Map<number, Covered>();
  for (let index = extents.length - 1; index >= 0; index--) {
    const extent = extents[index]!;
    let diskWrites = writes.get(extent.disk);
    let diskCovered = covered.get(extent.disk);
    if (!diskWrites || !diskCovered) {
      diskWrites = [];
      diskCovered = new Covered();
      writes.set(extent.disk, diskWrites);
      covered.set(extent.disk, diskCovered);
    }
    const kept = diskWrites;
    diskCovered.add(extent.offsetBytes, extent.offsetBytes + extent.lengthBytes, (from, to) => {
      kept.push({
        offsetBytes: from,
        lengthBytes: to - from,
        data:
          extent.kind === 'write'
            ? extent.data.subarray(from - extent.offsetBytes, to - extent.offsetBytes)
            : null,
      });
    });
  }
  for (const diskWrites of writes.values()) {
    diskWrites.sort((a, b) => a.offsetBytes - b.offsetBytes);
  }
  return writes;
}
