import { execFile } from 'node:child_process';
import { constants, openSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { geteuid } from 'node:process';
import { promisify } from 'node:util';
import { BufferPool } from '../../protocol/buffer-pool.ts';

/** Of what comes before a body's own buffer is known. */
const READ_BYTES = 64 * 1024;

/** On a tmpfs: on a protected disk each start would write. */
const RUN_DIR = '/run';

interface Wanted {
  headBytes: number;
  bodyBytes(head: Buffer): number;
  resolve(message: { head: Buffer; body: Buffer } | undefined): void;
  reject(error: unknown): void;
}

/**
 * The reading end of the pipe from the helper. A stream would hand out each 64 KiB in a fresh buffer, to be copied
 * together: here all but the beginning of a body is read where it is wanted, into a buffer that is used again.
 */
export class BatchPipe {
  readonly #socket: Socket;
  readonly #pool = new BufferPool();
  /** What came before it was known where it belongs: [from, to). Half of it stays free for the read that follows. */
  readonly #early = Buffer.allocUnsafeSlow(2 * READ_BYTES);
  #from = 0;
  #to = 0;
  #wanted: Wanted | undefined;
  #head: Buffer | undefined;
  #body: Buffer | undefined;
  #bodyHas = 0;
  /** The buffer that the next read fills is the body's. */
  #direct = false;
  #ended = false;

  private constructor(readFd: number) {
    this.#socket = new Socket({
      fd: readFd,
      readable: true,
      writable: false,
      onread: { buffer: () => this.#target(), callback: (bytes) => this.#filled(bytes) },
    });
    const end = () => {
      this.#ended = true;
      this.#wanted?.resolve(undefined);
      this.#wanted = undefined;
    };
    this.#socket.on('end', end);
    this.#socket.on('error', end);
    this.#socket.on('close', end);
  }

  /**
   * A new pipe. Its writing end is for a child process, and is to be closed here once the child has it.
   * @throws what mkfifo(1) or the system says
   */
  static async open(): Promise<{ pipe: BatchPipe; writeFd: number }> {
    // Node makes socket pairs, which copy more than a pipe, and takes no buffer for what comes out of them.
    const dir = await mkdtemp(join(geteuid?.() === 0 ? RUN_DIR : tmpdir(), 'understudy-pipe-'));
    try {
      const path = join(dir, 'pipe');
      await promisify(execFile)('mkfifo', ['-m', '600', path]);
      const readFd = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
      const writeFd = openSync(path, constants.O_WRONLY);
      return { pipe: new BatchPipe(readFd), writeFd };
    } finally {
      await rm(dir, { recursive: true, force: true });
    }
  }

  /**
   * The next message: a head, and behind it the body whose length the head tells. Undefined at the end of the pipe. One
   * at a time; what is not asked for stays in the pipe (back-pressure).
   */
  async next(
    headBytes: number,
    bodyBytes: (head: Buffer) => number,
  ): Promise<{ head: Buffer; body: Buffer } | undefined> {
    return await new Promise((resolve, reject) => {
      this.#wanted = { headBytes, bodyBytes, resolve, reject };
      this.#advance();
      if (!this.#wanted) return;
      if (this.#ended) {
        this.#wanted = undefined;
        resolve(undefined);
      } else this.#socket.resume();
    });
  }

  /** Nobody looks at a body any more. */
  recycle(body: Buffer): void {
    this.#pool.give(body);
  }

  close(): void {
    this.#socket.destroy();
  }

  /** Where the next read goes; asked for when the one before it has been taken in. */
  #target(): Buffer {
    if (this.#body) {
      this.#direct = true;
      return this.#body.subarray(this.#bodyHas);
    }
    this.#direct = false;
    this.#early.copyWithin(0, this.#from, this.#to);
    this.#to -= this.#from;
    this.#from = 0;
    return this.#early.subarray(this.#to, this.#to + READ_BYTES);
  }

  /** @returns whether to go on reading */
  #filled(bytes: number): boolean {
    if (this.#direct) {
      this.#bodyHas += bytes;
    } else this.#to += bytes;
    this.#advance();
    return this.#wanted !== undefined;
  }

  #advance(): void {
    const wanted = this.#wanted;
    if (!wanted) return;
    if (!this.#head) {
      if (this.#to - this.#from < wanted.headBytes) return;
      const head = Buffer.from(this.#early.subarray(this.#from, this.#from + wanted.headBytes));
      this.#from += wanted.headBytes;
      try {
        this.#body = this.#pool.take(wanted.bodyBytes(head));
      } catch (error) {
        this.#wanted = undefined;
        wanted.reject(error);
        return;
      }
      this.#head = head;
      this.#bodyHas = 0;
    }
    const body = this.#body!;
    const copied = this.#early.copy(body, this.#bodyHas, this.#from, this.#to);
    this.#from += copied;
    this.#bodyHas += copied;
    if (this.#bodyHas < body.length) return;
    const head = this.#head;
    this.#head = undefined;
    this.#body = undefined;
    this.#wanted = undefined;
    wanted.resolve({ head, body });
  }
}
