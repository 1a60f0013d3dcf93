/** Finds a replica disk that was attached to the appliance, by its serial. */
import { readdir, readFile, realpath, stat, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { undError } from '../../protocol/errors.ts';

export interface DiskLocator {
  /** The path of the block device, or null when it is not there (yet). */
  find(serial: string): Promise<string | null>;
}

/** The serial under which a replica disk is attached: `u` and the first 19 hex digits of its id. */
export const replicaSerial = (replicaId: string): string =>
  `u${replicaId.replaceAll('-', '').toLowerCase()}`.slice(0, 20);

/** udev's link, else the SCSI unit serial number page that the kernel shows in sysfs. */
export class SysfsDiskLocator implements DiskLocator {
  async find(serial: string): Promise<string | null> {
    try {
      return await realpath(`/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_${serial}`);
    } catch {
      // No udev, or not yet.
    }
    for (const name of await readdir('/sys/block').catch(() => [] as string[])) {
      if (!name.startsWith('sd')) continue;
      try {
        // Page 80h: four bytes of header, then the serial (SPC-5, 7.7.19).
        const page = await readFile(join('/sys/block', name, 'device/vpd_pg80'));
        if (page.subarray(4).toString('latin1').replaceAll('\0', '').trim() === serial) {
          return join('/dev', name);
        }
      } catch {
        // Not a SCSI disk, or just gone.
      }
    }
    return null;
  }
}

/**
 * Waits for an attached disk to appear.
 * @throws UND_REPLICA_DISK_ABSENT
 */
export async function waitForDisk(
  locator: DiskLocator,
  disk: { serial: string; job: string },
  options: { timeoutMs: number; signal: AbortSignal },
): Promise<string> {
  const deadline = performance.now() + options.timeoutMs;
  for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 1000)) {
    const path = await locator.find(disk.serial);
    if (path) return path;
    if (performance.now() > deadline) {
      throw undError('UND_REPLICA_DISK_ABSENT', { ...disk, timeoutMs: options.timeoutMs });
    }
    await delay(pauseMs, undefined, { signal: options.signal });
  }
}

/** The size of a block device, or of the file that stands for one. */
export async function deviceSizeBytes(path: string): Promise<number> {
  const info = await stat(path);
  if (!info.isBlockDevice()) return info.size;
  const name = basename(await realpath(path));
  return Number(await readFile(`/sys/class/block/${name}/size`, 'utf8')) * 512;
}

/**
 * Waits until a disk that was grown shows its new size. QEMU tells the guest's driver; some kernels have to be asked
 * to look.
 * @throws UND_REPLICA_DISK_SMALL
 */
export async function waitForSize(
  path: string,
  sizeBytes: number,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<void> {
  const deadline = performance.now() + timeoutMs;
  for (let pauseMs = 50; ; pauseMs = Math.min(pauseMs * 2, 1000)) {
    const now = await deviceSizeBytes(path);
    if (now >= sizeBytes) return;
    if (performance.now() > deadline) {
      throw undError('UND_REPLICA_DISK_SMALL', { path, sizeBytes: now, neededBytes: sizeBytes });
    }
    await writeFile(`/sys/class/block/${basename(await realpath(path))}/device/rescan`, '1').catch(
      () => undefined,
    );
    await delay(pauseMs, undefined, { signal });
  }
}
