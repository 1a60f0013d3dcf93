/**
 * Protection jobs: making their replica disks, attaching them, running their streams, ending them. One actor per job
 * does one thing at a time; what it has reached is persisted step by step, and `reconcile` goes on from there after
 * any restart.
 */
import { randomUUID } from 'node:crypto';
import { statfs } from 'node:fs/promises';
import { undError } from '../../protocol/errors.ts';
import { DEFAULT_EXCLUSIONS } from '../../protocol/exclusions.ts';
import type {
  Job,
  JobSettingsPatch,
  PointRequest,
  ProtectPlan,
  ProtectRequest,
  TakenPoint,
} from '../api/schema.ts';
import type { EventHub } from '../control/event-hub.ts';
import type { HostService } from '../control/host-service.ts';
import type { Logger } from '../control/logger.ts';
import type { SourceService } from '../control/source-service.ts';
import type { AgentSession as StreamSession } from '../receive/agent-server.ts';
import type { CheckpointStore } from '../state/checkpoints.ts';
import type { JobRow, JobStore } from '../state/jobs.ts';
import { type DiskLocator, replicaSerial } from './disk-locator.ts';
import { JobActor } from './job-actor.ts';
import { givingWay } from './journal-disk.ts';
import { planProtection } from './plan.ts';
import { type PoolLevel, poolLevel } from './watermark.ts';

const POOL_POLL_MS = 10_000;
/** How often a job is told whose figures change with time alone, such as the lag behind a source that is away. */
const AGE_MS = 2_000;
/** What all journals together may take of the journal disk. */
const JOURNAL_SHARE = 0.9;

export interface JobServiceOptions {
  store: JobStore;
  checkpoints: CheckpointStore;
  sources: SourceService;
  host: HostService;
  events: EventHub;
  locator: DiskLocator;
  log: Logger;
  /** Journals and stream records, one folder per job. */
  journalDir: string;
  /** The live connection of a source's agent that a stream can be attached to. */
  sessionOf: (sourceId: string) => StreamSession | null;
  ownedByFailover: (jobId: string) => boolean;
  underTest: (jobId: string) => boolean;
  /** Whether a point of it is open for reading. */
  mounted: (jobId: string) => boolean;
  poolPollMs?: number;
  /** Default 2 s. */
  ageMs?: number;
}

export class JobService {
  readonly #o: JobServiceOptions;
  readonly #actors = new Map<string, JobActor>();
  readonly #pools = new Map<string, PoolLevel['name']>();
  #poolTimer: NodeJS.Timeout | undefined;
  #ageTimer: NodeJS.Timeout | undefined;
  #unlisten: (() => void) | undefined;
  #planning: Promise<unknown> = Promise.resolve();
  #applianceVm: string | null = null;

  constructor(options: JobServiceOptions) {
    this.#o = options;
  }

