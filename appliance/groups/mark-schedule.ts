/** Marks of groups on schedule: fixed moments that a restart moves none of, as those of single jobs. */
import { asUndError } from '../../protocol/errors.ts';
import type { ApiError, GroupMarkRequest } from '../api/schema.ts';
import type { Logger } from '../control/logger.ts';
import { nextPointMs } from '../jobs/point-schedule.ts';
import type { GroupRow } from '../state/groups.ts';

export interface MarkScheduleOptions {
  take(groupId: string, request: GroupMarkRequest): Promise<unknown>;
  /** A group that waits for a decision about its failover, or has no members, is passed over. */
  isDue(groupId: string): boolean;
  /** What the last scheduled mark of a group came to has changed. */
  changed(groupId: string): void;
  log: Logger;
  now?: () => number;
}

export class MarkSchedule {
  readonly #o: MarkScheduleOptions;
  readonly #timers = new Map<string, NodeJS.Timeout>();
  readonly #problems = new Map<string, ApiError>();
  #closed = false;

  constructor(options: MarkScheduleOptions) {
    this.#o = options;
  }

  /** Why the last one failed; null once one succeeded. */
  problem(groupId: string): ApiError | null {
    return this.#problems.get(groupId) ?? null;
  }

  /** The group as it is now: its next mark is waited for. */
  plan({ groupId, schedule }: Pick<GroupRow, 'groupId' | 'schedule'>): void {
    clearTimeout(this.#timers.get(groupId));
    this.#timers.delete(groupId);
    if (!schedule) this.#problems.delete(groupId);
    if (!schedule || this.#closed) return;
    const nowMs = this.#o.now?.() ?? Date.now();
    const timer = setTimeout(
      () => {
        this.#take(groupId, schedule).finally(() => {
          // Changed or dissolved meanwhile: that has planned anew.
          if (this.#timers.get(groupId) === timer) this.plan({ groupId, schedule });
        });
      },
      nextPointMs(groupId, schedule.everyMinutes, nowMs) - nowMs,
    );
    timer.unref();
    this.#timers.set(groupId, timer);
  }

  forget(groupId: string): void {
    this.plan({ groupId, schedule: null });
  }

  close(): void {
    this.#closed = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
  }

  async #take(groupId: string, schedule: NonNullable<GroupRow['schedule']>): Promise<void> {
    if (this.#closed || !this.#o.isDue(groupId)) return;
    const { quiesce, checkpoint } = schedule;
    try {
      await this.#o.take(groupId, { name: 'Scheduled', quiesce, checkpoint });
      this.#problems.delete(groupId);
    } catch (error) {
      if (this.#closed) return;
      const { code, message, hint } = asUndError(error);
      this.#problems.set(groupId, { code, message, hint });
      this.#o.log.warn({ groupId, code }, message);
    }
    this.#o.changed(groupId);
  }
}
