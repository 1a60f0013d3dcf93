/**
 * The appliance's end of one job in a process of its own, so that it can be killed: JSON of its OpenStreamOptions. It
 * does what it is asked by IPC, and tells of each acknowledgement; agents are served from `serve` on.
 */
import {
  type OpenStreamOptions,
  ReplicationStream,
  type StreamView,
} from '../../../appliance/replication/replication-stream.ts';
import { PlainServer } from '../../integration/stream.lab.ts';
import { CrashCheckpoints } from './checkpoints.ts';
import { type HostAnswer, type HostCall, remoteHost } from './host.ts';

/** What can be asked, and what is answered. */
export interface Questions {
  state: StreamView & { epoch: number };
  serve: null;
  drainApply: number;
  pauseApply: number;
  resumeApply: null;
  verify: string[];
  /** Taken at the point that the replicas hold; its frame, or null when they held none. */
  checkpoint: number | null;
  checkpoints: ReturnType<CrashCheckpoints['found']>;
}

export type Told =
  | { type: 'open'; port: number; durableSeq: number }
  | { type: 'ack'; seq: number }
  | { type: 'answer'; id: number; value: unknown }
  | { type: 'host'; call: HostCall }
  | { type: 'failed'; id: number | null; reason: string };

const tell = (message: Told) => process.send!(message);
const reasonOf = (error: unknown) => (error as Error)?.stack ?? String(error);

process.on('disconnect', () => process.exit(1));
const options = JSON.parse(process.argv[2]!) as OpenStreamOptions;
try {
  const server = new PlainServer();
  await server.listen();
  const state = process.env.CRASH_STATE;
  let checkpoints: CrashCheckpoints | undefined;
  if (state) {
    const host = remoteHost((call) => tell({ type: 'host', call }));
    process.on('message', (message: { host?: HostAnswer }) => {
      if (message.host) host.answered(message.host);
    });
    checkpoints = new CrashCheckpoints(state, host.hypervisor, options);
    // As the job service does: what became of a checkpoint is known before anything is applied.
    await checkpoints.settle();
  }
  const stream = await ReplicationStream.open(options);
  const connect = stream.connect.bind(stream);
  stream.connect = (channel) =>
    connect({
      send: (message) => {
        // Told first: whatever the agent hears of is held against the journal.
        if (message.type === 'ack') tell({ type: 'ack', seq: message.seq });
        channel.send(message);
      },
      close: (error) => channel.close(error),
    });
  const answers: { [Q in keyof Questions]: () => Questions[Q] | Promise<Questions[Q]> } = {
    state: () => ({ ...stream.state(), epoch: stream.epoch }),
    serve: () => {
      server.stream = stream;
      return null;
    },
    drainApply: () => stream.drainApply(),
    pauseApply: async () => {
      await stream.pauseApply('the replica is being copied');
      return stream.state().appliedSeq;
    },
    resumeApply: () => {
      stream.resumeApply();
      return null;
    },
    verify: async () =>
      (await stream.verifyJournal()).faults.map(
        ({ segment, offsetBytes, reason }) => `${segment} at ${offsetBytes}: ${reason}`,
      ),
    checkpoint: () => stream.atAppliedPoint((point) => checkpoints!.take(point, stream.journalId)),
    checkpoints: () => checkpoints!.found(),
  };
  process.on('message', async ({ id, ask }: { id: number; ask?: keyof Questions }) => {
    if (!ask) return;
    try {
      tell({ type: 'answer', id, value: await answers[ask]() });
    } catch (error) {
      tell({ type: 'failed', id, reason: reasonOf(error) });
    }
  });
  tell({ type: 'open', port: server.port, durableSeq: stream.state().durableSeq });
} catch (error) {
  tell({ type: 'failed', id: null, reason: reasonOf(error) });
}
