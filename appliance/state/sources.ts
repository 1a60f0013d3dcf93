import type { MachineIdentity } from '../../protocol/control.ts';
import type { Inventory, SourceState } from '../api/schema.ts';
import type { Database } from './database.ts';

export interface SourceRow {
  sourceId: string;
  name: string;
  address: string;
  sshPort: number;
  sshUsername: string;
  state: SourceState;
  agentVersion: string | null;
  /** As enrolled; null until then. */
  machine: MachineIdentity | null;
  inventory: Inventory | null;
  addedAt: string;
}

type Raw = {
  source_id: string;
  name: string;
  address: string;
  ssh_port: number;
  ssh_username: string;
  state_json: string;
  agent_version: string | null;
  machine_json: string | null;
  inventory_json: string | null;
  added_at: string;
};

const fromRaw = (raw: Raw): SourceRow => ({
  sourceId: raw.source_id,
  name: raw.name,
  address: raw.address,
  sshPort: raw.ssh_port,
  sshUsername: raw.ssh_username,
  state: JSON.parse(raw.state_json) as SourceState,
  agentVersion: raw.agent_version,
  machine: raw.machine_json ? (JSON.parse(raw.machine_json) as MachineIdentity) : null,
  inventory: raw.inventory_json ? (JSON.parse(raw.inventory_json) as Inventory) : null,
  addedAt: raw.added_at,
});

/** Source servers. SSH credentials are not kept. */
export class SourceStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  list(): SourceRow[] {
    const rows = this.#db.prepare('SELECT * FROM sources ORDER BY added_at, source_id').all();
    return (rows as Raw[]).map(fromRaw);
  }

  get(sourceId: string): SourceRow | null {
    const raw = this.#db.prepare('SELECT * FROM sources WHERE source_id = ?').get(sourceId);
    return raw ? fromRaw(raw as Raw) : null;
  }

  findByAddress(address: string, sshPort: number): SourceRow | null {
    const raw = this.#db
      .prepare('SELECT * FROM sources WHERE address = ? AND ssh_port = ?')
      .get(address, sshPort);
    return raw ? fromRaw(raw as Raw) : null;
  }

  put(row: SourceRow): void {
    this.#db
      .prepare(
        `INSERT INTO sources VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT(source_id) DO UPDATE SET name = excluded.name, address = excluded.address,
           ssh_port = excluded.ssh_port, ssh_username = excluded.ssh_username, state_json = excluded.state_json,
           agent_version = excluded.agent_version, machine_json = excluded.machine_json,
           inventory_json = excluded.inventory_json`,
      )
      .run(
        row.sourceId,
        row.name,
        row.address,
        row.sshPort,
        row.sshUsername,
        JSON.stringify(row.state),
        row.agentVersion,
        row.machine ? JSON.stringify(row.machine) : null,
        row.inventory ? JSON.stringify(row.inventory) : null,
        row.addedAt,
      );
  }

  remove(sourceId: string): void {
    this.#db.prepare('DELETE FROM sources WHERE source_id = ?').run(sourceId);
  }
}
