/**
 * What the capture costs a source, and what it keeps up with. Bare disk and protected disk take turns, round by round,
 * and the medians of the rounds are compared, so that a machine whose load changes hurts both alike.
 *
 * Everything is on one machine: the load, the agent and the appliance share its processors. In the product the appliance
 * is another machine. Variant `unit`: agent and appliance yield to the load as the agent does by its systemd unit.
 * Variant `equal`: all compete as equals, which is harder than any real source; only when asked for.
 * A load that the link does not take is at first captured in order, until the ring is full, and costs more then than later:
 * rounds of a few seconds show that, longer ones what a source that writes so all the time would see.
 * Part `apart`: 4k writes, with each of those who share the processors standing still in turn, and beside a process that only
 * computes.
 * Part `held`: 4k writes at depth 32 onto the disk held to so many writes per second, as the volumes of a cloud or a SAN are.
 * Media: `disk`, a file on this machine's disk, with a disk's latency; `memory`, a file in memory: nothing to hide behind.
 *
 * --set rounds=N seconds=N warmSeconds=N variants=disk/unit,disk/equal,memory/unit parts=fio,held,pgbench,apart,sustained,lag,hook
 *       heldIops=N,N (per second) sustainedSeconds=N sustainedMiB=N (per second) lagSeconds=N ringMiB=N
 */
// apt: fio postgresql util-linux e2fsprogs openssl iproute2
import fs from 'node:fs';
import { availableParallelism } from 'node:os';
import type { Sampled } from './appliance-process.ts';
import {
  type Bench,
  type BenchOptions,
  type Goal,
  median,
  quantile,
  type Row,
  row,
} from './frame.ts';
import { HeldDisk } from './held-disk.ts';
import { BenchLab, type LabOptions, type Medium, MIB, type Priority, until, usage } from './lab.ts';
import { fio, Postgres } from './loads.ts';

interface Plan {
  rounds: number;
  seconds: number;
  /** Before each side of a round. */
  warmSeconds: number;
  variants: LabOptions[];
  parts: Set<string>;
  heldIops: number[];
  sustainedSeconds: number;
  sustainedMiB: number;
  lagSeconds: number;
}

function planOf({ quick, short, set }: BenchOptions): Plan {
  const number = (name: string, usual: number, hasty: number, tiny: number) =>
    Number(set[name] ?? (short ? tiny : quick ? hasty : usual));
  const variants =
    set.variants ?? (short ? 'memory/unit' : quick ? 'disk/unit' : 'disk/unit,memory/unit');
  return {
    rounds: number('rounds', 5, 3, 1),
    seconds: number('seconds', 10, 3, 1),
    warmSeconds: number('warmSeconds', 4, 3, 0.2),
    sustainedSeconds: number('sustainedSeconds', 60, 20, 1),
    sustainedMiB: number('sustainedMiB', 200, 200, 200),
    lagSeconds: number('lagSeconds', 30, 15, 1),
    heldIops: (set.heldIops ?? '16000,32000,64000').split(',').map(Number),
    parts: new Set(
      (set.parts ?? (short ? 'fio,lag' : 'fio,held,pgbench,apart,sustained,lag,hook')).split(','),
    ),
    variants: variants.split(',').map((variant) => {
      const [medium, priority] = variant.split('/') as [Medium, Priority];
      return {
        medium,
        priority,
        diskMiB: short ? 64 : 512,
        ringBytes: set.ringMiB ? Number(set.ringMiB) * MIB : undefined,
      };
    }),
  };
}

type Take = () => Promise<number>;
interface Measured {
  bare: number[];
  agent: number[];
}

/**
 * An agent that has just been started is still being compiled: on a source it runs for months. The same load before the
 * bare side, so that both meet the same disk.
 */
async function warmUp(lab: BenchLab, { warmSeconds }: Plan): Promise<void> {
  await fio(lab.dev, warmSeconds, ['--rw=randwrite', '--bs=4k', '--iodepth=4', '--rate=40M']);
  if (!lab.agentRuns) return;
  await until('everything to be durable', async () => (await lab.state()).lagBytes === 0);
  await lab.ask('drain');
}

