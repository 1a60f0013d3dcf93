/** Pure: recovery points as the API shows them. */
import type { JobPoints } from '../api/schema.ts';
import type { HistorySegment } from '../journal/journal.ts';
import { forecastHistory, measuredChurn } from '../points/forecast.ts';
import type { PointIndex } from '../points/point-index.ts';
import { percentOf, type Rebuild } from '../points/point-store.ts';
import type { LabelRow } from '../state/labels.ts';

const iso = (ms: number): string => new Date(ms).toISOString();
/** A link that flaps makes many; the oldest are of the least use. */
const MAX_GAPS = 2000;
const HOUR_MS = 3_600_000;

export interface HistoryFacts {
  segments: readonly HistorySegment[];
  limitBytes: number;
  maxAgeMs: number | null;
  oldestSeq: number;
}

/** @param index null while the stream is not open */
export function pointsView(
  index: PointIndex | null,
  labels: readonly LabelRow[],
  history: HistoryFacts | null,
  rebuild: Rebuild | null = null,
): JobPoints {
  const stretches = index?.stretches() ?? [];
  const recoverable = (at: number) =>
    stretches.some(({ fromMs, toMs }) => fromMs <= at && at <= toMs);
  return {
    stretches: stretches.map((stretch) => ({
      fromSeq: stretch.fromSeq,
      toSeq: stretch.toSeq,
      fromAt: iso(stretch.fromMs),
      toAt: iso(stretch.toMs),
      fromBootMs: Number(stretch.fromBootNs / 1_000_000n),
      toBootMs: Number(stretch.toBootNs / 1_000_000n),
    })),
    gaps: (index?.gaps() ?? []).slice(-MAX_GAPS).map(({ fromMs, toMs, ...gap }) => ({
      ...gap,
      fromAt: iso(fromMs),
      toAt: toMs === null ? null : iso(toMs),
    })),
    marks: (index?.marks() ?? []).map(({ sourceMs, ...mark }) => ({ ...mark, at: iso(sourceMs) })),
    labels: labels.map((label) => labelView(label, recoverable(Date.parse(label.at)))),
    newestAt: index?.newest ? iso(index.newest.sourceMs) : null,
    rebuildPercent: rebuild && percentOf(rebuild),
    history: history && historyView(history),
  };
}

export const labelView = (
  { labelId, at, text, createdBy, createdAt }: LabelRow,
  recoverable: boolean,
): JobPoints['labels'][number] => ({ labelId, at, text, createdBy, createdAt, recoverable });

function historyView({
  segments,
  limitBytes,
  maxAgeMs,
  oldestSeq,
}: HistoryFacts): NonNullable<JobPoints['history']> {
  const churnBytesPerSec = measuredChurn(segments);
  return {
    hours: maxAgeMs === null ? null : maxAgeMs / HOUR_MS,
    limitBytes,
    usedBytes: segments.reduce((sum, { bytes }) => sum + bytes, 0),
    oldestSeq,
    churnBytesPerSec,
    ...forecastHistory({ limitBytes, maxAgeMs }, churnBytesPerSec),
  };
}
