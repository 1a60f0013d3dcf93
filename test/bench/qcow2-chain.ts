/**
 * What the depth of a chain of checkpoints costs: reads and writes through it, its opening, the memory that QEMU has for
 * it, and the merge of a layer.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { median, type Row, row } from './frame.ts';
import { MIB, run, usage } from './lab.ts';
import type { RecoveryLab } from './recovery-lab.ts';
import { StorageDaemon } from './storage-daemon.ts';

const CLUSTER = 64 * 1024;

export interface ChainPlan {
  diskMiB: number;
  /** Clusters that each layer has of its own. */
  clusters: number;
  /** The first is what the others are compared with. */
  depths: readonly number[];
  requests: number;
  rounds: number;
  merges: number;
  /** Past the page cache, as QEMU opens a replica disk. */
  direct: boolean;
}

function create(path: string, sizeBytes: number, below?: string): void {
  // Unchecked: opening what is below is what grows with the depth, and is measured elsewhere.
  const base = below ? ['-u', '-F', 'qcow2', '-b', below] : [];
  run('qemu-img', 'create', '-q', '-f', 'qcow2', ...base, path, String(sizeBytes));
}

/** Whole clusters into one layer, without opening what is below. */
function fill(path: string, writes: string[]): void {
  const image = { driver: 'qcow2', backing: null, file: { driver: 'file', filename: path } };
  const { status, stderr } = spawnSync('qemu-io', [`json:${JSON.stringify(image)}`], {
    input: writes.join('\n'),
    encoding: 'utf8',
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  if (status !== 0) throw new Error(`qemu-io: ${stderr}`);
}

/** Requests of 4 KiB a second, spread over the disk; by QEMU's own measure of its block layer. */
function requestsPerSec(path: string, kind: 'read' | 'write', plan: ChainPlan): number {
  const out = run(
    'qemu-img',
    ...['bench', '-f', 'qcow2', '-s', '4096', '-d', '16', '-c', String(plan.requests)],
    // A step that is prime to the disk: no request in the cluster of the one before, and none twice.
    ...['-S', String(16_411 * 4096), '-t', plan.direct ? 'none' : 'writeback'],
    ...(kind === 'write' ? ['-w'] : []),
    path,
  );
  // Told to the millisecond.
  return plan.requests / Math.max(0.001, Number(/completed in ([\d.]+) seconds/.exec(out)![1]));
}

/** A read in every stretch that a table of QEMU's metadata covers, so that it has all that it will ever have of it. */
function readHere(file: string, sizeBytes: number): void {
  const TABLE_COVERS = 32 * MIB;
  const fd = fs.openSync(file, 'r');
  const sector = Buffer.alloc(512);
  for (let at = 0; at < sizeBytes; at += TABLE_COVERS) fs.readSync(fd, sector, 0, 512, at);
  fs.closeSync(fd);
}

interface AtDepth {
  read: number[];
  write: number[];
  openMs: number[];
  memoryBytes: number[];
}

export async function* chainRows(
  lab: RecoveryLab,
  plan: ChainPlan,
  progress: (text: string) => void,
): AsyncGenerator<Row> {
  const sizeBytes = plan.diskMiB * MIB;
  const base = lab.path('base');
  create(base, sizeBytes);
  const pieces = Array.from(
    { length: plan.diskMiB / 16 },
    (_, at) => `write -q -P 171 ${at * 16}M 16M`,
  );
  fill(base, pieces);
  const layers = [base];
  const most = Math.max(...plan.depths);
  const slots = sizeBytes / CLUSTER;
  progress(`a chain of ${most} layers`);
  while (layers.length < most) {
    const path = lab.path('layer');
    create(path, sizeBytes, layers.at(-1));
    fill(
      path,
      Array.from({ length: plan.clusters }, (_, n) => {
        const slot = ((layers.length * plan.clusters + n) * 7919) % slots;
        return `write -q -P ${layers.length % 256} ${slot * CLUSTER} ${CLUSTER}`;
      }),
    );
    layers.push(path);
  }
  const found = new Map<number, AtDepth>(
    plan.depths.map((depth) => [depth, { read: [], write: [], openMs: [], memoryBytes: [] }]),
  );
  for (let round = 0; round < plan.rounds; round++) {
    const turn = round % 2 === 0 ? plan.depths : [...plan.depths].reverse();
    for (const depth of turn) {
      const at = found.get(depth)!;
      const top = lab.path('top');
      // A depth of 1 is a disk without checkpoints: a copy of the base that is written itself.
      if (depth === 1) fs.copyFileSync(base, top);
      else create(top, sizeBytes, layers[depth - 2]);
      at.read.push(requestsPerSec(top, 'read', plan));
      at.write.push(requestsPerSec(top, 'write', plan));
      const daemon = await StorageDaemon.start(lab.path('q'));
      try {
        const beganMs = performance.now();
        const before = usage(daemon.pid).anonBytes;
        await daemon.open('top', top, plan.direct);
        at.openMs.push(performance.now() - beganMs);
        const file = lab.path('export');
        fs.writeFileSync(file, '');
        await daemon.exportFile('top', file);
        readHere(file, sizeBytes);
        at.memoryBytes.push(Math.max(0, usage(daemon.pid).anonBytes - before));
        await daemon.endExport('top');
      } finally {
        await daemon.stop();
      }
      fs.rmSync(top);
      progress(`depth ${depth}, round ${round + 1} of ${plan.rounds}`);
    }
  }
  const first = plan.depths[0]!;
  const compare = (name: keyof AtDepth, depth: number) =>
    depth === first ? null : { what: `depth ${first}`, value: median(found.get(first)![name]) };
  for (const depth of plan.depths) {
    const at = found.get(depth)!;
    yield row({
      figure: `chain of ${depth}: 4k reads`,
      value: median(at.read),
      unit: 'IOPS',
      against: compare('read', depth),
    });
    yield row({
      figure: `chain of ${depth}: 4k writes`,
      value: median(at.write),
      unit: 'IOPS',
      against: compare('write', depth),
      note: depth === first ? null : 'each is the first in its 64 KiB since the checkpoint',
    });
    yield row({
      figure: `chain of ${depth}: opening`,
      value: median(at.openMs),
      unit: 'ms',
      against: compare('openMs', depth),
    });
    yield row({
      figure: `chain of ${depth}: memory of the opened chain`,
      value: median(at.memoryBytes) / MIB,
      unit: 'MiB',
      against: null,
    });
  }
  yield await mergeRow(lab, layers, plan);
}

/** Neighbours in the middle of the open chain are merged, as the appliance thins its checkpoints. */
async function mergeRow(
  lab: RecoveryLab,
  layers: readonly string[],
  plan: ChainPlan,
): Promise<Row> {
  const daemon = await StorageDaemon.start(lab.path('q'));
  const took: number[] = [];
  const left = [...layers];
  try {
    await daemon.open('top', left.at(-1)!, plan.direct);
    for (let n = 0; n < plan.merges; n++) {
      const at = Math.floor(left.length / 2);
      const beganMs = performance.now();
      await daemon.commit('top', left[at]!, left[at - 1]!);
      took.push(performance.now() - beganMs);
      left.splice(at, 1);
    }
  } finally {
    await daemon.stop();
  }
  const mib = (plan.clusters * CLUSTER) / MIB;
  return row({
    figure: `merge of a layer of ${mib} MiB in a chain of ${layers.length}`,
    value: median(took),
    unit: 'ms',
    note: `live, of ${took.length}; ${((mib * 1000) / median(took)).toFixed(0)} MiB/s`,
  });
}
