/**
 * The agent's side of one job's stream: captured writes and mirror reads become numbered frames, frames go to the
 * appliance and stay in the window until they are acknowledged, and only then is the capture's ring given back.
 *
 * docs/stream.md says why each order of things is as it is.
 */
import { randomUUID } from 'node:crypto';
import { mkdir } from 'node:fs/promises';
import { totalmem } from 'node:os';
import { join } from 'node:path';
import type { CompareDisks } from '../protocol/compare-disks.ts';
import { type ControlMessage, type ControlOf, toErrorMessage } from '../protocol/control.ts';
import { asUndError, type UndError, undError } from '../protocol/errors.ts';
import type { FrameExtent } from '../protocol/frame.ts';
import type { HookReport, Mark } from '../protocol/marks.ts';
import type {
  BlockReader,
  Capture,
  CaptureEvent,
  CaptureStart,
  CaptureStatus,
  Extent,
} from './capture/capture.ts';
import { ringBytesFor, windowBytesFor } from './capture/ring-size.ts';
import type { HashQuery } from './mirror/compare.ts';
import type { ExcludedFile, Verdict } from './mirror/excluded-files.ts';
import { Exclusions } from './mirror/exclusions.ts';
import { type MirrorAsk, type MirrorHost, runMirror } from './mirror/mirror-run.ts';
import { runReread } from './mirror/reread.ts';
import { SwapAreas } from './mirror/swap-areas.ts';
import { type Span, Touched } from './mirror/touched.ts';
import type { Unneeded } from './mirror/unneeded.ts';
import { Verifications } from './mirror/verifications.ts';
import type { VerifyHost } from './mirror/verify-run.ts';
import { Framing } from './queue/framing.ts';
import { Window } from './queue/window.ts';
import { type PointTaken, PointTaker } from './quiesce/point-taker.ts';
import type { QuiesceRequest } from './quiesce/quiesce.ts';
import {
  type Carried,
  compareAfter,
  dropCarried,
  mayCarry,
  readCarried,
} from './restart/carried.ts';
import type { EarlyBoot } from './restart/early-boot.ts';
import { AckNote } from './send/ack-note.ts';
import { LinkMeter } from './send/link-meter.ts';
import { Order } from './send/order.ts';
import { decideResume, type Remembered } from './send/resume.ts';
import { TokenBucket } from './send/token-bucket.ts';
import { cpuPercent, ownUsage } from './service/usage.ts';

/** What the stream needs of a connection; protocol/link.ts is one. */
export interface StreamLink {
  readonly closed: boolean;
  send(message: ControlMessage): void;
  sendFrame(frame: Buffer): Promise<void>;
  close(error?: UndError): void;
}

export interface SourceStreamOptions {
  /** A capture that is not started. Called again after the helper died. */
  createCapture(): Capture;
  openReader(devicePath: string): Promise<BlockReader>;
  /** Where the capture's programs and maps are pinned, in the BPF file system. */
  pinDir: string;
  /**
   * On a tmpfs, never on a disk: each acknowledgement is noted here, and a note on a protected disk would be a write
   * to capture and acknowledge in turn. It lives as long as the pinned capture does, until the reboot.
   */
  runDir: string;
  /** What of a disk a mirror need not read, by maps that may be trusted. */
  unneeded?(devicePath: string, sizeBytes: number, exclusions: string[]): Promise<Unneeded>;
  /** `major:minor` of the disk or of its partition that begins there; null: there is none. */
  deviceAt?(devicePath: string, sizeBytes: number, offsetBytes: number): Promise<string | null>;
  /** Whether files that were left out are still where nobody misses their content. */
  checkExcluded?(files: ExcludedFile[], exclusions: string[]): Promise<Verdict[]>;
  /** Sorted spans of a disk that are active swap, without the header pages. */
  activeSwap?(devicePath: string, sizeBytes: number): Promise<Span[]>;
  /** Writes what the file systems on these disks hold in memory to the disks, before the final mark. */
  flush?(devicePaths: readonly string[]): Promise<void>;
  /** Brings the applications to rest around a mark; agent/quiesce/quiesce.ts. Without it points are crash-consistent. */
  quiesce?(request: QuiesceRequest): Promise<HookReport[]>;
  /** Keeps the machine ready for planned restarts that are carried over; agent/restart/early-boot.ts. */
  earlyBoot?: Pick<EarlyBoot, 'follow' | 'state' | 'settle' | 'idle'>;
  log?(level: 'info' | 'warning' | 'error', text: string): void;
  consumerTimeoutMs?: number;
  windowBytes?: number;
}

type Job = ControlOf<'configureJob'>;

/** A little less than a second: with a late timer, too, there is a clock mark in each second. */
const STATUS_MS = 900;
/** For so long a file that leaves an excluded folder may be missing on the replica. */
const EXCLUDED_CHECK_MS = 5_000;
const RETRY_MIN_MS = 3_000;
const RETRY_MAX_MS = 60_000;
const MIRROR_RETRY_MS = 10_000;
const REREAD_RETRY_MS = 5_000;
/** Mirror frames keep so little on the way that a captured write behind them waits no longer than this. */
const MIRROR_AHEAD_MS = 400;
const MIRROR_AHEAD_MIN_BYTES = 2 * 1024 * 1024;
/** A connection that the stream is being sent on. */
interface Attached {
  link: StreamLink;
  abort: AbortController;
  /** The frame to be sent next. */
  nextSeq: number;
  /** The appliance takes frames. */
  open: boolean;
}

class Stopped extends Error {}

/** Where `understudy-capture early` says what it has brought over a restart. */
const carriedPath = ({ runDir }: SourceStreamOptions): string => join(runDir, 'carried.json');

export class SourceStream {
  readonly #options: SourceStreamOptions;
  #job: Job | undefined;
  #session: Session | undefined;
  #link: StreamLink | undefined;
  #retry: NodeJS.Timeout | undefined;
  /** Configuration, start and stop come one after the other. */
  #chain: Promise<unknown> = Promise.resolve();

  constructor(options: SourceStreamOptions) {
    this.#options = options;
  }

