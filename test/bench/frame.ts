/**
 * What a bench is, and how its figures are shown. A bench is a file of its own in this folder, whose default export is
 * a `Bench`; `scripts/bench NAME` runs it. A line `// apt: PACKAGE...` in the file names what has to be installed first.
 */
import { cpus, release, totalmem } from 'node:os';

export type Goal = { atLeast: number } | { atMost: number };

export interface Row {
  figure: string;
  value: number | null;
  unit: string;
  /** The peer or the limit, measured in the same run. */
  against: { what: string; value: number } | null;
  /** value / against. */
  ratio: number | null;
  goal: string | null;
  /** Null: there is no goal, or nothing was measured. */
  met: boolean | null;
  note: string | null;
}

export interface RowInput {
  figure: string;
  value: number | null;
  unit: string;
  against?: { what: string; value: number } | null;
  /** Of the ratio if there is an `against`, otherwise of the value. */
  goal?: Goal;
  note?: string | null;
}

export interface BenchOptions {
  /** A tiny run that proves that the bench works; its figures mean nothing. */
  short: boolean;
  /** A run of a few minutes, whose figures are worth something. Only for benches that have one. */
  quick: boolean;
  /** As given on the command line behind `--set`. */
  set: Record<string, string>;
  /** What a person who waits wants to see. */
  progress(text: string): void;
}

export interface Bench {
  summary: string;
  hasQuick?: boolean;
  /** Rows come as soon as they are known, so that an interrupted run shows what it has. */
  run(options: BenchOptions): AsyncGenerator<Row>;
}

export interface Report {
  name: string;
  /** When it began, ISO 8601. */
  at: string;
  /** As it was called. */
  command: string;
  machine: { cpus: number; cpuModel: string; memoryBytes: number; kernel: string; node: string };
  rows: Row[];
}

/** A row with its ratio and whether the goal is met. */
export function row(input: RowInput): Row {
  const { figure, value, unit, goal } = input;
  const against = input.against ?? null;
  const ratio = value !== null && against && against.value > 0 ? value / against.value : null;
  const judged = against ? ratio : value;
  let met: boolean | null = null;
  if (goal && judged !== null) {
    met = 'atLeast' in goal ? judged >= goal.atLeast : judged <= goal.atMost;
  }
  const goalUnit = against ? '' : ` ${unit}`;
  const words = !goal
    ? null
    : 'atLeast' in goal
      ? `>= ${goal.atLeast}${goalUnit}`
      : `<= ${goal.atMost}${goalUnit}`;
  return { figure, value, unit, against, ratio, goal: words, met, note: input.note ?? null };
}

export const machine = (): Report['machine'] => ({
  cpus: cpus().length,
  cpuModel: cpus()[0]?.model ?? 'unknown',
  memoryBytes: totalmem(),
  kernel: release(),
  node: process.version,
});

export function median(values: readonly number[]): number {
  return quantile(values, 0.5);
}

/** The value below which `share` of the values lie, by linear interpolation; NaN of none. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * share;
  const low = sorted[Math.floor(at)];
  const high = sorted[Math.ceil(at)];
  if (low === undefined || high === undefined) return Number.NaN;
  return low + (high - low) * (at - Math.floor(at));
}

const figureText = (value: number | null): string => {
  if (value === null || !Number.isFinite(value)) return '-';
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits);
};

/** The report as a table for people; notes stand below it. */
export function table(report: Report): string {
  const head = ['figure', 'value', 'unit', 'against', 'ratio', 'goal', 'met'];
  const cells = report.rows.map((one) => [
    one.figure,
    figureText(one.value),
    one.unit,
    one.against ? `${one.against.what} ${figureText(one.against.value)}` : '',
    one.ratio === null ? '' : one.ratio.toFixed(3),
    one.goal ?? '',
    one.met === null ? '' : one.met ? 'yes' : 'NO',
  ]);
  const widths = head.map((title, at) =>
    Math.max(title.length, ...cells.map((line) => line[at]!.length)),
  );
  const right = new Set([1, 4]);
  const line = (texts: string[]) =>
    texts
      .map((text, at) => (right.has(at) ? text.padStart(widths[at]!) : text.padEnd(widths[at]!)))
      .join('  ')
      .trimEnd();
  const { machine: m } = report;
  return [
    `${report.name}: ${m.cpus} CPUs (${m.cpuModel}), ${(m.memoryBytes / 2 ** 30).toFixed(0)} GiB, Linux ${m.kernel}, Node ${m.node}`,
    line(head),
    line(widths.map((width) => '-'.repeat(width))),
    ...cells.map(line),
    ...report.rows.flatMap((one) => (one.note ? [`  ${one.figure}: ${one.note}`] : [])),
  ].join('\n');
}
