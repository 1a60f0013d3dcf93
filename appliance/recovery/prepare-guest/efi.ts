/**
 * The fallback boot loader of UEFI. A replica VM starts with empty firmware variables, so the firmware takes
 * \EFI\BOOT\BOOTX64.EFI; a guest whose loader was only named in its old machine's variables would not boot. Uses mtools
 * on the partition, because not every appliance kernel can mount VFAT.
 */
import { spawnSync } from 'node:child_process';
import { undError } from '../../../protocol/errors.ts';
import type { PrepareReport } from '../types.ts';
import type { PrepareProgram } from './programs.ts';

interface Esp {
  devicePath: string;
  startBytes: number;
}

const FALLBACK = '::/EFI/BOOT';

function mtools(
  command: PrepareProgram,
  esp: Esp,
  args: string[],
): { ok: boolean; output: string } {
  const result = spawnSync(command, ['-i', `${esp.devicePath}@@${esp.startBytes}`, ...args], {
    encoding: 'utf8',
    timeout: 60_000,
    env: {
      PATH: process.env.PATH ?? '/usr/sbin:/usr/bin:/sbin:/bin',
      MTOOLS_SKIP_CHECK: '1',
      MTOOLSRC: '/dev/null',
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  if (result.error)
    throw undError('UND_GUEST_PREPARE_FAILED', { reason: `${command}: ${result.error.message}` });
  return { ok: result.status === 0, output: result.stdout };
}

const list = (esp: Esp, folder: string): string[] => {
  const { ok, output } = mtools('mdir', esp, ['-b', folder]);
  return ok
    ? output
        .split('\n')
        .map((line) => line.trim())
        .filter((line) => line !== '')
    : [];
};

const nameOf = (path: string): string =>
  path
    .replace(/\/+$/, '')
    .slice(path.replace(/\/+$/, '').lastIndexOf('/') + 1)
    .toLowerCase();

/** Throws `UND_GUEST_NO_EFI_LOADER` when there is nothing that could be the fallback. */
export function ensureFallbackLoader(esp: Esp, report: PrepareReport): void {
  if (list(esp, FALLBACK).some((path) => nameOf(path) === 'bootx64.efi')) return;
  const vendors = list(esp, '::/EFI').filter((path) => nameOf(path) !== 'boot');
  for (const vendor of vendors) {
    const folder = vendor.replace(/\/+$/, '');
    const files = list(esp, folder);
    const file = (name: string) => files.find((path) => nameOf(path) === name);
    const shim = file('shimx64.efi');
    const grub = file('grubx64.efi') ?? file('systemd-bootx64.efi');
    const loader = shim ?? grub;
    if (!loader) continue;
    // shim looks for GRUB in its own folder.
    const copies: [string, string][] = [[loader, 'BOOTX64.EFI']];
    if (shim && grub) copies.push([grub, 'grubx64.efi']);
    mtools('mmd', esp, ['-D', 's', FALLBACK]);
    for (const [from, to] of copies) {
      const pulled = spawnCopy(esp, from, `${FALLBACK}/${to}`);
      if (!pulled) {
        throw undError('UND_GUEST_NO_EFI_LOADER', {
          reason: `${nameOf(from)} could not be copied (is it full?)`,
        });
      }
    }
    report.changes.push(
      `EFI system partition: ${nameOf(loader)} copied to \\EFI\\BOOT\\BOOTX64.EFI`,
    );
    return;
  }
  throw undError('UND_GUEST_NO_EFI_LOADER', {
    reason:
      vendors.length > 0 ? `nothing known in ${vendors.map(nameOf).join(', ')}` : 'it is empty',
  });
}

/** mcopy copies within one image only by way of a file outside of it. */
function spawnCopy(esp: Esp, from: string, to: string): boolean {
  const staged = '/tmp/understudy-efi-loader';
  return (
    mtools('mcopy', esp, ['-n', '-o', from, staged]).ok &&
    mtools('mcopy', esp, ['-o', staged, to]).ok
  );
}
