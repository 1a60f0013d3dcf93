/** When checkpoints are taken and which are given up: rules one by one, and whole days of a job played through. */
import fc from 'fast-check';
import t from 'tap';
import {
  DENSEST_MS,
  dueCheckpoint,
  MERGE_POLICY,
  type Merge,
  planMerges,
  REPLAY_BYTES,
  type RetainedCheckpoint,
} from '../../appliance/checkpoints/policy.ts';
import { random } from '../random.ts';

t.test('when a checkpoint is due', async (t) => {
  const point = { seq: 100, sourceMs: 0, sinceSeq: 50 };
  const facts = {
    ...{ point, dataSeq: 100, newest: null, replayBytes: 0, nowMs: 1_000_000 },
    ...{ everyMs: 60_000 },
  };
  t.equal(dueCheckpoint({ ...facts, point: null }), null, 'the replica is at no point');
  t.ok(dueCheckpoint(facts), 'the first one at once');
  t.ok(dueCheckpoint({ ...facts, newest: { seq: 49, takenMs: 999_999 } }), 'of the stretch');
  const newest = { seq: 60, takenMs: 941_000 };
  t.equal(dueCheckpoint({ ...facts, newest }), null, 'too early');
  t.ok(dueCheckpoint({ ...facts, newest, nowMs: 1_001_000 }));
  t.equal(
    dueCheckpoint({ ...facts, newest, nowMs: 1_001_000, dataSeq: 60 }),
    null,
    'nothing was applied since',
  );
});

// Red without the line for it: the next one is due when the clock is where it was and the schedule's time over.
t.test('a clock that was set back does not keep checkpoints from being due', async (t) => {
  const facts = {
    ...{ point: { seq: 100, sourceMs: 0, sinceSeq: 50 }, dataSeq: 100, replayBytes: 0 },
    ...{ newest: { seq: 60, takenMs: 86_400_000 }, everyMs: 900_000 },
  };
  t.ok(dueCheckpoint({ ...facts, nowMs: 1000 }), 'a day');
  t.equal(dueCheckpoint({ ...facts, nowMs: 1000, dataSeq: 60 }), null, 'nothing was applied');
});

t.test(
  'of a source that writes much, checkpoints are due by what a replay would take',
  async (t) => {
    const point = { seq: 100, sourceMs: 0, sinceSeq: 50 };
    const facts = {
      ...{ point, dataSeq: 100, newest: { seq: 60, takenMs: 0 }, nowMs: DENSEST_MS },
      ...{ everyMs: 900_000, replayBytes: REPLAY_BYTES },
    };
    t.equal(dueCheckpoint(facts), 'much was written');
    t.equal(dueCheckpoint({ ...facts, replayBytes: REPLAY_BYTES - 1 }), null, 'a little less');
    t.equal(dueCheckpoint({ ...facts, nowMs: DENSEST_MS - 1 }), null, 'not that often');
    t.equal(dueCheckpoint({ ...facts, dataSeq: 60 }), null, 'nothing of it was applied');
    t.equal(dueCheckpoint({ ...facts, point: null }), null);
  },
);

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const JOURNAL = 'journal';
/** The whole history can be replayed. */
const WHOLE = { journalId: JOURNAL, oldestSeq: 1 };

/** One for each time, oldest first. */
const takenAt = (timesMs: number[]): RetainedCheckpoint[] =>
  timesMs.map((takenMs, n) => {
    const id = { checkpointId: n, journalId: JOURNAL, seq: 10 * n };
    return { ...id, sinceSeq: 1, takenMs, sourceMs: takenMs, held: false };
  });

const history = fc
  .array(
    fc.record({
      gapMs: fc.integer({ min: 1000, max: 8 * HOUR }),
      newStretch: fc.boolean(),
      held: fc.integer({ min: 0, max: 9 }).map((n) => n === 0),
    }),
    { minLength: 1, maxLength: 60 },
  )
  .map((steps) => {
    let takenMs = 0;
    let sinceSeq = 1;
    const checkpoints = steps.map(({ gapMs, newStretch, held }, index) => {
      takenMs += gapMs;
      if (newStretch && index % 3 === 0) sinceSeq = index + 1;
      const id = { checkpointId: index, journalId: JOURNAL, seq: index + 1 };
      return { ...id, takenMs, sourceMs: takenMs, sinceSeq, held };
    });
    return { checkpoints, nowMs: takenMs + 1000 };
  });

