/** The benches run and say what they should; what they measure here is nobody's figure and is not judged. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import type { Report } from '../bench/frame.ts';
import { unable } from './capture.lab.ts';

t.setTimeout(600_000);
const run = promisify(execFile);
const script = join(import.meta.dirname, '../../scripts/bench');

async function wholeTable(t: Test, name: string, leastRows: number): Promise<Report> {
  const json = join(t.testdir(), 'report.json');
  const { stdout } = await run(script, [name, '--short', '--json', json]);
  const report = JSON.parse(fs.readFileSync(json, 'utf8')) as Report;
  t.equal(report.name, name);
  t.ok(report.machine.cpus > 0);
  t.ok(report.rows.length >= leastRows, `${report.rows.length} rows`);
  for (const row of report.rows) {
    t.ok(row.value !== null && row.value >= 0, `${row.figure} was measured`);
    if (row.against) t.equal(row.ratio, row.value! / row.against.value, row.figure);
    t.ok(stdout.includes(row.figure), `${row.figure} is in the table`);
  }
  return report;
}

t.test('scripts/bench agent prints a whole table', { skip: unable() }, async (t) => {
  await wholeTable(t, 'agent', 4);
});

t.test('scripts/bench capture prints a whole table', { skip: unable() }, async (t) => {
  const report = await wholeTable(t, 'capture', 5);
  t.ok(
    report.rows.some(({ against }) => against?.what === 'bare'),
    'the protected disk is compared with the bare one',
  );
  // A run that left its capture behind would make every later figure of this machine wrong.
  const left = fs
    .readdirSync('/sys/fs/bpf')
    .filter((name) => name.startsWith('understudy-bench-'))
    .filter((name) => !fs.existsSync(`/proc/${name.split('-')[2]}`));
  t.same(left, []);
});

t.test('scripts/bench recovery prints a whole table', { skip: unable() }, async (t) => {
  // Seen red with a journal that never acknowledges: nothing is measured then.
  const report = await wholeTable(t, 'recovery', 12);
  for (const what of ['in one piece', 'fio', 'depth 1']) {
    t.ok(
      report.rows.some(({ against }) => against?.what === what),
      `compared with ${what}`,
    );
  }
});

t.test('a bench that does not exist is refused', { skip: unable() }, async (t) => {
  await t.rejects(run(script, ['no-such-bench']), { code: 2, stderr: /capture/ });
});
