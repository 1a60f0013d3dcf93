/** Real MariaDB servers, and somebody who writes to one all the time. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createInterface } from 'node:readline';
import { run, runAside } from './capture.lab.ts';
import { until } from './stream.lab.ts';

/** Why there is none, or false. The packages of the server's programs alone bring no user and no service. */
export const noMariaDb = (): string | false =>
  fs.existsSync('/usr/sbin/mariadbd') && fs.existsSync('/usr/bin/mariadb-install-db')
    ? false
    : 'needs a MariaDB server';

export const SERVER_USER = 'nobody';

/** As on a server: root logs in by the socket, without a password. */
export async function installMariaDb(data: string): Promise<void> {
  fs.mkdirSync(data, { mode: 0o700 });
  run('chown', SERVER_USER, data);
  await runAside(
    'mariadb-install-db',
    '--no-defaults',
    `--user=${SERVER_USER}`,
    `--datadir=${data}`,
    '--skip-test-db',
    '--skip-name-resolve',
    '--innodb-log-file-size=8M',
  );
}

export const serverOptions = (data: string, socket: string): string[] => [
  '--no-defaults',
  `--user=${SERVER_USER}`,
  `--datadir=${data}`,
  `--socket=${socket}`,
  `--pid-file=${socket}.pid`,
  '--skip-networking',
  '--skip-name-resolve',
  '--innodb-buffer-pool-size=16M',
  // A table that was not closed is to be seen, not mended in silence.
  '--myisam-recover-options=OFF',
];

export class MariaDb {
  readonly socket: string;
  readonly #child: ChildProcess;

  private constructor(socket: string, child: ChildProcess) {
    this.socket = socket;
    this.#child = child;
  }

  static async serve(
    lab: { later(undo: () => unknown): void },
    data: string,
    socket: string,
  ): Promise<MariaDb> {
    const log = fs.openSync(`${data}/log`, 'a');
    const child = spawn('/usr/sbin/mariadbd', serverOptions(data, socket), {
      stdio: ['ignore', log, log],
    });
    fs.closeSync(log);
    lab.later(() => child.kill('SIGKILL'));
    const server = new MariaDb(socket, child);
    await until(
      'the MariaDB server',
      () => {
        if (child.exitCode !== null) throw new Error(fs.readFileSync(`${data}/log`, 'utf8'));
        return spawnSync('mariadb', server.client('-e', 'DO 1')).status === 0;
      },
      60_000,
    );
    return server;
  }

  client = (...args: string[]): string[] => [
    '--no-defaults',
    `--socket=${this.socket}`,
    '--batch',
    '--skip-column-names',
    ...args,
  ];

  sql = (text: string): string => run('mariadb', ...this.client('-e', text)).trim();

  async stop(): Promise<void> {
    this.#child.kill('SIGTERM');
    await until('the MariaDB server to end', () => this.#child.exitCode !== null, 60_000);
  }
}

/** Inserts the same number into an InnoDB and a MyISAM table, one after the other, each only when the last is answered. */
export class Writer {
  /** The last number for which both tables have answered. */
  acked = 0;
  #longestMs = 0;
  #lastAt = performance.now();

  constructor(lab: { later(undo: () => unknown): void }, server: MariaDb) {
    server.sql(
      'CREATE DATABASE lab; CREATE TABLE lab.ledger (n INT PRIMARY KEY) ENGINE=InnoDB;' +
        'CREATE TABLE lab.moved (n INT PRIMARY KEY) ENGINE=MyISAM',
    );
    const child = spawn('mariadb', server.client('--unbuffered', 'lab'), {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    let ended = false;
    lab.later(() => {
      ended = true;
      child.kill('SIGKILL');
    });
    child.stdin.on('error', () => {});
    const next = () => {
      const n = this.acked + 1;
      if (!ended)
        child.stdin.write(
          `INSERT INTO ledger VALUES (${n}); INSERT INTO moved VALUES (${n}); SELECT ${n};\n`,
        );
    };
    createInterface({ input: child.stdout }).on('line', (line) => {
      this.acked = Number(line);
      this.#longestMs = this.longestMs();
      this.#lastAt = performance.now();
      setTimeout(next, 3);
    });
    next();
  }

  /** The longest time without an answer, the one that lasts counted in, since this was last called with true. */
  longestMs(anew = false): number {
    const longest = Math.max(this.#longestMs, performance.now() - this.#lastAt);
    if (anew) {
      this.#longestMs = 0;
      this.#lastAt = performance.now();
    }
    return longest;
  }

  /** Resolves when so many more rows were taken. */
  async goesOn(rows: number, limitMs: number): Promise<void> {
    const wanted = this.acked + rows;
    await until(`${rows} more rows`, () => this.acked >= wanted, limitMs);
  }
}
