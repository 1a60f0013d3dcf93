/** Which moments can be recovered: the index against a plain list of all points, its pages, and what it makes of ruins. */
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import type { JournalHeader } from '../../appliance/journal/header-scan.ts';
import { judgeFrame, newPointState } from '../../appliance/points/point-fold.ts';
import { type Point, PointIndex } from '../../appliance/points/point-index.ts';
import { type History, PointStore, percentOf } from '../../appliance/points/point-store.ts';
import { ReplicationStream } from '../../appliance/replication/replication-stream.ts';
import {
  foldFrame,
  isWhole,
  newStreamRecord,
  type StreamRecord,
} from '../../appliance/replication/stream-record.ts';
import { type FrameHeader, packFrame, packMark } from '../../protocol/frame.ts';
import type { Mark } from '../../protocol/marks.ts';

t.setTimeout(120_000);

type TestLike = { teardown: (fn: () => unknown) => void };
async function tempDir(t: TestLike): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'points-test-'));
  t.teardown(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

const DISK_BYTES = 1000;
const START_MS = 1_700_000_000_000;
type Frame = { header: FrameHeader; mark: Mark | null; record: StreamRecord };

/** A stream as an agent would send it, with the record after each frame and the plain truth about its points. */
class Script {
  readonly frames: Frame[] = [];
  readonly points: Point[] = [];
  record = newStreamRecord([{ index: 0, sizeBytes: DISK_BYTES, freshReplica: true }]);
  #bootMs = 1000;
  /** How far the wall clock was set. */
  #setMs = 0;
  #pos = 0;
  #reached = 0;
  #epoch = 1;
  #run = 0;

  #add(patch: Partial<FrameHeader>, mark: Mark | null, dtMs: number): void {
    this.#bootMs += dtMs;
    const header: FrameHeader = {
      kind: mark ? 'mark' : 'stream',
      codec: 'none',
      epoch: this.#epoch,
      seq: this.record.seq + 1,
      extentCount: 0,
      unpackedBytes: 0,
      packedBytes: 100,
      payloadCrc: 0,
      bootTimeNs: BigInt(this.#bootMs) * 1_000_000n,
      wallMs: START_MS + this.#bootMs + this.#setMs,
      capturePos: this.#pos,
      aheadBytes: 0,
      cursorBytes: 0,
      skippedBytes: 0,
      run: 0,
      disk: 0,
      ...patch,
    };
    this.record = foldFrame(this.record, header, mark);
    this.#reached = Math.max(this.#reached, header.capturePos + header.aheadBytes);
    if (isWhole(this.record) && header.capturePos >= this.#reached) {
      this.points.push({ seq: header.seq, sourceMs: header.wallMs });
    }
    this.frames.push({ header, mark, record: this.record });
  }

  setClock(byMs: number): void {
    this.#setMs += byMs;
  }

  write(dtMs: number): void {
    this.#pos += 500;
    this.#add({}, null, dtMs);
  }

  /** A batch of 2000 that is cut, and whether the agent dies behind the first part. */
  cut(dtMs: number, dies: boolean): void {
    const before = this.#pos;
    this.#add({ aheadBytes: 2000 }, null, dtMs);
    if (dies) {
      // Read again in smaller batches: whole frames, and no points until they are past what was there.
      for (this.#pos = before; this.#pos < before + 2000; ) {
        this.#pos += 400;
        this.#add({}, null, dtMs);
      }
    } else {
      this.#pos = before + 2000;
      this.#add({}, null, dtMs);
    }
  }

  reread(dtMs: number): void {
    this.#add({ kind: 'mirror' }, null, dtMs);
  }

  ask(name: string, quiesced: boolean, dtMs: number): void {
    this.#add(
      {},
      {
        type: 'consistencyPoint',
        pointId: `id of ${name}`,
        name,
        quiesced,
        reason: quiesced ? null : 'a hook failed',
        freezeMs: quiesced ? 12 : null,
        fileSystems: [],
        hooks: [],
      },
      dtMs,
    );
  }

  tick(dtMs: number): void {
    this.#add({}, { type: 'tick' }, dtMs);
  }

  begin(reason: string, dtMs = 20): void {
    if (this.record.seq > 0) this.#epoch++;
    this.#pos = 4096;
    this.#reached = 4096;
    this.#add({}, { type: 'epochStart', captureId: 'C', bootId: 'B', reason }, dtMs);
  }

  lose(dtMs: number): void {
    if (this.record.order.name === 'lost') return;
    this.#add({}, { type: 'orderLost', reason: 'the ring buffer overflowed', compare: [] }, dtMs);
  }

  resume(disks: number[], dtMs: number): void {
    if (this.record.order.name !== 'lost') return;
    const reason = 'the ring buffer overflowed';
    this.#add({}, { type: 'orderResumed', compare: disks, drain: [], reason }, dtMs);
  }

  /** As far as one is needed. */
  mirror(dtMs: number): void {
    const { mirror } = this.record.disks[0]!;
    if (mirror.name !== 'needed' || this.record.order.name === 'lost') return;
    const run = ++this.#run;
    const { kind, reason } = mirror;
    const span = { startBytes: 0, endBytes: DISK_BYTES };
    this.#add({}, { type: 'mirrorStart', disk: 0, run, kind, reason, ...span }, dtMs);
    for (const cursorBytes of [400, DISK_BYTES]) {
      this.#add({ kind: 'mirror', run, cursorBytes }, null, dtMs);
      this.write(dtMs);
    }
    this.#add({}, { type: 'mirrorEnd', disk: 0, run }, dtMs);
  }
}

