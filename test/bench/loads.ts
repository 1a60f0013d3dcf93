/** The loads that a source server is put under: fio on the bare device, pgbench on a file system on it. */
import { execFile, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { run } from './lab.ts';

const execute = promisify(execFile);

export interface FioResult {
  iops: number;
  bytesPerSec: number;
  /** Of one write, until it is complete. */
  p99Us: number;
}

/** Half of each buffer compresses, as a server's data does, and its filling costs nothing while the clock runs. */
export async function fio(
  dev: string,
  seconds: number,
  args: readonly string[],
): Promise<FioResult> {
  const { stdout } = await execute('fio', [
    '--name=bench',
    `--filename=${dev}`,
    '--direct=1',
    '--ioengine=libaio',
    '--buffer_compress_percentage=50',
    '--time_based',
    `--runtime=${Math.round(seconds * 1000)}ms`,
    '--output-format=json',
    ...args,
  ]);
  const { write } = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0];
  return {
    iops: write.iops,
    bytesPerSec: write.bw_bytes,
    p99Us: (write.clat_ns.percentile?.['99.000000'] ?? 0) / 1000,
  };
}

/** A PostgreSQL of its own on an ext4 on `dev`, reached by a socket in its folder only. */
export class Postgres {
  readonly #bin: string;
  readonly #dir: string;
  readonly #mount: string;

  constructor(dev: string) {
    const versions = fs.readdirSync('/usr/lib/postgresql').map(Number);
    this.#bin = `/usr/lib/postgresql/${Math.max(...versions)}/bin`;
    // Where the user postgres gets to whoever owns the checkout.
    this.#mount = fs.mkdtempSync(join(tmpdir(), 'understudy-bench-'));
    this.#dir = join(this.#mount, 'data');
    run('mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0', dev);
    run('mount', dev, this.#mount);
    run('chown', 'postgres', this.#mount);
    this.#as('initdb', '-D', this.#dir, '-A', 'trust', '-E', 'UTF8', '--locale=C');
    fs.appendFileSync(
      join(this.#dir, 'postgresql.conf'),
      [
        `unix_socket_directories = '${this.#mount}'`,
        "listen_addresses = ''",
        'shared_buffers = 128MB',
        'max_wal_size = 512MB',
        // Autovacuum and checkpoints by the clock would fall into one round and not into the other.
        'autovacuum = off',
        'checkpoint_timeout = 1h',
        '',
      ].join('\n'),
    );
    this.#as('pg_ctl', '-D', this.#dir, '-w', '-l', join(this.#mount, 'log'), 'start');
    this.#as('createdb', '-h', this.#mount, 'bench');
    this.#as('pgbench', '-h', this.#mount, '-i', '-q', '-s', '10', 'bench');
  }

  #as(command: string, ...args: string[]): void {
    const { status, stderr } = spawnSync(
      'setpriv',
      ['--reuid=postgres', '--regid=postgres', '--init-groups', join(this.#bin, command), ...args],
      { encoding: 'utf8', cwd: '/', stdio: ['ignore', 'ignore', 'pipe'] },
    );
    if (status !== 0) throw new Error(`${command}: ${stderr}`);
  }

  /** Transactions per second of pgbench's own mix (TPC-B) by four clients. */
  async transactionsPerSec(seconds: number): Promise<number> {
    this.#as('psql', '-h', this.#mount, '-q', '-c', 'checkpoint', 'bench');
    const { stdout } = await execute(
      'setpriv',
      [
        '--reuid=postgres',
        '--regid=postgres',
        '--init-groups',
        join(this.#bin, 'pgbench'),
        ...['-h', this.#mount, '-n', '-c', '4', '-j', '2', '-T', String(seconds), 'bench'],
      ],
      { cwd: '/' },
    );
    return Number(/tps = ([\d.]+)/.exec(stdout)?.[1]);
  }

  stop(): void {
    spawnSync(
      'setpriv',
      [
        '--reuid=postgres',
        '--regid=postgres',
        '--init-groups',
        join(this.#bin, 'pg_ctl'),
        ...['-D', this.#dir, '-w', '-m', 'immediate', 'stop'],
      ],
      { cwd: '/', stdio: 'ignore' },
    );
    run('umount', this.#mount);
    fs.rmdirSync(this.#mount);
  }
}