/** Runs every load bare and with the agent in turn, `rounds` times. */
async function sideBySide(
  lab: BenchLab,
  loads: Record<string, Take>,
  plan: Plan,
  options: BenchOptions,
  onAgentSide?: (load: string) => Promise<void>,
  before?: () => Promise<unknown>,
): Promise<Record<string, Measured>> {
  const results = Object.fromEntries(
    Object.keys(loads).map((name): [string, Measured] => [name, { bare: [], agent: [] }]),
  );
  for (let round = 0; round < plan.rounds; round++) {
    // Which side comes first changes, so that neither always meets the warmer disk.
    for (const side of round % 2 === 0
      ? (['bare', 'agent'] as const)
      : (['agent', 'bare'] as const)) {
      if (side === 'agent') await lab.startAgent();
      await before?.();
      for (const [name, take] of Object.entries(loads)) {
        const value = await take();
        results[name]![side].push(value);
        options.progress(
          `${lab.options.medium}/${lab.options.priority} round ${round + 1} of ${plan.rounds} ${side} ${name}: ${value.toFixed(1)}`,
        );
        if (side === 'agent') await onAgentSide?.(name);
      }
      if (side === 'agent') await lab.stopAgent();
    }
  }
  return results;
}

const compared = (
  figure: string,
  unit: string,
  { bare, agent }: Measured,
  goal: Goal | undefined,
  note: string | null = null,
  what = 'bare',
): Row => {
  const ratios = agent.map((value, round) => value / bare[round]!);
  const spread = `ratios of the rounds ${Math.min(...ratios).toFixed(3)} to ${Math.max(...ratios).toFixed(3)}`;
  return row({
    figure,
    value: median(agent),
    unit,
    against: { what, value: median(bare) },
    goal,
    note: [spread, note].filter(Boolean).join('; '),
  });
};

async function* fioRows(
  variant: LabOptions,
  plan: Plan,
  options: BenchOptions,
): AsyncGenerator<Row> {
  const lab = new BenchLab(variant);
  try {
    await lab.startAppliance();
    // Every block is allocated before anything is measured.
    await fio(lab.dev, 600, [
      '--rw=write',
      '--bs=1M',
      '--iodepth=4',
      '--time_based=0',
      `--size=${lab.sizeBytes}`,
    ]);
    const { seconds } = plan;
    const modes: Record<string, Set<string>> = {};
    const results = await sideBySide(
      lab,
      {
        qd1: async () =>
          (await fio(lab.dev, seconds, ['--rw=randwrite', '--bs=4k', '--iodepth=1'])).iops,
        qd32: async () =>
          (await fio(lab.dev, seconds, ['--rw=randwrite', '--bs=4k', '--iodepth=32'])).iops,
        paced: async () =>
          (await fio(lab.dev, seconds, ['--rw=write', '--bs=1M', '--iodepth=4', '--rate=200M']))
            .bytesPerSec / 1e6,
        unpaced: async () =>
          (await fio(lab.dev, seconds, ['--rw=write', '--bs=1M', '--iodepth=4'])).bytesPerSec / 1e6,
      },
      plan,
      options,
      async (load) => {
        modes[load] ??= new Set();
        // The agent says it each second.
        await new Promise((resolve) => setTimeout(resolve, 1_200));
        modes[load].add((await lab.state()).mode.mode);
        await until('order to be held', async () => {
          const { mode, consistent } = await lab.state();
          return mode.mode === 'ordered' && consistent;
        });
      },
      () => warmUp(lab, plan),
    );
    const name = `${variant.medium}/${variant.priority}`;
    const judged = variant.medium === 'disk';
    const goal = (atLeast: number) => (judged ? { atLeast } : undefined);
    const note = (load: string) =>
      modes[load]!.size === 1 && modes[load]!.has('ordered')
        ? null
        : 'the ring overflowed: order was lost and held again';
    yield compared(
      `${name} 4k random write, queue depth 1`,
      'IOPS',
      results.qd1!,
      goal(0.95),
      note('qd1'),
    );
    yield compared(
      `${name} 4k random write, queue depth 32`,
      'IOPS',
      results.qd32!,
      goal(0.9),
      note('qd32'),
    );
    yield compared(
      `${name} 1M sequential at 200 MiB/s`,
      'MB/s',
      results.paced!,
      goal(0.98),
      note('paced'),
    );
    yield compared(
      `${name} 1M sequential, unpaced`,
      'MB/s',
      results.unpaced!,
      goal(0.8),
      note('unpaced'),
    );
  } finally {
    await lab.close();
  }
}

