/** Key pair and certificate request of an agent (EC P-256, as the appliance's authority wants it). */
import 'reflect-metadata';
import * as x509 from '@peculiar/x509';

const CURVE = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' } as const;

/** A new key and a request for it; the name in it is for people, the appliance puts its own. */
export async function makeRequest(hostname: string): Promise<{ keyPem: string; csrPem: string }> {
  const { subtle } = globalThis.crypto;
  const keys = await subtle.generateKey(CURVE, true, ['sign', 'verify']);
  const name = hostname.replace(/[^A-Za-z0-9.-]/g, '-').slice(0, 64) || 'source';
  const csr = await x509.Pkcs10CertificateRequestGenerator.create({
    name: `CN=${name}`,
    keys,
    signingAlgorithm: CURVE,
  });
  const key = await subtle.exportKey('pkcs8', keys.privateKey);
  return {
    keyPem: `${x509.PemConverter.encode(key, 'PRIVATE KEY')}\n`,
    csrPem: `${csr.toString('pem')}\n`,
  };
}
