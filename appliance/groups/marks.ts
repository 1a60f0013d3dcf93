/**
 * Marks of a group: a named point of every member, placed at one moment as far as their clocks allow. Each agent is told the
 * moment by its own clock, ahead of time, so that neither the way to it nor what its hooks take makes a difference.
 */
import { randomUUID } from 'node:crypto';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { GroupMarkRequest } from '../api/schema.ts';
import type { JobActor } from '../jobs/job-actor.ts';
import type { GroupMarkRow, GroupRow } from '../state/groups.ts';
import { judgeMark } from './group-points.ts';
import { type ClockOffset, toSource } from './source-clock.ts';

/** Time for the question to arrive; with hooks, for those that run before the freeze. One that is late is shown by `apartMs`. */
const LEAD_MS = 500;
const QUIESCED_LEAD_MS = 3_000;

export interface MarkedMember {
  actor: JobActor;
  clock: readonly ClockOffset[];
}

/**
 * Takes a mark of all members; with `checkpoint`, of their replica disks as well, each at its point of the mark.
 * @throws UND_GROUP_MARK_FAILED; the points of the other members stay, as points of their own
 */
export async function takeMark(
  group: GroupRow,
  members: readonly MarkedMember[],
  { name = 'On demand', quiesce = true, checkpoint = false }: GroupMarkRequest,
): Promise<GroupMarkRow> {
  const atMs = Date.now() + (quiesce ? QUIESCED_LEAD_MS : LEAD_MS);
  const taken = await Promise.allSettled(
    members.map(async ({ actor, clock }) => {
      const atSourceMs = Math.round(toSource(clock, atMs));
      const mark = await actor.takeGroupPoint(name, quiesce, atSourceMs, checkpoint);
      return { ...mark, jobId: actor.row.jobId, clock };
    }),
  );
  const marks = taken.map((one, index) => {
    if (one.status === 'fulfilled') return one.value;
    throw undError('UND_GROUP_MARK_FAILED', {
      group: group.name,
      member: members[index]!.actor.row.settings.replicaName,
      reason: asUndError(one.reason).message,
    });
  });
  return {
    markId: randomUUID(),
    groupId: group.groupId,
    name,
    ...judgeMark(marks),
    quiesced: marks.every(({ quiesced }) => quiesced),
    members: marks.map(({ clock: _, ...mark }) => mark),
  };
}
