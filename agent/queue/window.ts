/**
 * The frames that are numbered and not yet acknowledged, in order. Bounded in bytes: when it is full, the capture is
 * not read and its ring fills; that is how a slow link reaches the source's memory, and no further.
 */
import { undError } from '../../protocol/errors.ts';
import { recycleFrame } from '../../protocol/frame.ts';

export interface WindowEntry {
  seq: number;
  capturePos: number;
  /** As it will go over the link; until it is packed, what it was before. */
  bytes: number;
  rawBytes: number;
  packed: Promise<Buffer>;
  acked: boolean;
  /** Called when the frame is acknowledged: durable at the appliance. */
  onAcked?: () => void;
}

export class Window {
  readonly limitBytes: number;
  #entries: WindowEntry[] = [];
  #bytes = 0;
  #nextSeq: number;
  #ackedRawBytes = 0;
  #waiters = new Set<() => void>();

  constructor(nextSeq: number, limitBytes: number) {
    this.#nextSeq = nextSeq;
    this.limitBytes = limitBytes;
  }

  /** The number that the next frame gets. */
  get nextSeq(): number {
    return this.#nextSeq;
  }

  /** The oldest frame that is not acknowledged, or the next one if there is none. */
  get firstSeq(): number {
    return this.#entries[0]?.seq ?? this.#nextSeq;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Before packing, of all frames that were ever acknowledged. */
  get ackedRawBytes(): number {
    return this.#ackedRawBytes;
  }

  get hasRoom(): boolean {
    return this.#bytes < this.limitBytes;
  }

  /** Number a frame and queue it. Order of calls is order of frames; packing goes on in the background. */
  push(
    capturePos: number,
    rawBytes: number,
    pack: (seq: number) => Promise<Buffer>,
    onAcked?: () => void,
  ): number {
    const seq = this.#nextSeq++;
    const entry: WindowEntry = {
      seq,
      capturePos,
      bytes: rawBytes,
      rawBytes,
      packed: pack(seq),
      acked: false,
      onAcked,
    };
    entry.packed.then(
      (frame) => {
        if (!entry.acked) this.#bytes += frame.length - entry.bytes;
        entry.bytes = frame.length;
        this.#wake();
      },
      // Whoever sends it sees the rejection.
      () => {},
    );
    this.#entries.push(entry);
    this.#bytes += rawBytes;
    this.#wake();
    return seq;
  }

  /** The frame of that number, or undefined if it is not there yet. */
  entry(seq: number): WindowEntry | undefined {
    return this.#entries[seq - this.firstSeq];
  }

  /**
   * Frames up to `seq` are durable.
   * @returns the capture position that may be released, or null if nothing was acknowledged
   * @throws UND_LINK_MESSAGE_INVALID if that frame was never numbered
   */
  ack(seq: number): number | null {
    if (seq >= this.#nextSeq) {
      throw undError('UND_LINK_MESSAGE_INVALID', {
        reason: `an acknowledgement of frame ${seq}; the last one is ${this.#nextSeq - 1}`,
      });
    }
    let capturePos: number | null = null;
    while (this.#entries.length > 0 && this.#entries[0]!.seq <= seq) {
      const entry = this.#entries.shift()!;
      entry.acked = true;
      // The other side has all of it, so nothing here reads it any more.
      entry.packed.then(recycleFrame, () => {});
      this.#bytes -= entry.bytes;
      this.#ackedRawBytes += entry.rawBytes;
      capturePos = entry.capturePos;
      entry.onAcked?.();
    }
    if (capturePos !== null) this.#wake();
    return capturePos;
  }

  /** Wake everyone who waits for a change: they look again. */
  poke(): void {
    this.#wake();
  }

  #wake(): void {
    for (const waiter of [...this.#waiters]) waiter();
  }

  /**
   * Resolves when `condition` holds; it is looked at after every change.
   * @throws the signal's reason if it aborts first
   */
  async until(condition: () => boolean, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (condition()) return;
    await new Promise<void>((resolve, reject) => {
      const look = () => {
        if (!signal.aborted && !condition()) return;
        this.#waiters.delete(look);
        signal.removeEventListener('abort', look);
        if (signal.aborted) reject(signal.reason);
        else resolve();
      };
      this.#waiters.add(look);
      signal.addEventListener('abort', look);
    });
  }
}
