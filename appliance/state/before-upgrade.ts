/**
 * The way back from an upgrade. A version that has to change the form of the state leaves a copy of it as it was, and
 * takes that away once it has answered somebody: until then nobody relies on the new version. If it never comes so far
 * and the system before it is started again (`scripts/deploy --upgrade` does that), that one takes the copy.
 */
import { existsSync, linkSync, renameSync, rmSync } from 'node:fs';
import { dirname } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { syncPath } from './files.ts';
import { forgetCheckpoints } from './forget-checkpoints.ts';

const copyOf = (path: string) => `${path}.before-upgrade`;
/** The state that was given up for the copy: for a person who wants to know why. */
const givenUp = (path: string) => `${path}.given-up`;
const sides = (path: string) => [`${path}-wal`, `${path}-shm`];

/** The schema version of the state in a file; 0 for a new one. */
export function schemaVersion(db: DatabaseSync): number {
  return (db.prepare('PRAGMA user_version').get() as { user_version: number }).user_version;
}

/**
 * Leaves a copy of the state, durably, before its form is changed. One that is there already stays: it is of an
 * upgrade that nobody has relied on, or this very one was interrupted half-way through its changes.
 */
export function keepBeforeUpgrade(db: DatabaseSync, path: string): void {
  if (existsSync(copyOf(path))) return;
  const unfinished = `${copyOf(path)}.new`;
  for (const file of [unfinished, ...sides(unfinished)]) rmSync(file, { force: true });
  db.prepare('VACUUM INTO ?').run(unfinished);
  syncPath(unfinished);
  renameSync(unfinished, copyOf(path));
  syncPath(dirname(path));
}

/**
 * Puts the copy in the place of a state that is too new for this version. What it says of checkpoints is forgotten:
 * the newer version may have made and merged some. Interrupted at any point, the next call does it again.
 * @param known the newest schema that this version can read
 * @returns false when there is no copy that this version can read; then nothing was changed
 */
export function takeBack(path: string, known: number): boolean {
  const copy = copyOf(path);
  if (!existsSync(copy)) return false;
  const old = new DatabaseSync(copy);
  try {
    if (schemaVersion(old) > known) return false;
    forgetCheckpoints(old);
  } finally {
    old.close();
  }
  // The newer state was closed, so all of it is in its file. A side file that stayed would be taken for the copy's.
  for (const file of sides(path)) rmSync(file, { force: true });
  rmSync(givenUp(path), { force: true });
  linkSync(path, givenUp(path));
  syncPath(dirname(path));
  renameSync(copy, path);
  syncPath(dirname(path));
  return true;
}

/** From now on there is no way back to the version before: somebody relies on this one. */
export function upgradeAccepted(path: string): void {
  if (!existsSync(copyOf(path))) return;
  rmSync(copyOf(path));
  syncPath(dirname(path));
}
