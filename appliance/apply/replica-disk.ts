/**
 * One replica disk: a block device that the appliance holds, or a file. Writes go through the page cache and become
 * durable by `sync`.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { execa } from 'execa';
import type { DiskWrites } from './coalesce.ts';
import {
  type PackedWrites,
  packSmall,
  SMALL_BYTES,
  type SmallWrite,
  writePacked,
} from './small-writes.ts';

/** Smaller zeroes are written; larger ones are punched by fallocate(1), which costs a process. */
const PUNCH_BYTES = 1024 * 1024;
const ZEROES = Buffer.alloc(1024 * 1024);
const MAX_VECTORS = 1000;
/** So many small writes keep a thread of their own busy. */
const SMALL_HALF = 64;
/** As many as the thread pool has threads. */
const WRITERS = 4;

/** Writes as a disk takes them: copied together where they are small, in runs where they are large. */
export interface PreparedWrites {
  small: PackedWrites[];
  large: Run[];
}

/** Neighbours go in one system call. It may be done before the writes' turn has come. */
export function prepareWrites(writes: DiskWrites): PreparedWrites {
  const { count, offsetsBytes, lengthsBytes, sources, dataAt } = writes;
  const small: SmallWrite[] = [];
  const large: Run[] = [];
  for (let from = 0, to = 0; from < count; from = to) {
    const offsetBytes = offsetsBytes[from]!;
    let lengthBytes = lengthsBytes[from]!;
    to = from + 1;
    if (sources[from] === null) {
      large.push({ offsetBytes, lengthBytes, data: null });
      continue;
    }
    while (
      to < count &&
      to - from < MAX_VECTORS &&
      sources[to] !== null &&
      offsetsBytes[to] === offsetBytes + lengthBytes
    ) {
      lengthBytes += lengthsBytes[to++]!;
    }
    if (lengthBytes < SMALL_BYTES) small.push({ from, to, lengthBytes });
    else {
      const data: Buffer[] = [];
      for (let one = from; one < to; one++) {
        const at = dataAt[one]!;
        data.push(sources[one]!.subarray(at, at + lengthsBytes[one]!));
      }
      large.push({ offsetBytes, lengthBytes, data });
    }
  }
  // In two halves, of two regions of the disk, where that is more than the handing over.
  const half = small.length < 2 * SMALL_HALF ? small.length : Math.ceil(small.length / 2);
  const packed: PackedWrites[] = [];
  for (let at = 0; at < small.length; at += half) {
    packed.push(packSmall(writes, small.slice(at, at + half)));
  }
  return { small: packed, large };
}

export class ReplicaDisk {
  readonly path: string;
  #handle: FileHandle;
  #dirty = false;
  #canPunch = true;

  private constructor(path: string, handle: FileHandle) {
    this.path = path;
    this.#handle = handle;
  }

  static async open(path: string): Promise<ReplicaDisk> {
    return new ReplicaDisk(path, await open(path, 'r+'));
  }

  /** Writes what was prepared, once: large runs a few at a time, small ones together. */
  async write({ small, large }: PreparedWrites): Promise<void> {
    if (small.length + large.length > 0) this.#dirty = true;
    let failed = false;
    let next = 0;
    const writer = async () => {
      while (next < large.length && !failed) {
        const { offsetBytes, lengthBytes, data } = large[next++]!;
        try {
          if (data) await writeFully(this.#handle, data, offsetBytes, lengthBytes);
          else await this.#zero(offsetBytes, lengthBytes);
        } catch (error) {
          failed = true;
          throw error;
        }
      }
    };
    const acts = Array.from({ length: Math.min(WRITERS, large.length) }, writer);
    for (const packed of small) acts.push(writePacked(this.#handle.fd, packed));
    // Whatever fails, nothing is under way any more when it is thrown.
    const ends = await Promise.allSettled(acts);
    for (const end of ends) if (end.status === 'rejected') throw end.reason;
  }

  async #zero(offsetBytes: number, lengthBytes: number): Promise<void> {
    if (this.#canPunch && lengthBytes >= PUNCH_BYTES) {
      // On a block device the kernel does this only if the range reads as zeroes afterwards.
      const { exitCode } = await execa(
        'fallocate',
        ['-p', '-o', String(offsetBytes), '-l', String(lengthBytes), this.path],
        { reject: false },
      );
      if (exitCode === 0) return;
      this.#canPunch = false;
    }
    for (let done = 0; done < lengthBytes; done += ZEROES.length) {
      const length = Math.min(ZEROES.length, lengthBytes - done);
      await writeFully(this.#handle, [ZEROES.subarray(0, length)], offsetBytes + done, length);
    }
  }

  async read(offsetBytes: number, lengthBytes: number): Promise<Buffer> {
    const data = Buffer.allocUnsafe(lengthBytes);
    let done = 0;
    while (done < lengthBytes) {
      const { bytesRead } = await this.#handle.read(
        data,
        done,
        lengthBytes - done,
        offsetBytes + done,
      );
      if (bytesRead === 0) {
        // Behind the end of a sparse file that is shorter than its disk: it reads as zeroes.
        data.fill(0, done);
        break;
      }
      done += bytesRead;
    }
    return data;
  }

  /** What is durable leaves the page cache: the next reads are of the disk itself. */
  async dropCache(): Promise<void> {
    await execa('dd', [`if=${this.path}`, 'iflag=nocache', 'count=0', 'status=none'], {
      reject: false,
    });
  }

  /** Everything applied before is durable when it resolves. */
  async sync(): Promise<void> {
    if (!this.#dirty) return;
    this.#dirty = false;
    try {
      await this.#handle.datasync();
    } catch (error) {
      this.#dirty = true;
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

interface Run {
  offsetBytes: number;
  lengthBytes: number;
  /** Null: zeroes. */
  data: Uint8Array[] | null;
}

async function writeFully(
  handle: FileHandle,
  buffers: Uint8Array[],
  at: number,
  lengthBytes: number,
): Promise<void> {
  const { bytesWritten } = await handle.writev(buffers, at);
  if (bytesWritten === lengthBytes) return;
  const rest = Buffer.concat(buffers).subarray(bytesWritten);
  for (let done = 0; done < rest.length; ) {
    const step = await handle.write(rest, done, rest.length - done, at + bytesWritten + done);
    done += step.bytesWritten;
  }
}
