/**
 * The capture on the stock kernels of Debian 11 (5.10), 12 (6.1) and 13 (6.12), under an emulated processor: the replay
 * test on each disk bus, with partitions, LVM and md below the file systems; and disks with several paths are refused.
 *
 * A round is one case: `SUITE:BUS:LAYOUT`, `SUITE:dm-multipath` or `SUITE:nvme-multipath`. A guest serves the cases of
 * its release one after the other; after a failure the next case gets a new one.
 */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Proof, RoundContext, RoundResult } from '../../scripts/lib/proof.ts';
import { MIB, run } from '../integration/capture.lab.ts';
import {
  type Captured,
  dmMultipathTest,
  LAYOUTS,
  type Layout,
  nvmeMultipathTest,
  type ProvenDisk,
  replayTest,
} from './kernels/cases.ts';
import { BUSES, type GuestDisk, KernelGuest, SUITES, type Suite } from './kernels/guest.ts';

const DISK_MIB = 64;
const CASES = SUITES.flatMap((suite) => [
  ...BUSES.flatMap((bus) => LAYOUTS.map((layout) => `${suite}:${bus}:${layout}`)),
  `${suite}:dm-multipath`,
  `${suite}:nvme-multipath`,
]);

/** The guest of the release whose turn it is, its disks by bus, and where they are. */
type Current = Captured & { suite: Suite; dir: string; byBus: Map<string, ProvenDisk[]> };
let current: Current | undefined;

function newDisk(path: string): string {
  fs.writeFileSync(path, '');
  fs.truncateSync(path, DISK_MIB * MIB);
  return path;
}

async function boot(suite: Suite): Promise<Current> {
  // Short: the path of a socket has 107 characters at most.
  const dir = fs.mkdtempSync(join(tmpdir(), 'kernels-'));
  process.once('exit', () => fs.rmSync(dir, { recursive: true, force: true }));
  const disks = BUSES.flatMap((bus) =>
    [0, 1].map((n): GuestDisk => {
      const file = newDisk(join(dir, `${bus}-${n}.img`));
      // Zeroes would hide a write that was lost; all of it random would only cost time.
      const options = ['bs=1M', 'count=12', 'conv=notrunc', 'status=none'];
      run('dd', 'if=/dev/urandom', `of=${file}`, ...options);
      return { bus, file };
    }),
  );
  const paths = (['dm', 'nvme'] as const).map((kind) => ({
    kind,
    file: newDisk(join(dir, `${kind}.img`)),
  }));
  const guest = await KernelGuest.boot(suite, dir, disks, paths);
  const byBus = new Map<string, ProvenDisk[]>();
  for (const bus of BUSES) {
    const devices = await guest.disks(bus);
    const files = disks.filter((disk) => disk.bus === bus);
    byBus.set(
      bus,
      files.map(({ file }, n) => ({
        devicePath: devices[n] ?? '',
        file,
        replica: newDisk(join(dir, `${bus}-${n}.replica.img`)),
        sizeBytes: DISK_MIB * MIB,
      })),
    );
  }
  return { suite, guest, dir, byBus, disks: [...byBus.values()].flat(), pinned: false };
}

async function stop(): Promise<void> {
  const old = current;
  current = undefined;
  await old?.guest.stop();
  if (old) fs.rmSync(old.dir, { recursive: true, force: true });
}

async function prove(lab: Current, name: string, seed: number): Promise<string> {
  const [, what = '', layout = ''] = name.split(':');
  if (what === 'dm-multipath') return dmMultipathTest(lab.guest);
  if (what === 'nvme-multipath') return nvmeMultipathTest(lab.guest);
  const used = (lab.byBus.get(what) ?? []).slice(0, layout === 'plain' ? 1 : 2);
  const seen = await replayTest(lab, layout as Layout, used, seed);
  const mib = (seen.bytes / MIB).toFixed(0);
  return `identical after ${seen.records} records, ${mib} MiB; ${seen.discards} discards, ${seen.overlaps} overlaps, odd buffers: ${seen.odd}, dirty blocks of ${seen.dirtyBlockKib} KiB`;
}

async function round(context: RoundContext): Promise<RoundResult> {
  const suite = context.case.split(':')[0] as Suite;
  if (current?.suite !== suite) await stop();
  const lab = current ?? (await boot(suite));
  current = lab;
  const did = `${context.case} (${lab.guest.release})`;
  try {
    const said = await prove(lab, context.case, context.random(2 ** 31));
    const complaint = /(BUG|WARNING|Oops):.*/.exec(lab.guest.console());
    if (complaint) throw new Error(`the kernel complained: ${complaint[0]}`);
    return { did: `${did}: ${said}`, wrong: [] };
  } catch (error) {
    const keep = context.keepDir();
    fs.writeFileSync(join(keep, 'console.log'), lab.guest.console());
    await lab.guest.stop();
    for (const file of fs.readdirSync(lab.dir)) {
      if (file.endsWith('.img')) fs.copyFileSync(join(lab.dir, file), join(keep, file));
    }
    // What was captured, mounted or assembled may still be: the next case gets a guest of its own.
    await stop();
    return { did, wrong: [error instanceof Error ? error.message : String(error)] };
  }
}

export const proof: Proof = {
  what: 'the capture on stock Debian kernels: every disk bus, LVM, md; several paths refused',
  packages: ['qemu-system-x86', 'cpio', 'kmod', 'xz-utils', 'gcc', 'libc6-dev'],
  builds: ['build-capture'],
  rounds: CASES.length,
  cases: CASES,
  require: () => (process.getuid?.() === 0 ? null : 'needs root'),
  round,
};
