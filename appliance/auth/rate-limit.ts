/**
 * Holds back guessing of passwords. Failures are counted per address-and-name and per address, so that a person who
 * mistypes is not locked out by a stranger elsewhere. After `freeFailures` each further failure doubles the wait.
 */
export interface RateLimitRule {
  freeFailures: number;
  firstWaitMs: number;
  maxWaitMs: number;
}

export interface FailureCount {
  failures: number;
  lastFailureAtMs: number;
}

/** How long to wait from now, 0 for not at all. A count is forgotten an hour after its wait has ended. */
export function waitMs(
  rule: RateLimitRule,
  count: FailureCount | undefined,
  nowMs: number,
): number {
  if (!count || count.failures < rule.freeFailures) return 0;
  const step = Math.min(count.failures - rule.freeFailures, 20);
  const wait = Math.min(rule.firstWaitMs * 2 ** step, rule.maxWaitMs);
  return Math.max(0, count.lastFailureAtMs + wait - nowMs);
}

export const PER_NAME: RateLimitRule = { freeFailures: 5, firstWaitMs: 30_000, maxWaitMs: 900_000 };
export const PER_ADDRESS: RateLimitRule = {
  freeFailures: 20,
  firstWaitMs: 30_000,
  maxWaitMs: 900_000,
};
const FORGET_MS = 3_600_000;
const MAX_KEYS = 10_000;

export class LoginLimiter {
  readonly #counts = new Map<string, FailureCount>();

  /** Milliseconds that this address has to wait before it may try this name. */
  waitMs(address: string, username: string, nowMs: number): number {
    return Math.max(
      waitMs(PER_NAME, this.#get(`n ${address} ${username}`, nowMs), nowMs),
      waitMs(PER_ADDRESS, this.#get(`a ${address}`, nowMs), nowMs),
    );
  }

  /**
   * Counts an attempt as failed before it is judged, so that many at once don't all slip through.
   * @returns takes the attempt back, for when it was right: the name starts anew, the address has what it had before
   */
  attempt(address: string, username: string, nowMs: number): () => void {
    const before = this.#get(`a ${address}`, nowMs);
    this.failed(address, username, nowMs);
    return () => {
      this.#counts.delete(`n ${address} ${username}`);
      const key = `a ${address}`;
      const count = this.#counts.get(key);
      // Others may have failed there meanwhile: their failures, and the time of the last one, stay.
      if (!count || count.failures <= 1) this.#counts.delete(key);
      else {
        const alone = before !== undefined && count.failures === before.failures + 1;
        const lastFailureAtMs = alone ? before.lastFailureAtMs : count.lastFailureAtMs;
        this.#counts.set(key, { failures: count.failures - 1, lastFailureAtMs });
      }
    };
  }

  failed(address: string, username: string, nowMs: number): void {
    for (const key of [`n ${address} ${username}`, `a ${address}`]) {
      const failures = (this.#get(key, nowMs)?.failures ?? 0) + 1;
      this.#counts.delete(key);
      this.#counts.set(key, { failures, lastFailureAtMs: nowMs });
    }
    for (const key of this.#counts.keys()) {
      if (this.#counts.size <= MAX_KEYS) break;
      this.#counts.delete(key);
    }
  }

  #get(key: string, nowMs: number): FailureCount | undefined {
    const count = this.#counts.get(key);
    if (count && nowMs - count.lastFailureAtMs > FORGET_MS) {
      this.#counts.delete(key);
      return undefined;
    }
    return count;
  }
}
