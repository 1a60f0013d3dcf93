/** The sample source server as raw disks, for tests that boot it. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { GuestPreparer, PrepareReport } from '../../appliance/recovery/types.ts';

const ROOT = join(import.meta.dirname, '../..');
export const IMAGES = join(ROOT, 'build/images');

export interface SampleDisks {
  root: string;
  data: string;
}

const sh = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'inherit'] });

/** Builds the sample image when it is not there. */
export async function buildSample(): Promise<void> {
  sh(
    'bash',
    '-c',
    `. ${ROOT}/scripts/lib/env.sh; apt_need qemu-system-x86 qemu-utils openssh-client`,
  );
  if (!existsSync(join(IMAGES, 'source-root.qcow2'))) {
    sh(join(ROOT, 'scripts/build-images'), 'source');
  }
}

export function sampleCopy(folder: string, name: string): SampleDisks {
  const disks = { root: join(folder, `${name}-root.raw`), data: join(folder, `${name}-data.raw`) };
  sh('qemu-img', 'convert', '-O', 'raw', join(IMAGES, 'source-root.qcow2'), disks.root);
  sh('qemu-img', 'convert', '-O', 'raw', join(IMAGES, 'source-data.qcow2'), disks.data);
  return disks;
}

/** Prepares the sample for virtio-scsi disks and an interface with this MAC address. */
export async function prepareSample(
  disks: SampleDisks,
  preparer: GuestPreparer,
  mac: string,
): Promise<PrepareReport> {
  const loops: string[] = [];
  try {
    for (const file of [disks.root, disks.data]) {
      loops.push(sh('losetup', '--find', '--show', file).trim());
    }
    return await preparer.prepare(
      {
        failoverId: 'failover-1',
        jobId: 'job-1',
        at: new Date().toISOString(),
        firmware: 'bios',
        disks: loops.map((devicePath, index) => ({
          devicePath,
          sourceName: index === 0 ? 'vda' : 'vdb',
          boot: index === 0,
        })),
        nics: [{ name: 'ens3', sourceMac: '52:54:00:00:00:01', mac }],
        droppedNics: [],
      },
      new AbortController().signal,
    );
  } finally {
    for (const loop of loops) sh('losetup', '-d', loop);
  }
}
