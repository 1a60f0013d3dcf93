/**
 * Consistency groups through the whole appliance: two sources whose writes depend on each other are recovered to one
 * moment, in the order of their priorities; the group is undone and committed as a whole, also over a restart.
 */
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import type {
  Checkpoint,
  Failover,
  Group,
  GroupMark,
  GroupPoints,
  GroupRunView,
  Job,
} from '../../appliance/api/schema.ts';
import { Lab, type TestSource, until } from './api.lab.ts';

const MIB = 1024 * 1024;
const LIMIT_MS = 120_000;
t.setTimeout(600_000);
const lab = new Lab();
t.teardown(() => lab.close());

/** A counter in the first bytes of a disk. */
async function count(source: TestSource, n: number): Promise<void> {
  const block = Buffer.alloc(4096);
  block.writeUInt32LE(n);
  await source.kernel.write(0, 0, block);
}
const counterOf = async (path: string): Promise<number> => (await readFile(path)).readUInt32LE(0);

async function protect(name: string): Promise<{ source: TestSource; jobId: string }> {
  const source = lab.addSource(name);
  await source.addDisk('vda', 4 * MIB);
  await count(source, 0);
  const added = await lab.inject('POST', '/api/sources', { address: name, username: 'root' });
  const { sourceId } = added.json();
  await until(
    `the inventory of ${name}`,
    async () =>
      (await lab.call<{ inventory: unknown }>('GET', `/api/sources/${sourceId}`)).inventory,
    LIMIT_MS,
  );
  const { jobId } = await lab.call<Job>('POST', '/api/jobs', {
    sourceId,
    diskIds: [`disk-0-${name}`],
    pool: 'default',
    network: 'lan',
    replicaName: `${name}-replica`,
    vcpus: 1,
    memoryBytes: 512 * MIB,
    compression: 'fast',
    bandwidthLimitBytesPerSec: null,
  });
  return { source, jobId };
}

