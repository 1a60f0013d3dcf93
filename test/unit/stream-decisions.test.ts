/** The pure decisions of the stream: how it goes on, what the appliance knows, how fast it may send. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Window } from '../../agent/queue/window.ts';
import { AckNote } from '../../agent/send/ack-note.ts';
import { lost, mayDrain, planCatchUp } from '../../agent/send/drain-gate.ts';
import { LinkMeter } from '../../agent/send/link-meter.ts';
import { decideResume } from '../../agent/send/resume.ts';
import { TokenBucket } from '../../agent/send/token-bucket.ts';
import { ClockMap } from '../../appliance/replication/clock-map.ts';
import {
  askDifference,
  askDifferenceOf,
  foldFrame,
  growDisk,
  isWhole,
  newStreamRecord,
  type StreamRecord,
} from '../../appliance/replication/stream-record.ts';
import { checkFrame, type FrameHeader, packFrame } from '../../protocol/frame.ts';
import type { Mark } from '../../protocol/marks.ts';

const MIB = 1024 * 1024;
const remote = {
  journalId: 'J',
  epoch: 2,
  durableSeq: 50,
  capturePos: 5000,
  binding: { captureId: 'C', bootId: 'B' },
};
const local = { journalId: 'J', epoch: 2, firstSeq: 41, nextSeq: 60 };
const capture = { captureId: 'C', bootId: 'B', releasedPos: 4000 };
const remembered = { journalId: 'J', epoch: 2, ackedSeq: 40 };

t.test('how a stream goes on', async (t) => {
  const newEpoch = (reason: RegExp) => ({ kind: 'new-epoch', reason });
  t.same(decideResume(remote, local, remembered, capture), { kind: 'window', fromSeq: 51 });
  t.same(
    decideResume({ ...remote, durableSeq: 59 }, local, remembered, capture),
    { kind: 'window', fromSeq: 60 },
    'all is durable',
  );
  t.same(decideResume(remote, null, remembered, capture), {
    kind: 'capture',
    fromPos: 5000,
    nextSeq: 51,
  });
  t.same(decideResume({ ...remote, binding: null }, null, null, capture), { kind: 'start' });
  t.match(
    decideResume({ ...remote, durableSeq: 39 }, local, remembered, capture),
    newEpoch(/had acknowledged frame 40/),
  );
  t.match(
    decideResume({ ...remote, durableSeq: 39, binding: null }, null, remembered, capture),
    newEpoch(/had acknowledged/),
    'also when nothing of the epoch is there any more',
  );
  t.match(
    decideResume({ ...remote, epoch: 1 }, null, remembered, capture),
    newEpoch(/older state/),
  );
  t.match(decideResume({ ...remote, durableSeq: 60 }, local, null, capture), newEpoch(/not sent/));
  t.match(decideResume(remote, null, null, { ...capture, bootId: 'B2' }), newEpoch(/restarted/));
  t.match(
    decideResume(remote, null, null, { ...capture, captureId: 'C2' }),
    newEpoch(/started anew/),
  );
  t.match(
    decideResume(remote, null, null, { ...capture, releasedPos: 5001 }),
    newEpoch(/ends before what it had acknowledged/),
    'without a note, the ring itself remembers',
  );
  t.same(
    decideResume({ ...remote, journalId: 'K', binding: null }, local, remembered, capture),
    { kind: 'start' },
    'another journal that has nothing begins at its beginning',
  );
});

const header = (seq: number, patch: Partial<FrameHeader> = {}): FrameHeader => ({
  kind: 'mark',
  codec: 'none',
  epoch: 1,
  seq,
  extentCount: 0,
  unpackedBytes: 0,
  packedBytes: 0,
  payloadCrc: 0,
  bootTimeNs: BigInt(seq),
  wallMs: seq,
  capturePos: seq * 10,
  aheadBytes: 0,
  cursorBytes: 0,
  skippedBytes: 0,
  run: 0,
  disk: 0,
  ...patch,
});

class Folded {
  record: StreamRecord;
  #seq = 0;
  epoch = 1;

  constructor(disks: number[], freshReplica = true) {
    this.record = newStreamRecord(
      disks.map((sizeBytes, index) => ({ index, sizeBytes, freshReplica })),
    );
  }

  mark(mark: Mark): this {
    this.record = foldFrame(this.record, header(++this.#seq, { epoch: this.epoch }), mark);
    return this;
  }

  mirror(disk: number, run: number, cursorBytes: number): this {
    const frame = header(++this.#seq, {
      kind: 'mirror',
      epoch: this.epoch,
      disk,
      run,
      cursorBytes,
    });
    this.record = foldFrame(this.record, frame, null);
    return this;
  }

  begin(epoch: number, reason = 'because'): this {
    this.epoch = epoch;
    return this.mark({ type: 'epochStart', captureId: `C${epoch}`, bootId: 'B', reason });
  }

  /** A new epoch of a source that was restarted and knows what changed, but for the disks of `compare`. */
  carry(epoch: number, compare: number[] | 'all' = []): this {
    this.epoch = epoch;
    const start = {
      captureId: `C${epoch}`,
      bootId: 'B',
      reason: 'restarted',
      carried: { compare },
    };
    return this.mark({ type: 'epochStart', ...start });
  }

  run(disk: number, run: number, endBytes: number, kind: 'full' | 'difference' = 'full'): this {
    this.mark({ type: 'mirrorStart', disk, run, kind, reason: 'r', startBytes: 0, endBytes });
    return this.mirror(disk, run, endBytes).mark({ type: 'mirrorEnd', disk, run });
  }

  states(): string[] {
    return this.record.disks.map(({ mirror }) => `${mirror.name} ${mirror.kind}`);
  }
}