type Step = { what: string; dtMs: number };
const step: fc.Arbitrary<Step> = fc.record({
  what: fc.oneof(
    { weight: 20, arbitrary: fc.constant('write') },
    { weight: 6, arbitrary: fc.constant('tick') },
    { weight: 2, arbitrary: fc.constantFrom('cut', 'cut-dies', 'reread') },
    { weight: 1, arbitrary: fc.constantFrom('lose', 'resume', 'resume-clean', 'epoch') },
    { weight: 3, arbitrary: fc.constant('mirror') },
  ),
  dtMs: fc.integer({ min: 1, max: 900 }),
});
const script = fc.array(step, { minLength: 5, maxLength: 120 }).map((steps) => play(steps));
/** As `script`, and the wall clock is set now and then. */
const scriptWithClock = fc
  .tuple(
    fc.array(step, { minLength: 5, maxLength: 120 }),
    fc.array(fc.tuple(fc.nat(119), fc.integer({ min: -40_000, max: 20_000 })), { maxLength: 4 }),
  )
  .map(([steps, sets]) => play(steps, new Map(sets)));

function play(steps: readonly Step[], sets: ReadonlyMap<number, number> = new Map()): Script {
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  for (const [at, { what, dtMs }] of steps.entries()) {
    made.setClock(sets.get(at) ?? 0);
    if (what === 'write') made.write(dtMs);
    if (what === 'tick') made.tick(dtMs);
    if (what === 'cut') made.cut(dtMs, false);
    if (what === 'cut-dies') made.cut(dtMs, true);
    if (what === 'reread') made.reread(dtMs);
    if (what === 'lose') made.lose(dtMs);
    if (what === 'resume') made.resume([0], dtMs);
    if (what === 'resume-clean') made.resume([], dtMs);
    if (what === 'epoch') made.begin('the source was restarted', dtMs);
    if (what === 'mirror') made.mirror(dtMs);
  }
  return made;
}

const fold = (frames: readonly Frame[]): PointIndex => {
  const index = new PointIndex();
  for (const { header, mark, record } of frames) index.add(header, mark, record);
  return index;
};

const shape = (index: PointIndex) => ({
  stretches: index.stretches(),
  gaps: index.gaps(),
  marks: index.marks(),
  newest: index.newest,
});

/** Each answer is a true point at or before the moment, and none of an earlier second is newer. */
function checkAnswers(index: PointIndex, points: readonly Point[], fromMs: number, toMs: number) {
  for (let at = fromMs - 1500; at <= toMs + 1500; at += 333) {
    const found = index.pointAt(at);
    const before = points.filter(({ sourceMs }) => sourceMs <= at);
    const inEarlierSecond = before.filter(
      ({ sourceMs }) => Math.floor(sourceMs / 1000) < Math.floor(at / 1000),
    );
    if (!found) {
      if (inEarlierSecond.length > 0) return `nothing at ${at}, ${inEarlierSecond[0]!.sourceMs} is`;
      continue;
    }
    if (!before.some(({ seq, sourceMs }) => seq === found.seq && sourceMs === found.sourceMs))
      return `${JSON.stringify(found)} at ${at} is no point`;
    if (inEarlierSecond.some(({ seq }) => seq > found.seq))
      return `${JSON.stringify(found)} at ${at} is too old`;
  }
  return null;
}

