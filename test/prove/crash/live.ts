/** A job whose two ends are processes of their own, on loop devices; the appliance's on a disk that loses what was not flushed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import type { OpenStreamOptions } from '../../../appliance/replication/replication-stream.ts';
import { isWhole, type StreamRecord } from '../../../appliance/replication/stream-record.ts';
import { CaptureLab, MIB, run, runAside, until } from '../../integration/capture.lab.ts';
import { FaultProxy } from '../../integration/stream.lab.ts';
import { endWithUs } from '../prefixes/child.ts';
import type { Questions, Told } from './appliance.ts';
import { APPLIANCE_VM, serialOf } from './checkpoints.ts';
import { CrashHost, type Fate } from './host.ts';
import { keepAll, rollBack, type Unsynced } from './rollback.ts';

type TestLike = { teardown: (fn: () => unknown) => void };

/** Images of all disks as of a frame. */
export interface Kept {
  seq: number;
  images: string[];
}

const ended = (child: ChildProcess) => child.exitCode !== null || child.signalCode !== null;

/** @returns once it is gone */
async function stop(child: ChildProcess | undefined, signal: NodeJS.Signals): Promise<void> {
  if (!child || ended(child)) return;
  const exit = once(child, 'exit');
  child.kill(signal);
  await exit;
}

export class CrashLive {
  readonly lab: CaptureLab;
  readonly disks: Array<ReturnType<CaptureLab['disk']>>;
  readonly proxy = new FaultProxy();
  /** The newest acknowledgement that this journal has given. */
  acked = 0;
  readonly #limits: OpenStreamOptions['limits'];
  readonly #shim: string;
  readonly #log: string;
  #appliance: ChildProcess | undefined;
  #agent: ChildProcess | undefined;
  #asked = 0;
  #host: CrashHost | undefined;

  constructor(t: TestLike, sizesMiB: number[], limits: Partial<OpenStreamOptions['limits']>) {
    this.lab = new CaptureLab(t, 1500);
    this.disks = sizesMiB.map((size) => this.lab.disk(size));
    for (const { replica, sizeBytes } of this.disks) {
      fs.truncateSync(replica, 0);
      fs.truncateSync(replica, sizeBytes);
    }
    this.#limits = {
      journalBytes: 400 * MIB,
      segmentBytes: 2 * MIB,
      ringBytes: 128 * MIB,
      ...limits,
    };
    fs.mkdirSync(this.#applianceDir);
    this.#shim = join(this.lab.dir, 'unflushed.so');
    this.#log = join(this.lab.dir, 'unflushed');
    const source = join(import.meta.dirname, 'unflushed.c');
    run('gcc', '-shared', '-fPIC', '-O2', '-Wall', '-Werror', '-o', this.#shim, source, '-ldl');
    t.teardown(() => this.close());
  }

  /** From now on the replica disks are the target host's, of which checkpoints are taken. Before the first `open`. */
  async useHost(): Promise<void> {
    const host = new CrashHost(join(this.lab.dir, 'pool'));
    for (const [disk, one] of this.disks.entries()) {
      const image = await host.folder.createDisk({
        pool: 'default',
        name: `replica-${disk}`,
        sizeBytes: one.sizeBytes,
      });
      await host.folder.attachDisk(APPLIANCE_VM, image, { serial: serialOf(disk) });
      one.replica = image.path;
    }
    this.#host = host;
  }

  /** What is written now. */
  get replicas(): string[] {
    return this.disks.map(
      ({ replica }, disk) => this.#host?.folder.attached.get(serialOf(disk))?.disk.path ?? replica,
    );
  }

  /** @returns whether the appliance still runs */
  async checkpoint(fate: Fate): Promise<boolean> {
    this.#host!.fate = fate;
    const taken = this.ask('checkpoint').catch((error) => {
      if (fate === 'answered') throw error;
    });
    await taken;
    return this.#appliance !== undefined && !ended(this.#appliance);
  }

  get jobDir(): string {
    return join(this.#applianceDir, 'job');
  }

  get #applianceDir(): string {
    return join(this.lab.dir, 'appliance');
  }

  /** What lies on the disk that loses what was not flushed. */
  get #watched(): string[] {
    return [this.#applianceDir, ...this.disks.map(({ replica }) => replica)];
  }

  /**
   * Start the appliance's end; it takes no agent yet.
   * @returns the newest frame that it found durable
   */
  async open(): Promise<number> {
    const options: OpenStreamOptions = {
      jobId: 'crash',
      jobDir: this.jobDir,
      disks: this.disks.map(({ dev, sizeBytes, replica }, index) => ({
        diskId: `disk-${index}`,
        index,
        devicePath: dev,
        sizeBytes,
        replicaPath: replica,
        freshReplica: true,
      })),
      settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
      limits: this.#limits,
    };
    const appliance = spawn(
      process.execPath,
      [
        '--disable-warning=ExperimentalWarning',
        join(import.meta.dirname, 'appliance.ts'),
        JSON.stringify(options),
      ],
      {
        stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
        env: {
          ...process.env,
          LD_PRELOAD: this.#shim,
          UNFLUSHED_LOG: this.#log,
          UNFLUSHED_TRACK: this.#watched.join(':'),
          UV_USE_IO_URING: '0',
          ...(this.#host && { CRASH_STATE: join(this.lab.dir, 'state.db') }),
        },
      },
    );
    endWithUs(appliance, 'SIGKILL');
    appliance.setMaxListeners(100);
    this.#appliance = appliance;
    return await new Promise<number>((resolve, reject) => {
      appliance.once('exit', (code, signal) => reject(new Error(`it ended: ${code ?? signal}`)));
      appliance.on('message', (told: Told) => {
        if (told.type === 'ack') this.acked = Math.max(this.acked, told.seq);
        if (told.type === 'failed' && told.id === null) reject(new Error(told.reason));
        if (told.type === 'host') {
          this.#host!.serve(told.call).then((answer) => {
            if (answer === null) appliance.kill('SIGKILL');
            else if (appliance.connected) appliance.send({ host: answer });
          }, reject);
        }
        if (told.type !== 'open') return;
        this.proxy.target = told.port;
        resolve(told.durableSeq);
      });
    });
  }

