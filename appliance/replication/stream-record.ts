/**
 * Pure: what the appliance knows of a stream, as a fold over its frames. The same fold gives the durable record (frames
 * in the journal) and the applied record (frames on the replica disks); only the applied one is persisted, and after a
 * restart the durable one is the applied one plus the journal's frames behind it.
 */
import Type, { type Static } from 'typebox';
import { CompareDisks, uniteCompare } from '../../protocol/compare-disks.ts';
import { MirrorKind as Kind } from '../../protocol/control.ts';
import type { FrameHeader } from '../../protocol/frame.ts';
import type { Mark, VerifiedMark } from '../../protocol/marks.ts';
import { ConsistencyPointMark } from '../../protocol/marks.ts';

const Bytes = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });

/**
 * What a disk's replica still needs.
 * - `needed`: a mirror of [startBytes, endBytes), for this reason; nothing of it has begun.
 * - `running`: a run is under way; before cursorBytes all is done. Of a drain, cursorBytes only tells how much of the
 *   dirty bytes that were known at its start has been sent: what is left is in the source's dirty map.
 * - `done`: the replica is whole, and captured writes keep it so.
 */
export const MirrorState = Type.Union([
  Type.Object({
    name: Type.Literal('needed'),
    kind: Kind,
    reason: Type.String(),
    startBytes: Bytes,
    endBytes: Bytes,
  }),
  Type.Object({
    name: Type.Literal('running'),
    kind: Kind,
    reason: Type.String(),
    run: Type.Integer({ minimum: 1 }),
    startBytes: Bytes,
    endBytes: Bytes,
    cursorBytes: Bytes,
    skippedBytes: Bytes,
  }),
  Type.Object({
    name: Type.Literal('done'),
    kind: Kind,
    reason: Type.String(),
    startBytes: Bytes,
    endBytes: Bytes,
    skippedBytes: Bytes,
  }),
]);
export type MirrorState = Static<typeof MirrorState>;

/** What a verification has found so far, or found; mismatches and repaired in blocks of 4 KiB. */
const Found = { comparedBytes: Bytes, mismatches: Bytes, repaired: Bytes };
/**
 * Verification of a disk. `run`: the newest that was asked for, counted apart from mirror runs. `asked`: it is to be done;
 * before cursorBytes all is compared. `last`: the newest that came to its end, by the source's wall clock.
 */
export const Verification = Type.Object({
  run: Type.Integer({ minimum: 1 }),
  asked: Type.Union([Type.Null(), Type.Object({ cursorBytes: Bytes, ...Found })]),
  last: Type.Union([Type.Null(), Type.Object({ wallMs: Bytes, ...Found })]),
});
export type Verification = Static<typeof Verification>;

/** A point that was asked for and is whole: `point` holds at frame `seq`. */
export const PointRecord = Type.Object({ seq: Bytes, wallMs: Bytes, point: ConsistencyPointMark });
export type PointRecord = Static<typeof PointRecord>;

const POINTS_KEPT = 20;

export const StreamRecord = Type.Object({
  version: Type.Literal(1),
  seq: Bytes,
  capturePos: Bytes,
  bootTimeNs: Type.String({ pattern: '^[0-9]+$' }),
  wallMs: Bytes,
  /** Which capture the epoch is bound to; null until its first frame. */
  epoch: Bytes,
  binding: Type.Union([
    Type.Null(),
    Type.Object({ captureId: Type.String(), bootId: Type.String() }),
  ]),
  order: Type.Union([
    Type.Object({ name: Type.Literal('held') }),
    Type.Object({
      name: Type.Literal('lost'),
      reason: Type.String(),
      wallMs: Bytes,
      compare: CompareDisks,
    }),
    Type.Object({ name: Type.Literal('resumed'), reason: Type.String(), wallMs: Bytes }),
  ]),
  disks: Type.Array(
    Type.Object({
      index: Type.Integer({ minimum: 0 }),
      sizeBytes: Bytes,
      lastRun: Bytes,
      mirror: MirrorState,
      verification: Type.Optional(Verification),
    }),
  ),
  /**
   * The newest point of an unbroken ordered stretch, and the stretch's first point. It outlives the stretch until the
   * owner has protected it (`passGate`): as long as it is there, nothing unordered may be applied over it. Null: there is
   * nothing to protect.
   */
  good: Type.Optional(
    Type.Union([Type.Null(), Type.Object({ sinceSeq: Bytes, seq: Bytes, wallMs: Bytes })]),
  ),
  /** The newest of the points that were asked for, oldest first. */
  points: Type.Optional(Type.Array(PointRecord)),
});
export type StreamRecord = Static<typeof StreamRecord>;
export type DiskRecord = StreamRecord['disks'][number];

