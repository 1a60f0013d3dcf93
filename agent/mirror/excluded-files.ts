/**
 * Files whose content the mirror leaves out, as spans of a disk, and whether that still holds later.
 *
 * A span that was left out is not on the replica, and nothing will bring it there unless it is written again. That is
 * no loss while it belongs to an excluded file. It would be one if the file came to a place that is not excluded: a
 * rename or a link writes no data. So every file that was left out is looked after from then on (exclusions.ts), and
 * one that is not found in its place any more is read. docs/stream.md has the argument.
 */
import { lstat, opendir } from 'node:fs/promises';
import { join } from 'node:path';
import { compileExclusions, type ExclusionState, stepPath } from '../../protocol/exclusions.ts';
import type { FileExtent, FileMap, MappedFile } from '../capture/file-map.ts';
import { locate, type Mount, visiblePaths } from './mounts.ts';
import type { Span } from './touched.ts';

export interface ExcludedFile {
  /** `major:minor` of its file system's device */
  dev: string;
  /** Within its file system, from its root, with a leading slash. */
  path: string;
  handle: string;
  /** Where the file system's device begins on the disk. */
  deviceOffsetBytes: number;
  /** The file system can make blocks of one file those of another without writing them (reflinks). */
  shares: boolean;
  /** On the disk; sorted. */
  spans: Span[];
}

/** `read`: its spans are to be read now. `forget`: its blocks are nobody's, or another file's that wrote them. */
export type Verdict = 'holds' | 'forget' | 'read';

/** The mounts and the active swap files of a moment. */
export interface Places {
  mounts: readonly Mount[];
  swapFiles: readonly string[];
}

/** The largest ones are left out; each is looked at every few seconds for as long as the job runs. */
const MAX_FILES = 2_000;
const MAX_SPANS = 50_000;
const MAX_ENTRIES = 2_000_000;
/** Smaller pieces are not worth leaving out; a qcow2 cluster. */
const MIN_BYTES = 64 * 1024;
/** A swap file's first page is its header, as that of a partition. */
const SWAP_HEADER_BYTES = 4096;

/** The only ones whose physical addresses are those of one device, and whose rules are known here. */
const SHARES = new Map([
  ['ext2', false],
  ['ext3', false],
  ['ext4', false],
  ['xfs', true],
]);
export const isMappable = (type: string): boolean => SHARES.has(type);

const EXTENT_LAST = 0x1;
const EXTENT_UNWRITTEN = 0x800;
const EXTENT_MERGED = 0x1000;
/** Everything else (delayed, inline, encrypted, compressed, shared, a tail of many) is copied. */
const PLAIN = EXTENT_LAST | EXTENT_UNWRITTEN | EXTENT_MERGED;

/** Pure: what of a file's extents may be left out, on the disk, sorted. */
export function plainSpans(
  extents: readonly FileExtent[],
  deviceOffsetBytes: number,
  { minBytes = MIN_BYTES, keepFirstBytes = 0 } = {},
): Span[] {
  const spans: Span[] = [];
  for (const { logicalBytes, physicalBytes, lengthBytes, flags } of extents) {
    const cut = Math.max(0, keepFirstBytes - logicalBytes);
    if ((flags & ~PLAIN) !== 0 || lengthBytes - cut < minBytes) continue;
    const offsetBytes = deviceOffsetBytes + physicalBytes + cut;
    spans.push({ offsetBytes, lengthBytes: lengthBytes - cut });
  }
  return spans.sort((a, b) => a.offsetBytes - b.offsetBytes);
}

/** Pure: whether `outer` (sorted) covers all of `inner`. */
export const coversAll = (outer: readonly Span[], inner: readonly Span[]): boolean =>
  inner.every(({ offsetBytes, lengthBytes }) => {
    let at = offsetBytes;
    for (const span of outer) {
      if (span.offsetBytes > at) break;
      at = Math.max(at, span.offsetBytes + span.lengthBytes);
    }
    return at >= offsetBytes + lengthBytes;
  });

/** Pure: the file is excluded under every name that it is seen under. */
function isExcluded(patterns: ExclusionState, places: Places, dev: string, path: string): boolean {
  const mounts = places.mounts.filter((mount) => mount.dev === dev);
  const names = visiblePaths(mounts, path);
  return (
    names.length > 0 &&
    names.every((name) => stepPath(patterns, name).excluded || places.swapFiles.includes(name))
  );
}

interface Candidate {
  path: string;
  bytes: number;
  swap: boolean;
}

