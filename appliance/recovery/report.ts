/** The report of a failover: a page of HTML that stands alone, to be kept or handed on. Pure. */
import type { Failover, FailoverStep, TestCheckResult } from '../api/schema.ts';

/** Names and console words come from machines that nobody vouches for. */
export const escapeHtml = (text: string): string =>
  text.replace(
    /[&<>"']/g,
    (char) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' })[char]!,
  );

/** For the browser: the page carries its style and its picture with it, and nothing else. */
export const REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";

export const REPORT_STYLE = `body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#151515}
h1{font-size:1.6em}table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;padding:.3em .8em .3em 0;border-bottom:1px solid #d2d2d2}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f2f2f2;padding:.5em}td.failed,td.not-run{color:#c9190b}
img{max-width:100%;border:1px solid #d2d2d2}.verdict{padding:.6em 1em;border-left:.4em solid #6a6e73;background:#f2f2f2}
.passed{border-color:#3e8635}.failed{border-color:#c9190b}`;

const KIND: Record<Failover['kind'], string> = {
  unplanned: 'Unplanned failover',
  planned: 'Planned failover',
  test: 'Test failover',
  mount: 'Look into a recovery point',
};

const CHECK: Record<TestCheckResult['state'], string> = {
  waiting: 'not made',
  running: 'under way',
  passed: 'passed',
  failed: 'not passed',
  'not-run': 'could not be made',
};

const took = ({ startedAt, endedAt }: Pick<FailoverStep, 'startedAt' | 'endedAt'>): string =>
  startedAt && endedAt
    ? `${((Date.parse(endedAt) - Date.parse(startedAt)) / 1000).toFixed(1)} s`
    : '–';

export function verdict(failover: Failover): { kind: 'passed' | 'failed' | 'open'; words: string } {
  const { state, test } = failover;
  if (test) {
    if (!test.verdict) {
      const words =
        state.name === 'running' ? 'No verdict yet.' : 'Ended before there was a verdict.';
      return { kind: 'open', words };
    }
    const { passed, words } = test.verdict;
    return passed
      ? { kind: 'passed', words: `Passed: ${words}.` }
      : { kind: 'failed', words: `Not passed: ${words}` };
  }
  if ('error' in state) return { kind: 'failed', words: state.error.message };
  const proof = failover.steps.find(({ name }) => name === 'prove-boot');
  return proof?.state === 'done' && proof.detail
    ? { kind: 'passed', words: `The replica booted: ${proof.detail}. It is ${state.name}.` }
    : { kind: 'open', words: `It is ${state.name}.` };
}

export const rows = (entries: [string, string][]): string =>
  entries
    .map(([name, value]) => `<tr><th>${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`)
    .join('\n');

/** The checks of a test, each with its result. */
export function checksTable(checks: readonly TestCheckResult[]): string {
  const checkRows = checks
    .map(
      ({ name, state, words, how, output }) =>
        `<tr><td>${escapeHtml(name)}</td><td class="${state}">${CHECK[state]}</td><td>${escapeHtml(words)}${
          output ? `<pre>${escapeHtml(output)}</pre>` : ''
        }</td><td>${escapeHtml(how)}</td></tr>`,
    )
    .join('\n');
  return `<table><tr><th>Check</th><th>Result</th><th>What was seen</th><th>How</th></tr>
${checkRows}
</table>`;
}

/** @param png the screenshot; null when there is none */
export function reportPage(
  failover: Failover,
  { sourceName, png, now }: { sourceName: string; png: Buffer | null; now: string },
): string {
  const { point, test, steps, autoEnd } = failover;
  const title = `${KIND[failover.kind]} of ${sourceName}, ${failover.startedAt}`;
  const { kind, words } = verdict(failover);
  const lost =
    point.lossMs === null
      ? 'not known'
      : `${(point.lossMs / 1000).toFixed(1)} s before it was asked for`;
  const facts: [string, string][] = [
    ['Source server', sourceName],
    ['VM', failover.replicaName],
    ['Began', failover.startedAt],
    ['Ended', failover.endedAt ?? 'not yet'],
    ['Asked for', point.wanted ?? 'the newest point'],
    ['Recovered to', point.sourceTime ?? 'no point'],
    ['Frame', point.seq === null ? '–' : String(point.seq)],
    ['Not in it: written in the last', lost],
    ...(test
      ? ([
          ['Network', `${test.network}, isolated`],
          ['Started by', test.trigger === 'person' ? 'a person' : 'the schedule'],
        ] as [string, string][])
      : []),
    ...(autoEnd && (failover.state.name === 'committed' || failover.state.name === 'undone')
      ? ([['Decided', `by itself, ${autoEnd.afterMinutes} min after it was told to`]] as [
          string,
          string,
        ][])
      : []),
    ['Addresses', failover.addresses.join(', ') || 'none seen'],
  ];
  const list = (items: readonly string[]): string =>
    items.length === 0
      ? '<p>None.</p>'
      : `<ul>${items.map((item) => `<li>${escapeHtml(item)}</li>`).join('')}</ul>`;
  const checks = test?.checks ?? [];
  const checkTable =
    checks.length === 0
      ? ''
      : `<h2>Checks</h2>
${checksTable(checks)}
`;
  const stepRows = steps
    .map(
      (step) =>
        `<tr><td>${escapeHtml(step.title)}</td><td>${step.state}</td><td>${step.startedAt ?? '–'}</td><td>${took(step)}</td><td>${escapeHtml(step.detail ?? '')}</td></tr>`,
    )
    .join('\n');
  const picture = png
    ? `<img alt="Console of ${escapeHtml(failover.replicaName)}" src="data:image/png;base64,${png.toString('base64')}">`
    : '<p>None was taken.</p>';
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escapeHtml(title)}</title><style>${REPORT_STYLE}</style></head><body>
<h1>${escapeHtml(title)}</h1>
<p class="verdict ${kind}">${escapeHtml(words)}</p>
<table>${rows(facts)}</table>
<h2>Steps</h2>
<table><tr><th>Step</th><th>State</th><th>Began</th><th>Took</th><th>Result</th></tr>
${stepRows}
</table>
${checkTable}<h2>Console</h2>
${picture}
<h2>Changes in the guest</h2>
${list(failover.guestChanges)}
<h2>Left over</h2>
${list(failover.notes)}
<p>Made by Understudy on ${escapeHtml(now)}.</p>
</body></html>
`;
}
