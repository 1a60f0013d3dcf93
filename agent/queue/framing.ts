/**
 * Captured writes, blocks that were read and marks become numbered frames in the window, in one order. Where a frame ends
 * is where the source can be set back to, so that is decided here: docs/stream.md, "Frame".
 */
import { EXTENT_BYTES, ExtentList } from '../../protocol/extent-list.ts';
import {
  type Compression,
  type FrameExtent,
  packFrame,
  packList,
  packMark,
} from '../../protocol/frame.ts';
import type { Mark } from '../../protocol/marks.ts';
import type { CaptureBatch } from '../capture/capture.ts';
import type { Touched } from '../mirror/touched.ts';
import type { Window } from './window.ts';

/**
 * A frame is closed at this size, or so long after its first batch, whichever comes first; batches stay whole. The helper
 * lets records gather for 100 ms or to this size (GATHER_US): a batch that is on its way is still waited for.
 */
const FRAME_BYTES = 1024 * 1024;
const FRAME_MS = 1;
/** A batch that would make a larger frame is cut; see docs/stream.md for what that means. */
const FRAME_MAX_BYTES = 6 * 1024 * 1024;
/** Under load the data's own clock says when a mark is due, also when the stream is far behind. */
const CLOCK_MARK_NS = 500_000_000n;
/** Moments whose records are still in the ring; more than a ring ever holds seconds of. */
const MAX_PROOFS = 4_096;

export interface FramingHost {
  epoch(): number;
  job(): {
    disks: ReadonlyArray<{ index: number; sizeBytes: number }>;
    compression: Compression;
  };
  /** Active swap: what is written there goes nowhere. */
  isLeftOut(disk: number, offsetBytes: number, lengthBytes: number): boolean;
  /** Runs that must know which sectors of a disk writes have touched. */
  trackers(disk: number): Iterable<Touched> | undefined;
  /** A pass-through command went to the disk. */
  opaque(disk: number): void;
  /** The batch with the mark of a consistency point is done. `exact`: nothing of the batch lies behind the mark. */
  point(point: { markId: bigint; bootNs: bigint }, exact: boolean): void;
  orderHeld(): boolean;
  /** The appliance is there. */
  attached(): boolean;
}

/** A batch of the capture whose data are still to be packed: by the frames that hold parts of it. */
interface HeldBatch {
  holders: number;
  recycle(): void;
}

function letGo(batch: HeldBatch): void {
  if (--batch.holders === 0) batch.recycle();
}

export class Framing {
  readonly #host: FramingHost;
  #window: Window | undefined;
  /** Up to here every record is in a frame, or in the open one. */
  #consumedPos = 0;
  #open: { extents: ExtentList; bootNs: bigint; batches: HeldBatch[] } | undefined;
  #openEndPos = 0;
  /** Where the batch that is being taken ends; elsewhere the same as #openEndPos. */
  #batchEndPos = 0;
  #timer: NodeJS.Timeout | undefined;
  /** All writes issued before it are in frames that are numbered. */
  #bootNs = 0n;
  #wallOffsetNs = 0n;
  /** Moments, and where in the ring the records from before each of them end. */
  #proofs: Array<{ bootNs: bigint; pos: number }> = [];
  #clockMarkNs = 0n;
  #writtenBytes = 0;

  constructor(host: FramingHost) {
    this.#host = host;
  }

  /** The ring's position up to which every record is in a frame, or in the one that is still open. */
  get consumedPos(): number {
    return this.#consumedPos;
  }

  /** Of captured writes that were taken, so far. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** @param pos of the ring, where the records of the next frame begin */
  begin(window: Window, pos: number): void {
    this.#window = window;
    this.#consumedPos = pos;
    this.#openEndPos = pos;
    this.#batchEndPos = pos;
  }

  /** The ring holds records that are older than this process: its own start is no moment to vouch for. */
  goOnAt(bootNs: bigint): void {
    this.#bootNs = bootNs;
  }

