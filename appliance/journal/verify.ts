/**
 * `journal verify`: reads back everything there is and names every fault with its segment and offset. It goes on
 * behind a fault: a damaged payload is passed over by its header's length, and behind a damaged header the next frame
 * is looked for.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { basename } from 'node:path';
import {
  checkFrame,
  FRAME_HEADER_BYTES,
  FRAME_MAGIC,
  type FrameHeader,
  readHeader,
} from '../../protocol/frame.ts';
import { FAMILIES, type Family, type Segment } from './segment.ts';

export interface JournalFault {
  segment: string;
  offsetBytes: number;
  reason: string;
}

export interface JournalReport {
  /** Whole frames and their bytes. */
  frames: number;
  bytes: number;
  firstSeq: number;
  lastSeq: number;
  /** In the order of the journal; at most MAX_FAULTS of them. */
  faults: JournalFault[];
  /** How many faults there are in all. */
  faultCount: number;
}

export interface SeqRange {
  fromSeq: number;
  toSeq: number;
}

/** A journal that is rubbish from end to end would fill the memory with what is wrong with it. */
export const MAX_FAULTS = 1000;
const MAGIC = Buffer.alloc(4);
MAGIC.writeUInt32LE(FRAME_MAGIC);
const SEARCH_BYTES = 1024 * 1024;

type Item =
  | { seq: number; header: FrameHeader; segment: Segment; offsetBytes: number; bytes: number }
  | { fault: JournalFault };

/**
 * @param untilSeq the last durable frame: what is behind it may be half written
 * @param whole rising ranges in which no frame may be missing; elsewhere mirror frames have left
 */
export async function verifySegments(
  segments: Record<Family, readonly Segment[]>,
  untilSeq: number,
  whole: readonly SeqRange[],
  onProgress?: (bytes: number) => void,
): Promise<JournalReport> {
  const report: JournalReport = {
    frames: 0,
    bytes: 0,
    firstSeq: 0,
    lastSeq: 0,
    faults: [],
    faultCount: 0,
  };
  const fault = (one: JournalFault) => {
    report.faultCount++;
    if (report.faults.length < MAX_FAULTS) report.faults.push(one);
  };
  const missing = new Missing(whole);
  const sources = FAMILIES.map((family) => items([...segments[family]], untilSeq));
  const heads: Array<Item | undefined> = [];
  try {
    for (const source of sources) heads.push((await source.next()).value ?? undefined);
    let last: { segment: string; offsetBytes: number } = { segment: 'the journal', offsetBytes: 0 };
    for (;;) {
      let least = -1;
      for (const [at, head] of heads.entries()) {
        if (!head) continue;
        const best = heads[least];
        // A fault has no number: it is told before what follows it in its family.
        if (!best || 'fault' in head || (!('fault' in best) && head.seq < best.seq)) least = at;
      }
      const head = heads[least];
      if (!head) break;
      if ('fault' in head) fault(head.fault);
      else {
        const at = { segment: basename(head.segment.path), offsetBytes: head.offsetBytes };
        for (const { fromSeq, toSeq } of missing.seen(head.seq)) {
          fault({
            ...at,
            reason: `${framesText(fromSeq, toSeq)} missing before frame ${head.seq}`,
          });
        }
        report.frames++;
        report.bytes += head.bytes;
        report.firstSeq ||= head.seq;
        report.lastSeq = head.seq;
        last = { segment: at.segment, offsetBytes: at.offsetBytes + head.bytes };
        onProgress?.(report.bytes);
      }
      heads[least] = (await sources[least]!.next()).value ?? undefined;
    }
    for (const { fromSeq, toSeq } of missing.seen(untilSeq + 1)) {
      fault({ ...last, reason: `${framesText(fromSeq, toSeq)} missing` });
    }
    return report;
  } finally {
    for (const source of sources) await source.return(undefined);
  }
}

