/** A failover of a group: its persisted record. Plain JSON, no behaviour. */
import type { ApiError } from '../api/schema.ts';

/** What opens the way for the members of the next priority. */
export type GroupWait =
  /** Every member before has proven that it boots. */
  | { for: 'proof' }
  /** So long after the last member before was powered on. */
  | { for: 'delay'; seconds: number };

/** What all members are recovered to. */
export type GroupTarget =
  /** Of the appliance's clock. */
  | { name: 'moment'; at: string; errorMs: number | null }
  | { name: 'mark'; markId: string; markName: string; at: string; errorMs: number | null }
  /** Planned: each member's final mark. */
  | { name: 'final' };

export interface RunMember {
  jobId: string;
  sourceName: string;
  replicaName: string;
  /** 1 is first. */
  priority: number;
  /** The member's moment by its own wall clock; null: its final mark. */
  sourceTime: string | null;
  /** Chosen before it is begun: after a crash the engine tells whether it was. */
  failoverId: string;
  /** Why the engine did not begin it; nothing was changed then. */
  refused: ApiError | null;
}

/**
 * `running` to `stopping` and `undoing` and `committing` go on by themselves; `stopped` and `completed` wait for a person; the
 * others are over.
 */
export type RunPhase =
  | { name: 'running' }
  /** A member failed: no other is begun, those under way come to their end. */
  | { name: 'stopping'; error: ApiError }
  /** Some replicas run, others do not. */
  | { name: 'stopped'; error: ApiError }
  | { name: 'completed' }
  /** No replica runs, every member replicates again. */
  | { name: 'failed'; error: ApiError }
  | { name: 'undoing' }
  | { name: 'undone' }
  | { name: 'committing' }
  | { name: 'committed' };

export interface GroupRun {
  version: 1;
  runId: string;
  groupId: string;
  groupName: string;
  kind: 'unplanned' | 'planned' | 'test';
  target: GroupTarget;
  wait: GroupWait;
  members: RunMember[];
  /** Unplanned: replicas are powered on although their sources still answer. */
  evenIfAlive: boolean;
  /** Planned: sources are powered off; else their agents become passive. */
  powerOff: boolean;
  /** Sources that come back cut themselves off from the network. */
  isolateOnReturn: boolean;
  /** Of a test: how long it is kept when all have proven that they boot, what it came to, and when it ends. */
  test: {
    /** Absent in records of before groups had a schedule of tests. */
    trigger?: 'person' | 'schedule';
    keepMinutes: number;
    verdict: { passed: boolean; words: string; at: string } | null;
    endsAt: string | null;
  } | null;
  startedAt: string;
  endedAt: string | null;
  phase: RunPhase;
}

/** Whether it is over: nothing of it stands, or all of it for good. */
export const isOver = ({ phase }: Pick<GroupRun, 'phase'>): boolean =>
  phase.name === 'failed' || phase.name === 'undone' || phase.name === 'committed';
