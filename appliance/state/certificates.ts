import type { Database } from './database.ts';

export interface CertificateRow {
  /** Hex, upper case, no leading zeroes, as TLS reports it. */
  serial: string;
  sourceId: string;
  sourceName: string;
  /** SHA-256 of the DER form, hex, lower case. */
  fingerprint: string;
  notBefore: string;
  notAfter: string;
  state: 'valid' | 'revoked' | 'superseded';
}

type Raw = {
  serial: string;
  source_id: string;
  source_name: string;
  fingerprint: string;
  not_before: string;
  not_after: string;
  state: string;
};

const fromRaw = (raw: Raw): CertificateRow => ({
  serial: raw.serial,
  sourceId: raw.source_id,
  sourceName: raw.source_name,
  fingerprint: raw.fingerprint,
  notBefore: raw.not_before,
  notAfter: raw.not_after,
  state: raw.state as CertificateRow['state'],
});

/** Every client certificate ever issued. What is not in here is not ours, whatever its signature says. */
export class CertificateStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  /** Newest first. */
  list(): CertificateRow[] {
    const rows = this.#db
      .prepare('SELECT * FROM certificates ORDER BY not_before DESC, rowid DESC')
      .all();
    return (rows as Raw[]).map(fromRaw);
  }

  get(serial: string): CertificateRow | null {
    const raw = this.#db.prepare('SELECT * FROM certificates WHERE serial = ?').get(serial);
    return raw ? fromRaw(raw as Raw) : null;
  }

  /** The one that a source should be using now. */
  newestOf(sourceId: string): CertificateRow | null {
    const raw = this.#db
      .prepare('SELECT * FROM certificates WHERE source_id = ? ORDER BY rowid DESC LIMIT 1')
      .get(sourceId);
    return raw ? fromRaw(raw as Raw) : null;
  }

  insert(row: CertificateRow): void {
    this.#db
      .prepare('INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)')
      .run(
        row.serial,
        row.sourceId,
        row.sourceName,
        row.fingerprint,
        row.notBefore,
        row.notAfter,
        row.state,
      );
  }

  /** All certificates of a source that still counted, but for `keepSerial`. Returns how many. */
  retire(sourceId: string, state: 'revoked' | 'superseded', keepSerial?: string): number {
    const from = state === 'revoked' ? "('valid','superseded')" : "('valid')";
    const { changes } = this.#db
      .prepare(
        `UPDATE certificates SET state = ? WHERE source_id = ? AND serial <> ? AND state IN ${from}`,
      )
      .run(state, sourceId, keepSerial ?? '');
    return Number(changes);
  }
}
