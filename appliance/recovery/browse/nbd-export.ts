/**
 * Whole disks of a point over NBD, read-only, by qemu-nbd: one process and one port per disk. TLS in both directions with
 * certificates of this export alone (`identity/export-identity.ts`).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { undError } from '../../../protocol/errors.ts';
import type { NbdExport } from '../../api/schema.ts';
import { type ExportIdentity, exportIdentity } from '../../identity/export-identity.ts';
import { ISOLATED_ENV } from '../prepare-guest/isolation.ts';
import type { PrepareProgram } from '../prepare-guest/programs.ts';
import type { ServeRequest } from '../types.ts';

/** NBD's own port and those behind it. */
const FIRST_PORT = 10_809;
const PORTS = 100;
const READY_LIMIT_MS = 60_000;
const CLIENTS = 8;
const SLACK_MS = 24 * 3_600_000;

export interface NbdOptions {
  /** What is bound: as the appliance itself listens. */
  bind: string;
  /** At which clients reach the appliance. */
  addresses(): string[];
}

/** It may read the disk that root owns, and nothing that root is more than others by. */
export const NBD_LEASH = [
  'setpriv' satisfies PrepareProgram,
  '--pdeathsig',
  'KILL',
  '--no-new-privs',
  '--bounding-set=-all',
  '--inh-caps=-all',
  '--',
];

export class NbdExports {
  readonly exports: NbdExport[] = [];
  readonly identity: ExportIdentity;
  readonly #children = new Map<ChildProcess, Promise<void>>();
  #closing = false;

  private constructor(identity: ExportIdentity) {
    this.identity = identity;
  }

  /**
   * Exports every disk. What it began is ended when it fails.
   * @throws UND_MOUNT_FAILED
   */
  static async open(
    request: ServeRequest,
    options: NbdOptions,
    signal: AbortSignal,
  ): Promise<NbdExports> {
    const addresses = options.addresses();
    const lifeMs = request.keepMinutes * 60_000 + SLACK_MS;
    const all = new NbdExports(await exportIdentity(addresses, lifeMs));
    const folder = mkdtempSync(join(tmpdir(), 'und-nbd-'));
    try {
      const { caPem, server } = all.identity;
      for (const [name, pem] of [
        ['ca-cert.pem', caPem],
        ['server-cert.pem', server.certPem],
        ['server-key.pem', server.keyPem],
      ] as const) {
        writeFileSync(join(folder, name), pem, { mode: 0o600 });
      }
      let next = FIRST_PORT;
      for (const disk of request.disks) {
        const port = await all.#serve(disk, next, folder, { request, options, signal });
        next = port + 1;
        const { sourceName: name, sizeBytes } = disk;
        all.exports.push({ addresses, port, name, disk: name, sizeBytes });
      }
      return all;
    } catch (error) {
      await all.close();
      throw error;
    } finally {
      // Read once, at the start.
      rmSync(folder, { recursive: true, force: true });
    }
  }

  async close(): Promise<void> {
    this.#closing = true;
    for (const child of this.#children.keys()) child.kill('SIGKILL');
    await Promise.all(this.#children.values());
  }

  async #serve(
    disk: ServeRequest['disks'][number],
    from: number,
    folder: string,
    how: { request: ServeRequest; options: NbdOptions; signal: AbortSignal },
  ): Promise<number> {
    let why = 'no port is free';
    for (let port = from; port < FIRST_PORT + PORTS; port++) {
      if (!(await isFree(port, how.options.bind))) continue;
      const failed = await this.#start(disk, port, folder, how);
      if (failed === null) return port;
      why = failed;
      // Somebody may have taken the port between the look and the start.
      if (!/in use/i.test(failed)) break;
    }
    throw undError('UND_MOUNT_FAILED', { reason: `${disk.sourceName}: ${why}` });
  }

  /** Null when it serves; else why it does not. */
  async #start(
    disk: ServeRequest['disks'][number],
    port: number,
    folder: string,
    {
      request,
      options,
      signal,
    }: { request: ServeRequest; options: NbdOptions; signal: AbortSignal },
  ): Promise<string | null> {
    const pidFile = join(folder, `${port}.pid`);
    const [program = '', ...leash] = NBD_LEASH;
    const child = spawn(
      program,
      [
        ...leash,
        'qemu-nbd' satisfies PrepareProgram,
        '--object',
        `tls-creds-x509,id=tls,dir=${folder},endpoint=server,verify-peer=yes`,
        '--tls-creds=tls',
        '--read-only',
        '--persistent',
        '--format=raw',
        '--cache=none',
        `--shared=${CLIENTS}`,
        `--bind=${options.bind}`,
        `--port=${port}`,
        `--export-name=${disk.sourceName}`,
        `--pid-file=${pidFile}`,
        disk.devicePath,
      ],
      { stdio: ['ignore', 'ignore', 'pipe'], env: ISOLATED_ENV },
    );
    let said = '';
    let serves = false;
    let ended: string | null = null;
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      said = (said + text).slice(-2000);
    });
    const end = new Promise<void>((resolve) => {
      child.on('error', (error) => {
        if (child.pid !== undefined) return;
        ended = error.message;
        resolve();
      });
      child.on('close', (code, killed) => {
        this.#children.delete(child);
        ended = said.trim().split('\n').at(-1) || `it ended with ${killed ?? code}`;
        resolve();
        if (serves && !this.#closing) request.onGone(`The export has ended: ${ended}.`);
      });
    });
    this.#children.set(child, end);
    const limit = Date.now() + READY_LIMIT_MS;
    // Written when it listens.
    while (ended === null && !existsSync(pidFile)) {
      if (signal.aborted || Date.now() > limit) {
        child.kill('SIGKILL');
        await end;
        return signal.aborted ? 'it was interrupted' : 'it did not start in time';
      }
      await pause(20);
    }
    serves = ended === null;
    return ended;
  }
}

const isFree = (port: number, host: string): Promise<boolean> =>
  new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen({ port, host }, () => server.close(() => resolve(true)));
  });
