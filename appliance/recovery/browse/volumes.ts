/**
 * Mounts the file systems of a point for reading, in the isolated process. The disks are overlays of the point that are
 * thrown away: a journal that was in use is replayed onto them, as any mount of the disk would, so that files are as the
 * guest would see them after a power cut; from then on the mount is read-only.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import type { GuestVolume } from '../../api/schema.ts';
import { type ByteReader, openReader, window } from '../prepare-guest/bytes.ts';
import { findDevice, type GuestPartition } from '../prepare-guest/devices.ts';
import { findPartitions } from '../prepare-guest/find-partitions.ts';
import { run, WORK } from '../prepare-guest/isolation.ts';
import { identify } from '../prepare-guest/superblock.ts';
import type { PrepareDisk } from '../types.ts';
import { externalJournal } from './external-journal.ts';
import { GuestFiles } from './guest-files.ts';
import { readVolumeGroup, type VolumeGroup } from './lvm.ts';

const MOUNTABLE: Record<string, 'ext4' | 'xfs' | 'vfat'> = {
  ext2: 'ext4',
  ext3: 'ext4',
  ext4: 'ext4',
  xfs: 'xfs',
  vfat: 'vfat',
};
const REASONS: Record<string, string> = {
  swap: 'swap space',
  lvm: 'a part of a volume group',
  md: 'a member of a RAID array, which is not assembled here',
  luks: 'encrypted',
  btrfs: 'btrfs: two copies of one in the same kernel would be mixed up',
  zfs: 'ZFS, which the appliance does not have',
  unknown: 'no file system that is known',
};
const SHIELD = 'nosuid,nodev,noexec,noatime';
const MAX_FSTAB_BYTES = 1024 * 1024;

export interface MountedVolumes {
  volumes: GuestVolume[];
  files: Map<string, GuestFiles>;
}

type Disks = readonly (PrepareDisk & { sizeBytes: number })[];

export function mountVolumes(disks: Disks): MountedVolumes {
  const partitions = findPartitions(disks);
  const logical = findLogical(disks, partitions);
  const files = new Map<string, GuestFiles>();
  const parts = [...partitions, ...logical.parts];
  const volumes = parts.map((part, index): GuestVolume => {
    const { sourceName, content, partition } = part;
    const shared = {
      volumeId: sourceName,
      disk: disks[part.disk]?.sourceName ?? '',
      sizeBytes: partition.sizeBytes,
      content: content.type,
      label: content.label,
      uuid: content.uuid,
      mountPoint: null,
    };
    const type = MOUNTABLE[content.type];
    if (!type || files.has(sourceName)) {
      return { ...shared, browsable: false, note: REASONS[content.type] ?? 'it is there twice' };
    }
    const root = `${WORK}/${index}`;
    mkdirSync(root);
    const { mounted, note } = mount(disks, part, type, root);
    if (mounted) files.set(sourceName, new GuestFiles(root, sourceName));
    return { ...shared, browsable: mounted, note };
  });
  return { volumes: withMountPoints([...volumes, ...logical.closed], parts, files), files };
}

/** Logical volumes as parts of the disks, named `group/volume`; those that are not in one piece with the reason. */
function findLogical(
  disks: Disks,
  partitions: readonly GuestPartition[],
): { parts: GuestPartition[]; closed: GuestVolume[] } {
  const groups = new Map<string, VolumeGroup>();
  const pvs = new Map<string, GuestPartition>();
  for (const pv of partitions.filter(({ content }) => content.type === 'lvm')) {
    const group = within(disks, pv, readVolumeGroup);
    if (!group) continue;
    pvs.set(group.pvId, pv);
    // One that missed a change, because its disk was away, is older.
    if ((groups.get(group.id)?.seqno ?? -1) < group.seqno) groups.set(group.id, group);
  }
  const parts: GuestPartition[] = [];
  const closed: GuestVolume[] = [];
  for (const { name, volumes } of groups.values()) {
    for (const volume of volumes) {
      const sourceName = `${name}/${volume.name}`;
      const { place } = volume;
      const pv = 'pvId' in place ? pvs.get(place.pvId) : undefined;
      if ('pvId' in place && pv && place.offsetBytes + place.sizeBytes <= pv.partition.sizeBytes) {
        const partition: GuestPartition['partition'] = {
          number: 0,
          startBytes: pv.partition.startBytes + place.offsetBytes,
          sizeBytes: place.sizeBytes,
          partUuid: null,
          type: '',
        };
        const part = { sourceName, disk: pv.disk, partition };
        parts.push({ ...part, content: within(disks, part, identify) });
        continue;
      }
      closed.push({
        volumeId: sourceName,
        disk: name,
        sizeBytes: 'sizeBytes' in place ? place.sizeBytes : 0,
        content: 'lvm',
        label: null,
        uuid: null,
        mountPoint: null,
        browsable: false,
        note: 'reason' in place ? place.reason : 'a logical volume on a disk that is not there',
      });
    }
  }
  return { parts, closed };
}