t.test('the index says of every frame what a list of all points says', async () => {
  fc.assert(
    fc.property(script, ({ frames, points }) => {
      const index = fold(frames);
      const truth = new Set(points.map(({ seq }) => seq));
      for (const { header } of frames) {
        if (index.isPoint(header.seq) !== truth.has(header.seq)) {
          throw new Error(`frame ${header.seq}: ${index.isPoint(header.seq)}`);
        }
        const before = index.pointBefore(header.seq);
        if (before && (before.seq > header.seq || !truth.has(before.seq))) {
          throw new Error(`before ${header.seq}: ${JSON.stringify(before)}`);
        }
      }
      const wrong = checkAnswers(index, points, START_MS, frames.at(-1)!.header.wallMs);
      if (wrong) throw new Error(wrong);
      // Spans follow each other without a hole and without overlap.
      const spans = [...index.stretches(), ...index.gaps()].sort(
        (a, b) => a.fromSeq - b.fromSeq || (a.toSeq ?? Infinity) - (b.toSeq ?? Infinity),
      );
      let next = 1;
      for (const { fromSeq, toSeq } of spans) {
        if (fromSeq !== next) throw new Error(`a span begins at ${fromSeq}, not ${next}`);
        next = (toSeq ?? frames.length) + 1;
      }
    }),
    { numRuns: 300 },
  );
});

/** Points of one stretch, one after the other: frames without a break, by a clock that was not set. */
function stretchesOf({ frames, points }: Script): Point[][] {
  const bootMs = new Map(
    frames.map(({ header }) => [header.seq, Number(header.bootTimeNs / 1_000_000n)]),
  );
  const distance = ({ seq, sourceMs }: Point) => sourceMs - bootMs.get(seq)!;
  const stretches: Point[][] = [];
  for (const point of points) {
    const last = stretches.at(-1)?.at(-1);
    const goesOn =
      last?.seq === point.seq - 1 && Math.abs(distance(point) - distance(last)) <= 1000;
    if (goesOn) stretches.at(-1)!.push(point);
    else stretches.push([point]);
  }
  return stretches;
}

/**
 * Seen red: when a stretch goes on where the clock was set; when the newest point answers for every moment that is not
 * before it; and when a restart joins what was cut there.
 */
t.test('a clock that was set: each moment is the one that the clock last showed', async (t) => {
  const dir = await tempDir(t);
  let n = 0;
  await fc.assert(
    fc.asyncProperty(scriptWithClock, async (made) => {
      const { frames, points, record } = made;
      // A time away makes a gap of its own, which is another test's.
      fc.pre(
        fold(frames)
          .gaps()
          .every(({ kind }) => kind !== 'source-away'),
      );
      const pages = join(dir, String(n++));
      const store = await PointStore.open(pages, history(frames), record);
      await store.seal(record);
      const again = await PointStore.open(pages, history(frames), record);
      const stretches = stretchesOf(made);
      const times = points.map(({ sourceMs }) => sourceMs);
      for (const index of [fold(frames), again.index]) {
        const said = index.stretches().map(({ fromSeq, toSeq }) => [fromSeq, toSeq]);
        const want = stretches.map((one) => [one[0]!.seq, one.at(-1)!.seq]);
        if (JSON.stringify(said) !== JSON.stringify(want)) {
          throw new Error(`stretches ${JSON.stringify(said)}, not ${JSON.stringify(want)}`);
        }
        for (let at = Math.min(...times) - 1500; at <= Math.max(...times) + 1500; at += 333) {
          const within = stretches.findLast(
            (one) => one[0]!.sourceMs <= at && at <= one.at(-1)!.sourceMs,
          );
          const before = (within ?? points).filter(({ sourceMs }) => sourceMs <= at);
          const inEarlierSecond = before.filter(
            ({ sourceMs }) => Math.floor(sourceMs / 1000) < Math.floor(at / 1000),
          );
          const found = index.pointAt(at);
          const ok = found
            ? before.some(({ seq }) => seq === found.seq) &&
              !inEarlierSecond.some(({ seq }) => seq > found.seq)
            : !within && inEarlierSecond.length === 0;
          if (!ok)
            throw new Error(`${JSON.stringify(found)} at ${at} of ${JSON.stringify(before)}`);
        }
      }
    }),
    { numRuns: 200 },
  );
});

