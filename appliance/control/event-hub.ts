/**
 * Live state for the page: whoever subscribes hears every change of a source, a job or a failover. A job's figures
 * change all the time, so one job is told at most twice a second; the last state is never dropped.
 */
import { isDeepStrictEqual } from 'node:util';
import type { ServerEvent } from '../api/schema.ts';

const JOB_INTERVAL_MS = 500;
/** Above what an agent that is there takes between two words of its figures: such a job is not told more often. */
const FRESH_MS = 1500;

type Listener = (event: ServerEvent) => void;

export class EventHub {
  readonly #listeners = new Set<Listener>();
  readonly #jobs = new Map<string, { timer: NodeJS.Timeout; due: boolean }>();
  /** What was said last of a job, and when. */
  readonly #told = new Map<string, { event: ServerEvent; atMs: number }>();
  readonly #readJob: (jobId: string) => ServerEvent | null;
  readonly #freshMs: number;

  /**
   * @param readJob the job's state at the moment it is told; null when it is gone
   * @param freshMs how long `jobAged` leaves a job alone that was told
   */
  constructor(readJob: (jobId: string) => ServerEvent | null, freshMs = FRESH_MS) {
    this.#readJob = readJob;
    this.#freshMs = freshMs;
  }

  subscribe(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  publish(event: ServerEvent): void {
    if (event.type === 'job-removed') this.#told.delete(event.jobId);
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

  /**
   * Time has gone by, and a lag or a rate changes with it alone: tells the job, unless it was told a moment ago or what
   * there is to say was said.
   */
  jobAged(jobId: string): void {
    if (this.#listeners.size === 0) return;
    const told = this.#told.get(jobId);
    if (told && performance.now() - told.atMs < this.#freshMs) return;
    if (isDeepStrictEqual(this.#readJob(jobId), told?.event)) return;
    this.jobChanged(jobId);
  }

  close(): void {
    for (const { timer } of this.#jobs.values()) clearInterval(timer);
    this.#jobs.clear();
    this.#told.clear();
    this.#listeners.clear();
  }

  #tellJob(jobId: string): void {
    if (this.#listeners.size === 0) return;
    const event = this.#readJob(jobId);
    if (!event) return;
    this.#told.set(jobId, { event, atMs: performance.now() });
    this.publish(event);
  }
}
