/**
 * What protecting a source would do, and what stands against it. Pure.
 *
 * | fact                                                     | outcome                             |
 * |----------------------------------------------------------|-------------------------------------|
 * | source not enrolled, offline, refused                    | problem UND_AGENT_OFFLINE            |
 * | agent passive (a replica or a copy)                      | problem UND_AGENT_PASSIVE            |
 * | source has a job                                         | problem UND_JOB_SOURCE_PROTECTED     |
 * | disk not in the inventory                                | problem UND_NOT_FOUND                |
 * | disk cannot be protected                                 | problem UND_JOB_DISK_UNPROTECTABLE   |
 * | pool missing or of a kind that cannot hold qcow2         | problem UND_HV_POOL_UNUSABLE         |
 * | used part of the disks and the reserve do not fit        | problem UND_HV_POOL_FULL             |
 * | used part fits, full size of all thin disks there doesn't | warning (thin provisioning)         |
 * | network missing / not active                             | problem UND_HV_NETWORK_NOT_FOUND / UND_NETWORK_INACTIVE |
 * | replica's name used by a VM of the host or another job   | problem UND_HV_NAME_IN_USE           |
 * | more vCPUs or memory than the host has                   | warning                             |
 * | boot disk, or a disk with mounted file systems, left out | warning                             |
 */
import { UndError, undError } from '../../protocol/errors.ts';
import { DEFAULT_EXCLUSIONS, riskyExclusions } from '../../protocol/exclusions.ts';
import { toApiError } from '../api/api-error.ts';
import type { HostView, ProtectPlan, ProtectRequest, Source } from '../api/schema.ts';
import { reserveBytes } from './watermark.ts';

export interface PlanFacts {
  source: Source | null;
  host: HostView;
  /** Some VM of the host has the replica's name, also one that the appliance does not see otherwise. */
  replicaNameTaken: boolean;
  /** The other jobs: what they call their replicas and what their thin disks may still grow by. */
  otherJobs: {
    jobId: string;
    sourceId: string;
    replicaName: string;
    pool: string;
    mayGrowBytes: number;
  }[];
}

const GIB = 1024 ** 3;

/** Sizes as people read them. */
export function humanBytes(bytes: number): string {
  if (bytes >= 1024 ** 4) return `${(bytes / 1024 ** 4).toFixed(1)} TiB`;
  if (bytes >= GIB) return `${(bytes / GIB).toFixed(1)} GiB`;
  return `${Math.ceil(bytes / 1024 ** 2)} MiB`;
}

