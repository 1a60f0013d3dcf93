import { undError } from '../../protocol/errors.ts';

/**
 * The prefix and suffix of every image file that Understudy makes. The target host's wrapper touches no other file in
 * a storage pool, so a pool may be shared with other VMs.
 */
const VOLUME_PREFIX = 'understudy-';
const VOLUME_SUFFIX = '.qcow2';

const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const SERIAL = /^[A-Za-z0-9_-]{1,20}$/;

/** The name itself when it fits for a VM, pool or network; else throws UND_HV_BAD_NAME. `what` is for the message. */
export function checkName(what: string, name: string): string {
  if (!NAME.test(name)) throw undError('UND_HV_BAD_NAME', { what, name: JSON.stringify(name) });
  return name;
}

/** The serial itself when it fits for a disk; else throws UND_HV_BAD_SERIAL. */
export function checkSerial(serial: string): string {
  if (!SERIAL.test(serial)) {
    throw undError('UND_HV_BAD_SERIAL', { serial: JSON.stringify(serial) });
  }
  return serial;
}

/** The file name for a disk called `name`; a name that is one already stays. Throws UND_HV_BAD_NAME. */
export function volumeName(name: string): string {
  let core = name;
  if (core.startsWith(VOLUME_PREFIX)) core = core.slice(VOLUME_PREFIX.length);
  if (core.endsWith(VOLUME_SUFFIX)) core = core.slice(0, -VOLUME_SUFFIX.length);
  if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,190}$/.test(core)) {
    throw undError('UND_HV_BAD_NAME', { what: 'The disk', name: JSON.stringify(name) });
  }
  return `${VOLUME_PREFIX}${core}${VOLUME_SUFFIX}`;
}
