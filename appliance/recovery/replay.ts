/**
 * Recovery to a chosen point: on an overlay that reads as the checkpoint, every frame behind the checkpoint up to the
 * point is applied, by the code that applies to the replica disks. The idea is a database's point-in-time recovery. It is
 * redo, so an interrupted replay may be run again from its beginning on the same overlays.
 */
import { undError } from '../../protocol/errors.ts';
import { BatchWriter, FrameBatch } from '../apply/frame-batch.ts';
import { ReplicaDisk } from '../apply/replica-disk.ts';
import type { JournalReader } from '../journal/journal.ts';

export interface ReplayOptions {
  jobId: string;
  /** Stands at the frame behind the checkpoint; closed by whoever opened it. */
  reader: JournalReader;
  /** The point's frame: the last one that is applied. */
  toSeq: number;
  /** By the disks' index in the stream. */
  sizes: readonly number[];
  /** The overlays' devices, by the disks' index in the stream. */
  paths: ReadonlyMap<number, string>;
  /** The newest frame written. */
  onProgress?(seq: number): void;
  signal?: AbortSignal;
}

/**
 * Everything is flushed when it resolves, and nothing of a frame behind `toSeq` was written.
 * @throws UND_HISTORY_GONE when a frame is not in the journal (any more); UND_REPLAY_FAILED when a disk cannot be written;
 *   UND_FRAME_… when the journal is damaged
 */
export async function replay(options: ReplayOptions): Promise<void> {
  const { jobId, reader, toSeq, sizes, paths, signal } = options;
  const failed = (index: number, cause: NodeJS.ErrnoException) =>
    undError('UND_REPLAY_FAILED', { job: jobId, disk: index, reason: cause.message }, { cause });
  const disks = new Map<number, ReplicaDisk>();
  const writer = new BatchWriter(disks, failed);
  try {
    for (const [index, path] of paths) disks.set(index, await ReplicaDisk.open(path));
    while (reader.nextSeq <= toSeq) {
      signal?.throwIfAborted();
      const batch = new FrameBatch(sizes);
      while (!batch.full && reader.nextSeq <= toSeq) {
        const frame = await reader.next();
        if (!frame) throw undError('UND_HISTORY_GONE', { job: jobId, seq: reader.nextSeq });
        batch.add(frame);
      }
      const lastSeq = reader.nextSeq - 1;
      await writer.write(batch, () => options.onProgress?.(lastSeq));
    }
    await writer.settled();
    for (const [index, disk] of disks) {
      await disk.sync().catch((error) => {
        throw failed(index, error);
      });
    }
  } finally {
    // Whatever was thrown: nothing is under way any more when the disks are closed.
    await writer.settled().catch(() => {});
    for (const disk of disks.values()) await disk.close();
  }
}
