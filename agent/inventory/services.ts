/** The services that run, for people to choose from what a planned failover stops. */
import { UNIT_NAME_PATTERN } from '../../protocol/unit-names.ts';
import { UNIT_NAME } from '../config.ts';

const MOST = 300;
/** What a server needs to be stopped in order, or what stops nothing that writes. */
const NEVER =
  /^(systemd-|(serial-|console-|container-)?getty@|user(-runtime-dir)?@|dbus|polkit|modprobe@|initrd-|emergency|rescue)/;
const GOOD_UNIT = new RegExp(UNIT_NAME_PATTERN, 'u');

/** Reads `systemctl list-units --type=service --state=running --plain --no-legend --full`. */
export function parseServices(text: string): { unit: string; description: string }[] {
  return text
    .split('\n')
    .flatMap((line) => {
      const [, unit = '', description = ''] =
        /^\s*(\S+\.service)\s+\S+\s+\S+\s+\S+\s*(.*)$/.exec(line) ?? [];
      const isOffered = GOOD_UNIT.test(unit) && !NEVER.test(unit) && unit !== UNIT_NAME;
      return isOffered ? [{ unit, description: description.trim().slice(0, 200) }] : [];
    })
    .slice(0, MOST);
}
