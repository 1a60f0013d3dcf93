/**
 * The capture stage: every block write of the protected disks, with its data, in issue order.
 *
 * The work is done by BPF programs pinned in the kernel and by the static helper `understudy-capture`; this module is
 * the contract that the rest of the agent sees. How a write travels: README.md beside this file.
 */
import { HelperCapture } from './client.ts';
import { HelperBlockReader } from './reader.ts';
import type { CaptureRecords } from './wire.ts';

/** A whole disk (never a partition). `index` is the caller's, 0..63, and comes back in every record. */
export type CaptureDisk = { index: number; devicePath: string; sizeBytes: number };

/**
 * One captured act, in issue order. Offsets and lengths are multiples of 512 bytes.
 * - `write`: `data` holds `lengthBytes` bytes.
 * - `zero`: the extent reads as zeroes from now on; `discard` tells that it came as a discard.
 * - `mark`: put there by `mark()`; belongs to no disk (`disk` is -1).
 * - `opaque`: a pass-through command went to the disk and its effect is unknown: compare the disk (difference mirror).
 */
export type CaptureRecord = {
  kind: 'write' | 'zero' | 'mark' | 'opaque';
  disk: number;
  offsetBytes: number;
  lengthBytes: number;
  data?: Buffer;
  discard?: boolean;
  /** Boot-time clock (CLOCK_BOOTTIME) of the source when the write was issued. */
  bootNs: bigint;
  /** Ring position; see `barrier()` for what it is good for. Several records of one large write share it. */
  pos: bigint;
  markId?: bigint;
};

/**
 * All records of the ring between `startPos` and `endPos`. Positions count bytes ever put into the ring: 64-bit,
 * monotonic, the same after a restart of the agent. With `order: 'lost'` some write before or among these records is
 * missing (it is in the dirty map): apply them, but the result is no recovery point.
 */
export type CaptureBatch = {
  records: CaptureRecords;
  startPos: bigint;
  endPos: bigint;
  order: 'held' | 'lost';
  /** Order resumed here: between the batch before and this one, writes went to the dirty map only. */
  gapBefore?: boolean;
  /** Nobody looks at the records any more: their memory is used again. Optional to call. */
  recycle?(): void;
};

export type TrackingReason =
  | 'overflow'
  | 'copy-failed'
  | 'no-consumer'
  | 'inflight-table-full'
  | 'request-too-large'
  | 'missed-event'
  | 'requested';

export type CaptureMode =
  | { mode: 'ordered' }
  | { mode: 'tracking'; reason: TrackingReason; sinceBootNs: bigint };

export type Extent = { offsetBytes: number; lengthBytes: number };

export type CaptureStatus = {
  mode: CaptureMode;
  /** Read before `producerPos`, and `mode` after it: if `mode` is ordered, every write issued before `bootNs` is in the ring before `producerPos`. */
  bootNs: bigint;
  /** The wall clock at `bootNs`; an answer may be heard much later. */
  wallNs: bigint;
  producerPos: bigint;
  consumerPos: bigint;
  ringBytes: number;
  /** Bytes in the ring that `release` has not given back. */
  backlogBytes: number;
  /** Per disk index, since the capture was created; the others likewise. */
  drops: number[];
  failedWrites: number[];
  opaqueCommands: number[];
  /** Overlapping writes in flight, seen and marked dirty. */
  overlaps: number[];
  dirtyBytes: number[];
  writes: number;
  writtenBytes: number;
  copyFailures: number;
  /** Events that the kernel did not deliver to the program: a write may be missing. Above 0: compare all disks. */
  recursionMisses: number;
  requeues: number;
  inFlight: number;
  /** Of the helper process; its memory without the mapped ring and dirty maps. */
  helper: { cpuMs: number; rssBytes: number };
};

export type CaptureStart = {
  /** True: the pinned capture of an earlier process goes on; un-released records come again, at the same positions. */
  adopted: boolean;
  /** Why there was something pinned and it could not be adopted (then: new capture, compare the disks). */
  notAdoptedBecause?: string;
  bootId: string;
  captureId: string;
  /** Reading starts here. */
  consumerPos: bigint;
  /** What one entry of the dirty map stands for: 4 KiB, or 64 KiB on kernels without atomic OR (before 5.12). */
  dirtyBlockBytes: number;
};

