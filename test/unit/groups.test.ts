/**
 * Consistency groups: the common timeline and the clocks as properties, and the failover of a group against a model of the
 * failover engine, in which the appliance dies before and after every single thing that it does, alone and in pairs.
 */
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import type { Failover } from '../../appliance/api/schema.ts';
import { silentLogger } from '../../appliance/control/logger.ts';
import {
  commonMoment,
  commonMoments,
  judgeMark,
  type MemberPoints,
  markIsRecoverable,
  memberTime,
  momentError,
} from '../../appliance/groups/group-points.ts';
import { MarkSchedule } from '../../appliance/groups/mark-schedule.ts';
import type { GroupRun, GroupWait } from '../../appliance/groups/record.ts';
import { isOver } from '../../appliance/groups/record.ts';
import { GroupRunner } from '../../appliance/groups/runner.ts';
import {
  type ClockOffset,
  earliestOnAppliance,
  offsetAt,
  toAppliance,
  toSource,
  withReading,
} from '../../appliance/groups/source-clock.ts';
import { commonIntervals, holds, type Interval } from '../../appliance/groups/timeline.ts';
import { nextPointMs } from '../../appliance/jobs/point-schedule.ts';
import { type ErrorCode, undError } from '../../protocol/errors.ts';
import { random } from '../random.ts';

t.setTimeout(300_000);

// ---- the common timeline -----------------------------------------------------------------------------------------

const someIntervals = (below: (n: number) => number): Interval[] =>
  Array.from({ length: below(6) }, () => {
    const fromMs = below(60);
    return { fromMs, toMs: fromMs + below(15) };
  });

t.test('the common timeline holds exactly the moments that every member holds', async (t) => {
  // Seen to fail with `<` for `<=` in `meet`: moments that two members only touch in are lost.
  for (let seed = 0; seed < 2000; seed++) {
    const below = random(seed);
    const members = Array.from({ length: 1 + below(4) }, () => someIntervals(below));
    const common = commonIntervals(members);
    for (let at = -1; at < 80; at++) {
      const everywhere = members.every((member) => holds(member, at));
      if (holds(common, at) !== everywhere) t.fail(`seed ${seed}, moment ${at}`);
    }
    for (let index = 1; index < common.length; index++) {
      if (common[index]!.fromMs <= common[index - 1]!.toMs) t.fail(`seed ${seed}: not apart`);
    }
    t.same(commonIntervals([common, ...members]), common, `seed ${seed}: it is its own meet`);
    if (!t.passing()) return;
  }
  t.same(commonIntervals([]), [], 'without a member there is nothing');
});

// ---- clocks ------------------------------------------------------------------------------------------------------

t.test(
  'a clock offset is as wrong as it says at most, whatever the way there and back takes',
  async (t) => {
    // Seen to fail without the slack that readings add to the error, and with the middle for the earliest.
    for (let seed = 0; seed < 500; seed++) {
      const below = random(seed);
      let nowMs = 1_000_000;
      let skewMs = below(10_000) - 5_000;
      let offsets: readonly ClockOffset[] = [];
      const said: { atMs: number; skewMs: number }[] = [];
      for (let round = 0; round < 60; round++) {
        nowMs += 5_000 + below(10_000);
        if (below(20) === 0) skewMs += below(4_000) - 2_000;
        else skewMs += (below(3) - 1) * below(2);
        const thereMs = below(8) === 0 ? below(400) : below(3);
        const backMs = below(8) === 0 ? below(400) : below(3);
        const askedMs = nowMs;
        const readMs = nowMs + thereMs;
        nowMs = readMs + backMs;
        offsets = withReading(offsets, { askedMs, answeredMs: nowMs, sourceMs: readMs + skewMs });
        // What was far on its way proves little, and is passed over.
        if (thereMs + backMs < 20) said.push({ atMs: nowMs, skewMs });
      }
      for (const { atMs, skewMs: truth } of said.slice(-5)) {
        const { offsetMs, errorMs } = offsetAt(offsets, atMs);
        if (Math.abs(offsetMs - truth) > errorMs!) {
          t.fail(`seed ${seed}: ${offsetMs} ± ${errorMs} at ${atMs}, the truth is ${truth}`);
          return;
        }
        // A moment that was there twice is taken for its second time; the offset of a reading holds from its answer on.
        const laterMs = atMs + 100;
        const isTwice = offsets.some(
          ({ fromMs, offsetMs }) => fromMs > laterMs && fromMs + offsetMs <= laterMs + truth,
        );
        const earliest = earliestOnAppliance(offsets, laterMs + truth, nowMs);
        if (!isTwice && earliest > laterMs) {
          t.fail(`seed ${seed}: ${earliest} at the earliest, the truth is ${laterMs}`);
          return;
        }
      }
    }
    t.pass();
  },
);

