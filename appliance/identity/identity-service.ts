import { randomBytes } from 'node:crypto';
import type { MachineIdentity } from '../../protocol/control.ts';
import { undError } from '../../protocol/errors.ts';
import type { Certificate, EnrolRequest } from '../api/schema.ts';
import type { AuditLog } from '../auth/audit-log.ts';
import { hashToken } from '../auth/auth-service.ts';
import type { CertificateRow, CertificateStore } from '../state/certificates.ts';
import { type Database, inTransaction } from '../state/database.ts';
import type { EnrolTokenStore } from '../state/enrol-tokens.ts';
import type { PassiveInstanceStore } from '../state/passive-instances.ts';
import type { SourceRow, SourceStore } from '../state/sources.ts';
import {
  type CertificateAuthority,
  CLIENT_DAYS,
  type IssuedCertificate,
} from './certificate-authority.ts';
import { compareMachines } from './machine.ts';

const TOKEN_LIFE_MS = 30 * 60_000;

export interface PeerCertificate {
  serialNumber: string;
  /** SHA-256 of the DER form, hex with or without colons. */
  fingerprint256: string;
}

/** Who may speak as which source: enrolment, certificates, revocation. */
export class IdentityService {
  readonly #db: Database;
  readonly #ca: CertificateAuthority;
  readonly #tokens: EnrolTokenStore;
  readonly #certificates: CertificateStore;
  readonly #sources: SourceStore;
  readonly #passive: PassiveInstanceStore;
  readonly #audit: AuditLog;
  readonly #now: () => number;
  readonly #revokedListeners = new Set<(sourceId: string) => void>();

  constructor(options: {
    db: Database;
    ca: CertificateAuthority;
    tokens: EnrolTokenStore;
    certificates: CertificateStore;
    sources: SourceStore;
    passive: PassiveInstanceStore;
    audit: AuditLog;
    now?: () => number;
  }) {
    this.#db = options.db;
    this.#ca = options.ca;
    this.#tokens = options.tokens;
    this.#certificates = options.certificates;
    this.#sources = options.sources;
    this.#passive = options.passive;
    this.#audit = options.audit;
    this.#now = options.now ?? Date.now;
  }