/** What is left; throws when a merge is not of two neighbours. */
function merged<T extends RetainedCheckpoint>(checkpoints: readonly T[], merges: Merge[]): T[] {
  const left = [...checkpoints];
  for (const { lowerId, upperId } of merges) {
    const at = left.findIndex(({ checkpointId }) => checkpointId === lowerId);
    if (at < 0 || left[at + 1]?.checkpointId !== upperId) throw new Error('not neighbours');
    // Red when only the two neighbours are looked at: a VM has all layers below its own open.
    if (left.slice(at).some(({ held }) => held)) throw new Error('something rests on it');
    left.splice(at, 1);
  }
  return left;
}

t.test('merges: bounded, never under what is held, the newest stays, nothing twice', async (t) => {
  fc.assert(
    fc.property(history, ({ checkpoints, nowMs }) => {
      const facts = { nowMs, history: WHOLE };
      const merges = planMerges(checkpoints, facts);
      const left = merged(checkpoints, merges);
      if (left.at(-1) !== checkpoints.at(-1)) return false;
      if (planMerges(left, facts).length > 0) return false;
      if (!checkpoints.some(({ held }) => held) && left.length > MERGE_POLICY.maxCheckpoints) {
        return false;
      }
      if (checkpoints.length > MERGE_POLICY.maxCheckpoints) return true;
      // Not too many: what is dense and young, and each stretch's first one, is there still.
      return checkpoints.every(
        (one, index) =>
          left.includes(one) ||
          (nowMs - one.takenMs > MERGE_POLICY.denseMs &&
            checkpoints[index - 1]?.sinceSeq === one.sinceSeq),
      );
    }),
    { numRuns: 500 },
  );
  t.pass('random histories');
});

t.test('merges: three days of a checkpoint each quarter of an hour', async (t) => {
  let kept: RetainedCheckpoint[] = [];
  for (let n = 0; n < 3 * 96; n++) {
    const takenMs = n * 15 * MINUTE;
    kept.push({ ...takenAt([takenMs])[0]!, checkpointId: n, seq: n });
    kept = merged(kept, planMerges(kept, { nowMs: takenMs, history: WHOLE }));
    if (kept.length > MERGE_POLICY.maxCheckpoints) t.fail(`${kept.length} at ${n}`);
  }
  const nowMs = kept.at(-1)!.takenMs;
  const ages = kept.map(({ takenMs }) => (nowMs - takenMs) / MINUTE).reverse();
  t.same(ages.slice(0, 5), [0, 15, 30, 45, 60], 'dense in the last hour');
  t.ok(ages.at(-1)! > 24 * 60, `and back to ${Math.round(ages.at(-1)! / 60)} h`);
});

// Red when the hour's are given up as the older ones are, and with 16 in all.
t.test('merges: the densest hour stays whole, whatever older ones there are', async (t) => {
  const older = Array.from({ length: 30 }, (_, n) => n * 2 * HOUR);
  const from = older.at(-1)! + HOUR;
  const hour = Array.from({ length: 17 }, (_, n) => from + n * DENSEST_MS);
  const all = takenAt([...older, ...hour]);
  const left = merged(all, planMerges(all, { nowMs: hour.at(-1)!, history: WHOLE }));
  t.equal(left.length, MERGE_POLICY.maxCheckpoints);
  t.same(left.slice(-17), all.slice(-17));
  t.equal(left[0], all[0], 'the way back is as long as it was');
});

// Red with olderAtLeast 0 (nothing older than the hour is left), and when the hour's go by their age.
t.test('merges: an hour of a checkpoint each minute is thinned evenly', async (t) => {
  const all = takenAt([
    0,
    5 * HOUR,
    ...Array.from({ length: 61 }, (_, n) => 9 * HOUR + n * MINUTE),
  ]);
  const nowMs = 10 * HOUR;
  const left = merged(all, planMerges(all, { nowMs, history: WHOLE }));
  t.equal(left.length, MERGE_POLICY.maxCheckpoints);
  t.same(left.slice(0, 2), all.slice(0, 2), 'what is older stays');
  const ages = left.slice(2).map(({ takenMs }) => (nowMs - takenMs) / MINUTE);
  t.equal(ages[0], 60);
  const gaps = ages.slice(1).map((age, n) => ages[n]! - age);
  t.ok(Math.max(...gaps) <= 4, `minutes apart: ${gaps}`);
});

