/**
 * Control messages: JSON, multiplexed with frames on the one connection that the agent opens. Each is validated where
 * it arrives. A message of an unknown type is ignored if the sender marked it `optional`, and an error otherwise.
 *
 * The order of a connection: agent `hello`, appliance `welcome` (or `refused`), then anything. For a job: appliance
 * `configureJob`, agent `jobReady` (frames follow) or `needEpoch` (the appliance configures the job anew with a new
 * epoch), appliance `startMirror` for each disk that needs it.
 */
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { CompareDisks } from './compare-disks.ts';
import { ERRORS, type ErrorCode, type SerialisedError, type UndError, undError } from './errors.ts';
import { EXCLUSION_PATTERN, MAX_EXCLUSION_CHARS, MAX_EXCLUSIONS } from './exclusions.ts';
import { BLOCK_BYTES } from './hash-tree.ts';
import { ConsistencyPointMark, HookReport } from './marks.ts';
import { MirrorKind } from './mirror-kind.ts';
import { UNIT_NAME_PATTERN } from './unit-names.ts';

export const PROTOCOL_VERSION = 1;
export const HEARTBEAT_MS = 5_000;
/** A link on which nothing arrived for so long is dead. */
export const LINK_SILENCE_MS = 20_000;

const Id = Type.String({ minLength: 1, maxLength: 128 });
const Text = Type.String({ maxLength: 2000 });
const Bytes = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Seq = Bytes;
const Run = Type.Integer({ minimum: 1, maximum: 0xffff_ffff });
const Nullable = <T extends Type.TSchema>(schema: T) => Type.Union([schema, Type.Null()]);
const message = <K extends string, T extends Type.TProperties>(type: K, properties: T) =>
  Type.Object({ type: Type.Literal(type), optional: Type.Optional(Type.Boolean()), ...properties });

/** What an agent's identity is bound to. */
export const MachineIdentity = Type.Object({
  smbiosUuid: Nullable(Type.String({ maxLength: 64 })),
  diskSerials: Type.Array(Type.String({ maxLength: 256 }), { maxItems: 1024 }),
  bootId: Type.String({ minLength: 1, maxLength: 64 }),
  hostname: Type.String({ maxLength: 253 }),
});
export type MachineIdentity = Static<typeof MachineIdentity>;

/** An error as it crosses the link; `code` is one of the registry, or UND_INTERNAL if this side does not know it. */
export const ErrorMessage = Type.Object({
  code: Type.String({ maxLength: 64 }),
  message: Text,
  hint: Text,
  params: Type.Record(Type.String(), Text),
});
export type ErrorMessage = Static<typeof ErrorMessage>;

export const CompressionName = Type.Union([
  Type.Literal('none'),
  Type.Literal('fast'),
  Type.Literal('balanced'),
  Type.Literal('best'),
]);

export const WireDisk = Type.Object({
  diskId: Id,
  /** What frames name the disk by; stable for the life of the job, 0..63 (the capture's limit). */
  index: Type.Integer({ minimum: 0, maximum: 63 }),
  devicePath: Type.String({ minLength: 1, maxLength: 4096 }),
  sizeBytes: Bytes,
});
export type WireDisk = Static<typeof WireDisk>;

export { MirrorKind };

const UnitNames = Type.Array(Type.String({ maxLength: 256, pattern: UNIT_NAME_PATTERN }), {
  maxItems: 64,
});

const BandwidthLimit = Nullable(
  Type.Integer({ minimum: 1024, maximum: Number.MAX_SAFE_INTEGER, description: 'bytes/s' }),
);

/** Patterns of paths whose files the mirror leaves out (protocol/exclusions.ts). */
const Exclusions = Type.Optional(
  Type.Array(Type.String({ maxLength: MAX_EXCLUSION_CHARS, pattern: EXCLUSION_PATTERN }), {
    maxItems: MAX_EXCLUSIONS,
  }),
);

/** Carry what changed over planned restarts of the source (docs/early-boot.md); absent: no. */
const CarryRestarts = Type.Optional(Type.Boolean());

export const StreamModeName = Type.Union([
  Type.Literal('ordered'),
  Type.Literal('tracking'),
  Type.Literal('draining'),
]);

