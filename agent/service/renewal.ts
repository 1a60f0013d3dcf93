/** When a certificate is to be renewed. Pure. */
import { X509Certificate } from 'node:crypto';

/** The part of a certificate's life after which the agent asks for a new one. */
export const RENEW_AFTER = 2 / 3;

export interface Validity {
  notBeforeMs: number;
  notAfterMs: number;
}

export function validityOf(certificatePem: string): Validity {
  const certificate = new X509Certificate(certificatePem);
  return {
    notBeforeMs: certificate.validFromDate.getTime(),
    notAfterMs: certificate.validToDate.getTime(),
  };
}

export const renewalDue = ({ notBeforeMs, notAfterMs }: Validity, nowMs: number): boolean =>
  nowMs >= notBeforeMs + (notAfterMs - notBeforeMs) * RENEW_AFTER;
