/**
 * zstd in the thread pool, by engines that are used again: an engine's tables cost as much as a small frame, and what it puts
 * out, in fresh memory each time, cost page faults, and garbage collections of the whole heap.
 */
import {
  constants,
  createZstdCompress,
  createZstdDecompress,
  type ZstdCompress,
  type ZstdDecompress,
} from 'node:zlib';

type Engine = (ZstdCompress | ZstdDecompress) & {
  /** As new; not in the types of these. */
  reset(): void;
  /**
   * Where in its memory the engine puts its output next; Node's own, of the version that is pinned. Where it is no such
   * thing any more, memory is made anew as it was.
   */
  _outOffset?: number;
};

type Make = () => ZstdCompress | ZstdDecompress;

/** The output of one pass: a batch of the capture (2 MiB) and its table, so that nearly all frames are done in one. */
const OUTPUT_BYTES = 2304 * 1024;
const RUBBISH = 'more comes out of it than it says';

/** As many as the thread pool has threads: more at once would not be faster, only each hold its memory. */
const AT_ONCE = 4;

/** Lets so many at work at once. */
export class Turns {
  #taken = 0;
  readonly #waiting: Array<() => void> = [];

  /** Resolves when it is one's turn; `done` ends it. */
  async turn(): Promise<void> {
    if (this.#taken < AT_ONCE) this.#taken++;
    else await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  /** The turn goes to the one who waits longest. */
  done(): void {
    const next = this.#waiting.shift();
    if (next) next();
    else this.#taken--;
  }
}

const unpacking = new Turns();

/** Idle ones, by what they do; never more than were at work at once. */
const idle = new Map<string, Engine[]>();

/**
 * One zstd frame of all of `raw`. Each write is said to be a whole frame: zstdCompress() writes and ends apart, so zstd copies
 * all of it first.
 * @param use is given what came out, which is another's when it returns
 * @throws what zstd says
 */
export function compress<T>(
  raw: Buffer,
  level: number,
  use: (pieces: readonly Buffer[]) => T,
): Promise<T> {
  const make = () =>
    createZstdCompress({
      flush: constants.ZSTD_e_end,
      chunkSize: OUTPUT_BYTES,
      params: { [constants.ZSTD_c_compressionLevel]: level },
    });
  return pass(`level ${level}`, make, raw, Number.POSITIVE_INFINITY, use);
}

/**
 * What was packed, which may be anything.
 * @param maxBytes more than that is an error before it is there
 * @param use is given what came out, which is another's when it returns
 * @throws what zstd says, or that there was more
 */
export async function decompress<T>(
  packed: Buffer,
  maxBytes: number,
  use: (pieces: readonly Buffer[]) => T,
): Promise<T> {
  const make = () => createZstdDecompress({ chunkSize: OUTPUT_BYTES });
  await unpacking.turn();
  try {
    return await pass('decompress', make, packed, maxBytes, use);
  } finally {
    unpacking.done();
  }
}

async function pass<T>(
  kind: string,
  make: Make,
  input: Buffer,
  maxBytes: number,
  use: (pieces: readonly Buffer[]) => T,
): Promise<T> {
  const engine = idle.get(kind)?.pop() ?? made(make);
  const pieces: Buffer[] = [];
  let bytes = 0;
  const take = (piece: Buffer) => {
    pieces.push(piece);
    bytes += piece.length;
    if (bytes > maxBytes) engine.destroy(new Error(RUBBISH));
  };
  engine.on('data', take);
  try {
    await new Promise<void>((resolve, reject) => {
      // Of a write that zstd itself refuses, only the event tells.
      engine.once('error', reject);
      engine.write(input, (error) => {
        if (error) return reject(error);
        engine.off('error', reject);
        resolve();
      });
    });
    if (bytes > maxBytes) throw new Error(RUBBISH);
    // What lies there is no frame: this engine has ended, and the next one's frame would fail in it.
    if (engine.readableEnded) throw new Error('something lies behind its end');
    const result = use(pieces);
    engine.off('data', take);
    // What ended in the middle of a frame must not be gone on with by the next one.
    if (kind === 'decompress') engine.reset();
    if (engine._outOffset !== undefined) engine._outOffset = 0;
    const others = idle.get(kind);
    if (others) others.push(engine);
    else idle.set(kind, [engine]);
    return result;
  } catch (error) {
    engine.destroy();
    throw error;
  }
}

function made(make: Make): Engine {
  const engine = make() as Engine;
  // It may follow a write's own failure, when nobody listens any more.
  engine.on('error', () => {});
  return engine;
}
