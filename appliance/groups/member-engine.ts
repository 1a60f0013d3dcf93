/** The failover engine as a group uses it: each member's failover with what the group's record says of it. */
import { undError } from '../../protocol/errors.ts';
import type { JobSettingsPatch } from '../api/schema.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import type { FailoverEngine } from '../recovery/engine.ts';
import { handoverPlan } from '../recovery/handover-plan.ts';
import { testName } from '../recovery/record.ts';
import type { JobHandle, WantedMoment } from '../recovery/types.ts';
import type { GroupRun, RunMember } from './record.ts';
import type { MemberEngine } from './runner.ts';

/** Longer than any test of a group is kept: the group takes its members' tests down, together. */
const KEEP_MINUTES = 10_080;

export interface MemberEngineOptions {
  engine(): FailoverEngine;
  hypervisor(): Hypervisor;
  job(jobId: string): JobHandle;
  /** Units that are stopped on the source, as the job has them. */
  settings(jobId: string): Pick<JobSettingsPatch, 'stopUnits'>;
}

const wantedOf = ({ startedAt }: GroupRun, { sourceTime }: RunMember): WantedMoment | null =>
  sourceTime === null ? null : { sourceTime, askedAt: startedAt };

export function memberEngine(options: MemberEngineOptions): MemberEngine & {
  check(run: GroupRun, member: RunMember): Promise<void>;
} {
  return {
    find: (failoverId) => options.engine().find(failoverId),

    start(run, member) {
      const { jobId, failoverId, replicaName } = member;
      const wanted = wantedOf(run, member);
      if (run.kind === 'test') {
        const keep = { keepMinutes: KEEP_MINUTES, trigger: run.test?.trigger ?? 'person' } as const;
        return options.engine().startTest(jobId, { wanted, failoverId, ...keep });
      }
      return options.engine().start(jobId, replicaName, {
        wanted,
        failoverId,
        evenIfAlive: run.evenIfAlive,
        isolateOnReturn: run.isolateOnReturn,
        plan: handoverPlan(
          { kind: run.kind, confirm: replicaName, powerOff: run.powerOff },
          options.settings(jobId),
        ),
      });
    },

    undo: (failoverId) => {
      const engine = options.engine();
      return engine.undo(failoverId, engine.get(failoverId).replicaName);
    },

    commit: (failoverId) => {
      const engine = options.engine();
      return engine.commit(failoverId, engine.get(failoverId).replicaName);
    },

    /** What `start` would throw, before any member is begun. Throws it. */
    async check(run, member) {
      const engine = options.engine();
      const { jobId, sourceTime, sourceName, replicaName } = member;
      if (engine.ownsDisks(jobId)) throw undError('UND_FAILOVER_RUNNING', { job: replicaName });
      if (run.kind === 'test' && engine.testOf(jobId)) {
        throw undError('UND_TEST_RUNNING', { job: replicaName });
      }
      const job = options.job(jobId);
      const { recoverable, sourceOnline } = await job.describe();
      if (sourceTime !== null) await job.choosePoint(sourceTime, null);
      else if (!recoverable.ok) {
        const { reason } = recoverable;
        throw undError('UND_FAILOVER_NOT_READY', { job: replicaName, reason });
      }
      if (run.kind === 'planned' && !sourceOnline) {
        throw undError('UND_AGENT_OFFLINE', { source: sourceName });
      }
      const name = run.kind === 'test' ? testName(replicaName) : replicaName;
      if (await options.hypervisor().isNameTaken(name)) {
        throw undError('UND_HV_NAME_IN_USE', { name });
      }
      if (run.kind !== 'unplanned' || run.evenIfAlive) return;
      const evidence = await engine.sourceAnswers(jobId);
      if (evidence !== null) {
        throw undError('UND_FAILOVER_SOURCE_ALIVE', { source: sourceName, evidence });
      }
    },
  };
}