// Red when those below what is held count against the hour, and with maxWhileHeld Infinity.
t.test('merges: under a test that is kept the hour above stays dense, up to a bound', async (t) => {
  const below = Array.from({ length: 24 }, (_, n) => n * 10 * MINUTE);
  const above = (count: number) =>
    Array.from({ length: count }, (_, n) => below.at(-1)! + (n + 1) * DENSEST_MS);
  const hold = (all: RetainedCheckpoint[]) =>
    all.map((one) => ({ ...one, held: one.checkpointId === 23 }));
  const plan = (count: number) => {
    const all = hold(takenAt([...below, ...above(count)]));
    return merged(all, planMerges(all, { nowMs: all.at(-1)!.takenMs, history: WHOLE })).length;
  };
  t.equal(plan(16), 40, 'an hour');
  t.ok(plan(48) <= 24 + 18, 'three hours: those older than the hour have gone');
  const many = takenAt([...Array(46).keys()].map((n) => n * 6 * HOUR)).map((one) => {
    return { ...one, held: one.checkpointId === 44 };
  });
  const next = [1, 2, 3, 4, 5].map((n) => {
    const takenMs = many.at(-1)!.takenMs + n * DENSEST_MS;
    return { ...many.at(-1)!, checkpointId: 45 + n, seq: 1000 + n, takenMs, sourceMs: takenMs };
  });
  const all = [...many, ...next];
  const left = merged(all, planMerges(all, { nowMs: all.at(-1)!.takenMs, history: WHOLE }));
  t.equal(left.length, MERGE_POLICY.maxWhileHeld);
});

// Red when only sinceSeq is compared: numbers of two journals may be the same, and what has left the journal is no way.
t.test('merges: the first that a part of the history is replayed from stays', async (t) => {
  const times = [0, 20, 40, 60, 80, 100].map((minutes) => minutes * MINUTE);
  const nowMs = 10 * HOUR;
  const left = (history: typeof WHOLE, change: Partial<RetainedCheckpoint> = {}) => {
    const all = takenAt(times).map((one, n) => (n < 2 ? { ...one, ...change } : one));
    return merged(all, planMerges(all, { nowMs, history })).map(({ checkpointId }) => checkpointId);
  };
  t.same(left(WHOLE), [0, 3, 5], 'one stretch');
  t.same(left(WHOLE, { sinceSeq: 0 }), [0, 2, 5], 'another stretch');
  t.same(left(WHOLE, { journalId: 'older' }), [0, 2, 5], 'another journal');
  t.same(left({ ...WHOLE, oldestSeq: 15 }), [0, 2, 5], 'what comes before has left');
});

/** A time in the life of a job; what happens, happens at its beginning. */
interface Span {
  minutes: number;
  /** At most; each step is of a rate of its own up to it. */
  bytesPerSec: number;
  steady: boolean;
  event: 'none' | 'restart' | 'order lost' | 'hold' | 'release' | 'clock set back';
  /** Minutes the appliance is away, which checkpoint is held, or how far the clock is set back. */
  amount: number;
}

const RATE = 20e6;
const span: fc.Arbitrary<Span> = fc.record({
  minutes: fc.oneof(fc.integer({ min: 1, max: 30 }), fc.integer({ min: 30, max: 300 })),
  bytesPerSec: fc.oneof(
    { weight: 3, arbitrary: fc.constant(RATE) },
    fc.integer({ min: 0, max: RATE }),
  ),
  steady: fc.boolean(),
  event: fc.constantFrom(
    'none',
    'none',
    'restart',
    'order lost',
    'hold',
    'release',
    'clock set back',
  ),
  amount: fc.integer({ min: 1, max: 240 }),
});

interface Taken extends RetainedCheckpoint {
  /** By a clock that nobody sets. */
  realMs: number;
  /** All that the source had written by then. */
  bytes: number;
}

const STEP_MS = 15_000;

/** Plays a job as the checkpointer does: a checkpoint that is due, else one merge. */
class PlayedJob {
  readonly everyMs: number;
  readonly historyBytes: number;
  readonly next: (below: number) => number;
  realMs = 0;
  clockMs = 1e12;
  bytes = 0;
  seq = 1;
  sinceSeq = 1;
  taken: Taken[] = [];
  kept: Taken[] = [];
  /** When the newest hour last had more than the chain takes, or the chain was as long as it may get. */
  crowdedMs = Number.NEGATIVE_INFINITY;
  setBackMs = Number.NEGATIVE_INFINITY;
  /** When something was held last. */
  heldMs = Number.NEGATIVE_INFINITY;
  /** Bytes written by frame, oldest first: what the history holds. */
  written: Array<{ seq: number; bytes: number }> = [];

  constructor(everyMinutes: number, historyBytes: number, seed: number) {
    this.everyMs = everyMinutes * MINUTE;
    this.historyBytes = historyBytes;
    this.next = random(seed);
  }

