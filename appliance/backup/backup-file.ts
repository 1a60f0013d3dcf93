/**
 * The file of a configuration backup: a header that anyone can read, then everything else encrypted by AES-256-GCM
 * with a key that scrypt makes of the passphrase. The header is authenticated too.
 *
 *   8 bytes  "UNDBAK\0\1"      magic and version of this layout
 *   1        log2 of scrypt's N
 *   16       salt
 *   12       nonce
 *   16       tag
 *   rest     encrypted, gzipped JSON
 */
import {
  createCipheriv,
  createDecipheriv,
  randomBytes,
  type ScryptOptions,
  scrypt,
} from 'node:crypto';
import { promisify } from 'node:util';
import { gunzip, gzip } from 'node:zlib';
import { undError } from '../../protocol/errors.ts';

const MAGIC = Buffer.from('UNDBAK\0');
const LAYOUT = 1;
const HEADER_BYTES = 8 + 1 + 16 + 12 + 16;
const LOG2_N = 16;
const MAX_PLAIN_BYTES = 512 * 1024 * 1024;

const deriveKey = (passphrase: string, salt: Buffer, log2N: number): Promise<Buffer> => {
  const N = 2 ** log2N;
  const options: ScryptOptions = { N, r: 8, p: 1, maxmem: 256 * N * 8 };
  return new Promise((resolve, reject) =>
    scrypt(passphrase.normalize('NFKC'), salt, 32, options, (error, key) =>
      error ? reject(error) : resolve(key),
    ),
  );
};

/** @param log2N for tests: a cheaper key */
export async function sealBackup(
  content: unknown,
  passphrase: string,
  log2N = LOG2_N,
): Promise<Buffer> {
  const salt = randomBytes(16);
  const nonce = randomBytes(12);
  const open = Buffer.concat([MAGIC, Buffer.from([LAYOUT, log2N]), salt, nonce]);
  const cipher = createCipheriv('aes-256-gcm', await deriveKey(passphrase, salt, log2N), nonce);
  cipher.setAAD(open);
  const plain = await promisify(gzip)(Buffer.from(JSON.stringify(content)));
  const body = Buffer.concat([cipher.update(plain), cipher.final()]);
  return Buffer.concat([open, cipher.getAuthTag(), body]);
}

/** @throws UND_BACKUP_INVALID, UND_BACKUP_VERSION, UND_BACKUP_DAMAGED (also for a wrong passphrase) */
export async function openBackup(file: Buffer, passphrase: string): Promise<unknown> {
  if (file.length < HEADER_BYTES || !file.subarray(0, 7).equals(MAGIC)) {
    throw undError('UND_BACKUP_INVALID', { reason: 'it does not begin as one' });
  }
  const layout = file[7]!;
  if (layout !== LAYOUT) {
    throw undError('UND_BACKUP_VERSION', { version: layout, supported: LAYOUT });
  }
  const log2N = file[8]!;
  // The header is not authenticated before the key is made: a forged cost must not take all memory.
  if (log2N < 10 || log2N > 18) {
    throw undError('UND_BACKUP_INVALID', { reason: 'its header is damaged' });
  }
  const salt = file.subarray(9, 25);
  const nonce = file.subarray(25, 37);
  const key = await deriveKey(passphrase, salt, log2N);
  try {
    const decipher = createDecipheriv('aes-256-gcm', key, nonce);
    decipher.setAAD(file.subarray(0, 37));
    decipher.setAuthTag(file.subarray(37, HEADER_BYTES));
    const zipped = Buffer.concat([decipher.update(file.subarray(HEADER_BYTES)), decipher.final()]);
    const plain = await promisify(gunzip)(zipped, { maxOutputLength: MAX_PLAIN_BYTES });
    return JSON.parse(plain.toString('utf8'));
  } catch (cause) {
    throw undError('UND_BACKUP_DAMAGED', {}, { cause });
  }
}
