/** Both ends of a stream on loop devices: the real capture, the agent in a process of its own, a link that can be hurt. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import {
  type OpenStreamOptions,
  ReplicationStream,
} from '../../appliance/replication/replication-stream.ts';
import { CaptureLab, firstDifference, MIB, run } from './capture.lab.ts';
import { FaultProxy, PlainServer, until } from './stream.lab.ts';

type TestLike = { teardown: (fn: () => unknown) => void };

const PAGE_BYTES = 4096;

/** Loop devices on the one side, files of holes on the other. */
export class LiveLab {
  readonly lab: CaptureLab;
  readonly server = new PlainServer();
  readonly proxy = new FaultProxy();
  readonly disks: Array<ReturnType<CaptureLab['disk']>>;
  #open: OpenStreamOptions | undefined;
  stream!: ReplicationStream;
  #agent: ChildProcess | undefined;

  constructor(t: TestLike, sizesMiB: number[]) {
    this.lab = new CaptureLab(t, 1200);
    this.disks = sizesMiB.map((size) => this.#blank(this.lab.disk(size)));
    t.teardown(() => this.close());
  }

  #blank<T extends { replica: string }>(disk: T): T {
    const { size } = fs.statSync(disk.replica);
    fs.truncateSync(disk.replica, 0);
    fs.truncateSync(disk.replica, size);
    return disk;
  }

  /**
   * One more disk, of which only so much can be written: what comes behind fails. Its blocks are of a page, and so are its
   * requests: of a longer one the loop driver of Linux 6.18 writes what there is room for, and says that all of it was
   * done. No one above can tell such a lie from a write, so a disk that tells it proves nothing.
   */
  addFailingDisk(sizeMiB: number, roomMiB: number): void {
    const dir = fs.mkdtempSync(join(this.lab.dir, 'small-'));
    run('mount', '-t', 'tmpfs', '-o', `size=${roomMiB}m`, 'tmpfs', dir);
    this.lab.later(() => run('umount', '-l', dir));
    const losetup = ['--sector-size', String(PAGE_BYTES)];
    const maxRequestKiB = PAGE_BYTES / 1024;
    this.disks.push(this.#blank(this.lab.disk(sizeMiB, { dir, losetup, maxRequestKiB })));
  }

  async start(ringBytes = 64 * MIB): Promise<this> {
    await this.server.listen();
    await this.proxy.listen();
    this.proxy.target = this.server.port;
    this.#open = {
      jobId: 'live',
      jobDir: join(this.lab.dir, 'job'),
      disks: this.disks.map(({ dev, sizeBytes, replica }, index) => ({
        diskId: `disk-${index}`,
        index,
        devicePath: dev,
        sizeBytes,
        replicaPath: replica,
        freshReplica: true,
      })),
      settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
      limits: { journalBytes: 300 * MIB, segmentBytes: 16 * MIB, ringBytes },
    };
    await this.openStream();
    return this;
  }

  async openStream(): Promise<void> {
    this.stream = await ReplicationStream.open(this.#open!);
    this.server.stream = this.stream;
  }

  /** As a restart of the appliance's service: nothing is drained or flushed first. */
  async restartAppliance(): Promise<void> {
    this.server.stream = undefined;
    await this.stream.close();
    await this.openStream();
  }

  startAgent(...more: string[]): void {
    this.#agent = spawn(
      process.execPath,
      [
        '--disable-warning=ExperimentalWarning',
        join(import.meta.dirname, 'stream-agent.ts'),
        String(this.proxy.port),
        this.lab.pinDir,
        join(this.lab.dir, 'run'),
        ...more,
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
  }

  async stopAgent(signal: NodeJS.Signals): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    if (!agent || agent.exitCode !== null) return;
    agent.kill(signal);
    await once(agent, 'exit');
  }

  /** What the disks hold now has come over: a mark behind it is durable, and nothing is left to do. */
  async settled(): Promise<void> {
    run('sync');
    const from = Date.now();
    await this.until('the stream to be protected behind the last write', () => {
      const { phase, newestPointMs } = this.stream.state();
      return phase.name === 'protected' && (newestPointMs ?? 0) > from + 1500;
    });
    await this.stream.drainApply();
  }

  /** Waits, and says where the stream is if it waited in vain. */
  async until(what: string, condition: () => unknown, limitMs = 180_000): Promise<void> {
    await until(what, condition, limitMs).catch((error) => {
      throw new Error(`${error.message}\n${JSON.stringify(this.stream.state())}`);
    });
  }

  /**
   * Where source and replica first differ, by disk. Asked again while they do: a file system that another mount
   * namespace of the machine still holds goes on writing after its umount here.
   */
  async differences(): Promise<Array<number | undefined>> {
    for (let tries = 0; ; tries++) {
      const found = this.disks.map(({ dev, replica }) => firstDifference(dev, replica));
      if (tries === 5 || found.every((at) => at === undefined)) return found;
      await this.settled();
    }
  }

  async close(): Promise<void> {
    await this.stopAgent('SIGKILL');
    await this.stream?.close();
    await this.proxy.close();
    await this.server.close();
  }
}
