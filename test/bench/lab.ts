/**
 * One source disk, the agent and the appliance, each in the process that it is in the product, on one machine. The
 * agent is bundled as scripts/build-agent does it, so that its memory is the product's and not the type stripper's.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { UNIT_NAME } from '../../agent/config.ts';
import { unitText } from '../../agent/service/unit.ts';
import type { StreamView } from '../../appliance/replication/replication-stream.ts';
import type { AgentConfig } from './agent-process.ts';
import { ApplianceEnd } from './appliance-end.ts';
import type { ApplianceConfig, PlainAsk } from './appliance-process.ts';
import { ProcessorShares } from './processor-shares.ts';

export const MIB = 1024 * 1024;
const ROOT = join(import.meta.dirname, '../..');

/** How the two ends share the processors with the load. */
export type Priority =
  /** The agent as its unit has it, the load as any other unit; so the appliance, which in the product is another machine. */
  | 'unit'
  /** Agent and appliance compete with the load as equals. */
  | 'equal';

export type Medium =
  /** A file on the machine's own disk, opened by the loop device past the page cache: a disk with a disk's latency. */
  | 'disk'
  /** A file in memory: no latency to hide behind, so the whole cost of the capture is seen. */
  | 'memory';

export const run = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

export async function until(what: string, condition: () => unknown, limitMs = 120_000) {
  const end = Date.now() + limitMs;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${limitMs} ms for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export const sleep = (ms: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, ms));

/** A lab's own key and certificate for both ends, in `both.pem`. */
export function makeKey(dir: string): string {
  run(
    'openssl',
    ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes'],
    ...['-subj', '/CN=bench', '-addext', 'subjectAltName=DNS:bench', '-days', '2'],
    ...['-keyout', join(dir, 'key.pem'), '-out', join(dir, 'cert.pem')],
  );
  const pem = ['key.pem', 'cert.pem'].map((name) => fs.readFileSync(join(dir, name)));
  const path = join(dir, 'both.pem');
  fs.writeFileSync(path, Buffer.concat(pem), { mode: 0o600 });
  return path;
}

/** Lines of the unit as a map; the last of a name wins. */
const unit = (): Map<string, string> =>
  new Map(
    unitText()
      .split('\n')
      .filter((line) => line.includes('='))
      .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  );

/** The words before a command that give it the processor and disk priority of the agent's unit. */
function asUnit(): string[] {
  const settings = unit();
  const classes: Record<string, string> = { realtime: '1', 'best-effort': '2', idle: '3' };
  const ionice = ['ionice', '-c', classes[settings.get('IOSchedulingClass') ?? ''] ?? '2'];
  const level = settings.get('IOSchedulingPriority');
  if (level && ionice[2] === '2') ionice.push('-n', level);
  const policies: Record<string, string> = { batch: '-b', idle: '-i', other: '-o' };
  const policy = policies[settings.get('CPUSchedulingPolicy') ?? ''] ?? '-o';
  return ['nice', '-n', settings.get('Nice') ?? '0', 'chrt', policy, '0', ...ionice];
}

export interface LabOptions {
  medium: Medium;
  priority: Priority;
  diskMiB: number;
  /** Undefined: what the agent chooses by this machine's memory. */
  ringBytes?: number;
}

export class BenchLab {
  readonly dir: string;
  readonly dev: string;
  readonly sizeBytes: number;
  readonly options: LabOptions;
  readonly #pinDir: string;
  readonly #shares: ProcessorShares | null;
  #undo: Array<() => void> = [];
  #appliance: ApplianceEnd | undefined;
  #agent: ChildProcess | undefined;
  readonly #onExit = () => this.#cleanUp();

  constructor(options: LabOptions) {
    this.options = options;
    this.sizeBytes = options.diskMiB * MIB;
    fs.mkdirSync(join(ROOT, 'build/bench'), { recursive: true });
    this.dir = fs.mkdtempSync(join(ROOT, 'build/bench/lab-'));
    this.#pinDir = `/sys/fs/bpf/understudy-bench-${process.pid}-${Date.now()}`;
    process.on('exit', this.#onExit);
    this.#shares = options.priority === 'unit' ? ProcessorShares.make() : null;
    this.#undo.push(() => this.#shares?.close());
    const memory = join(this.dir, 'memory');
    fs.mkdirSync(memory);
    run('mount', '-t', 'tmpfs', '-o', `size=${options.diskMiB * 3 + 2048}m`, 'tmpfs', memory);
    this.#undo.push(() => run('umount', '-l', memory));
    const file = join(options.medium === 'disk' ? this.dir : memory, 'source.img');
    run('fallocate', '-l', String(this.sizeBytes), file);
    this.dev = run(
      'losetup',
      '-f',
      '--show',
      `--direct-io=${options.medium === 'disk' ? 'on' : 'off'}`,
      file,
    ).trim();
    this.#undo.push(() => run('losetup', '-d', this.dev));
    const replica = join(memory, 'replica.img');
    fs.writeFileSync(replica, '');
    fs.truncateSync(replica, this.sizeBytes);
    makeKey(this.dir);
    run('scripts/build-capture');
    run(
      'node_modules/.bin/esbuild',
      ...['test/bench/agent-process.ts', '--bundle', '--platform=node', '--target=node26'],
      ...['--format=esm', '--log-level=error', `--outfile=${join(this.dir, 'agent.mjs')}`],
      `--banner:js=import{createRequire}from'node:module';const require=createRequire(import.meta.url);`,
    );
  }

  /** The words before the command of one of the two ends. */
  #wordsFor(end: 'agent' | 'appliance'): string[] {
    if (this.options.priority !== 'unit') return [];
    // The agent knows its group by its unit's name. The appliance stands for another machine: it always gives way.
    const group =
      end === 'agent'
        ? this.#shares?.words(UNIT_NAME, Number(unit().get('CPUWeight')))
        : this.#shares?.words('appliance', 'idle');
    return [...(group ?? []), ...asUnit()];
  }

