/**
 * The agent's service: enrols once, then keeps one connection to its appliance for ever, and does what comes over it.
 * The stream (capture, mirror, frames) is another module; this one tells it when there is a link and when to end.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import type { Inventory } from '../../appliance/api/schema.ts';
import {
  type ControlMessage,
  type ControlOf,
  type ErrorMessage,
  FEATURE_CARRY,
  FEATURE_CLOCK,
  FEATURE_HANDOVER,
  FEATURE_POINTS,
  FEATURE_VERIFY,
  HEARTBEAT_MS,
  knownCode,
  type MachineIdentity,
  PROTOCOL_VERSION,
  toErrorMessage,
} from '../../protocol/control.ts';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import { Link } from '../../protocol/link.ts';
import type { AgentIdentity, AgentState, Handover, JobConfiguration } from '../config.ts';
import { makeRequest } from '../enrol/csr.ts';
import { enrol } from '../enrol/enrol.ts';
import type { PointTaken } from '../quiesce/point-taker.ts';
import { AGENT_VERSION } from '../version.ts';
import { backoffMs, LINK_BACKOFF, REFUSED_BACKOFF } from './backoff.ts';
import { dial } from './dial.ts';
import { HandoverKeeper } from './handover.ts';
import { createIsolator, type Isolator, isolationOf } from './isolation.ts';
import { inWords, type Log, onChange } from './log.ts';
import { renewalDue, validityOf } from './renewal.ts';
import { decideRole, type Role } from './role.ts';
import { type Systemctl, systemctl } from './uninstall.ts';

const WELCOME_TIMEOUT_MS = 20_000;
const RENEWAL_TIMEOUT_MS = 60_000;
const RENEWAL_CHECK_MS = 3_600_000;
/** Services that were stopped for a handover start again when the appliance has been away for so long. */
const ABANDONED_MS = 15 * 60_000;

/** The source's stream, as the service drives it. */
export interface Stream {
  /** Takes up the job of before a restart: the capture that is still in the kernel goes on before any link is there. */
  adopt(job: JobConfiguration): Promise<void>;
  /** A welcomed link. Messages of the stream come by `control` from now on. */
  connected(link: Link): void;
  control(message: ControlMessage): void | Promise<void>;
  disconnected(): void;
  /** Flushes the file systems and puts the final mark in; resolves when it has its number. @throws UND_POINT_FAILED */
  finalMark(ask: ControlOf<'finalMark'>): Promise<PointTaken>;
  /** With `unpin` the capture is taken off the disks, else it goes on in the kernel. */
  stop(options: { unpin: boolean }): Promise<void>;
}

export interface ServiceOptions {
  state: AgentState;
  log: Log;
  createStream(log: Log): Stream;
  machine(): Promise<MachineIdentity>;
  inventory(): Promise<Inventory>;
  /** Removes every trace of the agent; what is left is named. */
  removeTraces(): Promise<string[]>;
  /** For tests. */
  systemctl?: Systemctl;
  isolator?: Isolator;
  abandonedMs?: number;
  now?: () => number;
  wait?: (ms: number, signal: AbortSignal) => Promise<void>;
}

/** Why `run` came back. */
export type Ended =
  | { kind: 'stopped' }
  | { kind: 'not-enrolled'; error: UndError }
  | { kind: 'uninstalled' };

const defaultWait = (ms: number, signal: AbortSignal): Promise<void> =>
  sleep(ms, undefined, { signal }).catch(() => undefined);

const fromMessage = (error: ErrorMessage): UndError => {
  const code = knownCode(error);
  return undError(code, code === 'UND_INTERNAL' ? { reason: error.message } : error.params);
};

export class AgentService {
  readonly #options: ServiceOptions;
  readonly #state: AgentState;
  readonly #log: Log;
  readonly #now: () => number;
  readonly #wait: (ms: number, signal: AbortSignal) => Promise<void>;
  readonly #stopping = new AbortController();
  readonly #handover: HandoverKeeper;
  #abandoned: NodeJS.Timeout | undefined;
  #stream: Stream | undefined;
  #renewal: { requestId: string; keyPem: string; done: (error?: unknown) => void } | undefined;
  #renewing = false;
  #uninstalled = false;

