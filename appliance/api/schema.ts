/**
 * What the appliance's HTTP API says and hears: the one contract between the API, the page and scripts.
 * Fastify validates with these schemas and OpenAPI is generated from them; the page imports the types.
 * Units are in the names. Every time is an ISO 8601 string in UTC.
 */
import Type, { type Static } from 'typebox';
import { PointName } from '../../protocol/control.ts';
import {
  EXCLUSION_PATTERN,
  MAX_EXCLUSION_CHARS,
  MAX_EXCLUSIONS,
} from '../../protocol/exclusions.ts';
import { HookReport } from '../../protocol/marks.ts';
import { UNIT_NAME_PATTERN } from '../../protocol/unit-names.ts';

const Nullable = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
const Id = Type.String({ minLength: 1, maxLength: 64 });
const Iso = Type.String();

export const ApiError = Type.Object({
  code: Type.String({ description: 'UND_… code, stable' }),
  message: Type.String({ description: 'what happened, to what' }),
  hint: Type.String({ description: 'what to do about it' }),
  field: Type.Optional(Type.String({ description: 'path of the refused field' })),
});
export type ApiError = Static<typeof ApiError>;

// ---- session and users -------------------------------------------------------------------------------------------
export const Role = Type.Union([
  Type.Literal('admin'),
  Type.Literal('operator'),
  Type.Literal('viewer'),
]);
export type Role = Static<typeof Role>;
export const User = Type.Object({
  username: Type.String(),
  role: Role,
  mustChangePassword: Type.Boolean(),
  createdAt: Iso,
});
export type User = Static<typeof User>;
export const LoginRequest = Type.Object({
  username: Type.String({ minLength: 1, maxLength: 64 }),
  password: Type.String({ minLength: 1, maxLength: 256 }),
});
export const PasswordChange = Type.Object({
  current: Type.String({ maxLength: 256 }),
  next: Type.String({ minLength: 10, maxLength: 256 }),
});
export const NewUser = Type.Object({
  username: Type.String({ pattern: '^[a-z][a-z0-9._-]{0,31}$' }),
  password: Type.String({ minLength: 10, maxLength: 256 }),
  role: Role,
});

// ---- the appliance itself ----------------------------------------------------------------------------------------
export const SystemInfo = Type.Object({
  version: Type.String(),
  applianceId: Id,
  caFingerprintSha256: Type.String(),
  startedAt: Iso,
  journal: Type.Object({
    path: Type.String(),
    totalBytes: Type.Number(),
    freeBytes: Type.Number(),
  }),
  agentPort: Type.Integer(),
});
export type SystemInfo = Static<typeof SystemInfo>;

// ---- target host -------------------------------------------------------------------------------------------------
export const Pool = Type.Object({
  name: Type.String(),
  type: Type.String(),
  totalBytes: Type.Number(),
  freeBytes: Type.Number(),
  usable: Type.Boolean(),
  reason: Type.Optional(Type.String({ description: 'why the pool cannot hold replica disks' })),
});
export type Pool = Static<typeof Pool>;
export const Network = Type.Object({
  name: Type.String(),
  bridge: Nullable(Type.String()),
  mode: Type.String({ description: 'nat, route, bridge, open or isolated' }),
  active: Type.Boolean(),
});
export type Network = Static<typeof Network>;
export const HostView = Type.Object({
  name: Type.String(),
  hypervisor: Type.String({ description: 'e.g. QEMU 7.2.0, libvirt 9.0.0' }),
  cpuModel: Type.String(),
  cpuCount: Type.Integer(),
  cpuUsePercent: Nullable(Type.Number()),
  memoryTotalBytes: Type.Number(),
  memoryFreeBytes: Type.Number(),
  networkRxBytesPerSec: Nullable(Type.Number()),
  networkTxBytesPerSec: Nullable(Type.Number()),
  acceleration: Type.Union([Type.Literal('kvm'), Type.Literal('tcg')]),
  pools: Type.Array(Pool),
  networks: Type.Array(Network),
  vms: Type.Array(
    Type.Object({
      name: Type.String(),
      state: Type.String(),
      isAppliance: Type.Boolean(),
      isReplica: Type.Boolean(),
    }),
  ),
});
export type HostView = Static<typeof HostView>;

// ---- source servers ----------------------------------------------------------------------------------------------
export const SshTarget = Type.Object({
  address: Type.String({ minLength: 1, maxLength: 253, pattern: '^[A-Za-z0-9.:_-]+$' }),
  port: Type.Integer({ minimum: 1, maximum: 65535, default: 22 }),
  username: Type.String({ minLength: 1, maxLength: 64, pattern: '^[A-Za-z_][A-Za-z0-9._-]*$' }),
  password: Type.Optional(
    Type.String({ maxLength: 512, description: 'also used for sudo; forgotten after the call' }),
  ),
  privateKey: Type.Optional(Type.String({ maxLength: 32768 })),
  passphrase: Type.Optional(Type.String({ maxLength: 512 })),
  acceptHostKey: Type.Optional(
    Type.String({
      maxLength: 128,
      description:
        'SHA256:… fingerprint that the person confirmed; needed at first contact or after a change',
    }),
  ),
});
export type SshTarget = Static<typeof SshTarget>;

export const PreflightCheck = Type.Object({
  id: Type.String({
    description:
      'ssh, sudo, os, kernel, btf, bpf, space, disks, agent-port, memory, clock, clone …',
  }),
  title: Type.String(),
  result: Type.Union([Type.Literal('ok'), Type.Literal('warning'), Type.Literal('failed')]),
  detail: Type.String(),
  code: Type.Optional(Type.String()),
  hint: Type.Optional(Type.String()),
});
export type PreflightCheck = Static<typeof PreflightCheck>;
export const PreflightReport = Type.Object({
  ok: Type.Boolean(),
  hostKeyFingerprint: Nullable(Type.String()),
  hostKeyKnown: Type.Boolean(),
  checks: Type.Array(PreflightCheck),
});
export type PreflightReport = Static<typeof PreflightReport>;

