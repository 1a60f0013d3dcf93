/** Scheduled test failovers of jobs and groups: when one is due, and who starts it. One runs at a time. */
import { asUndError } from '../../protocol/errors.ts';
import type { TestEvery } from '../api/schema.ts';
import type { Logger } from '../control/logger.ts';

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

/** Pure: whether a test is due; `lastMs` is when its last test of whatever trigger began. */
export function testIsDue(every: TestEvery, lastMs: number | null, nowMs: number): boolean {
  const slot = lastSlotMs(every, nowMs);
  return slot !== null && nowMs - slot < LATE_MS && (lastMs ?? 0) < slot;
}

export interface ScheduledTest {
  /** Of the job or the group. */
  id: string;
  every: TestEvery;
  isReady: boolean;
  /** When its last test of whatever trigger began. */
  lastMs: number | null;
}

export interface TestSchedulerOptions {
  /** The ones to be looked at first come first. */
  scheduled(): ScheduledTest[];
  /** Whether some test is under way, whoever began it. */
  isTesting(): boolean;
  start(id: string): Promise<unknown>;
  log: Logger;
  now?: () => number;
  pollMs?: number;
}

const POLL_MS = 60_000;

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
    if (this.#o.isTesting()) return;
    const nowMs = this.#o.now?.() ?? Date.now();
    for (const { id, every, isReady, lastMs } of this.#o.scheduled()) {
      if (!isReady || !testIsDue(every, lastMs, nowMs)) continue;
      try {
        await this.#o.start(id);
        return;
      } catch (error) {
        const { code, message } = asUndError(error);
        // It is tried again at the next look; the log hears of a reason once.
        if (this.#told.get(id) !== message) {
          this.#o.log.warn({ id, code }, `a scheduled test failover did not begin: ${message}`);
        }
        this.#told.set(id, message);
      }
    }
  }
}
