import t from 'tap';
import { Value } from 'typebox/value';
import { buildDisks, buildNics, prettyOsName } from '../../agent/inventory/build.ts';
import { diskId, identityKeys } from '../../agent/inventory/disk-id.ts';
import { type BlockNode, parseFindmnt, parseLsblk } from '../../agent/inventory/lsblk.ts';
import { sameMachine, smbiosUuidOf } from '../../agent/inventory/machine.ts';
import {
  findTwins,
  isNativeMultipath,
  protectability,
  worthListing,
} from '../../agent/inventory/protectable.ts';
import { parseServices } from '../../agent/inventory/services.ts';
import { takeInventory } from '../../agent/inventory/take.ts';
import { Inventory, SourceDisk } from '../../appliance/api/schema.ts';

const GIB = 1024 ** 3;
const disk = (over: Partial<BlockNode> = {}): BlockNode => ({
  name: 'sda',
  path: '/dev/sda',
  majMin: '8:0',
  type: 'disk',
  sizeBytes: 10 * GIB,
  fsType: null,
  label: null,
  uuid: null,
  ptUuid: null,
  ptType: null,
  partType: null,
  readOnly: false,
  removable: false,
  model: null,
  serial: null,
  wwn: null,
  transport: null,
  zoned: 'none',
  mountpoint: null,
  children: [],
  ...over,
});
const plain = { nvmeMultipath: false, logicalBlockBytes: 512, twin: null };

// util-linux 2.38 (Debian 12): a GPT disk with LVM, and a data disk with a file system and no partitions.
const LSBLK = JSON.stringify({
  blockdevices: [
    {
      name: 'zram0',
      kname: 'zram0',
      path: '/dev/zram0',
      'maj:min': '252:0',
      size: 0,
      type: 'disk',
      ro: false,
      rm: false,
      zoned: 'none',
    },
    {
      name: 'vda',
      kname: 'vda',
      path: '/dev/vda',
      'maj:min': '254:0',
      size: 10 * GIB,
      type: 'disk',
      pttype: 'gpt',
      ptuuid: 'aaaa-1111',
      ro: false,
      rm: false,
      zoned: 'none',
      children: [
        {
          name: 'vda1',
          kname: 'vda1',
          path: '/dev/vda1',
          'maj:min': '254:1',
          size: GIB,
          type: 'part',
          fstype: 'vfat',
          uuid: 'AB-CD',
          ro: false,
          rm: false,
        },
        {
          name: 'vda2',
          kname: 'vda2',
          path: '/dev/vda2',
          'maj:min': '254:2',
          size: 9 * GIB,
          type: 'part',
          fstype: 'LVM2_member',
          ro: false,
          rm: false,
          children: [
            {
              name: 'vg0-root',
              kname: 'dm-0',
              path: '/dev/mapper/vg0-root',
              'maj:min': '253:0',
              size: 8 * GIB,
              type: 'lvm',
              fstype: 'ext4',
              uuid: 'root-uuid',
              ro: false,
              rm: false,
            },
            {
              name: 'vg0-swap',
              kname: 'dm-1',
              path: '/dev/mapper/vg0-swap',
              'maj:min': '253:1',
              size: GIB,
              type: 'lvm',
              fstype: 'swap',
              mountpoint: '[SWAP]',
              ro: false,
              rm: false,
            },
          ],
        },
      ],
    },
    {
      name: 'vdb',
      kname: 'vdb',
      path: '/dev/vdb',
      'maj:min': '254:16',
      size: 5 * GIB,
      type: 'disk',
      fstype: 'xfs',
      uuid: 'data-uuid',
      serial: 'DATA01',
      ro: false,
      rm: false,
      zoned: 'none',
    },
    {
      name: 'sr0',
      kname: 'sr0',
      path: '/dev/sr0',
      'maj:min': '11:0',
      size: 2 * GIB,
      type: 'rom',
      ro: false,
      rm: true,
    },
  ],
}); // prettier-ignore
const FINDMNT = JSON.stringify({
  filesystems: [
    {
      target: '/',
      source: '/dev/mapper/vg0-root',
      fstype: 'ext4',
      size: 8 * GIB,
      used: 3 * GIB,
      'maj:min': '253:0',
    },
    {
      target: '/boot/efi',
      source: '/dev/vda1',
      fstype: 'vfat',
      size: GIB,
      used: 1000,
      'maj:min': '254:1',
    },
    {
      target: '/srv',
      source: '/dev/vdb',
      fstype: 'xfs',
      size: 5 * GIB,
      used: GIB,
      'maj:min': '254:16',
    },
    {
      target: '/var/bind',
      source: '/dev/vdb[/x]',
      fstype: 'xfs',
      size: 5 * GIB,
      used: GIB,
      'maj:min': '254:16',
    },
    { target: '/proc', source: 'proc', fstype: 'proc', size: 0, used: 0, 'maj:min': '0:21' },
  ],
}); // prettier-ignore

