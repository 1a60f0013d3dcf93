/**
 * Fencing: what a source has to be told that says hello, by what became of its failovers. A source whose replica has
 * taken its place must not go on, and one that was told so must hear when that is over.
 *
 * | the newest failover of the source | it knows of | fence                                                    |
 * |-----------------------------------|-------------|----------------------------------------------------------|
 * | completed, committing, committed  | any         | stands: over                                             |
 * | running, being taken back         | this one    | stands: under way                                        |
 * | failed, undone                    | this one    | lifted                                                   |
 * | any other                         | an older one that failed or was undone | lifted                        |
 * | any other                         | one that this appliance does not know  | unknown                       |
 * | any other                         | none        | none                                                     |
 */
import { type UndError, undError } from '../../protocol/errors.ts';
import { type FailoverRecord, isAside } from './record.ts';

export type Fence =
  | { name: 'none' }
  | {
      name: 'stands';
      failoverId: string;
      replicaName: string;
      /** `final`: committed, the source has no job to go back to. */
      stage: 'under way' | 'over' | 'final';
      /** The source is to cut itself off from the network. */
      isolate: boolean;
    }
  /** The appliance was set back to before it, say. Whether the replica runs is not known. */
  | { name: 'unknown'; failoverId: string }
  | { name: 'lifted'; failoverId: string };

const stands = (
  { failoverId, replicaName, isolateOnReturn = false }: FailoverRecord,
  stage: 'under way' | 'over' | 'final',
): Fence => ({ name: 'stands', failoverId, replicaName, stage, isolate: isolateOnReturn });

/** @param handoverId the failover that the source itself says it was handed over for */
export function fenceOf(
  records: readonly FailoverRecord[],
  sourceId: string,
  handoverId: string | null,
): Fence {
  const mine = records
    .filter(
      // A test and a mount take nobody's place.
      (record) => !isAside(record) && record.sourceId === sourceId && !record.fenceLifted,
    )
    .toSorted((a, b) => b.startedAt.localeCompare(a.startedAt));
  const newest = mine[0];
  const phase = newest?.phase.name;
  if (newest && phase === 'committed') return stands(newest, 'final');
  if (newest && (phase === 'completed' || phase === 'committing')) return stands(newest, 'over');
  if (handoverId === null) return { name: 'none' };
  const known = mine.find(({ failoverId }) => failoverId === handoverId);
  if (known?.phase.name === 'failed' || known?.phase.name === 'undone') {
    return { name: 'lifted', failoverId: handoverId };
  }
  return known ? stands(known, 'under way') : { name: 'unknown', failoverId: handoverId };
}

/** The fence in the words that the agent gets. */
export const fenced = (source: string, fence: Fence & { name: 'stands' }): UndError =>
  undError('UND_AGENT_FENCED', {
    source,
    replica: fence.replicaName,
    failover: fence.failoverId,
    isolate: fence.isolate ? 'yes' : 'no',
  });
