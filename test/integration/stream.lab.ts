/** Both ends of a stream in one process: a scripted capture over files, a link that can be hurt, a replica to compare. */
import { randomBytes, randomInt } from 'node:crypto';
import { mkdtempSync } from 'node:fs';
import { type FileHandle, open, readFile, rm, truncate } from 'node:fs/promises';
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type {
  BlockReader,
  Capture,
  CaptureBatch,
  CaptureEvent,
  CaptureMode,
  CaptureRecord,
  CaptureStart,
  CaptureStatus,
  Extent,
  TrackingReason,
} from '../../agent/capture/capture.ts';
import { CaptureRecords, RECORD_BYTES } from '../../agent/capture/wire.ts';
import type { Carried } from '../../agent/restart/carried.ts';
import { SourceStream, type SourceStreamOptions } from '../../agent/source-stream.ts';
import {
  type OpenStreamOptions,
  ReplicationStream,
  type StreamConnection,
} from '../../appliance/replication/replication-stream.ts';
import { PROTOCOL_VERSION } from '../../protocol/control.ts';
import { asUndError, type UndError } from '../../protocol/errors.ts';
import { Link } from '../../protocol/link.ts';

export const MIB = 1024 * 1024;
const BLOCK = 4096;

export async function until(what: string, condition: () => unknown, limitMs = 120_000) {
  const end = Date.now() + limitMs;
  while (!(await condition())) {
    if (Date.now() > end) throw new Error(`waited ${limitMs} ms for: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

let bootedNs = 0n;
const bootNs = () => process.hrtime.bigint() - bootedNs;
const wallSecond = (at: bigint) =>
  (at + BigInt(Date.now()) * 1_000_000n - bootNs()) / 1_000_000_000n;

/**
 * What the kernel side of a capture does, on files: records are put into the ring at issue, data reaches the file some
 * milliseconds later, and a full ring turns the mode to tracking. It outlives its consumers, as the pinned one does.
 */
export class ScriptedKernel {
  bootId: string = randomBytes(8).toString('hex');
  captureId = '';
  ringBytes: number;
  producerPos = 4096;
  consumerPos = 4096;
  mode: CaptureMode = { mode: 'ordered' };
  /** True: a write lands this late, at random. */
  maxLatencyMs = 3;
  ring: Array<{ startPos: number; endPos: number; record: CaptureRecord; lost: boolean }> = [];
  dirty: Array<Set<number>> = [];
  taken: Array<Set<number>> = [];
  drops = 0;
  marks = 0n;
  inFlight = new Set<Promise<void>>();
  readonly files: FileHandle[] = [];
  readonly paths: string[] = [];
  sizes: number[] = [];
  listeners = new Set<(mode: CaptureMode) => void>();
  eventListeners = new Set<(event: CaptureEvent) => void>();
  wake = new Set<() => void>();
  consumer: ScriptedCapture | undefined;
  /** How late its consumer hears of a status, as on a server whose processors are busy. */
  statusLateMs = 0;

  constructor(ringBytes = 64 * MIB) {
    this.ringBytes = ringBytes;
  }

  async addDisk(path: string, sizeBytes: number): Promise<void> {
    const file = await open(path, 'w+');
    await file.truncate(sizeBytes);
    this.files.push(file);
    this.paths.push(path);
    this.sizes.push(sizeBytes);
    this.dirty.push(new Set());
    this.taken.push(new Set());
  }

  track(reason: TrackingReason): void {
    this.mode = { mode: 'tracking', reason, sinceBootNs: bootNs() };
    for (const listener of this.listeners) listener(this.mode);
  }

  #markDirty(disk: number, offsetBytes: number, lengthBytes: number): void {
    const end = Math.ceil((offsetBytes + lengthBytes) / BLOCK);
    for (let block = Math.floor(offsetBytes / BLOCK); block < end; block++) {
      this.dirty[disk]!.add(block);
    }
  }

  /** Issue a write; resolves when it has landed. `data` null: zeroes. */
  write(disk: number, offsetBytes: number, data: Buffer | null, zeroBytes = 0): Promise<void> {
    const lengthBytes = data?.length ?? zeroBytes;
    let captured = false;
    if (this.captureId !== '') {
      const size = 64 + (data?.length ?? 0);
      if (
        this.mode.mode === 'ordered' &&
        this.producerPos + size - this.consumerPos > this.ringBytes
      ) {
        this.track('overflow');
      }
      if (this.mode.mode === 'ordered') {
        captured = true;
        const record: CaptureRecord = data
          ? {
              kind: 'write',
              disk,
              offsetBytes,
              lengthBytes,
              data: Buffer.from(data),
              bootNs: bootNs(),
              pos: BigInt(this.producerPos),
            }
          : {
              kind: 'zero',
              disk,
              offsetBytes,
              lengthBytes,
              bootNs: bootNs(),
              pos: BigInt(this.producerPos),
            };
        this.put(record, size);
      } else {
        this.drops++;
        this.#markDirty(disk, offsetBytes, lengthBytes);
      }
    }
    const landed = (async () => {
      if (this.maxLatencyMs > 0) {
        await new Promise((resolve) => setTimeout(resolve, randomInt(this.maxLatencyMs + 1)));
      }
      await this.files[disk]!.write(data ?? Buffer.alloc(lengthBytes), 0, lengthBytes, offsetBytes);
      if (!captured && this.captureId !== '') this.#markDirty(disk, offsetBytes, lengthBytes);
    })();
    this.inFlight.add(landed);
    landed.finally(() => this.inFlight.delete(landed)).catch(() => {});
    return landed;
  }

  put(record: CaptureRecord, size: number): void {
    const startPos = this.producerPos;
    this.producerPos += size;
    this.ring.push({ startPos, endPos: this.producerPos, record, lost: false });
    for (const wake of this.wake) wake();
  }

  release(pos: number): void {
    if (pos <= this.consumerPos) return;
    this.consumerPos = pos;
    while (this.ring.length > 0 && this.ring[0]!.endPos <= pos) this.ring.shift();
  }

  /** The source server starts again: nothing of the capture is left, the disks are as they were. */
  reboot(): void {
    bootedNs = process.hrtime.bigint() - 1_000_000_000n;
    this.bootId = randomBytes(8).toString('hex');
    this.captureId = '';
    this.mode = { mode: 'ordered' };
    this.ring = [];
    this.consumerPos = 4096;
    this.producerPos = 4096;
    for (const blocks of [...this.dirty, ...this.taken]) blocks.clear();
  }

  /**
   * A restart of which `understudy-capture save` and `early` have carried over what changed.
   * @returns what the agent finds, but for the disks that have to be compared
   */
  rebootCarried(): Carried {
    const saved = {
      captureId: this.captureId,
      bootId: this.bootId,
      releasedPos: this.consumerPos,
    };
    for (const { record } of this.ring) {
      this.#markDirty(record.disk, record.offsetBytes, record.lengthBytes);
    }
    const dirty = this.dirty.map((blocks, disk) => [...blocks, ...this.taken[disk]!]);
    this.reboot();
    this.captureId = randomBytes(8).toString('hex');
    this.dirty = dirty.map((blocks) => new Set(blocks));
    this.track('requested');
    const disks = Object.fromEntries(this.sizes.map((_, index) => [index, null]));
    return { captureId: this.captureId, saved, disks };
  }

  emit(event: CaptureEvent): void {
    for (const listener of this.eventListeners) listener(event);
  }

  capture(): Capture {
    return new ScriptedCapture(this);
  }

  reader(path: string): BlockReader {
    const disk = this.paths.indexOf(path);
    return {
      read: async (offsetBytes, lengthBytes) => {
        const data = Buffer.alloc(lengthBytes);
        // In two halves, so that a write may land between them: a read of a megabyte is not atomic either.
        const half = Math.floor(lengthBytes / 2 / 512) * 512;
        await this.files[disk]!.read(data, 0, half, offsetBytes);
        await new Promise((resolve) => setImmediate(resolve));
        await this.files[disk]!.read(data, half, lengthBytes - half, offsetBytes + half);
        return { data, zero: data.equals(Buffer.alloc(lengthBytes)) };
      },
      close: async () => {},
    };
  }

  async close(): Promise<void> {
    await Promise.all(this.inFlight);
    for (const file of this.files) await file.close();
  }
}

const WIRE_KINDS = ['write', 'zero', 'mark', 'opaque'];

/** Records as the helper writes them (agent/capture/wire.ts). */
function wireRecords(records: readonly CaptureRecord[]): CaptureRecords {
  const rows = records.map((record) => {
    const row = Buffer.alloc(RECORD_BYTES);
    row.writeUInt8(WIRE_KINDS.indexOf(record.kind) + 1, 0);
    row.writeUInt8(record.discard ? 2 : 0, 1);
    row.writeUInt16LE(Math.max(record.disk, 0), 2);
    row.writeUInt32LE(record.lengthBytes, 4);
    row.writeBigUInt64LE(BigInt(record.offsetBytes), 8);
    row.writeBigUInt64LE(record.bootNs, 16);
    row.writeBigUInt64LE(record.markId ?? 0n, 24);
    row.writeBigUInt64LE(record.pos, 32);
    return row;
  });
  const data = records.flatMap(({ data }) => data ?? []);
  return new CaptureRecords(records.length, Buffer.concat([...rows, ...data]));
}

class ScriptedCapture implements Capture {
  readonly #kernel: ScriptedKernel;
  #readPos = 0;
  #stopped = false;
  #unlisten: Array<() => void> = [];

  constructor(kernel: ScriptedKernel) {
    this.#kernel = kernel;
  }

  async start(): Promise<CaptureStart> {
    const kernel = this.#kernel;
    const adopted = kernel.captureId !== '';
    if (!adopted) kernel.captureId = randomBytes(8).toString('hex');
    kernel.consumer = this;
    this.#readPos = kernel.consumerPos;
    // Taken blocks of the consumer before count as dirty again.
    kernel.taken.forEach((blocks, disk) => {
      for (const block of blocks) kernel.dirty[disk]!.add(block);
      blocks.clear();
    });
    return {
      adopted,
      bootId: kernel.bootId,
      captureId: kernel.captureId,
      consumerPos: BigInt(kernel.consumerPos),
      dirtyBlockBytes: 4096,
    };
  }

  async *batches(): AsyncIterable<CaptureBatch> {
    const kernel = this.#kernel;
    while (!this.#stopped) {
      const from = kernel.ring.findIndex(({ startPos }) => startPos >= this.#readPos);
      if (from < 0) {
        await new Promise<void>((resolve) => {
          const wake = () => {
            kernel.wake.delete(wake);
            resolve();
          };
          kernel.wake.add(wake);
        });
        continue;
      }
      const entries: typeof kernel.ring = [];
      let bytes = 0;
      for (let at = from; at < kernel.ring.length && bytes < 256 * 1024; at++) {
        const entry = kernel.ring[at]!;
        if (entries.length > 0 && entry.lost !== entries[0]!.lost) break;
        // As the helper: no batch spans more than half a second or the end of one, and a mark ends its batch.
        const first = (entries[0] ?? entry).record.bootNs;
        if (entry.record.bootNs - first > 500_000_000n) break;
        if (wallSecond(entry.record.bootNs) > wallSecond(first)) break;
        entries.push(entry);
        if (entry.record.kind === 'mark') break;
        bytes += entry.endPos - entry.startPos;
      }
      this.#readPos = entries.at(-1)!.endPos;
      const records = wireRecords(entries.map(({ record }) => record));
      yield {
        records,
        // Whoever looks at it afterwards sees another batch's bytes.
        recycle: () => records.body.fill(0xdd),
        startPos: BigInt(entries[0]!.startPos),
        endPos: BigInt(this.#readPos),
        order: entries[0]!.lost ? 'lost' : 'held',
      };
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  release(pos: bigint): void {
    if (this.#kernel.consumer !== this) return;
    this.#kernel.release(Number(pos));
    this.#readPos = Math.max(this.#readPos, Number(pos));
  }

  mode(): CaptureMode {
    return this.#kernel.mode;
  }

  onModeChange(listener: (mode: CaptureMode) => void): () => void {
    this.#kernel.listeners.add(listener);
    const off = () => this.#kernel.listeners.delete(listener);
    this.#unlisten.push(off);
    return off;
  }

  onEvent(listener: (event: CaptureEvent) => void): () => void {
    this.#kernel.eventListeners.add(listener);
    const off = () => this.#kernel.eventListeners.delete(listener);
    this.#unlisten.push(off);
    return off;
  }

  async status(): Promise<CaptureStatus> {
    const kernel = this.#kernel;
    const zeroes = kernel.files.map(() => 0);
    const status = {
      bootNs: bootNs(),
      wallNs: BigInt(Date.now()) * 1_000_000n,
      mode: kernel.mode,
      producerPos: BigInt(kernel.producerPos),
      consumerPos: BigInt(kernel.consumerPos),
      ringBytes: kernel.ringBytes,
      backlogBytes: kernel.producerPos - kernel.consumerPos,
      drops: kernel.files.map(() => kernel.drops),
      failedWrites: zeroes,
      opaqueCommands: zeroes,
      overlaps: zeroes,
      dirtyBytes: kernel.dirty.map(
        (blocks, disk) => (blocks.size + kernel.taken[disk]!.size) * BLOCK,
      ),
      writes: 0,
      writtenBytes: 0,
      copyFailures: 0,
      recursionMisses: 0,
      requeues: 0,
      inFlight: kernel.inFlight.size,
      helper: { cpuMs: 0, rssBytes: 0 },
    };
    if (kernel.statusLateMs > 0) {
      await new Promise((resolve) => setTimeout(resolve, kernel.statusLateMs));
    }
    return status;
  }

  async barrier(): Promise<bigint> {
    const pos = BigInt(this.#kernel.producerPos);
    await Promise.all(this.#kernel.inFlight);
    return pos;
  }

  async mark(): Promise<bigint> {
    const pos = BigInt(this.#kernel.producerPos);
    const markId = ++this.#kernel.marks;
    this.#kernel.put(
      { kind: 'mark', disk: -1, offsetBytes: 0, lengthBytes: 0, bootNs: bootNs(), pos, markId },
      64,
    );
    return markId;
  }

  async dirtyExtents(disk: number): Promise<Extent[]> {
    const { dirty, taken } = this.#kernel;
    return toExtents([...dirty[disk]!, ...taken[disk]!]);
  }

  async takeDirty(disk: number, maxBytes = 0, fromBytes = 0): Promise<Extent[]> {
    const { dirty, taken } = this.#kernel;
    const all = [...dirty[disk]!].filter((b) => b * BLOCK >= fromBytes).sort((a, b) => a - b);
    const blocks = maxBytes > 0 ? all.slice(0, maxBytes / BLOCK) : all;
    for (const block of blocks) {
      dirty[disk]!.delete(block);
      taken[disk]!.add(block);
    }
    return toExtents(blocks);
  }

  async clearDirty(disk: number, extents: Extent[]): Promise<void> {
    for (const block of toBlocks(extents)) this.#kernel.taken[disk]!.delete(block);
  }

  async markDirty(disk: number, extents: Extent[]): Promise<void> {
    for (const block of toBlocks(extents)) {
      this.#kernel.taken[disk]!.delete(block);
      this.#kernel.dirty[disk]!.add(block);
    }
  }

  async goTracking(): Promise<void> {
    this.#kernel.track('requested');
  }

  async resumeOrdered(): Promise<bigint> {
    this.#kernel.mode = { mode: 'ordered' };
    for (const listener of this.#kernel.listeners) listener(this.#kernel.mode);
    return BigInt(this.#kernel.producerPos);
  }

  async stop(opts: { unpin: boolean }): Promise<void> {
    this.#stopped = true;
    for (const off of this.#unlisten) off();
    for (const wake of this.#kernel.wake) wake();
    if (opts.unpin) this.#kernel.captureId = '';
  }
}

const toExtents = (blocks: number[]): Extent[] =>
  blocks.map((block) => ({ offsetBytes: block * BLOCK, lengthBytes: BLOCK }));
const toBlocks = (extents: Extent[]): number[] =>
  extents.flatMap(({ offsetBytes, lengthBytes }) =>
    Array.from({ length: lengthBytes / BLOCK }, (_, at) => offsetBytes / BLOCK + at),
  );

/** Between the agent and the appliance: cuts, damages or slows what the agent sends. */
export class FaultProxy {
  readonly #server: Server;
  #sockets = new Set<Socket>();
  #target = 0;
  port = 0;
  /** Bytes from the agent so far, over all connections. */
  passedBytes = 0;
  /** Damage one byte when so many bytes have passed. */
  corruptAt: number | null = null;
  cutAt: number | null = null;
  /** No byte passes while it is set; new connections hang. */
  stalled = false;
  bytesPerSec: number | null = null;
  cuts = 0;
  corruptions = 0;

  constructor() {
    this.#server = createServer((socket) => this.#serve(socket));
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', () => resolve()));
    this.port = (this.#server.address() as AddressInfo).port;
  }

  set target(port: number) {
    this.#target = port;
  }

  cut(): void {
    this.cuts++;
    for (const socket of this.#sockets) socket.destroy();
  }

  #serve(socket: Socket): void {
    const upstream = connect(this.#target, '127.0.0.1');
    for (const one of [socket, upstream]) {
      this.#sockets.add(one);
      one.setNoDelay(true);
      one.on('error', () => {});
      one.on('close', () => {
        this.#sockets.delete(one);
        socket.destroy();
        upstream.destroy();
      });
    }
    upstream.pipe(socket);
    (async () => {
      for await (const chunk of socket as AsyncIterable<Buffer>) {
        while (this.stalled && !socket.destroyed) await new Promise((r) => setTimeout(r, 5));
        if (this.bytesPerSec !== null) {
          await new Promise((r) => setTimeout(r, (chunk.length * 1000) / this.bytesPerSec!));
        }
        this.passedBytes += chunk.length;
        if (this.corruptAt !== null && this.passedBytes >= this.corruptAt) {
          this.corruptAt = null;
          this.corruptions++;
          chunk[chunk.length >> 1]! ^= 0x40;
        }
        if (this.cutAt !== null && this.passedBytes >= this.cutAt) {
          this.cutAt = null;
          this.cut();
          return;
        }
        if (!upstream.write(chunk)) await new Promise((resolve) => upstream.once('drain', resolve));
      }
    })().catch(() => {});
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

/** The appliance's end, without TLS: every connection belongs to the one stream. */
export class PlainServer {
  readonly #server: Server;
  #links = new Set<Link>();
  stream: ReplicationStream | undefined;
  readonly errors: UndError[] = [];
  port = 0;
  #drop = 0;

  /** The next frames are lost on their way, without a word. Returns what ends it. */
  dropFrames(count: number): () => void {
    this.#drop = count;
    return () => {
      this.#drop = 0;
    };
  }

  constructor() {
    this.#server = createServer((socket) => {
      const link = new Link(socket);
      this.#links.add(link);
      let connection: StreamConnection | undefined;
      link.once('close', (error) => {
        this.#links.delete(link);
        if (error && error.code !== 'UND_LINK_CLOSED') this.errors.push(error);
        connection?.closed();
      });
      link.start({
        frame: async (frame) => {
          if (this.#drop > 0) this.#drop--;
          else await connection?.frame(frame);
        },
        control: async (message) => {
          if (message.type === 'hello') {
            if (!this.stream) return link.close();
            link.send({
              type: 'welcome',
              protocolVersion: PROTOCOL_VERSION,
              applianceVersion: 'test',
              applianceId: 'test',
              sourceId: 'test',
            });
            connection = this.stream.connect({
              send: (control) => link.send(control),
              close: (error) => link.close(error),
            });
          } else await connection?.control(message);
        },
      });
    });
  }

  async listen(): Promise<void> {
    await new Promise<void>((resolve) => this.#server.listen(0, '127.0.0.1', () => resolve()));
    this.port = (this.#server.address() as AddressInfo).port;
  }

  async close(): Promise<void> {
    for (const link of this.#links) link.close();
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }
}

/** The agent's end: connects, and connects again. */
export class PlainAgent {
  readonly stream: SourceStream;
  #link: Link | undefined;
  #ended = false;
  readonly #port: number;
  readonly logs: string[] = [];
  /** The epoch that the appliance has named last. */
  configuredEpoch = 0;

  constructor(port: number, options: Omit<SourceStreamOptions, 'log'>) {
    this.#port = port;
    this.stream = new SourceStream({
      ...options,
      log: (level, text) => this.logs.push(`${level}: ${text}`),
    });
    this.#connect();
  }

  #connect(): void {
    if (this.#ended) return;
    const link = new Link(connect(this.#port, '127.0.0.1').setNoDelay(true));
    this.#link = link;
    link.once('close', () => {
      this.stream.disconnected();
      setTimeout(() => this.#connect(), 30);
    });
    link.start({
      frame: () => {},
      control: async (message) => {
        if (message.type === 'welcome') this.stream.connected(link);
        else await this.stream.control(message);
        if (message.type === 'configureJob') this.configuredEpoch = message.streamEpoch;
      },
    });
    link.send({
      type: 'hello',
      protocolVersion: PROTOCOL_VERSION,
      agentVersion: 'test',
      machine: { smbiosUuid: null, diskSerials: [], bootId: 'test', hostname: 'test' },
      passive: null,
    });
  }

  /** As `kill -9`: nothing is said, released or noted any more. */
  async kill(): Promise<void> {
    this.#ended = true;
    this.#link?.close();
    await this.stream.stop({ unpin: false });
  }
}

type TestLike = { teardown: (fn: () => unknown) => void };

/** One job of some disks, from the source's files to the replica's. */
export class StreamLab {
  readonly dir = mkdtempSync(join(tmpdir(), 'stream-test-'));
  readonly kernel: ScriptedKernel;
  readonly server = new PlainServer();
  readonly proxy = new FaultProxy();
  readonly #sizes: number[];
  readonly #options: Partial<OpenStreamOptions>;
  agentOptions: Partial<SourceStreamOptions> = {};
  stream!: ReplicationStream;
  agent: PlainAgent | undefined;
  #workload: { stop: boolean; done: Promise<number> } | undefined;

  constructor(
    t: TestLike,
    sizes: number[],
    options: Partial<OpenStreamOptions> & { ringBytes?: number } = {},
  ) {
    this.#sizes = sizes;
    this.#options = options;
    this.kernel = new ScriptedKernel(options.ringBytes);
    t.teardown(() => this.close());
  }

  replicaPath(disk: number): string {
    return join(this.dir, `replica-${disk}`);
  }

  async start(fill = true): Promise<this> {
    for (const [disk, size] of this.#sizes.entries()) {
      const path = join(this.dir, `source-${disk}`);
      await this.kernel.addDisk(path, size);
      if (fill) {
        // A third of the disk, in pieces: zeroes remain between them.
        for (let at = 0; at < size; at += 3 * 256 * 1024) {
          const data = randomBytes(Math.min(256 * 1024, size - at));
          await this.kernel.files[disk]!.write(data, 0, data.length, at);
        }
      }
      const replica = await open(this.replicaPath(disk), 'w');
      await replica.truncate(size);
      await replica.close();
    }
    await this.server.listen();
    await this.proxy.listen();
    this.proxy.target = this.server.port;
    await this.openStream();
    return this;
  }

  async openStream(options: Partial<OpenStreamOptions> = {}): Promise<void> {
    this.stream = await ReplicationStream.open({
      jobId: 'job-1',
      jobDir: join(this.dir, 'job'),
      disks: this.#sizes.map((sizeBytes, index) => ({
        diskId: `disk-${index}`,
        index,
        devicePath: this.kernel.paths[index]!,
        sizeBytes,
        replicaPath: this.replicaPath(index),
        freshReplica: true,
      })),
      settings: { compression: 'fast', bandwidthLimitBytesPerSec: null },
      limits: { journalBytes: 512 * MIB, segmentBytes: 8 * MIB },
      ...this.#options,
      ...options,
    });
    this.server.stream = this.stream;
  }

  /** As a restart of the appliance's service, or a crash of it: nothing is drained or flushed first. */
  async restartAppliance(options: Partial<OpenStreamOptions> = {}): Promise<void> {
    this.server.stream = undefined;
    await this.stream.close();
    await this.openStream(options);
  }

  startAgent(): PlainAgent {
    this.agent = new PlainAgent(this.proxy.port, {
      createCapture: () => this.kernel.capture(),
      openReader: async (path) => this.kernel.reader(path),
      pinDir: '/nowhere',
      runDir: join(this.dir, 'run'),
      ...this.agentOptions,
    });
    return this.agent;
  }

  /** Random writes that never overlap in flight, as a file system's do; returns when stopped how many there were. */
  startWorkload(pauseMs = 4, maxSectors = 64, reachBytes = Number.POSITIVE_INFINITY): void {
    const state = { stop: false, done: Promise.resolve(0) };
    const busy: Array<Set<number>> = this.#sizes.map(() => new Set());
    state.done = (async () => {
      let count = 0;
      while (!state.stop) {
        for (let burst = 0; burst < 3; burst++) {
          const disk = randomInt(this.#sizes.length);
          const size = Math.min(this.kernel.sizes[disk]!, reachBytes);
          const sectors = 1 + randomInt(maxSectors);
          const first = randomInt(size / 512 - sectors);
          const blocks: number[] = [];
          for (let b = first >> 3; b <= (first + sectors - 1) >> 3; b++) blocks.push(b);
          if (blocks.some((block) => busy[disk]!.has(block))) continue;
          for (const block of blocks) busy[disk]!.add(block);
          const zero = randomInt(8) === 0;
          count++;
          this.kernel
            .write(disk, first * 512, zero ? null : randomBytes(sectors * 512), sectors * 512)
            .finally(() => {
              for (const block of blocks) busy[disk]!.delete(block);
            });
        }
        await new Promise((resolve) => setTimeout(resolve, pauseMs));
      }
      await Promise.all(this.kernel.inFlight);
      return count;
    })();
    this.#workload = state;
  }

  async stopWorkload(): Promise<number> {
    const workload = this.#workload;
    this.#workload = undefined;
    if (!workload) return 0;
    workload.stop = true;
    return workload.done;
  }

  /** Waits, and says where both ends are if it waited in vain. */
  async until(what: string, condition: () => unknown, limitMs = 60_000): Promise<void> {
    await until(what, condition, limitMs).catch((error) => {
      const { phase, mode, disks, durableSeq, appliedSeq } = this.stream.state();
      const { consumerPos, producerPos, mode: kernel } = this.kernel;
      const dirty = this.kernel.dirty.map((blocks) => blocks.size);
      const ends = { phase, mode, disks, durableSeq, appliedSeq, consumerPos, producerPos, dirty };
      throw new Error(
        `${error.message}\n${JSON.stringify({ ...ends, kernel: kernel.mode, logs: this.agent?.logs, errors: this.server.errors })}`,
      );
    });
  }

  /** Everything that was captured is on the replica, and every disk is whole. */
  async settled(): Promise<void> {
    await this.until(
      'the stream to be protected with nothing left to send',
      () =>
        this.stream.state().phase.name === 'protected' &&
        this.kernel.consumerPos === this.kernel.producerPos &&
        [...this.kernel.dirty, ...this.kernel.taken].every((blocks) => blocks.size === 0),
    );
    await this.stream.drainApply();
  }

  /** Where source and replica first differ, by disk; empty: identical. */
  async differences(): Promise<string[]> {
    const found: string[] = [];
    for (const [disk, path] of this.kernel.paths.entries()) {
      const source = await readFile(path);
      const replica = await readFile(this.replicaPath(disk));
      if (source.equals(replica)) continue;
      let sectors = 0;
      let first = -1;
      for (let at = 0; at < source.length; at += 512) {
        if (source.subarray(at, at + 512).equals(replica.subarray(at, at + 512))) continue;
        sectors++;
        if (first < 0) first = at;
      }
      found.push(`disk ${disk}: ${sectors} sectors differ, the first at ${first}`);
    }
    return found;
  }

  async grow(disk: number, sizeBytes: number): Promise<void> {
    this.#sizes[disk] = sizeBytes;
    await truncate(this.kernel.paths[disk]!, sizeBytes);
    this.kernel.emit({
      kind: 'disk-resized',
      disk,
      oldSizeBytes: this.kernel.sizes[disk]!,
      newSizeBytes: sizeBytes,
    });
    this.kernel.sizes[disk] = sizeBytes;
  }

  async close(): Promise<void> {
    const steps: Array<() => unknown> = [
      () => this.stopWorkload(),
      () => this.agent?.kill(),
      () => this.stream?.close(),
      () => this.proxy.close(),
      () => this.server.close(),
      () => this.kernel.close(),
      () => rm(this.dir, { recursive: true, force: true }),
    ];
    for (const step of steps) {
      try {
        await step();
      } catch (error) {
        console.error(`# clean-up: ${asUndError(error).message}`);
      }
    }
  }
}
