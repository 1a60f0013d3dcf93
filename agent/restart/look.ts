/** Looks at the machine for witnessesOf: what lies where on the protected disks. */
import { readFile, realpath } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { execa } from 'execa';
import type { FileMap } from '../capture/file-map.ts';
import { type BlockNode, walk } from '../inventory/lsblk.ts';
import { lsblk } from '../inventory/tools.ts';
import { parseMounts } from '../mirror/mounts.ts';
import { type DiskLayout, type DmTarget, type Layout, parseDmTable } from './witnesses.ts';

/** What boot loaders write to without the system: GRUB saves which entry was booted, and whether it came up. */
const BOOT_FILES = ['/boot/grub/grubenv', '/boot/grub2/grubenv'];

export async function lookAtDisks(
  disks: ReadonlyArray<{ index: number; devicePath: string }>,
  openFileMap: () => FileMap,
): Promise<Layout> {
  const forest = await lsblk();
  const layouts: DiskLayout[] = [];
  for (const { index, devicePath } of disks) {
    const path = await realpath(devicePath);
    const node = forest.find((root) => root.path === path);
    if (!node) throw new Error(`${devicePath} is not among the block devices`);
    layouts.push({ index, node, partitionStarts: await partitionStarts(node) });
  }
  const dmTables = new Map<string, DmTarget[]>();
  for (const { node } of layouts) {
    for (const { type, majMin, name } of walk(node)) {
      if (type !== 'lvm' || dmTables.has(majMin)) continue;
      const { stdout, failed } = await execa('dmsetup', ['table', '--noflush', name], {
        reject: false,
        timeout: 30_000,
        stdin: 'ignore',
      });
      if (!failed) dmTables.set(majMin, parseDmTable(stdout));
    }
  }
  return { disks: layouts, dmTables, bootFiles: await bootFiles(openFileMap) };
}

async function partitionStarts(disk: BlockNode): Promise<Map<string, number>> {
  const starts = new Map<string, number>();
  for (const { type, path, majMin } of disk.children) {
    if (type !== 'part') continue;
    const start = join('/sys/class/block', basename(path), 'start');
    const sectors = await readFile(start, 'utf8').catch(() => null);
    if (sectors !== null) starts.set(majMin, Number(sectors.trim()) * 512);
  }
  return starts;
}

/** @throws if they may be where they cannot be looked at */
async function bootFiles(openFileMap: () => FileMap): Promise<Layout['bootFiles']> {
  const fstab = await readFile('/etc/fstab', 'utf8').catch(() => '');
  const mounts = parseMounts(await readFile('/proc/self/mountinfo', 'utf8'));
  const pieces: Array<Layout['bootFiles'][number]> = [];
  const files = openFileMap();
  try {
    for (const point of ['/boot', '/boot/grub', '/boot/grub2']) {
      const isMounted = mounts.some(({ mountPoint }) => mountPoint === point);
      if (!isMounted && new RegExp(`^\\s*[^#\\s]+\\s+${point}/?\\s`, 'm').test(fstab))
        throw new Error(`${point} is not mounted: the boot loader may write to it`);
    }
    for (const name of BOOT_FILES) {
      const path = await realpath(name).catch(() => null);
      if (path === null) continue;
      const [mount] = mounts
        .filter(({ mountPoint: at }) => at === '/' || path.startsWith(`${at}/`))
        .sort((a, b) => b.mountPoint.length - a.mountPoint.length);
      if (!mount) continue;
      const inMount = path.slice(mount.mountPoint === '/' ? 1 : mount.mountPoint.length + 1);
      const file = await files.map(mount.mountPoint, inMount);
      if (!file) throw new Error(`where ${path} lies cannot be told`);
      for (const { physicalBytes, lengthBytes } of file.extents) {
        pieces.push({ majMin: file.dev, offsetBytes: physicalBytes, lengthBytes });
      }
    }
  } finally {
    await files.close();
  }
  return pieces;
}