t.test(
  'moments cross from one clock to the other and back, over a step of the source',
  async (t) => {
    const clock: ClockOffset[] = [
      { fromMs: 1000, offsetMs: 500, errorMs: 1 },
      { fromMs: 5000, offsetMs: -2000, errorMs: 1 },
    ];
    t.equal(toSource(clock, 2000), 2500);
    t.equal(toSource(clock, 6000), 4000);
    t.equal(toAppliance(clock, 4000), 6000, 'a moment that was there twice means the second time');
    t.equal(toAppliance(clock, 2500), 2000);
    t.same(offsetAt([], 5), { offsetMs: 0, errorMs: null }, 'never read: not known');
  },
);

/** Of a clock that was not set within it. */
const stretch = (fromMs: number, toMs: number): MemberPoints['stretches'][number] => ({
  fromMs,
  toMs,
  fromBootNs: BigInt(fromMs) * 1_000_000n,
  toBootNs: BigInt(toMs) * 1_000_000n,
});

const member = (patch: Partial<MemberPoints>): MemberPoints => ({
  jobId: 'a',
  stretches: [],
  clock: [{ fromMs: 0, offsetMs: 0, errorMs: 3 }],
  marks: new Map(),
  ...patch,
});

t.test(
  'a clock that is set while its source replicates: the newest point is a moment, and each moment means its point',
  async (t) => {
    // Red with stretches mapped by the wall clock of both their ends (set back by more than the stretch was long, there was
    // no moment until the next stretch), and without `namedMoments` (moments before the step meant the newest point).
    for (let seed = 0; seed < 500; seed++) {
      const below = random(seed);
      const startMs = 10_000_000;
      let skewMs = below(100_000) - 50_000;
      const clock: ClockOffset[] = [];
      const all: { trueMs: number; sourceMs: number }[] = [];
      const stretches: MemberPoints['stretches'][number][] = [];
      let open = false;
      let nowMs = startMs;
      for (let second = 0; second < 300; second++) {
        nowMs += 1000;
        const isSet = below(60) === 0;
        if (isSet) skewMs += below(600_000) - 300_000;
        if (isSet || clock.length === 0) {
          clock.push({ fromMs: nowMs, offsetMs: skewMs, errorMs: 0 });
        }
        if (below(50) === 0) open = false;
        else {
          const sourceMs = nowMs + skewMs;
          all.push({ trueMs: nowMs, sourceMs });
          const last = stretches.at(-1);
          const end = { toMs: sourceMs, toBootNs: BigInt(nowMs) * 1_000_000n };
          if (open && last) Object.assign(last, end);
          else stretches.push({ ...end, fromMs: sourceMs, fromBootNs: end.toBootNs });
          open = true;
        }
      }
      const one = member({ stretches, clock });
      const newest = all.at(-1)!;
      t.equal(commonMoment([one], null, nowMs), newest.trueMs, `seed ${seed}: the newest`);
      // As `pointAt` of the points: the newest of all, or the last one that is not later.
      const pointAt = (ms: number) => all.findLast(({ sourceMs }) => sourceMs <= ms);
      const common = commonMoments([one], nowMs);
      for (let at = startMs; at <= nowMs; at += 500) {
        if (!holds(common, at)) continue;
        const found = pointAt(memberTime(one, at));
        const right = all.findLast(({ trueMs }) => trueMs <= at);
        if (found !== right) t.same(found, right, `seed ${seed}, moment ${at}`);
      }
      if (!t.passing()) return;
    }
  },
);