t.test(
  'a batch that was cut and came twice has no point until all of it has come again',
  async (t) => {
    const made = new Script();
    made.begin('first start of the stream');
    made.mirror(20);
    made.write(20);
    const before = made.record.seq;
    made.cut(20, true);
    const index = fold(made.frames);
    t.ok(index.isPoint(before));
    // The part, and four of five frames of the repetition. Without `aheadBytes` in the fold all six would be points.
    t.same(
      [1, 2, 3, 4, 5].map((step) => index.isPoint(before + step)),
      Array(5).fill(false),
    );
    t.ok(index.isPoint(before + 6));
    t.match(index.gaps().at(-1), { kind: 'repetition', crossable: true });
  },
);

t.test('gaps say why, and whether a replay may run across them', async (t) => {
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  made.write(20);
  made.lose(20);
  made.resume([0], 20);
  made.mirror(20);
  made.tick(900);
  made.write(60_000);
  made.tick(900);
  made.begin('the source was restarted');
  const index = fold(made.frames);
  t.match(index.gaps(), [
    { kind: 'first-mirror', reason: 'first mirror', crossable: false },
    { kind: 'order-lost', reason: 'the ring buffer overflowed', crossable: true },
    { kind: 'difference-mirror', crossable: false },
    { kind: 'source-away', reason: /60 s came in one piece/, crossable: true },
    { kind: 'difference-mirror', reason: 'the source was restarted', toSeq: null, toMs: null },
  ]);
  t.equal(index.stretches().length, 3);
  const away = index.gaps()[3]!;
  t.equal(away.toMs! - away.fromMs, 60_000);
});

t.test('points that were asked for are named; in a gap they are none', async (t) => {
  const dir = await tempDir(t);
  const made = new Script();
  made.begin('first start of the stream');
  made.ask('too early', true, 20);
  made.mirror(20);
  made.write(20);
  made.ask('nightly', true, 20);
  made.ask('without hooks', false, 2000);
  const index = fold(made.frames);
  const seq = made.record.seq;
  t.match(index.marks(), [
    { seq: seq - 1, pointId: 'id of nightly', name: 'nightly', quiesced: true },
    { seq, name: 'without hooks', quiesced: false },
  ]);
  t.ok(index.isPoint(seq));
  const store = await PointStore.open(dir, history(made.frames, 1, seq), made.record);
  t.same(store.index.marks(), index.marks(), 'made again from the history');
  await store.seal(made.record);
  const again = await PointStore.open(dir, history(made.frames, 1, seq), made.record);
  t.same(again.index.marks(), index.marks(), 'read from a page');
});

t.test('silence that a tick ends is no gap: nothing was written', async (t) => {
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  made.write(20);
  made.tick(600_000);
  t.equal(fold(made.frames).stretches().length, 1);
});

t.test('a clock that is set back: the second time counts', async (t) => {
  let state = newPointState();
  const index = new PointIndex();
  const whole: StreamRecord = {
    ...newStreamRecord([{ index: 0, sizeBytes: DISK_BYTES, freshReplica: true }]),
    disks: [],
  };
  let capturePos = 0;
  const frame = (seq: number, wallMs: number) => {
    const header = {
      ...new Script().record,
      kind: 'stream',
      epoch: 1,
      seq,
      wallMs,
      bootTimeNs: BigInt(seq) * 1_000_000_000n,
      capturePos: ++capturePos,
      aheadBytes: 0,
    } as unknown as FrameHeader;
    state = judgeFrame(state, header, whole).state;
    index.add(header, null, whole);
  };
  for (let second = 1; second <= 100; second++) frame(second, second * 1000);
  for (let second = 1; second <= 60; second++) frame(100 + second, (30 + second) * 1000);
  t.same(index.pointAt(50_500), { seq: 120, sourceMs: 50_000 });
  t.same(index.pointAt(20_500), { seq: 20, sourceMs: 20_000 });
  t.same(index.pointAt(95_500), { seq: 95, sourceMs: 95_000 }, 'it has not come again');
  t.same(index.pointAt(1_000_000), { seq: 160, sourceMs: 90_000 });
  t.equal(index.pointAt(999), null);
  t.match(index.stretches(), [
    { fromMs: 1000, toMs: 100_000, toSeq: 100 },
    { fromMs: 31_000, toMs: 90_000, fromSeq: 101 },
  ]);
  t.equal(index.gaps().length, 0);
  // Set back by an hour, and that much is not there any more.
  index.evictBefore(131);
  t.match(index.stretches(), [{ fromMs: 61_000, toMs: 90_000, fromSeq: 131 }]);
  // Numbers are given anew, by the same clock.
  index.truncateAfter(150);
  state = { ...state, seq: 150 };
  for (let second = 51; second <= 60; second++) frame(100 + second, (30 + second) * 1000);
  t.equal(index.stretches().length, 1, 'the clock was not set');
});