  /**
   * Take up the job of an earlier process before any link is there: its capture goes on in the kernel, and by being
   * adopted it keeps copying. Nothing is read from it until the appliance has said where its journal ends.
   * @throws UND_CAPTURE_…
   */
  async adopt(job: Job): Promise<void> {
    await this.#inOrder(async () => {
      this.#job = job;
      this.#session ??= await Session.start(this.#options, job, () => this.#onSessionDied());
    });
  }

  /** A welcomed link. The caller hands every control message that it does not know to `control`. */
  connected(link: StreamLink): void {
    this.#link = link;
  }

  disconnected(): void {
    this.#link = undefined;
    this.#session?.unlink();
  }

  /** Messages of other rooms are passed over. */
  async control(message: ControlMessage): Promise<void> {
    switch (message.type) {
      case 'configureJob':
        // Not awaited: attaching a capture may take seconds, and pings must be heard meanwhile.
        this.#take(message);
        return;
      case 'stopJob':
        this.#inOrder(async () => {
          if (this.#job?.jobId !== message.jobId) return;
          await this.#end(true);
          this.#job = undefined;
        }).catch((error) => this.#failed(message.jobId, error));
        return;
      case 'takePoint':
        if (this.#link) this.#takePoint(message, this.#link);
        return;
      default:
        this.#session?.control(message);
    }
  }

  /**
   * Put the final mark of a planned failover into the stream, the file systems flushed and at rest.
   * @throws UND_POINT_FAILED
   */
  async finalMark(ask: ControlOf<'finalMark'>): Promise<PointTaken> {
    if (this.#session && this.#job?.jobId === ask.jobId) {
      const { requestId, jobId } = ask;
      const name = 'Final state, before a planned failover';
      return this.#session.takePoint({ requestId, jobId, name, quiesce: true }, true);
    }
    throw undError('UND_POINT_FAILED', {
      job: ask.jobId,
      reason: 'the agent has no stream of it',
    });
  }

  /** Not awaited: hooks may take a minute. Answers on the link that asked: on another one nobody waits for it. */
  #takePoint(ask: ControlOf<'takePoint'>, link: StreamLink): void {
    const answer = (
      given: Pick<ControlOf<'pointTaken'>, 'seq' | 'point' | 'postHooks' | 'error'>,
    ) => {
      if (!link.closed) link.send({ type: 'pointTaken', requestId: ask.requestId, ...given });
    };
    const take = async () => {
      if (this.#session && this.#job?.jobId === ask.jobId) return this.#session.takePoint(ask);
      throw undError('UND_POINT_FAILED', {
        job: ask.jobId,
        reason: 'the agent has no stream of it',
      });
    };
    take().then(answer, (error) => {
      const coded = asUndError(error);
      this.#options.log?.('warning', coded.message);
      answer({ error: toErrorMessage(coded) });
    });
  }

  /** With `unpin` the capture is taken off the disks, else it goes on in the kernel. */
  async stop(options: { unpin: boolean }): Promise<void> {
    clearTimeout(this.#retry);
    // The capture goes on over a shutdown of the machine: what lies on the disks is looked at once more for it.
    const settled = options.unpin ? undefined : this.#options.earlyBoot?.settle();
    await this.#inOrder(() => this.#end(options.unpin));
    await settled;
    await this.#options.earlyBoot?.idle();
  }

  /** Configure, and again after a while if it fails: the helper of before may still be ending, say. */
  #take(job: Job, retryMs = RETRY_MIN_MS): void {
    clearTimeout(this.#retry);
    const link = this.#link;
    this.#inOrder(() => this.#configure(job)).catch((error) => {
      this.#failed(job.jobId, error);
      if (this.#link !== link || link?.closed) return;
      this.#retry = setTimeout(() => {
        if (this.#link === link && !link?.closed)
          this.#take(job, Math.min(retryMs * 2, RETRY_MAX_MS));
      }, retryMs).unref();
    });
  }

  #inOrder<T>(act: () => Promise<T>): Promise<T> {
    const mine = this.#chain.then(act);
    this.#chain = mine.catch(() => {});
    return mine;
  }

  async #end(unpin: boolean): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    await session?.stop(unpin);
    if (unpin) this.#options.earlyBoot?.follow(false, []);
  }

  async #configure(job: Job): Promise<void> {
    const link = this.#link;
    if (!link || link.closed) return;
    if (this.#session && (this.#job?.jobId !== job.jobId || !sameCapture(this.#job, job))) {
      await this.#end(this.#job?.jobId !== job.jobId);
    }
    this.#job = job;
    this.#session ??= await Session.start(this.#options, job, () => this.#onSessionDied());
    await this.#session.configure(job, link);
  }

  #failed(jobId: string, error: unknown): void {
    const coded = asUndError(error);
    this.#options.log?.('error', coded.message);
    this.#link?.send({ type: 'jobFailed', jobId, error: toErrorMessage(coded) });
  }

  /** The helper or the reader of the ring is gone; the capture itself is pinned. Connect anew and adopt it. */
  #onSessionDied(): void {
    this.#inOrder(async () => {
      await this.#end(false).catch(() => {});
      this.#link?.close(
        undError('UND_LINK_CLOSED', { reason: 'the capture helper was restarted' }),
      );
    }).catch(() => {});
  }
}

/** Only another ring, or a disk that was added or taken away, asks for another capture; sizes are followed while it runs. */
const sameCapture = (a: Job, b: Job): boolean =>
  a.ringBytes === b.ringBytes &&
  a.disks.length === b.disks.length &&
  a.disks.every(({ index, devicePath }) =>
    b.disks.some((other) => other.index === index && other.devicePath === devicePath),
  );

/** A started capture and everything that hangs on it. */
class Session {
  readonly #options: SourceStreamOptions;
  readonly #capture: Capture;
  readonly #start: CaptureStart;
  readonly #died: () => void;
  readonly #stopping = new AbortController();
  readonly #ackNote: AckNote;
  #job: Job;
  #remembered: Remembered | null;
  /** What was brought over the last restart of the machine; null once it was used. */
  #carried: Carried | { reason: string } | null;
  #window: Window | undefined;
  #consumer: Promise<void> | undefined;
  #releasedPos: number;
  readonly #framing: Framing;
  readonly #points: PointTaker;
  readonly #order: Order;
  readonly #linkMeter = new LinkMeter(performance.now());
  #trackers = new Map<number, Set<Touched>>();
  #mirrors = new Map<
    number,
    { ask: MirrorAsk; abort: AbortController; cursorBytes: number; skippedBytes: number }
  >();
  #waitingAsks = new Map<number, MirrorAsk>();
  readonly #verifications: Verifications;
  #rereading: AbortController | undefined;
  #rereadAgain = false;
  #hashRequests = new Map<
    string,
    { resolve(hashes: Buffer): void; reject(error: unknown): void }
  >();
  #bucket: TokenBucket;
  #attached: Attached | undefined;
  #ackedBytes = 0;
  #ackRate = { atMs: 0, bytes: 0, perSec: 0 };
  #readBytes = 0;
  #statusTimer: NodeJS.Timeout | undefined;
  readonly #swap: SwapAreas;
  readonly #exclusions: Exclusions;