t.test('a common moment, and how far the members may be apart at it', async (t) => {
  const a = member({ stretches: [stretch(1000, 9000)] });
  const b = member({
    jobId: 'b',
    stretches: [stretch(5000, 12_000)],
    clock: [{ fromMs: 0, offsetMs: 2500, errorMs: 7.5 }],
  });
  const never = member({ jobId: 'c', stretches: a.stretches, clock: [] });
  t.equal(commonMoment([a, b], null), 9000, "b's newest point is of 9500 by the appliance's clock");
  t.equal(memberTime(b, 9000), 11_500);
  t.equal(commonMoment([a, b], 6000), 6000);
  t.equal(commonMoment([a, b], 2499), null, 'b begins at 2500');
  t.equal(commonMoment([a, member({ jobId: 'd' })], null), null);
  t.equal(momentError([a, b], 9000), 3 + 7.5 + 50, "both clocks' errors and a frame");
  t.equal(momentError([a, never], 9000), null, 'one clock was never compared');
  t.equal(momentError([a], 9000), 0);
});

t.test(
  'a mark of the group: its moment, how far apart, and whether it is still there',
  async (t) => {
    const far = [{ fromMs: 0, offsetMs: 2500, errorMs: 4 }];
    const near = [{ fromMs: 0, offsetMs: 0, errorMs: 3 }];
    const judged = judgeMark([
      { sourceMs: 10_000, clock: near },
      { sourceMs: 12_540, clock: far },
    ]);
    t.same(judged, { atMs: 10_020, apartMs: 40 + 1 + 3 + 4 });
    t.equal(
      judgeMark([
        { sourceMs: 1, clock: [] },
        { sourceMs: 1, clock: near },
      ]).apartMs,
      null,
    );
    const of = (jobId: string, pointId: string) => ({
      jobId,
      pointId,
      seq: 1,
      sourceMs: 1,
      quiesced: true,
      reason: null,
    });
    const a = member({ marks: new Map([['p1', { sourceMs: 1 }]]) });
    const b = member({ jobId: 'b' });
    t.equal(markIsRecoverable({ members: [of('a', 'p1')] }, [a]), true);
    t.equal(markIsRecoverable({ members: [of('a', 'p0')] }, [a]), false, 'it has left the history');
    t.equal(markIsRecoverable({ members: [of('a', 'p1')] }, [a, b]), false, 'a member came later');
  },
);

// ---- the failover of a group -------------------------------------------------------------------------------------

type Member = 'db' | 'app1' | 'app2' | 'web';
const PRIORITIES: Record<Member, number> = { db: 1, app1: 2, app2: 2, web: 3 };
const MEMBERS = Object.keys(PRIORITIES) as Member[];
const AT = '2026-01-01T00:00:00.000Z';

interface Model {
  jobId: Member;
  state: Failover['state']['name'];
  poweredOnMs: number | null;
}

/** Thrown out of a life that has ended: nothing of it may go on. */
class Death extends Error {}

/** What outlasts the appliance's death, and its troubles by the number of the place at which they strike. */
class World {
  runs = new Map<string, string>();
  failovers = new Map<string, Model>();
  places: string[] = [];
  troubles = new Map<number, 'die' | 'refuse' | 'unreachable'>();
  violations: string[] = [];
  nowMs = Date.parse(AT);
  /** Members whose replica gives no proof; they work from the second try on. */
  failing = new Set<Member>();
  wait: GroupWait = { for: 'proof' };
  kind: GroupRun['kind'] = 'unplanned';
  /** Called while the engine begins a member. */
  beginning: (jobId: Member) => void = () => {};

  of(jobId: Member): Model | undefined {
    return [...this.failovers.values()].findLast((one) => one.jobId === jobId);
  }

  get run(): GroupRun {
    return JSON.parse([...this.runs.values()][0]!) as GroupRun;
  }

  forbid(condition: boolean, what: string): void {
    if (condition) this.violations.push(what);
  }

  newRun(): GroupRun {
    return {
      version: 1,
      runId: 'run',
      groupId: 'group',
      groupName: 'shop',
      kind: this.kind,
      target: { name: 'moment', at: AT, errorMs: 26 },
      wait: this.wait,
      members: MEMBERS.map((jobId) => ({
        jobId,
        sourceName: jobId,
        replicaName: `${jobId}-replica`,
        priority: PRIORITIES[jobId],
        sourceTime: AT,
        failoverId: `of-${jobId}`,
        refused: null,
      })),
      evenIfAlive: false,
      powerOff: true,
      isolateOnReturn: false,
      test: this.kind === 'test' ? { keepMinutes: 0, verdict: null, endsAt: null } : null,
      startedAt: AT,
      endedAt: null,
      phase: { name: 'running' },
    };
  }
}

