/**
 * What `understudy-capture early` brought over the last restart, and whether the stream may go on with it. The capture of
 * before is treated as if it were still there: if the stream could have been continued by it, then what the new capture
 * has in its dirty map is all that is missing.
 */
import { readFile, rm } from 'node:fs/promises';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import type { CompareDisks } from '../../protocol/compare-disks.ts';
import { uniteCompare } from '../../protocol/compare-disks.ts';
import { decideResume, type Remembered, type RemoteStream } from '../send/resume.ts';

const Carried = Type.Object({
  /** The capture that was attached early, with what was saved in its dirty map. */
  captureId: Type.String(),
  /** The capture of before the restart. */
  saved: Type.Object({
    captureId: Type.String(),
    bootId: Type.String(),
    releasedPos: Type.Integer({ minimum: 0 }),
  }),
  /** By index: null, or why the disk has to be compared all the same. */
  disks: Type.Record(Type.String(), Type.Union([Type.String(), Type.Null()])),
});
export type Carried = Static<typeof Carried>;
const NotCarried = Type.Object({ reason: Type.String() });

/** null: nothing is installed that could have brought anything. */
export async function readCarried(path: string): Promise<Carried | { reason: string } | null> {
  const text = await readFile(path, 'utf8').catch(() => null);
  if (text === null) return null;
  try {
    const value: unknown = JSON.parse(text);
    if (Value.Check(Carried, value) || Value.Check(NotCarried, value)) return value;
  } catch {
    // As below.
  }
  return { reason: 'what was brought over it cannot be read' };
}

/** It was used, or is of no use: a later start of the agent must not find it. */
export const dropCarried = (path: string): Promise<void> => rm(path, { force: true });

/** Whether everything that the journal misses is in the dirty map of this capture. */
export function mayCarry(
  carried: Carried,
  captureId: string,
  remote: RemoteStream,
  remembered: Remembered | null,
): boolean {
  if (carried.captureId !== captureId) return false;
  return decideResume(remote, null, remembered, carried.saved).kind === 'capture';
}

/** The disks of the job for which the dirty map does not tell. */
export function compareAfter(
  carried: Carried,
  disks: ReadonlyArray<{ index: number }>,
  before: CompareDisks,
): CompareDisks {
  const refused = disks
    .map(({ index }) => index)
    .filter((index) => carried.disks[String(index)] !== null);
  return uniteCompare(before, refused);
}
