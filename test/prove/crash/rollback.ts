/**
 * What a power cut leaves of files whose changes `unflushed.c` wrote down: every change that a returned sync follows,
 * and of the others some or none. Names in a directory come back in order (a prefix of its changes stays, as journaling
 * file systems have it); data does block by block, in no order.
 */
import fs from 'node:fs';
import { dirname, join } from 'node:path';

const BLOCK = 4096;
const HEADER_BYTES = 48;
const TYPES = ['data', 'sync', 'create', 'rename', 'unlink', 'mkdir', 'rmdir', 'sync-dir'] as const;

interface Change {
  type: (typeof TYPES)[number];
  /** Where it lies in the log. */
  at: number;
  path: string;
  path2: string;
  data: Buffer;
  inode: bigint;
  offset: number;
  length: number;
  oldSize: number;
}

function* changes(log: Buffer): Generator<Change> {
  for (let at = 0; at + HEADER_BYTES <= log.length; ) {
    const [type, pathBytes, path2Bytes, dataBytes] = [0, 4, 8, 12].map((field) =>
      log.readUInt32LE(at + field),
    ) as [number, number, number, number];
    const pathAt = at + HEADER_BYTES;
    const path2At = pathAt + pathBytes;
    const dataAt = path2At + path2Bytes;
    // The program may have been killed while it wrote this: then the change itself was not begun.
    if (dataAt + dataBytes > log.length) return;
    yield {
      type: TYPES[type - 1]!,
      at,
      path: log.toString('utf8', pathAt, path2At),
      path2: log.toString('utf8', path2At, dataAt),
      data: log.subarray(dataAt, dataAt + dataBytes),
      inode: log.readBigUInt64LE(at + 16),
      offset: Number(log.readBigUInt64LE(at + 24)),
      length: Number(log.readBigUInt64LE(at + 32)),
      oldSize: Number(log.readBigUInt64LE(at + 40)),
    };
    at = dataAt + dataBytes;
  }
}

/** Changes that no sync followed when the power went: all or some of them are lost. */
export interface Unsynced {
  names: number;
  writes: number;
}

/** What is not flushed is flushed: as a program's death alone leaves it. */
export function keepAll(log: string): void {
  fs.rmSync(log, { force: true });
  fs.rmSync(`${log}.saved`, { recursive: true, force: true });
}

/**
 * @param roots files, and directories with everything in them, that were watched
 * @param random a whole number from 0 up to, not including, `below`
 */
export function rollBack(
  log: string,
  roots: readonly string[],
  random: (below: number) => number,
): Unsynced {
  const all = [...changes(fs.readFileSync(log))];
  const unsynced = { names: undoNames(all, random), writes: undoData(all, roots, random) };
  keepAll(log);
  return unsynced;
}

function undoNames(all: readonly Change[], random: (below: number) => number): number {
  const synced = new Map<string, number>();
  const byDir = new Map<string, Change[]>();
  for (const change of all) {
    if (change.type === 'sync-dir') synced.set(change.path, change.offset);
    else if (change.path !== '') {
      const dir = dirname(change.path);
      const of = byDir.get(dir);
      if (of) of.push(change);
      else byDir.set(dir, [change]);
    }
  }
  let count = 0;
  const undone: Change[] = [];
  for (const [dir, of] of byDir) {
    const open = of.filter(({ at }) => at >= (synced.get(dir) ?? 0));
    count += open.length;
    const stay = random(3) === 0 ? random(open.length + 1) : 0;
    undone.push(...open.slice(stay));
  }
  for (const change of undone.sort((a, b) => b.at - a.at)) undoName(change);
  return count;
}

function undoName({ type, path, path2, data }: Change): void {
  const saved = data.toString();
  switch (type) {
    case 'create':
      fs.rmSync(path, { force: true });
      break;
    case 'mkdir':
      fs.rmSync(path, { recursive: true, force: true });
      break;
    case 'rmdir':
      fs.mkdirSync(path, { recursive: true });
      break;
    case 'unlink':
      if (!fs.existsSync(path)) fs.linkSync(saved, path);
      break;
    case 'rename':
      if (!fs.existsSync(path) && fs.existsSync(path2)) fs.renameSync(path2, path);
      if (saved === '') break;
      fs.rmSync(path2, { force: true });
      fs.linkSync(saved, path2);
  }
}

function undoData(
  all: readonly Change[],
  roots: readonly string[],
  random: (below: number) => number,
): number {
  const synced = new Map<bigint, number>();
  const byFile = new Map<bigint, Change[]>();
  for (const change of all) {
    if (change.type === 'sync') synced.set(change.inode, change.offset);
    if (change.type !== 'data') continue;
    const of = byFile.get(change.inode);
    if (of) of.push(change);
    else byFile.set(change.inode, [change]);
  }
  const paths = inodes(roots);
  let count = 0;
  for (const [inode, of] of byFile) {
    const path = paths.get(inode);
    const open = of.filter(({ at }) => at >= (synced.get(inode) ?? 0));
    if (!path || open.length === 0) continue;
    count += open.length;
    undoFile(path, open, random);
  }
  return count;
}

function undoFile(path: string, open: readonly Change[], random: (below: number) => number): void {
  // None of it stays, or about half of its blocks.
  const some = random(2) === 0;
  const stays = new Map<number, boolean>();
  const gone = (block: number): boolean => {
    if (!some) return true;
    if (!stays.has(block)) stays.set(block, random(2) === 0);
    return !stays.get(block);
  };
  const sizeBytes = fs.statSync(path).size;
  const file = fs.openSync(path, 'r+');
  for (const { offset, length, data } of [...open].reverse()) {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const next = Math.min(end, (Math.floor(at / BLOCK) + 1) * BLOCK);
      if (gone(Math.floor(at / BLOCK))) {
        const old = Buffer.alloc(next - at);
        data.subarray(at - offset, next - offset).copy(old);
        fs.writeSync(file, old, 0, old.length, at);
      }
      at = next;
    }
  }
  fs.ftruncateSync(file, some && random(2) === 0 ? sizeBytes : open[0]!.oldSize);
  fs.closeSync(file);
}

function inodes(roots: readonly string[]): Map<bigint, string> {
  const found = new Map<bigint, string>();
  const look = (path: string) => {
    const stat = fs.statSync(path, { bigint: true, throwIfNoEntry: false });
    if (stat?.isDirectory()) for (const name of fs.readdirSync(path)) look(join(path, name));
    else if (stat) found.set(stat.ino, path);
  };
  for (const root of roots) look(root);
  return found;
}
