/**
 * Where agents arrive: mutual TLS, hello, authorisation; then a session, whose frames and job messages go to the
 * job's ReplicationStream and whose other messages go to whoever asked.
 */
import { randomUUID } from 'node:crypto';
import { EventEmitter } from 'node:events';
import type { AddressInfo } from 'node:net';
import { createServer, type DetailedPeerCertificate, type Server, type TLSSocket } from 'node:tls';
import {
  type ControlMessage,
  type ControlOf,
  type ControlType,
  FEATURE_CLOCK,
  FEATURE_HANDOVER,
  FEATURE_POINTS,
  HEARTBEAT_MS,
  knownCode,
  LINK_SILENCE_MS,
  PROTOCOL_VERSION,
  toErrorMessage,
} from '../../protocol/control.ts';
import {
  asUndError,
  type UndError,
  UndError as UndErrorClass,
  undError,
} from '../../protocol/errors.ts';
import { Link } from '../../protocol/link.ts';
import type { ReplicationStream, StreamConnection } from '../replication/replication-stream.ts';

const HELLO_MS = 10_000;
/** Connections that have not yet been authorised; more are closed at once. */
const MAX_STRANGERS = 64;
const REQUEST_MS = 60_000;
/** Services may take their ninety seconds to stop, one after the other. */
const STOP_MS = 600_000;
/** The hooks of a point have a minute before it and half a minute each behind it, and the freeze has its limit. */
const POINT_MS = 300_000;
/** A clock that is told late is told badly. */
const CLOCK_LIMIT_MS = 10_000;

export interface AgentTls {
  key: string | Buffer;
  cert: string | Buffer;
  ca: string | Buffer;
}

export interface AuthorizeContext {
  remoteAddress: string;
  /** The live sessions by source id: a second live instance is the caller's to refuse. */
  sessions: ReadonlyMap<string, AgentSession>;
}

export interface AgentServerOptions {
  tls: AgentTls;
  applianceId: string;
  applianceVersion: string;
  /**
   * Decides who this is.
   * @throws a coded error, which the agent is told before the connection ends (e.g. UND_AGENT_CERT_REVOKED)
   */
  authorize(
    peerCertificate: DetailedPeerCertificate,
    hello: ControlOf<'hello'>,
    context: AuthorizeContext,
  ): Promise<{ sourceId: string }> | { sourceId: string };
  /** A connection that ended before it was a session, and why. */
  onRefused?(error: UndError, remoteAddress: string): void;
  silenceMs?: number;
}

export interface AgentServerEvents {
  /** An agent is there. Attach its job's stream, or ask it things. */
  session: [session: AgentSession];
}

export interface AgentSessionEvents {
  /** A control message that neither the attached stream nor a waiting request took, e.g. renewCertificate. */
  message: [message: ControlMessage];
  close: [error: UndError | undefined];
}

/** One authorised connection of one source's agent. */
export class AgentSession extends EventEmitter<AgentSessionEvents> {
  readonly sourceId: string;
  readonly hello: ControlOf<'hello'>;
  readonly remoteAddress: string;
  readonly certificate: DetailedPeerCertificate;
  readonly connectedAt = new Date();
  readonly #link: Link;
  #stream: StreamConnection | undefined;
  #requests = new Map<string, (message: ControlMessage) => void>();

  /** @internal made by AgentServer */
  constructor(
    link: Link,
    sourceId: string,
    hello: ControlOf<'hello'>,
    certificate: DetailedPeerCertificate,
    remoteAddress: string,
  ) {
    super();
    this.#link = link;
    this.sourceId = sourceId;
    this.hello = hello;
    this.certificate = certificate;
    this.remoteAddress = remoteAddress;
    link.setHandlers({
      frame: async (frame) => {
        // Without a stream a frame is a late one of a job that ended: dropped, never acknowledged.
        await this.#stream?.frame(frame);
      },
      control: (message) => this.#onControl(message),
    });
    link.once('close', (error) => {
      this.#stream?.closed();
      this.#stream = undefined;
      this.emit('close', error);
    });
  }

