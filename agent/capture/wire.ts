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

/** `body` is the records and the data behind a header; the records' data are views of it. */
export function parseBatchBody(header: BatchHeader, body: Buffer): CaptureBatch {
  const records: CaptureRecord[] = [];
  let dataAt = header.records * RECORD_BYTES;
  for (let i = 0; i < header.records; i++) {
    const at = i * RECORD_BYTES;
    const kind = KINDS[body.readUInt8(at)];
    if (!kind) throw new Error(`capture helper: record of kind ${body.readUInt8(at)}`);
    const record: CaptureRecord = {
      kind,
      disk: kind === 'mark' ? -1 : body.readUInt16LE(at + 2),
      lengthBytes: body.readUInt32LE(at + 4),
      offsetBytes: Number(body.readBigUInt64LE(at + 8)),
      bootNs: body.readBigUInt64LE(at + 16),
      pos: body.readBigUInt64LE(at + 32),
    };
    if (kind === 'mark') record.markId = body.readBigUInt64LE(at + 24);
    if (kind === 'zero' && body.readUInt8(at + 1) & FLAG_DISCARD) record.discard = true;
    if (kind === 'write') {
      record.data = body.subarray(dataAt, dataAt + record.lengthBytes);
      dataAt += record.lengthBytes;
    }
    records.push(record);
  }
  if (dataAt !== body.length) throw new Error('capture helper: a batch and its data disagree');
  return {
    records,
    startPos: header.startPos,
    endPos: header.endPos,
    order: header.lost ? 'lost' : 'held',
    gapBefore: header.gap,
  };
}
