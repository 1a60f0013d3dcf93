/**
 * The frame: what the stream, the journal and apply have in common. A frame is packed once by the agent and written to
 * the journal as it came. All integers are little-endian.
 *
 * Layout: a header of 96 bytes (below), then the packed payload. Unpacked, the payload is a table of extents (24 bytes
 * each, in the order of issue) followed by the data of the write extents, in the same order.
 *
 *  0 u32 magic   4 u8 version  5 u8 kind  6 u8 codec  7 u8 reserved   8 u64 stream epoch  16 u64 sequence number
 * 24 u32 extents 28 u32 unpacked bytes   32 u32 packed bytes         36 u32 CRC-32 of the packed payload
 * 40 u64 source's boot-time clock (ns)   48 u64 source's wall clock (ms, an annotation)   56 u64 capture position
 * 64 u64 mirror cursor (bytes)           72 u64 mirror bytes skipped 80 u32 mirror run     84 u16 disk index
 * 86 reserved                            88 u32 capture bytes ahead  92 u32 CRC-32 of bytes 0..91
 *
 * The other side may be hostile: every length is checked before anything is allocated or read by it.
 */
import { crc32 } from 'node:zlib';
import { BufferPool } from './buffer-pool.ts';
import { undError } from './errors.ts';
import { EXTENT_BYTES, EXTENT_KINDS, ExtentList } from './extent-list.ts';
import { compress, decompress, Turns } from './zstd.ts';

export const FRAME_MAGIC = 0x31465355; // "USF1"
export const FRAME_VERSION = 1;
export const FRAME_HEADER_BYTES = 96;
/** No frame unpacks to more than this; a packed payload is never larger than its unpacked form. */
export const MAX_UNPACKED_BYTES = 8 * 1024 * 1024;
export const MAX_EXTENTS = 65_536;
export const MAX_DISKS = 1024;
/** Block devices are addressed in these. */
export const SECTOR_BYTES = 512;

/** `stream`: captured writes in order; `mirror`: blocks read from the disk; `mark`: one JSON mark, never packed. */
export type FrameKind = 'stream' | 'mirror' | 'mark';
export type Codec = 'none' | 'zstd';
export type Compression = 'none' | 'fast' | 'balanced' | 'best';

const KINDS: readonly FrameKind[] = ['stream', 'mirror', 'mark'];
const CODECS: readonly Codec[] = ['none', 'zstd'];

export type FrameExtent =
  | {
      kind: 'write';
      /** Index of the disk within its job. */
      disk: number;
      offsetBytes: number;
      lengthBytes: number;
      data: Uint8Array;
    }
  | { kind: 'zero'; disk: number; offsetBytes: number; lengthBytes: number };

export interface FrameHeader {
  kind: FrameKind;
  codec: Codec;
  epoch: number;
  seq: number;
  extentCount: number;
  unpackedBytes: number;
  packedBytes: number;
  payloadCrc: number;
  /** Everything issued on the source before this moment of its boot-time clock is in this frame or an earlier one. */
  bootTimeNs: bigint;
  wallMs: number;
  /** Position in the capture's ring up to which this frame and all before it carry the records. */
  capturePos: number;
  /**
   * 0, or the frame was cut off inside a batch of the capture: it may carry records up to capturePos + aheadBytes, and
   * they come again if the agent dies before the batch's end. Until a frame's position is past that, none is a point.
   */
  aheadBytes: number;
  /** Mirror frames: the run has dealt with the disk up to here. */
  cursorBytes: number;
  /** Mirror frames: bytes of the run that were not sent because they are zero, equal, unallocated or excluded. */
  skippedBytes: number;
  run: number;
  disk: number;
}

export interface FrameInput {
  kind: FrameKind;
  epoch: number;
  seq: number;
  bootTimeNs: bigint;
  wallMs: number;
  capturePos: number;
  aheadBytes?: number;
  cursorBytes?: number;
  skippedBytes?: number;
  run?: number;
  disk?: number;
}

