/** Loop devices, replicas by replay, and cleaning up: what the capture tests share. */
import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import {
  type Capture,
  type CaptureBatch,
  type CaptureRecord,
  createCapture,
  openBlockReader,
} from '../../agent/capture/capture.ts';
import { random } from '../random.ts';

export { random };

export const MIB = 1024 * 1024;
/** Of a loop device, unless somebody has set another one. */
const MAX_REQUEST_KIB = 1280;

export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });
}

/** Leaves the event loop free, for what the capture's consumer must keep up with. */
export async function runAside(command: string, ...args: string[]): Promise<void> {
  await promisify(execFile)(command, args);
}

/** Why the capture cannot be tested on this machine, or false. */
export function unable(): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  if (!fs.existsSync('/sys/kernel/btf/vmlinux')) return 'the kernel has no BTF';
  if (!fs.existsSync('/dev/loop-control')) return 'the kernel has no loop devices';
  return false;
}

export async function until(what: string, condition: () => unknown, limitMs = 60_000) {
  const end = Date.now() + limitMs;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${limitMs} ms for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

type TestLike = { teardown: (fn: () => unknown) => void };
let labs = 0;
const open = new Set<CaptureLab>();
process.on('exit', () => {
  for (const lab of open) lab.cleanUpNow();
});
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  process.on(signal, () => process.exit(1));
}

/** A tmpfs of its own with loop devices on it; everything goes when the test ends, however it ends. */
export class CaptureLab {
  readonly dir: string;
  readonly pinDir: string;
  readonly captures: Capture[] = [];
  #undo: (() => unknown)[] = [];

  constructor(t: TestLike, sizeMiB = 512) {
    this.dir = fs.mkdtempSync(join(tmpdir(), 'capture-test-'));
    this.pinDir = `/sys/fs/bpf/understudy-test-${process.pid}-${labs++}`;
    run('mount', '-t', 'tmpfs', '-o', `size=${sizeMiB}m`, 'tmpfs', this.dir);
    open.add(this);
    t.teardown(() => this.#cleanUp());
  }

  later(undo: () => unknown) {
    this.#undo.push(undo);
  }

  async #cleanUp() {
    if (!open.has(this)) return;
    for (const capture of this.captures) {
      // One that hangs must not keep the rest from being cleaned up.
      const limit = new Promise((resolve) => setTimeout(resolve, 5000).unref());
      await Promise.race([capture.stop({ unpin: true }).catch(() => {}), limit]);
    }
    this.cleanUpNow();
  }

  /** The last resort too, when the process ends in the middle of a test. */
  cleanUpNow() {
    open.delete(this);
    const attempt = (undo: () => unknown) => {
      try {
        undo();
      } catch (error) {
        console.error(`# clean-up: ${error}`);
      }
    };
    for (const pid of childrenWith(this.pinDir)) attempt(() => process.kill(pid, 'SIGKILL'));
    attempt(() => fs.rmSync(this.pinDir, { recursive: true, force: true }));
    for (const undo of this.#undo.reverse()) attempt(undo);
    attempt(() => run('umount', '-l', this.dir));
    attempt(() => fs.rmdirSync(this.dir));
  }

  capture(): Capture {
    const capture = createCapture();
    this.captures.push(capture);
    return capture;
  }

  /** A loop device over a file of random bytes (or of a hole), and a copy of the file: the replica's start. */
  disk(
    sizeMiB: number,
    {
      random = true,
      dir = this.dir,
      losetup = [] as string[],
      maxRequestKiB = MAX_REQUEST_KIB,
    } = {},
  ) {
    const file = join(dir, `disk-${this.#undo.length}.img`);
    const replica = join(this.dir, `replica-${this.#undo.length}.img`);
    fs.writeFileSync(file, '');
    fs.truncateSync(file, sizeMiB * MIB);
    if (random) run('dd', 'if=/dev/urandom', `of=${file}`, 'bs=1M', 'count=4', 'conv=notrunc');
    run('cp', '--sparse=always', file, replica);
    const dev = run('losetup', '-f', '--show', ...losetup, file).trim();
    // A loop device keeps the limit that its last user has set.
    const limit = (kib: number) =>
      fs.writeFileSync(`/sys/block/${basename(dev)}/queue/max_sectors_kb`, String(kib));
    this.later(() => {
      limit(MAX_REQUEST_KIB);
      run('losetup', '-d', dev);
    });
    limit(maxRequestKiB);
    return { dev, file, replica, sizeBytes: sizeMiB * MIB };
  }

  mount(dev: string, ...options: string[]): string {
    const at = fs.mkdtempSync(join(this.dir, 'mnt-'));
    run('mount', ...options, dev, at);
    this.later(() => {
      if (fs.readFileSync('/proc/mounts', 'utf8').includes(` ${at} `)) run('umount', '-l', at);
    });
    return at;
  }
}

/** Applies a captured stream to files; batches come in the background once `follow` is called. */
export class Replayer {
  readonly records: CaptureRecord[] = [];
  readonly batches: { startPos: bigint; endPos: bigint; order: string; gapBefore?: boolean }[] = [];
  endPos = 0n;
  writes = 0;
  /** Called for each batch after it was applied. */
  onBatch: (batch: CaptureBatch) => void = () => {};
  error: unknown;
  #fds: number[];

  constructor(replicas: string[]) {
    this.#fds = replicas.map((path) => fs.openSync(path, 'r+'));
  }

