/**
 * The appliance's side of one protection job's stream: takes the agent's frames into the journal, acknowledges what is
 * durable, applies it to the replica disks, and asks the agent for the mirrors that the disks need.
 *
 * It knows nothing of jobs, hypervisors or users: the job service opens it, hands it the agent's connections and the
 * replica disks, and reads `state()`.
 */
import { EventEmitter, once } from 'node:events';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Value } from 'typebox/value';
import {
  type ControlMessage,
  type ControlOf,
  fromErrorMessage,
  type MirrorKind,
  toErrorMessage,
} from '../../protocol/control.ts';
import {
  asUndError,
  type SerialisedError,
  type UndError,
  undError,
} from '../../protocol/errors.ts';
import { type Compression, checkFrame, type FrameHeader } from '../../protocol/frame.ts';
import { hashOf } from '../../protocol/hash-tree.ts';
import { type Mark, readMark } from '../../protocol/marks.ts';
import { Applier } from '../apply/applier.ts';
import { ReplicaDisk } from '../apply/replica-disk.ts';
import { makeDirDurably, readJson, writeJsonDurably } from '../journal/durable-file.ts';
import {
  type HistorySegment,
  Journal,
  type JournalFrame,
  type JournalReader,
  type JournalReport,
} from '../journal/journal.ts';
import type { Point, PointIndex } from '../points/point-index.ts';
import { PointStore, percentOf, type Rebuild } from '../points/point-store.ts';
import { ClockMap } from './clock-map.ts';
import { Rate } from './rate.ts';
import { hashRange, isMaskOf, KeptHashes } from './replica-hashes.ts';
import {
  askDifference,
  askDifferenceOf,
  foldFrame,
  growDisk,
  isWhole,
  type MirrorState,
  newStreamRecord,
  newVerifications,
  type PointRecord,
  passGate,
  StreamRecord,
  type Verification,
  whyNotWhole,
  withGood,
  withVerifications,
} from './stream-record.ts';

export interface StreamDisk {
  diskId: string;
  /** What frames name the disk by: 0..63, stable for the life of the job. */
  index: number;
  /** On the source server. */
  devicePath: string;
  sizeBytes: number;
  /** Block device or file on the appliance; null while it is not attached: apply waits. */
  replicaPath: string | null;
  /** The replica disk reads as zeroes and was never written: its first mirror is a full one. */
  freshReplica: boolean;
}

export interface StreamSettings {
  compression: Compression;
  bandwidthLimitBytesPerSec: number | null;
  /** Of the ring in the source's memory; null: as the limits say. */
  ringBytes?: number | null;
  /** Paths on the source whose files the mirror leaves out (protocol/exclusions.ts). */
  exclusions?: string[];
  /** Carry what changed over planned restarts of the source (docs/early-boot.md). */
  carryRestarts?: boolean;
}

export interface StreamLimits {
  /** What is not applied: above it, intake stops. */
  journalBytes: number;
  /** History and what is not applied together; what is not applied is never evicted for it. journalBytes if absent. */
  historyBytes?: number;
  /** How far the history goes back from the newest frame; no limit by time if absent or null. */
  historyMs?: number | null;
  /** Of the ring in the source's memory, if the settings leave it open; 0 or absent: the agent chooses by its size. */
  ringBytes?: number;
  segmentBytes?: number;
}

export interface StreamHooks {
  /**
   * A disk of the source grew. Grow the replica disk, then resolve; intake of the new range begins after that. A
   * rejection leaves the job in `error` with UND_DISK_RESIZE_NEEDED until the agent reports the size again.
   */
  onDiskResized?(diskId: string, sizeBytes: number): Promise<void>;
  /**
   * The replica disks are exactly at this point, flushed, and what is to be applied next takes consistency from them for
   * a while (a mirror, a new epoch, lost order). Apply goes on when it resolves; a rejection is shown as what apply waits
   * for, and asked again. It may be called again for the same point.
   */
  beforeUnordered?(point: AppliedPoint, reason: string): Promise<void>;
}

/** A crash-consistent point that the replica disks hold. */
export interface AppliedPoint {
  seq: number;
  /** Source's wall clock of it. */
  sourceMs: number;
  /** The first point of its unbroken ordered stretch: from there on every frame is one. */
  sinceSeq: number;
}

export interface OpenStreamOptions {
  jobId: string;
  /** Holds `journal/` and `stream.json`; on the journal disk. */
  jobDir: string;
  disks: readonly StreamDisk[];
  settings: StreamSettings;
  limits: StreamLimits;
  hooks?: StreamHooks;
}

/** The agent's connection, as far as the stream needs it. */
export interface AgentChannel {
  send(message: ControlMessage): void;
  close(error?: UndError): void;
}

/** What the owner of the connection hands to the stream; frames one at a time (awaiting is the back-pressure). */
export interface StreamConnection {
  frame(frame: Buffer): Promise<void>;
  /** @returns false if the message is not the stream's */
  control(message: ControlMessage): Promise<boolean>;
  closed(): void;
}

export type StreamPhase =
  | { name: 'waiting-for-agent'; reason: string }
  | { name: 'mirroring'; reason: string }
  | { name: 'catching-up'; reason: string }
  | { name: 'protected' }
  /** Intake was stopped on purpose, or waits for room. */
  | { name: 'held'; reason: string }
  /** `from`: who has to do something about it; what the agent cannot do it tries again by itself. */
  | { name: 'error'; from: 'appliance' | 'agent'; error: SerialisedError };

export interface StreamMirror {
  state: 'needed' | 'running' | 'done';
  kind: MirrorKind;
  reason: string;
  totalBytes: number;
  /** Read, and either sent or skipped. */
  doneBytes: number;
  /** Of them: unallocated, zero, swap or equal. */
  skippedBytes: number;
}

export interface StreamView {
  phase: StreamPhase;
  mode: {
    mode: 'ordered' | 'tracking' | 'draining' | 'none';
    reason: string | null;
    /** Source's wall clock; null: since the stream began. */
    sinceMs: number | null;
  };
  disks: Array<{
    diskId: string;
    index: number;
    sizeBytes: number;
    mirror: StreamMirror;
    /** What is not on the replica because it is excluded; null: the agent is not there to tell. */
    excluded: { files: number; bytes: number } | null;
    /** Null: none was ever asked for. */
    verification: Verification | null;
  }>;
  /** Frames received, as they crossed the network. */
  rateBytesPerSec: number;
  /** Until the mirrors are done at their present speed; null when none runs or it is not known. */
  etaSeconds: number | null;
  /**
   * Captured or known to have changed on the source and not durable here, as the agent last said (`lagBytesAtMs`, wall
   * clock); null when it has not said anything since the appliance started. Nobody knows what came since.
   */
  lagBytes: number | null;
  lagBytesAtMs: number | null;
  /**
   * Age of the newest source moment up to which everything is durable here: what an unplanned failover now would
   * lose. By the source's boot-time clock; null before the first frame and after a restart of the appliance until the
   * agent is back (the two clocks cannot be compared then).
   */
  lagMs: number | null;
  durableSeq: number;
  appliedSeq: number;
  applyBacklogBytes: number;
  journalBytes: number;
  /** Every disk is whole and order is held at `durableSeq`: it is a crash-consistent point. */
  consistent: boolean;
  /** Source's wall clock of the newest consistent durable frame; null if there is none. */
  newestPointMs: number | null;
  /** The newest of the points that were asked for and are durable, oldest first. */
  points: readonly PointRecord[];
  /** What the agent takes of the source server, as it last said; null while it is away. */
  agent: StreamAgent | null;
  /** What the agent says of single disks on this connection and is not over, e.g. that a block cannot be read. */
  problems: Array<{ diskId: string; error: SerialisedError }>;
}

