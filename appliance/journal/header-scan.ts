/**
 * Reads the headers of what the journal holds, in order of the sequence numbers over both families, and passes over
 * the payloads (marks come whole). It goes over what is missing and what is damaged: history has holes where mirror
 * runs were.
 */
import { FRAME_HEADER_BYTES, type FrameHeader } from '../../protocol/frame.ts';
import { FAMILIES, type Segment, SegmentScan } from './segment.ts';

export interface JournalHeader {
  header: FrameHeader;
  /** The whole frame of a mark, else null. */
  frame: Buffer | null;
}

/** A header and a mark are well below it; more would be payloads that nobody looks at. */
const READ_BYTES = 4096;

/** The frames of one family; a segment is left at its first damaged frame. */
async function* familyHeaders(
  segments: readonly Segment[],
  fromSeq: number,
): AsyncGenerator<JournalHeader> {
  for (const [at, segment] of segments.entries()) {
    const next = segments[at + 1];
    if (next && next.firstSeq <= fromSeq) continue;
    const scan = new SegmentScan(segment, READ_BYTES);
    try {
      for (;;) {
        const header = await scan.peek();
        if (!header) break;
        if (header.seq < fromSeq || header.kind !== 'mark') {
          // A header whose payload is not all there is a torn frame.
          if (scan.offsetBytes + FRAME_HEADER_BYTES + header.packedBytes > segment.bytes) break;
          scan.skip(header);
          if (header.seq >= fromSeq) yield { header, frame: null };
          continue;
        }
        const found = await scan.next();
        if (found) yield found;
      }
    } catch {
      // Damaged from here on: a hole for the reader, a fault for `journal verify`.
    } finally {
      await scan.close();
    }
  }
}

/** @param segments of each family, in order */
export async function* headersFrom(
  segments: Record<(typeof FAMILIES)[number], readonly Segment[]>,
  fromSeq: number,
  untilSeq: number,
): AsyncGenerator<JournalHeader> {
  const sources = FAMILIES.map((family) => familyHeaders([...segments[family]], fromSeq));
  const heads: Array<JournalHeader | undefined> = [];
  try {
    for (const source of sources) heads.push((await source.next()).value ?? undefined);
    for (;;) {
      let least = -1;
      heads.forEach((head, at) => {
        if (head && (least < 0 || head.header.seq < heads[least]!.header.seq)) least = at;
      });
      const head = heads[least];
      if (!head || head.header.seq > untilSeq) return;
      yield head;
      heads[least] = (await sources[least]!.next()).value ?? undefined;
    }
  } finally {
    for (const source of sources) await source.return(undefined);
  }
}
