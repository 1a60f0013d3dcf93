/** Consistency groups: which jobs belong together, what all of them can be recovered to, and their failovers. */
import { randomUUID } from 'node:crypto';
import { undError } from '../../protocol/errors.ts';
import type {
  Failover,
  Group,
  GroupFailoverRequest,
  GroupMark,
  GroupMarkRequest,
  GroupPoints,
  GroupRequest,
  GroupRunView,
} from '../api/schema.ts';
import type { EventHub } from '../control/event-hub.ts';
import type { Logger } from '../control/logger.ts';
import type { JobService } from '../jobs/job-service.ts';
import type { ScheduledTest } from '../recovery/test-schedule.ts';
import type { GroupMarkRow, GroupRow, GroupStore } from '../state/groups.ts';
import type { SourceClocks } from './clocks.ts';
import {
  commonMoment,
  commonMoments,
  type MemberPoints,
  markIsRecoverable,
  memberTime,
  momentError,
} from './group-points.ts';
import { MarkSchedule } from './mark-schedule.ts';
import { takeMark } from './marks.ts';
import { type GroupRun, type GroupTarget, isOver, type RunMember } from './record.ts';
import { groupReportPage } from './report.ts';
import type { GroupRunner } from './runner.ts';
import { offsetAt, toApplianceUntil } from './source-clock.ts';

export interface GroupServiceOptions {
  store: GroupStore;
  jobs: JobService;
  clocks: SourceClocks;
  runner: GroupRunner;
  events: EventHub;
  log: Logger;
  /** Everything that would keep the engine from beginning this member's failover. Throws it; nothing is changed. */
  check(run: GroupRun, member: RunMember): Promise<void>;
  /** A member's failover. */
  find(failoverId: string): Failover | null;
}

const iso = (ms: number): string => new Date(ms).toISOString();

export class GroupService {
  readonly #o: GroupServiceOptions;
  readonly #schedule: MarkSchedule;
  #unlisten: (() => void) | undefined;

