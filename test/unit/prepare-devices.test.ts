/** Device names in a guest's configuration: what is rewritten, what is left, what is reported. */
import fc from 'fast-check';
import t from 'tap';
import {
  findDevice,
  type GuestPartition,
  judge,
  partitionName,
  replaceMac,
  rewriteCommandLines,
  rewriteTable,
} from '../../appliance/recovery/prepare-guest/devices.ts';
import { linkFile, stamp } from '../../appliance/recovery/prepare-guest/fixes.ts';

const part = (
  sourceName: string,
  uuid: string | null,
  partUuid: string | null = null,
  label: string | null = null,
): GuestPartition => ({
  sourceName,
  disk: 0,
  partition: { number: 1, startBytes: 0, sizeBytes: 1, partUuid, type: '' },
  content: { type: 'ext4', uuid, label },
});

const PARTS = [
  part('vda1', 'aaaa-1', 'p-1', 'boot'),
  part('vda3', 'aaaa-3', 'p-3', 'root'),
  part('vda4', 'aaaa-4', 'p-4'),
  part('vdb', 'bbbb-0'),
  part('vdc1', 'twin', 'p-c1'),
  part('vdc2', 'twin', 'p-c2'),
  part('nvme0n1p2', 'nnnn-2', 'p-n2'),
  part('vde1', null, null),
];

t.test('fstab: kernel names become UUIDs, the rest of the line stays as it is', async (t) => {
  const text = [
    '# /dev/vda3 was the root',
    '/dev/vda3  /          ext4  errors=remount-ro  0  1',
    '/dev/vda4\tnone\tswap\tsw\t0\t0',
    '  /dev/vdb /srv xfs defaults 0 2',
    'UUID=aaaa-1 /boot ext4 defaults 0 2',
    'LABEL=data /data ext4 defaults 0 2',
    '/dev/mapper/vg-home /home ext4 defaults 0 2',
    '/dev/vg0/var /var ext4 defaults 0 2',
    'tmpfs /tmp tmpfs defaults 0 0',
    'server:/export /mnt nfs defaults 0 0',
    '',
  ].join('\n');
  const result = rewriteTable(text, 0, PARTS);
  t.equal(
    result.text,
    text
      .replace('\n/dev/vda3 ', '\nUUID=aaaa-3 ')
      .replace('/dev/vda4\t', 'UUID=aaaa-4\t')
      .replace('  /dev/vdb /srv', '  UUID=bbbb-0 /srv'),
  );
  t.same(result.changes, [
    '/dev/vda3 → UUID=aaaa-3',
    '/dev/vda4 → UUID=aaaa-4',
    '/dev/vdb → UUID=bbbb-0',
  ]);
  t.same(result.unknown, []);
});

t.test('names that would point nowhere are reported and left', async (t) => {
  const text =
    '/dev/vdz1 /x ext4 defaults 0 2\n/dev/disk/by-path/pci-0000:00:05.0-part1 /y ext4 defaults 0 2\n' +
    '/dev/disk/by-id/virtio-ABC /z ext4 defaults 0 0\n/dev/vde1 /w ext4 defaults 0 0\n';
  const result = rewriteTable(text, 0, PARTS);
  t.equal(result.text, text);
  t.same(result.unknown, [
    '/dev/vdz1',
    '/dev/disk/by-path/pci-0000:00:05.0-part1',
    '/dev/disk/by-id/virtio-ABC',
    '/dev/vde1',
  ]);
});

t.test('a drive that is mounted by hand only does not matter when it is unknown', async (t) => {
  const text =
    '/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n/dev/sdq1 /usb ext4 noauto 0 0\n';
  t.same(rewriteTable(text, 0, PARTS), { text, changes: [], unknown: [] });
});

t.test('a UUID that two partitions share is no name: the partition GUID is taken', async (t) => {
  t.match(judge('/dev/vdc2', PARTS), { kind: 'rewrite', to: 'PARTUUID=p-c2' });
});

t.test('crypttab: the second field', async (t) => {
  const result = rewriteTable(
    'swap_crypt  /dev/vda4  /dev/urandom  swap\n# x /dev/vda3\n',
    1,
    PARTS,
  );
  t.equal(result.text, 'swap_crypt  UUID=aaaa-4  /dev/urandom  swap\n# x /dev/vda3\n');
});

