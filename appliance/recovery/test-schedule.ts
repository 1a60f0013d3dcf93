/** Scheduled test failovers: when one is due, and who starts it. One runs at a time over all jobs. */
import { asUndError } from '../../protocol/errors.ts';
import type { Failover, JobSettingsPatch } from '../api/schema.ts';
import type { Logger } from '../control/logger.ts';

export type TestEvery = NonNullable<JobSettingsPatch['testEvery']>;

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const AT_HOUR = 3;
/** A test that could not begin in this time waits for the next one: a night's work does not run by day. */
const LATE_MS = 6 * HOUR_MS;

/**
 * The last moment at or before `nowMs` that a schedule names: 03:00 UTC of each day, of Sundays, of the first of a month.
 * Null when it is off.
 */
export function lastSlotMs(every: TestEvery, nowMs: number): number | null {
  const now = new Date(nowMs - AT_HOUR * HOUR_MS);
  const midnight = Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate());
  switch (every) {
    case 'off':
      return null;
    case 'daily':
      return midnight + AT_HOUR * HOUR_MS;
    case 'weekly':
      return midnight - now.getUTCDay() * DAY_MS + AT_HOUR * HOUR_MS;
    case 'monthly':
      return midnight - (now.getUTCDate() - 1) * DAY_MS + AT_HOUR * HOUR_MS;
    default:
      return every satisfies never;
  }
}

/** Pure: whether a job's test is due; `lastMs` is when its last test of whatever trigger began. */
export function testIsDue(every: TestEvery, lastMs: number | null, nowMs: number): boolean {
  const slot = lastSlotMs(every, nowMs);
  return slot !== null && nowMs - slot < LATE_MS && (lastMs ?? 0) < slot;
}

export interface TestSchedulerOptions {
  jobs(): { jobId: string; every: TestEvery; isReady: boolean }[];
  /** All test failovers, newest first. */
  tests(): Pick<Failover, 'jobId' | 'startedAt' | 'state'>[];
  start(jobId: string): Promise<unknown>;
  log: Logger;
  now?: () => number;
  pollMs?: number;
}

const POLL_MS = 60_000;
const RESTING = ['failed', 'undone'];

export class TestScheduler {
  readonly #o: TestSchedulerOptions;
  readonly #told = new Map<string, string>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: TestSchedulerOptions) {
    this.#o = options;
  }

  start(): void {
    if (this.#closed) return;
    this.#timer = setTimeout(() => {
      this.#look().finally(() => this.start());
    }, this.#o.pollMs ?? POLL_MS);
    this.#timer.unref();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  async #look(): Promise<void> {
    const tests = this.#o.tests();
    if (tests.some(({ state }) => !RESTING.includes(state.name))) return;
    const nowMs = this.#o.now?.() ?? Date.now();
    for (const { jobId, every, isReady } of this.#o.jobs()) {
      const last = tests.find((test) => test.jobId === jobId);
      const lastMs = last ? Date.parse(last.startedAt) : null;
      if (!isReady || !testIsDue(every, lastMs, nowMs)) continue;
      try {
        await this.#o.start(jobId);
        return;
      } catch (error) {
        const { code, message } = asUndError(error);
        // It is tried again at the next look; the log hears of a reason once.
        if (this.#told.get(jobId) !== message) {
          this.#o.log.warn({ jobId, code }, `a scheduled test failover did not begin: ${message}`);
        }
        this.#told.set(jobId, message);
      }
    }
  }
}
