/** A segment of the journal: a file of frames, one after the other, and how it is read. */
import { type FileHandle, open } from 'node:fs/promises';
import { undError } from '../../protocol/errors.ts';
import {
  checkFrame,
  claimedFrameBytes,
  FRAME_HEADER_BYTES,
  type FrameHeader,
  readHeader,
} from '../../protocol/frame.ts';

export interface JournalFrame {
  header: FrameHeader;
  /** Header and payload. */
  frame: Buffer;
}

/** `s`: the history, which stays; `m`: frames of mirror runs, which leave when they are applied. */
export type Family = 's' | 'm';
export const FAMILIES: readonly Family[] = ['s', 'm'];

export interface Segment {
  family: Family;
  firstSeq: number;
  path: string;
  bytes: number;
  /** What its frames unpack to; null: it was there at the start, and nobody has read it from end to end since. */
  unpackedBytes: number | null;
  /** Of the segment that is being written; for the others it is known by where the next begins. */
  lastSeq: number;
  /** When its first and its last frame were written, by the appliance's clock. */
  firstMs: number;
  lastMs: number;
}

/**
 * Blocks that were read again because issue order could not tell their content (run 0) are part of the history: a
 * replay from before them needs them.
 */
export const familyOf = (header: FrameHeader): Family =>
  header.kind === 'mirror' && header.run !== 0 ? 'm' : 's';

export const segmentName = (family: Family, firstSeq: number): string =>
  `${family}-${String(firstSeq).padStart(16, '0')}.seg`;

export function parseSegmentName(name: string): { family: Family; firstSeq: number } | null {
  const match = /^([sm])-(\d{16})\.seg$/.exec(name);
  return match && { family: match[1] as Family, firstSeq: Number(match[2]) };
}

const SCAN_BYTES = 1024 * 1024;
const NOTHING = Buffer.alloc(0);

/**
 * Reads a segment's frames one after the other, checking each, and the disk ahead of who takes them. It sees frames appended
 * meanwhile. Who reads to the end has seen every header: what the segment unpacks to is known from then on.
 */
export class SegmentScan {
  readonly segment: Segment;
  readonly #readBytes: number;
  #handle: FileHandle | undefined;
  #buffer: Buffer = NOTHING;
  #bufferAt = 0;
  /** What follows the whole frames of the buffer, on its way from the disk. */
  #ahead: { at: number; buffer: Promise<Buffer> } | undefined;
  #unpackedBytes = 0;
  offsetBytes = 0;

  /** @param readBytes how much is read ahead: little, when payloads are passed over */
  constructor(segment: Segment, readBytes = SCAN_BYTES) {
    this.segment = segment;
    this.#readBytes = readBytes;
  }

  /** Bytes [offset, offset + length), or null if the segment does not have them. */
  async #bytes(offset: number, length: number): Promise<Buffer | null> {
    const from = offset - this.#bufferAt;
    if (from >= 0 && from + length <= this.#buffer.length) {
      return this.#buffer.subarray(from, from + length);
    }
    if (offset + length > this.segment.bytes) return null;
    const ahead = this.#ahead;
    this.#ahead = undefined;
    let buffer = (await ahead?.buffer) ?? NOTHING;
    let at = ahead?.at ?? offset;
    // It was read before the rest was appended, or frames were passed over since.
    if (offset < at || offset + length > at + buffer.length) {
      buffer = await this.#read(offset, length);
      at = offset;
    }
    if (buffer.length < length) return null;
    // A fresh buffer each time: frames handed out are views into the old one.
    this.#buffer = buffer;
    this.#bufferAt = at;
    this.#readAhead(offset - at);
    return buffer.subarray(offset - at, offset - at + length);
  }

  async #read(offset: number, length: number): Promise<Buffer> {
    this.#handle ??= await open(this.segment.path, 'r');
    const size = Math.min(Math.max(length, this.#readBytes), this.segment.bytes - offset);
    const buffer = Buffer.allocUnsafe(size);
    const { bytesRead } = await this.#handle.read(buffer, 0, size, offset);
    return buffer.subarray(0, bytesRead);
  }

  /**
   * Whoever reads little passes over payloads, and nobody knows where it reads next.
   * @param within where in the buffer a frame begins
   */
  #readAhead(within: number): void {
    if (this.#readBytes < SCAN_BYTES) return;
    const from = within;
    while (within + FRAME_HEADER_BYTES <= this.#buffer.length) {
      const end = within + claimedFrameBytes(this.#buffer, within);
      if (end > this.#buffer.length) break;
      within = end;
    }
    const at = this.#bufferAt + within;
    // Nothing whole in it, or nothing behind it.
    if (within === from || at >= this.segment.bytes) return;
    const buffer = this.#read(at, 0);
    // Thrown where it is awaited; until then it is not unhandled.
    buffer.catch(() => {});
    this.#ahead = { at, buffer };
  }

  async peek(): Promise<FrameHeader | null> {
    if (this.offsetBytes >= this.segment.bytes) {
      this.segment.unpackedBytes ??= this.#unpackedBytes;
      return null;
    }
    const head = await this.#bytes(this.offsetBytes, FRAME_HEADER_BYTES);
    if (!head) throw torn(this.segment.bytes - this.offsetBytes);
    return readHeader(head);
  }

  /** Pass over the frame that `peek` showed, unread. */
  skip(header: FrameHeader): void {
    this.offsetBytes += FRAME_HEADER_BYTES + header.packedBytes;
    this.#unpackedBytes += header.unpackedBytes;
  }

  async next(): Promise<JournalFrame | null> {
    const header = await this.peek();
    if (!header) return null;
    const length = FRAME_HEADER_BYTES + header.packedBytes;
    const frame = await this.#bytes(this.offsetBytes, length);
    if (!frame) throw torn(this.segment.bytes - this.offsetBytes);
    checkFrame(frame);
    this.offsetBytes += length;
    this.#unpackedBytes += header.unpackedBytes;
    return { header, frame };
  }

  async close(): Promise<void> {
    await this.#handle?.close();
    this.#handle = undefined;
  }
}

const torn = (bytes: number) =>
  undError('UND_FRAME_INVALID', { seq: '?', reason: `only ${bytes} bytes of it are there` });
