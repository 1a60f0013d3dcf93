import type { MachineIdentity } from '../../protocol/control.ts';
import type { Database } from './database.ts';

export interface PassiveInstanceRow {
  sourceId: string;
  bootId: string;
  reason: string;
  machine: MachineIdentity;
  firstSeenAt: string;
  lastSeenAt: string;
}

type Raw = {
  source_id: string;
  boot_id: string;
  reason: string;
  machine_json: string;
  first_seen_at: string;
  last_seen_at: string;
};

/** Copies of a source (replicas, clones) whose agents called in and were kept passive or refused. */
export class PassiveInstanceStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  list(sourceId: string): PassiveInstanceRow[] {
    const rows = this.#db
      .prepare('SELECT * FROM passive_instances WHERE source_id = ? ORDER BY last_seen_at DESC')
      .all(sourceId) as Raw[];
    return rows.map((raw) => ({
      sourceId: raw.source_id,
      bootId: raw.boot_id,
      reason: raw.reason,
      machine: JSON.parse(raw.machine_json) as MachineIdentity,
      firstSeenAt: raw.first_seen_at,
      lastSeenAt: raw.last_seen_at,
    }));
  }

  /** When a copy on the machine with this SMBIOS UUID was last seen, if that was at `afterIso` or later. */
  lastSeenOn(sourceId: string, smbiosUuid: string, afterIso: string): string | null {
    const wanted = smbiosUuid.toLowerCase();
    const found = this.list(sourceId).find(
      (seen) =>
        seen.lastSeenAt >= afterIso && seen.machine.smbiosUuid?.trim().toLowerCase() === wanted,
    );
    return found?.lastSeenAt ?? null;
  }

  see(sourceId: string, machine: MachineIdentity, reason: string, at: string): void {
    this.#db
      .prepare(
        `INSERT INTO passive_instances VALUES (?, ?, ?, ?, ?, ?)
         ON CONFLICT(source_id, boot_id) DO UPDATE SET reason = excluded.reason,
           machine_json = excluded.machine_json, last_seen_at = excluded.last_seen_at`,
      )
      .run(sourceId, machine.bootId, reason, JSON.stringify(machine), at, at);
  }

  clear(sourceId: string): void {
    this.#db.prepare('DELETE FROM passive_instances WHERE source_id = ?').run(sourceId);
  }
}
