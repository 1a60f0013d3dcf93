/**
 * The process that touches a guest's disks. It runs in namespaces of its own (see `index.ts`) and first takes away from
 * itself what it does not need: every file system of the appliance becomes read-only, /run and /tmp are empty. The
 * guest's file systems are mounted nosuid, nodev, noexec, through loop devices that vanish with their mount; nothing is
 * scanned or assembled: no LVM, no RAID, no btrfs, and no device but the given ones is looked at.
 */
import { mkdirSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { asUndError, type SerialisedError, undError } from '../../../protocol/errors.ts';
import type { PrepareReport, PrepareRequest } from '../types.ts';
import { findDevice, type GuestPartition } from './devices.ts';
import { ensureFallbackLoader } from './efi.ts';
import { findPartitions } from './find-partitions.ts';
import {
  agentPassive,
  attempt,
  deviceNames,
  drivers,
  type Guest,
  network,
  staleCaches,
} from './fixes.ts';
import { GuestRoot } from './guest-root.ts';
import { isolate, run, WORK } from './isolation.ts';
import { loopsOf } from './loops.ts';
import { ESP_TYPE } from './partitions.ts';

export type WorkerInput = PrepareRequest & {
  /** The mount namespace of the appliance: the worker must not be in it. */
  outsideMountNamespace: string;
};
export type WorkerOutput = { report: PrepareReport } | { error: SerialisedError };

const ROOT = `${WORK}/root`;
const MOUNTABLE = new Set(['ext2', 'ext3', 'ext4', 'xfs']);
/** File systems of their own that hold what is changed. */
const PARTS = ['/usr', '/boot', '/var', '/var/lib'];

/** Mounting replays the journal; e2fsck is asked only when the kernel refuses. */
function mount(request: PrepareRequest, part: GuestPartition, target: string): string | null {
  const device = request.disks[part.disk]?.devicePath ?? '';
  const { startBytes, sizeBytes } = part.partition;
  const xfs = part.content.type === 'xfs';
  const options = [
    'rw,nosuid,nodev,noexec,loop',
    `offset=${startBytes},sizelimit=${sizeBytes}`,
    // Replicas made from one template have the same UUID; XFS would refuse the second.
    // A superblock may ask the kernel to panic when it finds an error.
    ...(xfs ? ['nouuid'] : ['errors=remount-ro']),
  ].join(',');
  const go = () => run('mount', ['-t', xfs ? 'xfs' : 'ext4', '-o', options, device, target]);
  const first = go();
  if (first.status === 0) return null;
  if (!xfs) {
    run('e2fsck', ['-p', `${device}?offset=${startBytes}`]);
    if (go().status === 0) return null;
  }
  return first.output;
}

const looksLikeRoot = (root: GuestRoot): boolean =>
  root.isFile('/etc/fstab') &&
  (root.isFile('/etc/os-release') || root.list('/etc').includes('os-release')) &&
  (root.isFolder('/usr') || root.isFolder('/boot'));

function osName(root: GuestRoot): string {
  const text = root.text('/etc/os-release') ?? root.text('/usr/lib/os-release') ?? '';
  return text.match(/^PRETTY_NAME="?([^"\n]*)"?$/m)?.[1] ?? 'unknown system';
}

