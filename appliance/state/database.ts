/**
 * The appliance's state: one SQLite file (built into Node), opened once, used by one typed store per table.
 * Writes are durable when a store's method returns (WAL, synchronous=FULL): a step that was recorded has happened.
 */
import { DatabaseSync } from 'node:sqlite';
import { MIGRATIONS } from './migrations.ts';

export type Database = DatabaseSync;

/** Opens the state file, making or migrating it. Throws when the file is of a newer version of the appliance. */
export function openDatabase(path: string): Database {
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: true, timeout: 5000 });
  db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;');
  migrate(db);
  return db;
}

/** Brings the schema to the newest version, one transaction per step. */
export function migrate(db: Database): void {
  const row = db.prepare('PRAGMA user_version').get() as { user_version: number };
  let version = row.user_version;
  if (version > MIGRATIONS.length) {
    throw new Error(
      `the state file is of schema ${version}, this version knows ${MIGRATIONS.length}: it was written by a newer appliance`,
    );
  }
  for (; version < MIGRATIONS.length; version++) {
    inTransaction(db, () => {
      db.exec(MIGRATIONS[version]!);
      db.exec(`PRAGMA user_version = ${version + 1}`);
    });
  }
}

/** Runs `work` in one transaction: all of it or nothing. `work` must not be asynchronous. */
export function inTransaction<T>(db: Database, work: () => T): T {
  if (db.isTransaction) return work();
  db.exec('BEGIN IMMEDIATE');
  try {
    const result = work();
    db.exec('COMMIT');
    return result;
  } catch (error) {
    if (db.isTransaction) db.exec('ROLLBACK');
    throw error;
  }
}

/** The schema version that this program writes. */
export const SCHEMA_VERSION = MIGRATIONS.length;
