/**
 * Pure: what the timeline of recovery points shows of a stretch of time, in fractions of its width. The component
 * draws it; tests look at it without a browser.
 */
import type { JobPoints, PointGap } from '../../../api/schema.ts';

/** What of a history is drawn; of a group it is what all members have in common. */
export type TimelinePoints = Pick<
  JobPoints,
  'stretches' | 'gaps' | 'marks' | 'labels' | 'newestAt'
>;

export interface Range {
  fromMs: number;
  toMs: number;
}

export interface Segment extends Range {
  /** 0 to 1. */
  from: number;
  to: number;
}

export type GapSegment = Segment & { kind: PointGap['kind']; reason: string; open: boolean };
export type Tick = {
  at: number;
  atMs: number;
  text: string;
  /** A mark was asked for by name when it was made; a label is a name that a person gave later. */
  kind: 'mark' | 'label';
  /** Marks: application-consistent. */
  quiesced: boolean;
  id: string;
};

export interface TimelineView {
  stretches: Segment[];
  gaps: GapSegment[];
  ticks: Tick[];
  axis: Array<{ at: number; atMs: number }>;
}

const ms = (at: string): number => Date.parse(at);
const MINUTE = 60_000;
/** No closer: a point is found to the second. */
export const MIN_SPAN_MS = 2 * MINUTE;

export const GAP_WORDS: Record<PointGap['kind'], string> = {
  'first-mirror': 'First mirror',
  'difference-mirror': 'Difference mirror',
  'order-lost': 'Order of writes lost',
  draining: 'Draining',
  'source-away': 'Source away',
  repetition: 'Writes repeated',
  missing: 'History missing',
};

/** From the oldest moment that is known to the newest, or to now while a gap goes on; null before there is anything. */
export function wholeRange(points: TimelinePoints, nowMs: number): Range | null {
  const starts = [...points.stretches, ...points.gaps].map(({ fromAt }) => ms(fromAt));
  if (starts.length === 0) return null;
  const ends = [...points.stretches, ...points.gaps].map(({ toAt }) => (toAt ? ms(toAt) : nowMs));
  const fromMs = Math.min(...starts);
  return { fromMs, toMs: Math.max(...ends, fromMs + MIN_SPAN_MS) };
}

export function timelineView(points: TimelinePoints, range: Range, nowMs: number): TimelineView {
  const spanMs = range.toMs - range.fromMs;
  const part = (at: number) => Math.min(1, Math.max(0, (at - range.fromMs) / spanMs));
  const within = (fromMs: number, toMs: number) => toMs >= range.fromMs && fromMs <= range.toMs;
  const segment = (fromMs: number, toMs: number): Segment => ({
    fromMs,
    toMs,
    from: part(fromMs),
    to: part(toMs),
  });
  const stretches = points.stretches
    .map(({ fromAt, toAt }) => segment(ms(fromAt), ms(toAt)))
    .filter(({ fromMs, toMs }) => within(fromMs, toMs));
  const gaps = points.gaps
    .map(({ fromAt, toAt, kind, reason }) => ({
      ...segment(ms(fromAt), Math.max(ms(fromAt), toAt ? ms(toAt) : nowMs)),
      kind,
      reason,
      open: toAt === null,
    }))
    .filter(({ fromMs, toMs }) => within(fromMs, toMs));
  const ticks: Tick[] = [
    ...points.marks.map(({ at, name, pointId, quiesced }) =>
      tick('mark', at, name, pointId, quiesced),
    ),
    ...points.labels.map(({ at, text, labelId }) => tick('label', at, text, labelId, false)),
  ].filter(({ atMs }) => within(atMs, atMs));
  function tick(kind: Tick['kind'], at: string, text: string, id: string, quiesced: boolean): Tick {
    return { kind, at: part(ms(at)), atMs: ms(at), text, id, quiesced };
  }
  return {
    stretches,
    gaps,
    ticks: ticks.sort((a, b) => a.atMs - b.atMs),
    axis: axisOf(range).map((atMs) => ({ at: part(atMs), atMs })),
  };
}

const STEPS_MS = [
  10_000,
  30_000,
  MINUTE,
  2 * MINUTE,
  5 * MINUTE,
  10 * MINUTE,
  30 * MINUTE,
  60 * MINUTE,
  3 * 60 * MINUTE,
  6 * 60 * MINUTE,
  12 * 60 * MINUTE,
  24 * 60 * MINUTE,
  7 * 24 * 60 * MINUTE,
  30 * 24 * 60 * MINUTE,
];

/** Round moments, at most seven; round in the reader's own time zone. */
function axisOf({ fromMs, toMs }: Range): number[] {
  const step = STEPS_MS.find((one) => (toMs - fromMs) / one <= 7) ?? STEPS_MS.at(-1)!;
  const zoneMs = new Date(fromMs).getTimezoneOffset() * MINUTE;
  const first = Math.ceil((fromMs - zoneMs) / step) * step + zoneMs;
  const moments: number[] = [];
  for (let at = first; at <= toMs; at += step) moments.push(at);
  return moments;
}

/** What a moment is: in a stretch, in a gap (which), or outside what is known. */
export function momentOf(
  points: TimelinePoints,
  atMs: number,
  nowMs: number,
):
  | { name: 'point' }
  | { name: 'gap'; kind: PointGap['kind']; reason: string }
  | { name: 'outside' } {
  const covers = (fromAt: string, toAt: string | null) =>
    ms(fromAt) <= atMs && atMs <= (toAt ? ms(toAt) : nowMs);
  if (points.stretches.some(({ fromAt, toAt }) => covers(fromAt, toAt))) return { name: 'point' };
  const gap = points.gaps.find(({ fromAt, toAt }) => covers(fromAt, toAt));
  return gap ? { name: 'gap', kind: gap.kind, reason: gap.reason } : { name: 'outside' };
}

/** The range that is `factor` times as long, with `aroundMs` where it was, within the whole. */
export function zoomed(range: Range, whole: Range, aroundMs: number, factor: number): Range {
  const wholeMs = whole.toMs - whole.fromMs;
  const spanMs = range.toMs - range.fromMs;
  const nextMs = Math.min(wholeMs, Math.max(MIN_SPAN_MS, spanMs * factor));
  const part = (aroundMs - range.fromMs) / spanMs;
  return moved(
    { fromMs: aroundMs - part * nextMs, toMs: aroundMs + (1 - part) * nextMs },
    whole,
    0,
  );
}

/** The range moved by `byMs`, not past the ends of the whole. */
export function moved(range: Range, whole: Range, byMs: number): Range {
  const spanMs = range.toMs - range.fromMs;
  const fromMs = Math.max(
    whole.fromMs,
    Math.min(range.fromMs + byMs, Math.max(whole.fromMs, whole.toMs - spanMs)),
  );
  return { fromMs, toMs: fromMs + spanMs };
}