/** A job that has not received anything. `freshReplica: false`: the replica disks hold something already. */
export function newStreamRecord(
  disks: ReadonlyArray<{ index: number; sizeBytes: number; freshReplica: boolean }>,
): StreamRecord {
  return {
    version: 1,
    seq: 0,
    capturePos: 0,
    bootTimeNs: '0',
    wallMs: 0,
    epoch: 0,
    binding: null,
    order: { name: 'held' },
    good: null,
    disks: disks.map(({ index, sizeBytes, freshReplica }) => ({
      index,
      sizeBytes,
      lastRun: 0,
      mirror: freshReplica
        ? {
            name: 'needed',
            kind: 'full',
            reason: 'first mirror',
            startBytes: 0,
            endBytes: sizeBytes,
          }
        : needDifference('first mirror onto a replica disk that was used before', sizeBytes),
    })),
  };
}

const needDifference = (reason: string, sizeBytes: number): MirrorState => ({
  name: 'needed',
  kind: 'difference',
  reason,
  startBytes: 0,
  endBytes: sizeBytes,
});

const withDisks = (
  record: StreamRecord,
  change: (disk: DiskRecord) => MirrorState | null,
): DiskRecord[] =>
  record.disks.map((disk) => {
    const mirror = change(disk);
    return mirror ? { ...disk, mirror } : disk;
  });

