/**
 * Nothing that was acknowledged is lost: the appliance's service is killed at random moments under load (fio, the real
 * capture), with its disks losing what was not flushed, its agent killed, the link cut, or its job set back to an older
 * image of itself; the replicas end as their source disks, byte for byte, in the same epoch unless it was set back.
 *
 * After each kill, before the agent is let in again:
 * - the journal is whole up to the newest acknowledgement (heard of as the agent hears of it), and verifies without fault;
 * - a copy of the replicas from earlier, with the journal's frames up to one that was acknowledged while the source stood
 *   still, is the source's disks as they were then;
 * - with all frames, it is the replicas as they are now: nothing that apply had flushed before is missing on them.
 *
 * A killed process alone cannot reveal a missing fsync, so the appliance's files lie on a disk that drops writes and
 * names that no returned sync followed (crash/unflushed.c, crash/rollback.ts). Seen to fail (`--only unflushed`) without
 * the datasync of a segment (frames lost), the sync of its folder (likewise), the sync of a replica disk before
 * `applied` (the journal is not the replica), and of the folders in which a job's folders were made (the journal gone).
 */
import fs from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { Journal } from '../../appliance/journal/journal.ts';
import { replay } from '../../appliance/recovery/replay.ts';
import type { Proof, RoundContext, RoundResult } from '../../scripts/lib/proof.ts';
import { MIB, run, runAside, unable } from '../integration/capture.lab.ts';
import { FATES } from './crash/host.ts';
import { CrashLive, type Kept } from './crash/live.ts';
import { Load } from './crash/load.ts';

/**
 * killed: the process alone; unflushed: with all its disks; mirror: in the first mirror; history: with so short a history
 * that segments and pages of the point index come and go; set-back: the job's folder becomes an older copy; checkpoint: the
 * command of a checkpoint whose outcome the appliance cannot know, because the host's connection or itself dies in it.
 */
const CASES = ['killed', 'unflushed', 'mirror', 'history', 'set-back', 'checkpoint'] as const;
type Case = (typeof CASES)[number];
const DISTURBANCES = ['nothing', 'link cut', 'agent killed'] as const;

class Round {
  readonly #context: RoundContext;
  readonly #case: Case;
  readonly #live: CrashLive;
  readonly #load = new Load();
  readonly #did: string[] = [];
  readonly #wrong: string[] = [];
  #unsyncedNames = 0;
  #unsyncedWrites = 0;
  /** Frames that were replayed for comparison. */
  #replayed = 0;