// Red when the frames behind the last one of the clock's first time are looked at too.
t.test('to the frame, a moment of the first time is of the first time', async (t) => {
  const stream = await ReplicationStream.open({
    jobId: 'j',
    jobDir: await tempDir(t),
    disks: [
      {
        ...{ diskId: 'd', index: 0, devicePath: '/dev/null', sizeBytes: DISK_BYTES },
        ...{ replicaPath: null, freshReplica: true },
      },
    ],
    settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
    limits: { journalBytes: 1 << 30 },
  });
  t.teardown(() => stream.close());
  const connection = stream.connect({ send: () => {}, close: () => {} });
  let seq = 0;
  const meta = (setMs = 0) => {
    seq++;
    const bootMs = 1000 + seq * 400;
    const wallMs = START_MS + bootMs + setMs;
    return { epoch: 1, seq, bootTimeNs: BigInt(bootMs) * 1_000_000n, wallMs, capturePos: seq };
  };
  const start = {
    kind: 'full',
    reason: 'first mirror',
    startBytes: 0,
    endBytes: DISK_BYTES,
  } as const;
  const about = { disk: 0, run: 1 };
  const epochStart = { captureId: 'c', bootId: 'b', reason: 'test' };
  const whole = { ...about, cursorBytes: DISK_BYTES, skippedBytes: DISK_BYTES };
  for (const frame of [
    packMark(meta(), { type: 'epochStart', ...epochStart }),
    packMark(meta(), { type: 'mirrorStart', ...about, ...start }),
    await packFrame({ kind: 'mirror', ...meta(), ...whole }, [], 'none'),
    packMark(meta(), { type: 'mirrorEnd', ...about }),
  ]) {
    await connection.frame(frame);
  }
  const tick = async (setMs: number) => {
    const at = meta(setMs);
    await connection.frame(packMark(at, { type: 'tick' }));
    return { seq: at.seq, sourceMs: at.wallMs };
  };
  let last: Point | undefined;
  for (let n = 0; n < 40; n++) last = await tick(0);
  for (let n = 0; n < 40; n++) await tick(-60_000);
  await stream.stopIntake('all is there');
  t.same(await stream.exactPointAt(last!.sourceMs), last);
  t.match(await stream.exactPointAt(last!.sourceMs - 1), { seq: last!.seq - 1 });
  t.match(await stream.exactPointAt(last!.sourceMs + 1), { seq }, 'later than any: the newest');
});

/** What a journal would still hold: mirror frames up to `applied` have left, and so has history before `oldestSeq`. */
const history = (frames: readonly Frame[], oldestSeq = 1, applied = Infinity): History => ({
  oldestSeq,
  durableSeq: frames.at(-1)?.header.seq ?? 0,
  async *headers(fromSeq: number): AsyncGenerator<JournalHeader> {
    for (const { header, mark } of frames) {
      if (header.seq < fromSeq || header.seq < oldestSeq) continue;
      if (header.kind === 'mirror' && header.run !== 0 && header.seq <= applied) continue;
      yield { header, frame: mark ? packMark(header, mark) : null };
    }
  },
});

const recordAt = (frames: readonly Frame[], seq: number): StreamRecord =>
  frames[seq - 1]?.record ??
  newStreamRecord([{ index: 0, sizeBytes: DISK_BYTES, freshReplica: true }]);

