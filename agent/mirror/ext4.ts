/**
 * Which blocks of an ext2/3/4 file system are free, read from its own block bitmaps on the disk.
 * Layout: https://www.kernel.org/doc/html/latest/filesystems/ext4/globals.html
 */
import type { Span } from './touched.ts';

/** Reads bytes of the partition; offsets and lengths that it is asked for are multiples of 4 KiB. */
export type ReadBytes = (offsetBytes: number, lengthBytes: number) => Promise<Buffer>;

export type Ext4Free =
  | { kind: 'free'; spans: Span[] }
  /** The map cannot be used; everything is to be copied. */
  | { kind: 'unusable'; reason: string };

const MAGIC = 0xef53;
const INCOMPAT_META_BG = 0x10;
const INCOMPAT_64BIT = 0x80;
/** filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed, largedir, inline_data, encrypt, casefold */
const INCOMPAT_KNOWN =
  0x2 |
  0x4 |
  0x10 |
  0x40 |
  0x80 |
  0x100 |
  0x200 |
  0x400 |
  0x1000 |
  0x2000 |
  0x4000 |
  0x8000 |
  0x10000 |
  0x20000;
const RO_COMPAT_SPARSE_SUPER = 0x1;
const RO_COMPAT_BIGALLOC = 0x200;
const COMPAT_SPARSE_SUPER2 = 0x200;
const BG_BLOCK_UNINIT = 0x2;
const PAGE = 4096;
/** Shorter runs of free blocks are not worth leaving out. */
const MIN_FREE_BYTES = 64 * 1024;

const isPowerOf = (value: number, base: number): boolean => {
  let power = base;
  while (power < value) power *= base;
  return power === value;
};

/**
 * The free extents of the file system that begins at byte 0 of `read`, sorted, at least 64 KiB each.
 *
 * They may be trusted if the file system was frozen and thawed after the capture was attached, and they are read after
 * that: what was allocated at the freeze is then allocated on the disk, and what is allocated later is captured.
 */
