/**
 * What journal, checkpoints and recovery keep up with, and what they cost.
 *
 * - ingest: a stream over mutual TLS until it is acknowledged, which is durable in the journal, against what the
 *   journal's disk takes in one piece; bytes as they cross the network and lie in the journal. Once as fast as the disk
 *   is, once with the disk held to `heldMBps`, which is a SATA SSD's: the fastest disks outrun TLS on two processors.
 * - apply: that journal onto a block device until its last flush, against the very same writes by fio; bytes as the
 *   source wrote them. In the same two ways: fio neither reads a journal nor unpacks it.
 * - chain: reads, writes, opening and merging of a chain of checkpoints by its depth.
 * - pause: what a checkpoint holds up under churn: apply, acknowledgements.
 * - failover: a test failover from the request to the VM's power-on, through the whole appliance.
 * The last two run on the libvirt of a lab. The sides take turns, round by round, and medians are compared.
 *
 * --set parts=ingest,chain,pause,failover rounds=N medium=disk|memory totalMiB=N heldMBps=N depths=1,16,64,256
 *       spanSeconds=N checkpoints=N tests=N
 */
// apt: fio util-linux openssl qemu-utils qemu-system-common qemu-system-x86 openssh-client fdisk e2fsprogs

import { collectLessOften } from '../../protocol/garbage.ts';
import { ApplianceEnd } from './appliance-end.ts';
import type { Applied } from './appliance-process.ts';
import { type PausePlan, pauseRows } from './checkpoint-pause.ts';
import { type Bench, type BenchOptions, median, type Row, row } from './frame.ts';
import { HeldDisk } from './held-disk.ts';
import { startHostLab } from './host-lab.ts';
import { type Medium, MIB, run, usage } from './lab.ts';
import { type Made, MadeStream, makeFrames, type Shape } from './made-stream.ts';
import { type ChainPlan, chainRows } from './qcow2-chain.ts';
import { RecoveryLab, sameWrites, sequentialLimit } from './recovery-lab.ts';
import { type FailoverPlan, failoverRows, mostBetweenSeconds } from './test-failover.ts';

interface Plan {
  parts: Set<string>;
  medium: Medium;
  rounds: number;
  /** Bytes per second. */
  heldSpeed: number;
  shapes: Array<Shape & { totalMiB: number; diskMiB: number }>;
  chain: ChainPlan;
  pause: PausePlan;
  failover: FailoverPlan;
}

/** Of a source's writes while checkpoints and failovers are measured, in bytes per second. */
const RATE = 20e6;

function planOf({ short, quick, set }: BenchOptions): Plan {
  const by = <T>(full: T, middle: T, tiny: T): T => (short ? tiny : quick ? middle : full);
  const medium = (set.medium ?? by('disk', 'disk', 'memory')) as Medium;
  const totalMiB = Number(set.totalMiB ?? by(2048, 768, 24));
  const depths = (set.depths ?? by('1,16,64,256', '1,16,256', '1,3')).split(',').map(Number);
  return {
    // The short form has no lab, which takes longer than all the rest.
    parts: new Set(
      (set.parts ?? (short ? 'ingest,chain' : 'ingest,chain,pause,failover')).split(','),
    ),
    medium,
    rounds: Number(set.rounds ?? by(5, 3, 1)),
    heldSpeed: Number(set.heldMBps ?? 500) * 1e6,
    shapes: [
      {
        ...{ words: '512k in order', writeBytes: 512 * 1024, order: 'sequential' },
        ...{ totalMiB, diskMiB: totalMiB },
      },
      // At random onto a quarter of a disk: on one that is filled by them, whoever flushes last writes it in order.
      {
        ...{ words: '64k at random', writeBytes: 64 * 1024, order: 'random' },
        ...{ totalMiB: totalMiB / 2, diskMiB: totalMiB * 2 },
      },
      {
        ...{ words: '4k at random', writeBytes: 4096, order: 'random' },
        ...{ totalMiB: totalMiB / 2, diskMiB: totalMiB * 2 },
      },
    ],
    chain: {
      diskMiB: by(2048, 1024, 32),
      clusters: by(256, 64, 4),
      depths,
      requests: by(20_000, 10_000, 100),
      rounds: by(3, 1, 1),
      merges: by(16, 8, 1),
      direct: medium === 'disk',
    },
    pause: {
      diskMiB: by(2048, 1024, 64),
      checkpoints: Number(set.checkpoints ?? by(20, 5, 1)),
      everyMs: by(5_000, 3_000, 500),
      bytesPerSec: RATE,
    },
    failover: {
      diskMiB: by(8192, 2048, 256),
      rounds: Number(set.tests ?? by(5, 3, 1)),
      spanSeconds: Number(set.spanSeconds ?? by(Math.ceil(mostBetweenSeconds(RATE)), 30, 1)),
      bytesPerSec: RATE,
    },
  };
}

