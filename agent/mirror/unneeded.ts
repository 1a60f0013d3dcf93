/** What of a disk need not go to the replica: free blocks of mounted ext4 file systems, and active swap. */
import { readdir, readFile, realpath } from 'node:fs/promises';
import { basename, join } from 'node:path';
import type { BlockReader, Freeze } from '../capture/capture.ts';
import { ext4Free } from './ext4.ts';
import type { Span } from './touched.ts';

export interface UnneededEdges {
  openReader(devicePath: string): Promise<BlockReader>;
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

/** Pure: the mount points of ext file systems, by `major:minor`, out of /proc/self/mountinfo; one for each. */
export function ext4Mounts(mountinfo: string): Map<string, string> {
  const mounts = new Map<string, string>();
  for (const line of mountinfo.split('\n')) {
    const [left, right] = line.split(' - ');
    if (!left || !right) continue;
    const fields = left.split(' ');
    const [type] = right.split(' ');
    const dev = fields[2];
    const mountPoint = fields[4];
    if (!dev || !mountPoint || !/^ext[234]$/.test(type ?? '')) continue;
    if (!mounts.has(dev)) mounts.set(dev, unescapeOctal(mountPoint));
  }
  return mounts;
}

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );

/** Pure: the device paths of active swap areas out of /proc/swaps; swap files are part of their file system. */
export function swapDevices(swaps: string): string[] {
  const paths: string[] = [];
  for (const line of swaps.split('\n').slice(1)) {
    const [path, type] = line.split(/\s+/);
    if (path && type === 'partition') paths.push(unescapeOctal(path));
  }
  return paths;
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
    const sub = join(sys, entry);
    const start = await number(join(sub, 'start')).catch(() => null);
    if (start === null || !entry.startsWith(name)) continue;
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
  for (const path of swapDevices(await readFile('/proc/swaps', 'utf8'))) {
    active.add(await realpath(path).catch(() => path));
  }
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

/**
 * Sorted, disjoint free spans of the disk that a mirror may leave out. Call it after the capture was attached, and after
 * the barrier: each mounted ext4 is frozen and thawed here, so that its bitmaps on the disk are those of a moment
 * after the attach, and only then are they read. Whatever cannot be told is copied.
 */
export async function findUnneeded(
  devicePath: string,
  sizeBytes: number,
  edges: UnneededEdges,
): Promise<Span[]> {
  const spans: Span[] = [];
  const mounts = ext4Mounts(await readFile('/proc/self/mountinfo', 'utf8'));
  for (const part of await partsOf(devicePath, sizeBytes)) {
    const mountPoint = mounts.get(part.dev);
    if (mountPoint === undefined) continue;
    let reader: BlockReader | undefined;
    try {
      const freeze = await edges.freeze([mountPoint], FREEZE_MS);
      await freeze.thaw();
      reader = await edges.openReader(devicePath);
      const open = reader;
      const free = await ext4Free(
        async (offset, length) => (await open.read(part.offsetBytes + offset, length)).data,
        part.sizeBytes,
      );
      if (free.kind === 'free') {
        for (const span of free.spans) {
          spans.push({ ...span, offsetBytes: part.offsetBytes + span.offsetBytes });
        }
      } else {
        edges.log('info', `${part.devicePath} is copied whole: ${free.reason}`);
      }
    } catch (error) {
      edges.log('warning', `${part.devicePath} is copied whole: ${(error as Error).message}`);
    } finally {
      await reader?.close();
    }
  }
  return spans.sort((a, b) => a.offsetBytes - b.offsetBytes);
}
