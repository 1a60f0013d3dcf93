/** Builds the page for the tests that drive it. */
import { execFile } from 'node:child_process';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';

export const root = join(import.meta.dirname, '../..');
const web = join(root, 'appliance/web');
export const dist = join(web, 'dist');

const newest = (path: string): number =>
  statSync(path).isDirectory()
    ? Math.max(0, ...readdirSync(path).map((name) => newest(join(path, name))))
    : statSync(path).mtimeMs;

/** Builds the page unless what is built is newer than its source. */
export async function buildPage(): Promise<void> {
  const sources = [
    ...['src', 'public', 'index.html', 'vite.config.ts', 'package.json'].map((name) =>
      join(web, name),
    ),
    join(root, 'protocol/errors.ts'),
  ];
  const built = join(dist, 'index.html');
  if (existsSync(built) && statSync(built).mtimeMs > Math.max(...sources.map(newest))) return;
  await promisify(execFile)(
    process.execPath,
    [join(web, 'node_modules/vite/bin/vite.js'), 'build', '--logLevel', 'warn'],
    { cwd: web },
  );
}
