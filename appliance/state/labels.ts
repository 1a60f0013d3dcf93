import { undError } from '../../protocol/errors.ts';
import type { Database } from './database.ts';

export interface LabelRow {
  labelId: string;
  jobId: string;
  /** The moment that it names, by the source's wall clock. */
  at: string;
  text: string;
  createdBy: string;
  createdAt: string;
}

type Raw = {
  label_id: string;
  job_id: string;
  at: string;
  text: string;
  created_by: string;
  created_at: string;
};

/** More would be a log and no names. */
const MAX_PER_JOB = 1000;

/** Names that people give to moments of a job's history; they end with their job. */
export class LabelStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  /** Oldest moment first. */
  list(jobId: string): LabelRow[] {
    const rows = this.#db
      .prepare('SELECT * FROM point_labels WHERE job_id = ? ORDER BY at, label_id')
      .all(jobId) as Raw[];
    return rows.map((raw) => ({
      labelId: raw.label_id,
      jobId: raw.job_id,
      at: raw.at,
      text: raw.text,
      createdBy: raw.created_by,
      createdAt: raw.created_at,
    }));
  }

  /** @throws UND_LABELS_FULL */
  add(row: LabelRow): void {
    const { count } = this.#db
      .prepare('SELECT count(*) AS count FROM point_labels WHERE job_id = ?')
      .get(row.jobId) as { count: number };
    if (count >= MAX_PER_JOB) throw undError('UND_LABELS_FULL', { limit: MAX_PER_JOB });
    this.#db
      .prepare('INSERT INTO point_labels VALUES (?, ?, ?, ?, ?, ?)')
      .run(row.labelId, row.jobId, row.at, row.text, row.createdBy, row.createdAt);
  }

  /** @throws UND_NOT_FOUND */
  remove(jobId: string, labelId: string): void {
    const { changes } = this.#db
      .prepare('DELETE FROM point_labels WHERE job_id = ? AND label_id = ?')
      .run(jobId, labelId);
    if (changes === 0) throw undError('UND_NOT_FOUND', { kind: 'label', id: labelId });
  }
}
