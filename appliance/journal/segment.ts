/** A segment of the journal: a file of frames, one after the other, and how it is read. */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { undError } from '../../protocol/errors.ts';
import {
  checkFrame,
  claimedFrameBytes,
  FRAME_HEADER_BYTES,
  type FrameHeader,
  readHeader,
} from '../../protocol/frame.ts';
import { BLOCK_BYTES, openDirect, READ_BYTES, readPieces } from './direct-buffers.ts';

export interface JournalFrame {
  header: FrameHeader;
  /** Header and payload. */
  frame: Buffer;
  /** Nobody looks at `frame`, or at a view of it, any more: its memory is another's. Not calling it costs a new piece. */
  release?(): void;
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

/** What is read past the page cache at least: less is the end of the segment that is being written. */
const DIRECT_BYTES = 64 * 1024;

/** What was read of a segment, for as long as the scan or a frame is in it. */
class Chunk {
  readonly at: number;
  readonly data: Buffer;
  readonly #piece: Buffer | null;
  #users = 1;

  /** @param piece what `data` lies in, to be given back */
  constructor(at: number, data: Buffer, piece: Buffer | null = null) {
    this.at = at;
    this.data = data;
    this.#piece = piece;
  }

  /** What it returns may be called more than once. */
  use(): () => void {
    this.#users++;
    let over = false;
    return () => {
      if (over) return;
      over = true;
      this.leave();
    };
  }

  /** Once for who made it. */
  leave(): void {
    if (--this.#users === 0 && this.#piece) readPieces.give(this.#piece);
  }
}

const NOTHING = new Chunk(0, Buffer.alloc(0));

/**
 * Reads a segment's frames one after the other, checking each, and the disk ahead of who takes them. It sees frames appended
 * meanwhile. Who reads to the end has seen every header: what the segment unpacks to is known from then on.
 */
export class SegmentScan {
  readonly segment: Segment;
  readonly #readBytes: number;
  #handle: FileHandle | undefined;
  /** Past the page cache: it is read once. Null where that does not go. */
  #direct: FileHandle | null | undefined;
  #chunk = NOTHING;
  /** What follows the whole frames of the chunk, on its way from the disk. */
  #ahead: Promise<Chunk> | undefined;
  #unpackedBytes = 0;
  offsetBytes = 0;

  /** @param readBytes how much is read ahead: little, when payloads are passed over */
  constructor(segment: Segment, readBytes = READ_BYTES) {
    this.segment = segment;
    this.#readBytes = readBytes;
  }

  /** Bytes [offset, offset + length), in the chunk from then on; null if the segment does not have them. */
  async #bytes(offset: number, length: number): Promise<Buffer | null> {
    const within = this.#within(this.#chunk, offset, length);
    if (within) return within;
    if (offset + length > this.segment.bytes) return null;
    const ahead = this.#ahead;
    this.#ahead = undefined;
    let chunk = await ahead;
    // It was read before the rest was appended, or frames were passed over since.
    if (!chunk || !this.#within(chunk, offset, length)) {
      chunk?.leave();
      chunk = await this.#read(offset, length);
    }
    this.#chunk.leave();
    this.#chunk = chunk;
    const found = this.#within(chunk, offset, length);
    if (found) this.#readAhead(offset - chunk.at);
    return found;
  }

  #within({ at, data }: Chunk, offset: number, length: number): Buffer | null {
    const from = offset - at;
    return from >= 0 && from + length <= data.length ? data.subarray(from, from + length) : null;
  }

  async #read(offset: number, length: number): Promise<Chunk> {
    const direct = await this.#readDirect(offset, length);
    if (direct) return direct;
    this.#handle ??= await open(this.segment.path, 'r');
    const size = Math.min(Math.max(length, this.#readBytes), this.segment.bytes - offset);
    const buffer = Buffer.allocUnsafe(size);
    const { bytesRead } = await this.#handle.read(buffer, 0, size, offset);
    return new Chunk(offset, buffer.subarray(0, bytesRead));
  }

  /** Whole blocks only; null where that is not what is wanted, or does not go: the plain way says why. */
  async #readDirect(offset: number, length: number): Promise<Chunk | null> {
    if (this.#readBytes < READ_BYTES || this.#direct === null) return null;
    const from = offset - (offset % BLOCK_BYTES);
    const bytes = this.segment.bytes - from;
    const size = Math.min(READ_BYTES, bytes - (bytes % BLOCK_BYTES));
    if (size < DIRECT_BYTES || from + size < offset + length) return null;
    this.#direct ??= await openDirect(this.segment.path, constants.O_RDONLY);
    if (!this.#direct) return null;
    const piece = readPieces.take();
    if (!piece) return null;
    try {
      const { bytesRead } = await this.#direct.read(piece, 0, size, from);
      if (bytesRead === size) {
        return new Chunk(offset, piece.subarray(offset - from, size), piece);
      }
    } catch {
      // The plain way says why.
    }
    readPieces.give(piece);
    await this.#direct.close();
    this.#direct = null;
    return null;
  }

  /**
   * Whoever reads little passes over payloads, and nobody knows where it reads next.
   * @param within where in the chunk a frame begins
   */
  #readAhead(within: number): void {
    if (this.#readBytes < READ_BYTES) return;
    const { at, data } = this.#chunk;
    const from = within;
    while (within + FRAME_HEADER_BYTES <= data.length) {
      const end = within + claimedFrameBytes(data, within);
      if (end > data.length) break;
      within = end;
    }
    // Nothing whole in it, or nothing behind it.
    if (within === from || at + within >= this.segment.bytes) return;
    this.#ahead = this.#read(at + within, 0);
    // Thrown where it is awaited; until then it is not unhandled.
    this.#ahead.catch(() => {});
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
    return { header, frame, release: this.#chunk.use() };
  }

  async close(): Promise<void> {
    const ahead = this.#ahead;
    this.#ahead = undefined;
    await ahead?.then((chunk) => chunk.leave()).catch(() => {});
    this.#chunk.leave();
    this.#chunk = NOTHING;
    await this.#handle?.close();
    this.#handle = undefined;
    await this.#direct?.close();
    this.#direct = undefined;
  }
}

const torn = (bytes: number) =>
  undError('UND_FRAME_INVALID', { seq: '?', reason: `only ${bytes} bytes of it are there` });
