/**
 * A session with the wrapper on the target host: one channel that stays, many calls, answered in whatever order they are
 * ready. Its lines are described at `Session` in `image/host/understudy-host-shell`.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import type { Socket } from 'node:net';

/** What a call brought, by whatever way: the wrapper's answer is in `stdout`, if there is one. */
export interface Outcome {
  stdout: string;
  stderr: string;
  exitCode?: number;
  timedOut: boolean;
  message?: string;
}

/** The request by which the wrapper opens one, exactly as it knows it. */
export const SESSION_REQUEST = '{"verb":"session"}';
const IDLE_MS = 60_000;
/** Of one that was closed, or does not answer. */
const KILL_MS = 5_000;
const EXIT_MS = 1_000;
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;
const MAX_STDERR_CHARS = 4096;
/** A wrapper without sessions is asked again after that: it may have been replaced. */
const ASK_AGAIN_MS = 10 * 60_000;

export interface SessionOptions {
  /** The command line that leads to the wrapper. */
  command: readonly string[];
  env?: Record<string, string>;
  idleMs?: number;
  askAgainMs?: number;
}

interface Waiting {
  settle(outcome: Outcome | 'not begun'): void;
  timer: NodeJS.Timeout;
}

const lost = (what: Partial<Outcome>): Outcome => ({
  ...{ stdout: '', stderr: '', timedOut: false },
  ...what,
});

/** One process that leads to a session of the wrapper. */
class Session {
  /** Resolves with null when the wrapper greets, else with what there is instead of a greeting. */
  readonly opened: Promise<Outcome | null>;
  /** No call is to begin on it any more. */
  over = false;
  readonly #child: ChildProcessWithoutNullStreams;
  readonly #idleMs: number;
  readonly #onOver: () => void;
  /** Its process is gone. */
  readonly closed: Promise<void>;
  #greet!: (outcome: Outcome | null) => void;
  #waiting = new Map<number, Waiting>();
  #numbers = 0;
  #parts: Buffer[] = [];
  #partBytes = 0;
  #stderr = '';
  #idle: NodeJS.Timeout | undefined;
  #held = 0;
  #finished = false;
  #resolveClosed!: () => void;

