import { rm } from 'node:fs/promises';
import { FEATURE_VERIFY } from '../../protocol/control.ts';
import {
  asUndError,
  type SerialisedError,
  type UndError,
  undError,
} from '../../protocol/errors.ts';
import type { Checkpoint, Job, JobSettingsPatch, Source, TakenPoint } from '../api/schema.ts';
import { Checkpointer } from '../checkpoints/checkpointer.ts';
import { CHECKPOINT_MINUTES } from '../checkpoints/policy.ts';
import { bySerial, sameDisk } from '../checkpoints/snapshot.ts';
import {
  newestImage,
  noteWrittenImages,
  readWrittenImages,
} from '../checkpoints/written-images.ts';
import type { HostService } from '../control/host-service.ts';
import type { Logger } from '../control/logger.ts';
import type { DiskRef, Hypervisor } from '../hypervisor/hypervisor.ts';
import { volumeName } from '../hypervisor/names.ts';
import type { AgentSession } from '../receive/agent-server.ts';
import { replay } from '../recovery/replay.ts';
import type { FinalPoint, RecoveryPoint } from '../recovery/types.ts';
import { ReplicationStream, type StreamView } from '../replication/replication-stream.ts';
import type { CheckpointStore, Layers } from '../state/checkpoints.ts';
import type { JobDiskRow, JobRow, JobStore } from '../state/jobs.ts';
import { type DiskLocator, deviceSizeBytes, waitForDisk, waitForSize } from './disk-locator.ts';
import { jobState, jobView, type LiveFacts, recoverable, takenPoint } from './job-state.ts';
import { type JobEvent, nextPhase } from './phase.ts';
import { nextPointMs } from './point-schedule.ts';
import { streamLimits } from './stream-limits.ts';
import { nextVerifyMs } from './verify-schedule.ts';
import type { PoolLevel } from './watermark.ts';

const DISK_LIMIT_MS = 60_000;
const FIRST_RETRY_MS = 2_000;
const LONGEST_RETRY_MS = 60_000;

/** How long apply stands still for a group's checkpoint at most; hooks on the source run meanwhile. */
const APPLY_LIMIT_MS = 120_000;

export interface ActorContext {
  store: JobStore;
  checkpoints: CheckpointStore;
  host: HostService;
  locator: DiskLocator;
  log: Logger;
  jobDir: string;
  sourceOf(): Source | null;
  session(): AgentSession | null;
  /** A failover has the disks: nothing is attached, opened or written here on our own. */
  ownedByFailover(): boolean;
  /** A test failover rests on its disks; it goes on replicating. */
  underTest(): boolean;
  mounted(): boolean;
  applianceVm(): Promise<string>;
  journalBytes(): Promise<number>;
  changed(): void;
  gone(): void;
}

/** What a retry may cure. Anything else while making a job waits for a person. */
const TRANSIENT: readonly string[] = ['UND_HV_UNREACHABLE', 'UND_REPLICA_DISK_ABSENT'];

const pointOf = (
  { seq, sourceMs }: { seq: number; sourceMs: number },
  base: { seq: number; state: { layers: Layers } },
): RecoveryPoint => ({
  seq,
  sourceTime: new Date(sourceMs).toISOString(),
  baseSeq: base.seq,
  base: Object.entries(base.state.layers).map(([diskId, image]) => ({ diskId, image })),
});

/** One protection job. Its operations run one after the other; `row` is what is persisted. */
export class JobActor {
  row: JobRow;
  readonly #c: ActorContext;
  readonly #checkpoints: Checkpointer;
  #stream: ReplicationStream | null = null;
  /** Which connection serves which stream. */
  #served: { session: AgentSession; stream: ReplicationStream } | null = null;
  /** With which names of the source's disks the stream was opened. */
  #devicePathsOpen = new Map<string, string>();
  #diskMissing: SerialisedError | null = null;
  #attached = new Set<string>();
  #step = 'waiting';
  #problem: SerialisedError | null = null;
  #poolLow: UndError | null = null;
  /** Settled when the last hold of the pool's watermark has taken effect. */
  #applyHeld: Promise<void> = Promise.resolve();
  #disksOpen = false;
  #last: Promise<unknown> = Promise.resolve();
  #retry: NodeJS.Timeout | undefined;
  #retries = 0;
  #stop = new AbortController();

  constructor(row: JobRow, context: ActorContext) {
    this.row = row;
    this.#c = context;
    this.#checkpoints = new Checkpointer({
      jobId: row.jobId,
      jobName: () => this.row.settings.replicaName,
      store: context.checkpoints,
      hypervisor: () => this.#hypervisor,
      applianceVm: context.applianceVm,
      disks: () =>
        this.row.disks.map(({ diskId, name, serial, replica }) => {
          if (!replica) throw undError('UND_INTERNAL', { reason: `no volume for ${name}` });
          return { diskId, serial, image: replica };
        }),
      setImages: (images) => {
        for (const [diskId, replica] of images) this.#putDisk(diskId, { replica });
        noteWrittenImages(this.#c.jobDir, images);
      },
      mayMerge: () =>
        this.row.phase.name === 'active' &&
        !this.row.phase.tainted &&
        this.#disksOpen &&
        !this.#closed,
      everyMs: () => (this.row.settings.checkpointMinutes ?? CHECKPOINT_MINUTES) * 60_000,
      // A failover's own layers are as small, and it is not to fail for a pool that is nearly full.
      refusal: () => (this.row.phase.name === 'active' ? this.#poolLow : null),
      log: context.log,
      changed: context.changed,
    });
    this.#planPoint();
  }

  // ---- what is shown ---------------------------------------------------------------------------------------------

