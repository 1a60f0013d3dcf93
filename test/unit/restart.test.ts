/** What tells, after a restart, that a disk was left alone; and when what was saved may be believed. */
import { join } from 'node:path';
import t from 'tap';
import type { Extent } from '../../agent/capture/capture.ts';
import { agentPaths } from '../../agent/config.ts';
import type { BlockNode } from '../../agent/inventory/lsblk.ts';
import { Exclusions } from '../../agent/mirror/exclusions.ts';
import { type Carried, compareAfter, mayCarry } from '../../agent/restart/carried.ts';
import { earlyUnitText, hookText } from '../../agent/restart/early-boot.ts';
import {
  type Layout,
  parseDmTable,
  type Witness,
  witnessesOf,
  witnessLines,
} from '../../agent/restart/witnesses.ts';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

let minors = 0;
const node = (name: string, over: Partial<BlockNode> = {}): BlockNode => ({
  name,
  path: `/dev/${name}`,
  majMin: `8:${minors++}`,
  type: 'part',
  sizeBytes: GIB,
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
  zoned: null,
  mountpoint: null,
  children: [],
  ...over,
});

/** A disk of partitions, each 1 GiB, from 1 MiB on. */
function partitioned(ptType: 'gpt' | 'dos', ...partitions: BlockNode[]): Layout {
  const disk = node('sda', { type: 'disk', sizeBytes: 20 * GIB, ptType, children: partitions });
  const starts = partitions.map(({ majMin }, at) => [majMin, MIB + at * GIB] as const);
  return {
    disks: [{ index: 3, node: disk, partitionStarts: new Map(starts) }],
    dmTables: new Map(),
    bootFiles: [],
  };
}

const brief = (witnesses: Witness[]) =>
  witnesses.map((w) =>
    w.kind === 'refuse' ? w.reason : `${w.kind} ${w.offsetBytes / MIB}+${w.lengthBytes / MIB}`,
  );

t.test('each part of a disk has its witness, or the disk is refused', async (t) => {
  const root = node('sda3', { fsType: 'ext4' });
  const layout = partitioned(
    'gpt',
    node('sda1', { partType: '21686148-6449-6e6f-744e-656564454649', sizeBytes: MIB }),
    node('sda2', { fsType: 'vfat' }),
    root,
    node('sda4', { fsType: 'swap' }),
    node('sda5', { fsType: 'xfs' }),
  );
  const bootFiles = [
    { majMin: root.majMin, offsetBytes: 40 * MIB, lengthBytes: 1024 },
    { majMin: '99:1', offsetBytes: 0, lengthBytes: 1024 },
  ];
  const witnesses = witnessesOf({ ...layout, bootFiles });
  t.same(brief(witnesses), [
    'same 0+1',
    `same ${20 * 1024 - (33 * 512) / MIB}+${(33 * 512) / MIB}`,
    'same 1+1',
    'touched 1025+1024',
    'ext4 2049+1024',
    `same 3073+${4096 / MIB}`,
    'xfs 4097+1024',
    `touched 2089+${1024 / MIB}`,
  ]);
  t.match(witnessLines(witnesses), /^ext4 3 2148532224 1073741824 sda3$/m);

  const refused = (...partitions: BlockNode[]) =>
    brief(witnessesOf(partitioned('dos', ...partitions))).filter((text) => !/^\w+ \d/.test(text));
  t.same(refused(root), []);
  t.same(refused(root, node('sdb2', { partType: '0x5', sizeBytes: 1024 })), []);
  t.same(refused(root, node('sda2', { fsType: 'btrfs' })), ['sda2 holds btrfs']);
  t.same(refused(root, node('sda2')), ['sda2 holds nothing that can be told']);
  t.same(refused(root, node('sda2', { fsType: 'crypto_LUKS' })), ['sda2 holds crypto_LUKS']);
  const raid = node('sda2', {
    fsType: 'linux_raid_member',
    children: [node('md0', { type: 'raid1' })],
  });
  t.same(refused(root, raid), ['sda2: raid1 lies on it']);
  t.same(refused(node('sda1', { fsType: 'swap' })), ['no file system on it can tell (swap)']);
  const bare = node('sdb', { type: 'disk', fsType: 'xfs', sizeBytes: GIB });
  const disks = [{ index: 0, node: bare, partitionStarts: new Map<string, number>() }];
  t.same(brief(witnessesOf({ disks, dmTables: new Map(), bootFiles: [] })), ['xfs 0+1024']);
  const unknown = { ...layout.disks[0]!, partitionStarts: new Map<string, number>() };
  t.match(brief(witnessesOf({ ...layout, disks: [unknown] })), [/./, /./, /where it begins/]);
});

