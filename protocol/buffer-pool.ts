const SMALLEST_BYTES = 128 * 1024;
const LARGEST_BYTES = 4 * 1024 * 1024;
/** Idle buffers together: what is under way at once at a high rate. */
const IDLE_BYTES = 4 * 1024 * 1024;

/**
 * Buffers that are used again. A fresh one for each batch or frame costs its page faults, and a garbage collection of the
 * whole heap for every few dozen MiB of them, which was a third of the agent's processor time.
 */
export class BufferPool {
  /** By size, a power of two. */
  #idle = new Map<number, Buffer[]>();
  #idleBytes = 0;
  readonly #mostIdleBytes: number;
  /** Those that are out, by what was handed out: anything else that is given back is not of this pool. */
  #out = new WeakMap<Buffer, Buffer>();

  /** @param mostIdleBytes how much it keeps for what comes next */
  constructor(mostIdleBytes = IDLE_BYTES) {
    this.#mostIdleBytes = mostIdleBytes;
  }

  /** A buffer of just that length, with anything in it. */
  take(bytes: number): Buffer {
    if (bytes < SMALLEST_BYTES / 4 || bytes > LARGEST_BYTES) return Buffer.allocUnsafeSlow(bytes);
    const size = Math.max(SMALLEST_BYTES, 2 ** Math.ceil(Math.log2(bytes)));
    const idle = this.#idle.get(size)?.pop();
    if (idle) this.#idleBytes -= size;
    const whole = idle ?? Buffer.allocUnsafeSlow(size);
    const part = whole.subarray(0, bytes);
    this.#out.set(part, whole);
    return part;
  }

  /** Nobody looks at `part`, or at a view of it, any more. Giving it twice is giving it once. */
  give(part: Buffer): void {
    const whole = this.#out.get(part);
    if (!whole) return;
    this.#out.delete(part);
    if (this.#idleBytes + whole.length > this.#mostIdleBytes) return;
    this.#idleBytes += whole.length;
    const size = whole.length;
    const list = this.#idle.get(size);
    if (list) list.push(whole);
    else this.#idle.set(size, [whole]);
  }
}
