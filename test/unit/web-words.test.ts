/** How the page words quantities and states. */
import t from 'tap';
import type { Failover, Job } from '../../appliance/api/schema.ts';
import { autoEndFields, autoEndOf } from '../../appliance/web/src/failovers/auto-end-fields.ts';
import {
  formatBytes,
  formatDuration,
  formatRelative,
  percentOf,
} from '../../appliance/web/src/format.ts';
import {
  apartWords,
  describeMember,
  describeRun,
  groupTimeline,
  inOrder,
  markAt,
  runOf,
  waitWords,
} from '../../appliance/web/src/groups/words.ts';
import {
  checkpointBefore,
  chosenMoment,
  chosenPoint,
} from '../../appliance/web/src/jobs/chosen-point.ts';
import {
  checksInWords,
  testCheckFields,
  testChecksOf,
} from '../../appliance/web/src/jobs/test-checks.ts';
import {
  describeFailover,
  describeJob,
  describeLag,
  describeRestarts,
  heapOf,
  mirrorIncomplete,
  mirrorTotal,
} from '../../appliance/web/src/jobs/words.ts';
import { crumbsOf, modeInWords, nbdUri } from '../../appliance/web/src/mounts/words.ts';
import { turnedAway } from '../../appliance/web/src/sources/words.ts';

t.test('an agent that was turned away is warned of once', async (t) => {
  const alert = { code: 'UND_AGENT_CLONE', message: 'a clone', hint: '' };
  const online = { name: 'online', since: '' } as const;
  t.equal(turnedAway({ state: online }), undefined);
  t.equal(turnedAway({ state: online, alert }), alert);
  t.equal(turnedAway({ state: { name: 'refused', error: alert }, alert }), undefined);
  const other = { ...alert, message: 'revoked' };
  t.equal(turnedAway({ state: { name: 'refused', error: other }, alert }), alert);
});

t.test('a checkpoint stands in for a journal that has left', async (t) => {
  const at = (second: number) => ({ sourceTime: `2026-01-01T00:00:0${second}.000Z` });
  const all = [at(1), at(3), at(2)];
  const ms = (second: number) => Date.parse(at(second).sourceTime);
  t.same(checkpointBefore(all, ms(5)), at(3));
  t.same(checkpointBefore(all, ms(3)), at(3));
  t.same(checkpointBefore(all, ms(3) - 1), at(2));
  t.equal(checkpointBefore(all, ms(0)), null);
});

t.test('what a planned restart comes to, never more than the agent says', async (t) => {
  const carry = (ready: boolean, reason: string | null) => ({ carry: { ready, reason } });
  for (const [setting, agent, text] of [
    [undefined, null, 'compared anew'],
    [false, carry(true, null), 'compared anew'],
    [true, null, 'carried over, as soon as the agent is there'],
    [true, carry(true, null), 'carried over'],
    [
      true,
      carry(true, '/dev/vdb: vdb1 holds btrfs'),
      'carried over, but compared anew: /dev/vdb: vdb1 holds btrfs',
    ],
    [true, carry(false, 'vdb is a member of md'), 'compared anew: vdb is a member of md'],
    [true, carry(false, null), 'compared anew'],
    [true, { carry: null }, 'compared anew: the agent has not said that it can carry them over'],
  ] as const) {
    t.equal(describeRestarts(setting, agent), text);
  }
});

t.test('the checks of a test, from the form to the API', async (t) => {
  t.same(testChecksOf(testCheckFields(undefined)), {
    ok: true,
    checks: { tcpPorts: [], script: null },
  });
  t.equal(checksInWords({ tcpPorts: [], script: null }), null);
  const script = { text: 'true', timeLimitSeconds: 90 };
  const checks = { tcpPorts: [22, 5432], script };
  t.same(testChecksOf(testCheckFields(checks)), { ok: true, checks });
  t.equal(checksInWords(checks), 'TCP ports 22, 5432 and a script of at most 90 s');
  for (const [change, field] of [
    [{ ports: '22 0' }, 'ports'],
    [{ ports: '65536' }, 'ports'],
    [{ ports: 'http' }, 'ports'],
    [{ ports: Array.from({ length: 33 }, (_, n) => n + 1).join() }, 'ports'],
    [{ seconds: '0' }, 'seconds'],
    [{ seconds: '1801' }, 'seconds'],
    [{ script: 'x'.repeat(32_769) }, 'script'],
  ] as const) {
    t.match(testChecksOf({ ...testCheckFields(checks), ...change }), { ok: false, field });
  }
});