const build = (lsblk: string, findmnt: string, machineKey = 'machine') =>
  buildDisks({
    devices: parseLsblk(lsblk),
    mounts: parseFindmnt(findmnt),
    slots: new Map(),
    facts: new Map(),
    machineKey,
  });

t.test('disks with partitions, volumes, file systems and use', async (t) => {
  const [vda, vdb, sr0, ...rest] = build(LSBLK, FINDMNT);
  t.same(rest, [], 'zram is not listed');
  t.equal(vda!.isBoot, true, 'it holds /boot/efi');
  t.equal(vda!.usedBytes, 3 * GIB + 1000);
  t.equal(vda!.partitionTable, 'gpt');
  t.same(
    vda!.volumes.map(({ name, kind }) => `${kind} ${name}`),
    ['partition vda1', 'partition vda2', 'lv vg0-root', 'lv vg0-swap'],
  );
  t.match(vda!.volumes[2]!.fileSystem, { type: 'ext4', mountpoint: '/', usedBytes: 3 * GIB });
  t.equal(vda!.volumes[3]!.fileSystem!.mountpoint, '[SWAP]');
  t.match(vdb!, { isBoot: false, usedBytes: GIB, protectable: true, serial: 'DATA01' });
  t.same(
    vdb!.volumes.map(({ kind }) => kind),
    ['whole'],
    'a bind mount is no second file system',
  );
  t.match(sr0!, { protectable: false, reason: 'an optical drive' });
  for (const one of [vda, vdb, sr0]) t.ok(Value.Check(SourceDisk, one), one!.name);
});

t.test('flags and sizes as strings (util-linux before 2.33)', async (t) => {
  const [node] = parseLsblk(
    '{"blockdevices":[{"name":"sda","size":"1048576","ro":"1","rm":"0","type":"disk"}]}',
  );
  t.match(node!, { sizeBytes: 1048576, readOnly: true, removable: false, path: '/dev/sda' });
  t.throws(() => parseLsblk('lsblk: not a tree'), SyntaxError);
  t.same(parseFindmnt(''), []);
});

t.test('a file system over several disks is shared out', async (t) => {
  const both = (name: string, majMin: string) => ({
    name,
    kname: name,
    path: `/dev/${name}`,
    'maj:min': majMin,
    size: 5 * GIB,
    type: 'disk',
    fstype: 'btrfs',
    uuid: 'one',
  }); // prettier-ignore
  const [a, b] = build(
    JSON.stringify({ blockdevices: [both('sda', '8:0'), both('sdb', '8:16')] }),
    JSON.stringify({
      filesystems: [
        {
          target: '/',
          source: '/dev/sda[/@root]',
          fstype: 'btrfs',
          size: 10 * GIB,
          used: 2 * GIB,
          'maj:min': '0:25',
        },
      ],
    }), // prettier-ignore
  );
  t.same([a!.usedBytes, b!.usedBytes], [GIB, GIB]);
  t.equal(a!.isBoot, true);
});

t.test('which disks can be protected, and why not', async (t) => {
  const refused: [Partial<BlockNode>, RegExp, object?][] = [
    [{ name: 'loop0', type: 'loop' }, /loop device/],
    [{ name: 'ram0' }, /RAM disk/],
    [{ name: 'zram0' }, /zram/],
    [{ name: 'sr0', type: 'rom' }, /optical/],
    [{ name: 'fd0' }, /floppy/],
    [{ name: 'mmcblk0boot0' }, /boot area/],
    [{ name: 'pmem0' }, /persistent memory/],
    [{ name: 'nbd0' }, /network block device/],
    [{ name: 'drbd0' }, /DRBD/],
    [{ name: 'md127', type: 'raid1' }, /assembled/],
    [{ name: 'sdb', type: 'part' }, /not a whole disk/],
    [{ sizeBytes: 0 }, /no medium/],
    [{ removable: true }, /removable/],
    [{ transport: 'usb' }, /removable/],
    [{ zoned: 'host-managed' }, /zoned/],
    [{ readOnly: true }, /read-only/],
    [{ name: 'nvme0n1' }, /NVMe multipath/, { nvmeMultipath: true }],
    [{ children: [disk({ name: 'mpatha', type: 'mpath' })] }, /multipath device/],
    [{}, /\(sdz\)/, { twin: 'sdz' }],
    [{ sizeBytes: 4096 }, /too small/],
  ];
  for (const [over, reason, facts] of refused) {
    const verdict = protectability(disk(over), { ...plain, ...facts });
    t.match(verdict, { protectable: false, reason }, JSON.stringify(over));
  }
  for (const name of ['sda', 'vda', 'xvda', 'nvme0n1', 'mmcblk0', 'rbd0', 'dasda']) {
    t.same(protectability(disk({ name }), plain), { protectable: true }, name);
  }
  // A disk that is a member of an array or a volume group is what gets protected.
  const member = disk({ children: [disk({ name: 'md0', type: 'raid1' })] });
  t.same(protectability(member, plain), { protectable: true });
});

