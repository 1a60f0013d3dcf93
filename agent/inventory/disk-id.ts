/**
 * A disk's lasting name. Kernel names (sda) change from boot to boot; this must not, for frames are applied to the
 * replica disk that belongs to it.
 */
import { createHash } from 'node:crypto';
import type { BlockNode } from './lsblk.ts';

/**
 * What identifies each whole disk on its machine, best first: the WWN, the serial, the partition table's UUID, the
 * file system's UUID, the slot (by-path), and the kernel's name as the last resort. Where two disks share it (a copied
 * partition table), the slot is added.
 */
export function identityKeys(
  disks: readonly BlockNode[],
  slots: ReadonlyMap<string, string>,
): Map<string, string> {
  const slot = (disk: BlockNode) => slots.get(disk.name) ?? disk.name;
  const first = new Map<string, string>();
  for (const disk of disks) {
    const key = disk.wwn
      ? `wwn:${disk.wwn}`
      : disk.serial
        ? `serial:${disk.model ?? ''}/${disk.serial}`
        : disk.ptUuid
          ? `ptuuid:${disk.ptUuid}`
          : disk.uuid
            ? `fsuuid:${disk.uuid}`
            : `slot:${slot(disk)}`;
    first.set(disk.name, key);
  }
  const uses = new Map<string, number>();
  for (const key of first.values()) uses.set(key, (uses.get(key) ?? 0) + 1);
  return new Map(
    disks.map((disk) => {
      const key = first.get(disk.name)!;
      return [disk.name, uses.get(key)! > 1 ? `${key}@${slot(disk)}` : key];
    }),
  );
}

/**
 * A UUID (version 8, RFC 9562) out of machine and disk: two servers made from one template have equal disks, and both
 * replicas may be attached to one appliance.
 */
export function diskId(machineKey: string, identityKey: string): string {
  const hash = createHash('sha256').update(`${machineKey}\n${identityKey}`).digest();
  hash[6] = (hash[6]! & 0x0f) | 0x80;
  hash[8] = (hash[8]! & 0x3f) | 0x80;
  const hex = hash.toString('hex', 0, 16);
  return [
    hex.slice(0, 8),
    hex.slice(8, 12),
    hex.slice(12, 16),
    hex.slice(16, 20),
    hex.slice(20),
  ].join('-'); // prettier-ignore
}