t.test('a mirror from its start to a whole replica', async (t) => {
  const folded = new Folded([100, 200]).begin(1);
  t.same(folded.states(), ['needed full', 'needed full']);
  folded.run(0, 1, 100);
  t.notOk(isWhole(folded.record));
  folded.mark({
    type: 'mirrorStart',
    disk: 1,
    run: 1,
    kind: 'full',
    reason: 'r',
    startBytes: 0,
    endBytes: 200,
  });
  folded.mirror(1, 1, 120);
  t.match(folded.record.disks[1]!.mirror, { name: 'running', cursorBytes: 120 });
  folded.mark({ type: 'mirrorEnd', disk: 1, run: 1 });
  t.equal(folded.record.disks[1]!.mirror.name, 'running', 'an end before the end is none');
  folded.mirror(1, 7, 200);
  t.match(folded.record.disks[1]!.mirror, { cursorBytes: 120 }, 'another run does not count');
  folded.mirror(1, 1, 200).mark({ type: 'mirrorEnd', disk: 1, run: 1 });
  t.ok(isWhole(folded.record));
  t.same(folded.record.binding, { captureId: 'C1', bootId: 'B' });
});

t.test('an epoch that is carried over a restart is order that was lost, no more', async (t) => {
  const whole = new Folded([100, 200]).begin(1).run(0, 1, 100).run(1, 1, 200);
  const before = whole.record.good;
  t.ok(before, 'a point to protect');
  whole.carry(2, [1]);
  t.same(whole.record.binding, { captureId: 'C2', bootId: 'B' }, 'bound to the new capture');
  t.match(whole.record.order, { name: 'lost', reason: 'restarted', compare: [1] });
  t.notOk(isWhole(whole.record), 'no point before the drain');
  t.same(whole.record.good, before, 'the point before it is protected first');
  t.same(whole.states(), ['done full', 'done full']);
  whole.mark({
    type: 'orderResumed',
    compare: [1],
    drain: [{ disk: 0, dirtyBytes: 20 }],
    reason: 'restarted',
  });
  t.same(whole.states(), ['needed drain', 'needed difference']);

  const lost = new Folded([100, 200]).begin(1).run(0, 1, 100).run(1, 1, 200);
  lost.mark({ type: 'orderLost', reason: 'a pass-through command', compare: [0] }).carry(2, [1]);
  t.match(lost.record.order, { name: 'lost', compare: [0, 1] }, 'what was to be compared still is');

  const half = new Folded([100]).begin(1);
  half.mark({
    type: 'mirrorStart',
    disk: 0,
    run: 1,
    kind: 'full',
    reason: 'r',
    startBytes: 0,
    endBytes: 100,
  });
  half.mirror(0, 1, 40).carry(2);
  t.match(half.record.disks[0]!.mirror, { name: 'running', cursorBytes: 40 }, 'it goes on');
  t.same(new Folded([100], true).carry(1).states(), ['needed full'], 'never of the first epoch');
});