export const FileSystem = Type.Object({
  type: Type.String(),
  mountpoint: Nullable(Type.String()),
  sizeBytes: Nullable(Type.Number()),
  usedBytes: Nullable(Type.Number()),
  label: Nullable(Type.String()),
  uuid: Nullable(Type.String()),
});
export const Volume = Type.Object({
  name: Type.String({ description: 'e.g. vda1, vg0-root' }),
  kind: Type.Union([
    Type.Literal('partition'),
    Type.Literal('lv'),
    Type.Literal('md'),
    Type.Literal('crypt'),
    Type.Literal('whole'),
    Type.Literal('other'),
  ]),
  sizeBytes: Type.Number(),
  fileSystem: Nullable(FileSystem),
});
export const SourceDisk = Type.Object({
  diskId: Id,
  name: Type.String({ description: 'kernel name, e.g. vda' }),
  devicePath: Type.String(),
  sizeBytes: Type.Number(),
  usedBytes: Nullable(Type.Number({ description: 'in mounted file systems' })),
  model: Nullable(Type.String()),
  serial: Nullable(Type.String()),
  bus: Nullable(Type.String()),
  partitionTable: Nullable(Type.String()),
  volumes: Type.Array(Volume),
  isBoot: Type.Boolean(),
  protectable: Type.Boolean(),
  reason: Type.Optional(Type.String({ description: 'why it cannot be protected' })),
});
export type SourceDisk = Static<typeof SourceDisk>;
export const Inventory = Type.Object({
  takenAt: Iso,
  hostname: Type.String(),
  os: Type.String({ description: 'e.g. Debian GNU/Linux 12 (bookworm)' }),
  kernel: Type.String(),
  firmware: Type.Union([Type.Literal('bios'), Type.Literal('uefi')]),
  virtualisation: Nullable(Type.String()),
  cpuModel: Type.String(),
  cpuCount: Type.Integer(),
  memoryBytes: Type.Number(),
  disks: Type.Array(SourceDisk),
  nics: Type.Array(
    Type.Object({
      name: Type.String(),
      mac: Type.String(),
      addresses: Type.Array(Type.String({ description: 'CIDR' })),
      gateway: Nullable(Type.String()),
      dhcp: Nullable(Type.Boolean()),
    }),
  ),
  /** Absent with agents of before, and where there is no systemd. */
  services: Type.Optional(
    Type.Array(Type.Object({ unit: Type.String(), description: Type.String() }), {
      maxItems: 300,
      description: 'running services that a planned failover could stop',
    }),
  ),
  machine: Type.Object({
    smbiosUuid: Nullable(Type.String()),
    bootId: Type.String(),
    diskSerials: Type.Array(Type.String()),
  }),
});
export type Inventory = Static<typeof Inventory>;

export const SourceState = Type.Union([
  Type.Object({ name: Type.Literal('installing'), step: Type.String() }),
  Type.Object({ name: Type.Literal('install-failed'), error: ApiError }),
  Type.Object({ name: Type.Literal('waiting-for-agent'), since: Iso }),
  Type.Object({ name: Type.Literal('online'), since: Iso }),
  Type.Object({ name: Type.Literal('offline'), since: Iso, reason: Type.String() }),
  Type.Object({ name: Type.Literal('passive'), reason: Type.String() }),
  Type.Object({ name: Type.Literal('refused'), error: ApiError }),
  Type.Object({ name: Type.Literal('uninstalling'), step: Type.String() }),
]);
export type SourceState = Static<typeof SourceState>;
export const Source = Type.Object({
  sourceId: Id,
  name: Type.String(),
  address: Type.String(),
  state: SourceState,
  agentVersion: Nullable(Type.String()),
  certificate: Nullable(
    Type.Object({ serial: Type.String(), notAfter: Iso, revoked: Type.Boolean() }),
  ),
  /** An agent with the identity of this source was turned away lately, such as a clone. */
  alert: Type.Optional(ApiError),
  inventory: Nullable(Inventory),
  jobId: Nullable(Id),
  addedAt: Iso,
});
export type Source = Static<typeof Source>;
export const UninstallRequest = Type.Object({
  ssh: Type.Optional(SshTarget),
  force: Type.Optional(
    Type.Boolean({ description: 'forget the source although it cannot be reached' }),
  ),
});
export type UninstallRequest = Static<typeof UninstallRequest>;

// ---- protection jobs ---------------------------------------------------------------------------------------------
export const Compression = Type.Union([
  Type.Literal('none'),
  Type.Literal('fast'),
  Type.Literal('balanced'),
  Type.Literal('best'),
]);
export type Compression = Static<typeof Compression>;
/** How far the history goes back from the newest point; null: as far as the size allows. Absent: 24. */
const HistoryHours = Nullable(Type.Integer({ minimum: 1, maximum: 8784 }));
/** What the job's journal may take of the journal disk; null or absent: an equal share. */
const HistoryBytes = Nullable(Type.Integer({ minimum: 1024 ** 3 }));
/** A power of two is made of it, and never more than an eighth of the source server's memory. */
const RingBytes = Nullable(
  Type.Integer({
    minimum: 16 * 1024 * 1024,
    maximum: 1024 * 1024 * 1024,
    description: "of the capture's ring in the source's memory; null: by the memory's size",
  }),
);
const CheckpointMinutes = Type.Integer({
  minimum: 1,
  maximum: 1440,
  description:
    'a checkpoint of the replica disks is taken this often when something was applied, earlier when 4 GiB were; 15',
});
export const Exclusions = Type.Array(
  Type.String({ maxLength: MAX_EXCLUSION_CHARS, pattern: EXCLUSION_PATTERN }),
  {
    maxItems: MAX_EXCLUSIONS,
    description:
      'absolute paths on the source server, with * and ? within a name and ** for any folders: what lies there is not mirrored',
  },
);
const CarryRestarts = Type.Boolean({
  description:
    'carry what changed over planned restarts of the source server, so that its disks are not compared anew; off if absent',
});
const PointEveryMinutes = Type.Optional(
  Nullable(
    Type.Integer({
      minimum: 1,
      maximum: 10_080,
      description: 'take a point with the applications at rest so often; null or absent: never',
    }),
  ),
);
const VerifyEvery = Type.Optional(
  Type.Union([Type.Literal('off'), Type.Literal('daily'), Type.Literal('weekly')], {
    description: 'compare the replica disks with the source so often; off if absent',
  }),
);
const StopUnits = Type.Array(Type.String({ maxLength: 256, pattern: UNIT_NAME_PATTERN }), {
  maxItems: 64,
  description:
    "systemd units that a planned failover stops on the source server, in this order; a failover's own list counts instead of the job's",
});
export const TestEvery = Type.Union(
  [Type.Literal('off'), Type.Literal('daily'), Type.Literal('weekly'), Type.Literal('monthly')],
  { description: 'scheduled test failovers, at 03:00 UTC: each day, on Sundays, on the 1st; off' },
);
export type TestEvery = Static<typeof TestEvery>;
export const TestChecks = Type.Object(
  {
    tcpPorts: Type.Array(Type.Integer({ minimum: 1, maximum: 65_535 }), {
      maxItems: 32,
      uniqueItems: true,
      description: 'a process in the guest has to listen on each, not on the loopback address only',
    }),
    script: Nullable(
      Type.Object(
        {
          text: Type.String({ minLength: 1, maxLength: 32_768 }),
          timeLimitSeconds: Type.Integer({ minimum: 1, maximum: 1800 }),
        },
        { description: 'run as root in the guest; exit status 0 passes' },
      ),
    ),
  },
  {
    description:
      'what a test failover has to show beside a boot; made inside the guest by its QEMU guest agent',
  },
);
export type TestChecks = Static<typeof TestChecks>;
export const ProtectRequest = Type.Object({
  sourceId: Id,
  diskIds: Type.Array(Id, { minItems: 1 }),
  pool: Type.String({ minLength: 1 }),
  network: Type.String({ minLength: 1 }),
  replicaName: Type.String({ pattern: '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' }),
  vcpus: Type.Integer({ minimum: 1, maximum: 512 }),
  memoryBytes: Type.Integer({ minimum: 128 * 1024 * 1024 }),
  compression: Compression,
  bandwidthLimitBytesPerSec: Nullable(Type.Integer({ minimum: 65536 })),
  historyHours: Type.Optional(HistoryHours),
  historyBytes: Type.Optional(HistoryBytes),
  ringBytes: Type.Optional(RingBytes),
  checkpointMinutes: Type.Optional(CheckpointMinutes),
  /** Left out: DEFAULT_EXCLUSIONS. */
  exclusions: Type.Optional(Exclusions),
  carryRestarts: Type.Optional(CarryRestarts),
  pointEveryMinutes: PointEveryMinutes,
  verifyEvery: VerifyEvery,
  stopUnits: Type.Optional(StopUnits),
  testEvery: Type.Optional(TestEvery),
  testChecks: Type.Optional(TestChecks),
});
export type ProtectRequest = Static<typeof ProtectRequest>;
export const ProtectPlan = Type.Object({
  ok: Type.Boolean(),
  actions: Type.Array(Type.String({ description: 'what will be done, in order, in words' })),
  warnings: Type.Array(Type.String()),
  problems: Type.Array(ApiError),
});
export type ProtectPlan = Static<typeof ProtectPlan>;

