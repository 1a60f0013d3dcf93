/** The report of a failover or a test of a group: a page of HTML that stands alone. Pure. */
import type { Failover, GroupRunView } from '../api/schema.ts';
import { checksTable, escapeHtml, REPORT_STYLE, rows, verdict } from '../recovery/report.ts';

const KIND: Record<GroupRunView['kind'], string> = {
  unplanned: 'Unplanned failover',
  planned: 'Planned failover',
  test: 'Test failover',
};

function groupVerdict({ test, state }: GroupRunView): { kind: string; words: string } {
  if (test?.verdict) {
    const { passed, words } = test.verdict;
    return passed
      ? { kind: 'passed', words: `Passed: ${words}.` }
      : { kind: 'failed', words: `Not passed: ${words}` };
  }
  if ('error' in state) return { kind: 'failed', words: state.error.message };
  if (!test) return { kind: 'open', words: `It is ${state.name}.` };
  const over = state.name === 'undone';
  return { kind: 'open', words: over ? 'Ended before there was a verdict.' : 'No verdict yet.' };
}

function targetWords({ target }: GroupRunView): string {
  if (target.name === 'final') return 'the final state of each member';
  return target.name === 'mark' ? `the mark ${target.markName}, ${target.at}` : target.at;
}

/** @param failovers of the members that have begun */
export function groupReportPage(
  run: GroupRunView,
  failovers: readonly Failover[],
  now: string,
): string {
  const title = `${KIND[run.kind]} of the group ${run.groupName}, ${run.startedAt}`;
  const { kind, words } = groupVerdict(run);
  const apart =
    run.target.name === 'final' || run.target.errorMs === null
      ? 'not known'
      : `${Math.ceil(run.target.errorMs)} ms at most`;
  const facts: [string, string][] = [
    ['Group', run.groupName],
    ['Began', run.startedAt],
    ['Ended', run.endedAt ?? 'not yet'],
    ['Recovered to', targetWords(run)],
    ['Members apart', apart],
  ];
  if (run.test) {
    facts.push(['Started by', run.test.trigger === 'person' ? 'a person' : 'the schedule']);
  }
  const members = [...run.members].sort((a, b) => a.priority - b.priority);
  const parts = members.map((member) => {
    const failover = failovers.find(({ failoverId }) => failoverId === member.failoverId);
    const refused = member.state.name === 'refused' ? member.state.error.message : null;
    const came = failover
      ? verdict(failover)
      : { kind: refused ? 'failed' : 'open', words: refused ?? 'It was not begun.' };
    const own: [string, string][] = [
      ['Priority', String(member.priority)],
      ['VM', member.replicaName],
      ['Recovered to, by its own clock', failover?.point.sourceTime ?? member.sourceTime ?? '–'],
      ['Addresses', failover?.addresses.join(', ') || 'none seen'],
      ...(failover ? ([['Its own report', failover.failoverId]] as [string, string][]) : []),
    ];
    const checks = failover?.test?.checks ?? [];
    return `<h2>${escapeHtml(member.sourceName)}</h2>
<p class="verdict ${came.kind}">${escapeHtml(came.words)}</p>
<table>${rows(own)}</table>
${checks.length > 0 ? checksTable(checks) : ''}`;
  });
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>${escapeHtml(title)}</title><style>${REPORT_STYLE}</style></head><body>
<h1>${escapeHtml(title)}</h1>
<p class="verdict ${kind}">${escapeHtml(words)}</p>
<table>${rows(facts)}</table>
${parts.join('\n')}
<p>Made by Understudy on ${escapeHtml(now)}.</p>
</body></html>
`;
}