/**
 * zstd levels behind the four names a person chooses from. Negative ones trade size for time: -3 takes a third to two
 * thirds of the processor time of 1 on a source server, and what does not compress costs next to nothing.
 */
const LEVEL: Record<Exclude<Compression, 'none'>, number> = { fast: -3, balanced: 2, best: 9 };

/** Below this zstd saves less than a frame header costs. */
const MIN_COMPRESS_BYTES = 256;

const invalid = (seq: number | bigint | string, reason: string) =>
  undError('UND_FRAME_INVALID', { seq, reason });

const checkUnsigned = (value: number, name: string, seq: number): void => {
  if (!Number.isSafeInteger(value) || value < 0) throw invalid(seq, `${name} is ${value}`);
};

function encodeHeader(
  input: FrameInput,
  codec: Codec,
  extentCount: number,
  unpackedBytes: number,
  payload: Uint8Array,
): Buffer {
  const header = Buffer.alloc(FRAME_HEADER_BYTES);
  for (const name of ['epoch', 'seq', 'wallMs', 'capturePos'] as const) {
    checkUnsigned(input[name], name, input.seq);
  }
  header.writeUInt32LE(FRAME_MAGIC, 0);
  header.writeUInt8(FRAME_VERSION, 4);
  header.writeUInt8(KINDS.indexOf(input.kind) + 1, 5);
  header.writeUInt8(CODECS.indexOf(codec), 6);
  header.writeBigUInt64LE(BigInt(input.epoch), 8);
  header.writeBigUInt64LE(BigInt(input.seq), 16);
  header.writeUInt32LE(extentCount, 24);
  header.writeUInt32LE(unpackedBytes, 28);
  header.writeUInt32LE(payload.length, 32);
  header.writeUInt32LE(crc32(payload), 36);
  header.writeBigUInt64LE(input.bootTimeNs, 40);
  header.writeBigUInt64LE(BigInt(input.wallMs), 48);
  header.writeBigUInt64LE(BigInt(input.capturePos), 56);
  header.writeBigUInt64LE(BigInt(input.cursorBytes ?? 0), 64);
  header.writeBigUInt64LE(BigInt(input.skippedBytes ?? 0), 72);
  header.writeUInt32LE(input.run ?? 0, 80);
  header.writeUInt16LE(input.disk ?? 0, 84);
  header.writeUInt32LE(Math.min(input.aheadBytes ?? 0, 0xffff_ffff), 88);
  header.writeUInt32LE(crc32(header.subarray(0, 92)), 92);
  return header;
}

/** Pack extents into one frame; see packList. */
export async function packFrame(
  input: FrameInput,
  extents: readonly FrameExtent[],
  compression: Compression,
): Promise<Buffer> {
  return packList(input, ExtentList.of(extents), compression);
}

/**
 * Pack extents into one frame, header and payload in one buffer. Compression runs in the thread pool; what does not
 * shrink is stored as it is.
 * @throws UND_FRAME_INVALID if they are too many or too large
 */
export async function packList(
  input: FrameInput,
  extents: ExtentList,
  compression: Compression,
): Promise<Buffer> {
  if (extents.count > MAX_EXTENTS) throw invalid(input.seq, `${extents.count} extents`);
  const unpackedBytes = extents.bytes;
  if (unpackedBytes > MAX_UNPACKED_BYTES) throw invalid(input.seq, `${unpackedBytes} bytes`);
  if (compression === 'none' || unpackedBytes < MIN_COMPRESS_BYTES) {
    const frame = allocateFrame(unpackedBytes);
    const raw = frame.subarray(FRAME_HEADER_BYTES);
    extents.layOut(raw);
    encodeHeader(input, 'none', extents.count, unpackedBytes, raw).copy(frame);
    return frame;
  }
  await packing.turn();
  let raw: Buffer | undefined;
  try {
    raw = scratch.take(unpackedBytes);
    const whole = raw;
    extents.layOut(whole);
    return await compress(whole, LEVEL[compression], (pieces) => {
      const packedBytes = pieces.reduce((sum, { length }) => sum + length, 0);
      const smaller = packedBytes < whole.length;
      const frame = allocateFrame(smaller ? packedBytes : whole.length);
      let at = FRAME_HEADER_BYTES;
      for (const piece of smaller ? pieces : [whole]) at += piece.copy(frame, at);
      const payload = frame.subarray(FRAME_HEADER_BYTES);
      const codec = smaller ? 'zstd' : 'none';
      encodeHeader(input, codec, extents.count, unpackedBytes, payload).copy(frame);
      return frame;
    });
  } finally {
    if (raw) scratch.give(raw);
    packing.done();
  }
}

