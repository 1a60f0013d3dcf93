/**
 * What a test failover shows beside a boot: ports on which something listens, and a script of the user's. Both are asked
 * inside the guest, by its QEMU guest agent: the test's network is isolated, there is no way in from the appliance, and
 * on the appliance's own networks it is the source that answers at the same address.
 */
import { asUndError } from '../../protocol/errors.ts';
import type { TestCheckResult, TestChecks } from '../api/schema.ts';
import type { GuestExecResult, Hypervisor } from '../hypervisor/hypervisor.ts';

export interface CheckContext {
  wait(ms: number): Promise<unknown>;
  detail(text: string): void;
  /** Keeps what is known so far. */
  results(results: TestCheckResult[]): Promise<void>;
}

export interface TestChecker {
  /** All results, good or bad. Throws what the host's absence throws. */
  check(
    vm: string,
    wanted: TestChecks | undefined,
    context: CheckContext,
  ): Promise<TestCheckResult[]>;
}

export interface CheckerOptions {
  hypervisor: Pick<Hypervisor, 'guestExec' | 'guestExecResult'>;
  /** How long after the proof of boot services and the guest agent may take to come up. Default 5 min. */
  settleMs?: number;
  intervalMs?: number;
}

const SETTLE_MS = 5 * 60_000;
const INTERVAL_MS = 3_000;
/** Beyond the script's own limit: starting it, and the agent's answers. */
const GRACE_MS = 30_000;
const MAX_OUTPUT_BYTES = 16_384;

const PORT_HOW =
  "seen inside the guest, in its kernel's table of listening sockets, by its QEMU guest agent; a firewall, or anything on the way to it, is not part of this";
const SCRIPT_HOW = 'run as root inside the guest by its QEMU guest agent';

/** Of one socket in the state LISTEN. */
export interface Listener {
  port: number;
  address: 'any' | 'loopback' | 'other';
}

/**
 * Reads lines of /proc/net/tcp and /proc/net/tcp6 (proc_pid_net(5)). Addresses are words in the processor's byte order,
 * little endian here.
 */