  begin({ event, amount }: Span): void {
    const pick = this.kept[amount % Math.max(1, this.kept.length)];
    if (event === 'restart') this.pass(amount * MINUTE);
    if (event === 'order lost') this.sinceSeq = this.seq + 1;
    if (event === 'hold' && pick) pick.held = true;
    if (event === 'release') for (const one of this.kept) one.held = false;
    if (event === 'clock set back') {
      this.clockMs -= amount * MINUTE;
      this.setBackMs = this.realMs;
    }
  }

  pass(ms: number): void {
    this.realMs += ms;
    this.clockMs += ms;
  }

  step({ bytesPerSec, steady }: Span): void {
    this.pass(STEP_MS);
    const bytes = (steady ? bytesPerSec : this.next(bytesPerSec + 1)) * (STEP_MS / 1000);
    if (bytes > 0) this.written.push({ seq: ++this.seq, bytes });
    this.bytes += bytes;
    let history = 0;
    const from = this.written.findLastIndex((one) => {
      history += one.bytes;
      return history > this.historyBytes;
    });
    if (from > 0) this.written.splice(0, from);
    const newest = this.kept.at(-1) ?? null;
    const due = dueCheckpoint({
      point: { seq: this.seq, sourceMs: 0, sinceSeq: this.sinceSeq },
      ...{ dataSeq: this.seq, newest, nowMs: this.clockMs, everyMs: this.everyMs },
      replayBytes: newest ? this.bytes - newest.bytes : 0,
    });
    if (due && newest?.seq !== this.seq) this.take();
    // Merges take no time here; the checkpointer makes one after the other.
    const facts = { nowMs: this.clockMs, history: this.history };
    const before = this.kept;
    this.kept = merged(before, planMerges(before, facts));
    if (this.kept.some(({ held }) => held)) this.heldMs = this.realMs;
    // Young by the job's clock, as are all that are newer.
    const old = before.findLastIndex(({ takenMs }) => this.clockMs - takenMs >= HOUR);
    const lately = before.slice(old + 1);
    const { maxCheckpoints, olderAtLeast, maxWhileHeld } = MERGE_POLICY;
    if (lately.length + 1 > maxCheckpoints - olderAtLeast || before.length > maxWhileHeld) {
      this.crowdedMs = this.realMs;
    }
  }

  get history(): { journalId: string; oldestSeq: number } {
    return { journalId: JOURNAL, oldestSeq: this.written[0]?.seq ?? this.seq + 1 };
  }

  take(): void {
    const id = { checkpointId: this.taken.length, journalId: JOURNAL, held: false };
    const { seq, sinceSeq, clockMs: takenMs, realMs, bytes } = this;
    const one = { ...id, seq, sinceSeq, takenMs, sourceMs: realMs, realMs, bytes };
    this.taken.push(one);
    this.kept.push(one);
  }

  /** What does not hold now. */
  wrong(): string | null {
    const { realMs, kept, taken } = this;
    const held = this.heldMs === realMs;
    const { maxCheckpoints, maxWhileHeld } = MERGE_POLICY;
    // Of what is held, and of all below it, none can go.
    const pinned = kept.findLastIndex((one) => one.held) + 1;
    if (kept.length > Math.max(held ? maxWhileHeld : maxCheckpoints, pinned + 1)) {
      return `${kept.length} layers, ${pinned} of them pinned`;
    }
    const began = realMs - HOUR;
    const first = taken.findIndex((one) => one.realMs > began);
    const hour = first < 0 ? taken.slice(-1) : taken.slice(Math.max(0, first - 1));
    if (this.crowdedMs < began && !hour.every((one) => kept.includes(one))) {
      return `of ${hour.length} of the newest hour ${hour.filter((one) => kept.includes(one)).length}`;
    }
    return this.#wrongGap(began);
  }

  /** Between two neighbours. */
  #wrongGap(began: number): string | null {
    const { realMs, kept, taken } = this;
    // After so long all that a hold, a clock or a crowded hour has left is old.
    const longAgo = realMs - 2 * 24 * HOUR;
    for (const [n, upper] of kept.entries()) {
      const lower = kept[n - 1];
      if (!lower) continue;
      const bytes = upper.bytes - lower.bytes;
      const young = upper.realMs > began && Math.max(this.crowdedMs, this.setBackMs) < began - HOUR;
      if (young && bytes > MOST_BYTES) return `${bytes} bytes to replay`;
      const old = upper.realMs <= began && taken.some((one) => between(lower, one, upper));
      const undisturbed = Math.max(this.crowdedMs, this.setBackMs, this.heldMs) < longAgo;
      const timesAge = (upper.realMs - lower.realMs) / (realMs - upper.realMs);
      if (old && undisturbed && timesAge > 10)
        return `a gap of ${timesAge.toFixed(1)} times its age`;
    }
    return null;
  }
}

