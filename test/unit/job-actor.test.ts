/** What a job's actor says of itself, and when. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { JobState } from '../../appliance/api/schema.ts';
import { type ActorContext, JobActor } from '../../appliance/jobs/job-actor.ts';
import { ReplicationStream } from '../../appliance/replication/replication-stream.ts';
import type { JobRow } from '../../appliance/state/jobs.ts';
import type { ControlMessage } from '../../protocol/control.ts';
import { undError } from '../../protocol/errors.ts';
import { until } from '../integration/api.lab.ts';

const DISK = { diskId: 'd', name: 'vda', devicePath: '/dev/vda', sizeBytes: 1 << 20 };

function scratch(t: { teardown(end: () => void): void }): string {
  const dir = mkdtempSync(join(tmpdir(), 'und-actor-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

// Red when it is told first and done then: the page showed a disk as gone that is there, until something else happened.
t.test('a disk that is there again is told at once', async (t) => {
  const row = {
    jobId: 'j',
    sourceId: 's',
    settings: { replicaName: 'web1-replica', compression: 'fast' },
    phase: { name: 'active', paused: false },
    provenBootableAt: null,
    createdAt: new Date().toISOString(),
    disks: [{ ...DISK, serial: 'u1', replica: null }],
  } as unknown as JobRow;
  const told: JobState[] = [];
  const machine = { hostname: 'web1', bootId: 'b' };
  const inventory = { hostname: 'web1', machine, disks: [] as object[] };
  const attached: unknown[] = [];
  let online = false;
  const actor: JobActor = new JobActor(row, {
    store: {},
    checkpoints: {},
    // The disks are never attached here: the host does not answer.
    host: { hypervisor: { vmState: () => new Promise(() => {}) } },
    log: { info: () => {}, warn: () => {} },
    jobDir: scratch(t),
    sourceOf: () => ({ name: 'web1', inventory }),
    session: () =>
      online ? { hello: { machine }, attach: (stream: unknown) => attached.push(stream) } : null,
    ownedByFailover: () => false,
    journalBytes: async () => 1 << 30,
    changed: () => told.push(actor.view().state),
  } as unknown as ActorContext);
  actor.kick();
  await until('the stream to be open', () => actor.stream);
  t.teardown(() => actor.stream?.close());
  online = true;
  actor.sessionChanged();
  t.match(told.at(-1), { name: 'error', error: { code: 'UND_SOURCE_DISK_MISSING' } });
  inventory.disks = [DISK];
  actor.sessionChanged();
  t.equal(attached.length, 1);
  t.match(told.at(-1), { name: 'waiting-for-agent' });
});

// Red when a connection is told of by its first word only, and a stream that is configured anew by the answer only.
t.test('an agent that takes up the stream is told of before it has answered', async (t) => {
  const stream = await ReplicationStream.open({
    jobId: 'j',
    jobDir: scratch(t),
    disks: [{ ...DISK, index: 0, replicaPath: null, freshReplica: true }],
    settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
    limits: { journalBytes: 1 << 30 },
  });
  t.teardown(() => stream.close());
  let told: string | null = null;
  stream.on('change', () => {
    const { phase } = stream.state();
    told = 'reason' in phase ? phase.reason : phase.name;
  });
  /** What is told next. */
  const next = async (what: string) => {
    told = null;
    await until(what, () => told, 3_000);
    return told;
  };
  await next('the stream that is open');
  const sent: ControlMessage[] = [];
  const connection = stream.connect({ send: (message) => sent.push(message), close: () => {} });
  t.equal(await next('the connection'), 'the agent is taking up the stream');
  const configured = () => sent.filter(({ type }) => type === 'configureJob');
  await until('the agent to be configured', () => configured().length === 1);
  const { streamEpoch } = configured()[0] as { streamEpoch: number };
  await connection.control({
    type: 'jobReady',
    jobId: 'j',
    streamEpoch,
  } as unknown as ControlMessage);
  t.not(await next('that it is ready'), 'the agent is taking up the stream');
  stream.configure({
    compression: 'fast',
    bandwidthLimitBytesPerSec: null,
    ringBytes: 1 << 26,
  });
  t.equal(await next('that it is configured anew'), 'the agent is taking up the stream');
});

// Red when the setting is left out of what the stream is given: it would be stored, shown, and do nothing.
t.test(
  'whether planned restarts are carried over reaches the agent, also while it runs',
  async (t) => {
    const row = {
      jobId: 'j',
      sourceId: 's',
      settings: { replicaName: 'web1-replica', compression: 'fast', carryRestarts: true },
      phase: { name: 'active', paused: false },
      provenBootableAt: null,
      createdAt: new Date().toISOString(),
      disks: [{ ...DISK, serial: 'u1', replica: null }],
    } as unknown as JobRow;
    const machine = { hostname: 'web1', bootId: 'b' };
    const sent: ControlMessage[] = [];
    const attached: ReplicationStream[] = [];
    const stored: JobRow[] = [];
    const actor: JobActor = new JobActor(row, {
      store: { put: (next: JobRow) => stored.push(next) },
      checkpoints: {},
      // The disks are never attached here, and nobody who asks for something waits for them.
      host: {
        hypervisor: {
          vmState: async () => {
            throw undError('UND_HV_UNREACHABLE', { host: 'host', reason: 'a fault of the test' });
          },
        },
      },
      log: { info: () => {}, warn: () => {} },
      jobDir: scratch(t),
      sourceOf: () => ({ name: 'web1', inventory: { hostname: 'web1', machine, disks: [DISK] } }),
      session: () => ({
        hello: { machine },
        attach: (stream: ReplicationStream) => {
          attached.push(stream);
          stream.connect({ send: (message) => sent.push(message), close: () => {} });
        },
      }),
      ownedByFailover: () => false,
      journalBytes: async () => 1 << 30,
      changed: () => {},
    } as unknown as ActorContext);
    actor.kick();
    await until('the stream to be open', () => actor.stream);
    t.teardown(() => actor.close());
    const last = (type: ControlMessage['type']) => sent.findLast((one) => one.type === type);
    await until('the agent to be configured', () => last('configureJob'));
    t.match(last('configureJob'), { carryRestarts: true });

    const { settings } = await actor.patch({ carryRestarts: false });
    t.equal(settings.carryRestarts, false);
    t.equal(stored.at(-1)?.settings.carryRestarts, false);
    t.match(last('tuneJob'), { carryRestarts: false });
    await actor.patch({ carryRestarts: true });
    t.match(last('tuneJob'), { carryRestarts: true });
    await actor.patch({ compression: 'best' });
    t.match(
      last('tuneJob'),
      { compression: 'best', carryRestarts: true },
      'another change keeps it',
    );
    t.equal(attached.length, 1, 'on the one connection');
  },
);