// Debian 11 (5.10, util-linux 2.36), a real dm-multipath device over two SCSI paths beside a disk of its own.
t.test(
  'both paths of a recorded dm-multipath device are refused, the disk beside it is not',
  async (t) => {
    const scsi = (name: string, minor: number, children?: object[]) => ({
      ...{ name, kname: name, path: `/dev/${name}`, 'maj:min': `8:${minor}`, fstype: null },
      ...{ label: null, uuid: null, ptuuid: null, pttype: null, ro: false, rm: false },
      ...{ model: 'QEMU HARDDISK   ', serial: null, size: 67108864, type: 'disk', tran: null },
      ...{ wwn: null, zoned: 'none', mountpoint: null },
      ...(children && { children }),
    });
    const mpatha = {
      ...scsi('mpatha', 0),
      kname: 'dm-0',
      path: '/dev/mapper/mpatha',
      type: 'mpath',
    };
    const blockdevices = [scsi('sda', 0), scsi('sdb', 16, [mpatha]), scsi('sdc', 32, [mpatha])];
    const [own, ...paths] = parseLsblk(JSON.stringify({ blockdevices }));
    t.same(protectability(own!, plain), { protectable: true });
    t.equal(paths.length, 2);
    for (const path of paths) {
      t.match(protectability(path, plain), { protectable: false, reason: /one of several paths/ });
    }
  },
);

// Links as Debian 12 (6.1) shows them for a drive of its own and for a namespace behind two controllers.
t.test('the head of native NVMe multipath is told from a drive with one path', async (t) => {
  const own = '../devices/pci0000:00/0000:00:05.0/nvme/nvme0/nvme0n1';
  const head = '../devices/virtual/nvme-subsystem/nvme-subsys2/nvme2n1';
  const native = (name: string, sysfsLink: string, hasMultipathFolder = false) =>
    isNativeMultipath(name, { sysfsLink, hasMultipathFolder });
  t.equal(native('nvme0n1', own), false);
  t.equal(native('nvme2n1', head), true);
  t.equal(native('nvme0n1', own, true), true, 'from 6.15 on a head has a folder of its paths');
  t.equal(native('nvme0n1', ''), false, 'no link: no reason to think so');
  t.equal(native('sda', '../devices/pci0000:00/0000:00:02.0/virtio1/host0/block/sda', true), false);
});

t.test('two paths to one disk are found; equal serials of different models are not', async (t) => {
  const twins = findTwins([
    disk({ name: 'sda', wwn: '0x5000' }),
    disk({ name: 'sdb', wwn: '0x5000' }),
    disk({ name: 'sdc', model: 'A', serial: '1' }),
    disk({ name: 'sdd', model: 'B', serial: '1' }),
    disk({ name: 'sde' }),
    disk({ name: 'sdf' }),
  ]);
  t.same(
    [...twins],
    [
      ['sda', 'sdb'],
      ['sdb', 'sda'],
    ],
  ); // prettier-ignore
  t.equal(worthListing(disk({ name: 'loop1', type: 'loop', readOnly: true })), false, 'a snap');
  t.equal(worthListing(disk({ name: 'loop1', type: 'loop' })), true);
});

t.test("a disk's id outlives reboots and differs between clones of one template", async (t) => {
  const named = (name: string, over: Partial<BlockNode>) => disk({ name, ...over });
  const key = (one: BlockNode) => identityKeys([one], new Map([['sda', 'pci-0:1']])).get(one.name);
  t.equal(
    key(named('sda', { serial: 'S', model: 'M' })),
    key(named('sdz', { serial: 'S', model: 'M' })),
  );
  t.equal(key(named('sda', { ptUuid: 'P' })), key(named('vdb', { ptUuid: 'P' })));
  t.equal(key(named('sda', {})), 'slot:pci-0:1');
  const copied = identityKeys(
    [named('sda', { ptUuid: 'P' }), named('sdb', { ptUuid: 'P' })],
    new Map(),
  );
  t.not(copied.get('sda'), copied.get('sdb'), 'a copied partition table makes no two disks one');
  t.match(
    diskId('machine', 'k'),
    /^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/,
  );
  t.equal(diskId('machine', 'k'), diskId('machine', 'k'));
  t.not(diskId('machine', 'k'), diskId('clone', 'k'));
  const [a] = build(LSBLK, FINDMNT, 'one');
  const [b] = build(LSBLK, FINDMNT, 'two');
  t.not(a!.diskId, b!.diskId);
});