export const JobState = Type.Union([
  Type.Object({ name: Type.Literal('creating'), step: Type.String() }),
  Type.Object({ name: Type.Literal('waiting-for-agent'), reason: Type.String() }),
  Type.Object({ name: Type.Literal('mirroring'), reason: Type.String() }),
  Type.Object({ name: Type.Literal('catching-up'), reason: Type.String() }),
  Type.Object({ name: Type.Literal('protected') }),
  Type.Object({ name: Type.Literal('paused'), reason: Type.String() }),
  Type.Object({ name: Type.Literal('failing-over'), failoverId: Id }),
  Type.Object({ name: Type.Literal('failed-over'), failoverId: Id }),
  Type.Object({ name: Type.Literal('error'), error: ApiError }),
  Type.Object({ name: Type.Literal('deleting'), step: Type.String() }),
]);
export type JobState = Static<typeof JobState>;
export const StreamMode = Type.Object({
  mode: Type.Union([
    Type.Literal('ordered'),
    Type.Literal('tracking'),
    Type.Literal('draining'),
    Type.Literal('none'),
  ]),
  reason: Nullable(Type.String()),
  since: Nullable(Iso),
});
/** Mismatches and repaired are blocks of 4 KiB. */
export const DiskVerification = Type.Object({
  running: Nullable(
    Type.Object({
      doneBytes: Type.Number({ description: 'of the disk; told each 4 GiB' }),
      mismatches: Type.Number(),
    }),
  ),
  last: Nullable(
    Type.Object({
      at: Iso,
      comparedBytes: Type.Number({ description: 'without what is free, excluded or swap' }),
      mismatches: Type.Number({ description: 'differed although no write accounts for it' }),
      repaired: Type.Number({ description: 'of them; looked at again afterwards' }),
    }),
  ),
});
export type DiskVerification = Static<typeof DiskVerification>;
export const JobDisk = Type.Object({
  diskId: Id,
  name: Type.String(),
  sizeBytes: Type.Number(),
  replicaPath: Nullable(Type.String()),
  serial: Type.String(),
  attached: Type.Boolean(),
  mirror: Nullable(
    Type.Object({
      kind: Type.Union([Type.Literal('full'), Type.Literal('difference'), Type.Literal('drain')]),
      reason: Type.String(),
      totalBytes: Type.Number(),
      doneBytes: Type.Number({ description: 'read and either sent or skipped' }),
      skippedBytes: Type.Number({
        description: 'of them: unallocated, excluded, zero, swap or equal',
      }),
    }),
  ),
  excluded: Nullable(
    Type.Object(
      { files: Type.Number(), bytes: Type.Number() },
      { description: 'files whose content is not on the replica; null while the agent is away' },
    ),
  ),
  verification: DiskVerification,
});
export type JobDisk = Static<typeof JobDisk>;
export const JobFigures = Type.Object({
  rateBytesPerSec: Type.Number({ description: 'frames received, as they crossed the network' }),
  etaSeconds: Nullable(Type.Number()),
  lagBytes: Nullable(
    Type.Number({
      description:
        'changed on the source and not yet durable here, as its agent said at lagBytesAt; null: not said since the appliance started',
    }),
  ),
  lagBytesAt: Nullable(Iso),
  lagMs: Nullable(
    Type.Number({
      description:
        'age of the newest source moment that is durable here: what an unplanned failover now would lose',
    }),
  ),
  durableSeq: Type.Number(),
  appliedSeq: Type.Number(),
  applyBacklogBytes: Type.Number(),
  journalBytes: Type.Number(),
  newestPointAt: Nullable(Iso),
  agent: Nullable(
    Type.Object(
      {
        ringBytes: Type.Number(),
        ringUsedBytes: Type.Number(),
        agentCpuPercent: Type.Number({ description: 'of one processor' }),
        agentRssBytes: Type.Number({ description: 'beside the ring' }),
        helperCpuPercent: Type.Number({ description: 'of one processor' }),
        helperRssBytes: Type.Number({ description: 'beside the ring' }),
        windowBytes: Type.Number({
          description: "bound of the frames on the way, part of the agent's memory",
        }),
        carry: Nullable(
          Type.Object(
            { ready: Type.Boolean(), reason: Nullable(Type.String()) },
            {
              description:
                'whether a planned restart of the source will be carried over, and if not, why; null: not asked for',
            },
          ),
        ),
      },
      { description: 'what the agent takes of the source server; null while it is away' },
    ),
  ),
});
export type JobFigures = Static<typeof JobFigures>;
export const PointRequest = Type.Object({
  name: Type.Optional(PointName),
  quiesce: Type.Optional(
    Type.Boolean({ description: 'bring the applications to rest and freeze; the default' }),
  ),
});
export type PointRequest = Static<typeof PointRequest>;
export const TakenPoint = Type.Object({
  pointId: Id,
  name: Type.String(),
  seq: Type.Number({ description: 'the point is safe here once durableSeq has reached it' }),
  at: Nullable(Iso),
  quiesced: Type.Boolean(),
  reason: Nullable(Type.String({ description: 'why it is only crash-consistent' })),
  freezeMs: Nullable(Type.Number({ description: 'how long writes of the source were held up' })),
  fileSystems: Type.Array(Type.String({ description: 'mount points that were frozen' })),
  hooks: Type.Array(HookReport),
});
export type TakenPoint = Static<typeof TakenPoint>;
export const AskedPoints = Type.Object({
  /** Newest first. */
  newest: Type.Array(TakenPoint),
  nextAt: Nullable(Iso),
  /** Why the last scheduled point was not taken. */
  problem: Nullable(ApiError),
});
export type AskedPoints = Static<typeof AskedPoints>;
export const Job = Type.Object({
  jobId: Id,
  name: Type.String(),
  sourceId: Id,
  sourceName: Type.String(),
  state: JobState,
  stream: StreamMode,
  disks: Type.Array(JobDisk),
  problems: Type.Array(ApiError, { description: 'what the agent says of single disks now' }),
  figures: JobFigures,
  askedPoints: AskedPoints,
  verifyNextAt: Nullable(Iso),
  settings: ProtectRequest,
  failoverId: Nullable(Id),
  provenBootableAt: Nullable(Iso),
  createdAt: Iso,
});
export type Job = Static<typeof Job>;
export const JobSettingsPatch = Type.Object({
  compression: Type.Optional(Compression),
  bandwidthLimitBytesPerSec: Type.Optional(Nullable(Type.Integer({ minimum: 65536 }))),
  historyHours: Type.Optional(HistoryHours),
  historyBytes: Type.Optional(HistoryBytes),
  ringBytes: Type.Optional(RingBytes),
  checkpointMinutes: Type.Optional(CheckpointMinutes),
  exclusions: Type.Optional(Exclusions),
  carryRestarts: Type.Optional(CarryRestarts),
  pointEveryMinutes: PointEveryMinutes,
  verifyEvery: VerifyEvery,
  stopUnits: Type.Optional(StopUnits),
  testEvery: Type.Optional(TestEvery),
  testChecks: Type.Optional(TestChecks),
});
export type JobSettingsPatch = Static<typeof JobSettingsPatch>;
export const Checkpoint = Type.Object({
  seq: Type.Number({ description: 'everything up to this frame is in it' }),
  sourceTime: Iso,
  takenAt: Iso,
  reason: Type.String(),
  holders: Type.Array(Type.String({ description: 'what rests on it and keeps it' })),
});
export type Checkpoint = Static<typeof Checkpoint>;