/**
 * Room in front of a frame that was packed here, so that a link can put its prefix there and write both in one piece:
 * TLS copies what is written in two.
 */
export const FRAME_ROOM_BYTES = 8;
const wholes = new WeakMap<Buffer, Buffer>();

const frames = new BufferPool();

function allocateFrame(payloadBytes: number): Buffer {
  const whole = frames.take(FRAME_ROOM_BYTES + FRAME_HEADER_BYTES + payloadBytes);
  const frame = whole.subarray(FRAME_ROOM_BYTES);
  wholes.set(frame, whole);
  return frame;
}

/** The frame with FRAME_ROOM_BYTES of room in front of it, or undefined if it has none. */
export const withRoom = (frame: Buffer): Buffer | undefined => wholes.get(frame);

/** Nobody looks at a frame that was packed here any more: its memory is another's soon. */
export function recycleFrame(frame: Buffer): void {
  const whole = wholes.get(frame);
  if (!whole) return;
  wholes.delete(frame);
  frames.give(whole);
}

/** Buffers that frames are put together in. */
const scratch = new BufferPool();
/** More at once would each hold one. */
const packing = new Turns();

/** Pack one mark (see protocol/marks.ts) into a frame of its own. */
export function packMark(input: Omit<FrameInput, 'kind'>, mark: unknown): Buffer {
  const payload = Buffer.from(JSON.stringify(mark));
  if (payload.length > MAX_MARK_BYTES)
    throw invalid(input.seq, `a mark of ${payload.length} bytes`);
  return Buffer.concat([
    encodeHeader({ ...input, kind: 'mark' }, 'none', 0, payload.length, payload),
    payload,
  ]);
}

export const MAX_MARK_BYTES = 65_536;

function readSafe(buffer: Buffer, at: number, name: string, seq: bigint): number {
  const value = buffer.readBigUInt64LE(at);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw invalid(seq, `${name} is ${value}`);
  return Number(value);
}

/** How long the frame at `at` claims to be, header and all; unchecked, and its header must be there. */
export const claimedFrameBytes = (buffer: Buffer, at: number): number =>
  FRAME_HEADER_BYTES + buffer.readUInt32LE(at + 32);

/**
 * Read and check a header; every length in it is within bounds afterwards.
 * @throws UND_FRAME_INVALID, UND_FRAME_CHECKSUM (header)
 */
