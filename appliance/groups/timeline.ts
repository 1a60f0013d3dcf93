/**
 * Pure: which moments a group can be recovered to: those at which every member has a recovery point. Moments are of the
 * appliance's clock, so that the members' own clocks need not agree.
 */

/** Both ends belong to it. Milliseconds of the appliance's wall clock. */
export interface Interval {
  fromMs: number;
  toMs: number;
}

/** The same moments, oldest first, in intervals that neither overlap nor touch. A wall clock that was set back makes both. */
export function union(intervals: readonly Interval[]): Interval[] {
  const merged: Interval[] = [];
  for (const { fromMs, toMs } of intervals.toSorted((a, b) => a.fromMs - b.fromMs)) {
    const last = merged.at(-1);
    if (last && fromMs <= last.toMs) last.toMs = Math.max(last.toMs, toMs);
    else merged.push({ fromMs, toMs });
  }
  return merged;
}

/** The moments that are in both, both as `union` makes them. */
function meet(a: readonly Interval[], b: readonly Interval[]): Interval[] {
  const common: Interval[] = [];
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    const fromMs = Math.max(a[i]!.fromMs, b[j]!.fromMs);
    const toMs = Math.min(a[i]!.toMs, b[j]!.toMs);
    if (fromMs <= toMs) common.push({ fromMs, toMs });
    if (a[i]!.toMs < b[j]!.toMs) i++;
    else j++;
  }
  return common;
}

/** The moments that every member can be recovered to, oldest first, without overlaps. No member: none. */
export function commonIntervals(members: readonly (readonly Interval[])[]): Interval[] {
  const [first, ...others] = members.map(union);
  return others.reduce(meet, first ?? []);
}

/** Whether one of `intervals` has the moment in it. */
export const holds = (intervals: readonly Interval[], atMs: number): boolean =>
  intervals.some(({ fromMs, toMs }) => fromMs <= atMs && atMs <= toMs);