  private constructor(
    options: SourceStreamOptions,
    job: Job,
    capture: Capture,
    start: CaptureStart,
    ackNote: AckNote,
    remembered: Remembered | null,
    carried: Carried | { reason: string } | null,
    died: () => void,
  ) {
    this.#options = options;
    this.#job = job;
    this.#capture = capture;
    this.#start = start;
    this.#remembered = remembered;
    this.#carried = carried;
    this.#died = died;
    this.#ackNote = ackNote;
    this.#swap = new SwapAreas(join(options.runDir, `swap-${job.jobId}.json`));
    this.#exclusions = new Exclusions(join(options.runDir, `excluded-${job.jobId}.json`));
    this.#releasedPos = Number(start.consumerPos);
    this.#bucket = new TokenBucket(job.bandwidthLimitBytesPerSec, performance.now());
    this.#framing = new Framing({
      epoch: () => this.#epoch!.epoch,
      job: () => this.#job,
      isLeftOut: (disk, offsetBytes, lengthBytes) =>
        this.#swap.covers(disk, offsetBytes, lengthBytes),
      trackers: (disk) => this.#trackers.get(disk),
      opaque: (disk) => this.#loseOrder(`a pass-through command went to disk ${disk}`, [disk]),
      point: (point, exact) => this.#placePoint(point, exact),
      orderHeld: () => this.#order.held,
      attached: () => this.#attached !== undefined,
    });
    this.#points = new PointTaker({
      jobName: job.jobId,
      devicePaths: () => this.#job.disks.map(({ devicePath }) => devicePath),
      putMark: () => this.#capture.mark(),
      quiesce: options.quiesce,
    });
    this.#verifications = new Verifications({
      host: (signal) => this.#verifyHost(signal),
      isHeld: () => this.#order.held,
      isMirroring: () => this.#mirrors.size > 0 || this.#waitingAsks.size > 0,
      connection: () => this.#attached?.abort.signal ?? null,
      failed: (ask, error) => {
        this.#log('error', `verification of disk ${ask.disk}: ${error.message}`);
        this.#notify(error, ask.disk);
      },
      log: (text) => this.#log('info', text),
    });
    this.#order = new Order(
      {
        capture,
        disks: () => this.#job.disks,
        mark: (mark) => this.#framing.mark(mark),
        ackedSeq: () => this.#window!.firstSeq - 1,
        until: (condition, signal) => this.#window!.until(condition, signal),
        consumedPos: () => this.#framing.consumedPos,
        nearlySent: () => this.#window!.bytes < this.#window!.limitBytes / 4,
        linkPerSec: () => this.#linkPerSec(),
        connection: () => this.#attached?.abort.signal ?? null,
        interruptMirrors: (reason) => this.#interruptMirrors(reason),
        resumed: () => this.#nextMirror(),
        changed: () => this.#tellStatus(),
        log: (level, text) => this.#log(level, text),
      },
      this.#stopping.signal,
    );
  }

  static async start(options: SourceStreamOptions, job: Job, died: () => void): Promise<Session> {
    await mkdir(options.runDir, { recursive: true, mode: 0o700 });
    const capture = options.createCapture();
    const early: CaptureEvent[] = [];
    const unlisten = capture.onEvent((event) => early.push(event));
    const start = await capture.start(
      job.disks.map(({ index, devicePath, sizeBytes }) => ({ index, devicePath, sizeBytes })),
      {
        ringBytes: ringBytesFor(totalmem(), job.ringBytes),
        pinDir: options.pinDir,
        consumerTimeoutMs: options.consumerTimeoutMs,
      },
    );
    try {
      if (start.notAdoptedBecause) {
        options.log?.('warning', `the capture was not adopted: ${start.notAdoptedBecause}`);
      }
      const status = await capture.status();
      const ackNote = new AckNote(join(options.runDir, `stream-${job.jobId}.json`), (reason) =>
        options.log?.('warning', `the last acknowledgement cannot be noted: ${reason}`),
      );
      const remembered = await ackNote.read();
      const carried = await readCarried(carriedPath(options));
      const session = new Session(options, job, capture, start, ackNote, remembered, carried, died);
      session.#framing.setWallClock(status);
      // Also before the appliance is there: a shutdown may come first.
      options.earlyBoot?.follow(job.carryRestarts ?? false, job.disks);
      unlisten();
      capture.onEvent((event) => session.#onEvent(event));
      for (const event of early) session.#onEvent(event);
      capture.onModeChange((mode) => {
        if (mode.mode === 'tracking') session.#loseOrder(trackingReason(mode.reason));
      });
      return session;
    } catch (error) {
      // Its helper would hold the pins for as long as this process lives, and every later try would find them taken.
      await capture.stop({ unpin: false }).catch(() => {});
      throw error;
    }
  }

  get #windowBytes(): number {
    return (
      this.#options.windowBytes ?? windowBytesFor(ringBytesFor(totalmem(), this.#job.ringBytes))
    );
  }

  get #signal(): AbortSignal {
    return this.#stopping.signal;
  }

  #log(level: 'info' | 'warning' | 'error', text: string): void {
    this.#options.log?.(level, text);
  }

  // ---- connection ----------------------------------------------------------------------------------------------

  /** The appliance said where its journal stands: go on there, or ask for a new epoch. */
  async configure(job: Job, link: StreamLink): Promise<void> {
    this.unlink();
    this.#job = job;
    this.#bucket.setRate(job.bandwidthLimitBytesPerSec, performance.now());
    const window = this.#window;
    const remote = {
      journalId: job.journalId,
      epoch: job.streamEpoch,
      durableSeq: job.durable.seq,
      capturePos: job.durable.capturePos,
      binding: job.binding,
    };
    const decision = decideResume(
      remote,
      window && this.#epoch
        ? { ...this.#epoch, firstSeq: window.firstSeq, nextSeq: window.nextSeq }
        : null,
      this.#remembered,
      {
        captureId: this.#start.captureId,
        bootId: this.#start.bootId,
        releasedPos: this.#releasedPos,
      },
    );
    if (decision.kind === 'new-epoch') {
      const carried = this.#carried;
      let { reason } = decision;
      let carries = false;
      if (carried && 'reason' in carried) {
        // Of another need it says nothing.
        const isRestart = job.binding !== null && job.binding.bootId !== this.#start.bootId;
        if (isRestart) reason = `${reason} (${carried.reason})`.slice(0, 1000);
      } else if (carried && !this.#consumer) {
        carries = mayCarry(carried, this.#start.captureId, remote, this.#remembered);
      }
      this.#log('warning', `a new stream epoch is needed: ${reason}`);
      link.send({
        type: 'needEpoch',
        jobId: job.jobId,
        streamEpoch: job.streamEpoch,
        reason,
        ...(carries && { carried: this.#start.captureId }),
      });
      return;
    }
    if (!this.#consumer) {
      await this.#followSwap();
      if (this.#carried && 'captureId' in this.#carried) await this.#renameExclusions();
      await this.#followExclusions();
    }
    if (decision.kind !== 'window') {
      // Frames of this process that the appliance does not want would be read again out of order: only the ring
      // knows the order, and a reader of it can't go back. A process that holds frames starts its capture anew.
      if (this.#consumer) {
        this.#died();
        return;
      }
      this.#begin(job, decision.kind === 'capture' ? decision.fromPos : null);
      // The agent before this one may have died between the loss and the naming of the disks that missed writes.
      if (decision.kind === 'capture' && job.orderLost) {
        this.#loseOrder(job.orderLost.reason, job.orderLost.compare);
      }
    } else {
      this.#acked(decision.fromSeq - 1);
    }
    this.#attach(link, job.durable.seq + 1, job.intakeOpen);
    link.send({
      type: 'jobReady',
      jobId: job.jobId,
      streamEpoch: job.streamEpoch,
      nextSeq: job.durable.seq + 1,
    });
    this.#tellGone();
    this.#order.poke();
    this.#reread();
  }

  #epoch: { journalId: string; epoch: number } | undefined;

  #begin(job: Job, fromPos: number | null): void {
    this.#epoch = { journalId: job.journalId, epoch: job.streamEpoch };
    this.#window = new Window(job.durable.seq + 1, this.#windowBytes);
    this.#framing.begin(this.#window, fromPos ?? this.#releasedPos);
    if (fromPos === null) this.#markEpoch(job);
    else {
      this.#framing.goOnAt(BigInt(job.durable.bootTimeNs));
      this.#release(fromPos);
    }
    const mode = this.#capture.mode();
    if (mode.mode === 'tracking') this.#loseOrder(trackingReason(mode.reason));
    this.#consumer = this.#consume().catch((error) => {
      if (this.#signal.aborted) return;
      this.#log('error', `the capture cannot be read: ${asUndError(error).message}`);
      this.#died();
    });
    this.#statusTimer = setInterval(() => this.#tellStatus(), STATUS_MS);
  }

  /**
   * The epoch's first mark. If the dirty map has what the journal misses, order counts as lost here, and a drain is all
   * that has to follow; the appliance has agreed to that when it began the epoch.
   */
  #markEpoch(job: Job): void {
    const { captureId, bootId } = this.#start;
    const start = { type: 'epochStart' as const, captureId, bootId, reason: job.epochReason };
    const carried = this.#carried;
    this.#carried = null;
    const forget = () => void dropCarried(carriedPath(this.#options));
    const isOurs = job.carried === captureId;
    if (!isOurs || !carried || 'reason' in carried || carried.captureId !== captureId) {
      this.#framing.mark(start, forget);
      return;
    }
    const compare = compareAfter(carried, job.disks, job.orderLost?.compare ?? []);
    for (const [disk, reason] of Object.entries(carried.disks)) {
      if (reason) this.#log('warning', `disk ${disk} is compared: ${reason}`);
    }
    this.#framing.mark({ ...start, carried: { compare } }, forget);
    this.#loseOrder(job.epochReason, compare);
  }

  #attach(link: StreamLink, nextSeq: number, open: boolean): void {
    const attached = { link, abort: new AbortController(), nextSeq, open };
    this.#attached = attached;
    this.#send(attached).catch((error) => {
      if (attached.abort.signal.aborted) return;
      link.close(asUndError(error));
    });
  }

  unlink(): void {
    const attached = this.#attached;
    if (!attached) return;
    this.#attached = undefined;
    const gone = undError('UND_LINK_CLOSED', { reason: 'the connection to the appliance ended' });
    attached.abort.abort(gone);
    this.#waitingAsks.clear();
    this.#verifications.drop(gone);
    for (const mirror of this.#mirrors.values()) mirror.abort.abort(gone);
    for (const request of this.#hashRequests.values()) request.reject(gone);
    this.#hashRequests.clear();
  }

  async #send(attached: Attached): Promise<void> {
    const window = this.#window!;
    const { signal } = attached.abort;
    for (;;) {
      await window.until(
        () => attached.open && window.entry(attached.nextSeq) !== undefined,
        signal,
      );
      const entry = window.entry(attached.nextSeq)!;
      const frame = await entry.packed;
      const waitMs = this.#bucket.take(frame.length, performance.now());
      if (waitMs > 0) await pause(waitMs, signal);
      // `flow` may have come meanwhile, and an acknowledgement of this very frame after a reconnect.
      if (!attached.open || attached.nextSeq !== entry.seq) continue;
      attached.nextSeq++;
      await attached.link.sendFrame(frame);
      signal.throwIfAborted();
    }
  }

  control(message: ControlMessage): void {
    switch (message.type) {
      case 'ack':
        if (message.jobId === this.#job.jobId && this.#attached) {
          this.#ackedOn(this.#attached, message.seq);
        }
        break;
      case 'flow': {
        const attached = this.#attached;
        if (message.jobId !== this.#job.jobId || !attached) break;
        attached.open = message.state === 'open';
        if (attached.open) {
          if (message.nextSeq < (this.#window?.firstSeq ?? 0)) {
            // Acknowledged frames are gone: only a handshake can say how to go on.
            attached.link.close(
              undError('UND_LINK_MESSAGE_INVALID', {
                reason: `frame ${message.nextSeq} is asked for again`,
              }),
            );
            break;
          }
          attached.nextSeq = message.nextSeq;
        }
        if (message.reason)
          this.#log('warning', `the appliance holds the stream: ${message.reason}`);
        this.#window?.poke();
        break;
      }
      case 'startMirror':
        if (message.jobId === this.#job.jobId && this.#attached) this.#askMirror(message);
        break;
      case 'startVerify':
        if (message.jobId === this.#job.jobId) this.#verifications.ask(message);
        break;
      case 'tuneJob':
        if (message.jobId !== this.#job.jobId) break;
        this.#job = {
          ...this.#job,
          compression: message.compression,
          bandwidthLimitBytesPerSec: message.bandwidthLimitBytesPerSec,
          exclusions: message.exclusions ?? this.#job.exclusions,
          carryRestarts: message.carryRestarts ?? this.#job.carryRestarts,
        };
        // What is no longer excluded is read at once.
        this.#excludedCheckedMs = Number.NEGATIVE_INFINITY;
        this.#bucket.setRate(message.bandwidthLimitBytesPerSec, performance.now());
        break;
      case 'hashes': {
        const request = this.#hashRequests.get(message.requestId);
        this.#hashRequests.delete(message.requestId);
        if (message.hashes !== undefined) request?.resolve(Buffer.from(message.hashes, 'base64'));
        else
          request?.reject(
            undError('UND_INTERNAL', { reason: message.error?.message ?? 'no hashes' }),
          );
        break;
      }
      default:
        break;
    }
  }

  /** @throws UND_LINK_MESSAGE_INVALID if the frame was not sent */
  #ackedOn({ nextSeq }: Attached, seq: number): void {
    if (seq >= nextSeq) {
      throw undError('UND_LINK_MESSAGE_INVALID', {
        reason: `an acknowledgement of frame ${seq}; the last one that was sent is ${nextSeq - 1}`,
      });
    }
    this.#acked(seq);
  }

  #acked(seq: number): void {
    const window = this.#window!;
    const before = window.bytes;
    const rawBefore = window.ackedRawBytes;
    const capturePos = window.ack(seq);
    if (capturePos === null) return;
    // What is folded in a batch takes no link, and what the source writes is counted before that.
    const captured = Math.max(0, capturePos - this.#releasedPos);
    const sent = window.ackedRawBytes - rawBefore;
    this.#linkMeter.acked(Math.max(captured, sent), window.bytes === 0);
    this.#countAck(before - this.#window!.bytes);
    this.#release(capturePos);
    this.#remembered = { ...this.#epoch!, ackedSeq: seq };
    this.#ackNote.write(this.#remembered);
    this.#order.poke();
  }

  #countAck(bytes: number): void {
    this.#ackedBytes += bytes;
    const now = performance.now();
    const elapsed = now - this.#ackRate.atMs;
    if (elapsed < 500) return;
    const perSec = ((this.#ackedBytes - this.#ackRate.bytes) * 1000) / elapsed;
    this.#ackRate = { atMs: now, bytes: this.#ackedBytes, perSec };
  }

  #release(pos: number): void {
    if (pos <= this.#releasedPos) return;
    this.#releasedPos = pos;
    this.#capture.release(BigInt(pos));
  }

  // ---- captured writes become frames ---------------------------------------------------------------------------

  async #consume(): Promise<void> {
    const window = this.#window!;
    for await (const batch of this.#capture.batches()) {
      await window.until(() => window.hasRoom, this.#signal);
      if (batch.order === 'lost' && this.#order.held) {
        // The batch says that writes are missing before the mode says why.
        const { mode } = await this.#capture.status();
        const reason = mode.mode === 'tracking' ? trackingReason(mode.reason) : UNKNOWN_LOSS;
        this.#loseOrder(reason);
      }
      await this.#points.known(batch);
      this.#framing.takeBatch(batch);
    }
    if (!this.#signal.aborted) throw new Error('the capture ended');
  }

  /** Put a mark into the stream; resolves when it is durable at the appliance. */
  async #ackedMark(mark: Mark, signal: AbortSignal): Promise<void> {
    let acked = false;
    this.#framing.mark(mark, () => {
      acked = true;
    });
    await this.#window!.until(() => acked, signal);
  }

  /** A batch is done: a point asked for by the mark in it is here. `exact`: nothing of the batch lies behind the mark. */
  #placePoint({ markId, bootNs }: { markId: bigint; bootNs: bigint }, exact: boolean): void {
    this.#points.at(markId, exact, (mark) => {
      const order = this.#order.state;
      if (order.name === 'lost') throw new Stopped(order.reason);
      return this.#framing.markAt(bootNs, mark);
    });
  }

  /** @throws UND_POINT_FAILED */
  async takePoint(ask: Omit<ControlOf<'takePoint'>, 'type'>, final = false): Promise<PointTaken> {
    const order = this.#order.state;
    const reason = this.#attached
      ? order.name === 'lost'
        ? order.reason
        : null
      : 'the stream is not being sent';
    if (reason !== null) throw undError('UND_POINT_FAILED', { job: ask.jobId, reason });
    if (final) await this.#options.flush?.(this.#job.disks.map(({ devicePath }) => devicePath));
    return this.#points.take(ask.requestId, ask.name, ask.quiesce, { final, atMs: ask.atMs });
  }

  // ---- order ---------------------------------------------------------------------------------------------------

  /** Before the stream begins there is no order to lose: its beginning looks at the mode itself. */
  #loseOrder(reason: string, compare: CompareDisks = []): void {
    if (!this.#window) return;
    if (this.#order.held) this.#framing.dropProofs();
    this.#order.lose(reason, compare);
  }

  /** What the link takes of captured bytes, as last measured; a limit that a person set counts as the link. */
  #linkPerSec(): number | null {
    const measured = this.#linkMeter.bytesPerSec(performance.now());
    return measured === null ? null : Math.min(measured, this.#bucket.bytesPerSec ?? measured);
  }

  /** Runs that were under way go on where they were when order is held again. */
  #interruptMirrors(reason: string): void {
    this.#verifications.drop(new Stopped(reason));
    for (const { ask, abort, cursorBytes, skippedBytes } of this.#mirrors.values()) {
      if (abort.signal.aborted) continue;
      if (!this.#waitingAsks.has(ask.disk)) {
        this.#waitingAsks.set(ask.disk, { ...ask, cursorBytes, skippedBytes });
      }
      abort.abort(new Stopped(reason));
    }
  }

  #onEvent(event: CaptureEvent): void {
    switch (event.kind) {
      case 'disk-resized':
        this.#resized.set(event.disk, event.newSizeBytes);
        this.#tellResized();
        break;
      case 'disk-gone':
        this.#log('error', `disk ${event.disk} is gone`);
        this.#gone.add(event.disk);
        this.#tellGone();
        break;
      case 'dirty-marked':
        this.#reread();
        break;
      case 'opaque-command':
        // In order it comes as a record of the ring; otherwise the disk joins those to be compared.
        if (!this.#order.held) {
          this.#loseOrder(`a pass-through command went to disk ${event.disk}`, [event.disk]);
        }
        break;
      case 'missed-events':
        this.#loseOrder(trackingReason('missed-event'), 'all');
        break;
      case 'helper-died':
        this.#log('error', event.error.message);
        if (!this.#signal.aborted) this.#died();
        break;
    }
  }

  #gone = new Set<number>();

  /** Told again on each connection: the disk may have gone while there was none. */
  #tellGone(): void {
    for (const disk of this.#gone) {
      const error = undError('UND_CAPTURE_DISK_NOT_FOUND', {
        disk: this.#job.disks.find(({ index }) => index === disk)?.devicePath ?? disk,
        reason: 'it is gone from the source server',
      });
      this.#notify(error, disk);
    }
  }

  #notify(error: UndError, disk: number): void {
    this.#attached?.link.send({
      type: 'notice',
      level: 'error',
      jobId: this.#job.jobId,
      disk,
      text: error.message.slice(0, 2000),
      error: toErrorMessage(error),
    });
  }

  #resized = new Map<number, number>();

  #tellResized(): void {
    for (const [disk, sizeBytes] of this.#resized) {
      const known = this.#job.disks.find(({ index }) => index === disk)?.sizeBytes ?? 0;
      if (sizeBytes <= known) this.#resized.delete(disk);
      else {
        this.#attached?.link.send({ type: 'diskResized', jobId: this.#job.jobId, disk, sizeBytes });
      }
    }
  }

  /** What stopped to be swap is read again as a whole: its writes were left out, and it may be anything by now. */
  async #followSwap(): Promise<void> {
    const { activeSwap } = this.#options;
    if (!activeSwap) return;
    const now = new Map<number, Span[]>();
    for (const { index, devicePath, sizeBytes } of this.#job.disks) {
      now.set(index, await activeSwap(devicePath, sizeBytes));
    }
    const marked = await this.#swap.follow(now, (disk, spans) =>
      this.#capture.markDirty(disk, spans),
    );
    if (marked) this.#reread();
  }

  #excludedCheckedMs = Number.NEGATIVE_INFINITY;

  /** What was noted before a restart names devices by numbers that may be those of others now. */
  async #renameExclusions(): Promise<void> {
    const { deviceAt } = this.#options;
    await this.#exclusions.rename(
      async (index, offsetBytes) => {
        const disk = this.#job.disks.find((one) => one.index === index);
        if (!disk || !deviceAt) return null;
        return deviceAt(disk.devicePath, disk.sizeBytes, offsetBytes);
      },
      (index, extents) => this.#markExcludedDirty(index, extents),
    );
  }

  async #markExcludedDirty(index: number, extents: Extent[]): Promise<void> {
    // A disk that is no longer the job's has no dirty map.
    const disk = this.#job.disks.find((one) => one.index === index);
    const within = extents.filter(
      ({ offsetBytes, lengthBytes }) => offsetBytes + lengthBytes <= (disk?.sizeBytes ?? 0),
    );
    if (within.length > 0) await this.#capture.markDirty(index, within);
  }

  /** What left its excluded place is read, as what stopped to be swap is: it was never sent. */
  async #followExclusions(): Promise<void> {
    const { checkExcluded } = this.#options;
    if (!checkExcluded) return;
    this.#excludedCheckedMs = performance.now();
    const marked = await this.#exclusions.follow(
      (files) => checkExcluded(files, this.#job.exclusions ?? []),
      (index, extents) => this.#markExcludedDirty(index, extents),
    );
    if (marked.size === 0) return;
    this.#log('info', `files left an excluded place on disks ${[...marked].join(', ')}`);
    this.#reread();
  }

  // ---- mirror --------------------------------------------------------------------------------------------------

  #askMirror(ask: MirrorAsk): void {
    this.#verifications.drop(new Stopped('a mirror is asked for'));
    const running = this.#mirrors.get(ask.disk);
    if (running && !running.abort.signal.aborted) {
      if (running.ask.run === ask.run) return;
      running.abort.abort(new Stopped('another run of the disk is asked for'));
    }
    this.#waitingAsks.set(ask.disk, { ...ask });
    this.#nextMirror();
  }

  /** One disk at a time: the disks of a server share its link, and a whole disk early is worth more than two halves. */
  #nextMirror(): void {
    if (this.#mirrors.size > 0 || !this.#order.held || !this.#attached) return;
    if (this.#rereading && this.#waitingAsks.size > 0) {
      // What it has taken would be missing from the run's own drain, and the run's end mark would claim it.
      this.#rereading.abort(new Stopped('a mirror run drains what is dirty'));
      return;
    }
    const [ask] = [...this.#waitingAsks.values()].sort((a, b) => a.disk - b.disk);
    if (!ask) return;
    this.#waitingAsks.delete(ask.disk);
    const abort = new AbortController();
    this.#mirrors.set(ask.disk, {
      ask,
      abort,
      cursorBytes: ask.cursorBytes,
      skippedBytes: ask.skippedBytes,
    });
    this.#log(
      'info',
      `${ask.kind} mirror of disk ${ask.disk} from byte ${ask.cursorBytes}: ${ask.reason}`,
    );
    runMirror(this.#mirrorHost(abort.signal), ask, abort.signal)
      .then(() => this.#log('info', `mirror of disk ${ask.disk} is done`))
      .catch((error) => {
        if (abort.signal.aborted || this.#signal.aborted) return;
        const coded = asUndError(error);
        this.#log('error', `mirror of disk ${ask.disk}: ${coded.message}`);
        this.#notify(coded, ask.disk);
        const { cursorBytes, skippedBytes } = this.#mirrors.get(ask.disk) ?? ask;
        const attached = this.#attached;
        setTimeout(() => {
          // A newer connection or a newer need has asked for what it wants itself.
          if (this.#attached !== attached || this.#mirrors.has(ask.disk)) return;
          if (!this.#waitingAsks.has(ask.disk)) {
            this.#askMirror({ ...ask, cursorBytes, skippedBytes });
          }
        }, MIRROR_RETRY_MS).unref();
      })
      .finally(() => {
        this.#mirrors.delete(ask.disk);
        this.#nextMirror();
        this.#verifications.poke();
        this.#reread();
      });
  }

  #mirrorHost(signal: AbortSignal): MirrorHost {
    const devicePath = (disk: number) =>
      this.#job.disks.find(({ index }) => index === disk)?.devicePath ?? '';
    return {
      track: (disk) => this.#track(disk),
      markStart: async ({ disk, run, kind, reason, startBytes, endBytes }) => {
        await this.#ackedMark(
          { type: 'mirrorStart', disk, run, kind, reason, startBytes, endBytes },
          signal,
        );
      },
      markEnd: ({ disk, run }) => this.#ackedMark({ type: 'mirrorEnd', disk, run }, signal),
      barrier: async () => {
        await this.#capture.barrier();
      },
      takeDirty: (disk, maxBytes, fromBytes) => this.#capture.takeDirty(disk, maxBytes, fromBytes),
      clearDirty: (disk, extents) => this.#capture.clearDirty(disk, extents),
      markDirty: (disk, extents) => this.#capture.markDirty(disk, extents),
      openReader: (disk) => this.#options.openReader(devicePath(disk)),
      unneeded: async (disk) => {
        const size = this.#job.disks.find(({ index }) => index === disk)?.sizeBytes ?? 0;
        const exclusions = this.#job.exclusions ?? [];
        const found = await this.#options.unneeded?.(devicePath(disk), size, exclusions);
        const { free, excluded } = found ?? { free: [], excluded: [] };
        await this.#exclusions.add(disk, excluded);
        const files = excluded.flatMap(({ spans }) => spans);
        const all = [...free, ...files, ...this.#swap.spans(disk)];
        return all.sort((a, b) => a.offsetBytes - b.offsetBytes);
      },
      free: async (disk) => {
        const size = this.#job.disks.find(({ index }) => index === disk)?.sizeBytes ?? 0;
        return (await this.#options.unneeded?.(devicePath(disk), size, []))?.free ?? [];
      },
      settle: () => this.#followExclusions(),
      leftOut: (disk) => this.#swap.spans(disk),
      replicaHashes: (query) => this.#replicaHashes(query),
      room: () => this.#room(signal),
      overtaken: () => this.#overtaken(signal),
      emit: (ask, cursorBytes, skippedBytes, extents) =>
        this.#emitMirror(ask.disk, ask.run, cursorBytes, skippedBytes, extents),
      progress: (ask, cursorBytes, skippedBytes) => {
        const mirror = this.#mirrors.get(ask.disk);
        if (mirror) Object.assign(mirror, { cursorBytes, skippedBytes });
      },
      read: (bytes) => {
        this.#readBytes += bytes;
      },
    };
  }

  #verifyHost(signal: AbortSignal): VerifyHost {
    const mirror = this.#mirrorHost(signal);
    return {
      ...mirror,
      markStart: ({ disk, run }) => this.#ackedMark({ type: 'verifyStart', disk, run }, signal),
      markVerified: ({ disk, run }, section) =>
        this.#ackedMark({ type: 'verified', disk, run, ...section }, signal),
      // Files that an earlier run left out are noted, whether a run of now would leave them out or not.
      unneeded: async (disk) => {
        const all = [...(await mirror.unneeded(disk)), ...(await this.#exclusions.spans(disk))];
        return all.sort((a, b) => a.offsetBytes - b.offsetBytes);
      },
      missing: async (disk) => [
        ...this.#swap.spans(disk),
        ...(await this.#exclusions.spans(disk)),
        ...(await this.#capture.dirtyExtents(disk)),
      ],
      sequenced: () => this.#window!.nextSeq - 1,
      emitRepair: (disk, extents) => this.#emitMirror(disk, 0, 0, 0, extents),
    };
  }

  #track(disk: number): { touched: Touched; stop(): void } {
    const size = this.#job.disks.find(({ index }) => index === disk)?.sizeBytes ?? 0;
    const touched = new Touched(size);
    const set = this.#trackers.get(disk) ?? new Set();
    this.#trackers.set(disk, set.add(touched));
    return { touched, stop: () => set.delete(touched) };
  }

  async #room(signal: AbortSignal): Promise<void> {
    const window = this.#window!;
    await window.until(() => window.bytes < this.#mirrorAheadBytes(), signal);
  }

  async #overtaken(signal: AbortSignal): Promise<void> {
    const { mode, producerPos } = await this.#capture.status();
    // A read may have seen a write that is in no record: what is behind it must not pass for a point.
    if (mode.mode === 'tracking') {
      this.#loseOrder(trackingReason(mode.reason));
      throw new Stopped('order was lost');
    }
    const pos = Number(producerPos);
    await this.#window!.until(() => this.#framing.consumedPos >= pos, signal);
    signal.throwIfAborted();
  }

  #mirrorAheadBytes(): number {
    const perSec = Math.min(
      this.#ackRate.perSec,
      this.#bucket.bytesPerSec ?? Number.POSITIVE_INFINITY,
    );
    const ahead = Math.max((perSec * MIRROR_AHEAD_MS) / 1000, MIRROR_AHEAD_MIN_BYTES);
    return Math.min(ahead, this.#window!.limitBytes / 2);
  }

  #emitMirror(
    disk: number,
    run: number,
    cursorBytes: number,
    skippedBytes: number,
    extents: FrameExtent[],
    onAcked?: () => void,
  ): void {
    this.#framing.mirror({ disk, run, cursorBytes, skippedBytes }, extents, onAcked);
  }

  #replicaHashes({ mask, ...query }: HashQuery): Promise<Buffer> {
    const requestId = randomUUID();
    const attached = this.#attached;
    if (!attached)
      return Promise.reject(undError('UND_LINK_CLOSED', { reason: 'before hashes came' }));
    return new Promise((resolve, reject) => {
      this.#hashRequests.set(requestId, { resolve, reject });
      attached.link.send({
        type: 'hashRequest',
        requestId,
        jobId: this.#job.jobId,
        ...query,
        mask: mask?.toString('base64'),
      });
    });
  }

  #rereadRetry: NodeJS.Timeout | undefined;

  /** Blocks whose content issue order can't tell (failed or overlapping writes) are read again. */
  #reread(): void {
    if (this.#rereading) {
      this.#rereadAgain = true;
      return;
    }
    const attached = this.#attached;
    if (!attached || !this.#order.held) return;
    const abort = new AbortController();
    this.#rereading = abort;
    this.#rereadAgain = false;
    const signal = AbortSignal.any([attached.abort.signal, abort.signal]);
    const act = async () => {
      const { dirtyBytes } = await this.#capture.status();
      for (const { index, devicePath } of this.#job.disks) {
        // A disk that is being mirrored is read anyway, and its run takes what is dirty.
        if (!dirtyBytes[index] || this.#mirrors.has(index) || this.#waitingAsks.has(index))
          continue;
        await runReread(
          {
            ...this.#mirrorHost(signal),
            openReader: () => this.#options.openReader(devicePath),
            emitReread: (extents, onAcked) => this.#emitMirror(index, 0, 0, 0, extents, onAcked),
            untilAcked: (isAcked) => this.#window!.until(isAcked, signal),
          },
          index,
          signal,
        );
      }
    };
    act()
      .catch((error) => {
        if (signal.aborted || this.#signal.aborted) return;
        this.#log('warning', `blocks could not be read again: ${asUndError(error).message}`);
        this.#rereadRetry = setTimeout(() => {
          this.#rereadRetry = undefined;
          this.#reread();
        }, REREAD_RETRY_MS).unref();
      })
      .finally(() => {
        this.#rereading = undefined;
        this.#nextMirror();
        if (this.#rereadAgain) this.#reread();
      });
  }

  // ---- status --------------------------------------------------------------------------------------------------

  #lastStatus = {
    atMs: performance.now(),
    readBytes: 0,
    writtenBytes: 0,
    agentCpuMs: ownUsage().cpuMs,
    helperCpuMs: 0,
  };

  /** Each second, and when order changes: what a person sees must not be a second behind. */
  #tellStatus(): void {
    this.#status().catch((error) => {
      if (!this.#signal.aborted) this.#log('warning', `status: ${asUndError(error).message}`);
    });
  }

  async #status(): Promise<void> {
    const status = await this.#capture.status();
    const window = this.#window;
    if (!window || this.#signal.aborted) return;
    this.#framing.setWallClock(status);
    if (status.mode.mode === 'tracking') this.#loseOrder(trackingReason(status.mode.reason));
    const pos = Number(status.producerPos);
    if (this.#order.held && status.mode.mode === 'ordered') {
      this.#framing.proveClockAt(status.bootNs, pos);
    }
    this.#tellResized();
    // The event of a mark may have come before the mark was there.
    const isDirty = status.dirtyBytes.some((bytes) => bytes > 0);
    if (isDirty && !this.#rereading && !this.#rereadRetry) this.#reread();
    await this.#followSwap();
    // A job that was ended meanwhile has had everything taken off.
    if (this.#signal.aborted) return;
    this.#options.earlyBoot?.follow(this.#job.carryRestarts ?? false, this.#job.disks);
    const now = performance.now();
    if (now - this.#excludedCheckedMs >= EXCLUDED_CHECK_MS) {
      this.#followExclusions().catch((error) => {
        if (!this.#signal.aborted) this.#log('warning', asUndError(error).message);
      });
    }
    const seconds = (now - this.#lastStatus.atMs) / 1000;
    const rate = (bytes: number) => Math.max(0, Math.round(bytes / seconds));
    this.#measure(status);
    const order = this.#order.state;
    const attached = this.#attached;
    const own = ownUsage();
    attached?.link.send({
      type: 'status',
      jobId: this.#job.jobId,
      mode: order.name === 'lost' ? 'tracking' : 'ordered',
      reason: order.name === 'lost' ? `${order.reason}; ${order.waitsFor}` : null,
      bootMs: Number(status.bootNs) / 1e6,
      // Without order only the dirty map knows what changed.
      backlogBytes:
        Math.max(0, pos - this.#releasedPos) + status.dirtyBytes.reduce((sum, n) => sum + n, 0),
      ring: { sizeBytes: status.ringBytes, usedBytes: Math.max(0, status.backlogBytes) },
      mirrors: [...this.#mirrors.values()].map(({ ask, cursorBytes, skippedBytes }) => ({
        disk: ask.disk,
        run: ask.run,
        doneBytes: cursorBytes - ask.startBytes,
        totalBytes: ask.endBytes - ask.startBytes,
        skippedBytes,
      })),
      carry: this.#options.earlyBoot?.state ?? undefined,
      excluded: this.#exclusions.totals(),
      readBytesPerSec: rate(this.#readBytes - this.#lastStatus.readBytes),
      writeBytesPerSec: rate(this.#framing.writtenBytes - this.#lastStatus.writtenBytes),
      usage: {
        agentCpuPercent: cpuPercent(this.#lastStatus.agentCpuMs, own.cpuMs, seconds * 1000),
        agentRssBytes: own.rssBytes,
        helperCpuPercent: cpuPercent(
          this.#lastStatus.helperCpuMs,
          status.helper.cpuMs,
          seconds * 1000,
        ),
        helperRssBytes: status.helper.rssBytes,
        windowBytes: window.limitBytes,
      },
    });
    this.#lastStatus = {
      atMs: now,
      readBytes: this.#readBytes,
      writtenBytes: this.#framing.writtenBytes,
      agentCpuMs: own.cpuMs,
      helperCpuMs: status.helper.cpuMs,
    };
  }

  #measured = { atMs: performance.now(), writtenBytes: 0 };

  /** Churn and link, about each second: status is told more often than that when something changes. */
  #measure({ writtenBytes }: CaptureStatus): void {
    const now = performance.now();
    const { atMs, writtenBytes: before } = this.#measured;
    if (now - atMs < STATUS_MS * 0.9) return;
    this.#measured = { atMs: now, writtenBytes };
    this.#linkMeter.sample(now);
    if (before > 0) this.#order.written(((writtenBytes - before) * 1000) / (now - atMs));
  }

  async stop(unpin: boolean): Promise<void> {
    this.#stopping.abort(new Stopped('the stream is stopped'));
    this.#points.stop(new Stopped('the stream is stopped'));
    clearInterval(this.#statusTimer);
    this.#framing.close();
    this.unlink();
    await this.#capture.stop({ unpin });
    await this.#consumer;
    this.#ackNote.close();
    if (unpin) {
      await this.#ackNote.forget();
      await this.#swap.forget();
      await this.#exclusions.forget();
    }
  }
}

const TRACKING: Record<string, string> = {
  overflow: 'the ring buffer overflowed',
  'copy-failed': 'the data of a write could not be copied',
  'no-consumer': 'the agent did not read the capture for some time',
  'inflight-table-full': 'too many writes were in flight',
  'request-too-large': 'a write was larger than the capture takes',
  'missed-event': 'the kernel did not show every write to the capture',
  requested: 'ordered capture was switched off on purpose',
};
const UNKNOWN_LOSS = 'some writes were not captured';
const trackingReason = (reason: string): string => TRACKING[reason] ?? reason;

const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    }, ms);
    signal.addEventListener('abort', onAbort, { once: true });
  });
