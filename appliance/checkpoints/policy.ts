/** When a checkpoint is taken on schedule, and which checkpoints are given up. Pure. */
import type { AppliedPoint } from '../replication/replication-stream.ts';

export interface DueFacts {
  /** What the replica disks hold now; null: no point. */
  point: AppliedPoint | null;
  /** The newest frame on them that changed something. */
  dataSeq: number;
  /** The newest checkpoint of the same journal. */
  newest: { seq: number; takenMs: number } | null;
  /** What a replay from the newest checkpoint to now would unpack. */
  replayBytes: number;
  nowMs: number;
  everyMs: number;
}

/** The schedule of a job that says nothing of it. */
export const CHECKPOINT_MINUTES = 15;
/**
 * So much is replayed in 40 s at the 100 MB/s that random writes of 64 KiB into a fresh layer were measured at
 * (docs/figures.md).
 */
export const REPLAY_BYTES = 4 * 1024 ** 3;
/** Not more often for that: each checkpoint is a layer, and is merged again. 16 of them are an hour then. */
export const DENSEST_MS = 225_000;

/**
 * Why a checkpoint is due, or null. The first one of an ordered stretch is due at once: without it no moment of the
 * stretch could be recovered once apply has gone past it. Of a source that writes much they come earlier than on schedule.
 */
export function dueCheckpoint(facts: DueFacts): string | null {
  const { point, dataSeq, newest, replayBytes, nowMs, everyMs } = facts;
  if (!point) return null;
  if (!newest || newest.seq < point.sinceSeq) return 'the replica became consistent';
  const ageMs = nowMs - newest.takenMs;
  if (dataSeq <= newest.seq) return null;
  // Until the clock is where it was, nobody knows how old it is; that may be days.
  if (ageMs < 0) return 'the clock was set back';
  if (ageMs >= everyMs) return 'schedule';
  return replayBytes >= REPLAY_BYTES && ageMs >= DENSEST_MS ? 'much was written' : null;
}

export interface MergePolicy {
  /** Most checkpoints of a job; one layer each, and the writable one on top. */
  maxCheckpoints: number;
  /** As many where something rests on old ones, which then cannot be given up in place of new ones. */
  maxWhileHeld: number;
  /** So many older ones stay even when the newest hour alone fills the chain: without them all that is older is gone. */
  olderAtLeast: number;
  /** Checkpoints younger than this are kept as dense as they were taken, and the one that this time begins from. */
  denseMs: number;
  /** How far apart older ones are, and those older than a day. */
  hourlyMs: number;
  dailyMs: number;
}

/** 24: at the densest 16 an hour, the one that the hour begins from, and 7 for everything older. */
export const MERGE_POLICY: MergePolicy = {
  maxCheckpoints: 24,
  maxWhileHeld: 48,
  olderAtLeast: 3,
  denseMs: 60 * 60_000,
  hourlyMs: 60 * 60_000,
  dailyMs: 24 * 60 * 60_000,
};

/** A checkpoint as far as its retention is concerned. */
export interface RetainedCheckpoint {
  checkpointId: number;
  journalId: string;
  seq: number;
  sinceSeq: number;
  /** By the appliance's clock, and by the source's. */
  takenMs: number;
  sourceMs: number;
  /** Something rests on its layers. */
  held: boolean;
}

export interface MergeFacts {
  nowMs: number;
  /** What can be replayed: frames of this journal from this one on. */
  history: { journalId: string; oldestSeq: number };
}

/** The layers of `upperId` go into those of `lowerId`: the point of `lowerId` is given up, that of `upperId` stays. */
export interface Merge {
  lowerId: number;
  upperId: number;
}

/**
 * Which neighbours are merged, in order. The newest hour stays as it was taken, so that no moment in it has more to replay
 * than `dueCheckpoint` left; what is older gets the thinner the older it is, and makes the room for that. Only an hour that
 * has too many for the chain by itself is thinned, evenly.
 *
 * The newest stays. Nothing is merged that something rests on, directly or through the layers above: its content, or its
 * file, would go; the chain then gets longer, up to `maxWhileHeld`. The first checkpoint that a stretch of the history can
 * be replayed from stays while there are not too many: without it the time up to the next one is lost.
 *
 * @param checkpoints oldest first, in the order of the chain
 */
