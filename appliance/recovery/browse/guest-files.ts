/**
 * Reads folders and files of a mounted guest's file system. Every size, name and time in it may be a lie: nothing is
 * allocated by what it says, special files are never opened, and what is answered is bounded.
 */
import {
  type BigIntStats,
  closeSync,
  constants,
  type Dirent,
  fstatSync,
  lstatSync,
  opendirSync,
  openSync,
  readlinkSync,
  readSync,
} from 'node:fs';
import { undError } from '../../../protocol/errors.ts';
import type { FileEntry, FileListing } from '../../api/schema.ts';
import { decodePath, encodePath, joinPath, resolveInRoot, shownName } from './guest-path.ts';

/** Of a folder; what it has beyond that is not shown. */
const MAX_ENTRIES = 50_000;
export const MAX_READ_BYTES = 1024 * 1024;

export interface FileFacts {
  /** All links followed. */
  path: string;
  /** For people. */
  name: string;
  sizeBytes: number;
  modifiedAt: string | null;
}

const REASONS: Record<string, string> = {
  ENOENT: 'it is not there',
  ENOTDIR: 'a part of it is no folder',
  ENAMETOOLONG: 'it is longer than a path can be',
  EUCLEAN: 'the file system is damaged there',
  EIO: 'the disk or the file system cannot be read there',
  ELOOP: 'too many symbolic links',
};

export class GuestFiles {
  readonly #root: Buffer;
  readonly #volume: string;

  /** @param root where the file system is mounted, without a slash at its end */
  constructor(root: string, volume: string) {
    this.#root = Buffer.from(root);
    this.#volume = volume;
  }

  /**
   * A part of a folder, folders first, then by the bytes of the names. A link that leads to a folder is followed.
   * @throws UND_MOUNT_PATH
   */
  list(path: string, from: number, limit: number): FileListing {
    return this.#told(path, () => {
      const { real, inside, stat } = this.#resolve(path);
      if (!stat.isDirectory()) throw this.#refuse(path, 'it is no folder');
      const names: { name: Buffer; folder: boolean }[] = [];
      let truncated = false;
      // Node reads names as bytes when asked to; its types do not know.
      const folder = opendirSync(real, { encoding: 'buffer' as BufferEncoding });
      try {
        for (
          let entry = folder.readSync() as unknown as Dirent<Buffer> | null;
          entry;
          entry = folder.readSync() as unknown as Dirent<Buffer> | null
        ) {
          if (names.length === MAX_ENTRIES) {
            truncated = true;
            break;
          }
          names.push({ name: Buffer.from(entry.name), folder: entry.isDirectory() });
        }
      } finally {
        folder.closeSync();
      }
      names.sort((a, b) => Number(b.folder) - Number(a.folder) || Buffer.compare(a.name, b.name));
      const prefix = inside.equals(Buffer.from('/')) ? Buffer.alloc(0) : inside;
      return {
        path: encodePath(inside),
        entries: names
          .slice(from, from + limit)
          .map(({ name }) => this.#entry(Buffer.concat([prefix, joinPath([name])]), name)),
        from,
        total: names.length,
        truncated,
      };
    });
  }

  /**
   * A plain file, links to it followed.
   * @throws UND_MOUNT_PATH
   */
  stat(path: string): FileFacts {
    return this.#told(path, () => {
      const { inside, stat } = this.#file(path);
      const asked = decodePath(path, this.#volume);
      return {
        path: encodePath(inside),
        name: shownName(asked.subarray(asked.lastIndexOf('/') + 1)),
        sizeBytes: this.#sizeOf(path, stat),
        modifiedAt: timeOf(stat),
      };
    });
  }

  /**
   * Bytes of a plain file; fewer than asked for at its end and beyond `MAX_READ_BYTES`.
   * @throws UND_MOUNT_PATH
   */
  read(path: string, offsetBytes: number, lengthBytes: number): Buffer {
    return this.#told(path, () => {
      const { real } = this.#file(path);
      // What is no plain file was refused; that opening must not wait for anything is a second wall.
      const fd = openSync(
        real,
        constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK | constants.O_NOCTTY,
      );
      try {
        if (!fstatSync(fd).isFile()) throw this.#refuse(path, 'it is no plain file');
        const buffer = Buffer.allocUnsafe(Math.min(lengthBytes, MAX_READ_BYTES));
        let done = 0;
        while (done < buffer.length) {
          const count = readSync(fd, buffer, done, buffer.length - done, offsetBytes + done);
          if (count === 0) break;
          done += count;
        }
        return buffer.subarray(0, done);
      } finally {
        closeSync(fd);
      }
    });
  }

  #entry(inside: Buffer, name: Buffer): FileEntry {
    const real = Buffer.concat([this.#root, inside]);
    const shared = { name: shownName(name), path: encodePath(inside) };
    try {
      const stat = lstatSync(real, { bigint: true });
      const kind = kindOf(stat);
      return {
        ...shared,
        kind,
        sizeBytes: kind === 'file' ? Number(stat.size) : null,
        modifiedAt: timeOf(stat),
        mode: Number(stat.mode & 0o7777n),
        uid: Number(stat.uid),
        gid: Number(stat.gid),
        target: kind === 'link' ? shownName(readlinkSync(real, 'buffer')) : null,
      };
    } catch {
      // Its inode is damaged, or its path is too long: the others are shown all the same.
      const unknown = { sizeBytes: null, modifiedAt: null, mode: 0, uid: 0, gid: 0, target: null };
      return { ...shared, kind: 'unreadable', ...unknown };
    }
  }

  #resolve(path: string): { real: Buffer; inside: Buffer; stat: BigIntStats } {
    const found = resolveInRoot(this.#root, decodePath(path, this.#volume), {
      isLink: (one) => lstatSync(one).isSymbolicLink(),
      readLink: (one) => readlinkSync(one, 'buffer'),
    });
    return { ...found, stat: lstatSync(found.real, { bigint: true }) };
  }

  #file(path: string): { real: Buffer; inside: Buffer; stat: BigIntStats } {
    const found = this.#resolve(path);
    if (found.stat.isDirectory()) throw this.#refuse(path, 'it is a folder');
    if (!found.stat.isFile()) throw this.#refuse(path, 'it is no plain file');
    return found;
  }

  #sizeOf(path: string, stat: BigIntStats): number {
    if (stat.size < 0n || stat.size > BigInt(Number.MAX_SAFE_INTEGER)) {
      throw this.#refuse(path, `its size, ${stat.size} bytes, cannot be`);
    }
    return Number(stat.size);
  }

  #refuse(path: string, reason: string) {
    return undError('UND_MOUNT_PATH', { path, volume: this.#volume, reason });
  }

  /** What the file system says is said of the path that was asked for, and never of one in the appliance. */
  #told<T>(path: string, work: () => T): T {
    try {
      return work();
    } catch (error) {
      const { code, params } = error as { code?: string; params?: { reason?: string } };
      if (code === 'UND_MOUNT_PATH') throw this.#refuse(path, String(params?.reason));
      if (code?.startsWith('E')) throw this.#refuse(path, REASONS[code] ?? code);
      throw error;
    }
  }
}

function kindOf(stat: BigIntStats): FileEntry['kind'] {
  if (stat.isFile()) return 'file';
  if (stat.isDirectory()) return 'folder';
  return stat.isSymbolicLink() ? 'link' : 'special';
}

/** Null for a time that the calendar does not have. */
function timeOf(stat: BigIntStats): string | null {
  const date = new Date(Number(stat.mtimeMs));
  return Number.isNaN(date.getTime()) ? null : date.toISOString();
}
