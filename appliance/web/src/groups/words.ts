/** What the page says of groups and their failovers. Pure. */
import type { Group, GroupPoints, GroupRunView, GroupWait } from '../../../api/schema.ts';
import { formatDuration } from '../format.ts';
import type { TimelinePoints } from '../jobs/timeline-view.ts';
import type { JobWords } from '../jobs/words.ts';
import { describeFailover } from '../jobs/words.ts';

export function describeRun({ state, kind, test }: GroupRunView): JobWords {
  const verdict = test?.verdict;
  switch (state.name) {
    case 'running':
      return { label: 'Under way', tone: 'busy' };
    case 'stopping':
      return { label: 'Stopping', tone: 'attention', reason: state.error.message };
    case 'stopped':
      return { label: 'Stopped', tone: 'attention', reason: state.error.message };
    case 'completed':
      if (kind === 'test') return { label: 'Passed, still kept', tone: 'good' };
      return {
        label: 'All replicas run',
        tone: 'good',
        reason:
          'It can still be undone. Commit it once you have seen that the servers do their work.',
      };
    case 'failed':
      return { label: 'Failed', tone: 'bad', reason: state.error.message };
    case 'undoing':
      return { label: kind === 'test' ? 'Being taken down' : 'Undoing', tone: 'busy' };
    case 'undone':
      if (kind !== 'test') {
        return { label: 'Undone', tone: 'neutral', reason: 'The jobs are as they were before.' };
      }
      if (!verdict)
        return { label: 'Ended', tone: 'neutral', reason: 'It was ended before its verdict.' };
      return verdict.passed
        ? { label: 'Passed', tone: 'good', reason: verdict.words }
        : { label: 'Failed', tone: 'bad', reason: verdict.words };
    case 'committing':
      return { label: 'Committing', tone: 'busy' };
    case 'committed':
      return { label: 'Committed', tone: 'good', reason: 'The replicas are the servers now.' };
  }
}

export function describeMember(member: GroupRunView['members'][number]): JobWords {
  const { state } = member;
  switch (state.name) {
    case 'waiting':
      return { label: 'Waiting', tone: 'neutral' };
    case 'refused':
      return { label: 'Not begun', tone: 'bad', reason: state.error.message };
    case 'begun':
      return describeFailover({ state: state.failover, replicaVm: null });
  }
}

export const waitWords = (wait: GroupWait): string =>
  wait.for === 'proof'
    ? 'when all before have proven that they boot'
    : `${formatDuration(wait.seconds * 1000)} after the last before was powered on`;

export const apartWords = (ms: number | null): string =>
  ms === null
    ? 'not known: the clock of a member was never compared'
    : ms === 0
      ? 'one member only'
      : `at most ${Math.ceil(ms)} ms`;

export function targetWords(run: Pick<GroupRunView, 'target' | 'kind'>): string {
  switch (run.target.name) {
    case 'final':
      return 'the last state of each source server';
    case 'moment':
      return 'one moment';
    case 'mark':
      return `the mark “${run.target.markName}”`;
  }
}

/** The common timeline in the form in which a job's is drawn: what is no stretch is no common point. */
export const groupTimeline = ({ stretches, marks, newestAt }: GroupPoints): TimelinePoints => ({
  stretches: stretches.map((stretch) => ({
    ...stretch,
    fromSeq: 0,
    toSeq: 0,
    fromBootMs: 0,
    toBootMs: 0,
  })),
  gaps: [],
  marks: marks
    .filter(({ recoverable }) => recoverable)
    .map(({ markId, at, name, quiesced }) => ({ pointId: markId, at, name, quiesced, seq: 0 })),
  labels: [],
  newestAt,
});

/** Members by priority, in the order of the group. */
export const inOrder = <T extends { priority: number }>(members: readonly T[]): T[] =>
  members.toSorted((a, b) => a.priority - b.priority);

/** The mark at a moment that was picked, if it is one. */
export const markAt = (points: GroupPoints, atMs: number | null) =>
  points.marks.find(({ at, recoverable }) => recoverable && Date.parse(at) === atMs) ?? null;

export const runOf = (
  { groupId, runId }: Group,
  runs: ReadonlyMap<string, GroupRunView>,
): GroupRunView | null => {
  const open = runId === null ? undefined : runs.get(runId);
  if (open) return open;
  const mine = [...runs.values()].filter((run) => run.groupId === groupId);
  return mine.toSorted((a, b) => b.startedAt.localeCompare(a.startedAt))[0] ?? null;
};
