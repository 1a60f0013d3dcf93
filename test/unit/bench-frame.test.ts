import t from 'tap';
import { median, quantile, row, table } from '../bench/frame.ts';

t.test('a row stands beside its peer, and the goal is of the ratio', async (t) => {
  const against = { what: 'bare', value: 200 };
  const met = row({ figure: 'f', value: 190, unit: 'MB/s', against, goal: { atLeast: 0.95 } });
  t.match(met, { ratio: 0.95, met: true, goal: '>= 0.95' });
  // Seen red with `>` for `>=`.
  t.equal(
    row({ figure: 'f', value: 189, unit: 'MB/s', against, goal: { atLeast: 0.95 } }).met,
    false,
  );
});

t.test(
  'without a peer the goal is of the value; what was not measured meets nothing',
  async (t) => {
    t.match(row({ figure: 'f', value: 0.5, unit: 's', goal: { atMost: 1 } }), {
      ratio: null,
      met: true,
      goal: '<= 1 s',
    });
    t.equal(row({ figure: 'f', value: null, unit: 's', goal: { atMost: 1 } }).met, null);
    t.equal(row({ figure: 'f', value: 3, unit: 's' }).met, null);
  },
);

t.test('quantiles', async (t) => {
  t.equal(median([3, 1, 2]), 2);
  t.equal(median([1, 2, 3, 4]), 2.5);
  t.equal(quantile([0, 10], 0.99), 9.9);
  t.ok(Number.isNaN(median([])));
});

t.test('the table has a line for each row, and its notes below', async (t) => {
  const text = table({
    name: 'x',
    at: '2026-01-01T00:00:00.000Z',
    command: 'scripts/bench x',
    machine: { cpus: 2, cpuModel: 'm', memoryBytes: 2 ** 30, kernel: 'k', node: 'n' },
    rows: [
      row({
        figure: 'first',
        value: 1234,
        unit: 'IOPS',
        against: { what: 'bare', value: 1000 },
        goal: { atLeast: 2 },
        note: 'why',
      }),
      row({ figure: 'second', value: null, unit: 's' }),
    ],
  });
  const lines = text.split('\n');
  t.equal(lines.length, 6);
  t.match(lines[3], /^first +1234 +IOPS +bare 1000 +1\.234 +>= 2 +NO$/);
  t.match(lines[4], /^second +- +s$/);
  t.equal(lines[5], '  first: why');
});
