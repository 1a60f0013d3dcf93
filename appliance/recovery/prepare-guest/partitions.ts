/**
 * Reads partition tables: GPT (UEFI specification 2.10, chapter 5.3) and MBR with logical partitions. Own code because
 * the appliance's kernel must not scan a guest's disk, and because the tables come from a machine that we don't trust.
 */
import type { ByteReader } from './bytes.ts';

export interface Partition {
  /** As the kernel counts them: `vda3` is 3. 0 is the whole disk. */
  number: number;
  startBytes: number;
  sizeBytes: number;
  /** Lower case; what `PARTUUID=` names. */
  partUuid: string | null;
  /** GPT type (lower case) or MBR type as two hex digits. */
  type: string;
}

export const ESP_TYPE = 'c12a7328-f81f-11d2-ba4b-00a0c93ec93b';
const MAX_ENTRIES = 1024;

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c >>> 0;
});

/** CRC-32 as GPT has it (IEEE 802.3). */
export function crc32(data: Uint8Array): number {
  let c = 0xffffffff;
  for (const byte of data) c = ((CRC_TABLE[(c ^ byte) & 0xff] as number) ^ (c >>> 8)) >>> 0;
  return (c ^ 0xffffffff) >>> 0;
}

/** A GUID in its on-disk form: the first three fields are little-endian. */
export function guid(bytes: Buffer): string {
  const part = (from: number, to: number, reverse: boolean) => {
    const slice = Buffer.from(bytes.subarray(from, to));
    return (reverse ? slice.reverse() : slice).toString('hex');
  };
  return [
    part(0, 4, true),
    part(4, 6, true),
    part(6, 8, true),
    part(8, 10, false),
    part(10, 16, false),
  ].join('-');
}

function readGpt(reader: ByteReader, sectorBytes: number, headerLba: number): Partition[] | null {
  const header = reader.read(headerLba * sectorBytes, sectorBytes);
  if (header.length < 92 || header.toString('latin1', 0, 8) !== 'EFI PART') return null;
  const headerSize = header.readUInt32LE(12);
  if (headerSize < 92 || headerSize > header.length) return null;
  const checked = Buffer.from(header.subarray(0, headerSize));
  checked.writeUInt32LE(0, 16);
  if (crc32(checked) !== header.readUInt32LE(16)) return null;
  const entriesLba = Number(header.readBigUInt64LE(72));
  const count = header.readUInt32LE(80);
  const entryBytes = header.readUInt32LE(84);
  if (count > MAX_ENTRIES || entryBytes < 128 || entryBytes > 4096) return null;
  const entries = reader.read(entriesLba * sectorBytes, count * entryBytes);
  if (entries.length < count * entryBytes) return null;
  if (crc32(entries) !== header.readUInt32LE(88)) return null;
  const found: Partition[] = [];
  for (let index = 0; index < count; index++) {
    const entry = entries.subarray(index * entryBytes, (index + 1) * entryBytes);
    const type = guid(entry.subarray(0, 16));
    if (/^[0-]*$/.test(type)) continue;
    const first = Number(entry.readBigUInt64LE(32));
    const last = Number(entry.readBigUInt64LE(40));
    if (last < first || (last + 1) * sectorBytes > reader.sizeBytes) continue;
    found.push({
      number: index + 1,
      startBytes: first * sectorBytes,
      sizeBytes: (last - first + 1) * sectorBytes,
      partUuid: guid(entry.subarray(16, 32)),
      type,
    });
  }
  return found;
}

const EXTENDED = new Set([0x05, 0x0f, 0x85]);

function readMbr(reader: ByteReader): Partition[] | null {
  const sector = reader.read(0, 512);
  if (sector.length < 512 || sector.readUInt16LE(510) !== 0xaa55) return null;
  const signature = sector.readUInt32LE(440).toString(16).padStart(8, '0');
  const found: Partition[] = [];
  const add = (number: number, type: number, startSector: number, sectors: number) => {
    if ((startSector + sectors) * 512 > reader.sizeBytes) return;
    found.push({
      number,
      startBytes: startSector * 512,
      sizeBytes: sectors * 512,
      partUuid: `${signature}-${number.toString(16).padStart(2, '0')}`,
      type: type.toString(16).padStart(2, '0'),
    });
  };
  const entryOf = (table: Buffer, index: number) => {
    const at = 446 + index * 16;
    return {
      status: table.readUInt8(at),
      type: table.readUInt8(at + 4),
      start: table.readUInt32LE(at + 8),
      sectors: table.readUInt32LE(at + 12),
    };
  };
  let extended: number | null = null;
  for (let index = 0; index < 4; index++) {
    const entry = entryOf(sector, index);
    // A boot sector of a file system has the same signature; its "entries" are code.
    if (entry.status !== 0 && entry.status !== 0x80) return null;
    if (entry.type === 0 || entry.sectors === 0) continue;
    if (EXTENDED.has(entry.type)) extended ??= entry.start;
    else add(index + 1, entry.type, entry.start, entry.sectors);
  }
  if (extended !== null) {
    const seen = new Set<number>();
    let at = extended;
    for (let number = 5; number < 5 + 128 && !seen.has(at); number++) {
      seen.add(at);
      const table = reader.read(at * 512, 512);
      if (table.length < 512 || table.readUInt16LE(510) !== 0xaa55) break;
      const logical = entryOf(table, 0);
      if (logical.type !== 0 && logical.sectors > 0) {
        add(number, logical.type, at + logical.start, logical.sectors);
      }
      const next = entryOf(table, 1);
      if (!EXTENDED.has(next.type) || next.sectors === 0) break;
      at = extended + next.start;
    }
  }
  return found;
}

/** The partitions of a disk; a disk without a table is one partition with number 0. */
export function readPartitions(reader: ByteReader): Partition[] {
  const mbr = readMbr(reader);
  const protective = mbr?.some((partition) => partition.type === 'ee') ?? false;
  for (const sectorBytes of [512, 4096]) {
    const lastLba = Math.floor(reader.sizeBytes / sectorBytes) - 1;
    // The backup at the end counts only behind a protective MBR: an old one may be left on a reused disk.
    const gpt =
      readGpt(reader, sectorBytes, 1) ??
      (protective && lastLba > 1 ? readGpt(reader, sectorBytes, lastLba) : null);
    if (gpt) return gpt;
  }
  if (mbr && mbr.length > 0 && !protective) return mbr;
  return [{ number: 0, startBytes: 0, sizeBytes: reader.sizeBytes, partUuid: null, type: '' }];
}
