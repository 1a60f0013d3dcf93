/** Pure but for the clock it is given: how long to wait so that no more than `rate` bytes go per second. */
const BURST_MS = 100;

export class TokenBucket {
  #bytesPerSec: number | null;
  #debtBytes = 0;
  #atMs: number;

  constructor(bytesPerSec: number | null, nowMs: number) {
    this.#bytesPerSec = bytesPerSec;
    this.#atMs = nowMs;
  }

  /** null: no limit. */
  setRate(bytesPerSec: number | null, nowMs: number): void {
    this.#settle(nowMs);
    this.#bytesPerSec = bytesPerSec;
    if (bytesPerSec === null) this.#debtBytes = 0;
  }

  get bytesPerSec(): number | null {
    return this.#bytesPerSec;
  }

  #settle(nowMs: number): void {
    if (this.#bytesPerSec !== null) {
      const burst = (this.#bytesPerSec * BURST_MS) / 1000;
      const earned = ((nowMs - this.#atMs) * this.#bytesPerSec) / 1000;
      this.#debtBytes = Math.max(-burst, this.#debtBytes - earned);
    }
    this.#atMs = nowMs;
  }

  /** Take the right to send `bytes` now, and learn how many milliseconds to wait before it. */
  take(bytes: number, nowMs: number): number {
    if (this.#bytesPerSec === null) return 0;
    this.#settle(nowMs);
    const waitMs = (Math.max(0, this.#debtBytes) * 1000) / this.#bytesPerSec;
    this.#debtBytes += bytes;
    return waitMs;
  }
}
