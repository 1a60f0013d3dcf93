/** Folders, loop devices and fio jobs of the bench `recovery`; everything goes with `close`. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { type Medium, makeKey, run } from './lab.ts';
import type { Write } from './made-stream.ts';

const execute = promisify(execFile);
const ROOT = join(import.meta.dirname, '../..');

export class RecoveryLab {
  readonly dir: string;
  readonly pem: string;
  #undo: Array<() => void> = [];
  #names = 0;
  readonly #onExit = () => this.close();

  /** @param memoryMiB of the medium in memory */
  constructor(medium: Medium, memoryMiB: number) {
    fs.mkdirSync(join(ROOT, 'build/bench'), { recursive: true });
    this.dir = fs.mkdtempSync(join(ROOT, 'build/bench/recovery-'));
    process.on('exit', this.#onExit);
    if (medium === 'memory') {
      run('mount', '-t', 'tmpfs', '-o', `size=${memoryMiB}m`, 'tmpfs', this.dir);
      this.later(() => run('umount', '-l', this.dir));
    }
    this.pem = makeKey(this.dir);
  }

  /** A path that nothing has yet. */
  path(name: string): string {
    return join(this.dir, `${name}-${++this.#names}`);
  }

  /** @returns does it now, and not later */
  later(undo: () => void): () => void {
    this.#undo.push(undo);
    return () => {
      const at = this.#undo.indexOf(undo);
      if (at >= 0) this.#undo.splice(at, 1);
      undo();
    };
  }

  /** A block device over an allocated file, past the page cache of the file system below where there is a disk. */
  loop(sizeBytes: number, medium: Medium): { dev: string; free(): void } {
    const file = this.path('disk');
    run('fallocate', '-l', String(sizeBytes), file);
    const direct = `--direct-io=${medium === 'disk' ? 'on' : 'off'}`;
    const dev = run('losetup', '-f', '--show', direct, file).trim();
    let there = true;
    const free = () => {
      if (!there) return;
      there = false;
      run('losetup', '-d', dev);
      fs.rmSync(file);
    };
    this.later(free);
    return { dev, free };
  }

  remove(path: string): void {
    run('rm', '-rf', '--one-file-system', path);
  }

  close(): void {
    process.off('exit', this.#onExit);
    for (const undo of this.#undo.splice(0).reverse()) {
      try {
        undo();
      } catch (error) {
        console.error(`# clean-up: ${error}`);
      }
    }
    run('rm', '-rf', '--one-file-system', this.dir);
  }
}

async function fioSeconds(args: readonly string[]): Promise<number> {
  const { stdout } = await execute('fio', [
    ...['--name=bench', '--output-format=json', '--buffer_compress_percentage=50'],
    ...args,
  ]);
  return JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0].job_runtime / 1000 || 0.001;
}

/** What a folder's disk takes in one piece, in bytes per second: a new file in large direct writes, flushed at the end. */
export async function sequentialLimit(
  path: string,
  bytes: number,
  medium: Medium,
): Promise<number> {
  const seconds = await fioSeconds([
    ...[`--filename=${path}`, '--rw=write', '--bs=1M', `--size=${bytes}`, '--end_fsync=1'],
    // Memory knows no direct writes.
    ...(medium === 'disk' ? ['--direct=1', '--ioengine=libaio', '--iodepth=8'] : []),
  ]);
  fs.rmSync(path);
  return bytes / seconds;
}

/** The same writes in the same order by fio, through the page cache as apply does, and one flush; in seconds. */
export async function sameWrites(
  dev: string,
  writes: readonly Write[],
  log: string,
): Promise<number> {
  const lines = writes.map(
    ({ offsetBytes, lengthBytes }) => `${dev} write ${offsetBytes} ${lengthBytes}`,
  );
  fs.writeFileSync(
    log,
    `${['fio version 2 iolog', `${dev} add`, `${dev} open`, ...lines, `${dev} datasync 0 0`, `${dev} close`].join('\n')}\n`,
  );
  const seconds = await fioSeconds([`--read_iolog=${log}`, '--ioengine=psync']);
  fs.rmSync(log);
  return seconds;
}
