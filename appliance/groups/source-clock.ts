/**
 * Pure: how far the wall clock of a source is from the appliance's, and how well that is known. The agent reads its clock
 * between our question and its answer, which bounds the difference by half of the way there and back (Cristian, 1989),
 * whatever the network does. Recovery points carry the source's wall clock, so what held in the past is kept as well.
 */

/** One exchange; milliseconds, the first two of the appliance's wall clock. */
export interface ClockReading {
  askedMs: number;
  answeredMs: number;
  sourceMs: number;
}

/** From `fromMs` (appliance's clock) on: source's clock minus appliance's clock, and how wrong that may be. */
export interface ClockOffset {
  fromMs: number;
  offsetMs: number;
  errorMs: number;
}

/** A clock that is being disciplined moves; less than this is no new offset. */
const SLACK_MS = 5;
/** An answer that was so long on its way says nothing, unless nothing else is known or it contradicts. */
const POOR_MS = 50;
/** A clock that goes back by more was set. */
const STEP_MS = 50;
/** Older ones leave: a clock that is set so often is no clock. */
const MAX_OFFSETS = 500;

/** What one exchange says. All three clocks are read in whole milliseconds, which is a millisecond of doubt each. */
export function offsetOf({ askedMs, answeredMs, sourceMs }: ClockReading): ClockOffset {
  const low = sourceMs - answeredMs - 1;
  const high = sourceMs - askedMs + 1;
  return { fromMs: answeredMs, offsetMs: (low + high) / 2, errorMs: (high - low) / 2 };
}

/**
 * The offsets with one more reading; the same array if it says nothing new. `errorMs` of the last one covers every reading
 * that was counted to it.
 * @param offsets oldest first
 */
export function withReading(
  offsets: readonly ClockOffset[],
  reading: ClockReading,
): readonly ClockOffset[] {
  const next = offsetOf(reading);
  const last = offsets.at(-1);
  if (!last) return [next];
  const apartMs = Math.abs(next.offsetMs - last.offsetMs);
  const contradicts = apartMs > last.errorMs + next.errorMs;
  const better = next.errorMs + SLACK_MS < last.errorMs;
  const moved = apartMs > last.errorMs + SLACK_MS && next.errorMs < POOR_MS;
  // A step of our own clock sets no order: what comes last holds.
  if (contradicts || better || moved) return [...offsets, next].slice(-MAX_OFFSETS);
  if (next.errorMs >= POOR_MS) return offsets;
  const errorMs = apartMs + next.errorMs;
  if (errorMs <= last.errorMs) return offsets;
  return [...offsets.slice(0, -1), { ...last, errorMs }];
}

const NONE: Pick<ClockOffset, 'offsetMs'> & { errorMs: null } = { offsetMs: 0, errorMs: null };

/** What held at a moment of the appliance's clock; before the first reading, what that said. Never read: no offset, error not known. */
export function offsetAt(
  offsets: readonly ClockOffset[],
  atMs: number,
): { offsetMs: number; errorMs: number | null } {
  return offsets.findLast(({ fromMs }) => fromMs <= atMs) ?? offsets[0] ?? NONE;
}

/** A moment of the source's wall clock by the appliance's; one that was there twice means the second time. */
export function toAppliance(offsets: readonly ClockOffset[], sourceMs: number): number {
  return sourceMs - heldAt(offsets, sourceMs).offsetMs;
}

const heldAt = (
  offsets: readonly ClockOffset[],
  sourceMs: number,
): { offsetMs: number; errorMs: number | null } =>
  offsets.findLast(({ fromMs, offsetMs }) => fromMs + offsetMs <= sourceMs) ?? offsets[0] ?? NONE;

/** What held at a moment of the source's wall clock that was not after `notAfterMs`. */
const heldUntil = (
  offsets: readonly ClockOffset[],
  sourceMs: number,
  notAfterMs: number,
): { offsetMs: number; errorMs: number | null } =>
  offsets.findLast(
    ({ fromMs, offsetMs, errorMs }) =>
      fromMs + offsetMs <= sourceMs && sourceMs - offsetMs <= notAfterMs + errorMs + STEP_MS,
  ) ?? heldAt(offsets, sourceMs);

/** As `toAppliance`, of a moment that was not after `notAfterMs`: a clock that was set back since does not make it a later one. */
export const toApplianceUntil = (
  offsets: readonly ClockOffset[],
  sourceMs: number,
  notAfterMs: number,
): number => sourceMs - heldUntil(offsets, sourceMs, notAfterMs).offsetMs;

/** As that, but the earliest that it may have been: what is counted from there is never too little. */
export function earliestOnAppliance(
  offsets: readonly ClockOffset[],
  sourceMs: number,
  notAfterMs: number,
): number {
  const { offsetMs, errorMs } = heldUntil(offsets, sourceMs, notAfterMs);
  return sourceMs - offsetMs - (errorMs ?? 0);
}

/**
 * The moments of the appliance's clock that the source's wall clock names, oldest first: not those shortly before it was set
 * back, whose times came, or will come, a second time.
 */
export function namedMoments(offsets: readonly ClockOffset[]): { fromMs: number; toMs: number }[] {
  const named: { fromMs: number; toMs: number }[] = [];
  let endMs = Number.POSITIVE_INFINITY;
  /** The least that the source's clock showed in what comes behind the next offset. */
  let leastMs = Number.POSITIVE_INFINITY;
  for (let index = offsets.length - 1; index >= 0; index--) {
    const { fromMs, offsetMs } = offsets[index]!;
    const next = offsets[index + 1];
    // A clock that is being disciplined goes back by little, which is no reason to leave anything out.
    const wasSetBack = next && next.offsetMs < offsetMs - STEP_MS;
    const againMs = wasSetBack ? next.fromMs + next.offsetMs : Number.POSITIVE_INFINITY;
    const from = index === 0 ? Number.NEGATIVE_INFINITY : fromMs;
    const toMs = Math.min(endMs, Math.min(leastMs, againMs) - offsetMs - 1);
    const isNamed = from <= toMs;
    if (isNamed) named.unshift({ fromMs: from, toMs });
    // Its first moment is of this offset.
    endMs = isNamed ? fromMs : fromMs - 1;
    if (next) leastMs = Math.min(leastMs, next.fromMs + next.offsetMs);
  }
  return named.length > 0
    ? named
    : [{ fromMs: Number.NEGATIVE_INFINITY, toMs: Number.POSITIVE_INFINITY }];
}

/** A moment of the appliance's clock by the source's wall clock. */
export const toSource = (offsets: readonly ClockOffset[], atMs: number): number =>
  atMs + offsetAt(offsets, atMs).offsetMs;