/** The plan as it is shown, and its problems as the errors to refuse with. */
export function planProtection(
  request: ProtectRequest,
  facts: PlanFacts,
): { plan: ProtectPlan; errors: UndError[] } {
  const errors: UndError[] = [];
  const warnings: string[] = [];
  const problem = (error: UndError, field: string) =>
    errors.push(new UndError(error.code, { ...error.params, field }));
  const { source, host } = facts;
  const finish = (actions: string[]) => ({
    plan: {
      ok: errors.length === 0,
      actions: errors.length === 0 ? actions : [],
      warnings,
      problems: errors.map((error) => toApiError(error)),
    },
    errors,
  });

  if (!source) {
    problem(undError('UND_NOT_FOUND', { kind: 'source', id: request.sourceId }), 'sourceId');
    return finish([]);
  }
  if (source.state.name === 'passive') {
    problem(
      undError('UND_AGENT_PASSIVE', { source: source.name, reason: source.state.reason }),
      'sourceId',
    );
  } else if (source.state.name !== 'online' || !source.inventory) {
    problem(undError('UND_AGENT_OFFLINE', { source: source.name }), 'sourceId');
  }
  const jobOfSource = facts.otherJobs.find((job) => job.sourceId === request.sourceId);
  if (jobOfSource) {
    problem(
      undError('UND_JOB_SOURCE_PROTECTED', { source: source.name, job: jobOfSource.replicaName }),
      'sourceId',
    );
  }

  const inventoryDisks = source.inventory?.disks ?? [];
  const disks = [];
  for (const [index, diskId] of request.diskIds.entries()) {
    const disk = inventoryDisks.find((candidate) => candidate.diskId === diskId);
    const field = `diskIds.${index}`;
    if (request.diskIds.indexOf(diskId) !== index) {
      problem(
        undError('UND_REQUEST_INVALID', { reason: `disk ${diskId} is named twice`, field }),
        field,
      );
    } else if (!disk) {
      problem(undError('UND_NOT_FOUND', { kind: 'disk', id: diskId }), field);
    } else if (!disk.protectable) {
      problem(
        undError('UND_JOB_DISK_UNPROTECTABLE', {
          disk: disk.name,
          source: source.name,
          reason: disk.reason ?? 'unknown',
        }),
        field,
      );
    } else {
      disks.push(disk);
    }
  }
  for (const disk of inventoryDisks) {
    if (request.diskIds.includes(disk.diskId)) continue;
    if (disk.isBoot) {
      warnings.push(
        `The boot disk ${disk.name} is left out: the replica VM will not start by itself.`,
      );
    } else if (disk.volumes.some((volume) => volume.fileSystem?.mountpoint)) {
      const mounts = disk.volumes.flatMap((volume) => volume.fileSystem?.mountpoint ?? []);
      warnings.push(
        `Disk ${disk.name} (${mounts.join(', ')}) is left out: the replica will miss it.`,
      );
    }
  }

  const pool = host.pools.find((candidate) => candidate.name === request.pool);
  if (!pool) {
    problem(
      undError('UND_HV_POOL_UNUSABLE', {
        pool: request.pool,
        reason: 'the target host has no such pool',
      }),
      'pool',
    );
  } else if (!pool.usable) {
    problem(
      undError('UND_HV_POOL_UNUSABLE', { pool: pool.name, reason: pool.reason ?? 'unknown' }),
      'pool',
    );
  } else {
    const fullBytes = disks.reduce((sum, disk) => sum + disk.sizeBytes, 0);
    // Without a figure a disk counts as full.
    const usedBytes = disks.reduce(
      (sum, disk) => sum + Math.min(disk.usedBytes ?? disk.sizeBytes, disk.sizeBytes),
      0,
    );
    const reserve = reserveBytes(pool.totalBytes);
    const othersMayGrow = facts.otherJobs
      .filter((job) => job.pool === pool.name)
      .reduce((sum, job) => sum + job.mayGrowBytes, 0);
    if (usedBytes + reserve > pool.freeBytes) {
      problem(
        undError('UND_HV_POOL_FULL', {
          pool: pool.name,
          availableBytes: pool.freeBytes,
          neededBytes: usedBytes + reserve,
        }),
        'pool',
      );
    } else if (fullBytes + othersMayGrow + reserve > pool.freeBytes) {
      warnings.push(
        `The replica disks may grow to ${humanBytes(fullBytes)}${
          othersMayGrow > 0 ? ` and those of other jobs there by ${humanBytes(othersMayGrow)}` : ''
        }; storage pool ${pool.name} has ${humanBytes(pool.freeBytes)} free. They are made thin: watch the pool.`,
      );
    }
  }

  const network = host.networks.find((candidate) => candidate.name === request.network);
  if (!network) {
    problem(undError('UND_HV_NETWORK_NOT_FOUND', { network: request.network }), 'network');
  } else if (!network.active) {
    problem(undError('UND_NETWORK_INACTIVE', { network: network.name }), 'network');
  }
  if (
    facts.replicaNameTaken ||
    host.vms.some((vm) => vm.name === request.replicaName) ||
    facts.otherJobs.some((job) => job.replicaName === request.replicaName)
  ) {
    problem(undError('UND_HV_NAME_IN_USE', { name: request.replicaName }), 'replicaName');
  }
  if (request.vcpus > host.cpuCount) {
    warnings.push(
      `The replica has ${request.vcpus} vCPUs, the target host ${host.cpuCount} processors: it will be slower.`,
    );
  }
  if (request.memoryBytes > host.memoryTotalBytes) {
    warnings.push(
      `The replica has ${humanBytes(request.memoryBytes)} of memory, the target host ${humanBytes(host.memoryTotalBytes)}: it will not start.`,
    );
  } else if (request.memoryBytes > host.memoryFreeBytes) {
    warnings.push(
      `The replica has ${humanBytes(request.memoryBytes)} of memory; the target host has ${humanBytes(host.memoryFreeBytes)} free now: at a failover there may be too little.`,
    );
  }

  const exclusions = request.exclusions ?? DEFAULT_EXCLUSIONS;
  for (const pattern of riskyExclusions(exclusions)) {
    warnings.push(
      `The content of ${pattern} is excluded, and a server needs it to start: the replica will not.`,
    );
  }
  const but =
    exclusions.length === 0
      ? ''
      : ` but for the files in ${exclusions.length} excluded ${exclusions.length === 1 ? 'place' : 'places'}`;

  const limit =
    request.bandwidthLimitBytesPerSec === null
      ? 'without a bandwidth limit'
      : `with at most ${humanBytes(request.bandwidthLimitBytesPerSec)} per second`;
  const actions = [
    ...disks.map(
      (disk) =>
        `Create a thin qcow2 disk of ${humanBytes(disk.sizeBytes)} in storage pool ${request.pool} for ${disk.name}.`,
    ),
    `Attach ${disks.length === 1 ? 'it' : 'them'} to the appliance.`,
    `Start to capture every write on ${disks.map((disk) => disk.name).join(', ')} of ${source.name}; the server stays in full use.`,
    ...(request.carryRestarts
      ? [
          `Put a hook, a small unit and a file of 16 MiB on ${source.name}, so that planned restarts are carried over where its disks allow it.`,
        ]
      : []),
    `Mirror what is in use${but}, compression ${request.compression}, ${limit}.`,
    `From then on replicate every write; at a failover start ${request.replicaName} with ${request.vcpus} vCPUs and ${humanBytes(request.memoryBytes)} on network ${request.network}.`,
  ];
  return finish(actions);
}