// ---- recovery points ---------------------------------------------------------------------------------------------
/** All moments of recovery points are of the source's wall clock. */
const Moment = Type.String({
  pattern: '^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\d(\\.\\d{1,3})?Z$',
  description: 'ISO 8601 in UTC',
});
export const PointLabel = Type.Object({
  labelId: Id,
  at: Iso,
  text: Type.String(),
  createdBy: Type.String(),
  createdAt: Iso,
  recoverable: Type.Boolean({ description: 'its moment lies in a stretch of the history' }),
});
export type PointLabel = Static<typeof PointLabel>;
export const LabelRequest = Type.Object({
  at: Moment,
  text: Type.String({ minLength: 1, maxLength: 200 }),
});
export type LabelRequest = Static<typeof LabelRequest>;
export const PointGap = Type.Object({
  fromSeq: Type.Number(),
  toSeq: Nullable(Type.Number()),
  fromAt: Iso,
  toAt: Nullable(Type.String({ description: 'null: it goes on' })),
  kind: Type.Union([
    Type.Literal('first-mirror'),
    Type.Literal('difference-mirror'),
    Type.Literal('order-lost'),
    Type.Literal('draining'),
    Type.Literal('source-away'),
    Type.Literal('repetition'),
    Type.Literal('missing'),
  ]),
  reason: Type.String(),
  crossable: Type.Boolean({ description: 'a replay may run across it' }),
});
export type PointGap = Static<typeof PointGap>;
export const JobPoints = Type.Object({
  stretches: Type.Array(
    Type.Object({
      fromSeq: Type.Number(),
      toSeq: Type.Number(),
      fromAt: Iso,
      toAt: Iso,
      fromBootMs: Type.Number({ description: "the source's boot-time clock" }),
      toBootMs: Type.Number(),
    }),
    { description: 'every second in one can be recovered; oldest first' },
  ),
  gaps: Type.Array(PointGap, { description: 'oldest first; the newest 2000' }),
  marks: Type.Array(
    Type.Object({
      seq: Type.Number(),
      at: Iso,
      pointId: Type.String(),
      name: Type.String(),
      quiesced: Type.Boolean({ description: 'application-consistent; else crash-consistent' }),
    }),
    { description: 'points that were asked for by name' },
  ),
  labels: Type.Array(PointLabel),
  newestAt: Nullable(Iso),
  rebuildPercent: Nullable(
    Type.Number({
      description:
        'the points are being read from the journal, oldest first: so much of it; null: they are all here',
    }),
  ),
  history: Nullable(
    Type.Object({
      hours: Nullable(Type.Number()),
      limitBytes: Type.Number(),
      usedBytes: Type.Number(),
      oldestSeq: Type.Number(),
      churnBytesPerSec: Nullable(
        Type.Number({ description: 'what the history grew by, over the last day at most' }),
      ),
      reachMs: Nullable(
        Type.Number({ description: 'how far back it will reach at this churn; null: not known' }),
      ),
      boundBy: Nullable(Type.Union([Type.Literal('hours'), Type.Literal('size')])),
      warning: Nullable(Type.String()),
    }),
  ),
});
export type JobPoints = Static<typeof JobPoints>;
export const JournalCheck = Type.Union([
  Type.Object({ state: Type.Literal('none') }),
  Type.Object({
    state: Type.Literal('running'),
    startedAt: Iso,
    readBytes: Type.Number(),
    totalBytes: Type.Number(),
  }),
  Type.Object({
    state: Type.Literal('done'),
    startedAt: Iso,
    endedAt: Iso,
    frames: Type.Number(),
    bytes: Type.Number(),
    faultCount: Type.Number(),
    faults: Type.Array(
      Type.Object({
        segment: Type.String(),
        offsetBytes: Type.Number(),
        reason: Type.String(),
      }),
      { description: 'the first 1000' },
    ),
  }),
  Type.Object({ state: Type.Literal('failed'), startedAt: Iso, error: ApiError }),
]);
export type JournalCheck = Static<typeof JournalCheck>;

