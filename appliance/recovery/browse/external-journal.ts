import type { ByteReader } from '../prepare-guest/bytes.ts';

const HAS_JOURNAL = 0x4;
const INCOMPAT_JOURNAL_DEV = 0x8;

/**
 * Why an ext file system must not be mounted because of its journal, or null. One whose journal is on another device names
 * that by its number: the kernel would open whatever device of the appliance has that number. Offsets of the superblock:
 * linux/fs/ext4/ext4.h.
 */
export function externalJournal(reader: ByteReader): string | null {
  const superblock = reader.read(1024, 1024);
  if (superblock.length < 1024) return 'its superblock is not all there';
  if ((superblock.readUInt32LE(96) & INCOMPAT_JOURNAL_DEV) !== 0) {
    return 'the journal of another file system';
  }
  const hasJournal = (superblock.readUInt32LE(92) & HAS_JOURNAL) !== 0;
  const inode = superblock.readUInt32LE(224);
  const device = superblock.readUInt32LE(228);
  return hasJournal && (inode === 0 || device !== 0) ? 'its journal is on another device' : null;
}
