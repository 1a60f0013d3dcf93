/**
 * The guest's file tree, mounted in the appliance. It is hostile ground: a symbolic link in it may point anywhere, so
 * every path is walked step by step and links are followed within the tree only. Nothing else writes there meanwhile.
 */
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  copyFileSync,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  renameSync,
  type Stats,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { undError } from '../../../protocol/errors.ts';

const MAX_LINKS = 40;

export class GuestRoot {
  readonly #root: string;

  constructor(root: string) {
    this.#root = root;
  }

  /**
   * The path in the appliance for an absolute path of the guest, all links followed but a last one when `last` is
   * 'keep'. What does not exist is appended as it is written. Throws `UND_GUEST_PATH` on a circle of links.
   */
  resolve(path: string, last: 'follow' | 'keep' = 'follow'): string {
    let links = 0;
    const done: string[] = [];
    const todo = path.split('/').filter((part) => part !== '');
    while (todo.length > 0) {
      const part = todo.shift() as string;
      if (part === '.') continue;
      if (part === '..') {
        done.pop();
        continue;
      }
      const here = [this.#root, ...done, part].join('/');
      const stat = lstatSync(here, { throwIfNoEntry: false });
      if (stat?.isSymbolicLink() && (last === 'follow' || todo.length > 0)) {
        if (++links > MAX_LINKS) {
          throw undError('UND_GUEST_PATH', { path, reason: 'too many symbolic links' });
        }
        const target = readlinkSync(here);
        if (target.startsWith('/')) done.length = 0;
        todo.unshift(...target.split('/').filter((piece) => piece !== ''));
        continue;
      }
      done.push(part);
    }
    return [this.#root, ...done].join('/');
  }

  #stat(path: string): Stats | undefined {
    try {
      return lstatSync(this.resolve(path), { throwIfNoEntry: false });
    } catch (error) {
      // A file where the path wants a folder.
      if ((error as NodeJS.ErrnoException).code === 'ENOTDIR') return undefined;
      throw error;
    }
  }

  isFile(path: string): boolean {
    return this.#stat(path)?.isFile() ?? false;
  }

  isFolder(path: string): boolean {
    return this.#stat(path)?.isDirectory() ?? false;
  }

  /** Names in a folder, sorted; none when it is not there. */
  list(path: string): string[] {
    return this.isFolder(path) ? readdirSync(this.resolve(path)).sort() : [];
  }

  /** A file's bytes, or null when there is no such plain file. Throws `UND_GUEST_PATH` when it is larger than allowed. */
  read(path: string, limitBytes = 4 * 1024 * 1024): Buffer | null {
    if (!this.isFile(path)) return null;
    const fd = openSync(this.resolve(path), constants.O_RDONLY | constants.O_NOFOLLOW);
    try {
      const { size } = fstatSync(fd);
      if (size > limitBytes) throw undError('UND_GUEST_PATH', { path, reason: 'it is too large' });
      const buffer = Buffer.alloc(size);
      let done = 0;
      while (done < size) {
        const count = readSync(fd, buffer, done, size - done, done);
        if (count === 0) break;
        done += count;
      }
      return buffer.subarray(0, done);
    } finally {
      closeSync(fd);
    }
  }

  text(path: string): string | null {
    return this.read(path)?.toString('utf8') ?? null;
  }

  /** Writes in place, so that owner, mode and security labels stay; makes folders and the file where missing. */
  write(path: string, data: string | Buffer, mode = 0o644): void {
    this.makeFolder(path.slice(0, path.lastIndexOf('/')));
    const target = this.resolve(path);
    const stat = lstatSync(target, { throwIfNoEntry: false });
    this.#parentOf(path, target);
    if (stat && !stat.isFile()) throw undError('UND_GUEST_PATH', { path, reason: 'it is no file' });
    const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW;
    const fd = openSync(target, flags, mode);
    try {
      const buffer = typeof data === 'string' ? Buffer.from(data) : data;
      for (let done = 0; done < buffer.length; ) done += writeSync(fd, buffer, done);
    } finally {
      closeSync(fd);
    }
  }

  /** A link may dangle: what it was meant for is not known, so nothing is made there. */
  #parentOf(path: string, target: string): void {
    const parent = lstatSync(target.slice(0, target.lastIndexOf('/')), { throwIfNoEntry: false });
    if (!parent?.isDirectory()) {
      throw undError('UND_GUEST_PATH', { path, reason: 'it leads to a folder that is not there' });
    }
  }

  append(path: string, data: Buffer, at: number): void {
    const fd = openSync(this.resolve(path), constants.O_WRONLY | constants.O_NOFOLLOW);
    try {
      for (let done = 0; done < data.length; ) {
        done += writeSync(fd, data, done, data.length - done, at + done);
      }
    } finally {
      closeSync(fd);
    }
  }

  /** Throws `UND_GUEST_PATH` when something other than a folder is in the way. */
  makeFolder(path: string): void {
    const parts = path.split('/').filter((part) => part !== '');
    for (let depth = 1; depth <= parts.length; depth++) {
      const folder = `/${parts.slice(0, depth).join('/')}`;
      const target = this.resolve(folder);
      const stat = lstatSync(target, { throwIfNoEntry: false });
      if (!stat) {
        this.#parentOf(folder, target);
        mkdirSync(target, 0o755);
      } else if (!stat.isDirectory()) {
        throw undError('UND_GUEST_PATH', { path: folder, reason: 'it is no folder' });
      }
    }
  }

  /** A copy beside the file, with its owner and mode, under another name; an older copy of that name is kept. */
  copy(path: string, name: string): void {
    const from = this.resolve(path);
    const to = `${from.slice(0, from.lastIndexOf('/'))}/${name}`;
    if (lstatSync(to, { throwIfNoEntry: false })) return;
    try {
      copyFileSync(from, to, constants.COPYFILE_EXCL);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
        try {
          unlinkSync(to);
        } catch {
          // Nothing was made.
        }
      }
      throw error;
    }
    const stat = lstatSync(from);
    chownSync(to, stat.uid, stat.gid);
    chmodSync(to, stat.mode & 0o7777);
  }

  rename(path: string, name: string): void {
    const from = this.resolve(path, 'keep');
    renameSync(from, `${from.slice(0, from.lastIndexOf('/'))}/${name}`);
  }

  remove(path: string): void {
    unlinkSync(this.resolve(path, 'keep'));
  }
}
