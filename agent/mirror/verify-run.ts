/**
 * One attempt at verifying a disk: everything is compared with the replica while replication goes on, and what differs is
 * looked at again where nothing moves. A block counts as a mismatch only if no write since the section's start is known of
 * it, neither before nor after the replica was asked: such a block has not changed on the source since then, and nothing
 * that the stream carries can have changed the replica's. docs/stream.md, "Verification", has the argument.
 */
import type { FrameExtent } from '../../protocol/frame.ts';
import { BLOCK_BYTES, HASH_BYTES, hashOf } from '../../protocol/hash-tree.ts';
import type { BlockReader } from '../capture/capture.ts';
import { chunkExtents } from './chunk.ts';
import { type CompareHost, compareDisk } from './compare.ts';
import { type Span, Touched } from './touched.ts';

const PIECES_AT_ONCE = 16;
/** How often pieces that were written while they were looked at are looked at again. */
const MORE_ROUNDS = 3;
/** A section has its own touched set, and what it found is durable when it ends. */
export const SECTION_BYTES = 4 * 1024 * 1024 * 1024;

export interface VerifyAsk {
  disk: number;
  run: number;
  cursorBytes: number;
  endBytes: number;
}

export interface Section {
  startBytes: number;
  endBytes: number;
  comparedBytes: number;
  mismatches: number;
  repaired: number;
}

export interface VerifyHost extends CompareHost {
  /** Every captured write of the disk that is sequenced from now on is remembered in the returned tracker. */
  track(disk: number): { touched: Touched; stop(): void };
  /** Resolves when the mark is acknowledged. */
  markStart(ask: VerifyAsk): Promise<void>;
  markVerified(ask: VerifyAsk, section: Section): Promise<void>;
  /** Every write issued before has completed when it resolves. */
  barrier(): Promise<void>;
  openReader(disk: number): Promise<BlockReader>;
  /** Sorted spans that are not on the replica, or need not be. */
  unneeded(disk: number): Promise<Span[]>;
  /** What is not on the replica now, and is known to be missing: active swap, blocks that are to be read again. */
  missing(disk: number): Promise<Span[]>;
  /** Resolves when every record that was in the ring at the call is sequenced. */
  overtaken(): Promise<void>;
  /** The newest frame's number. */
  sequenced(): number;
  /** Put a frame into the stream, now. */
  emitRepair(disk: number, extents: FrameExtent[]): void;
}

/** A piece with the blocks of it that were repaired. */
interface Repair extends Span {
  blocks: Array<{ span: Span; hash: Buffer }>;
}

/** @throws the signal's reason, or what went wrong: UND_SOURCE_READ_FAILED, UND_LINK_CLOSED, an error of the appliance */
export async function runVerify(
  host: VerifyHost,
  ask: VerifyAsk,
  signal: AbortSignal,
): Promise<void> {
  const reader = await host.openReader(ask.disk);
  const verifier = new Verifier(host, ask, reader, signal);
  try {
    for (let startBytes = ask.cursorBytes; startBytes < ask.endBytes; ) {
      const endBytes = Math.min(startBytes + SECTION_BYTES, ask.endBytes);
      await host.markVerified(ask, await verifier.section(startBytes, endBytes));
      startBytes = endBytes;
    }
  } finally {
    await reader.close();
  }
}

class Verifier {
  readonly #host: VerifyHost;
  readonly #ask: VerifyAsk;
  readonly #reader: BlockReader;
  readonly #signal: AbortSignal;
  /** Of the round that is under way. */
  #touched = new Touched(0);
  #unneeded: readonly Span[] | undefined;
  #repairs: Repair[] = [];
  /** Pieces that differ, and of which something was written in this round. */
  #moving: Span[] = [];

  constructor(host: VerifyHost, ask: VerifyAsk, reader: BlockReader, signal: AbortSignal) {
    this.#host = host;
    this.#ask = ask;
    this.#reader = reader;
    this.#signal = signal;
  }

  async section(startBytes: number, endBytes: number): Promise<Section> {
    const section = { startBytes, endBytes, comparedBytes: 0, mismatches: 0, repaired: 0 };
    await this.#round(section, async (unneeded) => {
      const run = { ...this.#ask, cursorBytes: startBytes, endBytes };
      const parts = compareDisk(this.#host, run, this.#reader, unneeded, this.#signal);
      for await (const { comparedBytes, pieces } of parts) {
        section.comparedBytes += comparedBytes;
        await inParts(pieces, (piece) => this.#lookAgain(piece, unneeded));
      }
    });
    // What moves without end is written without end, and so is on the replica what the stream carries.
    for (let more = 0; more < MORE_ROUNDS && this.#moving.length > 0; more++) {
      const pieces = this.#moving.splice(0);
      await this.#round(section, async (unneeded) => {
        await inParts(pieces, (piece) => this.#lookAgain(piece, unneeded));
      });
    }
    this.#moving = [];
    return section;
  }

