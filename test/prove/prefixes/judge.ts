/** What a prefix must hold: a sound file system, and in it everything that was acknowledged by the moment of the cut. */
import fs from 'node:fs';
import { join } from 'node:path';
import { Cluster } from './cluster.ts';
import { check, type FileSystemName, withLoop, withMount } from './file-system.ts';
import { documentText, LOG_RECORD_BYTES, logRecord, openDatabase, text } from './writer.ts';

/** What one series of acts had come to: by number, all of them from 1. */
export interface Expected {
  /** Acknowledged by then: must be there. */
  acked: number;
  /** Asked for by then: nothing above it can be there. */
  begun: number;
}

interface Act {
  n: number;
  begunNs: bigint;
  doneNs: bigint;
}

/** The writers' notes, on the boot-time clock. */
export class Notes {
  readonly #series = new Map<string, Act[]>();

  /** @param aheadNs what the boot-time clock is ahead of the monotonic one */
  read(logPath: string, aheadNs: bigint): void {
    for (const line of fs.readFileSync(logPath, 'utf8').split('\n')) {
      const [series, n, begun, done] = line.split(' ');
      if (!series || !done) continue;
      const acts = this.#series.get(series) ?? [];
      this.#series.set(series, acts);
      acts.push({
        n: Number(n),
        begunNs: BigInt(begun!) + aheadNs,
        doneNs: BigInt(done) + aheadNs,
      });
    }
  }

  at(series: string, bootNs: bigint): Expected {
    const acts = this.#series.get(series) ?? [];
    const acked = acts.findLast(({ doneNs }) => doneNs <= bootNs)?.n ?? 0;
    // What was asked for when the writer ended was never noted: no bound then.
    const next = acts.find(({ begunNs }) => begunNs > bootNs);
    const last = acts.findLast(({ begunNs }) => begunNs <= bootNs);
    return { acked, begun: next ? (last?.n ?? 0) : Number.POSITIVE_INFINITY };
  }

