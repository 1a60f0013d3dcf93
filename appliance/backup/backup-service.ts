/**
 * Backup and restore of the appliance's configuration: state file, certificate authority, secrets key. Not the
 * replica disks and not the journals: those stay where they are. After a restore every stream compares its journal's
 * identity and last acknowledged frame with its agent, as at any start; whatever does not match is mirrored by
 * difference.
 *
 * A restore never touches the running state. It leaves a complete, checked folder beside it and asks for a restart;
 * the start swaps the folder in before anything is opened (`swapInRestore`).
 */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { undError } from '../../protocol/errors.ts';
import { VERSION } from '../../protocol/version.ts';
import { SecretBox } from '../auth/secret-box.ts';
import { CertificateAuthority } from '../identity/certificate-authority.ts';
import { type Database, SCHEMA_VERSION } from '../state/database.ts';
import { syncPath, writeFileDurably } from '../state/files.ts';
import { forgetCheckpoints } from '../state/forget-checkpoints.ts';
import { openBackup, sealBackup } from './backup-file.ts';

/** What a backup holds, by its path in the data folder. */
const FILES = [
  { path: 'secrets.key', mode: 0o600 },
  { path: 'ca/ca.pem', mode: 0o644 },
  { path: 'ca/ca.key.sealed', mode: 0o600 },
] as const;
const STATE = 'state.db';
const PENDING = 'restore.pending';
const SWAPPED = [STATE, 'secrets.key', 'ca'] as const;

const Content = Type.Object({
  product: Type.Literal('understudy-appliance'),
  version: Type.String({ maxLength: 64 }),
  schemaVersion: Type.Integer({ minimum: 1 }),
  madeAt: Type.String({ maxLength: 64 }),
  files: Type.Record(Type.String(), Type.String()),
});

export class BackupService {
  readonly #dataDir: string;
  readonly #db: Database;
  readonly #restart: () => void;
  readonly #log2N: number | undefined;

  /** @param options.restart asked for once a restore is in place; the service manager starts the program again */
  constructor(options: { dataDir: string; db: Database; restart: () => void; log2N?: number }) {
    this.#dataDir = options.dataDir;
    this.#db = options.db;
    this.#restart = options.restart;
    this.#log2N = options.log2N;
  }

