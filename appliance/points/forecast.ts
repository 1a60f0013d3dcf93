/**
 * Pure: how far back a history will reach, from what it grew by. Said before it happens, because history that has left
 * does not come back.
 */
import type { HistorySegment } from '../journal/journal.ts';

const DAY_MS = 24 * 60 * 60 * 1000;
/** Less tells nothing about a day. */
const MIN_SPAN_MS = 10 * 60 * 1000;

/**
 * What the history grew by, in bytes per second of the appliance's clock, over the last day of it at most; null while
 * there are less than 10 minutes.
 */
export function measuredChurn(segments: readonly HistorySegment[]): number | null {
  const newest = segments.at(-1);
  const oldest = segments[0];
  if (!newest || !oldest) return null;
  const fromMs = Math.max(oldest.firstMs, newest.lastMs - DAY_MS);
  const spanMs = newest.lastMs - fromMs;
  if (spanMs < MIN_SPAN_MS) return null;
  let bytes = 0;
  for (const segment of segments) {
    const { firstMs, lastMs } = segment;
    if (lastMs < fromMs) continue;
    // Of the segment that the day begins in, the part behind it.
    const part = firstMs < fromMs ? (lastMs - fromMs) / (lastMs - firstMs) : 1;
    bytes += segment.bytes * part;
  }
  return (bytes * 1000) / spanMs;
}

export interface Forecast {
  /** How far back the history will reach; null: not known, or without end. */
  reachMs: number | null;
  /** The limit that is met first. */
  boundBy: 'hours' | 'size' | null;
  /** The chosen time is longer than the size allows, in words. */
  warning: string | null;
}

const hours = (ms: number): string => {
  const value = ms / 3_600_000;
  return value >= 10 ? `${Math.floor(value)} h` : `${Math.floor(value * 10) / 10} h`;
};

/** @param churnBytesPerSec see measuredChurn */
export function forecastHistory(
  limits: { limitBytes: number; maxAgeMs: number | null },
  churnBytesPerSec: number | null,
): Forecast {
  const { limitBytes, maxAgeMs } = limits;
  const sizeMs = churnBytesPerSec ? (limitBytes / churnBytesPerSec) * 1000 : null;
  if (sizeMs !== null && (maxAgeMs === null || sizeMs < maxAgeMs)) {
    const warning =
      maxAgeMs === null
        ? null
        : `At today's churn the journal holds ${hours(sizeMs)} of history, less than the ${hours(maxAgeMs)} that are asked for.`;
    return { reachMs: sizeMs, boundBy: 'size', warning };
  }
  return { reachMs: maxAgeMs, boundBy: maxAgeMs === null ? null : 'hours', warning: null };
}
