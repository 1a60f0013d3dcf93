/** The preflight's checks over the facts. Pure: what is wrong, in words, and what to do about it. */

import { parseLsblk } from '../../agent/inventory/lsblk.ts';
import { findTwins, protectability, worthListing } from '../../agent/inventory/protectable.ts';
import { type ErrorCode, type ErrorParams, undError } from '../../protocol/errors.ts';
import type { PreflightCheck } from '../api/schema.ts';
import type { SourceFacts } from './facts.ts';

export const KERNEL_FLOOR = '5.10';
export const GLIBC_FLOOR = '2.28';
const MIB = 1024 * 1024;
const SPARE_BYTES = 16 * MIB;
const STATE_BYTES = 16 * MIB;
/** What agent and ring want; less is said, not refused. */
const WANTED_MEMORY_BYTES = 384 * MIB;
const SKEW_SHOWN_S = 30;
/** The appliance dates its certificates two hours back. */
const BEHIND_LIMIT_S = 110 * 60;
const AHEAD_LIMIT_S = 30 * 86_400;

export interface JudgeInput {
  source: string;
  facts: SourceFacts;
  /** What will be sent and what it becomes. */
  archiveBytes: number;
  installedBytes: number;
  applianceFingerprint: string;
  apiPort: number;
  agentPort: number;
  /** The appliance's clock at the moment when the source's was read. */
  nowMs: number;
  /** Another source of this appliance with the same machine UUID. */
  sourceWithUuid?: (smbiosUuid: string) => string | null;
}

/** True when dotted version `found` (its leading numbers) is `floor` or later. */
export function versionAtLeast(found: string, floor: string): boolean {
  const numbers = (text: string) => (/(\d+)\.(\d+)/.exec(text) ?? []).slice(1).map(Number);
  const [fMajor = 0, fMinor = 0] = numbers(found);
  const [nMajor = 0, nMinor = 0] = numbers(floor);
  return fMajor > nMajor || (fMajor === nMajor && fMinor >= nMinor);
}

const mib = (bytes: number) => Math.floor(bytes / MIB);

/** All checks in the order in which a person would fix them. */
export function judge(input: JudgeInput): PreflightCheck[] {
  const { facts, source } = input;
  const checks: PreflightCheck[] = [];
  const ok = (id: string, title: string, detail: string) =>
    checks.push({ id, title, result: 'ok', detail });
  const bad = (
    id: string,
    title: string,
    code: ErrorCode,
    params: ErrorParams,
    result: 'failed' | 'warning' = 'failed',
  ) => {
    const error = undError(code, { source, ...params });
    checks.push({ id, title, result, detail: error.message, code, hint: error.hint });
  };

  if (facts.system !== 'Linux') {
    bad('os', 'Operating system', 'UND_SOURCE_NOT_LINUX', { system: facts.system });
    return checks;
  }
  ok('os', 'Operating system', facts.os);

  if (facts.isAppliance) bad('appliance', 'Not an appliance', 'UND_SOURCE_IS_APPLIANCE', {});

  if (facts.architecture === 'x86_64') ok('architecture', 'Architecture', facts.architecture);
  else {
    bad('architecture', 'Architecture', 'UND_SOURCE_ARCHITECTURE', {
      architecture: facts.architecture,
    });
  }

  if (facts.systemd) ok('systemd', 'systemd', 'runs');
  else bad('systemd', 'systemd', 'UND_SOURCE_NO_SYSTEMD', { init: facts.init });

  if (facts.glibc && versionAtLeast(facts.glibc, GLIBC_FLOOR))
    ok('glibc', 'C library', facts.glibc);
  else {
    bad('glibc', 'C library', 'UND_SOURCE_GLIBC_TOO_OLD', {
      found: facts.glibc ?? 'no glibc',
      needed: GLIBC_FLOOR,
    });
  }

  if (versionAtLeast(facts.kernel, KERNEL_FLOOR)) ok('kernel', 'Kernel', facts.kernel);
  else {
    bad('kernel', 'Kernel', 'UND_SOURCE_KERNEL_TOO_OLD', {
      kernel: facts.kernel,
      needed: KERNEL_FLOOR,
    });
  }

  if (facts.btf) ok('btf', 'Kernel type information', '/sys/kernel/btf/vmlinux');
  else bad('btf', 'Kernel type information', 'UND_SOURCE_NO_BTF', { kernel: facts.kernel });

  if (facts.bpfFs) ok('bpf', 'BPF file system', '/sys/fs/bpf');
  else bad('bpf', 'BPF file system', 'UND_SOURCE_NO_BPF_FS', {});

  if (facts.lockdown === 'confidentiality') {
    bad('lockdown', 'Kernel lockdown', 'UND_SOURCE_LOCKDOWN', { mode: facts.lockdown });
  } else ok('lockdown', 'Kernel lockdown', facts.lockdown ?? 'none');

  for (const tool of ['tar', 'gzip', 'sha256sum', 'lsblk', 'findmnt']) {
    if (!facts.tools.has(tool)) bad(`tool-${tool}`, tool, 'UND_SOURCE_TOOL_MISSING', { tool });
  }

  judgeSpace(input, ok, bad);

  const memory = facts.availableMemoryBytes;
  if (memory === null || memory >= WANTED_MEMORY_BYTES) {
    ok('memory', 'Memory', memory === null ? 'not known' : `${mib(memory)} MiB available`);
  } else {
    bad(
      'memory',
      'Memory',
      'UND_SOURCE_LOW_MEMORY',
      { availableMiB: mib(memory), neededMiB: mib(WANTED_MEMORY_BYTES) },
      'warning',
    );
  }

  judgeDisks(facts, ok, bad);
  judgeReach(input, ok, bad);

  if (facts.clockSeconds !== null) {
    const skewS = Math.round(facts.clockSeconds - input.nowMs / 1000);
    const params = {
      skewSeconds: Math.abs(skewS),
      direction: skewS < 0 ? 'behind' : 'ahead of',
    };
    if (skewS < -BEHIND_LIMIT_S || skewS > AHEAD_LIMIT_S) {
      bad('clock', 'Clock', 'UND_SOURCE_CLOCK_SKEW', params);
    } else if (Math.abs(skewS) > SKEW_SHOWN_S) {
      bad('clock', 'Clock', 'UND_SOURCE_CLOCK_SKEW', params, 'warning');
    } else ok('clock', 'Clock', Math.abs(skewS) < 2 ? 'agrees' : `${skewS} s apart`);
  }

  if (facts.owner !== null && facts.owner !== input.applianceFingerprint) {
    bad('agent', 'Agent', 'UND_SOURCE_DIFFERENT_APPLIANCE', {
      appliance: `authority ${facts.owner.slice(0, 23)}…`,
    });
  } else {
    ok(
      'agent',
      'Agent',
      facts.agentInstalled ? 'installed already: it will be replaced' : 'not installed yet',
    );
  }

  const other = facts.smbiosUuid === null ? null : input.sourceWithUuid?.(facts.smbiosUuid);
  if (other) bad('clone', 'Machine identity', 'UND_SOURCE_SAME_MACHINE', { other });
  return checks;
}

