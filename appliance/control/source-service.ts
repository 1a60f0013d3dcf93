/**
 * Source servers: adding (preflight, push, enrolment), their live connection, inventory, uninstalling. SSH credentials
 * live in memory for the length of one call and are never stored.
 */
import { randomUUID } from 'node:crypto';
import type { MachineIdentity } from '../../protocol/control.ts';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import { toApiError } from '../api/api-error.ts';
import type {
  ApiError,
  PreflightReport,
  Source,
  SourceState,
  SshTarget,
  UninstallRequest,
} from '../api/schema.ts';
import type { AuditLog } from '../auth/audit-log.ts';
import type { IdentityService } from '../identity/identity-service.ts';
import type { HostKeyStore } from '../state/host-keys.ts';
import type { PassiveInstanceStore } from '../state/passive-instances.ts';
import type { SourceRow, SourceStore } from '../state/sources.ts';
import type { AgentSession, SourceInstaller, SshAccess } from './agent-session.ts';
import type { EventHub } from './event-hub.ts';
import type { Logger } from './logger.ts';

const INVENTORY_RETRY_MS = 15_000;
/** How long a copy that called in stays shown on its source after it was last heard of. */
const ALERT_MS = 3_600_000;

export interface SourceServiceOptions {
  store: SourceStore;
  hostKeys: HostKeyStore;
  passive: PassiveInstanceStore;
  identity: IdentityService;
  installer: SourceInstaller;
  events: EventHub;
  audit: AuditLog;
  log: Logger;
  /** The job of a source, if it has one. */
  jobOf: (sourceId: string) => string | null;
  /** Told when an agent of the source enrolled. */
  enrolledAnew?: (sourceId: string) => void;
  /** Default one hour. */
  alertMs?: number;
}

export class SourceService {
  readonly #o: SourceServiceOptions;
  readonly #live = new Map<string, { session: AgentSession; since: string }>();
  readonly #alerts = new Map<string, { error: ApiError; timer: NodeJS.Timeout }>();
  readonly #work = new Map<string, AbortController>();
  readonly #listeners = new Set<(sourceId: string, session: AgentSession | null) => void>();

  constructor(options: SourceServiceOptions) {
    this.#o = options;
    options.identity.onRevoked((sourceId) => {
      const live = this.#live.get(sourceId);
      live?.session.close(
        undError('UND_AGENT_CERT_REVOKED', {
          serial: options.identity.certificateOf(sourceId)?.serial ?? 'in use',
          source: this.#o.store.get(sourceId)?.name ?? sourceId,
        }),
      );
    });
  }

