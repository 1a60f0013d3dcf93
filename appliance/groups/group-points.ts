/** Pure: what a group can be recovered to, from what its members can be recovered to and what their clocks say. */
import type { Stretch } from '../points/point-index.ts';
import type { GroupMarkRow } from '../state/groups.ts';
import {
  type ClockOffset,
  namedMoments,
  offsetAt,
  toAppliance,
  toApplianceUntil,
  toSource,
} from './source-clock.ts';
import { commonIntervals, type Interval } from './timeline.ts';

export interface MemberPoints {
  jobId: string;
  /** By the source's wall clock. */
  stretches: readonly (Interval & Pick<Stretch, 'fromBootNs' | 'toBootNs'>)[];
  clock: readonly ClockOffset[];
  /** Points that were asked for by name and are still in the history, by id. */
  marks: ReadonlyMap<string, { sourceMs: number }>;
}

/**
 * An agent closes a frame after so long: a member's point may lack what was written in this time before the moment. At the
 * end of a second of the member's clock it lacks nothing.
 */
export const FRAME_MS = 50;

/**
 * Each stretch by its end, which is before the next one's begin, and by its length, which the source's boot-time clock tells:
 * the wall clock may have been set within it.
 */
function onAppliance({ stretches, clock }: MemberPoints, nowMs: number): Interval[] {
  const mapped: Interval[] = [];
  let notAfterMs = nowMs;
  for (const { toMs: endMs, fromBootNs, toBootNs } of stretches.toReversed()) {
    const toMs = toApplianceUntil(clock, endMs, notAfterMs);
    const fromMs = toMs - Number(toBootNs - fromBootNs) / 1e6;
    mapped.push({ fromMs, toMs });
    notAfterMs = fromMs;
  }
  return commonIntervals([mapped, namedMoments(clock)]);
}

/** The moments, of the appliance's clock, at which every member has a recovery point. */
export const commonMoments = (members: readonly MemberPoints[], nowMs = Date.now()): Interval[] =>
  commonIntervals(members.map((member) => onAppliance(member, nowMs)));

/** The newest common moment, or the newest one at or before `atMs`; null if there is none. */
export function commonMoment(
  members: readonly MemberPoints[],
  atMs: number | null,
  nowMs = Date.now(),
): number | null {
  const common = commonMoments(members, nowMs);
  if (atMs === null) return common.at(-1)?.toMs ?? null;
  const within = common.findLast(({ fromMs }) => fromMs <= atMs);
  return within ? Math.min(within.toMs, atMs) : null;
}

/** A moment of the appliance's clock by the member's, in whole milliseconds, never later. */
export const memberTime = ({ clock }: Pick<MemberPoints, 'clock'>, atMs: number): number =>
  Math.floor(toSource(clock, atMs));

/** How far apart two members may be when each is as wrong as its clock's error: the sum of the two largest; null: not known. */
export function apartBound(errors: readonly (number | null)[], extraMs: number): number | null {
  if (errors.length < 2) return 0;
  if (errors.includes(null)) return null;
  const [first, second] = (errors as number[]).toSorted((a, b) => b - a);
  return first! + second! + extraMs;
}

/** As `apartBound`, of the members recovered to one moment. */
export const momentError = (
  members: readonly Pick<MemberPoints, 'clock'>[],
  atMs: number,
): number | null =>
  apartBound(
    members.map(({ clock }) => offsetAt(clock, atMs).errorMs),
    FRAME_MS,
  );

/**
 * When the members' points were, and how far apart at most.
 * @param marks the moments of the points by the members' own clocks
 */
export function judgeMark(marks: readonly { sourceMs: number; clock: readonly ClockOffset[] }[]): {
  atMs: number;
  apartMs: number | null;
} {
  const moments = marks.map(({ sourceMs, clock }) => toAppliance(clock, sourceMs));
  const first = Math.min(...moments);
  const last = Math.max(...moments);
  const errors = marks.map(({ clock }, index) => offsetAt(clock, moments[index]!).errorMs);
  // Marks carry whole milliseconds.
  return { atMs: (first + last) / 2, apartMs: apartBound(errors, last - first + 1) };
}

/** Whether every member's point of the mark is still in its history, and the mark is of the members as they are now. */
export function markIsRecoverable(
  mark: Pick<GroupMarkRow, 'members'>,
  members: readonly MemberPoints[],
): boolean {
  return members.every(({ jobId, marks }) =>
    mark.members.some((point) => point.jobId === jobId && marks.has(point.pointId)),
  );
}