/** One life of the appliance. */
class Life {
  dead = false;
  readonly world: World;
  readonly runner: GroupRunner;
  #ids = 0;

  constructor(world: World, alive: number) {
    this.world = world;
    this.runner = new GroupRunner({
      store: {
        runs: () => [...world.runs.values()].map((text) => JSON.parse(text)),
        saveRun: (run) => {
          this.#place(`save ${run.phase.name}`, () =>
            world.runs.set(run.runId, JSON.stringify(run)),
          );
        },
      },
      engine: {
        find: (failoverId) => view(world.failovers.get(failoverId)),
        start: (_run, { jobId, failoverId }) =>
          this.#call(`start ${jobId}`, () => this.#begin(jobId as Member, failoverId)),
        undo: (failoverId) => this.#call('undo', () => this.#decide(failoverId, 'undoing')),
        commit: (failoverId) => this.#call('commit', () => this.#decide(failoverId, 'committing')),
      },
      changed: () => {},
      log: silentLogger,
      retryDelayMs: (code, attempt) => (code === 'UND_HV_UNREACHABLE' && attempt < 20 ? 0 : null),
      newId: () => `again-${alive}-${this.#ids++}`,
      now: () => world.nowMs,
    });
  }

  /** A place before and one after what has an effect. */
  #place(name: string, effect: () => void): void {
    if (this.dead) throw new Death();
    this.#strike(`before ${name}`);
    effect();
    this.#strike(`after ${name}`);
  }

  #strike(name: string): void {
    const { world } = this;
    const trouble = world.troubles.get(world.places.push(name) - 1);
    if (trouble === 'die') {
      this.dead = true;
      throw new Death();
    }
    const before = name.startsWith('before start');
    const code: ErrorCode = trouble === 'refuse' ? 'UND_FAILOVER_NOT_READY' : 'UND_HV_UNREACHABLE';
    // An answer may get lost; a refusal comes before anything has happened.
    if (trouble === 'unreachable' && name.includes('start')) throw undError(code, { host: 'h' });
    if (trouble === 'refuse' && before) throw undError(code, { job: 'j', reason: 'injected' });
  }

  async #call(name: string, effect: () => void): Promise<void> {
    await null;
    try {
      this.#place(name, effect);
    } catch (error) {
      // The process is gone: nobody gets an answer.
      if (error instanceof Death) return new Promise(() => {});
      throw error;
    }
  }

  #begin(jobId: Member, failoverId: string): void {
    const { world } = this;
    if (world.failovers.has(failoverId)) return;
    const { phase } = world.run;
    world.forbid(phase.name !== 'running', `${jobId} begun while ${phase.name}`);
    const other = world.of(jobId)?.state ?? 'failed';
    world.forbid(!['failed', 'undone'].includes(other), `${jobId} begun twice, ${other}`);
    for (const before of MEMBERS.filter((one) => PRIORITIES[one] < PRIORITIES[jobId])) {
      const first = world.of(before);
      const delayed = world.wait.for === 'delay' ? world.wait.seconds * 1000 : null;
      const open =
        delayed === null
          ? first?.state === 'completed'
          : first?.poweredOnMs != null && world.nowMs >= first.poweredOnMs + delayed;
      world.forbid(!open, `${jobId} begun, ${before} is ${first?.state}`);
    }
    world.failovers.set(failoverId, { jobId, state: 'running', poweredOnMs: null });
    world.beginning(jobId);
  }

  #decide(failoverId: string, to: 'undoing' | 'committing'): void {
    const { world } = this;
    const one = world.failovers.get(failoverId)!;
    const ends = one.state === 'completed' || (world.kind === 'test' && one.state === 'running');
    if (!ends) throw undError('UND_FAILOVER_STATE', { failover: 'f', act: to, state: one.state });
    if (to === 'undoing' && world.kind !== 'test') {
      const later = MEMBERS.filter((other) => PRIORITIES[other] > PRIORITIES[one.jobId]);
      const up = later.filter((other) => world.of(other)?.state === 'completed');
      world.forbid(up.length > 0, `${one.jobId} undone before ${up}`);
    }
    world.failovers.set(failoverId, { ...one, state: to });
  }
}

