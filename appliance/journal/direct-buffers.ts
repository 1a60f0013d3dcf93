/**
 * Memory for reads and writes past the page cache, which the kernel takes in whole pages only. Of its buffers Node does not
 * say where they lie; the memory of a WebAssembly begins at a page.
 */

import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';

/** No file system asks for more. */
export const BLOCK_BYTES = 4096;
/** Of what is written. All journals share a few, so that neither memory nor threads grow with the jobs: they write to one disk. */
const PIECE_BYTES = 2 * 1024 * 1024;
/**
 * Each is with a thread of the pool, of which others need one. The end of a write is noticed a turn of the event loop later,
 * which is busy with what arrives: one piece at a time, the disk waits most of the time.
 */
const PIECES = 3;
/** What WebAssembly calls a page. */
const WASM_PAGE_BYTES = 64 * 1024;

/** As far as it is used here; the type libraries have it with those of a browser only. */
declare namespace WebAssembly {
  class Memory {
    constructor(size: { initial: number; maximum: number });
    readonly buffer: ArrayBuffer;
  }
}

function makePieces(count: number, bytes: number): Buffer[] {
  const pages = (count * bytes) / WASM_PAGE_BYTES;
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages });
  return Array.from({ length: count }, (_, index) => Buffer.from(buffer, index * bytes, bytes));
}

class SharedBuffers {
  #free: Uint8Array[] | undefined;
  readonly #waiting: Array<(piece: Uint8Array) => void> = [];

  /**
   * Resolves with a piece that begins at a page, which belongs to the caller until `give`. Whoever has one must be able to
   * give it back without another.
   * @throws RangeError when there is no such memory
   */
  async take(): Promise<Uint8Array> {
    this.#free ??= makePieces(PIECES, PIECE_BYTES);
    const free = this.#free.pop();
    return free ?? (await new Promise((resolve) => this.#waiting.push(resolve)));
  }

  give(piece: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next) next(piece);
    else this.#free?.push(piece);
  }
}

export const sharedBuffers = new SharedBuffers();

/** Of what is read: a read that waits behind the writes of a flush brings enough for some of them. */
export const READ_BYTES = 4 * 1024 * 1024;
/** Made at once: each memory of its own costs address space. */
const MADE_AT_ONCE = 4;
/** What two batches of frames that do not compress are read from, and what is read ahead. */
const IDLE_READ_PIECES = 12;

/**
 * Pieces that are read into, used again: a fresh one for each read costs its page faults. Whoever never gives one back
 * leaves it to the garbage collection.
 */
class ReadPieces {
  #idle: Buffer[] = [];

  /** Null when there is no such memory. */
  take(): Buffer | null {
    if (this.#idle.length === 0) {
      try {
        this.#idle = makePieces(MADE_AT_ONCE, READ_BYTES);
      } catch {
        return null;
      }
    }
    return this.#idle.pop()!;
  }

  /** Once only, and nobody looks at it any more. */
  give(piece: Buffer): void {
    if (this.#idle.length < IDLE_READ_PIECES) this.#idle.push(piece);
  }
}

export const readPieces = new ReadPieces();

/** Opens a file past the page cache; null where the file system does not know that. */
export async function openDirect(path: string, flags: number): Promise<FileHandle | null> {
  try {
    return await open(path, flags | constants.O_DIRECT);
  } catch {
    // What does not open for another reason tells so by the plain way.
    return null;
  }
}
