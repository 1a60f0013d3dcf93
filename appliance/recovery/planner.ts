/**
 * The failover as a state machine: pure functions from a record and an event to the next record, and from a record to
 * the next action. All knowledge of order lives here; the executor only does what `nextAction` says.
 *
 * | phase        | next action                                                         | ends as     |
 * |--------------|---------------------------------------------------------------------|-------------|
 * | running      | first step that is not done, from the front                         | completed   |
 * | compensating | last step that began and is not compensated, from the back          | failed      |
 * | undoing      | the same                                                            | undone      |
 * | completed, of a test or mount | undo, when it has been kept long enough            | undone      |
 * | completed    | commit or undo after a time, if that was asked for and nobody decided before |    |
 * | committing   | commit                                                              | committed   |
 * | others       | rest                                                                |             |
 *
 * A step in state `running` or `compensating` when a record is loaded was interrupted by a crash: it is run again, and
 * each step begins by reading back what its former run achieved.
 */
import type { SerialisedError } from '../../protocol/errors.ts';
import type { AutoEnd, FailoverStep, FailoverStepName } from '../api/schema.ts';
import { type FailoverRecord, isAside, type Phase } from './record.ts';

export type Action =
  | { do: 'run'; step: FailoverStepName }
  | { do: 'compensate'; step: FailoverStepName }
  | { do: 'commit' }
  | { do: 'rest' };

export type FailoverEvent =
  | { type: 'step-started'; step: FailoverStepName }
  | { type: 'step-detail'; step: FailoverStepName; detail: string }
  | { type: 'step-done'; step: FailoverStepName; detail: string }
  | { type: 'step-failed'; step: FailoverStepName; error: SerialisedError }
  | { type: 'compensation-started'; step: FailoverStepName }
  | { type: 'compensation-done'; step: FailoverStepName; detail: string | null }
  | { type: 'undo-asked'; by: 'person' | 'time' }
  | { type: 'commit-asked'; by: 'person' | 'time' }
  | { type: 'auto-end-set'; autoEnd: AutoEnd | null }
  | { type: 'commit-done' };

/** Whether the executor has something to do without being asked. */
export function isActive(phase: Phase): boolean {
  return (
    phase.name === 'running' ||
    phase.name === 'compensating' ||
    phase.name === 'undoing' ||
    phase.name === 'committing'
  );
}

/** Whether the job's disks belong to the failover: the job service must leave them alone. A test and a mount leave them to the job. */
export function ownsDisks(record: Pick<FailoverRecord, 'kind' | 'phase'>): boolean {
  if (isAside(record)) return false;
  const { phase } = record;
  return isActive(phase) || phase.name === 'completed' || phase.name === 'committed';
}

const began = (step: FailoverStep): boolean =>
  step.state !== 'waiting' && step.state !== 'compensated';

export function nextAction(record: FailoverRecord): Action {
  switch (record.phase.name) {
    case 'running': {
      const step = record.steps.find((candidate) => candidate.state !== 'done');
      return step ? { do: 'run', step: step.name } : { do: 'rest' };
    }
    case 'compensating':
    case 'undoing': {
      const step = record.steps.findLast(began);
      return step ? { do: 'compensate', step: step.name } : { do: 'rest' };
    }
    case 'committing':
      return { do: 'commit' };
    default:
      return { do: 'rest' };
  }
}

const patchStep = (
  record: FailoverRecord,
  name: FailoverStepName,
  patch: Partial<FailoverStep>,
): FailoverRecord => ({
  ...record,
  steps: record.steps.map((step) => (step.name === name ? { ...step, ...patch } : step)),
});

/** The verdict of a test; other failovers have none. */
const judged = (
  record: FailoverRecord,
  passed: boolean,
  words: string,
  now: string,
): FailoverRecord => {
  const { test } = record;
  if (!test) return record;
  const endsAt = later(now, passed ? test.keepMinutes : 0);
  return { ...record, test: { ...test, verdict: { passed, words, at: now }, endsAt } };
};

const later = (now: string, minutes: number): string =>
  new Date(Date.parse(now) + minutes * 60_000).toISOString();

/** A mount is open from now on, for the time that was asked for. */
const opened = (record: FailoverRecord, now: string): FailoverRecord => {
  const { mount } = record;
  return mount ? { ...record, mount: { ...mount, endsAt: later(now, mount.keepMinutes) } } : record;
};

const timed = (autoEnd: AutoEnd | null | undefined, from: string | null) =>
  autoEnd
    ? {
        act: autoEnd.act,
        afterMinutes: autoEnd.afterMinutes,
        at: from === null ? null : later(from, autoEnd.afterMinutes),
      }
    : null;

/** When what is completed is ended by itself (ISO 8601), and how; null: a person has to do it. */
export function ownEnd({
  phase,
  test,
  mount,
  autoEnd,
}: FailoverRecord): { at: string | null; act: AutoEnd['act'] } | null {
  if (phase.name !== 'completed') return null;
  const aside = test ?? mount;
  if (aside) return { at: aside.endsAt, act: 'undo' };
  return autoEnd ? { at: autoEnd.at, act: autoEnd.act } : null;
}

