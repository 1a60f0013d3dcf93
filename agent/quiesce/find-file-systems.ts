/** Reads from /proc and /sys what freeze-order.ts decides by. */
import { open, readdir, readFile, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { type BlockFacts, freezeOrder, type MountEntry, parseMountinfo } from './freeze-order.ts';

const text = (path: string) => readFile(path, 'utf8').then((content) => content.trim());

/** `major:minor` of a block device. */
async function deviceNumber(path: string): Promise<string | null> {
  const found = await stat(path).catch(() => null);
  if (!found?.isBlockDevice()) return null;
  const { rdev } = found;
  return `${Math.floor(rdev / 256) & 0xfff}:${(rdev & 0xff) | (Math.floor(rdev / 4096) & 0xfff00)}`;
}

async function blockFacts(mounts: readonly MountEntry[]): Promise<BlockFacts> {
  const below = new Map<string, string[]>();
  const loopFiles = new Map<string, string>();
  const sourceDevs = new Map<string, string>();
  for (const name of await readdir('/sys/class/block')) {
    const sys = join('/sys/class/block', name);
    const dev = await text(join(sys, 'dev')).catch(() => null);
    if (!dev) continue;
    const rests: string[] = [];
    for (const slave of await readdir(join(sys, 'slaves')).catch(() => [])) {
      const number = await text(join(sys, 'slaves', slave, 'dev')).catch(() => null);
      if (number) rests.push(number);
    }
    if (await text(join(sys, 'partition')).catch(() => null)) {
      const disk = await text(join(await realpath(sys), '..', 'dev')).catch(() => null);
      if (disk) rests.push(disk);
    }
    if (rests.length > 0) below.set(dev, rests);
    const file = await text(join(sys, 'loop', 'backing_file')).catch(() => null);
    if (file) loopFiles.set(dev, file.replace(/ \(deleted\)$/, ''));
  }
  for (const { dev, source } of mounts) {
    if (!dev.startsWith('0:') || !source.startsWith('/') || sourceDevs.has(source)) continue;
    const number = await deviceNumber(source);
    if (number) sourceDevs.set(source, number);
  }
  return { below, loopFiles, sourceDevs };
}

/** Whether the mount point leads to this very mount (another one may lie over it) and is a folder, not a bound file. */
async function isReachable(mount: MountEntry): Promise<boolean> {
  const handle = await open(mount.mountPoint, 'r').catch(() => null);
  if (!handle) return false;
  try {
    if (!(await handle.stat()).isDirectory()) return false;
    const info = await text(`/proc/self/fdinfo/${handle.fd}`);
    return new RegExp(`^mnt_id:\\s*${mount.mountId}$`, 'm').test(info);
  } finally {
    await handle.close();
  }
}

/**
 * Mount points of the file systems on these disks, in the order in which they are to be frozen. Only what is mounted in
 * this process's mount namespace is seen.
 * @param devicePaths of whole disks
 */
export async function findFileSystems(devicePaths: readonly string[]): Promise<string[]> {
  const disks = new Set<string>();
  for (const path of devicePaths) {
    const number = await deviceNumber(path);
    if (number) disks.add(number);
  }
  const all = parseMountinfo(await readFile('/proc/self/mountinfo', 'utf8'));
  // Only block devices and btrfs: a network file system whose server is away must not be opened.
  const candidates = all.filter(
    ({ dev, fsType, source }) =>
      !dev.startsWith('0:') || (source.startsWith('/') && !/^(nfs|cifs|smb)/.test(fsType)),
  );
  const mounts: MountEntry[] = [];
  for (const mount of candidates) if (await isReachable(mount)) mounts.push(mount);
  const facts = await blockFacts(mounts);
  return freezeOrder(mounts, disks, facts).map(({ mountPoint }) => mountPoint);
}
