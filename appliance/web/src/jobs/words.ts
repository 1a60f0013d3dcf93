import type { Failover, Job, TakenPoint } from '../../../api/schema.ts';
import { formatBytes, formatDuration, formatRelative } from '../format.ts';
import type { Tone } from '../parts/tone.ts';

export interface JobWords {
  label: string;
  tone: Tone;
  reason?: string;
}

/** A protection job's state as a person reads it. */
export function describeJob(job: Pick<Job, 'state' | 'stream'>): JobWords {
  const { state } = job;
  switch (state.name) {
    case 'creating':
      return { label: 'Creating', tone: 'busy', reason: state.step };
    case 'waiting-for-agent':
      return { label: 'Waiting for agent', tone: 'attention', reason: state.reason };
    case 'mirroring':
      return { label: 'Mirroring', tone: 'busy', reason: state.reason };
    case 'catching-up':
      return { label: 'Catching up', tone: 'busy', reason: state.reason };
    case 'protected':
      return job.stream.mode === 'tracking'
        ? {
            label: 'Protected',
            tone: 'attention',
            reason: `No new recovery points: ${job.stream.reason ?? 'the stream is in tracking mode'}`,
          }
        : { label: 'Protected', tone: 'good' };
    case 'paused':
      return { label: 'Paused', tone: 'attention', reason: state.reason };
    case 'failing-over':
      return { label: 'Failing over', tone: 'busy', reason: 'The replica is being started.' };
    case 'failed-over':
      return {
        label: 'Failed over',
        tone: 'neutral',
        reason: 'The replica has taken over; nothing is replicated.',
      };
    case 'error':
      return { label: 'Error', tone: 'bad', reason: state.error.message };
    case 'deleting':
      return { label: 'Deleting', tone: 'busy', reason: state.step };
  }
}

/** The four heaps of the overview. */
export type Heap = 'protected' | 'mirroring' | 'attention' | 'failed-over';

export function heapOf(job: Pick<Job, 'state' | 'stream'>): Heap {
  const { tone } = describeJob(job);
  if (tone === 'attention' || tone === 'bad') return 'attention';
  if (job.state.name === 'failing-over' || job.state.name === 'failed-over') return 'failed-over';
  return job.state.name === 'protected' ? 'protected' : 'mirroring';
}

const MODES = {
  ordered: {
    label: 'Ordered',
    tone: 'good',
    promise: 'Every write arrives in the order in which it was made.',
  },
  tracking: {
    label: 'Tracking',
    tone: 'attention',
    promise:
      'Changed blocks are remembered and nothing is lost, but there are no new recovery points.',
  },
  draining: {
    label: 'Draining',
    tone: 'busy',
    promise: 'Changed blocks are sent again; the next recovery point comes when that is done.',
  },
  none: { label: 'No stream', tone: 'neutral', promise: 'Nothing is captured now.' },
} as const;

/** A stream's mode, what it promises and why it is in it. */
export function describeStream(stream: Job['stream']): {
  label: string;
  tone: Tone;
  promise: string;
} {
  return MODES[stream.mode];
}

/** What the agent said longer ago than this is not said of now. */
const FRESH_MS = 15_000;

/** What a failover now would lose, in time and in data, and what is known of the figures; never more than is known. */
export function describeLag(
  figures: Pick<Job['figures'], 'lagMs' | 'lagBytes' | 'lagBytesAt' | 'newestPointAt'>,
  nowMs: number,
): { time: { value: string; note: string }; data: { value: string; note: string } } {
  const { lagMs, lagBytes, lagBytesAt, newestPointAt } = figures;
  const ago = (at: string) => formatRelative(Date.parse(at), nowMs);
  const time =
    lagMs !== null
      ? { value: formatDuration(lagMs), note: 'would be lost by a failover now' }
      : {
          value: 'unknown',
          note: newestPointAt
            ? `the newest point is of ${ago(newestPointAt)}, by the source's clock`
            : 'no point yet',
        };
  if (lagBytes === null || !lagBytesAt) {
    return {
      time,
      data: { value: 'unknown', note: 'the source has not told since the appliance started' },
    };
  }
  const value = formatBytes(lagBytes);
  const data =
    nowMs - Date.parse(lagBytesAt) < FRESH_MS
      ? { value, note: 'changed and not yet safe here' }
      : { value: `at least ${value}`, note: `told ${ago(lagBytesAt)}; what came since is unknown` };
  return { time, data };
}

export interface MirrorTotal {
  doneBytes: number;
  totalBytes: number;
  skippedBytes: number;
}

/** The mirror of all the job's disks together; null when no disk is being mirrored or has been told of. */
export function mirrorTotal(job: Pick<Job, 'disks'>): MirrorTotal | null {
  const mirrors = job.disks.flatMap((disk) => (disk.mirror ? [disk.mirror] : []));
  if (mirrors.length === 0) return null;
  return mirrors.reduce(
    (sum, mirror) => ({
      doneBytes: sum.doneBytes + mirror.doneBytes,
      totalBytes: sum.totalBytes + mirror.totalBytes,
      skippedBytes: sum.skippedBytes + mirror.skippedBytes,
    }),
    { doneBytes: 0, totalBytes: 0, skippedBytes: 0 },
  );
}

