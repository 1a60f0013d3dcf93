/** Initramfs archives and module indexes, against what the real tools made of the same input. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import fc from 'fast-check';
import t from 'tap';
import {
  CpioReader,
  S_IFDIR,
  S_IFLNK,
  S_IFREG,
  writeCpio,
} from '../../appliance/recovery/prepare-guest/cpio.ts';
import {
  appendable,
  extension,
  modulesFolder,
  modulesIn,
  readInitramfs,
} from '../../appliance/recovery/prepare-guest/initramfs.ts';
import {
  closure,
  formatModulesDep,
  lookUpIndex,
  moduleName,
  modulesDepIndex,
  parseModulesBuiltin,
  parseModulesDep,
} from '../../appliance/recovery/prepare-guest/modules.ts';

/** modules.dep and modules.dep.bin of one initramfs, as depmod of kmod 30 wrote them. */
const DEP = `kernel/arch/x86/crypto/crc32c-intel.ko:
kernel/fs/mbcache.ko:
kernel/fs/ext4/ext4.ko: kernel/lib/crc16.ko kernel/fs/mbcache.ko kernel/fs/jbd2/jbd2.ko
kernel/fs/jbd2/jbd2.ko:
kernel/crypto/crc32c_generic.ko:
kernel/lib/crc16.ko:
kernel/drivers/acpi/fan.ko:
kernel/drivers/virtio/virtio.ko: kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/virtio/virtio_pci_modern_dev.ko:
kernel/drivers/virtio/virtio_pci_legacy_dev.ko:
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio_pci_legacy_dev.ko kernel/drivers/virtio/virtio_pci_modern_dev.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/input/mouse/psmouse.ko:
kernel/drivers/md/dm-mod.ko:
`;
const DEP_BIN =
  'sAf0VwACAAEgAASVNgAAAAABAAAABWtlcm5lbC9saWIvY3JjMTYua286AGVuZXJpYwAAAAABAAAABGtlcm5lbC9jcn' +
  'lwdG8vY3JjMzJjX2dlbmVyaWMua286AG50ZWwAAAAAAQAAAABrZXJuZWwvYXJjaC94ODYvY3J5cHRvL2NyYzMyYy1p' +
  'bnRlbC5rbzoAMmNfAGdpwAAAKwAAAADAAABbcmMAMTPAAAAMAAAAAKAAAJBtX21vZAAAAAABAAAADmtlcm5lbC9kcm' +
  'l2ZXJzL21kL2RtLW1vZC5rbzoAeHQ0AAAAAAEAAAACa2VybmVsL2ZzL2V4dDQvZXh0NC5rbzoga2VybmVsL2xpYi9j' +
  'cmMxNi5rbyBrZXJuZWwvZnMvbWJjYWNoZS5rbyBrZXJuZWwvZnMvamJkMi9qYmQyLmtvAGFuAAAAAAEAAAAGa2Vybm' +
  'VsL2RyaXZlcnMvYWNwaS9mYW4ua286AGJkMgAAAAABAAAAA2tlcm5lbC9mcy9qYmQyL2piZDIua286AGJjYWNoZQAA' +
  'AAABAAAAAWtlcm5lbC9mcy9tYmNhY2hlLmtvOgBzbW91c2UAAAAAAQAAAA1rZXJuZWwvZHJpdmVycy9pbnB1dC9tb3' +
  'VzZS9wc21vdXNlLmtvOgBsawAAAAABAAAADGtlcm5lbC9kcml2ZXJzL2Jsb2NrL3ZpcnRpb19ibGsua286IGtlcm5l' +
  'bC9kcml2ZXJzL3ZpcnRpby92aXJ0aW8ua28ga2VybmVsL2RyaXZlcnMvdmlydGlvL3ZpcnRpb19yaW5nLmtvAGVnYW' +
  'N5X2RldgAAAAABAAAACmtlcm5lbC9kcml2ZXJzL3ZpcnRpby92aXJ0aW9fcGNpX2xlZ2FjeV9kZXYua286AG9kZXJu' +
  'X2RldgAAAAABAAAACWtlcm5lbC9kcml2ZXJzL3ZpcnRpby92aXJ0aW9fcGNpX21vZGVybl9kZXYua286AGxtwAACXM' +
  'AAAp5jaQBfXyAAAuAAAAABAAAAC2tlcm5lbC9kcml2ZXJzL3ZpcnRpby92aXJ0aW9fcGNpLmtvOiBrZXJuZWwvZHJp' +
  'dmVycy92aXJ0aW8vdmlydGlvLmtvIGtlcm5lbC9kcml2ZXJzL3ZpcnRpby92aXJ0aW9fcmluZy5rbyBrZXJuZWwvZH' +
  'JpdmVycy92aXJ0aW8vdmlydGlvX3BjaV9sZWdhY3lfZGV2LmtvIGtlcm5lbC9kcml2ZXJzL3ZpcnRpby92aXJ0aW9f' +
  'cGNpX21vZGVybl9kZXYua28AaW5nAAAAAAEAAAAIa2VybmVsL2RyaXZlcnMvdmlydGlvL3ZpcnRpb19yaW5nLmtvOg' +
  'BicsAAAegAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA4AAC6gAAAADA' +
  'AAPDaXJ0aW8AX18gAAP1AAAAAQAAAAdrZXJuZWwvZHJpdmVycy92aXJ0aW8vdmlydGlvLmtvOiBrZXJuZWwvZHJpdm' +
  'Vycy92aXJ0aW8vdmlydGlvX3Jpbmcua28AY3agAACiwAAAs8AAAN7AAAFCAAAAAAAAAAAAAAAAwAABaQAAAAAAAAAA' +
  'wAABjQAAAAAAAAAAwAABsgAAAAAAAAAAAAAAAAAAAAAAAAAA4AAEOw==';

