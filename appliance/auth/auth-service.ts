import { createHash, randomBytes, randomInt } from 'node:crypto';
import { rmSync } from 'node:fs';
import { undError } from '../../protocol/errors.ts';
import type { Role, User } from '../api/schema.ts';
import { writeFileDurably } from '../state/files.ts';
import type { SessionStore } from '../state/sessions.ts';
import type { UserRow, UserStore } from '../state/users.ts';
import { DEFAULT_COST, hashPassword, type PasswordCost, verifyPassword } from './password.ts';
import { LoginLimiter } from './rate-limit.ts';

const IDLE_MS = 8 * 3_600_000;
const LONGEST_MS = 24 * 3_600_000;
const TOUCH_MS = 60_000;

export interface Session {
  tokenHash: string;
  user: User;
}

const publicUser = (row: UserRow): User => ({
  username: row.username,
  role: row.role,
  mustChangePassword: row.mustChangePassword,
  createdAt: row.createdAt,
});

const ROLE_RANK: Record<Role, number> = { viewer: 0, operator: 1, admin: 2 };

/** True when `role` may do what needs `needed`: an admin may do all, a viewer only look. */
export const roleAllows = (role: Role, needed: Role): boolean =>
  ROLE_RANK[role] >= ROLE_RANK[needed];

/** SHA-256 of a token, hex: tokens are random, so a plain hash is enough. */
export const hashToken = (token: string): string =>
  createHash('sha256').update(token).digest('hex');

/** Users, their passwords and their sessions. */
export class AuthService {
  readonly #users: UserStore;
  readonly #sessions: SessionStore;
  readonly #cost: PasswordCost;
  readonly #now: () => number;
  readonly #firstLoginFile: string;
  readonly #limiter = new LoginLimiter();
  readonly #endListeners = new Set<(username: string, tokenHash: string | null) => void>();
  #dummyHash: Promise<string> | null = null;

  constructor(options: {
    users: UserStore;
    sessions: SessionStore;
    /** Where the first-login password is left for the console; removed when it is changed. */
    firstLoginFile: string;
    cost?: PasswordCost;
    now?: () => number;
  }) {
    this.#users = options.users;
    this.#sessions = options.sessions;
    this.#firstLoginFile = options.firstLoginFile;
    this.#cost = options.cost ?? DEFAULT_COST;
    this.#now = options.now ?? Date.now;
  }

