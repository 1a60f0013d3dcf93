/**
 * Marks: what the stream says about itself, in order with the data, and durable with it. A mark is a frame of its own.
 */
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { undError } from './errors.ts';
import { FRAME_HEADER_BYTES, type FrameHeader } from './frame.ts';

const Reason = Type.String({ maxLength: 1000 });
const DiskIndex = Type.Integer({ minimum: 0, maximum: 1023 });
const Bytes = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Run = Type.Integer({ minimum: 1, maximum: 0xffff_ffff });

/** The first frame of a stream epoch: which capture, of which boot, the epoch is bound to, and why it began. */
export const EpochStartMark = Type.Object({
  type: Type.Literal('epochStart'),
  reason: Reason,
  captureId: Type.String({ maxLength: 128 }),
  bootId: Type.String({ maxLength: 64 }),
});
/** Nothing was written up to the frame's clock: the source is idle, not lost. */
export const TickMark = Type.Object({ type: Type.Literal('tick') });
/**
 * From here on, blocks of this run may follow; it comes again when the run is resumed. All frames before it must be
 * applied before replica hashes are taken for the run.
 */
export const MirrorStartMark = Type.Object({
  type: Type.Literal('mirrorStart'),
  disk: DiskIndex,
  run: Run,
  kind: Type.Union([Type.Literal('full'), Type.Literal('difference')]),
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
/** Records were lost from here on: no recovery point follows until every disk is whole again. */
export const OrderLostMark = Type.Object({ type: Type.Literal('orderLost'), reason: Reason });
/** Order is held again from here on; these disks missed writes and need a difference mirror. */
export const OrderResumedMark = Type.Object({
  type: Type.Literal('orderResumed'),
  disks: Type.Array(DiskIndex, { maxItems: 1024 }),
  reason: Reason,
});

export const Mark = Type.Union([
  EpochStartMark,
  TickMark,
  MirrorStartMark,
  MirrorEndMark,
  OrderLostMark,
  OrderResumedMark,
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