  /** The wall clock is an annotation of the boot-time clock, taken anew each second because it steps. */
  setWallClock({ bootNs, wallNs }: { bootNs: bigint; wallNs: bigint }): void {
    this.#wallOffsetNs = wallNs - bootNs;
    if (this.#bootNs === 0n) this.#bootNs = bootNs;
  }

  /** Everything issued before `bootNs` is in the ring before `pos`: a clock mark, as soon as that was taken. */
  proveClockAt(bootNs: bigint, pos: number): void {
    if (this.#proofs.length < MAX_PROOFS) this.#proofs.push({ bootNs, pos });
    this.#proveClock(this.#consumedPos);
  }

  /** Order is lost: what the ring holds proves nothing any more. */
  dropProofs(): void {
    this.#proofs = [];
  }

  takeBatch(batch: CaptureBatch): void {
    const { records } = batch;
    const { count } = records;
    if (count > 0) {
      const firstNs = records.bootNs(0);
      if (firstNs - this.#clockMarkNs >= CLOCK_MARK_NS) this.flush();
      // A second that somebody chooses is a frame's end: all that was written by then, and nothing of what came later.
      if (this.#open && this.#second(firstNs) > this.#second(this.#open.bootNs)) this.flush();
    }
    this.#batchEndPos = Number(batch.endPos);
    const held: HeldBatch = { holders: 1, recycle: () => batch.recycle?.() };
    const sizes = new Map(this.#host.job().disks.map(({ index, sizeBytes }) => [index, sizeBytes]));
    let point: { at: number; markId: bigint; bootNs: bigint } | undefined;
    let next = records.dataAt;
    for (let i = 0; i < count; i++) {
      const kind = records.kind(i);
      if (kind === 'mark') {
        point = { at: i, markId: records.markId(i), bootNs: records.bootNs(i) };
        continue;
      }
      const disk = records.disk(i);
      if (kind === 'opaque') {
        this.#host.opaque(disk);
        continue;
      }
      const offsetBytes = records.offsetBytes(i);
      const capturedBytes = records.lengthBytes(i);
      const dataAt = next;
      if (kind === 'write') next += capturedBytes;
      if (this.#host.isLeftOut(disk, offsetBytes, capturedBytes)) continue;
      // Behind the size that the appliance knows: mirrored when the replica disk has grown.
      const lengthBytes = Math.min(capturedBytes, (sizes.get(disk) ?? 0) - offsetBytes);
      if (lengthBytes <= 0) continue;
      this.#open ??= { extents: new ExtentList(), bootNs: 0n, batches: [] };
      const { extents, batches } = this.#open;
      if (batches.at(-1) !== held) {
        held.holders++;
        batches.push(held);
      }
      if (kind === 'zero') extents.addZero(disk, offsetBytes, lengthBytes);
      else {
        this.#writtenBytes += lengthBytes;
        extents.addWrite(disk, offsetBytes, lengthBytes, records.body, dataAt);
      }
      const trackers = this.#host.trackers(disk);
      if (trackers) for (const touched of trackers) touched.add(offsetBytes, lengthBytes);
      this.#open.bootNs = records.bootNs(i);
      if (extents.bytes >= FRAME_MAX_BYTES) this.flush();
    }
    letGo(held);
    this.#consumedPos = Number(batch.endPos);
    this.#openEndPos = this.#consumedPos;
    if (point) this.#host.point(point, point.at === count - 1);
    if (this.#open) {
      if (this.#open.extents.bytes >= FRAME_BYTES) this.flush();
      else this.#timer ??= setTimeout(() => this.flush(), FRAME_MS);
    }
    this.#proveClock(this.#consumedPos);
    this.#window!.poke();
  }

  /** Close the open frame and number it. */
  flush(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const open = this.#open;
    if (!open) return;
    this.#open = undefined;
    this.#advance(open.bootNs);
    const { compression } = this.#host.job();
    const meta = this.#meta();
    this.#window!.push(meta.capturePos, open.extents.bytes, (seq) =>
      packList({ ...meta, kind: 'stream', seq }, open.extents, compression).finally(() =>
        open.batches.forEach(letGo),
      ),
    );
    if (this.#host.orderHeld() && this.#bootNs - this.#clockMarkNs >= CLOCK_MARK_NS) {
      this.#tick(this.#bootNs);
    }
  }

  /** A mark behind everything that was taken; its number. */
  mark(mark: Mark, onAcked?: () => void): number {
    this.flush();
    const meta = this.#meta();
    return this.#window!.push(
      meta.capturePos,
      256,
      async (seq) => packMark({ ...meta, seq }, mark),
      onAcked,
    );
  }

  /** A mark that vouches for a moment. */
  markAt(bootNs: bigint, mark: Mark): number {
    this.flush();
    this.#advance(bootNs);
    return this.mark(mark);
  }

  /** Blocks that were read from a disk, behind everything that was taken. */
  mirror(
    run: { disk: number; run: number; cursorBytes: number; skippedBytes: number },
    extents: readonly FrameExtent[],
    onAcked?: () => void,
  ): void {
    this.flush();
    let rawBytes = 256;
    for (const extent of extents) {
      rawBytes += EXTENT_BYTES + (extent.kind === 'write' ? extent.lengthBytes : 0);
    }
    const meta = { ...this.#meta(), ...run };
    const { compression } = this.#host.job();
    this.#window!.push(
      meta.capturePos,
      rawBytes,
      (seq) => packFrame({ ...meta, kind: 'mirror', seq }, extents, compression),
      onAcked,
    );
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  /** Of the wall clock. */
  #second(bootNs: bigint): bigint {
    return (bootNs + this.#wallOffsetNs) / 1_000_000_000n;
  }

  #advance(bootNs: bigint): void {
    if (bootNs > this.#bootNs) this.#bootNs = bootNs;
  }

  #meta() {
    return {
      epoch: this.#host.epoch(),
      bootTimeNs: this.#bootNs,
      wallMs: Number((this.#bootNs + this.#wallOffsetNs) / 1_000_000n),
      // Only whole batches count: a position inside one can't be taken up again.
      capturePos: this.#openEndPos,
      aheadBytes: Math.max(0, this.#batchEndPos - this.#openEndPos),
    };
  }

  /** All records before `pos` are taken: the newest moment of which that is all gets a clock mark. */
  #proveClock(pos: number): void {
    let proven: bigint | undefined;
    while (this.#proofs[0] && this.#proofs[0].pos <= pos) {
      proven = this.#proofs.shift()!.bootNs;
    }
    if (proven !== undefined) this.#tick(proven);
  }

  #tick(bootNs: bigint): void {
    this.flush();
    const written = this.#bootNs > this.#clockMarkNs;
    this.#advance(bootNs);
    // A source that is idle while the link is away needs none: they would only fill the window.
    if (this.#bootNs <= this.#clockMarkNs || !(this.#host.attached() || written)) return;
    this.#clockMarkNs = this.#bootNs;
    this.mark({ type: 'tick' });
  }
}
