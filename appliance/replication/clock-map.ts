/**
 * Pure: compares the source's boot-time clock with the appliance's monotonic clock. Every sample is late by its way
 * over the network, so the earliest of the last samples is the best, and its error is that way: lag is never shown
 * smaller than it is.
 */
const SAMPLES = 60;

export class ClockMap {
  /** Appliance's clock minus source's clock, in milliseconds. */
  #offsetsMs: number[] = [];

  /** The agent said that its clock is `sourceMs`; it arrived at `nowMs` of the appliance's. */
  sample(sourceMs: number, nowMs: number): void {
    this.#offsetsMs.push(nowMs - sourceMs);
    if (this.#offsetsMs.length > SAMPLES) this.#offsetsMs.shift();
  }

  /** The source's clock is another one from now on. */
  restarted(): void {
    this.#offsetsMs = [];
  }

  /** Another process, or another machine, may speak from now on; the last known offset stays until it does. */
  reset(): void {
    this.#offsetsMs = this.#offsetsMs.slice(-1);
  }

  /** How long ago a moment of the source's clock was; null if the clocks were never compared. */
  ageMs(sourceMs: number, nowMs: number): number | null {
    if (this.#offsetsMs.length === 0) return null;
    return Math.max(0, nowMs - (sourceMs + Math.min(...this.#offsetsMs)));
  }
}
