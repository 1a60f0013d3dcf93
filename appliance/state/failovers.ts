import type { FailoverRecord } from '../recovery/record.ts';
import type { FailoverStore } from '../recovery/types.ts';
import type { Database } from './database.ts';

/** The records of failovers; durable when `save` returns. */
export class FailoverRecordStore implements FailoverStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  loadAll(): FailoverRecord[] {
    const rows = this.#db.prepare('SELECT record_json FROM failovers ORDER BY started_at').all();
    return (rows as { record_json: string }[]).map(
      (row) => JSON.parse(row.record_json) as FailoverRecord,
    );
  }

  save(record: FailoverRecord): void {
    this.#db
      .prepare(
        `INSERT INTO failovers VALUES (?, ?, ?, ?, ?)
         ON CONFLICT(failover_id) DO UPDATE SET ended_at = excluded.ended_at, record_json = excluded.record_json`,
      )
      .run(
        record.failoverId,
        record.jobId,
        record.startedAt,
        record.endedAt,
        JSON.stringify(record),
      );
  }
}
