/** What is pure about test failovers: when a scheduled one is due, and the report. */
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import type { Failover, TestEvery } from '../../appliance/api/schema.ts';
import { reportPage } from '../../appliance/recovery/report.ts';
import { lastSlotMs, TestScheduler, testIsDue } from '../../appliance/recovery/test-schedule.ts';

const at = (text: string): number => Date.parse(`${text}:00Z`);
const slot = (every: TestEvery, now: string): string | null => {
  const ms = lastSlotMs(every, at(now));
  return ms === null ? null : new Date(ms).toISOString().slice(0, 16);
};

t.test('the slots of the schedules', async (t) => {
  t.equal(slot('off', '2026-11-24T12:00'), null);
  t.equal(slot('daily', '2026-11-24T03:00'), '2026-11-24T03:00');
  t.equal(slot('daily', '2026-11-24T02:59'), '2026-11-23T03:00');
  t.equal(slot('weekly', '2026-11-24T12:00'), '2026-11-22T03:00', 'that is a Sunday');
  t.equal(slot('weekly', '2026-11-22T02:59'), '2026-11-15T03:00', 'before it is the last one');
  t.equal(slot('monthly', '2026-12-01T02:00'), '2026-11-01T03:00');
  t.equal(slot('monthly', '2026-12-31T23:00'), '2026-12-01T03:00');
});

t.test('due once for each slot, and not long after it', async (t) => {
  const now = at('2026-11-22T04:00');
  t.ok(testIsDue('weekly', null, now));
  t.ok(testIsDue('weekly', at('2026-11-22T02:00'), now));
  t.notOk(testIsDue('weekly', at('2026-11-22T03:01'), now), 'it was tested since');
  t.notOk(testIsDue('weekly', null, at('2026-11-22T09:00')), 'too late: the next one');
  t.notOk(testIsDue('off', null, now));
});

t.test('scheduled tests run one at a time, and a job that is not ready has to wait', async (t) => {
  const started: string[] = [];
  let isTesting = false;
  const lastMs = new Map<string, number>();
  const ready = new Set(['a', 'b', 'refused']);
  const warnings: string[] = [];
  const scheduler = new TestScheduler({
    scheduled: () =>
      ['refused', 'a', 'b', 'c'].map((id) => ({
        id,
        every: 'daily' as const,
        isReady: ready.has(id),
        lastMs: lastMs.get(id) ?? null,
      })),
    isTesting: () => isTesting,
    start: async (id) => {
      if (id === 'refused') throw new Error('no');
      started.push(id);
      lastMs.set(id, at('2026-11-24T03:10'));
      isTesting = true;
    },
    log: { warn: (_fields: object, text: string) => warnings.push(text) } as never,
    now: () => at('2026-11-24T03:10'),
    pollMs: 1,
  });
  t.teardown(() => scheduler.close());
  const until = async (done: () => boolean) => {
    for (let tries = 0; !done(); tries++) {
      if (tries > 5000) throw new Error(`started: ${started}`);
      await delay(2);
    }
  };
  scheduler.start();
  await until(() => started.length === 1);
  await delay(30);
  t.same(started, ['a'], 'while it runs no other begins');
  isTesting = false;
  await until(() => started.length === 2);
  isTesting = false;
  await delay(30);
  t.same(started, ['a', 'b'], 'each once');
  ready.add('c');
  await until(() => started.length === 3);
  t.equal(warnings.length, 1, 'a reason is told once');
});

const failover = (change: Partial<Failover>): Failover => ({
  failoverId: 'f',
  jobId: 'j',
  kind: 'test',
  replicaName: 'web1-replica-test',
  startedAt: '2026-11-24T03:00:00.000Z',
  endedAt: '2026-11-24T03:02:00.000Z',
  state: { name: 'undone' },
  steps: [
    {
      name: 'power-on',
      title: 'Power the replica VM on',
      state: 'compensated',
      detail: '<script>alert(1)</script>',
      startedAt: '2026-11-24T03:00:10.000Z',
      endedAt: '2026-11-24T03:00:12.500Z',
    },
  ],
  mount: null,
  point: { seq: 7, sourceTime: '2026-11-24T02:59:58.000Z', wanted: null, lossMs: 2000 },
  test: {
    trigger: 'schedule',
    network: 'alone',
    keepMinutes: 0,
    verdict: { passed: true, words: 'its guest agent answers', at: '2026-11-24T03:01:00.000Z' },
    endsAt: null,
    checks: [
      {
        name: 'TCP port 5432',
        state: 'passed',
        how: 'seen inside',
        words: 'something listens on it',
        output: null,
      },
      {
        name: 'Script',
        state: 'failed',
        how: 'run inside',
        words: 'exit status 3 after 0.2 s',
        output: '<b>no rows</b>',
      },
    ],
  },
  autoEnd: null,
  isolateOnReturn: false,
  guestChanges: ['fstab: "a" & b'],
  addresses: [],
  hasScreenshot: true,
  replicaVm: null,
  notes: [],
  ...change,
});

t.test('the report stands alone and believes nobody', async (t) => {
  const page = { sourceName: 'web1<b>', png: Buffer.from('PNG'), now: '2026-11-25' };
  const html = reportPage(failover({}), page);
  t.match(html, /Passed: its guest agent answers/);
  t.match(html, /TCP port 5432<\/td><td class="passed">passed<\/td><td>something listens on it/);
  t.match(html, /not passed<\/td><td>exit status 3 after 0\.2 s<pre>&lt;b&gt;no rows/);
  t.notMatch(reportPage(failover({ test: null }), page), /Checks/);
  t.match(html, /data:image\/png;base64,UE5H/);
  t.match(html, /2\.5 s/);
  t.match(html, /2026-11-24T02:59:58\.000Z/);
  // Red without escapeHtml.
  t.notMatch(html, /<script|<b>/);
  t.match(html, /&lt;script&gt;/);
  t.notMatch(html, /(src|href)="(?!data:)/, 'nothing is loaded from elsewhere');
  const test = failover({}).test!;
  const bad = failover({
    test: { ...test, verdict: { passed: false, words: 'it did not boot', at: '' } },
  });
  t.match(reportPage(bad, { ...page, png: null }), /Not passed: it did not boot/);
  t.match(reportPage(failover({ test: { ...test, verdict: null } }), page), /Ended before/);
  const real = failover({
    kind: 'unplanned',
    test: null,
    state: { name: 'completed', proof: 'x' },
  });
  t.match(reportPage(real, page), /Unplanned failover of web1/);
});
