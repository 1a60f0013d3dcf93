/**
 * Which moments of a source can be recovered: a fold over the frames of its stream, held in memory. What it knows is
 * cut into pages, which are written once when they are full (point-store.ts) and read again at a restart.
 */
import type { FrameHeader } from '../../protocol/frame.ts';
import type { Mark } from '../../protocol/marks.ts';
import type { StreamRecord } from '../replication/stream-record.ts';
import { EntryList } from './entry-list.ts';
import {
  type GapKind,
  type GapReason,
  judgeFrame,
  newPointState,
  type PointState,
} from './point-fold.ts';

/** A recovery point: the state at the end of frame `seq`, and the source's wall clock there. */
export interface Point {
  seq: number;
  sourceMs: number;
}

/**
 * Frames without a break, by a wall clock that was not set meanwhile: the end of each of them is a recovery point. Where
 * the clock was set, one stretch ends and the next begins, without a gap.
 */
export interface Stretch {
  fromSeq: number;
  toSeq: number;
  /** Wall clock of the source. */
  fromMs: number;
  toMs: number;
  /** The source's boot-time clock, which doesn't. */
  fromBootNs: bigint;
  toBootNs: bigint;
}

export interface Gap {
  fromSeq: number;
  /** Null: it goes on. Before `fromSeq`: no frame lies in it, only time. */
  toSeq: number | null;
  fromMs: number;
  toMs: number | null;
  kind: GapKind;
  reason: string;
  /** All its frames are in the history: a replay from a checkpoint before it may run across it. */
  crossable: boolean;
}

/** A point that was asked for by name. */
export interface NamedMark {
  seq: number;
  sourceMs: number;
  pointId: string;
  name: string;
  /** Application-consistent; else it is crash-consistent, as any point is. */
  quiesced: boolean;
}

export type Span = ({ name: 'stretch' } & Stretch) | ({ name: 'gap' } & GapSpan);
interface GapSpan {
  fromSeq: number;
  toSeq: number;
  fromMs: number;
  toMs: number;
  kind: GapKind;
  reason: string;
  crossable: boolean;
}

const SECOND_MS = 1000;
/** Less is no setting of a clock that anybody would look for. */
const CLOCK_STEP_MS = SECOND_MS;

/** Whether the wall clock was set between two moments of one boot: its distance to the other clock has changed. */
const wasSet = (aMs: number, aBootNs: bigint, bMs: number, bBootNs: bigint): boolean =>
  Math.abs(bMs - aMs - Number(bBootNs - aBootNs) / 1e6) > CLOCK_STEP_MS;

export class PointIndex {
  #spans: Span[] = [];
  #entries = new EntryList();
  #marks: NamedMark[] = [];
  #state: PointState;
  /** The newest point: it becomes an entry when the next one is in another second. */
  #newest: Point | null = null;

  /** @param state where the fold begins: a page's end */
  constructor(state: PointState = newPointState()) {
    this.#state = state;
  }

  get state(): PointState {
    return this.#state;
  }

  /** The newest frame that was folded in. */
  get seq(): number {
    return this.#state.seq;
  }

  /** Entries that would be written if the page were closed now. */
  get entryCount(): number {
    return this.#entries.count;
  }