  constructor(options: GroupServiceOptions) {
    this.#o = options;
    this.#schedule = new MarkSchedule({
      take: (groupId, request) => this.takeMark(groupId, request),
      isDue: (groupId) => {
        const members = options.store.get(groupId)?.members ?? [];
        return members.length > 0 && !options.runner.openOf(groupId);
      },
      changed: (groupId) => this.told(groupId),
      log: options.log,
    });
  }

  start(): void {
    for (const row of this.#o.store.list()) this.#schedule.plan(row);
    this.#unlisten = this.#o.events.subscribe((event) => {
      if (event.type !== 'job-removed') return;
      // It has left its group, which is told with fewer members.
      for (const group of this.list()) this.#o.events.publish({ type: 'group', group });
    });
  }

  close(): void {
    this.#unlisten?.();
    this.#schedule.close();
  }

  list(): Group[] {
    return this.#o.store.list().map((row) => this.#view(row));
  }

  /** @throws UND_NOT_FOUND, UND_GROUP_NAME, UND_GROUP_MEMBER */
  create(request: GroupRequest): Group {
    return this.#put({
      groupId: randomUUID(),
      ...this.#checked(request, null),
      createdAt: new Date().toISOString(),
    });
  }

  /** @throws UND_NOT_FOUND, UND_GROUP_NAME, UND_GROUP_MEMBER, UND_GROUP_RUNNING */
  change(groupId: string, request: GroupRequest): Group {
    const row = this.#resting(groupId);
    return this.#put({ ...row, ...this.#checked(request, groupId) });
  }

  /** Its jobs stay. @throws UND_NOT_FOUND, UND_GROUP_RUNNING */
  remove(groupId: string): void {
    this.#resting(groupId);
    this.#o.store.remove(groupId);
    this.#schedule.forget(groupId);
    this.#o.events.publish({ type: 'group-removed', groupId });
  }

  /** @throws UND_NOT_FOUND */
  points(groupId: string): GroupPoints {
    const row = this.#row(groupId);
    const members = this.#members(row);
    const common = commonMoments(members);
    const newestMs = common.at(-1)?.toMs ?? null;
    const nowMs = Date.now();
    return {
      stretches: common.map(({ fromMs, toMs }) => ({ fromAt: iso(fromMs), toAt: iso(toMs) })),
      newestAt: newestMs === null ? null : iso(newestMs),
      errorMs: momentError(members, newestMs ?? nowMs),
      members: members.map(({ jobId, stretches, clock }) => {
        const { offsetMs, errorMs } = offsetAt(clock, nowMs);
        const newest = stretches.at(-1);
        return {
          jobId,
          newestAt: newest ? iso(toApplianceUntil(clock, newest.toMs, nowMs)) : null,
          clockOffsetMs: errorMs === null ? null : offsetMs,
          clockErrorMs: errorMs,
        };
      }),
      marks: this.#o.store.marks(groupId).map((mark) => markView(mark, members)),
    };
  }

  /** @throws UND_NOT_FOUND, UND_GROUP_RUNNING, UND_GROUP_EMPTY, UND_GROUP_MARK_FAILED */
  async takeMark(groupId: string, request: GroupMarkRequest): Promise<GroupMark> {
    const row = this.#resting(groupId);
    if (row.members.length === 0) throw undError('UND_GROUP_EMPTY', { group: row.name });
    await this.#o.clocks.read(this.#sourceIds(row));
    const members = row.members.map(({ jobId }) => {
      const actor = this.#o.jobs.actor(jobId);
      return { actor, clock: this.#o.clocks.offsets(actor.row.sourceId) };
    });
    const mark = await takeMark(row, members, request);
    // The group may have been dissolved meanwhile.
    this.#row(groupId);
    this.#o.store.addMark(mark);
    return markView(mark, this.#members(row));
  }

  runs(): GroupRunView[] {
    return this.#o.runner.list().map((run) => this.#o.runner.view(run));
  }

  /** @throws UND_NOT_FOUND */
  run(runId: string): GroupRunView {
    return this.#o.runner.view(this.#o.runner.get(runId));
  }

  /** What it did and came to, as a page of HTML that stands alone. @throws UND_NOT_FOUND */
  report(runId: string): string {
    const run = this.run(runId);
    const failovers = run.members
      .map(({ failoverId }) => (failoverId === null ? null : this.#o.find(failoverId)))
      .filter((one) => one !== null);
    return groupReportPage(run, failovers, new Date().toISOString());
  }

  /** For the schedule of tests. A test of whatever trigger counts. */
  scheduledTests(): ScheduledTest[] {
    const runs = this.#o.runner.list().filter(({ kind }) => kind === 'test');
    return this.#o.store.list().map(({ groupId, testEvery, members }) => {
      const began = runs.filter((run) => run.groupId === groupId);
      const lastMs = Math.max(...began.map(({ startedAt }) => Date.parse(startedAt)));
      return {
        id: groupId,
        every: testEvery,
        isReady:
          members.length > 0 &&
          !this.#o.runner.openOf(groupId) &&
          members.every(({ jobId }) => this.#o.jobs.get(jobId).state.name === 'protected'),
        lastMs: began.length > 0 ? lastMs : null,
      };
    });
  }

  /** A test of some group is not over, also while none of its members' is under way. */
  isTesting(): boolean {
    return this.#o.runner.list().some((run) => run.kind === 'test' && !isOver(run));
  }

  /**
   * Begins a failover, or a test, of all members to one moment, and returns at once. Every member is looked at before any
   * is begun.
   * @throws UND_NOT_FOUND, UND_GROUP_RUNNING, UND_GROUP_EMPTY, UND_GROUP_NO_POINT, UND_FAILOVER_CONFIRM, and what keeps a
   * member from it
   */
  async failOver(
    groupId: string,
    request: GroupFailoverRequest,
    trigger: 'person' | 'schedule' = 'person',
  ): Promise<GroupRunView> {
    const row = this.#resting(groupId);
    if (request.kind !== 'test' && request.confirm !== row.name) {
      throw undError('UND_FAILOVER_CONFIRM', { name: row.name });
    }
    if (row.members.length === 0) throw undError('UND_GROUP_EMPTY', { group: row.name });
    await this.#o.clocks.read(this.#sourceIds(row));
    const { target, times } = this.#target(row, request);
    const run: GroupRun = {
      version: 1,
      runId: randomUUID(),
      groupId,
      groupName: row.name,
      kind: request.kind,
      target,
      wait: row.wait,
      members: row.members.map(({ jobId, priority }) => {
        const job = this.#o.jobs.get(jobId);
        return {
          jobId,
          sourceName: job.sourceName,
          replicaName: job.settings.replicaName,
          priority,
          sourceTime: times.get(jobId) ?? null,
          failoverId: randomUUID(),
          refused: null,
        };
      }),
      evenIfAlive: request.evenIfAlive ?? false,
      powerOff: request.powerOff ?? true,
      isolateOnReturn: request.isolateOnReturn ?? false,
      test:
        request.kind === 'test'
          ? { trigger, keepMinutes: request.keepMinutes ?? 0, verdict: null, endsAt: null }
          : null,
      startedAt: new Date().toISOString(),
      endedAt: null,
      phase: { name: 'running' },
    };
    await Promise.all(run.members.map((member) => this.#o.check(run, member)));
    // Another one may have been begun while they were looked at.
    this.#resting(groupId);
    this.#o.runner.begin(run);
    return this.#o.runner.view(run);
  }

  /** @throws UND_NOT_FOUND, UND_GROUP_STATE, UND_FAILOVER_CONFIRM (of a test nothing has to be confirmed) */
  decide(runId: string, act: 'undo' | 'commit' | 'resume', confirm: string): GroupRunView {
    const { runner } = this.#o;
    const run = runner.get(runId);
    if (act !== 'resume' && run.kind !== 'test' && confirm !== run.groupName) {
      throw undError('UND_FAILOVER_CONFIRM', { name: run.groupName });
    }
    return runner.view(runner[act](runId));
  }

  /** Something of it has changed that its members do not tell: its open failover. */
  told(groupId: string): void {
    const row = this.#o.store.get(groupId);
    if (row) this.#o.events.publish({ type: 'group', group: this.#view(row) });
  }

  #row(groupId: string): GroupRow {
    const row = this.#o.store.get(groupId);
    if (!row) throw undError('UND_NOT_FOUND', { kind: 'group', id: groupId });
    return row;
  }

  /** @throws UND_GROUP_RUNNING */
  #resting(groupId: string): GroupRow {
    const row = this.#row(groupId);
    if (this.#o.runner.openOf(groupId)) throw undError('UND_GROUP_RUNNING', { group: row.name });
    return row;
  }

  #checked(
    request: GroupRequest,
    groupId: string | null,
  ): Pick<GroupRow, 'name' | 'members' | 'wait' | 'schedule' | 'testEvery'> {
    const others = this.#o.store.list().filter((row) => row.groupId !== groupId);
    if (others.some(({ name }) => name === request.name)) {
      throw undError('UND_GROUP_NAME', { name: request.name, field: 'name' });
    }
    const seen = new Set<string>();
    request.members.forEach(({ jobId }, index) => {
      const field = `members.${index}.jobId`;
      const job = this.#o.jobs.find(jobId);
      if (!job) throw undError('UND_NOT_FOUND', { kind: 'job', id: jobId, field });
      const other = others.find(({ members }) => members.some((one) => one.jobId === jobId));
      if (other || seen.has(jobId)) {
        const group = other?.name ?? request.name;
        throw undError('UND_GROUP_MEMBER', { job: job.name, group, field });
      }
      seen.add(jobId);
    });
    const { name, members, wait, schedule = null, testEvery = 'off' } = request;
    return { name, members, wait, schedule, testEvery };
  }

  #put(row: GroupRow): Group {
    this.#o.store.put(row);
    this.#schedule.plan(row);
    const group = this.#view(row);
    this.#o.events.publish({ type: 'group', group });
    return group;
  }

  #view(row: GroupRow): Group {
    const { groupId, name, members, wait, schedule, testEvery, createdAt } = row;
    const markProblem = this.#schedule.problem(groupId);
    const runId = this.#o.runner.openOf(groupId)?.runId ?? null;
    return { groupId, name, members, wait, schedule, testEvery, markProblem, runId, createdAt };
  }

  #sourceIds(row: GroupRow): string[] {
    return row.members.map(({ jobId }) => this.#o.jobs.get(jobId).sourceId);
  }

  #members(row: GroupRow): MemberPoints[] {
    return row.members.map(({ jobId }): MemberPoints => {
      const actor = this.#o.jobs.actor(jobId);
      const index = actor.stream?.points();
      return {
        jobId,
        stretches: index?.stretches() ?? [],
        clock: this.#o.clocks.offsets(actor.row.sourceId),
        marks: new Map(index?.marks().map((mark) => [mark.pointId, mark])),
      };
    });
  }

  #target(
    row: GroupRow,
    { kind, point = 'newest' }: GroupFailoverRequest,
  ): { target: GroupTarget; times: Map<string, string> } {
    if (kind === 'planned') return { target: { name: 'final' }, times: new Map() };
    for (const { jobId } of row.members) this.#o.jobs.actor(jobId).stream?.needPoints();
    const members = this.#members(row);
    const noPoint = (reason: string) => undError('UND_GROUP_NO_POINT', { group: row.name, reason });
    if (point !== 'newest' && 'markId' in point) {
      const mark = this.#o.store.marks(row.groupId).find(({ markId }) => markId === point.markId);
      if (!mark) throw undError('UND_NOT_FOUND', { kind: 'mark', id: point.markId });
      if (!markIsRecoverable(mark, members)) {
        throw noPoint(`not every member has the mark ${mark.name} in its history`);
      }
      const { markId, name: markName, atMs, apartMs } = mark;
      return {
        target: { name: 'mark', markId, markName, at: iso(atMs), errorMs: apartMs },
        times: new Map(mark.members.map(({ jobId, sourceMs }) => [jobId, iso(sourceMs)])),
      };
    }
    const atMs = commonMoment(members, point === 'newest' ? null : Date.parse(point.at));
    if (atMs === null) {
      throw noPoint(
        point === 'newest'
          ? 'there is no moment at which all members have one'
          : `there is no moment at or before ${point.at} at which all members have one`,
      );
    }
    return {
      target: { name: 'moment', at: iso(atMs), errorMs: momentError(members, atMs) },
      times: new Map(members.map((member) => [member.jobId, iso(memberTime(member, atMs))])),
    };
  }
}

const markView = (mark: GroupMarkRow, members: readonly MemberPoints[]): GroupMark => ({
  markId: mark.markId,
  name: mark.name,
  at: iso(mark.atMs),
  quiesced: mark.quiesced,
  apartMs: mark.apartMs,
  recoverable: markIsRecoverable(mark, members),
  members: mark.members.map(({ jobId, seq, sourceMs, quiesced, reason }) => ({
    jobId,
    seq,
    at: iso(sourceMs),
    quiesced,
    reason,
  })),
});