  constructor({ command, env, idleMs = IDLE_MS }: SessionOptions, onOver: () => void) {
    const [program = '', ...rest] = command;
    this.#idleMs = idleMs;
    this.#onOver = onOver;
    this.opened = new Promise((resolve) => {
      this.#greet = resolve;
    });
    this.#child = spawn(program, rest, { env: { ...process.env, ...env } });
    const { stdin, stdout, stderr } = this.#child;
    stdout.on('data', (data: Buffer) => this.#read(data));
    stderr.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-MAX_STDERR_CHARS);
    });
    // What went wrong is told by the end of the process.
    for (const stream of [stdin, stdout, stderr]) stream.on('error', () => {});
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#child.on('error', (error) => {
      if (this.#child.pid === undefined) this.#finish({ message: error.message });
    });
    const finish = (code: number | null) => this.#finish({ exitCode: code ?? undefined });
    this.#child.on('close', finish);
    // Something that it started may hold its output open for ever.
    this.#child.on('exit', (code) => setTimeout(finish, EXIT_MS, code).unref());
    this.#hold(0);
  }

  /** Whether anything waits decides whether this process may end meanwhile. */
  #hold(change: -1 | 0 | 1): void {
    this.#held += change;
    const act = this.#held > 0 ? 'ref' : 'unref';
    this.#child[act]();
    for (const stream of [this.#child.stdin, this.#child.stdout, this.#child.stderr]) {
      (stream as Partial<Socket>)[act]?.();
    }
  }

  /** The process is gone, or nothing of it is believed any more: what waits has no answer. */
  #finish(what: Partial<Outcome>): void {
    if (this.#finished) return;
    this.#finished = true;
    this.#child.kill('SIGKILL');
    for (const stream of [this.#child.stdin, this.#child.stdout, this.#child.stderr]) {
      stream.destroy();
    }
    this.#setOver();
    const message = 'the session with the host ended';
    const outcome = lost({ stderr: this.#stderr, message, ...what });
    this.#greet({ ...outcome, stdout: Buffer.concat(this.#parts).toString() });
    this.#parts = [];
    for (const { settle } of [...this.#waiting.values()]) settle(outcome);
    this.#resolveClosed();
  }

  #read(data: Buffer): void {
    let from = 0;
    while (!this.#finished) {
      const end = data.indexOf(10, from);
      if (end < 0) break;
      this.#parts.push(data.subarray(from, end));
      from = end + 1;
      const line = Buffer.concat(this.#parts).toString();
      this.#parts = [];
      this.#partBytes = 0;
      this.#line(line);
    }
    if (from < data.length) this.#parts.push(data.subarray(from));
    this.#partBytes += data.length - from;
    if (this.#partBytes > MAX_ANSWER_BYTES) this.#distrust();
  }

  #greeted = false;

  #line(line: string): void {
    if (!this.#greeted) {
      this.#greeted = true;
      this.#greet(isGreeting(line) ? null : lost({ stdout: line, stderr: this.#stderr }));
      return;
    }
    const [, number, text = ''] = /^(\d{1,15}) (.*)$/s.exec(line) ?? [];
    const waiting = number === undefined ? undefined : this.#waiting.get(Number(number));
    if (number === undefined) {
      this.#distrust();
    } else if (text === '-') {
      this.retire();
      waiting?.settle('not begun');
    } else if (text === '!') {
      waiting?.settle(lost({ message: 'its wrapper ended without an answer' }));
    } else {
      waiting?.settle(lost({ stdout: text }));
    }
  }

  #distrust(): void {
    this.#parts = [];
    this.#finish({ message: 'its wrapper gave an answer that this version does not understand' });
  }

  /** `'not begun'`: certainly nothing was done. */
  ask(text: string, timeoutMs: number): Promise<Outcome | 'not begun'> {
    const number = ++this.#numbers;
    clearTimeout(this.#idle);
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        // It may hang as a whole: others are asked in a new one.
        this.retire();
        if (this.#child.stdin.writable) this.#child.stdin.write(`${number} -\n`);
        settle(lost({ timedOut: true }));
      }, timeoutMs);
      const settle = (outcome: Outcome | 'not begun') => {
        if (!this.#waiting.delete(number)) return;
        clearTimeout(timer);
        this.#hold(-1);
        if (this.#waiting.size === 0) this.#rest();
        resolve(outcome);
      };
      this.#waiting.set(number, { settle, timer });
      this.#hold(1);
      this.#child.stdin.write(`${number} ${text}\n`);
    });
  }

  #rest(): void {
    if (this.over) {
      this.#close();
      return;
    }
    this.#idle = setTimeout(() => this.retire(), this.#idleMs).unref();
  }

  #setOver(): void {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.#idle);
    this.#onOver();
  }

  /** Takes no further calls; ends when the last that is under way has ended. */
  retire(): void {
    this.#setOver();
    if (this.#waiting.size === 0) this.#close();
  }

  #close(): void {
    this.#child.stdin.end();
    setTimeout(() => this.#child.kill('SIGKILL'), KILL_MS).unref();
  }

  /** Waits for the greeting, but not for ever. */
  async waitOpen(timeoutMs: number): Promise<Outcome | null> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<Outcome>((resolve) => {
      timer = setTimeout(() => {
        this.retire();
        resolve(lost({ stderr: this.#stderr, timedOut: true }));
      }, timeoutMs);
    });
    this.#hold(1);
    try {
      return await Promise.race([this.opened, late]);
    } finally {
      clearTimeout(timer);
      this.#hold(-1);
    }
  }

  /** Ends it now, whatever is under way. */
  async end(): Promise<void> {
    this.#setOver();
    this.#hold(1);
    this.#close();
    await this.closed;
  }
}

function isGreeting(line: string): boolean {
  try {
    const greeting = JSON.parse(line) as { ok?: unknown; result?: { session?: unknown } };
    return greeting?.ok === true && greeting.result?.session === 1;
  } catch {
    return false;
  }
}

/** The sessions with one host: one at a time, opened when it is needed and closed when it is not. */
export class Sessions {
  readonly #options: SessionOptions;
  #current: Session | undefined;
  #all = new Set<Session>();
  #notBeforeMs = Number.NEGATIVE_INFINITY;

  constructor(options: SessionOptions) {
    this.#options = options;
  }

  /**
   * What one request brought; null when the host's wrapper knows no sessions, or wants a new one again and again: then
   * nothing was done, and the request may be made by itself.
   */
  async exchange(text: string, timeoutMs: number): Promise<Outcome | null> {
    const end = performance.now() + timeoutMs;
    for (let tries = 0; tries < 2; tries++) {
      if (performance.now() < this.#notBeforeMs) return null;
      const session = this.#open();
      const instead = await session.waitOpen(end - performance.now());
      if (instead) {
        session.retire();
        // An older wrapper says in its own form that there is no such verb; whatever else it has to say, a single call
        // brings to light.
        if (!instead.stdout.startsWith('{')) return instead;
        this.#notBeforeMs = performance.now() + (this.#options.askAgainMs ?? ASK_AGAIN_MS);
        return null;
      }
      // It may have ended while this one waited for the greeting.
      if (session.over) continue;
      const outcome = await session.ask(text, end - performance.now());
      if (outcome !== 'not begun') return outcome;
    }
    return null;
  }

  #open(): Session {
    if (this.#current) return this.#current;
    const session = new Session(this.#options, () => {
      if (this.#current === session) this.#current = undefined;
    });
    this.#current = session;
    this.#all.add(session);
    session.closed.then(() => this.#all.delete(session));
    return session;
  }

  /** Ends them all; what is under way then is lost, and its outcome unknown. */
  async close(): Promise<void> {
    await Promise.all([...this.#all].map((session) => session.end()));
  }
}
