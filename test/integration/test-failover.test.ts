/**
 * Test failovers through the whole appliance: the VM has the chosen moment byte for byte, the job replicates on while it
 * runs, a restart of the appliance changes nothing, and afterwards nothing is left.
 */
import { readFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import type { Checkpoint, Failover, Job } from '../../appliance/api/schema.ts';
import { Lab, until } from './api.lab.ts';

const MIB = 1024 * 1024;
t.setTimeout(300_000);
const lab = new Lab();
t.teardown(() => lab.close());

t.test(
  'a test beside replication, a kept one over a restart, one that a failover ends',
  async (t) => {
    await lab.start();
    const web1 = lab.addSource('web1');
    await web1.addDisk('vda', 8 * MIB);
    await web1.addDisk('vdb', 4 * MIB);
    await web1.kernel.write(0, 0, Buffer.alloc(MIB, 'a'));
    const { sourceId } = (
      await lab.inject('POST', '/api/sources', { address: 'web1', username: 'root' })
    ).json();
    await until('the inventory', async () => {
      const source = await lab.call<{ inventory: unknown }>('GET', `/api/sources/${sourceId}`);
      return source.inventory;
    });
    const { jobId } = await lab.call<Job>('POST', '/api/jobs', {
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
    const job = () => lab.call<Job>('GET', `/api/jobs/${jobId}`);
    const isProtected = async () => (await job()).state.name === 'protected';
    const checkpoints = () => lab.call<Checkpoint[]>('GET', `/api/jobs/${jobId}/checkpoints`);
    const get = (failoverId: string) => lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
    const toEnd = async (failoverId: string, name: string) => {
      await until(
        `the failover to be ${name}`,
        async () => {
          const { state } = await get(failoverId);
          if ('error' in state && name !== state.name) throw new Error(JSON.stringify(state));
          return state.name === name;
        },
        60_000,
      );
      return get(failoverId);
    };
    const startTest = (body: object) =>
      lab.inject('POST', `/api/jobs/${jobId}/test-failover`, body);
    await until('protected', isProtected, 60_000);
    await until('the first checkpoint', async () => (await checkpoints()).length > 0, 60_000);
    const source = () => Promise.all(web1.kernel.paths.map((path) => readFile(path)));
    const scatter = async (seed: number) => {
      for (let n = 0; n < 40; n++) {
        const block = (n * 37 + seed * 11) % 900;
        await web1.kernel.write(n % 2, block * 4096, Buffer.alloc(4096, seed + n));
      }
    };
    const testDisks = async () => {
      const { disks } = lab.host.vms.get('web1-replica-test')!.spec;
      return Promise.all(disks.map(({ disk }) => readFile(disk.path)));
    };
    const replicated = async () => {
      const now = await source();
      await until(
        'the replica to be the source',
        async () => {
          const { disks } = await job();
          const replicas = await Promise.all(
            disks.map(({ replicaPath }) => readFile(replicaPath!)),
          );
          return replicas.every((replica, index) => replica.equals(now[index]!));
        },
        60_000,
      );
    };
    const nothingLeft = async (st: Pick<typeof t, 'same' | 'equal'>) => {
      st.same([...lab.host.vms.keys()], [], 'no VM');
      const images = async () => {
        const { disks } = await job();
        const files = new Set<string>();
        for (const { replicaPath } of disks) {
          const name = replicaPath!.split('/').at(-1)!;
          const chain = await lab.host.chain({ pool: 'default', name, path: replicaPath! });
          for (const layer of chain) files.add(layer.name);
        }
        return { chains: [...files].sort(), all: (await lab.host.files()).sort() };
      };
      // A checkpoint that is being taken has its layers before the job names them.
      await until('no image but the chains', async () => {
        const { chains, all } = await images();
        return chains.join() === all.join();
      });
      st.same(
        (await checkpoints()).flatMap(({ holders }) => holders),
        [],
        'nothing is held',
      );
      st.equal(lab.host.attached.size, 2, 'nothing else is attached');
    };

    await scatter(1);
    // The writes' frames and the moment are of one clock here; a frame is closed within 50 ms.
    await delay(300);
    const then = await source();
    const at = new Date().toISOString();
    await delay(300);
    await scatter(100);

    await t.test('a moment, kept', async (t) => {
      lab.host.isolatedNetwork = false;
      t.match((await startTest({})).json(), { code: 'UND_TEST_NO_NETWORK' });
      lab.host.isolatedNetwork = true;
      const old = await startTest({ point: { sourceTime: '2001-01-01T00:00:00Z' } });
      t.match(old.json(), { code: 'UND_POINT_GONE' });

      const began = await startTest({ point: { sourceTime: at }, keepMinutes: 60 });
      t.equal(began.statusCode, 202, began.body);
      const { failoverId } = began.json() as Failover;
      const kept = await toEnd(failoverId, 'completed');
      t.match(kept, {
        kind: 'test',
        test: { verdict: { passed: true }, trigger: 'person', network: 'alone' },
      });
      const { spec } = lab.host.vms.get('web1-replica-test')!;
      t.match(spec.nics, [{ network: 'alone' }]);
      // Red without the replay: it is the checkpoint then.
      for (const [index, disk] of (await testDisks()).entries()) {
        t.ok(disk.equals(then[index]!), `disk ${index}`);
      }
      t.equal((await job()).provenBootableAt, kept.test!.verdict!.at);
      t.match(
        (await checkpoints()).flatMap(({ holders }) => holders),
        [`failover ${failoverId}`],
      );
      t.match((await startTest({})).json(), { code: 'UND_TEST_RUNNING' });
      const gone = await lab.inject('DELETE', `/api/jobs/${jobId}?disks=delete`);
      t.match(gone.json(), { code: 'UND_TEST_RUNNING' });

      t.equal((await job()).state.name, 'protected');
      await scatter(150);
      await replicated();
      await lab.restart();
      await until('protected after the restart', isProtected, 60_000);
      t.equal((await get(failoverId)).state.name, 'completed', 'it is still kept');
      await scatter(170);
      await replicated();
      for (const [index, disk] of (await testDisks()).entries()) {
        t.ok(disk.equals(then[index]!), `disk ${index} stands`);
      }

      await lab.call('POST', `/api/failovers/${failoverId}/end-test`);
      const ended = await toEnd(failoverId, 'undone');
      t.equal(ended.test!.verdict!.passed, true);
      await nothingLeft(t);
      t.ok((await job()).provenBootableAt, 'the proof stays');
      const again = await lab.inject('POST', `/api/failovers/${failoverId}/end-test`);
      t.match(again.json(), { code: 'UND_FAILOVER_STATE' });
    });

    await t.test('the newest point, taken down by itself; its report', async (t) => {
      const { length } = await checkpoints();
      const { failoverId } = (await startTest({})).json() as Failover;
      const ended = await toEnd(failoverId, 'undone');
      t.match(ended, { test: { verdict: { passed: true } }, point: { wanted: null } });
      t.ok((await checkpoints()).length > length, 'from a checkpoint of its own');
      await nothingLeft(t);
      t.equal((await job()).state.name, 'protected');
      const report = await lab.inject('GET', `/api/failovers/${failoverId}/report`);
      t.match(report.headers['content-type'], /^text\/html/);
      t.match(report.headers['content-security-policy'], /default-src 'none'/);
      t.match(report.body, /Passed: the guest agent answered/);
      t.match(report.body, new RegExp(ended.point.sourceTime!));
    });

    await t.test('checks of your own: the verdict counts them, and they are kept', async (t) => {
      const patch = (testChecks: object) =>
        lab.inject('PATCH', `/api/jobs/${jobId}`, { testChecks });
      const bad = { tcpPorts: [0], script: null };
      t.equal((await patch(bad)).statusCode, 400);
      const script = { text: 'echo "rows: $((40 + 2))"; exit "$(id -u)"', timeLimitSeconds: 60 };
      t.equal((await patch({ tcpPorts: [], script })).statusCode, 200);
      const good = (await startTest({})).json() as Failover;
      t.match(good.test!.checks, [{ name: 'Script', state: 'waiting' }]);
      t.match((await toEnd(good.failoverId, 'undone')).test, {
        verdict: { passed: true, words: /; 1 check passed$/ },
        checks: [{ state: 'passed', output: /rows: 42/ }],
      });
      const before = (await job()).provenBootableAt;
      await patch({ tcpPorts: [], script: { ...script, text: 'echo "no rows"; exit 4' } });
      const { failoverId } = (await startTest({})).json() as Failover;
      await until('its end', async () => (await get(failoverId)).state.name === 'failed');
      t.match(await get(failoverId), {
        state: { error: { code: 'UND_TEST_CHECKS_FAILED' } },
        test: { verdict: { passed: false }, checks: [{ state: 'failed', output: /no rows/ }] },
      });
      t.equal((await job()).provenBootableAt, before, 'that it boots is not enough');
      await nothingLeft(t);
      const report = await lab.inject('GET', `/api/failovers/${failoverId}/report`);
      t.match(report.body, /exit status 4[^<]*<pre>no rows/);
      await patch({ tcpPorts: [], script: null });
    });

    await t.test('a failover of the job ends the test first', async (t) => {
      const { failoverId } = (await startTest({ keepMinutes: 60 })).json() as Failover;
      await toEnd(failoverId, 'completed');
      const real = await lab.call<Failover>('POST', `/api/jobs/${jobId}/failover`, {
        kind: 'unplanned',
        confirm: 'web1-replica',
      });
      t.equal((await get(failoverId)).state.name, 'undone');
      await toEnd(real.failoverId, 'completed');
      t.same([...lab.host.vms.keys()], ['web1-replica']);
      await lab.call('POST', `/api/failovers/${real.failoverId}/undo`, { confirm: 'web1-replica' });
      await until('protected after the undo', isProtected, 60_000);
      await nothingLeft(t);
    });
  },
);
