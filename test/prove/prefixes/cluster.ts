/** A PostgreSQL cluster of Debian's package, small enough to be made and recovered in seconds. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { run, runAside, until } from '../../integration/capture.lab.ts';
import { endWithUs } from './child.ts';

const VERSIONS = '/usr/lib/postgresql';

function program(name: string): string {
  const newest = fs
    .readdirSync(VERSIONS)
    .filter((version) => fs.existsSync(join(VERSIONS, version, 'bin/postgres')))
    .sort((a, b) => Number(a) - Number(b))
    .at(-1);
  if (!newest) throw new Error(`no PostgreSQL server below ${VERSIONS}`);
  return join(VERSIONS, newest, 'bin', name);
}

/** Why there is no cluster on this machine, or null. */
export function noPostgres(): string | null {
  try {
    program('postgres');
    run('id', '-u', 'postgres');
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

/** PostgreSQL refuses to run as root. */
const owner = () => ({
  uid: Number(run('id', '-u', 'postgres')),
  gid: Number(run('id', '-g', 'postgres')),
});

/** Make a cluster: page checksums, and WAL segments of 1 MiB so that checkpoints are frequent. */
export async function initCluster(dataDir: string): Promise<void> {
  fs.mkdirSync(dataDir, { mode: 0o700 });
  const { uid, gid } = owner();
  fs.chownSync(dataDir, uid, gid);
  const args = ['-D', dataDir, '-A', 'trust', '-U', 'postgres', '-N', '-k'];
  execFileSync(program('initdb'), [...args, '--wal-segsize=1', '--locale=C', '-E', 'UTF8'], {
    uid,
    gid,
    cwd: '/',
    stdio: ['ignore', 'ignore', 'pipe'],
  });
}

const SETTINGS = {
  listen_addresses: '',
  shared_buffers: '1MB',
  max_connections: '10',
  max_wal_size: '4MB',
  min_wal_size: '2MB',
  checkpoint_timeout: '30s',
  checkpoint_completion_target: '0.1',
  bgwriter_delay: '10ms',
  autovacuum_naptime: '1s',
  fsync: 'on',
  synchronous_commit: 'on',
  full_page_writes: 'on',
};

export class Cluster {
  readonly #dataDir: string;
  /** Holds the socket and the log; not on the disk that is captured. */
  readonly dir: string;
  #server: ChildProcess | undefined;

  constructor(dataDir: string, dir: string) {
    this.#dataDir = dataDir;
    this.dir = dir;
  }

  get log(): string {
    const path = join(this.dir, 'postgres.log');
    return fs.existsSync(path) ? fs.readFileSync(path, 'utf8') : '';
  }

  /**
   * Start, recovering what is there; resolves when it answers.
   * @throws with the end of its log when it gives up
   */
  async start(): Promise<void> {
    fs.mkdirSync(this.dir, { recursive: true });
    const ids = owner();
    fs.chownSync(this.dir, ids.uid, ids.gid);
    const log = fs.openSync(join(this.dir, 'postgres.log'), 'a');
    const settings = Object.entries(SETTINGS).flatMap(([name, value]) => [
      '-c',
      `${name}=${value}`,
    ]);
    const server = spawn(
      program('postgres'),
      ['-D', this.#dataDir, ...settings, '-c', `unix_socket_directories=${this.dir}`],
      { ...ids, cwd: '/', stdio: ['ignore', log, log] },
    );
    fs.closeSync(log);
    endWithUs(server, 'SIGQUIT');
    this.#server = server;
    await until('PostgreSQL to answer', async () => {
      if (server.exitCode !== null || server.signalCode !== null) {
        this.#server = undefined;
        throw new Error(`PostgreSQL did not start:\n${this.log.slice(-3000)}`);
      }
      return runAside('psql', ...this.#psqlArgs('select 1')).then(
        () => true,
        () => false,
      );
    });
  }

  /** SIGINT: disconnect all and shut down in order; SIGQUIT: stop at once, as a crash. */
  async stop(signal: 'SIGINT' | 'SIGQUIT'): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    if (!server || server.exitCode !== null || server.signalCode !== null) return;
    const exit = once(server, 'exit');
    server.kill(signal);
    await exit;
  }

  #psqlArgs(sql: string): string[] {
    return [
      '-X',
      '-q',
      '-A',
      '-t',
      '-v',
      'ON_ERROR_STOP=1',
      '-h',
      this.dir,
      '-U',
      'postgres',
      '-c',
      sql,
    ];
  }

  /** @throws with what the server said */
  sql(sql: string): string {
    return execFileSync('psql', this.#psqlArgs(sql), {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'pipe'],
    }).trim();
  }
}
