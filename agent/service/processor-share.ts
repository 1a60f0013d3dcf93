/**
 * How the agent's control group shares the processors. The unit's CPUWeight bounds what it takes in the long run, but
 * since Linux 6.6 a thread that has the processor keeps it for its slice of some milliseconds, whoever wakes up
 * meanwhile: a load that waits for its disk all the time then loses a slice at every completion. An *idle* group gives
 * way at once. It also gets next to nothing where others want all of the processors for long; then it takes its weight.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { UNIT_NAME } from '../config.ts';

/** The unit's CPUWeight; other services have 100. */
export const CPU_WEIGHT = 20;
const LOOK_MS = 1_000;
/** Starved: of a second it waited for a processor so long, and had one no longer than that. */
const WAITED_SHARE = 0.5;
const RAN_SHARE = 0.15;
/** How long it then takes its weight before it tries again without. */
const CLAIM_MS = 10_000;

/** Time in ms that the main thread has run, and waited for a processor while it could have run. */
export interface Scheduled {
  atMs: number;
  ranMs: number;
  waitedMs: number;
}

/** Whether the thread did not get what it needs between two moments. */
export function isStarved(before: Scheduled, now: Scheduled): boolean {
  const elapsedMs = now.atMs - before.atMs;
  return (
    now.waitedMs - before.waitedMs > elapsedMs * WAITED_SHARE &&
    now.ranMs - before.ranMs < elapsedMs * RAN_SHARE
  );
}

/** The folder of this process's control group, as far as processors go; null where that is not the unit's own. */
function ownGroup(sysRoot: string, selfCgroup: string): string | null {
  for (const line of selfCgroup.trim().split('\n')) {
    const [, controllers = '', path = '/'] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers !== '' && !controllers.split(',').includes('cpu')) continue;
    // Started from a shell: what else is in that group has its own share to lose.
    if (basename(path) !== UNIT_NAME) continue;
    const group = join(sysRoot, controllers === '' ? '' : 'cpu', path);
    // A kernel before 5.15 has no such file, and neither has a group without the controller.
    if (existsSync(join(group, 'cpu.idle'))) return group;
  }
  return null;
}

/** The file that weighs a group, and what the unit (or its administrator) wrote into it. */
function weightOf(group: string): { path: string; value: string } {
  const isV2 = existsSync(join(group, 'cpu.weight'));
  const path = join(group, isV2 ? 'cpu.weight' : 'cpu.shares');
  // While a group is idle it does not tell: an agent before this one left it so.
  const isTold = readFileSync(join(group, 'cpu.idle'), 'utf8').trim() === '0';
  const value = isTold ? Number(readFileSync(path, 'utf8')) : isV2 ? CPU_WEIGHT : CPU_WEIGHT * 10;
  return { path, value: String(value) };
}

export interface ProcessorShareEdges {
  sysRoot: string;
  selfCgroup(): string;
  scheduled(): Scheduled;
}

const REAL: ProcessorShareEdges = {
  sysRoot: '/sys/fs/cgroup',
  selfCgroup: () => readFileSync('/proc/self/cgroup', 'utf8'),
  scheduled: () => {
    const [ran, waited] = readFileSync('/proc/self/schedstat', 'utf8').split(' ').map(Number);
    return { atMs: performance.now(), ranMs: ran! / 1e6, waitedMs: waited! / 1e6 };
  },
};

export class ProcessorShare {
  readonly #group: string;
  readonly #edges: ProcessorShareEdges;
  readonly #timer: NodeJS.Timeout;
  /** What the unit gave it: the file and its content. */
  readonly #weight: { path: string; value: string };
  #before: Scheduled;
  #claimedUntilMs = 0;
  /** Those who need the weight whatever happens, such as frozen file systems. */
  #needed = 0;
  #idle = false;

  private constructor(group: string, edges: ProcessorShareEdges) {
    this.#group = group;
    this.#edges = edges;
    this.#before = edges.scheduled();
    this.#weight = weightOf(group);
    this.#timer = setInterval(() => this.look(), LOOK_MS);
    this.#timer.unref();
    this.#set(true);
  }

  /**
   * Makes the group idle and looks after it from then on. Null where that cannot be done: then its weight is all.
   * systemd writes the file again when it reloads its units; the next look puts that right.
   */
  static start(edges: ProcessorShareEdges = REAL): ProcessorShare | null {
    try {
      const group = ownGroup(edges.sysRoot, edges.selfCgroup());
      return group ? new ProcessorShare(group, edges) : null;
    } catch {
      return null;
    }
  }

  /** Each second: whether it is time to claim the weight, or to give it up. */
  look(): void {
    const now = this.#edges.scheduled();
    // An early look would judge by one slice.
    if (now.atMs - this.#before.atMs < LOOK_MS / 2) return;
    if (isStarved(this.#before, now)) this.#claimedUntilMs = now.atMs + CLAIM_MS;
    this.#before = now;
    this.#set(this.#needed === 0 && now.atMs >= this.#claimedUntilMs);
  }

  /** The weight is claimed while `act` runs: others wait for it. */
  async during<T>(act: () => Promise<T>): Promise<T> {
    this.#needed++;
    this.#set(false);
    try {
      return await act();
    } finally {
      this.#needed--;
      this.look();
    }
  }

  close(): void {
    clearInterval(this.#timer);
    this.#set(false);
  }

  #set(idle: boolean): void {
    try {
      const path = join(this.#group, 'cpu.idle');
      const is = readFileSync(path, 'utf8').trim() === '1';
      if (is !== idle) writeFileSync(path, idle ? '1' : '0');
      // Leaving idle gives the usual weight, not that of the unit.
      if (is && !idle) writeFileSync(this.#weight.path, this.#weight.value);
      this.#idle = idle;
    } catch {
      // The group is as it was; nothing depends on it but how well others get along.
    }
  }

  /** For the log and for tests. */
  get idle(): boolean {
    return this.#idle;
  }
}
