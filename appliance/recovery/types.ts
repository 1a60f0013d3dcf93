/**
 * What the failover engine needs from its neighbours: the job service, the store, guest preparation. They implement
 * these; the engine imports nothing of theirs.
 */
import type { MountFacts, TestChecks } from '../api/schema.ts';
import type { DiskRef, Firmware } from '../hypervisor/hypervisor.ts';
import type { FailoverRecord } from './record.ts';

/** One protected disk of a job, in the source's order. */
export interface JobDiskImage {
  diskId: string;
  /** The kernel's name on the source, such as `vda`: what the guest's own configuration may call it. */
  sourceName: string;
  boot: boolean;
  sizeBytes: number;
  /** Under which it is attached to the appliance. */
  serial: string;
  /** The image that replication writes: the top of its chain. */
  image: DiskRef;
}

export interface SourceNic {
  name: string;
  mac: string;
  /** True for the one with the default route. */
  primary: boolean;
  /** Its addresses, `ADDRESS/BITS`, when the inventory was taken. */
  addresses?: string[];
}

/** What a planned failover does on the source before it takes its place. */
export interface HandoverPlan {
  /** systemd units, stopped in this order. */
  stopUnits: string[];
  /** False: the source stays on, and its agent passive. */
  powerOff: boolean;
}

/** The final mark, durable here. */
export interface FinalPoint {
  seq: number;
  sourceTime: string | null;
  /** The file systems were flushed and frozen at the mark, and every pre-hook had succeeded; if not, why. */
  quiesced: boolean;
  reason: string | null;
}

/** Everything about a job that a failover fixes at its start; later changes of the job don't change a failover. */
export interface JobDescription {
  jobId: string;
  sourceId: string;
  sourceName: string;
  replicaName: string;
  network: string;
  vcpus: number;
  memoryBytes: number;
  firmware: Firmware;
  disks: JobDiskImage[];
  nics: SourceNic[];
  /** Whether the agent is connected. */
  sourceOnline: boolean;
  /** Age of the newest source moment that is durable here. Null when unknown. */
  lagMs: number | null;
  /** Whether the replica disks hold a consistent point; if not, why ("the first mirror is at 40 %"). */
  recoverable: { ok: true } | { ok: false; reason: string };
  /** What a test of it has to show beside a boot; absent: nothing. */
  testChecks?: TestChecks;
}

/** The moment that a failover was asked for. */
export interface WantedMoment {
  /** By the source's wall clock. */
  sourceTime: string;
  /** When it was asked for, if not at its start: a member of a group waits for its turn. */
  askedAt?: string;
}

/** What a failover to a chosen moment recovers. */
export interface RecoveryPoint {
  seq: number;
  sourceTime: string;
  /** The checkpoint's frame: from the next one on the journal is replayed. */
  baseSeq: number;
  /** The checkpoint's layers. */
  base: { diskId: string; image: DiskRef }[];
}

/**
 * The job service's side of a failover. Every method is idempotent and may be called again after the appliance's
 * crash. While a failover of the job is active or completed (`FailoverEngine.ownsDisks`), the job service neither
 * attaches nor opens nor writes the job's disks on its own.
 */
export interface JobHandle {
  describe(): Promise<JobDescription>;

  /**
   * Planned failover: the units are stopped on the source. Resolves with those that ran.
   * Throws `UND_AGENT_OFFLINE`, `UND_HANDOVER_FAILED`, `UND_LINK_…`.
   */
  prepareHandover(failoverId: string, stopUnits: string[]): Promise<string[]>;

  /**
   * Planned failover: resolves when everything that was written on the source before the final mark is durable here.
   * Called again it places another mark, with what was written since. Throws as above, and `UND_POINT_FAILED`.
   */
  finalMark(failoverId: string, onProgress: (text: string) => void): Promise<FinalPoint>;

  /** Planned failover: the source powers itself off or becomes passive. Throws as above, and `UND_HANDOVER_UNKNOWN`. */
  powerOff(failoverId: string, how: 'power-off' | 'passive', reason: string): Promise<void>;

  /**
   * The source starts what was stopped for this failover. Null when its agent is not connected: it is told when it comes
   * back and the failover is over. Throws `UND_HANDOVER_FAILED` when something could not be started.
   */
  cancelHandover(failoverId: string): Promise<string[] | null>;

  /**
   * From its return on, no further frame of this job is accepted or acknowledged, also after a restart, until
   * `reopen`. Returns the newest durable point.
   */
  stopIntake(
    failoverId: string,
    reason: string,
  ): Promise<{ durableSeq: number; sourceTime: string | null }>;

  /**
   * Applies all that is durable to the replica disks and flushes them; ends with `appliedSeq == durableSeq`. Attaches
   * and opens the disks first when a restart of the appliance has lost them. Reports progress in words. From its return
   * on no checkpoint of the job's own is taken: the images are those that the failover goes on with.
   */
  drainApply(
    onProgress: (text: string) => void,
  ): Promise<{ appliedSeq: number; images: { diskId: string; image: DiskRef }[] }>;