/** Both directions. */
export const Ping = message('ping', { id: Seq });
export const Pong = message('pong', { id: Seq });
export const Notice = message('notice', {
  level: Type.Union([Type.Literal('info'), Type.Literal('warning'), Type.Literal('error')]),
  jobId: Type.Optional(Id),
  /** The disk of the job that it is about. */
  disk: Type.Optional(Type.Integer({ minimum: 0, maximum: 63 })),
  text: Text,
  error: Type.Optional(ErrorMessage),
});

/** Agent to appliance. */
export const Hello = message('hello', {
  protocolVersion: Type.Integer({ minimum: 1 }),
  agentVersion: Type.String({ maxLength: 64 }),
  machine: MachineIdentity,
  /** The agent found that it is a clone or a replica: it says so and takes part in nothing. */
  passive: Nullable(Type.Object({ reason: Text })),
  /** What this agent understands beyond the first agents: an appliance asks nothing of it that is not here. */
  features: Type.Optional(Type.Array(Type.String({ maxLength: 64 }), { maxItems: 64 })),
  /** The failover for which this machine has stopped services, or after which it is to stay passive. */
  handover: Type.Optional(
    Nullable(
      Type.Object({
        failoverId: Id,
        /** It has cut itself off from the network, all but the appliance. */
        isolated: Type.Optional(Type.Boolean()),
      }),
    ),
  ),
});
/** The agent answers `takePoint`. */
export const FEATURE_POINTS = 'points';
/** The agent takes `startVerify`. */
export const FEATURE_VERIFY = 'verify';
/** The agent hands its machine over in a planned failover, and stays passive after one. */
export const FEATURE_HANDOVER = 'handover';
/** The agent answers `clockRequest`. */
export const FEATURE_CLOCK = 'clock';
/** The agent can carry what changed over a planned restart of its machine: `carryRestarts`. */
export const FEATURE_CARRY = 'carry';
export const InventoryReply = message('inventory', {
  requestId: Id,
  inventory: Type.Optional(Type.Unknown()),
  error: Type.Optional(ErrorMessage),
});
export const JobReady = message('jobReady', { jobId: Id, streamEpoch: Seq, nextSeq: Seq });
/**
 * The stream cannot be continued: the appliance begins a new epoch, for this reason. `carried`: what changed since the
 * last epoch's end is known to this capture (docs/early-boot.md), so that disks that were whole need a drain only;
 * otherwise all of them need a difference mirror.
 */
