import type { Database } from './database.ts';

export interface SessionRow {
  tokenHash: string;
  username: string;
  createdAt: string;
  lastUsedAt: string;
  expiresAt: string;
}

type Raw = {
  token_hash: string;
  username: string;
  created_at: string;
  last_used_at: string;
  expires_at: string;
};

/** Logged-in browsers and scripts. Only the hash of a session's token is kept. */
export class SessionStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  get(tokenHash: string): SessionRow | null {
    const raw = this.#db.prepare('SELECT * FROM sessions WHERE token_hash = ?').get(tokenHash) as
      | Raw
      | undefined;
    return raw
      ? {
          tokenHash: raw.token_hash,
          username: raw.username,
          createdAt: raw.created_at,
          lastUsedAt: raw.last_used_at,
          expiresAt: raw.expires_at,
        }
      : null;
  }

  insert(row: SessionRow): void {
    this.#db
      .prepare('INSERT INTO sessions VALUES (?, ?, ?, ?, ?)')
      .run(row.tokenHash, row.username, row.createdAt, row.lastUsedAt, row.expiresAt);
  }

  touch(tokenHash: string, at: string): void {
    this.#db
      .prepare('UPDATE sessions SET last_used_at = ? WHERE token_hash = ?')
      .run(at, tokenHash);
  }

  remove(tokenHash: string): void {
    this.#db.prepare('DELETE FROM sessions WHERE token_hash = ?').run(tokenHash);
  }

  /** Ends all sessions of a user, but for the one to be kept. */
  removeOthers(username: string, keepTokenHash: string): void {
    this.#db
      .prepare('DELETE FROM sessions WHERE username = ? AND token_hash <> ?')
      .run(username, keepTokenHash);
  }

  removeExpired(now: string): void {
    this.#db.prepare('DELETE FROM sessions WHERE expires_at <= ?').run(now);
  }
}
