/**
 * A small live chart of one figure over the last minutes. Drawn as SVG by hand: one line and a few ticks do not need
 * a chart library in the bundle.
 */
import { type PointerEvent, useEffect, useRef, useState } from 'react';
import { formatClock } from '../format.ts';

export interface Point {
  atMs: number;
  /** null: unknown at that moment, drawn as a gap. */
  value: number | null;
}

const HEIGHT = 120;
const LEFT = 76;
const RIGHT = 10;
const TOP = 10;
const BOTTOM = 20;

/** The next of 1, 2, 4, 5, 8, 10 × 10ⁿ (or 2ⁿ for bytes) at or above the value, for the axis. */
export function niceMax(value: number, binary: boolean): number {
  if (value <= 0) return binary ? 1024 : 1000;
  if (binary) return 2 ** Math.ceil(Math.log2(Math.max(1024, value)));
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 8, 10].map((step) => step * power).find((step) => step >= value)!;
}

export function LiveChart(props: {
  id: string;
  title: string;
  points: readonly Point[];
  windowMs: number;
  nowMs: number;
  /** The axis counts in bytes (powers of two) and not in ms (powers of ten). */
  binary: boolean;
  format: (value: number) => string;
  tone?: 'blue' | 'orange';
}) {
  const holder = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(480);
  const [pointerX, setPointerX] = useState<number>();
  useEffect(() => {
    if (!holder.current) return;
    const observer = new ResizeObserver(([entry]) => {
      if (entry) setWidth(Math.max(240, entry.contentRect.width));
    });
    observer.observe(holder.current);
    return () => observer.disconnect();
  }, []);

  const plotWidth = width - LEFT - RIGHT;
  const plotHeight = HEIGHT - TOP - BOTTOM;
  // The window grows with what is known, up to its limit, so that a fresh chart is not an empty one.
  const oldest = props.points[0]?.atMs ?? props.nowMs;
  const spanMs = Math.min(props.windowMs, Math.max(60_000, props.nowMs - oldest));
  const startMs = props.nowMs - spanMs;
  const shown = props.points.filter((point) => point.atMs >= startMs - 2000);
  const values = shown.flatMap((point) => (point.value === null ? [] : [point.value]));
  const max = niceMax(Math.max(0, ...values), props.binary);
  const x = (atMs: number) => LEFT + Math.max(0, (atMs - startMs) / spanMs) * plotWidth;
  const y = (value: number) => TOP + plotHeight * (1 - value / max);

  const runs: Point[][] = [];
  let previous: Point | undefined;
  for (const point of shown) {
    if (point.value !== null) {
      const joined = previous?.value != null && point.atMs - previous.atMs < 10_000;
      if (joined) runs.at(-1)!.push(point);
      else runs.push([point]);
    }
    previous = point;
  }
  const path = (run: Point[]) =>
    run
      .map(
        (point, i) => `${i ? 'L' : 'M'}${x(point.atMs).toFixed(1)} ${y(point.value!).toFixed(1)}`,
      )
      .join('');
  const area = (run: Point[]) =>
    `${path(run)}L${x(run.at(-1)!.atMs).toFixed(1)} ${y(0)}L${x(run[0]!.atMs).toFixed(1)} ${y(0)}Z`;

  const known = shown.filter((point) => point.value !== null);
  const nearest =
    pointerX === undefined
      ? undefined
      : known.reduce<Point | undefined>(
          (best, point) =>
            !best || Math.abs(x(point.atMs) - pointerX) < Math.abs(x(best.atMs) - pointerX)
              ? point
              : best,
          undefined,
        );
  const latest = known.at(-1);
  const told = nearest ?? latest;

  const onMove = (event: PointerEvent<SVGSVGElement>) =>
    setPointerX(event.clientX - event.currentTarget.getBoundingClientRect().left);
  const minutes = Math.round(spanMs / 60_000);

  return (
    <figure className={`und-chart und-chart-${props.tone ?? 'blue'}`} id={props.id} ref={holder}>
      <figcaption>
        <span>{props.title}</span>
        <span className="und-chart-told">
          {told ? props.format(told.value!) : 'no figures yet'}
          {nearest && <span className="und-quiet"> at {formatClock(new Date(nearest.atMs))}</span>}
        </span>
      </figcaption>
      <svg
        width={width}
        height={HEIGHT}
        role="img"
        aria-label={`${props.title}, last ${minutes} min: ${latest ? props.format(latest.value!) : 'no figures yet'}`}
        onPointerMove={onMove}
        onPointerLeave={() => setPointerX(undefined)}
      >
        {[0, 0.5, 1].map((part) => (
          <g key={part}>
            <line
              className="und-chart-grid"
              x1={LEFT}
              x2={width - RIGHT}
              y1={y(max * part)}
              y2={y(max * part)}
            />
            <text className="und-chart-tick" x={LEFT - 8} y={y(max * part) + 4} textAnchor="end">
              {props.format(max * part)}
            </text>
          </g>
        ))}
        <text className="und-chart-tick" x={LEFT} y={HEIGHT - 4}>
          {minutes} min ago
        </text>
        <text className="und-chart-tick" x={width - RIGHT} y={HEIGHT - 4} textAnchor="end">
          now
        </text>
        {runs.map((run) => (
          <g key={run[0]!.atMs}>
            <path className="und-chart-area" d={area(run)} />
            <path className="und-chart-line" d={path(run)} />
          </g>
        ))}
        {told && (
          <circle
            className="und-chart-dot"
            cx={x(told.atMs)}
            cy={y(told.value!)}
            r={nearest ? 4 : 3}
          />
        )}
      </svg>
    </figure>
  );
}
