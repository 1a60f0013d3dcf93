/**
 * What of a disk need not go to the replica: free blocks of mounted ext4 and XFS file systems, the content of excluded
 * files there, and active swap.
 */
import { readdir, readFile, realpath } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { BlockReader, Freeze } from '../capture/capture.ts';
import type { FileMap } from '../capture/file-map.ts';
import {
  checkExcluded,
  type ExcludedFile,
  findExcluded,
  isMappable,
  type Places,
  type Verdict,
} from './excluded-files.ts';
import { ext4Free } from './ext4.ts';
import { parseMounts, parseSwaps } from './mounts.ts';
import type { Span } from './touched.ts';

export interface UnneededEdges {
  openReader(devicePath: string): Promise<BlockReader>;
  openFileMap(): FileMap;
  freeze(mountPoints: string[], timeoutMs: number): Promise<Freeze>;
  log(level: 'info' | 'warning', text: string): void;
}

/** A partition of a disk, or the whole disk when a file system lies on it directly. */
export interface Part {
  /** `major:minor` */
  dev: string;
  devicePath: string;
  offsetBytes: number;
  sizeBytes: number;
}

/** A swap area's first page is its header: label, UUID and size, without which it is no swap area. */
const SWAP_HEADER_BYTES = 4096;
const FREEZE_MS = 10_000;

/** Shorter runs of free blocks are not worth leaving out. */
const MIN_FREE_BYTES = 64 * 1024;

export interface Unneeded {
  /** Sorted, disjoint. */
  free: Span[];
  excluded: ExcludedFile[];
}

/** The disk itself and its partitions. */
export async function partsOf(devicePath: string, sizeBytes: number): Promise<Part[]> {
  const name = basename(await realpath(devicePath));
  const sys = join('/sys/class/block', name);
  const number = async (path: string) => Number((await readFile(path, 'utf8')).trim());
  const parts: Part[] = [
    {
      dev: (await readFile(join(sys, 'dev'), 'utf8')).trim(),
      devicePath: `/dev/${name}`,
      offsetBytes: 0,
      sizeBytes,
    },
  ];
  for (const entry of await readdir(sys)) {
    if (!entry.startsWith(name)) continue;
    const sub = join(sys, entry);
    const start = await number(join(sub, 'start')).catch(() => null);
    if (start === null) continue;
    parts.push({
      dev: (await readFile(join(sub, 'dev'), 'utf8')).trim(),
      devicePath: `/dev/${entry}`,
      offsetBytes: start * 512,
      sizeBytes: (await number(join(sub, 'size'))) * 512,
    });
  }
  return parts;
}

/** The active swap areas of a disk, without their header pages. */
export async function activeSwap(devicePath: string, sizeBytes: number): Promise<Span[]> {
  const active = new Set<string>();
  for (const path of parseSwaps(await readFile('/proc/swaps', 'utf8')).devices) {
    active.add(await realpath(path).catch(() => path));
  }
  if (active.size === 0) return [];
  const spans: Span[] = [];
  for (const part of await partsOf(devicePath, sizeBytes)) {
    if (!active.has(part.devicePath)) continue;
    spans.push({
      offsetBytes: part.offsetBytes + SWAP_HEADER_BYTES,
      lengthBytes: part.sizeBytes - SWAP_HEADER_BYTES,
    });
  }
  return spans;
}

const placesNow = async (): Promise<Places> => ({
  mounts: parseMounts(await readFile('/proc/self/mountinfo', 'utf8')),
  swapFiles: parseSwaps(await readFile('/proc/swaps', 'utf8')).files,
});

/**
 * What a mirror of the disk may leave out. Call it after the capture was attached, and after the barrier.
 *
 * Two kinds of maps, on either side of one freeze and thaw of each file system. Before it, what the file system says of
 * itself (excluded files, the free space of XFS): after it that is also what the disk says, or something newer that was
 * captured. Behind it, the bitmaps of ext4 on the disk, which are then those of a moment after the attach. Whatever
 * cannot be told is copied.
 */
export async function findUnneeded(
  devicePath: string,
  sizeBytes: number,
  exclusions: readonly string[],
  edges: UnneededEdges,
): Promise<Unneeded> {
  const unneeded: Unneeded = { free: [], excluded: [] };
  const places = await placesNow();
  for (const part of await partsOf(devicePath, sizeBytes)) {
    const mount = places.mounts.find(({ dev, type }) => dev === part.dev && isMappable(type));
    if (!mount) continue;
    const files = edges.openFileMap();
    try {
      const excluded = await findExcluded(part.dev, part.offsetBytes, exclusions, places, files);
      const isXfs = mount.type === 'xfs';
      const xfs = isXfs ? await files.free(mount.mountPoint, part.dev) : [];
      const freeze = await edges.freeze([mount.mountPoint], FREEZE_MS);
      await freeze.thaw();
      const free = isXfs
        ? xfs.map(({ physicalBytes, lengthBytes }) => ({ offsetBytes: physicalBytes, lengthBytes }))
        : await ext4FreeOf(part, devicePath, edges);
      for (const { offsetBytes, lengthBytes } of free) {
        if (lengthBytes < MIN_FREE_BYTES) continue;
        unneeded.free.push({ offsetBytes: part.offsetBytes + offsetBytes, lengthBytes });
      }
      unneeded.excluded.push(...excluded);
    } catch (error) {
      edges.log('warning', `${part.devicePath} is copied whole: ${(error as Error).message}`);
    } finally {
      await files.close();
    }
  }
  unneeded.free.sort((a, b) => a.offsetBytes - b.offsetBytes);
  return unneeded;
}

async function ext4FreeOf(part: Part, devicePath: string, edges: UnneededEdges): Promise<Span[]> {
  const reader = await edges.openReader(devicePath);
  try {
    const free = await ext4Free(
      async (offset, length) => (await reader.read(part.offsetBytes + offset, length)).data,
      part.sizeBytes,
    );
    if (free.kind === 'free') return free.spans;
    edges.log('info', `the free blocks of ${part.devicePath} are copied: ${free.reason}`);
    return [];
  } finally {
    await reader.close();
  }
}

/** What is to become of files that were left out, by the patterns, mounts and swap of now. */
export async function checkNow(
  excluded: readonly ExcludedFile[],
  exclusions: readonly string[],
  edges: Pick<UnneededEdges, 'openFileMap'>,
): Promise<Verdict[]> {
  const files = edges.openFileMap();
  try {
    return await checkExcluded(excluded, exclusions, await placesNow(), files);
  } finally {
    await files.close();
  }
}
