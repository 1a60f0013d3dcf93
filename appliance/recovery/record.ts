/** The persisted state of one failover, and the view of it that the API shows. Plain JSON, no behaviour. */
import { createHash, randomUUID } from 'node:crypto';
import type { SerialisedError } from '../../protocol/errors.ts';
import type {
  AutoEnd,
  Failover,
  FailoverState,
  FailoverStep,
  FailoverStepName,
  MountFacts,
  TestCheckResult,
  TestChecks,
} from '../api/schema.ts';
import type { DiskRef, Firmware } from '../hypervisor/hypervisor.ts';
import { probed } from './probe.ts';
import type { ReplicaSight } from './replica-watch.ts';
import { wantedChecks } from './test-checks.ts';
import type {
  FinalPoint,
  HandoverPlan,
  JobDescription,
  RecoveryPoint,
  Unfixable,
  WantedMoment,
} from './types.ts';

/** In the order in which they run; compensated in the reverse order. `HANDOVER_STEPS` in planned failovers only. */
export const STEP_NAMES = [
  'stop-services',
  'final-mark',
  'power-off',
  'stop-intake',
  'apply',
  'checkpoint',
  'detach',
  'overlay',
  'replay',
  'prepare-guest',
  'define',
  'power-on',
  'prove-boot',
] as const satisfies readonly FailoverStepName[];

const HANDOVER_STEPS: readonly FailoverStepName[] = ['stop-services', 'final-mark', 'power-off'];

/** Of a test failover, in their order: the job's disks and its stream are left alone. */
const TEST_STEP_NAMES = [
  'hold-point',
  'overlay',
  'replay',
  'prepare-guest',
  'define',
  'power-on',
  'prove-boot',
  'test-checks',
] as const satisfies readonly FailoverStepName[];

/** Of a mount, in their order: nothing but its overlays is touched, and no VM is made. */
const MOUNT_STEP_NAMES = [
  'hold-point',
  'overlay',
  'replay',
  'serve',
] as const satisfies readonly FailoverStepName[];

const TITLES: Record<FailoverStepName, string> = {
  'stop-services': 'Stop the chosen services on the source server',
  'final-mark': 'Flush the source server and wait until everything has arrived',
  'power-off': 'Power the source server off',
  'hold-point': 'Take or find a checkpoint and keep it',
  'stop-intake': 'Stop taking data from the source server',
  apply: 'Apply everything that arrived',
  checkpoint: 'Take a checkpoint of the replica disks',
  detach: 'Detach the replica disks from the appliance',
  overlay: 'Create overlays of the point',
  replay: 'Replay the journal up to the chosen point',
  'prepare-guest': 'Prepare the guest for its new hardware',
  define: 'Define the replica VM',
  'power-on': 'Power the replica VM on',
  'prove-boot': 'Prove that it booted',
  'test-checks': 'Make the checks of the test',
  serve: 'Open it for reading',
};

export interface RecordDisk {
  diskId: string;
  sourceName: string;
  boot: boolean;
  sizeBytes: number;
  /** Under which replication has it attached to the appliance. */
  serial: string;
  /**
   * Under which its overlay is attached to the appliance for guest preparation. It has the form of a replica disk's
   * serial, by which the appliance's udev knows what it must not look into.
   */
  prepareSerial: string;
  /** What replication wrote when the failover began. */
  image: DiskRef;
  /** The image as it was at the checkpoint; nothing writes it until commit or undo. */
  frozen?: DiskRef;
  /** The empty layer above `frozen` in which replication goes on when the failover is undone. */
  top?: DiskRef;
  /** What the replica VM writes: on `frozen`, or on the checkpoint's layer when a moment was chosen. */
  overlay?: DiskRef;
  /** Layers between the chosen checkpoint's and `top`: of no use any more once the failover is committed. */
  obsolete?: DiskRef[];
}

/** Names that were given to a command whose outcome is not known yet; persisted before the command is sent. */
export interface LayerIntent {
  attempt: number;
  names: Record<string, string>;
}

/**
 * Where a failover is. `running`, `compensating`, `undoing` and `committing` are taken up again when the appliance
 * starts; the others rest until somebody asks for something.
 */