export interface StreamAgent {
  ringBytes: number;
  ringUsedBytes: number;
  /** Per cent of one processor, and resident memory beside the ring: of the agent and of its capture helper. */
  agentCpuPercent: number;
  agentRssBytes: number;
  helperCpuPercent: number;
  helperRssBytes: number;
  /** The bound of the frames that are on the way, part of the agent's memory. */
  windowBytes: number;
  /** Whether a planned restart of the source will be carried over, and if not, why; null: it is not asked for. */
  carry: { ready: boolean; reason: string | null } | null;
}

export interface StreamEvents {
  /** State or figures changed; coalesced, at most a few times a second. */
  change: [];
}

type Intake =
  | { name: 'open' }
  | { name: 'held'; by: 'owner' | 'journal-full' | 'journal-error'; reason: string };

interface Connection {
  channel: AgentChannel;
  ready: boolean;
  status: ControlOf<'status'> | null;
  /** What mirrors were asked for on this connection: by disk, the run and the state it answers. */
  asked: Map<number, { run: number; need: MirrorState }>;
  /** What verifications were asked for on this connection: the run, by disk. */
  verifying: Map<number, number>;
  /** Requests for hashes that are being answered. */
  hashing: number;
  hashes: KeptHashes;
  /** Why the agent cannot take up the job; it tries again by itself. */
  failed: SerialisedError | null;
  /** The last error of each disk that the agent told of. */
  problems: Map<number, SerialisedError>;
}

/** What a run's hashes are of: the replica behind this frame. */
interface RunStart {
  run: number;
  seq: number;
  /** Null: of a verification, and the page cache still holds what may not be on the disk. */
  uncached: Promise<void> | null;
}

const JOURNAL_RETRY_MS = 5_000;
const CHANGE_MS = 200;
/** Lag above this is shown as catching up. */
const PROTECTED_LAG_MS = 15_000;
const PROTECTED_BACKLOG_BYTES = 256 * 1024 * 1024;
/** An agent asks for a span, the next one, some chunks, and 16 pieces. */
const MAX_HASHING = 32;

/** @fires change */
export class ReplicationStream extends EventEmitter<StreamEvents> {
  readonly jobId: string;
  readonly #jobDir: string;
  #disks: StreamDisk[];
  #settings: StreamSettings;
  #limits: StreamLimits;
  readonly #hooks: StreamHooks;
  #journal!: Journal;
  #applier!: Applier;
  /** Undefined while the journal is being recovered: what it finds then is folded in by PointStore.open. */
  #points: PointStore | undefined;
  #replicas = new Map<number, ReplicaDisk>();
  /** As of the frames that are durable, written to the disks, in the flush that is under way, flushed and persisted. */
  #durable: StreamRecord;
  #written: StreamRecord;
  #flushing: StreamRecord;
  #applied: StreamRecord;
  /** As of the frames that apply has read: what tells the gate. */
  #reading: StreamRecord;
  /** The newest frame written to the disks that was more than a tick. */
  #dataSeq = 0;
  /** Up to here the disks may hold writes of frames that are to be applied again: before it they are at no point. */
  #redoUntil = Number.POSITIVE_INFINITY;
  #intake: Intake = { name: 'open' };
  /** Frames sent before the agent heard `flow` are passed over until the awaited one comes. */
  #resync = false;
  #fault: UndError | undefined;
  #connection: Connection | undefined;
  #lastDisconnect = 'the agent has not connected yet';
  #epochReason = 'first start of the stream';
  /**
   * The epoch that was begun because its agent knows what changed since the one before. Not persisted: an appliance that
   * dies before the epoch's first frame is durable compares, as for any other reason.
   */
  #carried: { epoch: number; captureId: string } | null = null;
  #lastRun = new Map<number, number>();
  /** By disk: the newest start of a mirror run or a verification, applied before its hashes are taken. */
  #runStarts = new Map<number, RunStart>();
  #clock = new ClockMap();
  #rate = new Rate();
  #mirrorRate = new Rate();
  #retryTimer: NodeJS.Timeout | undefined;
  #changeTimer: NodeJS.Timeout | undefined;
  #newestPointMs: number | null = null;
  /** As the agent last said, on whatever connection. */
  #backlog: { bytes: number; atMs: number } | null = null;
  #closed = false;

  private constructor(options: OpenStreamOptions, record: StreamRecord) {
    super();
    this.jobId = options.jobId;
    this.#jobDir = options.jobDir;
    this.#disks = options.disks.map((disk) => ({ ...disk }));
    this.#settings = options.settings;
    this.#limits = options.limits;
    this.#hooks = options.hooks ?? {};
    this.#durable = record;
    this.#written = record;
    this.#flushing = record;
    this.#applied = record;
    this.#reading = record;
    if (record.seq > 0 && isWhole(record)) this.#newestPointMs = record.wallMs;
  }