// ---- failover ----------------------------------------------------------------------------------------------------
const WantedPoint = Type.Union([Type.Literal('newest'), Type.Object({ sourceTime: Moment })], {
  description:
    'what is recovered: the newest point, or the newest one at or before a moment; a planned failover is to the newest',
});
export const AutoEnd = Type.Object(
  {
    act: Type.Union([Type.Literal('commit'), Type.Literal('undo')]),
    afterMinutes: Type.Integer({
      minimum: 1,
      maximum: 10_080,
      description: 'from the end of the last step, or from now when that has been',
    }),
  },
  { description: 'what the appliance does by itself with a completed failover' },
);
export type AutoEnd = Static<typeof AutoEnd>;
export const AutoEndRequest = Type.Object({ autoEnd: Nullable(AutoEnd) });
export const FailoverRequest = Type.Object({
  kind: Type.Union([Type.Literal('unplanned'), Type.Literal('planned')]),
  confirm: Type.String({ description: "the replica's name, typed by the person" }),
  point: Type.Optional(WantedPoint),
  evenIfAlive: Type.Optional(
    Type.Boolean({
      description: 'power the replica on although the source still answers on its address',
    }),
  ),
  autoEnd: Type.Optional(Nullable(AutoEnd)),
  isolateOnReturn: Type.Optional(
    Type.Boolean({
      description:
        'when the source comes back beside its replica, its agent cuts it off from the network, all but the appliance, until the failover is undone',
    }),
  ),
  stopUnits: Type.Optional(StopUnits),
  powerOff: Type.Optional(
    Type.Boolean({
      description: 'planned only; false: the source stays on and its agent becomes passive',
    }),
  ),
});
export type FailoverRequest = Static<typeof FailoverRequest>;
export const TestCheckResult = Type.Object({
  name: Type.String({ description: 'such as `TCP port 5432`' }),
  state: Type.Union(
    [
      Type.Literal('waiting'),
      Type.Literal('running'),
      Type.Literal('passed'),
      Type.Literal('failed'),
      Type.Literal('not-run'),
    ],
    { description: 'one that could not be run does not pass the test either' },
  ),
  how: Type.String({ description: 'what a pass proves, and what it does not' }),
  words: Type.String(),
  output: Nullable(Type.String({ description: 'the last 16 KiB of what a script printed' })),
});
export type TestCheckResult = Static<typeof TestCheckResult>;
export const TestFailoverRequest = Type.Object({
  point: Type.Optional(WantedPoint),
  keepMinutes: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: 10_080,
      description: 'how long the VM is kept after it has proven that it boots; 0',
    }),
  ),
});
export type TestFailoverRequest = Static<typeof TestFailoverRequest>;
export const MountRequest = Type.Object({
  point: Type.Optional(WantedPoint),
  purpose: Type.Union([Type.Literal('files'), Type.Literal('nbd')], {
    description: 'browse and download files, or export the whole disks to a backup tool',
  }),
  keepMinutes: Type.Optional(
    Type.Integer({
      minimum: 1,
      maximum: 10_080,
      description: 'after which it is closed by itself; 60',
    }),
  ),
});
export type MountRequest = Static<typeof MountRequest>;
export const FailoverStepName = Type.Union([
  Type.Literal('stop-services'),
  Type.Literal('final-mark'),
  Type.Literal('power-off'),
  Type.Literal('hold-point'),
  Type.Literal('stop-intake'),
  Type.Literal('apply'),
  Type.Literal('checkpoint'),
  Type.Literal('detach'),
  Type.Literal('overlay'),
  Type.Literal('replay'),
  Type.Literal('prepare-guest'),
  Type.Literal('define'),
  Type.Literal('power-on'),
  Type.Literal('prove-boot'),
  Type.Literal('test-checks'),
  Type.Literal('serve'),
]);
export type FailoverStepName = Static<typeof FailoverStepName>;
export const FailoverStep = Type.Object({
  name: FailoverStepName,
  title: Type.String(),
  state: Type.Union([
    Type.Literal('waiting'),
    Type.Literal('running'),
    Type.Literal('done'),
    Type.Literal('failed'),
    Type.Literal('compensating'),
    Type.Literal('compensated'),
  ]),
  detail: Nullable(Type.String()),
  startedAt: Nullable(Iso),
  endedAt: Nullable(Iso),
});
export type FailoverStep = Static<typeof FailoverStep>;
export const FailoverState = Type.Union([
  Type.Object({ name: Type.Literal('running') }),
  Type.Object({ name: Type.Literal('completed'), proof: Type.String() }),
  Type.Object({ name: Type.Literal('compensating'), error: ApiError }),
  Type.Object({ name: Type.Literal('failed'), error: ApiError }),
  Type.Object({ name: Type.Literal('undoing') }),
  Type.Object({ name: Type.Literal('undone') }),
  Type.Object({ name: Type.Literal('committing') }),
  Type.Object({ name: Type.Literal('committed') }),
]);
export type FailoverState = Static<typeof FailoverState>;
export const GuestVolume = Type.Object({
  volumeId: Type.String({
    description: 'the name on the source: vda1, vdb for a whole disk, or group/volume of LVM',
  }),
  disk: Type.String(),
  sizeBytes: Type.Number(),
  content: Type.String({ description: 'ext4, xfs, vfat, swap, lvm, …' }),
  label: Nullable(Type.String()),
  uuid: Nullable(Type.String()),
  mountPoint: Nullable(Type.String({ description: "where the guest's own fstab has it" })),
  browsable: Type.Boolean(),
  note: Nullable(Type.String({ description: 'why it cannot be browsed, or what to know of it' })),
});
export type GuestVolume = Static<typeof GuestVolume>;
export const NbdExport = Type.Object({
  addresses: Type.Array(Type.String(), { description: 'at which the appliance can be reached' }),
  port: Type.Integer(),
  name: Type.String({ description: 'of the export' }),
  disk: Type.String(),
  sizeBytes: Type.Number(),
});
export type NbdExport = Static<typeof NbdExport>;
export const MountFacts = Type.Object({
  purpose: MountRequest.properties.purpose,
  keepMinutes: Type.Integer(),
  endsAt: Nullable(Type.String({ description: 'when it is closed by itself' })),
  volumes: Type.Array(GuestVolume, { description: 'of one for files, once it is open' }),
  exports: Type.Array(NbdExport, { description: 'of one for NBD, once it is open' }),
});
export type MountFacts = Static<typeof MountFacts>;
export const Failover = Type.Object({
  failoverId: Id,
  jobId: Id,
  kind: Type.Union([
    Type.Literal('unplanned'),
    Type.Literal('planned'),
    Type.Literal('test'),
    Type.Literal('mount'),
  ]),
  replicaName: Type.String(),
  startedAt: Iso,
  endedAt: Nullable(Iso),
  state: FailoverState,
  steps: Type.Array(FailoverStep),
  point: Type.Object({
    seq: Nullable(Type.Number()),
    sourceTime: Nullable(Iso),
    wanted: Nullable(
      Type.String({ description: 'the moment that was asked for; null: the newest point' }),
    ),
    lossMs: Nullable(
      Type.Number({ description: 'lag at the moment the failover was asked for: what is lost' }),
    ),
  }),
  test: Nullable(
    Type.Object(
      {
        trigger: Type.Union([Type.Literal('person'), Type.Literal('schedule')]),
        network: Type.String(),
        keepMinutes: Type.Integer(),
        verdict: Nullable(Type.Object({ passed: Type.Boolean(), words: Type.String(), at: Iso })),
        endsAt: Nullable(Iso),
        checks: Type.Array(TestCheckResult),
      },
      { description: 'of a test failover; no verdict while it runs, and when it was ended before' },
    ),
  ),
  isolateOnReturn: Type.Boolean(),
  autoEnd: Nullable(
    Type.Object(
      {
        ...AutoEnd.properties,
        at: Nullable(Iso),
        heldBack: Nullable(
          Type.String({ description: 'why it has not been done although its time has come' }),
        ),
      },
      {
        description:
          'what is done by itself, or was: null once a person has decided; no time until the failover is completed',
      },
    ),
  ),
  mount: Nullable(MountFacts),
  guestChanges: Type.Array(
    Type.String({ description: 'what guest preparation changed, in words' }),
  ),
  addresses: Type.Array(Type.String()),
  hasScreenshot: Type.Boolean(),
  replicaVm: Nullable(
    Type.Object(
      {
        state: Type.Union([
          Type.Literal('running'),
          Type.Literal('paused'),
          Type.Literal('stopping'),
          Type.Literal('off'),
          Type.Literal('crashed'),
          Type.Literal('absent'),
          Type.Literal('unknown'),
        ]),
        reason: Nullable(Type.String()),
        since: Iso,
      },
      { description: 'the replica VM as the host has it now; looked at while `completed`' },
    ),
  ),
  notes: Type.Array(Type.String({ description: 'what could not be tidied up and does no harm' })),
});
export type Failover = Static<typeof Failover>;