export function readHeader(buffer: Buffer): FrameHeader {
  if (buffer.length < FRAME_HEADER_BYTES) throw invalid('?', 'it is shorter than a frame header');
  const rawSeq = buffer.readBigUInt64LE(16);
  if (crc32(buffer.subarray(0, 92)) !== buffer.readUInt32LE(92)) {
    throw undError('UND_FRAME_CHECKSUM', {
      seq: rawSeq,
      epoch: buffer.readBigUInt64LE(8),
      part: 'header',
    });
  }
  // Only after the checksum: a damaged frame is sent again, one that was made wrong stops its job.
  if (buffer.readUInt32LE(0) !== FRAME_MAGIC) throw invalid(rawSeq, 'it does not begin as a frame');
  const version = buffer.readUInt8(4);
  if (version !== FRAME_VERSION) throw invalid(rawSeq, `its version is ${version}`);
  const kind = KINDS[buffer.readUInt8(5) - 1];
  if (kind === undefined) throw invalid(rawSeq, `its kind is ${buffer.readUInt8(5)}`);
  const codec = CODECS[buffer.readUInt8(6)];
  if (codec === undefined) throw invalid(rawSeq, `its codec is ${buffer.readUInt8(6)}`);
  const extentCount = buffer.readUInt32LE(24);
  const unpackedBytes = buffer.readUInt32LE(28);
  const packedBytes = buffer.readUInt32LE(32);
  if (extentCount > MAX_EXTENTS) throw invalid(rawSeq, `it claims ${extentCount} extents`);
  if (unpackedBytes > MAX_UNPACKED_BYTES) {
    throw invalid(rawSeq, `it claims ${unpackedBytes} unpacked bytes`);
  }
  if (packedBytes > unpackedBytes) {
    throw invalid(rawSeq, `it claims ${packedBytes} packed of ${unpackedBytes} unpacked bytes`);
  }
  if (codec === 'none' && packedBytes !== unpackedBytes) {
    throw invalid(rawSeq, `it claims ${packedBytes} stored of ${unpackedBytes} bytes`);
  }
  if (kind === 'mark') {
    if (codec !== 'none' || extentCount !== 0 || unpackedBytes > MAX_MARK_BYTES) {
      throw invalid(rawSeq, 'it is not a mark as marks are');
    }
  } else if (unpackedBytes < extentCount * EXTENT_BYTES) {
    throw invalid(rawSeq, `${extentCount} extents do not fit in ${unpackedBytes} bytes`);
  }
  return {
    kind,
    codec,
    epoch: readSafe(buffer, 8, 'epoch', rawSeq),
    seq: readSafe(buffer, 16, 'seq', rawSeq),
    extentCount,
    unpackedBytes,
    packedBytes,
    payloadCrc: buffer.readUInt32LE(36),
    bootTimeNs: buffer.readBigUInt64LE(40),
    wallMs: readSafe(buffer, 48, 'wall clock', rawSeq),
    capturePos: readSafe(buffer, 56, 'capture position', rawSeq),
    aheadBytes: buffer.readUInt32LE(88),
    cursorBytes: readSafe(buffer, 64, 'mirror cursor', rawSeq),
    skippedBytes: readSafe(buffer, 72, 'skipped bytes', rawSeq),
    run: buffer.readUInt32LE(80),
    disk: buffer.readUInt16LE(84),
  };
}

/**
 * Check that a whole frame (header and payload, nothing after it) is what its header says.
 * @throws UND_FRAME_INVALID, UND_FRAME_CHECKSUM
 */
export function checkFrame(frame: Buffer): FrameHeader {
  const header = readHeader(frame);
  if (frame.length !== FRAME_HEADER_BYTES + header.packedBytes) {
    throw invalid(
      header.seq,
      `it claims ${header.packedBytes} bytes and carries ${frame.length - FRAME_HEADER_BYTES}`,
    );
  }
  if (crc32(frame.subarray(FRAME_HEADER_BYTES)) !== header.payloadCrc) {
    throw undError('UND_FRAME_CHECKSUM', { seq: header.seq, epoch: header.epoch, part: 'payload' });
  }
  return header;
}

/**
 * A frame's extents by columns: what takes a frame apart for hundreds of thousands of small writes a second has no time
 * for an object, two big integers and a view of each.
 */
export interface ExtentTable {
  count: number;
  /** Index of the disk within its job. */
  disks: Uint16Array;
  offsetsBytes: Float64Array;
  lengthsBytes: Float64Array;
  /** Where an extent's data begin in `raw`; -1: it is zero. */
  dataAt: Int32Array;
  raw: Buffer;
  /** Nobody looks at `raw` any more: its memory is another's. Not calling it leaves it to the garbage collection. */
  release?(): void;
}

/**
 * Unpack a checked frame's extents, in the order of issue.
 * @param diskSizes size in bytes of each disk by its index; an extent outside them is refused
 * @throws UND_FRAME_INVALID
 */