function within<T>(
  disks: Disks,
  part: Pick<GuestPartition, 'disk' | 'partition'>,
  look: (reader: ByteReader) => T,
): T {
  const reader = openReader(disks[part.disk]?.devicePath ?? '');
  try {
    return look(window(reader, part.partition.startBytes, part.partition.sizeBytes));
  } finally {
    reader.close();
  }
}

function mount(
  disks: Disks,
  part: GuestPartition,
  type: 'ext4' | 'xfs' | 'vfat',
  root: string,
): { mounted: boolean; note: string | null } {
  const { startBytes, sizeBytes } = part.partition;
  const device = disks[part.disk]?.devicePath ?? '';
  if (type === 'ext4') {
    const elsewhere = within(disks, part, externalJournal);
    if (elsewhere) return { mounted: false, note: elsewhere };
  }
  const made = run('losetup', [
    '--find',
    '--show',
    `--offset=${startBytes}`,
    `--sizelimit=${sizeBytes}`,
    device,
  ]);
  const loop = made.output.match(/\/dev\/loop\d+$/)?.[0];
  if (made.status !== 0 || !loop) return { mounted: false, note: `no loop device: ${made.output}` };
  try {
    const special = {
      // A superblock may ask the kernel to panic when it finds an error.
      ext4: ['errors=remount-ro'],
      // Points of one source have the same UUID; XFS would refuse the second.
      xfs: ['nouuid'],
      vfat: ['errors=continue'],
    }[type];
    const go = (...more: string[]) =>
      run('mount', ['-t', type, '-o', ['ro', SHIELD, ...special, ...more].join(','), loop, root]);
    const first = go();
    if (first.status === 0) return { mounted: true, note: null };
    const without = { ext4: 'noload', xfs: 'norecovery', vfat: null }[type];
    if (without && go(without).status === 0) {
      const note = 'its journal cannot be replayed: the newest changes may be missing or half done';
      return { mounted: true, note };
    }
    return { mounted: false, note: `it cannot be mounted: ${first.output.slice(0, 300)}` };
  } finally {
    // While it is mounted, this only says that it goes away with the mount.
    run('losetup', ['-d', loop]);
  }
}

/** Where the guest's own fstab has its file systems; the root file system says it of all. */
function withMountPoints(
  volumes: GuestVolume[],
  partitions: readonly GuestPartition[],
  files: ReadonlyMap<string, GuestFiles>,
): GuestVolume[] {
  const points = new Map<string, string>();
  for (const one of files.values()) {
    for (const [device, point] of fstabOf(one)) {
      const part = findDevice(device, partitions) ?? findMapped(device, partitions);
      if (part && !points.has(part.sourceName)) points.set(part.sourceName, point);
    }
  }
  return volumes.map((volume) => ({
    ...volume,
    mountPoint: points.get(volume.volumeId) ?? null,
  }));
}

/** `/dev/group/volume` and `/dev/mapper/group-volume`, in which a dash of a name is written twice. */
function findMapped(
  device: string,
  partitions: readonly GuestPartition[],
): GuestPartition | undefined {
  return partitions.find(({ sourceName }) => {
    const mapped = sourceName.replaceAll('-', '--').replace('/', '-');
    return device === `/dev/${sourceName}` || device === `/dev/mapper/${mapped}`;
  });
}

function fstabOf(files: GuestFiles): [string, string][] {
  try {
    return files
      .read('/etc/fstab', 0, MAX_FSTAB_BYTES)
      .toString('utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .flatMap(([device = '', point = '']) =>
        device !== '' && !device.startsWith('#') && point.startsWith('/')
          ? [[device, point.slice(0, 200)] as [string, string]]
          : [],
      );
  } catch {
    return [];
  }
}

/** Unmounts all below `WORK`. Returns what could not be. */
export function unmountAll(): string[] {
  const targets = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' ')[1] ?? '')
    .filter((target) => target.startsWith(`${WORK}/`));
  return targets.filter((target) => run('umount', [target]).status !== 0);
}