  /** Takes up all jobs where they were. */
  start(): void {
    for (const row of this.#o.store.list()) this.#adopt(row).kick();
    this.#unlisten = this.#o.sources.onSession((sourceId) => {
      for (const actor of this.#actors.values()) {
        if (actor.row.sourceId === sourceId) actor.sessionChanged();
      }
    });
    const poll = () => {
      this.#pollPools()
        .catch((error) => this.#o.log.warn({ err: error }, 'the storage pools could not be read'))
        .then(() => this.#pollDiskUsers())
        .catch((error) => this.#o.log.warn({ err: error }, 'the VMs could not be read'))
        .then(() => this.#pollJournalDisk())
        .catch((error) => this.#o.log.warn({ err: error }, 'the journal disk could not be read'))
        .finally(() => {
          this.#poolTimer = setTimeout(poll, this.#o.poolPollMs ?? POOL_POLL_MS);
          this.#poolTimer.unref();
        });
    };
    poll();
    this.#ageTimer = setInterval(() => {
      for (const jobId of this.#actors.keys()) this.#o.events.jobAged(jobId);
    }, this.#o.ageMs ?? AGE_MS);
    this.#ageTimer.unref();
  }

  async close(): Promise<void> {
    clearTimeout(this.#poolTimer);
    clearInterval(this.#ageTimer);
    this.#unlisten?.();
    await Promise.all([...this.#actors.values()].map((actor) => actor.close()));
  }

  list(): Job[] {
    return [...this.#actors.values()].map((actor) => actor.view());
  }

  /** @throws UND_NOT_FOUND */
  get(jobId: string): Job {
    return this.actor(jobId).view();
  }

  find(jobId: string): Job | null {
    return this.#actors.get(jobId)?.view() ?? null;
  }

  /** @throws UND_NOT_FOUND */
  actor(jobId: string): JobActor {
    const actor = this.#actors.get(jobId);
    if (!actor) throw undError('UND_NOT_FOUND', { kind: 'job', id: jobId });
    return actor;
  }

  /** The job of a source, if it has one. */
  jobOf(sourceId: string): string | null {
    for (const actor of this.#actors.values()) {
      if (actor.row.sourceId === sourceId) return actor.row.jobId;
    }
    return null;
  }

  /** @throws UND_HOST_NOT_CONFIGURED, UND_HV_… when the host cannot be asked */
  async plan(request: ProtectRequest): Promise<ProtectPlan> {
    return (await this.#plan(request)).plan;
  }

  async #plan(request: ProtectRequest): Promise<ReturnType<typeof planProtection>> {
    this.#o.host.forget();
    const [host, replicaNameTaken] = await Promise.all([
      this.#o.host.view(),
      this.#o.host.hypervisor.isNameTaken(request.replicaName),
    ]);
    const otherJobs = await Promise.all(
      [...this.#actors.values()].map(async (actor) => ({
        jobId: actor.row.jobId,
        sourceId: actor.row.sourceId,
        replicaName: actor.row.settings.replicaName,
        pool: actor.row.settings.pool,
        mayGrowBytes: await this.#mayGrowBytes(actor.row),
      })),
    );
    return planProtection(request, {
      source: this.#o.sources.find(request.sourceId),
      host,
      replicaNameTaken,
      otherJobs,
    });
  }

  async #mayGrowBytes(row: JobRow): Promise<number> {
    const sizes = await Promise.all(
      row.disks.map(async (disk) => {
        if (!disk.replica) return disk.sizeBytes;
        try {
          const layers = await this.#o.host.hypervisor.chain(disk.replica);
          const used = layers.reduce((sum, layer) => sum + layer.allocatedBytes, 0);
          return Math.max(0, disk.sizeBytes - used);
        } catch {
          // Not known counts as the most it can be.
          return disk.sizeBytes;
        }
      }),
    );
    return sizes.reduce((sum, size) => sum + size, 0);
  }

  /**
   * Starts to protect a source; goes on in the background.
   * @throws the first problem of the plan
   */
  protect(request: ProtectRequest): Promise<Job> {
    // One at a time: the second of two equal requests has to see the first one's job.
    const run = this.#planning.then(async () => {
      const [error] = (await this.#plan(request)).errors;
      if (error) throw error;
      const source = this.#o.sources.get(request.sourceId);
      const disks = request.diskIds
        .map((diskId) => source.inventory!.disks.find((disk) => disk.diskId === diskId)!)
        .toSorted((a, b) => Number(b.isBoot) - Number(a.isBoot));
      const row: JobRow = {
        jobId: randomUUID(),
        sourceId: source.sourceId,
        settings: { ...request, exclusions: request.exclusions ?? [...DEFAULT_EXCLUSIONS] },
        phase: { name: 'creating', failed: null },
        provenBootableAt: null,
        createdAt: new Date().toISOString(),
        disks: disks.map((disk) => ({
          diskId: disk.diskId,
          name: disk.name,
          sizeBytes: disk.sizeBytes,
          serial: replicaSerial(randomUUID()),
          replica: null,
        })),
      };
      this.#o.store.put(row);
      const actor = this.#adopt(row);
      this.#o.sources.told(row.sourceId);
      actor.kick();
      return actor.view();
    });
    this.#planning = run.catch(() => undefined);
    return run;
  }

  patch(jobId: string, patch: JobSettingsPatch): Promise<Job> {
    return this.actor(jobId).patch(patch);
  }

  pause(jobId: string): Promise<Job> {
    return this.actor(jobId).pause();
  }

  resume(jobId: string): Promise<Job> {
    return this.actor(jobId).resume();
  }

  mirror(jobId: string, diskId: string | undefined): Promise<Job> {
    return this.actor(jobId).mirror(diskId);
  }

  /** @throws UND_NOT_FOUND, UND_JOB_STATE, UND_AGENT_OUTDATED */
  async verify(jobId: string, diskId: string | undefined): Promise<Job> {
    return this.actor(jobId).verify(diskId);
  }

  /** @throws UND_NOT_FOUND and what JobActor.takePoint throws */
  async takePoint(jobId: string, request: PointRequest): Promise<TakenPoint> {
    return this.actor(jobId).takePoint(request.name ?? 'On demand', request.quiesce ?? true);
  }

  /** @throws UND_NOT_FOUND, UND_JOB_STATE */
  async remove(jobId: string, disks: 'keep' | 'delete'): Promise<Job> {
    return this.actor(jobId).remove(disks);
  }

  #adopt(row: JobRow): JobActor {
    const actor = new JobActor(row, {
      store: this.#o.store,
      checkpoints: this.#o.checkpoints,
      host: this.#o.host,
      locator: this.#o.locator,
      log: this.#o.log,
      jobDir: `${this.#o.journalDir}/${row.jobId}`,
      sourceOf: () => this.#o.sources.find(row.sourceId),
      session: () => this.#o.sessionOf(row.sourceId),
      ownedByFailover: () => this.#o.ownedByFailover(row.jobId),
      underTest: () => this.#o.underTest(row.jobId),
      mounted: () => this.#o.mounted(row.jobId),
      applianceVm: () => this.#vmName(),
      journalBytes: () => this.#journalQuota(),
      changed: () => this.#o.events.jobChanged(row.jobId),
      gone: () => {
        this.#actors.delete(row.jobId);
        this.#o.events.publish({ type: 'job-removed', jobId: row.jobId });
        this.#o.sources.told(row.sourceId);
      },
    });
    this.#actors.set(row.jobId, actor);
    this.#o.events.jobChanged(row.jobId);
    return actor;
  }

  async #vmName(): Promise<string> {
    this.#applianceVm ??= (await this.#o.host.hypervisor.describeHost()).applianceVm;
    return this.#applianceVm;
  }

  /** An equal share for each job, as if there were at least two. */
  async #journalQuota(): Promise<number> {
    const { blocks, bsize } = await statfs(this.#o.journalDir);
    return Math.floor((blocks * bsize * JOURNAL_SHARE) / Math.max(2, this.#actors.size));
  }

  /** Shares change as jobs come and go; and the journals' limits together may be more than the disk. */
  async #pollJournalDisk(): Promise<void> {
    for (const actor of this.#actors.values()) {
      await actor.limitsChanged();
      actor.verifyIfDue();
    }
    const { blocks, bavail, bsize } = await statfs(this.#o.journalDir);
    const users = [...this.#actors.values()].flatMap(({ row, stream }) => {
      if (!stream) return [];
      const { journalBytes } = stream.state();
      // The segment that is being written stays.
      const left = stream.history().segments.slice(0, -1);
      const historyBytes = left.reduce((sum, { bytes }) => sum + bytes, 0);
      return [{ jobId: row.jobId, journalBytes, historyBytes }];
    });
    const disk = { totalBytes: blocks * bsize, freeBytes: bavail * bsize };
    for (const jobId of givingWay(disk, users, await this.#journalQuota())) {
      const actor = this.#actors.get(jobId);
      if (!(await actor?.stream?.makeRoom())) continue;
      this.#o.log.warn({ jobId }, 'the journal disk runs short: the oldest history leaves');
      break;
    }
  }

  /** A VM that somebody starts on a replica disk behind our back writes where we write. */
  async #pollDiskUsers(): Promise<void> {
    const watched = [...this.#actors.values()].flatMap((actor) =>
      actor.watchedDisks().map((disk) => ({ actor, disk })),
    );
    if (watched.length === 0) return;
    const users = await this.#o.host.hypervisor.diskUsers(watched.map(({ disk }) => disk));
    for (const user of users) {
      const found = watched.find(({ disk }) => disk.path === user.disk.path);
      await found?.actor.diskUsed(user);
    }
  }

  async #pollPools(): Promise<void> {
    if (this.#actors.size === 0) return;
    const pools = await this.#o.host.hypervisor.listPools();
    for (const pool of pools) {
      const level = poolLevel(pool, this.#pools.get(pool.name) ?? 'ok');
      this.#pools.set(pool.name, level.name);
      for (const actor of this.#actors.values()) {
        if (actor.row.settings.pool === pool.name) actor.poolChanged(level);
      }
    }
  }
}
