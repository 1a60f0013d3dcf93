/** When the next scheduled point of a job is due. */

const MINUTE_MS = 60_000;

/**
 * Pure: the next moment of a schedule behind `nowMs`. Moments are multiples of the interval since the epoch, so that a
 * restart moves none, shifted by a part of the interval that the job's id decides: jobs with one interval do not freeze
 * their servers all at once.
 * @returns milliseconds since the epoch
 */
export function nextPointMs(jobId: string, everyMinutes: number, nowMs: number): number {
  const intervalMs = everyMinutes * MINUTE_MS;
  let hash = 0;
  for (const char of jobId) hash = (hash * 31 + char.charCodeAt(0)) >>> 0;
  const shiftMs = hash % intervalMs;
  return (Math.floor((nowMs - shiftMs) / intervalMs) + 1) * intervalMs + shiftMs;
}
