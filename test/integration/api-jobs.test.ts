/**
 * The whole control path on stand-ins: a source is added and enrols by the real enrolment, its agent connects by mutual
 * TLS, is protected onto files, survives restarts of the appliance, and fails over.
 */
import { open, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import t from 'tap';
import type {
  AuditEntry,
  Failover,
  Job,
  JobPoints,
  JournalCheck,
  ProtectPlan,
  ProtectRequest,
  Source,
  TakenPoint,
} from '../../appliance/api/schema.ts';
import { DEFAULT_EXCLUSIONS } from '../../protocol/exclusions.ts';
import { Lab, PASSWORD, type TestSource, until } from './api.lab.ts';

const MIB = 1024 * 1024;
t.setTimeout(300_000);
const lab = new Lab();
let web1: TestSource;
let sourceId = '';
let jobId = '';
const request = (patch: Partial<ProtectRequest> = {}): ProtectRequest => ({
  sourceId,
  diskIds: ['disk-0-web1', 'disk-1-web1'],
  pool: 'default',
  network: 'lan',
  replicaName: 'web1-replica',
  vcpus: 2,
  memoryBytes: 1024 * MIB,
  compression: 'fast',
  bandwidthLimitBytesPerSec: null,
  ...patch,
});
const job = (id = jobId) => lab.call<Job>('GET', `/api/jobs/${id}`);
const stateOf = async (id = jobId) => (await job(id)).state;
const sourceState = async () =>
  (await lab.call<Source>('GET', `/api/sources/${sourceId}`)).state.name;
const waitFor = (name: string, id = jobId) =>
  until(`job state ${name}`, async () => {
    const state = await stateOf(id);
    // What is tried again by itself may be seen on the way; what is not cannot end well.
    if (state.name === 'error' && name !== 'error' && !PASSING.includes(state.error.code)) {
      throw new Error(JSON.stringify(state));
    }
    return state.name === name;
  });

/** Waits for `same`; what the job says is in the failure. */
async function untilSame(): Promise<void> {
  try {
    await until('every write on the replica', same);
  } catch (error) {
    const { state, stream, figures, disks } = await job();
    const seen = JSON.stringify({ state, stream, figures, disks, agent: web1.log.slice(-5) });
    throw new Error(`${(error as Error).message}: ${seen}`);
  }
}

const PASSING = ['UND_HV_UNREACHABLE', 'UND_SOURCE_DISK_MISSING', 'UND_JOB_TAINTED'];

/** Every byte of the replica files is the source's. */
async function same(): Promise<boolean> {
  for (const disk of (await job()).disks) {
    const index = web1.kernel.paths.findIndex((path) => path.endsWith(disk.name));
    const source = await readFile(web1.kernel.paths[index]!);
    if (!source.equals(await readFile(disk.replicaPath!))) return false;
  }
  return true;
}

t.before(async () => {
  await lab.start();
  web1 = lab.addSource('web1');
  await web1.addDisk('vda', 8 * MIB);
  await web1.addDisk('vdb', 4 * MIB);
  await web1.kernel.write(0, 0, Buffer.alloc(MIB, 'a'));
  await web1.kernel.write(1, MIB, Buffer.alloc(MIB, 'b'));
});
t.teardown(() => lab.close());

t.test('a source is added, enrols and comes online with its inventory', async (t) => {
  const added = await lab.inject('POST', '/api/sources', { address: 'web1', username: 'root' });
  t.equal(added.statusCode, 202, added.body);
  sourceId = added.json().sourceId;
  await until('the agent to be online', async () => (await sourceState()) === 'online');
  await until(
    'the inventory',
    async () => (await lab.call<Source>('GET', `/api/sources/${sourceId}`)).inventory,
  );
  const source = await lab.call<Source>('GET', `/api/sources/${sourceId}`);
  t.equal(source.name, 'web1');
  t.equal(source.inventory?.disks.length, 2);
  t.equal(source.certificate?.revoked, false);
});

t.test('a plan lists the actions, and what is wrong with the field concerned', async (t) => {
  const good = await lab.call<ProtectPlan>('POST', '/api/jobs/plan', request());
  t.equal(good.ok, true, JSON.stringify(good.problems));
  t.ok(good.actions.length > 3);
  const bad = await lab.call<ProtectPlan>(
    'POST',
    '/api/jobs/plan',
    request({ pool: 'lvm', network: 'off', replicaName: 'understudy-appliance', diskIds: ['x'] }),
  );
  t.equal(bad.ok, false);
  t.same(bad.problems.map(({ code, field }) => `${code} ${field}`).sort(), [
    'UND_HV_NAME_IN_USE replicaName',
    'UND_HV_POOL_UNUSABLE pool',
    'UND_NETWORK_INACTIVE network',
    'UND_NOT_FOUND diskIds.0',
  ]);
  lab.host.foreign.add('web1-replica');
  const taken = await lab.inject('POST', '/api/jobs', request());
  t.match(taken.json(), { code: 'UND_HV_NAME_IN_USE', field: 'replicaName' }, "somebody else's VM");
  lab.host.foreign.clear();
  const refused = await lab.inject('POST', '/api/jobs', request({ pool: 'lvm' }));
  t.equal(refused.statusCode, 409);
  t.match(refused.json(), { code: 'UND_HV_POOL_UNUSABLE', field: 'pool' });
});

t.test('protecting mirrors onto files until the job is protected; events tell of it', async (t) => {
  const seen = new Set<string>();
  const events = lab.events((event) => {
    if (event.type === 'job') seen.add((event.job as Job).state.name);
  });
  await events.opened;
  const answer = await lab.inject('POST', '/api/jobs', request());
  t.equal(answer.statusCode, 202, answer.body);
  jobId = answer.json().jobId;
  await waitFor('protected');
  t.ok(await same(), 'the replica is the source');
  const view = await job();
  t.ok(view.disks.every(({ attached }) => attached));
  t.equal(view.stream.mode, 'ordered');
  t.ok(view.figures.durableSeq > 0);
  t.ok(view.figures.appliedSeq > 0 && view.figures.appliedSeq <= view.figures.durableSeq);
  t.ok(view.figures.newestPointAt);
  await until('the protected state in the events', () => seen.has('protected'));
  t.ok(seen.has('creating'), [...seen].join());
  events.close();
  const second = await lab.inject('POST', '/api/jobs', request({ replicaName: 'other' }));
  t.match(second.json(), { code: 'UND_JOB_SOURCE_PROTECTED', field: 'sourceId' });
});

t.test('writes are replicated; settings change while it runs', async (t) => {
  await web1.kernel.write(0, 2 * MIB, Buffer.alloc(MIB, 'c'));
  await untilSame();
  const patched = await lab.call<Job>('PATCH', `/api/jobs/${jobId}`, {
    compression: 'best',
    bandwidthLimitBytesPerSec: 10 * MIB,
  });
  t.match(patched.settings, { compression: 'best', bandwidthLimitBytesPerSec: 10 * MIB });
  t.same(patched.settings.exclusions, DEFAULT_EXCLUSIONS, 'what nobody chose');
  const fewer = await lab.call<Job>('PATCH', `/api/jobs/${jobId}`, { exclusions: ['/srv/*.tmp'] });
  t.same(fewer.settings.exclusions, ['/srv/*.tmp']);
  const carried = await lab.call<Job>('PATCH', `/api/jobs/${jobId}`, { carryRestarts: true });
  t.match(carried.settings, { carryRestarts: true, exclusions: ['/srv/*.tmp'] });
});

t.test('recovery points: stretches and gaps, labels that last, limits that hold', async (t) => {
  const url = `/api/jobs/${jobId}`;
  const points = () => lab.call<JobPoints>('GET', `${url}/points`);
  const before = await points();
  t.equal(before.stretches.length, 1);
  t.match(before.gaps, [{ kind: 'first-mirror', reason: 'first mirror' }]);
  t.ok(before.newestAt! >= before.stretches[0]!.fromAt);
  t.match(before.history, { hours: 24, churnBytesPerSec: null, boundBy: 'hours', warning: null });
  t.ok(before.history!.usedBytes > 0);

  const at = before.stretches[0]!.toAt;
  const made = await lab.inject('POST', `${url}/labels`, { at, text: 'before the upgrade' });
  t.equal(made.statusCode, 201, made.body);
  t.match(made.json(), { at, text: 'before the upgrade', createdBy: 'admin', recoverable: true });
  const early = { at: '2001-01-01T00:00:00Z', text: 'long ago' };
  t.match((await lab.inject('POST', `${url}/labels`, early)).json(), { recoverable: false });
  await lab.restart();
  await until('the stream to be open', async () => (await points()).stretches.length > 0);
  const after = await points();
  t.same(
    after.labels.map(({ text, recoverable }) => [text, recoverable]),
    [
      ['long ago', false],
      ['before the upgrade', true],
    ],
    'labels and the history that they name outlast a restart',
  );
  t.equal(after.stretches[0]!.fromSeq, before.stretches[0]!.fromSeq);
  const gone = await lab.inject('DELETE', `${url}/labels/${after.labels[0]!.labelId}`);
  t.equal(gone.statusCode, 204);
  t.match(await lab.inject('DELETE', `${url}/labels/${after.labels[0]!.labelId}`), {
    statusCode: 404,
  });
  t.equal((await points()).labels.length, 1);

  await lab.call('PATCH', url, { historyHours: 2, historyBytes: 2 * 1024 * MIB });
  t.match((await points()).history, { hours: 2, limitBytes: 2 * 1024 * MIB });
  await lab.call('PATCH', url, { historyHours: null, historyBytes: null });
  t.match((await points()).history, { hours: null, reachMs: null, boundBy: null });

  const check = () => lab.call<JournalCheck>('GET', `${url}/journal-check`);
  t.same(await check(), { state: 'none' });
  t.equal((await lab.inject('POST', `${url}/journal-check`)).statusCode, 202);
  await until('the journal to be read back', async () => (await check()).state === 'done');
  const done = await check();
  t.match(done, { state: 'done', faultCount: 0, faults: [] });
  t.ok(done.state === 'done' && done.frames > 3);
  const acts = (await lab.call<AuditEntry[]>('GET', '/api/audit')).map(({ act }) => act);
  for (const act of ['job.label', 'job.unlabel', 'job.check-journal']) t.ok(acts.includes(act));
  await until('the agent to be back', async () => (await sourceState()) === 'online');
});
t.test(
  'points are taken on demand and on schedule, and listed once they are safe here',
  async (t) => {
    const url = `/api/jobs/${jobId}/points`;
    const taken = await lab.inject('POST', url, { name: 'before the upgrade', quiesce: false });
    t.equal(taken.statusCode, 201, taken.body);
    t.match(taken.json(), { name: 'before the upgrade', quiesced: false, reason: null });
    // The stand-in's agent has no freezer: the point is there, and says what it is not.
    const plain = await lab.call<TakenPoint>('POST', url, {});
    t.match(plain, { name: 'On demand', quiesced: false, reason: /cannot freeze/ });
    await until('both points', async () => (await job()).askedPoints.newest.length === 2);
    const { newest, nextAt } = (await job()).askedPoints;
    t.same(
      newest.map(({ seq }) => seq),
      [plain.seq, taken.json().seq],
      'the newest first',
    );
    t.ok(newest.every(({ at }) => at));
    t.equal(nextAt, null, 'no schedule unless somebody wants one');
    const refused = await lab.inject('POST', url, { name: 'two\nlines' });
    t.equal(refused.statusCode, 400, refused.body);

    await lab.call('PATCH', `/api/jobs/${jobId}`, { pointEveryMinutes: 60 });
    const next = Date.parse((await job()).askedPoints.nextAt ?? '');
    t.ok(next > Date.now() - 1000 && next <= Date.now() + 3_600_000);
    await lab.call('PATCH', `/api/jobs/${jobId}`, { pointEveryMinutes: null });
    t.equal((await job()).askedPoints.nextAt, null);
  },
);

t.test('the replica disks are verified on demand and on schedule', async (t) => {
  const url = `/api/jobs/${jobId}`;
  t.equal((await job()).disks[0]!.verification.last, null);
  const asked = await lab.call<Job>('POST', `${url}/verify`, {});
  t.ok(asked.disks.every(({ verification }) => verification.running));
  await until('the verification', async () =>
    (await job()).disks.every(({ verification }) => verification.last && !verification.running),
  );
  t.match((await job()).disks[0]!.verification.last, { mismatches: 0, repaired: 0 });
  t.equal((await job()).verifyNextAt, null, 'no schedule unless somebody wants one');
  await lab.call('PATCH', url, { verifyEvery: 'daily' });
  const next = Date.parse((await job()).verifyNextAt ?? '');
  t.ok(next > Date.now() + 23 * 3_600_000 && next <= Date.now() + 24 * 3_600_000);
  await lab.call('PATCH', url, { verifyEvery: 'off' });
  const nobody = await lab.inject('POST', `${url}/verify`, { diskId: 'nobody' });
  t.equal(nobody.statusCode, 404, nobody.body);
});

t.test('a pause holds intake over a restart of the appliance, and resuming goes on', async (t) => {
  await lab.call('POST', `/api/jobs/${jobId}/pause`);
  t.match(await stateOf(), { name: 'paused' });
  const point = await lab.inject('POST', `/api/jobs/${jobId}/points`, {});
  t.match(point.json(), { code: 'UND_JOB_STATE' }, 'no point of a paused job');
  await lab.restart();
  await until('the agent to be back', async () => (await sourceState()) === 'online');
  t.match(await stateOf(), { name: 'paused' });
  await until('the stream to be open', async () => (await job()).figures.durableSeq > 0);
  t.equal((await job()).askedPoints.newest.length, 2, 'the points outlive a restart');
  const { durableSeq } = (await job()).figures;
  await web1.kernel.write(0, 3 * MIB, Buffer.alloc(MIB, 'd'));
  await until(
    'the write to be seen as lag',
    async () => ((await job()).figures.lagBytes ?? 0) >= MIB,
  );
  t.equal((await job()).figures.durableSeq, durableSeq, 'nothing is taken');
  t.notOk(await same(), 'nothing is applied');
  await lab.call('POST', `/api/jobs/${jobId}/resume`);
  await waitFor('protected');
  await untilSame();
});

t.test(
  'after a reboot of the host the disks are attached again, also if the host is late',
  async (t) => {
    await lab.appliance.close();
    lab.host.forgetAttached();
    lab.host.fail('listAttachedDisks', 'UND_HV_UNREACHABLE', 1);
    await lab.start();
    await web1.kernel.write(1, 0, Buffer.alloc(MIB, 'e'));
    await until('both disks attached', async () =>
      (await job()).disks.every((one) => one.attached),
    );
    await waitFor('protected');
    await untilSame();
    t.equal(lab.host.attached.size, 2);
  },
);

t.test('nothing is applied under a replica VM that the appliance does not know of', async (t) => {
  await lab.appliance.close();
  lab.host.forgetAttached();
  lab.host.vms.set('web1-replica', { spec: { name: 'web1-replica' } as never, running: true });
  await lab.start();
  await waitFor('error');
  t.match(await stateOf(), { error: { code: 'UND_JOB_TAINTED' } });
  t.equal(lab.host.attached.size, 0);
  lab.host.vms.clear();
  await waitFor('protected');
});

t.test('a disk that grows makes its replica grow', async () => {
  await web1.kernel.files[1]!.truncate(6 * MIB);
  web1.kernel.sizes[1] = 6 * MIB;
  web1.kernel.emit({
    kind: 'disk-resized',
    disk: 1,
    oldSizeBytes: 4 * MIB,
    newSizeBytes: 6 * MIB,
  });
  await until('the replica has grown', async () =>
    (await job()).disks.some((disk) => disk.sizeBytes === 6 * MIB),
  );
  await waitFor('protected');
  await web1.kernel.write(1, 5 * MIB, Buffer.alloc(MIB, 'f'));
  await untilSame();
});

t.test('a pool that is nearly full holds apply and nothing else', async (t) => {
  lab.host.availableBytes = 1024;
  await until('the hold', async () => (await stateOf()).name === 'paused');
  const state = await stateOf();
  t.match(state, { name: 'paused', reason: /default is nearly full/ });
  await web1.kernel.write(0, 4 * MIB, Buffer.alloc(MIB, 'g'));
  await until('the frames in the journal', async () => {
    const { figures } = await job();
    return figures.durableSeq > figures.appliedSeq && figures.applyBacklogBytes > 0;
  });
  t.notOk(await same());
  lab.host.availableBytes = 80 * 1024 ** 3;
  await waitFor('protected');
  await untilSame();
});

t.test('an agent that is killed comes back and goes on', async () => {
  await web1.stop();
  await until('the agent to be missed', async () => (await sourceState()) === 'offline');
  await waitFor('waiting-for-agent');
  // Red when a job is told by what happens alone: nothing happens, and the lag grows.
  const lags: number[] = [];
  const events = lab.events(({ type, job }) => {
    if (type === 'job') lags.push((job as Job).figures.lagMs ?? 0);
  });
  await until('the lag to be told as it grows', () => lags.length >= 3 && lags.at(-1)! > 4_000);
  events.close();
  await web1.kernel.write(0, 5 * MIB, Buffer.alloc(MIB, 'h'));
  web1.start();
  await waitFor('protected');
  await untilSame();
});

t.test('after a reboot that swaps the names of the disks each replica keeps its own', async (t) => {
  await web1.stop();
  await until('the agent to be missed', async () => (await sourceState()) === 'offline');
  web1.reboot();
  const [vda, vdb] = web1.kernel.paths as [string, string];
  const names = await lab.call<Source>('GET', `/api/sources/${sourceId}`);
  t.equal(names.inventory?.disks[0]?.devicePath, vda);
  web1.devicePaths.set(0, vdb).set(1, vda);
  web1.start();
  await waitFor('protected');
  await web1.kernel.write(0, 0, Buffer.alloc(MIB, 'j'));
  await untilSame();
});

t.test('a disk that is gone from the source stops its job with the reason', async (t) => {
  await web1.stop();
  web1.reboot();
  web1.hidden.add(1);
  web1.start();
  await waitFor('error');
  t.match(await stateOf(), { error: { code: 'UND_SOURCE_DISK_MISSING', message: /vdb/ } });
  await web1.stop();
  web1.hidden.clear();
  web1.start();
  await waitFor('protected');
});

t.test('a mirror on command compares and ends protected', async (t) => {
  const reason = async () => (await job()).disks.map(({ mirror }) => mirror?.reason);
  const before = await reason();
  t.notMatch(before[1], /person/);
  await web1.kernel.write(0, MIB, Buffer.alloc(MIB, 'e'));
  const [, disk] = (await job()).disks;
  await lab.call('POST', `/api/jobs/${jobId}/mirror`, { diskId: disk!.diskId });
  // It is protected until the agent has heard of it.
  await until('the mirror', async () => /person/.test((await reason())[1] ?? ''));
  await waitFor('protected');
  t.match(await reason(), [before[0], 'a person asked for it'], 'the other disk is left alone');
  await untilSame();
  await lab.call('POST', `/api/jobs/${jobId}/mirror`, {});
  await until('the difference mirror', async () =>
    (await job()).disks.every(({ mirror }) => mirror?.kind === 'difference'),
  );
  await waitFor('protected');
  t.ok(await same());
  const unknown = await lab.inject('POST', `/api/jobs/${jobId}/mirror`, { diskId: 'nope' });
  t.match(unknown.json(), { code: 'UND_NOT_FOUND', field: 'diskId' });
});

t.test(
  'failing over: typed confirmation, two at once, deleting meanwhile; undo replicates again',
  async (t) => {
    const wrong = await lab.inject('POST', `/api/jobs/${jobId}/failover`, {
      kind: 'unplanned',
      confirm: 'web1',
    });
    t.match(wrong.json(), { code: 'UND_FAILOVER_CONFIRM' });
    const start = () =>
      lab.inject('POST', `/api/jobs/${jobId}/failover`, {
        kind: 'unplanned',
        confirm: 'web1-replica',
        isolateOnReturn: true,
      });
    lab.stillAnswers = '192.0.2.5 takes connections';
    const alive = await start();
    t.equal(alive.statusCode, 409);
    t.match(alive.json(), { code: 'UND_FAILOVER_SOURCE_ALIVE', message: /192.0.2.5 takes/ });
    await waitFor('protected');
    lab.stillAnswers = null;
    const both = await Promise.all([start(), start()]);
    t.same(both.map(({ statusCode }) => statusCode).sort(), [202, 409]);
    const failoverId = both.find(({ statusCode }) => statusCode === 202)!.json().failoverId;
    t.match(both.find(({ statusCode }) => statusCode === 409)!.json(), {
      code: 'UND_FAILOVER_RUNNING',
    });
    const deleted = await lab.inject('DELETE', `/api/jobs/${jobId}?disks=delete`);
    t.match(deleted.json(), { code: 'UND_JOB_STATE' });
    const failover = () => lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
    await until('the failover to complete', async () => {
      const { state } = await failover();
      if (state.name === 'failed') throw new Error(JSON.stringify(state));
      return state.name === 'completed';
    });
    await waitFor('failed-over');
    t.ok((await job()).provenBootableAt);
    t.equal(lab.host.vms.get('web1-replica')?.running, true);

    await lab.restart();
    t.match(await stateOf(), { name: 'failed-over' }, 'it stays so over a restart');
    const check = await lab.call<JournalCheck>('GET', `/api/jobs/${jobId}/journal-check`);
    t.match(check, { state: 'done', faultCount: 0 }, 'and the last check of its journal is known');
    t.equal(lab.host.vms.get('web1-replica')?.running, true);
    // Red without admission's look at the fence.
    await until('the source to be passive', async () => (await sourceState()) === 'passive');
    t.match(await web1.state.handover(), { stage: 'handed-over', failoverId });
    await until('the source to be cut off', async () => web1.isolation);
    t.match(web1.isolation, { peers: ['127.0.0.1'] }, 'all but the appliance');
    // As after its reboot: the rules are gone, and come back without being told.
    web1.isolation = null;
    await until('the source to be cut off again', async () => web1.isolation);

    const undo = await lab.inject('POST', `/api/failovers/${failoverId}/undo`, {
      confirm: 'web1-replica',
    });
    t.equal(undo.statusCode, 202, undo.body);
    await until('the undo', async () => (await failover()).state.name === 'undone');
    t.notOk(lab.host.vms.has('web1-replica'));
    await waitFor('protected');
    t.equal(web1.isolation, null, 'it has its network again');
    await web1.kernel.write(0, 6 * MIB, Buffer.alloc(MIB, 'i'));
    await untilSame();
  },
);

// Red when only opening the disks looks for other users of them.
t.test('a VM that somebody starts on a replica disk stops the job until it is gone', async (t) => {
  // A checkpoint may still be under way: which image replication writes can change until then.
  const replica = async () => {
    const path = (await job()).disks[0]!.replicaPath!;
    return { pool: 'default', name: basename(path), path };
  };
  const spec = { name: 'by-hand', disks: [{ disk: await replica() }] };
  lab.host.vms.set('by-hand', { spec: spec as never, running: false });
  await new Promise((resolve) => setTimeout(resolve, 300));
  t.equal((await stateOf()).name, 'protected', 'one that is off does no harm');

  lab.host.vms.get('by-hand')!.running = true;
  await until('the job to stop', async () => {
    spec.disks[0]!.disk = await replica();
    return (await stateOf()).name === 'error';
  });
  const { path } = await replica();
  t.match(await stateOf(), { error: { code: 'UND_JOB_DISK_USED', message: /by-hand runs on/ } });
  const before = await readFile(path);
  await web1.kernel.write(0, 2 * MIB, Buffer.alloc(MIB, 't'));
  const early = await lab.inject('POST', `/api/jobs/${jobId}/resume`);
  t.match(early.json(), { code: 'UND_JOB_DISK_USED' }, 'it still runs');
  await lab.restart();
  t.match(await stateOf(), { error: { code: 'UND_JOB_DISK_USED' } }, 'also after a restart');
  t.ok(before.equals(await readFile(path)), 'nothing was applied under it');

  // It wrote something, and is gone.
  const file = await open(path, 'r+');
  await file.write(Buffer.alloc(4096, 'X'), 0, 4096, 0);
  await file.close();
  lab.host.vms.delete('by-hand');
  t.match(await stateOf(), { name: 'error' }, 'a person has to look first');
  await lab.call('POST', `/api/jobs/${jobId}/resume`);
  await untilSame();
  await waitFor('protected');
  t.match((await job()).disks[0]!.mirror, { kind: 'difference', reason: /by-hand runs on/ });
});

/**
 * A database that commits row after row while its service runs: a row counts once it is on the disk.
 */
function startLedger(): { rows: () => number; ended: Promise<void> } {
  let rows = 0;
  const write = async () => {
    while (web1.systemd.state('postgresql.service') === 'active') {
      const row = Buffer.alloc(4096);
      row.writeUInt32LE(rows + 1);
      await web1.kernel.write(1, rows * 4096, row);
      rows++;
    }
  };
  return { rows: () => rows, ended: write() };
}

// Red with a final mark that is not awaited, and with stop-services behind it.
t.test(
  'a planned failover over a restart of the appliance: no row is lost; undone, the source goes on',
  async (t) => {
    const ledger = startLedger();
    const failoverRequest = { kind: 'planned', confirm: 'web1-replica' };
    const misspelt = await lab.call<Failover>('POST', `/api/jobs/${jobId}/failover`, {
      ...failoverRequest,
      stopUnits: ['postgres.service'],
    });
    const failover = (id: string) => lab.call<Failover>('GET', `/api/failovers/${id}`);
    const ended = (id: string, name: string) =>
      until(`the failover to be ${name}`, async () => {
        const { state } = await failover(id);
        if (state.name === 'failed' && name !== 'failed') throw new Error(JSON.stringify(state));
        return state.name === name;
      });
    await ended(misspelt.failoverId, 'failed');
    t.match((await failover(misspelt.failoverId)).state, {
      error: { message: /there is no unit postgres.service/ },
    });
    await waitFor('protected');
    t.equal(web1.systemd.state('postgresql.service'), 'active');

    // Red when the replica is powered on beside a server that is still shutting down.
    lab.stillAnswers = '192.0.2.5 is answered for by 52:54:00:00:00:01';
    const powerOn = async (id: string) =>
      (await failover(id)).steps.find(({ name }) => name === 'power-on')!;
    await until('some rows', () => ledger.rows() > 20);
    await lab.call('PATCH', `/api/jobs/${jobId}`, { stopUnits: ['postgresql.service'] });
    const { failoverId } = await lab.call<Failover>(
      'POST',
      `/api/jobs/${jobId}/failover`,
      failoverRequest,
    );
    await until('the services to be stopped', () => web1.systemd.acts().length > 0);
    await lab.restart();
    await until(
      'the replica to wait for the silence of the source',
      async () => (await powerOn(failoverId)).state === 'running',
    );
    t.equal(lab.host.vms.get('web1-replica')!.running, false);
    lab.stillAnswers = null;
    await ended(failoverId, 'completed');
    await ledger.ended;
    t.same(web1.systemd.acts(), ['stop postgresql.service', 'poweroff --no-wall']);
    const done = await failover(failoverId);
    t.match(done, { kind: 'planned', point: { lossMs: 0 } });
    const vm = lab.host.vms.get('web1-replica')!;
    const data = await readFile(vm.spec.disks[1]!.disk.path);
    const there = Array.from({ length: ledger.rows() }, (_, n) => data.readUInt32LE(n * 4096));
    t.same(
      there,
      there.map((_, n) => n + 1),
      `all ${ledger.rows()} rows`,
    );

    // Switched on by somebody: it is told, and remembers.
    await web1.start();
    await until('the source to be passive', async () => (await sourceState()) === 'passive');
    t.match(web1.log.at(-1), /web1 was failed over to web1-replica/);
    t.equal(web1.systemd.state('postgresql.service'), 'inactive');

    await lab.call('POST', `/api/failovers/${failoverId}/undo`, { confirm: 'web1-replica' });
    await ended(failoverId, 'undone');
    await waitFor('protected');
    t.equal(web1.systemd.state('postgresql.service'), 'active', 'its services run again');
    await web1.kernel.write(0, 6 * MIB, Buffer.alloc(MIB, 'p'));
    await untilSame();
  },
);

// Seen red without newestImage(): the image on record is attached, below what was written since.
t.test(
  'a configuration from before a checkpoint: replication goes on in what was written',
  async (t) => {
    const passphrase = 'a good passphrase';
    const saved = await lab.inject('POST', '/api/config/backup', { passphrase });
    t.equal(saved.statusCode, 200);
    const written = () => [...lab.host.attached.values()].map(({ disk }) => disk.name).sort();
    const before = written();
    // Before a mirror the point that there is gets a checkpoint.
    await lab.call('POST', `/api/jobs/${jobId}/mirror`, {});
    await until('a checkpoint', () => written().join() !== before.join());
    await waitFor('protected');
    await web1.kernel.write(0, 3 * MIB, Buffer.alloc(MIB, 'r'));
    await untilSame();
    const after = written();
    const restarted = lab.serveRestart(async () => lab.host.forgetAttached());
    const backupBase64 = saved.rawPayload.toString('base64');
    await lab.call('POST', '/api/config/restore', { passphrase, backupBase64 });
    await restarted;
    await lab.login('admin', PASSWORD);
    await web1.kernel.write(0, 4 * MIB, Buffer.alloc(MIB, 's'));
    await until('both disks attached', async () =>
      (await job()).disks.every((one) => one.attached),
    );
    // Another checkpoint may have been taken on top.
    const chains = await Promise.all(
      [...lab.host.attached.values()].map(({ disk }) => lab.host.chain(disk)),
    );
    const below = chains.flat().map(({ name }) => name);
    t.ok(
      after.every((name) => below.includes(name)),
      'what was written is in the chains',
      { after, below },
    );
    await waitFor('protected');
    await untilSame();
  },
);

t.test('deleting the job ends it on the agent and removes the disks', async (t) => {
  const answer = await lab.inject('DELETE', `/api/jobs/${jobId}?disks=delete`);
  t.equal(answer.statusCode, 202, answer.body);
  await until(
    'the job to be gone',
    async () => (await lab.inject('GET', `/api/jobs/${jobId}`)).statusCode === 404,
  );
  t.equal(lab.host.attached.size, 0);
  t.same(await lab.host.files(), []);
  t.equal((await lab.call<Source>('GET', `/api/sources/${sourceId}`)).jobId, null);
  await until('the capture to be taken off', () => web1.kernel.captureId === '');
});

t.test('a failure while making the disks waits for a person; resuming goes on', async (t) => {
  await until('the agent to be back', async () => (await sourceState()) === 'online');
  lab.host.fail('createDisk', 'UND_HV_POOL_FULL', 1);
  const made = await lab.call<Job>('POST', '/api/jobs', request({ replicaName: 'second' }));
  await waitFor('error', made.jobId);
  t.match(await stateOf(made.jobId), { error: { code: 'UND_HV_POOL_FULL' } });
  await lab.call('POST', `/api/jobs/${made.jobId}/resume`);
  await waitFor('protected', made.jobId);
  jobId = made.jobId;
  t.ok(await same());
  await web1.stop();
  await until('layers above each other', async () => lab.host.bases.size >= 2);
  const paths = (await job()).disks.map(({ replicaPath }) => replicaPath!);
  const content = await Promise.all(paths.map((path) => readFile(path)));
  const bases = paths.map((path) => {
    let name = basename(path);
    for (let below = lab.host.bases.get(name); below; below = lab.host.bases.get(name)) {
      name = below.name;
    }
    return name;
  });
  // The host's answer to the first merge is lost. Red when the image that was merged away is looked for, and when the
  // layers are left as they are.
  lab.host.loseAnswer('commitOverlay', 1);
  const kept = await lab.inject('DELETE', `/api/jobs/${jobId}?disks=keep`);
  t.equal(kept.statusCode, 202);
  await until(
    'the job to be gone',
    async () => (await lab.inject('GET', `/api/jobs/${jobId}`)).statusCode === 404,
  );
  t.same((await lab.host.files()).sort(), bases.toSorted(), 'one plain image per disk is kept');
  for (const [index, name] of bases.entries()) {
    t.ok((await readFile(join(lab.host.dir, name))).equals(content[index]!), 'with what it held');
  }
  t.not(web1.kernel.captureId, '', 'the agent was away: its capture goes on');
  web1.start();
  await until('the capture to be taken off', () => web1.kernel.captureId === '').catch((error) => {
    throw new Error(`${error.message}: ${web1.log.slice(-8).join(' | ')}`);
  });
  await until('the agent to forget the job', async () => (await web1.state.job()) === null);
});

t.test('a failover whose step fails goes back; one that is committed ends the job', async (t) => {
  await until('the agent to be back', async () => (await sourceState()) === 'online');
  const made = await lab.call<Job>('POST', '/api/jobs', request({ replicaName: 'third' }));
  jobId = made.jobId;
  const start = () =>
    lab.inject('POST', `/api/jobs/${jobId}/failover`, {
      kind: 'unplanned',
      confirm: 'third',
      evenIfAlive: true,
    });
  lab.stillAnswers = 'somebody answers';
  t.teardown(() => {
    lab.stillAnswers = null;
  });
  const ended = async (failoverId: string, name: string) => {
    await until(`the failover to be ${name}`, async () => {
      const { state } = await lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
      return state.name === name;
    });
    return lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
  };
  const early = await start();
  t.match(early.json(), { code: /UND_FAILOVER_NOT_READY|UND_JOB_STATE/ }, 'not before the mirror');
  await waitFor('protected');

  lab.host.fail('defineVm', 'UND_HV_FAILED');
  const failed = await ended((await start()).json().failoverId, 'failed');
  t.match(failed.state, { error: { code: 'UND_HV_FAILED' } });
  t.notOk(lab.host.vms.has('third'));
  await waitFor('protected');
  await web1.kernel.write(0, MIB, Buffer.alloc(MIB, 'k'));
  await untilSame();

  const { failoverId } = await ended((await start()).json().failoverId, 'completed');
  const answer = await lab.inject('POST', `/api/failovers/${failoverId}/commit`, {
    confirm: 'third',
  });
  t.equal(answer.statusCode, 202, answer.body);
  await ended(failoverId, 'committed');
  await until('the job to be gone', async () => {
    const { statusCode } = await lab.inject('GET', `/api/jobs/${jobId}`);
    return statusCode === 404;
  });
  t.equal(lab.host.vms.get('third')?.running, true);
  await until('the source to be told', () => web1.kernel.captureId === '');
});

t.test('every act is in the audit log', async (t) => {
  const entries = await lab.call<{ act: string; outcome: string; who: string }[]>(
    'GET',
    '/api/audit?limit=1000',
  );
  const acts = new Set(entries.filter(({ outcome }) => outcome === 'ok').map(({ act }) => act));
  for (const act of [
    'login',
    'source.add',
    'enrol',
    'job.protect',
    'job.pause',
    'job.resume',
    'failover.start',
    'failover.undo',
    'job.delete',
  ]) {
    t.ok(acts.has(act), act);
  }
  t.ok(entries.some(({ act, outcome }) => act === 'failover.start' && outcome === 'refused'));
  t.ok((await readFile(join(lab.dir, 'data/ca/ca.pem'), 'utf8')).includes('CERTIFICATE'));
});