t.test('kernel command lines: root and resume, in every form they are written', async (t) => {
  const text = [
    '  linux /vmlinuz root=/dev/vda3 ro resume=/dev/vda4 quiet',
    'GRUB_CMDLINE_LINUX="root=/dev/vda3 console=ttyS0"',
    'RESUME=/dev/vda4',
    'options cryptdevice=/dev/nvme0n1p2:root root=/dev/mapper/root',
    '# root=/dev/vda3',
    'linux /vmlinuz root=UUID=aaaa-3 notroot=/dev/vda3',
  ].join('\n');
  t.equal(
    rewriteCommandLines(text, PARTS).text,
    [
      '  linux /vmlinuz root=UUID=aaaa-3 ro resume=UUID=aaaa-4 quiet',
      'GRUB_CMDLINE_LINUX="root=UUID=aaaa-3 console=ttyS0"',
      'RESUME=UUID=aaaa-4',
      'options cryptdevice=UUID=nnnn-2:root root=/dev/mapper/root',
      '# root=/dev/vda3',
      'linux /vmlinuz root=UUID=aaaa-3 notroot=/dev/vda3',
    ].join('\n'),
  );
});

t.test(
  'rewriting twice changes nothing more, and what names no device stays byte for byte',
  async (t) => {
    const word = fc.constantFrom(
      '/dev/vda3',
      '/dev/vdb',
      '/dev/vdz9',
      'root=/dev/vda3',
      'UUID=aaaa-3',
      '#',
      'ext4',
      '\t',
      ' ',
      '\n',
      'noauto',
      '"',
      '=',
    );
    fc.assert(
      fc.property(fc.array(word, { maxLength: 40 }), (words) => {
        const text = words.join('');
        for (const rewrite of [
          (from: string) => rewriteTable(from, 0, PARTS),
          (from: string) => rewriteTable(from, 1, PARTS),
          (from: string) => rewriteCommandLines(from, PARTS),
        ]) {
          const once = rewrite(text);
          const twice = rewrite(once.text);
          if (twice.text !== once.text || twice.changes.length > 0) return false;
          if (!text.includes('/dev/') && once.text !== text) return false;
        }
        return true;
      }),
      { seed: 7, numRuns: 2000 },
    );
    t.pass('2000 random cases');
  },
);

t.test('a device of fstab is found by every kind of name', async (t) => {
  for (const spec of [
    'UUID=aaaa-1',
    'UUID="AAAA-1"',
    'LABEL=boot',
    'PARTUUID=P-1',
    '/dev/disk/by-uuid/aaaa-1',
    '/dev/disk/by-label/boot',
    '/dev/vda1',
  ]) {
    t.equal(findDevice(spec, PARTS)?.sourceName, 'vda1', spec);
  }
  t.equal(findDevice('/dev/mapper/vg-boot', PARTS), undefined);
});

t.test('partitions are named as the kernel names them', async (t) => {
  t.equal(partitionName('vda', 3), 'vda3');
  t.equal(partitionName('nvme0n1', 3), 'nvme0n1p3');
  t.equal(partitionName('vdb', 0), 'vdb');
});

t.test('MAC addresses: any case and separator, whole ones only', async (t) => {
  const from = '52:54:00:AA:bb:cc';
  t.equal(
    replaceMac('hwaddress 52:54:00:aa:BB:CC\nmac-address=52-54-00-AA-BB-CC;', from, 'X'),
    'hwaddress X\nmac-address=X;',
  );
  const longer = 'guid 52:54:00:aa:bb:cc:00:01 and 00:52:54:00:aa:bb:cc';
  t.equal(replaceMac(longer, from, 'X'), longer);
});

t.test('the link file ties the old name to the new address', async (t) => {
  t.match(
    linkFile('ens3', '52:54:00:01:02:03', 'web1'),
    /\[Match\]\nMACAddress=52:54:00:01:02:03\n\n\[Link\]\nName=ens3\n$/,
  );
  t.equal(stamp('2026-01-02T03:04:05.678Z'), '20260102T030405Z');
});
