import type { Database } from './database.ts';

export type SettingKey = 'applianceId';

/** Single values of the appliance as a whole. */
export class SettingStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  get(key: SettingKey): string | null {
    const row = this.#db.prepare('SELECT value FROM settings WHERE key = ?').get(key) as
      | { value: string }
      | undefined;
    return row?.value ?? null;
  }

  set(key: SettingKey, value: string): void {
    this.#db
      .prepare(
        'INSERT INTO settings VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value',
      )
      .run(key, value);
  }
}