const view = (model: Model | undefined): Failover | null => {
  if (!model) return null;
  const { state, poweredOnMs } = model;
  const error = { code: 'UND_FAILOVER_NO_BOOT_PROOF', message: 'no proof', hint: '' };
  const powered = poweredOnMs !== null;
  return {
    state:
      state === 'failed' || state === 'compensating' ? { name: state, error } : { name: state },
    steps: [
      {
        name: 'power-on',
        state: powered ? 'done' : 'waiting',
        endedAt: powered ? new Date(poweredOnMs).toISOString() : null,
      },
    ],
  } as unknown as Failover;
};

/** The failover engine goes on by one step; what it is doing outlasts the appliance. */
function advance(world: World): void {
  world.nowMs += 1000;
  for (const [failoverId, one] of world.failovers) {
    const set = (patch: Partial<Model>) => world.failovers.set(failoverId, { ...one, ...patch });
    if (one.state === 'running' && one.poweredOnMs === null) set({ poweredOnMs: world.nowMs });
    else if (one.state === 'running') {
      const fails = world.failing.has(one.jobId) && failoverId.startsWith('of-');
      set({ state: fails ? 'compensating' : 'completed' });
    } else if (one.state === 'compensating') set({ state: 'failed', poweredOnMs: null });
    else if (one.state === 'undoing') set({ state: 'undone', poweredOnMs: null });
    else if (one.state === 'committing') set({ state: 'committed' });
  }
}

type Ask = 'undo' | 'commit' | 'resume' | null;

/** Plays a failover of the group to its rest, asks for something then, and plays on; through all deaths. */
async function play(world: World, asks: Ask[] = []): Promise<GroupRun> {
  const left = asks.filter((ask) => ask !== null);
  for (let alive = 0; alive < 10; alive++) {
    const life = new Life(world, alive);
    const { runner } = life;
    let asking = false;
    try {
      runner.load();
      runner.resumeAll();
      if (runner.list().length === 0) runner.begin(world.newRun());
      for (let turn = 0; turn < 200 && !life.dead; turn++) {
        // A pass, whatever it calls, is microtasks only; a start that is tried again has a timer.
        for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve));
        if (life.dead) break;
        const run = world.run;
        const { name } = run.phase;
        const rests = name === 'stopped' || (name === 'completed' && run.kind !== 'test');
        if (isOver(run) || (rests && left.length === 0)) return run;
        if (rests) {
          asking = true;
          runner[left[0] as Exclude<Ask, null>]('run');
          asking = false;
          left.shift();
        }
        advance(world);
        for (const failoverId of world.failovers.keys()) runner.memberChanged({ failoverId });
        if (world.failovers.size === 0) await delay(1);
      }
      if (!life.dead) throw new Error(`no end: ${JSON.stringify(world.run)}`);
    } catch (error) {
      if (!(error instanceof Death)) throw error;
      // A decision that died before it was on record is made again.
      const name = world.runs.size > 0 ? world.run.phase.name : null;
      if (asking && name !== 'stopped' && name !== 'completed') left.shift();
    } finally {
      runner.close();
    }
  }
  throw new Error('died more often than told to');
}

interface Scenario {
  what: string;
  make: () => World;
  asks: Ask[];
  end: GroupRun['phase']['name'];
  members: Failover['state']['name'] | 'mixed';
}

const world = (patch: Partial<World> = {}): World => Object.assign(new World(), patch);
const SCENARIOS: Scenario[] = [
  { what: 'completed', make: () => world(), asks: [], end: 'completed', members: 'completed' },
  {
    what: 'undone',
    make: () => world({ kind: 'planned' }),
    asks: ['undo'],
    end: 'undone',
    members: 'undone',
  },
  {
    what: 'committed',
    make: () => world({ wait: { for: 'delay', seconds: 5 } }),
    asks: ['commit'],
    end: 'committed',
    members: 'committed',
  },
  {
    what: 'one of the first fails: nothing else is begun',
    make: () => world({ failing: new Set<Member>(['db']) }),
    asks: [],
    end: 'failed',
    members: 'failed',
  },
  {
    what: 'one in the middle fails: the others stay, and all can be undone',
    make: () => world({ failing: new Set<Member>(['app2']) }),
    asks: ['undo'],
    end: 'undone',
    members: 'mixed',
  },
  {
    what: 'one in the middle fails, is tried again, and all goes on',
    make: () => world({ failing: new Set<Member>(['app2']) }),
    asks: ['resume', 'commit'],
    end: 'committed',
    members: 'committed',
  },
  {
    what: 'a test',
    make: () => world({ kind: 'test' }),
    asks: [],
    end: 'undone',
    members: 'undone',
  },
  {
    what: 'a test that fails is taken down as a whole',
    make: () => world({ kind: 'test', failing: new Set<Member>(['app1']) }),
    asks: [],
    end: 'undone',
    members: 'mixed',
  },
];

