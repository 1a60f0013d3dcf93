/**
 * Compares a disk with its replica while both change: span by span by one hash each, computed on both sides at the same
 * time, then chunks, then pieces, only where hashes differ (protocol/hash-tree.ts). What it yields are differences as of
 * some moment behind the run's start mark; docs/stream.md argues why that is enough for a mirror.
 */
import {
  BLOCK_BYTES,
  CHUNK_BYTES,
  compared,
  comparedBytes,
  HASH_BYTES,
  hashOf,
  maskOf,
  PIECE_BYTES,
  SPAN_BYTES,
} from '../../protocol/hash-tree.ts';
import type { BlockReader } from '../capture/capture.ts';
import type { Span } from './touched.ts';

/** Reads under way at once. */
const READ_AHEAD = 4;

export interface HashQuery extends Span {
  disk: number;
  run: number;
  /** One hash for each so many bytes. */
  chunkBytes: number;
  /** From offsetBytes on; null: everything is compared. */
  mask: Buffer | null;
  /** One hash for the whole: of the hashes. */
  fold: boolean;
  /** Of the replica with all frames up to this one; else with the run's newest start mark. */
  behindSeq?: number;
}

export interface CompareHost {
  /** Hashes of the replica, HASH_BYTES each. */
  replicaHashes(query: HashQuery): Promise<Buffer>;
  /** Resolves when replication has left room for more than itself. */
  room(): Promise<void>;
  read(bytes: number): void;
}

/** Up to endBytes everything is compared. Each piece was read and differed, somewhere in it. */
export interface Compared {
  endBytes: number;
  /** Since the one before, without what is left out. */
  comparedBytes: number;
  pieces: Array<Span & { data: Buffer }>;
}

interface PlannedSpan extends Span {
  mask: Buffer | null;
  comparedBytes: number;
  theirs: Promise<Buffer> | null;
}

/**
 * @param unneeded sorted spans that are not compared
 * @throws the signal's reason, UND_SOURCE_READ_FAILED, UND_LINK_CLOSED, an error of the appliance
 */
export async function* compareDisk(
  host: CompareHost,
  run: { disk: number; run: number; cursorBytes: number; endBytes: number },
  reader: BlockReader,
  unneeded: readonly Span[],
  signal: AbortSignal,
): AsyncGenerator<Compared> {
  const { disk, endBytes } = run;
  const ask = (query: Omit<HashQuery, 'disk' | 'run'>): Promise<Buffer> => {
    const hashes = host.replicaHashes({ disk, run: run.run, ...query }).then((answer) => {
      const want = query.fold ? 1 : Math.ceil(query.lengthBytes / query.chunkBytes);
      if (answer.length !== want * HASH_BYTES) throw new Error('hashes of another size came');
      return answer;
    });
    // Asked ahead: whoever awaits it sees the rejection.
    hashes.catch(() => {});
    return hashes;
  };
  const plan = (offsetBytes: number): PlannedSpan | null => {
    if (offsetBytes >= endBytes) return null;
    const span = { offsetBytes, lengthBytes: Math.min(SPAN_BYTES, endBytes - offsetBytes) };
    const mask = maskOf(span, unneeded);
    const bytes = comparedBytes(mask, 0, span.lengthBytes);
    const theirs = bytes > 0 ? ask({ ...span, mask, chunkBytes: CHUNK_BYTES, fold: true }) : null;
    return { ...span, mask, comparedBytes: bytes, theirs };
  };
  let next = plan(run.cursorBytes);
  while (next) {
    const span: PlannedSpan = next;
    const spanEnd = span.offsetBytes + span.lengthBytes;
    next = plan(spanEnd);
    let same = true;
    if (span.theirs) {
      const ours = await hashSpan(host, reader, span, signal);
      same = (await hashOf(Buffer.concat(ours))).equals(await span.theirs);
      signal.throwIfAborted();
      if (!same) {
        const theirs = await ask({ ...span, chunkBytes: CHUNK_BYTES, fold: false });
        const differing = ours.flatMap((hash, at) =>
          hash.equals(theirs.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES))
            ? []
            : [chunkOf(span, at)],
        );
        for await (const pieces of differingPieces(host, ask, reader, span, differing)) {
          signal.throwIfAborted();
          const last = pieces.chunk.offsetBytes + pieces.chunk.lengthBytes;
          yield { endBytes: last, comparedBytes: 0, pieces: pieces.pieces };
        }
      }
    }
    yield { endBytes: spanEnd, comparedBytes: span.comparedBytes, pieces: [] };
  }
}

