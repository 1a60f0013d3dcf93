/** What is proven of one kernel: the replay test per bus and layout, and the refusal of disks with several paths. */
import fs from 'node:fs';
import { inspect } from 'node:util';
import {
  type BlockReader,
  type Capture,
  type CaptureDisk,
  createCapture,
  openBlockReader,
} from '../../../agent/capture/capture.ts';
import { freeze } from '../../../agent/capture/freezer.ts';
import { LSBLK_COLUMNS, parseLsblk } from '../../../agent/inventory/lsblk.ts';
import { isNativeMultipath, protectability } from '../../../agent/inventory/protectable.ts';
import { MIB, Replayer } from '../../integration/capture.lab.ts';
import type { KernelGuest } from './guest.ts';

export const LAYOUTS = ['plain', 'lvm', 'md'] as const;
export type Layout = (typeof LAYOUTS)[number];

const PIN_DIR = '/sys/fs/bpf/kernels';
const RING_BYTES = 128 * MIB;

/** A disk of the guest: its path there, the file behind it here, and the replica that is built from the capture. */
export type ProvenDisk = { devicePath: string; file: string; replica: string; sizeBytes: number };

/** A guest, all its disks that are captured, and whether the capture is pinned there from the case before. */
export type Captured = { guest: KernelGuest; disks: readonly ProvenDisk[]; pinned: boolean };

/** What was seen, for the table. */
export type Seen = {
  records: number;
  bytes: number;
  dirtyBlockKib: number;
  odd: string;
  discards: number;
  overlaps: number;
};

class Mismatch extends Error {}

const total = (numbers: readonly number[]) => numbers.reduce((sum, n) => sum + n, 0);
const same = (a: readonly number[], b: readonly number[]) => a.every((n, i) => n === b[i]);

function expect(what: string, holds: boolean, detail?: unknown): void {
  if (!holds) throw new Mismatch(detail === undefined ? what : `${what}: ${inspect(detail)}`);
}

/**
 * Offset of the first sector in which two files differ, or undefined. Each replay test also sees it find one, and the
 * proof was red when two disks of a guest were taken for each other.
 */
export function firstDifference(a: string, b: string): number | undefined {
  const [x, y] = [fs.openSync(a, 'r'), fs.openSync(b, 'r')];
  const [p, q] = [Buffer.alloc(MIB), Buffer.alloc(MIB)];
  try {
    const sizeBytes = fs.fstatSync(x).size;
    if (fs.fstatSync(y).size !== sizeBytes) return Math.min(sizeBytes, fs.fstatSync(y).size);
    for (let at = 0; at < sizeBytes; at += MIB) {
      const n = fs.readSync(x, p, 0, MIB, at);
      fs.readSync(y, q, 0, MIB, at);
      for (let s = 0; s < n && !p.subarray(0, n).equals(q.subarray(0, n)); s += 512) {
        if (!p.subarray(s, s + 512).equals(q.subarray(s, s + 512))) return at + s;
      }
    }
    return undefined;
  } finally {
    fs.closeSync(x);
    fs.closeSync(y);
  }
}

function identical(when: string, disks: readonly ProvenDisk[]): void {
  for (const disk of disks) {
    const at = firstDifference(disk.file, disk.replica);
    expect(`${when}, ${disk.devicePath} and its replica differ at byte ${at}`, at === undefined);
  }
}

async function copy(
  reader: BlockReader,
  replica: string,
  extents: readonly { offsetBytes: number; lengthBytes: number }[],
) {
  const fd = fs.openSync(replica, 'r+');
  for (const { offsetBytes, lengthBytes } of extents) {
    for (let at = 0; at < lengthBytes; at += MIB) {
      const n = Math.min(MIB, lengthBytes - at);
      const { data } = await reader.read(offsetBytes + at, n);
      fs.writeSync(fd, data, 0, n, offsetBytes + at);
    }
  }
  fs.closeSync(fd);
}

/** Reads what issue order could not tell, or was not captured, of a guest that is at rest. Returns the bytes read. */
async function drain(
  guest: KernelGuest,
  capture: Capture,
  disks: readonly ProvenDisk[],
): Promise<number> {
  let bytes = 0;
  for (const [index, disk] of disks.entries()) {
    const extents = await capture.takeDirty(index);
    if (extents.length === 0) continue;
    const reader = await openBlockReader(disk.devicePath, { helperPath: guest.helperPath });
    await capture.barrier();
    await copy(reader, disk.replica, extents);
    await reader.close();
    await capture.clearDirty(index, extents);
    bytes += extents.reduce((sum, extent) => sum + extent.lengthBytes, 0);
  }
  return bytes;
}

