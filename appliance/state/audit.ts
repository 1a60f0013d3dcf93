import type { AuditEntry } from '../api/schema.ts';
import type { Database } from './database.ts';

const KEEP = 100_000;

/** Who did what, when, with which outcome. Entries are only ever added; the oldest leave past 100 000. */
export class AuditStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  add(entry: AuditEntry): void {
    const { lastInsertRowid } = this.#db
      .prepare(
        'INSERT INTO audit (at, who, act, object, outcome, detail) VALUES (?, ?, ?, ?, ?, ?)',
      )
      .run(
        entry.at,
        entry.who.slice(0, 128),
        entry.act,
        entry.object.slice(0, 256),
        entry.outcome,
        entry.detail.slice(0, 1024),
      );
    if (Number(lastInsertRowid) % 1000 === 0) {
      this.#db.prepare('DELETE FROM audit WHERE id <= ?').run(Number(lastInsertRowid) - KEEP);
    }
  }

  /** Newest first. */
  list(limit: number): AuditEntry[] {
    const rows = this.#db
      .prepare('SELECT at, who, act, object, outcome, detail FROM audit ORDER BY id DESC LIMIT ?')
      .all(limit);
    return rows.map((row) => ({ ...row })) as unknown as AuditEntry[];
  }
}
