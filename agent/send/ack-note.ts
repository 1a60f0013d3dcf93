/**
 * The last acknowledgement, noted on a tmpfs for the agent that follows this one in the same boot. It is written with each
 * acknowledgement, dozens of times a second: in place, by one plain call into memory that is kept open. A new file and a
 * rename took four turns of the thread pool, a sixth of the processor time of an agent with little to do.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import { readFile, unlink } from 'node:fs/promises';
import type { Remembered } from './resume.ts';

/** Every note has this length, so that none leaves the end of a longer one behind it. */
const NOTE_BYTES = 256;

export class AckNote {
  readonly #path: string;
  readonly #failed: (reason: string) => void;
  readonly #text = Buffer.alloc(NOTE_BYTES);
  #fd: number | null = null;

  /**
   * @param path on a tmpfs, where a write of one call is never torn and waits for no disk
   * @param failed told when a note could not be made; the one before stays
   */
  constructor(path: string, failed: (reason: string) => void) {
    this.#path = path;
    this.#failed = failed;
  }

  /** What was noted last, by this agent or the one before it; null if there is nothing that can be read. */
  async read(): Promise<Remembered | null> {
    try {
      const value = JSON.parse(await readFile(this.#path, 'utf8')) as Remembered;
      return typeof value?.ackedSeq === 'number' ? value : null;
    } catch {
      return null;
    }
  }

  write(remembered: Remembered): void {
    try {
      this.#fd ??= openSync(this.#path, constants.O_WRONLY | constants.O_CREAT, 0o600);
      const json = JSON.stringify(remembered);
      if (Buffer.byteLength(json) > NOTE_BYTES) throw new Error(`it is too long: ${json}`);
      // JSON may be followed by blanks.
      this.#text.fill(' ');
      this.#text.write(json);
      writeSync(this.#fd, this.#text, 0, NOTE_BYTES, 0);
    } catch (error) {
      this.#failed((error as Error).message);
    }
  }

  close(): void {
    if (this.#fd !== null) closeSync(this.#fd);
    this.#fd = null;
  }

  /** Nothing is remembered any more. */
  async forget(): Promise<void> {
    this.close();
    await unlink(this.#path).catch(() => {});
  }
}