/** Something that the one who mirrors must act on. */
export type CaptureEvent =
  | { kind: 'disk-resized'; disk: number; oldSizeBytes: number; newSizeBytes: number }
  | { kind: 'disk-gone'; disk: number }
  /** Blocks were marked in the dirty map although the mode is ordered (failed or overlapping write). */
  | { kind: 'dirty-marked' }
  | { kind: 'opaque-command'; disk: number }
  | { kind: 'missed-events'; recursionMisses: number }
  /** The helper ended by itself; the pinned capture goes on, `start()` of a new Capture adopts it. */
  | { kind: 'helper-died'; error: Error };

export interface Capture {
  /**
   * Attaches to the disks, or adopts what an earlier process pinned in `pinDir` for the same disks.
   * `ringBytes` is rounded up to a power of two.
   * Errors: UND_CAPTURE_DISK_*, UND_CAPTURE_NO_BTF, UND_CAPTURE_KERNEL_TOO_OLD, UND_CAPTURE_LOCKDOWN,
   * UND_CAPTURE_NO_PERMISSION, UND_CAPTURE_LOAD, UND_CAPTURE_PIN_DIR, UND_CAPTURE_BUSY, UND_CAPTURE_CALIBRATION.
   */
  start(
    disks: CaptureDisk[],
    opts: { ringBytes: number; pinDir: string; consumerTimeoutMs?: number },
  ): Promise<CaptureStart>;
  /** One consumer at a time. When it does not read, the ring fills; nothing else is buffered. */
  batches(): AsyncIterable<CaptureBatch>;
  /**
   * Everything before `pos` (a batch's `endPos`) is durable at the appliance. The ring's consumer position advances
   * only by this. Called before `batches()` with a position that the appliance already has, reading starts there.
   */
  release(pos: bigint): void;
  mode(): CaptureMode;
  onModeChange(listener: (mode: CaptureMode) => void): () => void;
  onEvent(listener: (event: CaptureEvent) => void): () => void;
  status(): Promise<CaptureStatus>;
  /**
   * Resolves when every write issued before the call has completed, with the ring position P taken at the call: all
   * records before it have landed on the disks. This is how a block read joins the stream without landing over a
   * newer write: call it, then read (O_DIRECT), then put the read into the stream once a batch with `endPos` >= P has
   * gone by, without the parts that records with `pos` >= P have written meanwhile. What was written and not captured
   * since then is in the dirty map. Error: UND_CAPTURE_COMMAND when writes hang for two minutes.
   */
  barrier(): Promise<bigint>;
  /** Puts a mark into the ring, behind every write that was issued before the call. */
  mark(): Promise<bigint>;
  /** What is dirty, taken or not; 4 KiB granularity (64 KiB before kernel 5.12). */
  dirtyExtents(disk: number): Promise<Extent[]>;
  /**
   * Moves up to `maxBytes` of dirty blocks to the "taken" set and returns them. To be followed by `barrier()`, the
   * reads, and, once they are acknowledged, `clearDirty`. A block written meanwhile is dirty again. After a restart
   * of the agent, taken blocks count as dirty again. Only blocks at or behind `fromBytes` are taken, lowest first: one
   * sweep from 0 upwards takes everything that was dirty when it began.
   */
  takeDirty(disk: number, maxBytes?: number, fromBytes?: number): Promise<Extent[]>;
  /** Forgets taken blocks: only for extents whose content has been acknowledged. */
  clearDirty(disk: number, extents: Extent[]): Promise<void>;
  /** Marks blocks dirty by hand (a read that could not be used, a lost frame). */
  markDirty(disk: number, extents: Extent[]): Promise<void>;
  /** Stops copying data on purpose (the link is down for long). */
  goTracking(): Promise<void>;
  /** Ordered again: returns the ring position from which on every write is there, in order, if `order` stays held. */
  resumeOrdered(): Promise<bigint>;
  /** Without `unpin` the capture goes on in the kernel until someone adopts it or the consumer timeout passes. */
  stop(opts: { unpin: boolean }): Promise<void>;
}

export interface BlockReader {
  /** O_DIRECT read; offset and length are multiples of the disk's logical block. `zero`: all bytes are zero. */
  read(offsetBytes: number, lengthBytes: number): Promise<{ data: Buffer; zero: boolean }>;
  close(): Promise<void>;
}

/** Where the helper is: `UNDERSTUDY_CAPTURE`, or `helperPath` (the packed agent unpacks it to its own folder). */
export type HelperOptions = { helperPath?: string };

export function createCapture(options: HelperOptions = {}): Capture {
  return new HelperCapture(options);
}

/** Opens a disk for reading past the page cache; several `read` calls may be under way at once. */
export function openBlockReader(
  devicePath: string,
  options: HelperOptions = {},
): Promise<BlockReader> {
  return HelperBlockReader.open(devicePath, options);
}

export { type Freeze, freeze } from './freezer.ts';