export function listeners(table: string): Listener[] {
  return table.split('\n').flatMap((line): Listener[] => {
    const found =
      /^\s*\d+: ([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A /.exec(line);
    if (!found) return [];
    const [, hex = '', port = ''] = found;
    const isLoopback =
      /^(0{16}F{4}0{4})?[0-9A-F]{6}7F$/.test(hex) || hex === `${'0'.repeat(24)}01000000`;
    const address = /^0+$/.test(hex) ? 'any' : isLoopback ? 'loopback' : 'other';
    return [{ port: Number.parseInt(port, 16), address }];
  });
}

/** What a table says of one port; null: nothing listens. */
export function judgePort(
  port: number,
  table: readonly Listener[],
): { passed: boolean; words: string } | null {
  const found = table.filter((one) => one.port === port);
  if (found.length === 0) return null;
  if (found.some(({ address }) => address === 'any')) {
    return { passed: true, words: 'something listens on it, at all addresses' };
  }
  return found.some(({ address }) => address === 'other')
    ? { passed: true, words: 'something listens on it' }
    : { passed: false, words: 'something listens on it at the loopback address only' };
}

const portName = (port: number): string => `TCP port ${port}`;
const SCRIPT_NAME = 'Script';

/** The checks before they are made, in their order. */
export function wantedChecks(wanted: TestChecks | undefined): TestCheckResult[] {
  if (!wanted) return [];
  const still = { state: 'waiting', words: 'not yet', output: null } as const;
  return [
    ...wanted.tcpPorts.map((port) => ({ ...still, name: portName(port), how: PORT_HOW })),
    ...(wanted.script ? [{ ...still, name: SCRIPT_NAME, how: SCRIPT_HOW }] : []),
  ];
}

const LISTENING = ['/bin/sh', '-c', 'grep -h " 0A " /proc/net/tcp /proc/net/tcp6 2>/dev/null; :'];

/**
 * Keeps the script's end apart from its output: a pipe has the status of its last command. With a shebang the script is
 * what that says, else sh's. Only the end of what it prints is kept, in memory: the guest's disk must not fill.
 */
const RUN_SCRIPT = `umask 077
f=$(mktemp /var/tmp/understudy-test.XXXXXX) || exit 125
cat >"$f" && chmod 700 "$f" || exit 125
{
  if command -v timeout >/dev/null 2>&1; then timeout -k 5 "$1" "$f"; else "$f"; fi
  echo $? >"$f.status"
} </dev/null 2>&1 | tail -c ${MAX_OUTPUT_BYTES + 1}
read -r status <"$f.status" || status=125
rm -f "$f" "$f.status"
exit "$status"`;

const CONTROL = /[^\P{Cc}\n\t]/gu;

/** What is kept of a script's output. */
export function keptOutput(text: string): string {
  const bytes = Buffer.from(text);
  const kept =
    bytes.length > MAX_OUTPUT_BYTES
      ? `[earlier output left out]\n${bytes.subarray(-MAX_OUTPUT_BYTES).toString('utf8')}`
      : text;
  return kept.replaceAll('\r\n', '\n').replace(CONTROL, '');
}

/** What the end of a script means. `tookMs` tells its time limit from an exit status that looks the same. */
export function judgeScript(
  { exitCode, signal }: Pick<GuestExecResult, 'exitCode' | 'signal'>,
  tookMs: number,
  timeLimitSeconds: number,
): { passed: boolean; words: string } {
  const took = `after ${(tookMs / 1000).toFixed(1)} s`;
  if (exitCode === 0) return { passed: true, words: `exit status 0 ${took}` };
  if ((exitCode === 124 || exitCode === 137) && tookMs >= timeLimitSeconds * 1000) {
    return { passed: false, words: `it did not end within ${timeLimitSeconds} s` };
  }
  const how = exitCode === null ? `ended by signal ${signal}` : `exit status ${exitCode}`;
  return { passed: false, words: `${how} ${took}` };
}

export function createTestChecker(options: CheckerOptions): TestChecker {
  const { hypervisor, settleMs = SETTLE_MS, intervalMs = INTERVAL_MS } = options;

  /** Only the guest's own refusals end a check; the host's absence ends the step, which is made again. */
  const notRun = (error: unknown): string => {
    const { code, message } = asUndError(error);
    if (code !== 'UND_HV_GUEST_AGENT') throw error;
    return message;
  };

  /** Null when it has not ended by `endMs`. */
  async function result(
    vm: string,
    pid: number,
    endMs: number,
    { wait }: CheckContext,
  ): Promise<GuestExecResult | null> {
    for (;;) {
      // An agent that is busy answers later.
      const found = await hypervisor.guestExecResult(vm, pid).catch((error) => {
        if (Date.now() >= endMs) throw error;
        notRun(error);
        return null;
      });
      if (found || Date.now() >= endMs) return found;
      await wait(Math.min(intervalMs, 1000));
    }
  }

  async function checkPorts(
    vm: string,
    ports: readonly number[],
    context: CheckContext,
    set: (name: string, change: Partial<TestCheckResult>) => Promise<void>,
  ): Promise<void> {
    const endMs = Date.now() + settleMs;
    const left = new Set(ports);
    for (;;) {
      context.detail(`looking for listeners on ${[...left].map(portName).join(', ')}`);
      let table: Listener[] = [];
      let problem: string | null = null;
      try {
        const pid = await hypervisor.guestExec(vm, { argv: LISTENING });
        const found = await result(vm, pid, Date.now() + GRACE_MS, context);
        if (found) table = listeners(found.output);
        else problem = 'the guest agent did not answer';
      } catch (error) {
        problem = notRun(error);
      }
      const isLast = Date.now() >= endMs;
      for (const port of left) {
        const judged = judgePort(port, table);
        if (!judged?.passed && !isLast) continue;
        left.delete(port);
        const nothing = `nothing in the guest listens on it, ${Math.round(settleMs / 1000)} s after its boot`;
        await set(
          portName(port),
          problem
            ? { state: 'not-run', words: problem }
            : {
                state: judged?.passed ? 'passed' : 'failed',
                words: judged?.words ?? nothing,
              },
        );
      }
      if (left.size === 0) return;
      await context.wait(intervalMs);
    }
  }

  /** Waits for the guest agent: a login prompt may be there before it. */
  async function begin(vm: string, argv: string[], input: string, context: CheckContext) {
    const endMs = Date.now() + settleMs;
    for (;;) {
      try {
        return await hypervisor.guestExec(vm, { argv, input });
      } catch (error) {
        if (Date.now() >= endMs) throw error;
        context.detail(`waiting for the guest agent: ${notRun(error)}`);
        await context.wait(intervalMs);
      }
    }
  }

  async function checkScript(
    vm: string,
    { text, timeLimitSeconds }: NonNullable<TestChecks['script']>,
    context: CheckContext,
  ): Promise<Partial<TestCheckResult>> {
    try {
      const argv = ['/bin/sh', '-c', RUN_SCRIPT, 'understudy', String(timeLimitSeconds)];
      const pid = await begin(vm, argv, text, context);
      const began = Date.now();
      context.detail('the script runs');
      const found = await result(vm, pid, began + timeLimitSeconds * 1000 + GRACE_MS, context);
      if (!found) {
        return { state: 'failed', words: `it did not end within ${timeLimitSeconds} s` };
      }
      const { passed, words } = judgeScript(found, Date.now() - began, timeLimitSeconds);
      const output = keptOutput(found.output + found.errors);
      return { state: passed ? 'passed' : 'failed', words, output };
    } catch (error) {
      return { state: 'not-run', words: notRun(error) };
    }
  }

  return {
    async check(vm, wanted, context) {
      const results = wantedChecks(wanted);
      const set = async (name: string, change: Partial<TestCheckResult>) => {
        const one = results.find((result) => result.name === name);
        if (one) Object.assign(one, change);
        await context.results(structuredClone(results));
      };
      if (!wanted) return results;
      if (wanted.tcpPorts.length > 0) await checkPorts(vm, wanted.tcpPorts, context, set);
      if (wanted.script) {
        await set(SCRIPT_NAME, { state: 'running', words: 'it runs' });
        await set(SCRIPT_NAME, await checkScript(vm, wanted.script, context));
      }
      return results;
    },
  };
}
