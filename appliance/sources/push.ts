/**
 * Installs the agent by SSH: upload, unpack beside, check, put in place, start, wait until it has enrolled. Everything
 * up to the last step is undone when it fails; an agent that was there before is put back.
 */
import { join } from 'node:path';
import {
  type AgentPaths,
  agentPaths,
  type EnrolTicket,
  traces,
  UNIT_NAME,
} from '../../agent/config.ts';
import { unitText } from '../../agent/service/unit.ts';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import type { PreflightCheck } from '../api/schema.ts';
import type { SshAccess } from '../control/agent-session.ts';
import type { AgentPackage } from './package.ts';
import { SshSession } from './ssh.ts';

/** From the start of the agent's unit to its certificate: a server under heavy load is slow to start a program. */
const ENROL_LIMIT_MS = 180_000;
const MIB = 1024 * 1024;
/** Longest part of a server's own words that goes into an error. */
const SAID = 400;

export interface PushRequest {
  ticket: EnrolTicket;
  agent: AgentPackage;
  onStep: (step: string) => void;
  signal: AbortSignal;
  enrolLimitMs?: number;
}

const lastWords = (text: string): string =>
  text.trim().split('\n').filter(Boolean).slice(-3).join(' | ').slice(-SAID) || 'no reason given';

/** Makes `text` one shell word. */
const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/**
 * Pushes the agent onto a server and starts it; resolves once it has enrolled.
 * @throws UND_SSH_…, UND_SUDO_REFUSED, UND_PREFLIGHT_FAILED, UND_PUSH_FAILED, UND_PUSH_AGENT_SILENT, UND_PUSH_CANCELLED
 */
export async function push(target: SshAccess, request: PushRequest): Promise<void> {
  const session = await SshSession.open(target);
  try {
    await session.findRoot();
    await new Push(session, target, request, agentPaths()).run();
  } finally {
    session.close();
  }
}

class Push {
  #session: SshSession;
  readonly #target: SshAccess;
  readonly #request: PushRequest;
  readonly #paths: AgentPaths;
  #step = 'beginning';
  #staging: string | undefined;
  #touched = false;

  constructor(session: SshSession, target: SshAccess, request: PushRequest, paths: AgentPaths) {
    this.#session = session;
    this.#target = target;
    this.#request = request;
    this.#paths = paths;
  }

