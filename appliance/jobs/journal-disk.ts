/**
 * Pure: who gives way when the journal disk runs short. Each job keeps to its own limit; the limits together may still
 * be more than the disk. Then the oldest history goes first, of the job that is most above its equal share, and
 * intake stops last, when no history is left to give.
 */
const MIB = 1024 ** 2;

/** 3 % of the disk, from 64 MiB to 4 GiB: room for what arrives until history has made way. */
export const journalReserveBytes = (totalBytes: number): number =>
  Math.floor(Math.min(Math.max(64 * MIB, totalBytes * 0.03), 4 * 1024 * MIB, totalBytes * 0.1));

export interface JournalUser {
  jobId: string;
  /** Its history: what may leave. */
  historyBytes: number;
  journalBytes: number;
}

/** The jobs in the order in which they give way; empty when there is room. */
export function givingWay(
  disk: { totalBytes: number; freeBytes: number },
  users: readonly JournalUser[],
  shareBytes: number,
): string[] {
  if (disk.freeBytes >= journalReserveBytes(disk.totalBytes)) return [];
  return users
    .filter(({ historyBytes }) => historyBytes > 0)
    .toSorted((a, b) => b.journalBytes - a.journalBytes || b.historyBytes - a.historyBytes)
    .toSorted((a, b) => Number(b.journalBytes > shareBytes) - Number(a.journalBytes > shareBytes))
    .map(({ jobId }) => jobId);
}
