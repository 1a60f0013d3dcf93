/** What a person chose to recover, as it stands in the form. Pure. */
export interface ChosenPoint {
  kind: 'newest' | 'moment';
  /** What was typed or taken from the timeline; kept while `newest` is chosen. */
  text: string;
}

/** To begin with: the moment that was picked, else the newest point with the present moment to start typing from. */
export const chosenPoint = (atMs: number | null, nowMs: number): ChosenPoint => ({
  kind: atMs === null ? 'newest' : 'moment',
  text: new Date(atMs ?? nowMs).toISOString(),
});

/** The newest checkpoint at or before a moment: a point by itself where there is no journal. */
export const checkpointBefore = <T extends { sourceTime: string }>(
  checkpoints: readonly T[],
  atMs: number,
): T | null =>
  checkpoints
    .filter(({ sourceTime }) => Date.parse(sourceTime) <= atMs)
    .reduce<T | null>(
      (newest, one) =>
        newest && Date.parse(newest.sourceTime) >= Date.parse(one.sourceTime) ? newest : one,
      null,
    );

const MOMENT = /^(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d)(:\d\d(?:\.\d{1,3})?)?Z?$/;

/** As the API takes it; null while what was typed is no moment. UTC, the Z and the seconds may be left out. */
export function chosenMoment({
  kind,
  text,
}: ChosenPoint): 'newest' | { sourceTime: string } | null {
  if (kind === 'newest') return 'newest';
  const [, day, minute, second] = MOMENT.exec(text.trim()) ?? [];
  if (!day || !minute) return null;
  const sourceTime = `${day}T${minute}${second ?? ':00'}Z`;
  const parsed = new Date(sourceTime);
  // The 31st of February is one of March to the parser.
  if (Number.isNaN(parsed.getTime()) || !parsed.toISOString().startsWith(day)) return null;
  return { sourceTime };
}