  async run(): Promise<void> {
    const { signal } = this.#request;
    // A cancelled push ends at once, in the middle of a command if need be.
    const onAbort = () => this.#session.close();
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      await this.#upload();
      await this.#unpack();
      await this.#check();
      await this.#putInPlace();
      await this.#waitForEnrolment();
      await this.#cleanUp();
    } catch (error) {
      signal.removeEventListener('abort', onAbort);
      const failure = signal.aborted
        ? undError('UND_PUSH_CANCELLED', { source: this.#target.address }, { cause: error })
        : this.#inContext(asUndError(error));
      const undone = await this.#undo();
      if (undone === null) throw failure;
      throw undError(
        'UND_PUSH_FAILED',
        {
          source: this.#target.address,
          step: this.#step,
          reason: `${failure.message} And it could not be undone: ${undone}`,
        },
        { cause: failure },
      );
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  #inContext(error: UndError): UndError {
    if (error.code !== 'UND_SSH_FAILED' && error.code !== 'UND_INTERNAL') return error;
    return undError(
      'UND_PUSH_FAILED',
      { source: this.#target.address, step: this.#step, reason: error.message },
      { cause: error },
    );
  }

  #enter(step: string): void {
    if (this.#request.signal.aborted)
      throw undError('UND_PUSH_CANCELLED', { source: this.#target.address });
    this.#step = step;
    this.#request.onStep(step);
  }

  #failed(reason: string): UndError {
    return undError('UND_PUSH_FAILED', { source: this.#target.address, step: this.#step, reason });
  }

  async #root(script: string, timeoutMs?: number): Promise<string> {
    const { code, stdout, stderr } = await this.#session.runAsRoot(`set -eu\n${script}`, timeoutMs);
    if (code !== 0) throw this.#failed(lastWords(`${stdout}\n${stderr}`));
    return stdout;
  }

  #archive: { name: string; unpack: string } = { name: '', unpack: '' };

  async #upload(): Promise<void> {
    this.#enter('preparing the upload');
    const { agent } = this.#request;
    const { code, stdout, stderr } = await this.#session.run(
      'umask 077\nrm -rf /var/tmp/understudy-push.* 2>/dev/null\nmktemp -d /var/tmp/understudy-push.XXXXXX && { command -v zstd || true; }',
    );
    const [staging = '', zstd = ''] = stdout.trim().split('\n');
    if (code !== 0 || !staging.startsWith('/var/tmp/understudy-push.')) {
      throw this.#failed(lastWords(stderr));
    }
    this.#staging = staging;
    const archive = zstd.trim() ? agent.archives.zst : agent.archives.gz;
    this.#archive = { name: archive.file, unpack: zstd.trim() ? 'zstd -dcq' : 'gzip -dc' };
    const totalMiB = Math.ceil(archive.sizeBytes / MIB);
    let shown = -1;
    this.#enter(`uploading the agent (${totalMiB} MiB)`);
    await this.#session.upload(
      join(agent.dir, archive.file),
      `${staging}/${archive.file}`,
      (sent) => {
        const percent = Math.floor((sent / archive.sizeBytes) * 10) * 10;
        if (percent === shown || this.#request.signal.aborted) return;
        shown = percent;
        this.#request.onStep(`uploading the agent (${percent} % of ${totalMiB} MiB)`);
      },
    );
  }

  async #unpack(): Promise<void> {
    this.#enter('unpacking');
    const { agent, ticket } = this.#request;
    const fresh = `${this.#paths.programDir}.new`;
    const sums = Object.entries(agent.files).map(([file, sha256]) => `${sha256}  ${file}`);
    this.#touched = true;
    // The archive lies where its uploader could still change it: what counts is checked where only root can write.
    await this.#root(
      `
umask 022
rm -rf ${fresh}
mkdir ${fresh}
${this.#archive.unpack} ${this.#staging}/${this.#archive.name} | tar -x -C ${fresh} --no-same-owner -f -
cd ${fresh}
sha256sum -c --quiet - <<'UNDERSTUDY_SUMS'
${sums.join('\n')}
UNDERSTUDY_SUMS
chown -R 0:0 .
chmod 0755 understudy-agent libatomic.so.1
(umask 077; cat >enrol.json) <<'UNDERSTUDY_TICKET'
${JSON.stringify(ticket)}
UNDERSTUDY_TICKET`,
      300_000,
    );
  }

  /** The agent's own checks: it runs here, its capture loads into this kernel, it reaches the appliance by TLS. */
  async #check(): Promise<void> {
    this.#enter("the agent's own checks");
    const { code, stdout, stderr } = await this.#session.runAsRoot(
      `${this.#paths.programDir}.new/understudy-agent preflight`,
    );
    let checks: PreflightCheck[];
    let version: string;
    try {
      ({ checks, version } = JSON.parse(stdout) as { checks: PreflightCheck[]; version: string });
    } catch {
      throw this.#failed(lastWords(`${stdout}\n${stderr}`) || `it ended with ${code}`);
    }
    if (version !== this.#request.agent.version) {
      throw this.#failed(`the agent says it is version ${String(version).slice(0, 64)}`);
    }
    const failed = checks.filter((check) => check.result === 'failed');
    if (failed.length === 0) return;
    throw undError('UND_PREFLIGHT_FAILED', {
      source: this.#target.address,
      reason: failed
        .map((check) => `${check.title}: ${check.detail}`)
        .join(' ')
        .slice(0, 1500)
        .replace(/\.$/, ''),
    });
  }

  async #putInPlace(): Promise<void> {
    this.#enter('installing');
    const { programDir, stateDir, unitFile } = this.#paths;
    await this.#root(`