/** A disk as fast as memory is bought by few: what of depth 32 is left on one that does so many writes per second. */
async function* heldRows(
  variant: LabOptions,
  plan: Plan,
  options: BenchOptions,
): AsyncGenerator<Row> {
  const lab = new BenchLab(variant);
  try {
    const tried = HeldDisk.holdDevice(lab.dev, 1_000_000, 'writes');
    tried?.free();
    if (!tried) {
      options.progress(
        'this machine has no control group that holds a disk: part `held` is left out',
      );
      return;
    }
    await lab.startAppliance();
    const all = ['--rw=write', '--bs=1M', '--iodepth=4', '--time_based=0'];
    await fio(lab.dev, 600, [...all, `--size=${lab.sizeBytes}`]);
    const write = ['--rw=randwrite', '--bs=4k', '--iodepth=32'];
    const loads = Object.fromEntries(
      plan.heldIops.map((iops): [string, Take] => [
        String(iops),
        async () => {
          const held = HeldDisk.holdDevice(lab.dev, iops, 'writes');
          try {
            return (await fio(lab.dev, plan.seconds, write)).iops;
          } finally {
            held?.free();
          }
        },
      ]),
    );
    const lost = new Set<string>();
    const results = await sideBySide(
      lab,
      loads,
      plan,
      options,
      async (load) => {
        await new Promise((resolve) => setTimeout(resolve, 1_200));
        if ((await lab.state()).mode.mode !== 'ordered') lost.add(load);
        await until('everything to be durable', async () => {
          const { mode, consistent, lagBytes } = await lab.state();
          return mode.mode === 'ordered' && consistent && lagBytes === 0;
        });
      },
      () => warmUp(lab, plan),
    );
    for (const iops of plan.heldIops) {
      yield compared(
        `${variant.medium}/${variant.priority} 4k random write, queue depth 32, disk held to ${iops} writes/s`,
        'IOPS',
        results[iops]!,
        variant.medium === 'disk' ? { atLeast: 0.9 } : undefined,
        lost.has(String(iops)) ? 'the ring overflowed: order was lost and held again' : null,
      );
    }
  } finally {
    await lab.close();
  }
}

/** So long the agent's window takes what one writer writes, with nobody there who acknowledges it. */
const WINDOW_SECONDS = 1.4;
/** What a ring must hold so that nobody has to read it for that long, at depth 32. */
const DEEP_RING_BYTES = 1024 * MIB;

/**
 * 4k writes with each of those who share the processors standing still in turn: what a source would lose whose appliance
 * is another machine (the appliance's process stands still for as long as the agent's window lasts; at depth 32 that is a
 * fifth of a second, so it is left out), and what the programs in the kernel take alone (agent and helper stand still too,
 * and the ring holds it all). And without any capture, beside a process that only computes: what such a load loses here as
 * soon as anybody else uses a processor, who gives way as agent and appliance do.
 */
async function* apartRows(
  variant: LabOptions,
  depth: 1 | 32,
  plan: Plan,
  { progress }: BenchOptions,
): AsyncGenerator<Row> {
  const deep = depth > 1;
  const lab = new BenchLab({ ...variant, ...(deep && { ringBytes: DEEP_RING_BYTES }) });
  const take = async () =>
    (await fio(lab.dev, WINDOW_SECONDS, ['--rw=randwrite', '--bs=4k', `--iodepth=${depth}`])).iops;
  const takeWithout = async (...pids: number[]) => {
    for (const pid of pids) process.kill(pid, 'SIGSTOP');
    const value = await take();
    for (const pid of pids) process.kill(pid, 'SIGCONT');
    await until('everything to be durable', async () => {
      const { lagBytes, mode } = await lab.state();
      return lagBytes === 0 && mode.mode === 'ordered';
    });
    return value;
  };
  const takeBeside = async () => {
    const bystander = lab.startBystander();
    const value = await take();
    bystander.kill('SIGKILL');
    return value;
  };
  try {
    await lab.startAppliance();
    const all = ['--rw=write', '--bs=1M', '--iodepth=4', '--time_based=0'];
    await fio(lab.dev, 600, [...all, `--size=${lab.sizeBytes}`]);
    const bare: number[] = [];
    const sides: Record<'all' | 'away' | 'programs' | 'bystander', number[]> = {
      all: [],
      away: [],
      programs: [],
      bystander: [],
    };
    const rounds = plan.rounds * 2;
    for (let round = 1; round <= rounds; round++) {
      const before = await take();
      sides.bystander.push(await takeBeside());
      await lab.startAgent();
      await warmUp(lab, plan);
      const { agentPid, helperPid, appliancePid } = lab;
      sides.all.push(await takeWithout());
      if (!deep) sides.away.push(await takeWithout(appliancePid));
      sides.programs.push(await takeWithout(agentPid, helperPid, appliancePid));
      await lab.stopAgent();
      bare.push((before + (await take())) / 2);
      const words = Object.entries(sides).flatMap(([name, values]) =>
        values.length > 0 ? `${name} ${values.at(-1)!.toFixed(0)}` : [],
      );
      progress(
        `apart, depth ${depth}, round ${round} of ${rounds}: ${words.join(', ')} of ${bare.at(-1)!.toFixed(0)}`,
      );
    }
    const name = `${variant.medium}/${variant.priority} 4k random write, queue depth ${depth}`;
    const side = (words: string, agent: number[], goal?: Goal) =>
      compared(`${name}, ${words}`, 'IOPS', { bare, agent }, goal);
    yield side('short rounds', sides.all);
    if (!deep) {
      const judged = variant.medium === 'disk' ? { atLeast: 0.95 } : undefined;
      yield side('the appliance stands still', sides.away, judged);
    }
    yield side('the programs in the kernel alone', sides.programs);
    const beside = 'a process that only computes';
    yield side(`no capture, beside ${beside}`, sides.bystander);
    yield compared(
      `${name}, short rounds again`,
      'IOPS',
      {
        bare: sides.bystander,
        agent: sides.all,
      },
      undefined,
      null,
      `beside ${beside}`,
    );
  } finally {
    await lab.close();
  }
}

