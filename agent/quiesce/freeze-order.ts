/** Pure: which mounted file systems rest on the protected disks, and in which order they are frozen. */

/** One line of /proc/self/mountinfo. */
export interface MountEntry {
  mountId: number;
  /** `major:minor` of the file system; a number of its own (0:N) where it spans several devices (btrfs). */
  dev: string;
  mountPoint: string;
  fsType: string;
  source: string;
  readOnly: boolean;
}

export interface BlockFacts {
  /** What a block device rests on directly, by `major:minor`: a partition's disk, the parts of an LVM or md device. */
  below: ReadonlyMap<string, readonly string[]>;
  /** The file behind a loop device, by the device's `major:minor`. */
  loopFiles: ReadonlyMap<string, string>;
  /** `major:minor` of a file system's source, where the file system has a number of its own. */
  sourceDevs: ReadonlyMap<string, string>;
}

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );

/** The mounts of /proc/self/mountinfo, in its order. */
export function parseMountinfo(mountinfo: string): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of mountinfo.split('\n')) {
    const [left, right] = line.split(' - ');
    if (!left || !right) continue;
    const [mountId, , dev, , mountPoint] = left.split(' ');
    const [fsType, source, superOptions] = right.split(' ');
    if (!mountId || !dev || !mountPoint || !fsType || !source) continue;
    entries.push({
      mountId: Number(mountId),
      dev,
      mountPoint: unescapeOctal(mountPoint),
      fsType,
      source: unescapeOctal(source),
      readOnly: (superOptions ?? '').split(',').includes('ro'),
    });
  }
  return entries;
}

/** The mount that a path lies on, by the longest mount point above it; of equal ones the newest. */
export function mountOf(path: string, mounts: readonly MountEntry[]): MountEntry | undefined {
  let best: MountEntry | undefined;
  for (const mount of mounts) {
    const above =
      mount.mountPoint === '/' ||
      path === mount.mountPoint ||
      path.startsWith(`${mount.mountPoint}/`);
    if (above && mount.mountPoint.length >= (best?.mountPoint.length ?? 0)) best = mount;
  }
  return best;
}

/**
 * The mount points to freeze, in order; one for each file system that rests, directly or through partitions, LVM, md or
 * loop devices, on one of the disks.
 *
 * The order: a file system on a loop device comes before the one that holds the loop's file, because its flush writes
 * there, and would wait for ever if that were frozen. Among those that do not rest on one another, longer mount points
 * come first, and the root file system last: nothing more can be started or logged once it is frozen. Thawing goes the
 * other way round.
 * @param mounts those that can be reached at their mount points
 * @param disks `major:minor` of the protected disks
 */
export function freezeOrder(
  mounts: readonly MountEntry[],
  disks: ReadonlySet<string>,
  facts: BlockFacts,
): MountEntry[] {
  const blockDev = (mount: MountEntry) => facts.sourceDevs.get(mount.source) ?? mount.dev;
  const hosts = new Map<string, Set<string>>();

  /** Walks down from a block device; says whether a protected disk is met, and notes file systems on the way. */
  const restsOn = (dev: string, seen: Set<string>, holders: Set<string>): boolean => {
    if (seen.has(dev)) return false;
    seen.add(dev);
    let found = disks.has(dev);
    for (const below of facts.below.get(dev) ?? []) {
      if (restsOn(below, seen, holders)) found = true;
    }
    const file = facts.loopFiles.get(dev);
    const holder = file === undefined ? undefined : mountOf(file, mounts);
    if (holder) {
      holders.add(holder.dev);
      if (restsOn(blockDev(holder), seen, holders)) found = true;
    }
    return found;
  };

  const chosen = new Map<string, MountEntry>();
  for (const mount of mounts) {
    if (mount.readOnly || chosen.has(mount.dev)) continue;
    const holders = new Set<string>();
    if (!restsOn(blockDev(mount), new Set(), holders)) continue;
    chosen.set(mount.dev, mount);
    hosts.set(mount.dev, holders);
  }

  const ordered: MountEntry[] = [];
  const left = new Set(
    [...chosen.values()].sort(
      (a, b) =>
        b.mountPoint.length - a.mountPoint.length || a.mountPoint.localeCompare(b.mountPoint),
    ),
  );
  while (left.size > 0) {
    // One on which no other one that is left rests; `holders` is transitive, so there always is one.
    const free = [...left].filter(
      (mount) =>
        ![...left].some((other) => other !== mount && hosts.get(other.dev)?.has(mount.dev)),
    );
    const next = free.find(({ mountPoint }) => mountPoint !== '/') ?? free[0] ?? [...left][0]!;
    ordered.push(next);
    left.delete(next);
  }
  return ordered;
}
