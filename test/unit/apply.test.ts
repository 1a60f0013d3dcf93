import { mkdtemp, open, readFile, rm, truncate } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import type { DiskWrite } from '../../appliance/apply/coalesce.ts';
import { coalesce } from '../../appliance/apply/coalesce.ts';
import { ReplicaDisk } from '../../appliance/apply/replica-disk.ts';
import {
  type OpenStreamOptions,
  ReplicationStream,
} from '../../appliance/replication/replication-stream.ts';
import { type FrameExtent, packFrame, packMark } from '../../protocol/frame.ts';

const SIZE = 64 * 1024;

const extents = fc.array(
  fc
    .record({
      zero: fc.boolean(),
      disk: fc.nat(1),
      sector: fc.nat(SIZE / 512 - 1),
      sectors: fc.integer({ min: 1, max: 40 }),
    })
    .map(({ zero, disk, sector, sectors }) => ({
      zero,
      disk,
      offsetBytes: sector * 512,
      lengthBytes: Math.min(sectors * 512, SIZE - sector * 512),
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

t.test('the last writer wins, nothing is written twice, all is in order of offset', async (t) => {
  fc.assert(
    fc.property(extents, (list) => {
      const filled = fill(list);
      const want = [Buffer.alloc(SIZE, 0xaa), Buffer.alloc(SIZE, 0xaa)];
      const got = [Buffer.alloc(SIZE, 0xaa), Buffer.alloc(SIZE, 0xaa)];
      plainly(filled, want);
      for (const [disk, writes] of coalesce(filled)) {
        let end = 0;
        for (const { offsetBytes, lengthBytes, data } of writes) {
          if (offsetBytes < end) return false;
          end = offsetBytes + lengthBytes;
          if (data && data.length !== lengthBytes) return false;
          if (data) got[disk]!.set(data, offsetBytes);
          else got[disk]!.fill(0, offsetBytes, end);
        }
      }
      return want.every((disk, at) => disk.equals(got[at]!));
    }),
    { numRuns: 400 },
  );
  t.pass('against plain writes');
});

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
  await disk.apply([
    { offsetBytes: 512, lengthBytes: 1024, data: null },
    { offsetBytes: 1 << 20, lengthBytes: 5 << 20, data: null },
    { offsetBytes: 6 << 20, lengthBytes: 512, data: Buffer.alloc(512, 3) },
    { offsetBytes: (6 << 20) + 512, lengthBytes: 512, data: Buffer.alloc(512, 4) },
  ]);
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
  const writes: DiskWrite[] = [];
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
  await disk.apply(writes);
  await disk.sync();
  t.ok((await readFile(path)).subarray(0, want.length).equals(want));
  await disk.close();
  await t.rejects(disk.apply(writes), 'what fails is told, of a closed one');
});

// Red when a thread's error stays with it, and when it takes the thread along.
t.test('a disk that takes no more says so, and others go on', async (t) => {
  const path = await blank(join(await tempDir(t), 'disk'), 1 << 20);
  const full = await ReplicaDisk.open('/dev/full');
  const disk = await ReplicaDisk.open(path);
  const write = { offsetBytes: 0, lengthBytes: 4096, data: Buffer.alloc(4096, 7) };
  for (let round = 0; round < 5; round++) {
    const both = await Promise.allSettled([full.apply([write]), disk.apply([write])]);
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
  const samples = fc.sample(extents, { numRuns: 30, seed: 42 });
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
