/** Pure: what of a chunk that was read goes into the stream. */

import type { MirrorKind } from '../../protocol/control.ts';
import type { FrameExtent } from '../../protocol/frame.ts';
import type { Span } from './touched.ts';

/** The grain in which zeroes are left out; a qcow2 cluster. */
const ZERO_BYTES = 64 * 1024;
const ZEROES = Buffer.alloc(ZERO_BYTES);

/**
 * The extents to send for the spans of a chunk. Zeroes are left out of a full mirror (its replica reads as zeroes
 * where nothing was sent) and sent as zero extents in a difference mirror.
 * @param chunkOffsetBytes where on the disk `data` was read
 */
export function chunkExtents(
  disk: number,
  kind: MirrorKind,
  chunkOffsetBytes: number,
  data: Buffer,
  spans: readonly Span[],
): FrameExtent[] {
  const extents: FrameExtent[] = [];
  const push = (isZero: boolean, offsetBytes: number, lengthBytes: number) => {
    if (isZero && kind === 'full') return;
    const last = extents.at(-1);
    const joins =
      last?.offsetBytes !== undefined && last.offsetBytes + last.lengthBytes === offsetBytes;
    if (last && joins && (last.kind === 'zero') === isZero) {
      last.lengthBytes += lengthBytes;
      if (last.kind === 'write') {
        const from = last.offsetBytes - chunkOffsetBytes;
        last.data = data.subarray(from, from + last.lengthBytes);
      }
      return;
    }
    if (isZero) {
      extents.push({ kind: 'zero', disk, offsetBytes, lengthBytes });
      return;
    }
    const from = offsetBytes - chunkOffsetBytes;
    extents.push({
      kind: 'write',
      disk,
      offsetBytes,
      lengthBytes,
      data: data.subarray(from, from + lengthBytes),
    });
  };
  for (const span of spans) {
    const end = span.offsetBytes + span.lengthBytes;
    for (let at = span.offsetBytes; at < end; ) {
      const stop = Math.min(end, (Math.floor(at / ZERO_BYTES) + 1) * ZERO_BYTES);
      const from = at - chunkOffsetBytes;
      const piece = data.subarray(from, from + stop - at);
      push(piece.equals(ZEROES.subarray(0, piece.length)), at, stop - at);
      at = stop;
    }
  }
  return extents;
}

/** `total` without `holes` (sorted, disjoint): the spans that remain. */
export function subtractSpans(total: Span, holes: readonly Span[]): Span[] {
  const spans: Span[] = [];
  const end = total.offsetBytes + total.lengthBytes;
  let at = total.offsetBytes;
  // The first that ends behind it: there may be as many holes as there are totals to subtract them from.
  let first = 0;
  for (let stop = holes.length; first < stop; ) {
    const middle = (first + stop) >> 1;
    const hole = holes[middle]!;
    if (hole.offsetBytes + hole.lengthBytes <= at) first = middle + 1;
    else stop = middle;
  }
  for (let next = first; next < holes.length; next++) {
    const hole = holes[next]!;
    const holeEnd = hole.offsetBytes + hole.lengthBytes;
    if (holeEnd <= at) continue;
    if (hole.offsetBytes >= end) break;
    if (hole.offsetBytes > at) spans.push({ offsetBytes: at, lengthBytes: hole.offsetBytes - at });
    at = holeEnd;
  }
  if (at < end) spans.push({ offsetBytes: at, lengthBytes: end - at });
  return spans;
}
