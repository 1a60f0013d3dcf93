/**
 * Drives the failovers of groups: asks the planner what is next, saves, and asks the failover engine for it. It keeps no
 * state of its own but timers: killed at any place, `resumeAll` of the next start finds in the records and in the engine
 * where everything is.
 */
import { asUndError, undError } from '../../protocol/errors.ts';
import type { ApiError, Failover, GroupRunView } from '../api/schema.ts';
import type { Logger } from '../control/logger.ts';
import {
  askCommit,
  askResume,
  askUndo,
  type GroupAction,
  nextStep,
  refused,
  type Sights,
  sightOf,
} from './planner.ts';
import { type GroupRun, isOver, type RunMember } from './record.ts';

/** What the runner needs of the failover engine; each call may be repeated after a crash. */
export interface MemberEngine {
  /** Null: it knows of none. */
  find(failoverId: string): Failover | null;
  /** Begins the member's failover with its id; no error when that has been begun. */
  start(run: GroupRun, member: RunMember): Promise<unknown>;
  /** Also ends a test. */
  undo(failoverId: string): Promise<unknown>;
  commit(failoverId: string): Promise<unknown>;
}

export interface GroupRunnerOptions {
  store: { runs(): GroupRun[]; saveRun(run: GroupRun): void };
  engine: MemberEngine;
  /** After every change that a person can see; must not throw. */
  changed(run: GroupRun): void;
  log: Logger;
  /** How long until a refused start is tried again; null: it is final. As `retryDelayMs` of the failover engine. */
  retryDelayMs(code: string, attempt: number, elapsedMs: number): number | null;
  newId(): string;
  now?: () => number;
}

/** Looks again this often whatever is told: a clock may step while a timer counts. */
const LONGEST_WAIT_MS = 60_000;
const FAILED_CALL_MS = 5_000;

export class GroupRunner {
  readonly #o: GroupRunnerOptions;
  readonly #runs = new Map<string, GroupRun>();
  readonly #passes = new Map<string, Promise<void>>();
  /** Runs of which something was told during their pass. */
  readonly #dirty = new Set<string>();
  readonly #timers = new Map<string, NodeJS.Timeout>();
  /** Starts that are tried again, by failover. */
  readonly #tries = new Map<string, { attempt: number; sinceMs: number; notBeforeMs: number }>();
  #closed = false;

  constructor(options: GroupRunnerOptions) {
    this.#o = options;
  }

