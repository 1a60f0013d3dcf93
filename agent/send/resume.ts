/**
 * Pure: may the stream go on where the journal ends? The decision table of the handshake. Both sides compare the
 * journal's identity, the epoch and the last acknowledgement; anything that does not fit begins a new epoch, in which
 * all disks are compared. It is never guessed.
 *
 * | the appliance's journal | this agent | then |
 * |---|---|---|
 * | epoch without a frame | holds no frame of it | start: the epoch's first frame |
 * | any | still holds the frame after its end | window: send again from there |
 * | bound to this capture, not behind what was released | has no frames (restarted) | capture: read on from its position |
 * | behind what was acknowledged before, another journal | any | new epoch |
 * | bound to another capture or boot | any | new epoch |
 */
export interface RemoteStream {
  journalId: string;
  epoch: number;
  durableSeq: number;
  capturePos: number;
  binding: { captureId: string; bootId: string } | null;
}

/** Frames that this process holds; null when it holds none of this job. */
export interface LocalStream {
  journalId: string;
  epoch: number;
  firstSeq: number;
  nextSeq: number;
}

/** What this agent, or the one before it in this boot, knew to be acknowledged. */
export interface Remembered {
  journalId: string;
  epoch: number;
  ackedSeq: number;
}

export interface CaptureIdentity {
  captureId: string;
  bootId: string;
  /** Everything before it was given back to the ring: it was acknowledged, and can't be read again. */
  releasedPos: number;
}

export type Resume =
  | { kind: 'start' }
  | { kind: 'window'; fromSeq: number }
  | { kind: 'capture'; fromPos: number; nextSeq: number }
  | { kind: 'new-epoch'; reason: string };

export function decideResume(
  remote: RemoteStream,
  local: LocalStream | null,
  remembered: Remembered | null,
  capture: CaptureIdentity,
): Resume {
  const sameEpoch = (known: { journalId: string; epoch: number }) =>
    known.journalId === remote.journalId && known.epoch === remote.epoch;

  if (remembered?.journalId === remote.journalId) {
    if (remembered.epoch > remote.epoch) {
      return { kind: 'new-epoch', reason: 'the appliance was set back to an older state' };
    }
    if (remembered.epoch === remote.epoch && remembered.ackedSeq > remote.durableSeq) {
      return {
        kind: 'new-epoch',
        reason: `the appliance's journal ends at frame ${remote.durableSeq}, but it had acknowledged frame ${remembered.ackedSeq}`,
      };
    }
  }
  if (local && sameEpoch(local)) {
    const fromSeq = remote.durableSeq + 1;
    if (fromSeq >= local.firstSeq && fromSeq <= local.nextSeq) return { kind: 'window', fromSeq };
    if (fromSeq > local.nextSeq) {
      return {
        kind: 'new-epoch',
        reason: `the appliance's journal ends at frame ${remote.durableSeq}, which this agent has not sent`,
      };
    }
  }
  if (remote.binding === null) return { kind: 'start' };
  if (remote.binding.bootId !== capture.bootId) {
    return { kind: 'new-epoch', reason: 'the source server was restarted' };
  }
  if (remote.binding.captureId !== capture.captureId) {
    return { kind: 'new-epoch', reason: 'the capture of writes was started anew' };
  }
  if (capture.releasedPos > remote.capturePos) {
    return {
      kind: 'new-epoch',
      reason: "the appliance's journal ends before what it had acknowledged",
    };
  }
  return { kind: 'capture', fromPos: remote.capturePos, nextSeq: remote.durableSeq + 1 };
}
