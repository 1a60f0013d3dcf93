/**
 * The file of a segment that is being written. What a group commit writes goes past the page cache, so far as it is whole
 * blocks: a write through it has to wait while others, such as apply, have made more of it dirty than the kernel lets be,
 * and the acknowledgement with it. The rest, less than a block, goes through the page cache and is written once more with
 * what follows. So the file holds the frames and nothing else at any time.
 */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { BLOCK_BYTES, openDirect, sharedBuffers } from './direct-buffers.ts';

/** Less than this is not worth the copy. */
const DIRECT_BYTES = 64 * 1024;
export class SegmentFile {
  readonly #plain: FileHandle;
  /** Null: the file system does not know it. */
  #direct: FileHandle | null;
  #bytes: number;
  /** What the file's last block holds, as far as it is not whole. */
  readonly #last: Buffer;

  private constructor(plain: FileHandle, direct: FileHandle | null, bytes: number, last: Buffer) {
    this.#plain = plain;
    this.#direct = direct;
    this.#bytes = bytes;
    this.#last = last;
  }

  /** Makes it anew, empty. */
  static async create(path: string): Promise<SegmentFile> {
    const plain = await open(path, 'w', 0o600);
    return new SegmentFile(
      plain,
      await openDirect(path, constants.O_RDWR),
      0,
      Buffer.alloc(BLOCK_BYTES),
    );
  }

  /** Goes on behind its first `bytes`. */
  static async open(path: string, bytes: number): Promise<SegmentFile> {
    const plain = await open(path, 'r+');
    try {
      const last = Buffer.alloc(BLOCK_BYTES);
      const from = bytes - (bytes % BLOCK_BYTES);
      const { bytesRead } = await plain.read(last, 0, bytes - from, from);
      // One that is shorter than it was said to be: nothing is known of its end.
      const direct = bytesRead === bytes - from ? await openDirect(path, constants.O_RDWR) : null;
      return new SegmentFile(plain, direct, bytes, last);
    } catch (error) {
      await plain.close();
      throw error;
    }
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Whether large writes go past the page cache. */
  get isDirect(): boolean {
    return this.#direct !== null;
  }

  /** Writes all of them at the end; durable by `datasync`. After an error the file is of no more use. */
  async append(buffers: readonly Buffer[]): Promise<void> {
    const lengthBytes = buffers.reduce((sum, { length }) => sum + length, 0);
    const written =
      this.#direct !== null &&
      lengthBytes >= DIRECT_BYTES &&
      (await this.#appendDirect(this.#direct, buffers, lengthBytes));
    if (!written) await writeAll(this.#plain, buffers, this.#bytes);
    this.#noteLast(buffers, lengthBytes);
    this.#bytes += lengthBytes;
  }

  /** @returns false if it did not go: nothing is lost by writing all of it again */
  async #appendDirect(
    direct: FileHandle,
    buffers: readonly Buffer[],
    lengthBytes: number,
  ): Promise<boolean> {
    const endBytes = this.#bytes + lengthBytes;
    const leadBytes = this.#bytes % BLOCK_BYTES;
    const parts = new Parts([this.#last.subarray(0, leadBytes), ...buffers]);
    const writing: Array<Promise<boolean>> = [];
    try {
      let at = this.#bytes - leadBytes;
      while (at + BLOCK_BYTES <= endBytes) {
        const piece = await sharedBuffers.take();
        const wholeBytes = endBytes - at - ((endBytes - at) % BLOCK_BYTES);
        const length = Math.min(wholeBytes, piece.length);
        parts.copy(piece, length);
        const written = writeDirect(direct, piece, length, at).finally(() =>
          sharedBuffers.give(piece),
        );
        // Thrown where it is awaited; until then it is not unhandled.
        written.catch(() => {});
        writing.push(written);
        at += length;
      }
      const rest = parts.rest();
      if (rest.length > 0) writing.push(writeAll(this.#plain, rest, at).then(() => true));
      return !(await Promise.all(writing)).includes(false);
    } catch (error) {
      // It does not take these after all.
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      await Promise.allSettled(writing);
      this.#direct = null;
      await direct.close();
      return false;
    } finally {
      // Whatever comes of it, nothing is under way any more.
      await Promise.allSettled(writing);
    }
  }

  #noteLast(buffers: readonly Buffer[], lengthBytes: number): void {
    const endBytes = this.#bytes + lengthBytes;
    const blockAt = endBytes - (endBytes % BLOCK_BYTES);
    let at = this.#bytes;
    for (const buffer of buffers) {
      const from = Math.max(0, blockAt - at);
      if (from < buffer.length) buffer.copy(this.#last, at + from - blockAt, from);
      at += buffer.length;
    }
  }

  /** Everything appended before is durable when it resolves. */
  async datasync(): Promise<void> {
    await this.#plain.datasync();
  }

  async close(): Promise<void> {
    await this.#direct?.close();
    await this.#plain.close();
  }
}

/** @returns false if it was not all of it, whose reason the plain way finds out */
async function writeDirect(
  handle: FileHandle,
  piece: Uint8Array,
  length: number,
  at: number,
): Promise<boolean> {
  const { bytesWritten } = await handle.write(piece, 0, length, at);
  return bytesWritten === length;
}

/** Buffers read one behind the other. */
class Parts {
  readonly #left: Buffer[];

  constructor(buffers: readonly Buffer[]) {
    this.#left = buffers.filter(({ length }) => length > 0);
  }

  /** The next `length` bytes of them. */
  copy(to: Uint8Array, length: number): void {
    for (let at = 0; at < length; ) {
      const next = this.#left[0]!;
      const step = Math.min(next.length, length - at);
      to.set(next.subarray(0, step), at);
      at += step;
      if (step === next.length) this.#left.shift();
      else this.#left[0] = next.subarray(step);
    }
  }

  rest(): Buffer[] {
    return this.#left;
  }
}

async function writeAll(handle: FileHandle, buffers: readonly Buffer[], at: number): Promise<void> {
  // The kernel takes at most 1024 buffers at a time.
  for (let from = 0; from < buffers.length; from += 1000) {
    const some = buffers.slice(from, from + 1000);
    const lengthBytes = some.reduce((sum, { length }) => sum + length, 0);
    const { bytesWritten } = await handle.writev(some, at);
    // A short write (a full disk, a signal): the rest in one piece, which says the error if there is one.
    if (bytesWritten < lengthBytes) {
      const rest = Buffer.concat(some).subarray(bytesWritten);
      for (let done = 0; done < rest.length; ) {
        const next = at + bytesWritten + done;
        done += (await handle.write(rest, done, rest.length - done, next)).bytesWritten;
      }
    }
    at += lengthBytes;
  }
}
