import type { ProtectRequest } from '../api/schema.ts';
import type { DiskRef } from '../hypervisor/hypervisor.ts';
import type { JobPhase } from '../jobs/phase.ts';
import { type Database, inTransaction } from './database.ts';

export interface JobDiskRow {
  diskId: string;
  /** Kernel name on the source when the job was made. */
  name: string;
  sizeBytes: number;
  serial: string;
  /** Null until the volume is made. */
  replica: DiskRef | null;
}

export interface JobRow {
  jobId: string;
  sourceId: string;
  settings: ProtectRequest;
  phase: JobPhase;
  provenBootableAt: string | null;
  createdAt: string;
  /** In the order in which the replica VM has them: the boot disk first. */
  disks: JobDiskRow[];
}

type RawJob = {
  job_id: string;
  source_id: string;
  settings_json: string;
  phase_json: string;
  proven_bootable_at: string | null;
  created_at: string;
};
type RawDisk = {
  disk_id: string;
  name: string;
  size_bytes: number;
  serial: string;
  replica_json: string | null;
};

/** Protection jobs with their replica disks. */
export class JobStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  list(): JobRow[] {
    const rows = this.#db.prepare('SELECT * FROM jobs ORDER BY created_at, job_id').all();
    return (rows as RawJob[]).map((raw) => this.#fromRaw(raw));
  }

  get(jobId: string): JobRow | null {
    const raw = this.#db.prepare('SELECT * FROM jobs WHERE job_id = ?').get(jobId);
    return raw ? this.#fromRaw(raw as RawJob) : null;
  }

  put(row: JobRow): void {
    inTransaction(this.#db, () => {
      this.#db
        .prepare(
          `INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT(job_id) DO UPDATE SET settings_json = excluded.settings_json,
             phase_json = excluded.phase_json, proven_bootable_at = excluded.proven_bootable_at`,
        )
        .run(
          row.jobId,
          row.sourceId,
          JSON.stringify(row.settings),
          JSON.stringify(row.phase),
          row.provenBootableAt,
          row.createdAt,
        );
      const upsert = this.#db.prepare(
        `INSERT INTO job_disks VALUES (?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT(job_id, disk_id) DO UPDATE SET name = excluded.name, size_bytes = excluded.size_bytes,
           replica_json = excluded.replica_json`,
      );
      row.disks.forEach((disk, position) => {
        upsert.run(
          row.jobId,
          disk.diskId,
          position,
          disk.name,
          disk.sizeBytes,
          disk.serial,
          disk.replica ? JSON.stringify(disk.replica) : null,
        );
      });
    });
  }

  /** Ends a job; that it was there is remembered for its agent. */
  remove(jobId: string): void {
    inTransaction(this.#db, () => {
      this.#db
        .prepare(
          'INSERT OR IGNORE INTO ended_jobs SELECT job_id, source_id FROM jobs WHERE job_id = ?',
        )
        .run(jobId);
      this.#db.prepare('DELETE FROM jobs WHERE job_id = ?').run(jobId);
    });
  }

  /** The newest of the jobs that this source had. */
  endedOf(sourceId: string): string[] {
    const rows = this.#db
      .prepare('SELECT job_id FROM ended_jobs WHERE source_id = ? ORDER BY rowid DESC LIMIT 20')
      .all(sourceId);
    return (rows as { job_id: string }[]).map((row) => row.job_id);
  }

  #fromRaw(raw: RawJob): JobRow {
    const disks = this.#db
      .prepare('SELECT * FROM job_disks WHERE job_id = ? ORDER BY position')
      .all(raw.job_id) as RawDisk[];
    return {
      jobId: raw.job_id,
      sourceId: raw.source_id,
      settings: JSON.parse(raw.settings_json) as ProtectRequest,
      phase: JSON.parse(raw.phase_json) as JobPhase,
      provenBootableAt: raw.proven_bootable_at,
      createdAt: raw.created_at,
      disks: disks.map((disk) => ({
        diskId: disk.disk_id,
        name: disk.name,
        sizeBytes: disk.size_bytes,
        serial: disk.serial,
        replica: disk.replica_json ? (JSON.parse(disk.replica_json) as DiskRef) : null,
      })),
    };
  }
}
