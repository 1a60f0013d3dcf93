/** What the timeline shows, without a browser. */
import fc from 'fast-check';
import t from 'tap';
import type { JobPoints } from '../../appliance/api/schema.ts';
import {
  MIN_SPAN_MS,
  momentOf,
  moved,
  timelineView,
  wholeRange,
  zoomed,
} from '../../appliance/web/src/jobs/timeline-view.ts';

const START = Date.parse('2026-03-01T00:00:00Z');
const MINUTE = 60_000;
const iso = (minutes: number) => new Date(START + minutes * MINUTE).toISOString();
const points: JobPoints = {
  stretches: [
    { fromSeq: 10, toSeq: 20, fromAt: iso(10), toAt: iso(60), fromBootMs: 0, toBootMs: 1 },
    { fromSeq: 30, toSeq: 40, fromAt: iso(70), toAt: iso(100), fromBootMs: 0, toBootMs: 1 },
  ],
  gaps: [
    {
      fromSeq: 1,
      toSeq: 9,
      fromAt: iso(0),
      toAt: iso(10),
      kind: 'first-mirror',
      reason: 'first',
      crossable: false,
    },
    {
      fromSeq: 21,
      toSeq: 29,
      fromAt: iso(60),
      toAt: iso(70),
      kind: 'order-lost',
      reason: 'overflow',
      crossable: true,
    },
    {
      fromSeq: 41,
      toSeq: null,
      fromAt: iso(100),
      toAt: null,
      kind: 'draining',
      reason: 'overflow',
      crossable: false,
    },
  ],
  marks: [{ seq: 15, at: iso(30), pointId: 'p', name: 'nightly', quiesced: true }],
  labels: [
    {
      labelId: 'l',
      at: iso(80),
      text: 'before',
      createdBy: 'a',
      createdAt: iso(80),
      recoverable: true,
    },
  ],
  newestAt: iso(100),
  rebuildPercent: null,
  history: null,
};
const now = START + 110 * MINUTE;

t.test('all of it, to now while a gap goes on; nothing before there is anything', async (t) => {
  t.same(wholeRange(points, now), { fromMs: START, toMs: now });
  t.equal(wholeRange({ ...points, stretches: [], gaps: [] }, now), null);
  const view = timelineView(points, { fromMs: START, toMs: now }, now);
  t.equal(view.stretches.length, 2);
  t.match(
    view.gaps.map(({ kind, open }) => [kind, open]),
    [
      ['first-mirror', false],
      ['order-lost', false],
      ['draining', true],
    ],
  );
  t.equal(view.gaps.at(-1)!.to, 1);
  t.match(view.ticks, [
    { kind: 'mark', text: 'nightly' },
    { kind: 'label', text: 'before' },
  ]);
  t.ok(Math.abs(view.ticks[0]!.at - 30 / 110) < 1e-9);
});

t.test('zoomed in, only what is there is shown', async (t) => {
  const view = timelineView(
    points,
    { fromMs: START + 62 * MINUTE, toMs: START + 68 * MINUTE },
    now,
  );
  t.equal(view.stretches.length, 0);
  t.match(view.gaps, [{ kind: 'order-lost', from: 0, to: 1 }]);
  t.equal(view.ticks.length, 0);
});

t.test('a moment is a point, in a gap with its reason, or outside', async (t) => {
  const at = (minutes: number) => momentOf(points, START + minutes * MINUTE, now);
  t.same(at(30), { name: 'point' });
  t.same(at(65), { name: 'gap', kind: 'order-lost', reason: 'overflow' });
  t.match(at(105), { name: 'gap', kind: 'draining' });
  t.same(at(-5), { name: 'outside' });
  t.same(at(200), { name: 'outside' });
});

t.test('zooming and moving never leave the history, and the axis stays readable', async () => {
  const whole = { fromMs: START, toMs: now };
  fc.assert(
    fc.property(
      fc.array(
        fc.record({
          factor: fc.constantFrom(0.5, 2, 0.25, 4),
          around: fc.double({ min: 0, max: 1, noNaN: true }),
          by: fc.integer({ min: -200, max: 200 }),
        }),
        { maxLength: 20 },
      ),
      (steps) => {
        let range = whole;
        for (const { factor, around, by } of steps) {
          const aroundMs = range.fromMs + around * (range.toMs - range.fromMs);
          range = moved(zoomed(range, whole, aroundMs, factor), whole, by * MINUTE);
          const spanMs = range.toMs - range.fromMs;
          if (range.fromMs < whole.fromMs - 1 || range.toMs > whole.toMs + 1)
            throw new Error('out');
          if (spanMs < MIN_SPAN_MS - 1) throw new Error('too close');
          const { axis } = timelineView(points, range, now);
          if (axis.length > 8 || axis.some(({ at }) => at < 0 || at > 1)) throw new Error('axis');
        }
      },
    ),
  );
});
