/**
 * Is the machine that presents a source's certificate the machine that enrolled? A certificate is copied with the
 * disk it lies on, so every clone and every replica has it.
 *
 * | SMBIOS UUID        | disk serials        | verdict                                                     |
 * |--------------------|---------------------|-------------------------------------------------------------|
 * | differs            | any                 | another machine                                             |
 * | same or not known  | none left of ours   | another machine (a copy under a UUID that was copied too)   |
 * | same or not known  | some left, or none known on either side | the same machine; disks come and go     |
 */
import type { MachineIdentity } from '../../protocol/control.ts';

export type MachineVerdict = { same: true } | { same: false; reason: string };

const normal = (uuid: string | null): string | null => uuid?.trim().toLowerCase() || null;

export function compareMachines(bound: MachineIdentity, now: MachineIdentity): MachineVerdict {
  const boundUuid = normal(bound.smbiosUuid);
  const nowUuid = normal(now.smbiosUuid);
  if (boundUuid && nowUuid && boundUuid !== nowUuid) {
    return {
      same: false,
      reason: `its SMBIOS UUID is ${nowUuid}, the source enrolled with ${boundUuid} (host name ${now.hostname})`,
    };
  }
  const known = new Set(bound.diskSerials.filter((serial) => serial !== ''));
  const present = now.diskSerials.filter((serial) => serial !== '');
  if (known.size > 0 && present.length > 0 && !present.some((serial) => known.has(serial))) {
    return {
      same: false,
      reason: `none of its disks is one that the source enrolled with (host name ${now.hostname})`,
    };
  }
  return { same: true };
}
