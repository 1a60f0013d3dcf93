/**
 * A stream made by hand, for what is measured behind the link: frames as an agent packs them, ready before the clock
 * runs, sent over mutual TLS with the agent's window. What an agent costs is measured elsewhere (capture.ts).
 */
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:tls';
import { crc32 } from 'node:zlib';
import { type ControlOf, PROTOCOL_VERSION } from '../../protocol/control.ts';
import { type FrameExtent, packFrame, packMark } from '../../protocol/frame.ts';
import { Link } from '../../protocol/link.ts';

const KIB = 1024;
const MIB = 1024 * KIB;
/** As the agent's queue closes them. */
const FRAME_BYTES = MIB;
/** The agent's largest. */
const WINDOW_BYTES = 32 * MIB;

export interface Shape {
  words: string;
  writeBytes: number;
  order: 'sequential' | 'random';
}

export interface Write {
  offsetBytes: number;
  lengthBytes: number;
}

export interface Made {
  /** Each to be stamped with its number before it is sent. */
  frames: Buffer[];
  writes: Write[];
  sourceBytes: number;
  packedBytes: number;
}

/** Half of each 4 KiB is random: it compresses as fio's half-compressible buffers do. */
function halfRandom(bytes: number): Buffer {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; at += 4 * KIB) {
    crypto.getRandomValues(data.subarray(at, Math.min(at + 2 * KIB, bytes)));
  }
  return data;
}

/**
 * Frames with `totalBytes` of writes, no place of the disk twice.
 * @throws if the disk is too small for that
 */
export async function makeFrames(
  shape: Shape,
  totalBytes: number,
  diskBytes: number,
): Promise<Made> {
  const { writeBytes } = shape;
  const slots = Math.floor(diskBytes / writeBytes);
  const count = Math.floor(totalBytes / writeBytes);
  if (count > slots) throw new Error(`${count} writes of ${writeBytes} bytes on a disk too small`);
  // A walk by a prime visits every slot once before it comes back.
  const prime = 1_000_003;
  const slotOf = (n: number) => (shape.order === 'sequential' ? n : (n * prime) % slots);
  const pool = halfRandom(8 * MIB);
  const writes: Write[] = [];
  const packing: Array<Promise<Buffer>> = [];
  const perFrame = Math.max(1, Math.floor(FRAME_BYTES / writeBytes));
  for (let n = 0; n < count; n += perFrame) {
    const extents: FrameExtent[] = [];
    for (let one = n; one < Math.min(count, n + perFrame); one++) {
      const write = { offsetBytes: slotOf(one) * writeBytes, lengthBytes: writeBytes };
      const from = ((one * 37) % ((pool.length - writeBytes) / (4 * KIB))) * 4 * KIB;
      extents.push({
        kind: 'write',
        disk: 0,
        ...write,
        data: pool.subarray(from, from + writeBytes),
      });
      writes.push(write);
    }
    const input = { epoch: 1, seq: 1, bootTimeNs: 0n, wallMs: 0, capturePos: 0 };
    packing.push(packFrame({ kind: 'stream', ...input }, extents, 'fast'));
  }
  const frames = await Promise.all(packing);
  return {
    frames,
    writes,
    sourceBytes: count * writeBytes,
    packedBytes: frames.reduce((sum, { length }) => sum + length, 0),
  };
}

/** Sends frames of its own making to an appliance end, for one disk whose mirror found nothing to send. */
export class MadeStream {
  readonly #link: Link;
  #epoch = 1;
  #seq = 0;
  #ackedSeq = 0;
  /** Sent and not acknowledged, oldest first. */
  #onTheWay: Array<{ seq: number; bytes: number; sentMs: number }> = [];
  #onTheWayBytes = 0;
  #changed: Array<() => void> = [];
  /** Called for each frame that became durable, with how long that took. */
  onAck: (seq: number, tookMs: number) => void = () => {};
  #configured = Promise.withResolvers<void>();
  #mirror = Promise.withResolvers<ControlOf<'startMirror'>>();

  private constructor(link: Link) {
    this.#link = link;
  }

