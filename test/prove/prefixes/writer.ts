/**
 * One writer, in a process of its own, on the file system that is captured: KIND TARGET LOG SEED.
 * Each act is numbered and durable when it is noted in LOG (on another file system), as `series number begun done`: the
 * clock before the act was asked for, and after it was acknowledged (ns, monotonic). SIGTERM ends it after an act.
 *
 * - `postgres`: TARGET is `SOCKETDIR,TABLE`; one transaction adds rows and moves the counter.
 * - `sqlite`: TARGET is a database; the same.
 * - `files`: TARGET is a folder; files replaced by rename, a log appended to, and churn that is only there to be in the way.
 */
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { DatabaseSync } from 'node:sqlite';
import { random } from '../../random.ts';

/** Files whose content is replaced as a whole. */
export const DOCUMENTS = 5;
export const LOG_RECORD_BYTES = 300;

/** What row or record `n` must hold. */
export const text = (n: number, repeat: number): string => `${n};`.repeat(repeat);

export const logRecord = (n: number): string =>
  `${n} `.padEnd(LOG_RECORD_BYTES - 1, String(n % 10)).concat('\n');

/** A document says how long it is, so that a part of it cannot pass for a whole. */
export function documentText(n: number, repeat: number): string {
  const body = text(n, repeat);
  return `${n} ${body.length}\n${body}`;
}

async function write(kind: string, target: string, logPath: string, seed: number): Promise<void> {
  const next = random(seed);
  const log = fs.openSync(logPath, 'a');
  const state = { stopping: false };
  process.on('SIGTERM', () => {
    state.stopping = true;
  });
  const note = (series: string, n: number, begun: bigint) => {
    fs.writeSync(log, `${series} ${n} ${begun} ${process.hrtime.bigint()}\n`);
  };
  // Unpaced, five writers overrun the capture's ring on a busy machine, and what is lost from order has no points.
  const turn = () => new Promise((resolve) => setTimeout(resolve, next(12)));

  if (kind === 'postgres') {
    const [socketDir, table] = target.split(',') as [string, string];
    const psql = spawn(
      'psql',
      ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-h', socketDir, '-U', 'postgres'],
      { stdio: ['pipe', 'pipe', 'inherit'] },
    );
    const answers = createInterface({ input: psql.stdout })[Symbol.asyncIterator]();
    while (!state.stopping) {
      const rows = next(40) === 0 ? 100 : 1;
      const begun = process.hrtime.bigint();
      psql.stdin.write(
        `with u as (update ${table}_counter set v = v + ${rows} returning v), ` +
          `i as (insert into ${table} select n, repeat(n || ';', ${1 + next(300)}) ` +
          `from u, generate_series(v - ${rows - 1}, v) n returning n) select max(n) from i;\n`,
      );
      const answer = await answers.next();
      if (answer.done) throw new Error('psql ended');
      note(table, Number(answer.value), begun);
      await turn();
    }
    psql.stdin.end();
    return;
  }

  if (kind === 'sqlite') {
    const series = target.split('/').at(-1)!;
    const db = openDatabase(target);
    const insert = db.prepare('insert into rows (n, repeat, body) values (?, ?, ?)');
    const count = db.prepare('update counter set v = ?');
    for (let n = 1; !state.stopping; n++) {
      const begun = process.hrtime.bigint();
      db.exec('begin immediate');
      const repeat = 1 + next(next(20) === 0 ? 4000 : 200);
      insert.run(n, repeat, text(n, repeat));
      count.run(n);
      db.exec('commit');
      note(series, n, begun);
      await turn();
    }
    db.close();
    return;
  }

  const dir = fs.openSync(target, 'r');
  const records = fs.openSync(join(target, 'log'), 'a');
  for (const name of ['a', 'b']) fs.mkdirSync(join(target, name));
  for (let n = 1; !state.stopping; n++) {
    const begun = process.hrtime.bigint();
    const act = next(4);
    if (act === 0) {
      const series = `document-${n % DOCUMENTS}`;
      const fd = fs.openSync(join(target, `${series}.new`), 'w');
      fs.writeSync(fd, documentText(n, 1 + next(40_000)));
      fs.fsyncSync(fd);
      fs.closeSync(fd);
      fs.renameSync(join(target, `${series}.new`), join(target, series));
      fs.fsyncSync(dir);
      note(series, n, begun);
    } else if (act === 1) {
      const first = fs.fstatSync(records).size / LOG_RECORD_BYTES + 1;
      fs.writeSync(records, logRecord(first));
      fs.fdatasyncSync(records);
      note('log', first, begun);
    } else {
      const one = join(target, next(2) ? 'a' : 'b', `file-${next(60)}`);
      const other = join(target, next(2) ? 'a' : 'b', `file-${next(60)}`);
      const kinds = next(5);
      if (kinds === 0) fs.rmSync(one, { force: true });
      else if (kinds === 1 && fs.existsSync(one)) fs.renameSync(one, other);
      else if (kinds === 2 && fs.existsSync(one)) fs.truncateSync(one, next(100_000));
      else fs.appendFileSync(one, Buffer.alloc(1 + next(60_000), next(256)));
    }
    await turn();
  }
}

/**
 * What each mode of SQLite calls durable. With `delete` that is EXTRA: the removal of the rollback journal is what
 * commits, and only EXTRA syncs its folder.
 */
const MODES: Record<string, { journal: string; synchronous: string }> = {
  wal: { journal: 'wal', synchronous: 'full' },
  truncate: { journal: 'truncate', synchronous: 'full' },
  persist: { journal: 'persist', synchronous: 'full' },
  delete: { journal: 'delete', synchronous: 'extra' },
};
export const SQLITE_MODES = Object.keys(MODES);

/** The database's name is its journal mode. */
export function openDatabase(path: string): DatabaseSync {
  const mode = MODES[path.split('/').at(-1)!]!;
  const db = new DatabaseSync(path);
  db.exec(`pragma journal_mode = ${mode.journal}; pragma synchronous = ${mode.synchronous};`);
  db.exec('pragma wal_autocheckpoint = 60;');
  return db;
}

if (import.meta.main) {
  const [kind, target, log, seed] = process.argv.slice(2) as [string, string, string, string];
  await write(kind, target, log, Number(seed));
}
