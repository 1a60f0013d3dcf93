/**
 * Order is lost and held again under load, and nothing is missed: whatever the schedule of overflows, cut and slow links,
 * killed agents and restarted appliances, every replica ends as its source disk, byte for byte.
 *
 * A round: three captured loop devices (one of them fails writes when its backing store is full); writers that overlap one
 * another in flight, O_DIRECT and buffered, with discards; a small ring that overflows again and again; and then the
 * comparison. A round in which order was never lost does not count.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import type { Proof, RoundContext, RoundResult } from '../../scripts/lib/proof.ts';
import { MIB, run, unable } from '../integration/capture.lab.ts';
import { LiveLab } from '../integration/live.lab.ts';

const FAULTS = [
  'link stalled',
  'link slow',
  'link cut',
  'agent killed',
  'appliance restarted',
  'pause',
] as const;
type Fault = (typeof FAULTS)[number];

/** Writers as fio runs them: two of them on one region, so that writes overlap in flight. */
class Load {
  readonly #running: ChildProcess[] = [];

  start(dev: string, sizeBytes: number, seed: number, rate: string): void {
    const block = run('blockdev', '--getss', dev).trim();
    const common = [
      `--filename=${dev}`,
      `--size=${sizeBytes}`,
      `--bsrange=${block}-256k`,
      '--bs_unaligned=0',
      '--norandommap',
      '--refill_buffers',
      '--allow_mounted_write=1',
      '--time_based',
      '--runtime=600',
      `--rate=${rate}`,
      // A failed write is part of the proof.
      '--continue_on_error=all',
      '--output=/dev/null',
    ];
    const direct = [`--randseed=${seed}`, '--rw=randwrite', '--direct=1', '--ioengine=libaio'];
    this.#spawn([...common, ...direct, '--iodepth=16', '--name=one']);
    this.#spawn([...common, ...direct, `--randseed=${seed + 1}`, '--iodepth=4', '--name=two']);
    const buffered = ['--rw=randwrite', '--ioengine=psync', '--fsync=16', `--randseed=${seed + 2}`];
    this.#spawn([...common, ...buffered, '--name=three']);
    const trim = ['--rw=randtrim', '--ioengine=psync', '--direct=1', '--rate_iops=20'];
    this.#spawn([...common.filter((arg) => !arg.startsWith('--rate=')), ...trim, '--name=four']);
  }

  #spawn(args: string[]): void {
    this.#running.push(spawn('fio', args, { stdio: 'ignore' }));
  }

  async stop(): Promise<void> {
    await Promise.all(
      this.#running.splice(0).map(async (one) => {
        if (one.exitCode !== null || one.signalCode !== null) return;
        const exit = once(one, 'exit');
        one.kill('SIGINT');
        await exit;
      }),
    );
  }
}

async function hurt(live: LiveLab, fault: Fault, ms: number, random: (n: number) => number) {
  switch (fault) {
    case 'link stalled':
      live.proxy.stalled = true;
      await pause(ms);
      live.proxy.stalled = false;
      break;
    case 'link slow':
      live.proxy.bytesPerSec = (1 + random(8)) * MIB;
      await pause(2 * ms);
      live.proxy.bytesPerSec = null;
      break;
    case 'link cut':
      live.proxy.cut();
      break;
    case 'agent killed':
      await live.stopAgent('SIGKILL');
      await pause(random(ms));
      live.startAgent();
      break;
    case 'appliance restarted':
      await live.restartAppliance();
      break;
    case 'pause':
      await pause(ms);
  }
}

async function round(context: RoundContext): Promise<RoundResult> {
  const { random, short } = context;
  const ringBytes = MIB << random(3);
  const live = new LiveLab(context, [48, 24]);
  live.addFailingDisk(24, 20);
  await live.start(ringBytes);
  const load = new Load();
  context.teardown(() => load.stop());
  live.startAgent();
  if (random(2) === 0) {
    await live.until('the first mirror', () => live.stream.state().consistent);
  }
  const rate = `${2 + random(short ? 4 : 12)}m`;
  for (const { dev, sizeBytes } of live.disks) load.start(dev, sizeBytes, random(2 ** 30), rate);

  // Seen by what is durable: the folds of the stream, not what anybody claims.
  let losses = 0;
  let drains = 0;
  let before = 'ordered';
  const watch = setInterval(() => {
    const { mode } = live.stream.state().mode;
    if (mode === 'tracking' && before !== 'tracking') losses++;
    if (mode === 'ordered' && before === 'draining') drains++;
    before = mode;
  }, 5);
  context.teardown(() => clearInterval(watch));

  const did: string[] = [];
  const faults = short ? 3 : 4 + random(5);
  for (let n = 0; n < faults; n++) {
    // An overflow at first: a round without one shows nothing. How long that takes is the machine's affair.
    const fault = n === 0 ? 'link stalled' : FAULTS[random(FAULTS.length)]!;
    const ms = 300 + random(1500);
    did.push(fault);
    await hurt(live, fault, ms, random);
    for (let longer = 2 * ms; n === 0 && losses === 0 && longer < 120_000; longer *= 2) {
      const isThere = () => losses > 0 || (live.stream.state().lagMs ?? Infinity) < 1500;
      await live.until('what the stall kept back to come', isThere);
      if (losses === 0) await hurt(live, fault, longer, random);
    }
  }
  if (random(2) === 0) {
    // The way back with a load going on, one that fits so small a ring on a busy machine; else it is stopped first.
    await load.stop();
    const [one] = live.disks;
    load.start(one!.dev, one!.sizeBytes, random(2 ** 30), '64k');
    const isHeld = () => live.stream.state().consistent;
    await live.until('order to be held under load', isHeld, 300_000);
    did.push('held under load');
  }
  await load.stop();
  await live.settled();
  // Blocks that overlapped in flight are read again a moment later than the stream is whole.
  const differences = await live.differences();
  clearInterval(watch);

  const wrong = differences.flatMap((at, disk) =>
    at === undefined ? [] : [`disk ${disk} differs from its replica at byte ${at}`],
  );
  if (wrong.length > 0) {
    const keep = context.keepDir();
    live.disks.forEach(({ dev, replica }, disk) => {
      run('cp', '--sparse=always', replica, join(keep, `replica-${disk}.img`));
      run('dd', `if=${dev}`, `of=${join(keep, `source-${disk}.img`)}`, 'bs=1M', 'conv=sparse');
    });
    run('cp', '-r', join(live.lab.dir, 'job'), join(keep, 'job'));
    fs.writeFileSync(join(keep, 'state.json'), JSON.stringify(live.stream.state(), null, 1));
  }
  if (losses === 0) wrong.push('order was never lost: the round shows nothing');
  const { epoch } = live.stream;
  if (epoch !== 1) wrong.push(`epoch ${epoch}: something had to be compared as a whole`);
  return {
    did: `ring ${ringBytes / MIB} MiB, ${rate}/s a writer, order lost ${losses}, drained ${drains}: ${did.join(', ')}`,
    wrong,
  };
}

export const proof: Proof = {
  what: 'order lost and held again under load: replicas are their sources, byte for byte',
  packages: ['fio'],
  builds: ['build-capture'],
  rounds: 20,
  require: () => unable() || null,
  round,
};
