/**
 * One SSH connection to a source server. Credentials live as long as the connection: they are in no log, no argument
 * list and no file. Nothing is trusted before its host key is: the check comes before the password is sent.
 */
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { connect, type Socket } from 'node:net';
import { NodeSSH, type SSHExecCommandResponse } from 'node-ssh';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import type { SshAccess } from '../control/agent-session.ts';

const CONNECT_TIMEOUT_MS = 20_000;
/** From a connection to a login. A server under heavy load is slow at it; sshd itself allows two minutes. */
const LOGIN_TIMEOUT_MS = 110_000;
const COMMAND_TIMEOUT_MS = 120_000;

/** As `ssh-keygen -l` prints it. */
export const fingerprintOf = (key: Buffer): string =>
  `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`;

export type HostKeyVerdict =
  | { trusted: true; known: boolean }
  | { trusted: false; reason: 'unknown' | 'changed' };

/**
 * | known       | confirmed now | shown    | verdict            |
 * |-------------|---------------|----------|--------------------|
 * | this one    | any           | this one | trusted            |
 * | none, other | this one      | this one | trusted, new       |
 * | none        | none, other   | this one | not trusted, unknown |
 * | other       | none, other   | this one | not trusted, changed |
 */
export function judgeHostKey(
  shown: string,
  known: string | null,
  confirmed: string | undefined,
): HostKeyVerdict {
  if (known === shown) return { trusted: true, known: true };
  if (confirmed === shown) return { trusted: true, known: false };
  return { trusted: false, reason: known === null ? 'unknown' : 'changed' };
}

export interface HostKey {
  fingerprint: string | null;
  known: boolean;
}

/** How root is reached. */
export type RootAccess = { how: 'is-root' } | { how: 'sudo' } | { how: 'sudo-password' };

/** What a command printed. */
export interface Ran {
  code: number;
  stdout: string;
  stderr: string;
}

function connectError(
  target: SshAccess,
  thrown: unknown,
  hostKey: HostKey,
  verdict: HostKeyVerdict | undefined,
): UndError {
  const source = target.port === 22 ? target.address : `${target.address}:${target.port}`;
  const { level, message = String(thrown) } = thrown as { level?: string; message?: string };
  if (verdict && !verdict.trusted) {
    const fingerprint = hostKey.fingerprint ?? 'not shown';
    return verdict.reason === 'unknown'
      ? undError('UND_SSH_HOST_KEY_UNKNOWN', { source, fingerprint })
      : undError('UND_SSH_HOST_KEY_CHANGED', {
          source,
          fingerprint,
          known: target.knownHostKey ?? 'none',
        });
  }
  if (/privateKey|passphrase|key format|integrity check/i.test(message)) {
    return undError('UND_SSH_KEY_INVALID', { source, reason: message, field: 'privateKey' });
  }
  if (level === 'client-authentication') {
    const offered = [target.password && 'password', target.privateKey && 'key'].filter(Boolean);
    const reason = offered.length
      ? `the ${offered.join(' and the ')} was not accepted`
      : 'neither password nor key was given';
    return undError('UND_SSH_AUTH', { source, username: target.username, reason });
  }
  return undError('UND_SSH_UNREACHABLE', { source, reason: message });
}

/** Connects; nobody there is told soon, however long a login may take. */
async function connected(target: SshAccess): Promise<Socket> {
  const socket = connect({ host: target.address, port: target.port });
  // Errors behind this are for whoever has the socket then.
  socket.on('error', () => {});
  const limit = setTimeout(() => {
    socket.destroy(new Error(`no connection within ${CONNECT_TIMEOUT_MS / 1000} s`));
  }, CONNECT_TIMEOUT_MS);
  try {
    await once(socket, 'connect');
    return socket;
  } finally {
    clearTimeout(limit);
  }
}

export class SshSession {
  readonly address: string;
  readonly username: string;
  readonly hostKey: HostKey;
  readonly #ssh: NodeSSH;
  readonly #password: string | undefined;
  #root: RootAccess | undefined;

  private constructor(ssh: NodeSSH, target: SshAccess, hostKey: HostKey) {
    this.#ssh = ssh;
    this.address = target.address;
    this.username = target.username;
    this.#password = target.password;
    this.hostKey = hostKey;
  }

  /**
   * Connects and logs in.
   * @param seen is told the host key as soon as the server has shown it, also when it is not trusted
   * @throws UND_SSH_UNREACHABLE, UND_SSH_HOST_KEY_UNKNOWN, UND_SSH_HOST_KEY_CHANGED, UND_SSH_AUTH, UND_SSH_KEY_INVALID
   */
  static async open(target: SshAccess, seen?: (key: HostKey) => void): Promise<SshSession> {
    const hostKey: HostKey = { fingerprint: null, known: false };
    let verdict: HostKeyVerdict | undefined;
    const ssh = new NodeSSH();
    let socket: Socket | undefined;
    try {
      socket = await connected(target);
      await ssh.connect({
        sock: socket,
        username: target.username,
        password: target.password,
        privateKey: target.privateKey,
        passphrase: target.passphrase,
        tryKeyboard: target.password !== undefined,
        readyTimeout: LOGIN_TIMEOUT_MS,
        keepaliveInterval: 10_000,
        keepaliveCountMax: 6,
        hostVerifier: (key: Buffer) => {
          hostKey.fingerprint = fingerprintOf(key);
          verdict = judgeHostKey(hostKey.fingerprint, target.knownHostKey, target.acceptHostKey);
          hostKey.known = verdict.trusted && verdict.known;
          seen?.(hostKey);
          return verdict.trusted;
        },
      });
      return new SshSession(ssh, target, hostKey);
    } catch (error) {
      ssh.dispose();
      socket?.destroy();
      throw connectError(target, error, hostKey, verdict);
    }
  }