export function planMerges(
  checkpoints: readonly RetainedCheckpoint[],
  facts: MergeFacts,
  policy: MergePolicy = MERGE_POLICY,
): Merge[] {
  const left = [...checkpoints];
  const merges: Merge[] = [];
  for (;;) {
    const index = nextToGiveUp(left, facts, policy);
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
  { nowMs, history }: MergeFacts,
  policy: MergePolicy,
): number | null {
  const { maxCheckpoints, maxWhileHeld, olderAtLeast } = policy;
  const count = checkpoints.length;
  const ages = agesOf(checkpoints, nowMs);
  // The one below the oldest of the hour is what the first moments of the hour are replayed from.
  const older = Math.max(0, ages.filter((ageMs) => ageMs >= policy.denseMs).length - 1);
  const lastHeld = checkpoints.findLastIndex(({ held }) => held);
  let oldest: Candidate | null = null;
  let dense: Candidate | null = null;
  for (let index = lastHeld + 1; index < count - 1; index++) {
    const [before, one, next] = [index - 1, index, index + 1].map((at) => checkpoints[at]);
    const begins = !before || (reaches(one!, history) && !replays(before, one!, history));
    const gapMs = apart(before, one!) + apart(one!, next!);
    const ageMs = Math.max(1, ages[index]!);
    if (index >= older) {
      dense = lesser(dense, { index, cost: gapMs, begins });
      continue;
    }
    if (!begins && gapMs <= (ageMs > policy.dailyMs ? policy.dailyMs : policy.hourlyMs)) {
      return index;
    }
    // The same gap is the less of a loss the older it is.
    oldest = lesser(oldest, { index, cost: (gapMs / ageMs) * (begins ? 4 : 1), begins: false });
  }
  if (count <= maxCheckpoints) return null;
  if (older > olderAtLeast && oldest) return oldest.index;
  const denseAtMost = maxCheckpoints - Math.min(older, olderAtLeast);
  return count - older > denseAtMost || count > maxWhileHeld ? (dense?.index ?? null) : null;
}

interface Candidate {
  index: number;
  cost: number;
  /** Goes after all others. */
  begins: boolean;
}

function lesser(best: Candidate | null, one: Candidate): Candidate {
  if (!best) return one;
  if (best.begins !== one.begins) return best.begins ? one : best;
  return one.cost < best.cost ? one : best;
}

/** How old each is. Where the clock was set back, one is as old as the next newer one at least. */
function agesOf(checkpoints: readonly RetainedCheckpoint[], nowMs: number): number[] {
  let atLeastMs = 0;
  return checkpoints
    .map(({ takenMs }) => nowMs - takenMs)
    .reverse()
    .map((ageMs) => {
      atLeastMs = Math.max(atLeastMs, ageMs);
      return atLeastMs;
    })
    .reverse();
}

/** By the clock that says more: one of them may have been set back in between. */
const apart = (lower: RetainedCheckpoint | undefined, upper: RetainedCheckpoint): number =>
  lower ? Math.max(0, upper.takenMs - lower.takenMs, upper.sourceMs - lower.sourceMs) : 0;

/** Whether the frames behind it are in the history. */
const reaches = (one: RetainedCheckpoint, { journalId, oldestSeq }: MergeFacts['history']) =>
  one.journalId === journalId && one.seq + 1 >= oldestSeq;

/** Whether a replay leads from the lower to the upper. */
const replays = (
  lower: RetainedCheckpoint,
  upper: RetainedCheckpoint,
  history: MergeFacts['history'],
): boolean =>
  reaches(lower, history) &&
  lower.journalId === upper.journalId &&
  lower.sinceSeq === upper.sinceSeq;
