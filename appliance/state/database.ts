/**
 * The appliance's state: one SQLite file (built into Node), opened once, used by one typed store per table.
 * Writes are durable when a store's method returns (WAL, synchronous=FULL): a step that was recorded has happened.
 */
import { DatabaseSync } from 'node:sqlite';
import { keepBeforeUpgrade, schemaVersion, takeBack } from './before-upgrade.ts';
import { MIGRATIONS } from './migrations.ts';

export type Database = DatabaseSync;

export interface Opened {
  db: Database;
  /** An upgrade to a newer version was given up: this is the state as it was before it. */
  takenBack: boolean;
}

/**
 * Opens the state file, making or migrating it; before its form is changed a copy stays beside it, see before-upgrade.ts.
 * Throws when the file is of a newer version of the appliance and there is no such copy.
 */
export function openState(path: string): Opened {
  let db = connect(path);
  let takenBack = false;
  try {
    if (schemaVersion(db) > MIGRATIONS.length) {
      db.close();
      takenBack = takeBack(path, MIGRATIONS.length);
      db = connect(path);
    }
    const version = schemaVersion(db);
    if (version > 0 && version < MIGRATIONS.length) keepBeforeUpgrade(db, path);
    migrate(db);
    return { db, takenBack };
  } catch (error) {
    if (db.isOpen) db.close();
    throw error;
  }
}

/** As `openState`, for those who do not care about upgrades. */
export const openDatabase = (path: string): Database => openState(path).db;

function connect(path: string): Database {
  const db = new DatabaseSync(path, { enableForeignKeyConstraints: true, timeout: 5000 });
  db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;');
  return db;
}

/** Brings the schema to the newest version, one transaction per step. */
export function migrate(db: Database): void {
  let version = schemaVersion(db);
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