// ---- consistency groups ------------------------------------------------------------------------------------------
export const GroupWait = Type.Union(
  [
    Type.Object({ for: Type.Literal('proof') }),
    Type.Object({
      for: Type.Literal('delay'),
      seconds: Type.Integer({ minimum: 0, maximum: 86_400 }),
    }),
  ],
  {
    description:
      'when members of the next priority begin: all before have proven that they boot, or so long after the last was powered on',
  },
);
export type GroupWait = Static<typeof GroupWait>;
const GroupMember = Type.Object({
  jobId: Id,
  priority: Type.Integer({ minimum: 1, maximum: 9, description: '1 boots first' }),
});
export const MarkEvery = Type.Object({
  everyMinutes: Type.Integer({ minimum: 5, maximum: 1440 }),
  quiesce: Type.Boolean(),
  checkpoint: Type.Boolean(),
});
export type MarkEvery = Static<typeof MarkEvery>;
export const GroupRequest = Type.Object({
  name: Type.String({ minLength: 1, maxLength: 63, pattern: '^[^\\u0000-\\u001f]*$' }),
  members: Type.Array(GroupMember, {
    minItems: 1,
    maxItems: 64,
    description: 'a job is in one group at most',
  }),
  wait: GroupWait,
  schedule: Type.Optional(Nullable(MarkEvery)),
  testEvery: Type.Optional(TestEvery),
});
export type GroupRequest = Static<typeof GroupRequest>;
export const Group = Type.Object({
  groupId: Id,
  name: Type.String(),
  members: Type.Array(GroupMember),
  wait: GroupWait,
  schedule: Nullable(MarkEvery),
  testEvery: TestEvery,
  markProblem: Nullable(ApiError),
  runId: Nullable(Type.String({ description: 'its failover that is not over' })),
  createdAt: Iso,
});
export type Group = Static<typeof Group>;
export const GroupMark = Type.Object({
  markId: Id,
  name: Type.String(),
  at: Iso,
  quiesced: Type.Boolean({ description: 'application-consistent on every member' }),
  apartMs: Nullable(
    Type.Number({ description: "how far the members' points are apart at most; null: not known" }),
  ),
  recoverable: Type.Boolean(),
  members: Type.Array(
    Type.Object({
      jobId: Id,
      seq: Type.Number(),
      at: Type.String({ description: "by the source's own clock" }),
      quiesced: Type.Boolean(),
      reason: Nullable(Type.String()),
    }),
  ),
});
export type GroupMark = Static<typeof GroupMark>;
export const GroupMarkRequest = Type.Object({
  name: Type.Optional(PointName),
  quiesce: Type.Optional(Type.Boolean({ description: 'true' })),
  checkpoint: Type.Optional(
    Type.Boolean({
      description: "also a checkpoint of each member's replica disks, at its point of the mark",
    }),
  ),
});
export type GroupMarkRequest = Static<typeof GroupMarkRequest>;
export const GroupPoints = Type.Object({
  stretches: Type.Array(Type.Object({ fromAt: Iso, toAt: Iso }), {
    description:
      "every moment in these can be recovered on all members; by the appliance's clock, oldest first",
  }),
  newestAt: Nullable(Iso),
  errorMs: Nullable(
    Type.Number({
      description:
        'how far the members may be apart at one moment; null: a clock was never compared',
    }),
  ),
  members: Type.Array(
    Type.Object({
      jobId: Id,
      newestAt: Nullable(Type.String({ description: "by the appliance's clock" })),
      clockOffsetMs: Nullable(Type.Number({ description: "source's clock minus appliance's" })),
      clockErrorMs: Nullable(Type.Number()),
    }),
  ),
  marks: Type.Array(GroupMark),
});
export type GroupPoints = Static<typeof GroupPoints>;
export const GroupFailoverRequest = Type.Object({
  kind: Type.Union([Type.Literal('unplanned'), Type.Literal('planned'), Type.Literal('test')]),
  confirm: Type.Optional(
    Type.String({ description: "the group's name, typed by the person; a test needs none" }),
  ),
  point: Type.Optional(
    Type.Union([Type.Literal('newest'), Type.Object({ at: Moment }), Type.Object({ markId: Id })], {
      description: 'the newest common moment, one of the appliance’s clock, or a mark',
    }),
  ),
  evenIfAlive: Type.Optional(Type.Boolean()),
  powerOff: Type.Optional(Type.Boolean()),
  isolateOnReturn: Type.Optional(Type.Boolean()),
  keepMinutes: Type.Optional(Type.Integer({ minimum: 0, maximum: 1440 })),
});
export type GroupFailoverRequest = Static<typeof GroupFailoverRequest>;
export const GroupRunState = Type.Union([
  Type.Object({ name: Type.Literal('running') }),
  Type.Object({ name: Type.Literal('stopping'), error: ApiError }),
  Type.Object({ name: Type.Literal('stopped'), error: ApiError }),
  Type.Object({ name: Type.Literal('completed') }),
  Type.Object({ name: Type.Literal('failed'), error: ApiError }),
  Type.Object({ name: Type.Literal('undoing') }),
  Type.Object({ name: Type.Literal('undone') }),
  Type.Object({ name: Type.Literal('committing') }),
  Type.Object({ name: Type.Literal('committed') }),
]);
export const GroupRunView = Type.Object({
  runId: Id,
  groupId: Id,
  groupName: Type.String(),
  kind: Type.Union([Type.Literal('unplanned'), Type.Literal('planned'), Type.Literal('test')]),
  target: Type.Union([
    Type.Object({ name: Type.Literal('moment'), at: Iso, errorMs: Nullable(Type.Number()) }),
    Type.Object({
      name: Type.Literal('mark'),
      markId: Id,
      markName: Type.String(),
      at: Iso,
      errorMs: Nullable(Type.Number()),
    }),
    Type.Object({ name: Type.Literal('final') }),
  ]),
  wait: GroupWait,
  state: GroupRunState,
  members: Type.Array(
    Type.Object({
      jobId: Id,
      sourceName: Type.String(),
      replicaName: Type.String(),
      priority: Type.Integer(),
      sourceTime: Nullable(
        Type.String({ description: 'what it is recovered to, by its own clock' }),
      ),
      failoverId: Nullable(Type.String({ description: 'once it has begun' })),
      state: Type.Union([
        Type.Object({ name: Type.Literal('waiting') }),
        Type.Object({ name: Type.Literal('refused'), error: ApiError }),
        Type.Object({
          name: Type.Literal('begun'),
          failover: FailoverState,
          stepsDone: Type.Integer(),
          stepsAll: Type.Integer(),
        }),
      ]),
    }),
  ),
  test: Nullable(
    Type.Object({
      trigger: Type.Union([Type.Literal('person'), Type.Literal('schedule')]),
      keepMinutes: Type.Integer(),
      verdict: Nullable(Type.Object({ passed: Type.Boolean(), words: Type.String(), at: Iso })),
      endsAt: Nullable(Iso),
    }),
  ),
  startedAt: Iso,
  endedAt: Nullable(Iso),
});
export type GroupRunView = Static<typeof GroupRunView>;
// ---- files of a mounted point --------------------------------------------------------------------------------------
/**
 * A path in a file system of the guest: absolute, its bytes percent-encoded where they are not plain ASCII, because names
 * on Linux are bytes and no text. `/etc/hosts` is written as it is, a space as %20, a percent sign as %25.
 */