  view(): Job {
    return jobView(this.row, this.#facts());
  }

  /** Newest first; those that a recovery can begin from. */
  checkpoints(): Checkpoint[] {
    return this.#checkpoints
      .list()
      .filter(({ state }) => state.name === 'kept')
      .map((row) => ({
        seq: row.seq,
        sourceTime: new Date(row.sourceMs).toISOString(),
        takenAt: new Date(row.takenMs).toISOString(),
        reason: row.reason,
        holders: row.holders,
      }))
      .reverse();
  }

  /** The stream's own view; null while it is not open. */
  streamView(): StreamView | null {
    return this.#stream?.state() ?? null;
  }

  #facts(): LiveFacts {
    return {
      view: this.streamView(),
      step: this.#step,
      problem: this.#problem ?? this.#diskMissing,
      poolLow: this.#poolLow?.toJSON() ?? null,
      attached: this.#attached,
      agentOnline: this.#c.session() !== null,
      sourceName: this.#c.sourceOf()?.name ?? this.row.sourceId,
      points: { nextMs: this.#nextPointMs, problem: this.#pointProblem },
      verifyNextMs: this.#nextVerifyMs(),
    };
  }

  // ---- what people ask for ---------------------------------------------------------------------------------------

  patch(patch: JobSettingsPatch): Promise<Job> {
    return this.#inTurn(async () => {
      this.#save({ ...this.row, settings: { ...this.row.settings, ...patch } });
      this.#stream?.configure(this.#streamSettings());
      await this.#stream?.setLimits(await this.#limits());
      if (!this.row.settings.pointEveryMinutes) this.#pointProblem = null;
      this.#planPoint();
      this.#c.changed();
      return this.view();
    });
  }

  /** The share of the journal disk has changed. */
  async limitsChanged(): Promise<void> {
    await this.#stream?.setLimits(await this.#limits());
  }

  /** The stream, for those who read its history; null while it is not open. */
  get stream(): ReplicationStream | null {
    return this.#stream;
  }

  pause(): Promise<Job> {
    return this.#inTurn(async () => {
      this.#advance({ type: 'paused' }, 'paused');
      await this.#stream?.stopIntake('paused by a person');
      return this.view();
    });
  }

  /** Ends a pause, or tries again at once what failed. */
  resume(): Promise<Job> {
    return this.#inTurn(async () => {
      const { phase } = this.row;
      if (phase.name === 'creating' || phase.name === 'deleting') {
        this.#advance({ type: 'retried' }, 'resumed');
      } else if (phase.name === 'active' && phase.tainted) {
        await this.#untaint(phase.tainted);
      } else {
        this.#advance({ type: 'resumed' }, 'resumed');
        const faulty = this.#stream?.state().phase;
        if (faulty?.name === 'error' && faulty.from === 'agent') {
          this.#stream?.reconnectAgent('a person asked to try again');
        } else if (faulty?.name === 'error' && !isApplyFault(faulty.error)) {
          // What the stream refused has to be sent anew, and only a comparison tells what.
          await this.#stream?.restart(`resumed after ${faulty.error.code}`);
        } else {
          this.#stream?.startIntake();
          await this.#applyHeld;
          if (!this.#poolLow) this.#stream?.resumeApply();
        }
      }
      this.#retries = 0;
      this.kick();
      return this.view();
    });
  }

  mirror(diskId: string | undefined): Promise<Job> {
    return this.#inTurn(async () => {
      const { row } = this;
      if (diskId !== undefined && !row.disks.some((disk) => disk.diskId === diskId)) {
        throw undError('UND_NOT_FOUND', { kind: 'disk', id: diskId, field: 'diskId' });
      }
      if (row.phase.name !== 'active' || row.phase.paused || !this.#stream) {
        throw this.#stateError('mirrored');
      }
      if (diskId === undefined) {
        // Ends the connection; the agent comes back and is told of the new epoch.
        await this.#stream.restart('a person asked for it');
      } else {
        // What the stream cannot go on from is not healed by one disk.
        if (this.#stream.state().phase.name === 'error') throw this.#stateError('mirrored');
        await this.#stream.mirrorDisk(diskId, 'a person asked for it');
      }
      return this.view();
    });
  }

  /** Asks for it; it is done as soon as the replica is whole and the agent there, also after a restart. */
  verify(diskId: string | undefined): Promise<Job> {
    return this.#inTurn(async () => {
      const { phase } = this.row;
      if (phase.name !== 'active' || phase.paused || !this.#stream)
        throw this.#stateError('verified');
      const hello = this.#c.session()?.hello;
      if (hello && !hello.features?.includes(FEATURE_VERIFY)) {
        throw undError('UND_AGENT_OUTDATED', {
          source: hello.machine.hostname,
          feature: FEATURE_VERIFY,
        });
      }
      await this.#stream.verifyDisks(diskId === undefined ? undefined : [diskId]);
      return this.view();
    });
  }

  #nextVerifyMs(): number | null {
    const disks = this.streamView()?.disks.map(({ verification }) => verification) ?? null;
    const { settings, createdAt } = this.row;
    return nextVerifyMs(settings.verifyEvery ?? 'off', disks, Date.parse(createdAt));
  }

  /** Looked at now and then. */
  verifyIfDue(nowMs = Date.now()): void {
    const due = this.#nextVerifyMs();
    const { phase } = this.row;
    if (due === null || due > nowMs || phase.name !== 'active' || phase.paused) return;
    this.verify(undefined).catch((error) => this.#report(error));
  }

  /**
   * Put a named point into the stream, with the source's applications at rest if `quiesce`. Not in turn: it takes as long
   * as the source's hooks, and nothing here waits for it.
   * @throws UND_POINT_FAILED, UND_AGENT_OFFLINE, UND_AGENT_OUTDATED, UND_JOB_STATE, UND_LINK_…
   */
  async takePoint(name: string, quiesce: boolean, atMs?: number): Promise<TakenPoint> {
    const { phase, jobId, settings } = this.row;
    if (phase.name !== 'active' || phase.paused) throw this.#stateError('given a recovery point');
    const session = this.#c.session();
    if (!session || this.#served?.session !== session) {
      throw undError('UND_AGENT_OFFLINE', { source: this.#facts().sourceName });
    }
    const failed = (reason: string) =>
      undError('UND_POINT_FAILED', { job: settings.replicaName, reason });
    const whole = recoverable(this.streamView());
    if (!whole.ok) throw failed(whole.reason);
    const { seq, point, postHooks } = await session
      .takePoint({ jobId, name, quiesce, atMs })
      .catch((thrown) => {
        const error = asUndError(thrown);
        // The agent knows the job by its id only.
        throw error.code === 'UND_POINT_FAILED' ? failed(String(error.params.reason)) : error;
      });
    if (seq === undefined || !point) throw failed('the agent answered without a point');
    return takenPoint(point, seq, null, postHooks);
  }

  /**
   * A point of a group's mark: resolves when it is durable here. With `checkpoint`, apply stands still before the mark until
   * that is in the journal, goes on to exactly there, and a checkpoint is taken; intake goes on.
   * @param atMs moment of the source's wall clock for the mark
   * @throws as takePoint; UND_POINTS_REBUILDING, UND_APPLY_PAUSED and what taking a checkpoint throws
   */
  async takeGroupPoint(
    name: string,
    quiesce: boolean,
    atMs: number,
    checkpoint: boolean,
  ): Promise<{
    pointId: string;
    seq: number;
    sourceMs: number;
    quiesced: boolean;
    reason: string | null;
  }> {
    const stream = this.#stream;
    if (!stream) throw this.#stateError('given a recovery point');
    stream.needPoints();
    const failed = (reason: string) =>
      undError('UND_POINT_FAILED', { job: this.row.settings.replicaName, reason });
    const limit = checkpoint ? stream.limitApply(APPLY_LIMIT_MS) : null;
    try {
      const { pointId, seq, quiesced, reason } = await this.takePoint(name, quiesce, atMs);
      const endMs = performance.now() + APPLY_LIMIT_MS;
      await stream.untilDurable(seq, () => {
        if (this.#stream !== stream) throw failed('the stream was closed');
        if (performance.now() > endMs) throw failed('its mark did not arrive');
      });
      const mark = stream
        .points()
        .marks()
        .find((one) => one.pointId === pointId);
      if (!mark) throw failed('order was lost before its mark');
      if (limit) {
        await limit.to(seq);
        const there = await stream.atAppliedPoint(
          async (point) => {
            if (point.seq !== seq) return false;
            await this.#checkpoints.take(point, stream.journalId, `mark of the group: ${name}`);
            return true;
          },
          () => this.#checkpoints.settled,
        );
        if (!there) throw failed('the replica disks did not stand at the mark');
      }
      return { pointId, seq, sourceMs: mark.sourceMs, quiesced, reason };
    } finally {
      limit?.end();
    }
  }

  #pointTimer: NodeJS.Timeout | undefined;
  #nextPointMs: number | null = null;
  #pointProblem: SerialisedError | null = null;

  /** The schedule of points, from the settings as they are now. */
  #planPoint(): void {
    clearTimeout(this.#pointTimer);
    const every = this.row.settings.pointEveryMinutes ?? null;
    const now = Date.now();
    this.#nextPointMs = every === null ? null : nextPointMs(this.row.jobId, every, now);
    if (this.#nextPointMs === null || this.#closed) return;
    this.#pointTimer = setTimeout(() => this.#takeScheduled(), this.#nextPointMs - now);
    this.#pointTimer.unref();
  }

  #takeScheduled(): void {
    const { phase } = this.row;
    const due = phase.name === 'active' && !phase.paused;
    const take = due ? this.takePoint('Scheduled', true) : Promise.resolve(null);
    take
      .then(
        () => {
          this.#pointProblem = null;
        },
        (thrown) => {
          const error = asUndError(thrown);
          this.#pointProblem = error.toJSON();
          this.#report(error);
        },
      )
      .finally(() => {
        this.#planPoint();
        this.#c.changed();
      });
  }

  async remove(disks: 'keep' | 'delete'): Promise<Job> {
    // Not in turn: what is under way is ended by it.
    const { phase } = this.row;
    if (this.#c.ownedByFailover()) throw this.#stateError('deleted');
    if (this.#c.underTest()) {
      throw undError('UND_TEST_RUNNING', { job: this.row.settings.replicaName });
    }
    if (this.#c.mounted()) {
      throw undError('UND_MOUNT_OPEN', { job: this.row.settings.replicaName });
    }
    if (phase.name !== 'deleting') this.#advance({ type: 'deletion-asked', disks }, 'deleted');
    else this.#save({ ...this.row, phase: { name: 'deleting', disks, failed: null } });
    this.#interrupt();
    this.#retries = 0;
    this.#step = 'waiting for what is under way';
    this.#c.changed();
    this.kick();
    return this.view();
  }

  // ---- what happens around it ------------------------------------------------------------------------------------

  /**
   * The agent of the source came or went, its inventory was taken, or the stream was opened: brings agent and stream
   * together, once. Kernel names may mean other disks after the source's reboot, so an agent gets the stream only once
   * its inventory of this very boot says where each disk is now.
   */
  sessionChanged(): void {
    this.#serveAgent();
    this.#c.changed();
  }

  #serveAgent(): void {
    const session = this.#c.session();
    const stream = this.#stream;
    if (!session || !stream || !this.#servesAgent()) return;
    if (this.#served?.session === session && this.#served.stream === stream) return;
    const inventory = this.#c.sourceOf()?.inventory;
    if (inventory?.machine.bootId !== session.hello.machine.bootId) return;
    const paths = this.#devicePaths();
    const missing = this.row.disks.find((disk) => !paths.has(disk.diskId));
    if (missing) {
      this.#diskMissing = undError('UND_SOURCE_DISK_MISSING', {
        disk: missing.name,
        source: inventory.hostname,
        job: this.row.settings.replicaName,
      }).toJSON();
      return;
    }
    this.#diskMissing = null;
    if (
      this.row.disks.some(({ diskId }) => paths.get(diskId) !== this.#devicePathsOpen.get(diskId))
    ) {
      // The stream is opened again with the new names; that brings us back here.
      this.kick();
      return;
    }
    this.#served = { session, stream };
    session.attach(stream);
  }

  /** Where the source has the job's disks now, by disk id. */
  #devicePaths(): Map<string, string> {
    const disks = this.#c.sourceOf()?.inventory?.disks ?? [];
    return new Map(
      disks
        .filter(({ diskId }) => this.row.disks.some((disk) => disk.diskId === diskId))
        .map(({ diskId, devicePath }) => [diskId, devicePath]),
    );
  }

  poolChanged(level: PoolLevel): void {
    const wasLow = this.#poolLow !== null;
    this.#poolLow =
      level.name === 'low'
        ? undError('UND_POOL_LOW', {
            pool: this.row.settings.pool,
            job: this.row.settings.replicaName,
            availableBytes: level.availableBytes,
            neededBytes: level.neededBytes,
          })
        : null;
    if (wasLow !== (this.#poolLow !== null)) this.#c.changed();
    const stream = this.#stream;
    if (this.row.phase.name !== 'active' || !stream || !this.#disksOpen) return;
    if (this.#poolLow) {
      if (!wasLow) {
        this.#c.log.warn({ jobId: this.row.jobId }, this.#poolLow.message);
        this.#holdApply(stream, this.#poolLow.message);
      }
    } else if (wasLow || this.#outOfSpace()) {
      // The disks are attached and open: the guest of a full pool saw an I/O error, nothing else.
      // A pause takes effect when the batch under way is done; to resume before that would be passed over.
      this.#applyHeld.then(() => {
        if (!this.#poolLow && this.#stream === stream && this.#disksOpen) stream.resumeApply();
      });
    }
  }

  #holdApply(stream: ReplicationStream, reason: string): void {
    this.#applyHeld = stream.pauseApply(reason).catch((error) => this.#report(error));
  }

  #outOfSpace(): boolean {
    const phase = this.#stream?.state().phase;
    return phase?.name === 'error' && phase.error.code === 'UND_APPLY_NO_SPACE';
  }

  /** Frames may be taken, or the agent be told that they are not. */
  #servesAgent(): boolean {
    const { name } = this.row.phase;
    return name === 'active' || name === 'failing-over';
  }

  // ---- going on from what is persisted ---------------------------------------------------------------------------

  /** Does what the phase asks for, soon; failures are tried again with growing pauses. */
  kick(): void {
    clearTimeout(this.#retry);
    this.#retry = undefined;
    this.#inTurn(() => this.#reconcile()).then(
      () => {
        this.#retries = 0;
        this.#setProblem(null);
      },
      (error) => this.#failed(error),
    );
  }

  #failed(thrown: unknown): void {
    // Ended on purpose: whoever did that has taken over.
    if (this.#closed || (thrown as Error)?.name === 'AbortError') return;
    const error = asUndError(thrown);
    const { phase } = this.row;
    this.#report(error);
    if (phase.name === 'creating' && !TRANSIENT.includes(error.code)) {
      this.#advance({ type: 'create-failed', error: error.toJSON() }, 'created');
      return;
    }
    if (phase.name === 'deleting' && !TRANSIENT.includes(error.code)) {
      this.#advance({ type: 'delete-failed', error: error.toJSON() }, 'deleted');
      return;
    }
    this.#setProblem(error);
    const pause = Math.min(FIRST_RETRY_MS * 2 ** Math.min(this.#retries++, 10), LONGEST_RETRY_MS);
    this.#retry = setTimeout(() => this.kick(), pause);
    this.#retry.unref();
  }

  #setProblem(error: UndError | null): void {
    this.#problem = error?.toJSON() ?? null;
    if (error && (this.row.phase.name === 'creating' || this.row.phase.name === 'deleting')) {
      this.#step = `${this.#step} (tries again: ${error.message})`;
    }
    this.#c.changed();
  }

  async #reconcile(): Promise<void> {
    if (this.#c.ownedByFailover()) return;
    switch (this.row.phase.name) {
      case 'creating':
        if (this.row.phase.failed) return;
        await this.#createVolumes();
        await this.#openStream(true);
        await this.#openDisks();
        this.#advance({ type: 'created' }, 'created');
        this.sessionChanged();
        return;
      case 'active':
        // The stream first: what the agent has goes into the journal while the disks are still being attached.
        await this.#openStream(false);
        this.sessionChanged();
        if (this.row.phase.tainted) return;
        if (!this.#disksOpen) await this.#refuseTainted();
        await this.#openDisks();
        return;
      case 'failing-over':
      case 'failed-over':
        // The failover has the disks; it asks for what it needs.
        return;
      case 'deleting':
        if (this.row.phase.failed) return;
        await this.#delete(this.row.phase.disks);
        return;
      default:
        return this.row.phase satisfies never;
    }
  }

  /**
   * A started replica is never written under. Normally the failover says so; an appliance that was restored from an
   * older backup does not know of the failover, but the VM is there.
   * @throws UND_JOB_TAINTED
   */
  async #refuseTainted(): Promise<void> {
    const { replicaName } = this.row.settings;
    const found = await this.#hypervisor.vmState(replicaName).catch((error) => {
      // Somebody else's VM that took the name since: not on our disks.
      if (asUndError(error).code === 'UND_HV_REFUSED') return { state: 'absent' } as const;
      throw error;
    });
    if (found.state !== 'absent') {
      throw undError('UND_JOB_TAINTED', { vm: replicaName, job: replicaName });
    }
  }

  /** What a foreign VM must not have open; empty while there is nothing to look after. */
  watchedDisks(): DiskRef[] {
    if (this.row.phase.name !== 'active' || this.#c.ownedByFailover()) return [];
    return this.row.disks.flatMap(({ replica }) => (replica ? [replica] : []));
  }

  /**
   * A running VM has one of the replica disks open: from now on, over restarts, nothing is applied to them and no frame is
   * taken. What the VM has written is not known, so only a comparison goes on from here.
   */
  diskUsed({ vm, disk }: { vm: string; disk: DiskRef }): Promise<void> {
    return this.#inTurn(async () => {
      const { phase } = this.row;
      const mine = this.watchedDisks().some(({ path }) => path === disk.path);
      // A checkpoint or failover may have come between the look and now.
      if (!mine || (phase.name === 'active' && phase.tainted)) return;
      const job = this.row.settings.replicaName;
      const error = undError('UND_JOB_DISK_USED', { vm, disk: disk.name, job });
      this.#advance({ type: 'tainted', error: error.toJSON() }, 'stopped');
      this.#report(error);
      await this.#stream?.pauseApply(error.message);
      await this.#stream?.stopIntake(error.message);
    });
  }

  /** @throws UND_JOB_DISK_USED while it is still so */
  async #untaint({ message }: SerialisedError): Promise<void> {
    const [user] = await this.#hypervisor.diskUsers(this.watchedDisks());
    if (user) {
      const job = this.row.settings.replicaName;
      throw undError('UND_JOB_DISK_USED', { vm: user.vm, disk: user.disk.name, job });
    }
    const stream = await this.#openStream(false);
    // Durable before the job goes on.
    await stream.restart(`after: ${message}`);
    this.#advance({ type: 'resumed' }, 'resumed');
  }

  async #createVolumes(): Promise<void> {
    for (const disk of this.row.disks) {
      if (disk.replica) continue;
      this.#say(`creating the replica disk for ${disk.name}`);
      const name = `${this.row.settings.replicaName}-${disk.name}-${disk.serial.slice(1, 9)}`;
      const request = { pool: this.row.settings.pool, name, sizeBytes: disk.sizeBytes };
      let replica: DiskRef;
      try {
        replica = await this.#hypervisor.createDisk(request);
      } catch (error) {
        if (asUndError(error).code !== 'UND_HV_NAME_IN_USE') throw error;
        // Of our own making: the name holds this disk's random serial. We ended between making and recording it.
        await this.#hypervisor.deleteDisk({ pool: request.pool, name: volumeName(name), path: '' });
        replica = await this.#hypervisor.createDisk(request);
      }
      this.#putDisk(disk.diskId, { replica });
    }
  }

  async #openStream(fresh: boolean): Promise<ReplicationStream> {
    const known = this.#devicePaths();
    const paths = new Map(
      this.row.disks.map(({ diskId, name }) => [
        diskId,
        known.get(diskId) ?? this.#devicePathsOpen.get(diskId) ?? `/dev/${name}`,
      ]),
    );
    if (this.#stream) {
      const open = this.#devicePathsOpen;
      if ([...paths].every(([diskId, path]) => open.get(diskId) === path)) return this.#stream;
      this.#c.log.info({ jobId: this.row.jobId }, 'disks of the source have other names now');
      const former = this.#stream;
      this.#stream = null;
      this.#disksOpen = false;
      await former.close();
    }
    this.#say('opening the journal');
    const stream: ReplicationStream = await ReplicationStream.open({
      jobId: this.row.jobId,
      jobDir: this.#c.jobDir,
      disks: this.row.disks.map((disk, index) => ({
        diskId: disk.diskId,
        index,
        devicePath: paths.get(disk.diskId)!,
        sizeBytes: disk.sizeBytes,
        replicaPath: null,
        freshReplica: fresh,
      })),
      settings: this.#streamSettings(),
      limits: await this.#limits(),
      hooks: {
        onDiskResized: (diskId, sizeBytes) => this.#grow(diskId, sizeBytes),
        // Not in turn: what has the turn may be waiting for apply.
        beforeUnordered: (point, reason) =>
          this.#checkpoints.take(point, stream.journalId, `before: ${reason}`),
      },
    });
    const { phase } = this.row;
    if (phase.name === 'active' && phase.paused) await stream.stopIntake('paused by a person');
    if (phase.name === 'active' && phase.tainted) await stream.stopIntake(phase.tainted.message);
    if (phase.name === 'failing-over' || phase.name === 'failed-over') {
      await stream.stopIntake('the source server is being failed over');
    }
    stream.on('change', () => this.#streamChanged());
    this.#stream = stream;
    this.#devicePathsOpen = paths;
    return stream;
  }

  /** Attaches what is not attached, and opens the disks for applying. */
  async #openDisks(): Promise<void> {
    const stream = this.#stream;
    if (!stream) throw undError('UND_INTERNAL', { reason: 'the disks before the stream' });
    const fault = stream.state().phase;
    const applyFault =
      fault.name === 'error' && fault.from === 'appliance' && isApplyFault(fault.error);
    if (this.#disksOpen && !applyFault) return;
    const paths = await this.#attachAll();
    if (this.#disksOpen) await stream.closeDisks('the replica disks are attached again');
    await stream.reopenDisks(paths);
    this.#disksOpen = true;
    if (this.#poolLow && this.row.phase.name === 'active') {
      this.#holdApply(stream, this.#poolLow.message);
    }
  }

  /** @returns the block device of each disk, by disk id */
  async #attachAll(): Promise<Map<string, string>> {
    // What is attached must be what is written: a checkpoint's answer may have been lost.
    await this.#checkpoints.settle();
    const vm = await this.#c.applianceVm();
    const present = await this.#hypervisor.listAttachedDisks(vm);
    const written = readWrittenImages(this.#c.jobDir);
    const paths = new Map<string, string>();
    this.#attached = new Set();
    for (const disk of this.row.disks) {
      if (!disk.replica) throw undError('UND_INTERNAL', { reason: `no volume for ${disk.name}` });
      const attached = bySerial(present, disk.serial)?.disk ?? null;
      const image = await newestImage(
        this.#hypervisor,
        { job: this.row.settings.replicaName, disk: disk.name },
        { attached, written: written.get(disk.diskId) ?? null, recorded: disk.replica },
      );
      if (!sameDisk(image, disk.replica)) {
        this.#c.log.warn(
          {
            jobId: this.row.jobId,
            disk: disk.name,
            recorded: disk.replica.name,
            image: image.name,
          },
          'the image on record is older than the replica disk: going on with what was written',
        );
        this.#putDisk(disk.diskId, { replica: image });
      }
      if (!attached) {
        this.#say(`attaching the replica disk of ${disk.name} to the appliance`);
        await this.#hypervisor.attachDisk(vm, image, { serial: disk.serial });
      }
      const path = await waitForDisk(
        this.#c.locator,
        { serial: disk.serial, job: this.row.settings.replicaName },
        { timeoutMs: DISK_LIMIT_MS, signal: this.#stop.signal },
      );
      // Grown while we were away, between the hypervisor's part and the stream's.
      if ((await deviceSizeBytes(path)) < disk.sizeBytes) {
        await this.#hypervisor.resizeDisk(image, disk.sizeBytes);
        await waitForSize(path, disk.sizeBytes, DISK_LIMIT_MS, this.#stop.signal);
      }
      this.#attached.add(disk.serial);
      paths.set(disk.diskId, path);
    }
    // Before a frame is applied to them.
    noteWrittenImages(
      this.#c.jobDir,
      new Map(this.row.disks.map(({ diskId, replica }) => [diskId, replica!])),
    );
    this.#c.changed();
    return paths;
  }

  #streamChanged(): void {
    this.#c.changed();
    if (this.row.phase.name === 'active' && this.#stream && this.#disksOpen) {
      this.#checkpoints.schedule(this.#stream);
      this.#stream.keepFromSeq = this.#checkpoints.oldestSeq(this.#stream.journalId);
    }
    const phase = this.#stream?.state().phase;
    // A full pool is waited for by the watermark; trying again meanwhile would only fail again.
    const faulty =
      phase?.name === 'error' &&
      phase.from === 'appliance' &&
      isApplyFault(phase.error) &&
      phase.error.code !== 'UND_APPLY_NO_SPACE';
    if (faulty && this.row.phase.name === 'active' && !this.#retry) {
      // Perhaps the disk was detached under us: look, attach again, go on.
      const pause = Math.min(FIRST_RETRY_MS * 2 ** Math.min(this.#retries++, 10), LONGEST_RETRY_MS);
      this.#retry = setTimeout(() => this.kick(), pause);
      this.#retry.unref();
    }
  }

  /** A disk of the source grew: the replica disk first, then the stream goes on with the new range. */
  async #grow(diskId: string, sizeBytes: number): Promise<void> {
    const disk = this.row.disks.find((candidate) => candidate.diskId === diskId);
    if (!disk?.replica) throw undError('UND_NOT_FOUND', { kind: 'disk', id: diskId });
    if (sizeBytes <= disk.sizeBytes) return;
    await this.#hypervisor.resizeDisk(disk.replica, sizeBytes);
    this.#putDisk(diskId, { sizeBytes });
    const path = await this.#c.locator.find(disk.serial);
    if (path) await waitForSize(path, sizeBytes, DISK_LIMIT_MS, this.#stop.signal);
    this.#c.log.info({ jobId: this.row.jobId, diskId, sizeBytes }, 'a replica disk has grown');
  }

  async #delete(disks: 'keep' | 'delete'): Promise<void> {
    this.#say('ending the replication');
    if (this.#stream) {
      const stream = this.#stream;
      this.#stream = null;
      await stream.destroy('the protection job was deleted');
      this.#c.session()?.detach();
    }
    this.#disksOpen = false;
    await rm(this.#c.jobDir, { recursive: true, force: true });
    const volumes = this.row.disks.filter((disk) => disk.replica !== null);
    if (volumes.length > 0) {
      const vm = await this.#c.applianceVm();
      for (const disk of volumes) {
        this.#say(`detaching the replica disk of ${disk.name}`);
        await this.#hypervisor.detachDisk(vm, disk.serial);
        this.#attached.delete(disk.serial);
        if (disks === 'delete') await this.#deleteVolume(disk);
        else await this.#flatten(disk);
      }
    }
    this.#forget();
  }

  /** Without its job nobody needs the checkpoints: what is kept is one plain image. */
  async #flatten(disk: JobDiskRow): Promise<void> {
    let image = await this.#topOf(disk);
    for (;;) {
      const layers = (await this.#hypervisor.chain(image)).length - 1;
      if (layers === 0) return;
      this.#say(`merging the checkpoints of ${disk.name}: ${layers} left`);
      image = await this.#hypervisor.commitOverlay(image);
      this.#putDisk(disk.diskId, { replica: image });
    }
  }

  /** The image that was written last. A former run may have merged it, and died before that was on record. */
  async #topOf({ diskId, replica }: JobDiskRow): Promise<DiskRef> {
    const below = this.#c.checkpoints
      .list(this.row.jobId)
      .flatMap(({ state }) => (state.name === 'intended' ? [] : [state.layers[diskId]]))
      .filter((layer) => layer !== undefined);
    let problem: unknown;
    for (const image of [replica!, ...below.toReversed()]) {
      try {
        await this.#hypervisor.chain(image);
        return image;
      } catch (error) {
        if (asUndError(error).code !== 'UND_HV_DISK_NOT_FOUND') throw error;
        problem ??= error;
      }
    }
    throw problem;
  }

  async #deleteVolume(disk: JobDiskRow): Promise<void> {
    this.#say(`deleting the replica disk of ${disk.name}`);
    let layers: DiskRef[];
    try {
      layers = await this.#hypervisor.chain(disk.replica!);
    } catch (error) {
      if (asUndError(error).code !== 'UND_HV_DISK_NOT_FOUND') throw error;
      layers = [];
    }
    // From the top: a layer that another one rests on is refused.
    for (const layer of layers) await this.#hypervisor.deleteDisk(layer);
    this.#putDisk(disk.diskId, { replica: null });
  }

  // ---- planned failover, before the failover has the job ---------------------------------------------------------

  get isOnline(): boolean {
    return this.#c.session() !== null;
  }

  /** @throws UND_AGENT_OFFLINE */
  #online(): AgentSession {
    const session = this.#c.session();
    if (session) return session;
    throw undError('UND_AGENT_OFFLINE', { source: this.#facts().sourceName });
  }

  /** @see JobHandle.prepareHandover */
  async prepareHandover(failoverId: string, stopUnits: string[]): Promise<string[]> {
    const { jobId } = this.row;
    return this.#online().prepareHandover({ jobId, failoverId, stopUnits });
  }

  /** @see JobHandle.finalMark. Not in turn but for the stream: apply may have the turn for long. */
  async finalMark(failoverId: string, onProgress: (text: string) => void): Promise<FinalPoint> {
    const { phase, jobId, settings } = this.row;
    if (phase.name !== 'active' || phase.paused) throw this.#stateError('failed over as planned');
    // After a restart nothing else has opened it: the job is the failover's.
    const stream = this.#stream ?? (await this.#inTurn(() => this.#openStream(false)));
    this.sessionChanged();
    const session = this.#online();
    if (this.#served?.session !== session) {
      throw undError('UND_AGENT_OFFLINE', { source: this.#facts().sourceName });
    }
    onProgress('the source server flushes its file systems');
    const { finalSeq, point } = await session.finalMark({ jobId, failoverId });
    const failed = (reason: string) =>
      undError('UND_POINT_FAILED', { job: settings.replicaName, reason });
    if (finalSeq === undefined || !point) throw failed('the agent answered without a mark');
    await stream.untilDurable(finalSeq, () => {
      if (session.closed || this.#stream !== stream) {
        throw undError('UND_LINK_CLOSED', { reason: 'before the final mark was durable' });
      }
      const { durableSeq, lagBytes } = stream.state();
      const mib = Math.ceil((lagBytes ?? 0) / 1024 ** 2);
      onProgress(`frame ${durableSeq} of ${finalSeq} is durable, ${mib} MiB left`);
    });
    const whole = recoverable(stream.state());
    if (!whole.ok) throw failed(whole.reason);
    const { newestPointMs } = stream.state();
    return {
      seq: finalSeq,
      sourceTime: newestPointMs === null ? null : new Date(newestPointMs).toISOString(),
      quiesced: point.quiesced,
      reason: point.reason,
    };
  }

  /** @see JobHandle.powerOff */
  async powerOffSource(
    failoverId: string,
    how: 'power-off' | 'passive',
    reason: string,
  ): Promise<void> {
    await this.#online().powerOff({ failoverId, how, reason: reason.slice(0, 1000) });
  }

  /** @see JobHandle.cancelHandover */
  async cancelHandover(failoverId: string): Promise<string[] | null> {
    const session = this.#c.session();
    if (!session) return null;
    try {
      return await session.cancelHandover(failoverId);
    } catch (error) {
      if (asUndError(error).code.startsWith('UND_LINK_')) return null;
      throw error;
    }
  }

  // ---- failover --------------------------------------------------------------------------------------------------

  /** From here on the failover has the job. No error when it has it already. */
  beginFailover(failoverId: string, reason: string): Promise<StreamView> {
    return this.#inTurn(async () => {
      const { phase } = this.row;
      if (!(phase.name === 'failing-over' && phase.failoverId === failoverId)) {
        this.#advance({ type: 'failover-started', failoverId }, 'failed over');
      }
      const stream = await this.#openStream(false);
      await stream.stopIntake(reason);
      return stream.state();
    });
  }

  /** @see JobHandle.drainApply */
  drainApply(
    onProgress: (text: string) => void,
  ): Promise<{ appliedSeq: number; images: { diskId: string; image: DiskRef }[] }> {
    return this.#inTurn(async () => {
      const stream = await this.#openStream(false);
      await this.#openDisks();
      // The watermark protects others from a mirror; what is left now is little and is wanted.
      await this.#applyHeld;
      stream.resumeApply();
      const told = () => {
        const { appliedSeq, durableSeq, applyBacklogBytes } = stream.state();
        onProgress(
          `frame ${appliedSeq} of ${durableSeq}, ${Math.ceil(applyBacklogBytes / 1024 ** 2)} MiB left`,
        );
      };
      const timer = setInterval(told, 1000);
      try {
        const appliedSeq = await stream.drainApply();
        await this.#checkpoints.interruptMerge();
        await this.#checkpoints.idle();
        const images = this.row.disks.map(({ diskId, replica }) => ({ diskId, image: replica! }));
        return { appliedSeq, images };
      } finally {
        clearInterval(timer);
      }
    });
  }

  /** @see JobHandle.choosePoint */
  choosePoint(sourceTime: string, failoverId: string | null): Promise<RecoveryPoint> {
    const interrupted = failoverId === null ? null : this.#checkpoints.interruptMerge();
    return this.#inTurn(async () => {
      await interrupted;
      const stream = await this.#openStream(false);
      const atMs = Date.parse(sourceTime);
      const holder = failoverId === null ? null : failoverHolder(failoverId);
      const exact = await this.#exactPoint(stream, atMs, holder);
      if ('base' in exact) return exact;
      const alone = await this.#checkpoints.newestAt(atMs, holder);
      if (alone) return pointOf(alone, alone);
      throw undError('UND_POINT_GONE', {
        job: this.row.settings.replicaName,
        at: sourceTime,
        reason: exact.gone,
      });
    });
  }

  /** By replay of the journal; or why there is none. */
  async #exactPoint(
    stream: ReplicationStream,
    atMs: number,
    holder: string | null,
  ): Promise<RecoveryPoint | { gone: string }> {
    const point = await stream.exactPointAt(atMs);
    if (!point) return { gone: 'the journal does not reach back that far' };
    const base = await this.#checkpoints.baseFor(point.seq, stream.journalId, holder);
    if (!base) return { gone: 'there is no checkpoint before it' };
    if (base.seq < point.seq && base.seq + 1 < stream.oldestSeq) {
      return { gone: 'the journal behind the checkpoint before it has left' };
    }
    const gap = stream
      .points()
      .gaps()
      .find(({ crossable, fromSeq, toSeq }) => {
        return !crossable && fromSeq <= point.seq && (toSeq ?? point.seq) > base.seq;
      });
    if (gap) return { gone: `between the checkpoint before it and there, ${gap.reason}` };
    return pointOf(point, base);
  }

  /** @see JobHandle.holdPoint */
  async holdPoint(
    sourceTime: string | null,
    failoverId: string,
    reason: string,
  ): Promise<RecoveryPoint> {
    if (sourceTime !== null) return this.choosePoint(sourceTime, failoverId);
    const notReady = (reason: string) =>
      undError('UND_FAILOVER_NOT_READY', { job: this.row.settings.replicaName, reason });
    const stream = this.#stream;
    if (this.row.phase.name !== 'active') throw this.#stateError('tested');
    if (!stream || !this.#disksOpen) throw notReady('its replica disks are not attached');
    await this.#checkpoints.interruptMerge();
    // Not in turn: apply has to come to a halt for it, and what has the turn may be waiting for apply.
    const point = await stream.atAppliedPoint(
      async (now) => {
        await this.#checkpoints.take(now, stream.journalId, reason);
        return now;
      },
      () => this.#checkpoints.settled,
    );
    if (!point) throw notReady('the replica disks hold no consistent point just now');
    const holder = failoverHolder(failoverId);
    const base = await this.#checkpoints.baseFor(point.seq, stream.journalId, holder);
    if (!base) throw notReady('its checkpoint has left');
    return pointOf(point, base);
  }

  /** @see JobHandle.releasePoint */
  async releasePoint(failoverId: string): Promise<void> {
    this.#checkpoints.release(failoverHolder(failoverId));
  }

  /** @see JobHandle.replay. Not in turn but for the reader: in a test the job goes on. */
  async replay(
    point: RecoveryPoint,
    devices: { diskId: string; devicePath: string }[],
    onProgress: (text: string) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const reader = await this.#inTurn(async () =>
      (await this.#openStream(false)).journalReader(point.baseSeq + 1),
    );
    try {
      await replay({
        jobId: this.row.settings.replicaName,
        reader,
        toSeq: point.seq,
        sizes: this.row.disks.map(({ sizeBytes }) => sizeBytes),
        paths: new Map(
          devices.map(({ diskId, devicePath }) => [
            this.row.disks.findIndex((disk) => disk.diskId === diskId),
            devicePath,
          ]),
        ),
        onProgress: (seq) => onProgress(`replayed frame ${seq} of ${point.seq}`),
        signal,
      });
    } finally {
      await reader.close();
    }
  }

  /** A test has proven that the replica boots. */
  provenBootable(at: string): void {
    if (this.#closed || (this.row.provenBootableAt ?? '') >= at) return;
    this.#save({ ...this.row, provenBootableAt: at });
  }

  closeDisks(): Promise<void> {
    return this.#inTurn(async () => {
      await this.#stream?.closeDisks();
      this.#disksOpen = false;
    });
  }

  /** @see JobHandle.reopen */
  reopen(
    images: { diskId: string; image: DiskRef }[],
    options: { mirror: 'none' | 'difference'; reason: string },
  ): Promise<void> {
    return this.#inTurn(async () => {
      for (const { diskId, image } of images) this.#putDisk(diskId, { replica: image });
      const stream = await this.#openStream(false);
      await stream.closeDisks('the replica disks are opened again');
      this.#disksOpen = false;
      await this.#openDisks();
      const { phase } = this.row;
      if (phase.name === 'failing-over' || phase.name === 'failed-over') {
        this.#checkpoints.release(failoverHolder(phase.failoverId));
        this.#advance({ type: 'failover-reverted', failoverId: phase.failoverId }, 'reverted');
      }
      if (options.mirror === 'difference') await stream.restart(options.reason);
      else stream.startIntake();
      this.sessionChanged();
    });
  }

  /** The replica VM has proven that it boots. */
  failoverCompleted(failoverId: string, at: string): Promise<void> {
    return this.#inTurn(async () => {
      const { phase } = this.row;
      // A late word of a failover that was taken back since changes nothing.
      if (phase.name !== 'failing-over' || phase.failoverId !== failoverId) return;
      this.#advance({ type: 'failover-completed', failoverId }, 'completed');
      this.#save({ ...this.row, provenBootableAt: at });
      const stream = this.#stream;
      this.#stream = null;
      this.#disksOpen = false;
      this.#attached.clear();
      await stream?.close();
      this.#c.changed();
    });
  }

  /** The failover is final: the job ends, its disks are the replica VM's. */
  release(): Promise<void> {
    return this.#inTurn(async () => {
      const stream = this.#stream;
      this.#stream = null;
      if (stream) await stream.destroy('the source server was failed over for good');
      this.#c.session()?.detach();
      await rm(this.#c.jobDir, { recursive: true, force: true });
      this.#forget();
    });
  }

  // ---- closing ---------------------------------------------------------------------------------------------------

  #closed = false;

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#retry);
    clearTimeout(this.#pointTimer);
    this.#stop.abort();
    await this.#last;
    const stream = this.#stream;
    this.#stream = null;
    await stream?.close();
    await this.#checkpoints.idle();
  }

  #forget(): void {
    this.#closed = true;
    clearTimeout(this.#retry);
    clearTimeout(this.#pointTimer);
    const { jobId } = this.row;
    this.#c.store.remove(jobId);
    // The stream may have been closed long before; an agent that is away is told when it comes back.
    this.#c.session()?.send({ type: 'stopJob', jobId, reason: 'the job has ended' });
    this.#c.gone();
  }

  /** Ends waits of the operation under way. */
  #interrupt(): void {
    const before = this.#stop;
    this.#stop = new AbortController();
    before.abort();
  }

  // ---- small things ----------------------------------------------------------------------------------------------

  get #hypervisor(): Hypervisor {
    return this.#c.host.hypervisor;
  }

  async #limits() {
    return streamLimits(this.row.settings, await this.#c.journalBytes());
  }

  #streamSettings() {
    const {
      compression,
      bandwidthLimitBytesPerSec,
      ringBytes = null,
      exclusions,
      carryRestarts,
    } = this.row.settings;
    return { compression, bandwidthLimitBytesPerSec, ringBytes, exclusions, carryRestarts };
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const run = this.#last.then(() => {
      if (this.#closed) {
        throw undError('UND_NOT_FOUND', { kind: 'job', id: this.row.jobId });
      }
      return work();
    });
    this.#last = run.catch(() => undefined);
    return run;
  }

  #say(step: string): void {
    this.#step = step;
    this.#c.changed();
  }

  #save(row: JobRow): void {
    this.#c.store.put(row);
    this.row = row;
    this.#c.changed();
  }

  #putDisk(diskId: string, patch: Partial<JobDiskRow>): void {
    this.#save({
      ...this.row,
      disks: this.row.disks.map((disk) => (disk.diskId === diskId ? { ...disk, ...patch } : disk)),
    });
  }

  /** @throws UND_JOB_STATE when the phase does not allow it */
  #advance(event: JobEvent, act: string): void {
    const phase = nextPhase(this.row.phase, event);
    if (!phase) throw this.#stateError(act);
    this.#save({ ...this.row, phase });
  }

  #stateError(act: string): UndError {
    return undError('UND_JOB_STATE', {
      job: this.row.settings.replicaName,
      state: jobState(this.row, this.#facts()).name,
      act,
    });
  }

  #report(thrown: unknown): void {
    const error = asUndError(thrown);
    const fields = { jobId: this.row.jobId, code: error.code };
    this.#c.log.warn(
      error.code === 'UND_INTERNAL' ? { ...fields, err: error.cause } : fields,
      `job ${this.row.settings.replicaName}: ${error.message}`,
    );
  }
}

const failoverHolder = (failoverId: string): string => `failover ${failoverId}`;

/** What stops applying and may pass: the disks are looked at and opened again, and apply goes on where it was. */
const isApplyFault = (error: SerialisedError): boolean =>
  error.code.startsWith('UND_APPLY_') || error.code === 'UND_JOURNAL_IO';