  /** Take one more frame; `record` is the stream's record with it. */
  add(header: FrameHeader, mark: Mark | null, record: StreamRecord): void {
    const before = this.#state;
    const { state, verdict } = judgeFrame(before, header, record);
    this.#state = state;
    const { seq, wallMs, bootTimeNs } = header;
    if (verdict.name === 'no-point') {
      this.#gap(header, verdict.reason, header.kind !== 'mirror' || header.run === 0);
      return;
    }
    let span = this.#spans.at(-1);
    if (verdict.name === 'point-after' && span?.name === 'stretch') {
      const { kind, text } = verdict.reason;
      this.#spans.push({
        name: 'gap',
        fromSeq: span.toSeq + 1,
        toSeq: seq - 1,
        fromMs: span.toMs,
        toMs: wallMs,
        kind,
        reason: text,
        crossable: kind !== 'missing',
      });
      span = this.#spans.at(-1);
    }
    const point = { seq, sourceMs: wallMs };
    if (span?.name === 'stretch' && !wasSet(span.toMs, span.toBootNs, wallMs, bootTimeNs)) {
      Object.assign(span, { toSeq: seq, toMs: wallMs, toBootNs: bootTimeNs });
      const newest = this.#newest;
      if (newest && Math.floor(newest.sourceMs / SECOND_MS) !== Math.floor(wallMs / SECOND_MS)) {
        this.#entries.push(newest);
      }
    } else {
      // Frames that have left before it was made again belong to it too.
      if (span?.name === 'gap') Object.assign(span, { toSeq: seq - 1, toMs: wallMs });
      if (this.#newest) this.#entries.push(this.#newest);
      this.#spans.push({
        name: 'stretch',
        fromSeq: seq,
        toSeq: seq,
        fromMs: wallMs,
        toMs: wallMs,
        fromBootNs: bootTimeNs,
        toBootNs: bootTimeNs,
      });
      // The first point of a stretch is findable to the millisecond, as the last one is.
      this.#entries.push(point);
    }
    this.#newest = point;
    if (mark?.type === 'consistencyPoint') {
      const { pointId, name, quiesced } = mark;
      this.#marks.push({ ...point, pointId, name, quiesced });
    }
  }

  #gap({ seq, wallMs }: FrameHeader, { kind, text }: GapReason, kept: boolean): void {
    const span = this.#spans.at(-1);
    if (span?.name === 'gap' && span.kind === kind && span.reason === text) {
      Object.assign(span, { toSeq: seq, toMs: Math.max(span.toMs, wallMs) });
      span.crossable &&= kept;
      return;
    }
    if (span?.name === 'gap') span.toSeq = seq - 1;
    this.#spans.push({
      name: 'gap',
      fromSeq: seq,
      toSeq: seq,
      fromMs: span ? span.toMs : wallMs,
      toMs: wallMs,
      kind,
      reason: text,
      crossable: kept,
    });
  }

  /** Frames between two that were folded in have left: no replay runs across. */
  holeBefore(): void {
    const span = this.#spans.at(-1);
    if (span?.name === 'gap') span.crossable = false;
  }

  /** What the next frame is judged by, when it is known from elsewhere. */
  standAt(state: PointState): void {
    this.#state = state;
  }

  /** The newest frames, up to `seq`, have left already: they were a mirror's. */
  passOver(seq: number): void {
    this.holeBefore();
    this.#state = { ...this.#state, seq };
  }

  /** Where points are, oldest first. */
  stretches(): Stretch[] {
    return this.#spans.flatMap((span) => {
      if (span.name === 'gap') return [];
      const { name: _, ...stretch } = span;
      return [stretch];
    });
  }

  /** Where points are not, and why, oldest first. */
  gaps(): Gap[] {
    return this.#spans.flatMap((span, at) => {
      if (span.name === 'stretch') return [];
      const { name: _, ...gap } = span;
      const open = at === this.#spans.length - 1;
      return [open ? { ...gap, toSeq: null, toMs: null } : gap];
    });
  }

  /** Points that were asked for by name, oldest first. */
  marks(): NamedMark[] {
    return [...this.#marks];
  }

  /** The newest point of all. */
  get newest(): Point | null {
    return this.#newest;
  }

  /**
   * The point of a moment by the source's wall clock, to the second: the newest one at or before it, never later. When the
   * clock was set back, a moment that was there twice means the second time, and one that has not come again the first.
   */
  pointAt(sourceMs: number): Point | null {
    const newest = this.#newest;
    const stretch = this.#stretchAt(sourceMs);
    if (newest && newest.sourceMs <= sourceMs) {
      if (!stretch || newest.seq <= stretch.toSeq) return newest;
    }
    const lastSeq = stretch?.toSeq ?? Number.POSITIVE_INFINITY;
    return this.#entries.lastWhere(
      ({ seq, sourceMs: at }) => seq <= lastSeq && at <= sourceMs,
      sourceMs,
    );
  }

  /** The newest stretch in whose time a moment lies. */
  #stretchAt(sourceMs: number): Stretch | undefined {
    const found = this.#spans.findLast(
      (span) => span.name === 'stretch' && span.fromMs <= sourceMs && sourceMs <= span.toMs,
    );
    return found?.name === 'stretch' ? found : undefined;
  }

  /** The last frame of the stretch that a point is in. */
  endOfStretch(seq: number): number {
    const found = this.#spans.find(
      (span) => span.name === 'stretch' && span.fromSeq <= seq && seq <= span.toSeq,
    );
    return found?.toSeq ?? seq;
  }

  /** The newest point, to the second, whose frame is at or before `seq`. */
  pointBefore(seq: number): Point | null {
    if (this.#newest && this.#newest.seq <= seq) return this.#newest;
    return this.#entries.atOrBefore(seq);
  }

  /** Exactly: the end of frame `seq` is a recovery point. */
  isPoint(seq: number): boolean {
    return this.#spans.some(
      (span) => span.name === 'stretch' && span.fromSeq <= seq && seq <= span.toSeq,
    );
  }

  /** History before `seq` has left the journal: nothing before it can be replayed any more. */
  evictBefore(seq: number): void {
    this.#entries.dropBefore(seq);
    this.#marks = this.#marks.filter((mark) => mark.seq >= seq);
    if (this.#newest && this.#newest.seq < seq) this.#newest = null;
    while (this.#spans.length > 0 && this.#spans[0]!.toSeq < seq) this.#spans.shift();
    const first = this.#spans[0];
    if (!first || first.fromSeq >= seq) return;
    first.fromSeq = seq;
    if (first.name === 'gap') return;
    const entry = this.#entries.first ?? this.#newest;
    if (entry && entry.sourceMs > first.fromMs) {
      first.fromBootNs += BigInt(Math.round(entry.sourceMs - first.fromMs)) * 1_000_000n;
      if (first.fromBootNs > first.toBootNs) first.fromBootNs = first.toBootNs;
      first.fromMs = entry.sourceMs;
    }
  }

  /** Frames after `seq` were taken back and their numbers are given anew. */
  truncateAfter(seq: number): void {
    if (seq >= this.#state.seq) return;
    const newest = this.pointBefore(seq);
    this.#entries.dropAfter(seq);
    this.#marks = this.#marks.filter((mark) => mark.seq <= seq);
    while (this.#spans.length > 0 && this.#spans.at(-1)!.fromSeq > seq) this.#spans.pop();
    const last = this.#spans.at(-1);
    if (last && last.toSeq > seq) {
      last.toSeq = seq;
      if (newest && last.name === 'stretch') {
        last.toBootNs -= BigInt(Math.round(last.toMs - newest.sourceMs)) * 1_000_000n;
        last.toMs = newest.sourceMs;
      }
    }
    this.#newest = newest;
    this.#state = { ...this.#state, seq };
  }

  /** Everything of the frames from `fromSeq` on, as a page keeps it. */
  since(fromSeq: number): { spans: Span[]; entries: Point[]; marks: NamedMark[] } {
    const spans = this.#spans
      // A gap between two neighbours holds no frame: it ends before it begins.
      .filter((span) => Math.max(span.fromSeq, span.toSeq) >= fromSeq)
      .map((span) => ({ ...span, fromSeq: Math.max(span.fromSeq, fromSeq) }));
    const entries = this.#entries.since(fromSeq);
    const newest = this.#newest;
    if (newest && newest.seq >= fromSeq && entries.at(-1)?.seq !== newest.seq) entries.push(newest);
    return { spans, entries, marks: this.#marks.filter(({ seq }) => seq >= fromSeq) };
  }

  /** Put a page behind what is known; its spans go on where they met. */
  restore(
    page: { spans: readonly Span[]; entries: readonly Point[]; marks: readonly NamedMark[] },
    state: PointState,
  ): void {
    for (const span of page.spans) {
      const last = this.#spans.at(-1);
      if (last && joins(last, span)) {
        const { fromSeq, fromMs } = last;
        const start = last.name === 'stretch' ? { fromBootNs: last.fromBootNs } : {};
        const crossable =
          last.name === 'gap' && span.name === 'gap' ? last.crossable && span.crossable : undefined;
        Object.assign(last, span, { fromSeq, fromMs, ...start });
        if (last.name === 'gap' && crossable !== undefined) last.crossable = crossable;
      } else {
        // The page before was closed in the gap: where it ends was not known yet.
        if (last?.name === 'gap' && span.name === 'stretch') {
          Object.assign(last, { toSeq: span.fromSeq - 1, toMs: span.fromMs });
        }
        this.#spans.push({ ...span });
      }
    }
    for (const entry of page.entries) this.#entries.push(entry);
    this.#marks.push(...page.marks);
    this.#newest = page.entries.at(-1) ?? this.#newest;
    this.#state = state;
  }
}

/** A span that a page's end cut in two. */
function joins(a: Span, b: Span): boolean {
  if (a.toSeq + 1 !== b.fromSeq) return false;
  if (a.name === 'stretch') {
    return b.name === 'stretch' && !wasSet(a.fromMs, a.fromBootNs, b.fromMs, b.fromBootNs);
  }
  return b.name === 'gap' && a.kind === b.kind && a.reason === b.reason;
}