t.test('what a failover comes to by itself, from the form to the API', async (t) => {
  t.equal(autoEndOf(autoEndFields(null)), null);
  for (const [minutes, afterMinutes] of [
    ['1', 1],
    [' 90 ', 90],
    ['10080', 10_080],
    ['10081', null],
    ['0', null],
    ['', null],
    ['1.5', null],
    ['1e3', null],
  ] as const) {
    const wanted = afterMinutes === null ? undefined : { act: 'undo' as const, afterMinutes };
    t.same(autoEndOf({ act: 'undo', minutes }), wanted, minutes);
  }
  t.same(autoEndFields({ act: 'commit', afterMinutes: 5 }), { act: 'commit', minutes: '5' });
});

t.test('bytes are IEC with three digits and never 1024 of a unit', async (t) => {
  const KIB = 1024;
  for (const [bytes, text] of [
    [0, '0 B'],
    [1023, '1023 B'],
    [KIB, '1 KiB'],
    [1536, '1.5 KiB'],
    [KIB ** 2 - 1, '1 MiB'],
    [10.24 * KIB ** 3, '10.2 GiB'],
    [999 * KIB ** 4, '999 TiB'],
    [100 * KIB ** 2, '100 MiB'],
    [Number.NaN, 'unknown'],
  ] as const) {
    t.equal(formatBytes(bytes), text, String(bytes));
  }
});

t.test('durations have at most two units and no sixty seconds', async (t) => {
  for (const [ms, text] of [
    [0, '0 ms'],
    [-5, '0 ms'],
    [999, '999 ms'],
    [1000, '1.0 s'],
    [9_940, '9.9 s'],
    [9_990, '10 s'],
    [59_700, '1 min'],
    [65_000, '1 min 5 s'],
    [3_600_000, '1 h'],
    [3_660_000, '1 h 1 min'],
    [90_061_000, '1 d 1 h'],
  ] as const) {
    t.equal(formatDuration(ms), text, String(ms));
  }
});

t.test('a moment beside now', async (t) => {
  const now = Date.parse('2026-08-01T12:00:00Z');
  t.equal(formatRelative(now - 400, now), 'just now');
  t.equal(formatRelative(now - 12_000, now), '12 s ago');
  t.equal(formatRelative(now - 3_700_000, now), '1 h ago');
  t.equal(formatRelative(now + 89.5 * 86_400_000, now), 'in 89 d');
});

t.test('a mirror is at 100 % only when all of it is done', async (t) => {
  t.ok(percentOf(2 ** 40 - 1, 2 ** 40) < 100);
  t.equal(percentOf(5, 5), 100);
  t.equal(percentOf(0, 0), 100, 'nothing to do is done');
});

const ordered: Job['stream'] = { mode: 'ordered', reason: null, since: null };
const error = { code: 'UND_APPLY_NO_SPACE', message: 'full', hint: 'free space' };

t.test('every state of a job has words and a heap on the overview', async (t) => {
  const heaps: [Job['state'], string][] = [
    [{ name: 'creating', step: 'x' }, 'mirroring'],
    [{ name: 'waiting-for-agent', reason: 'x' }, 'attention'],
    [{ name: 'mirroring', reason: 'x' }, 'mirroring'],
    [{ name: 'catching-up', reason: 'x' }, 'mirroring'],
    [{ name: 'protected' }, 'protected'],
    [{ name: 'paused', reason: 'x' }, 'attention'],
    [{ name: 'failing-over', failoverId: 'x' }, 'failed-over'],
    [{ name: 'failed-over', failoverId: 'x' }, 'failed-over'],
    [{ name: 'error', error }, 'attention'],
    [{ name: 'deleting', step: 'x' }, 'mirroring'],
  ];
  for (const [state, heap] of heaps) {
    t.equal(heapOf({ state, stream: ordered }), heap, state.name);
    t.ok(describeJob({ state, stream: ordered }).label, state.name);
  }
  const tracking = { mode: 'tracking', reason: 'the link is down', since: null } as const;
  const words = describeJob({ state: { name: 'protected' }, stream: tracking });
  t.equal(words.tone, 'attention', 'protected without new recovery points is no good state');
  t.match(words.reason, /the link is down/);
});

