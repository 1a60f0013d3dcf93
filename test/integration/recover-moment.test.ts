/**
 * Recovery to a chosen moment through the whole appliance: writes before and after it, a checkpoint before it, an unordered
 * run behind it. The replica VM's disks must be the source's disks as they were then, byte for byte.
 */
import { readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import type { Checkpoint, Failover, Job } from '../../appliance/api/schema.ts';
import { Lab, until } from './api.lab.ts';

const MIB = 1024 * 1024;
t.setTimeout(300_000);
const lab = new Lab();
t.teardown(() => lab.close());

t.test('the replica is the source as it was at the moment', async (t) => {
  await lab.start();
  const web1 = lab.addSource('web1');
  await web1.addDisk('vda', 8 * MIB);
  await web1.addDisk('vdb', 4 * MIB);
  await web1.kernel.write(0, 0, Buffer.alloc(MIB, 'a'));
  const added = await lab.inject('POST', '/api/sources', { address: 'web1', username: 'root' });
  const { sourceId } = added.json();
  await until('the inventory', async () => {
    const source = await lab.call<{ inventory: unknown }>('GET', `/api/sources/${sourceId}`);
    return source.inventory;
  });
  const made = await lab.call<Job>('POST', '/api/jobs', {
    sourceId,
    diskIds: ['disk-0-web1', 'disk-1-web1'],
    pool: 'default',
    network: 'lan',
    replicaName: 'web1-replica',
    vcpus: 2,
    memoryBytes: 1024 * MIB,
    compression: 'fast',
    bandwidthLimitBytesPerSec: null,
  });
  const job = () => lab.call<Job>('GET', `/api/jobs/${made.jobId}`);
  const isProtected = async () => (await job()).state.name === 'protected';
  const checkpoints = () => lab.call<Checkpoint[]>('GET', `/api/jobs/${made.jobId}/checkpoints`);
  await until('protected', isProtected, 60_000);
  await until('the first checkpoint', async () => (await checkpoints()).length > 0, 60_000);
  const source = () => Promise.all(web1.kernel.paths.map((path) => readFile(path)));
  const scatter = async (seed: number) => {
    for (let n = 0; n < 40; n++) {
      const block = (n * 37 + seed * 11) % 900;
      await web1.kernel.write(n % 2, block * 4096, Buffer.alloc(4096, seed + n));
    }
  };

  await scatter(1);
  // The writes' frames and the moment are of one clock here; a frame is closed within 50 ms.
  await delay(300);
  const then = await source();
  const at = new Date().toISOString();
  await delay(300);
  await scatter(100);
  t.notOk((await source())[0]!.equals(then[0]!), 'the source has gone on');
  const point = await lab.call<{ newestAt: string | null }>(
    'GET',
    `/api/jobs/${made.jobId}/points`,
  );
  t.ok(point);
  const { length } = await checkpoints();
  await lab.call('POST', `/api/jobs/${made.jobId}/mirror`, {});
  await until(
    'the gate to have protected the last consistent state',
    async () => (await checkpoints()).some(({ reason }) => /^before/.test(reason)),
    60_000,
  );
  await until('protected again', isProtected, 60_000);
  await until(
    'a checkpoint of the new stretch',
    async () => (await checkpoints()).length > length + 1,
    60_000,
  );
  await scatter(200);

  const early = await lab.inject('POST', `/api/jobs/${made.jobId}/failover`, {
    kind: 'unplanned',
    confirm: 'web1-replica',
    point: { sourceTime: '2001-01-01T00:00:00Z' },
  });
  t.match(early.json(), { code: 'UND_POINT_GONE' });

  const failover = await lab.call<Failover>('POST', `/api/jobs/${made.jobId}/failover`, {
    kind: 'unplanned',
    confirm: 'web1-replica',
    point: { sourceTime: at },
  });
  const now = () => lab.call<Failover>('GET', `/api/failovers/${failover.failoverId}`);
  await until('the failover to end', async () => (await now()).state.name !== 'running', 60_000);
  const ended = await now();
  t.equal(ended.state.name, 'completed', JSON.stringify(ended));
  t.ok(ended.point.sourceTime! <= at, 'not later than asked for');
  const disks = lab.host.vms.get('web1-replica')!.spec.disks;
  for (const [index, { disk }] of disks.entries()) {
    // Seen red with a replay that goes on behind the point.
    t.ok((await readFile(disk.path)).equals(then[index]!), `disk ${index}`);
  }
  await lab.call('POST', `/api/failovers/${failover.failoverId}/undo`, { confirm: 'web1-replica' });
  await until('protected after the undo', isProtected, 60_000);

  // The journal leaves, its checkpoints stay. Red when only the journal leads to a moment.
  const test = async (point: object) => {
    const { failoverId } = await lab.call<Failover>(
      'POST',
      `/api/jobs/${made.jobId}/test-failover`,
      {
        ...point,
        keepMinutes: 60,
      },
    );
    const get = () => lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
    await until('the test to run', async () => (await get()).state.name !== 'running', 60_000);
    t.equal((await get()).state.name, 'completed', JSON.stringify(await get()));
    return get();
  };
  const end = async ({ failoverId }: Failover) => {
    await lab.call('POST', `/api/failovers/${failoverId}/end-test`);
    const get = () => lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
    await until('the test to end', async () => (await get()).state.name === 'undone', 60_000);
  };
  await scatter(300);
  await until(
    'everything to be applied',
    async () => {
      const { figures } = await lab.call<Job>('GET', `/api/jobs/${made.jobId}`);
      return figures.appliedSeq === figures.durableSeq;
    },
    60_000,
  );
  const before = await source();
  await end(await test({}));
  const taken = (await checkpoints()).toSorted((a, b) => a.seq - b.seq).at(-1)!;
  await delay(300);
  const later = new Date().toISOString();
  await scatter(400);
  await lab.appliance.close();
  await rm(join(lab.config.journalDir, made.jobId), { recursive: true });
  await lab.start();
  await until('protected without its old journal', isProtected, 120_000);
  const again = await test({ point: { sourceTime: later } });
  t.match(again.point, { sourceTime: taken.sourceTime, wanted: later });
  const { disks: replicas } = lab.host.vms.get('web1-replica-test')!.spec;
  for (const [index, { disk }] of replicas.entries()) {
    t.ok(
      (await readFile(disk.path)).equals(before[index]!),
      `disk ${index} by its checkpoint alone`,
    );
  }
  await end(again);
});
