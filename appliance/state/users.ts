import type { Role, User } from '../api/schema.ts';
import type { Database } from './database.ts';

export type UserRow = User & { passwordHash: string };

type Raw = {
  username: string;
  password_hash: string;
  role: string;
  must_change_password: number;
  created_at: string;
};

const fromRaw = (raw: Raw): UserRow => ({
  username: raw.username,
  role: raw.role as Role,
  mustChangePassword: raw.must_change_password === 1,
  createdAt: raw.created_at,
  passwordHash: raw.password_hash,
});

/** People who may log in. Passwords are kept as scrypt hashes only. */
export class UserStore {
  readonly #db: Database;
  constructor(db: Database) {
    this.#db = db;
  }

  list(): UserRow[] {
    return (this.#db.prepare('SELECT * FROM users ORDER BY username').all() as Raw[]).map(fromRaw);
  }

  get(username: string): UserRow | null {
    const raw = this.#db.prepare('SELECT * FROM users WHERE username = ?').get(username);
    return raw ? fromRaw(raw as Raw) : null;
  }

  insert(user: UserRow): void {
    this.#db
      .prepare('INSERT INTO users VALUES (?, ?, ?, ?, ?)')
      .run(
        user.username,
        user.passwordHash,
        user.role,
        user.mustChangePassword ? 1 : 0,
        user.createdAt,
      );
  }

  setPassword(username: string, passwordHash: string): void {
    this.#db
      .prepare('UPDATE users SET password_hash = ?, must_change_password = 0 WHERE username = ?')
      .run(passwordHash, username);
  }

  remove(username: string): void {
    this.#db.prepare('DELETE FROM users WHERE username = ?').run(username);
  }

  countAdmins(): number {
    const row = this.#db.prepare("SELECT count(*) AS n FROM users WHERE role = 'admin'").get();
    return (row as { n: number }).n;
  }
}