/** True while a replica is not a whole copy of its source: a failover could not boot it. */
export function mirrorIncomplete(job: Pick<Job, 'disks' | 'state'>): boolean {
  if (job.state.name === 'creating' || job.state.name === 'mirroring') return true;
  return job.disks.some((disk) => disk.mirror && disk.mirror.doneBytes < disk.mirror.totalBytes);
}

const VM_WORDS = {
  running: 'runs',
  paused: 'is paused',
  stopping: 'is stopping',
  off: 'is off',
  crashed: 'has crashed',
  absent: 'is gone',
  unknown: 'cannot be seen',
} as const;

/** The replica VM as the host has it after it was proven to boot. */
function describeReplicaVm(vm: NonNullable<Failover['replicaVm']>): JobWords {
  const label = `Replica ${VM_WORDS[vm.state]}`;
  const why = vm.reason ? ` (${vm.reason})` : '';
  if (vm.state === 'unknown') {
    return { label, tone: 'attention', reason: `The target host does not say how it is${why}.` };
  }
  return {
    label,
    tone: 'bad',
    reason: `It had booted, but the replica VM ${VM_WORDS[vm.state]} now${why}. Look at it on the target host; the failover can still be undone.`,
  };
}

/** A failover's state as a person reads it. */
/** A test in words: its verdict counts, not that it was taken down. */
function describeTest({ state, test }: Pick<Failover, 'state' | 'test'>): JobWords {
  const verdict = test?.verdict;
  if (verdict?.passed) {
    return state.name === 'completed'
      ? { label: 'Passed, VM kept', tone: 'good', reason: verdict.words }
      : { label: 'Passed', tone: 'good', reason: verdict.words };
  }
  if (verdict) return { label: 'Not passed', tone: 'bad', reason: verdict.words };
  return state.name === 'running'
    ? { label: 'Under way', tone: 'busy' }
    : { label: 'Ended', tone: 'neutral', reason: 'It was ended before there was a verdict.' };
}

export function describeFailover(
  failover: Pick<Failover, 'state' | 'replicaVm'> & Partial<Pick<Failover, 'test'>>,
): JobWords {
  if (failover.test) return describeTest({ state: failover.state, test: failover.test });
  const { state, replicaVm } = failover;
  switch (state.name) {
    case 'running':
      return { label: 'Under way', tone: 'busy' };
    case 'completed':
      if (replicaVm && replicaVm.state !== 'running') return describeReplicaVm(replicaVm);
      return {
        label: 'Replica runs',
        tone: 'good',
        reason:
          'It can still be undone. Commit it once you have seen that the server does its work.',
      };
    case 'compensating':
      return { label: 'Going back', tone: 'attention', reason: state.error.message };
    case 'failed':
      return { label: 'Failed', tone: 'bad', reason: state.error.message };
    case 'undoing':
      return { label: 'Undoing', tone: 'busy' };
    case 'undone':
      return { label: 'Undone', tone: 'neutral', reason: 'The job is as it was before.' };
    case 'committing':
      return { label: 'Committing', tone: 'busy' };
    case 'committed':
      return { label: 'Committed', tone: 'good', reason: 'The replica is the server now.' };
  }
}

/** What a planned restart of the source comes to, by the setting and by what the agent says of its machine. */
export function describeRestarts(
  carryRestarts: boolean | undefined,
  agent: Pick<NonNullable<Job['figures']['agent']>, 'carry'> | null,
): string {
  if (!carryRestarts) return 'compared anew';
  if (!agent) return 'carried over, as soon as the agent is there';
  // An agent from before the feature never says anything; any other one does so with its next status.
  const { ready, reason } = agent.carry ?? {
    ready: false,
    reason: 'the agent has not said that it can carry them over',
  };
  if (ready) return reason ? `carried over, but compared anew: ${reason}` : 'carried over';
  return reason ? `compared anew: ${reason}` : 'compared anew';
}

/** Schedules to choose from, in minutes; null: none. */
export const SCHEDULES: readonly (number | null)[] = [null, 15, 60, 240, 1440];

export function scheduleLabel(everyMinutes: number | null | undefined): string {
  if (!everyMinutes) return 'None';
  if (everyMinutes === 60) return 'Every hour';
  if (everyMinutes === 1440) return 'Every day';
  return everyMinutes % 60 === 0
    ? `Every ${everyMinutes / 60} hours`
    : `Every ${everyMinutes} minutes`;
}

/** What a point that was asked for promises. */
export function describePoint(point: Pick<TakenPoint, 'quiesced' | 'reason'>): {
  label: string;
  tone: Tone;
} {
  if (point.quiesced) return { label: 'Applications at rest', tone: 'good' };
  return { label: 'Crash-consistent', tone: point.reason ? 'attention' : 'neutral' };
}