  /** The encrypted backup. The state is taken as one consistent copy while the appliance works on. */
  async create(passphrase: string): Promise<Buffer> {
    const copy = join(this.#dataDir, 'backup.tmp.db');
    rmSync(copy, { force: true });
    const files: Record<string, string> = {};
    try {
      this.#db.prepare('VACUUM INTO ?').run(copy);
      // Sessions are of no use elsewhere, and a backup that leaks must not be a login.
      const trimmed = new DatabaseSync(copy);
      trimmed.exec('DELETE FROM sessions; DELETE FROM enrol_tokens; VACUUM;');
      trimmed.close();
      files[STATE] = readFileSync(copy).toString('base64');
    } finally {
      rmSync(copy, { force: true });
    }
    for (const { path } of FILES) {
      files[path] = readFileSync(join(this.#dataDir, path)).toString('base64');
    }
    const content: Static<typeof Content> = {
      product: 'understudy-appliance',
      version: VERSION,
      schemaVersion: SCHEMA_VERSION,
      madeAt: new Date().toISOString(),
      files,
    };
    return sealBackup(content, passphrase, this.#log2N);
  }

  /**
   * Checks a backup to the last part, leaves it for the next start and asks for that.
   * @throws UND_BACKUP_INVALID, UND_BACKUP_VERSION, UND_BACKUP_DAMAGED
   */
  async restore(file: Buffer, passphrase: string): Promise<void> {
    await stageRestore(this.#dataDir, file, passphrase);
    this.#restart();
  }
}

/** As `BackupService.restore`, without a running appliance: the next start swaps it in. */
export async function stageRestore(
  dataDir: string,
  file: Buffer,
  passphrase: string,
): Promise<void> {
  const content = await openBackup(file, passphrase);
  if (!Value.Check(Content, content)) {
    throw undError('UND_BACKUP_INVALID', { reason: 'its content is not that of a backup' });
  }
  if (content.schemaVersion > SCHEMA_VERSION) {
    throw undError('UND_BACKUP_VERSION', { version: content.version, supported: VERSION });
  }
  const staging = join(dataDir, 'restore.staging');
  rmSync(staging, { recursive: true, force: true });
  mkdirSync(join(staging, 'ca'), { recursive: true, mode: 0o700 });
  try {
    for (const { path, mode } of [...FILES, { path: STATE, mode: 0o600 }]) {
      const part = content.files[path];
      if (part === undefined)
        throw undError('UND_BACKUP_INVALID', { reason: `${path} is missing` });
      writeFileDurably(join(staging, path), Buffer.from(part, 'base64'), mode);
    }
    checkState(join(staging, STATE));
    // Layers were merged and made since the backup. New checkpoints are made at once, and history goes on.
    const state = new DatabaseSync(join(staging, STATE));
    try {
      forgetCheckpoints(state);
    } finally {
      state.close();
    }
    // Proves that key and authority belong together before they take the place of those that do.
    const box = SecretBox.open(join(staging, 'secrets.key'));
    await CertificateAuthority.open(join(staging, 'ca'), box).catch((cause) => {
      throw undError('UND_BACKUP_INVALID', { reason: 'its keys do not fit together' }, { cause });
    });
    const pending = join(dataDir, PENDING);
    rmSync(pending, { recursive: true, force: true });
    renameSync(staging, pending);
    syncPath(dataDir);
  } finally {
    rmSync(staging, { recursive: true, force: true });
  }
}

function checkState(path: string): void {
  let problem: string | null = null;
  try {
    const db = new DatabaseSync(path, { readOnly: true });
    try {
      const row = db.prepare('PRAGMA integrity_check').get() as { integrity_check: string };
      if (row.integrity_check !== 'ok') problem = row.integrity_check;
      db.prepare('SELECT count(*) FROM users').get();
    } finally {
      db.close();
    }
  } catch (error) {
    problem = (error as Error).message;
  }
  if (problem) throw undError('UND_BACKUP_INVALID', { reason: `its state file: ${problem}` });
}

/**
 * Puts a restore that waits into place; call it before the state is opened. What was there before is kept in
 * `before-restore/`. Interrupted at any point, the next call goes on: each part is moved by one rename.
 * @param beforeEach called before each rename: a test dies there
 * @returns true when there was one
 */
export function swapInRestore(dataDir: string, beforeEach: () => void = () => {}): boolean {
  const move = (from: string, to: string) => {
    beforeEach();
    renameSync(from, to);
  };
  const pending = join(dataDir, PENDING);
  const doing = join(dataDir, 'restore.doing');
  if (!existsSync(doing)) {
    if (!existsSync(pending)) return false;
    rmSync(join(dataDir, 'before-restore'), { recursive: true, force: true });
    mkdirSync(join(dataDir, 'before-restore'), { mode: 0o700 });
    move(pending, doing);
    syncPath(dataDir);
  }
  for (const name of SWAPPED) {
    const next = join(doing, name);
    if (!existsSync(next)) continue;
    const now = join(dataDir, name);
    const kept = join(dataDir, 'before-restore', name);
    if (existsSync(now) && !existsSync(kept)) move(now, kept);
    if (name === STATE) {
      for (const suffix of ['-wal', '-shm']) {
        const side = `${now}${suffix}`;
        if (existsSync(side) && !existsSync(`${kept}${suffix}`)) move(side, `${kept}${suffix}`);
        rmSync(side, { force: true });
      }
    }
    rmSync(now, { recursive: true, force: true });
    move(next, now);
    syncPath(dataDir);
  }
  rmSync(doing, { recursive: true, force: true });
  syncPath(dirname(doing));
  return true;
}
