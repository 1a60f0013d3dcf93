/**
 * One replica disk: a block device that the appliance holds, or a file. Writes go through the page cache and become
 * durable by `sync`.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { execa } from 'execa';
import type { DiskWrite } from './coalesce.ts';
import { SMALL_BYTES, type SmallWrite, writeSmall } from './small-writes.ts';

/** Smaller zeroes are written; larger ones are punched by fallocate(1), which costs a process. */
const PUNCH_BYTES = 1024 * 1024;
const ZEROES = Buffer.alloc(1024 * 1024);
const MAX_VECTORS = 1000;
/** As many as the thread pool has threads. */
const WRITERS = 4;

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

  /**
   * Apply sorted, non-overlapping writes; neighbours go in one system call. Large ones go a few at a time, small ones
   * together.
   */
  async apply(writes: readonly DiskWrite[]): Promise<void> {
    if (writes.length > 0) this.#dirty = true;
    const small: SmallWrite[] = [];
    const large: Run[] = [];
    for (const { offsetBytes, lengthBytes, data } of runsOf(writes)) {
      if (data && lengthBytes < SMALL_BYTES) small.push({ offsetBytes, lengthBytes, data });
      else large.push({ offsetBytes, lengthBytes, data });
    }
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
    if (small.length > 0) acts.push(writeSmall(this.#handle.fd, small));
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

/** Sorted writes put together where they touch. */
function* runsOf(writes: readonly DiskWrite[]): Generator<Run> {
  let run: (Run & { data: Uint8Array[] }) | null = null;
  for (const { offsetBytes, lengthBytes, data } of writes) {
    const joins = data && run && run.offsetBytes + run.lengthBytes === offsetBytes;
    if (joins && run && run.data.length < MAX_VECTORS) {
      run.data.push(data);
      run.lengthBytes += lengthBytes;
      continue;
    }
    if (run) yield run;
    run = data && { offsetBytes, lengthBytes, data: [data] };
    if (!data) yield { offsetBytes, lengthBytes, data: null };
  }
  if (run) yield run;
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
