/** The programs of the source server that the inventory asks. */
import { execa } from 'execa';
import {
  type BlockNode,
  FINDMNT_COLUMNS,
  LSBLK_COLUMNS,
  type Mount,
  parseFindmnt,
  parseLsblk,
} from './lsblk.ts';

const options = { timeout: 30_000, env: { LC_ALL: 'C' }, stdin: 'ignore' } as const;

/** All block devices but RAM disks, as a forest. */
export async function lsblk(): Promise<BlockNode[]> {
  const { stdout } = await execa('lsblk', ['-J', '-b', '-o', LSBLK_COLUMNS], options);
  return parseLsblk(stdout);
}

/** All mounted file systems. */
export async function findmnt(): Promise<Mount[]> {
  const { stdout } = await execa('findmnt', ['-J', '-b', '-l', '-o', FINDMNT_COLUMNS], {
    ...options,
    reject: false,
  });
  return parseFindmnt(stdout);
}

/** The running services as systemctl lists them; '' where there is no systemd. */
export async function runningServices(): Promise<string> {
  const args = ['list-units', '--type=service', '--state=running', '--plain', '--full'];
  const { stdout, failed } = await execa('systemctl', [...args, '--no-legend', '--no-pager'], {
    ...options,
    reject: false,
  });
  return failed ? '' : stdout;
}

/** `ip -j …`, or an empty list where iproute2 is missing. */
export async function ip(...args: string[]): Promise<string> {
  const { stdout, failed } = await execa('ip', ['-j', ...args], { ...options, reject: false });
  return failed ? '[]' : stdout;
}
