/**
 * Reading back whether a snapshot happened: after a crash, or an answer of the host that was lost, only the chains of the
 * disks tell. Nothing is ever taken over or deleted by its name alone: the image below it must be the recorded one.
 */
import { asUndError } from '../../protocol/errors.ts';
import type { AttachedDisk, DiskRef, Hypervisor } from '../hypervisor/hypervisor.ts';
import { volumeName } from '../hypervisor/names.ts';

/** A disk as it was when the snapshot was asked for. */
export interface SnapshotDisk {
  diskId: string;
  serial: string;
  /** What the VM wrote then. */
  image: DiskRef;
}

export type SnapshotFound =
  /** Every attached disk writes to its recorded image. */
  | { name: 'none' }
  /** Every disk writes to a new layer directly on its recorded image. */
  | { name: 'done'; tops: Map<string, DiskRef> }
  /** Neither: somebody else changed the chain. */
  | { name: 'broken'; disk: SnapshotDisk; expected: string; found: string };

export const sameDisk = (a: DiskRef | undefined, b: DiskRef | undefined): boolean =>
  a !== undefined && b !== undefined && a.pool === b.pool && a.name === b.name;

export const bySerial = (attached: AttachedDisk[], serial: string): AttachedDisk | undefined =>
  attached.find((disk) => disk.serial === serial);

/** @throws UND_HV_… when the host cannot be asked */
export async function readSnapshot(
  hypervisor: Hypervisor,
  vm: string,
  disks: readonly SnapshotDisk[],
): Promise<SnapshotFound> {
  const attached = await hypervisor.listAttachedDisks(vm);
  const tops = new Map<string, DiskRef>();
  for (const disk of disks) {
    const top = bySerial(attached, disk.serial)?.disk;
    if (top && !sameDisk(top, disk.image)) tops.set(disk.diskId, top);
  }
  if (tops.size === 0) return { name: 'none' };
  // At once: apply waits for it.
  const chains = await Promise.all(
    disks.map(({ diskId }) => {
      const top = tops.get(diskId);
      return top && hypervisor.chain(top);
    }),
  );
  for (const [at, disk] of disks.entries()) {
    const top = tops.get(disk.diskId);
    const below = chains[at]?.[1];
    if (!top || !sameDisk(below, disk.image)) {
      const found = top ? `${top.name} on ${below?.name ?? 'nothing'}` : 'no checkpoint';
      return { name: 'broken', disk, expected: disk.image.name, found };
    }
  }
  return { name: 'done', tops };
}

/** The overlay that a lost call made: by the name it was given and its base. Null when there is none. */
export async function findLeftover(
  hypervisor: Hypervisor,
  base: DiskRef,
  name: string,
): Promise<DiskRef | null> {
  try {
    const asked = { pool: base.pool, name: volumeName(name), path: '' };
    const { pool, name: found, path, backing } = await hypervisor.diskInfo(asked);
    return sameDisk(backing, base) ? { pool, name: found, path } : null;
  } catch (error) {
    if (asUndError(error).code === 'UND_HV_DISK_NOT_FOUND') return null;
    throw error;
  }
}