t.test('whatever may have missed a write is compared', async (t) => {
  t.same(new Folded([100], false).states(), ['needed difference'], 'a used replica');
  t.same(
    new Folded([100]).begin(2).states(),
    ['needed difference'],
    'an epoch that is not the first',
  );
  const folded = new Folded([100, 200]).begin(1).run(0, 1, 100).run(1, 1, 200);
  folded.mark({ type: 'orderLost', reason: 'overflow', compare: [] });
  t.notOk(isWhole(folded.record), 'no point while order is lost');
  folded.mark({ type: 'orderLost', reason: 'pass-through', compare: [1] });
  t.match(folded.record.order, { reason: 'overflow', compare: [1] });
  folded.mark({ type: 'orderResumed', compare: [1], drain: [], reason: 'overflow' });
  t.same(folded.states(), ['done full', 'needed difference'], 'only the disk concerned');
  t.equal(folded.record.order.name, 'resumed');
  folded.run(1, 2, 200, 'full');
  t.same(folded.states(), ['done full', 'needed difference'], 'a full mirror does not answer it');
  folded.run(1, 1, 200, 'difference');
  t.same(folded.states(), ['done full', 'needed difference'], 'nor does a run of before');
  folded.run(1, 3, 200, 'difference');
  t.ok(isWhole(folded.record));
  t.equal(folded.record.order.name, 'held', 'the end of the drain');
  t.same(new Folded([100]).begin(1).begin(2, 'restarted').record.disks[0]!.mirror, {
    name: 'needed',
    kind: 'difference',
    reason: 'restarted',
    startBytes: 0,
    endBytes: 100,
  });
});

t.test('dirty blocks are drained: of whole disks, and of others by their own run', async (t) => {
  const folded = new Folded([100, 200, 300]).begin(1).run(0, 1, 100).run(1, 1, 200);
  const start = { type: 'mirrorStart', reason: 'r', startBytes: 0 } as const;
  folded.mark({ ...start, disk: 2, run: 1, kind: 'full', endBytes: 300 }).mirror(2, 1, 150);
  folded.mark({ type: 'orderLost', reason: 'overflow', compare: [] });
  const drain = [
    { disk: 1, dirtyBytes: 40 },
    { disk: 2, dirtyBytes: 8 },
  ];
  folded.mark({ type: 'orderResumed', compare: [], drain, reason: 'overflow' });
  t.same(folded.states(), ['done full', 'needed drain', 'running full']);
  t.match(folded.record.disks[2]!.mirror, { cursorBytes: 150 }, 'it goes on where it was');
  t.match(folded.record.disks[1]!.mirror, { endBytes: 40 });
  folded.run(1, 2, 200, 'difference');
  t.same(folded.states()[1], 'needed drain', 'another kind does not answer it');
  folded.mark({ ...start, disk: 1, run: 3, kind: 'drain', endBytes: 40 });
  folded.mark({ type: 'mirrorEnd', disk: 1, run: 3 });
  t.same(folded.states()[1], 'done drain', 'its end counts, whatever was left to send');
  t.equal(folded.record.order.name, 'resumed');
  folded.mirror(2, 1, 300).mark({ type: 'mirrorEnd', disk: 2, run: 1 });
  t.equal(folded.record.order.name, 'held');
  const drained = growDisk(
    folded.mark({ type: 'orderLost', reason: 'r', compare: [] }).mark({
      type: 'orderResumed',
      compare: [],
      drain: [{ disk: 0, dirtyBytes: 5 }],
      reason: 'r',
    }).record,
    0,
    150,
  );
  t.match(drained.disks[0]!.mirror, { kind: 'difference', startBytes: 0, endBytes: 150 });
});

t.test('a run that begins again behind its end is under way until it ends again', async (t) => {
  const folded = new Folded([100]).begin(1).run(0, 1, 100);
  t.ok(isWhole(folded.record));
  const start = { type: 'mirrorStart', disk: 0, kind: 'full', reason: 'r' } as const;
  folded.mark({ ...start, run: 1, startBytes: 0, endBytes: 100 });
  t.notOk(isWhole(folded.record), 'no point in between');
  folded.mark({ type: 'mirrorEnd', disk: 0, run: 1 });
  t.ok(isWhole(folded.record), 'also when nothing was left to send');
});

// Seen red with half of the disk as the limit: a trim of an empty file system was a mirror.
t.test('dirty blocks or the whole disk', async (t) => {
  const disks = [
    { index: 0, sizeBytes: 100, dirtyBytes: 0 },
    { index: 1, sizeBytes: 100, dirtyBytes: 99 },
    { index: 2, sizeBytes: 100, dirtyBytes: 100 },
  ];
  const drain = [{ disk: 1, dirtyBytes: 99 }];
  t.same(planCatchUp(disks, []), { compare: [2], drain });
  t.same(planCatchUp(disks, [0]), { compare: [0, 2], drain });
  t.same(planCatchUp(disks, 'all'), { compare: [0, 1, 2], drain: [] });
});