const KERNEL = '6.1.0-56-amd64';
const FOLDER = `usr/lib/modules/${KERNEL}`;
const wantAll = () => true;

t.test('the module index is byte for byte what depmod writes', async (t) => {
  const dep = parseModulesDep(DEP);
  t.equal(formatModulesDep(dep.values()), DEP);
  t.equal(modulesDepIndex(dep).toString('base64'), DEP_BIN);
});

t.test('every module is found in an index, and nothing else', async (t) => {
  const name = fc.stringMatching(/^[a-z0-9_]{1,12}$/);
  fc.assert(
    fc.property(fc.uniqueArray(name, { minLength: 1, maxLength: 60 }), name, (names, other) => {
      const dep = new Map(names.map((key) => [key, { path: `k/${key}.ko`, needs: [] }]));
      const index = modulesDepIndex(dep);
      return (
        names.every((key) => lookUpIndex(index, key)[0] === `k/${key}.ko:`) &&
        (dep.has(other) || lookUpIndex(index, other).length === 0)
      );
    }),
    { seed: 11, numRuns: 300 },
  );
  t.pass('300 random cases');
});

t.test('a driver brings what it needs; built-in and missing ones are told apart', async (t) => {
  const dep = parseModulesDep(
    'kernel/a/virtio_scsi.ko.xz: kernel/a/scsi-mod.ko.xz kernel/a/virtio.ko.xz\nkernel/a/scsi-mod.ko.xz: kernel/a/scsi_common.ko.xz\nkernel/a/scsi_common.ko.xz:\nkernel/a/virtio.ko.xz:\n',
  );
  const builtin = parseModulesBuiltin('kernel/drivers/virtio/virtio_pci.ko\n');
  const { modules, missing } = closure(['virtio_pci', 'virtio_scsi', 'sd_mod'], dep, builtin);
  t.same([...modules.keys()].sort(), ['scsi_common', 'scsi_mod', 'virtio', 'virtio_scsi']);
  t.same(missing, ['sd_mod']);
  t.equal(moduleName('kernel/crypto/crc32c-intel.ko.zst'), 'crc32c_intel');
});

t.test('a cpio archive reads back, whatever the chunks it comes in', async (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 8 }),
      fc.integer({ min: 1, max: 97 }),
      (bodies, chunkBytes) => {
        const archive = writeCpio(
          bodies.map((body, i) => ({
            name: `d/file-${i}`,
            mode: S_IFREG | 0o644,
            data: Buffer.from(body),
          })),
        );
        const reader = new CpioReader(wantAll);
        const padded = Buffer.concat([archive, Buffer.alloc(13)]);
        for (let at = 0; at < padded.length; at += chunkBytes) {
          reader.feed(padded.subarray(at, at + chunkBytes));
        }
        return (
          reader.ended &&
          reader.consumedBytes === archive.length &&
          reader.entries.length === bodies.length &&
          reader.entries.every((entry, i) => entry.data?.equals(Buffer.from(bodies[i] ?? [])))
        );
      },
    ),
    { seed: 3, numRuns: 300 },
  );
  const header = writeCpio([{ name: 'conf', mode: S_IFDIR | 0o755 }]).toString('latin1', 0, 116);
  t.equal(
    header,
    '07070100000001000041ED00000000000000000000000200000000000000000000000000000000000000000000000000000005' +
      '00000000conf\0\0',
    'the fields are where the kernel looks for them',
  );
});

t.test('what is no archive is refused', async (t) => {
  const reader = new CpioReader(wantAll);
  t.throws(() => reader.feed(Buffer.alloc(200, 0x41)), /no cpio header/);
  const absurd = Buffer.from(`070701${'0'.repeat(88)}7FFFFFFF00000000`);
  t.throws(() => new CpioReader(wantAll).feed(absurd), /name is too long/);
});

