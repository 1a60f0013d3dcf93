/**
 * Pure: the stream's record, folded again over history whose mirror frames have left. Where the history alone cannot
 * tell, no point is claimed.
 */
import type { FrameHeader } from '../../protocol/frame.ts';
import type { Mark } from '../../protocol/marks.ts';
import { foldFrame, type MirrorState, type StreamRecord } from '../replication/stream-record.ts';

/**
 * What holds before the history's first frame when nothing says so: no point until the disks' mirrors end.
 * @param firstSeq that frame; before frame 1 of a journal there was nothing
 */
export const unknownRecord = (certain: StreamRecord, firstSeq: number): StreamRecord => ({
  ...certain,
  seq: firstSeq - 1,
  order: { name: 'held' },
  disks: certain.disks.map((disk) => ({
    ...disk,
    lastRun: 0,
    mirror: {
      name: 'needed',
      kind: firstSeq === 1 ? 'full' : 'difference',
      reason: firstSeq === 1 ? 'first mirror' : 'what was known of this time is lost',
      startBytes: 0,
      endBytes: disk.sizeBytes,
    },
  })),
});

/** Marks that say nothing of order or mirrors. */
export const changesRecord = (mark: Mark): boolean =>
  !['tick', 'consistencyPoint', 'verifyStart', 'verified'].includes(mark.type);

/**
 * The record with one more frame of the history.
 * @param framesLeft mirror frames of this time may have left the journal
 */
export function assumeMark(
  record: StreamRecord,
  header: FrameHeader,
  mark: Mark | null,
  framesLeft: boolean,
): StreamRecord {
  if (!framesLeft || !mark) return foldFrame(record, header, mark);
  if (mark.type === 'mirrorStart') {
    // A run is only begun for a need; one that the marks don't show (a disk that grew) is taken from the run itself.
    const { kind, reason, startBytes, endBytes } = mark;
    const need: MirrorState = { name: 'needed', kind, reason, startBytes, endBytes };
    return foldFrame(
      withMirror(record, mark.disk, (mirror) =>
        mirror.name === 'running' && mirror.run === mark.run ? mirror : need,
      ),
      header,
      mark,
    );
  }
  if (mark.type === 'mirrorEnd') {
    return foldFrame(
      withMirror(record, mark.disk, (mirror) =>
        mirror.name === 'running' && mirror.run === mark.run
          ? { ...mirror, cursorBytes: mirror.endBytes }
          : mirror,
      ),
      header,
      mark,
    );
  }
  return foldFrame(record, header, mark);
}

const withMirror = (
  record: StreamRecord,
  disk: number,
  change: (mirror: MirrorState) => MirrorState,
): StreamRecord => ({
  ...record,
  disks: record.disks.map((one) =>
    one.index === disk ? { ...one, mirror: change(one.mirror) } : one,
  ),
});
