/**
 * Password hashes by scrypt (RFC 7914), as `scrypt$LOG2N$R$P$SALT$HASH` with base64url parts.
 * One hash is computed at a time: scrypt runs on the thread pool that also serves the journal's files, so a flood of
 * logins must not take it over.
 */
import { randomBytes, type ScryptOptions, scrypt, timingSafeEqual } from 'node:crypto';
import { undError } from '../../protocol/errors.ts';

export interface PasswordCost {
  log2N: number;
  r: number;
  p: number;
}

/** 32 MiB and about 0.1 s on a server of today. */
export const DEFAULT_COST: PasswordCost = { log2N: 15, r: 8, p: 1 };
const MAX_WAITING = 32;

let waiting = 0;
let last: Promise<unknown> = Promise.resolve();

function derive(
  password: string,
  salt: Buffer,
  length: number,
  cost: PasswordCost,
): Promise<Buffer> {
  if (waiting >= MAX_WAITING) throw undError('UND_AUTH_LOCKED', { retrySeconds: 10 });
  waiting++;
  const N = 2 ** cost.log2N;
  const options: ScryptOptions = { N, r: cost.r, p: cost.p, maxmem: 256 * N * cost.r };
  const run = last.then(
    () =>
      new Promise<Buffer>((resolve, reject) => {
        scrypt(password.normalize('NFKC'), salt, length, options, (error, key) =>
          error ? reject(error) : resolve(key),
        );
      }),
  );
  last = run.then(
    () => undefined,
    () => undefined,
  );
  return run.finally(() => {
    waiting--;
  });
}

/** A new hash with a salt of its own. */
export async function hashPassword(password: string, cost = DEFAULT_COST): Promise<string> {
  const salt = randomBytes(16);
  const key = await derive(password, salt, 32, cost);
  return [
    'scrypt',
    cost.log2N,
    cost.r,
    cost.p,
    salt.toString('base64url'),
    key.toString('base64url'),
  ].join('$');
}

/** Compares in constant time. A hash that cannot be read matches nothing. */
export async function verifyPassword(password: string, stored: string): Promise<boolean> {
  const [kind, log2N, r, p, salt, hash] = stored.split('$');
  if (kind !== 'scrypt' || !salt || !hash) return false;
  const expected = Buffer.from(hash, 'base64url');
  const cost = { log2N: Number(log2N), r: Number(r), p: Number(p) };
  const key = await derive(password, Buffer.from(salt, 'base64url'), expected.length, cost);
  return timingSafeEqual(key, expected);
}