  get connected(): boolean {
    return this.#ssh.isConnected();
  }

  close(): void {
    this.#ssh.dispose();
  }

  async #exec(command: string, stdin: string, timeoutMs: number): Promise<Ran> {
    let timer: NodeJS.Timeout | undefined;
    const connection = this.#ssh.connection;
    let onGone: (() => void) | undefined;
    try {
      const result = await Promise.race<SSHExecCommandResponse>([
        this.#ssh.execCommand(command, { stdin, noTrim: true }),
        new Promise((_, reject) => {
          timer = setTimeout(() => {
            // What still runs there ends with its connection; a session in doubt is of no use.
            this.#ssh.dispose();
            reject(new Error(`no end within ${timeoutMs} ms`));
          }, timeoutMs);
          onGone = () => reject(new Error('the connection was lost'));
          connection?.once('close', onGone);
        }),
      ]);
      return { code: result.code ?? 255, stdout: result.stdout, stderr: result.stderr };
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw undError('UND_SSH_FAILED', { source: this.address, reason }, { cause });
    } finally {
      clearTimeout(timer);
      if (onGone) connection?.off('close', onGone);
    }
  }

  /** Runs a POSIX shell script as the login user; it comes by standard input, so nothing of it is in a process list. */
  async run(script: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<Ran> {
    return this.#exec('sh -s', wrap(script), timeoutMs);
  }

  /** Finds out how to become root. @throws UND_SUDO_REFUSED */
  async findRoot(): Promise<RootAccess> {
    if (this.#root) return this.#root;
    const refused = (reason: string) =>
      undError('UND_SUDO_REFUSED', { source: this.address, username: this.username, reason });
    const { stdout } = await this.run('id -u; command -v sudo || true');
    const [uid, sudo] = stdout.split('\n');
    if (uid?.trim() === '0') {
      this.#root = { how: 'is-root' };
      return this.#root;
    }
    if (!sudo?.trim()) throw refused('sudo is not installed');
    const free = await this.#exec('sudo -n true', '', COMMAND_TIMEOUT_MS);
    if (free.code === 0) {
      this.#root = { how: 'sudo' };
      return this.#root;
    }
    if (this.#password === undefined) throw refused('sudo asks for a password and none was given');
    // -k: without it a remembered login would leave the password in the command's input.
    const asked = await this.#exec(
      "sudo -S -k -p '' true",
      `${this.#password}\n`,
      COMMAND_TIMEOUT_MS,
    );
    if (asked.code !== 0) {
      const said = asked.stderr.trim().split('\n').filter(Boolean).at(-1) ?? 'sudo said no';
      throw refused(
        /incorrect password|try again|no password was provided/i.test(asked.stderr)
          ? 'sudo does not accept the password'
          : said,
      );
    }
    this.#root = { how: 'sudo-password' };
    return this.#root;
  }

  /** Runs a script as root. @throws UND_SUDO_REFUSED, UND_SSH_FAILED (the connection; a script's own failure is its code) */
  async runAsRoot(script: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<Ran> {
    const { how } = await this.findRoot();
    if (how === 'is-root') return this.run(script, timeoutMs);
    if (how === 'sudo') return this.#exec('sudo -n sh -s', wrap(script), timeoutMs);
    return this.#exec("sudo -S -k -p '' sh -s", `${this.#password}\n${wrap(script)}`, timeoutMs);
  }

  /**
   * Copies a file by SFTP; only its owner can read it there.
   * @param onProgress bytes so far
   * @throws UND_SSH_FAILED
   */
  async upload(
    local: string,
    remote: string,
    onProgress: (sentBytes: number) => void,
  ): Promise<void> {
    try {
      await this.#ssh.putFile(local, remote, null, {
        mode: 0o600,
        step: (sentBytes: number) => onProgress(sentBytes),
      });
    } catch (cause) {
      const { message } = asUndError(cause);
      throw undError('UND_SSH_FAILED', { source: this.address, reason: message }, { cause });
    }
  }
}

/** Read whole before anything of it runs, with no standard input left that a command could eat. */
const wrap = (script: string): string =>
  `main() {\nexport LC_ALL=C PATH="/usr/sbin:/usr/bin:/sbin:/bin:$PATH"\n${script}\n}\nmain </dev/null\nexit\n`;