function judge(
  t: Pick<typeof import('tap').t, 'fail'>,
  what: string,
  { end, members, make }: Scenario,
  run: GroupRun,
  w: World,
) {
  if (w.violations.length > 0) t.fail(`${what}: ${w.violations.join('; ')}`);
  if (run.phase.name !== end) t.fail(`${what}: ended ${JSON.stringify(run.phase)}`);
  const states = MEMBERS.map((jobId) => w.of(jobId)?.state);
  const ok: (string | undefined)[] =
    members === 'mixed' ? ['undone', 'failed', undefined] : [members];
  // Nothing else is begun behind the first that failed.
  if (members === 'failed') ok.push(undefined);
  if (!states.every((state) => ok.includes(state))) t.fail(`${what}: ${states}`);
  const { kind, failing } = make();
  if (kind === 'test' && run.test?.verdict?.passed !== (failing.size === 0)) {
    t.fail(`${what}: ${JSON.stringify(run.test)}`);
  }
}

t.test('a group comes to its end, whatever dies where', async (t) => {
  // Seen to fail when undo goes from the first priority on, and when a phase is not saved before what it does.
  for (const scenario of SCENARIOS) {
    const clean = scenario.make();
    judge(t, scenario.what, scenario, await play(clean, scenario.asks), clean);
    for (let place = 0; place < clean.places.length; place++) {
      const w = scenario.make();
      w.troubles.set(place, 'die');
      const run = await play(w, scenario.asks);
      judge(t, `${scenario.what}, died ${clean.places[place]}`, scenario, run, w);
    }
    const step = Math.max(1, Math.floor(clean.places.length / 8));
    for (let first = 0; first < clean.places.length; first += step) {
      for (let second = first + 1; second < clean.places.length; second += step) {
        const w = scenario.make();
        w.troubles.set(first, 'die');
        w.troubles.set(second, 'die');
        judge(t, `${scenario.what}, died twice`, scenario, await play(w, scenario.asks), w);
      }
    }
    t.pass(`${scenario.what}: ${clean.places.length} places`);
  }
});

t.test(
  'a member that the engine refuses stops the group; one that it cannot ask for now is tried again',
  async (t) => {
    const clean = world();
    await play(clean);
    for (const [place, name] of clean.places.entries()) {
      if (!name.includes('start')) continue;
      const lost = world();
      lost.troubles.set(place, 'unreachable');
      t.equal((await play(lost)).phase.name, 'completed', `unreachable ${name}`);
      t.same(lost.violations, []);
      if (!name.startsWith('before')) continue;
      const no = world();
      no.troubles.set(place, 'refuse');
      const run = await play(no);
      const first = name.endsWith('db');
      t.equal(run.phase.name, first ? 'failed' : 'stopped', `refused ${name}`);
      t.match(run.phase, { error: { code: 'UND_FAILOVER_NOT_READY' } });
      t.same(no.violations, []);
      if (first) continue;
      t.equal((await play(no, ['undo'])).phase.name, 'undone');
      t.notOk(MEMBERS.some((jobId) => no.of(jobId)?.state === 'completed'));
    }
  },
);

