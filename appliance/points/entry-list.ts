/**
 * A long list of points, in order of their sequence numbers: one a second for weeks. Kept as differences in blocks, at
 * 8 bytes a point.
 */
import type { Point } from './point-index.ts';

interface Block {
  baseSeq: number;
  baseMs: number;
  /** The earliest moment in it: a wall clock may be set back. */
  minMs: number;
  count: number;
  seqs: Uint32Array;
  ms: Int32Array;
}

const BLOCK = 4096;
const INT32_MAX = 0x7fff_ffff;

export class EntryList {
  #blocks: Block[] = [];
  #count = 0;

  get count(): number {
    return this.#count;
  }

  get first(): Point | null {
    const block = this.#blocks[0];
    return block ? at(block, 0) : null;
  }

  /** @param point behind the last one; one that is there already is passed over */
  push(point: Point): void {
    let block = this.#blocks.at(-1);
    if (block && point.seq <= at(block, block.count - 1).seq) return;
    if (
      !block ||
      block.count === BLOCK ||
      point.seq - block.baseSeq > 0xffff_ffff ||
      Math.abs(point.sourceMs - block.baseMs) > INT32_MAX
    ) {
      block = {
        baseSeq: point.seq,
        baseMs: point.sourceMs,
        minMs: point.sourceMs,
        count: 0,
        seqs: new Uint32Array(BLOCK),
        ms: new Int32Array(BLOCK),
      };
      this.#blocks.push(block);
    }
    block.seqs[block.count] = point.seq - block.baseSeq;
    block.ms[block.count] = point.sourceMs - block.baseMs;
    block.count++;
    block.minMs = Math.min(block.minMs, point.sourceMs);
    this.#count++;
  }

  /** The last point for which `test` holds, looking only where something is at or before `sourceMs`. */
  lastWhere(test: (point: Point) => boolean, sourceMs: number): Point | null {
    for (let b = this.#blocks.length - 1; b >= 0; b--) {
      const block = this.#blocks[b]!;
      if (block.minMs > sourceMs) continue;
      for (let index = block.count - 1; index >= 0; index--) {
        const point = at(block, index);
        if (test(point)) return point;
      }
    }
    return null;
  }

  atOrBefore(seq: number): Point | null {
    for (let b = this.#blocks.length - 1; b >= 0; b--) {
      const block = this.#blocks[b]!;
      if (block.baseSeq > seq) continue;
      let low = 0;
      let high = block.count - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (block.baseSeq + block.seqs[middle]! <= seq) low = middle;
        else high = middle - 1;
      }
      return at(block, low);
    }
    return null;
  }

  since(fromSeq: number): Point[] {
    const points: Point[] = [];
    for (let b = this.#blocks.length - 1; b >= 0; b--) {
      const block = this.#blocks[b]!;
      for (let index = block.count - 1; index >= 0; index--) {
        const point = at(block, index);
        if (point.seq < fromSeq) return points.reverse();
        points.push(point);
      }
    }
    return points.reverse();
  }

  dropBefore(seq: number): void {
    while (this.#blocks.length > 0) {
      const block = this.#blocks[0]!;
      if (at(block, block.count - 1).seq < seq) {
        this.#blocks.shift();
        this.#count -= block.count;
        continue;
      }
      const kept: Point[] = [];
      for (let index = 0; index < block.count; index++) {
        const point = at(block, index);
        if (point.seq >= seq) kept.push(point);
      }
      if (kept.length < block.count) this.#blocks[0] = this.#repack(block, kept);
      return;
    }
  }

  dropAfter(seq: number): void {
    while (this.#blocks.length > 0) {
      const block = this.#blocks.at(-1)!;
      while (block.count > 0 && at(block, block.count - 1).seq > seq) {
        block.count--;
        this.#count--;
      }
      if (block.count > 0) return;
      this.#blocks.pop();
    }
  }

  #repack(block: Block, points: readonly Point[]): Block {
    const list = new EntryList();
    for (const point of points) list.push(point);
    this.#count -= block.count - points.length;
    return list.#blocks[0]!;
  }
}

const at = (block: Block, index: number): Point => ({
  seq: block.baseSeq + block.seqs[index]!,
  sourceMs: block.baseMs + block.ms[index]!,
});
