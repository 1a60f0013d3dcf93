/**
 * Every frame boundary of an ordered stretch is a crash-consistent point: the disk as of a random one is built from the
 * journal and given to the file system, PostgreSQL and SQLite to recover.
 *
 * A round: one file system on a captured loop device; a PostgreSQL cluster, two SQLite databases and file churn at work
 * on it at once; the stream through both ends of the product, begun under load, in some rounds with its link
 * cut or its agent killed; then some prefixes, judged. And prefixes without one of their newest frames, of which at
 * least one must be found out, or the judging itself would be worth nothing.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Proof, RoundContext, RoundResult } from '../../scripts/lib/proof.ts';
import { CaptureLab, MIB, run, runAside, unable, until } from '../integration/capture.lab.ts';
import { endWithUs } from './prefixes/child.ts';
import { Cluster, initCluster, noPostgres } from './prefixes/cluster.ts';
import { Cuttable } from './prefixes/cut.ts';
import { FILE_SYSTEMS, type FileSystemName, release } from './prefixes/file-system.ts';
import { judge, Notes, type Subject } from './prefixes/judge.ts';
import { LiveStream } from './prefixes/live.ts';
import { DOCUMENTS, openDatabase, SQLITE_MODES } from './prefixes/writer.ts';

const DISK_MIB = 512;
const TABLES = ['rows_a', 'rows_b'];
const DISTURBANCES = ['none', 'link cut', 'agent killed'] as const;
/** Damaged prefixes that may pass unnoticed one after the other, because what was left out did not matter. */
const DAMAGED_TRIES = 12;

/** initdb takes as long as a round's checks: once a process is enough. */
let template: string | undefined;

async function clusterTemplate(): Promise<string> {
  if (!template) {
    const dir = fs.mkdtempSync(join(tmpdir(), 'prefixes-pg-'));
    // PostgreSQL's user must reach it.
    fs.chmodSync(dir, 0o755);
    process.on('exit', () => fs.rmSync(dir, { recursive: true, force: true }));
    await initCluster(join(dir, 'pg'));
    template = join(dir, 'pg');
  }
  return template;
}

/** CLOCK_BOOTTIME minus CLOCK_MONOTONIC, which is Node's; not too small, and too large by the time between two calls. */
const bootAheadNs = (): bigint =>
  BigInt(
    run(
      'python3',
      '-c',
      'import time; m = time.monotonic_ns(); print(time.clock_gettime_ns(time.CLOCK_BOOTTIME) - m)',
    ).trim(),
  );

class Writers {
  readonly #dir: string;
  readonly #running: ChildProcess[] = [];
  readonly logs: string[] = [];
  #held = false;
  #holding: NodeJS.Timeout | undefined;

  constructor(dir: string) {
    this.#dir = dir;
    fs.mkdirSync(dir);
  }

  start(kind: string, target: string, seed: number): void {
    const log = join(this.#dir, `${this.logs.length}.log`);
    fs.writeFileSync(log, '');
    this.logs.push(log);
    const script = join(import.meta.dirname, 'prefixes/writer.ts');
    const writer = spawn(
      process.execPath,
      ['--disable-warning=ExperimentalWarning', script, kind, target, log, String(seed)],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    endWithUs(writer, 'SIGKILL');
    this.#running.push(writer);
  }

  /** Every writer has done so many more acts than now. */
  async acts(more: number): Promise<void> {
    const count = (log: string) => fs.readFileSync(log, 'utf8').split('\n').length;
    const from = this.logs.map(count);
    await until(
      `${more} more acts of every writer`,
      () => {
        this.#running.forEach((writer, index) => {
          if (writer.exitCode !== null) throw new Error(`writer ${index}: exit ${writer.exitCode}`);
        });
        return this.logs.every((log, index) => count(log) >= from[index]! + more);
      },
      300_000,
    );
  }

