/**
 * Secrets at rest: sealed by AES-256-GCM with a key that lives in a file of its own beside the state. It keeps secrets
 * out of copies of the database and of single files; whoever reads the whole data directory as root has them.
 */
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { writeFileDurably } from '../state/files.ts';

const VERSION = 1;

export class SecretBox {
  readonly #key: Buffer;
  constructor(key: Buffer) {
    if (key.length !== 32) throw new Error('the secrets key must have 32 bytes');
    this.#key = key;
  }

  /** Opens the key file, making it at the first start. */
  static open(path: string): SecretBox {
    if (!existsSync(path)) writeFileDurably(path, randomBytes(32), 0o600);
    return new SecretBox(readFileSync(path));
  }

  /** `purpose` is bound to the result: a secret sealed for one purpose does not open for another. */
  seal(plain: Buffer, purpose: string): Buffer {
    const nonce = randomBytes(12);
    const cipher = createCipheriv('aes-256-gcm', this.#key, nonce);
    cipher.setAAD(Buffer.from(purpose));
    const body = Buffer.concat([cipher.update(plain), cipher.final()]);
    return Buffer.concat([Buffer.from([VERSION]), nonce, cipher.getAuthTag(), body]);
  }

  /** Throws when the key or the purpose is another one, or the bytes were changed. */
  open(sealed: Buffer, purpose: string): Buffer {
    if (sealed[0] !== VERSION || sealed.length < 29) throw new Error('not a sealed secret');
    const decipher = createDecipheriv('aes-256-gcm', this.#key, sealed.subarray(1, 13));
    decipher.setAAD(Buffer.from(purpose));
    decipher.setAuthTag(sealed.subarray(13, 29));
    return Buffer.concat([decipher.update(sealed.subarray(29)), decipher.final()]);
  }
}
