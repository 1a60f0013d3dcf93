/**
 * A disk held to a speed, while it lasts. Of the older kind of control groups a group holds only what is written past the
 * page cache; what the kernel writes back is of the topmost group, which can hold a device of one's own.
 */
import fs from 'node:fs';
import { join } from 'node:path';
import { type ControlGroups, controlGroups } from './control-groups.ts';

const BPS = 'blkio.throttle.write_bps_device';
const IOPS = 'blkio.throttle.write_iops_device';

export class HeldDisk {
  #undo: Array<() => void> = [];

  /**
   * Holds the disk that a path is on to so many bytes per second of writes past the page cache, for this process and its
   * further children; null where the kernel or the container has no such groups to give, or the path is on no disk.
   */
  static hold(path: string, bytesPerSec: number): HeldDisk | null {
    return HeldDisk.#held((held) => held.#group(diskOf(fs.statSync(path).dev), bytesPerSec));
  }

  /**
   * Holds a device that nobody else uses, however it is written; null as above.
   * @param perSec bytes, or writes, per second
   */
  static holdDevice(
    dev: string,
    perSec: number,
    of: 'bytes' | 'writes' = 'bytes',
  ): HeldDisk | null {
    return HeldDisk.#held((held, { isV2, top }) => {
      const disk = diskOf(fs.statSync(dev).rdev);
      if (isV2) return held.#group(disk, perSec, of);
      const file = join(top, of === 'bytes' ? BPS : IOPS);
      fs.writeFileSync(file, `${disk} ${perSec}`);
      held.#undo.push(() => fs.writeFileSync(file, `${disk} 0`));
    });
  }

  static #held(hold: (held: HeldDisk, groups: ControlGroups) => void): HeldDisk | null {
    const held = new HeldDisk();
    const groups = controlGroups('blkio');
    if (!groups) return null;
    try {
      hold(held, groups);
      return held;
    } catch {
      held.free();
      return null;
    }
  }

  /** A group of this process that holds a disk. */
  #group(disk: string, perSec: number, of: 'bytes' | 'writes' = 'bytes'): void {
    const { isV2, top, home } = controlGroups('blkio')!;
    const group = join(top, `understudy-held-${process.pid}`);
    // What is written back is the group's whose memory it is.
    if (isV2) fs.writeFileSync(join(top, 'cgroup.subtree_control'), '+io +memory');
    fs.mkdirSync(group);
    this.#undo.push(() => leave(group, home));
    const [file, value] = isV2
      ? ['io.max', `${disk} ${of === 'bytes' ? 'wbps' : 'wiops'}=${perSec}`]
      : [of === 'bytes' ? BPS : IOPS, `${disk} ${perSec}`];
    fs.writeFileSync(join(group, file), value);
    fs.writeFileSync(join(group, 'cgroup.procs'), String(process.pid));
  }

  /** Ends it for all. */
  free(): void {
    for (const undo of this.#undo.splice(0)) undo();
  }
}

/** Moves who is in a group to where this process came from, and removes it. */
function leave(group: string, home: string): void {
  for (const pid of fs.readFileSync(join(group, 'cgroup.procs'), 'utf8').split('\n')) {
    if (!pid) continue;
    try {
      fs.writeFileSync(join(home, 'cgroup.procs'), pid);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
    }
  }
  fs.rmdirSync(group);
}

/** Major and minor number of the whole disk of a device: partitions cannot be held. */
function diskOf(dev: number): string {
  // As glibc's gnu_dev_major and gnu_dev_minor, below 2^32.
  const number = `${(dev >>> 8) & 0xfff}:${(dev & 0xff) | ((dev >>> 12) & 0xfff00)}`;
  const sys = fs.realpathSync(`/sys/dev/block/${number}`);
  const whole = fs.existsSync(join(sys, 'partition')) ? join(sys, '..') : sys;
  return fs.readFileSync(join(whole, 'dev'), 'utf8').trim();
}