export const NeedEpoch = message('needEpoch', {
  jobId: Id,
  streamEpoch: Seq,
  reason: Text,
  carried: Type.Optional(Id),
});
export const JobFailed = message('jobFailed', { jobId: Id, error: ErrorMessage });
export const Status = message('status', {
  jobId: Id,
  mode: StreamModeName,
  reason: Nullable(Text),
  /** The source's boot-time clock now. */
  bootMs: Type.Number({ minimum: 0 }),
  /** Captured and not acknowledged, in the ring and on the way; and blocks that changed and have to be read again. */
  backlogBytes: Bytes,
  ring: Type.Object({ sizeBytes: Bytes, usedBytes: Bytes }),
  mirrors: Type.Array(
    Type.Object({
      disk: Type.Integer({ minimum: 0 }),
      run: Run,
      doneBytes: Bytes,
      totalBytes: Bytes,
      skippedBytes: Bytes,
    }),
    { maxItems: 1024 },
  ),
  /** Whether a planned restart of the source will be carried over, and if not, why; absent: it is not asked for. */
  carry: Type.Optional(Type.Object({ ready: Type.Boolean(), reason: Nullable(Text) })),
  /** What is not on the replica because it is excluded. */
  excluded: Type.Optional(
    Type.Array(Type.Object({ disk: Type.Integer({ minimum: 0 }), files: Bytes, bytes: Bytes }), {
      maxItems: 1024,
    }),
  ),
  readBytesPerSec: Type.Number({ minimum: 0 }),
  writeBytesPerSec: Type.Number({ minimum: 0, description: 'captured on the source' }),
  /** What the agent takes of the source; per cent of one processor, memory beside the ring. */
  usage: Type.Object({
    agentCpuPercent: Type.Number({ minimum: 0 }),
    agentRssBytes: Bytes,
    helperCpuPercent: Type.Number({ minimum: 0 }),
    helperRssBytes: Bytes,
    /** The bound of the frames on the way, part of the agent's memory. */
    windowBytes: Bytes,
  }),
});
export const HashRequest = message('hashRequest', {
  requestId: Id,
  jobId: Id,
  disk: Type.Integer({ minimum: 0, maximum: 63 }),
  run: Run,
  offsetBytes: Bytes,
  lengthBytes: Type.Integer({ minimum: 1, maximum: 1024 * 1024 * 1024 }),
  chunkBytes: Type.Integer({ minimum: BLOCK_BYTES, maximum: 16 * 1024 * 1024 }),
  /** Which blocks are compared, base64 (protocol/hash-tree.ts); absent: all. */
  mask: Type.Optional(Type.String({ maxLength: 64 * 1024 })),
  /** One hash: of the chunks' hashes. */
  fold: Type.Optional(Type.Boolean()),
  /** Frames up to this one are applied first. */
  behindSeq: Type.Optional(Seq),
});
/** A disk of the source changed its size. */
export const DiskResized = message('diskResized', {
  jobId: Id,
  disk: Type.Integer({ minimum: 0, maximum: 63 }),
  sizeBytes: Bytes,
});
/** The point's mark is in the stream, as frame `seq`; or why there is none. Never a half: the source goes on in any case. */
export const PointTaken = message('pointTaken', {
  requestId: Id,
  seq: Type.Optional(Seq),
  point: Type.Optional(ConsistencyPointMark),
  postHooks: Type.Optional(Type.Array(HookReport, { maxItems: 256 })),
  error: Type.Optional(ErrorMessage),
});
/** The units that have been stopped for the handover, those of an earlier request included; or why not all are. */
export const HandoverPrepared = message('handoverPrepared', {
  requestId: Id,
  stopped: Type.Optional(UnitNames),
  error: Type.Optional(ErrorMessage),
});
/** The final mark is in the stream, as frame `finalSeq`: everything written on the source before it lies before it. */
export const HandoverReady = message('handoverReady', {
  requestId: Id,
  finalSeq: Type.Optional(Seq),
  point: Type.Optional(ConsistencyPointMark),
  error: Type.Optional(ErrorMessage),
});
/** The machine has begun to power off, or its agent has become passive, for good. */
export const HandedOver = message('handedOver', {
  requestId: Id,
  error: Type.Optional(ErrorMessage),
});
/** The source goes on as if nothing had been asked; `started`: units that run again. */
export const HandoverCancelled = message('handoverCancelled', {
  requestId: Id,
  started: Type.Optional(UnitNames),
  error: Type.Optional(ErrorMessage),
});
/** The source's wall clock, read between the request and this answer: what frames are annotated with. */
export const Clock = message('clock', {
  requestId: Id,
  wallMs: Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }),
});
export const RenewCertificate = message('renewCertificate', {
  requestId: Id,
  csr: Type.String({ maxLength: 16_384 }),
});
export const Uninstalled = message('uninstalled', {
  error: Type.Optional(ErrorMessage),
});

