/**
 * Proves the capture on stock Debian kernels under an emulated processor: for each release (5.10, 6.1, 6.12) and each
 * disk bus the replay test, with partitions, LVM and md; and that disks with several paths are refused. Needs root.
 *
 * Usage: node test/prove/kernels.ts [--only SUITE[:BUS[:LAYOUT]],...] [--seed N] [--keep]
 *   SUITE bullseye | bookworm | trixie; BUS virtio-blk | virtio-scsi | nvme | ahci; LAYOUT plain | lvm | md;
 *   SUITE:dm-multipath and SUITE:nvme-multipath are the refusals.
 * The last line is `N of N`. After a failure the images stay, and their folder is named.
 */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { MIB, run } from '../integration/capture.lab.ts';
import {
  dmMultipathTest,
  LAYOUTS,
  type Layout,
  nvmeMultipathTest,
  type ProvenDisk,
  replayTest,
} from './kernels/cases.ts';
import {
  BUSES,
  type Bus,
  type GuestDisk,
  KernelGuest,
  SUITES,
  type Suite,
} from './kernels/guest.ts';

type Named = { suite: Suite; name: string };
type Case =
  | (Named & { kind: 'replay'; bus: Bus; layout: Layout })
  | (Named & { kind: 'dm-multipath' })
  | (Named & { kind: 'nvme-multipath' });

const DISK_BYTES = 96 * MIB;

const every: Case[] = SUITES.flatMap((suite) => [
  ...BUSES.flatMap((bus) =>
    LAYOUTS.map(
      (layout): Case => ({
        suite,
        kind: 'replay',
        bus,
        layout,
        name: `${suite}:${bus}:${layout}`,
      }),
    ),
  ),
  ...(['dm-multipath', 'nvme-multipath'] as const).map(
    (kind): Case => ({
      suite,
      kind,
      name: `${suite}:${kind}`,
    }),
  ),
]);

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    seed: { type: 'string', default: '1' },
    keep: { type: 'boolean', default: false },
  },
});
const wanted = values.only?.split(',');
for (const word of wanted ?? []) {
  if (!every.some(({ name }) => `${name}:`.startsWith(`${word}:`))) {
    console.error(`--only ${word}: no such case; cases are ${every.map((c) => c.name).join(' ')}`);
    process.exit(2);
  }
}
const cases = every.filter(
  ({ name }) => !wanted || wanted.some((word) => `${name}:`.startsWith(`${word}:`)),
);
const seed = Number(values.seed);

function newDisk(path: string, random: boolean): string {
  fs.writeFileSync(path, '');
  fs.truncateSync(path, DISK_BYTES);
  // Zeroes would hide a write that was lost.
  if (random) run('dd', 'if=/dev/urandom', `of=${path}`, 'bs=1M', 'count=96', 'conv=notrunc');
  return path;
}

async function prove(
  guest: KernelGuest,
  one: Case,
  dir: string,
  disks: readonly GuestDisk[],
): Promise<string> {
  if (one.kind === 'dm-multipath') return dmMultipathTest(guest);
  if (one.kind === 'nvme-multipath') return nvmeMultipathTest(guest);
  const devices = await guest.disks(one.bus);
  const proven = disks
    .filter(({ bus }) => bus === one.bus)
    .slice(0, one.layout === 'plain' ? 1 : 2)
    .map(
      ({ file }, n): ProvenDisk => ({
        devicePath: devices[n] ?? '',
        file,
        replica: newDisk(join(dir, `replica-${n}.img`), false),
        sizeBytes: DISK_BYTES,
      }),
    );
  const seen = await replayTest(guest, one.layout, proven, seed);
  const mib = (seen.bytes / MIB).toFixed(0);
  return `identical: ${seen.records} records, ${mib} MiB, ${seen.discards} discards, ${seen.overlaps} overlaps, odd buffers: ${seen.odd}`;
}

let passed = 0;
for (const suite of SUITES) {
  const mine = cases.filter((one) => one.suite === suite);
  if (mine.length === 0) continue;
  const dir = fs.mkdtempSync(join(tmpdir(), 'kernels-'));
  const buses = BUSES.filter((bus) => mine.some((one) => one.kind === 'replay' && one.bus === bus));
  const disks: GuestDisk[] = buses.flatMap((bus) =>
    [0, 1].map((n) => ({ bus, file: newDisk(join(dir, `${bus}-${n}.img`), true) })),
  );
  const paths = (['dm', 'nvme'] as const)
    .filter((kind) => mine.some((one) => one.kind === `${kind}-multipath`))
    .map((kind) => ({ kind, file: newDisk(join(dir, `${kind}.img`), false) }));
  // A disk with one path beside the one with two, to be told apart from it.
  if (paths.some(({ kind }) => kind === 'nvme') && !buses.includes('nvme')) {
    disks.push({ bus: 'nvme', file: newDisk(join(dir, 'nvme-0.img'), false) });
  }
  let guest: KernelGuest | undefined;
  let good = true;
  for (const one of mine) {
    const startedAt = Date.now();
    try {
      if (!guest) {
        guest = await KernelGuest.boot(suite, dir, disks, paths);
        console.log(`${suite}: kernel ${guest.release}`);
      }
      const said = await prove(guest, one, dir, disks);
      const complaint = /(BUG|WARNING|Oops):.*/.exec(guest.console());
      if (complaint) throw new Error(`the kernel complained: ${complaint[0]}`);
      passed++;
      console.log(`ok ${one.name}  ${said}  (${((Date.now() - startedAt) / 1000).toFixed(1)} s)`);
    } catch (error) {
      good = false;
      console.log(`FAILED ${one.name}: ${error instanceof Error ? error.message : error}`);
      // What was captured, mounted or assembled may still be: the next case gets a guest of its own.
      await guest?.stop();
      guest = undefined;
    }
  }
  await guest?.stop();
  if (good && !values.keep) fs.rmSync(dir, { recursive: true });
  else console.log(`kept ${dir}`);
}
console.log(`${passed} of ${cases.length}`);
process.exit(passed === cases.length ? 0 : 1);