t.test('pages: closed and opened anywhere, it is the same index', async (t) => {
  await fc.assert(
    fc.asyncProperty(script, fc.array(fc.nat(300), { maxLength: 4 }), async (made, cuts) => {
      const dir = await mkdtemp(join(tmpdir(), 'points-test-'));
      try {
        const { frames } = made;
        let store = await PointStore.open(dir, history([]), recordAt([], 0));
        for (const [at, { header, mark, record }] of frames.entries()) {
          store.add(header, mark, record);
          if (!cuts.includes(at)) continue;
          // A page is closed at one cut; at the next the appliance dies with an open page.
          if (cuts.indexOf(at) % 2 === 0) await store.seal(record);
          await store.close();
          const seen = frames.slice(0, at + 1);
          store = await PointStore.open(dir, history(seen, 1, 0), recordAt(frames, at));
        }
        t.same(shape(store.index), shape(fold(frames)));
        const wrong = checkAnswers(
          store.index,
          made.points,
          START_MS,
          frames.at(-1)!.header.wallMs,
        );
        if (wrong) throw new Error(wrong);
      } finally {
        await rm(dir, { recursive: true });
      }
    }),
    { numRuns: 150 },
  );
});

t.test(
  'without its pages the index is made again from the history, and claims nothing false',
  async () => {
    await fc.assert(
      fc.asyncProperty(script, fc.nat(1000), fc.nat(1000), async (made, a, b) => {
        const dir = await mkdtemp(join(tmpdir(), 'points-test-'));
        try {
          const { frames } = made;
          const applied = 1 + (a % frames.length);
          const oldest = 1 + (b % applied);
          const store = await PointStore.open(
            dir,
            history(frames, oldest, applied),
            recordAt(frames, applied),
          );
          const truth = new Set(made.points.map(({ seq }) => seq));
          let claimed = 0;
          for (let seq = 1; seq <= frames.length; seq++) {
            if (!store.index.isPoint(seq)) continue;
            claimed++;
            if (!truth.has(seq)) throw new Error(`frame ${seq} is no point`);
            if (seq < oldest) throw new Error(`frame ${seq} has left`);
          }
          // All history is there: nothing is lost either.
          if (oldest === 1 && claimed !== truth.size)
            throw new Error(`${claimed} of ${truth.size}`);
          for (const { fromSeq, toSeq } of store.index.stretches()) {
            for (const { header } of frames.slice(fromSeq - 1, toSeq)) {
              if (header.kind === 'mirror' && header.run !== 0)
                throw new Error('a hole in a stretch');
            }
          }
          if (store.index.seq !== frames.length) throw new Error(`it stands at ${store.index.seq}`);
        } finally {
          await rm(dir, { recursive: true });
        }
      }),
      { numRuns: 150 },
    );
  },
);

t.test('made again in the background, it is what it would be at once', async (t) => {
  await fc.assert(
    fc.asyncProperty(script, fc.nat(1000), fc.nat(1000), fc.nat(1000), async (made, a, b, c) => {
      const { frames } = made;
      const applied = 1 + (a % frames.length);
      const oldest = 1 + (b % applied);
      const durable = applied + (c % (frames.length - applied + 1));
      const built: PointIndex[] = [];
      for (const backgroundFrames of [0, Number.POSITIVE_INFINITY]) {
        const dir = await mkdtemp(join(tmpdir(), 'points-test-'));
        try {
          const store = await PointStore.open(
            dir,
            history(frames.slice(0, durable), oldest, applied),
            recordAt(frames, applied),
            backgroundFrames,
          );
          const { rebuild } = store;
          if ((rebuild !== null) !== (backgroundFrames === 0)) throw new Error('not as asked');
          // Seen red with frames that are folded in at once: they come before what is older.
          for (const { header, mark, record } of frames.slice(durable)) {
            store.add(header, mark, record);
            if (c % 2 === 0) await new Promise((resolve) => setImmediate(resolve));
          }
          await store.settled();
          if (store.rebuild) throw new Error('it is not over');
          built.push(store.index);
          await store.close();
        } finally {
          await rm(dir, { recursive: true });
        }
      }
      t.same(shape(built[0]!), shape(built[1]!));
    }),
    { numRuns: 150 },
  );
});

