import type { ProtectRequest } from '../api/schema.ts';
import type { StreamLimits } from '../replication/replication-stream.ts';

export const DEFAULT_HISTORY_HOURS = 24;

/**
 * Pure: what the settings of a job mean for its stream.
 * @param shareBytes the job's share of the journal disk
 */
export function streamLimits(
  settings: Pick<ProtectRequest, 'historyHours' | 'historyBytes'>,
  shareBytes: number,
): Required<Pick<StreamLimits, 'journalBytes' | 'historyBytes' | 'historyMs'>> {
  const hours = settings.historyHours === undefined ? DEFAULT_HISTORY_HOURS : settings.historyHours;
  return {
    // A small history must not stop intake early.
    journalBytes: shareBytes,
    historyBytes: settings.historyBytes ?? shareBytes,
    historyMs: hours === null ? null : hours * 3_600_000,
  };
}
