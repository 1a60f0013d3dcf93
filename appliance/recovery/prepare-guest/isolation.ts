/**
 * What keeps a guest's file systems away from the appliance: a process that touches them runs in namespaces of its own,
 * dies with the appliance, and first takes away from itself what it does not need.
 */
import { spawnSync } from 'node:child_process';
import { readFileSync, readlinkSync } from 'node:fs';
import { undError } from '../../../protocol/errors.ts';
import type { PrepareProgram } from './programs.ts';

const LEASH = ['setpriv' satisfies PrepareProgram, '--pdeathsig', 'KILL', '--'];
const NAMESPACES = [
  'unshare' satisfies PrepareProgram,
  '--mount',
  '--propagation',
  'private',
  '--net',
  '--ipc',
  '--uts',
  '--pid',
  '--fork',
  '--kill-child=KILL',
  '--mount-proc',
  '--',
];

/** The command line that runs `command` so. */
export const isolated = (command: readonly string[]): string[] => [
  ...LEASH,
  ...NAMESPACES,
  ...command,
];

/** Of the processes that are started so; what the appliance itself was given is none of their business. */
export const ISOLATED_ENV = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  LC_ALL: 'C.UTF-8',
};

/** An empty folder of the isolated process, on a file system of its own. */
export const WORK = '/mnt';

/** @throws UND_GUEST_PREPARE_FAILED when it cannot be started at all */
export const run = (
  command: PrepareProgram,
  args: string[],
): { status: number | null; output: string } => {
  const result = spawnSync(command, args, { encoding: 'utf8', timeout: 300_000 });
  if (result.error) {
    throw undError('UND_GUEST_PREPARE_FAILED', { reason: `${command}: ${result.error.message}` });
  }
  return { status: result.status, output: `${result.stderr}${result.stdout}`.trim() };
};

/**
 * Every file system of the appliance becomes read-only for this process, /run, /tmp and `WORK` are empty.
 * @param outside the mount namespace of the appliance: this process must not be in it
 * @throws UND_GUEST_ISOLATION
 */
export function isolate(outside: string): void {
  const refuse = (reason: string) => undError('UND_GUEST_ISOLATION', { reason });
  if (readlinkSync('/proc/self/ns/mnt') === outside) throw refuse('it shares the mount namespace');
  const mounts = readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => ({
      target: (line.split(' ')[4] ?? '').replaceAll(/\\(\d{3})/g, (_, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      ),
      shared: / shared:\d+/.test(line),
    }));
  if (mounts.some(({ shared }) => shared)) throw refuse('its mounts are shared with the appliance');
  for (const { target } of mounts) {
    if (/^\/(proc|sys|dev)(\/|$)/.test(target)) continue;
    if (run('mount', ['-o', 'remount,bind,ro', target]).status === 0) continue;
    if (target === '/') throw refuse('its root cannot be made read-only');
    run('umount', ['--lazy', target]);
  }
  for (const target of ['/run', '/tmp', WORK]) {
    const { status, output } = run('mount', [
      '-t',
      'tmpfs',
      '-o',
      'nosuid,nodev,noexec,mode=0700,size=64m',
      'tmpfs',
      target,
    ]);
    if (status !== 0) throw refuse(`${target} cannot be covered (${output})`);
  }
}
