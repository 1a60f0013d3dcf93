/** Who this machine is: what the agent's identity is bound to, and whether it still is that machine. */
import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import type { MachineIdentity } from '../../protocol/control.ts';
import { lsblk } from './tools.ts';

const read = async (file: string): Promise<string | null> => {
  try {
    return (await readFile(file, 'utf8')).trim() || null;
  } catch {
    return null;
  }
};

// What firmware says when nobody filled the field in: no identity.
const NO_UUID =
  /^(0{8}-0{4}-0{4}-0{4}-0{12}|f{8}-f{4}-f{4}-f{4}-f{12}|03000200-0400-0500-0006-000700080009)$/;

/** The firmware's UUID in lower case; null when it has none or one that every machine has. */
export function smbiosUuidOf(raw: string | null): string | null {
  const uuid = raw?.trim().toLowerCase() ?? '';
  return /^[0-9a-f-]{36}$/.test(uuid) && !NO_UUID.test(uuid) ? uuid : null;
}

/** This machine's identity now. */
export async function machineIdentity(): Promise<MachineIdentity> {
  const disks = await lsblk();
  return {
    smbiosUuid: smbiosUuidOf(await read('/sys/class/dmi/id/product_uuid')),
    diskSerials: disks
      .filter((disk) => disk.type === 'disk' && disk.serial !== null)
      .map((disk) => disk.serial!.slice(0, 128))
      .sort(),
    bootId: (await read('/proc/sys/kernel/random/boot_id')) ?? 'unknown',
    hostname: hostname().slice(0, 253),
  };
}

/** What disk ids are made unique with: the firmware's UUID, else the operating system's machine id. */
export async function machineKey(identity: MachineIdentity): Promise<string> {
  return identity.smbiosUuid ?? (await read('/etc/machine-id')) ?? identity.hostname;
}

export type Sameness = { same: true } | { same: false; reason: string };

/**
 * Is this still the machine that enrolled? A clone or a replica that someone starts by hand is not.
 * The firmware's UUID decides where both have one. Disks may be added or exchanged one by one: they speak against the
 * machine only when none of the known ones is left.
 */
export function sameMachine(enrolled: MachineIdentity, now: MachineIdentity): Sameness {
  if (enrolled.smbiosUuid && now.smbiosUuid && enrolled.smbiosUuid !== now.smbiosUuid) {
    return {
      same: false,
      reason: `the machine's UUID is ${now.smbiosUuid}; the agent was enrolled on ${enrolled.smbiosUuid}: this is a copy of that machine`,
    };
  }
  if (Boolean(enrolled.smbiosUuid) !== Boolean(now.smbiosUuid)) {
    return {
      same: false,
      reason: `the machine's UUID is ${now.smbiosUuid ?? 'not set'}; the agent was enrolled on a machine with ${enrolled.smbiosUuid ?? 'none'}: this is a copy of that machine`,
    };
  }
  const known = new Set(enrolled.diskSerials);
  if (known.size > 0 && !now.diskSerials.some((serial) => known.has(serial))) {
    return {
      same: false,
      reason:
        'none of the disks that the agent was enrolled with is in this machine: this is a copy of that machine',
    };
  }
  return { same: true };
}