  static async open(port: number, pemPath: string): Promise<MadeStream> {
    const pem = readFileSync(pemPath);
    const socket = connect({
      ...{ host: '127.0.0.1', port, servername: 'bench' },
      ...{ key: pem, cert: pem, ca: pem },
    });
    await once(socket, 'secureConnect');
    socket.setNoDelay(true);
    const link = new Link(socket);
    const stream = new MadeStream(link);
    link.once('close', (error) => stream.#fail(error ?? new Error('the appliance end closed')));
    link.start({ frame: () => {}, control: (message) => stream.#control(message) });
    link.heartbeat(5_000);
    link.send({
      type: 'hello',
      protocolVersion: PROTOCOL_VERSION,
      agentVersion: 'bench',
      machine: { smbiosUuid: null, diskSerials: [], bootId: 'bench', hostname: 'bench' },
      passive: null,
    });
    await stream.#configured.promise;
    await stream.#begin();
    return stream;
  }

  #error: Error | undefined;

  #fail(error: Error): void {
    this.#error = error;
    this.#configured.reject(error);
    this.#mirror.reject(error);
    this.#mirror.promise.catch(() => {});
    for (const wake of this.#changed.splice(0)) wake();
  }

  #control(message: ControlOf<'configureJob' | 'startMirror' | 'ack' | 'flow'> | { type: string }) {
    if (message.type === 'configureJob') {
      const { jobId, streamEpoch, durable } = message as ControlOf<'configureJob'>;
      this.#epoch = streamEpoch;
      this.#seq = durable.seq;
      this.#ackedSeq = durable.seq;
      this.#link.send({ type: 'jobReady', jobId, streamEpoch, nextSeq: durable.seq + 1 });
      this.#configured.resolve();
    } else if (message.type === 'startMirror') {
      this.#mirror.resolve(message as ControlOf<'startMirror'>);
    } else if (message.type === 'ack') {
      this.#acked((message as ControlOf<'ack'>).seq);
    } else if (message.type === 'flow') {
      // What it drops would have to be sent again, and the figure would be of something else.
      const { state, reason } = message as ControlOf<'flow'>;
      if (state === 'held') this.#fail(new Error(`the appliance end holds the stream: ${reason}`));
    }
  }

  #acked(seq: number): void {
    const now = performance.now();
    this.#ackedSeq = seq;
    while (this.#onTheWay[0] && this.#onTheWay[0].seq <= seq) {
      const { seq: one, bytes, sentMs } = this.#onTheWay.shift()!;
      this.#onTheWayBytes -= bytes;
      this.onAck(one, now - sentMs);
    }
    for (const wake of this.#changed.splice(0)) wake();
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#error) throw this.#error;
      await new Promise<void>((resolve) => this.#changed.push(resolve));
    }
  }

  /** What every frame of this moment carries. */
  #input() {
    return {
      epoch: this.#epoch,
      seq: ++this.#seq,
      bootTimeNs: process.hrtime.bigint(),
      wallMs: Date.now(),
      capturePos: this.#seq * 8 * MIB,
    };
  }

  async #begin(): Promise<void> {
    await this.#put(
      packMark(this.#input(), {
        type: 'epochStart',
        ...{ reason: 'bench', captureId: 'bench', bootId: 'bench' },
      }),
    );
    const { disk, run, kind, reason, startBytes, endBytes } = await this.#mirror.promise;
    const about = { disk, run };
    const start = { ...about, kind, reason, startBytes, endBytes };
    await this.#put(packMark(this.#input(), { type: 'mirrorStart', ...start }));
    const mirror = { kind: 'mirror', ...this.#input(), ...about, cursorBytes: endBytes } as const;
    await this.#put(
      await packFrame({ ...mirror, skippedBytes: endBytes - startBytes }, [], 'none'),
    );
    await this.#put(packMark(this.#input(), { type: 'mirrorEnd', ...about }));
    await this.durable();
  }

  async #put(frame: Buffer): Promise<void> {
    await this.#until(() => this.#onTheWayBytes + frame.length <= WINDOW_BYTES);
    this.#onTheWay.push({ seq: this.#seq, bytes: frame.length, sentMs: performance.now() });
    this.#onTheWayBytes += frame.length;
    await this.#link.sendFrame(frame);
  }

  /** Sends the frame with the next number, written into it; resolves when the window takes more. Not while it is on its way. */
  async send(frame: Buffer): Promise<void> {
    const { epoch, seq, bootTimeNs, wallMs, capturePos } = this.#input();
    frame.writeBigUInt64LE(BigInt(epoch), 8);
    frame.writeBigUInt64LE(BigInt(seq), 16);
    frame.writeBigUInt64LE(bootTimeNs, 40);
    frame.writeBigUInt64LE(BigInt(wallMs), 48);
    frame.writeBigUInt64LE(BigInt(capturePos), 56);
    frame.writeUInt32LE(crc32(frame.subarray(0, 92)), 92);
    await this.#put(frame);
  }

  /** Resolves when everything that was sent is durable. */
  durable(): Promise<void> {
    return this.#until(() => this.#ackedSeq >= this.#seq);
  }

  close(): void {
    this.#link.close();
  }
}