const NOTHING = { odd4: 0, oddSector: 0, discard: 0, refusedOdd: 0 };
function counted(output: string): typeof NOTHING {
  const sum = { ...NOTHING };
  for (const line of output.split('\n')) {
    if (!line.startsWith('{')) continue;
    const counts = JSON.parse(line) as typeof NOTHING;
    for (const key of Object.keys(sum) as (keyof typeof NOTHING)[]) sum[key] += counts[key] ?? 0;
  }
  return sum;
}

/**
 * The replay test on `used`, some of the captured disks: attach, copy, write in every way, compare; then tracking and its
 * drain; then a time without a helper, and adoption. The capture stays pinned, to be adopted by the next case: to load
 * it takes an emulated processor longer than all the rest. Throws at the first thing that is not as it should be.
 */
export async function replayTest(
  captured: Captured,
  layout: Layout,
  used: readonly ProvenDisk[],
  seed: number,
): Promise<Seen> {
  const { guest, disks } = captured;
  const options = { helperPath: guest.helperPath };
  const toCapture: CaptureDisk[] = disks.map(({ devicePath, sizeBytes }, index) => ({
    index,
    devicePath,
    sizeBytes,
  }));
  const names = used.map((disk) => disk.devicePath).join(' ');
  const first = used[0] as ProvenDisk;
  const raw = (count: number, more: number) =>
    guest.shell(`kernels-io raw ${first.devicePath} ${seed + more} ${count}`);

  const start = { ringBytes: RING_BYTES, pinDir: PIN_DIR };
  const capture = createCapture(options);
  const { adopted, notAdoptedBecause, dirtyBlockBytes } = await capture.start(toCapture, start);
  expect('the capture of the case before goes on', adopted === captured.pinned, notAdoptedBecause);
  captured.pinned = true;
  const before = await capture.status();
  if (!adopted) {
    for (const disk of disks) {
      const reader = await openBlockReader(disk.devicePath, options);
      await copy(reader, disk.replica, [{ offsetBytes: 0, lengthBytes: disk.sizeBytes }]);
      await reader.close();
    }
  }
  identical('after the base copy', disks);

  const replay = new Replayer(disks.map((disk) => disk.replica));
  const following = replay.follow(capture);
  const counts = counted(await guest.shell(`sh /lib/kernels/${layout}.sh ${names} ${seed}`));
  await capture.barrier();
  const markId = await capture.mark();
  await replay.caughtUp(capture);
  const status = await capture.status();
  expect('the mode stays ordered', capture.mode().mode === 'ordered', capture.mode());
  expect('nothing was dropped', same(status.drops, before.drops), status.drops);
  expect('no event was missed', status.recursionMisses === 0, status.recursionMisses);
  expect('every page could be copied', status.copyFailures === 0, status.copyFailures);
  expect(
    'no write failed',
    status.failedWrites.every((n) => n === 0),
    status.failedWrites,
  );
  expect('no write is left in flight', status.inFlight === 0, status.inFlight);
  expect(
    'order is held in every batch',
    replay.batches.every((batch) => batch.order === 'held'),
  );
  expect(
    'the mark is in the stream',
    replay.records.some((record) => record.kind === 'mark' && record.markId === markId),
  );
  const discards = replay.records.filter((record) => record.discard).length;
  expect('discards were captured', counts.discard === 0 || discards > 0, counts);
  expect('oddly placed buffers were written from', counts.odd4 + counts.oddSector > 0, counts);
  expect(
    'pieces were joined',
    replay.records.some((record) => record.lengthBytes >= 65536),
  );
  await drain(guest, capture, disks);
  identical('after the ordered run', disks);
  const seen: Seen = {
    records: replay.records.length,
    bytes: status.writtenBytes - before.writtenBytes,
    dirtyBlockKib: dirtyBlockBytes / 1024,
    odd: counts.odd4 > 0 ? 'any address' : 'sectors',
    discards,
    overlaps: total(status.overlaps) - total(before.overlaps),
  };

  if (layout === 'plain') {
    const partition = `${first.devicePath}${/\d$/.test(first.devicePath ?? '') ? 'p' : ''}1`;
    await guest.shell(`mount -t ext4 ${partition} /mnt`);
    const frozen = await freeze(['/mnt'], 60_000, options);
    expect('a frozen file system is thawed when asked', await frozen.thaw());
    await guest.shell('umount /mnt');
  }

  await capture.goTracking();
  await raw(12, 1);
  await capture.barrier();
  await replay.caughtUp(capture);
  expect(
    'what is written in tracking mode is not in the stream',
    firstDifference(first.file, first.replica) !== undefined,
  );
  const resumed = await capture.resumeOrdered();
  await raw(12, 2);
  await capture.barrier();
  await replay.caughtUp(capture);
  expect(
    'the resumption is told in the stream',
    replay.batches.some((batch) => batch.gapBefore && batch.startPos >= resumed),
  );
  expect('the dirty map has what was tracked', (await drain(guest, capture, disks)) > 0);
  identical('after tracking and its drain', disks);

  await capture.stop({ unpin: false });
  await following;
  await raw(12, 3);
  const second = createCapture(options);
  const again = await second.start(toCapture, start);
  expect('the pinned capture is adopted', again.adopted, again);
  const followingAgain = replay.follow(second);
  await second.barrier();
  await replay.caughtUp(second);
  expect('order was held without a helper', second.mode().mode === 'ordered', second.mode());
  await drain(guest, second, disks);
  identical('after a time without a helper', disks);
  await second.stop({ unpin: false });
  await followingAgain;
  if (replay.error) throw replay.error;
  replay.close();
  return seen;
}

