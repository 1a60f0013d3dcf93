import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync } from 'node:fs';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import { ERRORS, type ErrorCode, undError } from '../../protocol/errors.ts';
import { BatchPipe } from './batch-pipe.ts';
import type {
  Capture,
  CaptureBatch,
  CaptureDisk,
  CaptureEvent,
  CaptureMode,
  CaptureStart,
  CaptureStatus,
  Extent,
  HelperOptions,
  TrackingReason,
} from './capture.ts';
import { helperPath } from './helper.ts';
import {
  BATCH_HEADER_BYTES,
  type BatchHeader,
  parseBatchBody,
  parseBatchHeader,
  RECORD_BYTES,
} from './wire.ts';

type Answer = Record<string, unknown>;
type Waiting = { command: string; resolve: (answer: Answer) => void; reject: (e: Error) => void };
type WireMode = { mode: string; reason?: string; sinceBootNs?: string };

const toMode = (wire: WireMode): CaptureMode =>
  wire.mode === 'ordered'
    ? { mode: 'ordered' }
    : {
        mode: 'tracking',
        reason: wire.reason as TrackingReason,
        sinceBootNs: BigInt(wire.sinceBootNs ?? 0),
      };

const perDisk = (wire: unknown): number[] => {
  const list: number[] = [];
  for (const [index, value] of Object.entries(wire as Record<string, number>)) {
    list[Number(index)] = value;
  }
  return Array.from(list, (value) => value ?? 0);
};

/** The capture by way of the helper process; see capture.ts for the contract. */
export class HelperCapture implements Capture {
  readonly #options: HelperOptions;
  #child: ChildProcess | undefined;
  #mode: CaptureMode = { mode: 'ordered' };
  #sizes = new Map<number, number>();
  #nextId = 1;
  #waiting = new Map<number, Waiting>();
  #modeListeners = new Set<(mode: CaptureMode) => void>();
  #eventListeners = new Set<(event: CaptureEvent) => void>();
  #data: BatchPipe | undefined;
  #ended: Promise<void> = Promise.resolve();
  #stopping = false;
  #dead: Error | undefined;
  #reading = false;
  #atWork = false;

  constructor(options: HelperOptions) {
    this.#options = options;
  }

