/** How long to wait before the next try. Pure. */

export interface BackoffLimits {
  firstMs: number;
  lastMs: number;
}

/** A link that fails is tried again soon; an appliance that says no is not pressed. */
export const LINK_BACKOFF: BackoffLimits = { firstMs: 500, lastMs: 15_000 };
export const REFUSED_BACKOFF: BackoffLimits = { firstMs: 5_000, lastMs: 120_000 };

/**
 * Exponential with equal jitter (half fixed, half random), so that hundreds of agents don't come back in step after
 * the appliance's restart. `attempt` counts from 0; `random` is in [0, 1).
 */
export function backoffMs(attempt: number, limits: BackoffLimits, random = Math.random()): number {
  const ceiling = Math.min(limits.lastMs, limits.firstMs * 2 ** Math.min(attempt, 30));
  return Math.round(ceiling / 2 + (ceiling / 2) * random);
}
