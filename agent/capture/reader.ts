import { type ChildProcess, spawn } from 'node:child_process';
import type { Readable } from 'node:stream';
import { getSystemErrorMessage } from 'node:util';
import { undError } from '../../protocol/errors.ts';
import { ByteSource } from './byte-source.ts';
import type { BlockReader, HelperOptions } from './capture.ts';
import { helperPath } from './helper.ts';

const ANSWER_BYTES = 16;

/**
 * O_DIRECT reads by a helper process: Node cannot align its buffers. Reads are answered in the order they were asked
 * for; zeroes do not cross the pipe. Error: UND_SOURCE_READ_FAILED.
 */
export class HelperBlockReader implements BlockReader {
  readonly #child: ChildProcess;
  readonly #data: ByteSource;
  readonly #devicePath: string;
  readonly #ended: Promise<unknown>;
  /** Answers come in order, so each read waits for the one before it. */
  #last: Promise<unknown> = Promise.resolve();

  private constructor(child: ChildProcess, devicePath: string) {
    this.#child = child;
    this.#devicePath = devicePath;
    this.#data = new ByteSource(child.stdout as Readable);
    child.stdin?.on('error', () => {});
    this.#ended = new Promise((resolve) => {
      child.once('exit', resolve);
      child.once('error', resolve);
    });
  }

  static async open(devicePath: string, options: HelperOptions): Promise<HelperBlockReader> {
    const child = spawn(helperPath(options), ['read', devicePath], {
      stdio: ['pipe', 'pipe', 'ignore'],
    });
    const reader = new HelperBlockReader(child, devicePath);
    await reader.#answer(0);
    return reader;
  }

  #failed(offsetBytes: number, reason: string): Error {
    return undError('UND_SOURCE_READ_FAILED', { disk: this.#devicePath, offsetBytes, reason });
  }

  async #answer(offsetBytes: number): Promise<{ flags: number; length: number }> {
    const head = await this.#data.take(ANSWER_BYTES);
    if (!head) throw this.#failed(offsetBytes, 'the reader process ended');
    const errno = head.readInt32LE(0);
    if (errno) throw this.#failed(offsetBytes, getSystemErrorMessage(-errno));
    return { flags: head.readUInt32LE(4), length: Number(head.readBigUInt64LE(8)) };
  }

  read(offsetBytes: number, lengthBytes: number): Promise<{ data: Buffer; zero: boolean }> {
    const ask = Buffer.alloc(16);
    ask.writeBigUInt64LE(BigInt(offsetBytes), 0);
    ask.writeBigUInt64LE(BigInt(lengthBytes), 8);
    this.#child.stdin?.write(ask);
    const mine = this.#last.then(async () => {
      const { flags, length } = await this.#answer(offsetBytes);
      if (flags & 1) return { data: Buffer.alloc(lengthBytes), zero: true };
      const data = await this.#data.take(length);
      if (!data) throw this.#failed(offsetBytes, 'the reader process ended');
      return { data, zero: false };
    });
    this.#last = mine.catch(() => {});
    return mine;
  }

  async close(): Promise<void> {
    this.#child.stdin?.end();
    await this.#last;
    await this.#ended;
  }
}
