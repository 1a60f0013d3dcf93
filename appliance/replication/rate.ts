/** Bytes per second over the last few seconds. */
const BUCKET_MS = 1000;
const BUCKETS = 6;

export class Rate {
  #buckets: Array<{ at: number; bytes: number }> = [];

  add(bytes: number, nowMs = performance.now()): void {
    const at = Math.floor(nowMs / BUCKET_MS);
    const last = this.#buckets.at(-1);
    if (last?.at === at) last.bytes += bytes;
    else this.#buckets.push({ at, bytes });
    while (this.#buckets.length > 0 && this.#buckets[0]!.at <= at - BUCKETS) this.#buckets.shift();
  }

  /** Over the last full seconds; the running one is left out, because it is not over. */
  perSecond(nowMs = performance.now()): number {
    const now = Math.floor(nowMs / BUCKET_MS);
    let bytes = 0;
    for (const bucket of this.#buckets) {
      if (bucket.at < now && bucket.at >= now - (BUCKETS - 1)) bytes += bucket.bytes;
    }
    return bytes / (BUCKETS - 1);
  }
}