  /** After a start of the appliance: nobody is connected, and what was under way has ended. */
  recover(): void {
    const now = new Date().toISOString();
    for (const row of this.#o.store.list()) {
      switch (row.state.name) {
        case 'installing':
          this.#setState(row, {
            name: 'install-failed',
            error: toApiError(undError('UND_PUSH_CANCELLED', { source: row.address })),
          });
          break;
        case 'online':
        case 'uninstalling':
          this.#setState(row, {
            name: 'offline',
            since: now,
            reason: 'the appliance was restarted; the agent connects again by itself',
          });
          break;
        default:
      }
    }
  }

  close(): void {
    for (const controller of this.#work.values()) controller.abort();
    for (const sourceId of this.#alerts.keys()) this.#forgetAlert(sourceId);
  }

  list(): Source[] {
    return this.#o.store.list().map((row) => this.#view(row));
  }

  /** @throws UND_NOT_FOUND */
  get(sourceId: string): Source {
    return this.#view(this.#row(sourceId));
  }

  find(sourceId: string): Source | null {
    const row = this.#o.store.get(sourceId);
    return row && this.#view(row);
  }

  session(sourceId: string): AgentSession | null {
    return this.#live.get(sourceId)?.session ?? null;
  }

  /** Something of it has changed that is not kept here, such as its certificate: everybody is told how it is now. */
  told(sourceId: string): void {
    const row = this.#o.store.get(sourceId);
    if (row) this.#o.events.publish({ type: 'source', source: this.#view(row) });
  }

  /** Told when an agent has come (its session), its inventory was taken, or it has gone (null). */
  onSession(listener: (sourceId: string, session: AgentSession | null) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  preflight(target: SshTarget): Promise<PreflightReport> {
    return this.#o.installer.preflight(this.#access(target));
  }

  /**
   * Adds a source and goes on in the background: preflight, push, wait for the agent. A source whose installation
   * failed before, or whose agent is away for good, is installed anew under its old id.
   * @throws UND_SOURCE_EXISTS, UND_SOURCE_BUSY
   */
  async add(target: SshTarget): Promise<Source> {
    const existing = this.#o.store.findByAddress(target.address, target.port);
    if (existing) {
      if (this.#work.has(existing.sourceId)) {
        throw undError('UND_SOURCE_BUSY', { source: existing.name, state: existing.state.name });
      }
      if (this.#live.has(existing.sourceId)) {
        throw undError('UND_SOURCE_EXISTS', { address: target.address, field: 'address' });
      }
    }
    const row: SourceRow = {
      sourceId: existing?.sourceId ?? randomUUID(),
      name: existing?.name ?? target.address,
      address: target.address,
      sshPort: target.port,
      sshUsername: target.username,
      state: { name: 'installing', step: 'preflight' },
      agentVersion: existing?.agentVersion ?? null,
      machine: existing?.machine ?? null,
      inventory: existing?.inventory ?? null,
      addedAt: existing?.addedAt ?? new Date().toISOString(),
    };
    this.#o.store.put(row);
    this.told(row.sourceId);
    this.#background(row.sourceId, (signal) => this.#install(row.sourceId, target, signal));
    return this.get(row.sourceId);
  }

  async #install(sourceId: string, target: SshTarget, signal: AbortSignal): Promise<void> {
    // The new agent may connect while the push is still looking at its unit: from then on it is online, whatever the
    // push has to say.
    const before = this.#live.get(sourceId)?.session;
    const arrived = () => {
      const live = this.#live.get(sourceId);
      return live && live.session !== before ? live : undefined;
    };
    const step = (text: string) => {
      if (!arrived()) this.#setState(this.#row(sourceId), { name: 'installing', step: text });
    };
    try {
      const report = await this.#o.installer.preflight(this.#access(target));
      if (!report.ok) {
        const failed = report.checks.filter((check) => check.result === 'failed');
        throw undError('UND_PREFLIGHT_FAILED', {
          source: target.address,
          reason: failed.map((check) => `${check.title}: ${check.detail}`).join('; '),
        });
      }
      if (report.hostKeyFingerprint && target.acceptHostKey === report.hostKeyFingerprint) {
        this.#o.hostKeys.set(target.address, target.port, report.hostKeyFingerprint);
      }
      const token = this.#o.identity.createEnrolToken(sourceId);
      await this.#o.installer.install(this.#access(target), { token, onStep: step, signal });
      // It has enrolled: the installer waits for that, however long the upload took.
      const row = this.#row(sourceId);
      if (row.state.name === 'installing') {
        const live = this.#live.get(sourceId);
        this.#setState(
          row,
          live
            ? { name: 'online', since: live.since }
            : { name: 'waiting-for-agent', since: new Date().toISOString() },
        );
      }
    } catch (thrown) {
      const error = asUndError(thrown);
      this.#o.log.warn({ sourceId, code: error.code }, `installing the agent: ${error.message}`);
      const row = this.#o.store.get(sourceId);
      if (row && !this.#live.has(sourceId)) {
        this.#setState(row, { name: 'install-failed', error: toApiError(error) });
      }
    }
  }

  /** The identity service has given this source a certificate. */
  enrolled(sourceId: string): void {
    this.#forgetAlert(sourceId);
    this.#o.enrolledAnew?.(sourceId);
    const row = this.#row(sourceId);
    if (!this.#live.has(sourceId)) {
      this.#setState(row, { name: 'waiting-for-agent', since: new Date().toISOString() });
    }
  }

  /** An agent was authorised and is connected; it takes the place of an earlier connection of the same machine. */
  connected(session: AgentSession): void {
    const { sourceId } = session;
    const since = new Date().toISOString();
    this.#live.set(sourceId, { session, since });
    const row = this.#row(sourceId);
    this.#setState({ ...row, agentVersion: session.agentVersion }, { name: 'online', since });
    this.#o.log.info({ sourceId, from: session.remoteAddress }, `${row.name} is connected`);
    for (const listener of this.#listeners) listener(sourceId, session);
    this.#takeInventory(session);
  }

  /** Until it is there: which disk is which is known by it alone. */
  #takeInventory(session: AgentSession): void {
    const { sourceId } = session;
    this.refreshInventory(sourceId).catch((thrown) => {
      if (this.#live.get(sourceId)?.session !== session) return;
      const error = asUndError(thrown);
      this.#o.log.warn({ sourceId, code: error.code }, error.message);
      setTimeout(() => {
        if (this.#live.get(sourceId)?.session === session) this.#takeInventory(session);
      }, INVENTORY_RETRY_MS).unref();
    });
  }

  disconnected(session: AgentSession, error: UndError | undefined): void {
    const { sourceId } = session;
    if (this.#live.get(sourceId)?.session !== session) return;
    this.#live.delete(sourceId);
    const row = this.#o.store.get(sourceId);
    if (row) {
      this.#setState(
        row,
        error?.code === 'UND_AGENT_CERT_REVOKED'
          ? { name: 'refused', error: toApiError(error) }
          : {
              name: 'offline',
              since: new Date().toISOString(),
              reason: error?.message ?? 'the connection was closed',
            },
      );
    }
    for (const listener of this.#listeners) listener(sourceId, null);
  }

  /** Somebody with this source's certificate was turned away. The agent that is connected goes on undisturbed. */
  refused(sourceId: string, error: UndError, from: string): void {
    const row = this.#o.store.get(sourceId);
    if (!row) return;
    const known = this.#alerts.get(sourceId);
    this.#setAlert(sourceId, toApiError(error));
    // It may call in every minute. One that was silent for long is news again.
    if (known?.error.message !== error.message) {
      this.#o.audit.add({
        who: `source:${sourceId}`,
        act: 'agent.connect',
        object: row.name,
        outcome: 'refused',
        detail: `from ${from}: ${error.code}: ${error.message}`,
      });
      // A source that comes back beside its replica is told so: worth a word, and nothing is wrong.
      const level = error.code === 'UND_AGENT_FENCED' ? 'warning' : 'danger';
      this.#o.events.publish({ type: 'notice', level, error: toApiError(error) });
    }
    const { name } = row.state;
    if (this.#live.has(sourceId) || name === 'installing' || name === 'uninstalling') {
      this.told(sourceId);
    } else this.#setState(row, { name: 'refused', error: toApiError(error) });
  }

  #setAlert(sourceId: string, error: ApiError): void {
    this.#forgetAlert(sourceId);
    const timer = setTimeout(() => {
      this.#alerts.delete(sourceId);
      this.told(sourceId);
    }, this.#o.alertMs ?? ALERT_MS);
    timer.unref();
    this.#alerts.set(sourceId, { error, timer });
  }

  #forgetAlert(sourceId: string): void {
    clearTimeout(this.#alerts.get(sourceId)?.timer);
    this.#alerts.delete(sourceId);
  }

  /** A replica, or a copy that knows it is one, called in: it is remembered and takes part in nothing. */
  passiveSeen(sourceId: string, machine: MachineIdentity, reason: string): void {
    const row = this.#o.store.get(sourceId);
    if (!row) return;
    this.#o.identity.recordPassive(sourceId, machine, reason);
    if (!this.#live.has(sourceId) && row.state.name !== 'installing') {
      this.#setState(row, { name: 'passive', reason });
    }
  }

  /**
   * When an instance of the source on the machine with this SMBIOS UUID was last heard of, if that was at `afterIso`
   * or later. Other copies do not count, however they call in.
   */
  passiveSince(sourceId: string, smbiosUuid: string, afterIso: string): string | null {
    return this.#o.passive.lastSeenOn(sourceId, smbiosUuid, afterIso);
  }

  /** @throws UND_NOT_FOUND, UND_AGENT_OFFLINE, UND_INVENTORY_FAILED, UND_LINK_… */
  async refreshInventory(sourceId: string): Promise<Source> {
    const session = this.#liveSession(sourceId);
    const inventory = await session.inventory();
    const row = this.#row(sourceId);
    this.#o.store.put({ ...row, inventory, name: inventory.hostname || row.name });
    this.told(sourceId);
    for (const listener of this.#listeners) listener(sourceId, session);
    return this.get(sourceId);
  }

  /** @throws UND_NOT_FOUND, UND_AGENT_OFFLINE */
  renewCertificate(sourceId: string): Source {
    this.#liveSession(sourceId).askRenewal();
    return this.get(sourceId);
  }

  /** @throws UND_NOT_FOUND */
  revokeCertificate(sourceId: string): Source {
    const row = this.#row(sourceId);
    this.#o.identity.revoke(sourceId);
    const serial = this.#o.identity.certificateOf(sourceId)?.serial ?? 'none';
    this.#setState(this.#row(sourceId), {
      name: 'refused',
      error: toApiError(undError('UND_AGENT_CERT_REVOKED', { serial, source: row.name })),
    });
    return this.get(sourceId);
  }

  /**
   * Takes the agent off: over its own connection if it is there, else by SSH. With `force` the source is forgotten
   * even if neither works.
   * @throws UND_NOT_FOUND, UND_SOURCE_HAS_JOB, UND_SOURCE_BUSY, UND_AGENT_OFFLINE
   */
  async uninstall(sourceId: string, request: UninstallRequest): Promise<Source> {
    const row = this.#row(sourceId);
    const jobId = this.#o.jobOf(sourceId);
    if (jobId) throw undError('UND_SOURCE_HAS_JOB', { source: row.name, job: jobId });
    if (this.#work.has(sourceId)) {
      throw undError('UND_SOURCE_BUSY', { source: row.name, state: row.state.name });
    }
    const { ssh, force } = request;
    const neverInstalled = row.machine === null && row.state.name === 'install-failed';
    if (!ssh && !this.#live.has(sourceId) && !force && !neverInstalled) {
      throw undError('UND_AGENT_OFFLINE', { source: row.name });
    }
    this.#setState(row, { name: 'uninstalling', step: 'removing the agent' });
    this.#background(sourceId, async (signal) => {
      try {
        await this.#removeAgent(sourceId, ssh, signal);
      } catch (thrown) {
        const error = asUndError(thrown);
        this.#o.log.warn({ sourceId, code: error.code }, `uninstalling: ${error.message}`);
        if (!force) {
          const now = this.#o.store.get(sourceId);
          if (now) this.#setState(now, this.#restingState(sourceId, error));
          this.#o.events.publish({ type: 'notice', level: 'danger', error: toApiError(error) });
          return;
        }
      }
      this.#o.identity.revoke(sourceId);
      this.#o.store.remove(sourceId);
      this.#forgetAlert(sourceId);
      this.#o.events.publish({ type: 'source-removed', sourceId });
    });
    return this.get(sourceId);
  }

  #restingState(sourceId: string, error: UndError): SourceState {
    const live = this.#live.get(sourceId);
    if (live) return { name: 'online', since: live.since };
    return { name: 'offline', since: new Date().toISOString(), reason: error.message };
  }

  async #removeAgent(
    sourceId: string,
    ssh: SshTarget | undefined,
    signal: AbortSignal,
  ): Promise<void> {
    const onStep = (step: string) =>
      this.#setState(this.#row(sourceId), { name: 'uninstalling', step });
    // By SSH the result is seen with our own eyes; over the connection the agent reports it.
    if (ssh) return this.#o.installer.uninstall(this.#access(ssh), { onStep, signal });
    const session = this.session(sourceId);
    if (session) await session.uninstall('removed on the page of the appliance');
  }

  #background(sourceId: string, work: (signal: AbortSignal) => Promise<void>): void {
    const controller = new AbortController();
    this.#work.set(sourceId, controller);
    // Not in the caller's turn: the answer to the request shows the state before the work.
    setImmediate(() => {
      work(controller.signal)
        .catch((error) => this.#o.log.error({ sourceId, err: error }, 'work on a source failed'))
        .finally(() => this.#work.delete(sourceId));
    });
  }

  #access(target: SshTarget): SshAccess {
    return { ...target, knownHostKey: this.#o.hostKeys.get(target.address, target.port) };
  }

  #liveSession(sourceId: string): AgentSession {
    const session = this.session(sourceId);
    if (session) return session;
    throw undError('UND_AGENT_OFFLINE', { source: this.#row(sourceId).name });
  }

  #row(sourceId: string): SourceRow {
    const row = this.#o.store.get(sourceId);
    if (!row) throw undError('UND_NOT_FOUND', { kind: 'source', id: sourceId });
    return row;
  }

  #setState(row: SourceRow, state: SourceState): void {
    this.#o.store.put({ ...row, state });
    this.told(row.sourceId);
  }

  #view(row: SourceRow): Source {
    const certificate = this.#o.identity.certificateOf(row.sourceId);
    const alert = this.#alerts.get(row.sourceId);
    return {
      sourceId: row.sourceId,
      name: row.name,
      address: row.address,
      state: row.state,
      agentVersion: row.agentVersion,
      certificate: certificate && {
        serial: certificate.serial,
        notAfter: certificate.notAfter,
        revoked: certificate.state === 'revoked',
      },
      inventory: row.inventory,
      jobId: this.#o.jobOf(row.sourceId),
      addedAt: row.addedAt,
      ...(alert && { alert: alert.error }),
    };
  }
}