  apply(batch: CaptureBatch) {
    for (const r of batch.records) {
      if (r.offsetBytes % 512 || r.lengthBytes % 512) throw new Error('a record is not of sectors');
      const fd = this.#fds[r.disk];
      if (r.kind === 'write' && r.data && fd !== undefined) {
        fs.writeSync(fd, r.data, 0, r.lengthBytes, r.offsetBytes);
        this.writes++;
      }
      if (r.kind === 'zero' && fd !== undefined) {
        for (let at = 0; at < r.lengthBytes; at += MIB) {
          const n = Math.min(MIB, r.lengthBytes - at);
          fs.writeSync(fd, Buffer.alloc(n), 0, n, r.offsetBytes + at);
        }
      }
      this.records.push({ ...r, data: undefined });
    }
    const { startPos, endPos, order, gapBefore } = batch;
    this.batches.push({ startPos, endPos, order, gapBefore });
    this.endPos = endPos;
    this.onBatch(batch);
  }

  follow(capture: Capture, release = true): Promise<void> {
    return (async () => {
      try {
        for await (const batch of capture.batches()) {
          this.apply(batch);
          if (release) capture.release(batch.endPos);
        }
      } catch (error) {
        this.error = error;
      }
    })();
  }

  /** Waits until all that is in the ring now has been applied. */
  async caughtUp(capture: Capture) {
    const { producerPos } = await capture.status();
    await until(`the replay to reach ${producerPos}`, () => {
      if (this.error) throw this.error;
      return this.endPos >= producerPos;
    });
  }

  async copyExtents(
    dev: string,
    replica: number,
    extents: { offsetBytes: number; lengthBytes: number }[],
  ) {
    const fd = this.#fds[replica] as number;
    const reader = await openBlockReader(dev);
    for (const e of extents) {
      for (let at = 0; at < e.lengthBytes; at += MIB) {
        const n = Math.min(MIB, e.lengthBytes - at);
        const { data } = await reader.read(e.offsetBytes + at, n);
        fs.writeSync(fd, data, 0, n, e.offsetBytes + at);
      }
    }
    await reader.close();
  }

  close() {
    for (const fd of this.#fds) fs.closeSync(fd);
  }
}

/** Offset of the first 4 KiB block in which device and replica differ, or undefined. */
export function firstDifference(dev: string, replica: string): number | undefined {
  run('sync');
  run('blockdev', '--flushbufs', dev);
  const a = fs.openSync(dev, 'r');
  const b = fs.openSync(replica, 'r');
  const size = fs.fstatSync(b).size;
  const x = Buffer.alloc(MIB);
  const y = Buffer.alloc(MIB);
  let found: number | undefined;
  for (let at = 0; at < size && found === undefined; at += MIB) {
    const n = fs.readSync(a, x, 0, MIB, at);
    fs.readSync(b, y, 0, MIB, at);
    if (x.subarray(0, n).equals(y.subarray(0, n))) continue;
    for (let i = 0; i < n && found === undefined; i += 4096) {
      if (!x.subarray(i, i + 4096).equals(y.subarray(i, i + 4096))) found = at + i;
    }
  }
  fs.closeSync(a);
  fs.closeSync(b);
  return found;
}

/** Pids of this process's children whose command line has `word` in it. */
export function childrenWith(word: string): number[] {
  const pids: number[] = [];
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    try {
      const stat = fs.readFileSync(`/proc/${name}/stat`, 'utf8');
      const parent = Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]);
      const line = fs.readFileSync(`/proc/${name}/cmdline`, 'utf8');
      if (parent === process.pid && line.includes(word)) pids.push(Number(name));
    } catch {
      // It ended while we looked.
    }
  }
  return pids;
}

/** O_DIRECT writes of random data through dd: Node cannot align its buffers. */
export function directWrite(
  dev: string,
  offsetBytes: number,
  lengthBytes: number,
  block = 4096,
): Promise<void> {
  return runAside(
    'dd',
    'if=/dev/urandom',
    `of=${dev}`,
    `bs=${block}`,
    `count=${Math.ceil(lengthBytes / block)}`,
    `seek=${offsetBytes}`,
    'iflag=fullblock',
    'oflag=direct,seek_bytes',
    'conv=notrunc',
    'status=none',
  );
}

/** Buffered and direct writes, discards and zeroing, on the bare device and in an ext4 on it. */
export async function mixedWorkload(
  lab: CaptureLab,
  dev: string,
  sizeBytes: number,
  seed: number,
): Promise<void> {
  const next = random(seed);
  for (let i = 0; i < 12; i++) {
    const offset = next(sizeBytes / 4096 - 1024) * 4096;
    const kind = next(4);
    if (kind === 0) await directWrite(dev, offset, (1 + next(1024)) * 1024, 512 * (1 + next(16)));
    if (kind === 1) await directWrite(dev, offset, 4 * MIB, MIB);
    if (kind === 2)
      await runAside('blkdiscard', '-o', String(offset), '-l', String(4096 * (1 + next(512))), dev);
    if (kind === 3) await runAside('blkdiscard', '-z', '-o', String(offset), '-l', '131072', dev);
  }
  await runAside('mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=0', dev);
  const at = lab.mount(dev, '-o', 'discard');
  for (let i = 0; i < 60; i++) {
    const path = join(at, `file-${next(25)}`);
    const kind = next(5);
    if (kind === 0) fs.rmSync(path, { force: true });
    else if (kind === 1) fs.appendFileSync(path, Buffer.alloc(next(300_000), next(256)));
    else {
      const fd = fs.openSync(path, 'w');
      fs.writeSync(fd, Buffer.alloc(1 + next(2 * MIB), 1 + next(255)));
      if (kind === 2) fs.fsyncSync(fd);
      fs.closeSync(fd);
    }
    if (i === 30) await runAside('fstrim', at);
  }
  await runAside('umount', at);
}
