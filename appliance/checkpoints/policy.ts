/** When a checkpoint is taken on schedule, and which checkpoints are given up. Pure. */
import type { AppliedPoint } from '../replication/replication-stream.ts';

export interface DueFacts {
  /** What the replica disks hold now; null: no point. */
  point: AppliedPoint | null;
  /** The newest frame on them that changed something. */
  dataSeq: number;
  /** The newest checkpoint of the same journal. */
  newest: { seq: number; takenMs: number } | null;
  nowMs: number;
  everyMs: number;
}

/**
 * Why a checkpoint is due, or null. The first one of an ordered stretch is due at once: without it no moment of the
 * stretch could be recovered once apply has gone past it.
 */
export function dueCheckpoint({ point, dataSeq, newest, nowMs, everyMs }: DueFacts): string | null {
  if (!point) return null;
  if (!newest || newest.seq < point.sinceSeq) return 'the replica became consistent';
  return dataSeq > newest.seq && nowMs - newest.takenMs >= everyMs ? 'schedule' : null;
}

export interface MergePolicy {
  /** Most checkpoints of a job; one layer each, and the writable one on top. */
  maxCheckpoints: number;
  /** Checkpoints younger than this are kept as dense as they were taken. */
  denseMs: number;
  /** How far apart older ones are, and those older than a day. */
  hourlyMs: number;
  dailyMs: number;
}

export const MERGE_POLICY: MergePolicy = {
  maxCheckpoints: 16,
  denseMs: 60 * 60_000,
  hourlyMs: 60 * 60_000,
  dailyMs: 24 * 60 * 60_000,
};

/** A checkpoint as far as its retention is concerned. */
export interface RetainedCheckpoint {
  checkpointId: number;
  takenMs: number;
  sinceSeq: number;
  /** Something rests on its layers. */
  held: boolean;
}

/** The layers of `upperId` go into those of `lowerId`: the point of `lowerId` is given up, that of `upperId` stays. */
export interface Merge {
  lowerId: number;
  upperId: number;
}

/**
 * Which neighbours are merged, in order, so that recent checkpoints stay dense, older ones get thin, and there are at most
 * `maxCheckpoints`. The newest stays. Nothing is merged that something rests on, directly or through the layers above:
 * its content, or its file, would go. While there are not too many, the first checkpoint of an ordered stretch stays as well: from it the whole
 * stretch can be replayed, and without it the time up to the next one could not.
 *
 * @param checkpoints oldest first, in the order of the chain
 */
export function planMerges(
  checkpoints: readonly RetainedCheckpoint[],
  nowMs: number,
  policy: MergePolicy = MERGE_POLICY,
): Merge[] {
  const left = [...checkpoints];
  const merges: Merge[] = [];
  for (;;) {
    const index = nextToGiveUp(left, nowMs, policy);
    if (index === null) return merges;
    merges.push({
      lowerId: left[index]!.checkpointId,
      upperId: left[index + 1]!.checkpointId,
    });
    left.splice(index, 1);
  }
}

function nextToGiveUp(
  checkpoints: readonly RetainedCheckpoint[],
  nowMs: number,
  policy: MergePolicy,
): number | null {
  let best: { index: number; cost: number } | null = null;
  const lastHeld = checkpoints.findLastIndex(({ held }) => held);
  for (let index = lastHeld + 1; index < checkpoints.length - 1; index++) {
    const one = checkpoints[index]!;
    const next = checkpoints[index + 1]!;
    const before = checkpoints[index - 1];
    const first = before?.sinceSeq !== one.sinceSeq;
    const ageMs = Math.max(1, nowMs - one.takenMs);
    const gapMs = next.takenMs - (before?.takenMs ?? one.takenMs);
    if (!first && ageMs > policy.denseMs) {
      const apartMs = ageMs > policy.dailyMs ? policy.dailyMs : policy.hourlyMs;
      if (gapMs <= apartMs) return index;
    }
    // The same gap is the less of a loss the older it is.
    const cost = (gapMs / ageMs) * (first ? 4 : 1);
    if (best === null || cost < best.cost) best = { index, cost };
  }
  return checkpoints.length > policy.maxCheckpoints ? (best?.index ?? null) : null;
}
