/** Runs one bench: NAME [--json FILE] [--append FILE] [--short | --quick] [--set KEY=VALUE]...  Called by scripts/bench. */
import { appendFileSync, writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { type Bench, machine, type Report, table } from './frame.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'string' },
    append: { type: 'string' },
    short: { type: 'boolean', default: false },
    quick: { type: 'boolean', default: false },
    set: { type: 'string', multiple: true, default: [] },
  },
});
const name = positionals[0]!;
const { default: bench } = (await import(`./${name}.ts`)) as { default: Bench };
if (values.quick && !bench.hasQuick) {
  console.error(`${name} has no quick form`);
  process.exit(2);
}
const command = ['scripts/bench', ...process.argv.slice(2)].join(' ');
const at = new Date().toISOString();
const report: Report = { name, at, command, machine: machine(), rows: [] };
const startedMs = performance.now();
const progress = (text: string) => {
  process.stderr.write(`[${((performance.now() - startedMs) / 1000).toFixed(0)} s] ${text}\n`);
};
let failed: unknown;
try {
  const set = Object.fromEntries(
    values.set.map((pair) => [pair.split('=', 1)[0]!, pair.slice(pair.indexOf('=') + 1)]),
  );
  const { short, quick } = values;
  for await (const row of bench.run({ short, quick, set, progress })) report.rows.push(row);
} catch (error) {
  failed = error;
}
console.log(table(report));
const pathOf = (given: string) => resolve(process.env.BENCH_CALLED_FROM ?? '.', given);
if (values.json) writeFileSync(pathOf(values.json), `${JSON.stringify(report, null, 2)}\n`);
if (values.append) appendFileSync(pathOf(values.append), `${JSON.stringify(report)}\n`);
if (failed) {
  console.error(failed);
  process.exit(1);
}
process.exit(0);