t.test('a rebuild that is broken off leaves pages; the next start goes on from them', async (t) => {
  const dir = await tempDir(t);
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  for (let n = 0; n < 8000; n++) made.tick(1000);
  const { frames } = made;
  const whole = history(frames, 1, frames.length);
  let read = 0;
  let openSlow!: () => void;
  const slow = new Promise<void>((resolve) => {
    openSlow = resolve;
  });
  const counted = {
    ...whole,
    async *headers(fromSeq: number) {
      for await (const one of whole.headers(fromSeq)) {
        if (++read === 6000) openSlow();
        yield one;
      }
    },
  };
  const store = await PointStore.open(dir, counted, made.record, 0);
  t.ok(store.rebuild!.toSeq === frames.length && percentOf(store.rebuild!) < 100);
  await slow;
  await store.close();
  t.ok((await readdir(dir)).length > 0, 'a page was written on the way');
  read = 0;
  const again = await PointStore.open(dir, counted, made.record, 0);
  await again.settled();
  t.ok(read < frames.length - 3000, `${read} frames were read again`);
  t.same(shape(again.index), shape(fold(frames)));
  await again.close();
});

t.test('an old journal: unbroken history is all points; its missing frames part it', async (t) => {
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  const quiet = made.record.seq;
  made.tick(200);
  made.tick(200);
  for (let i = 0; i < 30; i++) made.write(200);
  made.reread(20);
  const reread = made.record.seq;
  for (let i = 0; i < 30; i++) made.write(200);
  const end = made.record.seq;
  // It begins after the mirror, and blocks that were read again left with the mirrors' frames.
  const left = made.frames.filter(({ header }) => header.seq > quiet && header.seq !== reread);
  const store = await PointStore.open(
    await tempDir(t),
    { ...history(left, quiet + 1), durableSeq: end },
    made.record,
  );
  t.match(store.index.stretches(), [
    // Sure at the second tick: only there it is known that no repetition was under way.
    { fromSeq: quiet + 2, toSeq: reread - 1 },
    { fromSeq: reread + 1, toSeq: end },
  ]);
  t.match(store.index.gaps(), [{ toSeq: quiet + 1 }, { kind: 'missing', crossable: false }]);
});

t.test('history that left: pages go, and what remains is said rightly', async (t) => {
  const dir = await tempDir(t);
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  for (let i = 0; i < 133; i++) {
    made.write(500);
    made.tick(500);
    made.tick(500);
  }
  const { frames } = made;
  const store = await PointStore.open(dir, history([]), recordAt([], 0));
  for (const { header, mark, record } of frames) {
    store.add(header, mark, record);
    if (header.seq % 100 === 0) await store.seal(record);
  }
  t.equal((await readdir(dir)).length, 4);
  await store.evictBefore(250, made.record);
  t.equal((await readdir(dir)).length, 2);
  t.match(store.index.stretches(), [{ fromSeq: 250, toSeq: made.record.seq }]);
  t.same(store.index.gaps(), []);
  const first = store.index.stretches()[0]!;
  t.equal(store.index.pointAt(first.fromMs - 1), null);
  t.ok(store.index.pointAt(first.fromMs)!.seq >= 250);
  await store.close();
  const again = await PointStore.open(dir, history(frames, 250), made.record);
  t.same(shape(again.index), shape(store.index));
  // A page that is damaged counts as missing, and so does everything behind it.
  const [name] = (await readdir(dir)).sort();
  await writeFile(join(dir, name!), '{"version":1');
  const rebuilt = await PointStore.open(dir, history(frames, 250), made.record);
  const tick = frames.find(
    ({ header, mark }, at) =>
      header.seq > 250 && mark?.type === 'tick' && frames[at - 1]!.mark !== null,
  )!;
  t.match(rebuilt.index.stretches(), [{ fromSeq: tick.header.seq, toSeq: made.record.seq }]);
});

t.test('frames that were taken back are in no page; their numbers are given anew', async (t) => {
  const dir = await tempDir(t);
  const made = new Script();
  made.begin('first start of the stream');
  made.mirror(20);
  for (let i = 0; i < 100; i++) made.write(500);
  const { frames } = made;
  const store = await PointStore.open(dir, history([]), recordAt([], 0));
  for (const { header, mark, record } of frames) {
    store.add(header, mark, record);
    if (header.seq % 30 === 0) await store.seal(record);
  }
  await store.truncateAfter(70, recordAt(frames, 70));
  t.match(store.index.stretches(), [{ toSeq: 70 }]);
  t.ok(store.index.newest!.seq <= 70);
  await store.close();
  const again = await PointStore.open(dir, history(frames.slice(0, 70)), recordAt(frames, 70));
  t.same(again.index.stretches(), store.index.stretches());
  t.equal(again.index.isPoint(71), false);
});
