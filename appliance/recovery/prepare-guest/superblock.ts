/** Says what a partition holds by its superblock. Reads only; nothing is activated. */
import type { ByteReader } from './bytes.ts';

export interface Content {
  type:
    | 'ext2'
    | 'ext3'
    | 'ext4'
    | 'xfs'
    | 'btrfs'
    | 'vfat'
    | 'swap'
    | 'luks'
    | 'lvm'
    | 'md'
    | 'zfs'
    | 'unknown';
  uuid: string | null;
  label: string | null;
}

const uuidText = (bytes: Buffer): string =>
  bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5');

const text = (bytes: Buffer): string | null => {
  const end = bytes.indexOf(0);
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end).trimEnd() || null;
};

const NOTHING: Content = { type: 'unknown', uuid: null, label: null };

/**
 * Layouts: ext (linux/fs/ext4/ext4.h), XFS (xfs_format.h), btrfs (btrfs_tree.h), swap (linux/swap.h, magic at the end
 * of the first page), LUKS 1 and 2, LVM2 label, md 1.x, FAT (EFI specification). Containers come first: an LVM or RAID
 * member may start with what is left of an older file system.
 */
export function identify(reader: ByteReader): Content {
  const head = reader.read(0, 0x11000);
  const at = (offset: number, length: number): Buffer =>
    offset + length <= head.length ? head.subarray(offset, offset + length) : Buffer.alloc(0);
  const latin = (offset: number, length: number): string => at(offset, length).toString('latin1');

  for (let sector = 0; sector < 4; sector++) {
    if (latin(sector * 512, 8) === 'LABELONE' && latin(sector * 512 + 24, 8) === 'LVM2 001') {
      return { type: 'lvm', uuid: null, label: null };
    }
  }
  for (const offset of [0, 4096]) {
    if (at(offset, 4).toString('hex') === 'fc4e2ba9') return { ...NOTHING, type: 'md' };
  }
  // md 0.90 and 1.0 sit at the end.
  const tail = Math.floor(reader.sizeBytes / 65536) * 65536 - 65536;
  const tail10 = Math.floor((reader.sizeBytes - 8192) / 4096) * 4096;
  for (const offset of [tail, tail10]) {
    if (offset > 0 && reader.read(offset, 4).toString('hex') === 'fc4e2ba9') {
      return { ...NOTHING, type: 'md' };
    }
  }
  if (at(0, 6).toString('hex') === '4c554b53babe') {
    return { type: 'luks', uuid: text(at(168, 40)), label: text(at(24, 48)) };
  }
  if (at(1024 + 56, 2).toString('hex') === '53ef') {
    const compat = at(1024 + 92, 4).readUInt32LE();
    const incompat = at(1024 + 96, 4).readUInt32LE();
    const roCompat = at(1024 + 100, 4).readUInt32LE();
    const uuid = uuidText(at(1024 + 104, 16));
    const label = text(at(1024 + 120, 16));
    // Extents, 64 bit, flexible groups, or the newer read-only features make it ext4; a journal makes it ext3.
    if ((incompat & 0x2c0) !== 0 || (roCompat & 0x4f8) !== 0) return { type: 'ext4', uuid, label };
    return { type: (compat & 4) !== 0 ? 'ext3' : 'ext2', uuid, label };
  }
  if (latin(0, 4) === 'XFSB') {
    return { type: 'xfs', uuid: uuidText(at(32, 16)), label: text(at(108, 12)) };
  }
  if (latin(0x10040, 8) === '_BHRfS_M') {
    return { type: 'btrfs', uuid: uuidText(at(0x10020, 16)), label: text(at(0x1012b, 256)) };
  }
  for (const page of [4096, 8192, 16384, 65536]) {
    const magic = latin(page - 10, 10);
    if (magic === 'SWAPSPACE2' || magic === 'SWAP-SPACE') {
      return { type: 'swap', uuid: uuidText(at(1036, 16)), label: text(at(1052, 16)) };
    }
  }
  if (at(510, 2).toString('hex') === '55aa') {
    const fat32 = latin(82, 5) === 'FAT32';
    if (fat32 || /^FAT1[26]/.test(latin(54, 5))) {
      const id = at(fat32 ? 67 : 39, 4)
        .readUInt32LE()
        .toString(16)
        .padStart(8, '0')
        .toUpperCase();
      return {
        type: 'vfat',
        uuid: `${id.slice(0, 4)}-${id.slice(4)}`,
        label: text(at(fat32 ? 71 : 43, 11)),
      };
    }
  }
  return NOTHING;
}
