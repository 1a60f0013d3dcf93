/** The appliance's side of a mounted point: starts the isolated process and asks it. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { UndError, undError } from '../../../protocol/errors.ts';
import type { FileListing, GuestVolume } from '../../api/schema.ts';
import { ISOLATED_ENV, isolated } from '../prepare-guest/isolation.ts';
import type { ServeRequest } from '../types.ts';
import { type FileFacts, MAX_READ_BYTES } from './guest-files.ts';
import { AnswerReader, type BrowseAnswer, type BrowseInput, type BrowseRequest } from './wire.ts';

/** A file system that does not answer for so long will not: its process is ended. */
const ANSWER_LIMIT_MS = 120_000;
/** Journals of large file systems are replayed when they are mounted. */
const MOUNT_LIMIT_MS = 15 * 60_000;

interface Waiting {
  resolve(got: { answer: BrowseAnswer; body: Buffer }): void;
  reject(error: Error): void;
}

export class Browser {
  readonly #child: ChildProcess;
  readonly #mountId: string;
  readonly #waiting: Waiting[] = [];
  readonly #ended: Promise<void>;
  #complaint = '';
  #why: string | null = null;
  #closing = false;
  #opened = false;

  private constructor(command: readonly string[], request: ServeRequest) {
    this.#mountId = request.mountId;
    const [program = '', ...args] = isolated(command);
    this.#child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'], env: ISOLATED_ENV });
    const reader = new AnswerReader();
    this.#child.stdin!.on('error', () => {});
    this.#child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#complaint = (this.#complaint + text).slice(-2000);
    });
    this.#child.stdout!.on('data', (chunk: Buffer) => {
      try {
        for (const got of reader.add(chunk)) this.#waiting.shift()?.resolve(got);
      } catch {
        this.#kill('its process answered nonsense');
      }
    });
    this.#ended = new Promise((resolve) => {
      this.#child.on('error', (error) => {
        if (this.#child.pid !== undefined) return;
        this.#end(error.message);
        resolve();
      });
      this.#child.on('close', (code, signal) => {
        const said = this.#complaint.trim().split('\n').at(-1);
        this.#end(`its process ended with ${signal ?? code}${said ? ` (${said})` : ''}`);
        resolve();
        if (this.#opened && !this.#closing)
          request.onGone(`What had it open has ended: ${this.#why}.`);
      });
    });
  }

  /**
   * Mounts what can be mounted of the disks.
   * @param command what runs `runBrowseWorker`
   * @throws UND_MOUNT_FAILED, UND_GUEST_ISOLATION; `close` then as well
   */
  static open(
    command: readonly string[],
    request: ServeRequest,
    signal: AbortSignal,
  ): { browser: Browser; volumes: Promise<GuestVolume[]> } {
    const browser = new Browser(command, request);
    const input: BrowseInput = {
      outsideMountNamespace: readlinkSync('/proc/self/ns/mnt'),
      disks: request.disks,
    };
    const abort = () => browser.#kill('it was interrupted');
    signal.addEventListener('abort', abort, { once: true });
    const volumes = browser
      .#ask(input, MOUNT_LIMIT_MS)
      .then(({ answer }) => {
        if (answer.op !== 'volumes') return browser.#nonsense();
        browser.#opened = true;
        return answer.volumes;
      })
      .finally(() => signal.removeEventListener('abort', abort));
    if (signal.aborted) abort();
    return { browser, volumes };
  }

  /** @throws UND_MOUNT_PATH, UND_MOUNT_NOT_OPEN */
  async list(volume: string, path: string, from: number, limit: number): Promise<FileListing> {
    const { answer } = await this.#ask({ op: 'list', volume, path, from, limit });
    return answer.op === 'list' ? answer.listing : this.#nonsense();
  }

  /** @throws UND_MOUNT_PATH, UND_MOUNT_NOT_OPEN */
  async stat(volume: string, path: string): Promise<FileFacts> {
    const { answer } = await this.#ask({ op: 'stat', volume, path });
    return answer.op === 'stat' ? answer.facts : this.#nonsense();
  }

  /**
   * The bytes of a file from `offsetBytes` on, pulled as they are taken. Ends early only with an error.
   * @throws UND_MOUNT_PATH, UND_MOUNT_NOT_OPEN
   */
  async *read(
    volume: string,
    path: string,
    offsetBytes: number,
    lengthBytes: number,
  ): AsyncGenerator<Buffer, void> {
    for (let done = 0; done < lengthBytes; ) {
      const wanted = Math.min(MAX_READ_BYTES, lengthBytes - done);
      const { answer, body } = await this.#ask({
        op: 'read',
        volume,
        path,
        offsetBytes: offsetBytes + done,
        lengthBytes: wanted,
      });
      if (answer.op !== 'read' || body.length > wanted) this.#nonsense();
      if (body.length === 0) {
        throw undError('UND_MOUNT_PATH', { path, volume, reason: 'it is shorter than it says' });
      }
      yield body;
      done += body.length;
    }
  }

  /** Unmounts; resolves when the process is gone. One that does not go by itself is killed. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#child.stdin!.end();
    const timer = setTimeout(() => this.#kill('it was closed'), 30_000);
    await this.#ended;
    clearTimeout(timer);
  }

  #ask(
    request: BrowseRequest | BrowseInput,
    limitMs = ANSWER_LIMIT_MS,
  ): Promise<{ answer: BrowseAnswer; body: Buffer }> {
    return new Promise((resolve, reject) => {
      if (this.#why !== null || this.#closing) {
        reject(this.#notOpen(this.#why ?? 'it is being closed'));
        return;
      }
      const timer = setTimeout(
        () => this.#kill(`it did not answer for ${limitMs / 1000} s`),
        limitMs,
      );
      this.#waiting.push({
        resolve: (got) => {
          clearTimeout(timer);
          if (got.answer.op !== 'error') resolve(got);
          else reject(new UndError(got.answer.error.code, got.answer.error.params));
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      this.#child.stdin!.write(`${JSON.stringify(request)}\n`);
    });
  }

  #notOpen = (reason: string) => undError('UND_MOUNT_NOT_OPEN', { mount: this.#mountId, reason });

  #nonsense(): never {
    this.#kill('its process answered nonsense');
    throw this.#notOpen('its process answered nonsense');
  }

  #kill(why: string): void {
    this.#why ??= why;
    this.#child.kill('SIGKILL');
  }

  #end(why: string): void {
    this.#why ??= why;
    for (const { reject } of this.#waiting.splice(0)) reject(this.#notOpen(this.#why));
  }
}
