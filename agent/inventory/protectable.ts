/**
 * Which disks of a source server can be protected. The table is asked from top to bottom; the first row that matches
 * says why not. It is the one place that knows; preflight and inventory both ask it.
 */
import type { BlockNode } from './lsblk.ts';
import { walk } from './lsblk.ts';

/** What sysfs knows of a disk and lsblk does not say. */
export interface DiskFacts {
  /** /sys/block/NAME/multipath or hidden paths exist: the kernel itself spreads its requests over several paths. */
  nvmeMultipath: boolean;
  logicalBlockBytes: number;
  /** Another whole disk of the machine reports the same WWN or serial and model. */
  twin: string | null;
}

export type Protectable = { protectable: true } | { protectable: false; reason: string };

type Row = [when: (disk: BlockNode, facts: DiskFacts) => boolean, reason: string];

const named = (pattern: RegExp) => (disk: BlockNode) => pattern.test(disk.name);

const REFUSED: readonly Row[] = [
  [
    (disk) => disk.type === 'loop' || /^loop\d/.test(disk.name),
    'a loop device is a file of another disk: protect that disk',
  ],
  [named(/^ram\d/), 'a RAM disk does not outlive a reboot'],
  [named(/^zram\d/), 'compressed memory (zram) does not outlive a reboot'],
  [(disk) => disk.type === 'rom' || /^sr\d/.test(disk.name), 'an optical drive'],
  [named(/^fd\d/), 'a floppy drive'],
  [named(/^mmcblk\d+(boot|rpmb)/), 'a boot area of eMMC memory, not a disk'],
  [
    named(/^(pmem|dax)\d/),
    'persistent memory is written past the block layer, where writes are captured',
  ],
  [named(/^nbd\d/), 'a network block device: protect it on the server that holds it'],
  [named(/^drbd\d/), 'a DRBD device is another disk seen twice: protect its backing disk'],
  [named(/^(md|dm-)/), 'an assembled device: protect the disks that it is made of'],
  [(disk) => disk.type !== 'disk', 'not a whole disk'],
  [(disk) => disk.sizeBytes === 0, 'no medium in it'],
  [(disk) => disk.removable || disk.transport === 'usb', 'a removable disk'],
  [
    (disk) => disk.zoned !== null && disk.zoned !== 'none',
    'a zoned disk: writes in any order are not possible on a replica of it',
  ],
  [(disk) => disk.readOnly, 'it is read-only'],
  [
    (_, facts) => facts.nvmeMultipath,
    'several paths lead to it (native NVMe multipath), which is not supported yet',
  ],
  [
    (disk) => disk.children.some((child) => child.type === 'mpath'),
    'one of several paths of a multipath device, which is not supported yet',
  ],
  [
    (_, facts) => facts.twin !== null,
    'another disk ({twin}) reports the same identity: two paths to one disk without multipath, or a copy of it',
  ],
  [
    (disk) => disk.sizeBytes % 512 !== 0 || disk.sizeBytes < 1024 * 1024,
    'it is too small to hold anything',
  ],
]; // prettier-ignore

/**
 * Is this NVMe disk the head of several paths? With native multipath the kernel makes it of a subsystem, also when one
 * path is all there is; the paths' own devices are hidden. `sysfsLink` is what /sys/block/NAME links to; the folder
 * /sys/block/NAME/multipath came with 6.15.
 */
export function isNativeMultipath(
  name: string,
  facts: { sysfsLink: string; hasMultipathFolder: boolean },
): boolean {
  return (
    name.startsWith('nvme') &&
    (facts.hasMultipathFolder || facts.sysfsLink.includes('/nvme-subsystem/'))
  );
}

/** Can this whole disk be protected? */
export function protectability(disk: BlockNode, facts: DiskFacts): Protectable {
  for (const [when, reason] of REFUSED) {
    if (when(disk, facts)) {
      return { protectable: false, reason: reason.replace('{twin}', facts.twin ?? '') };
    }
  }
  return { protectable: true };
}

/** Devices that nobody would look for in a list of disks: memory, empty drives, files that are mounted (snaps). */
export function worthListing(disk: BlockNode): boolean {
  if (/^(ram|zram)\d/.test(disk.name)) return false;
  if (disk.sizeBytes === 0) return false;
  return !(disk.type === 'loop' && (disk.readOnly || disk.sizeBytes === 0));
}

/** For each whole disk the name of another one with the same identity, as far as one can tell. */
export function findTwins(disks: readonly BlockNode[]): Map<string, string> {
  const seen = new Map<string, BlockNode[]>();
  for (const disk of disks) {
    if (disk.type !== 'disk') continue;
    // A path that dm-multipath has taken is refused by its own row, with the better reason.
    if ([...walk(disk)].some((node) => node.type === 'mpath')) continue;
    const key = disk.wwn ?? (disk.serial && `${disk.model ?? ''}/${disk.serial}`);
    if (key) seen.set(key, [...(seen.get(key) ?? []), disk]);
  }
  const twins = new Map<string, string>();
  for (const same of seen.values()) {
    for (const disk of same) {
      const other = same.find((one) => one !== disk && one.sizeBytes === disk.sizeBytes);
      if (other) twins.set(disk.name, other.name);
    }
  }
  return twins;
}