t.test('two sources and their group', async (t) => {
  lab.outside.clockPollMs = 100;
  lab.outside.testPollMs = 100;
  let night = false;
  const tomorrowAt3 = Math.ceil(Date.now() / 86_400_000) * 86_400_000 + 3.2 * 3_600_000;
  lab.outside.now = () => (night ? tomorrowAt3 : Date.now());
  await lab.start();
  const db = await protect('db');
  const app = await protect('app');
  const jobs = [db.jobId, app.jobId];
  const allProtected = () =>
    until(
      'both jobs to be protected, with a checkpoint',
      async () => {
        for (const jobId of jobs) {
          if ((await lab.call<Job>('GET', `/api/jobs/${jobId}`)).state.name !== 'protected') return;
          const kept = await lab.call<Checkpoint[]>('GET', `/api/jobs/${jobId}/checkpoints`);
          if (kept.length === 0) return;
        }
        return true;
      },
      LIMIT_MS,
    );
  await allProtected();
  const request = {
    name: 'shop',
    members: [
      { jobId: app.jobId, priority: 2 },
      { jobId: db.jobId, priority: 1 },
    ],
    wait: { for: 'proof' },
  };
  let groupId = '';
  const points = () => lab.call<GroupPoints>('GET', `/api/groups/${groupId}/points`);
  const run = (runId: string) => lab.call<GroupRunView>('GET', `/api/group-runs/${runId}`);
  const fail = (body: object) => lab.inject('POST', `/api/groups/${groupId}/failover`, body);
  const toEnd = async (runId: string, name: GroupRunView['state']['name']) => {
    const reached = until(
      `the group failover to be ${name}`,
      async () => {
        const { state, members } = await run(runId);
        const over = ['failed', 'stopped', 'undone', 'committed'].includes(state.name);
        if (over && name !== state.name) throw new Error(JSON.stringify({ state, members }));
        return state.name === name;
      },
      LIMIT_MS,
    );
    await reached.catch(async (error) => {
      const seen = JSON.stringify([await run(runId), await lab.call('GET', '/api/failovers')]);
      throw new Error(`${error.message}: ${seen}`);
    });
    return run(runId);
  };
  const recovered = async (suffix: string) => {
    const of = (name: string) => lab.host.vms.get(`${name}-replica${suffix}`)!.spec.disks[0]!.disk;
    return { db: await counterOf(of('db').path), app: await counterOf(of('app').path) };
  };

  await t.test('a group is made, changed, and told of; a job is in one at most', async (t) => {
    const told: string[] = [];
    const events = lab.events((event) => {
      if (event.type === 'group') told.push((event.group as Group).name);
    });
    await events.opened;
    const made = await lab.inject('POST', '/api/groups', { ...request, name: 'first' });
    t.equal(made.statusCode, 201, made.body);
    groupId = made.json().groupId;
    const same = await lab.inject('POST', '/api/groups', { ...request, name: 'other' });
    t.match(same.json(), { code: 'UND_GROUP_MEMBER', field: 'members.0.jobId' });
    const named = { ...request, name: 'first', members: [{ jobId: 'x', priority: 1 }] };
    t.match((await lab.inject('POST', '/api/groups', named)).json(), { code: 'UND_GROUP_NAME' });
    const unknown = { ...named, name: 'other' };
    t.match((await lab.inject('POST', '/api/groups', unknown)).json(), { code: 'UND_NOT_FOUND' });
    const schedule = { everyMinutes: 1440, quiesce: false, checkpoint: true };
    const changed = { ...request, schedule };
    t.match(await lab.call<Group>('PATCH', `/api/groups/${groupId}`, changed), {
      name: 'shop',
      schedule,
      markProblem: null,
    });
    await until('both names in the events', () => told.includes('first') && told.includes('shop'));
    events.close();
    await until('the clocks', async () => ((await points()).errorMs ?? 1000) < 200, LIMIT_MS);
    const { newestAt, members, errorMs } = await points();
    t.ok(newestAt);
    t.ok(errorMs! >= 20, 'at least a frame');
    t.match(members, [{ jobId: app.jobId }, { jobId: db.jobId }], 'in their order');
  });

  // Each number is written by db first, and only then by app: at one moment app is never ahead.
  let n = 0;
  const work = async (rounds: number) => {
    for (let round = 0; round < rounds; round++) {
      n++;
      await count(db.source, n);
      await delay(30);
      await count(app.source, n);
      await delay(30);
    }
  };

  /** Everything written is in closed frames, and both have points behind it. */
  const settled = async () => {
    await until(
      'the last number on both replicas',
      async () => {
        for (const jobId of jobs) {
          const { disks } = await lab.call<Job>('GET', `/api/jobs/${jobId}`);
          if ((await counterOf(disks[0]!.replicaPath!)) !== n) return false;
        }
        return true;
      },
      LIMIT_MS,
    );
    const after = Date.now() + 300;
    await until(
      'common points behind it',
      async () => Date.parse((await points()).newestAt ?? '') > after,
      LIMIT_MS,
    );
  };

  await t.test('a test of the group: both at one moment, on the isolated network', async (t) => {
    await work(10);
    await settled();
    const at = new Date().toISOString();
    const then = n;
    await delay(300);
    await work(5);
    await settled();
    const begun = await fail({ kind: 'test', point: { at }, keepMinutes: 60 });
    t.equal(begun.statusCode, 202, begun.body);
    const { runId } = begun.json() as GroupRunView;
    const done = await toEnd(runId, 'completed');
    t.match(done, { test: { verdict: { passed: true } }, target: { name: 'moment' } });
    t.same(await recovered('-test'), { db: then, app: then }, 'both are of the moment');
    const vms = [...lab.host.vms.values()];
    t.ok(vms.every(({ spec }) => spec.nics.every(({ network }) => network === 'alone')));
    const [first, second] = await Promise.all(
      [1, 0].map((index) =>
        lab.call<Failover>('GET', `/api/failovers/${done.members[index]!.failoverId}`),
      ),
    );
    t.ok(first!.endedAt! <= second!.startedAt, 'app is begun when db has proven that it boots');
    t.match((await fail({ kind: 'test' })).json(), { code: 'UND_GROUP_RUNNING' });
    const change = await lab.inject('PATCH', `/api/groups/${groupId}`, request);
    t.match(change.json(), { code: 'UND_GROUP_RUNNING' });
    await lab.restart();
    t.equal((await run(runId)).state.name, 'completed', 'a restart changes nothing');
    t.equal(lab.host.vms.size, 2);
    await lab.call('POST', `/api/group-runs/${runId}/undo`, { confirm: '' });
    await toEnd(runId, 'undone');
    t.same([...lab.host.vms.keys()], []);
    await allProtected();
  });

  await t.test(
    'a mark with checkpoints: every member is at it exactly, and needs no replay',
    async (t) => {
      await work(3);
      const before = n;
      // The next numbers come right behind the marks.
      const asked = lab.inject('POST', `/api/groups/${groupId}/marks`, {
        name: 'before the upgrade',
        quiesce: false,
        checkpoint: true,
      });
      const [taken] = await Promise.all([asked, work(15)]);
      t.equal(taken.statusCode, 201, taken.body);
      const mark = taken.json() as GroupMark;
      t.match(mark, { name: 'before the upgrade', quiesced: false, recoverable: true });
      t.type(mark.apartMs, 'number');
      for (const { jobId, seq } of mark.members) {
        const kept = await lab.call<Checkpoint[]>('GET', `/api/jobs/${jobId}/checkpoints`);
        const found = kept.find(({ reason }) => reason === 'mark of the group: before the upgrade');
        // Red when apply does not stop at the mark's frame.
        t.equal(found?.seq, seq);
      }
      t.match(await points(), { marks: [{ markId: mark.markId, recoverable: true }] });
      const begun = await fail({ kind: 'test', point: { markId: mark.markId }, keepMinutes: 60 });
      t.equal(begun.statusCode, 202, begun.body);
      const { runId } = begun.json() as GroupRunView;
      const { members } = await toEnd(runId, 'completed');
      for (const { failoverId, jobId } of members) {
        const { point } = await lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
        t.equal(point.seq, mark.members.find((one) => one.jobId === jobId)!.seq);
      }
      const at = await recovered('-test');
      t.ok(at.db >= before && at.db <= n, `${at.db} of ${before} to ${n}`);
      t.ok(at.app >= before && at.app <= n, `${at.app} of ${before} to ${n}`);
      await lab.call('POST', `/api/group-runs/${runId}/undo`, { confirm: '' });
      await toEnd(runId, 'undone');
      await db.source.stop();
      const away = await lab.inject('POST', `/api/groups/${groupId}/marks`, { quiesce: false });
      t.match(away.json(), { code: 'UND_GROUP_MARK_FAILED' });
      t.equal((await points()).marks.length, 1);
      db.source.start();
      await allProtected();
    },
  );

  // Seen red without the groups among those that are looked at: no VM was ever defined.
  await t.test('a test on schedule, with its report', async (t) => {
    const daily = { ...request, testEvery: 'daily' };
    t.match(await lab.call<Group>('PATCH', `/api/groups/${groupId}`, daily), {
      testEvery: 'daily',
    });
    // The night comes; nobody asks for anything meanwhile.
    lab.host.calls.length = 0;
    night = true;
    await until('the test', () => lab.host.calls.includes('defineVm'), LIMIT_MS);
    night = false;
    const runs = await lab.call<GroupRunView[]>('GET', '/api/group-runs');
    const [ours, ...more] = runs.filter(({ test }) => test?.trigger === 'schedule');
    t.same(more, [], 'once');
    const { test, members } = await toEnd(ours!.runId, 'undone');
    t.match(test, { verdict: { passed: true } });
    for (const { failoverId } of members) {
      const failover = await lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
      t.match(failover, { kind: 'test', test: { trigger: 'schedule', verdict: { passed: true } } });
    }
    const { body, headers } = await lab.inject('GET', `/api/group-runs/${ours!.runId}/report`);
    t.match(headers, { 'content-security-policy': /default-src 'none'/ });
    t.match(body, /Test failover of the group shop/);
    t.match(body, /class="verdict passed">Passed/);
    t.match(body, /Started by<\/th><td>the schedule/);
    t.match(body, /<h2>db<\/h2>[\s\S]*<h2>app<\/h2>/, 'by priority');
    t.same([...lab.host.vms.keys()], []);
    await lab.call('PATCH', `/api/groups/${groupId}`, request);
    t.match(await lab.call('GET', '/api/groups'), [{ testEvery: 'off' }]);
    await allProtected();
  });

  await t.test('what keeps one member from it keeps all from it', async (t) => {
    const typo = await fail({ kind: 'unplanned', confirm: 'shops' });
    t.match(typo.json(), { code: 'UND_FAILOVER_CONFIRM' });
    lab.stillAnswers = 'ARP';
    const alive = await fail({ kind: 'unplanned', confirm: 'shop' });
    t.match(alive.json(), { code: 'UND_FAILOVER_SOURCE_ALIVE' });
    lab.stillAnswers = null;
    lab.host.foreign.add('app-replica');
    const taken = await fail({ kind: 'unplanned', confirm: 'shop' });
    t.match(taken.json(), { code: 'UND_HV_NAME_IN_USE' });
    lab.host.foreign.clear();
    const early = { kind: 'unplanned', confirm: 'shop', point: { at: '2001-01-01T00:00:00Z' } };
    t.match((await fail(early)).json(), { code: 'UND_GROUP_NO_POINT' });
    t.same([...lab.host.vms.keys()], []);
  });

  await t.test('a member that fails stops the group, and all is undone', async (t) => {
    await work(3);
    await settled();
    // Once db is there, app's name is somebody else's.
    const { isNameTaken } = lab.host;
    lab.host.isNameTaken = async (vm) =>
      (vm === 'app-replica' && lab.host.vms.has('db-replica')) || isNameTaken.call(lab.host, vm);
    const begun = await fail({ kind: 'unplanned', confirm: 'shop' });
    t.equal(begun.statusCode, 202, begun.body);
    const { runId } = begun.json() as GroupRunView;
    const stopped = await toEnd(runId, 'stopped');
    t.match(stopped.state, { error: { code: 'UND_HV_NAME_IN_USE' } });
    t.match(stopped.members, [
      { state: { name: 'refused' } },
      { state: { failover: { name: 'completed' } } },
    ]);
    lab.host.isNameTaken = isNameTaken;
    t.same([...lab.host.vms.keys()], ['db-replica']);
    await lab.restart();
    await lab.call('POST', `/api/group-runs/${runId}/resume`);
    await toEnd(runId, 'completed');
    t.same(await recovered(''), { db: n, app: n }, 'the moment is of before, for both');
    const no = await lab.inject('POST', `/api/group-runs/${runId}/undo`, { confirm: 'no' });
    t.match(no.json(), { code: 'UND_FAILOVER_CONFIRM' });
    await lab.call('POST', `/api/group-runs/${runId}/undo`, { confirm: 'shop' });
    await toEnd(runId, 'undone');
    t.same([...lab.host.vms.keys()], []);
    await allProtected();
  });

  await t.test('a planned failover of the group loses nothing, and is committed', async (t) => {
    await work(3);
    const begun = await fail({ kind: 'planned', confirm: 'shop', powerOff: false });
    t.equal(begun.statusCode, 202, begun.body);
    const { runId } = begun.json() as GroupRunView;
    await toEnd(runId, 'completed');
    t.same(await recovered(''), { db: n, app: n });
    await lab.call('POST', `/api/group-runs/${runId}/commit`, { confirm: 'shop' });
    await toEnd(runId, 'committed');
    t.same([...lab.host.autostart].sort(), ['app-replica', 'db-replica']);
    await until(
      'the jobs to have ended',
      async () => (await lab.call<Job[]>('GET', '/api/jobs')).length === 0,
    );
    t.match(await lab.call<Group[]>('GET', '/api/groups'), [{ members: [], runId: null }]);
    t.match((await fail({ kind: 'test' })).json(), { code: 'UND_GROUP_EMPTY' });
    t.equal((await lab.inject('DELETE', `/api/groups/${groupId}`)).statusCode, 204);
    t.same(await lab.call('GET', '/api/groups'), []);
    t.equal((await run(runId)).state.name, 'committed', 'what became of it stays');
  });
});
