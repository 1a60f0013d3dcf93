/** The timeline: what can be recovered of a job's history, drawn by hand as the charts are. */
import { Button, Flex, ToggleGroup, ToggleGroupItem } from '@patternfly/react-core';
import { type KeyboardEvent, type PointerEvent, useEffect, useRef, useState } from 'react';
import { formatAbsolute, formatClock, formatDuration } from '../format.ts';
import {
  GAP_WORDS,
  momentOf,
  moved,
  type Range,
  type TimelinePoints,
  timelineView,
  zoomed,
} from './timeline-view.ts';

const HEIGHT = 104;
const BAR_TOP = 30;
const BAR_HEIGHT = 34;
const SIDE = 8;
const HOUR_MS = 3_600_000;
const PRESETS: Array<[id: string, label: string, spanMs: number | null]> = [
  ['all', 'All', null],
  ['day', '24 h', 24 * HOUR_MS],
  ['hour', '1 h', HOUR_MS],
  ['minutes', '10 min', HOUR_MS / 6],
];

const axisText = (atMs: number, spanMs: number): string => {
  const at = new Date(atMs);
  const clock = formatClock(at);
  if (spanMs < 15 * 60_000) return clock;
  const days = spanMs > 36 * HOUR_MS;
  return days ? formatAbsolute(at).slice(5, 16) : clock.slice(0, 5);
};