async function* pgbenchRows(
  variant: LabOptions,
  plan: Plan,
  options: BenchOptions,
): AsyncGenerator<Row> {
  const lab = new BenchLab({ ...variant, diskMiB: 1536 });
  try {
    await lab.startAppliance();
    const postgres = new Postgres(lab.dev);
    // Also when the bench is interrupted.
    lab.later(() => postgres.stop());
    const used: Record<'agent and helper' | 'appliance', number[]> = {
      'agent and helper': [],
      appliance: [],
    };
    const { pgbench } = await sideBySide(
      lab,
      {
        pgbench: async () => {
          const pids = lab.agentRuns ? [lab.agentPid, lab.helperPid, lab.appliancePid] : [];
          const before = pids.map((pid) => usage(pid).cpuSeconds);
          const fromMs = performance.now();
          const tps = await postgres.transactionsPerSec(plan.seconds * 2);
          const processorMs = ((performance.now() - fromMs) * availableParallelism()) / 100;
          const [agent, helper, appliance] = pids.map(
            (pid, at) => ((usage(pid).cpuSeconds - before[at]!) * 1000) / processorMs,
          );
          if (pids.length > 0) {
            used['agent and helper'].push(agent! + helper!);
            used.appliance.push(appliance!);
          }
          return tps;
        },
      },
      plan,
      options,
      undefined,
      () => postgres.transactionsPerSec(Math.ceil(plan.warmSeconds)),
    );
    const name = `${variant.medium}/${variant.priority}`;
    yield compared(
      `${name} pgbench, 4 clients`,
      'tps',
      pgbench!,
      variant.medium === 'disk' ? { atLeast: 0.95 } : undefined,
    );
    // Who used what pgbench missed: the appliance's part would not be missed on a source of its own.
    for (const [what, percents] of Object.entries(used)) {
      yield row({
        figure: `${name} processor time beside pgbench: ${what}`,
        value: median(percents),
        unit: '%',
        note: `of ${availableParallelism()} processors, from pgbench's start to its end`,
      });
    }
  } finally {
    await lab.close();
  }
}

async function* sustainedRows(
  variant: LabOptions,
  plan: Plan,
  options: BenchOptions,
): AsyncGenerator<Row> {
  const lab = new BenchLab(variant);
  const seconds = plan.sustainedSeconds;
  try {
    await lab.startAppliance();
    await lab.startAgent();
    const name = `${variant.medium}/${variant.priority}`;
    const pids = [lab.agentPid, lab.helperPid, lab.appliancePid] as const;
    const before = pids.map((pid) => usage(pid).cpuSeconds);
    await lab.ask('sample');
    const { bytesPerSec } = await fio(lab.dev, seconds, [
      '--rw=write',
      '--bs=1M',
      '--iodepth=4',
      `--rate=${plan.sustainedMiB}M`,
    ]);
    const caughtUpMs = performance.now();
    await until('everything to be durable', async () => (await lab.state()).lagBytes === 0);
    const behindMs = performance.now() - caughtUpMs;
    const sampled = await lab.ask<Sampled>('sampled');
    const cpu = pids.map((pid, at) => (usage(pid).cpuSeconds - before[at]!) / seconds);
    options.progress(
      `sustained: ${JSON.stringify({ bytesPerSec, behindMs, ordered: sampled.orderedShare, cpu })}`,
    );
    yield row({
      figure: `${name} sustained ordered capture for ${seconds} s`,
      value: bytesPerSec / 1e6,
      unit: 'MB/s',
      against: { what: 'asked for', value: (plan.sustainedMiB * MIB) / 1e6 },
      goal: { atLeast: 0.98 },
      note: `at most ${(sampled.maxLagBytes / MIB).toFixed(0)} MiB not durable; all durable ${behindMs.toFixed(0)} ms after the last write`,
    });
    yield row({
      figure: `${name} share of that time in ordered mode`,
      value: sampled.orderedShare,
      unit: '',
      goal: { atLeast: 1 },
    });
    for (const [at, what] of (['agent', 'capture helper', 'appliance'] as const).entries()) {
      yield row({
        figure: `${name} processor time of the ${what} per GB`,
        value: (cpu[at]! * 1e9) / bytesPerSec,
        unit: 's',
      });
    }
    yield row({
      figure: `${name} lag p99 at it`,
      value: quantile(sampled.lagsMs, 0.99),
      unit: 'ms',
    });
  } finally {
    await lab.close();
  }
}

