/**
 * The failover of a group as a state machine: a pure function from its record and what the members' own failovers have
 * come to, to the next record and to what is to be asked of the failover engine. Nothing of a member is kept twice: where
 * its failover is, the engine says, and after a crash of the appliance it says it again.
 *
 * | phase     | does                                                                | becomes                          |
 * |-----------|---------------------------------------------------------------------|----------------------------------|
 * | running   | begins the members of each priority whose turn it is                | completed; stopping              |
 * | stopping  | begins nothing; waits for what is under way. A test is taken down    | stopped; failed if no replica runs |
 * | stopped   | rests: a person undoes all, or lets it go on                        | undoing, running                 |
 * | completed | rests: a person undoes or commits all. A test: until its time is over | undoing, committing             |
 * | undoing   | takes back from the last priority to the first                      | undone                           |
 * | committing | commits all                                                        | committed                        |
 */
import { undError } from '../../protocol/errors.ts';
import type { ApiError, Failover } from '../api/schema.ts';
import type { GroupRun, RunMember } from './record.ts';

/** Where the failover of a member is, as far as the group is concerned. */
export type Sight =
  /** The engine does not know it: not begun yet, or refused. */
  | { name: 'none' }
  /** `poweredOnMs`: when its replica VM was powered on, null until then. */
  | { name: 'under-way'; poweredOnMs: number | null }
  /** Its replica runs and has proven that it boots. */
  | { name: 'replica'; poweredOnMs: number | null }
  /** It failed and is being taken back by itself. */
  | { name: 'going-back'; error: ApiError }
  | { name: 'undoing' }
  | { name: 'committing' }
  /** The member replicates as before. No error: somebody took it back. */
  | { name: 'back'; error: ApiError | null }
  /** Committed. */
  | { name: 'final' };

export type GroupAction =
  | { do: 'start'; jobId: string }
  | { do: 'undo'; failoverId: string }
  | { do: 'commit'; failoverId: string };

export interface GroupStep {
  /** To be saved before the actions are done; the same object if nothing changed. */
  run: GroupRun;
  actions: GroupAction[];
  /** When to look again although nothing happened; null: never. */
  wakeMs: number | null;
}

export type Sights = (member: RunMember) => Sight;

/** @param failover as the engine shows it; null: it knows of none */
export function sightOf(failover: Pick<Failover, 'state' | 'steps'> | null): Sight {
  if (!failover) return { name: 'none' };
  const { state, steps } = failover;
  const powerOn = steps.find(({ name }) => name === 'power-on');
  const poweredOnMs =
    powerOn?.state === 'done' && powerOn.endedAt ? Date.parse(powerOn.endedAt) : null;
  switch (state.name) {
    case 'running':
      return { name: 'under-way', poweredOnMs };
    case 'completed':
      return { name: 'replica', poweredOnMs };
    case 'compensating':
      return { name: 'going-back', error: state.error };
    case 'failed':
      return { name: 'back', error: state.error };
    case 'undone':
      return { name: 'back', error: null };
    case 'committed':
      return { name: 'final' };
    case 'undoing':
    case 'committing':
      return { name: state.name };
    default:
      return state satisfies never;
  }
}

const BUSY: readonly Sight['name'][] = ['under-way', 'going-back', 'undoing', 'committing'];

const rest = (run: GroupRun): GroupStep => ({ run, actions: [], wakeMs: null });
const over = (run: GroupRun, phase: GroupRun['phase'], nowMs: number): GroupStep =>
  rest({ ...run, phase, endedAt: new Date(nowMs).toISOString() });

/** Members by priority, the first ones first. */
export function tiers(members: readonly RunMember[]): RunMember[][] {
  const priorities = [...new Set(members.map(({ priority }) => priority))].sort((a, b) => a - b);
  return priorities.map((priority) => members.filter((one) => one.priority === priority));
}

/** Why a member counts as failed; null if it does not. */
function failureOf(run: GroupRun, member: RunMember, sight: Sight): ApiError | null {
  if (member.refused) return member.refused;
  switch (sight.name) {
    case 'going-back':
      return sight.error;
    case 'back':
      if (sight.error) return sight.error;
      break;
    case 'undoing':
      break;
    default:
      return null;
  }
  const params = { group: run.groupName, member: member.sourceName };
  const { code, message, hint } = undError('UND_GROUP_MEMBER_LEFT', params);
  return { code, message, hint };
}

export function nextStep(run: GroupRun, sights: Sights, nowMs: number): GroupStep {
  switch (run.phase.name) {
    case 'running':
      return stepRunning(run, sights, nowMs);
    case 'stopping':
      return stepStopping(run, run.phase.error, sights, nowMs);
    case 'stopped':
      return stands(run, sights) ? rest(run) : over(run, { ...run.phase, name: 'failed' }, nowMs);
    case 'completed':
      return stepCompleted(run, sights, nowMs);
    case 'undoing':
      return stepUndoing(run, sights, nowMs);
    case 'committing':
      return stepCommitting(run, sights, nowMs);
    case 'failed':
    case 'undone':
    case 'committed':
      return rest(run);
    default:
      return run.phase satisfies never;
  }
}

/** Whether a member's replica runs, may come to run, or is for good. */
const stands = (run: GroupRun, sights: Sights): boolean =>
  run.members.some((member) => {
    const { name } = sights(member);
    return name === 'replica' || name === 'final' || BUSY.includes(name);
  });