/** Appliance to agent. */
export const Welcome = message('welcome', {
  protocolVersion: Type.Integer({ minimum: 1 }),
  applianceVersion: Type.String({ maxLength: 64 }),
  applianceId: Id,
  sourceId: Id,
});
/** The agent is not served; the connection is closed after it. */
export const Refused = message('refused', { error: ErrorMessage });
export const InventoryRequest = message('inventoryRequest', { requestId: Id });
export const ClockRequest = message('clockRequest', { requestId: Id });
export const ConfigureJob = message('configureJob', {
  jobId: Id,
  journalId: Id,
  streamEpoch: Seq,
  /** Why this epoch began; the agent puts it into the epoch's first mark. */
  epochReason: Text,
  /**
   * The epoch was begun for a `needEpoch` of this capture that said so: it may put it into the epoch's first mark. Another
   * capture, of a later restart, knows nothing of what that one knew.
   */
  carried: Type.Optional(Id),
  disks: Type.Array(WireDisk, { minItems: 1, maxItems: 64 }),
  compression: CompressionName,
  bandwidthLimitBytesPerSec: BandwidthLimit,
  exclusions: Exclusions,
  carryRestarts: CarryRestarts,
  /** Of the ring in the source's memory; 0: the agent chooses by the memory's size. */
  ringBytes: Bytes,
  /** What the journal holds durably: the stream goes on right after it. */
  durable: Type.Object({
    seq: Seq,
    capturePos: Bytes,
    /** The source's clock in the last durable frame: a restarted agent knows of no later moment that is in the journal. */
    bootTimeNs: Type.String({ pattern: '^[0-9]{1,20}$' }),
  }),
  /** What the epoch is bound to; null until its first frame is durable. */
  binding: Nullable(Type.Object({ captureId: Id, bootId: Id })),
  /** The journal ends in a stretch whose order is lost; the agent must end that stretch. */
  orderLost: Nullable(Type.Object({ reason: Text, compare: CompareDisks })),
  /** False: the appliance takes no frames now; it sends `flow` when it does. */
  intakeOpen: Type.Boolean(),
});
export const TuneJob = message('tuneJob', {
  jobId: Id,
  compression: CompressionName,
  bandwidthLimitBytesPerSec: BandwidthLimit,
  exclusions: Exclusions,
  carryRestarts: CarryRestarts,
});
export const StartMirror = message('startMirror', {
  jobId: Id,
  disk: Type.Integer({ minimum: 0, maximum: 63 }),
  run: Run,
  kind: MirrorKind,
  reason: Text,
  /**
   * The run covers [startBytes, endBytes); what lies before cursorBytes is done and durable. A drain counts dirty bytes
   * instead: endBytes are those that were known when it was asked for.
   */
  startBytes: Bytes,
  endBytes: Bytes,
  cursorBytes: Bytes,
  skippedBytes: Bytes,
});
/**
 * Compare [cursorBytes, endBytes) of a disk with its replica, which is whole, and repair what differs. Dropped without a
 * word when order is lost or a mirror is asked for; the appliance sees both in the stream, and asks again.
 */
export const StartVerify = message('startVerify', {
  jobId: Id,
  disk: Type.Integer({ minimum: 0, maximum: 63 }),
  run: Run,
  cursorBytes: Bytes,
  endBytes: Bytes,
});
/** Name of a recovery point, as a person gives it. */
export const PointName = Type.String({
  minLength: 1,
  maxLength: 100,
  pattern: '^[^\\u0000-\\u001f]*$',
});
/** Put a named point into the stream, with the applications at rest if `quiesce`; the point's id is the request's. */
export const TakePoint = message('takePoint', {
  requestId: Id,
  jobId: Id,
  name: PointName,
  quiesce: Type.Boolean(),
  /** The moment for the mark by the source's wall clock; at once if it has passed, and never far ahead. */
  atMs: Type.Optional(Bytes),
});
/** Planned failover: stop these systemd units, and remember which of them ran. */
export const PrepareHandover = message('prepareHandover', {
  requestId: Id,
  jobId: Id,
  failoverId: Id,
  stopUnits: UnitNames,
});
/** Flush the file systems and put the final mark into the stream; only between `prepareHandover` and `powerOff`. */
export const FinalMark = message('finalMark', { requestId: Id, jobId: Id, failoverId: Id });
/**
 * The final mark is durable here: power off, or stay passive, as `how` says. From now on, and over every start of the
 * machine, the agent replicates nothing until the appliance says that the failover was taken back.
 */
export const PowerOff = message('powerOff', {
  requestId: Id,
  failoverId: Id,
  how: Type.Union([Type.Literal('power-off'), Type.Literal('passive')]),
  reason: Text,
});
/** The failover was given up: start the units that were stopped for it, and go on. */
export const CancelHandover = message('cancelHandover', { requestId: Id, failoverId: Id });
/** The job ends on this source. The capture is taken off the disks. */
export const StopJob = message('stopJob', { jobId: Id, reason: Text });
export const Ack = message('ack', { jobId: Id, seq: Seq, capturePos: Bytes });
/** `held`: frames are not taken, send none. `open`: go on, from `nextSeq`. */
export const Flow = message('flow', {
  jobId: Id,
  state: Type.Union([Type.Literal('open'), Type.Literal('held')]),
  nextSeq: Seq,
  reason: Nullable(Text),
});
/** Per chunk the first 16 bytes of the SHA-256 of what of it is compared, base64 of all of them; or why there are none. */
export const Hashes = message('hashes', {
  requestId: Id,
  hashes: Type.Optional(Type.String({ maxLength: 4 * 1024 * 1024 })),
  error: Type.Optional(ErrorMessage),
});
export const Certificate = message('certificate', {
  requestId: Id,
  certificate: Type.Optional(Type.String({ maxLength: 65_536 })),
  ca: Type.Optional(Type.String({ maxLength: 65_536 })),
  error: Type.Optional(ErrorMessage),
});
/** Renew the certificate now instead of at two thirds of its life. */
export const RenewNow = message('renewNow', {});
export const Uninstall = message('uninstall', { reason: Text });

