import type { JournalCheck } from '../api/schema.ts';
import type { Database } from './database.ts';

/** The last ended check of each job's journal; it ends with its job. */
export class JournalCheckStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  get(jobId: string): JournalCheck | null {
    const row = this.#db
      .prepare('SELECT check_json FROM journal_checks WHERE job_id = ?')
      .get(jobId) as { check_json: string } | undefined;
    return row ? (JSON.parse(row.check_json) as JournalCheck) : null;
  }

  /** Nothing when the job is gone. */
  put(jobId: string, check: JournalCheck): void {
    this.#db
      .prepare(
        `INSERT INTO journal_checks SELECT job_id, ? FROM jobs WHERE job_id = ?
         ON CONFLICT(job_id) DO UPDATE SET check_json = excluded.check_json`,
      )
      .run(JSON.stringify(check), jobId);
  }
}
