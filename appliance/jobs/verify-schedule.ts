/** When the replica disks of a job are to be compared with the source again. */
import type { Verification } from '../replication/stream-record.ts';

const HOUR_MS = 3_600_000;
const PERIOD_MS = { daily: 24 * HOUR_MS, weekly: 168 * HOUR_MS };

/**
 * Pure: a period after the oldest verification of any disk; a disk that has none counts from when the job was made.
 * @param disks null: not known yet
 * @returns milliseconds since the epoch; null: no schedule, or one is under way
 */
export function nextVerifyMs(
  every: 'off' | 'daily' | 'weekly',
  disks: ReadonlyArray<Verification | null> | null,
  createdMs: number,
): number | null {
  if (every === 'off' || disks === null) return null;
  if (disks.some((verification) => verification?.asked)) return null;
  const last = Math.min(...disks.map((verification) => verification?.last?.wallMs ?? createdMs));
  return last + PERIOD_MS[every];
}
