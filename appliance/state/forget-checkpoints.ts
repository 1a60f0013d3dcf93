import type { DatabaseSync } from 'node:sqlite';

/**
 * For a state of an earlier time that takes the place of a later one. What it says of the layers below the replica
 * disks is as old as itself: layers were merged and made since, and a checkpoint taken for what it no longer is would be
 * a false point. New ones are made at once; history goes on.
 * @param db of any schema, also one from before there were checkpoints
 */
export function forgetCheckpoints(db: DatabaseSync): void {
  const tables = db
    .prepare(
      "SELECT name FROM sqlite_schema WHERE name IN ('checkpoint_references', 'checkpoints')",
    )
    .all() as Array<{ name: string }>;
  for (const name of ['checkpoint_references', 'checkpoints']) {
    if (tables.some((table) => table.name === name)) db.exec(`DELETE FROM ${name}`);
  }
}
