import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { getSystemErrorMessage } from 'node:util';
import { undError } from '../../protocol/errors.ts';
import type { HelperOptions } from './capture.ts';
import { helperPath } from './helper.ts';

/** A piece of a file on the device of its file system. */
export interface FileExtent {
  logicalBytes: number;
  physicalBytes: number;
  lengthBytes: number;
  /** FIEMAP_EXTENT_… */
  flags: number;
}

export interface MappedFile {
  /** `major:minor` of the file system's device */
  dev: string;
  links: number;
  /** Names inode and generation: a later file in the same inode has another one. */
  handle: string;
  extents: FileExtent[];
}

/** Several calls may be under way at once: they are answered in order, and one by one they would take long. */
export interface FileMap {
  /** What is at `path`, seen from `mountPoint` and without leaving that mount; null: no regular file, or not mappable. */
  map(mountPoint: string, path: string): Promise<MappedFile | null>;
  /** As `map`, without extents. */
  stat(mountPoint: string, path: string): Promise<MappedFile | null>;
  /** Whether the inode is still in the file system of that device under some name. */
  find(mountPoint: string, dev: string, handle: string): Promise<'alive' | 'gone' | 'unknown'>;
  /** The free extents of an XFS as it knows them in memory; what was freed last may not be committed. */
  free(
    mountPoint: string,
    dev: string,
  ): Promise<Pick<FileExtent, 'physicalBytes' | 'lengthBytes'>[]>;
  close(): Promise<void>;
}

/**
 * Files and free space of mounted file systems, by a helper process (helper/files.c): Node has no FIEMAP.
 * Error: UND_SOURCE_FILES_FAILED.
 */
export function openFileMap(options: HelperOptions = {}): FileMap {
  return new HelperFileMap(options);
}

class HelperFileMap implements FileMap {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #ended: Promise<unknown>;
  /** Answers come in the order of the requests. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(options: HelperOptions) {
    this.#child = spawn(helperPath(options), ['files'], { stdio: ['pipe', 'pipe', 'ignore'] });
    this.#child.stdin!.on('error', () => {});
    this.#lines = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
    this.#ended = new Promise((resolve) => {
      this.#child.once('exit', resolve);
      this.#child.once('error', resolve);
    });
  }

  async #line(): Promise<string[]> {
    const { value, done } = await this.#lines.next();
    if (done) {
      throw undError('UND_SOURCE_FILES_FAILED', { reason: 'the helper process ended' });
    }
    return (value as string).split(' ');
  }

  #ask<T>(fields: string[], answer: (first: string[]) => Promise<T>): Promise<T> {
    this.#child.stdin!.write(fields.map((field) => `${field}\0`).join(''));
    const mine = this.#last.then(async () => answer(await this.#line()));
    this.#last = mine.catch(() => {});
    return mine;
  }

  map(mountPoint: string, path: string): Promise<MappedFile | null> {
    return this.#file('map', mountPoint, path);
  }

  stat(mountPoint: string, path: string): Promise<MappedFile | null> {
    return this.#file('stat', mountPoint, path);
  }

  #file(verb: string, mountPoint: string, path: string): Promise<MappedFile | null> {
    return this.#ask([verb, mountPoint, path], async (first) => {
      const [word, major, minor, links, handle, count] = first;
      if (word !== 'file') return null;
      const extents: FileExtent[] = [];
      for (let at = 0; at < Number(count); at++) {
        const [logicalBytes, physicalBytes, lengthBytes, flags] = (await this.#line()).map(Number);
        extents.push({
          logicalBytes: logicalBytes!,
          physicalBytes: physicalBytes!,
          lengthBytes: lengthBytes!,
          flags: flags!,
        });
      }
      return { dev: `${major}:${minor}`, links: Number(links), handle: handle!, extents };
    });
  }

  find(mountPoint: string, dev: string, handle: string): Promise<'alive' | 'gone' | 'unknown'> {
    return this.#ask(['find', mountPoint, handle], async ([word, major, minor]) =>
      // Something else was mounted there meanwhile: it knows nothing of the inode.
      (word === 'alive' || word === 'gone') && `${major}:${minor}` === dev ? word : 'unknown',
    );
  }

  free(
    mountPoint: string,
    dev: string,
  ): Promise<Pick<FileExtent, 'physicalBytes' | 'lengthBytes'>[]> {
    return this.#ask(['free', mountPoint], async (first) => {
      const failed = (reason: string) =>
        undError('UND_SOURCE_FILES_FAILED', { reason: `free space of ${mountPoint}: ${reason}` });
      const [word, major, minor, count] = first;
      if (word !== 'free') throw failed(getSystemErrorMessage(-Number(major)));
      const extents: Pick<FileExtent, 'physicalBytes' | 'lengthBytes'>[] = [];
      for (let at = 0; at < Number(count); at++) {
        const [physicalBytes, lengthBytes] = (await this.#line()).map(Number);
        extents.push({ physicalBytes: physicalBytes!, lengthBytes: lengthBytes! });
      }
      if (`${major}:${minor}` !== dev) throw failed('another file system is mounted there');
      return extents;
    });
  }

  async close(): Promise<void> {
    this.#child.stdin!.end();
    await this.#last;
    await this.#ended;
  }
}