  /** Stops apply and closes the appliance's handles on the replica disks, after a flush. */
  closeDisks(): Promise<void>;

  /**
   * The replica disks are the job's again: persists their images, opens them (they are attached) and takes frames
   * again. `mirror` tells whether the disks are exactly where apply left them ('none') or the source has to be compared
   * ('difference').
   */
  reopen(
    disks: { diskId: string; image: DiskRef }[],
    options: { mirror: 'none' | 'difference'; reason: string },
  ): Promise<void>;

  /** A moment of the source's wall clock by the appliance's: the earliest that it may have been. */
  earliestHere(sourceTime: string): string;

  /**
   * The newest point at or before a moment, and the checkpoint that its recovery begins from; where the journal does not
   * lead there (any more), the newest checkpoint at or before it, without a replay. With a holder, nothing is
   * merged into or away from that checkpoint's layers until the failover is taken back or the job ends.
   * Throws `UND_POINT_GONE`.
   */
  choosePoint(sourceTime: string, failoverId: string | null): Promise<RecoveryPoint>;

  /**
   * For a test or a mount: as `choosePoint` with a holder; without a moment, a checkpoint is taken now. Replication goes on. Throws
   * `UND_FAILOVER_NOT_READY`, `UND_POINT_GONE`, `UND_POOL_LOW`, `UND_HV_…`.
   * @param reason why a checkpoint is taken, in words
   */
  holdPoint(sourceTime: string | null, failoverId: string, reason: string): Promise<RecoveryPoint>;

  /** Ends what `holdPoint` holds. */
  releasePoint(failoverId: string): Promise<void>;

  /**
   * Applies the journal's frames in (point.baseSeq, point.seq] to overlays of the checkpoint, and flushes them.
   * Throws `UND_HISTORY_GONE`, `UND_REPLAY_FAILED`.
   */
  replay(
    point: RecoveryPoint,
    devices: { diskId: string; devicePath: string }[],
    onProgress: (text: string) => void,
    signal: AbortSignal,
  ): Promise<void>;

  /**
   * When an agent on the machine with this SMBIOS UUID said hello, at `since` or later (both ISO 8601); null until
   * then. Only the replica VM has the UUID: another copy of the source that calls in proves nothing.
   */
  passiveHelloAt(vmUuid: string, since: string): Promise<string | null>;

  /** The failover is final: the job ends and forgets its disks without deleting them. */
  release(failoverId: string): Promise<void>;
}

/** Durable memory of failovers. `save` returns only when the record would survive a crash. */
export interface FailoverStore {
  loadAll(): Promise<FailoverRecord[]> | FailoverRecord[];
  save(record: FailoverRecord): Promise<void> | void;
}

/** A disk to prepare: a block device of the appliance, an overlay that was attached for this. */
export interface PrepareDisk {
  sourceName: string;
  devicePath: string;
  boot: boolean;
}

export interface PrepareRequest {
  failoverId: string;
  jobId: string;
  /** ISO 8601; also dates the backups of changed files. */
  at: string;
  firmware: Firmware;
  disks: PrepareDisk[];
  /** Which old interface becomes which new one. */
  nics: { name: string; sourceMac: string; mac: string }[];
  /** Interfaces that the replica does not get. */
  droppedNics: string[];
}

/** Something in the guest that preparation could not take care of. */
export interface Unfixable {
  code: string;
  message: string;
}

export interface PrepareReport {
  os: string | null;
  /** What was changed, in words. */
  changes: string[];
  unfixable: Unfixable[];
}

export interface GuestPreparer {
  /** Throws `UND_GUEST_PREPARE_FAILED`, `UND_GUEST_ISOLATION`. */
  prepare(request: PrepareRequest, signal: AbortSignal): Promise<PrepareReport>;
}

/** The overlays of a point, attached to the appliance, to be looked at. */
export interface ServeRequest {
  mountId: string;
  purpose: MountFacts['purpose'];
  disks: (PrepareDisk & { sizeBytes: number })[];
  keepMinutes: number;
  /** Called once when what serves it has ended without having been told to. */
  onGone(reason: string): void;
}

/** Serves mounted points to people and backup tools. Nothing of it outlives the appliance's process. */
export interface PointServer {
  /** Throws `UND_MOUNT_FAILED`, `UND_GUEST_ISOLATION`. What it began is taken back by `close`. */
  open(
    request: ServeRequest,
    signal: AbortSignal,
  ): Promise<Pick<MountFacts, 'volumes' | 'exports'>>;

  /**
   * Ends what serves it, downloads included; from its return on nothing has the disks open, also when they were opened by
   * a former process of the appliance. Throws `UND_MOUNT_BUSY`: ask again.
   */
  close(mountId: string, devicePaths: readonly string[]): Promise<void>;
}