  get closed(): boolean {
    return this.#link.closed;
  }

  send(message: ControlMessage): void {
    this.#link.send(message);
  }

  /** Let this job's stream be served by this agent: it is configured on the source at once. */
  attach(stream: ReplicationStream): void {
    this.#stream?.closed();
    this.#stream = stream.connect({
      send: (message) => this.#link.send(message),
      close: (error) => this.#link.close(error),
    });
  }

  /** Stop serving the job that is attached (it was deleted, or failed over). The agent is not told. */
  detach(): void {
    this.#stream?.closed();
    this.#stream = undefined;
  }

  /**
   * What the agent found on its machine; the payload's type is the inventory's own.
   * @throws UND_LINK_CLOSED, UND_LINK_TIMEOUT, or the agent's error
   */
  async inventory(): Promise<unknown> {
    const requestId = randomUUID();
    const reply = await this.#request('inventory', requestId, {
      type: 'inventoryRequest',
      requestId,
    });
    return reply.inventory;
  }

  /**
   * Have a recovery point put into the stream of a job. Resolves when its mark is numbered; it is a point here once
   * that frame is durable.
   * @throws UND_AGENT_OUTDATED, UND_POINT_FAILED, UND_LINK_CLOSED, UND_LINK_TIMEOUT
   */
  async takePoint(
    ask: Pick<ControlOf<'takePoint'>, 'jobId' | 'name' | 'quiesce' | 'atMs'>,
  ): Promise<ControlOf<'pointTaken'>> {
    this.#require(FEATURE_POINTS);
    const requestId = randomUUID();
    return this.#request(
      'pointTaken',
      requestId,
      { type: 'takePoint', optional: true, requestId, ...ask },
      POINT_MS,
    );
  }

  /**
   * How the source's wall clock stands to ours.
   * @throws UND_AGENT_OUTDATED, UND_LINK_CLOSED, UND_LINK_TIMEOUT
   */
  async readClock(): Promise<{ askedMs: number; answeredMs: number; sourceMs: number }> {
    this.#require(FEATURE_CLOCK);
    const requestId = randomUUID();
    const askedMs = Date.now();
    const { wallMs } = await this.#request(
      'clock',
      requestId,
      { type: 'clockRequest', optional: true, requestId },
      CLOCK_LIMIT_MS,
    );
    return { askedMs, answeredMs: Date.now(), sourceMs: wallMs };
  }

  /** @throws UND_AGENT_OUTDATED */
  #require(feature: string): void {
    if (this.hello.features?.includes(feature)) return;
    throw undError('UND_AGENT_OUTDATED', { source: this.hello.machine.hostname, feature });
  }

  /**
   * Planned failover: have units stopped. Resolves with all that have been stopped for it.
   * @throws UND_AGENT_OUTDATED, UND_HANDOVER_FAILED, UND_LINK_CLOSED, UND_LINK_TIMEOUT
   */
  async prepareHandover(
    ask: Pick<ControlOf<'prepareHandover'>, 'jobId' | 'failoverId' | 'stopUnits'>,
  ): Promise<string[]> {
    this.#require(FEATURE_HANDOVER);
    const requestId = randomUUID();
    const { stopped } = await this.#request(
      'handoverPrepared',
      requestId,
      { type: 'prepareHandover', optional: true, requestId, ...ask },
      STOP_MS,
    );
    return stopped ?? [];
  }

  /**
   * Have the file systems flushed and the final mark put into the stream. Resolves when it is numbered; what lies before
   * it is kept once that frame is durable.
   * @throws UND_AGENT_OUTDATED, UND_HANDOVER_…, UND_POINT_FAILED, UND_LINK_CLOSED, UND_LINK_TIMEOUT
   */
  async finalMark(
    ask: Pick<ControlOf<'finalMark'>, 'jobId' | 'failoverId'>,
  ): Promise<ControlOf<'handoverReady'>> {
    this.#require(FEATURE_HANDOVER);
    const requestId = randomUUID();
    return this.#request(
      'handoverReady',
      requestId,
      { type: 'finalMark', optional: true, requestId, ...ask },
      STOP_MS,
    );
  }

  /**
   * Have the source powered off, or its agent be passive from now on. Call it only when the final mark is durable.
   * @throws UND_HANDOVER_…, UND_LINK_CLOSED, UND_LINK_TIMEOUT
   */
  async powerOff(ask: Pick<ControlOf<'powerOff'>, 'failoverId' | 'how' | 'reason'>): Promise<void> {
    const requestId = randomUUID();
    await this.#request('handedOver', requestId, {
      type: 'powerOff',
      optional: true,
      requestId,
      ...ask,
    });
  }

  /**
   * Let the source go on: what was stopped for this failover starts again.
   * @throws UND_HANDOVER_FAILED, UND_LINK_CLOSED, UND_LINK_TIMEOUT
   */
  async cancelHandover(failoverId: string): Promise<string[]> {
    if (!this.hello.features?.includes(FEATURE_HANDOVER)) return [];
    const requestId = randomUUID();
    const { started } = await this.#request(
      'handoverCancelled',
      requestId,
      { type: 'cancelHandover', optional: true, requestId, failoverId },
      STOP_MS,
    );
    return started ?? [];
  }

  /**
   * Ask the agent to remove itself.
   * @throws UND_LINK_CLOSED, UND_LINK_TIMEOUT, or the agent's error
   */
  async uninstall(reason: string): Promise<void> {
    await this.#request('uninstalled', 'uninstalled', { type: 'uninstall', reason });
  }

  async #request<K extends ControlType>(
    replyType: K,
    key: string,
    message: ControlMessage,
    limitMs = REQUEST_MS,
  ): Promise<ControlOf<K>> {
    if (this.#link.closed) throw undError('UND_LINK_CLOSED', { reason: 'the agent is gone' });
    return new Promise((resolve, reject) => {
      const end = (act: () => void) => {
        clearTimeout(timer);
        this.#link.off('close', onClose);
        this.#requests.delete(key);
        act();
      };
      const onClose = (error: UndError | undefined) =>
        end(() => reject(error ?? undError('UND_LINK_CLOSED', { reason: 'by the appliance' })));
      const timer = setTimeout(
        () => end(() => reject(undError('UND_LINK_TIMEOUT', { timeoutMs: limitMs }))),
        limitMs,
      );
      this.#link.once('close', onClose);
      this.#requests.set(key, (reply) => {
        if (reply.type !== replyType) return;
        const { error } = reply as {
          error?: { code: string; message: string; params: Record<string, string> };
        };
        end(() =>
          error
            ? reject(
                new UndErrorClass(knownCode(error as never), {
                  reason: error.message,
                  ...error.params,
                }),
              )
            : resolve(reply as ControlOf<K>),
        );
      });
      this.#link.send(message);
    });
  }

  async #onControl(message: ControlMessage): Promise<void> {
    if (await this.#stream?.control(message)) return;
    const key =
      message.type === 'uninstalled'
        ? 'uninstalled'
        : 'requestId' in message
          ? message.requestId
          : '';
    const waiting = this.#requests.get(key);
    if (waiting) waiting(message);
    else this.emit('message', message);
  }

  close(error?: UndError): void {
    this.#link.close(error);
  }

  /** Turn the agent away, although it was admitted before; it is told why. */
  refuse(error: UndError): void {
    this.#link.send({ type: 'refused', error: toErrorMessage(error) });
    this.#link.close(error);
  }
}

