/** Partition tables, superblocks and paths of a guest that nobody vouches for. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { type ByteReader, window } from '../../appliance/recovery/prepare-guest/bytes.ts';
import { GuestRoot } from '../../appliance/recovery/prepare-guest/guest-root.ts';
import { crc32, readPartitions } from '../../appliance/recovery/prepare-guest/partitions.ts';
import { identify } from '../../appliance/recovery/prepare-guest/superblock.ts';

const MIB = 1024 * 1024;

const readerOf = (disk: Buffer): ByteReader => ({
  sizeBytes: disk.length,
  read: (offset, length) => disk.subarray(offset, Math.min(disk.length, offset + length)),
});

/** A GPT disk of 4 MiB with one partition at 1 MiB, its backup table at the end. */
function gptDisk(sector = 512): Buffer {
  const disk = Buffer.alloc(4 * MIB);
  const lastLba = disk.length / sector - 1;
  const entries = Buffer.alloc(128 * 128);
  const entry = entries.subarray(2 * 128);
  Buffer.from('af3dc60f838472478e793d69d8477de4', 'hex').copy(entry);
  Buffer.from('00112233445566778899aabbccddeeff', 'hex').copy(entry, 16);
  entry.writeBigUInt64LE(BigInt(MIB / sector), 32);
  entry.writeBigUInt64LE(BigInt((2 * MIB) / sector - 1), 40);
  const header = (lba: number, entriesLba: number) => {
    const bytes = Buffer.alloc(92);
    bytes.write('EFI PART');
    bytes.writeUInt32LE(0x10000, 8);
    bytes.writeUInt32LE(92, 12);
    bytes.writeBigUInt64LE(BigInt(lba), 24);
    bytes.writeBigUInt64LE(BigInt(entriesLba), 72);
    bytes.writeUInt32LE(128, 80);
    bytes.writeUInt32LE(128, 84);
    bytes.writeUInt32LE(crc32(entries), 88);
    bytes.writeUInt32LE(crc32(bytes), 16);
    return bytes;
  };
  const backupEntries = lastLba - Math.ceil(entries.length / sector);
  header(1, 2).copy(disk, sector);
  entries.copy(disk, 2 * sector);
  header(lastLba, backupEntries).copy(disk, lastLba * sector);
  entries.copy(disk, backupEntries * sector);
  mbrEntry(disk, 0, 0xee, 1, lastLba);
  return disk;
}

function mbrEntry(
  disk: Buffer,
  index: number,
  type: number,
  start: number,
  sectors: number,
  at = 0,
) {
  const offset = at + 446 + index * 16;
  disk.writeUInt8(type, offset + 4);
  disk.writeUInt32LE(start, offset + 8);
  disk.writeUInt32LE(sectors, offset + 12);
  disk.writeUInt16LE(0xaa55, at + 510);
}

t.test('GPT: numbers, places and GUIDs as the kernel has them', async (t) => {
  for (const sector of [512, 4096]) {
    t.same(readPartitions(readerOf(gptDisk(sector))), [
      {
        number: 3,
        startBytes: MIB,
        sizeBytes: MIB,
        partUuid: '33221100-5544-7766-8899-aabbccddeeff',
        type: '0fc63daf-8483-4772-8e79-3d69d8477de4',
      },
    ]);
  }
});

t.test('GPT: a damaged table is not believed; its backup is', async (t) => {
  const damaged = gptDisk();
  damaged.writeUInt8(1, 2 * 512 + 2 * 128 + 33);
  t.equal(readPartitions(readerOf(damaged))[0]?.startBytes, MIB, 'from the backup');
  const noHeader = gptDisk();
  noHeader.fill(0, 512, 1024);
  t.equal(readPartitions(readerOf(noHeader))[0]?.number, 3);
  const unprotected = gptDisk();
  unprotected.fill(0, 0, 1024);
  t.equal(readPartitions(readerOf(unprotected))[0]?.number, 0, 'an old backup alone is no table');
});

