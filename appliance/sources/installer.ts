/** The room that talks to source servers by SSH: preflight, push, uninstall. */
import { agentPaths, type EnrolTicket, traces, UNIT_NAME } from '../../agent/config.ts';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { PreflightCheck, PreflightReport } from '../api/schema.ts';
import type { SourceInstaller, SshAccess } from '../control/agent-session.ts';
import { factsScript, parseFacts } from './facts.ts';
import { judge } from './judge.ts';
import { readAgentPackage } from './package.ts';
import { push } from './push.ts';
import { type HostKey, SshSession } from './ssh.ts';

/** What sources must know of this appliance. Functions, because ports and addresses are known late and change. */
export interface ApplianceAddress {
  /** As sources reach it; tried in turn. */
  addresses: () => string[];
  httpsPort: () => number;
  agentPort: () => number;
  caPem: string;
  caFingerprintSha256: string;
}

export interface InstallerOptions {
  appliance: ApplianceAddress;
  /** Where scripts/build-agent (or the appliance's image) left the agent. */
  agentDir: string;
  /** Another source of this appliance with this machine UUID. */
  sourceWithUuid?: (smbiosUuid: string, address: string) => string | null;
  now?: () => number;
  enrolLimitMs?: number;
}

const addressOf = (appliance: ApplianceAddress): Omit<EnrolTicket, 'token'> => ({
  addresses: appliance.addresses().slice(0, 16),
  apiPort: appliance.httpsPort(),
  agentPort: appliance.agentPort(),
  caPem: appliance.caPem,
  caFingerprintSha256: appliance.caFingerprintSha256,
});

const failedCheck = (id: string, title: string, thrown: unknown): PreflightCheck => {
  const error = asUndError(thrown);
  return { id, title, result: 'failed', detail: error.message, code: error.code, hint: error.hint };
};

async function preflight(target: SshAccess, options: InstallerOptions): Promise<PreflightReport> {
  const now = options.now ?? Date.now;
  let shown: HostKey = { fingerprint: null, known: false };
  const checks: PreflightCheck[] = [];
  const report = (): PreflightReport => ({
    ok: checks.every((check) => check.result !== 'failed'),
    hostKeyFingerprint: shown.fingerprint,
    hostKeyKnown: shown.known,
    checks,
  });
  let session: SshSession;
  try {
    session = await SshSession.open(target, (key) => {
      shown = key;
    });
  } catch (error) {
    checks.push(failedCheck('ssh', 'SSH login', error));
    return report();
  }
  try {
    checks.push({
      id: 'ssh',
      title: 'SSH login',
      result: 'ok',
      detail: `as ${target.username}, host key ${shown.fingerprint}`,
    });
    let asRoot = true;
    try {
      const { how } = await session.findRoot();
      const detail = {
        'is-root': 'is root',
        sudo: 'by sudo, without a password',
        'sudo-password': 'by sudo, with the password',
      }[how];
      checks.push({ id: 'sudo', title: 'Root', result: 'ok', detail });
    } catch (error) {
      // The rest can be seen without root too: say everything that is wrong at once.
      asRoot = false;
      checks.push(failedCheck('sudo', 'Root', error));
    }
    const appliance = addressOf(options.appliance);
    const agent = await readAgentPackage(options.agentDir);
    const ways = appliance.addresses.flatMap((address) =>
      [appliance.apiPort, appliance.agentPort].map((port) => ({ address, port })),
    );
    const script = factsScript(ways);
    const before = now();
    const { stdout, stderr, code } = asRoot
      ? await session.runAsRoot(script)
      : await session.run(script);
    const facts = parseFacts(stdout);
    if (facts.system === 'unknown') {
      throw undError('UND_SSH_FAILED', {
        source: target.address,
        reason: stderr.trim().slice(-300) || `the checks ended with ${code} and printed nothing`,
      });
    }
    // Without root, folders look read-only though they are not.
    if (!asRoot) for (const folder of facts.folders.values()) folder.writable = true;
    checks.push(
      ...judge({
        source: target.address,
        facts,
        archiveBytes: facts.tools.has('zstd')
          ? agent.archives.zst.sizeBytes
          : agent.archives.gz.sizeBytes,
        installedBytes: agent.installedBytes,
        applianceFingerprint: appliance.caFingerprintSha256,
        apiPort: appliance.apiPort,
        agentPort: appliance.agentPort,
        // The clock is read near the end of the script; the port checks before it may take seconds.
        nowMs: Math.max(before, now() - 500),
        sourceWithUuid: (uuid) => options.sourceWithUuid?.(uuid, target.address) ?? null,
      }),
    );
  } catch (error) {
    checks.push(failedCheck('checks', 'Checks on the server', error));
  } finally {
    session.close();
  }
  return report();
}

async function install(
  target: SshAccess,
  options: InstallerOptions,
  request: { token: string; onStep: (step: string) => void; signal: AbortSignal },
): Promise<void> {
  const ticket: EnrolTicket = { token: request.token, ...addressOf(options.appliance) };
  await push(target, {
    ticket,
    agent: await readAgentPackage(options.agentDir),
    onStep: request.onStep,
    signal: request.signal,
    ...(options.enrolLimitMs === undefined ? {} : { enrolLimitMs: options.enrolLimitMs }),
  });
}

/**
 * Removes every trace of this appliance's agent by SSH, and looks that nothing is left.
 * @throws UND_SSH_…, UND_SUDO_REFUSED, UND_SOURCE_DIFFERENT_APPLIANCE, UND_UNINSTALL_INCOMPLETE
 */
async function uninstall(
  target: SshAccess,
  options: InstallerOptions,
  request: { onStep: (step: string) => void; signal: AbortSignal },
): Promise<void> {
  request.onStep('connecting by SSH');
  const session = await SshSession.open(target);
  const onAbort = () => session.close();
  request.signal.addEventListener('abort', onAbort, { once: true });
  try {
    await session.findRoot();
    const { owner } = parseFacts((await session.runAsRoot(factsScript([]))).stdout);
    const { caFingerprintSha256 } = options.appliance;
    if (owner !== null && owner !== caFingerprintSha256) {
      throw undError('UND_SOURCE_DIFFERENT_APPLIANCE', {
        source: target.address,
        appliance: `authority ${owner.slice(0, 23)}…`,
      });
    }
    request.onStep('removing the agent');
    const all = traces(agentPaths()).join(' ');
    const { stdout, stderr, code } = await session.runAsRoot(`
systemctl disable --now ${UNIT_NAME} >/dev/null 2>&1
rm -rf ${all} /var/tmp/understudy-push.*
systemctl daemon-reload
systemctl reset-failed ${UNIT_NAME} >/dev/null 2>&1
for p in ${all}; do [ ! -e "$p" ] || echo "$p"; done
! systemctl is-active --quiet ${UNIT_NAME} || echo ${UNIT_NAME}
true`);
    const left = stdout.trim().split('\n').filter(Boolean);
    if (code !== 0 || left.length > 0) {
      throw undError('UND_UNINSTALL_INCOMPLETE', {
        source: target.address,
        left: left.join(', ') || stderr.trim().slice(-300) || 'not known',
      });
    }
  } finally {
    request.signal.removeEventListener('abort', onAbort);
    session.close();
  }
}

/** What control uses; see `SourceInstaller`. */
export const createSourceInstaller = (options: InstallerOptions): SourceInstaller => ({
  preflight: (target) => preflight(target, options),
  install: (target, request) => install(target, options, request),
  uninstall: (target, request) => uninstall(target, options, request),
});