async function lsblk(guest: KernelGuest) {
  return parseLsblk(await guest.shell(`lsblk -J -b -o '${LSBLK_COLUMNS}'`));
}

async function refused(guest: KernelGuest, devicePath: string, sizeBytes: number, code: string) {
  const capture = createCapture({ helperPath: guest.helperPath });
  const error = await capture
    .start([{ index: 0, devicePath, sizeBytes }], { ringBytes: MIB, pinDir: `${PIN_DIR}-refused` })
    .then(() => undefined)
    .catch((error: { code?: string }) => error);
  expect(`the capture refuses ${devicePath}`, error?.code === code, error?.code ?? 'it started');
}

const PLAIN_FACTS = { nvmeMultipath: false, logicalBlockBytes: 512, twin: null };

/** A real dm-multipath device over two SCSI paths: the paths are refused, and so is the device. */
export async function dmMultipathTest(guest: KernelGuest): Promise<string> {
  const paths = (await guest.disks('virtio-scsi')).slice(-2);
  const [a, b] = paths.map((path) => path.slice(5));
  await guest.shell(
    `s=$(cat /sys/block/${a}/size); ` +
      `dmsetup create mpatha --uuid mpath-35000c50015ea71aa --table "0 $s multipath 0 0 1 1 round-robin 0 2 1 ` +
      `$(cat /sys/block/${a}/dev) 1000 $(cat /sys/block/${b}/dev) 1000"`,
  );
  await guest.shell('kernels-io raw /dev/mapper/mpatha 1 10');
  const nodes = await lsblk(guest);
  for (const name of [a, b]) {
    const node = nodes.find((one) => one.name === name);
    if (!node) throw new Mismatch(`lsblk does not show ${name}`);
    const verdict = protectability(node, PLAIN_FACTS);
    expect(
      `${name} is refused as a path`,
      !verdict.protectable && /multipath device/.test(verdict.reason),
      { verdict, node },
    );
  }
  const node = nodes.flatMap((one) => one.children).find((one) => one.name === 'mpatha');
  await refused(guest, '/dev/mapper/mpatha', node?.sizeBytes ?? 0, 'UND_CAPTURE_DISK_STACKED');
  await guest.shell('dmsetup remove mpatha');
  return 'paths and device refused';
}

/** A namespace behind two controllers: the kernel's head is refused, and told apart from a disk with one path. */
export async function nvmeMultipathTest(guest: KernelGuest): Promise<string> {
  const links = (await guest.shell('for b in /sys/block/nvme*; do echo $(readlink $b); done'))
    .trim()
    .split('\n');
  const heads: string[] = [];
  for (const node of await lsblk(guest)) {
    if (!node.name.startsWith('nvme')) continue;
    const sysfsLink = links.find((link) => link.endsWith(`/${node.name}`)) ?? '';
    const hasMultipathFolder =
      (await guest.shell(`test -d /sys/block/${node.name}/multipath && echo yes || true`)) !== '';
    const nvmeMultipath = isNativeMultipath(node.name, { sysfsLink, hasMultipathFolder });
    const verdict = protectability(node, { ...PLAIN_FACTS, nvmeMultipath });
    if (verdict.protectable) continue;
    expect(`${node.name} is refused as a multipath head`, /NVMe multipath/.test(verdict.reason), {
      verdict,
    });
    heads.push(node.name);
    await refused(guest, node.path, node.sizeBytes, 'UND_CAPTURE_DISK_BIO_BASED');
  }
  expect('one NVMe disk of several is a multipath head', heads.length === 1, { heads, links });
  return `head ${heads[0]} refused`;
}