export function Timeline(props: {
  points: TimelinePoints;
  whole: Range;
  nowMs: number;
  /** The moment under the cursor; null: the newest point. */
  cursorMs: number | null;
  setCursor: (atMs: number) => void;
  /** What a moment is that lies in no stretch and no gap. */
  outside?: string;
}) {
  const { points, whole, nowMs, setCursor } = props;
  const holder = useRef<HTMLDivElement>(null);
  const [width, setWidth] = useState(720);
  /** How much is shown, ending at `endMs`; null: all, or up to the newest moment, as it goes on. */
  const [spanMs, setSpanMs] = useState<number | null>(null);
  const [endMs, setEndMs] = useState<number | null>(null);
  const [told, setTold] = useState<string>();
  useEffect(() => {
    if (!holder.current) return;
    const observer = new ResizeObserver(([entry]) => {
      if (entry) setWidth(Math.max(280, entry.contentRect.width));
    });
    observer.observe(holder.current);
    return () => observer.disconnect();
  }, []);

  const wholeMs = whole.toMs - whole.fromMs;
  const shownMs = spanMs === null ? wholeMs : Math.min(spanMs, wholeMs);
  const range = moved(
    { fromMs: (endMs ?? whole.toMs) - shownMs, toMs: endMs ?? whole.toMs },
    whole,
    0,
  );
  const show = (next: Range) => {
    const span = next.toMs - next.fromMs;
    setSpanMs(span >= wholeMs ? null : span);
    setEndMs(span >= wholeMs || next.toMs >= whole.toMs ? null : next.toMs);
  };
  const view = timelineView(points, range, nowMs);
  const plot = width - 2 * SIDE;
  const x = (part: number) => SIDE + part * plot;
  const newestMs = points.newestAt ? Date.parse(points.newestAt) : whole.toMs;
  const cursorMs = Math.min(Math.max(props.cursorMs ?? newestMs, whole.fromMs), whole.toMs);
  const cursorPart = (cursorMs - range.fromMs) / (range.toMs - range.fromMs);
  const cursorSeen = cursorPart >= 0 && cursorPart <= 1;
  const moment = momentOf(points, cursorMs, nowMs);

  const place = (atMs: number) => {
    const at = Math.min(whole.toMs, Math.max(whole.fromMs, Math.round(atMs / 1000) * 1000));
    setCursor(at);
    // The cursor never leaves what is shown.
    if (at < range.fromMs) show(moved(range, whole, at - range.fromMs));
    if (at > range.toMs) show(moved(range, whole, at - range.toMs));
  };
  const zoom = (factor: number) => {
    const around = cursorSeen ? cursorMs : (range.fromMs + range.toMs) / 2;
    show(zoomed(range, whole, around, factor));
  };
  const onKey = (event: KeyboardEvent) => {
    const step = event.shiftKey ? 1000 : Math.max(1000, (range.toMs - range.fromMs) / 100);
    const page = (range.toMs - range.fromMs) / 2;
    switch (event.key) {
      case 'ArrowLeft':
        place(cursorMs - step);
        break;
      case 'ArrowRight':
        place(cursorMs + step);
        break;
      case 'PageUp':
        place(cursorMs - page);
        break;
      case 'PageDown':
        place(cursorMs + page);
        break;
      case 'Home':
        place(whole.fromMs);
        break;
      case 'End':
        place(newestMs);
        break;
      case '+':
      case '=':
        zoom(0.5);
        break;
      case '-':
        zoom(2);
        break;
      default:
        return;
    }
    event.preventDefault();
  };
  const onEnter = (atMs: number) => (event: KeyboardEvent) => {
    if (event.key !== 'Enter' && event.key !== ' ') return onKey(event);
    event.preventDefault();
    place(atMs);
  };
  const onPress = (event: PointerEvent<SVGSVGElement>) => {
    const part = (event.clientX - event.currentTarget.getBoundingClientRect().left - SIDE) / plot;
    if (part >= 0 && part <= 1) place(range.fromMs + part * (range.toMs - range.fromMs));
  };
  const span = (fromMs: number, toMs: number) =>
    `${formatAbsolute(new Date(fromMs))} to ${formatAbsolute(new Date(toMs))}, ${formatDuration(toMs - fromMs)}`;
  const tellable = (text: string) => ({
    onPointerEnter: () => setTold(text),
    onPointerLeave: () => setTold(undefined),
    onFocus: () => setTold(text),
    onBlur: () => setTold(undefined),
  });
  const cursorText =
    moment.name === 'point'
      ? 'can be recovered'
      : moment.name === 'gap'
        ? `cannot be recovered: ${GAP_WORDS[moment.kind].toLowerCase()}, ${moment.reason}`
        : (props.outside ?? 'not in the history');

  return (
    <div className="und-timeline" ref={holder}>
      {/* A line of its own: a long reason must not move what is about to be clicked. */}
      <Flex gap={{ default: 'gapSm' }} justifyContent={{ default: 'justifyContentFlexEnd' }}>
        <ToggleGroup isCompact aria-label="How much is shown">
          {PRESETS.map(([id, label, preset]) => (
            <ToggleGroupItem
              key={id}
              text={label}
              buttonId={`timeline-${id}`}
              isSelected={spanMs === preset}
              isDisabled={preset !== null && preset >= wholeMs}
              onChange={() => {
                setSpanMs(preset);
                setEndMs(null);
                if (preset !== null && cursorMs < whole.toMs - preset) {
                  show(zoomed(range, whole, cursorMs, preset / (range.toMs - range.fromMs)));
                }
              }}
            />
          ))}
        </ToggleGroup>
        <Button
          variant="control"
          size="sm"
          id="timeline-zoom-in"
          aria-label="Zoom in"
          onClick={() => zoom(0.5)}
        >
          +
        </Button>
        <Button
          variant="control"
          size="sm"
          id="timeline-zoom-out"
          aria-label="Zoom out"
          onClick={() => zoom(2)}
        >
          −
        </Button>
      </Flex>
      <div aria-live="polite" id="timeline-told" className="und-timeline-told">
        {told ?? (
          <>
            <strong>{formatAbsolute(new Date(cursorMs))}</strong>{' '}
            <span id="timeline-moment" data-moment={moment.name}>
              {cursorText}
            </span>
          </>
        )}
      </div>
      {/* biome-ignore lint/a11y/useSemanticElements: SVG has no fieldset */}
      <svg
        width={width}
        height={HEIGHT}
        role="group"
        aria-label="Timeline of recovery points"
        onPointerDown={onPress}
      >
        <rect
          id="timeline"
          className="und-timeline-ground"
          x={SIDE}
          y={BAR_TOP}
          width={plot}
          height={BAR_HEIGHT}
          tabIndex={0}
          role="slider"
          aria-label="Moment of the history"
          aria-valuemin={Math.round(whole.fromMs / 1000)}
          aria-valuemax={Math.round(whole.toMs / 1000)}
          aria-valuenow={Math.round(cursorMs / 1000)}
          aria-valuetext={`${formatAbsolute(new Date(cursorMs))}, ${cursorText}`}
          aria-describedby="timeline-help"
          data-from-ms={Math.round(range.fromMs)}
          data-to-ms={Math.round(range.toMs)}
          onKeyDown={onKey}
        />
        {view.axis.map(({ at, atMs }) => (
          <g key={atMs}>
            <line
              className="und-chart-grid"
              x1={x(at)}
              x2={x(at)}
              y1={BAR_TOP - 4}
              y2={BAR_TOP + BAR_HEIGHT + 6}
            />
            <text
              className="und-chart-tick"
              x={x(at)}
              y={HEIGHT - 22}
              textAnchor={at < 0.05 ? 'start' : at > 0.95 ? 'end' : 'middle'}
            >
              {axisText(atMs, range.toMs - range.fromMs)}
            </text>
          </g>
        ))}
        {view.stretches.map(({ from, to, fromMs, toMs }) => (
          <rect
            key={`${fromMs}-${from}`}
            className="und-timeline-stretch"
            data-testid="timeline-stretch"
            x={x(from)}
            y={BAR_TOP}
            // A short stretch must not vanish.
            width={Math.max(1, x(to) - x(from))}
            height={BAR_HEIGHT}
          >
            <title>{`Every second can be recovered: ${span(fromMs, toMs)}`}</title>
          </rect>
        ))}
        {view.gaps.map(({ from, to, fromMs, toMs, kind, reason, open }) => {
          const text = `${GAP_WORDS[kind]}${open ? ', still going on' : ''}: ${reason} (${span(fromMs, toMs)})`;
          return (
            // biome-ignore lint/a11y/useSemanticElements: SVG has no button
            <rect
              key={`${fromMs}-${kind}-${from}`}
              className={`und-timeline-gap und-timeline-gap-${kind}`}
              data-testid="timeline-gap"
              data-kind={kind}
              tabIndex={0}
              role="button"
              aria-label={text}
              onKeyDown={onEnter((fromMs + toMs) / 2)}
              x={x(from)}
              y={BAR_TOP}
              width={Math.max(2, x(to) - x(from))}
              height={BAR_HEIGHT}
              {...tellable(text)}
            >
              <title>{text}</title>
            </rect>
          );
        })}
        {view.ticks.map(({ at, atMs, kind, text, id, quiesced }) => {
          const words = `${kind === 'label' ? 'Label' : quiesced ? 'Application-consistent point' : 'Crash-consistent point'}: ${text} (${formatAbsolute(new Date(atMs))})`;
          return (
            // biome-ignore lint/a11y/useSemanticElements: SVG has no button
            <g
              key={id}
              className={`und-timeline-${kind}`}
              data-testid={`timeline-${kind}`}
              tabIndex={0}
              role="button"
              aria-label={words}
              onKeyDown={onEnter(atMs)}
              {...tellable(words)}
            >
              <title>{words}</title>
              <line x1={x(at)} x2={x(at)} y1={BAR_TOP - 8} y2={BAR_TOP + BAR_HEIGHT} />
              {kind === 'mark' ? (
                <circle
                  className={quiesced ? undefined : 'und-timeline-crash'}
                  cx={x(at)}
                  cy={BAR_TOP - 12}
                  r={5}
                />
              ) : (
                <path d={`M${x(at)} ${BAR_TOP - 8}v-14h12l-3 4.5 3 4.5h-12`} />
              )}
            </g>
          );
        })}
        {cursorSeen && (
          <line
            className="und-timeline-cursor"
            x1={x(cursorPart)}
            x2={x(cursorPart)}
            y1={BAR_TOP - 6}
            y2={BAR_TOP + BAR_HEIGHT + 6}
          />
        )}
        <text className="und-chart-tick" x={SIDE} y={HEIGHT - 4}>
          {formatAbsolute(new Date(range.fromMs))}
        </text>
        <text className="und-chart-tick" x={width - SIDE} y={HEIGHT - 4} textAnchor="end">
          {formatAbsolute(new Date(range.toMs))}
        </text>
      </svg>
      <p className="und-quiet und-small" id="timeline-help">
        Click or use the arrow keys to choose a moment (with Shift by the second), + and − to zoom.
      </p>
    </div>
  );
}