  #spawn(words: string[], env: Record<string, string>): ChildProcess {
    const [command, ...args] = words;
    return spawn(command!, args, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, ...env },
      cwd: ROOT,
    });
  }

  async startAppliance(): Promise<void> {
    const config: ApplianceConfig = {
      jobDir: join(this.dir, 'memory/job'),
      disks: [
        {
          diskId: 'disk',
          index: 0,
          devicePath: this.dev,
          sizeBytes: this.sizeBytes,
          replicaPath: join(this.dir, 'memory/replica.img'),
          freshReplica: true,
        },
      ],
      ringBytes: this.options.ringBytes ?? 0,
      journalBytes: 1024 * MIB,
      pem: join(this.dir, 'both.pem'),
    };
    this.#appliance = await ApplianceEnd.start(config, this.#wordsFor('appliance'));
  }

  ask<T>(ask: PlainAsk): Promise<T> {
    return this.#appliance!.ask<T>({ ask });
  }

  state(): Promise<StreamView> {
    return this.ask<StreamView>('state');
  }

  /** Attach the capture and wait until the disk is protected. */
  async startAgent(): Promise<void> {
    const config: AgentConfig = {
      port: this.#appliance!.port,
      pinDir: this.#pinDir,
      runDir: join(this.dir, 'memory/run'),
      helperPath: join(ROOT, 'build/capture/understudy-capture'),
      pem: join(this.dir, 'both.pem'),
    };
    const ofUnit = Object.fromEntries(
      [...unitText().matchAll(/\b(MALLOC_\w+|NODE_OPTIONS)=([^"\n]*?)(?=["\n]| MALLOC)/g)].map(
        ([, name, value]): [string, string] => [name!, value!],
      ),
    );
    this.#agent = this.#spawn(
      [
        ...this.#wordsFor('agent'),
        process.execPath,
        ...(process.env.BENCH_PROF_AGENT ? ['--cpu-prof', '--cpu-prof-dir=build/bench'] : []),
        join(this.dir, 'agent.mjs'),
      ],
      {
        BENCH: JSON.stringify(config),
        ...ofUnit,
      },
    );
    await until('the disk to be protected', async () => {
      if (this.#agent?.exitCode !== null) throw new Error('the agent process ended');
      const { phase, consistent, mode, disks } = await this.state();
      return (
        phase.name === 'protected' &&
        consistent &&
        mode.mode === 'ordered' &&
        disks.every(({ mirror }) => mirror.state === 'done')
      );
    });
  }

  /** A process that only computes, on one processor, where the appliance has its place among the loads: always last. */
  startBystander(): ChildProcess {
    const [command, ...args] = [...this.#wordsFor('appliance'), 'sh', '-c', 'while :; do :; done'];
    const bystander = spawn(command!, args, { stdio: 'ignore' });
    this.later(() => bystander.kill('SIGKILL'));
    return bystander;
  }

  /** Take the capture off the disk. */
  async stopAgent(): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    if (!agent || agent.exitCode !== null) return;
    agent.kill('SIGTERM');
    await once(agent, 'exit');
    await until('the appliance to see it', async () => {
      return (await this.state()).phase.name === 'waiting-for-agent';
    });
  }

  get agentRuns(): boolean {
    return this.#agent !== undefined;
  }

  get agentPid(): number {
    return this.#agent!.pid!;
  }

  get appliancePid(): number {
    return this.#appliance!.pid;
  }

  /** The capture helper, a child of the agent. */
  get helperPid(): number {
    const children = fs.readFileSync(
      `/proc/${this.agentPid}/task/${this.agentPid}/children`,
      'utf8',
    );
    for (const pid of children.trim().split(' ')) {
      if (fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('\0run\0')) return Number(pid);
    }
    throw new Error('the capture helper does not run');
  }

  later(undo: () => void): void {
    this.#undo.push(undo);
  }

  async close(): Promise<void> {
    await this.stopAgent();
    const appliance = this.#appliance;
    this.#appliance = undefined;
    await appliance?.stop();
    this.#cleanUp();
    process.off('exit', this.#onExit);
  }

  #cleanUp(): void {
    this.#agent?.kill('SIGKILL');
    this.#appliance?.kill();
    const attempt = (undo: () => void) => {
      try {
        undo();
      } catch (error) {
        console.error(`# clean-up: ${error}`);
      }
    };
    // The pins outlive a process that was killed; in the usual case they are gone.
    attempt(() => fs.rmSync(this.#pinDir, { recursive: true, force: true }));
    for (const undo of this.#undo.splice(0).reverse()) attempt(undo);
    // Never across a mount that could not be taken away.
    attempt(() => run('rm', '-rf', '--one-file-system', this.dir));
  }
}
for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) {
  process.on(signal, () => process.exit(1));
}

/**
 * Processor time that a process has used so far, in seconds, and its resident memory in bytes, without what it shares
 * with the kernel (the mapped ring); `anonBytes` without mapped files too.
 */
export function usage(pid: number): { cpuSeconds: number; rssBytes: number; anonBytes: number } {
  const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const ticks = Number(fields[11]) + Number(fields[12]);
  const status = fs.readFileSync(`/proc/${pid}/status`, 'utf8');
  const kib = (name: string) => Number(new RegExp(`${name}:\\s+(\\d+)`).exec(status)?.[1] ?? 0);
  const anonBytes = kib('RssAnon') * 1024;
  return { cpuSeconds: ticks / 100, rssBytes: anonBytes + kib('RssFile') * 1024, anonBytes };
}
