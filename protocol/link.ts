/**
 * A link carries control messages and frames over one duplex byte stream (TLS in the product, a socket in tests).
 * On the wire: u32 little-endian body length, u8 type (1 control, 2 frame), body. Lengths are checked before anything
 * is allocated for them. Reading stops while the handler of a message is busy: that is the back-pressure.
 */
import { EventEmitter } from 'node:events';
import type { Duplex } from 'node:stream';
import { type ControlMessage, decodeControl, encodeControl, LINK_SILENCE_MS } from './control.ts';
import { asUndError, type UndError, undError } from './errors.ts';
import { FRAME_HEADER_BYTES, FRAME_ROOM_BYTES, MAX_UNPACKED_BYTES, withRoom } from './frame.ts';

const PREFIX_BYTES = 5;
const TYPE_CONTROL = 1;
const TYPE_FRAME = 2;
const MAX_CONTROL_BYTES = 4 * 1024 * 1024;
/** A message up to this size is copied behind its prefix: writing two pieces costs more. */
const JOINED_BYTES = 16 * 1024;
const MAX_FRAME_BYTES = FRAME_HEADER_BYTES + MAX_UNPACKED_BYTES;

function prefixOf(type: number, body: Buffer, message: Buffer): Buffer {
  message.writeUInt32LE(body.length, 0);
  message.writeUInt8(type, 4);
  return message;
}

export interface LinkHandlers {
  /** Reading goes on when it resolves; a rejection closes the link with that error. */
  control(message: ControlMessage): void | Promise<void>;
  frame(frame: Buffer): void | Promise<void>;
}

export interface LinkEvents {
  /** Once, whoever closed it. `error` is undefined if this side closed it without one. */
  close: [error: UndError | undefined];
}

/** @fires close */
export class Link extends EventEmitter<LinkEvents> {
  readonly #stream: Duplex;
  #handlers: LinkHandlers | undefined;
  #closed: { error: UndError | undefined } | undefined;
  #lastHeardMs = performance.now();
  #silence: NodeJS.Timeout | undefined;
  #bytesSent = 0;
  #bytesReceived = 0;

  constructor(stream: Duplex) {
    super();
    this.#stream = stream;
    stream.on('error', (cause) =>
      this.#end(undError('UND_LINK_CLOSED', { reason: cause.message }, { cause })),
    );
    stream.on('close', () =>
      this.#end(undError('UND_LINK_CLOSED', { reason: 'the other side ended it' })),
    );
    stream.on('end', () =>
      this.#end(undError('UND_LINK_CLOSED', { reason: 'the other side ended it' })),
    );
  }

  get closed(): boolean {
    return this.#closed !== undefined;
  }

  get bytesSent(): number {
    return this.#bytesSent;
  }

  get bytesReceived(): number {
    return this.#bytesReceived;
  }

