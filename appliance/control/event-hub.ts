/**
 * Live state for the page: whoever subscribes hears every change of a source, a job or a failover. A job's figures
 * change all the time, so one job is told at most twice a second; the last state is never dropped.
 */
import type { ServerEvent } from '../api/schema.ts';

const JOB_INTERVAL_MS = 500;

type Listener = (event: ServerEvent) => void;

export class EventHub {
  readonly #listeners = new Set<Listener>();
  readonly #jobs = new Map<string, { timer: NodeJS.Timeout; due: boolean }>();
  readonly #readJob: (jobId: string) => ServerEvent | null;

  /** @param readJob the job's state at the moment it is told; null when it is gone */
  constructor(readJob: (jobId: string) => ServerEvent | null) {
    this.#readJob = readJob;
  }

  subscribe(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  publish(event: ServerEvent): void {
    for (const listener of this.#listeners) listener(event);
  }

  /** Something about this job changed. */
  jobChanged(jobId: string): void {
    const pending = this.#jobs.get(jobId);
    if (pending) {
      pending.due = true;
      return;
    }
    this.#tellJob(jobId);
    const entry = {
      due: false,
      timer: setInterval(() => {
        if (!entry.due) {
          clearInterval(entry.timer);
          this.#jobs.delete(jobId);
          return;
        }
        entry.due = false;
        this.#tellJob(jobId);
      }, JOB_INTERVAL_MS),
    };
    entry.timer.unref();
    this.#jobs.set(jobId, entry);
  }

  close(): void {
    for (const { timer } of this.#jobs.values()) clearInterval(timer);
    this.#jobs.clear();
    this.#listeners.clear();
  }

  #tellJob(jobId: string): void {
    if (this.#listeners.size === 0) return;
    const event = this.#readJob(jobId);
    if (event) this.publish(event);
  }
}
