/**
 * Many small writes at once, in threads of their own. Each asynchronous call of Node's costs some 40 µs of this
 * thread and its pool, ten times what the kernel takes for 4 KiB: so the pieces are copied together, and a thread writes
 * them one after the other by plain calls. Not in this thread: a disk that is slow would hold up the acknowledgements.
 */
import { Worker } from 'node:worker_threads';
import type { DiskWrites } from './coalesce.ts';
import { SMALL_WRITES_WORKER, type WritesAnswer, type WritesAsk } from './small-writes-worker.ts';

/** From here on a call of its own costs less than the copy. */
export const SMALL_BYTES = 128 * 1024;

const THREADS = 2;
const ROUND_BYTES = 1024 * 1024;

/** Neighbours among a disk's writes, [from, to), that are one write together. */
export interface SmallWrite {
  from: number;
  to: number;
  lengthBytes: number;
}

/** Small writes in the form in which a thread takes them. */
export interface PackedWrites {
  data: ArrayBuffer;
  spans: Float64Array;
}

/** Memory of packed writes that are over, the smallest first. */
const spare: ArrayBuffer[] = [];
/** Two batches of one disk, one being written and one prepared, in two halves each; more disks at once allocate. */
const SPARES = 4;

function takeSpare(bytes: number): ArrayBuffer {
  const index = spare.findIndex(({ byteLength }) => byteLength >= bytes);
  const [found] = index < 0 ? [] : spare.splice(index, 1);
  return found ?? new ArrayBuffer(Math.ceil(bytes / ROUND_BYTES) * ROUND_BYTES);
}

function giveSpare(data: ArrayBuffer): void {
  spare.push(data);
  spare.sort((a, b) => a.byteLength - b.byteLength);
  // The larger ones serve more.
  if (spare.length > SPARES) spare.shift();
}

/** Copies the small ones of a disk's writes together; their own data is not needed any more. */
export function packSmall(writes: DiskWrites, small: readonly SmallWrite[]): PackedWrites {
  const data = takeSpare(small.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0));
  const bytes = Buffer.from(data);
  const spans = new Float64Array(2 * small.length);
  let to = 0;
  small.forEach((one, index) => {
    spans[2 * index] = writes.offsetsBytes[one.from]!;
    spans[2 * index + 1] = one.lengthBytes;
    for (let part = one.from; part < one.to; part++) {
      const from = writes.dataAt[part]!;
      to += writes.sources[part]!.copy(bytes, to, from, from + writes.lengthsBytes[part]!);
    }
  });
  return { data, spans };
}

class WriteThread {
  readonly #worker: Worker;
  #answered: PromiseWithResolvers<WritesAnswer> | undefined;
  #last: Promise<unknown> = Promise.resolve();
  waiting = 0;
  dead = false;

  constructor() {
    this.#worker = new Worker(SMALL_WRITES_WORKER);
    // It must not keep the program from ending.
    this.#worker.unref();
    this.#worker.on('message', (answer: WritesAnswer) => this.#answered?.resolve(answer));
    const die = (error: Error) => {
      this.dead = true;
      this.#answered?.reject(error);
    };
    this.#worker.on('error', die);
    this.#worker.on('exit', (code) => die(new Error(`a write thread ended with status ${code}`)));
  }

  /** In the order of the calls; each is over, for better or worse, before the next one begins. */
  async write(fd: number, packed: PackedWrites): Promise<void> {
    this.waiting++;
    const turn = this.#last.then(() => this.#write(fd, packed));
    this.#last = turn.catch(() => {});
    try {
      await turn;
    } finally {
      this.waiting--;
    }
  }

  async #write(fd: number, { data, spans }: PackedWrites): Promise<void> {
    if (this.dead) throw new Error('a write thread has ended');
    this.#answered = Promise.withResolvers<WritesAnswer>();
    const ask: WritesAsk = { fd, data, spans };
    this.#worker.ref();
    try {
      // Lent, not copied; it comes back with the answer.
      this.#worker.postMessage(ask, [ask.data]);
      const { data: back, error } = await this.#answered.promise;
      giveSpare(back);
      if (error) throw Object.assign(new Error(error.message), { code: error.code });
    } finally {
      this.#answered = undefined;
      this.#worker.unref();
    }
  }
}

const threads: WriteThread[] = [];

function leastBusy(): WriteThread {
  for (let index = threads.length - 1; index >= 0; index--) {
    if (threads[index]!.dead) threads.splice(index, 1);
  }
  const free = threads.find(({ waiting }) => waiting === 0);
  if (free) return free;
  if (threads.length < THREADS) {
    const fresh = new WriteThread();
    threads.push(fresh);
    return fresh;
  }
  return threads.reduce((best, one) => (one.waiting < best.waiting ? one : best));
}

/**
 * Writes all of them to an open file or device; nothing is under way any more when it settles. Once only: their memory is
 * given to others.
 * @throws the system's error of the first write that failed (with its `code`); later ones were not tried then
 */
export const writePacked = (fd: number, packed: PackedWrites): Promise<void> =>
  leastBusy().write(fd, packed);
