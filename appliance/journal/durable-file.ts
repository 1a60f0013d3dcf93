import { mkdir, open, readFile, rename } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';

/** Make the names in a directory durable (a created, renamed or removed file). */
export async function syncDir(dir: string): Promise<void> {
  const handle = await open(dir, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Make a directory, and what is missing above it, so that a crash does not take it away again. */
export async function makeDirDurably(dir: string): Promise<void> {
  const first = await mkdir(dir, { recursive: true, mode: 0o700 });
  // One that is there may have been made by a process that died before it was durable.
  for (let made = resolve(dir); ; made = dirname(made)) {
    await syncDir(dirname(made));
    if (first === undefined || made === first || made === dirname(made)) return;
  }
}

/** Replace a small JSON file so that after a crash it is the old or the new one, whole. */
export async function writeJsonDurably(path: string, value: unknown): Promise<void> {
  const temporary = `${path}.new`;
  const handle = await open(temporary, 'w', 0o600);
  try {
    await handle.writeFile(JSON.stringify(value));
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temporary, path);
  await syncDir(dirname(path));
}

/** The JSON in a file, or undefined if there is no such file. */
export async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8'));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