t.test('ordered capture comes back when the writes fit the link', async (t) => {
  const first = lost(null, 0);
  const churn = { writtenPerSec: [50, 50, 50], linkPerSec: 100 };
  t.equal(mayDrain(first, churn, 499).name, 'wait', 'not at once');
  t.equal(mayDrain(first, churn, 500).name, 'go');
  t.equal(mayDrain(first, { ...churn, writtenPerSec: [] }, 900).name, 'wait', 'not measured');
  t.equal(
    mayDrain(first, { writtenPerSec: [], linkPerSec: null }, 900).name,
    'go',
    'no link known',
  );
  const fast = { ...churn, writtenPerSec: [10, 90e6, 10], linkPerSec: 100e6 };
  const held = mayDrain(first, fast, 900);
  t.match(held, { name: 'wait', reason: /writes 90.0 MB\/s.*takes 100.0 MB\/s/ });
  t.equal(mayDrain(first, fast, 20_000).name, 'go', 'now and then it is tried');
  t.equal(mayDrain({ ...first, waitMs: 60_000 }, fast, 599_999).name, 'wait', 'seldom, if in vain');
  t.equal(mayDrain({ ...first, waitMs: 60_000 }, fast, 600_000).name, 'go');
  // Held, lost within a minute: a relapse waits longer and wants more room.
  const again = lost({ ...first, resumedAtMs: 1000 }, 20_000);
  t.equal(again.waitMs, 1000);
  t.equal(mayDrain(again, { ...churn, writtenPerSec: [70, 70, 70] }, 30_000).name, 'wait');
  t.equal(mayDrain(first, { ...churn, writtenPerSec: [70, 70, 70] }, 3_000).name, 'go');
  const later = lost({ ...again, resumedAtMs: 30_000 }, 200_000);
  t.same([later.waitMs, later.margin], [500, again.margin], 'held for a while: no longer wait');
  t.same(lost({ ...again, resumedAtMs: 0 }, 11 * 60_000), lost(null, 11 * 60_000), 'forgiven');
});

t.test('only saturated seconds tell what the link takes', async (t) => {
  const meter = new LinkMeter(0);
  meter.acked(500, false);
  meter.acked(500, true);
  meter.sample(1000);
  t.equal(meter.bytesPerSec(1000), null, 'the source was the slower one');
  meter.acked(800, false);
  meter.sample(2000);
  meter.acked(1200, false);
  meter.sample(4000);
  t.equal(meter.bytesPerSec(4000), 800);
  t.equal(meter.bytesPerSec(4000 + 11 * 60_000), null, 'too long ago');
});

// Red when a run that was asked for before answers the wish.
t.test('one disk that a person wants compared', async (t) => {
  const folded = new Folded([100, 200]).begin(1).run(0, 1, 100);
  // Run 1 of disk 1 was asked for; its marks are still on their way.
  folded.record = askDifferenceOf(folded.record, 1, 'a wish', 1);
  folded.run(1, 1, 200, 'difference');
  t.match(folded.record.disks[1]!.mirror, { name: 'needed', reason: 'a wish' });
  folded.run(1, 2, 200, 'difference');
  t.ok(isWhole(folded.record));
  t.match(folded.record.disks[0]!.mirror, { kind: 'full' }, 'the other one is left alone');
});

t.test('a disk that grows', async (t) => {
  const whole = new Folded([100]).begin(1).run(0, 1, 100).record;
  t.match(growDisk(whole, 0, 150).disks[0], {
    sizeBytes: 150,
    mirror: { name: 'needed', kind: 'difference', startBytes: 100, endBytes: 150 },
  });
  const running = new Folded([100]).begin(1).mark({
    type: 'mirrorStart',
    disk: 0,
    run: 1,
    kind: 'full',
    reason: 'r',
    startBytes: 0,
    endBytes: 100,
  }).record;
  t.match(growDisk(running, 0, 150).disks[0]!.mirror, {
    name: 'needed',
    startBytes: 0,
    endBytes: 150,
  });
  t.same(growDisk(whole, 0, 90), whole, 'it never shrinks');
  t.match(askDifference(whole, 'doubt').disks[0]!.mirror, { kind: 'difference', reason: 'doubt' });
});