export const GuestPath = Type.String({
  maxLength: 12_288,
  pattern: '^/(?:[!-$&-~]|%[0-9A-Fa-f]{2})*$',
  description: 'absolute, bytes percent-encoded',
});
export const FileEntry = Type.Object({
  name: Type.String({ description: 'for people: what is no UTF-8 is replaced' }),
  path: GuestPath,
  kind: Type.Union([
    Type.Literal('file'),
    Type.Literal('folder'),
    Type.Literal('link'),
    Type.Literal('special'),
    Type.Literal('unreadable'),
  ]),
  sizeBytes: Nullable(Type.Number({ description: 'of files' })),
  modifiedAt: Nullable(Iso),
  mode: Type.Integer({ description: 'permission bits' }),
  uid: Type.Integer(),
  gid: Type.Integer(),
  target: Nullable(
    Type.String({ description: 'of a link: what it says, which need not be there' }),
  ),
});
export type FileEntry = Static<typeof FileEntry>;
export const FileListing = Type.Object({
  path: Type.String({ description: 'the folder itself, all links followed' }),
  entries: Type.Array(FileEntry, { description: 'folders first, then by name' }),
  from: Type.Integer(),
  total: Type.Integer(),
  truncated: Type.Boolean({ description: 'the folder has more than are counted here' }),
});
export type FileListing = Static<typeof FileListing>;

// ---- certificates, audit, events ---------------------------------------------------------------------------------
export const Certificate = Type.Object({
  serial: Type.String(),
  sourceId: Id,
  sourceName: Type.String(),
  notBefore: Iso,
  notAfter: Iso,
  state: Type.Union([
    Type.Literal('valid'),
    Type.Literal('expired'),
    Type.Literal('revoked'),
    Type.Literal('superseded'),
  ]),
});
export type Certificate = Static<typeof Certificate>;
export const AuditEntry = Type.Object({
  at: Iso,
  who: Type.String(),
  act: Type.String(),
  object: Type.String(),
  outcome: Type.Union([Type.Literal('ok'), Type.Literal('refused'), Type.Literal('failed')]),
  detail: Type.String(),
});
export type AuditEntry = Static<typeof AuditEntry>;
export const BackupRequest = Type.Object({
  passphrase: Type.String({ minLength: 10, maxLength: 256 }),
});
export const RestoreRequest = Type.Object({
  passphrase: Type.String({ minLength: 1, maxLength: 256 }),
  backupBase64: Type.String({ maxLength: 64 * 1024 * 1024 }),
});

/** One server-sent event (`data:` is this as JSON; `event:` repeats `type`). */
export const ServerEvent = Type.Union([
  Type.Object({ type: Type.Literal('source'), source: Source }),
  Type.Object({ type: Type.Literal('source-removed'), sourceId: Id }),
  Type.Object({ type: Type.Literal('job'), job: Job }),
  Type.Object({ type: Type.Literal('job-removed'), jobId: Id }),
  Type.Object({ type: Type.Literal('failover'), failover: Failover }),
  Type.Object({ type: Type.Literal('group'), group: Group }),
  Type.Object({ type: Type.Literal('group-removed'), groupId: Id }),
  Type.Object({ type: Type.Literal('group-run'), run: GroupRunView }),
  Type.Object({
    type: Type.Literal('notice'),
    level: Type.Union([Type.Literal('info'), Type.Literal('warning'), Type.Literal('danger')]),
    error: ApiError,
  }),
]);
export type ServerEvent = Static<typeof ServerEvent>;