type Ok = (id: string, title: string, detail: string) => void;
type Bad = (
  id: string,
  title: string,
  code: ErrorCode,
  params: ErrorParams,
  result?: 'failed' | 'warning',
) => void;

function judgeSpace(input: JudgeInput, ok: Ok, bad: Bad): void {
  const { facts } = input;
  const needs = [
    { folder: '/usr/lib', bytes: input.installedBytes },
    { folder: '/var/lib', bytes: STATE_BYTES },
    { folder: '/var/tmp', bytes: input.archiveBytes },
  ];
  // Folders on one file system draw on the same space.
  const byDevice = new Map<string, { folders: string[]; needed: number; free: number }>();
  for (const { folder, bytes } of needs) {
    const found = facts.folders.get(folder);
    if (!found) continue;
    if (!found.writable) bad('space', 'Space', 'UND_SOURCE_READ_ONLY', { folder });
    const entry = byDevice.get(found.device) ?? {
      folders: [],
      needed: SPARE_BYTES,
      free: found.freeBytes,
    };
    entry.folders.push(folder);
    entry.needed += bytes;
    byDevice.set(found.device, entry);
  }
  let enough = true;
  for (const { folders, needed, free } of byDevice.values()) {
    if (free >= needed) continue;
    enough = false;
    bad('space', 'Space', 'UND_SOURCE_NO_SPACE', {
      folder: folders.join(', '),
      availableMiB: mib(free),
      neededMiB: Math.ceil(needed / MIB),
    });
  }
  if (enough) {
    const least = Math.min(...[...byDevice.values()].map(({ free }) => free));
    ok('space', 'Space', Number.isFinite(least) ? `${mib(least)} MiB free` : 'not known');
  }
}

function judgeDisks(facts: SourceFacts, ok: Ok, bad: Bad): void {
  if (facts.lsblkJson === null) return;
  let disks: ReturnType<typeof parseLsblk>;
  try {
    disks = parseLsblk(facts.lsblkJson);
  } catch (error) {
    bad('disks', 'Disks', 'UND_SOURCE_NO_DISK', { reason: `lsblk: ${(error as Error).message}` });
    return;
  }
  const twins = findTwins(disks);
  const good: string[] = [];
  const refused: string[] = [];
  for (const disk of disks.filter(worthListing)) {
    const verdict = protectability(disk, {
      nvmeMultipath: false,
      logicalBlockBytes: 512,
      twin: twins.get(disk.name) ?? null,
    });
    if (verdict.protectable) good.push(disk.name);
    else refused.push(`${disk.name}: ${verdict.reason}`);
  }
  const not = refused.length ? ` (not: ${refused.join('; ')})` : '';
  if (good.length > 0) ok('disks', 'Disks', `${good.join(', ')}${not}`);
  else bad('disks', 'Disks', 'UND_SOURCE_NO_DISK', { reason: refused.join('; ') || 'none found' });
}

function judgeReach(input: JudgeInput, ok: Ok, bad: Bad): void {
  const { reach } = input.facts;
  const title = 'Reaches the appliance';
  const addresses = [...new Set(reach.map(({ address }) => address))];
  const at = (address: string, port: number) =>
    reach.find((one) => one.address === address && one.port === port)?.result ?? 'not tried';
  const whole = addresses.find(
    (address) => at(address, input.apiPort) === 'ok' && at(address, input.agentPort) === 'ok',
  );
  if (whole) {
    ok('agent-port', title, `${whole}, ports ${input.apiPort} and ${input.agentPort}`);
    return;
  }
  const problems = reach.filter(({ result }) => result !== 'ok');
  const ways = problems.map(({ address, port }) => `${address}:${port}`).join(', ');
  const reasons = [...new Set(problems.map(({ result }) => result))].join('; ');
  if (problems.every(({ result }) => result === 'unknown')) {
    const reason = 'it could not be tried: the server has neither bash nor nc';
    bad('agent-port', title, 'UND_SOURCE_PORT_BLOCKED', { appliance: ways, reason }, 'warning');
  } else {
    bad('agent-port', title, 'UND_SOURCE_PORT_BLOCKED', { appliance: ways, reason: reasons });
  }
}