t.test('network interfaces', async (t) => {
  const addr = JSON.stringify([
    {
      ifname: 'lo',
      link_type: 'loopback',
      addr_info: [{ family: 'inet', local: '127.0.0.1', prefixlen: 8, scope: 'host' }],
    },
    {
      ifname: 'ens3',
      link_type: 'ether',
      address: '52:54:00:00:00:01',
      addr_info: [
        { family: 'inet', local: '10.0.0.5', prefixlen: 24, scope: 'global', dynamic: true },
        { family: 'inet6', local: 'fe80::1', prefixlen: 64, scope: 'link' },
      ],
    },
    { ifname: 'ens4', link_type: 'ether', address: '52:54:00:00:00:02', addr_info: [] },
    {
      ifname: 'bond0',
      link_type: 'ether',
      address: '52:54:00:00:00:03',
      addr_info: [{ family: 'inet', local: '10.1.0.5', prefixlen: 16, scope: 'global' }],
    },
    {
      ifname: 'veth1',
      link_type: 'ether',
      address: '52:54:00:00:00:04',
      addr_info: [{ family: 'inet', local: '172.17.0.1', prefixlen: 16, scope: 'global' }],
    },
  ]); // prettier-ignore
  const route = JSON.stringify([{ dst: 'default', gateway: '10.0.0.1', dev: 'ens3' }]);
  const nics = buildNics(addr, route, new Set(['ens3', 'ens4']));
  t.same(nics, [
    {
      name: 'ens3',
      mac: '52:54:00:00:00:01',
      addresses: ['10.0.0.5/24'],
      gateway: '10.0.0.1',
      dhcp: true,
    },
    { name: 'ens4', mac: '52:54:00:00:00:02', addresses: [], gateway: null, dhcp: null },
    {
      name: 'bond0',
      mac: '52:54:00:00:00:03',
      addresses: ['10.1.0.5/16'],
      gateway: null,
      dhcp: false,
    },
  ]); // prettier-ignore
});

t.test('operating system and firmware identity', async (t) => {
  t.equal(
    prettyOsName('ID=debian\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'),
    'Debian GNU/Linux 12 (bookworm)',
  );
  t.equal(prettyOsName('ID=x'), null);
  t.equal(
    smbiosUuidOf('4C4C4544-0042-3510-8054-B7C04F564433\n'),
    '4c4c4544-0042-3510-8054-b7c04f564433',
  );
  for (const nothing of [
    null,
    '',
    'Not Settable',
    '00000000-0000-0000-0000-000000000000',
    '03000200-0400-0500-0006-000700080009',
  ]) {
    t.equal(smbiosUuidOf(nothing), null, String(nothing));
  }
});

t.test('the same machine, a clone, a replica', async (t) => {
  const me = { smbiosUuid: 'a', diskSerials: ['1', '2'], bootId: 'b', hostname: 'h' };
  t.same(sameMachine(me, { ...me, bootId: 'other', hostname: 'renamed' }), { same: true });
  t.same(
    sameMachine(me, { ...me, diskSerials: ['2', '3'] }),
    { same: true },
    'a disk was exchanged',
  );
  t.match(sameMachine(me, { ...me, smbiosUuid: 'z' }), { same: false, reason: /UUID is z/ });
  t.match(sameMachine(me, { ...me, smbiosUuid: null }), { same: false });
  t.match(sameMachine(me, { ...me, diskSerials: ['x'] }), {
    same: false,
    reason: /none of the disks/,
  });
  t.match(sameMachine(me, { ...me, diskSerials: [] }), { same: false });
  const bare = { ...me, smbiosUuid: null, diskSerials: [] };
  t.same(sameMachine(bare, { ...bare, diskSerials: ['new'] }), { same: true });
});

t.test('services that can be chosen', async (t) => {
  t.same(
    parseServices(
      [
        'cron.service                loaded active running Regular background program processing daemon',
        'dbus.service                loaded active running D-Bus System Message Bus',
        'getty@tty1.service          loaded active running Getty on tty1',
        'postgresql@15-main.service  loaded active running PostgreSQL Cluster 15-main',
        'systemd-journald.service    loaded active running Journal Service',
        'understudy-agent.service    loaded active running Understudy agent',
        'nothing of the kind',
        '',
      ].join('\n'),
    ),
    [
      { unit: 'cron.service', description: 'Regular background program processing daemon' },
      { unit: 'postgresql@15-main.service', description: 'PostgreSQL Cluster 15-main' },
    ],
  );
});

t.test("this machine's own inventory is what the API promises", async (t) => {
  const inventory = await takeInventory();
  t.same([...Value.Errors(Inventory, inventory)], []);
  t.ok(inventory.cpuCount > 0 && inventory.memoryBytes > 0);
  t.equal(new Set(inventory.disks.map(({ diskId }) => diskId)).size, inventory.disks.length);
});