export type Phase =
  | { name: 'running' }
  | { name: 'compensating'; error: SerialisedError }
  | { name: 'completed'; proof: string }
  | { name: 'failed'; error: SerialisedError }
  | { name: 'undoing' }
  | { name: 'undone' }
  | { name: 'committing' }
  | { name: 'committed' };

export interface TestFacts {
  trigger: 'person' | 'schedule';
  /** How long the VM is kept after the verdict. */
  keepMinutes: number;
  /** Null until it is known, and for ever when the test was ended before. */
  verdict: { passed: boolean; words: string; at: string } | null;
  /** When it is taken down; set with the verdict. */
  endsAt: string | null;
  /** The job's when the test began; absent: none. */
  wanted?: TestChecks;
  checks?: TestCheckResult[];
}

export interface FailoverRecord {
  version: 1;
  failoverId: string;
  jobId: string;
  kind: 'unplanned' | 'planned' | 'test' | 'mount';
  /** Absent in records of before planned failovers. */
  sourceId?: string;
  /** What is done on the source; null: nothing, the failover is unplanned. */
  plan?: HandoverPlan | null;
  /** The final mark, once it is durable. */
  final?: FinalPoint | null;
  /** A source that comes back is told to cut itself off. */
  isolateOnReturn?: boolean;
  /** The source was enrolled anew after its failover: it is a source like any other. */
  fenceLifted?: boolean;
  /** Addresses on which nobody may answer when the replica is powered on. Absent or empty: nothing is looked at. */
  probe?: string[];
  /** Saved before the source is told to power off or to be passive. */
  powerOffAsked?: boolean;
  /** Of a test failover. */
  test?: TestFacts | null;
  /** What is done by itself, at `at` when that is known; null or absent: nothing, or a person has decided. */
  autoEnd?: (AutoEnd & { at: string | null }) | null;
  /** Of a mount. */
  mount?: MountFacts | null;
  replicaName: string;
  sourceName: string;
  startedAt: string;
  endedAt: string | null;
  phase: Phase;
  steps: FailoverStep[];
  applianceVm: string;
  vm: {
    uuid: string;
    vcpus: number;
    memoryBytes: number;
    firmware: Firmware;
    network: string;
    mac: string;
  };
  nics: JobDescription['nics'];
  disks: RecordDisk[];
  checkpointIntent: LayerIntent | null;
  overlayIntent: LayerIntent | null;
  /** True from the moment when a guest preparation may have written to the overlays. */
  overlaysTouched: boolean;
  /** The moment that was asked for; null or absent: the newest point. */
  wanted?: WantedMoment | null;
  /** What that is recovered from; set when intake has been stopped. */
  chosen?: RecoveryPoint | null;
  /** The overlays are at the chosen point: nothing else was written to them before guest preparation. */
  replayed?: boolean;
  point: { seq: number | null; sourceTime: string | null; lossMs: number | null };
  guestChanges: string[];
  unfixable: Unfixable[];
  addresses: string[];
  /** File in the evidence folder. */
  screenshot: string | null;
  /** What could not be tidied up and does no harm. */
  notes: string[];
}

const hex = (text: string): string => text.replace(/[^0-9a-fA-F]/g, '').toLowerCase();

/**
 * The replica's MAC address: always the same for a job, so that DHCP leases and the guest's own rules stay valid over
 * several failovers, and never the source's (both may be on one network). 52:54:00 is QEMU's prefix.
 */
export function replicaMac(jobId: string, nic: string): string {
  const digest = createHash('sha256').update(`understudy:${jobId}:${nic}`).digest('hex');
  return `52:54:00:${digest.slice(0, 2)}:${digest.slice(2, 4)}:${digest.slice(4, 6)}`;
}

export interface StartOptions {
  /** Null or absent: the source is left as it is. */
  plan?: HandoverPlan | null;
  /** The moment of the source to go back to; null or absent, and in a planned failover: the newest point. */
  wanted?: WantedMoment | null;
  /** A person knows that the source still answers on its address, and wants the replica all the same. */
  evenIfAlive?: boolean;
  /** Null or absent: it stays as it is until a person decides. */
  autoEnd?: AutoEnd | null;
  /** A source that comes back cuts itself off from the network. */
  isolateOnReturn?: boolean;
  /** Chosen by the caller, who may ask again after a crash: a failover that has it is not begun twice. */
  failoverId?: string;
}