t.test('the bandwidth limit holds over any second', async (t) => {
  const bucket = new TokenBucket(1000, 0);
  let now = 0;
  let sent = 0;
  for (;;) {
    now += bucket.take(300, now);
    if (now > 10_000) break;
    sent += 300;
  }
  t.ok(sent <= 10_000 + 300 + 100, `${sent} bytes in 10 s`);
  t.ok(sent >= 9_500, `${sent} bytes in 10 s`);
  bucket.setRate(null, now);
  t.equal(bucket.take(1e9, now), 0, 'no limit, no wait');
});

t.test('the window numbers, keeps and gives back', async (t) => {
  const window = new Window(10, 1000);
  const acked: number[] = [];
  for (let at = 0; at < 4; at++) {
    window.push(
      at * 100,
      300,
      async (seq) => Buffer.alloc(seq),
      () => acked.push(at),
    );
  }
  t.notOk(window.hasRoom);
  await window.entry(12)?.packed;
  t.ok(window.hasRoom, 'packed is smaller');
  t.equal(window.entry(14), undefined);
  t.equal(window.ack(9), null);
  t.equal(window.ack(11), 100);
  t.same(acked, [0, 1]);
  t.equal(window.firstSeq, 12);
  t.throws(() => window.ack(14), { code: 'UND_LINK_MESSAGE_INVALID' });
  const abort = new AbortController();
  const waiting = window.until(() => window.entry(14) !== undefined, abort.signal);
  window.push(500, 1, async () => Buffer.alloc(1));
  await waiting;
  const never = window.until(() => false, abort.signal);
  abort.abort(new Error('over'));
  await t.rejects(never, /over/);
});

t.test('lag is never shown smaller than it is', async (t) => {
  const clock = new ClockMap();
  t.equal(clock.ageMs(5, 1000), null);
  clock.sample(100, 1150);
  clock.sample(200, 1210);
  clock.sample(300, 1390);
  t.equal(clock.ageMs(300, 1400), 90, 'by the sample with the shortest way');
  clock.restarted();
  t.equal(clock.ageMs(5, 2000), null, 'the clock of another boot says nothing');
  clock.sample(10, 2030);
  t.equal(clock.ageMs(5, 2030), 5);
});

t.test('the last acknowledgement is noted for the agent that follows', async (t) => {
  const dir = await mkdtemp(join(tmpdir(), 'note-test-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  const path = join(dir, 'note.json');
  const failures: string[] = [];
  const note = new AckNote(path, (reason) => failures.push(reason));
  t.equal(await note.read(), null, 'there is none');
  const last = { journalId: 'J', epoch: 2, ackedSeq: 12 };
  // Seen red without the blanks: the end of the longer one stays behind the shorter.
  note.write({ ...last, ackedSeq: 123_456_789 });
  note.write(last);
  const following = new AckNote(path, (reason) => failures.push(reason));
  t.same(await following.read(), last);
  following.write({ ...last, ackedSeq: 13 });
  t.match(await note.read(), { ackedSeq: 13 });
  t.same(failures, []);
  note.write({ ...last, journalId: 'J'.repeat(300) });
  t.match(failures, [/too long/]);
  t.match(await note.read(), { ackedSeq: 13 }, 'the one before stays');
  await following.forget();
  t.equal(await following.read(), null);
  await writeFile(path, '{"journalId":"J"');
  t.equal(await following.read(), null, 'one that cannot be read is none');
  note.close();
});

// Seen red when nothing is given back, and when it is given back as soon as it is packed.
t.test('the memory of an acknowledged frame is used again, and not before', async (t) => {
  const window = new Window(1, 64 * MIB);
  const pack = (seq: number) => {
    const data = Buffer.alloc(200_000, seq);
    const extent = { kind: 'write' as const, disk: 0, offsetBytes: 0, lengthBytes: data.length };
    const meta = { epoch: 1, bootTimeNs: 0n, wallMs: 0, capturePos: 0 };
    return packFrame({ ...meta, kind: 'stream', seq }, [{ ...extent, data }], 'none');
  };
  const memory = async (seq: number) => (await window.entry(seq)!.packed).buffer;
  for (let seq = 1; seq <= 3; seq++) window.push(0, 200_000, pack);
  const first = await memory(1);
  t.not(await memory(2), first);
  window.ack(1);
  await new Promise((resolve) => setImmediate(resolve));
  window.push(0, 200_000, pack);
  t.equal(await memory(4), first);
  for (let seq = 2; seq <= 4; seq++) t.equal(checkFrame(await window.entry(seq)!.packed).seq, seq);
});