  constructor(context: RoundContext) {
    this.#context = context;
    this.#case = context.case as Case;
    const limits = this.#case === 'history' ? { historyBytes: 6 * MIB, segmentBytes: MIB } : {};
    this.#live = new CrashLive(context, [32, 16], limits);
    context.teardown(() => this.#load.stop());
  }

  async run(): Promise<RoundResult> {
    const live = this.#live;
    const { short } = this.#context;
    await live.proxy.listen();
    if (this.#case === 'checkpoint') await live.useHost();
    await live.open();
    await live.ask('serve');
    live.startAgent();
    const kills = short ? 1 : 2 + this.#context.random(3);
    if (this.#case === 'mirror') await this.#inMirror(kills);
    else if (this.#case === 'set-back') await this.#setBack();
    else if (this.#case === 'checkpoint') await this.#checkpoints(short ? 2 : 4);
    else await this.#kills(kills);
    await this.#end(this.#case === 'set-back' ? 2 : 1);
    return this.result();
  }

  result(...more: string[]): RoundResult {
    const open = `${this.#unsyncedWrites} writes and ${this.#unsyncedNames} names not flushed`;
    return {
      did: `${this.#case}: ${this.#did.join(', ')}; ${open}; ${this.#replayed} frames compared`,
      wrong: [...this.#wrong, ...more],
    };
  }

  #startLoad(): void {
    for (const { dev, sizeBytes } of this.#live.disks) {
      this.#load.start(dev, sizeBytes, this.#context.random(2 ** 30));
    }
  }

  async #someFrames(): Promise<void> {
    await this.#live.frames(10 + this.#context.random(this.#context.short ? 30 : 150));
  }

  async #disturb(): Promise<void> {
    const kind = DISTURBANCES[this.#context.random(DISTURBANCES.length)]!;
    if (kind === 'link cut') this.#live.proxy.cut();
    if (kind === 'agent killed') {
      await this.#live.killAgent();
      this.#live.startAgent();
    }
    if (kind !== 'nothing') this.#did.push(kind);
  }

  /** The appliance dies under load; it is back, its agent not yet, when this resolves. */
  async #crash(between: () => void = () => {}): Promise<void> {
    const live = this.#live;
    const { random } = this.#context;
    const power = this.#case !== 'killed';
    // Apply flushes twice a second: a kill shall find it anywhere between.
    await pause(random(700));
    if (power) {
      const { names, writes } = await live.cutPower(random);
      this.#unsyncedNames += names;
      this.#unsyncedWrites += writes;
    } else await live.kill();
    this.#did.push(power ? 'power cut' : 'appliance killed');
    // Less than the ring may come while nobody listens.
    await pause(random(300));
    this.#load.hold();
    if (random(3) === 0) {
      await live.killAgent();
      live.startAgent();
      this.#did.push('agent killed with it');
    }
    between();
    const durableSeq = await live.open();
    if (durableSeq < live.acked) {
      throw new Error(`frame ${live.acked} was acknowledged, the journal ends at ${durableSeq}`);
    }
    await this.#verify();
  }

  async #verify(): Promise<void> {
    const faults = await this.#live.ask('verify');
    this.#wrong.push(...faults.map((fault) => `journal verify: ${fault}`));
  }

  async #goOn(): Promise<void> {
    await this.#live.ask('serve');
    this.#load.goOn();
  }

  async #kills(kills: number): Promise<void> {
    const live = this.#live;
    const compared = this.#case !== 'history';
    for (let n = 0; n < kills; n++) {
      // Anew each time: on a slow machine the load writes more than the history keeps.
      const base = await live.keepReplicas();
      this.#startLoad();
      await this.#someFrames();
      await this.#disturb();
      await this.#someFrames();
      let quiet: Kept | undefined;
      if (compared) {
        await this.#load.stop();
        const seq = await live.settled();
        quiet = { seq, images: await live.keepSources() };
        this.#startLoad();
        await this.#someFrames();
      }
      await this.#crash();
      if (quiet) await this.#compare(base, quiet);
      await this.#goOn();
      await this.#someFrames();
      await this.#load.stop();
    }
  }