interface Round {
  limit: number;
  ingest: number;
  ingestCpuPerGB: number;
  apply: number;
  applyCpuPerGB: number;
  fio: number;
}

const JOURNAL_BYTES = 64 * 1024 * MIB;

const startEnd = (lab: RecoveryLab, jobDir: string, diskBytes: number): Promise<ApplianceEnd> =>
  ApplianceEnd.start({
    jobDir,
    disks: [
      {
        ...{ diskId: 'disk', index: 0, devicePath: '/dev/none', sizeBytes: diskBytes },
        ...{ replicaPath: null, freshReplica: true },
      },
    ],
    ringBytes: 0,
    journalBytes: JOURNAL_BYTES,
    pem: lab.pem,
  });

/** Sends all frames; returns the seconds until they were acknowledged, and the processor time that the end took. */
async function ingest(
  end: ApplianceEnd,
  lab: RecoveryLab,
  made: Made,
): Promise<{ seconds: number; cpuSeconds: number }> {
  const stream = await MadeStream.open(end.port, lab.pem);
  const cpuBefore = usage(end.pid).cpuSeconds;
  const beganMs = performance.now();
  for (const frame of made.frames) await stream.send(frame);
  await stream.durable();
  const seconds = (performance.now() - beganMs) / 1000;
  const cpuSeconds = usage(end.pid).cpuSeconds - cpuBefore;
  stream.close();
  return { seconds, cpuSeconds };
}

/**
 * @param speed what both disks are held to while they are measured, in bytes per second; null: as they are
 * @returns null where they cannot be held
 */
async function ingestRound(
  lab: RecoveryLab,
  made: Made,
  medium: Medium,
  disk: { dev: string; bytes: number },
  speed: number | null,
  peerFirst: boolean,
): Promise<Round | null> {
  const limitOf = () => sequentialLimit(lab.path('limit'), made.packedBytes, medium);
  const fioOf = () => sameWrites(disk.dev, made.writes, lab.path('log'));
  const jobDir = lab.path('job');
  const journalHeld = speed ? HeldDisk.hold(lab.dir, speed) : null;
  let deviceHeld: HeldDisk | null = null;
  let end: ApplianceEnd | undefined;
  const letGo = lab.later(() => {
    journalHeld?.free();
    deviceHeld?.free();
  });
  try {
    if (speed && !journalHeld) return null;
    const limitBefore = peerFirst ? await limitOf() : 0;
    end = await startEnd(lab, jobDir, disk.bytes);
    const ingested = await ingest(end, lab, made);
    const limit = limitBefore || (await limitOf());
    journalHeld?.free();
    // The disk still has to do with the journal when its writes are acknowledged: neither side is to pay for that.
    await fioOf();
    deviceHeld = speed ? HeldDisk.holdDevice(disk.dev, speed) : null;
    if (speed && !deviceHeld) return null;
    const fioBefore = peerFirst ? await fioOf() : 0;
    const applied = await end.ask<Applied>({ ask: 'apply', replicaPath: disk.dev });
    const fio = fioBefore || (await fioOf());
    return {
      limit,
      ingest: made.packedBytes / ingested.seconds,
      ingestCpuPerGB: ingested.cpuSeconds / (made.packedBytes / 1e9),
      apply: made.sourceBytes / applied.seconds,
      applyCpuPerGB: applied.cpuSeconds / (made.sourceBytes / 1e9),
      fio: made.sourceBytes / fio,
    };
  } finally {
    letGo();
    await end?.stop();
    lab.remove(jobDir);
  }
}

