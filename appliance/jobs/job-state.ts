/** What a person sees of a job: derived, purely, from its persisted phase and what its stream says now. */
import type { SerialisedError } from '../../protocol/errors.ts';
import type { ConsistencyPointMark, HookReport } from '../../protocol/marks.ts';
import type { ApiError, DiskVerification, Job, JobState, TakenPoint } from '../api/schema.ts';
import type { StreamView } from '../replication/replication-stream.ts';
import type { Verification } from '../replication/stream-record.ts';
import type { JobRow } from '../state/jobs.ts';

export interface LiveFacts {
  /** Null while the stream is not open. */
  view: StreamView | null;
  /** What is being done in the phases `creating` and `deleting`. */
  step: string;
  /** Why the appliance's last try to attach or open failed; it tries again by itself. */
  problem: SerialisedError | null;
  /** Applying is held because the pool is nearly full. */
  poolLow: SerialisedError | null;
  attached: ReadonlySet<string>;
  agentOnline: boolean;
  sourceName: string;
  /** Of the schedule of points. */
  points: { nextMs: number | null; problem: SerialisedError | null };
  verifyNextMs: number | null;
}

const apiError = ({ code, message, hint }: SerialisedError): ApiError => ({ code, message, hint });
const iso = (ms: number | null): string | null => (ms === null ? null : new Date(ms).toISOString());

/**
 * First match wins:
 *
 * | phase        | live facts                       | state                                    |
 * |--------------|----------------------------------|------------------------------------------|
 * | creating     | last try failed                  | error                                    |
 * | creating     | else                             | creating, with the step                  |
 * | deleting     | last try failed                  | error                                    |
 * | deleting     | else                             | deleting, with the step                  |
 * | failing-over |                                  | failing-over                             |
 * | failed-over  |                                  | failed-over                              |
 * | active       | somebody else had the disks      | error                                    |
 * | active       | paused by a person               | paused                                   |
 * | active       | pool nearly full                 | paused, with the reason                  |
 * | active       | disks not attached, stream fault | error                                    |
 * | active       | agent away                       | waiting-for-agent                        |
 * | active       | stream's phase                   | mirroring, catching-up, protected, paused |
 */
export function jobState(row: Pick<JobRow, 'phase'>, live: LiveFacts): JobState {
  const { phase } = row;
  switch (phase.name) {
    case 'creating':
    case 'deleting':
      return phase.failed
        ? { name: 'error', error: apiError(phase.failed) }
        : { name: phase.name, step: live.step };
    case 'failing-over':
    case 'failed-over':
      return { name: phase.name, failoverId: phase.failoverId };
    case 'active':
      break;
    default:
      return phase satisfies never;
  }
  if (phase.tainted) return { name: 'error', error: apiError(phase.tainted) };
  if (phase.paused) return { name: 'paused', reason: 'paused by a person' };
  if (live.poolLow) return { name: 'paused', reason: live.poolLow.message };
  if (live.problem) return { name: 'error', error: apiError(live.problem) };
  if (!live.view) return { name: 'waiting-for-agent', reason: 'the stream is being opened' };
  const stream = live.view.phase;
  switch (stream.name) {
    case 'error':
      return { name: 'error', error: apiError(stream.error) };
    case 'held':
      return { name: 'paused', reason: stream.reason };
    case 'waiting-for-agent':
    case 'mirroring':
    case 'catching-up':
      return {
        name: live.agentOnline ? stream.name : 'waiting-for-agent',
        reason: stream.reason,
      };
    case 'protected':
      return { name: 'protected' };
    default:
      return stream satisfies never;
  }
}

const NO_FIGURES: Job['figures'] = {
  rateBytesPerSec: 0,
  etaSeconds: null,
  lagBytes: null,
  lagBytesAt: null,
  lagMs: null,
  durableSeq: 0,
  appliedSeq: 0,
  applyBacklogBytes: 0,
  journalBytes: 0,
  newestPointAt: null,
  agent: null,
};

