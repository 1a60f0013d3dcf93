/**
 * The appliance's end of one stream in a process of its own, over mutual TLS as in the product. Configured by the
 * environment's BENCH (JSON); asked over IPC.
 */
import { readFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createServer } from 'node:tls';
import {
  ReplicationStream,
  type StreamConnection,
  type StreamDisk,
} from '../../appliance/replication/replication-stream.ts';
import { PROTOCOL_VERSION } from '../../protocol/control.ts';
import { collectLessOften } from '../../protocol/garbage.ts';
import { Link } from '../../protocol/link.ts';
import { HostedDisk } from './hosted-disk.ts';
import { callWords, type LocalHostConfig } from './local-host.ts';

export interface ApplianceConfig {
  jobDir: string;
  disks: StreamDisk[];
  ringBytes: number;
  journalBytes: number;
  /** PEM file with key and certificate, which both sides have. */
  pem: string;
  /** The replica disk is made and attached there, and checkpoints can be taken. */
  host?: LocalHostConfig;
}

/** Everything durable is on the replica disks; begin to sample the lag; the answer to `sampled` is a Sampled. */
export type PlainAsk = 'state' | 'drain' | 'sample' | 'sampled';
export type ApplianceAsk =
  | { ask: PlainAsk }
  /** Open the one replica disk and apply all that is durable; the answer is an Applied. */
  | { ask: 'apply'; replicaPath: string }
  /** Take a checkpoint now; the answer is a Checkpointed. */
  | { ask: 'checkpoint' };

export interface Checkpointed {
  /** From the request until the disks stand still: flushes that run beside the writing. */
  waitedMs: number;
  /** From then until apply goes on: the batch under way, a flush, the checkpoint. */
  pauseMs: number;
  /** Of that, with apply at its point: the snapshot on the host, and what is read back and recorded around it. */
  takenMs: number;
  /** What was asked of the host meanwhile. */
  calls: string;
}

export interface Applied {
  /** Until the last flush of the replica disk. */
  seconds: number;
  cpuSeconds: number;
}

export interface Sampled {
  /** Every 20 ms. */
  lagsMs: number[];
  /** Of the samples, those in ordered mode. */
  orderedShare: number;
  maxLagBytes: number;
}

collectLessOften('roomy');
const config = JSON.parse(process.env.BENCH!) as ApplianceConfig;
const pem = readFileSync(config.pem);
const disk = config.disks[0]!;
const host = config.host && (await HostedDisk.make(config.host, config.jobDir, disk));
if (host) process.once('exit', () => host.cleanUp());
const stream = await ReplicationStream.open({
  jobId: 'bench',
  jobDir: config.jobDir,
  disks: host ? [{ ...disk, replicaPath: host.path }] : config.disks,
  settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
  limits: { journalBytes: config.journalBytes, ringBytes: config.ringBytes },
});

const server = createServer(
  { key: pem, cert: pem, ca: pem, requestCert: true, rejectUnauthorized: true },
  (socket) => {
    socket.setNoDelay(true);
    const link = new Link(socket);
    let connection: StreamConnection | undefined;
    link.once('close', () => connection?.closed());
    link.start({
      frame: async (frame) => connection?.frame(frame),
      control: async (message) => {
        if (message.type !== 'hello') {
          await connection?.control(message);
          return;
        }
        link.send({
          type: 'welcome',
          protocolVersion: PROTOCOL_VERSION,
          applianceVersion: 'bench',
          applianceId: 'bench',
          sourceId: 'bench',
        });
        connection = stream.connect({
          send: (control) => link.send(control),
          close: (error) => link.close(error),
        });
      },
    });
  },
);
server.listen(0, '127.0.0.1', () => {
  process.send!({ port: (server.address() as AddressInfo).port });
});

let sampler: NodeJS.Timeout | undefined;
let lagsMs: number[] = [];
let ordered = 0;
let samples = 0;
let maxLagBytes = 0;
const cpuSeconds = () => {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
};

async function apply(replicaPath: string): Promise<Applied> {
  const beganMs = performance.now();
  const before = cpuSeconds();
  await stream.reopenDisks(new Map([[disk.diskId, replicaPath]]));
  await stream.drainApply();
  return { seconds: (performance.now() - beganMs) / 1000, cpuSeconds: cpuSeconds() - before };
}

async function checkpoint(): Promise<Checkpointed> {
  const beganMs = performance.now();
  let takenMs = 0;
  let waitedMs = 0;
  const before = host!.calls.length;
  await stream.atAppliedPoint(async (point, stillSinceMs) => {
    const atPointMs = performance.now();
    waitedMs = stillSinceMs - beganMs;
    await host!.checkpoints.take(point, stream.journalId, 'bench');
    takenMs = performance.now() - atPointMs;
  });
  const pauseMs = performance.now() - beganMs - waitedMs;
  return { waitedMs, pauseMs, takenMs, calls: callWords(host!.calls.slice(before)) };
}

async function answerTo(asked: ApplianceAsk): Promise<unknown> {
  switch (asked.ask) {
    case 'apply':
      return apply(asked.replicaPath);
    case 'checkpoint':
      return checkpoint();
    case 'state':
      return stream.state();
    case 'drain':
      return stream.drainApply();
    case 'sample':
      lagsMs = [];
      ordered = 0;
      samples = 0;
      maxLagBytes = 0;
      sampler = setInterval(() => {
        const { lagMs, lagBytes, mode } = stream.state();
        if (lagMs !== null) lagsMs.push(lagMs);
        maxLagBytes = Math.max(maxLagBytes, lagBytes ?? 0);
        samples++;
        if (mode.mode === 'ordered') ordered++;
      }, 20);
      return null;
    case 'sampled':
      clearInterval(sampler);
      return { lagsMs, orderedShare: ordered / samples, maxLagBytes } satisfies Sampled;
  }
}

process.on('message', ({ id, ...asked }: { id: number } & ApplianceAsk) => {
  answerTo(asked).then(
    (answer) => process.send!({ id, answer }),
    (error) => process.send!({ id, error: String(error) }),
  );
});
process.on('disconnect', () => process.exit(0));
