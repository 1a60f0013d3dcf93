/** What people see of and do with the recovery points of a job, and the check of its journal. */
import { randomUUID } from 'node:crypto';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { JobPoints, JournalCheck, LabelRequest, PointLabel } from '../api/schema.ts';
import type { JournalCheckStore } from '../state/journal-checks.ts';
import type { LabelStore } from '../state/labels.ts';
import type { JobService } from './job-service.ts';
import { labelView, pointsView } from './points-view.ts';

export class PointService {
  readonly #jobs: JobService;
  readonly #labels: LabelStore;
  readonly #checks: JournalCheckStore;
  /** Checks that are under way; a restart ends them, and the last one that ended stands. */
  readonly #running = new Map<string, JournalCheck>();

  constructor(jobs: JobService, labels: LabelStore, checks: JournalCheckStore) {
    this.#jobs = jobs;
    this.#labels = labels;
    this.#checks = checks;
  }

  /** @throws UND_NOT_FOUND */
  points(jobId: string): JobPoints {
    const { stream } = this.#jobs.actor(jobId);
    return pointsView(
      stream?.points() ?? null,
      this.#labels.list(jobId),
      stream && { ...stream.history(), oldestSeq: stream.oldestSeq },
      stream?.pointsRebuild ?? null,
    );
  }

  /** @throws UND_NOT_FOUND, UND_LABELS_FULL */
  addLabel(jobId: string, { at, text }: LabelRequest, who: string): PointLabel {
    this.#jobs.actor(jobId);
    const atMs = Date.parse(at);
    if (Number.isNaN(atMs)) {
      throw undError('UND_REQUEST_INVALID', { field: 'at', reason: 'there is no such moment' });
    }
    const row = {
      labelId: randomUUID(),
      jobId,
      at: new Date(atMs).toISOString(),
      text,
      createdBy: who,
      createdAt: new Date().toISOString(),
    };
    this.#labels.add(row);
    const shown = this.points(jobId).labels.find(({ labelId }) => labelId === row.labelId);
    return shown ?? labelView(row, false);
  }

  /** @throws UND_NOT_FOUND */
  removeLabel(jobId: string, labelId: string): void {
    this.#jobs.actor(jobId);
    this.#labels.remove(jobId, labelId);
  }

  /** @throws UND_NOT_FOUND */
  check(jobId: string): JournalCheck {
    this.#jobs.actor(jobId);
    return this.#running.get(jobId) ?? this.#checks.get(jobId) ?? { state: 'none' };
  }

  /**
   * Read the whole journal back, in the background.
   * @throws UND_NOT_FOUND, UND_JOB_STATE while the journal is not open
   */
  startCheck(jobId: string): JournalCheck {
    const actor = this.#jobs.actor(jobId);
    const { stream } = actor;
    const running = this.#running.get(jobId);
    if (running) return running;
    if (!stream) {
      throw undError('UND_JOB_STATE', {
        job: actor.row.settings.replicaName,
        state: actor.view().state.name,
        act: 'checked',
      });
    }
    const startedAt = new Date().toISOString();
    const totalBytes = stream.state().journalBytes;
    const progress: JournalCheck = { state: 'running', startedAt, readBytes: 0, totalBytes };
    this.#running.set(jobId, progress);
    stream
      .verifyJournal((bytes) => {
        progress.readBytes = bytes;
      })
      .then(
        ({ frames, bytes, faultCount, faults }): JournalCheck => ({
          state: 'done',
          startedAt,
          endedAt: new Date().toISOString(),
          frames,
          bytes,
          faultCount,
          faults,
        }),
        (thrown): JournalCheck => {
          const { code, message, hint } = asUndError(thrown).toJSON();
          return { state: 'failed', startedAt, error: { code, message, hint } };
        },
      )
      .then((check) => this.#checks.put(jobId, check))
      .finally(() => this.#running.delete(jobId));
    return progress;
  }
}