/*
 * Routes (all JSON unless said; a session cookie `und_session`, HttpOnly, SameSite=Strict; state-changing calls also
 * need the header `x-understudy: 1`, which no cross-site form can send):
 *
 * POST   /api/login                    LoginRequest -> User            (no session needed; rate-limited)
 * POST   /api/logout                   -> 204
 * GET    /api/session                  -> User | 401
 * POST   /api/session/password         PasswordChange -> User
 * GET    /api/users                    -> User[]            (admin)
 * POST   /api/users                    NewUser -> User      (admin)
 * DELETE /api/users/:username          -> 204               (admin)
 * GET    /api/system                   -> SystemInfo
 * GET    /api/ca.pem                   -> text              (no session needed)
 * GET    /api/host                     -> HostView
 * GET    /api/sources                  -> Source[]
 * POST   /api/sources/preflight        SshTarget -> PreflightReport
 * POST   /api/sources                  SshTarget -> Source  (202: goes on in the background; preflight runs again first)
 * GET    /api/sources/:id              -> Source
 * POST   /api/sources/:id/inventory    -> Source            (asks the agent for a fresh inventory)
 * POST   /api/sources/:id/uninstall    UninstallRequest -> Source (202)
 * POST   /api/sources/:id/certificate  {action: 'renew'|'revoke'} -> Source
 * GET    /api/certificates             -> Certificate[]
 * POST   /api/jobs/plan                ProtectRequest -> ProtectPlan
 * POST   /api/jobs                     ProtectRequest -> Job (202)
 * GET    /api/jobs                     -> Job[]
 * GET    /api/jobs/:id                 -> Job
 * PATCH  /api/jobs/:id                 JobSettingsPatch -> Job
 * GET    /api/jobs/:id/checkpoints     -> Checkpoint[]      (newest first)
 * POST   /api/jobs/:id/pause           -> Job
 * POST   /api/jobs/:id/resume          -> Job
 * POST   /api/jobs/:id/mirror          {diskId?: string} -> Job   (difference mirror on command)
 * POST   /api/jobs/:id/verify          -> Job              (compare its replica disks with the source)
 * POST   /api/jobs/:id/points          PointRequest -> TakenPoint (201)
 * DELETE /api/jobs/:id?disks=keep|delete -> 202 Job
 * GET    /api/jobs/:id/points          -> JobPoints
 * POST   /api/jobs/:id/labels          LabelRequest -> PointLabel (201)
 * DELETE /api/jobs/:id/labels/:labelId -> 204
 * GET    /api/jobs/:id/journal-check   -> JournalCheck      (the last one since the appliance started)
 * POST   /api/jobs/:id/journal-check   -> JournalCheck (202)
 * POST   /api/jobs/:id/failover        FailoverRequest -> Failover (202)
 * POST   /api/jobs/:id/test-failover   TestFailoverRequest -> Failover (202)
 * POST   /api/jobs/:id/mount           MountRequest -> Failover (202; of kind mount)
 * GET    /api/mounts                   -> Failover[]
 * GET    /api/mounts/:id               -> Failover
 * POST   /api/mounts/:id/end           -> Failover (202)
 * GET    /api/mounts/:id/files?volume=V&path=P&from=N&limit=N -> FileListing (operator)
 * GET    /api/mounts/:id/file?volume=V&path=P -> the file, whole or a range of it (operator)
 * GET    /api/mounts/:id/folder.tar?volume=V&path=P -> application/x-tar of a folder and all below it (operator)
 * GET    /api/mounts/:id/nbd-credentials.tar -> application/x-tar with what a client needs (operator)
 * GET    /api/failovers                -> Failover[]        (mounts are not among them)
 * GET    /api/failovers/:id            -> Failover
 * POST   /api/failovers/:id/undo       {confirm: string} -> Failover (202)
 * POST   /api/failovers/:id/commit     {confirm: string} -> Failover (202)
 * POST   /api/failovers/:id/auto-end   AutoEndRequest -> Failover
 * POST   /api/failovers/:id/end-test   -> Failover (202)
 * GET    /api/failovers/:id/screenshot -> image/png
 * GET    /api/failovers/:id/report     -> text/html
 * GET    /api/groups                   -> Group[]
 * POST   /api/groups                   GroupRequest -> Group (201)
 * PATCH  /api/groups/:id               GroupRequest -> Group
 * DELETE /api/groups/:id               -> 204              (its jobs stay)
 * GET    /api/groups/:id/points        -> GroupPoints
 * POST   /api/groups/:id/marks         GroupMarkRequest -> GroupMark (201)
 * POST   /api/groups/:id/failover      GroupFailoverRequest -> GroupRunView (202)
 * GET    /api/group-runs               -> GroupRunView[]   (newest first)
 * GET    /api/group-runs/:id           -> GroupRunView
 * GET    /api/group-runs/:id/report    -> text/html
 * POST   /api/group-runs/:id/undo      {confirm: string} -> GroupRunView (202; of a test also while it runs)
 * POST   /api/group-runs/:id/commit    {confirm: string} -> GroupRunView (202)
 * POST   /api/group-runs/:id/resume    -> GroupRunView (202; tries again what failed, and goes on)
 * GET    /api/audit?limit=N            -> AuditEntry[]      (newest first)
 * POST   /api/config/backup            BackupRequest -> application/octet-stream (admin)
 * POST   /api/config/restore           RestoreRequest -> 202 (admin; the service restarts itself)
 * GET    /api/events                   -> text/event-stream of ServerEvent; starts with the current state of everything
 *                                         (of failovers that are over: the newest 200 only)
 * GET    /api/openapi.json             -> OpenAPI 3.1
 * POST   /agent/enrol                  EnrolRequest -> EnrolResponse  (authenticated by the one-time token)
 */
export const EnrolRequest = Type.Object({
  token: Type.String({ minLength: 20, maxLength: 128 }),
  csrPem: Type.String({ maxLength: 8192 }),
  agentVersion: Type.String({ maxLength: 64 }),
  machine: Type.Object({
    hostname: Type.String({ maxLength: 253 }),
    smbiosUuid: Nullable(Type.String({ maxLength: 64 })),
    bootId: Type.String({ maxLength: 64 }),
    diskSerials: Type.Array(Type.String({ maxLength: 128 }), { maxItems: 4096 }),
  }),
});
export type EnrolRequest = Static<typeof EnrolRequest>;
export const EnrolResponse = Type.Object({
  sourceId: Id,
  certificatePem: Type.String(),
  caPem: Type.String(),
  agentPort: Type.Integer(),
});
export type EnrolResponse = Static<typeof EnrolResponse>;