function stepRunning(run: GroupRun, sights: Sights, nowMs: number): GroupStep {
  for (const member of run.members) {
    const error = failureOf(run, member, sights(member));
    if (!error) continue;
    if (!run.test) return nextStep({ ...run, phase: { name: 'stopping', error } }, sights, nowMs);
    const at = new Date(nowMs).toISOString();
    const words = `${member.sourceName}: ${error.message}`;
    const test = { ...run.test, verdict: { passed: false, words, at } };
    return nextStep({ ...run, test, phase: { name: 'undoing' } }, sights, nowMs);
  }
  const actions: GroupAction[] = [];
  for (const tier of tiers(run.members)) {
    for (const member of tier) {
      if (sights(member).name === 'none') actions.push({ do: 'start', jobId: member.jobId });
    }
    const opensMs = opensNext(run, tier.map(sights));
    if (opensMs > nowMs) {
      return { run, actions, wakeMs: Number.isFinite(opensMs) ? opensMs : null };
    }
  }
  const all = run.members.map((member) => sights(member).name);
  if (!all.every((name) => name === 'replica' || name === 'final' || name === 'committing')) {
    return { run, actions, wakeMs: null };
  }
  return nextStep(completed(run, nowMs), sights, nowMs);
}

/** When the priority after these members' begins; infinity: not known yet. */
function opensNext({ wait }: GroupRun, sights: readonly Sight[]): number {
  const moments = sights.map((sight) => {
    if (sight.name === 'final' || sight.name === 'committing') return 0;
    if (sight.name === 'replica' && wait.for === 'proof') return 0;
    if (sight.name !== 'replica' && sight.name !== 'under-way') return Number.POSITIVE_INFINITY;
    if (wait.for === 'proof' || sight.poweredOnMs === null) return Number.POSITIVE_INFINITY;
    return sight.poweredOnMs + wait.seconds * 1000;
  });
  return Math.max(0, ...moments);
}

function completed(run: GroupRun, nowMs: number): GroupRun {
  const at = new Date(nowMs).toISOString();
  const { test } = run;
  const endsAt = new Date(nowMs + (test?.keepMinutes ?? 0) * 60_000).toISOString();
  const words = 'every member has proven that it boots';
  return {
    ...run,
    phase: { name: 'completed' },
    endedAt: at,
    test: test && { ...test, verdict: { passed: true, words, at }, endsAt },
  };
}

function stepStopping(run: GroupRun, error: ApiError, sights: Sights, nowMs: number): GroupStep {
  const names = run.members.map((member) => sights(member).name);
  if (names.some((name) => BUSY.includes(name))) return rest(run);
  const standing = names.some((name) => name === 'replica' || name === 'final');
  return over(run, { name: standing ? 'stopped' : 'failed', error }, nowMs);
}

function stepCompleted(run: GroupRun, sights: Sights, nowMs: number): GroupStep {
  const { test } = run;
  if (test) {
    const endsMs = Date.parse(test.endsAt ?? '') || 0;
    const gone = run.members.every((member) => sights(member).name === 'back');
    if (endsMs > nowMs && !gone) return { run, actions: [], wakeMs: endsMs };
    return nextStep({ ...run, phase: { name: 'undoing' } }, sights, nowMs);
  }
  // Each member may also be decided on its own.
  const names = run.members.map((member) => sights(member).name);
  if (names.some((name) => name === 'replica' || BUSY.includes(name))) return rest(run);
  return over(run, { name: names.includes('final') ? 'committed' : 'undone' }, nowMs);
}

function stepUndoing(run: GroupRun, sights: Sights, nowMs: number): GroupStep {
  for (const tier of tiers(run.members).reverse()) {
    const open = tier.filter((member) => {
      const { name } = sights(member);
      return name === 'replica' || BUSY.includes(name);
    });
    if (open.length === 0) continue;
    const actions = open.flatMap((member): GroupAction[] => {
      const { name } = sights(member);
      // What is under way can only be waited for, but for a test.
      const now = name === 'replica' || (name === 'under-way' && run.kind === 'test');
      return now ? [{ do: 'undo', failoverId: member.failoverId }] : [];
    });
    return { run, actions, wakeMs: null };
  }
  return over(run, { name: 'undone' }, nowMs);
}

function stepCommitting(run: GroupRun, sights: Sights, nowMs: number): GroupStep {
  const actions = run.members.flatMap((member): GroupAction[] =>
    sights(member).name === 'replica' ? [{ do: 'commit', failoverId: member.failoverId }] : [],
  );
  const busy = run.members.some((member) => BUSY.includes(sights(member).name));
  if (actions.length > 0 || busy) return { run, actions, wakeMs: null };
  return over(run, { name: 'committed' }, nowMs);
}

// ---- what people ask for -----------------------------------------------------------------------------------------

/** Null: it cannot be undone in this phase. */
export function askUndo(run: GroupRun): GroupRun | null {
  switch (run.phase.name) {
    case 'running':
    case 'stopping':
    case 'stopped':
    case 'completed':
      return { ...run, phase: { name: 'undoing' }, endedAt: null };
    default:
      return null;
  }
}

/** Null: it cannot be committed in this phase; a test never. */
export const askCommit = (run: GroupRun): GroupRun | null =>
  run.phase.name === 'completed' && run.kind !== 'test'
    ? { ...run, phase: { name: 'committing' }, endedAt: null }
    : null;

/** Members that failed are tried again and the others go on. Null: nothing waits for that. */
export function askResume(run: GroupRun, sights: Sights, newId: () => string): GroupRun | null {
  if (run.phase.name !== 'stopped') return null;
  return {
    ...run,
    phase: { name: 'running' },
    endedAt: null,
    members: run.members.map((member) =>
      failureOf(run, member, sights(member))
        ? { ...member, failoverId: newId(), refused: null }
        : member,
    ),
  };
}

/** The engine would not begin this member's failover. */
export const refused = (run: GroupRun, failoverId: string, error: ApiError): GroupRun => ({
  ...run,
  members: run.members.map((member) =>
    member.failoverId === failoverId ? { ...member, refused: error } : member,
  ),
});