const SCHEMAS = {
  ack: Ack,
  cancelHandover: CancelHandover,
  certificate: Certificate,
  clock: Clock,
  clockRequest: ClockRequest,
  configureJob: ConfigureJob,
  diskResized: DiskResized,
  finalMark: FinalMark,
  flow: Flow,
  handedOver: HandedOver,
  handoverCancelled: HandoverCancelled,
  handoverPrepared: HandoverPrepared,
  handoverReady: HandoverReady,
  hashRequest: HashRequest,
  hashes: Hashes,
  hello: Hello,
  inventory: InventoryReply,
  inventoryRequest: InventoryRequest,
  jobFailed: JobFailed,
  jobReady: JobReady,
  needEpoch: NeedEpoch,
  notice: Notice,
  ping: Ping,
  pointTaken: PointTaken,
  pong: Pong,
  powerOff: PowerOff,
  prepareHandover: PrepareHandover,
  refused: Refused,
  renewCertificate: RenewCertificate,
  renewNow: RenewNow,
  startMirror: StartMirror,
  startVerify: StartVerify,
  status: Status,
  stopJob: StopJob,
  takePoint: TakePoint,
  tuneJob: TuneJob,
  uninstall: Uninstall,
  uninstalled: Uninstalled,
  welcome: Welcome,
} as const;

export type ControlType = keyof typeof SCHEMAS;
export type ControlMessage = { [K in ControlType]: Static<(typeof SCHEMAS)[K]> }[ControlType];
/** The message of one type, e.g. `ControlOf<'configureJob'>`. */
export type ControlOf<K extends ControlType> = Static<(typeof SCHEMAS)[K]>;

/**
 * The control message in `bytes`; null if its type is unknown and the sender marked it optional.
 * @throws UND_CONTROL_INVALID, UND_CONTROL_UNKNOWN
 */
export function decodeControl(bytes: Buffer): ControlMessage | null {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch (cause) {
    throw undError('UND_CONTROL_INVALID', { type: '?', reason: 'it is not JSON' }, { cause });
  }
  const { type, optional } = (value ?? {}) as { type?: unknown; optional?: unknown };
  if (typeof type !== 'string') {
    throw undError('UND_CONTROL_INVALID', { type: '?', reason: 'it has no type' });
  }
  if (!Object.hasOwn(SCHEMAS, type)) {
    if (optional === true) return null;
    throw undError('UND_CONTROL_UNKNOWN', { type: type.slice(0, 64) });
  }
  const schema = SCHEMAS[type as ControlType];
  if (!Value.Check(schema, value)) {
    const first = Value.Errors(schema, value)[0];
    throw undError('UND_CONTROL_INVALID', {
      type,
      reason: first ? `${first.instancePath || '/'} ${first.message}` : 'it does not match',
    });
  }
  return value as ControlMessage;
}

export const encodeControl = (control: ControlMessage): Buffer =>
  Buffer.from(JSON.stringify(control));

/** The code of an error that came over the link, as far as this side knows it. */
export const knownCode = (error: ErrorMessage): ErrorCode =>
  Object.hasOwn(ERRORS, error.code) ? (error.code as ErrorCode) : 'UND_INTERNAL';

/** An error that came over the link, in the words of the side that it comes from. */
export const fromErrorMessage = (error: ErrorMessage): SerialisedError => ({
  ...error,
  code: knownCode(error),
});

/** An error in the form in which it crosses the link. */
export function toErrorMessage(error: UndError): ErrorMessage {
  const { code, message, hint, params } = error.toJSON();
  const short = (text: string) => text.slice(0, 2000);
  const shortParams = Object.fromEntries(
    Object.entries(params).map(([name, value]) => [name, short(value)]),
  );
  return { code, message: short(message), hint: short(hint), params: shortParams };
}
