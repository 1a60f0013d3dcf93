/** What the history will hold, who gives way on a full journal disk, and what settings mean. */
import fc from 'fast-check';
import t from 'tap';
import { givingWay, journalReserveBytes } from '../../appliance/jobs/journal-disk.ts';
import { streamLimits } from '../../appliance/jobs/stream-limits.ts';
import type { HistorySegment } from '../../appliance/journal/journal.ts';
import { forecastHistory, measuredChurn } from '../../appliance/points/forecast.ts';

const HOUR = 3_600_000;
const GIB = 1024 ** 3;
const START = 1_700_000_000_000;
/** One segment after the other, `bytes` in each hour. */
const hourly = (bytes: readonly number[]): HistorySegment[] =>
  bytes.map((size, hour) => ({
    firstSeq: hour + 1,
    bytes: size,
    firstMs: START + hour * HOUR,
    lastMs: START + (hour + 1) * HOUR,
  }));

t.test('churn is of the last day, and not known in the first minutes', async (t) => {
  t.equal(measuredChurn([]), null);
  t.equal(
    measuredChurn([{ firstSeq: 1, bytes: GIB, firstMs: START, lastMs: START + 60_000 }]),
    null,
  );
  t.equal(measuredChurn(hourly([3600])), 1);
  // Two quiet days, then a busy one: only the busy one counts.
  t.equal(measuredChurn(hourly([...Array(48).fill(0), ...Array(24).fill(36_000)])), 10);
  // The day begins in the middle of a segment.
  const [first, ...rest] = hourly(Array(30).fill(3600));
  const shifted = rest.map((one) => ({
    ...one,
    lastMs: one.lastMs - HOUR / 2,
    firstMs: one.firstMs - HOUR / 2,
  }));
  t.ok(Math.abs(measuredChurn([first!, ...shifted])! - 1) < 0.03);
});

t.test(
  'the forecast names the limit that is met first, and warns when it is the size',
  async (t) => {
    const day = 24 * HOUR;
    t.same(forecastHistory({ limitBytes: GIB, maxAgeMs: day }, null), {
      reachMs: day,
      boundBy: 'hours',
      warning: null,
    });
    // 19 h of this churn fill the journal.
    const churn = GIB / (19 * 3600);
    const forecast = forecastHistory({ limitBytes: GIB, maxAgeMs: day }, churn);
    t.equal(forecast.boundBy, 'size');
    t.ok(Math.abs(forecast.reachMs! - 19 * HOUR) < 1000);
    t.match(
      forecast.warning,
      /^At today's churn the journal holds (19|18) h .* less than the 24 h/,
    );
    t.equal(forecastHistory({ limitBytes: 2 * GIB, maxAgeMs: day }, churn).boundBy, 'hours');
    t.match(forecastHistory({ limitBytes: GIB, maxAgeMs: null }, churn), {
      boundBy: 'size',
      warning: null,
    });
    t.same(forecastHistory({ limitBytes: GIB, maxAgeMs: null }, 0), {
      reachMs: null,
      boundBy: null,
      warning: null,
    });
  },
);

t.test('what is forecast is what a journal of that churn would hold', async () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1000, max: 1_000_000 }),
      fc.integer({ min: 1, max: 100 }),
      (perHour, hours) => {
        const churn = measuredChurn(hourly(Array(48).fill(perHour)))!;
        const { reachMs } = forecastHistory({ limitBytes: perHour * hours, maxAgeMs: null }, churn);
        if (Math.abs(reachMs! - hours * HOUR) > 1000) throw new Error(`${reachMs}`);
      },
    ),
  );
});

t.test('a journal disk that runs short: jobs above their share give way first', async (t) => {
  const totalBytes = 100 * GIB;
  const users = [
    { jobId: 'small', journalBytes: 10 * GIB, historyBytes: 9 * GIB },
    { jobId: 'large', journalBytes: 70 * GIB, historyBytes: 60 * GIB },
    { jobId: 'backlog', journalBytes: 19 * GIB, historyBytes: 0 },
  ];
  const share = 45 * GIB;
  t.same(givingWay({ totalBytes, freeBytes: journalReserveBytes(totalBytes) }, users, share), []);
  t.same(givingWay({ totalBytes, freeBytes: GIB }, users, share), ['large', 'small']);
  t.equal(journalReserveBytes(totalBytes), 3 * GIB);
  t.equal(journalReserveBytes(10_000 * GIB), 4 * GIB);
  t.equal(journalReserveBytes(100 * 1024 ** 2), 10 * 1024 ** 2);
});

t.test(
  'settings: a day and an equal share unless chosen; intake never depends on the history',
  async (t) => {
    const share = 10 * GIB;
    t.same(streamLimits({}, share), {
      journalBytes: share,
      historyBytes: share,
      historyMs: 24 * HOUR,
    });
    t.same(streamLimits({ historyHours: null, historyBytes: null }, share), {
      journalBytes: share,
      historyBytes: share,
      historyMs: null,
    });
    t.same(streamLimits({ historyHours: 2, historyBytes: GIB }, share), {
      journalBytes: share,
      historyBytes: GIB,
      historyMs: 2 * HOUR,
    });
  },
);
