/** Runs one bench: NAME [--json FILE] [--short] [--set KEY=VALUE]...  Called by scripts/bench. */
import { writeFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { type Bench, machine, type Report, table } from './frame.ts';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    json: { type: 'string' },
    short: { type: 'boolean', default: false },
    set: { type: 'string', multiple: true, default: [] },
  },
});
const name = positionals[0]!;
const { default: bench } = (await import(`./${name}.ts`)) as { default: Bench };
const report: Report = { name, machine: machine(), rows: [] };
const startedMs = performance.now();
const progress = (text: string) => {
  process.stderr.write(`[${((performance.now() - startedMs) / 1000).toFixed(0)} s] ${text}\n`);
};
let failed: unknown;
try {
  const set = Object.fromEntries(
    values.set.map((pair) => [pair.split('=', 1)[0]!, pair.slice(pair.indexOf('=') + 1)]),
  );
  for await (const row of bench.run({ short: values.short, set, progress })) report.rows.push(row);
} catch (error) {
  failed = error;
}
console.log(table(report));
if (values.json) {
  const path = resolve(process.env.BENCH_CALLED_FROM ?? '.', values.json);
  writeFileSync(path, `${JSON.stringify(report, null, 2)}\n`);
}
if (failed) {
  console.error(failed);
  process.exit(1);
}
process.exit(0);