const stepNames = (isOfMoment: boolean, isPlanned: boolean): FailoverStepName[] =>
  STEP_NAMES.filter(
    (name) => (name !== 'replay' || isOfMoment) && (isPlanned || !HANDOVER_STEPS.includes(name)),
  );

export function newRecord(
  job: JobDescription,
  applianceVm: string,
  now: string,
  {
    wanted = null,
    plan = null,
    evenIfAlive = false,
    autoEnd = null,
    isolateOnReturn = false,
    failoverId,
  }: StartOptions = {},
  ids: { failoverId: string; vmUuid: string } = {
    failoverId: failoverId ?? randomUUID(),
    vmUuid: randomUUID(),
  },
): FailoverRecord {
  const primary = job.nics.find((nic) => nic.primary) ?? job.nics[0];
  return {
    version: 1,
    failoverId: ids.failoverId,
    jobId: job.jobId,
    kind: plan ? 'planned' : 'unplanned',
    sourceId: job.sourceId,
    plan,
    final: null,
    powerOffAsked: false,
    isolateOnReturn,
    autoEnd: autoEnd && { ...autoEnd, at: null },
    // One that stays on by its plan answers, of course.
    probe:
      evenIfAlive || plan?.powerOff === false
        ? []
        : probed(job.nics.flatMap(({ addresses = [] }) => addresses)),
    replicaName: job.replicaName,
    sourceName: job.sourceName,
    startedAt: now,
    endedAt: null,
    phase: { name: 'running' },
    steps: waiting(stepNames(wanted !== null, plan !== null), plan),
    applianceVm,
    vm: {
      uuid: ids.vmUuid,
      vcpus: job.vcpus,
      memoryBytes: job.memoryBytes,
      firmware: job.firmware,
      network: job.network,
      mac: replicaMac(job.jobId, primary?.name ?? 'net0'),
    },
    nics: job.nics,
    disks: job.disks.map((disk) => ({
      diskId: disk.diskId,
      sourceName: disk.sourceName,
      boot: disk.boot,
      sizeBytes: disk.sizeBytes,
      serial: disk.serial,
      prepareSerial: `u${createHash('sha256').update(`${ids.failoverId}:${disk.diskId}`).digest('hex').slice(0, 19)}`,
      image: disk.image,
    })),
    checkpointIntent: null,
    overlayIntent: null,
    overlaysTouched: false,
    wanted,
    chosen: null,
    point: { seq: null, sourceTime: null, lossMs: wanted ? null : job.lagMs },
    guestChanges: [],
    unfixable: [],
    addresses: [],
    screenshot: null,
    notes: [],
  };
}

const waiting = (
  names: readonly FailoverStepName[],
  plan: HandoverPlan | null = null,
): FailoverStep[] =>
  names.map((name) => ({
    name,
    title:
      name === 'power-off' && !plan?.powerOff
        ? "Make the source server's agent passive"
        : TITLES[name],
    state: 'waiting',
    detail: null,
    startedAt: null,
    endedAt: null,
  }));

/** A VM of its own: it may run beside the source and beside a replica. */
export function newTestRecord(
  job: JobDescription,
  applianceVm: string,
  now: string,
  network: string,
  options: Pick<TestFacts, 'trigger' | 'keepMinutes'> &
    Pick<StartOptions, 'failoverId'> & { wanted: WantedMoment | null },
): FailoverRecord {
  const { wanted, trigger, keepMinutes, failoverId } = options;
  const record = newRecord(job, applianceVm, now, { wanted, failoverId });
  const primary = job.nics.find((nic) => nic.primary) ?? job.nics[0];
  return {
    ...record,
    kind: 'test',
    // Its network is an isolated one.
    probe: [],
    test: {
      trigger,
      keepMinutes,
      verdict: null,
      endsAt: null,
      wanted: job.testChecks,
      checks: wantedChecks(job.testChecks),
    },
    replicaName: testName(job.replicaName),
    steps: waiting(
      TEST_STEP_NAMES.filter(
        (name) =>
          (name !== 'replay' || wanted) &&
          (name !== 'test-checks' || wantedChecks(job.testChecks).length > 0),
      ),
    ),
    vm: { ...record.vm, network, mac: replicaMac(job.jobId, `test of ${primary?.name ?? 'net0'}`) },
  };
}