const chunkOf = ({ offsetBytes, lengthBytes }: Span, at: number): Span => ({
  offsetBytes: offsetBytes + at * CHUNK_BYTES,
  lengthBytes: Math.min(CHUNK_BYTES, lengthBytes - at * CHUNK_BYTES),
});

/** The hashes of a span's chunks. A chunk of which nothing is compared is not read. */
async function hashSpan(
  host: CompareHost,
  reader: BlockReader,
  span: PlannedSpan,
  signal: AbortSignal,
): Promise<Buffer[]> {
  const count = Math.ceil(span.lengthBytes / CHUNK_BYTES);
  const hashes: Buffer[] = [];
  let next = 0;
  const one = async () => {
    while (next < count) {
      const at = next++;
      const { offsetBytes, lengthBytes } = chunkOf(span, at);
      const inSpan = offsetBytes - span.offsetBytes;
      if (comparedBytes(span.mask, inSpan, lengthBytes) === 0) {
        hashes[at] = await hashOf(Buffer.alloc(0));
        continue;
      }
      await host.room();
      signal.throwIfAborted();
      const { data } = await reader.read(offsetBytes, lengthBytes);
      host.read(data.length);
      hashes[at] = await hashOf(compared(data as Buffer<ArrayBuffer>, span.mask, inSpan));
    }
  };
  await Promise.all(Array.from({ length: READ_AHEAD }, one));
  return hashes;
}

/** Chunks that differ are read once more, piece by piece told from the replica's; some chunks ahead. */
async function* differingPieces(
  host: CompareHost,
  ask: (query: Omit<HashQuery, 'disk' | 'run'>) => Promise<Buffer>,
  reader: BlockReader,
  span: PlannedSpan,
  chunks: readonly Span[],
): AsyncGenerator<{ chunk: Span; pieces: Compared['pieces'] }> {
  const look = async (chunk: Span) => {
    const at = chunk.offsetBytes - span.offsetBytes;
    const mask = span.mask && sliceMask(span.mask, at, chunk.lengthBytes);
    const [{ data }, theirs] = await Promise.all([
      reader.read(chunk.offsetBytes, chunk.lengthBytes),
      ask({ ...chunk, mask, chunkBytes: PIECE_BYTES, fold: false }),
    ]);
    host.read(data.length);
    const pieces: Compared['pieces'] = [];
    for (let from = 0; from < data.length; from += PIECE_BYTES) {
      const piece = data.subarray(from, from + PIECE_BYTES);
      const ours = await hashOf(compared(piece as Buffer<ArrayBuffer>, mask, from));
      const index = (from / PIECE_BYTES) * HASH_BYTES;
      if (ours.equals(theirs.subarray(index, index + HASH_BYTES))) continue;
      pieces.push({
        offsetBytes: chunk.offsetBytes + from,
        lengthBytes: piece.length,
        data: piece,
      });
    }
    return { chunk, pieces };
  };
  const ahead: Array<ReturnType<typeof look>> = [];
  let next = 0;
  while (next < chunks.length || ahead.length > 0) {
    while (ahead.length < READ_AHEAD && next < chunks.length) {
      const one = look(chunks[next++]!);
      one.catch(() => {});
      ahead.push(one);
    }
    yield await ahead.shift()!;
  }
}

const sliceMask = (mask: Buffer, atBytes: number, lengthBytes: number): Buffer => {
  const bytes = Math.ceil(lengthBytes / 8 / BLOCK_BYTES);
  const at = atBytes / 8 / BLOCK_BYTES;
  return mask.subarray(at, at + bytes);
};
