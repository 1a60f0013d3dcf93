/**
 * Mounts the file systems of a point for reading, in the isolated process. The disks are overlays of the point that are
 * thrown away: a journal that was in use is replayed onto them, as any mount of the disk would, so that files are as the
 * guest would see them after a power cut; from then on the mount is read-only.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import type { GuestVolume } from '../../api/schema.ts';
import { openReader, window } from '../prepare-guest/bytes.ts';
import { findDevice, type GuestPartition } from '../prepare-guest/devices.ts';
import { findPartitions } from '../prepare-guest/find-partitions.ts';
import { run, WORK } from '../prepare-guest/isolation.ts';
import type { PrepareDisk } from '../types.ts';
import { externalJournal } from './external-journal.ts';
import { GuestFiles } from './guest-files.ts';

const MOUNTABLE: Record<string, 'ext4' | 'xfs' | 'vfat'> = {
  ext2: 'ext4',
  ext3: 'ext4',
  ext4: 'ext4',
  xfs: 'xfs',
  vfat: 'vfat',
};
const REASONS: Record<string, string> = {
  swap: 'swap space',
  lvm: 'a volume group, which is not activated here',
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

export function mountVolumes(
  disks: readonly (PrepareDisk & { sizeBytes: number })[],
): MountedVolumes {
  const partitions = findPartitions(disks);
  const files = new Map<string, GuestFiles>();
  const volumes = partitions.map((part, index): GuestVolume => {
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
    const { mounted, note } = mount(disks[part.disk]?.devicePath ?? '', part, type, root);
    if (mounted) files.set(sourceName, new GuestFiles(root, sourceName));
    return { ...shared, browsable: mounted, note };
  });
  return { volumes: withMountPoints(volumes, partitions, files), files };
}

function mount(
  device: string,
  part: GuestPartition,
  type: 'ext4' | 'xfs' | 'vfat',
  root: string,
): { mounted: boolean; note: string | null } {
  const { startBytes, sizeBytes } = part.partition;
  if (type === 'ext4') {
    const reader = openReader(device);
    try {
      const elsewhere = externalJournal(window(reader, startBytes, sizeBytes));
      if (elsewhere) return { mounted: false, note: elsewhere };
    } finally {
      reader.close();
    }
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
      const part = findDevice(device, partitions);
      if (part && !points.has(part.sourceName)) points.set(part.sourceName, point);
    }
  }
  return volumes.map((volume) => ({
    ...volume,
    mountPoint: points.get(volume.volumeId) ?? null,
  }));
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
