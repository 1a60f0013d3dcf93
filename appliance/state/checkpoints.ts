import type { DiskRef } from '../hypervisor/hypervisor.ts';
import { type Database, inTransaction } from './database.ts';

/** Image by disk id. */
export type Layers = Record<string, DiskRef>;

export type CheckpointState =
  /**
   * The snapshot was about to be asked for: names of the new layers, and the images that replication wrote until then.
   * Whether it happened is in the chain.
   */
  | { name: 'intended'; names: Record<string, string>; images: Layers }
  /** `layers` are frozen as they were at the point. */
  | { name: 'kept'; layers: Layers }
  /** Given up: the layers of checkpoint `upperId`, directly above, are being merged into these. */
  | { name: 'merging'; layers: Layers; upperId: number };

export interface CheckpointRow {
  checkpointId: number;
  jobId: string;
  /** Sequence numbers are of this journal. */
  journalId: string;
  /** Everything up to this frame is in it, and nothing after it. */
  seq: number;
  /** The first frame of its unbroken ordered stretch. */
  sinceSeq: number;
  /** Source's wall clock of the point. */
  sourceMs: number;
  takenMs: number;
  reason: string;
  state: CheckpointState;
  /** What rests on its layers, such as `failover ID`. */
  holders: string[];
}

type Raw = {
  checkpoint_id: number;
  job_id: string;
  journal_id: string;
  seq: number;
  since_seq: number;
  source_ms: number;
  taken_ms: number;
  reason: string;
  state_json: string;
};

/** Checkpoints of replica disks, oldest first, and the persisted references to them. */
export class CheckpointStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  list(jobId: string): CheckpointRow[] {
    const rows = this.#db
      .prepare('SELECT * FROM checkpoints WHERE job_id = ? ORDER BY checkpoint_id')
      .all(jobId) as Raw[];
    return rows.map((raw) => this.#fromRaw(raw));
  }

  get(checkpointId: number): CheckpointRow | null {
    const raw = this.#db
      .prepare('SELECT * FROM checkpoints WHERE checkpoint_id = ?')
      .get(checkpointId);
    return raw ? this.#fromRaw(raw as Raw) : null;
  }

  /** @returns the new checkpoint's id */
  add(row: Omit<CheckpointRow, 'checkpointId' | 'holders'>): number {
    const { lastInsertRowid } = this.#db
      .prepare('INSERT INTO checkpoints VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)')
      .run(
        row.jobId,
        row.journalId,
        row.seq,
        row.sinceSeq,
        row.sourceMs,
        row.takenMs,
        row.reason,
        JSON.stringify(row.state),
      );
    return Number(lastInsertRowid);
  }

  /** `together` is done in the same transaction. */
  setState(checkpointId: number, state: CheckpointState, together: () => void = () => {}): void {
    inTransaction(this.#db, () => {
      this.#db
        .prepare('UPDATE checkpoints SET state_json = ? WHERE checkpoint_id = ?')
        .run(JSON.stringify(state), checkpointId);
      together();
    });
  }

  remove(checkpointId: number): void {
    this.#db.prepare('DELETE FROM checkpoints WHERE checkpoint_id = ?').run(checkpointId);
  }

  /** From now on the checkpoint's layers are neither merged nor merged into, until `release`. */
  hold(checkpointId: number, holder: string): void {
    this.#db
      .prepare('INSERT OR IGNORE INTO checkpoint_references VALUES (?, ?)')
      .run(checkpointId, holder);
  }

  /** Ends all references of this holder. */
  release(holder: string): void {
    this.#db.prepare('DELETE FROM checkpoint_references WHERE holder = ?').run(holder);
  }

  #fromRaw(raw: Raw): CheckpointRow {
    const holders = this.#db
      .prepare('SELECT holder FROM checkpoint_references WHERE checkpoint_id = ? ORDER BY holder')
      .all(raw.checkpoint_id) as { holder: string }[];
    return {
      checkpointId: raw.checkpoint_id,
      jobId: raw.job_id,
      journalId: raw.journal_id,
      seq: raw.seq,
      sinceSeq: raw.since_seq,
      sourceMs: raw.source_ms,
      takenMs: raw.taken_ms,
      reason: raw.reason,
      state: JSON.parse(raw.state_json) as CheckpointState,
      holders: holders.map(({ holder }) => holder),
    };
  }
}
