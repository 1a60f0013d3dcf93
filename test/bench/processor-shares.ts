/**
 * Control groups that share the processors as systemd's units do: among groups that want them, each gets by its weight,
 * however many threads it has. A priority of each thread (nice) alone says little of a program with ten threads.
 */
import fs from 'node:fs';
import { join } from 'node:path';
import { controlGroups } from './control-groups.ts';

/** What a unit has that says nothing. */
const USUAL_WEIGHT = 100;

export class ProcessorShares {
  readonly #base: string;
  readonly #isV2: boolean;
  /** Where this process came from. */
  readonly #home: string;

  private constructor(base: string, home: string, isV2: boolean) {
    this.#base = base;
    this.#home = home;
    this.#isV2 = isV2;
  }

  /**
   * Groups of this process's own at the top, it and its further children in one of the usual weight; null where
   * the kernel or the container has no such groups to give.
   */
  static make(): ProcessorShares | null {
    const groups = controlGroups('cpu');
    if (!groups) return null;
    const { isV2, top, home } = groups;
    const base = join(top, `understudy-bench-${process.pid}`);
    const shares = new ProcessorShares(base, home, isV2);
    try {
      if (isV2) fs.writeFileSync(join(top, 'cgroup.subtree_control'), '+cpu');
      fs.mkdirSync(base);
      if (isV2) fs.writeFileSync(join(base, 'cgroup.subtree_control'), '+cpu');
      shares.#weigh('.', USUAL_WEIGHT);
      fs.writeFileSync(join(shares.#group('load', USUAL_WEIGHT), 'cgroup.procs'), `${process.pid}`);
      return shares;
    } catch {
      shares.close();
      return null;
    }
  }

  /** The words before a command that put it into the group of a name with a weight: systemd's CPUWeight. */
  words(name: string, weight: number | 'idle'): string[] {
    const procs = join(this.#group(name, weight), 'cgroup.procs');
    return ['sh', '-c', 'echo $$ >"$0" && exec "$@"', procs];
  }

  /** The group of a name, as a folder. */
  folder(name: string): string {
    return join(this.#base, name);
  }

  /** The file that weighs a group and what it says for a weight; null where groups cannot be idle. */
  weightFile(weight: number): { name: string; value: string } | null {
    if (!fs.existsSync(join(this.#base, 'cpu.idle'))) return null;
    return this.#isV2
      ? { name: 'cpu.weight', value: String(weight) }
      : { name: 'cpu.shares', value: String(Math.round((weight * 1024) / USUAL_WEIGHT)) };
  }

  /** Takes the groups away; those in them go back to where this process came from. */
  close(): void {
    if (!fs.existsSync(this.#base)) return;
    for (const name of [...fs.readdirSync(this.#base), '.']) {
      const group = join(this.#base, name);
      if (fs.statSync(group).isDirectory()) this.#empty(group);
    }
  }

  /** A process that was killed just now is in its group a moment longer. */
  #empty(group: string): void {
    for (let tries = 100; ; tries--) {
      for (const pid of fs.readFileSync(join(group, 'cgroup.procs'), 'utf8').split('\n')) {
        if (pid) fs.writeFileSync(join(this.#home, 'cgroup.procs'), pid);
      }
      try {
        fs.rmdirSync(group);
        return;
      } catch (error) {
        if (tries === 0) throw error;
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
      }
    }
  }

  #group(name: string, weight: number | 'idle'): string {
    const group = join(this.#base, name);
    fs.mkdirSync(group, { recursive: true });
    this.#weigh(name, weight);
    return group;
  }

  #weigh(name: string, weight: number | 'idle'): void {
    const write = (file: string, text: string) =>
      fs.writeFileSync(join(this.#base, name, file), text);
    // Before Linux 5.15 there is no such file. An idle group takes no weight.
    if (fs.existsSync(join(this.#base, name, 'cpu.idle'))) {
      write('cpu.idle', weight === 'idle' ? '1' : '0');
    }
    if (weight === 'idle') return;
    const file = this.#isV2 ? 'cpu.weight' : 'cpu.shares';
    write(file, String(this.#isV2 ? weight : Math.round((weight * 1024) / USUAL_WEIGHT)));
  }
}