  async ask<Q extends keyof Questions>(ask: Q): Promise<Questions[Q]> {
    const appliance = this.#appliance;
    if (!appliance || ended(appliance)) throw new Error('the appliance is not running');
    const id = ++this.#asked;
    return await new Promise((resolve, reject) => {
      const over = () => {
        appliance.off('message', hear);
        appliance.off('exit', gone);
      };
      const hear = (told: Told) => {
        if ((told.type !== 'answer' && told.type !== 'failed') || told.id !== id) return;
        over();
        if (told.type === 'failed') reject(new Error(told.reason));
        else resolve(told.value as Questions[Q]);
      };
      const gone = () => {
        over();
        reject(new Error(`the appliance ended before it answered: ${ask}`));
      };
      appliance.on('message', hear);
      appliance.on('exit', gone);
      appliance.send({ id, ask });
    });
  }

  /** kill -9 of the appliance's service: the disks of its machine go on. */
  async kill(): Promise<void> {
    await stop(this.#appliance, 'SIGKILL');
    keepAll(this.#log);
  }

  /** The appliance's machine and its disks lose power at once. */
  async cutPower(random: (below: number) => number): Promise<Unsynced> {
    await stop(this.#appliance, 'SIGKILL');
    return rollBack(this.#log, this.#watched, random);
  }

  startAgent(): void {
    this.#agent = spawn(
      process.execPath,
      [
        '--disable-warning=ExperimentalWarning',
        join(import.meta.dirname, '../../integration/stream-agent.ts'),
        String(this.proxy.port),
        this.lab.pinDir,
        join(this.lab.dir, 'run'),
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    endWithUs(this.#agent, 'SIGKILL');
  }

  async killAgent(): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    await stop(agent, 'SIGKILL');
  }

  async until(what: string, is: (state: Questions['state']) => boolean): Promise<void> {
    await until(what, async () => is(await this.ask('state')), 300_000).catch(async (error) => {
      const state = JSON.stringify(await this.ask('state').catch(String));
      throw new Error(`${error.message}\n${state}`);
    });
  }

  async frames(count: number): Promise<void> {
    const to = (await this.ask('state')).durableSeq + count;
    await this.until(`${count} frames`, ({ durableSeq }) => durableSeq >= to);
  }

  /** With nothing written meanwhile: all that the disks hold is acknowledged. @returns up to which frame */
  async settled(): Promise<number> {
    for (const { dev } of this.disks) await runAside('blockdev', '--flushbufs', dev);
    const from = Date.now();
    await this.until(
      'the stream to be protected behind the last write',
      ({ phase, newestPointMs }) =>
        phase.name === 'protected' && (newestPointMs ?? 0) > from + 1500,
    );
    return this.acked;
  }

  /** Keep the replicas as of a frame at which they are whole. */
  async keepReplicas(): Promise<Kept> {
    for (;;) {
      await this.until('the mirror to be done', ({ consistent }) => consistent);
      await this.ask('drainApply');
      const seq = await this.ask('pauseApply');
      const record = fs.readFileSync(join(this.jobDir, 'stream.json'), 'utf8');
      if (isWhole(JSON.parse(record) as StreamRecord)) {
        const images = await this.#copies('base', (disk) => this.replicas[disk]!);
        await this.ask('resumeApply');
        return { seq, images };
      }
      await this.ask('resumeApply');
    }
  }

  /** Keep the source's disks as they are now. */
  keepSources(): Promise<string[]> {
    return this.#copies('source', (disk) => this.disks[disk]!.dev);
  }

  async #copies(name: string, from: (disk: number) => string): Promise<string[]> {
    const images: string[] = [];
    for (const disk of this.disks.keys()) {
      const image = join(this.lab.dir, `${name}-${disk}.img`);
      await runAside('dd', `if=${from(disk)}`, `of=${image}`, 'bs=1M', 'status=none');
      images.push(image);
    }
    return images;
  }

  async close(): Promise<void> {
    await this.killAgent();
    await stop(this.#appliance, 'SIGKILL');
    await this.proxy.close();
  }
}