/** What is to be done by itself now. */
export function dueEnd(record: FailoverRecord, now: string): AutoEnd['act'] | null {
  const end = ownEnd(record);
  return end && Date.parse(now) >= Date.parse(end.at ?? now) ? end.act : null;
}

/** What was to be done by itself stays on record only if that is how it ended. */
const decided = (record: FailoverRecord, by: 'person' | 'time'): FailoverRecord =>
  by === 'person' ? { ...record, autoEnd: null } : record;

/** An event that does not fit the phase leaves the record as it is: a late answer after a decision changes nothing. */
export function applyEvent(
  record: FailoverRecord,
  event: FailoverEvent,
  now: string,
): FailoverRecord {
  const phase = record.phase;
  switch (event.type) {
    case 'step-started':
      if (phase.name !== 'running') return record;
      return patchStep(record, event.step, { state: 'running', startedAt: now, endedAt: null });
    case 'step-detail':
      return patchStep(record, event.step, { detail: event.detail });
    case 'step-done':
      if (phase.name !== 'running') return record;
      {
        const next = patchStep(record, event.step, {
          state: 'done',
          detail: event.detail,
          endedAt: now,
        });
        // One event, one save: the proof and the end of the last step never come apart in a crash.
        if (next.steps.some((step) => step.state !== 'done')) return next;
        return {
          ...opened(judged(next, true, event.detail, now), now),
          phase: { name: 'completed', proof: event.detail },
          autoEnd: timed(record.autoEnd, now),
          endedAt: now,
        };
      }
    case 'step-failed':
      if (phase.name !== 'running') return record;
      return {
        ...patchStep(judged(record, false, event.error.message, now), event.step, {
          state: 'failed',
          detail: event.error.message,
          endedAt: now,
        }),
        phase: { name: 'compensating', error: event.error },
      };
    case 'compensation-started':
      if (phase.name !== 'compensating' && phase.name !== 'undoing') return record;
      return patchStep(record, event.step, { state: 'compensating' });
    case 'compensation-done': {
      if (phase.name !== 'compensating' && phase.name !== 'undoing') return record;
      const { endedAt } = record.steps.find(({ name }) => name === event.step)!;
      const next = patchStep(record, event.step, {
        state: 'compensated',
        // What a step took is not how long its work stood: a report of a test says both.
        endedAt: endedAt ?? now,
        ...(event.detail === null ? {} : { detail: event.detail }),
      });
      if (next.steps.some(began)) return next;
      return {
        ...next,
        endedAt: now,
        phase:
          phase.name === 'undoing' ? { name: 'undone' } : { name: 'failed', error: phase.error },
      };
    }
    case 'undo-asked':
      if (phase.name !== 'completed' && (phase.name !== 'running' || !isAside(record)))
        return record;
      // Ended before its first step: there is nothing to take back.
      return record.steps.some(began)
        ? { ...decided(record, event.by), phase: { name: 'undoing' }, endedAt: null }
        : { ...decided(record, event.by), phase: { name: 'undone' }, endedAt: now };
    case 'commit-asked':
      return phase.name === 'completed' && !isAside(record)
        ? { ...decided(record, event.by), phase: { name: 'committing' }, endedAt: null }
        : record;
    case 'auto-end-set':
      return !isAside(record) && (phase.name === 'running' || phase.name === 'completed')
        ? { ...record, autoEnd: timed(event.autoEnd, phase.name === 'completed' ? now : null) }
        : record;
    case 'commit-done':
      return phase.name === 'committing'
        ? { ...record, phase: { name: 'committed' }, endedAt: now }
        : record;
  }
}

/**
 * Whether a failed call is worth another try, and after how long. The host may be away for minutes (a reboot of its
 * network, a restarted libvirtd); a guest that does not let go of a disk yet, or an image lock that is released late,
 * takes seconds. Everything else is an answer, not a disturbance.
 *
 * A compensation is tried for ever: there is no other way back, and giving up would leave the job with neither a
 * replica nor replication.
 */
export function retryDelayMs(
  code: string,
  attempt: number,
  elapsedMs: number,
  direction: 'forward' | 'back',
): number | null {
  const pauseMs = Math.min(30_000, 500 * 2 ** Math.min(attempt, 6));
  if (direction === 'back') return pauseMs;
  switch (code) {
    case 'UND_HV_UNREACHABLE':
      return elapsedMs < 10 * 60_000 ? pauseMs : null;
    case 'UND_HV_DETACH_TIMEOUT':
    case 'UND_HV_DISK_LOCKED':
      return elapsedMs < 3 * 60_000 ? pauseMs : null;
    // The agent is away for a moment: its connection broke, or this is soon after the appliance's own start.
    case 'UND_AGENT_OFFLINE':
    case 'UND_LINK_CLOSED':
    case 'UND_LINK_TIMEOUT':
    // Another point is being taken just now, or the stream has not begun on a new connection.
    case 'UND_POINT_FAILED':
      return elapsedMs < 3 * 60_000 ? pauseMs : null;
    default:
      return null;
  }
}
