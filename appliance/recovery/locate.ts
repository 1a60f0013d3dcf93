/** Finds the appliance's block device for a hot-attached disk, and flushes it. */
import { open, readdir, readFile, realpath } from 'node:fs/promises';
import { setTimeout as pause } from 'node:timers/promises';
import { undError } from '../../protocol/errors.ts';

/** The SCSI unit serial number page (0x80): a four-byte header, then the serial. */
export function serialFromVpd80(page: Buffer): string {
  return page
    .subarray(4, 4 + page.readUInt16BE(2))
    .toString('latin1')
    .trim();
}

async function bySysfs(serial: string): Promise<string | null> {
  const names = await readdir('/sys/block').catch(() => []);
  for (const name of names) {
    try {
      const page = await readFile(`/sys/block/${name}/device/vpd_pg80`);
      if (page.length >= 4 && serialFromVpd80(page) === serial) return `/dev/${name}`;
    } catch {
      // Not a SCSI disk, or it just went away.
    }
  }
  return null;
}

/**
 * Waits until the disk with this serial has a device node. The kernel finds a hot-attached disk some moments after the
 * hypervisor's answer. Throws `UND_FAILOVER_DEVICE_MISSING`.
 */
export async function locateDisk(
  serial: string,
  signal: AbortSignal,
  limitMs = 120_000,
): Promise<string> {
  const began = Date.now();
  for (let pauseMs = 25; ; pauseMs = Math.min(200, pauseMs * 2)) {
    const link = `/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_${serial}`;
    const found = (await realpath(link).catch(() => null)) ?? (await bySysfs(serial));
    if (found) {
      const handle = await open(found, 'r').catch(() => null);
      if (handle) {
        await handle.close();
        return found;
      }
    }
    if (Date.now() - began > limitMs) {
      throw undError('UND_FAILOVER_DEVICE_MISSING', { serial, limitMs });
    }
    await pause(pauseMs, undefined, { signal });
  }
}

/** Everything written to the device so far is on its image: page cache and the disk's own write cache. */
export async function flushDevice(path: string): Promise<void> {
  const handle = await open(path, 'r+');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