  constructor(options: ServiceOptions) {
    this.#options = options;
    this.#state = options.state;
    this.#log = options.log;
    this.#now = options.now ?? Date.now;
    this.#wait = options.wait ?? defaultWait;
    this.#handover = new HandoverKeeper({
      state: options.state,
      systemctl: options.systemctl ?? systemctl,
      isolator: options.isolator ?? createIsolator(),
      log: options.log,
    });
  }

  /** Ends the service; the capture stays in the kernel for the next start. */
  stop(): void {
    this.#stopping.abort();
  }

  /** Runs until stopped, uninstalled, or found to be without any way to enrol. */
  async run(): Promise<Ended> {
    try {
      const enrolled = await this.#enrol();
      if ('error' in enrolled) return { kind: 'not-enrolled', error: enrolled.error };
      if (!enrolled.identity) return { kind: 'stopped' };
      await this.#serve(enrolled.identity);
      return this.#uninstalled ? { kind: 'uninstalled' } : { kind: 'stopped' };
    } finally {
      clearTimeout(this.#abandoned);
      if (!this.#uninstalled) await this.#stream?.stop({ unpin: false });
    }
  }

  async #enrol(): Promise<{ identity: AgentIdentity | null } | { error: UndError }> {
    const { signal } = this.#stopping;
    const log = onChange(this.#log);
    for (let attempt = 0; !signal.aborted; attempt++) {
      const ticket = await this.#state.ticket();
      const identity = await this.#state.identity();
      if (!ticket) {
        return identity ? { identity } : { error: undError('UND_AGENT_NOT_ENROLLED') };
      }
      try {
        const fresh = await enrol(ticket, await this.#options.machine());
        // A new identity begins without the job of the old one; the appliance configures it again if it is the same.
        if (identity && identity.sourceId !== fresh.sourceId) await this.#state.dropJob();
        await this.#state.putIdentity(fresh);
        await this.#state.dropTicket();
        await this.#cancelHandover('this agent was enrolled anew');
        this.#log('info', `enrolled as source ${fresh.sourceId}`);
        return { identity: fresh };
      } catch (error) {
        const coded = asUndError(error);
        log('error', inWords(coded));
        if (coded.code.startsWith('UND_ENROL_')) {
          await this.#state.dropTicket();
          // The appliance may have issued the certificate while its answer was lost, or the ticket is a second one.
          return identity ? { identity } : { error: coded };
        }
      }
      await this.#wait(backoffMs(attempt, LINK_BACKOFF), signal);
    }
    return { identity: null };
  }

  async #serve(first: AgentIdentity): Promise<void> {
    const { signal } = this.#stopping;
    const log = onChange(this.#log);
    let identity = first;
    let usePrevious = false;
    let role: Role | undefined;
    /** What the appliance said outweighs what this machine finds out about itself. */
    let told: Role | undefined;
    let attempt = 0;
    while (!signal.aborted && !this.#uninstalled) {
      this.#watchAbandoned();
      const machine = await this.#options.machine();
      const handover = await this.#handover.state();
      const isolated = await this.#handover.enforceIsolation();
      if (role?.role !== 'active' || handover?.stage === 'handed-over') {
        const passive = await this.#state.passiveReason();
        const next = told ?? decideRole(passive, identity.machine, machine, handover);
        if (!isDeepStrictEqual(next, role)) await this.#enterRole(next);
        role = next;
      }
      const pair = (usePrevious && identity.previous) || identity.current;
      let refused = false;
      let welcomed = false;
      let applianceAt: string | undefined;
      try {
        const socket = await dial(
          { addresses: identity.addresses, port: identity.agentPort, caPem: identity.caPem, pair },
          signal,
        );
        applianceAt = socket.remoteAddress;
        const link = new Link(socket);
        const session = this.#session(
          link,
          identity,
          machine,
          role,
          handover && { ...handover, isolated },
          pair === identity.current,
        );
        const onAbort = () => link.close();
        signal.addEventListener('abort', onAbort, { once: true });
        try {
          welcomed = await session.welcomed;
          attempt = 0;
          clearTimeout(this.#abandoned);
          this.#abandoned = undefined;
          log('info', `connected to the appliance at ${socket.remoteAddress}`);
          await session.ended;
        } finally {
          signal.removeEventListener('abort', onAbort);
          link.close();
        }
      } catch (error) {
        const coded = asUndError(error);
        refused = coded.code.startsWith('UND_AGENT_') || coded.code === 'UND_PROTOCOL_VERSION';
        if (!signal.aborted && !this.#uninstalled) log('warning', inWords(coded));
        if (coded.code === 'UND_AGENT_CERT_UNKNOWN' && identity.previous)
          usePrevious = !usePrevious;
        if (coded.code === 'UND_AGENT_CLONE' && role.role === 'active') {
          // The appliance knows better: this machine must not even watch its disks as that source.
          told = { role: 'passive', reason: coded.message };
          role = told;
          await this.#enterRole(role);
        }
        if (coded.code === 'UND_AGENT_FENCED' && typeof coded.params.failover === 'string') {
          // On record before anything else: also after a reboot without any network this machine must not go on.
          const isolation =
            coded.params.isolate === 'yes' ? isolationOf(identity.addresses, applianceAt) : null;
          await this.#handover.fence(coded.params.failover, coded.message, isolation);
          refused = false;
        }
        if (coded.code === 'UND_FENCE_LIFTED' && coded.params.failover === handover?.failoverId) {
          await this.#cancelHandover(coded.message);
          attempt = 0;
          refused = false;
        }
      }
      identity = (await this.#state.identity().catch(() => null)) ?? identity;
      if (signal.aborted || this.#uninstalled) break;
      if (welcomed) usePrevious = false;
      // One that was failed over is wanted back at once when that is undone.
      const backoff = refused && !handover ? REFUSED_BACKOFF : LINK_BACKOFF;
      await this.#wait(backoffMs(attempt++, backoff), signal);
    }
  }

  /** Services must not stay down because the appliance that had them stopped is gone. */
  #watchAbandoned(): void {
    this.#abandoned ??= setTimeout(() => {
      const act = async () => {
        if ((await this.#handover.state())?.stage !== 'prepared') return;
        await this.#cancelHandover('the appliance is not there to go on with the failover');
      };
      this.#handover.once(randomUUID(), act).catch((error) => this.#log('error', inWords(error)));
    }, this.#options.abandonedMs ?? ABANDONED_MS).unref();
  }

  async #cancelHandover(reason: string): Promise<void> {
    const now = await this.#handover.state();
    if (!now) return;
    this.#log('warning', `the handover is cancelled: ${reason}`);
    await this.#handover
      .cancel(now.failoverId)
      .catch((error) => this.#log('error', inWords(error)));
  }

  async #enterRole(role: Role): Promise<void> {
    if (role.role === 'passive') {
      this.#log('warning', `passive: ${role.reason}`);
      const stream = this.#stream;
      this.#stream = undefined;
      await stream?.stop({ unpin: true });
      return;
    }
    if (this.#stream) return;
    this.#stream = this.#options.createStream(this.#log);
    const job = await this.#state.job().catch((error) => {
      this.#log('error', inWords(error));
      return null;
    });
    if (!job) return;
    try {
      await this.#stream.adopt(job);
    } catch (error) {
      // The appliance configures the job again when it answers, and hears then what is wrong.
      this.#log('error', `the job of before could not be taken up: ${inWords(error)}`);
    }
  }

  /** One connection from hello to its end. `welcomed` rejects with the appliance's reason if it refuses. */
  #session(
    link: Link,
    identity: AgentIdentity,
    machine: MachineIdentity,
    role: Role,
    handover: (Handover & { isolated: boolean }) | null,
    currentPair: boolean,
  ): { welcomed: Promise<true>; ended: Promise<void> } {
    const welcome = Promise.withResolvers<true>();
    const end = Promise.withResolvers<void>();
    end.promise.catch(() => undefined);
    welcome.promise.catch(() => undefined);
    let renewalCheck: NodeJS.Timeout | undefined;
    let live = false;
    const timer = setTimeout(
      () => link.close(undError('UND_LINK_TIMEOUT', { timeoutMs: WELCOME_TIMEOUT_MS })),
      WELCOME_TIMEOUT_MS,
    );
    link.once('close', (error) => {
      clearTimeout(timer);
      clearInterval(renewalCheck);
      this.#renewal?.done(undError('UND_LINK_CLOSED', { reason: 'before the certificate came' }));
      if (live) this.#stream?.disconnected();
      const reason = error ?? undError('UND_LINK_CLOSED', { reason: 'by the agent' });
      welcome.reject(reason);
      if (error) end.reject(error);
      else end.resolve();
    });
    const renewIfDue = () => {
      if (currentPair && !renewalDue(validityOf(identity.current.certificatePem), this.#now()))
        return;
      this.#renewSoon(link);
    };
    link.start({
      frame: () => {
        throw undError('UND_LINK_MESSAGE_INVALID', { reason: 'a frame to the agent' });
      },
      control: (message) => {
        if (!live) {
          if (message.type === 'refused') throw fromMessage(message.error);
          if (message.type !== 'welcome') {
            throw undError('UND_LINK_MESSAGE_INVALID', {
              reason: `${message.type} before welcome`,
            });
          }
          this.#checkWelcome(message, identity);
          live = true;
          clearTimeout(timer);
          if (role.role === 'active') this.#stream?.connected(link);
          renewIfDue();
          renewalCheck = setInterval(renewIfDue, RENEWAL_CHECK_MS);
          welcome.resolve(true);
          return;
        }
        return this.#handle(link, message, role);
      },
    });
    link.heartbeat(HEARTBEAT_MS);
    link.send({
      type: 'hello',
      protocolVersion: PROTOCOL_VERSION,
      agentVersion: AGENT_VERSION,
      machine,
      passive: role.role === 'passive' ? { reason: role.reason } : null,
      features: [FEATURE_POINTS, FEATURE_VERIFY, FEATURE_HANDOVER, FEATURE_CLOCK, FEATURE_CARRY],
      handover: handover && { failoverId: handover.failoverId, isolated: handover.isolated },
    });
    return { welcomed: welcome.promise, ended: end.promise };
  }

  #checkWelcome(message: ControlOf<'welcome'>, identity: AgentIdentity): void {
    if (message.protocolVersion !== PROTOCOL_VERSION) {
      throw undError('UND_PROTOCOL_VERSION', {
        version: message.protocolVersion,
        supported: PROTOCOL_VERSION,
      });
    }
    if (message.sourceId !== identity.sourceId) {
      throw undError('UND_LINK_MESSAGE_INVALID', { reason: 'a welcome for another source' });
    }
  }

  #handle(link: Link, message: ControlMessage, role: Role): void | Promise<void> {
    switch (message.type) {
      case 'inventoryRequest':
        this.#answerInventory(link, message.requestId);
        return;
      case 'clockRequest':
        link.send({ type: 'clock', requestId: message.requestId, wallMs: Date.now() });
        return;
      case 'renewNow':
        this.#renewSoon(link);
        return;
      case 'certificate':
        return this.#takeCertificate(message);
      case 'uninstall':
        return this.#uninstall(link, message.reason);
      case 'notice':
        this.#log(message.level, `the appliance says: ${message.text}`);
        return;
      case 'refused':
        throw fromMessage(message.error);
      case 'prepareHandover':
      case 'finalMark':
      case 'powerOff':
      case 'cancelHandover':
        // Not awaited: a service may take a minute to stop.
        this.#handOver(link, message);
        return;
      case 'pong':
      case 'welcome':
        return;
    }
    if (role.role === 'passive' || !this.#stream) {
      const reason = role.role === 'passive' ? role.reason : 'it is ending';
      const error = undError('UND_AGENT_PASSIVE', { source: 'this machine', reason });
      if (message.type === 'takePoint') {
        const { requestId } = message;
        link.send({ type: 'pointTaken', requestId, error: toErrorMessage(error) });
      }
      if (message.type !== 'configureJob') return;
      link.send({ type: 'jobFailed', jobId: message.jobId, error: toErrorMessage(error) });
      return;
    }
    return this.#forStream(message);
  }

  #handOver(
    link: Link,
    message: ControlOf<'prepareHandover' | 'finalMark' | 'powerOff' | 'cancelHandover'>,
  ): void {
    const { requestId } = message;
    const answer = async (): Promise<ControlMessage> => {
      switch (message.type) {
        case 'prepareHandover': {
          const { failoverId, stopUnits } = message;
          const stopped = await this.#handover.prepare(failoverId, stopUnits);
          return { type: 'handoverPrepared', requestId, stopped };
        }
        case 'finalMark': {
          await this.#handover.require(message.failoverId);
          if (!this.#stream) throw undError('UND_HANDOVER_UNKNOWN', this.#passiveParams(message));
          const { seq, point } = await this.#stream.finalMark(message);
          return { type: 'handoverReady', requestId, finalSeq: seq, point };
        }
        case 'powerOff':
          await this.#handover.handOver(message.failoverId, message.reason);
          if (message.how === 'power-off') await this.#handover.powerOff();
          return { type: 'handedOver', requestId };
        case 'cancelHandover': {
          const started = await this.#handover.cancel(message.failoverId);
          return { type: 'handoverCancelled', requestId, started };
        }
      }
    };
    const replies = {
      prepareHandover: 'handoverPrepared',
      finalMark: 'handoverReady',
      powerOff: 'handedOver',
      cancelHandover: 'handoverCancelled',
    } as const;
    this.#handover
      .once(requestId, answer)
      .catch((thrown): ControlMessage => {
        const error = asUndError(thrown);
        this.#log('error', inWords(error));
        return { type: replies[message.type], requestId, error: toErrorMessage(error) };
      })
      .then((reply) => {
        if (link.closed) return;
        link.send(reply);
        // Passive from now on; the next connection says so.
        if (message.type === 'powerOff' && message.how === 'passive' && !('error' in reply)) {
          link.close();
        }
      });
  }

  #passiveParams = ({ failoverId }: { failoverId: string }) => ({
    source: 'this machine',
    failover: failoverId,
  });

  async #forStream(message: ControlMessage): Promise<void> {
    // Durable before it is acted on: after a crash right now the capture must find its job again.
    if (message.type === 'configureJob') await this.#state.putJob(message);
    if (message.type === 'tuneJob') await this.#keepTuned(message);
    await this.#stream?.control(message);
    if (message.type === 'stopJob') await this.#state.dropJob();
  }

  /** So that the next start of the agent has the settings of now before the appliance is there. */
  async #keepTuned(tuned: ControlOf<'tuneJob'>): Promise<void> {
    const job = await this.#state.job().catch(() => null);
    if (job?.jobId !== tuned.jobId) return;
    const { compression, bandwidthLimitBytesPerSec } = tuned;
    const exclusions = tuned.exclusions ?? job.exclusions;
    const carryRestarts = tuned.carryRestarts ?? job.carryRestarts;
    await this.#state.putJob({
      ...job,
      compression,
      bandwidthLimitBytesPerSec,
      exclusions,
      carryRestarts,
    });
  }

  #answerInventory(link: Link, requestId: string): void {
    this.#options.inventory().then(
      (inventory) => link.send({ type: 'inventory', requestId, inventory }),
      (error) => {
        const coded = undError(
          'UND_INVENTORY_FAILED',
          {
            source: 'this machine',
            reason: error instanceof Error ? error.message : String(error),
          },
          { cause: error },
        );
        link.send({ type: 'inventory', requestId, error: toErrorMessage(coded) });
      },
    );
  }

  #renewSoon(link: Link): void {
    this.#renew(link).catch((error) =>
      this.#log('warning', `the certificate was not renewed: ${inWords(error)}`),
    );
  }

  async #renew(link: Link): Promise<void> {
    if (this.#renewing) return;
    this.#renewing = true;
    try {
      const machine = await this.#options.machine();
      const { keyPem, csrPem } = await makeRequest(machine.hostname);
      const requestId = randomUUID();
      const { promise, resolve, reject } = Promise.withResolvers<void>();
      const timer = setTimeout(
        () => reject(undError('UND_LINK_TIMEOUT', { timeoutMs: RENEWAL_TIMEOUT_MS })),
        RENEWAL_TIMEOUT_MS,
      );
      this.#renewal = { requestId, keyPem, done: (error) => (error ? reject(error) : resolve()) };
      link.send({ type: 'renewCertificate', requestId, csr: csrPem });
      try {
        await promise;
      } finally {
        clearTimeout(timer);
        this.#renewal = undefined;
      }
    } finally {
      this.#renewing = false;
    }
  }

  async #takeCertificate(message: ControlOf<'certificate'>): Promise<void> {
    const renewal = this.#renewal;
    if (!renewal || renewal.requestId !== message.requestId) return;
    try {
      if (message.error) throw fromMessage(message.error);
      const identity = await this.#state.identity();
      if (!identity || !message.certificate) throw undError('UND_AGENT_NOT_ENROLLED');
      validityOf(message.certificate);
      await this.#state.putIdentity({
        ...identity,
        caPem: message.ca ?? identity.caPem,
        current: { certificatePem: message.certificate, keyPem: renewal.keyPem },
        previous: identity.current,
      });
      // Used at the next connection; the present one stays.
      this.#log('info', 'the certificate is renewed');
      renewal.done();
    } catch (error) {
      renewal.done(error);
    }
  }

  async #uninstall(link: Link, reason: string): Promise<void> {
    this.#log('warning', `the appliance uninstalls this agent: ${reason}`);
    const stream = this.#stream;
    this.#stream = undefined;
    let failure: unknown;
    try {
      await stream?.stop({ unpin: true });
    } catch (error) {
      // What is pinned goes with the pin folder below.
      this.#log('warning', `the capture did not end by itself: ${inWords(error)}`);
    }
    try {
      const left = await this.#options.removeTraces();
      if (left.length > 0) {
        failure = undError('UND_UNINSTALL_INCOMPLETE', {
          source: 'this machine',
          left: left.join(', '),
        });
      }
    } catch (error) {
      failure = error;
    }
    link.send(
      failure
        ? { type: 'uninstalled', error: toErrorMessage(asUndError(failure)) }
        : { type: 'uninstalled' },
    );
    this.#uninstalled = true;
    link.close();
  }
}