async function* lagRows(variant: LabOptions, plan: Plan): AsyncGenerator<Row> {
  const lab = new BenchLab(variant);
  try {
    await lab.startAppliance();
    await lab.startAgent();
    await lab.ask('sample');
    await fio(lab.dev, plan.lagSeconds, [
      '--rw=randwrite',
      '--bs=16k',
      '--iodepth=4',
      '--rate=50M',
    ]);
    const { lagsMs, orderedShare } = await lab.ask<Sampled>('sampled');
    yield row({
      figure: `${variant.medium}/${variant.priority} lag p99 at 50 MiB/s of 16k random writes`,
      value: quantile(lagsMs, 0.99),
      unit: 'ms',
      goal: { atMost: 1000 },
      note: `median ${quantile(lagsMs, 0.5).toFixed(0)} ms, most ${Math.max(...lagsMs).toFixed(0)} ms, of ${lagsMs.length} samples; ordered for ${(orderedShare * 100).toFixed(0)} % of them`,
    });
  } finally {
    await lab.close();
  }
}

/** Nanoseconds that the kernel counted in the stubs of the helper's programs, and what they call. */
function programNs(helperPid: number): { ns: number; runs: number } {
  const dir = `/proc/${helperPid}/fdinfo`;
  const sum = { ns: 0, runs: 0 };
  for (const fd of fs.readdirSync(dir)) {
    const text = fs.readFileSync(`${dir}/${fd}`, 'utf8');
    const ns = /^run_time_ns:\s+(\d+)/m.exec(text);
    if (!ns) continue;
    sum.ns += Number(ns[1]);
    sum.runs += Number(/^run_cnt:\s+(\d+)/m.exec(text)?.[1] ?? 0);
  }
  return sum;
}

async function* hookRows(variant: LabOptions, plan: Plan): AsyncGenerator<Row> {
  const lab = new BenchLab(variant);
  const sysctl = '/proc/sys/kernel/bpf_stats_enabled';
  try {
    await lab.startAppliance();
    await lab.startAgent();
    fs.writeFileSync(sysctl, '1');
    for (const [what, args] of [
      ['4k write', ['--rw=randwrite', '--bs=4k', '--iodepth=1']],
      ['1M write', ['--rw=write', '--bs=1M', '--iodepth=1', '--rate=200M']],
    ] as const) {
      const before = programNs(lab.helperPid);
      const { iops } = await fio(lab.dev, plan.seconds, args);
      const { ns } = programNs(lab.helperPid);
      const writes = iops * plan.seconds;
      yield row({
        figure: `${variant.medium}/${variant.priority} time in the capture's programs per ${what}`,
        value: (ns - before.ns) / writes,
        unit: 'ns',
        against: { what: 'time between writes', value: 1e9 / iops },
        note: 'issue and completion, as the kernel counts it (bpf_stats_enabled), its own cost included',
      });
    }
  } finally {
    fs.writeFileSync(sysctl, '0');
    await lab.close();
  }
}

const bench: Bench = {
  summary: 'what capture and streaming cost the source, and what they keep up with',
  hasQuick: true,
  async *run(options) {
    const plan = planOf(options);
    const first = plan.variants[0]!;
    if (plan.parts.has('hook')) yield* hookRows(first, plan);
    if (plan.parts.has('lag')) yield* lagRows(first, plan);
    for (const depth of [1, 32] as const) {
      if (plan.parts.has('apart')) yield* apartRows(first, depth, plan, options);
    }
    if (plan.parts.has('sustained')) yield* sustainedRows(first, plan, options);
    if (plan.parts.has('held')) yield* heldRows(first, plan, options);
    for (const variant of plan.variants) {
      if (plan.parts.has('fio')) yield* fioRows(variant, plan, options);
      if (plan.parts.has('pgbench')) yield* pgbenchRows(variant, plan, options);
    }
  },
};

export default bench;
