/**
 * The appliance's own certificate authority (EC P-256): it signs the appliance's server certificate and one client
 * certificate per agent. Its key is sealed at rest and never leaves the appliance but inside an encrypted backup.
 */
import 'reflect-metadata';
import { createHash, randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import * as x509 from '@peculiar/x509';
import { undError } from '../../protocol/errors.ts';
import type { SecretBox } from '../auth/secret-box.ts';
import { writeFileDurably } from '../state/files.ts';

const CURVE = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
const DAY_MS = 86_400_000;
const CA_DAYS = 20 * 365;
/** Browsers refuse server certificates that live longer than 398 days. */
const SERVER_DAYS = 397;
export const CLIENT_DAYS = 90;
/** Clocks of sources may be behind. */
const BACKDATE_MS = 2 * 3_600_000;
/** The name by which agents know the appliance, whatever address they reach it at. */
export const SERVER_NAME = 'understudy-appliance';

export interface IssuedCertificate {
  pem: string;
  serial: string;
  fingerprint: string;
  notBefore: Date;
  notAfter: Date;
}

export interface ServerIdentity {
  certPem: string;
  keyPem: string;
  notAfter: Date;
}

const subtle = globalThis.crypto.subtle;

async function keyToPem(key: CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await subtle.exportKey('pkcs8', key), 'PRIVATE KEY');
}

async function keyFromPem(pem: string): Promise<CryptoKey> {
  const [der] = x509.PemConverter.decode(pem);
  return subtle.importKey('pkcs8', der!, CURVE, true, ['sign']);
}

/** 16 bytes, positive, never with leading zeroes: every tool prints it alike. */
function newSerial(): string {
  const bytes = randomBytes(16);
  bytes[0] = 0x40 | (bytes[0]! & 0x3f);
  return bytes.toString('hex').toUpperCase();
}

const fingerprintOf = (certificate: x509.X509Certificate): string =>
  createHash('sha256').update(Buffer.from(certificate.rawData)).digest('hex');

export class CertificateAuthority {
  readonly #dir: string;
  readonly #box: SecretBox;
  readonly #certificate: x509.X509Certificate;
  readonly #key: CryptoKey;
  readonly #now: () => number;

  private constructor(
    dir: string,
    box: SecretBox,
    certificate: x509.X509Certificate,
    key: CryptoKey,
    now: () => number,
  ) {
    this.#dir = dir;
    this.#box = box;
    this.#certificate = certificate;
    this.#key = key;
    this.#now = now;
  }

  /** Opens the authority in `dir`, making it at the first start. */
  static async open(
    dir: string,
    box: SecretBox,
    now: () => number = Date.now,
  ): Promise<CertificateAuthority> {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const certFile = join(dir, 'ca.pem');
    const keyFile = join(dir, 'ca.key.sealed');
    if (!existsSync(certFile)) {
      const keys = await subtle.generateKey(CURVE, true, ['sign', 'verify']);
      const made = await x509.X509CertificateGenerator.createSelfSigned({
        serialNumber: newSerial(),
        name: `CN=Understudy CA ${randomBytes(4).toString('hex')}`,
        notBefore: new Date(now() - BACKDATE_MS),
        notAfter: new Date(now() + CA_DAYS * DAY_MS),
        signingAlgorithm: CURVE,
        keys,
        extensions: [
          new x509.BasicConstraintsExtension(true, 0, true),
          new x509.KeyUsagesExtension(
            x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign,
            true,
          ),
          await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
        ],
      });
      // The key first: without the certificate the next start makes a new pair.
      const keyPem = Buffer.from(await keyToPem(keys.privateKey));
      writeFileDurably(keyFile, box.seal(keyPem, 'ca-key'), 0o600);
      writeFileDurably(certFile, `${made.toString('pem')}\n`, 0o644);
    }
    const certificate = new x509.X509Certificate(readFileSync(certFile, 'utf8'));
    const key = await keyFromPem(box.open(readFileSync(keyFile), 'ca-key').toString('utf8'));
    return new CertificateAuthority(dir, box, certificate, key, now);
  }

  get caPem(): string {
    return `${this.#certificate.toString('pem')}\n`;
  }

