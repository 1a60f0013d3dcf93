/**
 * Restarts that are carried over (docs/early-boot.md), of stock Debian guests with their own systemd, initramfs and kernel:
 * root on ext4, on XFS, and on LVM. A round is one installation, SUITE:LAYOUT, that is started several times. At each
 * start what `early` vouches for must be right: every block of such a disk that differs from what the shutdown before had
 * left is one of those that the next shutdown saves. What was written in between must be noticed.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { witnessesOf, witnessLines } from '../../agent/restart/witnesses.ts';
import type { Proof, RoundContext, RoundResult } from '../../scripts/lib/proof.ts';
import {
  type GuestDisks,
  install,
  LAYOUTS,
  type LayoutName,
  Running,
  readRootFile,
  SUITES,
  type Suite,
} from './restart/guest.ts';

const CASES = SUITES.flatMap((suite) => LAYOUTS.map((layout) => `${suite}:${layout}`));
const MIB = 1024 * 1024;
const BLOCK = 4096;
const STARTS = 4;

const sh = (script: string, ...args: string[]) =>
  execFileSync('bash', ['--norc', '-euo', 'pipefail', '-c', script, 'bash', ...args], {
    encoding: 'utf8',
  });

/** What happens between a shutdown and the next start, and what must be said of the two disks then; null: vouched for. */
interface Between {
  name: string;
  act?(disks: GuestDisks): void;
  kernelOptions?: string;
  expect(layout: LayoutName): [root: RegExp | null, data: RegExp | null];
}

const mounted = (disks: GuestDisks, at: 0 | 1, command: string) =>
  sh(
    'dev=$(losetup -f --show -o "$2" "$1"); at=$(mktemp -d); mount "$dev" "$at"; trap \'umount "$at"; losetup -d "$dev"; rmdir "$at"\' EXIT; cd "$at"; eval "$3"; cd /',
    disks.files[at],
    String(at === 0 ? disks.rootOffsetBytes : disks.dataOffsetBytes),
    command,
  );
const CHANGED = /its file system was (mounted|checked)/;
const BETWEEN: Between[] = [
  { name: 'nothing', expect: () => [null, null] },
  { name: 'fsck.mode=skip', kernelOptions: 'fsck.mode=skip', expect: () => [null, null] },
  {
    name: 'fsck.mode=force',
    kernelOptions: 'fsck.mode=force',
    // fsck.xfs does nothing, and the data disk is checked behind the capture.
    expect: (layout) => [layout === 'xfs' ? null : CHANGED, null],
  },
  {
    name: 'the data disk was mounted elsewhere',
    act: (disks) => void mounted(disks, 1, 'echo new >new'),
    expect: () => [null, CHANGED],
  },
  {
    name: 'the root disk was mounted elsewhere',
    act: (disks) => void mounted(disks, 0, 'true'),
    expect: () => [CHANGED, null],
  },
  {
    name: 'the root was mounted for writing by the initramfs',
    kernelOptions: 'rw',
    // Of an XFS only that is written which a mount writes in any case.
    expect: () => [/its file system was|sectors were written/, null],
  },
];

/** The text of the save area: what a shutdown saved, by disk; null: nothing. */
function savedRuns(disks: GuestDisks): Array<Array<[number, number]>> | null {
  const area = readRootFile(disks, 'usr/lib/understudy/save-area');
  if (area.readUInt32LE(12) !== 1) return null;
  const text = area.toString('latin1', BLOCK, BLOCK + Number(area.readBigUInt64LE(16)));
  const runs: Array<Array<[number, number]>> = [[], []];
  for (const [, disk, from, bytes] of text.matchAll(/^run (\d+) (\d+) (\d+)$/gm)) {
    runs[Number(disk)]!.push([Number(from), Number(bytes)]);
  }
  return runs;
}

/** Blocks that differ and are in none of the runs; and how many differ. */
function missed(file: string, before: string, runs: Array<[number, number]>): [number[], number] {
  const known = new Set<number>();
  for (const [from, bytes] of runs) {
    for (let b = Math.floor(from / BLOCK); b * BLOCK < from + bytes; b++) known.add(b);
  }
  const a = fs.openSync(file, 'r');
  const b = fs.openSync(before, 'r');
  const size = fs.fstatSync(a).size;
  const [x, y] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  const wrong: number[] = [];
  let differ = 0;
  for (let at = 0; at < size; at += MIB) {
    fs.readSync(a, x, 0, MIB, at);
    fs.readSync(b, y, 0, MIB, at);
    if (x.equals(y)) continue;
    for (let i = 0; i < MIB; i += BLOCK) {
      if (x.subarray(i, i + BLOCK).equals(y.subarray(i, i + BLOCK))) continue;
      differ++;
      if (!known.has((at + i) / BLOCK)) wrong.push(at + i);
    }
  }
  fs.closeSync(a);
  fs.closeSync(b);
  return [wrong, differ];
}

