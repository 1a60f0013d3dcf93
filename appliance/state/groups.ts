import type { GroupWait, MarkEvery, TestEvery } from '../api/schema.ts';
import type { GroupRun } from '../groups/record.ts';
import type { ClockOffset } from '../groups/source-clock.ts';
import { type Database, inTransaction } from './database.ts';

export interface GroupRow {
  groupId: string;
  name: string;
  wait: GroupWait;
  /** Of its marks. */
  schedule: MarkEvery | null;
  testEvery: TestEvery;
  /** In the order in which a person put them. A job that ends leaves its group. */
  members: { jobId: string; priority: number }[];
  createdAt: string;
}

/** Points that were asked for of all members at once. */
export interface GroupMarkRow {
  markId: string;
  groupId: string;
  name: string;
  /** Of the appliance's clock: the middle of the members' moments. */
  atMs: number;
  /** How far the members' points are apart at most; null: their clocks were never compared. */
  apartMs: number | null;
  quiesced: boolean;
  members: {
    jobId: string;
    pointId: string;
    seq: number;
    /** By the source's wall clock. */
    sourceMs: number;
    quiesced: boolean;
    reason: string | null;
  }[];
}

type RawGroup = {
  group_id: string;
  name: string;
  wait_json: string;
  created_at: string;
  schedule_json: string | null;
  test_every: TestEvery;
};
type RawMark = {
  mark_id: string;
  group_id: string;
  name: string;
  at_ms: number;
  apart_ms: number | null;
  quiesced: number;
  members_json: string;
};
type RawOffset = { from_ms: number; offset_ms: number; error_ms: number };

/** A point is of use as long as its frames are kept; more of them than this are a timeline. */
const MAX_MARKS = 1000;

/** Consistency groups, the records of their failovers, their marks, and the clocks of the sources. */
export class GroupStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  list(): GroupRow[] {
    const rows = this.#db.prepare('SELECT * FROM job_groups ORDER BY name').all() as RawGroup[];
    return rows.map((raw) => this.#fromRaw(raw));
  }

  get(groupId: string): GroupRow | null {
    const raw = this.#db.prepare('SELECT * FROM job_groups WHERE group_id = ?').get(groupId);
    return raw ? this.#fromRaw(raw as RawGroup) : null;
  }

  /** New or changed, with all its members. */
  put(row: GroupRow): void {
    inTransaction(this.#db, () => {
      this.#db
        .prepare(
          `INSERT INTO job_groups VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT(group_id) DO UPDATE SET name = excluded.name, wait_json = excluded.wait_json,
             schedule_json = excluded.schedule_json, test_every = excluded.test_every`,
        )
        .run(
          row.groupId,
          row.name,
          JSON.stringify(row.wait),
          row.createdAt,
          row.schedule && JSON.stringify(row.schedule),
          row.testEvery,
        );
      this.#db.prepare('DELETE FROM group_members WHERE group_id = ?').run(row.groupId);
      const add = this.#db.prepare('INSERT INTO group_members VALUES (?, ?, ?, ?)');
      row.members.forEach(({ jobId, priority }, position) => {
        add.run(jobId, row.groupId, position, priority);
      });
    });
  }

  remove(groupId: string): void {
    this.#db.prepare('DELETE FROM job_groups WHERE group_id = ?').run(groupId);
  }

  /** Oldest first; also those of groups that are gone. */
  runs(): GroupRun[] {
    const rows = this.#db.prepare('SELECT record_json FROM group_runs ORDER BY started_at').all();
    return (rows as { record_json: string }[]).map((row) => JSON.parse(row.record_json));
  }

  /** Durable when it returns. */
  saveRun(run: GroupRun): void {
    this.#db
      .prepare(
        `INSERT INTO group_runs VALUES (?, ?, ?, ?)
         ON CONFLICT(run_id) DO UPDATE SET record_json = excluded.record_json`,
      )
      .run(run.runId, run.groupId, run.startedAt, JSON.stringify(run));
  }

  /** Oldest first. */
  marks(groupId: string): GroupMarkRow[] {
    const rows = this.#db
      .prepare('SELECT * FROM group_marks WHERE group_id = ? ORDER BY at_ms, mark_id')
      .all(groupId) as RawMark[];
    return rows.map((raw) => ({
      markId: raw.mark_id,
      groupId: raw.group_id,
      name: raw.name,
      atMs: raw.at_ms,
      apartMs: raw.apart_ms,
      quiesced: raw.quiesced !== 0,
      members: JSON.parse(raw.members_json),
    }));
  }

  addMark(mark: GroupMarkRow): void {
    const { markId, groupId, name, atMs, apartMs, quiesced, members } = mark;
    inTransaction(this.#db, () => {
      this.#db
        .prepare('INSERT INTO group_marks VALUES (?, ?, ?, ?, ?, ?, ?)')
        .run(markId, groupId, name, atMs, apartMs, Number(quiesced), JSON.stringify(members));
      this.#db
        .prepare(
          `DELETE FROM group_marks WHERE group_id = ? AND mark_id NOT IN
             (SELECT mark_id FROM group_marks WHERE group_id = ? ORDER BY at_ms DESC LIMIT ?)`,
        )
        .run(groupId, groupId, MAX_MARKS);
    });
  }

  /** Oldest first. */
  clock(sourceId: string): ClockOffset[] {
    const rows = this.#db
      .prepare('SELECT * FROM source_clocks WHERE source_id = ? ORDER BY position')
      .all(sourceId) as RawOffset[];
    return rows.map((raw) => ({
      fromMs: raw.from_ms,
      offsetMs: raw.offset_ms,
      errorMs: raw.error_ms,
    }));
  }

  putClock(sourceId: string, offsets: readonly ClockOffset[]): void {
    inTransaction(this.#db, () => {
      this.#db.prepare('DELETE FROM source_clocks WHERE source_id = ?').run(sourceId);
      const add = this.#db.prepare('INSERT INTO source_clocks VALUES (?, ?, ?, ?, ?)');
      offsets.forEach(({ fromMs, offsetMs, errorMs }, position) => {
        add.run(sourceId, position, fromMs, offsetMs, errorMs);
      });
    });
  }

  #fromRaw(raw: RawGroup): GroupRow {
    const members = this.#db
      .prepare('SELECT job_id, priority FROM group_members WHERE group_id = ? ORDER BY position')
      .all(raw.group_id) as { job_id: string; priority: number }[];
    return {
      groupId: raw.group_id,
      name: raw.name,
      wait: JSON.parse(raw.wait_json),
      schedule: raw.schedule_json === null ? null : JSON.parse(raw.schedule_json),
      testEvery: raw.test_every,
      members: members.map(({ job_id, priority }) => ({ jobId: job_id, priority })),
      createdAt: raw.created_at,
    };
  }
}