  /** At the very first start: user `admin` with a random password that only the console shows. Null later on. */
  async createFirstAdmin(): Promise<string | null> {
    if (this.#users.list().length > 0) return null;
    const password = randomPassword();
    const passwordHash = await hashPassword(password, this.#cost);
    // The file first: a crash between the two makes a new password at the next start, never an unknown one.
    writeFileDurably(this.#firstLoginFile, `${password}\n`, 0o600);
    this.#users.insert({
      username: 'admin',
      role: 'admin',
      mustChangePassword: true,
      createdAt: new Date(this.#now()).toISOString(),
      passwordHash,
    });
    return password;
  }

  /** Throws `UND_AUTH_LOCKED` (too many failures) or `UND_AUTH_FAILED`, which doesn't say which of the two was wrong. */
  async login(
    username: string,
    password: string,
    address: string,
  ): Promise<{ user: User; token: string; maxAgeSeconds: number }> {
    const wait = this.#limiter.waitMs(address, username, this.#now());
    if (wait > 0) throw undError('UND_AUTH_LOCKED', { retrySeconds: Math.ceil(wait / 1000) });
    const takeBack = this.#limiter.attempt(address, username, this.#now());
    const row = this.#users.get(username);
    // An unknown name takes as long as a wrong password, so that names cannot be found by the clock.
    this.#dummyHash ??= hashPassword(randomBytes(16).toString('hex'), this.#cost);
    const ok = await verifyPassword(password, row?.passwordHash ?? (await this.#dummyHash));
    const current = this.#users.get(username);
    if (!ok || !row || current?.passwordHash !== row.passwordHash) {
      throw undError('UND_AUTH_FAILED');
    }
    takeBack();
    const now = this.#now();
    this.#sessions.removeExpired(new Date(now).toISOString());
    const token = randomBytes(32).toString('base64url');
    this.#sessions.insert({
      tokenHash: hashToken(token),
      username: row.username,
      createdAt: new Date(now).toISOString(),
      lastUsedAt: new Date(now).toISOString(),
      expiresAt: new Date(now + LONGEST_MS).toISOString(),
    });
    return { user: publicUser(row), token, maxAgeSeconds: LONGEST_MS / 1000 };
  }

  /** Null for no, an unknown or an expired session. */
  resolve(token: string | undefined): Session | null {
    if (!token || token.length > 128) return null;
    const tokenHash = hashToken(token);
    return this.resolveHash(tokenHash);
  }

  resolveHash(tokenHash: string): Session | null {
    const row = this.#sessions.get(tokenHash);
    if (!row) return null;
    const now = this.#now();
    if (Date.parse(row.expiresAt) <= now || Date.parse(row.lastUsedAt) + IDLE_MS <= now) {
      this.#sessions.remove(tokenHash);
      return null;
    }
    const user = this.#users.get(row.username);
    if (!user) return null;
    if (now - Date.parse(row.lastUsedAt) > TOUCH_MS) {
      this.#sessions.touch(tokenHash, new Date(now).toISOString());
    }
    return { tokenHash, user: publicUser(user) };
  }

  logout(session: Session): void {
    this.#sessions.remove(session.tokenHash);
    this.#ended(session.user.username, session.tokenHash);
  }

  /** Ends all other sessions of the user. Throws `UND_AUTH_PASSWORD_WRONG`, `UND_AUTH_PASSWORD_REUSED`. */
  async changePassword(
    session: Session,
    current: string,
    next: string,
    address: string,
  ): Promise<User> {
    const { username } = session.user;
    const wait = this.#limiter.waitMs(address, username, this.#now());
    if (wait > 0) throw undError('UND_AUTH_LOCKED', { retrySeconds: Math.ceil(wait / 1000) });
    const row = this.#users.get(username);
    if (!row) throw undError('UND_USER_NOT_FOUND', { username });
    if (!(await verifyPassword(current, row.passwordHash))) {
      this.#limiter.failed(address, username, this.#now());
      throw undError('UND_AUTH_PASSWORD_WRONG');
    }
    if (current === next) throw undError('UND_AUTH_PASSWORD_REUSED');
    this.#users.setPassword(username, await hashPassword(next, this.#cost));
    this.#sessions.removeOthers(username, session.tokenHash);
    this.#ended(username, null);
    if (username === 'admin') rmSync(this.#firstLoginFile, { force: true });
    return publicUser(this.#users.get(username)!);
  }

  listUsers(): User[] {
    return this.#users.list().map(publicUser);
  }

  /** Throws `UND_USER_EXISTS`. The new user has to change the password at the first login. */
  async addUser(username: string, password: string, role: Role): Promise<User> {
    if (this.#users.get(username)) throw undError('UND_USER_EXISTS', { username });
    const row: UserRow = {
      username,
      role,
      mustChangePassword: true,
      createdAt: new Date(this.#now()).toISOString(),
      passwordHash: await hashPassword(password, this.#cost),
    };
    if (this.#users.get(username)) throw undError('UND_USER_EXISTS', { username });
    this.#users.insert(row);
    return publicUser(row);
  }

  /** Throws `UND_USER_NOT_FOUND`, `UND_USER_LAST_ADMIN`. Ends the user's sessions. */
  removeUser(username: string): void {
    const row = this.#users.get(username);
    if (!row) throw undError('UND_USER_NOT_FOUND', { username });
    if (row.role === 'admin' && this.#users.countAdmins() === 1) {
      throw undError('UND_USER_LAST_ADMIN', { username });
    }
    this.#users.remove(username);
    if (username === 'admin') rmSync(this.#firstLoginFile, { force: true });
    this.#ended(username, null);
  }

  /** Called when sessions end before their time: open event streams of that user are to be checked again. */
  onSessionsEnded(listener: (username: string, tokenHash: string | null) => void): () => void {
    this.#endListeners.add(listener);
    return () => this.#endListeners.delete(listener);
  }

  #ended(username: string, tokenHash: string | null): void {
    for (const listener of this.#endListeners) listener(username, tokenHash);
  }
}

/** 20 letters and digits that are not mistaken for one another: 100 bits, fit to be typed from a console. */
function randomPassword(): string {
  const alphabet = 'abcdefghijkmnpqrstuvwxyz23456789';
  const group = () =>
    Array.from({ length: 5 }, () => alphabet[randomInt(alphabet.length)]).join('');
  return [group(), group(), group(), group()].join('-');
}
