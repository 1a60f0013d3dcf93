import type { Readable } from 'node:stream';

/** Reads exact numbers of bytes from a pipe; what is not asked for stays in the pipe (back-pressure). */
export class ByteSource {
  readonly #stream: Readable;
  #pending: Buffer[] = [];
  #have = 0;
  #ended = false;
  #wake: (() => void) | undefined;

  constructor(stream: Readable) {
    this.#stream = stream;
    stream.pause();
    stream.on('data', (chunk: Buffer) => {
      this.#pending.push(chunk);
      this.#have += chunk.length;
      stream.pause();
      this.#wake?.();
    });
    const end = () => {
      this.#ended = true;
      this.#wake?.();
    };
    stream.on('end', end);
    stream.on('error', end);
    stream.on('close', end);
  }

  /** Exactly `length` bytes in a buffer of their own, or undefined at the end of the pipe. */
  async take(length: number): Promise<Buffer | undefined> {
    const out = Buffer.allocUnsafeSlow(length);
    let at = 0;
    while (at < length) {
      const first = this.#pending[0];
      if (!first) {
        if (this.#ended) return undefined;
        await new Promise<void>((resolve) => {
          this.#wake = resolve;
          this.#stream.resume();
        });
        this.#wake = undefined;
        continue;
      }
      const n = Math.min(first.length, length - at);
      first.copy(out, at, 0, n);
      at += n;
      this.#have -= n;
      if (n === first.length) this.#pending.shift();
      else this.#pending[0] = first.subarray(n);
    }
    return out;
  }
}
