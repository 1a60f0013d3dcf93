/** What a source has to be told that comes back, for every end of its failovers. */
import t from 'tap';
import { fenced, fenceOf } from '../../appliance/recovery/fence.ts';
import type { FailoverRecord, Phase } from '../../appliance/recovery/record.ts';

const error = { code: 'UND_INTERNAL' as const, message: 'm', hint: 'h', params: {} };
const PHASES: Record<Phase['name'], Phase> = {
  running: { name: 'running' },
  compensating: { name: 'compensating', error },
  completed: { name: 'completed', proof: 'p' },
  failed: { name: 'failed', error },
  undoing: { name: 'undoing' },
  undone: { name: 'undone' },
  committing: { name: 'committing' },
  committed: { name: 'committed' },
};
const record = (
  failoverId: string,
  phase: Phase['name'],
  patch: Partial<FailoverRecord> = {},
): FailoverRecord =>
  ({
    failoverId,
    sourceId: 'web1',
    replicaName: 'web1-replica',
    startedAt: `2026-01-0${failoverId.slice(-1)}T00:00:00.000Z`,
    phase: PHASES[phase],
    ...patch,
  }) as FailoverRecord;

const shape = (records: FailoverRecord[], handoverId: string | null): string => {
  const fence = fenceOf(records, 'web1', handoverId);
  return fence.name === 'stands' ? `stands, ${fence.stage}` : fence.name;
};

// Red when an undone failover fences, or a completed one only those who know of it.
t.test('by the newest failover, and what the source itself knows', async (t) => {
  const expected: Record<Phase['name'], [unaware: string, aware: string]> = {
    running: ['none', 'stands, under way'],
    compensating: ['none', 'stands, under way'],
    completed: ['stands, over', 'stands, over'],
    failed: ['none', 'lifted'],
    undoing: ['none', 'stands, under way'],
    undone: ['none', 'lifted'],
    committing: ['stands, over', 'stands, over'],
    committed: ['stands, final', 'stands, final'],
  };
  for (const [phase, [unaware, aware]] of Object.entries(expected)) {
    const records = [record('f1', phase as Phase['name'])];
    t.equal(shape(records, null), unaware, `${phase}, unaware`);
    t.equal(shape(records, 'f1'), aware, `${phase}, aware`);
  }
});

// Red when nobody tells the agent, and when every failover isolates.
t.test('only a failover that was asked to has the source cut itself off', async (t) => {
  for (const isolateOnReturn of [true, false]) {
    for (const phase of ['completed', 'committed'] as const) {
      const fence = fenceOf([record('f1', phase, { isolateOnReturn })], 'web1', null);
      t.match(fence, { name: 'stands', isolate: isolateOnReturn });
      if (fence.name !== 'stands') continue;
      t.equal(fenced('web1', fence).params.isolate, isolateOnReturn ? 'yes' : 'no');
    }
  }
});

t.test('several failovers, other sources, enrolled anew', async (t) => {
  t.equal(shape([record('f1', 'undone'), record('f2', 'completed')], 'f1'), 'stands, over');
  t.equal(shape([record('f1', 'undone'), record('f2', 'running')], 'f1'), 'lifted');
  t.equal(shape([record('f2', 'undone'), record('f1', 'failed')], null), 'none');
  t.equal(shape([record('f1', 'completed', { sourceId: 'web2' })], null), 'none');
  t.equal(shape([], 'f9'), 'unknown', 'an appliance that was set back decides nothing');
  t.equal(shape([record('f1', 'committed', { fenceLifted: true })], null), 'none');
  t.equal(shape([record('f1', 'completed', { kind: 'test' })], null), 'none', 'a test');
  const fence = fenceOf([record('f1', 'completed')], 'web1', null);
  t.ok(fence.name === 'stands');
  if (fence.name === 'stands') {
    t.match(fenced('web1', fence), {
      code: 'UND_AGENT_FENCED',
      params: { failover: 'f1', replica: 'web1-replica' },
    });
  }
});
