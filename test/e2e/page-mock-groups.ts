/** The part of the scripted API that tells of consistency groups: one failover at a time, member by member. */
import { randomUUID } from 'node:crypto';
import type { FastifyInstance, FastifyReply } from 'fastify';
import Type, { type Static, type TSchema } from 'typebox';
import * as contract from '../../appliance/api/schema.ts';

interface MockHost {
  jobs: Map<string, contract.Job>;
  groups: Map<string, contract.Group>;
  runs: Map<string, contract.GroupRunView>;
  check: <T extends TSchema>(schema: T, value: unknown, what: string) => Static<T>;
  missing: (reply: FastifyReply) => FastifyReply;
  tell: (event: contract.ServerEvent) => void;
  later: (ms: number, act: () => void) => void;
  stepMs: number;
  /** The member by its source's name that fails, once. */
  failing: () => string | null;
}

const HOUR = 3_600_000;
const STEPS = 8;
const iso = (agoMs = 0) => new Date(Date.now() - agoMs).toISOString();
type ById = { Params: { id: string } };
type Member = contract.GroupRunView['members'][number];

export function serveMockGroups(app: FastifyInstance, host: MockHost): void {
  const { groups, runs, check, missing, tell, later, stepMs } = host;
  const marks = new Map<string, contract.GroupMark[]>();

  const tellRun = (run: contract.GroupRunView) => {
    tell({ type: 'group-run', run });
    const group = groups.get(run.groupId);
    const over = ['failed', 'undone', 'committed'].includes(run.state.name);
    if (group) tell({ type: 'group', group: { ...group, runId: over ? null : run.runId } });
  };
  const setMember = (runId: string, jobId: string, patch: Partial<Member>) => {
    const run = runs.get(runId)!;
    const members = run.members.map((one) => (one.jobId === jobId ? { ...one, ...patch } : one));
    tellRun({ ...run, members });
  };
  const settle = (runId: string, state: contract.GroupRunView['state']) =>
    tellRun({ ...runs.get(runId)!, state, endedAt: iso() });

  /** The next member by priority that has not begun goes through its steps. */
  const next = (runId: string): void => {
    const run = runs.get(runId)!;
    if (run.state.name !== 'running') return;
    const member = run.members
      .toSorted((a, b) => a.priority - b.priority)
      .find(({ state }) => state.name === 'waiting');
    if (!member) {
      settle(runId, { name: 'completed' });
      return;
    }
    const begun = (failover: contract.FailoverState, stepsDone: number) =>
      setMember(runId, member.jobId, {
        failoverId: randomUUID(),
        state: { name: 'begun', failover, stepsDone, stepsAll: STEPS },
      });
    begun({ name: 'running' }, 0);
    later(stepMs, () => begun({ name: 'running' }, 4));
    later(2 * stepMs, () => {
      if (host.failing() !== member.sourceName) {
        begun({ name: 'completed', proof: 'the guest agent answered' }, STEPS);
        next(runId);
        return;
      }
      const error = {
        code: 'UND_FAILOVER_NO_BOOT_PROOF',
        message: `Replica VM ${member.replicaName} gave no proof of having booted.`,
        hint: 'Look at the screenshot kept with the failover.',
      };
      begun({ name: 'failed', error }, 0);
      settle(runId, { name: 'stopped', error });
    });
  };

  app.get('/api/groups', async () =>
    check(Type.Array(contract.Group), [...groups.values()], 'groups'),
  );
  app.post<{ Body: contract.GroupRequest }>(
    '/api/groups',
    { schema: { body: contract.GroupRequest } },
    async (request, reply) => {
      const made: contract.Group = {
        groupId: randomUUID(),
        runId: null,
        createdAt: iso(),
        markProblem: null,
        schedule: null,
        testEvery: 'off',
        ...request.body,
      };
      tell({ type: 'group', group: made });
      return reply.code(201).send(check(contract.Group, made, 'new group'));
    },
  );
  app.patch<ById & { Body: contract.GroupRequest }>(
    '/api/groups/:id',
    { schema: { body: contract.GroupRequest } },
    async (request, reply) => {
      const group = groups.get(request.params.id);
      if (!group) return missing(reply);
      const changed = { ...group, ...request.body };
      tell({ type: 'group', group: changed });
      return check(contract.Group, changed, 'group');
    },
  );
  app.delete<ById>('/api/groups/:id', async (request, reply) => {
    tell({ type: 'group-removed', groupId: request.params.id });
    return reply.code(204).send();
  });
  app.get<ById>('/api/groups/:id/points', async (request, reply) => {
    const group = groups.get(request.params.id);
    if (!group) return missing(reply);
    const points: contract.GroupPoints = {
      stretches: [
        { fromAt: iso(5 * HOUR), toAt: iso(2 * HOUR) },
        { fromAt: iso(1.5 * HOUR), toAt: iso(800) },
      ],
      newestAt: iso(800),
      errorMs: 26,
      members: group.members.map(({ jobId }, index) => ({
        jobId,
        newestAt: iso(500 + index * 300),
        clockOffsetMs: index * 1800 - 12,
        clockErrorMs: 3,
      })),
      marks: marks.get(group.groupId) ?? [],
    };
    return check(contract.GroupPoints, points, 'points of a group');
  });
  app.post<ById & { Body: contract.GroupMarkRequest }>(
    '/api/groups/:id/marks',
    { schema: { body: contract.GroupMarkRequest } },
    async (request, reply) => {
      const group = groups.get(request.params.id);
      if (!group) return missing(reply);
      const { name = 'On demand', quiesce = true } = request.body;
      const mark: contract.GroupMark = {
        markId: randomUUID(),
        name,
        at: iso(1000),
        quiesced: quiesce,
        apartMs: 41,
        recoverable: true,
        members: group.members.map(({ jobId }) => ({
          jobId,
          seq: 812,
          at: iso(1000),
          quiesced: quiesce,
          reason: null,
        })),
      };
      marks.set(group.groupId, [...(marks.get(group.groupId) ?? []), mark]);
      return reply.code(201).send(check(contract.GroupMark, mark, 'mark of a group'));
    },
  );
  app.post<ById & { Body: contract.GroupFailoverRequest }>(
    '/api/groups/:id/failover',
    { schema: { body: contract.GroupFailoverRequest } },
    async (request, reply) => {
      const group = groups.get(request.params.id);
      if (!group) return missing(reply);
      const { kind, point, keepMinutes = 0 } = request.body;
      const mark =
        typeof point === 'object' && 'markId' in point
          ? marks.get(group.groupId)?.find(({ markId }) => markId === point.markId)
          : undefined;
      const run: contract.GroupRunView = {
        runId: randomUUID(),
        groupId: group.groupId,
        groupName: group.name,
        kind,
        target: mark
          ? {
              name: 'mark',
              markId: mark.markId,
              markName: mark.name,
              at: mark.at,
              errorMs: mark.apartMs,
            }
          : { name: 'moment', at: iso(800), errorMs: 26 },
        wait: group.wait,
        state: { name: 'running' },
        members: group.members.map(({ jobId, priority }) => ({
          jobId,
          priority,
          sourceName: host.jobs.get(jobId)!.sourceName,
          replicaName: host.jobs.get(jobId)!.settings.replicaName,
          sourceTime: iso(800),
          failoverId: null,
          state: { name: 'waiting' },
        })),
        test:
          kind === 'test' ? { trigger: 'person', keepMinutes, verdict: null, endsAt: null } : null,
        startedAt: iso(),
        endedAt: null,
      };
      tellRun(run);
      later(stepMs, () => next(run.runId));
      return reply.code(202).send(check(contract.GroupRunView, run, 'failover of a group'));
    },
  );
  app.get('/api/group-runs', async () =>
    check(Type.Array(contract.GroupRunView), [...runs.values()], 'failovers of groups'),
  );
  for (const act of ['undo', 'commit', 'resume'] as const) {
    app.post<ById>(`/api/group-runs/:id/${act}`, async (request, reply) => {
      const run = runs.get(request.params.id);
      if (!run) return missing(reply);
      if (act === 'resume') {
        const members = run.members.map((member): Member => {
          const failed = member.state.name === 'begun' && member.state.failover.name === 'failed';
          return failed ? { ...member, failoverId: null, state: { name: 'waiting' } } : member;
        });
        tellRun({ ...run, members, state: { name: 'running' }, endedAt: null });
        later(stepMs, () => next(run.runId));
      } else {
        tellRun({ ...run, state: { name: act === 'undo' ? 'undoing' : 'committing' } });
        later(2 * stepMs, () =>
          settle(run.runId, { name: act === 'undo' ? 'undone' : 'committed' }),
        );
      }
      return reply.code(202).send(check(contract.GroupRunView, runs.get(run.runId), act));
    });
  }
}