t.test('the mirror of several disks adds up, and says when a replica is not whole', async (t) => {
  const disk = (doneBytes: number, totalBytes: number): Job['disks'][number] => ({
    diskId: 'd',
    name: 'vda',
    sizeBytes: totalBytes,
    replicaPath: null,
    serial: 's',
    attached: true,
    mirror: { kind: 'full', reason: 'first', totalBytes, doneBytes, skippedBytes: 1 },
    excluded: null,
    verification: { running: null, last: null },
  });
  const disks = [disk(10, 10), disk(3, 20)];
  t.same(mirrorTotal({ disks }), { doneBytes: 13, totalBytes: 30, skippedBytes: 2 });
  t.equal(mirrorTotal({ disks: [{ ...disk(1, 1), mirror: null }] }), null);
  t.ok(mirrorIncomplete({ disks, state: { name: 'waiting-for-agent', reason: 'x' } }));
  t.notOk(mirrorIncomplete({ disks: [disk(10, 10)], state: { name: 'protected' } }));
});

t.test('a replica VM that does not run is not called running', async (t) => {
  const words = (vm: Failover['replicaVm']) =>
    describeFailover({ state: { name: 'completed', proof: 'x' }, replicaVm: vm });
  const since = '2026-01-01T00:00:00Z';
  t.match(words(null), { label: 'Replica runs', tone: 'good' });
  t.match(words({ state: 'running', reason: null, since }), { tone: 'good' });
  t.match(words({ state: 'off', reason: 'destroyed', since }), {
    label: 'Replica is off',
    tone: 'bad',
    reason: /is off now \(destroyed\)/,
  });
  t.match(words({ state: 'unknown', reason: 'no answer', since }), { tone: 'attention' });
});

// Red when an unknown lag is shown as none.
t.test('lag: what is not known is not said to be little', async (t) => {
  const now = Date.parse('2026-01-01T12:00:00Z');
  const at = (secondsAgo: number) => new Date(now - secondsAgo * 1000).toISOString();
  const lag = (lagMs: number | null, lagBytes: number | null, told: number, point: number | null) =>
    describeLag(
      {
        lagMs,
        lagBytes,
        lagBytesAt: lagBytes === null ? null : at(told),
        newestPointAt: point === null ? null : at(point),
      },
      now,
    );
  t.match(lag(3000, 1024, 1, 3), {
    time: { value: '3.0 s', note: /would be lost/ },
    data: { value: '1 KiB', note: /not yet safe/ },
  });
  t.match(lag(600_000, 0, 600, 600).data, { value: 'at least 0 B', note: /told 10 min ago/ });
  t.match(lag(null, null, 0, 600), {
    time: { value: 'unknown', note: /newest point is of 10 min ago/ },
    data: { value: 'unknown', note: /since the appliance started/ },
  });
  t.equal(lag(null, null, 0, null).time.note, 'no point yet');
});

t.test('a test failover is told by its verdict, not by having been taken down', async (t) => {
  const test = (verdict: { passed: boolean } | null, name = 'undone') =>
    describeFailover({
      state: { name } as Failover['state'],
      replicaVm: null,
      test: {
        trigger: 'person',
        network: 'alone',
        keepMinutes: 0,
        endsAt: null,
        checks: [],
        verdict: verdict && { ...verdict, words: 'why', at: '' },
      },
    });
  t.match(test({ passed: true }), { label: 'Passed', tone: 'good' });
  t.match(test({ passed: true }, 'completed'), { label: 'Passed, VM kept' });
  t.match(test({ passed: false }, 'failed'), { label: 'Not passed', tone: 'bad', reason: 'why' });
  t.match(test(null, 'running'), { tone: 'busy' });
  t.match(test(null), { label: 'Ended', tone: 'neutral' });
});