export async function unpackTable(
  header: FrameHeader,
  payload: Buffer,
  diskSizes: readonly number[],
): Promise<ExtentTable> {
  const { seq, kind, codec, unpackedBytes } = header;
  if (kind === 'mark') return readTable(seq, 0, Buffer.alloc(0), diskSizes);
  if (codec === 'none') {
    if (payload.length !== unpackedBytes) {
      throw invalid(seq, `it carries ${payload.length}, not ${unpackedBytes} bytes`);
    }
    return readTable(seq, header.extentCount, payload, diskSizes);
  }
  const raw = unpacked.take(unpackedBytes);
  const release = () => unpacked.give(raw);
  try {
    const bytes = await decompress(payload, unpackedBytes, (pieces) =>
      pieces.reduce((at, piece) => at + piece.copy(raw, at), 0),
    ).catch((cause) => {
      const reason = `its payload does not unpack (${(cause as Error).message})`;
      throw undError('UND_FRAME_INVALID', { seq, reason }, { cause });
    });
    if (bytes !== unpackedBytes) {
      throw invalid(seq, `it unpacks to ${bytes}, not ${unpackedBytes} bytes`);
    }
    return { ...readTable(seq, header.extentCount, raw, diskSizes), release };
  } catch (error) {
    release();
    throw error;
  }
}

/** What frames are unpacked into: of two batches of apply. */
const unpacked = new BufferPool(48 * 1024 * 1024);

/** Reads and checks the table in front of an unpacked payload. */
function readTable(
  seq: number,
  count: number,
  raw: Buffer,
  diskSizes: readonly number[],
): ExtentTable {
  const disks = new Uint16Array(count);
  const offsetsBytes = new Float64Array(count);
  const lengthsBytes = new Float64Array(count);
  const dataAt = new Int32Array(count);
  const view = new DataView(raw.buffer, raw.byteOffset, raw.length);
  let at = count * EXTENT_BYTES;
  for (let index = 0; index < count; index++) {
    const row = index * EXTENT_BYTES;
    const kind = EXTENT_KINDS[view.getUint8(row)];
    if (kind === undefined) throw invalid(seq, `extent ${index} is of an unknown kind`);
    const disk = view.getUint16(row + 2, true);
    const sizeBytes = diskSizes[disk];
    if (sizeBytes === undefined) throw invalid(seq, `extent ${index} names disk ${disk}`);
    // Not exact from 2^53 on, which is far outside of any disk: refused all the same.
    const offset = view.getUint32(row + 8, true) + view.getUint32(row + 12, true) * 2 ** 32;
    const length = view.getUint32(row + 16, true) + view.getUint32(row + 20, true) * 2 ** 32;
    if (length === 0 || offset + length > sizeBytes) {
      throw invalid(
        seq,
        `extent ${index} (${length} bytes at ${offset}) is outside disk ${disk} of ${sizeBytes} bytes`,
      );
    }
    disks[index] = disk;
    offsetsBytes[index] = offset;
    lengthsBytes[index] = length;
    if (kind === 'zero') {
      dataAt[index] = -1;
      continue;
    }
    if (at + length > raw.length) {
      throw invalid(seq, `the data of extent ${index} is not all there`);
    }
    dataAt[index] = at;
    at += length;
  }
  if (at !== raw.length) throw invalid(seq, `${raw.length - at} bytes belong to no extent`);
  return { count, disks, offsetsBytes, lengthsBytes, dataAt, raw };
}

/**
 * The same, an object for each. The data are views into one buffer.
 * @throws UND_FRAME_INVALID
 */
export async function unpackFrame(
  header: FrameHeader,
  payload: Buffer,
  diskSizes: readonly number[],
): Promise<FrameExtent[]> {
  const table = await unpackTable(header, payload, diskSizes);
  return Array.from(table.disks, (disk, index): FrameExtent => {
    const offsetBytes = table.offsetsBytes[index]!;
    const lengthBytes = table.lengthsBytes[index]!;
    const at = table.dataAt[index]!;
    if (at < 0) return { kind: 'zero', disk, offsetBytes, lengthBytes };
    const data = table.raw.subarray(at, at + lengthBytes);
    return { kind: 'write', disk, offsetBytes, lengthBytes, data };
  });
}