/** @fires session */
export class AgentServer extends EventEmitter<AgentServerEvents> {
  readonly #options: AgentServerOptions;
  readonly #server: Server;
  readonly #sessions = new Map<string, AgentSession>();
  #strangers = 0;
  #sockets = new Set<TLSSocket>();

  constructor(options: AgentServerOptions) {
    super();
    this.#options = options;
    this.#server = createServer({
      ...options.tls,
      requestCert: true,
      rejectUnauthorized: true,
      minVersion: 'TLSv1.3',
      handshakeTimeout: HELLO_MS,
    });
    this.#server.on('secureConnection', (socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
      this.#serve(socket);
    });
    this.#server.on('tlsClientError', (cause, socket) => {
      const { remoteAddress } = socket as TLSSocket;
      options.onRefused?.(
        undError('UND_AGENT_TLS', { address: remoteAddress, reason: cause.message }, { cause }),
        remoteAddress ?? '?',
      );
    });
  }

  /** Live sessions by source id. */
  get sessions(): ReadonlyMap<string, AgentSession> {
    return this.#sessions;
  }

  /** Resolves with the port (of use when 0 was asked for). */
  async listen(port: number, host?: string): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject);
      this.#server.listen(port, host, () => resolve());
    });
    return (this.#server.address() as AddressInfo).port;
  }

  /** New connections get this key and certificate; those that are open go on. */
  setTls(tls: AgentTls): void {
    this.#server.setSecureContext({ ...tls, minVersion: 'TLSv1.3' });
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    for (const session of this.#sessions.values()) session.close();
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }

  #serve(socket: TLSSocket): void {
    const remoteAddress = socket.remoteAddress ?? '?';
    socket.setNoDelay(true);
    const link = new Link(socket);
    if (this.#strangers >= MAX_STRANGERS) {
      link.close();
      return;
    }
    this.#strangers++;
    let stranger = true;
    const known = () => {
      if (stranger) this.#strangers--;
      stranger = false;
      clearTimeout(timer);
    };
    const refuse = (error: UndError) => {
      link.send({ type: 'refused', error: toErrorMessage(error) });
      link.close(error);
    };
    const timer = setTimeout(() => refuse(undError('UND_HELLO_EXPECTED')), HELLO_MS);
    const onEarlyClose = (error: UndError | undefined) => {
      known();
      this.#options.onRefused?.(error ?? undError('UND_HELLO_EXPECTED'), remoteAddress);
    };
    link.once('close', onEarlyClose);
    link.start(
      {
        frame: () => {
          throw undError('UND_HELLO_EXPECTED');
        },
        control: async (message) => {
          if (message.type !== 'hello') return refuse(undError('UND_HELLO_EXPECTED'));
          let session: AgentSession;
          try {
            session = await this.#welcome(link, socket, message, remoteAddress);
          } catch (error) {
            return refuse(asUndError(error));
          }
          link.off('close', onEarlyClose);
          known();
          this.emit('session', session);
        },
      },
      this.#options.silenceMs ?? LINK_SILENCE_MS,
    );
  }

  async #welcome(
    link: Link,
    socket: TLSSocket,
    hello: ControlOf<'hello'>,
    remoteAddress: string,
  ): Promise<AgentSession> {
    if (hello.protocolVersion !== PROTOCOL_VERSION) {
      throw undError('UND_PROTOCOL_VERSION', {
        version: hello.protocolVersion,
        supported: PROTOCOL_VERSION,
      });
    }
    const certificate = socket.getPeerCertificate(true);
    const { sourceId } = await this.#options.authorize(certificate, hello, {
      remoteAddress,
      sessions: this.#sessions,
    });
    if (link.closed) throw undError('UND_LINK_CLOSED', { reason: 'during the handshake' });
    // The same agent again, whose old connection has not timed out yet.
    this.#sessions
      .get(sourceId)
      ?.close(undError('UND_LINK_CLOSED', { reason: 'a newer connection took over' }));
    const session = new AgentSession(link, sourceId, hello, certificate, remoteAddress);
    this.#sessions.set(sourceId, session);
    session.once('close', () => {
      if (this.#sessions.get(sourceId) === session) this.#sessions.delete(sourceId);
    });
    link.send({
      type: 'welcome',
      protocolVersion: PROTOCOL_VERSION,
      applianceVersion: this.#options.applianceVersion,
      applianceId: this.#options.applianceId,
      sourceId,
    });
    link.heartbeat(HEARTBEAT_MS);
    return session;
  }
}

/** The listener for agents; call `listen`. */
export const createAgentServer = (options: AgentServerOptions): AgentServer =>
  new AgentServer(options);
