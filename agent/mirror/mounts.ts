/** Pure: what /proc/self/mountinfo and /proc/swaps say. */

export interface Mount {
  /** `major:minor` */
  dev: string;
  /** The folder of the file system that is seen at the mount point; not `/` for a bind mount of a part. */
  root: string;
  mountPoint: string;
  type: string;
}

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );

export function parseMounts(mountinfo: string): Mount[] {
  const mounts: Mount[] = [];
  for (const line of mountinfo.split('\n')) {
    const [left, right] = line.split(' - ');
    if (!left || !right) continue;
    const [, , dev, root, mountPoint] = left.split(' ');
    const [type] = right.split(' ');
    if (!dev || !root || !mountPoint || !type) continue;
    mounts.push({ dev, root: unescapeOctal(root), mountPoint: unescapeOctal(mountPoint), type });
  }
  return mounts;
}

/** The active swap areas by kind: device paths of partitions, and paths of files. */
export function parseSwaps(swaps: string): { devices: string[]; files: string[] } {
  const devices: string[] = [];
  const files: string[] = [];
  for (const line of swaps.split('\n').slice(1)) {
    const [path, type] = line.split(/\s+/);
    if (path && type === 'partition') devices.push(unescapeOctal(path));
    if (path && type === 'file') files.push(unescapeOctal(path));
  }
  return { devices, files };
}

const isBelow = (path: string, folder: string): boolean =>
  folder === '/' || path === folder || path.startsWith(`${folder}/`);

const join = (folder: string, rest: string): string => (folder === '/' ? rest : folder + rest);

/** Every name under which `path` of a file system (from its root, with a leading slash) is seen through these mounts. */
export function visiblePaths(mounts: readonly Mount[], path: string): string[] {
  return mounts
    .filter(({ root }) => isBelow(path, root))
    .map(({ root, mountPoint }) => {
      const rest = root === '/' ? path : path.slice(root.length);
      return rest === '' ? mountPoint : join(mountPoint, rest);
    });
}

/** Where a visible path lies: its mount, and the path within that mount's file system. */
export function locate(
  mounts: readonly Mount[],
  visible: string,
): { mount: Mount; path: string } | null {
  let found: Mount | undefined;
  for (const mount of mounts) {
    // Of two at one place the later one lies on top.
    if (
      isBelow(visible, mount.mountPoint) &&
      mount.mountPoint.length >= (found?.mountPoint ?? '').length
    ) {
      found = mount;
    }
  }
  if (!found) return null;
  const rest = found.mountPoint === '/' ? visible : visible.slice(found.mountPoint.length);
  return { mount: found, path: rest === '' ? found.root : join(found.root, rest) };
}
