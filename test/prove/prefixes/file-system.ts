/** The file systems that the proof runs on: made, mounted, and checked without being written to. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { run, runAside } from '../../integration/capture.lab.ts';

export type FileSystemName = 'ext4' | 'xfs' | 'btrfs';

export const FILE_SYSTEMS: Record<
  FileSystemName,
  { make: string[]; check: string[]; mountOptions: string[] }
> = {
  ext4: {
    make: ['mkfs.ext4', '-q', '-F'],
    check: ['e2fsck', '-fn'],
    mountOptions: ['defaults', 'discard', 'data=journal', 'nodelalloc'],
  },
  xfs: {
    make: ['mkfs.xfs', '-q', '-f'],
    check: ['xfs_repair', '-n'],
    mountOptions: ['defaults', 'discard', 'logbsize=256k'],
  },
  btrfs: {
    make: ['mkfs.btrfs', '-q', '-f'],
    check: ['btrfs', 'check', '--readonly'],
    mountOptions: ['defaults', 'discard=sync', 'compress=zstd', 'nodatacow'],
  },
};

/** What a checker that found anything at all said, or null. */
export function check(name: FileSystemName, dev: string): string | null {
  const [command, ...args] = FILE_SYSTEMS[name].check as [string, ...string[]];
  const { status, stdout, stderr } = spawnSync(command, [...args, dev], { encoding: 'utf8' });
  if (status === 0) return null;
  return `${command} ${args.join(' ')}: exit ${status}\n${`${stdout}${stderr}`.slice(-2000)}`;
}

/** A loop device over an image, for as long as `use` takes. */
export async function withLoop<T>(
  name: FileSystemName,
  image: string,
  use: (dev: string) => Promise<T>,
): Promise<T> {
  const dev = run('losetup', '-f', '--show', image).trim();
  try {
    return await use(dev);
  } finally {
    release(name, dev);
    run('losetup', '-d', dev);
  }
}

/** btrfs knows a device by its UUID, which all copies of a disk share, and takes none that is older than one it knows. */
export function release(name: FileSystemName, dev: string): void {
  if (name === 'btrfs') spawnSync('btrfs', ['device', 'scan', '--forget', dev]);
}

/** Mounted for as long as `use` takes. */
export async function withMount<T>(
  dev: string,
  at: string,
  options: string,
  use: () => Promise<T>,
): Promise<T> {
  fs.mkdirSync(at, { recursive: true });
  await runAside('mount', '-o', options, dev, at);
  try {
    return await use();
  } finally {
    run('umount', at);
  }
}