t.test('a member that somebody takes back on its own', async (t) => {
  const w = world();
  const life = new Life(w, 0);
  t.teardown(() => life.runner.close());
  life.runner.begin(w.newRun());
  const turn = async () => {
    for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve));
    advance(w);
    for (const failoverId of w.failovers.keys()) life.runner.memberChanged({ failoverId });
  };
  while (w.of('db')?.state !== 'completed') await turn();
  w.failovers.set('of-db', { jobId: 'db', state: 'undone', poweredOnMs: null });
  for (let i = 0; i < 10; i++) await turn();
  t.match(w.run.phase, { name: 'stopped', error: { code: 'UND_GROUP_MEMBER_LEFT' } });
  t.throws(() => life.runner.commit('run'), { code: 'UND_GROUP_STATE' });
  t.throws(() => life.runner.undo('other'), { code: 'UND_NOT_FOUND' });
});

t.test(
  'undo is asked for while it runs: nothing more is begun, what is under way ends first',
  async (t) => {
    // Seen to fail without a look at the phase before each start: app2 is begun after the undo.
    for (const kind of ['unplanned', 'test'] as const) {
      for (const asked of MEMBERS) {
        const w = world({ kind });
        const life = new Life(w, 0);
        w.beginning = (jobId) => {
          if (jobId === asked) life.runner.undo('run');
        };
        life.runner.begin(w.newRun());
        for (let turn = 0; turn < 100 && !isOver(w.run); turn++) {
          for (let i = 0; i < 3; i++) await new Promise((resolve) => setImmediate(resolve));
          advance(w);
          for (const failoverId of w.failovers.keys()) life.runner.memberChanged({ failoverId });
        }
        life.runner.close();
        t.equal(w.run.phase.name, 'undone', `${kind}, asked while ${asked} was begun`);
        t.same(w.violations, []);
        t.ok([...w.failovers.values()].every(({ state }) => state === 'undone'));
        const last = w.of('app2') === undefined || asked === 'app2' || asked === 'web';
        t.ok(last, 'no member is begun after it');
      }
    }
  },
);

t.test('marks on schedule: at fixed moments, a failure is told until one succeeds', async (t) => {
  let nowMs = Date.parse('2026-01-01T00:00:00.000Z');
  const asked: object[] = [];
  const warned: string[] = [];
  let due = true;
  let fails = true;
  let changed = 0;
  const schedule = new MarkSchedule({
    take: async (_groupId, request) => {
      asked.push(request);
      if (fails) throw undError('UND_GROUP_EMPTY', { group: 'shop' });
    },
    isDue: () => due,
    changed: () => changed++,
    log: { ...silentLogger, warn: (_fields, text) => warned.push(text) },
    now: () => nowMs,
  });
  t.teardown(() => schedule.close());
  const group = { groupId: 'g', schedule: { everyMinutes: 5, quiesce: true, checkpoint: true } };
  const next = async () => {
    // Right before the next moment, by the clock that it is told.
    nowMs = nextPointMs('g', 5, nowMs) - 1;
    schedule.plan(group);
    nowMs++;
    const before = changed;
    for (let tries = 0; changed === before; tries++) {
      if (tries > 30_000) throw new Error('no mark');
      await delay(2);
    }
  };
  await next();
  t.match(schedule.problem('g'), { code: 'UND_GROUP_EMPTY' });
  t.same(asked, [{ name: 'Scheduled', quiesce: true, checkpoint: true }]);
  fails = false;
  await next();
  t.equal(schedule.problem('g'), null);
  t.equal(warned.length, 1);
  due = false;
  nowMs = nextPointMs('g', 5, nowMs) - 1;
  schedule.plan(group);
  await delay(50);
  t.equal(asked.length, 2, 'nothing is asked while a failover is not decided');
});

t.test('a delay between priorities is kept by the clock alone', async (t) => {
  const w = world({ wait: { for: 'delay', seconds: 1 }, nowMs: Date.now() });
  const life = new Life(w, 0);
  t.teardown(() => life.runner.close());
  Object.defineProperty(w, 'nowMs', { get: () => Date.now() });
  life.runner.begin(w.newRun());
  const begun = async (jobId: Member) => {
    for (let tries = 0; !w.of(jobId); tries++) {
      if (tries > 30_000) throw new Error(`${jobId} was not begun`);
      await delay(2);
    }
  };
  await begun('db');
  w.failovers.set('of-db', { jobId: 'db', state: 'running', poweredOnMs: Date.now() });
  life.runner.memberChanged({ failoverId: 'of-db' });
  await begun('app1');
  t.same(w.violations, [], 'not before its time');
  t.equal(w.of('web'), undefined);
});