  async start(
    disks: CaptureDisk[],
    opts: { ringBytes: number; pinDir: string; consumerTimeoutMs?: number },
  ): Promise<CaptureStart> {
    if (this.#child) throw new Error('this capture was started before');
    const args = ['run', '--pin', opts.pinDir, '--ring', String(opts.ringBytes)];
    if (opts.consumerTimeoutMs) args.push('--timeout-ms', String(opts.consumerTimeoutMs));
    for (const disk of disks) args.push('--disk', `${disk.index}:${disk.devicePath}`);
    const path = helperPath(this.#options);
    const { pipe, writeFd } = await BatchPipe.open().catch((cause) => {
      throw undError('UND_CAPTURE_HELPER_DIED', {
        reason: `no pipe for its data: ${cause.message}`,
      });
    });
    const child = spawn(path, args, { stdio: ['pipe', writeFd, 'pipe', 'pipe'] });
    closeSync(writeFd);
    this.#child = child;
    this.#data = pipe;
    let noise = '';
    child.stderr?.on('data', (chunk: Buffer) => {
      noise = (noise + chunk.toString()).slice(-2000);
    });
    child.stdin?.on('error', () => {});
    const lines = createInterface({ input: child.stdio[3] as Readable });

    const started = Promise.withResolvers<Answer>();
    const linesClosed = new Promise<void>((resolve) => lines.once('close', resolve));
    lines.on('line', (line) => this.#onLine(JSON.parse(line) as Answer, started));
    this.#ended = new Promise((resolve) => {
      let over = false;
      const end = async (how: string) => {
        if (over) return;
        over = true;
        await linesClosed;
        const error = undError('UND_CAPTURE_HELPER_DIED', { reason: `${how} ${noise}`.trim() });
        this.#dead = error;
        started.reject(error);
        for (const waiting of this.#waiting.values()) waiting.reject(error);
        this.#waiting.clear();
        if (!this.#stopping) this.#emit({ kind: 'helper-died', error });
        // Whoever reads batches reads what is still in the pipe, to its end.
        if (!this.#atWork) pipe.close();
        resolve();
      };
      child.once('error', (error) => end(error.message));
      child.once('exit', (code, signal) => end(`exit ${code ?? signal}`));
    });

    let answer: Answer;
    try {
      answer = await started.promise;
    } catch (error) {
      this.#stopping = true;
      child.stdin?.end();
      await this.#ended;
      throw error;
    }
    this.#mode = toMode(answer.mode as WireMode);
    for (const [index, size] of Object.entries(answer.sizes as Record<string, number>)) {
      this.#sizes.set(Number(index), size);
    }
    for (const disk of disks) {
      const actual = this.#sizes.get(disk.index);
      if (actual === undefined || actual === disk.sizeBytes) continue;
      const event: CaptureEvent = {
        kind: 'disk-resized',
        disk: disk.index,
        oldSizeBytes: disk.sizeBytes,
        newSizeBytes: actual,
      };
      setImmediate(() => this.#emit(event));
    }
    const result: CaptureStart = {
      adopted: answer.adopted === true,
      bootId: String(answer.bootId),
      captureId: String(answer.captureId),
      consumerPos: BigInt(String(answer.consumerPos)),
      dirtyBlockBytes: Number(answer.dirtyBlockBytes),
    };
    if (answer.notAdoptedBecause) result.notAdoptedBecause = String(answer.notAdoptedBecause);
    return result;
  }

  #onLine(line: Answer, started: PromiseWithResolvers<Answer>): void {
    if (line.started) {
      started.resolve(line);
      return;
    }
    if (line.error) {
      const code = String(line.error);
      const known = code in ERRORS ? (code as ErrorCode) : 'UND_CAPTURE_LOAD';
      started.reject(undError(known, { disk: String(line.disk), reason: String(line.reason) }));
      return;
    }
    if (line.event === 'mode') {
      this.#mode = toMode(line.mode as WireMode);
      for (const listener of this.#modeListeners) listener(this.#mode);
      return;
    }
    if (line.event) {
      const { event, ...rest } = line;
      this.#emit({ kind: event, ...rest } as CaptureEvent);
      return;
    }
    const waiting = this.#waiting.get(Number(line.id));
    this.#waiting.delete(Number(line.id));
    if (!waiting) return;
    if (line.failed === undefined) waiting.resolve(line);
    else {
      waiting.reject(
        undError('UND_CAPTURE_COMMAND', {
          command: waiting.command,
          reason: String(line.failed),
        }),
      );
    }
  }

  #emit(event: CaptureEvent): void {
    for (const listener of this.#eventListeners) listener(event);
  }

  #ask(command: string, args = ''): Promise<Answer> {
    if (this.#dead) return Promise.reject(this.#dead);
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<Answer>();
    this.#waiting.set(id, { command, resolve, reject });
    this.#child?.stdin?.write(`${id} ${command} ${args}\n`);
    return promise;
  }

  async *batches(): AsyncIterable<CaptureBatch> {
    if (this.#reading) throw new Error('the capture has a consumer already');
    this.#reading = true;
    const data = this.#data;
    if (!data) throw new Error('the capture is not started');
    await this.#ask('go');
    this.#atWork = true;
    try {
      for (;;) {
        let header: BatchHeader | undefined;
        const message = await data.next(BATCH_HEADER_BYTES, (head) => {
          header = parseBatchHeader(head);
          return header.records * RECORD_BYTES + header.dataBytes;
        });
        if (!message) break;
        const { body } = message;
        yield { ...parseBatchBody(header!, body), recycle: () => data.recycle(body) };
      }
      await this.#ended;
    } finally {
      // One who stops to read leaves the pipe as it is: the ring fills, and the helper lives on.
      this.#atWork = false;
      if (this.#dead) data.close();
    }
    if (!this.#stopping) throw this.#dead;
  }

  release(pos: bigint): void {
    this.#child?.stdin?.write(`0 release ${pos}\n`);
  }

  mode(): CaptureMode {
    return this.#mode;
  }

  onModeChange(listener: (mode: CaptureMode) => void): () => void {
    this.#modeListeners.add(listener);
    return () => this.#modeListeners.delete(listener);
  }

  onEvent(listener: (event: CaptureEvent) => void): () => void {
    this.#eventListeners.add(listener);
    return () => this.#eventListeners.delete(listener);
  }

  async status(): Promise<CaptureStatus> {
    const a = await this.#ask('status');
    return {
      mode: toMode(a.mode as WireMode),
      bootNs: BigInt(String(a.bootNs)),
      wallNs: BigInt(String(a.wallNs)),
      producerPos: BigInt(String(a.producerPos)),
      consumerPos: BigInt(String(a.consumerPos)),
      ringBytes: Number(a.ringBytes),
      backlogBytes: Number(a.backlogBytes),
      drops: perDisk(a.drops),
      failedWrites: perDisk(a.failedWrites),
      opaqueCommands: perDisk(a.opaqueCommands),
      overlaps: perDisk(a.overlaps),
      dirtyBytes: perDisk(a.dirtyBytes),
      writes: Number(a.writes),
      writtenBytes: Number(a.writtenBytes),
      copyFailures: Number(a.copyFailures),
      recursionMisses: Number(a.recursionMisses),
      requeues: Number(a.requeues),
      inFlight: Number(a.inFlight),
      helper: { cpuMs: Number(a.cpuMs), rssBytes: Number(a.rssBytes) },
    };
  }

  async barrier(): Promise<bigint> {
    return BigInt(String((await this.#ask('barrier')).pos));
  }

  async mark(): Promise<bigint> {
    return BigInt(String((await this.#ask('mark')).mark));
  }

  async dirtyExtents(disk: number): Promise<Extent[]> {
    return toExtents(await this.#ask('dirty', String(disk)));
  }

  async takeDirty(disk: number, maxBytes = 0, fromBytes = 0): Promise<Extent[]> {
    return toExtents(await this.#ask('take', `${disk} ${maxBytes} ${fromBytes}`));
  }

  clearDirty(disk: number, extents: Extent[]): Promise<void> {
    return this.#askExtents('clear', disk, extents);
  }

  markDirty(disk: number, extents: Extent[]): Promise<void> {
    return this.#askExtents('markdirty', disk, extents);
  }

  async #askExtents(command: string, disk: number, extents: Extent[]): Promise<void> {
    // The helper takes lines of up to 1 MiB.
    for (let i = 0; i < extents.length; i += 10_000) {
      const part = extents.slice(i, i + 10_000).map((e) => `${e.offsetBytes}:${e.lengthBytes}`);
      await this.#ask(command, `${disk} ${part.join(',')}`);
    }
  }

  async goTracking(): Promise<void> {
    await this.#ask('tracking');
  }

  async resumeOrdered(): Promise<bigint> {
    const pos = BigInt(String((await this.#ask('resume')).pos));
    return pos;
  }

  async stop(opts: { unpin: boolean }): Promise<void> {
    this.#stopping = true;
    if (!this.#child || this.#dead) return;
    await this.#ask('stop', opts.unpin ? '1' : '0');
    await this.#ended;
  }
}

const toExtents = (answer: Answer): Extent[] =>
  (answer.extents as [number, number][]).map(([offsetBytes, lengthBytes]) => ({
    offsetBytes,
    lengthBytes,
  }));
