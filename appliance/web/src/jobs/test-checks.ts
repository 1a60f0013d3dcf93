/** The checks of a job's tests, as they stand in a form and in words. Pure. */
import type { TestCheckResult, TestChecks } from '../../../api/schema.ts';

export interface TestCheckFields {
  /** Numbers with commas or spaces between them. */
  ports: string;
  script: string;
  seconds: string;
}

/** The contract's. */
const MAX_PORTS = 32;
const MAX_SCRIPT = 32_768;
const MAX_SECONDS = 1800;
const DEFAULT_SECONDS = 60;

export const testCheckFields = (checks: TestChecks | undefined): TestCheckFields => ({
  ports: (checks?.tcpPorts ?? []).join(', '),
  script: checks?.script?.text ?? '',
  seconds: String(checks?.script?.timeLimitSeconds ?? DEFAULT_SECONDS),
});

export type CheckProblem = { field: keyof TestCheckFields; problem: string };

/** As the API takes it, or what is wrong. */
export function testChecksOf({
  ports,
  script,
  seconds,
}: TestCheckFields): { ok: true; checks: TestChecks } | ({ ok: false } & CheckProblem) {
  const numbers = ports.split(/[\s,]+/).filter((word) => word !== '');
  const bad = numbers.find((word) => !/^\d{1,5}$/.test(word) || +word < 1 || +word > 65_535);
  if (bad !== undefined) {
    return { ok: false, field: 'ports', problem: `${bad} is no port: 1 to 65535.` };
  }
  const tcpPorts = [...new Set(numbers.map(Number))];
  if (tcpPorts.length > MAX_PORTS) {
    return { ok: false, field: 'ports', problem: `At most ${MAX_PORTS} ports.` };
  }
  if (script.trim() === '') return { ok: true, checks: { tcpPorts, script: null } };
  if (script.length > MAX_SCRIPT) {
    return { ok: false, field: 'script', problem: 'At most 32 KiB.' };
  }
  const timeLimitSeconds = /^\d{1,4}$/.test(seconds.trim()) ? Number(seconds) : 0;
  if (timeLimitSeconds < 1 || timeLimitSeconds > MAX_SECONDS) {
    return { ok: false, field: 'seconds', problem: `1 to ${MAX_SECONDS} seconds.` };
  }
  return { ok: true, checks: { tcpPorts, script: { text: script, timeLimitSeconds } } };
}

/** What is checked beside a boot; null: nothing. */
export function checksInWords(checks: TestChecks | undefined): string | null {
  const { tcpPorts = [], script = null } = checks ?? {};
  const parts = [
    ...(tcpPorts.length > 0
      ? [`TCP port${tcpPorts.length === 1 ? '' : 's'} ${tcpPorts.join(', ')}`]
      : []),
    ...(script ? [`a script of at most ${script.timeLimitSeconds} s`] : []),
  ];
  return parts.length === 0 ? null : parts.join(' and ');
}

export const CHECK_WORDS: Record<
  TestCheckResult['state'],
  { label: string; tone: 'neutral' | 'busy' | 'good' | 'bad' }
> = {
  waiting: { label: 'Waiting', tone: 'neutral' },
  running: { label: 'Under way', tone: 'busy' },
  passed: { label: 'Passed', tone: 'good' },
  failed: { label: 'Not passed', tone: 'bad' },
  'not-run': { label: 'Could not be made', tone: 'bad' },
};
