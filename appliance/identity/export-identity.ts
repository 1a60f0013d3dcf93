/**
 * Certificates for one export of disks: an authority of its own signs one for the server and one for its clients, and its
 * key is forgotten at once. So nothing that the appliance's own authority ever signed, an agent's certificate least of
 * all, opens an export, and a client's certificate opens no other one.
 */
import 'reflect-metadata';
import { randomBytes } from 'node:crypto';
import * as x509 from '@peculiar/x509';

const CURVE = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;
/** Clocks of clients may be behind. */
const BACKDATE_MS = 2 * 3_600_000;
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1';
const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2';

export interface KeyPair {
  certPem: string;
  keyPem: string;
}

export interface ExportIdentity {
  caPem: string;
  server: KeyPair;
  client: KeyPair;
  notAfter: Date;
}

const { subtle } = globalThis.crypto;
const { digitalSignature, keyCertSign, keyEncipherment } = x509.KeyUsageFlags;

/** @param addresses IP addresses and DNS names at which clients reach the export */
export async function exportIdentity(
  addresses: readonly string[],
  lifeMs: number,
  nowMs = Date.now(),
): Promise<ExportIdentity> {
  const notBefore = new Date(nowMs - BACKDATE_MS);
  const notAfter = new Date(nowMs + lifeMs);
  const shared = { notBefore, notAfter, signingAlgorithm: CURVE };
  const serialNumber = () => `40${randomBytes(15).toString('hex')}`;
  const authorityKeys = await subtle.generateKey(CURVE, true, ['sign', 'verify']);
  const authority = await x509.X509CertificateGenerator.createSelfSigned({
    ...shared,
    serialNumber: serialNumber(),
    name: 'CN=Understudy export',
    keys: authorityKeys,
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(keyCertSign, true),
      await x509.SubjectKeyIdentifierExtension.create(authorityKeys.publicKey),
    ],
  });
  const issue = async (name: string, purpose: string, more: x509.Extension[]): Promise<KeyPair> => {
    const keys = await subtle.generateKey(CURVE, true, ['sign', 'verify']);
    const certificate = await x509.X509CertificateGenerator.create({
      ...shared,
      serialNumber: serialNumber(),
      subject: name,
      issuer: authority.subject,
      publicKey: keys.publicKey,
      signingKey: authorityKeys.privateKey,
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        // QEMU asks for key encipherment as well, although an EC key has no use for it.
        new x509.KeyUsagesExtension(digitalSignature | keyEncipherment, true),
        new x509.ExtendedKeyUsageExtension([purpose]),
        await x509.AuthorityKeyIdentifierExtension.create(authorityKeys.publicKey),
        ...more,
      ],
    });
    const key = x509.PemConverter.encode(
      await subtle.exportKey('pkcs8', keys.privateKey),
      'PRIVATE KEY',
    );
    return { certPem: `${certificate.toString('pem')}\n`, keyPem: `${key}\n` };
  };
  const names = [...new Set(['localhost', '127.0.0.1', '::1', ...addresses])];
  return {
    caPem: `${authority.toString('pem')}\n`,
    server: await issue('CN=understudy-export', SERVER_AUTH, [
      new x509.SubjectAlternativeNameExtension(
        names.map((value) => ({
          type: /^[0-9.]+$/.test(value) || value.includes(':') ? 'ip' : 'dns',
          value,
        })),
      ),
    ]),
    client: await issue('CN=understudy-export-client', CLIENT_AUTH, []),
    notAfter,
  };
}