  /** A token that enrols one agent for this source, once, within 30 minutes. Earlier unused ones are void. */
  createEnrolToken(sourceId: string): string {
    const token = randomBytes(32).toString('base64url');
    inTransaction(this.#db, () => {
      this.#tokens.removeUnused(sourceId);
      this.#tokens.insert({
        tokenHash: hashToken(token),
        sourceId,
        expiresAt: new Date(this.#now() + TOKEN_LIFE_MS).toISOString(),
        usedAt: null,
      });
    });
    return token;
  }

  /**
   * Turns a token and a certificate request into a client certificate, and binds the source to this machine. All
   * earlier certificates of the source are revoked.
   * @throws UND_ENROL_TOKEN_INVALID, UND_ENROL_TOKEN_EXPIRED, UND_ENROL_TOKEN_USED, UND_ENROL_CSR_INVALID
   */
  async enrol(
    request: EnrolRequest,
  ): Promise<{ source: SourceRow; certificatePem: string; caPem: string }> {
    const tokenHash = hashToken(request.token);
    const token = this.#tokens.get(tokenHash);
    if (!token) throw undError('UND_ENROL_TOKEN_INVALID');
    if (token.usedAt) {
      this.#audit.add({
        who: `source:${token.sourceId}`,
        act: 'enrol',
        object: token.sourceId,
        outcome: 'refused',
        detail: `the token was used already; this try came from ${request.machine.hostname}`,
      });
      throw undError('UND_ENROL_TOKEN_USED');
    }
    if (Date.parse(token.expiresAt) <= this.#now()) throw undError('UND_ENROL_TOKEN_EXPIRED');
    // Signed before the token is used up: a bad request can be corrected and sent again.
    const issued = await this.#ca.issueClient(request.csrPem, token.sourceId);
    const source = inTransaction(this.#db, () => {
      if (!this.#tokens.use(tokenHash, new Date(this.#now()).toISOString())) {
        throw undError('UND_ENROL_TOKEN_USED');
      }
      const found = this.#sources.get(token.sourceId);
      if (!found) throw undError('UND_ENROL_TOKEN_INVALID');
      const row: SourceRow = {
        ...found,
        name: request.machine.hostname || found.name,
        agentVersion: request.agentVersion,
        machine: request.machine,
      };
      this.#certificates.retire(row.sourceId, 'revoked');
      this.#record(issued, row);
      this.#passive.clear(row.sourceId);
      this.#sources.put(row);
      return row;
    });
    // Whoever still holds the former certificate is cut off now.
    for (const listener of this.#revokedListeners) listener(source.sourceId);
    this.#audit.add({
      who: `source:${source.sourceId}`,
      act: 'enrol',
      object: source.name,
      outcome: 'ok',
      detail: `certificate ${issued.serial}, agent ${request.agentVersion}`,
    });
    return { source, certificatePem: issued.pem, caPem: this.#ca.caPem };
  }

  /**
   * Which source speaks. TLS has proven that the certificate is ours and in its time; here it must be one that was
   * issued and still counts. At its first use a renewed certificate retires the ones before it.
   * @throws UND_AGENT_CERT_UNKNOWN, UND_AGENT_CERT_REVOKED, UND_AGENT_CERT_SUPERSEDED
   */
  authorise(peer: PeerCertificate): SourceRow {
    const serial = peer.serialNumber.toUpperCase();
    const row = this.#certificates.get(serial);
    const fingerprint = peer.fingerprint256.replaceAll(':', '').toLowerCase();
    const source = row && this.#sources.get(row.sourceId);
    if (!row || !source || row.fingerprint !== fingerprint) {
      throw undError('UND_AGENT_CERT_UNKNOWN', { serial });
    }
    if (row.state === 'revoked') {
      throw undError('UND_AGENT_CERT_REVOKED', { serial, source: source.name });
    }
    if (row.state === 'superseded') {
      throw undError('UND_AGENT_CERT_SUPERSEDED', { serial, source: source.name });
    }
    if (this.#certificates.newestOf(source.sourceId)?.serial === serial) {
      this.#certificates.retire(source.sourceId, 'superseded', serial);
    }
    return source;
  }

  /** The source that a certificate was issued for, whether or not it still counts. */
  ownerOf(peer: PeerCertificate): string | null {
    return this.#certificates.get(peer.serialNumber.toUpperCase())?.sourceId ?? null;
  }

  /**
   * Refuses the identity on another machine than the one that enrolled; the copy is recorded.
   * @throws UND_AGENT_CLONE
   */
  checkMachine(source: SourceRow, machine: MachineIdentity): void {
    if (!source.machine)
      throw undError('UND_AGENT_CERT_UNKNOWN', { serial: 'of an agent that never enrolled' });
    const verdict = compareMachines(source.machine, machine);
    if (verdict.same) return;
    this.recordPassive(source.sourceId, machine, verdict.reason);
    throw undError('UND_AGENT_CLONE', { source: source.name, reason: verdict.reason });
  }

  isMachineOf(source: SourceRow, machine: MachineIdentity): boolean {
    return source.machine !== null && compareMachines(source.machine, machine).same;
  }

  /** Remembers a copy of the source that called in. */
  recordPassive(sourceId: string, machine: MachineIdentity, reason: string): void {
    this.#passive.see(sourceId, machine, reason, new Date(this.#now()).toISOString());
  }

  /**
   * A new certificate over the agent's own authorised connection. The present one counts until the new one is used.
   * @throws UND_ENROL_CSR_INVALID
   */
  async renew(
    sourceId: string,
    csrPem: string,
  ): Promise<{ certificatePem: string; caPem: string }> {
    const source = this.#sources.get(sourceId);
    const current = this.#certificates.newestOf(sourceId);
    if (!source || !current) throw undError('UND_AGENT_CERT_UNKNOWN', { serial: sourceId });
    if (current.state === 'revoked') {
      throw undError('UND_AGENT_CERT_REVOKED', { serial: current.serial, source: source.name });
    }
    const issued = await this.#ca.issueClient(csrPem, sourceId);
    inTransaction(this.#db, () => {
      if (this.#certificates.newestOf(sourceId)?.state === 'revoked') {
        throw undError('UND_AGENT_CERT_REVOKED', { serial: current.serial, source: source.name });
      }
      this.#record(issued, source);
    });
    this.#audit.add({
      who: `source:${sourceId}`,
      act: 'certificate.renew',
      object: source.name,
      outcome: 'ok',
      detail: `certificate ${issued.serial}, valid to ${issued.notAfter.toISOString()}`,
    });
    return { certificatePem: issued.pem, caPem: this.#ca.caPem };
  }

  /** Revokes all certificates of a source and closes its live connections at once. */
  revoke(sourceId: string): void {
    this.#certificates.retire(sourceId, 'revoked');
    this.#tokens.removeUnused(sourceId);
    for (const listener of this.#revokedListeners) listener(sourceId);
  }

  onRevoked(listener: (sourceId: string) => void): () => void {
    this.#revokedListeners.add(listener);
    return () => this.#revokedListeners.delete(listener);
  }

  certificateOf(sourceId: string): CertificateRow | null {
    return this.#certificates.newestOf(sourceId);
  }

  listCertificates(): Certificate[] {
    const now = new Date(this.#now()).toISOString();
    return this.#certificates.list().map((row) => ({
      serial: row.serial,
      sourceId: row.sourceId,
      sourceName: row.sourceName,
      notBefore: row.notBefore,
      notAfter: row.notAfter,
      state: row.state === 'valid' && row.notAfter <= now ? 'expired' : row.state,
    }));
  }

  #record(issued: IssuedCertificate, source: SourceRow): void {
    this.#certificates.insert({
      serial: issued.serial,
      sourceId: source.sourceId,
      sourceName: source.name,
      fingerprint: issued.fingerprint,
      notBefore: issued.notBefore.toISOString(),
      notAfter: issued.notAfter.toISOString(),
      state: 'valid',
    });
  }
}

/** An agent asks for a new certificate when this part of the life of the present one is over. */
export const RENEW_AFTER = 2 / 3;
export { CLIENT_DAYS };