const framesText = (fromSeq: number, toSeq: number): string =>
  fromSeq === toSeq ? `frame ${fromSeq} is` : `frames ${fromSeq} to ${toSeq} are`;

/** Pure: which frames of the ranges were passed over. */
class Missing {
  readonly #ranges: SeqRange[];
  #next = 0;

  constructor(ranges: readonly SeqRange[]) {
    this.#ranges = [...ranges];
  }

  /** The frame `seq` is there, and it is the next one that is. */
  seen(seq: number): SeqRange[] {
    const found: SeqRange[] = [];
    for (const { fromSeq, toSeq } of this.#ranges) {
      const from = Math.max(fromSeq, this.#next);
      const to = Math.min(toSeq, seq - 1);
      if (from <= to) found.push({ fromSeq: from, toSeq: to });
    }
    while (this.#ranges[0] && this.#ranges[0].toSeq <= seq) this.#ranges.shift();
    this.#next = seq + 1;
    return found;
  }
}

async function* items(segments: readonly Segment[], untilSeq: number): AsyncGenerator<Item> {
  let previous = -1;
  for (const segment of segments) {
    let handle: FileHandle;
    try {
      handle = await open(segment.path, 'r');
    } catch (error) {
      // History that left while the journal was being read.
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') continue;
      throw error;
    }
    // Frames that are appended from now on are not looked at.
    const { bytes } = segment;
    const fault = (offsetBytes: number, reason: string): Item => ({
      fault: { segment: basename(segment.path), offsetBytes, reason },
    });
    const head = Buffer.alloc(FRAME_HEADER_BYTES);
    try {
      for (let at = 0; at < bytes; ) {
        let header: FrameHeader | undefined;
        let reason = `only ${bytes - at} bytes of a frame are there`;
        if (at + FRAME_HEADER_BYTES <= bytes) {
          await handle.read(head, 0, FRAME_HEADER_BYTES, at);
          try {
            header = readHeader(head);
          } catch (error) {
            reason = (error as Error).message;
          }
        }
        if (header && header.seq > untilSeq) return;
        const length = FRAME_HEADER_BYTES + (header?.packedBytes ?? 0);
        if (!header || at + length > bytes) {
          yield fault(
            at,
            header ? `only ${bytes - at} of ${length} bytes of it are there` : reason,
          );
          at = await nextFrame(handle, at + 1, bytes);
          continue;
        }
        const frame = Buffer.allocUnsafe(length);
        await handle.read(frame, 0, length, at);
        try {
          checkFrame(frame);
          if (header.seq <= previous) {
            yield fault(at, `frame ${header.seq} follows frame ${previous}`);
          } else {
            previous = header.seq;
            yield { seq: header.seq, header, segment, offsetBytes: at, bytes: length };
          }
        } catch (error) {
          yield fault(at, (error as Error).message);
        }
        at += length;
      }
    } finally {
      await handle.close();
    }
  }
}

/** Where the next whole header begins at or behind `from`, or the end. */
async function nextFrame(handle: FileHandle, from: number, bytes: number): Promise<number> {
  const head = Buffer.alloc(FRAME_HEADER_BYTES);
  for (let at = from; at < bytes; ) {
    const chunk = Buffer.alloc(Math.min(SEARCH_BYTES, bytes - at));
    await handle.read(chunk, 0, chunk.length, at);
    for (let hit = chunk.indexOf(MAGIC); hit >= 0; hit = chunk.indexOf(MAGIC, hit + 1)) {
      if (at + hit + FRAME_HEADER_BYTES > bytes) break;
      await handle.read(head, 0, FRAME_HEADER_BYTES, at + hit);
      try {
        readHeader(head);
        return at + hit;
      } catch {
        // Bytes of a payload that look like a beginning.
      }
    }
    // The magic may lie across two chunks.
    at += Math.max(1, chunk.length - (MAGIC.length - 1));
    if (chunk.length < MAGIC.length) return bytes;
  }
  return bytes;
}
