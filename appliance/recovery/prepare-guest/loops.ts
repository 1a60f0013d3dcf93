/** Which loop devices rest on given disks. The kernel shows them to every mount namespace. */
import { readdirSync, readFileSync } from 'node:fs';

/** Kernel names, such as `loop3`. */
export function loopsOf(devicePaths: readonly string[]): string[] {
  return readdirSync('/sys/block').filter((name) => {
    try {
      const file = readFileSync(`/sys/block/${name}/loop/backing_file`, 'utf8').trim();
      return devicePaths.includes(file);
    } catch {
      return false;
    }
  });
}
