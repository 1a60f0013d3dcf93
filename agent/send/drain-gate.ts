/**
 * Pure: when a source whose order was lost may go back to ordered capture. Too early means that the ring overflows again
 * and the drain was for nothing; so the writes must have fitted the link for some seconds, with a margin that grows with
 * each relapse and shrinks again when order was held for long (hysteresis).
 */

/** A share of the link's throughput that the writes may take, at first and after relapses. */
const MARGIN_FIRST = 0.8;
const MARGIN_LEAST = 0.4;
const MARGIN_STEP = 0.75;
/** So many seconds in a row must fit. */
const FITTING_SAMPLES = 3;
/** Lost again within this: a relapse. */
const RELAPSE_MS = 60_000;
/** Held for so long: as if order had never been lost. */
const FORGIVEN_MS = 10 * 60_000;
/**
 * The link may have become faster than it was: now and then it is simply tried, after a multiple of the wait, so that it
 * is seldom tried when that was for nothing. While order is lost next to nothing is sent, so nothing new is measured: what
 * was measured in an outage would otherwise count long after it.
 */
const TRY_ANYWAY_WAITS = 40;
const TRY_ANYWAY_MOST_MS = 10 * 60_000;
const WAIT_FIRST_MS = 500;
const WAIT_MOST_MS = 60_000;

export interface Relapses {
  waitMs: number;
  margin: number;
  lostAtMs: number;
  resumedAtMs: number | null;
}

/** @param before null when order was never lost */
export function lost(before: Relapses | null, nowMs: number): Relapses {
  const heldMs = before?.resumedAtMs == null ? null : nowMs - before.resumedAtMs;
  if (!before || (heldMs !== null && heldMs > FORGIVEN_MS)) {
    return { waitMs: WAIT_FIRST_MS, margin: MARGIN_FIRST, lostAtMs: nowMs, resumedAtMs: null };
  }
  if (heldMs !== null && heldMs > RELAPSE_MS) {
    return { ...before, waitMs: WAIT_FIRST_MS, lostAtMs: nowMs, resumedAtMs: null };
  }
  return {
    waitMs: Math.min(before.waitMs * 2, WAIT_MOST_MS),
    margin: Math.max(before.margin * MARGIN_STEP, MARGIN_LEAST),
    lostAtMs: nowMs,
    resumedAtMs: null,
  };
}

export interface Churn {
  /** Written on the source per second, newest last, since order was lost. */
  writtenPerSec: readonly number[];
  /** What the link takes; null when it is not known. */
  linkPerSec: number | null;
}

export type MayDrain = { name: 'go' } | { name: 'wait'; reason: string };

const mb = (bytesPerSec: number) => `${(bytesPerSec / 1e6).toFixed(1)} MB/s`;

export function mayDrain(relapses: Relapses, churn: Churn, nowMs: number): MayDrain {
  const sinceMs = nowMs - relapses.lostAtMs;
  if (sinceMs < relapses.waitMs) {
    return { name: 'wait', reason: 'ordered capture is switched on again in a moment' };
  }
  const { linkPerSec } = churn;
  const tryMs = Math.min(relapses.waitMs * TRY_ANYWAY_WAITS, TRY_ANYWAY_MOST_MS);
  if (linkPerSec === null || sinceMs >= tryMs) return { name: 'go' };
  const last = churn.writtenPerSec.slice(-FITTING_SAMPLES);
  if (last.length < FITTING_SAMPLES) {
    return { name: 'wait', reason: 'the rate of writes is being measured' };
  }
  const most = Math.max(...last);
  if (most <= linkPerSec * relapses.margin) return { name: 'go' };
  return {
    name: 'wait',
    reason: `the server writes ${mb(most)}, the link to the appliance takes ${mb(linkPerSec)}`,
  };
}

/**
 * Of a disk that missed writes: send its dirty blocks, or compare the whole disk because nobody knows which they are? All
 * of a disk is dirty where a program could not tell. Much of it is after a trim of its free space, and still a drain.
 */
export function planCatchUp(
  disks: ReadonlyArray<{ index: number; sizeBytes: number; dirtyBytes: number }>,
  compare: 'all' | readonly number[],
): { compare: number[]; drain: Array<{ disk: number; dirtyBytes: number }> } {
  const plan: ReturnType<typeof planCatchUp> = { compare: [], drain: [] };
  for (const { index, sizeBytes, dirtyBytes } of disks) {
    if (compare === 'all' || compare.includes(index) || dirtyBytes >= sizeBytes) {
      plan.compare.push(index);
    } else if (dirtyBytes > 0) {
      plan.drain.push({ disk: index, dirtyBytes });
    }
  }
  return plan;
}
