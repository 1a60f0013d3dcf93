import type { Database } from './database.ts';

export interface EnrolTokenRow {
  tokenHash: string;
  sourceId: string;
  expiresAt: string;
  usedAt: string | null;
}

/** One-time tokens by which an agent enrols. Only hashes are kept. */
export class EnrolTokenStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  get(tokenHash: string): EnrolTokenRow | null {
    const raw = this.#db
      .prepare('SELECT * FROM enrol_tokens WHERE token_hash = ?')
      .get(tokenHash) as
      | { token_hash: string; source_id: string; expires_at: string; used_at: string | null }
      | undefined;
    return raw
      ? {
          tokenHash: raw.token_hash,
          sourceId: raw.source_id,
          expiresAt: raw.expires_at,
          usedAt: raw.used_at,
        }
      : null;
  }

  insert(row: EnrolTokenRow): void {
    this.#db
      .prepare('INSERT INTO enrol_tokens VALUES (?, ?, ?, ?)')
      .run(row.tokenHash, row.sourceId, row.expiresAt, row.usedAt);
  }

  /** True when this call used the token: of two at once only one gets true. */
  use(tokenHash: string, at: string): boolean {
    const { changes } = this.#db
      .prepare('UPDATE enrol_tokens SET used_at = ? WHERE token_hash = ? AND used_at IS NULL')
      .run(at, tokenHash);
    return Number(changes) === 1;
  }

  /** Unused tokens of a source are void once a new one is made. */
  removeUnused(sourceId: string): void {
    this.#db
      .prepare('DELETE FROM enrol_tokens WHERE source_id = ? AND used_at IS NULL')
      .run(sourceId);
  }
}
