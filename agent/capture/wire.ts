/**
 * What the helper writes on its data pipe (helper/run.c, `struct batch` and `struct wire`), all little endian:
 *
 *   batch   u32 magic, u32 records, u64 startPos, u64 endPos, u64 dataBytes, u32 lost, u32 gap
 *   record  u8 kind, u8 flags, u16 disk, u32 length, u64 offset, u64 bootNs, u64 markId, u64 pos
 *           (once per record)
 *   data    of the records of kind write, one after the other
 */
import type { CaptureBatch, CaptureRecord } from './capture.ts';

export const BATCH_HEADER_BYTES = 40;
export const RECORD_BYTES = 40;
const MAGIC = 0x31424355;
const KINDS = [undefined, 'write', 'zero', 'mark', 'opaque'] as const;
const KIND_WRITE = 1;
const KIND_MARK = 3;
const FLAG_DISCARD = 2;

export type BatchHeader = {
  records: number;
  dataBytes: number;
  startPos: bigint;
  endPos: bigint;
  lost: boolean;
  gap: boolean;
};

export function parseBatchHeader(bytes: Buffer): BatchHeader {
  if (bytes.readUInt32LE(0) !== MAGIC) throw new Error('capture helper: not a batch');
  return {
    records: bytes.readUInt32LE(4),
    startPos: bytes.readBigUInt64LE(8),
    endPos: bytes.readBigUInt64LE(16),
    dataBytes: Number(bytes.readBigUInt64LE(24)),
    lost: bytes.readUInt32LE(32) !== 0,
    gap: bytes.readUInt32LE(36) !== 0,
  };
}

/**
 * The records of a batch by columns, read where the helper wrote them: a busy source writes tens of thousands of small
 * blocks a second, and an object, three big integers and a view for each of them would cost more than all that is done
 * with it. Whoever has the time iterates over objects.
 */
export class CaptureRecords {
  readonly count: number;
  /** The data of all writes, one after the other, are its end. */
  readonly body: Buffer;
  readonly hasMark: boolean;
  readonly #view: DataView;

  /**
   * @param body `count` records, and the data of the writes among them
   * @throws if it is not that
   */
  constructor(count: number, body: Buffer) {
    this.count = count;
    this.body = body;
    this.#view = new DataView(body.buffer, body.byteOffset, body.length);
    let bytes = count * RECORD_BYTES;
    let hasMark = false;
    for (let i = 0; i < count; i++) {
      const kind = this.#view.getUint8(i * RECORD_BYTES);
      if (!KINDS[kind]) throw new Error(`capture helper: record of kind ${kind}`);
      if (kind === KIND_WRITE) bytes += this.lengthBytes(i);
      if (kind === KIND_MARK) hasMark = true;
    }
    if (bytes !== body.length) throw new Error('capture helper: a batch and its data disagree');
    this.hasMark = hasMark;
  }

  /** Where the data of the first write begin in `body`; those of the next ones follow. */
  get dataAt(): number {
    return this.count * RECORD_BYTES;
  }

  kind(i: number): CaptureRecord['kind'] {
    return KINDS[this.#view.getUint8(i * RECORD_BYTES)]!;
  }

  /** -1 of a mark. */
  disk(i: number): number {
    return this.kind(i) === 'mark' ? -1 : this.#view.getUint16(i * RECORD_BYTES + 2, true);
  }

  lengthBytes(i: number): number {
    return this.#view.getUint32(i * RECORD_BYTES + 4, true);
  }

  offsetBytes(i: number): number {
    const at = i * RECORD_BYTES + 8;
    return this.#view.getUint32(at, true) + this.#view.getUint32(at + 4, true) * 2 ** 32;
  }

  bootNs(i: number): bigint {
    return this.#view.getBigUint64(i * RECORD_BYTES + 16, true);
  }

  markId(i: number): bigint {
    return this.#view.getBigUint64(i * RECORD_BYTES + 24, true);
  }

  *[Symbol.iterator](): Generator<CaptureRecord> {
    let dataAt = this.dataAt;
    for (let i = 0; i < this.count; i++) {
      const at = i * RECORD_BYTES;
      const kind = this.kind(i);
      const record: CaptureRecord = {
        kind,
        disk: this.disk(i),
        lengthBytes: this.lengthBytes(i),
        offsetBytes: this.offsetBytes(i),
        bootNs: this.bootNs(i),
        pos: this.#view.getBigUint64(at + 32, true),
      };
      if (kind === 'mark') record.markId = this.markId(i);
      if (kind === 'zero' && this.#view.getUint8(at + 1) & FLAG_DISCARD) record.discard = true;
      if (kind === 'write') {
        record.data = this.body.subarray(dataAt, dataAt + record.lengthBytes);
        dataAt += record.lengthBytes;
      }
      yield record;
    }
  }
}

/**
 * `body` is the records and the data behind a header.
 * @throws if it is not
 */
export function parseBatchBody(header: BatchHeader, body: Buffer): CaptureBatch {
  return {
    records: new CaptureRecords(header.records, body),
    startPos: header.startPos,
    endPos: header.endPos,
    order: header.lost ? 'lost' : 'held',
    gapBefore: header.gap,
  };
}
