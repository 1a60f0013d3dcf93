import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { AuthService, roleAllows } from '../../appliance/auth/auth-service.ts';
import { hashPassword, verifyPassword } from '../../appliance/auth/password.ts';
import { LoginLimiter, PER_ADDRESS, PER_NAME, waitMs } from '../../appliance/auth/rate-limit.ts';
import { SecretBox } from '../../appliance/auth/secret-box.ts';
import { openDatabase } from '../../appliance/state/database.ts';
import { SessionStore } from '../../appliance/state/sessions.ts';
import { UserStore } from '../../appliance/state/users.ts';

const CHEAP = { log2N: 10, r: 8, p: 1 };
const dir = mkdtempSync(join(tmpdir(), 'und-auth-'));
t.teardown(() => rmSync(dir, { recursive: true }));
const NEXT = 'a password of my own';

async function setUp(name: string) {
  const db = openDatabase(':memory:');
  const clock = { now: Date.parse('2026-01-01T00:00:00Z') };
  const firstLoginFile = join(dir, name);
  const auth = new AuthService({
    users: new UserStore(db),
    sessions: new SessionStore(db),
    firstLoginFile,
    cost: CHEAP,
    now: () => clock.now,
  });
  const password = (await auth.createFirstAdmin())!;
  return { auth, db, clock, firstLoginFile, password };
}

t.test('a password is known by its hash and nothing else', async (t) => {
  const hash = await hashPassword('secret words', CHEAP);
  t.notOk(hash.includes('secret'));
  t.equal(await verifyPassword('secret words', hash), true);
  t.equal(await verifyPassword('secret word', hash), false);
  t.not(await hashPassword('secret words', CHEAP), hash, 'each has a salt of its own');
  for (const broken of ['', 'plain', 'scrypt$10$8$1$$', 'bcrypt$10$8$1$a$b']) {
    t.equal(await verifyPassword('', broken), false, broken);
  }
});

t.test('the first login is shown once, on the console only', async (t) => {
  const { auth, firstLoginFile, password, db } = await setUp('first');
  t.equal(readFileSync(firstLoginFile, 'utf8').trim(), password);
  t.equal(statSync(firstLoginFile).mode & 0o777, 0o600);
  t.ok(password.length >= 20);
  t.equal(await auth.createFirstAdmin(), null, 'never again');
  const { user, token } = await auth.login('admin', password, 'here');
  t.equal(user.mustChangePassword, true);
  const stored = JSON.stringify(db.prepare('SELECT * FROM sessions').all());
  t.notOk(stored.includes(token), 'the token itself is not kept');
  const session = auth.resolve(token)!;
  await t.rejects(auth.changePassword(session, 'wrong', NEXT, 'here'), {
    code: 'UND_AUTH_PASSWORD_WRONG',
  });
  await t.rejects(auth.changePassword(session, password, password, 'here'), {
    code: 'UND_AUTH_PASSWORD_REUSED',
  });
  t.ok(existsSync(firstLoginFile));
  const changed = await auth.changePassword(session, password, NEXT, 'here');
  t.equal(changed.mustChangePassword, false);
  t.notOk(existsSync(firstLoginFile));
  await t.rejects(auth.login('admin', password, 'here'), { code: 'UND_AUTH_FAILED' });
});

t.test('changing the password ends the other sessions', async (t) => {
  const { auth, password } = await setUp('others');
  const first = await auth.login('admin', password, 'a');
  const second = await auth.login('admin', password, 'b');
  const ended: (string | null)[] = [];
  auth.onSessionsEnded((_user, hash) => ended.push(hash));
  await auth.changePassword(auth.resolve(second.token)!, password, NEXT, 'b');
  t.equal(auth.resolve(first.token), null);
  t.ok(auth.resolve(second.token));
  t.same(ended, [null]);
});

t.test('sessions end when idle and after a day', async (t) => {
  const { auth, clock, password } = await setUp('idle');
  const hour = 3_600_000;
  const { token } = await auth.login('admin', password, 'here');
  clock.now += 7 * hour;
  t.ok(auth.resolve(token));
  clock.now += 7 * hour;
  t.ok(auth.resolve(token), 'use keeps it');
  clock.now += 9 * hour;
  t.equal(auth.resolve(token), null, 'idle');
  const second = (await auth.login('admin', password, 'here')).token;
  for (let i = 0; i < 5; i++) {
    t.ok(auth.resolve(second));
    clock.now += 5 * hour;
  }
  t.equal(auth.resolve(second), null, 'a day is over');
  for (const nonsense of [undefined, '', 'x', 'y'.repeat(5000)])
    t.equal(auth.resolve(nonsense), null);
});