  /** A busy machine gives the agent too little to keep up with five writers: they wait while much is behind. */
  holdBy(behindBytes: () => number, limitBytes: number): void {
    this.#holding = setInterval(() => {
      const hold = behindBytes() > (this.#held ? limitBytes / 4 : limitBytes);
      if (hold === this.#held) return;
      this.#held = hold;
      for (const writer of this.#running) writer.kill(hold ? 'SIGSTOP' : 'SIGCONT');
    }, 100);
  }

  async stop(): Promise<void> {
    clearInterval(this.#holding);
    if (this.#held) for (const writer of this.#running) writer.kill('SIGCONT');
    await Promise.all(
      this.#running.map(async (writer) => {
        if (writer.exitCode !== null || writer.signalCode !== null) return;
        const exit = once(writer, 'exit');
        writer.kill('SIGTERM');
        await exit;
      }),
    );
  }
}

async function round(context: RoundContext): Promise<RoundResult> {
  const { random, short } = context;
  const pick = <T>(list: readonly T[]): T => list[random(list.length)]!;
  const names = Object.keys(FILE_SYSTEMS) as FileSystemName[];
  // In turn, so that any three rounds in a row have each.
  const fileSystem = names[(context.round - 1) % names.length]!;
  const rollback = pick(SQLITE_MODES.filter((mode) => mode !== 'wal'));
  const subject: Subject = {
    fileSystem,
    mountOptions: pick(FILE_SYSTEMS[fileSystem].mountOptions),
    tables: TABLES,
    databases: ['wal', rollback],
    documents: Array.from({ length: DOCUMENTS }, (_, n) => `document-${n}`),
  };
  const disturbance = pick(DISTURBANCES);
  const acts = short ? 60 : 100 + random(200);

  // The source, with everything on it before the capture begins.
  const lab = new CaptureLab(context, 5000);
  const live = new LiveStream(lab, DISK_MIB);
  const { dev } = live.disk;
  context.teardown(() => release(fileSystem, dev));
  const [make, ...makeArgs] = FILE_SYSTEMS[fileSystem].make as [string, ...string[]];
  await runAside(make, ...makeArgs, dev);
  const at = lab.mount(dev, '-o', subject.mountOptions);
  await runAside('cp', '-a', await clusterTemplate(), join(at, 'pg'));
  const cluster = new Cluster(join(at, 'pg'), join(lab.dir, 'pg'));
  context.teardown(() => cluster.stop('SIGQUIT'));
  await cluster.start();
  cluster.sql('create extension amcheck');
  for (const table of TABLES) {
    cluster.sql(
      `create table ${table} (n bigint primary key, body text not null); ` +
        `create index ${table}_body on ${table} (md5(body)); ` +
        `create table ${table}_counter (v bigint not null); insert into ${table}_counter values (0)`,
    );
  }
  for (const name of subject.databases) {
    const db = openDatabase(join(at, name));
    db.exec(
      'create table rows (n integer primary key, repeat integer not null, body text not null); ' +
        'create table counter (v integer not null); insert into counter values (0)',
    );
    db.close();
  }
  fs.mkdirSync(join(at, 'files'));
  fs.writeFileSync(join(at, 'files/log'), '');
  await runAside('sync', '-f', at);

  const writers = new Writers(join(lab.dir, 'notes'));
  context.teardown(() => writers.stop());
  for (const table of TABLES) writers.start('postgres', `${cluster.dir},${table}`, random(2 ** 31));
  for (const name of subject.databases) writers.start('sqlite', join(at, name), random(2 ** 31));
  writers.start('files', join(at, 'files'), random(2 ** 31));

  // The stream begins under load, and goes on under load behind the base.
  context.teardown(() => live.close());
  const ringBytes = 128 * MIB;
  await live.start(ringBytes);
  writers.holdBy(() => live.stream.state().lagBytes ?? 0, ringBytes / 4);
  const base = { image: join(lab.dir, 'base.img'), seq: 0 };
  base.seq = await live.keepBase(base.image);
  await writers.acts(acts >> 1);
  if (disturbance === 'link cut') live.proxy.cut();
  if (disturbance === 'agent killed') {
    await live.stopAgent('SIGKILL');
    live.startAgent();
  }
  await live.frames(20);
  await writers.acts(acts >> 1);
  await live.stopAgent('SIGTERM');
  await writers.stop();
  await cluster.stop('SIGQUIT');
  await live.close();
  // Two file systems of one UUID cannot be mounted at once.
  await runAside('umount', at);
  release(fileSystem, dev);

  const notes = new Notes();
  const aheadNs = bootAheadNs();
  for (const log of writers.logs) notes.read(log, aheadNs);
  const cuttable = await Cuttable.open(live.jobDir, base, live.disk.sizeBytes);
  context.teardown(() => cuttable.close());
  const { points, writes } = cuttable;
  if (points.length < 10) throw new Error(`only ${points.length} points`);

  const wrong: string[] = [];
  const image = join(lab.dir, 'cut.img');
  const judged = async (seq: number, bootTimeNs: bigint, without?: number) => {
    await cuttable.build(image, seq, without);
    return judge(subject, image, lab.dir, (series) => notes.at(series, bootTimeNs));
  };
  let rows = 0;
  for (let cut = 0; cut < (short ? 1 : 3); cut++) {
    const { seq, bootTimeNs } = pick(points);
    rows += notes.count(bootTimeNs);
    const found = await judged(seq, bootTimeNs);
    if (found.length === 0) continue;
    wrong.push(`the prefix up to frame ${seq} (boot-time clock ${bootTimeNs}):`, ...found);
    run('cp', '--sparse=always', image, join(context.keepDir(), `judged-${seq}.img`));
    await cuttable.build(image, seq);
    run('mv', image, join(context.keepDir(), `prefix-${seq}.img`));
  }

  let damaged = 0;
  for (let seen = false; !seen && damaged < DAMAGED_TRIES; damaged++) {
    const { seq, bootTimeNs } = points[points.length - 1 - random(points.length >> 1)]!;
    const newest = writes.filter((header) => header.seq <= seq).slice(-10);
    seen = (await judged(seq, bootTimeNs, pick(newest).seq)).length > 0;
  }
  if (damaged === DAMAGED_TRIES) {
    wrong.push(`${damaged} prefixes without one of their frames were taken for whole`);
  }
  if (wrong.length > 0) {
    const keep = context.keepDir();
    run('cp', '-r', live.jobDir, join(lab.dir, 'notes'), keep);
    run('cp', '--sparse=always', base.image, keep);
  }
  const cuts = short ? 1 : 3;
  return {
    did:
      `${fileSystem} ${subject.mountOptions}, SQLite ${subject.databases.join(' and ')}, disturbed by: ${disturbance}; ` +
      `${writes.length} frames, ${points.length} points; ${cuts} prefixes with ${rows} acknowledged acts; ` +
      `the ${damaged}. damaged one was seen`,
    wrong,
  };
}

export const proof: Proof = {
  what: 'random prefixes of the stream are crash-consistent: file systems, PostgreSQL and SQLite recover',
  packages: ['postgresql', 'e2fsprogs', 'xfsprogs', 'btrfs-progs', 'python3'],
  builds: ['build-capture'],
  rounds: 30,
  require: () => unable() || noPostgres(),
  round,
};
