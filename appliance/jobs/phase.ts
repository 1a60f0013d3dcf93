/**
 * What is persisted of a job's life. It says which work is under way and so where to go on after a restart; what a
 * person sees (`JobState`) is derived from it and from live facts by `job-state.ts`.
 *
 * creating -> active <-> failing-over -> failed-over -> (undone) active
 * creating or active -> deleting -> gone; a failover that is committed ends the job by itself
 */
import type { SerialisedError } from '../../protocol/errors.ts';

export type JobPhase =
  /** Volumes are being made; `failed` when the last try failed and nobody tries on by itself. */
  | { name: 'creating'; failed: SerialisedError | null }
  /** Volumes exist; the stream takes frames unless a person paused it. */
  /** `tainted`: somebody else has written to the replica disks, or may have; over restarts, until a person resumes. */
  | { name: 'active'; paused: boolean; tainted?: SerialisedError }
  | { name: 'failing-over'; failoverId: string }
  | { name: 'failed-over'; failoverId: string }
  | { name: 'deleting'; disks: 'keep' | 'delete'; failed: SerialisedError | null };

export type JobEvent =
  | { type: 'created' }
  | { type: 'create-failed'; error: SerialisedError }
  | { type: 'retried' }
  | { type: 'paused' }
  | { type: 'resumed' }
  | { type: 'tainted'; error: SerialisedError }
  | { type: 'failover-started'; failoverId: string }
  /** Compensated or undone: the job replicates again. */
  | { type: 'failover-reverted'; failoverId: string }
  | { type: 'failover-completed'; failoverId: string }
  | { type: 'deletion-asked'; disks: 'keep' | 'delete' }
  | { type: 'delete-failed'; error: SerialisedError };

/** The next phase, or null when the event is not allowed in this one. */
export function nextPhase(phase: JobPhase, event: JobEvent): JobPhase | null {
  switch (event.type) {
    case 'created':
      return phase.name === 'creating' ? { name: 'active', paused: false } : null;
    case 'create-failed':
      return phase.name === 'creating' ? { name: 'creating', failed: event.error } : null;
    case 'retried':
      if (phase.name === 'creating') return { name: 'creating', failed: null };
      return phase.name === 'deleting' ? { ...phase, failed: null } : null;
    case 'paused':
      return phase.name === 'active' ? { ...phase, paused: true } : null;
    case 'tainted':
      return phase.name === 'active' ? { ...phase, tainted: event.error } : null;
    case 'resumed':
      return phase.name === 'active' ? { name: 'active', paused: false } : null;
    case 'failover-started':
      return phase.name === 'active'
        ? { name: 'failing-over', failoverId: event.failoverId }
        : null;
    case 'failover-completed':
      return phase.name === 'failing-over' && phase.failoverId === event.failoverId
        ? { name: 'failed-over', failoverId: event.failoverId }
        : null;
    case 'failover-reverted':
      return (phase.name === 'failing-over' || phase.name === 'failed-over') &&
        phase.failoverId === event.failoverId
        ? { name: 'active', paused: false }
        : null;
    case 'deletion-asked':
      if (phase.name !== 'creating' && phase.name !== 'active') return null;
      return { name: 'deleting', disks: event.disks, failed: null };
    case 'delete-failed':
      return phase.name === 'deleting' ? { ...phase, failed: event.error } : null;
    default:
      return event satisfies never;
  }
}