/** A point that is only looked at: it has neither VM nor network. */
export function newMountRecord(
  job: JobDescription,
  applianceVm: string,
  now: string,
  options: Pick<MountFacts, 'purpose' | 'keepMinutes'> & { wanted: WantedMoment | null },
): FailoverRecord {
  const { wanted, purpose, keepMinutes } = options;
  return {
    ...newRecord(job, applianceVm, now, { wanted }),
    kind: 'mount',
    probe: [],
    mount: { purpose, keepMinutes, endsAt: null, volumes: [], exports: [] },
    steps: waiting(MOUNT_STEP_NAMES.filter((name) => name !== 'replay' || wanted)),
  };
}

/** Whether it leaves the job, its disks and its stream alone, and is taken down again after its time. */
export const isAside = ({ kind }: Pick<FailoverRecord, 'kind'>): boolean =>
  kind === 'test' || kind === 'mount';

/** Of the VM of a test failover; names of VMs have at most 63 characters. */
export const testName = (replicaName: string): string => `${replicaName.slice(0, 58)}-test`;

/** The disks as the replica VM gets them: the boot disk first, the others in the source's order. */
export function vmDiskOrder<T extends { boot: boolean }>(disks: readonly T[]): T[] {
  return [...disks.filter((disk) => disk.boot), ...disks.filter((disk) => !disk.boot)];
}

/** A fresh name for a layer: says whose it is, unique per failover and attempt. At most 52 characters. */
export function layerName(
  record: FailoverRecord,
  role: 'checkpoint' | 'replica',
  index: number,
  attempt: number,
): string {
  const job = hex(record.jobId).slice(0, 8) || 'job';
  const failover = hex(record.failoverId).slice(0, 8) || 'failover';
  return `${job}-d${index}-${role}-${failover}-${attempt}`;
}

const apiError = (error: SerialisedError) => ({
  code: error.code,
  message: error.message,
  hint: error.hint,
});

function apiState(phase: Phase): FailoverState {
  switch (phase.name) {
    case 'compensating':
    case 'failed':
      return { name: phase.name, error: apiError(phase.error) };
    default:
      return phase;
  }
}

const testToApi = (
  { trigger, keepMinutes, verdict, endsAt, checks = [] }: TestFacts,
  network: string,
): Failover['test'] => ({ trigger, network, keepMinutes, verdict, endsAt, checks });

/** @param heldBack why what is due by itself is not done */
export function toApi(
  record: FailoverRecord,
  replicaVm: ReplicaSight | null = null,
  heldBack: string | null = null,
): Failover {
  return {
    failoverId: record.failoverId,
    jobId: record.jobId,
    kind: record.kind,
    replicaName: record.replicaName,
    startedAt: record.startedAt,
    endedAt: record.endedAt,
    state: apiState(record.phase),
    steps: record.steps.map((step) => ({ ...step })),
    point: { ...record.point, wanted: record.wanted?.sourceTime ?? null },
    test: record.test ? testToApi(record.test, record.vm.network) : null,
    mount: record.mount ?? null,
    isolateOnReturn: record.isolateOnReturn ?? false,
    autoEnd: record.autoEnd ? { ...record.autoEnd, heldBack } : null,
    guestChanges: [
      ...record.guestChanges,
      ...record.unfixable.map((item) => `Not done (${item.code}): ${item.message}`),
    ],
    // Those that the replica has now; else those that its proof of boot saw.
    addresses: replicaVm?.addresses.length ? [...replicaVm.addresses] : [...record.addresses],
    hasScreenshot: record.screenshot !== null,
    replicaVm: replicaVm && {
      state: replicaVm.state,
      reason: replicaVm.reason,
      since: replicaVm.since,
    },
    notes: [...record.notes],
  };
}