t.test('the moment that a person typed or picked', async (t) => {
  const typed = (text: string) => chosenMoment({ kind: 'moment', text });
  t.same(typed(' 2026-01-31T12:00:05.250Z '), { sourceTime: '2026-01-31T12:00:05.250Z' });
  t.same(typed('2026-01-31 12:00'), { sourceTime: '2026-01-31T12:00:00Z' });
  // Red without the look at the day: the parser makes it the 3rd of March.
  t.equal(typed('2026-02-31T12:00:00Z'), null);
  for (const bad of ['', 'yesterday', '2026-01-31', '2026-01-31T25:00:00Z']) {
    t.equal(typed(bad), null, bad);
  }
  t.equal(chosenMoment({ kind: 'newest', text: 'nonsense' }), 'newest');
  t.same(chosenMoment(chosenPoint(Date.UTC(2026, 0, 31), 0)), {
    sourceTime: '2026-01-31T00:00:00.000Z',
  });
  t.equal(chosenPoint(null, 0).kind, 'newest');
});

t.test('a guest path on the page: bytes stay bytes, names are for people', async (t) => {
  t.same(crumbsOf('/'), []);
  t.same(crumbsOf('/srv/caf%C3%A9/a%2Fb%FF'), [
    { name: 'srv', path: '/srv' },
    { name: 'café', path: '/srv/caf%C3%A9' },
    { name: 'a/b\u{fffd}', path: '/srv/caf%C3%A9/a%2Fb%FF' },
  ]);
  t.equal(crumbsOf('/x%E2%80%AEy')[0]?.name, 'x\u{fffd}y', 'nothing turns the line around');
  t.equal(modeInWords(0o4750), 'rwxr-x---');
  t.equal(
    nbdUri('2001:db8::1', 10809, 'vda'),
    'nbds://[2001:db8::1]:10809/vda?tls-certificates=understudy-nbd',
  );
});

t.test('groups: states, what a mark is, and which failover is shown', async (t) => {
  const error = { code: 'UND_X', message: 'it failed', hint: '' };
  const run = (patch: object) =>
    ({ kind: 'unplanned', test: null, groupId: 'g', startedAt: '1', ...patch }) as never;
  t.match(describeRun(run({ state: { name: 'stopped', error } })), {
    tone: 'attention',
    reason: 'it failed',
  });
  const verdict = { passed: false, words: 'db gave no proof', at: '' };
  const test = { keepMinutes: 0, endsAt: null, verdict };
  t.match(describeRun(run({ kind: 'test', test, state: { name: 'undone' } })), {
    label: 'Failed',
    reason: 'db gave no proof',
  });
  t.match(describeRun(run({ kind: 'unplanned', state: { name: 'undone' } })), { label: 'Undone' });
  t.match(describeMember({ state: { name: 'refused', error } } as never), { tone: 'bad' });
  t.equal(apartWords(null), 'not known: the clock of a member was never compared');
  t.equal(apartWords(25.2), 'at most 26 ms', 'never less than it is');
  t.equal(
    waitWords({ for: 'delay', seconds: 90 }),
    '1 min 30 s after the last before was powered on',
  );
  t.same(inOrder([{ priority: 2 }, { priority: 1 }]), [{ priority: 1 }, { priority: 2 }]);
  const mark = { markId: 'm', at: '2026-01-01T00:00:01.500Z', name: 'n', quiesced: true };
  const points = {
    stretches: [{ fromAt: '2026-01-01T00:00:00.000Z', toAt: '2026-01-01T00:00:09.000Z' }],
    newestAt: '2026-01-01T00:00:09.000Z',
    marks: [
      { ...mark, recoverable: true },
      { ...mark, markId: 'gone', recoverable: false },
    ],
  } as never;
  t.match(markAt(points, Date.parse(mark.at)), { markId: 'm' });
  t.equal(markAt(points, Date.parse(mark.at) + 1), null);
  t.match(groupTimeline(points), {
    stretches: [{ toSeq: 0 }],
    gaps: [],
    marks: [{ pointId: 'm' }],
  });
  t.equal(groupTimeline(points).marks.length, 1);
  const older = run({ runId: 'a', startedAt: '1' });
  const newer = run({ runId: 'b', startedAt: '2' });
  const runs = new Map([
    ['a', older],
    ['b', newer],
  ]);
  t.equal(runOf({ groupId: 'g', runId: null } as never, runs), newer);
  t.equal(runOf({ groupId: 'g', runId: 'a' } as never, runs), older, 'the one that is not over');
});
