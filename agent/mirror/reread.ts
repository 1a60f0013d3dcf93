/** Reads dirty blocks of one disk again and puts them into the stream; the rule of touched.ts holds here too. */
import type { FrameExtent } from '../../protocol/frame.ts';
import type { Extent } from '../capture/capture.ts';
import { chunkExtents } from './chunk.ts';
import type { MirrorHost } from './mirror-run.ts';

const TAKE_BYTES = 16 * 1024 * 1024;
const READ_BYTES = 1024 * 1024;

export interface RereadHost extends MirrorHost {
  /** Put a frame into the stream that belongs to no run. */
  emitReread(extents: FrameExtent[], onAcked: () => void): void;
  untilAcked(isAcked: () => boolean): Promise<void>;
}

/** @throws the signal's reason, UND_SOURCE_READ_FAILED, UND_CAPTURE_… */
export async function runReread(
  host: RereadHost,
  disk: number,
  signal: AbortSignal,
): Promise<void> {
  const reader = await host.openReader(disk);
  try {
    for (;;) {
      let tracker: ReturnType<MirrorHost['track']> | undefined;
      let taken: Extent[] = [];
      try {
        taken = await host.takeDirty(disk, TAKE_BYTES);
        if (taken.length === 0) return;
        // The record of the very write that marked them must not cut them: it is not what the disk holds.
        await host.overtaken();
        tracker = host.track(disk);
        await host.barrier();
        let unacked = 0;
        for (const extent of taken) {
          for (let done = 0; done < extent.lengthBytes; done += READ_BYTES) {
            signal.throwIfAborted();
            const offsetBytes = extent.offsetBytes + done;
            const lengthBytes = Math.min(READ_BYTES, extent.lengthBytes - done);
            const { data } = await reader.read(offsetBytes, lengthBytes);
            // Behind what the read may have seen: the frame is a point to recover to.
            await host.overtaken();
            await host.room();
            signal.throwIfAborted();
            const spans = tracker.touched.untouched(offsetBytes, lengthBytes);
            const extents = chunkExtents(disk, 'difference', offsetBytes, data, spans);
            if (extents.length === 0) continue;
            unacked++;
            host.emitReread(extents, () => {
              unacked--;
            });
          }
        }
        await host.untilAcked(() => unacked === 0);
        await host.clearDirty(disk, taken);
        taken = [];
      } finally {
        tracker?.stop();
        // Not finished: they are dirty again. The frames that were sent were right where they stand.
        if (taken.length > 0) await host.markDirty(disk, taken).catch(() => {});
      }
    }
  } finally {
    await reader.close();
  }
}