  /** Colon-separated upper-case hex, as browsers show it. */
  get fingerprintSha256(): string {
    return fingerprintOf(this.#certificate).toUpperCase().match(/../g)!.join(':');
  }

  /**
   * The server's certificate: the kept one while it covers all of `addresses` and has a third of its life left, else
   * a new one with a new key.
   * @param addresses IP addresses and DNS names of this appliance
   */
  async serverIdentity(addresses: readonly string[]): Promise<ServerIdentity> {
    const certFile = join(this.#dir, 'server.pem');
    const keyFile = join(this.#dir, 'server.key.sealed');
    const wanted = [...new Set([SERVER_NAME, 'localhost', '127.0.0.1', ...addresses])];
    if (existsSync(certFile) && existsSync(keyFile)) {
      const kept = new x509.X509Certificate(readFileSync(certFile, 'utf8'));
      const names = kept.getExtension(x509.SubjectAlternativeNameExtension)?.names.items ?? [];
      const have = new Set(names.map((name) => name.value));
      const lifeMs = kept.notAfter.getTime() - this.#now();
      const ours = await kept.verify({ publicKey: this.#certificate, signatureOnly: true });
      if (ours && lifeMs > (SERVER_DAYS * DAY_MS) / 3 && wanted.every((name) => have.has(name))) {
        return {
          certPem: `${kept.toString('pem')}\n`,
          keyPem: this.#box.open(readFileSync(keyFile), 'server-key').toString('utf8'),
          notAfter: kept.notAfter,
        };
      }
    }
    const keys = await subtle.generateKey(CURVE, true, ['sign', 'verify']);
    const issued = await this.#issue({
      name: `CN=${SERVER_NAME}`,
      publicKey: keys.publicKey,
      days: SERVER_DAYS,
      usage: '1.3.6.1.5.5.7.3.1',
      alternativeNames: wanted,
    });
    const keyPem = await keyToPem(keys.privateKey);
    writeFileDurably(keyFile, this.#box.seal(Buffer.from(keyPem), 'server-key'), 0o600);
    writeFileDurably(certFile, issued.pem, 0o644);
    return { certPem: issued.pem, keyPem, notAfter: issued.notAfter };
  }

  /**
   * Signs an agent's request. Nothing but the public key is taken from it: the subject is the source's id.
   * @throws UND_ENROL_CSR_INVALID
   */
  async issueClient(
    csrPem: string,
    sourceId: string,
    days = CLIENT_DAYS,
  ): Promise<IssuedCertificate> {
    const publicKey = await publicKeyOf(csrPem);
    return this.#issue({ name: `CN=${sourceId}`, publicKey, days, usage: '1.3.6.1.5.5.7.3.2' });
  }

  async #issue(request: {
    name: string;
    publicKey: CryptoKey;
    days: number;
    usage: string;
    alternativeNames?: string[];
  }): Promise<IssuedCertificate> {
    const extensions: x509.Extension[] = [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([request.usage]),
      await x509.AuthorityKeyIdentifierExtension.create(this.#certificate.publicKey),
      await x509.SubjectKeyIdentifierExtension.create(request.publicKey),
    ];
    if (request.alternativeNames) {
      extensions.push(
        new x509.SubjectAlternativeNameExtension(
          request.alternativeNames.map((value) => ({ type: isIp(value) ? 'ip' : 'dns', value })),
        ),
      );
    }
    const made = await x509.X509CertificateGenerator.create({
      serialNumber: newSerial(),
      subject: request.name,
      issuer: this.#certificate.subject,
      notBefore: new Date(this.#now() - BACKDATE_MS),
      notAfter: new Date(this.#now() + request.days * DAY_MS),
      signingAlgorithm: CURVE,
      publicKey: request.publicKey,
      signingKey: this.#key,
      extensions,
    });
    return {
      pem: `${made.toString('pem')}\n`,
      serial: made.serialNumber.toUpperCase(),
      fingerprint: fingerprintOf(made),
      notBefore: made.notBefore,
      notAfter: made.notAfter,
    };
  }
}

const isIp = (value: string): boolean => /^[0-9.]+$/.test(value) || value.includes(':');

async function publicKeyOf(csrPem: string): Promise<CryptoKey> {
  let reason = 'it cannot be read';
  try {
    const csr = new x509.Pkcs10CertificateRequest(csrPem);
    const algorithm = csr.publicKey.algorithm as { name: string; namedCurve?: string };
    if (algorithm.name !== 'ECDSA' || algorithm.namedCurve !== 'P-256') {
      reason = 'its key is not EC P-256';
    } else if (await csr.verify()) {
      return await csr.publicKey.export();
    } else {
      reason = 'its signature is wrong';
    }
  } catch (cause) {
    throw undError('UND_ENROL_CSR_INVALID', { reason }, { cause });
  }
  throw undError('UND_ENROL_CSR_INVALID', { reason });
}