/** At the rate of the goal: what the schedule lets come together, and the step in which that is seen. */
const MOST_BYTES = Math.max(REPLAY_BYTES, (RATE * DENSEST_MS) / 1000) + (RATE * STEP_MS) / 1000;
const between = (lower: Taken, one: Taken, upper: Taken): boolean =>
  lower.checkpointId < one.checkpointId && one.checkpointId < upper.checkpointId;

// Red when older ones are not given up first, when the one that the hour begins from may go, when an age is not that of
// newer ones at least, and when what is below a held one may go.
t.test('merges: days of up to 20 MB/s, restarts, holds, lost order and set clocks', async (t) => {
  fc.assert(
    fc.property(
      fc.array(span, { minLength: 1, maxLength: 14 }),
      fc.constantFrom(15, 15, 15, 60, 5, 3, 2, 1),
      fc.constantFrom(2e9, 40e9, 400e9),
      fc.integer(),
      (spans, everyMinutes, historyBytes, seed) => {
        const job = new PlayedJob(everyMinutes, historyBytes, seed);
        for (const one of spans) {
          job.begin(one);
          for (let ms = 0; ms < one.minutes * MINUTE; ms += STEP_MS) {
            job.step(one);
            const wrong = job.wrong();
            if (wrong) throw new Error(`${wrong} after ${job.realMs / MINUTE} minutes`);
          }
        }
      },
    ),
    { numRuns: 60 },
  );
  t.pass('random lives of a job');
});

const steadily = (job: PlayedJob, hours: number, look: () => void): void => {
  const one: Span = { minutes: 0, bytesPerSec: RATE, steady: true, event: 'none', amount: 0 };
  for (let ms = 0; ms < hours * HOUR; ms += STEP_MS) {
    job.step(one);
    const wrong = job.wrong();
    if (wrong) throw new Error(`${wrong} after ${job.realMs / MINUTE} minutes`);
    look();
  }
};

/** The longest gap in the newest hour and, as a multiple of its age, in what is older. */
function longestGaps({ kept, realMs }: PlayedJob): { minutes: number; timesAge: number } {
  let [minutes, timesAge] = [0, 0];
  for (const [n, upper] of kept.entries()) {
    const gapMs = upper.realMs - (kept[n - 1] ?? upper).realMs;
    const ageMs = realMs - upper.realMs;
    if (ageMs < HOUR) minutes = Math.max(minutes, gapMs / MINUTE);
    else timesAge = Math.max(timesAge, gapMs / ageMs);
  }
  return { minutes, timesAge };
}

// Red when the older ones go by the gap alone: those of three days then lie as far apart as those of two hours.
t.test('merges: three days of 20 MB/s', async (t) => {
  const job = new PlayedJob(15, 400e9, 0);
  let most = { minutes: 0, timesAge: 0 };
  steadily(job, 72, () => {
    const now = longestGaps(job);
    most = {
      minutes: Math.max(most.minutes, now.minutes),
      timesAge: Math.max(most.timesAge, now.timesAge),
    };
  });
  t.ok(most.minutes <= 4, `at most ${most.minutes} minutes apart in the newest hour`);
  t.ok(most.timesAge <= 2.2, `older ones at most ${most.timesAge.toFixed(2)} times their age`);
  t.equal(job.kept[0], job.taken[0]);
});

// Red when those of a crowded hour go by their age.
t.test('merges: a day of 20 MB/s with a checkpoint each minute', async (t) => {
  const job = new PlayedJob(1, 1e15, 0);
  let minutes = 0;
  steadily(job, 24, () => {
    minutes = Math.max(minutes, longestGaps(job).minutes);
  });
  t.ok(minutes <= 6, `at most ${minutes} minutes apart in the newest hour`);
  t.equal(job.kept[0], job.taken[0], 'what is older is not lost for it');
});

// Red when the appliance's clock alone says how far apart they are: the four hours between seem to be none.
t.test('merges: a crowded hour stays even when the clock was set back', async (t) => {
  const job = new PlayedJob(2, 1e15, 0);
  let minutes = 0;
  const look = () => {
    minutes = Math.max(minutes, longestGaps(job).minutes);
  };
  steadily(job, 0.5, look);
  job.begin({ minutes: 0, bytesPerSec: 0, steady: true, event: 'clock set back', amount: 237 });
  steadily(job, 6, look);
  t.ok(minutes <= 10, `at most ${minutes} minutes apart in the newest hour`);
});