umask 077
mkdir -p ${stateDir}
chmod 0700 ${stateDir}
mv ${programDir}.new/enrol.json ${stateDir}/enrol.json
rm -rf ${programDir}.old
if [ -d ${programDir} ]; then
  [ ! -e ${unitFile} ] || cp -p ${unitFile} ${programDir}/${UNIT_NAME}
  mv ${programDir} ${programDir}.old
fi
mv ${programDir}.new ${programDir}
umask 022
cat >${unitFile} <<'UNDERSTUDY_UNIT'
${unitText(this.#paths)}
UNDERSTUDY_UNIT
systemctl daemon-reload
systemctl enable --quiet ${UNIT_NAME}
systemctl restart ${UNIT_NAME}`);
  }

  async #waitForEnrolment(): Promise<void> {
    this.#enter('waiting for the agent to enrol');
    const limitMs = this.#request.enrolLimitMs ?? ENROL_LIMIT_MS;
    const { stateDir } = this.#paths;
    // Waited for over there, in one command: a slow network is not asked every second.
    const { stdout } = await this.#session.runAsRoot(
      `
i=0
while [ $i -lt ${Math.ceil(limitMs / 1000)} ]; do
  if [ ! -e ${stateDir}/enrol.json ]; then
    [ ! -s ${stateDir}/identity.json ] || { echo enrolled; return 0; }
    break
  fi
  ! systemctl is-failed --quiet ${UNIT_NAME} || break
  sleep 1
  i=$((i + 1))
done
journalctl -u ${UNIT_NAME} -n 3 -o cat --no-pager 2>/dev/null || true`,
      limitMs + 30_000,
    );
    if (stdout.startsWith('enrolled')) return;
    throw undError('UND_PUSH_AGENT_SILENT', {
      source: this.#target.address,
      timeoutMs: limitMs,
      reason: lastWords(stdout),
    });
  }

  async #cleanUp(): Promise<void> {
    // The agent works: what is left over is no reason to take it away again.
    await this.#session
      .runAsRoot(`rm -rf ${this.#paths.programDir}.old ${quote(this.#staging ?? '')}`)
      .catch(() => undefined);
  }

  /** Back to what was before. @returns why not, or null */
  async #undo(): Promise<string | null> {
    const { programDir } = this.#paths;
    const all = traces(this.#paths).map(quote).join(' ');
    const script = this.#touched
      ? `
rm -rf ${quote(this.#staging ?? '')}
if [ -d ${programDir}.old ]; then
  rm -rf ${programDir} ${programDir}.new ${this.#paths.stateDir}/enrol.json
  mv ${programDir}.old ${programDir}
  [ ! -e ${programDir}/${UNIT_NAME} ] || mv ${programDir}/${UNIT_NAME} ${this.#paths.unitFile}
  systemctl daemon-reload
  systemctl restart ${UNIT_NAME} || exit 3
elif [ -e ${programDir}/understudy-agent ] && [ -e ${programDir}.new ]; then
  # Not put in place yet: the agent of before still runs.
  rm -rf ${programDir}.new
else
  systemctl disable --now ${UNIT_NAME} >/dev/null 2>&1
  rm -rf ${all}
  systemctl daemon-reload
  systemctl reset-failed ${UNIT_NAME} >/dev/null 2>&1
fi
true`
      : `rm -rf ${quote(this.#staging ?? '')}`;
    try {
      if (!this.#session.connected) this.#session = await SshSession.open(this.#target);
      const { code, stderr } = this.#touched
        ? await this.#session.runAsRoot(script)
        : await this.#session.run(script);
      return code === 0 ? null : lastWords(stderr);
    } catch (error) {
      return asUndError(error).message;
    } finally {
      this.#session.close();
    }
  }
}
