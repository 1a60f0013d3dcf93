/** What the agent itself takes of the source server. */

/** Processor time in ms since the process began, and resident memory in bytes. */
export interface ProcessUsage {
  cpuMs: number;
  rssBytes: number;
}

export const ownUsage = (): ProcessUsage => {
  const { user, system } = process.cpuUsage();
  return { cpuMs: (user + system) / 1000, rssBytes: process.memoryUsage.rss() };
};

/** Per cent of one processor between two moments; 0 while there is only one, or when the process was restarted. */
export function cpuPercent(before: number, now: number, elapsedMs: number): number {
  if (elapsedMs <= 0 || now < before) return 0;
  return Math.round(((now - before) / elapsedMs) * 1000) / 10;
}
