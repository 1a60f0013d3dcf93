import { execa } from 'execa';
import { ERRORS, type ErrorCode, undError } from '../../../protocol/errors.ts';
import { type Outcome, SESSION_REQUEST, Sessions } from './session.ts';

/**
 * The way to the target host. Each call is one request to the wrapper there (`image/host/understudy-host-shell`),
 * which is the only thing that the appliance's key may run. Calls go through a session with it (session.ts); those that
 * last for hours, and all with a wrapper that is too old for sessions, are made by themselves.
 */
export interface Transport {
  /** Throws the wrapper's coded error, UND_HV_UNREACHABLE or UND_HV_FAILED. */
  call(verb: Verb, fields?: Record<string, unknown>): Promise<unknown>;
  close(): Promise<void>;
}

export type Verb =
  | 'host'
  | 'pool-list'
  | 'net-list'
  | 'vm-list'
  | 'vm-state'
  | 'vm-xml'
  | 'vm-define'
  | 'vm-start'
  | 'vm-shutdown'
  | 'vm-destroy'
  | 'vm-undefine'
  | 'vm-autostart'
  | 'disk-create'
  | 'disk-overlay'
  | 'disk-info'
  | 'disk-users'
  | 'disk-resize'
  | 'disk-delete'
  | 'controller-add'
  | 'disk-attach'
  | 'disk-detach'
  | 'disk-snapshot'
  | 'disk-commit'
  | 'disk-commit-cancel'
  | 'screenshot'
  | 'console-tail'
  | 'addresses'
  | 'agent-ping'
  | 'guest-exec'
  | 'guest-exec-result';

export interface SshOptions {
  host: string;
  /** Default 22. */
  port?: number;
  /** Default root. */
  user?: string;
  /** The appliance's private key. */
  keyFile: string;
  /** Must hold the host's key: an unknown or changed one is refused. */
  knownHostsFile: string;
  /** Where the shared connection's socket lives; at most 40 characters, because a socket's path is short. */
  controlDir: string;
  /** Put before `ssh`, for a host that is only reached from elsewhere, such as a lab's namespace. */
  launcher?: string[];
}

export interface LocalOptions {
  /** The wrapper and its configuration, as the forced command has them. */
  command: string[];
}

const CALL_TIMEOUT_MS = 180_000;
const COMMIT_TIMEOUT_MS = 24 * 3600_000;
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;
/** sshd allows 10 channels on one connection by default (MaxSessions), and a session takes one more. */
const MAX_CALLS = 6;
/** Not in a session: such a call outlives many of them. */
const BY_ITSELF: ReadonlySet<Verb> = new Set<Verb>(['disk-commit']);

/** Over SSH, one shared connection that stays for a minute after the last call. */
export function sshTransport(options: SshOptions): Transport {
  const destination = `${options.user ?? 'root'}@${options.host}`;
  const connection = [
    ...['-T', '-i', options.keyFile, '-p', String(options.port ?? 22)],
    ...Object.entries({
      BatchMode: 'yes',
      IdentitiesOnly: 'yes',
      UserKnownHostsFile: options.knownHostsFile,
      StrictHostKeyChecking: 'yes',
      ConnectTimeout: '10',
      ServerAliveInterval: '15',
      ServerAliveCountMax: '4',
      ControlMaster: 'auto',
      ControlPath: `${options.controlDir}/%C`,
      ControlPersist: '60',
    }).flatMap(([key, value]) => ['-o', `${key}=${value}`]),
  ];
  const [program = 'ssh', ...rest] = [...(options.launcher ?? []), 'ssh'];
  const sessions = new Sessions({
    command: [program, ...rest, ...connection, destination, SESSION_REQUEST],
  });
  return {
    call: limited(
      exchange(options.host, sessions, (text, timeout) =>
        execa(program, [...rest, ...connection, destination, text], { ...quiet, timeout }),
      ),
    ),
    async close() {
      await sessions.close();
      await execa(program, [...rest, ...connection, '-O', 'exit', destination], { reject: false });
    },
  };
}

/** The wrapper as a child of this process: for a host that is this machine, and for tests. */
export function localTransport(options: LocalOptions): Transport {
  const [program = '', ...rest] = options.command;
  const sessions = new Sessions({
    command: options.command,
    env: { SSH_ORIGINAL_COMMAND: SESSION_REQUEST },
  });
  return {
    call: limited(
      exchange('this machine', sessions, (text, timeout) =>
        execa(program, rest, { ...quiet, timeout, env: { SSH_ORIGINAL_COMMAND: text } }),
      ),
    ),
    close: () => sessions.close(),
  };
}

const quiet = { reject: false, stdin: 'ignore', maxBuffer: MAX_ANSWER_BYTES } as const;

function exchange(
  host: string,
  sessions: Sessions,
  start: (text: string, timeoutMs: number) => PromiseLike<Outcome>,
): (verb: Verb, fields: Record<string, unknown>) => Promise<unknown> {
  return async (verb, fields) => {
    const text = JSON.stringify({ verb, ...fields });
    const timeoutMs = verb === 'disk-commit' ? COMMIT_TIMEOUT_MS : CALL_TIMEOUT_MS;
    const bySession = BY_ITSELF.has(verb) ? null : await sessions.exchange(text, timeoutMs);
    return readAnswer(host, verb, bySession ?? (await start(text, timeoutMs)));
  };
}

/** The wrapper's answer, or its coded error. Exported for its test. */
export function readAnswer(host: string, verb: Verb, outcome: Outcome): unknown {
  let answer: unknown;
  try {
    answer = JSON.parse(outcome.stdout);
  } catch {
    const said = outcome.stderr.trim().split('\n').slice(-3).join(' ');
    const reason = outcome.timedOut
      ? 'no answer in time'
      : said || outcome.message || `exit ${outcome.exitCode}`;
    throw undError('UND_HV_UNREACHABLE', { host, reason });
  }
  if (isRecord(answer) && answer.ok === true) return answer.result;
  if (isRecord(answer) && typeof answer.code === 'string' && isHvCode(answer.code)) {
    throw undError(answer.code, readParams(answer.params));
  }
  throw undError('UND_HV_FAILED', {
    action: verb,
    reason: 'its wrapper gave an answer that this version does not understand',
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null;
}

/** A host may be hostile too: it can't make the appliance throw whatever code it likes. */
function isHvCode(code: string): code is ErrorCode {
  return code.startsWith('UND_HV_') && Object.hasOwn(ERRORS, code);
}

function readParams(params: unknown): Record<string, string> {
  if (!isRecord(params)) return {};
  return Object.fromEntries(
    Object.entries(params).map(([key, value]) => [key, String(value).slice(0, 2000)]),
  );
}

function limited(
  call: (verb: Verb, fields: Record<string, unknown>) => Promise<unknown>,
): Transport['call'] {
  let running = 0;
  const waiting: (() => void)[] = [];
  return async (verb, fields = {}) => {
    if (running >= MAX_CALLS) await new Promise<void>((resolve) => waiting.push(resolve));
    else running++;
    try {
      return await call(verb, fields);
    } finally {
      // The slot goes to the next in line, uncounted and recounted, or becomes free.
      const next = waiting.shift();
      if (next) next();
      else running--;
    }
  };
}
