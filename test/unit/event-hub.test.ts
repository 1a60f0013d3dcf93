/** Who hears of a change, and how often; what only time has changed is told as well. */
import { setTimeout as pause } from 'node:timers/promises';
import t from 'tap';
import type { ServerEvent } from '../../appliance/api/schema.ts';
import { EventHub } from '../../appliance/control/event-hub.ts';
import { JobService, type JobServiceOptions } from '../../appliance/jobs/job-service.ts';
import type { JobRow } from '../../appliance/state/jobs.ts';

const FRESH_MS = 50;

/** A hub of one job with this lag; null: there is no such job. */
function hubOf(t: { teardown(end: () => void): void }) {
  const job = { lagMs: 1 as number | null };
  const told: unknown[] = [];
  const hub = new EventHub(
    () =>
      job.lagMs === null ? null : ({ type: 'job', job: { ...job } } as unknown as ServerEvent),
    FRESH_MS,
  );
  t.teardown(() => hub.close());
  hub.subscribe((event) => told.push('job' in event ? event.job : event.type));
  return { hub, job, told };
}

// Red when a job is told by its changes alone: the lag behind a source that is away stands still.
t.test('what time alone has changed is told, and nothing twice', async (t) => {
  const { hub, job, told } = hubOf(t);
  hub.jobChanged('j');
  job.lagMs = 2;
  hub.jobAged('j');
  t.same(told, [{ lagMs: 1 }], 'told a moment ago: whoever changes it all the time is not asked');
  await pause(600);
  hub.jobAged('j');
  t.same(told, [{ lagMs: 1 }, { lagMs: 2 }]);
  await pause(600);
  hub.jobAged('j');
  t.equal(told.length, 2, 'the same is not said again');
});

t.test('a job that is gone is forgotten', async (t) => {
  const { hub, job, told } = hubOf(t);
  hub.jobChanged('j');
  job.lagMs = null;
  hub.publish({ type: 'job-removed', jobId: 'j' });
  hub.jobAged('j');
  t.same(told, [{ lagMs: 1 }, 'job-removed']);
});

// Red when the service tells of its jobs only when something happens to them.
t.test('the jobs are looked at all the time, until the end', async (t) => {
  const row = {
    jobId: 'j',
    sourceId: 's',
    settings: { replicaName: 'web1-replica' },
    phase: { name: 'failed-over', failoverId: 'f' },
    createdAt: '',
    disks: [],
  } as unknown as JobRow;
  const aged: string[] = [];
  const jobs = new JobService({
    store: { list: () => [row] },
    checkpoints: { listOf: () => [] },
    sources: { onSession: () => () => {}, find: () => null },
    events: { jobChanged: () => {}, jobAged: (jobId: string) => aged.push(jobId) },
    host: {},
    log: { warn: () => {} },
    sessionOf: () => null,
    ownedByFailover: () => true,
    ageMs: 10,
  } as unknown as JobServiceOptions);
  jobs.start();
  await pause(100);
  t.ok(aged.length >= 2, `${aged.length} times`);
  await jobs.close();
  const before = aged.length;
  await pause(50);
  t.equal(aged.length, before);
});