  get names(): string[] {
    return [...this.#series.keys()];
  }

  /** Acts acknowledged by then, over all series. */
  count(bootNs: bigint): number {
    let sum = 0;
    for (const acts of this.#series.values()) {
      sum += acts.filter(({ doneNs }) => doneNs <= bootNs).length;
    }
    return sum;
  }
}

export interface Subject {
  fileSystem: FileSystemName;
  mountOptions: string;
  tables: readonly string[];
  databases: readonly string[];
  documents: readonly string[];
}

/** Everything that is wrong with the image as the disk at that moment; empty: it is as it must be. */
export async function judge(
  subject: Subject,
  image: string,
  workDir: string,
  expected: (series: string) => Expected,
): Promise<string[]> {
  const wrong: string[] = [];
  const attempt = async (what: string, act: () => Promise<void> | void) => {
    try {
      await act();
    } catch (error) {
      const { message, stderr } = error as { message: string; stderr?: string };
      wrong.push(`${what}: ${message}${stderr && !message.includes(stderr) ? `\n${stderr}` : ''}`);
    }
  };
  const at = join(workDir, 'cut');
  const { fileSystem, mountOptions } = subject;
  await withLoop(fileSystem, image, async (dev) => {
    await attempt('first mount', () => withMount(dev, at, mountOptions, async () => {}));
    if (wrong.length > 0) return;
    const unsound = check(fileSystem, dev);
    if (unsound) wrong.push(unsound);
    await attempt('second mount', () =>
      withMount(dev, at, mountOptions, async () => {
        await attempt('PostgreSQL', () => judgePostgres(subject, at, workDir, expected, wrong));
        for (const name of subject.databases) {
          await attempt(`SQLite ${name}`, () =>
            judgeSqlite(name, join(at, name), expected(name), wrong),
          );
        }
        await attempt('files', () => judgeFiles(subject, join(at, 'files'), expected, wrong));
      }),
    );
  });
  return wrong;
}

function judgeRows(
  series: string,
  found: { count: number; max: number; counter: number },
  expected: Expected,
  wrong: string[],
): void {
  const { count, max, counter } = found;
  const { acked, begun } = expected;
  if (count !== max) wrong.push(`${series}: ${count} rows up to ${max}: there is a hole`);
  if (counter !== max)
    wrong.push(`${series}: the counter says ${counter}, the newest row is ${max}`);
  if (max < acked) wrong.push(`${series}: ${acked} was acknowledged, the newest row is ${max}`);
  if (max > begun)
    wrong.push(`${series}: row ${max} is there, and was not asked for (${begun} was)`);
}

async function judgePostgres(
  { tables }: Subject,
  at: string,
  workDir: string,
  expected: (series: string) => Expected,
  wrong: string[],
): Promise<void> {
  const dir = join(workDir, 'cut-pg');
  fs.rmSync(dir, { recursive: true, force: true });
  const cluster = new Cluster(join(at, 'pg'), dir);
  try {
    await cluster.start();
    for (const table of tables) {
      const answer = cluster.sql(
        `select count(*), coalesce(max(n), 0), (select v from ${table}_counter), ` +
          `count(*) filter (where body <> repeat(n || ';', length(body) / length(n || ';'))) from ${table}`,
      );
      const [count, max, counter, bad] = answer.split('|').map(Number) as [
        number,
        number,
        number,
        number,
      ];
      judgeRows(table, { count, max, counter }, expected(table), wrong);
      if (bad > 0) wrong.push(`${table}: ${bad} rows hold something else`);
      // Every row is found through each index, and the tree is one.
      cluster.sql(
        `select bt_index_check(c.oid, true) from pg_class c where relname in ('${table}_pkey', '${table}_body')`,
      );
    }
  } finally {
    await cluster.stop('SIGINT');
  }
}

function judgeSqlite(name: string, path: string, expected: Expected, wrong: string[]): void {
  const db = openDatabase(path);
  try {
    const integrity = db
      .prepare('pragma integrity_check')
      .all()
      .map((row) => Object.values(row)[0])
      .join('; ');
    if (integrity !== 'ok') wrong.push(`SQLite ${name}: integrity_check: ${integrity}`);
    let count = 0;
    let max = 0;
    for (const row of db.prepare('select n, repeat, body from rows order by n').iterate()) {
      count++;
      max = Number(row.n);
      if (row.body !== text(max, Number(row.repeat)))
        wrong.push(`SQLite ${name}: row ${max} holds something else`);
    }
    const counter = Number(db.prepare('select v from counter').get()!.v);
    judgeRows(`SQLite ${name}`, { count, max, counter }, expected, wrong);
  } finally {
    db.close();
  }
}

function judgeFiles(
  { documents }: Subject,
  dir: string,
  expected: (series: string) => Expected,
  wrong: string[],
): void {
  for (const name of documents) {
    const { acked, begun } = expected(name);
    const path = join(dir, name);
    if (!fs.existsSync(path)) {
      if (acked > 0) wrong.push(`${name}: version ${acked} was acknowledged, there is none`);
      continue;
    }
    const content = fs.readFileSync(path, 'utf8');
    const n = Number.parseInt(content, 10);
    const length = Number(content.slice(0, content.indexOf('\n')).split(' ')[1]);
    if (content !== documentText(n, length / `${n};`.length))
      wrong.push(`${name}: it is no version of itself`);
    if (!(n >= acked)) wrong.push(`${name}: version ${acked} was acknowledged, it is ${n}`);
    if (n > begun) wrong.push(`${name}: version ${n} is there, and was not begun (${begun} was)`);
  }
  const { acked } = expected('log');
  const log = fs.readFileSync(join(dir, 'log'), 'latin1');
  for (let n = 1; n <= acked; n++) {
    if (log.slice((n - 1) * LOG_RECORD_BYTES, n * LOG_RECORD_BYTES) !== logRecord(n)) {
      wrong.push(`log: record ${n} of ${acked} acknowledged ones is not there`);
      break;
    }
  }
}
