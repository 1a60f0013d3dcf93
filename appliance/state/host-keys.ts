import type { Database } from './database.ts';

/** SSH host keys of sources that a person confirmed (`SHA256:…`). They outlive the source in the list. */
export class HostKeyStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  get(address: string, port: number): string | null {
    const row = this.#db
      .prepare('SELECT fingerprint FROM host_keys WHERE address = ? AND port = ?')
      .get(address, port) as { fingerprint: string } | undefined;
    return row?.fingerprint ?? null;
  }

  set(address: string, port: number, fingerprint: string): void {
    this.#db
      .prepare(
        `INSERT INTO host_keys VALUES (?, ?, ?)
         ON CONFLICT(address, port) DO UPDATE SET fingerprint = excluded.fingerprint`,
      )
      .run(address, port, fingerprint);
  }
}
