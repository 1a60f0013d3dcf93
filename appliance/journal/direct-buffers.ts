/**
 * Memory for writes past the page cache, which the kernel takes from whole pages only. Of its buffers Node does not say
 * where they lie; the memory of a WebAssembly begins at a page. All journals share a few pieces, so that neither the
 * memory nor the threads that they take grow with the jobs: they write to one disk.
 */

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

function makePieces(): Uint8Array[] {
  const pages = (PIECES * PIECE_BYTES) / WASM_PAGE_BYTES;
  const { buffer } = new WebAssembly.Memory({ initial: pages, maximum: pages });
  return Array.from(
    { length: PIECES },
    (_, index) => new Uint8Array(buffer, index * PIECE_BYTES, PIECE_BYTES),
  );
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
    this.#free ??= makePieces();
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
