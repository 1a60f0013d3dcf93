/** One captured loop device and its stream to an appliance's end: the product's both ends, the agent in a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import { ReplicationStream } from '../../../appliance/replication/replication-stream.ts';
import { isWhole, type StreamRecord } from '../../../appliance/replication/stream-record.ts';
import { type CaptureLab, MIB, run, until } from '../../integration/capture.lab.ts';
import { FaultProxy, PlainServer } from '../../integration/stream.lab.ts';
import { endWithUs } from './child.ts';

export class LiveStream {
  readonly #lab: CaptureLab;
  readonly disk: { dev: string; file: string; replica: string; sizeBytes: number };
  readonly proxy = new FaultProxy();
  readonly #server = new PlainServer();
  stream!: ReplicationStream;
  #agent: ChildProcess | undefined;

  constructor(lab: CaptureLab, sizeMiB: number) {
    this.#lab = lab;
    this.disk = lab.disk(sizeMiB, { random: false });
  }

  get jobDir(): string {
    return join(this.#lab.dir, 'job');
  }

  async start(ringBytes: number): Promise<void> {
    const { dev, sizeBytes, replica } = this.disk;
    await this.#server.listen();
    await this.proxy.listen();
    this.proxy.target = this.#server.port;
    this.stream = await ReplicationStream.open({
      jobId: 'prefixes',
      jobDir: this.jobDir,
      disks: [
        {
          diskId: 'disk',
          index: 0,
          devicePath: dev,
          sizeBytes,
          replicaPath: replica,
          freshReplica: true,
        },
      ],
      settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
      // All of it stays: the prefixes are built from it.
      limits: { journalBytes: 4096 * MIB, segmentBytes: 32 * MIB, ringBytes },
    });
    this.#server.stream = this.stream;
    this.startAgent();
  }

  startAgent(): void {
    this.#agent = spawn(
      process.execPath,
      [
        '--disable-warning=ExperimentalWarning',
        join(import.meta.dirname, '../../integration/stream-agent.ts'),
        String(this.proxy.port),
        this.#lab.pinDir,
        join(this.#lab.dir, 'run'),
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    endWithUs(this.#agent, 'SIGKILL');
  }

  async stopAgent(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    const agent = this.#agent;
    this.#agent = undefined;
    if (!agent || agent.exitCode !== null || agent.signalCode !== null) return;
    const exit = once(agent, 'exit');
    agent.kill(signal);
    await exit;
  }

  async whole(): Promise<void> {
    await this.#until('the mirror to be done', () => this.stream.state().consistent);
  }

  async frames(count: number): Promise<void> {
    const to = this.stream.state().durableSeq + count;
    await this.#until(`${count} frames`, () => this.stream.state().durableSeq >= to);
  }

  async #until(what: string, condition: () => boolean): Promise<void> {
    await until(what, condition, 300_000).catch((error) => {
      throw new Error(`${error.message}\n${JSON.stringify(this.stream.state())}`);
    });
  }

  /**
   * Keep the replica as of a frame at which it is whole: what prefixes begin with. Frames from there on stay in the
   * journal, not applied. @returns that frame
   */
  async keepBase(image: string): Promise<number> {
    const record = join(this.jobDir, 'stream.json');
    for (;;) {
      await this.whole();
      await this.stream.drainApply();
      await this.stream.pauseApply('the base of the prefixes is kept');
      // Order may have been lost while that was under way.
      if (isWhole(JSON.parse(fs.readFileSync(record, 'utf8')) as StreamRecord)) break;
      this.stream.resumeApply();
    }
    run('cp', '--sparse=always', this.disk.replica, image);
    fs.copyFileSync(record, join(this.jobDir, 'base.json'));
    return this.stream.state().appliedSeq;
  }

  async close(): Promise<void> {
    await this.stopAgent('SIGKILL');
    await this.stream?.close();
    await this.proxy.close();
    await this.#server.close();
  }
}
