/** The gate before unordered frames and the still moment of a checkpoint, on a real stream over files. */
import { mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import {
  type OpenStreamOptions,
  ReplicationStream,
  type StreamConnection,
} from '../../appliance/replication/replication-stream.ts';
import { undError } from '../../protocol/errors.ts';
import { type FrameExtent, packFrame, packMark } from '../../protocol/frame.ts';
import type { Mark } from '../../protocol/marks.ts';

const SIZE = 64 * 1024;
const CAPTURE = { captureId: 'c', bootId: 'b' };
type TestLike = { teardown: (fn: () => unknown) => void };

async function until(what: string, condition: () => unknown): Promise<void> {
  for (const end = Date.now() + 30_000; !(await condition()); await delay(5)) {
    if (Date.now() > end) throw new Error(`waited too long for: ${what}`);
  }
}

/** The appliance's side of a stream, fed by hand, and what the source's disk is at each frame. */
class Feed {
  readonly dir: string;
  readonly path: string;
  readonly acks: number[] = [];
  /** The source's disk after each frame, by sequence number. */
  readonly at: Buffer[] = [Buffer.alloc(SIZE)];
  hooks: OpenStreamOptions['hooks'] = {};
  stream!: ReplicationStream;
  epoch = 1;
  #connection!: StreamConnection;

  constructor(dir: string) {
    this.dir = dir;
    this.path = join(dir, 'replica');
  }

  static async start(t: TestLike, hooks: OpenStreamOptions['hooks'] = {}): Promise<Feed> {
    const feed = new Feed(await mkdtemp(join(tmpdir(), 'checkpoint-test-')));
    feed.hooks = hooks;
    const file = await open(feed.path, 'w');
    await file.truncate(SIZE);
    await file.close();
    await feed.open();
    t.teardown(async () => {
      await feed.stream.close();
      await rm(feed.dir, { recursive: true, force: true });
    });
    return feed;
  }

  async open(): Promise<void> {
    this.stream = await ReplicationStream.open({
      jobId: 'j',
      jobDir: join(this.dir, 'job'),
      disks: [
        {
          diskId: 'd0',
          index: 0,
          devicePath: '/dev/null',
          sizeBytes: SIZE,
          replicaPath: this.path,
          freshReplica: true,
        },
      ],
      settings: { compression: 'none', bandwidthLimitBytesPerSec: null },
      limits: { journalBytes: 1 << 30 },
      hooks: this.hooks,
    });
    this.#connection = this.stream.connect({
      send: (message) => {
        if (message.type === 'ack') this.acks.push(message.seq);
      },
      close: () => {},
    });
  }

  get seq(): number {
    return this.at.length - 1;
  }

  #meta() {
    const seq = this.at.length;
    return { epoch: this.epoch, seq, bootTimeNs: BigInt(seq), wallMs: 1000 * seq, capturePos: seq };
  }

  async mark(mark: Mark): Promise<void> {
    const frame = packMark(this.#meta(), mark);
    this.at.push(Buffer.from(this.at.at(-1)!));
    await this.#connection.frame(frame);
  }

  /** A captured write of one block. */
  async write(block: number, value: number): Promise<void> {
    const data = Buffer.alloc(4096, value);
    const extents: FrameExtent[] = [
      { kind: 'write', disk: 0, offsetBytes: block * 4096, lengthBytes: 4096, data },
    ];
    const frame = await packFrame({ kind: 'stream', ...this.#meta() }, extents, 'none');
    const disk = Buffer.from(this.at.at(-1)!);
    data.copy(disk, block * 4096);
    this.at.push(disk);
    await this.#connection.frame(frame);
  }

  /** A whole mirror run; what it reads is already in `at`, or becomes so. */
  async mirror(run: number, kind: 'full' | 'difference', blocks: [number, number][] = []) {
    const about = { disk: 0, run, kind, reason: 'test' };
    await this.mark({ type: 'mirrorStart', ...about, startBytes: 0, endBytes: SIZE });
    const disk = Buffer.from(this.at.at(-1)!);
    const extents = blocks.map(([block, value]): FrameExtent => {
      const data = Buffer.alloc(4096, value);
      data.copy(disk, block * 4096);
      return { kind: 'write', disk: 0, offsetBytes: block * 4096, lengthBytes: 4096, data };
    });
    const header = {
      kind: 'mirror' as const,
      ...this.#meta(),
      disk: 0,
      run,
      cursorBytes: SIZE,
      skippedBytes: 0,
    };
    const frame = await packFrame(header, extents, 'none');
    this.at.push(disk);
    await this.#connection.frame(frame);
    await this.mark({ type: 'mirrorEnd', disk: 0, run });
  }

  /** The first mirror, done. */
  async becomeWhole(): Promise<void> {
    await this.mark({ type: 'epochStart', ...CAPTURE, reason: 'test' });
    await this.mirror(1, 'full', [[3, 3]]);
  }

  replica(): Promise<Buffer> {
    return readFile(this.path);
  }
}

t.test('before lost order is applied, the point before it is flushed and protected', async (t) => {
  const seen: { seq: number; reason: string; content: Buffer; sinceSeq: number }[] = [];
  let allow = false;
  const feed = await Feed.start(t, {
    beforeUnordered: async ({ seq, sinceSeq }, reason) => {
      seen.push({ seq, sinceSeq, reason, content: await feed.replica() });
      if (!allow) throw undError('UND_HV_UNREACHABLE', { host: 'h', reason: 'test' });
    },
  });
  await feed.becomeWhole();
  const whole = feed.seq;
  for (let block = 0; block < 8; block++) await feed.write(block, 0x40 + block);
  const good = feed.seq;
  await feed.mark({ type: 'orderLost', reason: 'overflow', compare: [0] });
  for (let block = 0; block < 8; block++) await feed.write(block, 0x80 + block);
  await until('the gate', () => seen.length > 0);
  t.match(seen[0], { seq: good, sinceSeq: whole, reason: 'overflow' });
  // Without the gate in Applier.#applyBatch the writes behind the mark are here.
  t.ok(seen[0]?.content.equals(feed.at[good]!), 'the replica is exactly at the point');
  await until('it to be said', () => {
    const { phase } = feed.stream.state();
    return phase.name === 'catching-up' && /^applying waits for a checkpoint/.test(phase.reason);
  });
  const before = feed.stream.state().durableSeq;
  await feed.write(9, 9);
  await until('the journal to go on', () => feed.stream.state().durableSeq > before);
  t.equal(feed.acks.at(-1), feed.seq, 'and to be acknowledged');
  t.equal(feed.stream.state().appliedSeq, good);
  t.ok((await feed.replica()).equals(feed.at[good]!));
  t.equal(
    await feed.stream.atAppliedPoint(async () => 1).catch(({ code }) => code),
    'UND_APPLY_PAUSED',
  );

  allow = true;
  feed.stream.resumeApply();
  await feed.stream.drainApply();
  t.ok((await feed.replica()).equals(feed.at.at(-1)!), 'apply goes on');
  t.equal(feed.stream.appliedPoint(), null, 'and is at no point');
  const asked = seen.length;
  await feed.mark({ type: 'orderResumed', reason: 'overflow', compare: [0], drain: [] });
  await feed.mirror(2, 'difference', [[12, 12]]);
  await feed.stream.drainApply();
  t.equal(seen.length, asked, 'not asked again within the unordered run');
  t.match(feed.stream.appliedPoint(), { seq: feed.seq, sinceSeq: feed.seq });
});

t.test('a new epoch, and a restart of the stream, stand at the gate too', async (t) => {
  const seen: number[] = [];
  const feed = await Feed.start(t, {
    beforeUnordered: async ({ seq }) => {
      seen.push(seq);
    },
  });
  await feed.becomeWhole();
  await feed.write(1, 1);
  await feed.stream.drainApply();
  const good = feed.seq;
  await feed.stream.restart('a person asked for it');
  feed.epoch = feed.stream.epoch;
  // The connection was closed by it.
  await feed.stream.close();
  await feed.open();
  t.same(seen, [], 'nothing was applied yet');
  t.equal(feed.stream.appliedPoint(), null);
  await feed.mark({ type: 'epochStart', ...CAPTURE, reason: 'a person asked for it' });
  await feed.stream.drainApply();
  t.same(seen, [good]);
});

t.test('the gate is met again after a restart; a passed one is not', async (t) => {
  const seen: number[] = [];
  let allow = false;
  const feed = await Feed.start(t, {
    beforeUnordered: async ({ seq }) => {
      seen.push(seq);
      if (!allow) throw undError('UND_HV_UNREACHABLE', { host: 'h', reason: 'test' });
    },
  });
  await feed.becomeWhole();
  const good = feed.seq;
  await feed.mark({ type: 'orderLost', reason: 'overflow', compare: [0] });
  await until('the gate', () => seen.length > 0);
  await feed.stream.close();
  allow = true;
  await feed.open();
  await feed.stream.drainApply();
  t.same([...new Set(seen)], [good]);
  const asked = seen.length;
  await feed.stream.close();
  await feed.open();
  await feed.write(1, 1);
  await feed.stream.drainApply();
  t.equal(seen.length, asked);
});

t.test('at a point the replica stands still, while intake goes on', async (t) => {
  const feed = await Feed.start(t);
  await feed.becomeWhole();
  await feed.stream.drainApply();
  let writing = true;
  const writer = (async () => {
    for (let n = 0; writing; n++) {
      await feed.write(n % 16, n % 251);
      await delay(1);
    }
  })();
  for (let taken = 0; taken < 5; taken++) {
    await feed.stream.atAppliedPoint(async ({ seq }) => {
      t.ok((await feed.replica()).equals(feed.at[seq]!), `point ${seq}`);
      const acked = feed.acks.length;
      await until('frames to be acknowledged meanwhile', () => feed.acks.length > acked + 2);
      // Without the flush and the standstill in Applier.between this is another content.
      t.ok((await feed.replica()).equals(feed.at[seq]!), `still point ${seq}`);
    });
    await delay(20);
  }
  writing = false;
  await writer;
});

// Seen red with an applier that goes on after any failure: the frame behind the point is on the disk.
t.test('nothing is applied behind a checkpoint whose outcome is not known', async (t) => {
  const feed = await Feed.start(t);
  await feed.becomeWhole();
  await feed.stream.drainApply();
  const point = feed.seq;
  let settled = false;
  const fail = async () => {
    // What arrives while the host is asked waits in the journal.
    await feed.write(5, 5);
    throw undError('UND_HV_UNREACHABLE', { host: 'h', reason: 'test' });
  };
  const asked = feed.stream.atAppliedPoint(fail, () => settled);
  await t.rejects(asked, { code: 'UND_HV_UNREACHABLE' });
  await t.rejects(feed.stream.drainApply(), { code: 'UND_APPLY_CHECKPOINT_UNKNOWN' });
  t.ok((await feed.replica()).equals(feed.at[point]!), 'the replica is exactly at the point');
  settled = true;
  await feed.stream.closeDisks();
  await feed.stream.reopenDisks(new Map([['d0', feed.path]]));
  await feed.stream.drainApply();
  t.ok((await feed.replica()).equals(feed.at[feed.seq]!), 'it goes on');
  // A failure whose outcome is known changes nothing.
  await t.rejects(
    feed.stream.atAppliedPoint(fail, () => settled),
    { code: 'UND_HV_UNREACHABLE' },
  );
  await feed.stream.drainApply();
  t.ok((await feed.replica()).equals(feed.at[feed.seq]!));
});

t.test('after a crash the replica is at no point until everything was applied again', async (t) => {
  const feed = await Feed.start(t);
  await feed.becomeWhole();
  await feed.stream.drainApply();
  const record = await readFile(join(feed.dir, 'job', 'stream.json'));
  for (let block = 0; block < 8; block++) await feed.write(block, 7);
  await feed.stream.drainApply();
  await feed.stream.close();
  // Data reached the disk, what was known of it did not.
  await writeFile(join(feed.dir, 'job', 'stream.json'), record);
  await feed.open();
  const point = feed.stream.appliedPoint();
  t.ok(point === null || point.seq === feed.seq, 'the older record is no point of this content');
  await feed.stream.drainApply();
  t.match(feed.stream.appliedPoint(), { seq: feed.seq });
});