  load(): void {
    for (const run of this.#o.store.runs()) this.#runs.set(run.runId, run);
  }

  /** Takes up what is not over. Call it once, when the failover engine has taken up its own. */
  resumeAll(): void {
    for (const { runId } of this.#runs.values()) this.#look(runId);
  }

  close(): void {
    this.#closed = true;
    for (const timer of this.#timers.values()) clearTimeout(timer);
  }

  /** Newest first. */
  list(): GroupRun[] {
    return [...this.#runs.values()].sort((a, b) => b.startedAt.localeCompare(a.startedAt));
  }

  /** @throws UND_NOT_FOUND */
  get(runId: string): GroupRun {
    const run = this.#runs.get(runId);
    if (!run) throw undError('UND_NOT_FOUND', { kind: 'group failover', id: runId });
    return run;
  }

  /** The one of a group that is not over. */
  openOf(groupId: string): GroupRun | null {
    return this.list().find((run) => run.groupId === groupId && !isOver(run)) ?? null;
  }

  view(run: GroupRun): GroupRunView {
    return runView(run, (id) => this.#o.engine.find(id));
  }

  /** Begins at once; it is on record when it returns. */
  begin(run: GroupRun): GroupRun {
    this.#save(run);
    this.#look(run.runId);
    return run;
  }

  /** @throws UND_NOT_FOUND, UND_GROUP_STATE */
  undo(runId: string): GroupRun {
    return this.#ask(runId, askUndo, 'undone');
  }

  /** @throws UND_NOT_FOUND, UND_GROUP_STATE */
  commit(runId: string): GroupRun {
    return this.#ask(runId, askCommit, 'committed');
  }

  /** Members that failed are tried again, the others follow. @throws UND_NOT_FOUND, UND_GROUP_STATE */
  resume(runId: string): GroupRun {
    return this.#ask(runId, (run) => askResume(run, this.#sights, this.#o.newId), 'continued');
  }

  #ask(runId: string, ask: (run: GroupRun) => GroupRun | null, act: string): GroupRun {
    const run = this.get(runId);
    const next = ask(run);
    if (!next)
      throw undError('UND_GROUP_STATE', { group: run.groupName, act, state: run.phase.name });
    this.#save(next);
    this.#look(runId);
    return next;
  }

  /** A member's failover has changed. */
  memberChanged({ failoverId }: Pick<Failover, 'failoverId'>): void {
    for (const run of this.#runs.values()) {
      if (!run.members.some((member) => member.failoverId === failoverId)) continue;
      this.#o.changed(run);
      if (!isOver(run)) this.#look(run.runId);
    }
  }

  readonly #sights: Sights = (member) => sightOf(this.#o.engine.find(member.failoverId));

  get #nowMs(): number {
    return this.#o.now?.() ?? Date.now();
  }

  #save(run: GroupRun): void {
    this.#o.store.saveRun(run);
    this.#runs.set(run.runId, run);
    this.#o.changed(run);
  }

  #look(runId: string): void {
    if (this.#closed) return;
    this.#dirty.add(runId);
    if (this.#passes.has(runId)) return;
    const pass = this.#pass(runId)
      .catch((error) => {
        // Only the store can fail here: what is not on record must not happen.
        const { code, message } = asUndError(error);
        this.#o.log.error({ runId, code }, `a group failover stands still: ${message}`);
        this.#wake(runId, FAILED_CALL_MS);
      })
      .finally(() => {
        this.#passes.delete(runId);
        if (this.#dirty.has(runId)) this.#look(runId);
      });
    this.#passes.set(runId, pass);
  }

  #wake(runId: string, delayMs: number): void {
    clearTimeout(this.#timers.get(runId));
    if (this.#closed) return;
    const timer = setTimeout(
      () => this.#look(runId),
      Math.max(0, Math.min(delayMs, LONGEST_WAIT_MS)),
    );
    timer.unref();
    this.#timers.set(runId, timer);
  }

  async #pass(runId: string): Promise<void> {
    // Whoever asks is answered before anything is begun.
    await null;
    while (this.#dirty.delete(runId) && !this.#closed) {
      const run = this.get(runId);
      const step = nextStep(run, this.#sights, this.#nowMs);
      if (step.run !== run) this.#save(step.run);
      if (step.wakeMs !== null) this.#wake(runId, step.wakeMs - this.#nowMs);
      for (const action of step.actions) {
        if (this.#closed) return;
        await this.#do(runId, action);
      }
    }
  }

  async #do(runId: string, action: GroupAction): Promise<void> {
    switch (action.do) {
      case 'start':
        return this.#start(runId, action.jobId);
      case 'undo':
      case 'commit':
        try {
          await this.#o.engine[action.do](action.failoverId);
        } catch (error) {
          const { code, message } = asUndError(error);
          this.#o.log.warn({ runId, code }, `a member of a group: ${message}`);
          this.#wake(runId, FAILED_CALL_MS);
        }
        return;
      default:
        return action satisfies never;
    }
  }

  async #start(runId: string, jobId: string): Promise<void> {
    const run = this.get(runId);
    const member = run.members.find((one) => one.jobId === jobId)!;
    const { failoverId } = member;
    const tries = this.#tries.get(failoverId) ?? {
      attempt: 0,
      sinceMs: this.#nowMs,
      notBeforeMs: 0,
    };
    // Somebody decided while another member was begun, or it is not time to try again.
    if (run.phase.name !== 'running') return;
    if (this.#nowMs < tries.notBeforeMs) return this.#wake(runId, tries.notBeforeMs - this.#nowMs);
    try {
      await this.#o.engine.start(run, member);
      this.#tries.delete(failoverId);
    } catch (thrown) {
      if (this.#closed) return;
      const { code, message, hint } = asUndError(thrown);
      const delayMs = this.#o.retryDelayMs(code, tries.attempt, this.#nowMs - tries.sinceMs);
      if (delayMs === null) {
        this.#save(refused(this.get(runId), failoverId, { code, message, hint }));
        this.#dirty.add(runId);
        return;
      }
      this.#tries.set(failoverId, {
        ...tries,
        attempt: tries.attempt + 1,
        notBeforeMs: this.#nowMs + delayMs,
      });
      this.#wake(runId, delayMs);
    }
  }
}

function runView(run: GroupRun, find: (failoverId: string) => Failover | null): GroupRunView {
  const { runId, groupId, groupName, kind, target, wait, phase, test, startedAt, endedAt } = run;
  return {
    runId,
    groupId,
    groupName,
    kind,
    target,
    wait,
    state: phase,
    members: run.members.map(({ refused: error, failoverId, ...member }) => {
      const failover = find(failoverId);
      return {
        jobId: member.jobId,
        sourceName: member.sourceName,
        replicaName: member.replicaName,
        priority: member.priority,
        sourceTime: member.sourceTime,
        failoverId: failover && failoverId,
        state: memberState(error, failover),
      };
    }),
    test: test && { trigger: 'person', ...test },
    startedAt,
    endedAt,
  };
}

function memberState(
  error: ApiError | null,
  failover: Failover | null,
): GroupRunView['members'][number]['state'] {
  if (error) return { name: 'refused', error };
  if (!failover) return { name: 'waiting' };
  return {
    name: 'begun',
    failover: failover.state,
    stepsDone: failover.steps.filter(({ state }) => state === 'done').length,
    stepsAll: failover.steps.length,
  };
}