/** The record after one more frame. */
export function foldFrame(
  record: StreamRecord,
  header: FrameHeader,
  mark: Mark | null,
): StreamRecord {
  const next: StreamRecord = {
    ...record,
    seq: header.seq,
    epoch: header.epoch,
    capturePos: header.capturePos,
    bootTimeNs: String(header.bootTimeNs),
    wallMs: header.wallMs,
  };
  if (header.kind === 'mirror') {
    next.disks = withDisks(record, ({ index, mirror }) =>
      index === header.disk && mirror.name === 'running' && mirror.run === header.run
        ? { ...mirror, cursorBytes: header.cursorBytes, skippedBytes: header.skippedBytes }
        : null,
    );
    next.good = goodAfter(record, next);
    return next;
  }
  switch (mark?.type) {
    case 'epochStart':
      next.binding = { captureId: mark.captureId, bootId: mark.bootId };
      if (mark.carried && header.epoch !== 1) {
        const { compare } = mark.carried;
        const { order } = record;
        next.order = {
          name: 'lost',
          reason: mark.reason,
          wallMs: header.wallMs,
          compare: order.name === 'lost' ? uniteCompare(order.compare, compare) : compare,
        };
        break;
      }
      next.order = { name: 'held' };
      // The first epoch finds the replica as the job was made with it. Any later one may have missed writes, and a
      // replica that holds older writes is not blank either: compare.
      if (header.epoch !== 1) {
        next.disks = withDisks(record, (disk) => needDifference(mark.reason, disk.sizeBytes));
      }
      break;
    case 'mirrorStart':
      next.disks = record.disks.map((disk) => {
        if (disk.index !== mark.disk) return disk;
        const { mirror } = disk;
        if (mirror.name === 'running' && mirror.run === mark.run) return disk;
        // Asked for again although its end was on its way (the appliance died between): until it ends once more, what it
        // reads may have been seen before its record came, so nothing is a point.
        if (mirror.name === 'done' && disk.lastRun === mark.run) {
          const { kind, reason, startBytes, endBytes, skippedBytes } = mirror;
          const again = { kind, reason, run: mark.run, startBytes, endBytes, skippedBytes };
          return { ...disk, mirror: { name: 'running', ...again, cursorBytes: endBytes } };
        }
        // A run for what is no longer asked for (the need changed while it was on its way) is not begun.
        if (mirror.name !== 'needed' || mark.run <= disk.lastRun) return disk;
        if (mark.startBytes > mirror.startBytes || mark.endBytes < mirror.endBytes) return disk;
        if (mirror.kind === 'difference' && mark.kind === 'full') return disk;
        // A drain is no substitute for what reads the whole disk.
        if ((mirror.kind === 'drain') !== (mark.kind === 'drain')) return disk;
        return {
          ...disk,
          lastRun: mark.run,
          mirror: {
            name: 'running',
            kind: mark.kind,
            reason: mark.reason,
            run: mark.run,
            startBytes: mark.startBytes,
            endBytes: mark.endBytes,
            cursorBytes: mark.startBytes,
            skippedBytes: 0,
          },
        };
      });
      break;
    case 'mirrorEnd':
      next.disks = withDisks(record, ({ index, mirror }) => {
        if (index !== mark.disk || mirror.name !== 'running' || mirror.run !== mark.run)
          return null;
        if (mirror.kind !== 'drain' && mirror.cursorBytes < mirror.endBytes) return null;
        const { kind, reason, startBytes, endBytes, skippedBytes } = mirror;
        return { name: 'done', kind, reason, startBytes, endBytes, skippedBytes };
      });
      break;
    case 'orderLost':
      next.order =
        record.order.name === 'lost'
          ? { ...record.order, compare: uniteCompare(record.order.compare, mark.compare) }
          : { name: 'lost', reason: mark.reason, wallMs: header.wallMs, compare: mark.compare };
      break;
    case 'orderResumed':
      next.order = { name: 'resumed', reason: mark.reason, wallMs: header.wallMs };
      next.disks = withDisks(record, (disk) => {
        if (mark.compare.includes(disk.index)) return needDifference(mark.reason, disk.sizeBytes);
        const drain = mark.drain.find((one) => one.disk === disk.index);
        // A run that is under way, or still to come, drains what is dirty before it ends.
        if (!drain || disk.mirror.name !== 'done') return null;
        return {
          name: 'needed',
          kind: 'drain',
          reason: mark.reason,
          startBytes: 0,
          endBytes: drain.dirtyBytes,
        };
      });
      break;
    case 'consistencyPoint':
      if (isWhole(record)) {
        const point = { seq: header.seq, wallMs: header.wallMs, point: mark };
        next.points = [...(record.points ?? []), point].slice(-POINTS_KEPT);
      }
      break;
    case 'verified':
      next.disks = record.disks.map((disk) =>
        disk.index === mark.disk
          ? { ...disk, verification: verificationAfter(disk, mark, header.wallMs) }
          : disk,
      );
      break;
    case 'verifyStart':
    case 'tick':
    case undefined:
      break;
  }
  if (next.order.name === 'resumed' && isWhole(next)) next.order = { name: 'held' };
  next.good = goodAfter(record, next);
  return next;
}

function verificationAfter(
  { sizeBytes, verification }: DiskRecord,
  mark: VerifiedMark,
  wallMs: number,
): Verification | undefined {
  const asked = verification?.asked;
  // A section of another run, or one that was done before: its repairs count no second time.
  if (!asked || verification.run !== mark.run || asked.cursorBytes !== mark.startBytes)
    return verification;
  const found = {
    comparedBytes: asked.comparedBytes + mark.comparedBytes,
    mismatches: asked.mismatches + mark.mismatches,
    repaired: asked.repaired + mark.repaired,
  };
  return mark.endBytes < sizeBytes
    ? { ...verification, asked: { cursorBytes: mark.endBytes, ...found } }
    : { ...verification, asked: null, last: { wallMs, ...found } };
}

function goodAfter(before: StreamRecord, { seq, wallMs, ...after }: StreamRecord) {
  if (!isWhole(after)) return before.good ?? null;
  const sinceSeq = isWhole(before) ? (before.good?.sinceSeq ?? seq) : seq;
  return { sinceSeq, seq, wallMs };
}

