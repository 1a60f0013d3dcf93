/** An agent's stream whose frames are kept, and replicas cut at any of them: no appliance in between. */
import fs from 'node:fs';
import {
  SourceStream,
  type SourceStreamOptions,
  type StreamLink,
} from '../../agent/source-stream.ts';
import type { ControlMessage, ControlOf } from '../../protocol/control.ts';
import {
  checkFrame,
  FRAME_HEADER_BYTES,
  type FrameExtent,
  type FrameHeader,
  unpackFrame,
} from '../../protocol/frame.ts';
import { type Mark, readMark } from '../../protocol/marks.ts';
import { until } from './stream.lab.ts';

export const MIB = 1024 * 1024;

export interface KeptFrame {
  header: FrameHeader;
  mark: Mark | null;
  extents: FrameExtent[];
}

export interface KeptDisk {
  dev: string;
  sizeBytes: number;
}

/** Acknowledges every frame as soon as it is kept. */
export class FrameKeeper implements StreamLink {
  closed = false;
  readonly frames: KeptFrame[] = [];
  readonly messages: ControlMessage[] = [];
  readonly logs: string[] = [];
  readonly stream: SourceStream;
  readonly #disks: KeptDisk[];
  #asked = 0;
  #gate: Promise<void> = Promise.resolve();

  constructor(disks: KeptDisk[], options: Omit<SourceStreamOptions, 'log'>) {
    this.#disks = disks;
    this.stream = new SourceStream({
      ...options,
      log: (level, text) => this.logs.push(`${level}: ${text}`),
    });
  }

  async start(): Promise<this> {
    this.stream.connected(this);
    await this.stream.control({
      type: 'configureJob',
      jobId: 'kept',
      journalId: 'journal',
      streamEpoch: 1,
      epochReason: 'a test',
      disks: this.#disks.map(({ dev, sizeBytes }, index) => ({
        diskId: `disk-${index}`,
        index,
        devicePath: dev,
        sizeBytes,
      })),
      compression: 'none',
      bandwidthLimitBytesPerSec: null,
      ringBytes: 64 * MIB,
      durable: { seq: 0, capturePos: 0, bootTimeNs: '0' },
      binding: null,
      orderLost: null,
      intakeOpen: true,
    });
    await until('the stream to be ready', () => {
      const failed = this.messages.find(({ type }) => type === 'jobFailed');
      if (failed) throw new Error(JSON.stringify(failed));
      return this.messages.some(({ type }) => type === 'jobReady');
    });
    return this;
  }

  send(message: ControlMessage): void {
    this.messages.push(message);
  }

  /** No frame is taken until what is returned is called. */
  holdBack(): () => void {
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#gate = promise;
    return resolve;
  }

  async sendFrame(frame: Buffer): Promise<void> {
    await this.#gate;
    const header = checkFrame(frame);
    const mark = header.kind === 'mark' ? readMark(header, frame) : null;
    const sizes = this.#disks.map(({ sizeBytes }) => sizeBytes);
    const extents =
      header.kind === 'mark'
        ? []
        : // A copy, as a socket makes one: what is acknowledged is the sender's memory again.
          await unpackFrame(header, Buffer.from(frame.subarray(FRAME_HEADER_BYTES)), sizes);
    this.frames.push({ header, mark, extents });
    const { seq, capturePos } = header;
    await this.stream.control({ type: 'ack', jobId: 'kept', seq, capturePos });
  }

  close(): void {
    this.closed = true;
  }

  async takePoint(name: string, quiesce: boolean): Promise<ControlOf<'pointTaken'>> {
    const requestId = `point-${this.#asked++}`;
    await this.stream.control({ type: 'takePoint', requestId, jobId: 'kept', name, quiesce });
    let answer: ControlOf<'pointTaken'> | undefined;
    await until(
      `the answer to point ${name}`,
      () => {
        for (const message of this.messages) {
          if (message.type === 'pointTaken' && message.requestId === requestId) answer = message;
        }
        return answer;
      },
      90_000,
    );
    const seq = answer?.seq;
    if (seq !== undefined) {
      await until(`frame ${seq}`, () => (this.frames.at(-1)?.header.seq ?? 0) >= seq);
    }
    return answer!;
  }

  /** Whether all of the stream is in order; else what the agent said. */
  get ordered(): true | string[] {
    return this.frames.some(({ mark }) => mark?.type === 'orderLost') ? this.logs : true;
  }

  /** What a disk is after all frames before `seq`, from what `base` says it was when the stream began, or from zeroes. */
  cut(disk: number, seq: number, path: string, base?: string): void {
    if (base) fs.copyFileSync(base, path);
    else fs.writeFileSync(path, '');
    fs.truncateSync(path, this.#disks[disk]!.sizeBytes);
    const fd = fs.openSync(path, 'r+');
    for (const { header, extents } of this.frames) {
      if (header.seq >= seq) break;
      for (const extent of extents) {
        if (extent.disk !== disk) continue;
        const { offsetBytes, lengthBytes } = extent;
        if (extent.kind === 'write') fs.writeSync(fd, extent.data, 0, lengthBytes, offsetBytes);
        else {
          for (let at = 0; at < lengthBytes; at += MIB) {
            const length = Math.min(MIB, lengthBytes - at);
            fs.writeSync(fd, Buffer.alloc(length), 0, length, offsetBytes + at);
          }
        }
      }
    }
    fs.closeSync(fd);
  }
}