  /** Checkpoints of every fate under load; then each of them is what the journal gives up to its frame. */
  async #checkpoints(count: number): Promise<void> {
    const live = this.#live;
    let total = 0;
    for (let n = 0; n < count; n++) {
      const base = await live.keepReplicas();
      this.#startLoad();
      await this.#someFrames();
      const fate = FATES[(n + this.#context.random(FATES.length)) % FATES.length]!;
      this.#did.push(`checkpoint ${fate}`);
      if (!(await live.checkpoint(fate))) {
        this.#load.hold();
        const durableSeq = await live.open();
        if (durableSeq < live.acked) {
          throw new Error(
            `frame ${live.acked} was acknowledged, the journal ends at ${durableSeq}`,
          );
        }
        await this.#verify();
        await this.#goOn();
      }
      await this.#someFrames();
      await this.#load.stop();
      await live.settled();
      const { kept, open, images } = await live.ask('checkpoints');
      if (open > 0) this.#wrong.push(`${open} checkpoints are neither there nor not`);
      if (images.join() !== live.replicas.join())
        this.#wrong.push(`on record as written: ${images}`);
      await this.#replay(base, async (to, replayed) => {
        for (const { seq, paths } of kept.filter((one) => one.seq > base.seq)) {
          await to(seq);
          this.#same(replayed, paths, `the journal up to frame ${seq}`, 'the checkpoint of it');
        }
      });
      total = kept.length;
    }
    this.#did.push(`${total} kept`);
  }

  /** The base and the journal give the sources as they stood still, and then the replicas as they are. */
  async #compare(base: Kept, quiet: Kept): Promise<void> {
    const endSeq = await this.#live.ask('drainApply');
    await this.#replay(base, async (to, images) => {
      await to(quiet.seq);
      this.#same(images, quiet.images, `the journal up to frame ${quiet.seq}`, 'the source then');
      await to(endSeq);
      this.#same(images, this.#live.replicas, `the journal up to frame ${endSeq}`, 'the replica');
      this.#replayed += endSeq - base.seq;
    });
  }

  /** On copies of the base, `to` applies the journal up to a frame. */
  async #replay(
    base: Kept,
    act: (to: (seq: number) => Promise<unknown>, images: string[]) => Promise<void>,
  ): Promise<void> {
    const live = this.#live;
    // A copy: opening a journal may cut it.
    const dir = join(live.lab.dir, 'replayed');
    fs.rmSync(dir, { recursive: true, force: true });
    await runAside('cp', '-r', join(live.jobDir, 'journal'), dir);
    const journal = await Journal.open(
      { jobId: 'crash', dir, appliedSeq: base.seq, limitBytes: Number.MAX_SAFE_INTEGER },
      { durable: () => {}, failed: () => {} },
      () => {},
    );
    const images = base.images.map((image) => {
      run('cp', '--sparse=always', image, `${image}.replayed`);
      return `${image}.replayed`;
    });
    const reader = journal.reader(base.seq + 1);
    const to = (toSeq: number) =>
      replay({
        jobId: 'crash',
        reader,
        toSeq,
        sizes: live.disks.map(({ sizeBytes }) => sizeBytes),
        paths: new Map(images.entries()),
      });
    try {
      await act(to, images);
    } finally {
      await reader.close();
      await journal.close();
    }
  }

  #same(some: string[], others: string[], what: string, other: string): void {
    for (const [disk, image] of some.entries()) {
      const at = firstDifference(image, others[disk]!);
      if (at !== null) this.#wrong.push(`disk ${disk}: ${what} is not ${other} at byte ${at}`);
    }
  }

  async #inMirror(kills: number): Promise<void> {
    const live = this.#live;
    this.#startLoad();
    for (let n = 0; n < kills; n++) {
      await live.frames(this.#context.random(40));
      await this.#crash();
      await this.#goOn();
    }
    await live.until('the mirror to be done', ({ consistent }) => consistent);
    await this.#load.stop();
  }

  async #setBack(): Promise<void> {
    const live = this.#live;
    const older = join(live.lab.dir, 'older');
    await live.until('the mirror to be done', ({ consistent }) => consistent);
    this.#startLoad();
    await this.#someFrames();
    let olderAcked = 0;
    await this.#crash(() => {
      run('cp', '-a', live.jobDir, older);
      olderAcked = live.acked;
    });
    await this.#goOn();
    await live.until(
      'frames behind the older image',
      ({ durableSeq }) => durableSeq > olderAcked + 10,
    );
    await this.#crash(() => {
      fs.rmSync(live.jobDir, { recursive: true });
      fs.renameSync(older, live.jobDir);
      live.acked = olderAcked;
    });
    this.#did.push('job set back');
    await this.#goOn();
    await live.until('the difference mirror', ({ epoch, consistent }) => epoch > 1 && consistent);
    await this.#someFrames();
    await this.#load.stop();
  }

  async #end(epochs: number): Promise<void> {
    const live = this.#live;
    await live.settled();
    await live.ask('drainApply');
    await this.#verify();
    const { epoch, mode } = await live.ask('state');
    if (epoch !== epochs) this.#wrong.push(`it ends in epoch ${epoch}, not ${epochs}`);
    if (mode.mode !== 'ordered') this.#wrong.push(`order is not held at the end: ${mode.reason}`);
    const { replicas } = live;
    this.#same(await live.keepSources(), replicas, 'the source', 'its replica');
    if (this.#wrong.length > 0) {
      const keep = this.#context.keepDir();
      run('cp', '-r', live.jobDir, join(keep, 'job'));
      for (const replica of replicas) run('cp', '--sparse=always', replica, keep);
    }
  }
}

/** @returns the first byte that differs */
function firstDifference(image: string, other: string): number | null {
  const a = fs.readFileSync(image);
  const b = fs.readFileSync(other);
  if (a.equals(b)) return null;
  for (let at = 0; at < a.length; at++) if (a[at] !== b[at]) return at;
  return a.length;
}

export const proof: Proof = {
  what: 'nothing acknowledged is lost: killed appliances and agents, dropped writes, a job set back, checkpoints of unknown outcome',
  packages: ['fio', 'gcc', 'libc6-dev'],
  builds: ['build-capture'],
  rounds: CASES.length,
  cases: CASES,
  require: () => unable() || null,
  round: async (context) => {
    const round = new Round(context);
    // What it found before belongs to what it failed by.
    return round.run().catch((error) => round.result((error as Error)?.stack ?? String(error)));
  },
};