t.test('MBR: primary and logical partitions, and no endless chain', async (t) => {
  const disk = Buffer.alloc(8 * MIB);
  disk.writeUInt32LE(0x1234abcd, 440);
  mbrEntry(disk, 0, 0x83, 2048, 2048);
  mbrEntry(disk, 1, 0x05, 4096, 8192);
  mbrEntry(disk, 0, 0x83, 2, 1000, 4096 * 512);
  mbrEntry(disk, 1, 0x05, 2048, 2048, 4096 * 512);
  mbrEntry(disk, 0, 0x82, 2, 1000, 6144 * 512);
  mbrEntry(disk, 1, 0x05, 0, 2048, 6144 * 512);
  const found = readPartitions(readerOf(disk));
  t.same(
    found.map(({ number, startBytes, partUuid }) => [number, startBytes / 512, partUuid]),
    [
      [1, 2048, '1234abcd-01'],
      [5, 4098, '1234abcd-05'],
      [6, 6146, '1234abcd-06'],
    ],
  );
});

t.test('a disk without a table is one partition', async (t) => {
  t.match(readPartitions(readerOf(Buffer.alloc(MIB))), [
    { number: 0, startBytes: 0, sizeBytes: MIB },
  ]);
});

t.test('no bytes make the readers throw or point outside of the disk', async (t) => {
  fc.assert(
    fc.property(
      fc.array(
        fc.tuple(
          fc.integer({ min: 0, max: 17500 }),
          fc.uint8Array({ minLength: 1, maxLength: 12 }),
        ),
        {
          maxLength: 12,
        },
      ),
      fc.boolean(),
      (patches, gpt) => {
        const disk = gpt ? gptDisk() : Buffer.alloc(MIB);
        disk.writeUInt16LE(0xaa55, 510);
        for (const [at, bytes] of patches) Buffer.from(bytes).copy(disk, at);
        if (gpt) {
          // With right checksums, so that the hostile values are looked at.
          const header = disk.subarray(512, 604);
          disk.writeUInt32LE(crc32(disk.subarray(1024, 1024 + 128 * 128)), 512 + 88);
          header.writeUInt32LE(0, 16);
          header.writeUInt32LE(crc32(header), 16);
        }
        const reader = readerOf(disk);
        return readPartitions(reader).every((part) => {
          identify(window(reader, part.startBytes, part.sizeBytes));
          return part.startBytes >= 0 && part.startBytes + part.sizeBytes <= disk.length;
        });
      },
    ),
    { seed: 5, numRuns: 500 },
  );
  t.pass('500 random cases');
});

t.test('containers are told from file systems, also over the remains of one', async (t) => {
  const disk = Buffer.alloc(2 * MIB);
  disk.writeUInt16LE(0xef53, 1024 + 56);
  t.equal(identify(readerOf(disk)).type, 'ext2');
  disk.write('LABELONE', 512);
  disk.write('LVM2 001', 512 + 24);
  t.equal(identify(readerOf(disk)).type, 'lvm');
  disk.write('LUKS\xba\xbe', 0, 'latin1');
  disk.fill(0, 512, 600);
  t.equal(identify(readerOf(disk)).type, 'luks');
});

t.test('links in a guest lead nowhere but into the guest', async (t) => {
  const base = mkdtempSync(join(tmpdir(), 'understudy-'));
  t.teardown(() => rmSync(base, { recursive: true }));
  const root = join(base, 'root');
  mkdirSync(join(root, 'usr/etc'), { recursive: true });
  writeFileSync(join(base, 'secret'), 'of the appliance');
  symlinkSync('/usr/etc', join(root, 'etc'));
  symlinkSync('../../../../secret', join(root, 'usr/etc/up'));
  symlinkSync(join(base, 'secret'), join(root, 'usr/etc/absolute'));
  symlinkSync('loop-b', join(root, 'loop-a'));
  symlinkSync('loop-a', join(root, 'loop-b'));
  const guest = new GuestRoot(root);

  guest.write('/etc/fstab', 'one');
  t.equal(readFileSync(join(root, 'usr/etc/fstab'), 'utf8'), 'one');
  t.equal(guest.text('/../../etc/./fstab'), 'one');

  for (const path of ['/etc/up', '/etc/absolute']) t.equal(guest.text(path), null, path);
  guest.write('/etc/up', 'overwritten');
  t.equal(
    readFileSync(join(root, 'secret'), 'utf8'),
    'overwritten',
    'as high up as the guest goes',
  );
  t.throws(() => guest.write('/etc/absolute', 'x'), { code: 'UND_GUEST_PATH' });
  t.equal(readFileSync(join(base, 'secret'), 'utf8'), 'of the appliance');
  t.throws(() => guest.text('/loop-a'), { code: 'UND_GUEST_PATH' });
  t.equal(guest.text('/etc/fstab/under-a-file'), null);
  t.throws(() => guest.write('/etc', 'x'), { code: 'UND_GUEST_PATH' });
});
