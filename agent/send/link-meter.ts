/**
 * Pure: how fast the link takes what was captured, in bytes as the source wrote them. Only seconds in which frames waited all the
 * time say something about the link; in the others the source was the slower one.
 */
const SAMPLES = 5;
/** What was measured so long ago says nothing about the link of now. */
const STALE_MS = 10 * 60_000;

export class LinkMeter {
  #samples: Array<{ atMs: number; perSec: number }> = [];
  #ackedBytes = 0;
  #sinceMs: number;
  #waited = true;

  constructor(nowMs: number) {
    this.#sinceMs = nowMs;
  }

  /** Frames that stand for so many bytes were acknowledged; `idle`: no other is on the way. */
  acked(bytes: number, idle: boolean): void {
    this.#ackedBytes += bytes;
    if (idle) this.#waited = false;
  }

  /** About each second. */
  sample(nowMs: number): void {
    const seconds = (nowMs - this.#sinceMs) / 1000;
    if (seconds <= 0) return;
    if (this.#waited && this.#ackedBytes > 0) {
      this.#samples.push({ atMs: nowMs, perSec: this.#ackedBytes / seconds });
      if (this.#samples.length > SAMPLES) this.#samples.shift();
    }
    this.#ackedBytes = 0;
    this.#sinceMs = nowMs;
    this.#waited = true;
  }

  /** The best of the last saturated seconds; null when there is none that still counts. */
  bytesPerSec(nowMs: number): number | null {
    const fresh = this.#samples.filter(({ atMs }) => nowMs - atMs < STALE_MS);
    return fresh.length > 0 ? Math.max(...fresh.map(({ perSec }) => perSec)) : null;
  }
}