async function prepare(request: PrepareRequest): Promise<PrepareReport> {
  const report: PrepareReport = { os: null, changes: [], unfixable: [] };
  const partitions = findPartitions(request.disks);
  const guest: Guest = { root: new GuestRoot(ROOT), request, partitions, report };
  mkdirSync(ROOT);

  const mounted: string[] = [];
  const troubles: string[] = [];
  try {
    const candidates = partitions
      .filter(({ content }) => MOUNTABLE.has(content.type))
      .sort((a, b) => {
        const boot = (part: GuestPartition) => Number(request.disks[part.disk]?.boot ?? false);
        return boot(b) - boot(a) || b.partition.sizeBytes - a.partition.sizeBytes;
      });
    let found = false;
    for (const candidate of candidates) {
      const trouble = mount(request, candidate, ROOT);
      if (trouble) {
        troubles.push(`${candidate.sourceName}: ${trouble}`);
        continue;
      }
      mounted.push(ROOT);
      if (looksLikeRoot(guest.root)) {
        found = true;
        break;
      }
      unmount(mounted);
    }
    if (found) {
      mountParts(guest, mounted, troubles);
      report.os = osName(guest.root);
      // First of all: whatever else may fail, two agents of one identity must never both be active.
      await attempt(guest, agentPassive);
      for (const fix of [deviceNames, drivers, network, staleCaches]) await attempt(guest, fix);
    } else {
      const others = partitions
        .filter(({ content }) => ['lvm', 'md', 'luks', 'btrfs', 'zfs'].includes(content.type))
        .map(({ sourceName, content }) => `${sourceName} holds ${content.type}`);
      const { code, message } = undError('UND_GUEST_NO_ROOT', {
        reason: [...others, ...troubles].join('; ') || 'no file system with /etc/fstab',
      });
      report.unfixable.push({ code, message });
    }
    for (const trouble of found ? troubles : []) {
      const { code, message } = undError('UND_GUEST_STORAGE', {
        device: trouble.slice(0, trouble.indexOf(':')),
        type: `a file system that cannot be mounted (${trouble.slice(trouble.indexOf(':') + 2)})`,
      });
      report.unfixable.push({ code, message });
    }
    if (request.firmware === 'uefi') await attempt(guest, fallbackLoader);
  } finally {
    unmount(mounted);
    await loopsGone(request);
  }
  return report;
}

function mountParts(guest: Guest, mounted: string[], troubles: string[]): void {
  const rows = (guest.root.text('/etc/fstab') ?? '')
    .split('\n')
    .map((line) => line.trim().split(/\s+/))
    .filter(([device]) => device && !device.startsWith('#'));
  for (const point of PARTS) {
    const device = rows.find(([, target]) => target === point)?.[0];
    if (!device) continue;
    const part = findDevice(device, guest.partitions);
    if (!part || !MOUNTABLE.has(part.content.type)) {
      troubles.push(
        `${device}: ${part?.content.type ?? 'not on these disks'}, mounted at ${point}`,
      );
      continue;
    }
    if (!guest.root.isFolder(point)) continue;
    const target = guest.root.resolve(point);
    const trouble = mount(guest.request, part, target);
    if (trouble) troubles.push(`${part.sourceName}: ${trouble}`);
    else mounted.push(target);
  }
}

function fallbackLoader({ request, partitions, report }: Guest): void {
  const esp = partitions.find(
    ({ partition }) => partition.type === ESP_TYPE || partition.type === 'ef',
  );
  if (!esp) throw undError('UND_GUEST_NO_EFI_LOADER', { reason: 'there is no such partition' });
  ensureFallbackLoader(
    {
      devicePath: request.disks[esp.disk]?.devicePath ?? '',
      startBytes: esp.partition.startBytes,
    },
    report,
  );
}

function unmount(mounted: string[]): void {
  while (mounted.length > 0) {
    const target = mounted.pop() as string;
    const { status, output } = run('umount', [target]);
    if (status !== 0) {
      throw undError('UND_GUEST_PREPARE_FAILED', { reason: `unmounting failed: ${output}` });
    }
  }
}

/** A loop device lets go of its disk some moments after the unmount; the disk must not be detached before. */
async function loopsGone(request: PrepareRequest): Promise<void> {
  const paths = request.disks.map(({ devicePath }) => devicePath);
  for (let tries = 0; tries < 300; tries++) {
    if (loopsOf(paths).length === 0) return;
    await pause(100);
  }
  throw undError('UND_GUEST_PREPARE_FAILED', {
    reason: `${loopsOf(paths).join(', ')} did not let go of the disk within 30 s`,
  });
}

/** Reads a `WorkerInput` from standard input, prepares, and writes a `WorkerOutput` to standard output. */
export async function runPrepareWorker(): Promise<void> {
  let output: WorkerOutput;
  try {
    const chunks: Buffer[] = [];
    for await (const chunk of process.stdin) chunks.push(chunk as Buffer);
    const input = JSON.parse(Buffer.concat(chunks).toString('utf8')) as WorkerInput;
    isolate(input.outsideMountNamespace);
    output = { report: await prepare(input) };
  } catch (error) {
    const coded = asUndError(error);
    output = {
      error: (coded.code === 'UND_INTERNAL'
        ? undError('UND_GUEST_PREPARE_FAILED', {
            reason: error instanceof Error ? error.message : String(error),
          })
        : coded
      ).toJSON(),
    };
  }
  process.stdout.write(`${JSON.stringify(output)}\n`);
}