  /**
   * Begin to read; call it once. Handlers are called one at a time and in order. They can be replaced later by
   * `setHandlers` (the handshake's by the session's).
   * @param silenceMs the link closes with UND_LINK_TIMEOUT when nothing arrived for so long; 0: never
   */
  start(handlers: LinkHandlers, silenceMs = LINK_SILENCE_MS): void {
    this.#handlers = handlers;
    if (silenceMs > 0) {
      this.#silence = setInterval(() => {
        if (!this.#busy && performance.now() - this.#lastHeardMs > silenceMs) {
          this.close(undError('UND_LINK_TIMEOUT', { timeoutMs: silenceMs }));
        }
      }, silenceMs / 4);
      this.#silence.unref();
    }
    this.#read();
  }

  setHandlers(handlers: LinkHandlers): void {
    this.#handlers = handlers;
  }

  #busy = false;
  #prefix = Buffer.alloc(PREFIX_BYTES);
  #prefixBytes = 0;
  /** A message that came in part: its body in a buffer of its own, filled up to `bodyBytes`. */
  #partial: { type: number; body: Buffer; bodyBytes: number } | undefined;

  /**
   * By `data` and straight into the message's own buffer: asynchronous iteration joins what has arrived, and joining the
   * pieces of a large frame copies all of it once more.
   */
  #read(): void {
    this.#stream.on('data', (chunk: Buffer) => {
      this.#bytesReceived += chunk.length;
      this.#lastHeardMs = performance.now();
      // What still arrives behind our own end is nobody's: whoever closed has let go of what it would concern.
      if (this.#closed) return;
      try {
        this.#take(chunk, 0);
      } catch (error) {
        this.close(asUndError(error));
      }
    });
  }

  /** Deliver the messages in chunk[at..]; stops reading while a handler is busy, and goes on behind its message. */
  #take(chunk: Buffer, at: number): void {
    while (!this.#closed) {
      const message = this.#next(chunk, at);
      at = message.at;
      if (message.body === undefined) return;
      this.#busy = true;
      const handled = this.#deliver(message.type, message.body);
      if (!handled) {
        this.#busy = false;
        continue;
      }
      this.#stream.pause();
      const goOn = () => {
        this.#busy = false;
        // Time spent in handlers is this side's silence, not the other's.
        this.#lastHeardMs = performance.now();
        this.#take(chunk, at);
        if (!this.#busy) this.#stream.resume();
      };
      handled.then(goOn).catch((error) => {
        this.#busy = false;
        this.close(asUndError(error));
        this.#stream.resume();
      });
      return;
    }
  }

  /** The next whole message of chunk[at..], or none, and all of it is taken in. */
  #next(chunk: Buffer, at: number): { at: number; type: number; body: Buffer | undefined } {
    if (!this.#partial) {
      const missing = PREFIX_BYTES - this.#prefixBytes;
      this.#prefixBytes += chunk.copy(this.#prefix, this.#prefixBytes, at, at + missing);
      at = Math.min(at + missing, chunk.length);
      if (this.#prefixBytes < PREFIX_BYTES) return { at, type: 0, body: undefined };
      this.#prefixBytes = 0;
      const length = this.#prefix.readUInt32LE(0);
      const type = this.#prefix.readUInt8(4);
      const limit =
        type === TYPE_CONTROL ? MAX_CONTROL_BYTES : type === TYPE_FRAME ? MAX_FRAME_BYTES : -1;
      if (limit < 0) throw undError('UND_LINK_MESSAGE_INVALID', { reason: `type ${type}` });
      if (length > limit) {
        throw undError('UND_LINK_MESSAGE_INVALID', { reason: `a length of ${length} bytes` });
      }
      if (chunk.length - at >= length) {
        return { at: at + length, type, body: chunk.subarray(at, at + length) };
      }
      this.#partial = { type, body: Buffer.allocUnsafeSlow(length), bodyBytes: 0 };
    }
    const { type, body, bodyBytes } = this.#partial;
    const taken = chunk.copy(body, bodyBytes, at);
    this.#partial.bodyBytes += taken;
    if (this.#partial.bodyBytes < body.length) return { at: at + taken, type, body: undefined };
    this.#partial = undefined;
    return { at: at + taken, type, body };
  }

  #deliver(type: number, body: Buffer): Promise<void> | undefined {
    const handlers = this.#handlers!;
    if (type === TYPE_FRAME) return handlers.frame(body) ?? undefined;
    const message = decodeControl(body);
    if (message === null) return undefined;
    // Answered here so that a link is alive however busy its owner is with other messages.
    if (message.type === 'ping') {
      this.send({ type: 'pong', id: message.id });
      return undefined;
    }
    return handlers.control(message) ?? undefined;
  }

  /** Queue a control message. Does nothing on a closed link: whoever sends learns it from `close`. */
  send(message: ControlMessage): void {
    if (this.#closed) return;
    this.#write(TYPE_CONTROL, encodeControl(message));
  }

  /**
   * Send a frame; resolves when the socket will take more.
   * @throws UND_LINK_CLOSED
   */
  async sendFrame(frame: Buffer): Promise<void> {
    this.#throwIfClosed();
    if (this.#write(TYPE_FRAME, frame)) return;
    await new Promise<void>((resolve) => {
      const over = () => {
        this.#stream.off('drain', over);
        super.off('close', over);
        resolve();
      };
      this.#stream.once('drain', over);
      super.once('close', over);
    });
    this.#throwIfClosed();
  }

  #throwIfClosed(): void {
    if (this.#closed) {
      throw this.#closed.error ?? undError('UND_LINK_CLOSED', { reason: 'by this side' });
    }
  }

  #write(type: number, body: Buffer): boolean {
    this.#bytesSent += PREFIX_BYTES + body.length;
    const roomy = withRoom(body)?.subarray(FRAME_ROOM_BYTES - PREFIX_BYTES);
    if (!roomy && body.length > JOINED_BYTES) {
      this.#stream.cork();
      this.#stream.write(prefixOf(type, body, Buffer.allocUnsafe(PREFIX_BYTES)));
      const more = this.#stream.write(body);
      process.nextTick(() => this.#stream.uncork());
      return more;
    }
    const message = roomy ?? Buffer.allocUnsafe(PREFIX_BYTES + body.length);
    if (!roomy) body.copy(message, PREFIX_BYTES);
    return this.#stream.write(prefixOf(type, body, message));
  }

  /** Ping every `intervalMs`, so that the other side and what lies between see a living link. */
  heartbeat(intervalMs: number): void {
    let id = 0;
    const timer = setInterval(() => this.send({ type: 'ping', id: id++ }), intervalMs);
    timer.unref();
    super.once('close', () => clearInterval(timer));
  }

  /** Close at once, after what was sent is flushed as far as the socket takes it. */
  close(error?: UndError): void {
    this.#end(error);
  }

  #end(error: UndError | undefined): void {
    if (this.#closed) return;
    this.#closed = { error };
    clearInterval(this.#silence);
    if (!this.#stream.destroyed) {
      // end() lets a last message (refused, notice) out; destroy follows for a peer that does not read. The timer keeps
      // the process alive: the socket does not, it is not read any more, and its server would never be closed.
      this.#stream.end();
      const timer = setTimeout(() => this.#stream.destroy(), 1000);
      this.#stream.once('close', () => clearTimeout(timer));
    }
    this.emit('close', error);
  }
}
