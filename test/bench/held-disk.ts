/**
 * A disk held to a speed, for whom it is held: this process and its further children, while it lasts. What is written past
 * the page cache is held by both kinds of control groups; of the older kind, nothing else is.
 */
import fs from 'node:fs';
import { join } from 'node:path';
import { controlGroups } from './control-groups.ts';

export class HeldDisk {
  readonly #group: string;
  /** Where this process came from. */
  readonly #home: string;

  private constructor(group: string, home: string) {
    this.#group = group;
    this.#home = home;
  }

  /**
   * Holds the disk that a path is on to so many bytes per second of writes; null where the kernel or the container has no
   * such groups to give, or the path's file system is on no disk.
   */
  static hold(path: string, bytesPerSec: number): HeldDisk | null {
    const groups = controlGroups('blkio');
    if (!groups) return null;
    const { isV2, top, home } = groups;
    const held = new HeldDisk(join(top, `understudy-held-${process.pid}`), home);
    try {
      const disk = diskOf(path);
      if (isV2) fs.writeFileSync(join(top, 'cgroup.subtree_control'), '+io');
      fs.mkdirSync(held.#group);
      const [file, value] = isV2
        ? ['io.max', `${disk} wbps=${bytesPerSec}`]
        : ['blkio.throttle.write_bps_device', `${disk} ${bytesPerSec}`];
      fs.writeFileSync(join(held.#group, file), value);
      fs.writeFileSync(join(held.#group, 'cgroup.procs'), String(process.pid));
      return held;
    } catch {
      held.free();
      return null;
    }
  }

  /** Ends it for all. */
  free(): void {
    if (!fs.existsSync(this.#group)) return;
    for (const pid of fs.readFileSync(join(this.#group, 'cgroup.procs'), 'utf8').split('\n')) {
      if (!pid) continue;
      try {
        fs.writeFileSync(join(this.#home, 'cgroup.procs'), pid);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
      }
    }
    fs.rmdirSync(this.#group);
  }
}

/** Major and minor number of the whole disk below a path's file system: partitions cannot be held. */
function diskOf(path: string): string {
  const { dev } = fs.statSync(path);
  // As glibc's gnu_dev_major and gnu_dev_minor, below 2^32.
  const number = `${(dev >>> 8) & 0xfff}:${(dev & 0xff) | ((dev >>> 12) & 0xfff00)}`;
  const sys = fs.realpathSync(`/sys/dev/block/${number}`);
  const whole = fs.existsSync(join(sys, 'partition')) ? join(sys, '..') : sys;
  return fs.readFileSync(join(whole, 'dev'), 'utf8').trim();
}
