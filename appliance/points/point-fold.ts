/**
 * Pure: whether the end of a frame is a point that a server can be recovered to, and if not, why.
 *
 * A frame's end is a point if the stream's record with it is whole (every disk's mirror done, order held), and the
 * frame is no part of a repetition: a frame that was cut off inside a batch of the capture says how far its batch goes
 * (`aheadBytes`), and if the agent dies then, its records come a second time. Older data over newer is no state the
 * disks ever had, so points begin again where the capture's position has passed all that was ever in a frame.
 */
import type { FrameHeader } from '../../protocol/frame.ts';
import type { StreamRecord } from '../replication/stream-record.ts';
import { isWhole } from '../replication/stream-record.ts';

export type GapKind =
  | 'first-mirror'
  | 'difference-mirror'
  | 'order-lost'
  | 'draining'
  /** Nothing came for some time, and what was written then came in one piece. */
  | 'source-away'
  /** A large batch of writes was cut, or comes a second time. */
  | 'repetition'
  /** Frames of the history are not there any more. */
  | 'missing';

export interface GapReason {
  kind: GapKind;
  text: string;
}

export interface PointState {
  epoch: number;
  seq: number;
  bootTimeNs: bigint;
  /** Capture position up to which some frame of the epoch may carry records. */
  reachedPos: number;
}

export type Verdict =
  | { name: 'point' }
  /** A point, and what was before it is no neighbour: the reason lies between them. */
  | { name: 'point-after'; reason: GapReason }
  | { name: 'no-point'; reason: GapReason };

export const newPointState = (): PointState => ({
  epoch: 0,
  seq: 0,
  bootTimeNs: 0n,
  reachedPos: 0,
});

/** The agent says each second that nothing was written, so longer silence before data is time that cannot be told apart. */
export const SILENCE_NS = 3_000_000_000n;

/**
 * @param record the stream's record with this frame in it
 * @returns the state for the next frame, and what this one's end is
 */
export function judgeFrame(
  state: PointState,
  header: FrameHeader,
  record: StreamRecord,
): { state: PointState; verdict: Verdict } {
  const sameEpoch = header.epoch === state.epoch;
  const next: PointState = {
    epoch: header.epoch,
    seq: header.seq,
    bootTimeNs: header.bootTimeNs,
    reachedPos: Math.max(sameEpoch ? state.reachedPos : 0, header.capturePos + header.aheadBytes),
  };
  return { state: next, verdict: verdictOf(state, next, header, record, sameEpoch) };
}

function verdictOf(
  before: PointState,
  after: PointState,
  header: FrameHeader,
  record: StreamRecord,
  sameEpoch: boolean,
): Verdict {
  if (!isWhole(record)) return { name: 'no-point', reason: gapReason(record) };
  if (header.capturePos < after.reachedPos) {
    return {
      name: 'no-point',
      reason: { kind: 'repetition', text: 'a large batch of writes was cut into several frames' },
    };
  }
  if (sameEpoch && header.seq !== before.seq + 1) {
    const text = `frames ${before.seq + 1} to ${header.seq - 1} are not in the history`;
    return { name: 'point-after', reason: { kind: 'missing', text } };
  }
  if (
    sameEpoch &&
    header.kind !== 'mark' &&
    header.bootTimeNs - before.bootTimeNs > SILENCE_NS &&
    before.bootTimeNs > 0n
  ) {
    const seconds = Number((header.bootTimeNs - before.bootTimeNs) / 1_000_000_000n);
    const text = `the source was away: what it wrote in these ${seconds} s came in one piece`;
    return { name: 'point-after', reason: { kind: 'source-away', text } };
  }
  return { name: 'point' };
}

/** Why a record that is not whole is not. */
export function gapReason(record: StreamRecord): GapReason {
  const { order } = record;
  if (order.name === 'lost') return { kind: 'order-lost', text: order.reason };
  const open = record.disks.flatMap(({ mirror }) => (mirror.name === 'done' ? [] : [mirror]));
  const text = [...new Set(open.map(({ reason }) => reason))].join('; ');
  const kinds = new Set<string>(open.map(({ kind }) => kind));
  if (kinds.has('full')) return { kind: 'first-mirror', text };
  if (kinds.has('drain')) return { kind: 'draining', text };
  return { kind: 'difference-mirror', text };
}