/** A point as the API shows it; `postHooks` are known only to the one who asked for it. */
export const takenPoint = (
  mark: ConsistencyPointMark,
  seq: number,
  wallMs: number | null,
  postHooks: readonly HookReport[] = [],
): TakenPoint => ({
  pointId: mark.pointId,
  name: mark.name,
  seq,
  at: iso(wallMs),
  quiesced: mark.quiesced,
  reason: mark.reason,
  freezeMs: mark.freezeMs,
  fileSystems: mark.fileSystems,
  hooks: [...mark.hooks, ...postHooks],
});

function diskVerification(verification: Verification | null): DiskVerification {
  const { asked, last } = verification ?? { asked: null, last: null };
  return {
    running: asked && { doneBytes: asked.cursorBytes, mismatches: asked.mismatches },
    last: last && {
      at: new Date(last.wallMs).toISOString(),
      comparedBytes: last.comparedBytes,
      mismatches: last.mismatches,
      repaired: last.repaired,
    },
  };
}

/** The job as the API shows it. */
export function jobView(row: JobRow, live: LiveFacts): Job {
  const { view } = live;
  return {
    jobId: row.jobId,
    name: row.settings.replicaName,
    sourceId: row.sourceId,
    sourceName: live.sourceName,
    state: jobState(row, live),
    stream: view
      ? { mode: view.mode.mode, reason: view.mode.reason, since: iso(view.mode.sinceMs) }
      : { mode: 'none', reason: null, since: null },
    disks: row.disks.map((disk) => {
      const seen = view?.disks.find(({ diskId }) => diskId === disk.diskId);
      const mirror = seen?.mirror;
      return {
        diskId: disk.diskId,
        name: disk.name,
        sizeBytes: disk.sizeBytes,
        replicaPath: disk.replica?.path ?? null,
        serial: disk.serial,
        attached: live.attached.has(disk.serial),
        mirror: mirror
          ? {
              kind: mirror.kind,
              reason: mirror.reason,
              totalBytes: mirror.totalBytes,
              doneBytes: mirror.doneBytes,
              skippedBytes: mirror.skippedBytes,
            }
          : null,
        excluded: seen?.excluded ?? null,
        verification: diskVerification(seen?.verification ?? null),
      };
    }),
    problems: (view?.problems ?? []).map(({ error }) => apiError(error)),
    figures: view
      ? {
          rateBytesPerSec: view.rateBytesPerSec,
          etaSeconds: view.etaSeconds,
          lagBytes: view.lagBytes,
          lagBytesAt: iso(view.lagBytesAtMs),
          lagMs: view.lagMs,
          durableSeq: view.durableSeq,
          appliedSeq: view.appliedSeq,
          applyBacklogBytes: view.applyBacklogBytes,
          journalBytes: view.journalBytes,
          newestPointAt: iso(view.newestPointMs),
          agent: view.agent,
        }
      : NO_FIGURES,
    askedPoints: {
      newest: (view?.points ?? [])
        .map(({ point, seq, wallMs }) => takenPoint(point, seq, wallMs))
        .reverse(),
      nextAt: iso(live.points.nextMs),
      problem: live.points.problem ? apiError(live.points.problem) : null,
    },
    verifyNextAt: iso(live.verifyNextMs),
    settings: row.settings,
    failoverId:
      row.phase.name === 'failing-over' || row.phase.name === 'failed-over'
        ? row.phase.failoverId
        : null,
    provenBootableAt: row.provenBootableAt,
    createdAt: row.createdAt,
  };
}

/** Whether the replica disks would be a consistent point once all that is durable is applied. */
export function recoverable(view: StreamView | null): { ok: true } | { ok: false; reason: string } {
  if (!view) return { ok: false, reason: 'its stream is not open' };
  if (view.consistent) return { ok: true };
  const open = view.disks.filter(({ mirror }) => mirror.state !== 'done');
  if (open.length === 0) {
    return { ok: false, reason: view.mode.reason ?? 'the order of the writes was lost' };
  }
  const total = open.reduce((sum, { mirror }) => sum + mirror.totalBytes, 0);
  const done = open.reduce((sum, { mirror }) => sum + mirror.doneBytes, 0);
  const percent = total === 0 ? 0 : Math.floor((done / total) * 100);
  return { ok: false, reason: `a mirror is at ${percent} % (${open[0]!.mirror.reason})` };
}
