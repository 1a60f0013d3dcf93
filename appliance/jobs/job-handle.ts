import { undError } from '../../protocol/errors.ts';
import type { SourceService } from '../control/source-service.ts';
import type { JobDescription, JobHandle } from '../recovery/types.ts';
import type { JobActor } from './job-actor.ts';
import { recoverable } from './job-state.ts';

/** A job as the failover engine holds it. */
export function jobHandle(
  actor: JobActor,
  sources: SourceService,
  clocks: { earliest(sourceId: string, sourceTime: string): string },
): JobHandle {
  return {
    async describe(): Promise<JobDescription> {
      const { row } = actor;
      if (row.phase.name !== 'active') {
        throw undError('UND_JOB_STATE', {
          job: row.settings.replicaName,
          state: actor.view().state.name,
          act: 'failed over',
        });
      }
      const source = sources.find(row.sourceId);
      const inventory = source?.inventory;
      const view = actor.streamView();
      return {
        jobId: row.jobId,
        sourceId: row.sourceId,
        sourceName: source?.name ?? row.sourceId,
        replicaName: row.settings.replicaName,
        network: row.settings.network,
        vcpus: row.settings.vcpus,
        memoryBytes: row.settings.memoryBytes,
        firmware: inventory?.firmware ?? 'bios',
        disks: row.disks.map((disk) => {
          if (!disk.replica) {
            throw undError('UND_INTERNAL', { reason: `disk ${disk.name} has no replica` });
          }
          const known = inventory?.disks.find(({ diskId }) => diskId === disk.diskId);
          return {
            diskId: disk.diskId,
            sourceName: disk.name,
            boot: known?.isBoot ?? disk === row.disks[0],
            sizeBytes: disk.sizeBytes,
            serial: disk.serial,
            image: disk.replica,
          };
        }),
        nics: (inventory?.nics ?? []).map((nic) => ({
          name: nic.name,
          mac: nic.mac,
          primary: nic.gateway !== null,
          addresses: nic.addresses,
        })),
        sourceOnline: actor.isOnline,
        lagMs: view?.lagMs ?? null,
        recoverable: recoverable(view),
        testChecks: row.settings.testChecks,
      };
    },

    prepareHandover: (failoverId, stopUnits) => actor.prepareHandover(failoverId, stopUnits),
    finalMark: (failoverId, onProgress) => actor.finalMark(failoverId, onProgress),
    powerOff: (failoverId, how, reason) => actor.powerOffSource(failoverId, how, reason),
    cancelHandover: (failoverId) => actor.cancelHandover(failoverId),

    async stopIntake(failoverId, reason) {
      const view = await actor.beginFailover(failoverId, reason);
      return {
        durableSeq: view.durableSeq,
        sourceTime: view.newestPointMs === null ? null : new Date(view.newestPointMs).toISOString(),
      };
    },

    drainApply: (onProgress) => actor.drainApply(onProgress),

    earliestHere: (sourceTime) => clocks.earliest(actor.row.sourceId, sourceTime),
    choosePoint: (sourceTime, failoverId) => actor.choosePoint(sourceTime, failoverId),
    holdPoint: (sourceTime, failoverId, reason) => actor.holdPoint(sourceTime, failoverId, reason),
    releasePoint: (failoverId) => actor.releasePoint(failoverId),
    replay: (point, devices, onProgress, signal) =>
      actor.replay(point, devices, onProgress, signal),
    closeDisks: () => actor.closeDisks(),
    reopen: (disks, options) => actor.reopen(disks, options),
    release: () => actor.release(),

    async passiveHelloAt(vmUuid, since) {
      return sources.passiveSince(actor.row.sourceId, vmUuid, since);
    },
  };
}

/** The handle of a job that is gone: its release has happened, and nothing else can. */
export function endedJob(jobId: string): JobHandle {
  const gone = async (): Promise<never> => {
    throw undError('UND_NOT_FOUND', { kind: 'job', id: jobId });
  };
  return {
    describe: gone,
    prepareHandover: gone,
    finalMark: gone,
    powerOff: gone,
    cancelHandover: async () => null,
    stopIntake: gone,
    drainApply: gone,
    earliestHere: (sourceTime) => sourceTime,
    choosePoint: gone,
    holdPoint: gone,
    releasePoint: async () => {},
    replay: gone,
    closeDisks: gone,
    reopen: gone,
    passiveHelloAt: async () => null,
    release: async () => {},
  };
}