async function* ingestRows(plan: Plan, { progress }: BenchOptions): AsyncGenerator<Row> {
  const largest = Math.max(...plan.shapes.map(({ totalMiB, diskMiB }) => totalMiB * 3 + diskMiB));
  const lab = new RecoveryLab(plan.medium, largest + 512);
  try {
    for (const shape of plan.shapes) {
      const diskBytes = shape.diskMiB * MIB;
      const made = await makeFrames(shape, shape.totalMiB * MIB, diskBytes);
      const disk = lab.loop(diskBytes, plan.medium);
      // Whoever writes first to a new file's blocks pays for that: neither side is to.
      const zeroes = [`count=${diskBytes / MIB}`, 'bs=1M', 'oflag=direct', 'status=none'];
      run('dd', 'if=/dev/zero', `of=${disk.dev}`, ...zeroes);
      const asItIs: Round[] = [];
      const held: Round[] = [];
      const speeds = plan.medium === 'disk' ? [null, plan.heldSpeed] : [null];
      for (let n = 0; n < plan.rounds; n++) {
        for (const speed of speeds) {
          const target = { dev: disk.dev, bytes: diskBytes };
          const one = await ingestRound(lab, made, plan.medium, target, speed, n % 2 === 0);
          if (!one) continue;
          (speed ? held : asItIs).push(one);
          const mb = (value: number) => (value / 1e6).toFixed(0);
          progress(
            `${shape.words}, round ${n + 1} of ${plan.rounds}${speed ? ', held' : ''}: ingest ${mb(one.ingest)} of ${mb(one.limit)}, apply ${mb(one.apply)} of ${mb(one.fio)} MB/s`,
          );
        }
      }
      disk.free();
      const bytes = `one byte stands for ${(made.sourceBytes / made.packedBytes).toFixed(1)} of the source's`;
      yield* compared(asItIs, plan.medium, shape.words, bytes, plan.medium === 'disk');
      const heldTo = `disk held to ${(plan.heldSpeed / 1e6).toFixed(0)} MB/s`;
      if (held.length > 0) yield* compared(held, heldTo, shape.words, bytes, true);
    }
  } finally {
    lab.close();
  }
}

function* compared(
  rounds: readonly Round[],
  where: string,
  words: string,
  bytes: string,
  judged: boolean,
): Generator<Row> {
  const of = (name: keyof Round) => median(rounds.map((one) => one[name]));
  const spread = (a: keyof Round, b: keyof Round) => {
    const ratios = rounds.map((one) => one[a] / one[b]);
    return `ratios of the rounds ${Math.min(...ratios).toFixed(2)} to ${Math.max(...ratios).toFixed(2)}`;
  };
  yield row({
    figure: `${where}: ingest to durable ack, ${words}`,
    value: of('ingest') / 1e6,
    unit: 'MB/s',
    against: { what: 'in one piece', value: of('limit') / 1e6 },
    goal: judged ? { atLeast: 0.8 } : undefined,
    note: `${spread('ingest', 'limit')}; ${of('ingestCpuPerGB').toFixed(1)} s of processor time per GB; ${bytes}`,
  });
  yield row({
    figure: `${where}: apply, ${words}`,
    value: of('apply') / 1e6,
    unit: 'MB/s',
    against: { what: 'fio', value: of('fio') / 1e6 },
    goal: judged ? { atLeast: 0.7 } : undefined,
    note: `${spread('apply', 'fio')}; ${of('applyCpuPerGB').toFixed(1)} s of processor time per GB`,
  });
}

async function* chainPart(plan: Plan, { progress }: BenchOptions): AsyncGenerator<Row> {
  const lab = new RecoveryLab(plan.medium, plan.chain.diskMiB * 4 + 512);
  try {
    yield* chainRows(lab, plan.chain, progress);
  } finally {
    lab.close();
  }
}

async function* hostParts(plan: Plan, options: BenchOptions): AsyncGenerator<Row> {
  const name = process.env.LAB_NAME ?? 'bench';
  options.progress(`a lab, ${name}`);
  const hostLab = await startHostLab(name, plan.failover.rounds + 4);
  const lab = new RecoveryLab('disk', 0);
  try {
    if (plan.parts.has('pause')) yield* pauseRows(lab, hostLab, plan.pause, options.progress);
    if (plan.parts.has('failover')) yield* failoverRows(hostLab, plan.failover, options.progress);
  } finally {
    lab.close();
    await hostLab.close();
  }
}

const bench: Bench = {
  summary: 'what journal, checkpoints and recovery keep up with and cost',
  hasQuick: true,
  async *run(options) {
    // The sender stands for another machine, and takes of this one's processors what it must.
    collectLessOften('roomy');
    const plan = planOf(options);
    if (plan.parts.has('ingest')) yield* ingestRows(plan, options);
    if (plan.parts.has('chain')) yield* chainPart(plan, options);
    if (plan.parts.has('pause') || plan.parts.has('failover')) yield* hostParts(plan, options);
  },
};

export default bench;