/** Regular files of one mount that the patterns exclude. Never follows a link or enters another mount. */
async function walk(mount: Mount, patterns: ExclusionState, places: Places): Promise<Candidate[]> {
  const found: Candidate[] = [];
  const mountPoints = new Set(places.mounts.map(({ mountPoint }) => mountPoint));
  const start = stepPath(patterns, mount.mountPoint);
  const open: Array<{ visible: string; path: string; state: ExclusionState }> = start.dead
    ? []
    : [{ visible: mount.mountPoint, path: '', state: start }];
  let entries = 0;
  for (let folder = open.pop(); folder; folder = open.pop()) {
    const listing = await opendir(folder.visible).catch(() => null);
    if (!listing) continue;
    try {
      for await (const entry of listing) {
        if (++entries > MAX_ENTRIES) return found;
        const state = folder.state.step(entry.name);
        if (state.dead) continue;
        const visible = join(folder.visible, entry.name);
        const path = `${folder.path}/${entry.name}`;
        if (entry.isDirectory() && !mountPoints.has(visible)) open.push({ visible, path, state });
        else if (entry.isFile() && state.excluded) {
          const bytes = await lstat(visible).then(
            ({ blocks }) => blocks * 512,
            () => 0,
          );
          if (bytes >= MIN_BYTES) found.push({ path, bytes, swap: false });
        }
      }
    } catch {
      // A folder that went away while it was read: what it held is copied, if it is still there.
    }
  }
  return found;
}

/**
 * The excluded files of the file system on one device, and active swap files there. What it says is as the file system
 * has it in memory: before a point may rest on it, everything up to now must have been committed (a freeze and thaw
 * after it), or the replica could show a file that was moved here a moment ago still in its old place.
 */
export async function findExcluded(
  dev: string,
  deviceOffsetBytes: number,
  patterns: readonly string[],
  places: Places,
  files: FileMap,
): Promise<ExcludedFile[]> {
  const mount = places.mounts.find((m) => m.dev === dev && m.root === '/' && isMappable(m.type));
  if (!mount) return [];
  const state = compileExclusions(patterns);
  const candidates = await walk(mount, state, places);
  for (const visible of places.swapFiles) {
    const at = locate(places.mounts, visible);
    if (at?.mount.dev !== dev) continue;
    const known = candidates.find(({ path }) => path === at.path);
    if (known) known.swap = true;
    else candidates.push({ path: at.path, bytes: Number.MAX_SAFE_INTEGER, swap: true });
  }
  candidates.sort((a, b) => b.bytes - a.bytes);
  const chosen = candidates
    .filter(({ path }) => isExcluded(state, places, dev, path))
    .slice(0, MAX_FILES);
  const mapped = await Promise.all(
    chosen.map(({ path }) => files.map(mount.mountPoint, path.slice(1))),
  );
  const excluded: ExcludedFile[] = [];
  let spanCount = 0;
  for (const [at, file] of mapped.entries()) {
    // More than one name: one of them may be anywhere.
    if (file?.dev !== dev || file.links !== 1) continue;
    const { path, swap } = chosen[at]!;
    const keepFirstBytes = swap ? SWAP_HEADER_BYTES : 0;
    const spans = plainSpans(file.extents, deviceOffsetBytes, { keepFirstBytes });
    spanCount += spans.length;
    if (spans.length === 0 || spanCount > MAX_SPANS) continue;
    const shares = SHARES.get(mount.type)!;
    excluded.push({ dev, path, handle: file.handle, deviceOffsetBytes, shares, spans });
  }
  return excluded;
}

/** Pure: what is to become of a file that was left out, by what is found in its place and of its inode. */
export function judge(
  file: ExcludedFile,
  inPlace: MappedFile | null,
  inode: 'alive' | 'gone' | 'unknown',
): Verdict {
  const same = inPlace?.dev === file.dev && inPlace.handle === file.handle && inPlace.links === 1;
  if (!file.shares) {
    if (same) return 'holds';
    // Without reflinks blocks leave a file only by being freed, and whoever gets a free block writes it.
    return inode === 'gone' ? 'forget' : 'read';
  }
  // With them they may have become another file's meanwhile: whatever is not seen in this one, unshared, is read.
  if (!same) return 'read';
  const owned = plainSpans(inPlace.extents, file.deviceOffsetBytes, { minBytes: 1 });
  return coversAll(owned, file.spans) ? 'holds' : 'read';
}

/** Looks after files that were left out, by the patterns of now. @throws UND_SOURCE_FILES_FAILED */
export async function checkExcluded(
  excluded: readonly ExcludedFile[],
  patterns: readonly string[],
  places: Places,
  files: FileMap,
): Promise<Verdict[]> {
  const state = compileExclusions(patterns);
  return Promise.all(
    excluded.map(async (file): Promise<Verdict> => {
      const mounts = places.mounts.filter(({ dev }) => dev === file.dev);
      // Not mounted: nothing can be moved in it.
      if (mounts.length === 0) return 'holds';
      const whole = mounts.find(({ root }) => root === '/');
      if (!whole || !isExcluded(state, places, file.dev, file.path)) return 'read';
      const inPlace = await files[file.shares ? 'map' : 'stat'](
        whole.mountPoint,
        file.path.slice(1),
      );
      const verdict = judge(file, inPlace, 'alive');
      if (verdict === 'holds' || file.shares) return verdict;
      return judge(file, inPlace, await files.find(whole.mountPoint, file.dev, file.handle));
    }),
  );
}
