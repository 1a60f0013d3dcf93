/**
 * Marks: what the stream says about itself, in order with the data, and durable with it. A mark is a frame of its own.
 */
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { CompareDisks } from './compare-disks.ts';
import { undError } from './errors.ts';
import { FRAME_HEADER_BYTES, type FrameHeader } from './frame.ts';
import { MirrorKind } from './mirror-kind.ts';

const Reason = Type.String({ maxLength: 1000 });
const DiskIndex = Type.Integer({ minimum: 0, maximum: 1023 });
const Bytes = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Run = Type.Integer({ minimum: 1, maximum: 0xffff_ffff });

/**
 * The first frame of a stream epoch: which capture, of which boot, the epoch is bound to, and why it began. `carried`:
 * the dirty map knows what was written since the last frame of the epoch before, but for the disks of `compare`. So it is
 * as if order had been lost here, and no more than that.
 */
export const EpochStartMark = Type.Object({
  type: Type.Literal('epochStart'),
  reason: Reason,
  captureId: Type.String({ maxLength: 128 }),
  bootId: Type.String({ maxLength: 64 }),
  carried: Type.Optional(Type.Object({ compare: CompareDisks })),
});
/** A clock mark: whatever was issued on the source before the frame's clock lies before it. At least one each second. */
export const TickMark = Type.Object({ type: Type.Literal('tick') });
/**
 * From here on, blocks of this run may follow; it comes again when the run is resumed. All frames before it must be
 * applied before replica hashes are taken for the run.
 */
export const MirrorStartMark = Type.Object({
  type: Type.Literal('mirrorStart'),
  disk: DiskIndex,
  run: Run,
  kind: MirrorKind,
  reason: Reason,
  startBytes: Bytes,
  endBytes: Bytes,
});
/** The run has dealt with all its blocks: with this frame applied, the disk is whole. */
export const MirrorEndMark = Type.Object({
  type: Type.Literal('mirrorEnd'),
  disk: DiskIndex,
  run: Run,
});
/**
 * Records were lost from here on: no recovery point follows until every disk is whole again. It comes again when more
 * disks turn out to need a comparison; the disks of all of them count together.
 */
export const OrderLostMark = Type.Object({
  type: Type.Literal('orderLost'),
  reason: Reason,
  compare: CompareDisks,
});
/**
 * Order is held again from here on. The disks of `drain` missed writes that their dirty maps name; those of `compare`
 * need a difference mirror.
 */
export const OrderResumedMark = Type.Object({
  type: Type.Literal('orderResumed'),
  compare: Type.Array(DiskIndex, { maxItems: 64 }),
  drain: Type.Array(Type.Object({ disk: DiskIndex, dirtyBytes: Bytes }), { maxItems: 64 }),
  reason: Reason,
});

/** What one call of a hook script came to. `skipped`: its application does not run on the source. */
export const HookReport = Type.Object({
  name: Type.String({ maxLength: 128 }),
  phase: Type.Union([Type.Literal('pre'), Type.Literal('post')]),
  outcome: Type.Union([
    Type.Literal('done'),
    Type.Literal('skipped'),
    Type.Literal('failed'),
    Type.Literal('timed-out'),
  ]),
  ms: Type.Number({ minimum: 0 }),
  /** Its last words. */
  text: Type.String({ maxLength: 1000 }),
});
export type HookReport = Static<typeof HookReport>;

/**
 * A recovery point that was asked for: everything before this frame, and nothing behind it. `quiesced`: the file
 * systems were frozen and every pre-hook had succeeded; if that was asked for and did not come about, `reason` says why,
 * and the point is crash-consistent like any frame boundary. It is a point only if order is held and all disks are
 * whole here.
 */
export const ConsistencyPointMark = Type.Object({
  type: Type.Literal('consistencyPoint'),
  pointId: Type.String({ minLength: 1, maxLength: 128 }),
  name: Type.String({ maxLength: 100 }),
  quiesced: Type.Boolean(),
  reason: Type.Union([Reason, Type.Null()]),
  /** How long writes were held up: from before the first freeze to behind the last thaw. Null: nothing was frozen. */
  freezeMs: Type.Union([Type.Number({ minimum: 0 }), Type.Null()]),
  /** Mount points that were frozen. */
  fileSystems: Type.Array(Type.String({ maxLength: 4096 }), { maxItems: 256 }),
  /** Of the pre-hooks. */
  hooks: Type.Array(HookReport, { maxItems: 256 }),
  /** The last point before a planned failover: the chosen services had been stopped, and the source is powered off. */
  final: Type.Optional(Type.Boolean()),
});
export type ConsistencyPointMark = Static<typeof ConsistencyPointMark>;

/**
 * A verification begins, or goes on: all frames before it must be applied before replica hashes are taken for it. It says
 * nothing of order or of what is mirrored: points go on.
 */
export const VerifyStartMark = Type.Object({
  type: Type.Literal('verifyStart'),
  disk: DiskIndex,
  run: Run,
});
/**
 * [startBytes, endBytes) of a disk was compared with its replica. What differed although no write accounts for it is in
 * the stream before this mark. `repaired`: of the mismatches, those that were looked at again and are as the source's.
 */
export const VerifiedMark = Type.Object({
  type: Type.Literal('verified'),
  disk: DiskIndex,
  run: Run,
  startBytes: Bytes,
  endBytes: Bytes,
  comparedBytes: Bytes,
  /** In blocks of 4 KiB, the others likewise. */
  mismatches: Bytes,
  repaired: Bytes,
});
export type VerifiedMark = Static<typeof VerifiedMark>;

export const Mark = Type.Union([
  EpochStartMark,
  TickMark,
  MirrorStartMark,
  MirrorEndMark,
  OrderLostMark,
  OrderResumedMark,
  ConsistencyPointMark,
  VerifyStartMark,
  VerifiedMark,
]);
export type Mark = Static<typeof Mark>;

/**
 * The mark in a checked mark frame.
 * @throws UND_FRAME_INVALID
 */
export function readMark(header: FrameHeader, frame: Buffer): Mark {
  let mark: unknown;
  try {
    mark = JSON.parse(frame.toString('utf8', FRAME_HEADER_BYTES));
  } catch (cause) {
    throw undError(
      'UND_FRAME_INVALID',
      { seq: header.seq, reason: 'its mark is not JSON' },
      { cause },
    );
  }
  if (!Value.Check(Mark, mark)) {
    throw undError('UND_FRAME_INVALID', { seq: header.seq, reason: 'its mark is not known' });
  }
  return mark;
}