  /**
   * Open a job's stream, new or after a restart: the journal is recovered, and apply goes on where it was.
   * @throws UND_JOURNAL_IO, UND_JOURNAL_CORRUPT; UND_APPLY_WRITE_FAILED if a replica disk cannot be opened
   */
  static async open(options: OpenStreamOptions): Promise<ReplicationStream> {
    await makeDirDurably(options.jobDir);
    let record = newStreamRecord(options.disks);
    const stored = await readJson(join(options.jobDir, 'stream.json'));
    if (stored !== undefined) {
      if (!Value.Check(StreamRecord, stored)) {
        throw undError('UND_JOURNAL_CORRUPT', {
          job: options.jobId,
          segment: 'stream.json',
          offsetBytes: 0,
          reason: 'it is not the record of a stream',
        });
      }
      record = withGood(stored);
    }
    const stream = new ReplicationStream(options, record);
    // What the replica was at first must be known however early a restart comes.
    if (stored === undefined) await stream.#persist();
    // The owner may have grown a replica disk while the stream was closed.
    for (const disk of options.disks) stream.#grow(disk.index, disk.sizeBytes);
    stream.#journal = await Journal.open(
      {
        jobId: options.jobId,
        dir: join(options.jobDir, 'journal'),
        appliedSeq: record.seq,
        limitBytes: options.limits.historyBytes ?? options.limits.journalBytes,
        maxAgeMs: options.limits.historyMs ?? null,
        segmentBytes: options.limits.segmentBytes,
      },
      {
        durable: (frames) => stream.#onDurable(frames),
        failed: (error) => stream.#onJournalFailed(error),
      },
      (recovered) => stream.#foldDurable(recovered),
    );
    stream.#points = await PointStore.open(
      join(options.jobDir, 'points'),
      stream.#journal,
      record,
    ).catch((error) => {
      throw undError(
        'UND_JOURNAL_IO',
        { job: options.jobId, reason: (error as Error).message },
        { cause: error },
      );
    });
    if (isWhole(stream.#durable)) {
      const { rebuild, index } = stream.#points;
      stream.#newestPointMs = rebuild ? stream.#durable.wallMs : (index.newest?.sourceMs ?? null);
    }
    stream.#points.settled().then(() => stream.#changed());
    if (stream.#journal.epoch > Math.max(1, stream.#durable.epoch)) {
      stream.#epochReason = 'the stream was being begun anew when the appliance restarted';
    }
    stream.#applier = new Applier(
      {
        jobId: options.jobId,
        reader: (fromSeq) => stream.#journal.follower(fromSeq),
        diskId: (index) =>
          stream.#disks.find((disk) => disk.index === index)?.diskId ?? String(index),
        diskSizes: () => stream.#sizes(),
        onWritten: (header, mark) => {
          stream.#written = foldFrame(stream.#written, header, mark);
          if (mark?.type !== 'tick') stream.#dataSeq = header.seq;
        },
        onFlush: (seq) => {
          stream.#flushing = stream.#written;
          return () => stream.#onFlushed(seq);
        },
        gate: (header, mark) => stream.#gate(header, mark),
        beforeUnordered: (reason) => stream.#beforeUnordered(reason),
      },
      record.seq,
    );
    stream.#applier.on('change', () => stream.#changed());
    if (options.disks.every(({ replicaPath }) => replicaPath !== null)) {
      await stream.reopenDisks(
        new Map(options.disks.map(({ diskId, replicaPath }) => [diskId, replicaPath as string])),
      );
    }
    return stream;
  }

  /** Sequence numbers mean something together with it only. */
  get journalId(): string {
    return this.#journal.journalId;
  }

  /** The newest frame on the replica disks that changed something, as far as known since the stream was opened. */
  get dataSeq(): number {
    return this.#dataSeq;
  }

  /** The point that the replica disks hold, durably; null while they hold none. */
  appliedPoint(): AppliedPoint | null {
    const { good } = this.#applied;
    if (!good || !isWhole(this.#applied) || good.seq < this.#redoUntil) return null;
    return { seq: good.seq, sourceMs: good.wallMs, sinceSeq: good.sinceSeq };
  }

  /**
   * Runs `work` while the replica disks stand still at a point, flushed; intake and acknowledgements go on. Null when
   * they hold no point just then.
   * @param work is told since when they stand still (by performance.now)
   * @param mayGoOn asked when `work` has failed: whether anything may be applied as long as the disks are not opened anew
   * @throws what `work` throws; UND_APPLY_PAUSED; what stopped apply
   */
  atAppliedPoint<T>(
    work: (point: AppliedPoint, stillSinceMs: number) => Promise<T>,
    mayGoOn?: () => boolean,
  ): Promise<T | null> {
    return this.#applier.between(async (stillSinceMs) => {
      const point = this.appliedPoint();
      return point ? await work(point, stillSinceMs) : null;
    }, mayGoOn);
  }

  /**
   * Lets apply stand still until `to` lets it go on to exactly a frame, and `end`, or the time limit, on and on. One at a
   * time: a second one ends the first. Intake and acknowledgements go on.
   */
  limitApply(limitMs: number): { to(seq: number): Promise<void>; end(): void } {
    const end = this.#applier.limit(0);
    const timer = setTimeout(end, limitMs);
    return {
      to: async (seq) => {
        this.#applier.moveLimit(seq);
        await this.#applier.drain(seq);
      },
      end: () => {
        clearTimeout(timer);
        end();
      },
    };
  }

  /** Rises each time the stream has to begin anew. */
  get epoch(): number {
    return this.#journal.epoch;
  }

  // ---- what the job service does -------------------------------------------------------------------------------

  get #ringBytes(): number {
    return this.#settings.ringBytes ?? this.#limits.ringBytes ?? 0;
  }

  /**
   * Change the settings; the agent is told at once. Another ring is another capture: the disks are compared anew, in a
   * new epoch.
   */
  configure(settings: StreamSettings): void {
    const before = this.#ringBytes;
    this.#settings = settings;
    const { compression, bandwidthLimitBytesPerSec, exclusions, carryRestarts } = settings;
    const connection = this.#connection;
    if (connection && this.#ringBytes !== before) this.#sendConfigure(connection);
    else {
      connection?.channel.send({
        type: 'tuneJob',
        jobId: this.jobId,
        compression,
        bandwidthLimitBytesPerSec,
        exclusions,
        carryRestarts,
      });
    }
  }

  /** Take no more frames; resolves when everything taken is durable. Frames on the way are not acknowledged. */
  async stopIntake(reason: string): Promise<void> {
    this.#hold('owner', reason);
    await this.#journal.settle();
    this.#changed();
  }

  /**
   * Resolves when this frame and all before it are durable. `look` is called at every change and each second until then;
   * what it throws ends the waiting.
   */
  async untilDurable(seq: number, look: () => void): Promise<void> {
    while (this.#durable.seq < seq) {
      look();
      const limit = AbortSignal.timeout(1_000);
      await once(this, 'change', { signal: limit }).catch((error) => {
        if (!limit.aborted) throw error;
      });
    }
  }

  /** Take frames again after `stopIntake`. */
  startIntake(): void {
    if (this.#intake.name === 'held' && this.#intake.by === 'owner') this.#openIntake();
  }

  /**
   * Resolves with the sequence number up to which everything is on the replica disks, flushed: all that is durable.
   * Call `stopIntake` first, or more comes behind it.
   * @throws what stopped apply, e.g. UND_APPLY_NO_SPACE
   */
  async drainApply(): Promise<number> {
    await this.#journal.settle();
    const seq = this.#journal.durableSeq;
    await this.#applier.drain(seq);
    return seq;
  }

  /** Stop apply and close the replica disks, so that they can be detached. Intake goes on into the journal. */
  async closeDisks(reason = 'the replica disks are detached'): Promise<void> {
    await this.#applier.pause(reason);
    for (const disk of this.#replicas.values()) await disk.close();
    this.#replicas.clear();
    this.#changed();
  }

  /**
   * Open the replica disks and let apply go on.
   * @param paths replica path by disk id
   * @throws UND_APPLY_WRITE_FAILED if one cannot be opened
   */
  async reopenDisks(paths: ReadonlyMap<string, string>): Promise<void> {
    await this.closeDisks('the replica disks are being opened');
    for (const disk of this.#disks) {
      const path = paths.get(disk.diskId) ?? disk.replicaPath;
      if (path === null || path === undefined) {
        throw undError('UND_APPLY_WRITE_FAILED', {
          disk: disk.diskId,
          job: this.jobId,
          reason: 'it is not attached',
        });
      }
      disk.replicaPath = path;
      try {
        this.#replicas.set(disk.index, await ReplicaDisk.open(path));
      } catch (cause) {
        await this.closeDisks('a replica disk cannot be opened');
        throw undError(
          'UND_APPLY_WRITE_FAILED',
          { disk: disk.diskId, job: this.jobId, reason: (cause as Error).message },
          { cause },
        );
      }
    }
    this.#resumeApply();
  }

  /** Stop applying; the journal goes on. */
  async pauseApply(reason: string): Promise<void> {
    await this.#applier.pause(reason);
  }

  /** Go on applying, after a pause or after an error whose cause is gone. */
  resumeApply(): void {
    if (this.#applier.state.name !== 'running') this.#resumeApply();
  }

  #resumeApply(): void {
    if (this.#replicas.size !== this.#disks.length) return;
    const clean = this.#redoUntil <= this.#applied.seq && this.#written.seq === this.#applied.seq;
    if (!clean && this.#applier.state.name !== 'waiting')
      this.#redoUntil = this.#journal.durableSeq;
    this.#written = this.#applied;
    this.#reading = this.#applied;
    this.#applier.resume(this.#replicas);
  }

  /**
   * Start over with a difference mirror of all disks, in a new epoch: after a poison frame, a damaged journal, or when
   * a person doubts the replica. What is in the journal and not applied is dropped; nothing is lost by that, because
   * every block is compared.
   */
  async restart(reason: string): Promise<void> {
    await this.#applier.pause(reason);
    this.#hold('owner', reason);
    await this.#journal.settle();
    await this.#journal.dropUnapplied();
    this.#applied = askDifference(this.#applied, reason);
    this.#written = this.#applied;
    this.#durable = this.#applied;
    await this.#persist();
    await this.#points?.truncateAfter(this.#applied.seq, this.#applied).catch(notUrgent);
    this.#epochReason = reason;
    await this.#journal.beginEpoch();
    this.#fault = undefined;
    this.#newestPointMs = null;
    this.#intake = { name: 'open' };
    this.#resumeApply();
    this.#disconnect(undError('UND_LINK_CLOSED', { reason }));
    this.#changed();
  }

  /** Other limits from now on; what they no longer keep goes at once. */
  async setLimits(
    limits: Pick<StreamLimits, 'journalBytes' | 'historyBytes' | 'historyMs'>,
  ): Promise<void> {
    this.#limits = { ...this.#limits, ...limits };
    this.#journal.retention = {
      limitBytes: limits.historyBytes ?? limits.journalBytes,
      maxAgeMs: limits.historyMs ?? null,
    };
    await this.#journal.trim();
    await this.#historyLeft();
  }

  /**
   * The journal disk runs short: some of the oldest history goes, whatever the limits say.
   * @returns false if there is no history that may go
   */
  async makeRoom(): Promise<boolean> {
    const freed = await this.#journal.makeRoom();
    await this.#historyLeft();
    return freed;
  }

  // ---- history -------------------------------------------------------------------------------------------------

  /** Which moments can be recovered, as far as the journal reaches; while `pointsRebuild`, the older ones of them. */
  points(): PointIndex {
    return this.#points!.index;
  }

  /** What was known of the points is being read from the journal again; null: it is known. */
  get pointsRebuild(): Rebuild | null {
    return this.#points?.rebuild ?? null;
  }

  /**
   * For whoever draws conclusions from a point that is not in `points()`.
   * @throws UND_POINTS_REBUILDING while older ones only are known
   */
  needPoints(): void {
    const rebuild = this.pointsRebuild;
    if (!rebuild) return;
    throw undError('UND_POINTS_REBUILDING', { job: this.jobId, percent: percentOf(rebuild) });
  }

  /**
   * The newest point at or before a moment, to the frame: `points().pointAt` is to the second.
   * @param sourceMs wall clock of the source
   * @throws UND_POINTS_REBUILDING; UND_HISTORY_GONE, UND_FRAME_… if the journal is damaged there
   */
  async exactPointAt(sourceMs: number): Promise<Point | null> {
    this.needPoints();
    const index = this.points();
    const near = index.pointAt(sourceMs);
    if (!near) return null;
    let best = near;
    const reader = this.#journal.reader(near.seq + 1);
    try {
      const lastSeq = index.endOfStretch(near.seq);
      while (reader.nextSeq <= lastSeq) {
        const next = await reader.next();
        next?.release?.();
        if (!next || next.header.wallMs > sourceMs) break;
        best = { seq: next.header.seq, sourceMs: next.header.wallMs };
      }
    } finally {
      await reader.close();
    }
    // Writes of the same millisecond may lie behind a mark, and whoever names its moment means the mark.
    const mark = index.marks().findLast((one) => one.sourceMs === sourceMs && one.seq <= best.seq);
    return mark && best.sourceMs === sourceMs ? { seq: mark.seq, sourceMs } : best;
  }

  /** Durable frames in order from `fromSeq` on, for a replay. Close it. */
  journalReader(fromSeq: number): JournalReader {
    return this.#journal.reader(fromSeq);
  }

  /** The oldest frame of the history: a replay can begin behind a checkpoint that lies right before it, or later. */
  get oldestSeq(): number {
    return this.#journal.oldestSeq;
  }

  /** The oldest checkpoint's frame, from which on history is of use; see Journal.keepFromSeq. Not persisted. */
  get keepFromSeq(): number | null {
    return this.#journal.keepFromSeq;
  }

  set keepFromSeq(seq: number | null) {
    this.#journal.keepFromSeq = seq;
  }

  /** See Journal.replayBytes. */
  replayBytes(seq: number): number {
    return this.#journal.replayBytes(seq);
  }

  /** What the history takes, and what limits it. */
  history(): { segments: HistorySegment[]; limitBytes: number; maxAgeMs: number | null } {
    return { segments: this.#journal.history(), ...this.#journal.retention };
  }

  /**
   * Compare one disk with its source, in the same epoch: order goes on, and there are points again when it is done.
   * Durable when it resolves: also asked for after a restart.
   * @throws UND_NOT_FOUND
   */
  async mirrorDisk(diskId: string, reason: string): Promise<void> {
    const disk = this.#disks.find((candidate) => candidate.diskId === diskId);
    const known = this.#durable.disks.find(({ index }) => index === disk?.index);
    if (!disk || !known) throw undError('UND_NOT_FOUND', { kind: 'disk', id: diskId });
    const lastRun = Math.max(known.lastRun, this.#lastRun.get(disk.index) ?? 0);
    this.#amend((record) => askDifferenceOf(record, disk.index, reason, lastRun));
    await this.#persist();
    this.#askMirrors();
    this.#changed();
  }

  /**
   * Compare disks with their source while replication and points go on, and repair what differs; as soon as the replica
   * is whole and the agent there. A verification that is under way goes on. Durable when it resolves.
   * @param diskIds undefined: all
   * @throws UND_NOT_FOUND
   */
  async verifyDisks(diskIds?: readonly string[]): Promise<void> {
    const unknown = diskIds?.find((id) => !this.#disks.some(({ diskId }) => diskId === id));
    if (unknown !== undefined) throw undError('UND_NOT_FOUND', { kind: 'disk', id: unknown });
    const indexes = this.#disks
      .filter(({ diskId }) => diskIds?.includes(diskId) ?? true)
      .map(({ index }) => index);
    const verifications = newVerifications(this.#durable, indexes);
    this.#amend((record) => withVerifications(record, verifications));
    await this.#persist();
    this.#askVerifications();
    this.#changed();
  }

  /** Let the agent connect and be configured anew, at once: what it could not do may go now. */
  reconnectAgent(reason: string): void {
    this.#disconnect(undError('UND_LINK_CLOSED', { reason }));
    this.#lastDisconnect = reason;
    this.#changed();
  }

  /** Check the whole journal; see Journal.verify. */
  verifyJournal(onProgress?: (bytes: number) => void): Promise<JournalReport> {
    return this.#journal.verify(this.points().stretches(), onProgress);
  }

  async #historyLeft(): Promise<void> {
    const { oldestSeq } = this.#journal;
    if (oldestSeq === this.#oldestKnownSeq) return;
    this.#oldestKnownSeq = oldestSeq;
    await this.#points?.evictBefore(oldestSeq, this.#durable).catch(notUrgent);
    this.#changed();
  }

  #oldestKnownSeq = 0;

  /** Close, keeping everything; `open` goes on from here. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#retryTimer);
    clearTimeout(this.#changeTimer);
    this.#disconnect();
    await this.closeDisks('the stream is closed');
    await this.#journal.close();
    await this.#points?.close();
  }

  /** End the job on the agent (if it is connected), close, and remove the journal and everything known. */
  async destroy(reason = 'the job was deleted'): Promise<void> {
    this.#connection?.channel.send({ type: 'stopJob', jobId: this.jobId, reason });
    await this.close();
    await this.#journal.destroy();
    await rm(this.#jobDir, { recursive: true, force: true });
  }

  /**
   * Serve this connection; an older one of the same job is closed. The agent is told where the journal stands.
   * The caller routes the connection's frames and its messages that carry a `jobId` (and `hashRequest`) here.
   */
  connect(channel: AgentChannel): StreamConnection {
    this.#disconnect(undError('UND_LINK_CLOSED', { reason: 'a newer connection took over' }));
    const connection: Connection = {
      channel,
      ready: false,
      status: null,
      asked: new Map(),
      verifying: new Map(),
      hashing: 0,
      hashes: new KeptHashes(),
      failed: null,
      problems: new Map(),
    };
    this.#connection = connection;
    this.#resync = false;
    this.#clock.reset();
    this.#changed();
    this.#sendConfigure(connection);
    const current = () => this.#connection === connection && !this.#closed;
    return {
      frame: async (frame) => {
        if (!current()) return;
        await this.#onFrame(connection, frame).catch((error) => {
          this.#lost(connection, asUndError(error).message);
          throw error;
        });
      },
      control: async (message) => {
        if (!('jobId' in message) || message.jobId !== this.jobId) return false;
        if (current()) await this.#onControl(connection, message);
        // A notice is for the log as well.
        return message.type !== 'notice';
      },
      closed: () => {
        if (current()) this.#lost(connection, 'the connection to the agent was lost');
      },
    };
  }

  #lost(connection: Connection, reason: string): void {
    if (this.#connection !== connection) return;
    this.#connection = undefined;
    this.#lastDisconnect = reason;
    this.#changed();
  }

  #disconnect(error?: UndError): void {
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.channel.close(error);
  }

  // ---- the connection ------------------------------------------------------------------------------------------

  #sendConfigure(connection: Connection): void {
    // What was taken before on another connection is settled first: the agent must be told what is truly durable.
    this.#journal
      .settle()
      .then(() => {
        if (this.#connection !== connection) return;
        // The agent ends its mirror runs when it is configured: they are asked for again when it is ready.
        connection.ready = false;
        connection.asked.clear();
        connection.verifying.clear();
        this.#changed();
        const bound = this.#durable.epoch === this.#journal.epoch;
        connection.channel.send({
          type: 'configureJob',
          jobId: this.jobId,
          journalId: this.#journal.journalId,
          streamEpoch: this.#journal.epoch,
          epochReason: this.#epochReason,
          carried:
            this.#carried?.epoch === this.#journal.epoch ? this.#carried.captureId : undefined,
          disks: this.#disks.map(({ diskId, index, devicePath, sizeBytes }) => ({
            diskId,
            index,
            devicePath,
            sizeBytes,
          })),
          compression: this.#settings.compression,
          bandwidthLimitBytesPerSec: this.#settings.bandwidthLimitBytesPerSec,
          exclusions: this.#settings.exclusions,
          carryRestarts: this.#settings.carryRestarts,
          ringBytes: this.#ringBytes,
          durable: {
            seq: this.#journal.durableSeq,
            capturePos: bound ? this.#durable.capturePos : 0,
            bootTimeNs: bound ? this.#durable.bootTimeNs : '0',
          },
          binding: bound ? this.#durable.binding : null,
          orderLost:
            this.#durable.order.name === 'lost'
              ? { reason: this.#durable.order.reason, compare: this.#durable.order.compare }
              : null,
          intakeOpen: this.#intake.name === 'open' && !this.#fault,
        });
      })
      .catch((error) => connection.channel.close(asUndError(error)));
  }

  async #onControl(connection: Connection, message: ControlMessage): Promise<void> {
    switch (message.type) {
      case 'jobReady':
        connection.ready = message.streamEpoch === this.#journal.epoch;
        connection.failed = null;
        this.#askMirrors();
        this.#askVerifications();
        break;
      case 'needEpoch': {
        if (message.streamEpoch !== this.#journal.epoch) break;
        this.#epochReason = message.reason;
        await this.#journal.settle();
        // What changed is known since the newest epoch's end: of one that has not begun, everything is asked for.
        const hasBegun = this.#durable.epoch === this.#journal.epoch;
        await this.#journal.beginEpoch();
        if (message.carried !== undefined && hasBegun) {
          this.#carried = { epoch: this.#journal.epoch, captureId: message.carried };
          // Points go on as soon as the drain is done; that nothing was missed is looked at behind them.
          await this.verifyDisks();
        }
        this.#sendConfigure(connection);
        break;
      }
      case 'status':
        connection.status = message;
        this.#backlog = { bytes: message.backlogBytes, atMs: Date.now() };
        this.#clock.sample(message.bootMs, performance.now());
        break;
      case 'hashRequest':
        // Not awaited: frames go on meanwhile, and hashing waits for them to be applied.
        this.#answerHashes(connection, message).catch(() => {});
        break;
      case 'diskResized':
        await this.#onDiskResized(connection, message);
        break;
      case 'jobFailed':
        connection.failed = fromErrorMessage(message.error);
        connection.ready = false;
        break;
      case 'notice':
        if (message.level === 'error' && message.error && message.disk !== undefined) {
          connection.problems.set(message.disk, fromErrorMessage(message.error));
        }
        break;
      default:
        break;
    }
    this.#changed();
  }

  async #onFrame(connection: Connection, frame: Buffer): Promise<void> {
    this.#rate.add(frame.length);
    if (this.#intake.name === 'held' || this.#fault) return;
    let header: FrameHeader;
    let mark: Mark | null;
    try {
      header = checkFrame(frame);
      mark = header.kind === 'mark' ? readMark(header, frame) : null;
    } catch (error) {
      const coded = asUndError(error);
      if (coded.code === 'UND_FRAME_INVALID') {
        this.#stopFor(coded);
        return;
      }
      throw coded;
    }
    const expected = this.#journal.takenSeq + 1;
    if (header.epoch !== this.#journal.epoch) {
      // Frames of the old epoch may be on their way while the new one is being agreed on.
      if (!connection.ready) return;
      throw undError('UND_FRAME_EPOCH', {
        epoch: header.epoch,
        job: this.jobId,
        expected: this.#journal.epoch,
      });
    }
    if (header.seq < expected) return;
    if (header.seq > expected) {
      if (this.#resync) return;
      throw undError('UND_FRAME_GAP', { seq: header.seq, job: this.jobId, expected });
    }
    this.#resync = false;
    this.#noteStart(header, mark);
    await this.#journal.append(header, frame).catch((error) => {
      // The failed event has held intake already; the frame is sent again when it opens.
      if (!this.#journal.error) throw error;
    });
    if (this.#journal.unappliedBytes > this.#limits.journalBytes) {
      const full = undError('UND_JOURNAL_FULL', {
        job: this.jobId,
        usedBytes: this.#journal.unappliedBytes,
        limitBytes: this.#limits.journalBytes,
      });
      this.#hold('journal-full', full.message);
    }
  }

  #stopFor(error: UndError): void {
    this.#fault = error;
    this.#connection?.channel.send({
      type: 'flow',
      jobId: this.jobId,
      state: 'held',
      nextSeq: this.#journal.takenSeq + 1,
      reason: error.message,
    });
    this.#changed();
  }

  #hold(by: 'owner' | 'journal-full' | 'journal-error', reason: string): void {
    if (this.#intake.name === 'held' && this.#intake.by === 'owner') return;
    this.#intake = { name: 'held', by, reason };
    this.#connection?.channel.send({
      type: 'flow',
      jobId: this.jobId,
      state: 'held',
      nextSeq: this.#journal.takenSeq + 1,
      reason,
    });
    this.#changed();
  }

  #openIntake(): void {
    this.#intake = { name: 'open' };
    this.#resync = true;
    this.#connection?.channel.send({
      type: 'flow',
      jobId: this.jobId,
      state: 'open',
      nextSeq: this.#journal.takenSeq + 1,
      reason: null,
    });
    this.#askMirrors();
    this.#askVerifications();
    this.#changed();
  }

  #askMirrors(): void {
    const connection = this.#connection;
    if (!connection?.ready || this.#intake.name === 'held' || this.#fault) return;
    if (this.#durable.epoch !== this.#journal.epoch && this.#durable.epoch !== 0) {
      // The epoch's first frame decides what is needed; it is on its way.
      return;
    }
    for (const { index, mirror, lastRun } of this.#durable.disks) {
      if (mirror.name === 'done') continue;
      const asked = connection.asked.get(index);
      if (
        asked &&
        (asked.need === mirror || (mirror.name === 'running' && mirror.run === asked.run))
      ) {
        continue;
      }
      const run =
        mirror.name === 'running'
          ? mirror.run
          : Math.max(lastRun, this.#lastRun.get(index) ?? 0) + 1;
      this.#lastRun.set(index, run);
      connection.asked.set(index, { run, need: mirror });
      connection.channel.send({
        type: 'startMirror',
        jobId: this.jobId,
        disk: index,
        run,
        kind: mirror.kind,
        reason: mirror.reason,
        startBytes: mirror.startBytes,
        endBytes: mirror.endBytes,
        cursorBytes: mirror.name === 'running' ? mirror.cursorBytes : mirror.startBytes,
        skippedBytes: mirror.name === 'running' ? mirror.skippedBytes : 0,
      });
    }
  }

  /** Only of a replica that is whole: elsewhere a mirror has to come first, and compares as well. */
  #askVerifications(): void {
    const connection = this.#connection;
    if (!connection) return;
    if (!isWhole(this.#durable) || this.#durable.order.name !== 'held') {
      // The agent has dropped them: it lost order, or was asked for a mirror.
      connection.verifying.clear();
      return;
    }
    if (!connection.ready || this.#intake.name === 'held' || this.#fault) return;
    for (const { index, sizeBytes, verification } of this.#durable.disks) {
      if (!verification?.asked || connection.verifying.get(index) === verification.run) continue;
      connection.verifying.set(index, verification.run);
      connection.channel.send({
        type: 'startVerify',
        optional: true,
        jobId: this.jobId,
        disk: index,
        run: verification.run,
        cursorBytes: verification.asked.cursorBytes,
        endBytes: sizeBytes,
      });
    }
  }

  async #answerHashes(connection: Connection, request: ControlOf<'hashRequest'>): Promise<void> {
    const { requestId, disk, offsetBytes, lengthBytes, chunkBytes, fold, behindSeq } = request;
    connection.hashing++;
    try {
      if (connection.hashing > MAX_HASHING) {
        throw undError('UND_CONTROL_INVALID', {
          type: 'hashRequest',
          reason: `more than ${MAX_HASHING} at once`,
        });
      }
      const record = this.#durable.disks.find(({ index }) => index === disk);
      const sizeBytes = record?.sizeBytes;
      const start = this.#runStarts.get(disk);
      const startSeq = start?.run === request.run ? start.seq : undefined;
      if (
        startSeq === undefined ||
        sizeBytes === undefined ||
        offsetBytes + lengthBytes > sizeBytes
      ) {
        throw undError('UND_CONTROL_INVALID', {
          type: 'hashRequest',
          reason: `no run of disk ${disk} covers ${lengthBytes} bytes at ${offsetBytes}`,
        });
      }
      const mask = request.mask === undefined ? null : Buffer.from(request.mask, 'base64');
      if (mask && !isMaskOf(mask, lengthBytes)) {
        throw undError('UND_CONTROL_INVALID', { type: 'hashRequest', reason: 'its mask is short' });
      }
      await this.#untilWritten(connection, Math.max(startSeq, behindSeq ?? 0));
      if (start) {
        start.uncached ??= this.#replicas.get(disk)?.dropCache() ?? null;
        await start.uncached;
      }
      // Hashes of any moment behind the start will do, so those that made the one hash of a span are good again.
      const key = `${startSeq}:${disk}:${offsetBytes}:${lengthBytes}:${chunkBytes}:${request.mask}`;
      const kept = behindSeq === undefined ? connection.hashes.take(key) : undefined;
      const range = { offsetBytes, lengthBytes, chunkBytes, mask };
      const hashes =
        kept ??
        (await hashRange(range, (offset, length) => {
          const replica = this.#replicas.get(disk);
          if (replica) return replica.read(offset, length);
          throw undError('UND_APPLY_PAUSED', { job: this.jobId, reason: 'its disks are closed' });
        }));
      if (fold) connection.hashes.keep(key, hashes);
      const answer = fold ? await hashOf(hashes as Buffer<ArrayBuffer>) : hashes;
      connection.channel.send({ type: 'hashes', requestId, hashes: answer.toString('base64') });
    } catch (error) {
      connection.channel.send({
        type: 'hashes',
        requestId,
        error: toErrorMessage(asUndError(error)),
      });
    } finally {
      connection.hashing--;
    }
  }

  /** Apply may be paused or stopped meanwhile: the mirror waits for it, as everything does that needs the disks. */
  async #untilWritten(connection: Connection, seq: number): Promise<void> {
    while (this.#connection === connection) {
      if (this.#applier.state.name !== 'running') await once(this.#applier, 'change');
      else if (await this.#applier.reached(seq).then(yes, no)) return;
    }
    throw undError('UND_LINK_CLOSED', { reason: 'while hashes were being taken' });
  }

  async #onDiskResized(connection: Connection, message: ControlOf<'diskResized'>): Promise<void> {
    const disk = this.#disks.find(({ index }) => index === message.disk);
    if (!disk || message.sizeBytes <= disk.sizeBytes) return;
    try {
      if (!this.#hooks.onDiskResized) throw new Error('nobody can grow the replica disk');
      await this.#hooks.onDiskResized(disk.diskId, message.sizeBytes);
    } catch (cause) {
      this.#stopFor(
        undError(
          'UND_DISK_RESIZE_NEEDED',
          {
            disk: disk.diskId,
            job: this.jobId,
            newSizeBytes: message.sizeBytes,
            sizeBytes: disk.sizeBytes,
          },
          { cause },
        ),
      );
      return;
    }
    if (this.#fault?.code === 'UND_DISK_RESIZE_NEEDED') this.#fault = undefined;
    this.#grow(disk.index, message.sizeBytes);
    await this.#persist();
    this.#sendConfigure(connection);
  }

  #grow(index: number, sizeBytes: number): void {
    const disk = this.#disks.find((candidate) => candidate.index === index);
    if (disk) disk.sizeBytes = Math.max(disk.sizeBytes, sizeBytes);
    this.#amend((record) => growDisk(record, index, sizeBytes));
  }

  /** What no frame says becomes true of all of them at once. */
  #amend(change: (record: StreamRecord) => StreamRecord): void {
    this.#durable = change(this.#durable);
    this.#reading = change(this.#reading);
    this.#written = change(this.#written);
    this.#flushing = change(this.#flushing);
    this.#applied = change(this.#applied);
  }

  #sizes(): number[] {
    const sizes: number[] = [];
    for (const { index, sizeBytes } of this.#applied.disks) sizes[index] = sizeBytes;
    return sizes;
  }

  // ---- journal and apply ---------------------------------------------------------------------------------------

  #foldDurable({ header, frame }: JournalFrame): Mark | null {
    const mark = header.kind === 'mark' ? readMark(header, frame) : null;
    this.#noteStart(header, mark);
    const { disks: before, binding } = this.#durable;
    this.#durable = foldFrame(this.#durable, header, mark);
    // The source's clock began anew: by what was known of the old one, lag would be the time that it was up.
    if (mark?.type === 'epochStart' && mark.bootId !== binding?.bootId) this.#clock.restarted();
    if (header.kind === 'mirror') this.#countMirror(before);
    if (isWhole(this.#durable)) this.#newestPointMs = header.wallMs;
    if (this.#points) {
      this.#points.add(header, mark, this.#durable);
      if (this.#points.full) this.#points.seal(this.#durable).catch(notUrgent);
    }
    return mark;
  }

  /** Hashes for this run are of the replica behind this frame. */
  #noteStart({ seq }: FrameHeader, mark: Mark | null): void {
    if (mark?.type !== 'mirrorStart' && mark?.type !== 'verifyStart') return;
    if (this.#runStarts.get(mark.disk)?.seq === seq) return;
    this.#runStarts.set(mark.disk, {
      run: mark.run,
      seq,
      // Of a mirror, what apply will read and write again may as well be remembered.
      uncached: mark.type === 'mirrorStart' ? Promise.resolve() : null,
    });
  }

  #countMirror(before: StreamRecord['disks']): void {
    this.#durable.disks.forEach(({ mirror }, at) => {
      const old = before[at]?.mirror;
      if (mirror.name === 'running' && old?.name === 'running') {
        this.#mirrorRate.add(mirror.cursorBytes - old.cursorBytes);
      }
    });
  }

  #onDurable(frames: readonly JournalFrame[]): void {
    let ask = false;
    for (const frame of frames) {
      const mark = this.#foldDurable(frame);
      if (mark && mark.type !== 'tick') ask = true;
    }
    this.#connection?.channel.send({
      type: 'ack',
      jobId: this.jobId,
      seq: this.#durable.seq,
      capturePos: this.#durable.capturePos,
    });
    this.#applier.poke();
    if (ask) this.#askMirrors();
    if (ask) this.#askVerifications();
    for (const [index, error] of this.#connection?.problems ?? []) {
      if (this.#isOver(index, error)) this.#connection?.problems.delete(index);
    }
    this.#changed();
  }

  #onJournalFailed(error: UndError): void {
    this.#hold('journal-error', error.message);
    const retry = () => {
      this.#journal
        .retry()
        .then(() => {
          if (this.#intake.name === 'held' && this.#intake.by === 'journal-error')
            this.#openIntake();
        })
        .catch(() => {
          this.#retryTimer = setTimeout(retry, JOURNAL_RETRY_MS).unref();
        });
    };
    this.#retryTimer = setTimeout(retry, JOURNAL_RETRY_MS).unref();
  }

  #gate(header: FrameHeader, mark: Mark | null): string | null {
    const next = foldFrame(this.#reading, header, mark);
    if (this.#reading.good && !isWhole(next)) return whyNotWhole(next);
    this.#reading = next;
    return null;
  }

  /** Apply stands still here, with everything read also written and flushed: the three records are the same one. */
  async #beforeUnordered(reason: string): Promise<void> {
    const { good } = this.#applied;
    if (good) {
      const point = { seq: good.seq, sourceMs: good.wallMs, sinceSeq: good.sinceSeq };
      await this.#hooks.beforeUnordered?.(point, reason);
    }
    this.#applied = passGate(this.#applied);
    this.#written = passGate(this.#written);
    this.#reading = passGate(this.#reading);
    await this.#persist();
  }

  async #onFlushed(seq: number): Promise<void> {
    this.#applied = this.#flushing;
    await this.#persist();
    await this.#journal.applied(seq);
    await this.#historyLeft();
    if (
      this.#intake.name === 'held' &&
      this.#intake.by === 'journal-full' &&
      this.#journal.unappliedBytes < this.#limits.journalBytes * 0.8
    ) {
      this.#openIntake();
    }
  }

  /** One write at a time, each of the newest record: a flush and a disk that grows may both ask for it at once. */
  #persist(): Promise<void> {
    const run = this.#persisting.then(() =>
      writeJsonDurably(join(this.#jobDir, 'stream.json'), this.#applied).catch((cause) => {
        throw undError('UND_JOURNAL_IO', { job: this.jobId, reason: cause.message }, { cause });
      }),
    );
    this.#persisting = run.catch(() => {});
    return run;
  }

  #persisting: Promise<void> = Promise.resolve();

  #changed(): void {
    if (this.#changeTimer || this.#closed) return;
    this.#changeTimer = setTimeout(() => {
      this.#changeTimer = undefined;
      this.emit('change');
    }, CHANGE_MS);
  }

  // ---- what is shown -------------------------------------------------------------------------------------------

  /** State and figures now. */
  state(): StreamView {
    const record = this.#durable;
    const lagMs =
      record.seq === 0
        ? null
        : this.#clock.ageMs(Number(BigInt(record.bootTimeNs)) / 1e6, performance.now());
    const status = this.#connection?.status ?? null;
    return {
      phase: this.#phase(lagMs),
      mode: this.#mode(),
      disks: record.disks.map(({ index, sizeBytes, mirror, verification }) => ({
        diskId: this.#disks.find((disk) => disk.index === index)?.diskId ?? String(index),
        index,
        sizeBytes,
        mirror: viewMirror(mirror),
        excluded: viewExcluded(status, index),
        verification: verification ?? null,
      })),
      rateBytesPerSec: this.#rate.perSecond(),
      etaSeconds: this.#eta(),
      lagBytes: this.#backlog?.bytes ?? null,
      lagBytesAtMs: this.#backlog?.atMs ?? null,
      lagMs,
      durableSeq: this.#journal.durableSeq,
      appliedSeq: this.#applier.appliedSeq,
      applyBacklogBytes: this.#journal.unappliedBytes,
      journalBytes: this.#journal.bytes,
      consistent: isWhole(record),
      newestPointMs: this.#newestPointMs,
      agent: status && {
        ringBytes: status.ring.sizeBytes,
        ringUsedBytes: status.ring.usedBytes,
        ...status.usage,
        carry: status.carry ?? null,
      },
      points: record.points ?? [],
      problems: this.#problems(),
    };
  }

  #problems(): StreamView['problems'] {
    const problems: StreamView['problems'] = [];
    for (const [index, error] of this.#connection?.problems ?? []) {
      const disk = this.#disks.find((candidate) => candidate.index === index);
      if (disk) problems.push({ diskId: disk.diskId, error });
    }
    return problems;
  }

  /** A block that could not be read was read since. */
  #isOver(index: number, error: SerialisedError): boolean {
    const mirror = this.#durable.disks.find((disk) => disk.index === index)?.mirror;
    if (isGone(error)) return false;
    if (mirror?.name !== 'running') return mirror?.name === 'done';
    return mirror.cursorBytes > Number(error.params.offsetBytes ?? Number.POSITIVE_INFINITY);
  }

  #phase(lagMs: number | null): StreamPhase {
    const { state } = this.#applier;
    if (this.#fault) return { name: 'error', from: 'appliance', error: this.#fault.toJSON() };
    if (state.name === 'error')
      return { name: 'error', from: 'appliance', error: state.error.toJSON() };
    const gone = [...(this.#connection?.problems.values() ?? [])].find(isGone);
    const failed = this.#connection?.failed ?? gone;
    if (failed) return { name: 'error', from: 'agent', error: failed };
    if (this.#intake.name === 'held') return { name: 'held', reason: this.#intake.reason };
    if (state.name === 'waiting') {
      return { name: 'catching-up', reason: `applying waits for a checkpoint: ${state.reason}` };
    }
    if (!this.#connection?.ready) {
      const reason = this.#connection ? 'the agent is taking up the stream' : this.#lastDisconnect;
      return { name: 'waiting-for-agent', reason };
    }
    const open = this.#durable.disks.filter(({ mirror }) => mirror.name !== 'done');
    if (open.length > 0) {
      return {
        name: 'mirroring',
        reason: [...new Set(open.map(({ mirror }) => mirror.reason))].join('; '),
      };
    }
    if (this.#durable.order.name === 'lost') {
      return { name: 'catching-up', reason: this.#durable.order.reason };
    }
    const status = this.#connection.status;
    if (status?.mode === 'tracking') {
      return { name: 'catching-up', reason: status.reason ?? 'order was lost' };
    }
    if (lagMs === null || lagMs > PROTECTED_LAG_MS) {
      return { name: 'catching-up', reason: 'replication lags behind the source server' };
    }
    if (!isWhole(this.#applied) || this.#journal.unappliedBytes > PROTECTED_BACKLOG_BYTES) {
      return { name: 'catching-up', reason: 'the journal is being applied to the replica disks' };
    }
    return { name: 'protected' };
  }

  #mode(): StreamView['mode'] {
    const { order, seq } = this.#durable;
    if (seq === 0) return { mode: 'none', reason: 'nothing has arrived yet', sinceMs: null };
    const status = this.#connection?.status;
    if (order.name === 'lost') {
      const reason = status?.mode === 'tracking' ? status.reason : order.reason;
      return { mode: 'tracking', reason, sinceMs: order.wallMs };
    }
    if (status?.mode === 'tracking') {
      return { mode: 'tracking', reason: status.reason, sinceMs: null };
    }
    if (order.name === 'resumed') {
      return { mode: 'draining', reason: order.reason, sinceMs: order.wallMs };
    }
    return { mode: 'ordered', reason: null, sinceMs: null };
  }

  #eta(): number | null {
    let left = 0;
    for (const { mirror } of this.#durable.disks) {
      if (mirror.name === 'needed') left += mirror.endBytes - mirror.startBytes;
      if (mirror.name === 'running') left += mirror.endBytes - mirror.cursorBytes;
    }
    const perSecond = this.#mirrorRate.perSecond();
    return left === 0 || perSecond <= 0 ? null : Math.ceil(left / perSecond);
  }
}

/** A page of the point index could not be written: a restart reads the journal instead, which holds the same. */
const notUrgent = () => {};
const NONE_EXCLUDED = { files: 0, bytes: 0 };
/** Nothing that is written to such a disk is captured. */
const isGone = (error: SerialisedError): boolean => error.code === 'UND_CAPTURE_DISK_NOT_FOUND';

const yes = () => true;
const no = () => false;

function viewExcluded(status: ControlOf<'status'> | null, index: number) {
  if (!status?.excluded) return null;
  const { files, bytes } = status.excluded.find(({ disk }) => disk === index) ?? NONE_EXCLUDED;
  return { files, bytes };
}

function viewMirror(mirror: MirrorState): StreamMirror {
  const { kind, reason } = mirror;
  const totalBytes = mirror.endBytes - mirror.startBytes;
  switch (mirror.name) {
    case 'needed':
      return { state: 'needed', kind, reason, totalBytes, doneBytes: 0, skippedBytes: 0 };
    case 'running':
      return {
        state: 'running',
        kind,
        reason,
        totalBytes,
        doneBytes: mirror.cursorBytes - mirror.startBytes,
        skippedBytes: mirror.skippedBytes,
      };
    case 'done':
      return {
        state: 'done',
        kind,
        reason,
        totalBytes,
        doneBytes: totalBytes,
        skippedBytes: mirror.skippedBytes,
      };
  }
}