const original = () =>
  writeCpio([
    { name: 'init', mode: S_IFREG | 0o755, data: Buffer.from('#!/bin/sh\n') },
    { name: 'lib', mode: S_IFLNK | 0o777, data: Buffer.from('usr/lib') },
    { name: 'scripts', mode: S_IFDIR | 0o755 },
    { name: 'scripts/functions', mode: S_IFREG | 0o644, data: Buffer.from('') },
    { name: 'conf', mode: S_IFDIR | 0o755 },
    { name: 'conf/modules', mode: S_IFREG | 0o644, data: Buffer.from('virtio_pci \nvirtio_blk') },
    { name: 'usr/lib/modules', mode: S_IFDIR | 0o755 },
    { name: FOLDER, mode: S_IFDIR | 0o755 },
    { name: `${FOLDER}/modules.dep`, mode: S_IFREG | 0o644, data: Buffer.from(DEP) },
    {
      name: `${FOLDER}/kernel/drivers/virtio/virtio_pci.ko`,
      mode: S_IFREG | 0o644,
      data: Buffer.from('elf'),
    },
  ]);

t.test('an initramfs is extended by appending, in every form it comes in', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const microcode = writeCpio([
    {
      name: 'kernel/x86/microcode/AuthenticAMD.bin',
      mode: S_IFREG | 0o644,
      data: Buffer.from('m'),
    },
  ]);
  const early = Buffer.concat([microcode, Buffer.alloc(512 - (microcode.length % 512))]);
  const forms: [string, Buffer, string][] = [
    ['plain', original(), 'none'],
    ['gzip', gzipSync(original()), 'gzip'],
    ['zstd', zstdCompressSync(original()), 'zstd'],
    ['gzip behind microcode', Buffer.concat([early, gzipSync(original())]), 'gzip'],
    ['zstd, padded', Buffer.concat([zstdCompressSync(original()), Buffer.alloc(7)]), 'zstd'],
  ];
  for (const [name, bytes, compression] of forms) {
    const file = join(folder, name);
    writeFileSync(file, bytes);
    const image = await readInitramfs(file, wantAll);
    t.equal(image.compression, compression, name);
    t.equal(image.maker, 'initramfs-tools');
    t.equal(modulesFolder(image, KERNEL), FOLDER);
    t.same([...modulesIn(image, KERNEL)], ['virtio_pci']);
    t.equal(appendable(image, KERNEL), null);

    const added = extension(
      image,
      FOLDER,
      [
        {
          dep: { path: 'kernel/drivers/scsi/virtio_scsi.ko', needs: [] },
          data: Buffer.from('ELF'),
        },
      ],
      ['virtio_pci', 'virtio_scsi'],
      [],
    );
    t.equal((bytes.length + added.length) % 4, 0);
    writeFileSync(file, Buffer.concat([bytes, added]));
    const again = await readInitramfs(file, wantAll);
    t.same([...modulesIn(again, KERNEL)].sort(), ['virtio_pci', 'virtio_scsi']);
    const text = (entry: string) => again.entries.get(entry)?.data?.toString();
    t.equal(text('conf/modules'), 'virtio_pci \nvirtio_blk\nvirtio_scsi\n');
    t.match(text(`${FOLDER}/modules.dep`), /virtio_scsi\.ko:\n$/);
    t.same(
      lookUpIndex(
        again.entries.get(`${FOLDER}/modules.dep.bin`)?.data ?? Buffer.alloc(0),
        'virtio_scsi',
      ),
      ['kernel/drivers/scsi/virtio_scsi.ko:'],
    );
    const archive = new CpioReader(wantAll);
    archive.feed(added.subarray(added.findIndex((byte) => byte !== 0)));
    t.same(
      archive.entries
        .map((entry) => entry.name)
        .filter((entry) => image.entries.has(entry) && !entry.includes('modules.dep')),
      ['conf/modules'],
      'folders and links that exist are not touched',
    );
    const twice = Buffer.concat([
      bytes,
      added,
      extension(
        again,
        FOLDER,
        [{ dep: { path: 'kernel/drivers/scsi/sd_mod.ko', needs: [] }, data: Buffer.from('S') }],
        ['sd_mod'],
        [],
      ),
    ]);
    writeFileSync(file, twice);
    const third = await readInitramfs(file, wantAll);
    t.same(
      [...modulesIn(third, KERNEL)].sort(),
      ['sd_mod', 'virtio_pci', 'virtio_scsi'],
      'an extended one can be extended again',
    );
    t.equal((again.entries.get('lib')?.mode ?? 0) & 0o170000, S_IFLNK, 'lib is still a link');
  }
});

t.test('an initramfs that cannot be extended is said to be so', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'initrd');
  const read = async (bytes: Buffer) => {
    writeFileSync(file, bytes);
    return readInitramfs(file, wantAll);
  };
  await t.rejects(read(Buffer.from('this is no initramfs at all')), /unknown contents/);
  await t.rejects(read(gzipSync(original()).subarray(0, 200)), Error);
  await t.rejects(read(gzipSync(original().subarray(0, 300))), /cut short/);
  await t.rejects(read(Buffer.alloc(4096)), /empty/);
  const dracut = await read(writeCpio([{ name: 'usr/lib/dracut/hooks', mode: S_IFDIR | 0o755 }]));
  t.match(appendable(dracut, KERNEL), /dracut/);
  const tools = await read(original());
  t.match(appendable({ ...tools, compression: 'lz4' }, '5.10.0-8-amd64'), /LZ4/);
  t.equal(appendable({ ...tools, compression: 'lz4' }, '6.1.0'), null);
});