t.test('volumes that lie in one piece are looked at, others are refused', async (t) => {
  const volume = (name: string) =>
    node(name, { type: 'lvm', fsType: 'ext4', sizeBytes: 512 * MIB });
  const plain = volume('vg-root');
  const split = volume('vg-split');
  const striped = volume('vg-striped');
  const pv = node('sda1', { fsType: 'LVM2_member', children: [plain, split, striped] });
  const layout = partitioned('dos', pv);
  const line = (sectors: number, start: number) => `0 ${sectors} linear ${pv.majMin} ${start}`;
  const dmTables = new Map([
    [plain.majMin, parseDmTable(`${line(524288, 384)}\n${line(524288, 524672)}\n`)],
    [split.majMin, parseDmTable(`${line(524288, 2048000)}\n${line(524288, 4096000)}`)],
    [striped.majMin, parseDmTable('0 1048576 striped 2 128 8:1 384 8:2 384')],
  ]);
  t.same(brief(witnessesOf({ ...layout, dmTables })), [
    'same 0+1',
    // Up to where the first volume begins.
    `same 1+${(384 * 512) / MIB}`,
    `ext4 ${1 + (384 * 512) / MIB}+512`,
    'vg-split: it lies in several pieces',
    'vg-striped: it is no plain volume (striped)',
  ]);
  t.match(brief(witnessesOf(layout)), [/./, /./, /how it lies on its disk cannot be told/]);
});

t.test('what was saved is believed if the capture of before would have been', async (t) => {
  const carried: Carried = {
    captureId: 'C2',
    saved: { captureId: 'C1', bootId: 'B1', releasedPos: 4000 },
    disks: { 0: null, 1: 'it was mounted' },
  };
  const remote = {
    journalId: 'J',
    epoch: 2,
    durableSeq: 50,
    capturePos: 5000,
    binding: { captureId: 'C1', bootId: 'B1' },
  };
  const remembered = { journalId: 'J', epoch: 2, ackedSeq: 40 };
  t.ok(mayCarry(carried, 'C2', remote, remembered));
  t.ok(mayCarry(carried, 'C2', remote, null));
  t.notOk(mayCarry(carried, 'C3', remote, remembered), 'another capture is attached');
  t.notOk(mayCarry(carried, 'C2', { ...remote, durableSeq: 39 }, remembered), 'set back');
  t.notOk(mayCarry(carried, 'C2', { ...remote, epoch: 1 }, remembered), 'set back further');
  t.notOk(mayCarry(carried, 'C2', { ...remote, capturePos: 3999 }, null), 'not all was durable');
  t.notOk(mayCarry(carried, 'C2', { ...remote, binding: null }, null), 'begun anew');
  for (const binding of [
    { captureId: 'C0', bootId: 'B1' },
    { captureId: 'C1', bootId: 'B0' },
  ]) {
    t.notOk(mayCarry(carried, 'C2', { ...remote, binding }, remembered), 'two restarts ago');
  }
  const disks = [{ index: 0 }, { index: 1 }, { index: 2 }];
  t.same(compareAfter(carried, disks, []), [1, 2], 'one that was not there is compared');
  t.same(compareAfter(carried, disks.slice(0, 1), [4]), [4]);
  t.equal(compareAfter(carried, disks, 'all'), 'all');
});

t.test('what was left out is found again under the device numbers of now', async (t) => {
  const path = join(t.testdir(), 'excluded.json');
  const file = (dev: string, deviceOffsetBytes: number, offsetBytes: number) => ({
    dev,
    path: '/cache',
    handle: `1:${offsetBytes}`,
    deviceOffsetBytes,
    shares: false,
    spans: [{ offsetBytes, lengthBytes: 4096 }],
  });
  const before = new Exclusions(path);
  await before.add(0, [file('8:17', MIB, 40 * MIB), file('8:18', GIB, 2 * GIB)]);
  const after = new Exclusions(path);
  const dirty: Array<[number, Extent[]]> = [];
  await after.rename(
    async (disk, offsetBytes) => (disk === 0 && offsetBytes === MIB ? '8:1' : null),
    async (disk, extents) => void dirty.push([disk, extents]),
  );
  t.same(dirty, [[0, [{ offsetBytes: 2 * GIB, lengthBytes: 4096 }]]], 'of one that is not found');
  const seen: string[] = [];
  await new Exclusions(path).follow(
    async (files) => {
      seen.push(...files.map(({ dev }) => dev));
      return files.map(() => 'holds');
    },
    async () => {},
  );
  t.same(seen, ['8:1']);
});

t.test(
  'the unit waits for nothing, and the hook passes on how the machine goes down',
  async (t) => {
    const paths = agentPaths();
    const unit = earlyUnitText(paths);
    t.match(unit, /^DefaultDependencies=no$/m);
    t.notMatch(unit, /^(After|Requires|Wants)=/m);
    // Either would order it behind the sockets of journald, before which it has to run.
    t.notMatch(unit, /^Standard\w+=(?!null$)/m);
    t.match(hookText(paths), /^#!\/bin\/sh\nexec \S+ save --pin \S+ --run \S+ --area \S+ "\$1"/);
  },
);
