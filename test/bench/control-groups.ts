/** Where control groups of one controller lie on this machine, in either of the kernel's two forms. */
import fs from 'node:fs';
import { join } from 'node:path';

const ROOT = '/sys/fs/cgroup';

export interface ControlGroups {
  isV2: boolean;
  /** Below it new groups are made. */
  top: string;
  /** The group that this process is in. */
  home: string;
}

/** Null where this process is in no group of the controller. */
export function controlGroups(controller: 'cpu' | 'blkio'): ControlGroups | null {
  const isV2 = fs.existsSync(join(ROOT, 'cgroup.controllers'));
  const top = isV2 ? ROOT : join(ROOT, controller);
  const line = isV2 ? /^0::(.*)$/m : new RegExp(`^\\d+:(?:.*,)?${controller}(?:,.*)?:(.*)$`, 'm');
  const own = line.exec(fs.readFileSync('/proc/self/cgroup', 'utf8'))?.[1];
  return own === undefined ? null : { isV2, top, home: join(top, own) };
}