  /** A touched set of its own, begun as a mirror run's is; then what was found is counted, and looked at once more. */
  async #round(section: Section, act: (unneeded: readonly Span[]) => Promise<void>): Promise<void> {
    const host = this.#host;
    const tracker = host.track(this.#ask.disk);
    this.#touched = tracker.touched;
    try {
      await host.markStart(this.#ask);
      await host.barrier();
      this.#signal.throwIfAborted();
      this.#unneeded ??= await host.unneeded(this.#ask.disk);
      await act(this.#unneeded);
      await inParts(this.#repairs.splice(0), async (repair) => {
        const repaired = await this.#proven(repair);
        section.mismatches += repair.blocks.length;
        section.repaired += repaired;
      });
      this.#signal.throwIfAborted();
    } finally {
      tracker.stop();
    }
  }

  /** What of a piece differs for certain is repaired in the stream when it resolves. */
  async #lookAgain({ offsetBytes, lengthBytes }: Span, unneeded: readonly Span[]): Promise<void> {
    const host = this.#host;
    const { disk } = this.#ask;
    const piece = { offsetBytes, lengthBytes };
    const { data } = await this.#reader.read(offsetBytes, lengthBytes);
    host.read(data.length);
    // A write that the read may have seen is in the touched set now.
    await host.overtaken();
    const missing = await host.missing(disk);
    const leftOut = [...unneeded, ...missing].filter((span) => overlap(span, piece));
    this.#signal.throwIfAborted();
    const blocks: Repair['blocks'] = [];
    for (let from = 0; from < lengthBytes; from += BLOCK_BYTES) {
      const block = data.subarray(from, from + BLOCK_BYTES);
      const span = { offsetBytes: offsetBytes + from, lengthBytes: block.length };
      if (leftOut.some((one) => overlap(one, span))) continue;
      blocks.push({ span, hash: await hashOf(Buffer.from(block)) });
    }
    const still = blocks.filter(({ span }) => this.#isStill(span));
    const differs = await this.#differing({ ...piece, blocks: still });
    await host.room();
    this.#signal.throwIfAborted();
    // From here to emitRepair nothing is awaited: what is sent is cut by all that is numbered before it.
    if (!blocks.every(({ span }) => this.#isStill(span))) this.#moving.push(piece);
    const wrong = differs.filter(({ span }) => this.#isStill(span));
    if (wrong.length === 0) return;
    const spans = wrong.map(({ span }) => span);
    host.emitRepair(disk, chunkExtents(disk, 'difference', offsetBytes, data, spans));
    this.#repairs.push({ ...piece, blocks: wrong });
  }

  /** How many of the repaired blocks are on the replica as they were read, or were written since. */
  async #proven(repair: Repair): Promise<number> {
    const differs = await this.#differing(repair);
    return repair.blocks.length - differs.filter(({ span }) => this.#isStill(span)).length;
  }

  /** The blocks that the replica has otherwise, with every frame that is numbered by now applied. */
  async #differing({ offsetBytes, lengthBytes, blocks }: Repair): Promise<Repair['blocks']> {
    if (blocks.length === 0) return [];
    const { disk, run } = this.#ask;
    const mask = Buffer.alloc(Math.ceil(lengthBytes / BLOCK_BYTES / 8));
    const indexOf = ({ span }: Repair['blocks'][number]) =>
      (span.offsetBytes - offsetBytes) / BLOCK_BYTES;
    for (const block of blocks) {
      const at = indexOf(block);
      mask[at >> 3] = mask[at >> 3]! | (1 << (at & 7));
    }
    const theirs = await this.#host.replicaHashes({
      disk,
      run,
      offsetBytes,
      lengthBytes,
      chunkBytes: BLOCK_BYTES,
      mask,
      fold: false,
      behindSeq: this.#host.sequenced(),
    });
    return blocks.filter((block) => {
      const at = indexOf(block) * HASH_BYTES;
      return !block.hash.equals(theirs.subarray(at, at + HASH_BYTES));
    });
  }

  /** No captured write since the section's start is numbered. */
  #isStill({ offsetBytes, lengthBytes }: Span): boolean {
    const [first] = this.#touched.untouched(offsetBytes, lengthBytes);
    return first?.offsetBytes === offsetBytes && first.lengthBytes === lengthBytes;
  }
}

/** Some at a time: each waits for the ring, the link and the appliance's apply. */
async function inParts<T>(all: readonly T[], act: (one: T) => Promise<void>): Promise<void> {
  for (let at = 0; at < all.length; at += PIECES_AT_ONCE) {
    await Promise.all(all.slice(at, at + PIECES_AT_ONCE).map(act));
  }
}

const overlap = (a: Span, b: Span): boolean =>
  a.offsetBytes < b.offsetBytes + b.lengthBytes && b.offsetBytes < a.offsetBytes + a.lengthBytes;