export async function ext4Free(read: ReadBytes, partitionBytes: number): Promise<Ext4Free> {
  const unusable = (reason: string): Ext4Free => ({ kind: 'unusable', reason });
  if (partitionBytes < 2 * PAGE) return unusable('it is too small');
  const sb = (await read(0, PAGE)).subarray(1024, 2048);
  if (sb.readUInt16LE(0x38) !== MAGIC) return unusable('it has no ext4 superblock');
  const blockBytes = 1024 << sb.readUInt32LE(0x18);
  const incompat = sb.readUInt32LE(0x60);
  const roCompat = sb.readUInt32LE(0x64);
  const compat = sb.readUInt32LE(0x5c);
  if (blockBytes > 65_536) return unusable(`its block size is ${blockBytes}`);
  if ((incompat & ~INCOMPAT_KNOWN) !== 0) return unusable('it has features that are not known');
  if (incompat & INCOMPAT_META_BG) return unusable('it has the feature meta_bg');
  if (roCompat & RO_COMPAT_BIGALLOC) return unusable('it has the feature bigalloc');
  if (compat & COMPAT_SPARSE_SUPER2) return unusable('it has the feature sparse_super2');
  const is64 = (incompat & INCOMPAT_64BIT) !== 0;
  const blocks = sb.readUInt32LE(0x4) + (is64 ? sb.readUInt32LE(0x150) * 2 ** 32 : 0);
  const firstBlock = sb.readUInt32LE(0x14);
  const perGroup = sb.readUInt32LE(0x20);
  const inodesPerGroup = sb.readUInt32LE(0x28);
  const inodeBytes = sb.readUInt16LE(0x58);
  const reservedGdt = sb.readUInt16LE(0xce);
  const descBytes = is64 ? sb.readUInt16LE(0xfe) : 32;
  if (
    perGroup === 0 ||
    perGroup > blockBytes * 8 ||
    blocks <= firstBlock ||
    descBytes < 32 ||
    descBytes > blockBytes
  ) {
    return unusable('its superblock makes no sense');
  }
  if (blocks * blockBytes > partitionBytes) return unusable('it is larger than its partition');
  const groups = Math.ceil((blocks - firstBlock) / perGroup);
  const gdtBlocks = Math.ceil((groups * descBytes) / blockBytes);
  const inodeTableBlocks = Math.ceil((inodesPerGroup * inodeBytes) / blockBytes);
  const hasBackup = (group: number): boolean =>
    (roCompat & RO_COMPAT_SPARSE_SUPER) === 0 ||
    group <= 1 ||
    isPowerOf(group, 3) ||
    isPowerOf(group, 5) ||
    isPowerOf(group, 7);

  /** Any bytes, by reading the pages around them. */
  const readAt = async (offset: number, length: number): Promise<Buffer> => {
    const from = Math.floor(offset / PAGE) * PAGE;
    const to = Math.min(Math.ceil((offset + length) / PAGE) * PAGE, partitionBytes);
    return (await read(from, to - from)).subarray(offset - from, offset - from + length);
  };

  const gdt = await readAt((firstBlock + 1) * blockBytes, groups * descBytes);
  // What holds the file system together is kept whatever a bitmap says of it: sorted spans of blocks.
  const kept: Array<[from: number, to: number]> = [[0, firstBlock + 1 + gdtBlocks + reservedGdt]];
  const bitmaps: Array<{ block: number; uninit: boolean }> = [];
  for (let group = 0; group < groups; group++) {
    const desc = gdt.subarray(group * descBytes, (group + 1) * descBytes);
    const wide = (low: number, high: number) =>
      desc.readUInt32LE(low) + (descBytes >= 64 ? desc.readUInt32LE(high) * 2 ** 32 : 0);
    const block = wide(0x0, 0x20);
    const inodeBitmap = wide(0x4, 0x24);
    const inodeTable = wide(0x8, 0x28);
    if (block >= blocks || inodeBitmap >= blocks || inodeTable + inodeTableBlocks > blocks) {
      return unusable(`the descriptor of group ${group} makes no sense`);
    }
    bitmaps.push({ block, uninit: (desc.readUInt16LE(0x12) & BG_BLOCK_UNINIT) !== 0 });
    kept.push(
      [block, block + 1],
      [inodeBitmap, inodeBitmap + 1],
      [inodeTable, inodeTable + inodeTableBlocks],
    );
    if (hasBackup(group)) {
      const start = firstBlock + group * perGroup;
      kept.push([start, start + 1 + gdtBlocks + reservedGdt]);
    }
  }
  kept.sort((a, b) => a[0] - b[0]);

  const spans: Span[] = [];
  let open = -1;
  let nextKept = 0;
  let keptUntil = 0;
  const isKept = (block: number): boolean => {
    while (nextKept < kept.length && kept[nextKept]![0] <= block) {
      keptUntil = Math.max(keptUntil, kept[nextKept++]![1]);
    }
    return block < keptUntil;
  };
  const close = (block: number) => {
    const lengthBytes = (block - open) * blockBytes;
    if (open >= 0 && lengthBytes >= MIN_FREE_BYTES) {
      spans.push({ offsetBytes: open * blockBytes, lengthBytes });
    }
    open = -1;
  };
  const bitmapBytes = Math.ceil(perGroup / 8);
  for (let group = 0; group < groups; group++) {
    const start = firstBlock + group * perGroup;
    const count = Math.min(perGroup, blocks - start);
    const { block, uninit } = bitmaps[group]!;
    const bitmap = uninit ? null : await readAt(block * blockBytes, bitmapBytes);
    for (let at = 0; at < count; at++) {
      const used = (bitmap && (bitmap[at >> 3]! & (1 << (at & 7))) !== 0) || isKept(start + at);
      if (used) close(start + at);
      else if (open < 0) open = start + at;
    }
  }
  close(blocks);
  return { kind: 'free', spans };
}
