import { type FileHandle, mkdtemp, open, readFile, readlink, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import fc from 'fast-check';
import t from 'tap';
import { Applier } from '../../appliance/apply/applier.ts';
import { coalesce, DiskWrites } from '../../appliance/apply/coalesce.ts';
import { prepareWrites, ReplicaDisk } from '../../appliance/apply/replica-disk.ts';
import { Journal, JournalReader } from '../../appliance/journal/journal.ts';
import { replay } from '../../appliance/recovery/replay.ts';
import {
  type OpenStreamOptions,
  ReplicationStream,
} from '../../appliance/replication/replication-stream.ts';
import {
  checkFrame,
  FRAME_HEADER_BYTES,
  type FrameExtent,
  packFrame,
  packMark,
  readHeader,
  unpackTable,
} from '../../protocol/frame.ts';

const SIZE = 64 * 1024;

/** In sectors, as disks are written, or in bytes, which is no disk's way but is allowed. */
const extents = (unit: number) =>
  fc.array(
    fc
      .record({
        zero: fc.boolean(),
        disk: fc.nat(1),
        at: fc.nat(SIZE / 512 - 1),
        length: fc.integer({ min: 1, max: 40 }),
      })
      .map(({ zero, disk, at, length }) => ({
        zero,
        disk,
        offsetBytes: at * unit,
        lengthBytes: Math.min(length * unit, SIZE - at * unit),
      })),
    { maxLength: 40 },
  );

const fill = (
  list: ReadonlyArray<{ zero: boolean; disk: number; offsetBytes: number; lengthBytes: number }>,
) =>
  list.map(
    ({ zero, ...at }, index): FrameExtent =>
      zero
        ? { kind: 'zero', ...at }
        : { kind: 'write', ...at, data: Buffer.alloc(at.lengthBytes, index + 1) },
  );

function plainly(list: readonly FrameExtent[], disks: Buffer[]): void {
  for (const extent of list) {
    const target = disks[extent.disk]!;
    if (extent.kind === 'zero')
      target.fill(0, extent.offsetBytes, extent.offsetBytes + extent.lengthBytes);
    else target.set(extent.data, extent.offsetBytes);
  }
}

const tableOf = async (list: readonly FrameExtent[]) => {
  const frame = await packFrame(frameInput(1), list, 'none');
  return unpackTable(checkFrame(frame), frame.subarray(FRAME_HEADER_BYTES), [HUGE, HUGE]);
};
const frameInput = (seq: number) =>
  ({ kind: 'stream', epoch: 1, seq, bootTimeNs: 0n, wallMs: 0, capturePos: 0 }) as const;
/** So large that offset and index do not fit in one number any more. */
const HUGE = 2 ** 52;

// Seen red with the oldest taken of those of one place, and with the end of a tangle not moved on.
t.test('the last writer wins, nothing is written twice, all is in order of offset', async (t) => {
  const lists = fc.integer({ min: 0, max: 2 }).chain((kind) =>
    fc.record({
      lists: fc.array(extents(kind === 0 ? 1 : 512), { minLength: 1, maxLength: 3 }),
      base: fc.constant(kind === 2 ? HUGE - SIZE : 0),
    }),
  );
  await fc.assert(
    fc.asyncProperty(lists, async ({ lists, base }) => {
      const filled = fill(lists.flat());
      const want = [Buffer.alloc(SIZE, 0xaa), Buffer.alloc(SIZE, 0xaa)];
      const got = [Buffer.alloc(SIZE, 0xaa), Buffer.alloc(SIZE, 0xaa)];
      plainly(filled, want);
      const moved = filled.map((one) => ({ ...one, offsetBytes: one.offsetBytes + base }));
      const tables = lists.map(({ length }) => tableOf(moved.splice(0, length)));
      for (const [disk, writes] of coalesce(await Promise.all(tables))) {
        let end = 0;
        for (let n = 0; n < writes.count; n++) {
          const at = writes.offsetsBytes[n]! - base;
          const source = writes.sources[n]!;
          const from = writes.dataAt[n]!;
          if (at < end) return false;
          end = at + writes.lengthsBytes[n]!;
          if (source) source.copy(got[disk]!, at, from, from + writes.lengthsBytes[n]!);
          else got[disk]!.fill(0, at, end);
        }
      }
      return want.every((disk, at) => disk.equals(got[at]!));
    }),
    { numRuns: 600 },
  );
  t.pass('against plain writes');
});

interface PlainWrite {
  offsetBytes: number;
  lengthBytes: number;
  data: Buffer | null;
}

const writesOf = (list: readonly PlainWrite[]) => {
  const writes = new DiskWrites();
  for (const { offsetBytes, lengthBytes, data } of list) {
    writes.push(offsetBytes, lengthBytes, data, 0);
  }
  return writes;
};

async function until(condition: () => unknown): Promise<void> {
  for (const end = Date.now() + 20_000; !(await condition()); await delay(5)) {
    if (Date.now() > end) throw new Error(`waited too long for ${condition}`);
  }
}

type TestLike = { teardown: (fn: () => unknown) => void };

async function tempDir(t: TestLike): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'apply-test-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

async function blank(path: string, bytes: number, value = 0): Promise<string> {
  const handle = await open(path, 'w');
  await handle.writeFile(Buffer.alloc(bytes, value));
  await handle.close();
  return path;
}

t.test('large zeroes are punched, small ones written; both read as zeroes', async (t) => {
  const path = await blank(join(await tempDir(t), 'disk'), 8 << 20, 0xff);
  const disk = await ReplicaDisk.open(path);
  await disk.write(
    prepareWrites(
      writesOf([
        { offsetBytes: 512, lengthBytes: 1024, data: null },
        { offsetBytes: 1 << 20, lengthBytes: 5 << 20, data: null },
        { offsetBytes: 6 << 20, lengthBytes: 512, data: Buffer.alloc(512, 3) },
        { offsetBytes: (6 << 20) + 512, lengthBytes: 512, data: Buffer.alloc(512, 4) },
      ]),
    ),
  );
  await disk.sync();
  const want = Buffer.alloc(8 << 20, 0xff);
  want.fill(0, 512, 1536);
  want.fill(0, 1 << 20, 6 << 20);
  want.fill(3, 6 << 20, (6 << 20) + 512);
  want.fill(4, (6 << 20) + 512, (6 << 20) + 1024);
  t.ok((await readFile(path)).equals(want));
  t.ok((await disk.read(1 << 20, 4096)).equals(Buffer.alloc(4096)));
  await disk.close();
});

t.test('a batch of many writes, some of them neighbours in long rows', async (t) => {
  const path = await blank(join(await tempDir(t), 'disk'), 4 << 20, 0xee);
  const want = Buffer.alloc(4 << 20, 0xee);
  const writes: PlainWrite[] = [];
  for (let at = 0, n = 0; at < want.length - 1536; n++) {
    const lengthBytes = 512 * (1 + (n % 3));
    const data = n > 1500 && n % 17 === 0 ? null : Buffer.alloc(lengthBytes, n);
    writes.push({ offsetBytes: at, lengthBytes, data });
    want.fill(data ?? 0, at, at + lengthBytes);
    // Rows of neighbours, up to more than one system call takes, and gaps between them.
    at += lengthBytes + (n < 1500 ? 0 : 512 * (n % 2));
  }
  const disk = await ReplicaDisk.open(path);
  // Seen red when what joins a run is not put to it.
  await disk.write(prepareWrites(writesOf(writes)));
  await disk.sync();
  t.ok((await readFile(path)).subarray(0, want.length).equals(want));
  await disk.close();
  await t.rejects(
    disk.write(prepareWrites(writesOf(writes))),
    'what fails is told, of a closed one',
  );
});

// Red when memory is given to a second batch before the first is on the disk.
t.test('batches that are prepared ahead do not share memory', async (t) => {
  const path = await blank(join(await tempDir(t), 'disk'), 1 << 20);
  const disk = await ReplicaDisk.open(path);
  const batch = (value: number) =>
    prepareWrites(
      writesOf([{ offsetBytes: 4096 * value, lengthBytes: 4096, data: Buffer.alloc(4096, value) }]),
    );
  for (let round = 0; round < 8; round++) {
    const prepared = [1, 2, 3].map((n) => batch(3 * round + n));
    for (const one of prepared) await disk.write(one);
  }
  const read = await disk.read(0, 1 << 20);
  for (let value = 0; value <= 24; value++) {
    t.ok(read.subarray(4096 * value, 4096 * (value + 1)).equals(Buffer.alloc(4096, value)));
  }
  await disk.close();
});

// Red when a thread's error stays with it, and when it takes the thread along.
t.test('a disk that takes no more says so, and others go on', async (t) => {
  const path = await blank(join(await tempDir(t), 'disk'), 1 << 20);
  const full = await ReplicaDisk.open('/dev/full');
  const disk = await ReplicaDisk.open(path);
  const write = { offsetBytes: 0, lengthBytes: 4096, data: Buffer.alloc(4096, 7) };
  for (let round = 0; round < 5; round++) {
    const both = await Promise.allSettled([
      full.write(prepareWrites(writesOf([write]))),
      disk.write(prepareWrites(writesOf([write]))),
    ]);
    t.match(both[0], { status: 'rejected', reason: { code: 'ENOSPC' } });
    t.equal(both[1].status, 'fulfilled');
  }
  t.equal(
    (await disk.read(0, 4096)).every((byte) => byte === 7),
    true,
  );
  await full.close();
  await disk.close();
});

t.test('redo: applied again from an older point, the disks are the same', async (t) => {
  const dir = await tempDir(t);
  const paths = [await blank(join(dir, 'a'), SIZE), await blank(join(dir, 'b'), SIZE)];
  const options: OpenStreamOptions = {
    jobId: 'j',
    jobDir: join(dir, 'job'),
    disks: paths.map((replicaPath, index) => ({
      diskId: `d${index}`,
      index,
      devicePath: '/dev/null',
      sizeBytes: SIZE,
      replicaPath,
      freshReplica: true,
    })),
    settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
    limits: { journalBytes: 1 << 30 },
  };
  const meta = (seq: number) => ({
    epoch: 1,
    seq,
    bootTimeNs: BigInt(seq),
    wallMs: seq,
    capturePos: seq,
  });
  const want = [Buffer.alloc(SIZE), Buffer.alloc(SIZE)];
  let stream = await ReplicationStream.open(options);
  let connection = stream.connect({ send: () => {}, close: () => {} });
  await connection.frame(
    packMark(meta(1), { type: 'epochStart', captureId: 'c', bootId: 'b', reason: 'test' }),
  );
  const samples = fc.sample(extents(512), { numRuns: 30, seed: 42 });
  for (const [at, list] of samples.entries()) {
    const filled = fill(list);
    plainly(filled, want);
    await connection.frame(await packFrame({ kind: 'stream', ...meta(at + 2) }, filled, 'fast'));
    if (at % 10 === 9) {
      await stream.drainApply();
      const record = await readFile(join(dir, 'job', 'stream.json'));
      await stream.close();
      // As if the power had gone after data reached the disks, and before what was known of it did.
      const old = JSON.parse(record.toString());
      t.equal(old.seq, at + 2);
      stream = await ReplicationStream.open(options);
      connection = stream.connect({ send: () => {}, close: () => {} });
    }
  }
  await stream.drainApply();
  await stream.close();
  for (const [at, path] of paths.entries())
    t.ok((await readFile(path)).equals(want[at]!), `disk ${at}`);

  // The same journal over disks that already hold its end.
  await rm(join(dir, 'job', 'stream.json'));
  stream = await ReplicationStream.open(options);
  t.equal(await stream.drainApply(), samples.length + 1);
  await stream.close();
  for (const [at, path] of paths.entries())
    t.ok((await readFile(path)).equals(want[at]!), `disk ${at} again`);
});

// What is written while a flush runs may be in it or not. Seen red when the flush counts for what is written when it ends (in
// the applier, and in the stream's record), and when the disk takes itself for clean then, so that nothing flushes the rest.
t.test('a flush covers what was written before it began, and nothing else', async (t) => {
  const dir = await tempDir(t);
  const path = await blank(join(dir, 'replica'), SIZE);
  /** Flushes of the replica that wait. */
  const held: Array<() => void> = [];
  const handle = await open(path);
  const handles = Object.getPrototypeOf(handle);
  await handle.close();
  const { datasync } = handles;
  handles.datasync = async function (this: FileHandle) {
    if ((await readlink(`/proc/self/fd/${this.fd}`)) === path) {
      await new Promise<void>((resolve) => held.push(resolve));
    }
    return datasync.call(this);
  };
  t.teardown(() => {
    handles.datasync = datasync;
  });
  const jobDir = join(dir, 'job');
  const stream = await ReplicationStream.open({
    ...{ jobId: 'j', jobDir },
    disks: [
      {
        ...{ diskId: 'd0', index: 0, devicePath: '/dev/null', sizeBytes: SIZE },
        ...{ replicaPath: path, freshReplica: true },
      },
    ],
    settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
    limits: { journalBytes: 1 << 30 },
  });
  const connection = stream.connect({ send: () => {}, close: () => {} });
  const meta = (seq: number) => {
    return { epoch: 1, seq, bootTimeNs: BigInt(seq), wallMs: seq, capturePos: seq };
  };
  const put = async (seq: number) => {
    const data = Buffer.alloc(4096, seq);
    const at = { disk: 0, offsetBytes: seq * 4096, lengthBytes: 4096 };
    await connection.frame(
      await packFrame({ kind: 'stream', ...meta(seq) }, [{ kind: 'write', ...at, data }], 'none'),
    );
    await until(async () => (await readFile(path)).subarray(seq * 4096, seq * 4096 + 1)[0] === seq);
  };
  const recordedSeq = async () =>
    JSON.parse((await readFile(join(jobDir, 'stream.json'))).toString()).seq;
  await connection.frame(
    packMark(meta(1), { type: 'epochStart', captureId: 'c', bootId: 'b', reason: 'test' }),
  );
  await put(2);
  await until(() => held.length === 1);
  await put(3);
  held[0]!();
  await until(() => held.length === 2);
  t.equal(stream.state().appliedSeq, 2);
  t.equal(await recordedSeq(), 2);
  held[1]!();
  await until(() => stream.state().appliedSeq === 3);
  t.equal(await recordedSeq(), 3);
  await stream.close();
});

// Red without the wait (two batches), and, one by one, when those who wait do not end it: the test does not end then.
t.test('what trickles in is written together, and at once for whoever waits', async (t) => {
  const dir = await tempDir(t);
  const disk = await ReplicaDisk.open(await blank(join(dir, 'replica'), SIZE));
  let batches = 0;
  const { write } = disk;
  disk.write = (prepared) => {
    batches++;
    return write.call(disk, prepared);
  };
  const journal = await Journal.open(
    { jobId: 'j', dir: join(dir, 'journal'), appliedSeq: 0, limitBytes: 1 << 30 },
    { durable: () => applier.poke(), failed: (error) => t.fail(error.message) },
    () => {},
  );
  const applier: Applier = new Applier(
    {
      ...{ jobId: 'j', reader: (fromSeq) => new JournalReader(journal, fromSeq) },
      ...{ diskId: () => 'd', diskSizes: () => [SIZE], onWritten: () => {} },
      ...{ onFlush: () => async () => {}, gate: () => null, beforeUnordered: async () => {} },
    },
    0,
    600_000,
  );
  let seq = 0;
  const put = async () => {
    const meta = { epoch: 1, seq: ++seq, bootTimeNs: 0n, wallMs: 0, capturePos: 0 };
    const data = Buffer.alloc(4096, seq);
    const extent = { kind: 'write' as const, disk: 0, offsetBytes: 0, lengthBytes: 4096, data };
    const frame = await packFrame({ kind: 'stream', ...meta }, [extent], 'none');
    await journal.append(readHeader(frame), frame);
    await until(() => journal.durableSeq === seq);
  };
  await put();
  applier.resume(new Map([[0, disk]]));
  await until(() => applier.writtenSeq === 1);
  await put();
  await put();
  t.equal(applier.writtenSeq, 1, 'more is waited for');
  await applier.reached(3);
  t.equal(batches, 2);
  await put();
  await applier.drain(4);
  await put();
  await until(() => applier.writtenSeq === 5);
  await put();
  await applier.between(async () => {});
  await applier.reached(6);
  t.equal((await disk.read(0, 1))[0], 6);
  await put();
  await applier.pause('the test is over');
  await journal.close();
  await disk.close();
});

// Red when a batch that is full of small frames is taken for the end of what there is: the test does not end then.
t.test('many small frames are applied without a wait between their batches', async (t) => {
  const dir = await tempDir(t);
  const disk = await ReplicaDisk.open(await blank(join(dir, 'replica'), SIZE));
  const journal = await Journal.open(
    { jobId: 'j', dir: join(dir, 'journal'), appliedSeq: 0, limitBytes: 1 << 30 },
    { durable: () => {}, failed: (error) => t.fail(error.message) },
    () => {},
  );
  const count = 1000;
  for (let seq = 1; seq <= count; seq++) {
    const meta = { epoch: 1, seq, bootTimeNs: 0n, wallMs: 0, capturePos: 0 };
    const data = Buffer.alloc(512, seq);
    const extent = { kind: 'write' as const, disk: 0, offsetBytes: 0, lengthBytes: 512, data };
    const frame = await packFrame({ kind: 'stream', ...meta }, [extent], 'none');
    await journal.append(readHeader(frame), frame);
  }
  await until(() => journal.durableSeq === count);
  const applier = new Applier(
    {
      ...{ jobId: 'j', reader: (fromSeq) => new JournalReader(journal, fromSeq) },
      ...{ diskId: () => 'd', diskSizes: () => [SIZE], onWritten: () => {} },
      ...{ onFlush: () => async () => {}, gate: () => null, beforeUnordered: async () => {} },
    },
    0,
    600_000,
  );
  applier.resume(new Map([[0, disk]]));
  await until(() => applier.writtenSeq === count);
  await applier.pause('the test is over');
  await journal.close();
  await disk.close();
});

// What is read from the journal lies in memory that is used again. Seen red with a frame that is not packed released as soon
// as it is unpacked, and with a piece given back while a frame in it is looked at.
t.test('a replay of many reads: what is written is not what was read next', async (t) => {
  const dir = await tempDir(t);
  const writeBytes = 128 * 1024;
  const count = 400;
  const journal = await Journal.open(
    { jobId: 'j', dir: join(dir, 'journal'), appliedSeq: 0, limitBytes: 1 << 30 },
    { durable: () => {}, failed: (error) => t.fail(error.message) },
    () => {},
  );
  const path = join(dir, 'replica');
  const sizeBytes = 2 * count * writeBytes;
  const disk = await open(path, 'w');
  await disk.truncate(sizeBytes);
  await disk.close();
  const random = Buffer.alloc(writeBytes);
  const dataOf = (seq: number) => {
    crypto.getRandomValues(random.subarray(0, 65_536));
    return Buffer.concat([random.subarray(0, 65_536), Buffer.alloc(writeBytes - 65_536, seq)]);
  };
  const want: Buffer[] = [];
  for (let seq = 1; seq <= count; seq++) {
    const meta = { epoch: 1, seq, bootTimeNs: 0n, wallMs: 0, capturePos: 0 };
    const data = dataOf(seq);
    want.push(data);
    // Gaps between them: each is a large write of its own, from where it was read.
    const offsetBytes = 2 * (seq - 1) * writeBytes;
    const extent: FrameExtent = {
      ...{ kind: 'write', disk: 0, offsetBytes, lengthBytes: writeBytes, data },
    };
    const frame = await packFrame({ kind: 'stream', ...meta }, [extent], seq % 2 ? 'none' : 'fast');
    await journal.append(readHeader(frame), frame);
  }
  await until(() => journal.durableSeq === count);
  const reader = new JournalReader(journal, 1);
  await replay({
    ...{ jobId: 'j', reader, toSeq: count, sizes: [sizeBytes], paths: new Map([[0, path]]) },
  });
  await reader.close();
  await journal.close();
  const replica = await open(path, 'r');
  const got = Buffer.alloc(writeBytes);
  for (const [at, data] of want.entries()) {
    await replica.read(got, 0, writeBytes, 2 * at * writeBytes);
    if (!got.equals(data)) t.fail(`write ${at + 1} is not on the disk as it was`);
  }
  await replica.close();
  t.pass(`${count} writes`);
});

// A batch is read and unpacked while the one before is written. Seen red, both halves of it, when BatchWriter.write does not
// wait for the batch before.
t.test('a small batch behind a large one that it overwrites lands behind it', async (t) => {
  const dir = await tempDir(t);
  const path = join(dir, 'replica');
  // Pieces with gaps between them, each with a call of its own, and the last place is written last; together they make a
  // batch full.
  const pieceBytes = 128 * 1024;
  const pieces = 128;
  const sizeBytes = 2 * pieces * pieceBytes;
  const last = sizeBytes - pieceBytes - 4096;
  const options: OpenStreamOptions = {
    jobId: 'j',
    jobDir: join(dir, 'job'),
    disks: [
      {
        ...{ diskId: 'd0', index: 0, devicePath: '/dev/null', sizeBytes },
        ...{ replicaPath: null, freshReplica: true },
      },
    ],
    settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
    limits: { journalBytes: 1 << 30 },
  };
  let stream = await ReplicationStream.open(options);
  t.teardown(() => stream.close());
  const connection = stream.connect({ send: () => {}, close: () => {} });
  let seq = 0;
  const meta = () => {
    seq++;
    return { epoch: 1, seq, bootTimeNs: BigInt(seq), wallMs: seq, capturePos: seq };
  };
  await connection.frame(
    packMark(meta(), { type: 'epochStart', captureId: 'c', bootId: 'b', reason: 'test' }),
  );
  const put = async (offsets: number[], data: Buffer) => {
    const extents = offsets.map((offsetBytes): FrameExtent => {
      return { kind: 'write', disk: 0, offsetBytes, lengthBytes: data.length, data };
    });
    await connection.frame(await packFrame({ kind: 'stream', ...meta() }, extents, 'fast'));
  };
  // Random in part, so that unpacking takes its time.
  const old = Buffer.alloc(pieceBytes, 1);
  for (let at = 0; at < pieceBytes; at += 4096) crypto.getRandomValues(old.subarray(at, at + 2048));
  for (let n = 0; n < pieces; n += 4) {
    await put(
      [n, n + 1, n + 2, n + 3].map((piece) => 2 * piece * pieceBytes),
      old,
    );
  }
  const newer = Buffer.alloc(4096, 2);
  await put([last], newer);
  const look = async (what: string) => {
    const disk = await readFile(path);
    t.ok(disk.subarray(last, last + 4096).equals(newer), `${what}: the newer write`);
    t.ok(disk.subarray(0, pieceBytes).equals(old), `${what}: the older writes`);
  };
  await stream.stopIntake('all is there');

  for (let round = 0; round < 5; round++) {
    await blank(path, sizeBytes);
    const reader = stream.journalReader(2);
    const sizes = [sizeBytes];
    await replay({ jobId: 'j', reader, toSeq: seq, sizes, paths: new Map([[0, path]]) });
    await reader.close();
    await look('replay');
  }

  for (let round = 0; round < 5; round++) {
    await blank(path, sizeBytes);
    await stream.reopenDisks(new Map([['d0', path]]));
    t.equal(await stream.drainApply(), seq);
    await stream.close();
    await look('apply');
    // Nothing is known of what was applied: it begins anew.
    await rm(join(dir, 'job', 'stream.json'));
    stream = await ReplicationStream.open(options);
  }
});

t.test(
  'a replica disk that is gone is said with its disk and job; apply goes on when it is back',
  async (t) => {
    const dir = await tempDir(t);
    const path = join(dir, 'replica');
    const options: OpenStreamOptions = {
      jobId: 'j',
      jobDir: join(dir, 'job'),
      disks: [
        {
          diskId: 'd0',
          index: 0,
          devicePath: '/dev/null',
          sizeBytes: SIZE,
          replicaPath: null,
          freshReplica: true,
        },
      ],
      settings: { compression: 'none', bandwidthLimitBytesPerSec: null },
      limits: { journalBytes: 1 << 30 },
    };
    const stream = await ReplicationStream.open(options);
    t.teardown(() => stream.close());
    await t.rejects(stream.reopenDisks(new Map([['d0', path]])), {
      code: 'UND_APPLY_WRITE_FAILED',
      message: /d0.*job j/,
    });
    await blank(path, 0);
    await truncate(path, SIZE);
    await stream.reopenDisks(new Map([['d0', path]]));
    t.equal(await stream.drainApply(), 0);
  },
);
