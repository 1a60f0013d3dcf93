import { spawn } from 'node:child_process';
import fs from 'node:fs';
import t from 'tap';
import {
  type BlockReader,
  type Capture,
  type Extent,
  openBlockReader,
} from '../../agent/capture/capture.ts';
import { CaptureLab, firstDifference, MIB, Replayer, run, unable, until } from './capture.lab.ts';

const skip = unable();
const CHUNK = 2 * MIB;

t.setTimeout(240_000);

t.before(() => {
  if (!skip) run('scripts/build-capture');
});

/** Many small and large direct writes at once, overlapping each other, until stopped. */
function hammer(dev: string, sizeBytes: number) {
  const fio = spawn(
    'fio',
    [
      ...['--name=hammer', `--filename=${dev}`, `--size=${sizeBytes}`, '--rw=randwrite'],
      ...['--bsrange=512-128k', '--direct=1', '--ioengine=libaio', '--iodepth=16'],
      ...['--norandommap', '--randseed=7', '--rate=24m', '--time_based', '--runtime=120'],
      ...['--refill_buffers', '--allow_mounted_write=1', '--output=/dev/null'],
    ],
    { stdio: 'ignore' },
  );
  const ended = new Promise<void>((resolve) => fio.once('exit', () => resolve()));
  return async () => {
    fio.kill('SIGINT');
    await ended;
  };
}

/**
 * One read joins the stream as `barrier()` says: behind everything that had landed before it, without the parts
 * that were written since.
 */
async function joinRead(
  capture: Capture,
  reader: BlockReader,
  replay: Replayer,
  fd: number,
  extent: Extent,
  { careless = false } = {},
) {
  const from = replay.records.length;
  const pos = await capture.barrier();
  const { data } = await reader.read(extent.offsetBytes, extent.lengthBytes);
  await until(`the replay to pass ${pos}`, () => replay.endPos >= pos);
  const stale = new Uint8Array(extent.lengthBytes / 512);
  for (const r of careless ? [] : replay.records.slice(from)) {
    if (r.pos < pos || r.lengthBytes === 0) continue;
    const a = Math.max(r.offsetBytes, extent.offsetBytes) - extent.offsetBytes;
    const b = Math.min(r.offsetBytes + r.lengthBytes - extent.offsetBytes, extent.lengthBytes);
    if (b > a) stale.fill(1, a / 512, b / 512);
  }
  for (let s = 0; s < stale.length; ) {
    let e = s + 1;
    while (e < stale.length && stale[e] === stale[s]) e++;
    if (!stale[s]) fs.writeSync(fd, data, s * 512, (e - s) * 512, extent.offsetBytes + s * 512);
    s = e;
  }
}

async function drain(
  capture: Capture,
  reader: BlockReader,
  replay: Replayer,
  fd: number,
): Promise<number> {
  let bytes = 0;
  for (;;) {
    const taken = await capture.takeDirty(0, CHUNK);
    if (taken.length === 0) return bytes;
    for (const extent of taken) {
      await joinRead(capture, reader, replay, fd, extent);
      bytes += extent.lengthBytes;
    }
    await capture.clearDirty(0, taken);
  }
}

t.test('a mirror and a drain under load end byte-identical', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const disk = lab.disk(48);
  // The replica starts empty: every block comes by the mirror or by the stream.
  fs.truncateSync(disk.replica, 0);
  fs.truncateSync(disk.replica, disk.sizeBytes);
  const capture = lab.capture();
  await capture.start([{ index: 0, devicePath: disk.dev, sizeBytes: disk.sizeBytes }], {
    ringBytes: 128 * MIB,
    pinDir: lab.pinDir,
  });
  const replay = new Replayer([disk.replica]);
  const done = replay.follow(capture);
  const stop = hammer(disk.dev, disk.sizeBytes);
  lab.later(stop);
  await until('the load', () => replay.writes > 100);
  const reader = await openBlockReader(disk.dev);
  const fd = fs.openSync(disk.replica, 'r+');
  for (let at = 0; at < disk.sizeBytes; at += CHUNK) {
    await joinRead(capture, reader, replay, fd, { offsetBytes: at, lengthBytes: CHUNK });
  }
  t.same(capture.mode(), { mode: 'ordered' });

  await capture.goTracking();
  const { writes } = await capture.status();
  await until(
    'writes in tracking mode',
    async () => (await capture.status()).writes > writes + 200,
  );
  const resumed = await capture.resumeOrdered();
  t.ok((await drain(capture, reader, replay, fd)) > 0);
  await until('the replay to pass the resumption', () => replay.endPos > resumed);
  const { writes: later } = await capture.status();
  await until('writes after the drain', async () => (await capture.status()).writes > later + 200);
  await stop();
  await capture.barrier();
  await replay.caughtUp(capture);
  await drain(capture, reader, replay, fd);
  const status = await capture.status();
  t.same(status.mode, { mode: 'ordered' });
  t.equal(status.recursionMisses, 0);
  t.ok(replay.batches.filter((b) => b.startPos >= resumed).every((b) => b.order === 'held'));
  t.equal(firstDifference(disk.dev, disk.replica), undefined, 'identical');
  await reader.close();
  fs.closeSync(fd);
  await capture.stop({ unpin: true });
  await done;
  t.equal(replay.error, undefined);
  replay.close();
});

t.test('two CPUs writing large requests: whole records, positions rise', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const disk = lab.disk(64);
  const capture = lab.capture();
  await capture.start([{ index: 0, devicePath: disk.dev, sizeBytes: disk.sizeBytes }], {
    ringBytes: 256 * MIB,
    pinDir: lab.pinDir,
  });
  const replay = new Replayer([disk.replica]);
  const done = replay.follow(capture);
  const half = disk.sizeBytes / 2;
  const fio = spawn(
    'fio',
    [
      ...[`--filename=${disk.dev}`, '--rw=write', '--bs=1m', '--direct=1', `--size=${half}`],
      ...['--ioengine=psync', '--output=/dev/null', '--refill_buffers', '--allow_mounted_write=1'],
      ...['--name=low', '--offset=0', '--name=high', `--offset=${half}`],
    ],
    { stdio: 'ignore' },
  );
  const code = await new Promise((resolve) => fio.once('exit', resolve));
  t.equal(code, 0);
  await replay.caughtUp(capture);
  t.ok(replay.records.every((r, i, all) => i === 0 || r.pos >= all[i - 1]!.pos));
  // 64 writes of 1 MiB, which the queue's limits may split: whole requests, not the ring's 4 KiB pieces.
  t.ok(replay.records.length <= 64 * 8, `${replay.records.length} records`);
  t.same((await capture.status()).drops, [0]);
  t.equal(firstDifference(disk.dev, disk.replica), undefined, 'identical');
  await capture.stop({ unpin: true });
  await done;
  replay.close();
});