async function round(context: RoundContext): Promise<RoundResult> {
  const [suite, layout] = context.case.split(':') as [Suite, LayoutName];
  const dir = fs.mkdtempSync(join(tmpdir(), 'restart-'));
  let isKept = true;
  context.teardown(() => {
    const console = join(dir, 'console.log');
    if (isKept && fs.existsSync(console))
      fs.copyFileSync(console, join(context.keepDir(), 'console.log'));
    fs.rmSync(dir, { recursive: true, force: true });
  });
  const disks = await install(suite, layout, dir);
  const wrong: string[] = [];
  const told: string[] = [];
  let running: Running | undefined;
  let earlyMs = 0;
  context.teardown(() => running?.cut());

  /** Up, at work, and down in an orderly way. */
  const run = async (kernelOptions: string, check: (guest: Running) => void, cut: boolean) => {
    const guest = await Running.start(disks, kernelOptions);
    running = guest;
    check(guest);
    await guest.ask('attach');
    await guest.ask('witnesses', witnessLines(witnessesOf(guest.layout)));
    await guest.ask(`work ${1 + context.random(30_000)}`);
    if (cut) await guest.cut();
    else await guest.powerOff();
    running = undefined;
    if (!cut && !savedRuns(disks)) {
      wrong.push(`nothing was saved: ${guest.console}`);
    }
  };
  await run(
    '',
    ({ carried }) => {
      if (!carried.reason) wrong.push(`the first start brought ${JSON.stringify(carried)}`);
    },
    false,
  );

  const copies = disks.files.map((file) => `${file}.before`);
  let afterCut = false;
  // Each another, so that a few rounds have seen them all.
  const others = BETWEEN.slice(1);
  for (let at = others.length - 1; at > 0; at--) {
    const other = context.random(at + 1);
    [others[at], others[other]] = [others[other]!, others[at]!];
  }
  const starts = context.short ? 2 : STARTS;
  for (let start = 0; start < starts && wrong.length === 0; start++) {
    const between = start === 0 ? BETWEEN[0]! : others[start - 1]!;
    for (const [at, file] of disks.files.entries())
      sh('cp --sparse=always "$1" "$2"', file, copies[at]!);
    between.act?.(disks);
    const cut = !context.short && start > 0 && start < starts - 1 && context.random(4) === 0;
    let vouched = [false, false];
    await run(
      between.kernelOptions ?? '',
      ({ carried, earlyMs: ms }) => {
        earlyMs = Math.max(earlyMs, ms);
        if (afterCut) {
          if (!/not shut down in an orderly way|nothing was saved/.test(carried.reason ?? '')) {
            wrong.push(`after a power cut: ${JSON.stringify(carried)}`);
          }
          return;
        }
        for (const [disk, expected] of between.expect(layout).entries()) {
          const said = carried.disks?.[disk];
          const fits =
            expected === null ? said === null : typeof said === 'string' && expected.test(said);
          if (!fits)
            wrong.push(`${between.name}: disk ${disk}: ${JSON.stringify(said ?? carried)}`);
        }
        vouched = [0, 1].map((disk) => carried.disks?.[disk] === null);
      },
      cut,
    );
    const words = [afterCut ? 'after a cut' : between.name];
    if (!cut && wrong.length === 0) {
      const runs = savedRuns(disks)!;
      for (const [disk, file] of disks.files.entries()) {
        if (!vouched[disk]) continue;
        const [lost, differ] = missed(file, copies[disk]!, runs[disk]!);
        const dirty = runs[disk]!.reduce((sum, [, bytes]) => sum + bytes, 0);
        words.push(
          `${differ} blocks of disk ${disk} differ, ${(dirty / MIB).toFixed(0)} MiB known`,
        );
        if (lost.length > 0) {
          wrong.push(
            `${between.name}: ${lost.length} of ${differ} blocks of disk ${disk} are not known, from byte ${lost[0]}`,
          );
        }
      }
    }
    told.push(words.join(', '));
    afterCut = cut;
  }
  isKept = wrong.length > 0;
  if (wrong.length > 0) {
    const keep = context.keepDir();
    for (const file of [...disks.files, ...copies]) {
      if (fs.existsSync(file)) sh('cp --sparse=always "$1" "$2/"', file, keep);
    }
  }
  return {
    did: `${context.case}: ${told.join('; ')}; early took ${earlyMs.toFixed(0)} ms at most`,
    wrong,
  };
}

export const proof: Proof = {
  what: 'restarts that are carried over, and what is written in between, on stock Debian guests',
  packages: [
    'qemu-system-x86',
    'mmdebstrap',
    'fdisk',
    'xfsprogs',
    'e2fsprogs',
    'cpio',
    'kmod',
    'xz-utils',
    'gcc',
    'libc6-dev',
  ],
  builds: ['build-capture'],
  rounds: CASES.length,
  cases: CASES,
  require: () => (process.getuid?.() === 0 ? null : 'needs root'),
  round,
};