t.test('guessing is held back, by name and address', async (t) => {
  const { auth, clock, password } = await setUp('guess');
  for (let i = 0; i < PER_NAME.freeFailures; i++) {
    await t.rejects(auth.login('admin', 'guess', 'evil'), { code: 'UND_AUTH_FAILED' });
  }
  await t.rejects(auth.login('admin', password, 'evil'), { code: 'UND_AUTH_LOCKED' });
  t.ok(await auth.login('admin', password, 'good'), 'the person elsewhere is not locked out');
  clock.now += PER_NAME.firstWaitMs;
  t.ok(await auth.login('admin', password, 'evil'), 'the wait is over');
  await t.rejects(auth.login('nobody', 'guess', 'x'), { code: 'UND_AUTH_FAILED' });
});

t.test('many guesses at once do not slip through together', async (t) => {
  const { auth } = await setUp('burst');
  const results = await Promise.allSettled(
    Array.from({ length: 20 }, () => auth.login('admin', 'guess', 'evil')),
  );
  const codes = results.map((r) => (r.status === 'rejected' ? r.reason.code : 'in'));
  t.equal(codes.filter((code) => code === 'UND_AUTH_FAILED').length, PER_NAME.freeFailures);
  t.equal(codes.filter((code) => code === 'UND_AUTH_LOCKED').length, 20 - PER_NAME.freeFailures);
});

// Red when a good login leaves its own count on the address.
t.test('good logins are no failures, however many come from one address', async (t) => {
  const { auth, clock, password } = await setUp('many');
  for (let i = 0; i < 30; i++) t.ok(await auth.login('admin', password, 'office'), `login ${i}`);
  for (let i = 1; i < PER_ADDRESS.freeFailures; i++) {
    await t.rejects(auth.login(`name${i}`, 'guess', 'office'), { code: 'UND_AUTH_FAILED' });
  }
  t.ok(await auth.login('admin', password, 'office'), 'one before the limit');
  await t.rejects(auth.login('someone', 'guess', 'office'), { code: 'UND_AUTH_FAILED' });
  await t.rejects(auth.login('admin', password, 'office'), { code: 'UND_AUTH_LOCKED' });
  clock.now += PER_ADDRESS.firstWaitMs;
  t.ok(await auth.login('admin', password, 'office'), 'the wait is over');
  t.ok(await auth.login('admin', password, 'office'), 'and a good login begins no new one');
});

t.test('waits double up to their limit and are forgotten', async (t) => {
  const at = (failures: number) => waitMs(PER_NAME, { failures, lastFailureAtMs: 0 }, 0);
  t.same([4, 5, 6, 7].map(at), [0, 30_000, 60_000, 120_000]);
  t.equal(at(1000), PER_NAME.maxWaitMs);
  t.equal(waitMs(PER_NAME, undefined, 0), 0);
  const limiter = new LoginLimiter();
  for (let i = 0; i < 30; i++) limiter.failed('a', `name${i}`, 0);
  t.ok(limiter.waitMs('a', 'fresh', 0) > 0, 'an address that tries many names waits too');
  t.equal(limiter.waitMs('b', 'fresh', 0), 0);
  t.equal(limiter.waitMs('a', 'fresh', 4_000_000), 0);
});

t.test('roles contain one another', async (t) => {
  t.ok(roleAllows('admin', 'operator') && roleAllows('operator', 'viewer'));
  t.notOk(roleAllows('viewer', 'operator') || roleAllows('operator', 'admin'));
});

t.test('a sealed secret opens with its key and purpose only', async (t) => {
  const box = SecretBox.open(join(dir, 'key'));
  t.equal(statSync(join(dir, 'key')).mode & 0o777, 0o600);
  const sealed = box.seal(Buffer.from('the secret'), 'ca-key');
  t.notOk(sealed.includes('the secret'));
  t.equal(SecretBox.open(join(dir, 'key')).open(sealed, 'ca-key').toString(), 'the secret');
  t.throws(() => box.open(sealed, 'server-key'));
  t.throws(() => SecretBox.open(join(dir, 'other')).open(sealed, 'ca-key'));
  for (let at = 0; at < sealed.length; at++) {
    const hurt = Buffer.from(sealed);
    hurt[at]! ^= 1;
    t.throws(() => box.open(hurt, 'ca-key'), `byte ${at}`);
  }
});
