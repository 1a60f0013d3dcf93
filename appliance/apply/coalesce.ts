/** Pure: what a run of extents, in order, leaves on the disks. */
import { type ExtentTable, SECTOR_BYTES } from '../../protocol/frame.ts';

/** Non-overlapping writes of one disk, by offset; in columns, as they come. */
export class DiskWrites {
  readonly offsetsBytes: number[] = [];
  readonly lengthsBytes: number[] = [];
  /** Where a write's data lie, from `dataAt` on; null: zeroes. */
  readonly sources: Array<Buffer | null> = [];
  readonly dataAt: number[] = [];

  get count(): number {
    return this.offsetsBytes.length;
  }

  /** Behind all that are there. */
  push(offsetBytes: number, lengthBytes: number, source: Buffer | null, dataAt: number): void {
    this.offsetsBytes.push(offsetBytes);
    this.lengthsBytes.push(lengthBytes);
    this.sources.push(source);
    this.dataAt.push(dataAt);
  }
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

/** The extents of all tables, one behind the other: what is newer has the higher index. */
class Extents {
  readonly offsets: Float64Array;
  readonly lengths: Float64Array;
  readonly #dataAt: Int32Array;
  readonly #tables: readonly ExtentTable[];
  /** Which table an extent is of. */
  readonly #tableOf: Uint32Array;
  readonly byDisk = new Map<number, number[]>();

  constructor(tables: readonly ExtentTable[]) {
    const count = tables.reduce((sum, table) => sum + table.count, 0);
    this.#tables = tables;
    this.offsets = new Float64Array(count);
    this.lengths = new Float64Array(count);
    this.#dataAt = new Int32Array(count);
    this.#tableOf = new Uint32Array(count);
    let base = 0;
    let disk = -1;
    let indexes: number[] = [];
    tables.forEach((table, number) => {
      this.offsets.set(table.offsetsBytes, base);
      this.lengths.set(table.lengthsBytes, base);
      this.#dataAt.set(table.dataAt, base);
      this.#tableOf.fill(number, base, base + table.count);
      for (let index = 0; index < table.count; index++) {
        if (table.disks[index] !== disk) {
          disk = table.disks[index]!;
          indexes = this.byDisk.get(disk) ?? [];
          this.byDisk.set(disk, indexes);
        }
        indexes.push(base + index);
      }
      base += table.count;
    });
  }

  end(index: number): number {
    return this.offsets[index]! + this.lengths[index]!;
  }

  /** Of the extent, what lies in [from, to). */
  put(index: number, from: number, to: number, into: DiskWrites): void {
    const at = this.#dataAt[index]!;
    if (at < 0) into.push(from, to - from, null, 0);
    else {
      const { raw } = this.#tables[this.#tableOf[index]!]!;
      into.push(from, to - from, raw, at + from - this.offsets[index]!);
    }
  }

  /** By offset, and the older first where that is the same. */
  sorted(indexes: readonly number[]): ArrayLike<number> {
    // Offset and index in one number: numbers are sorted without calling a function for every comparison.
    const room = 2 ** Math.ceil(Math.log2(this.offsets.length + 1));
    const keys = new Float64Array(indexes.length);
    let exact = true;
    for (let at = 0; at < indexes.length; at++) {
      const sector = this.offsets[indexes[at]!]! / SECTOR_BYTES;
      keys[at] = sector * room + indexes[at]!;
      exact &&= Number.isInteger(sector) && keys[at]! <= Number.MAX_SAFE_INTEGER;
    }
    if (!exact) return indexes.toSorted((a, b) => this.offsets[a]! - this.offsets[b]! || a - b);
    keys.sort();
    for (let at = 0; at < keys.length; at++) keys[at]! -= Math.floor(keys[at]! / room) * room;
    return keys;
  }
}

/**
 * The last writer wins: of each extent is kept what no newer one covers.
 * @param tables in order, the newest last
 * @returns per disk index, what is to be written
 */
export function coalesce(tables: readonly ExtentTable[]): Map<number, DiskWrites> {
  const extents = new Extents(tables);
  const result = new Map<number, DiskWrites>();
  for (const [disk, indexes] of extents.byDisk) {
    const writes = new DiskWrites();
    result.set(disk, writes);
    const sorted = extents.sorted(indexes);
    for (let at = 0, next = 0; at < sorted.length; at = next) {
      const first = sorted[at]!;
      const from = extents.offsets[first]!;
      // Those that lie over one another, directly or by a third.
      let end = extents.end(first);
      for (next = at + 1; next < sorted.length; next++) {
        const one = sorted[next]!;
        if (extents.offsets[one]! >= end) break;
        end = Math.max(end, extents.end(one));
      }
      // Most are alone, or written again as they were: the last one begins where all do, is the newest, and covers them.
      const last = sorted[next - 1]!;
      if (extents.offsets[last] === from && extents.end(last) === end)
        extents.put(last, from, end, writes);
      else
        untangle(
          extents,
          Array.from({ length: next - at }, (_, n) => sorted[at + n]!),
          writes,
        );
    }
  }
  return result;
}

/** From the newest to the oldest, of each what no newer one covers. */
function untangle(extents: Extents, indexes: number[], writes: DiskWrites): void {
  const covered = new Covered();
  const kept: Array<{ index: number; from: number; to: number }> = [];
  for (const index of indexes.sort((a, b) => b - a)) {
    covered.add(extents.offsets[index]!, extents.end(index), (from, to) => {
      kept.push({ index, from, to });
    });
  }
  kept.sort((a, b) => a.from - b.from);
  for (const { index, from, to } of kept) extents.put(index, from, to, writes);
}