/** Every disk's mirror is done and order is held: with this record applied, the replica is crash-consistent. */
export const isWhole = (record: Pick<StreamRecord, 'order' | 'disks'>): boolean =>
  record.order.name !== 'lost' && record.disks.every(({ mirror }) => mirror.name === 'done');

/** Why a record is not whole, for people; '' when it is. */
export function whyNotWhole(record: Pick<StreamRecord, 'order' | 'disks'>): string {
  if (record.order.name === 'lost') return record.order.reason;
  const open = record.disks.filter(({ mirror }) => mirror.name !== 'done');
  return [...new Set(open.map(({ mirror }) => mirror.reason))].join('; ');
}

/** The record once its good point is protected, or is known not to need it: unordered frames may be applied. */
export const passGate = (record: StreamRecord): StreamRecord => ({ ...record, good: null });

/** A record of a version that did not note its good point. */
export const withGood = (record: StreamRecord): StreamRecord =>
  record.good !== undefined
    ? record
    : {
        ...record,
        good: isWhole(record)
          ? { sinceSeq: record.seq, seq: record.seq, wallMs: record.wallMs }
          : null,
      };

/** The record after a disk of the source grew; only the new range is mirrored if the rest is whole. */
export function growDisk(record: StreamRecord, index: number, sizeBytes: number): StreamRecord {
  return {
    ...record,
    disks: record.disks.map((disk): DiskRecord => {
      if (disk.index !== index || sizeBytes <= disk.sizeBytes) return disk;
      const reason = `disk grew from ${disk.sizeBytes} to ${sizeBytes} bytes`;
      const { mirror } = disk;
      if (mirror.name === 'done') {
        const grown = { ...needDifference(reason, sizeBytes), startBytes: disk.sizeBytes };
        return { ...disk, sizeBytes, mirror: grown as MirrorState };
      }
      // A drain counts dirty bytes, not places: with the new range it is simplest, and safe, to compare the disk.
      if (mirror.name === 'needed' && mirror.kind !== 'drain')
        return { ...disk, sizeBytes, mirror: { ...mirror, endBytes: sizeBytes } };
      return {
        ...disk,
        sizeBytes,
        mirror: needDifference(`${mirror.reason}; ${reason}`, sizeBytes),
      };
    }),
  };
}

/**
 * The record with a difference mirror of one disk asked for. Runs up to `lastRun` were asked for before: their marks
 * may still be on their way and do not answer this.
 */
export const askDifferenceOf = (
  record: StreamRecord,
  index: number,
  reason: string,
  lastRun: number,
): StreamRecord => ({
  ...record,
  disks: record.disks.map((disk) =>
    disk.index === index
      ? {
          ...disk,
          lastRun: Math.max(disk.lastRun, lastRun),
          mirror: needDifference(reason, disk.sizeBytes),
        }
      : disk,
  ),
});

/**
 * What asks for a verification of these disks, by index; for `withVerifications`. One that is under way goes on.
 * @param durable the newest record
 */
export const newVerifications = (
  durable: StreamRecord,
  indexes: readonly number[],
): Map<number, Verification> => {
  const asked = { cursorBytes: 0, comparedBytes: 0, mismatches: 0, repaired: 0 };
  return new Map(
    durable.disks
      .filter(({ index, verification }) => indexes.includes(index) && !verification?.asked)
      .map(({ index, verification }) => [
        index,
        { run: (verification?.run ?? 0) + 1, asked, last: verification?.last ?? null },
      ]),
  );
};

/** The record with these verifications, whatever an older record knew of the disks' earlier ones. */
export const withVerifications = (
  record: StreamRecord,
  verifications: ReadonlyMap<number, Verification>,
): StreamRecord => ({
  ...record,
  disks: record.disks.map((disk) => {
    const verification = verifications.get(disk.index);
    return verification ? { ...disk, verification } : disk;
  }),
});

/** The record with a difference mirror of all disks asked for. */
export const askDifference = (record: StreamRecord, reason: string): StreamRecord => ({
  ...record,
  disks: withDisks(record, (disk) => needDifference(reason, disk.sizeBytes)),
});
