/** How long a checkpoint holds up apply, and whether it holds up acknowledgements. */
import { ApplianceEnd } from './appliance-end.ts';
import type { Checkpointed } from './appliance-process.ts';
import { median, quantile, type Row, row } from './frame.ts';
import type { HostLab } from './host-lab.ts';
import { MIB, sleep } from './lab.ts';
import { MadeStream, makeFrames } from './made-stream.ts';
import type { RecoveryLab } from './recovery-lab.ts';

export interface PausePlan {
  diskMiB: number;
  checkpoints: number;
  everyMs: number;
  /** Of the source's writes. */
  bytesPerSec: number;
}

export async function* pauseRows(
  lab: RecoveryLab,
  hostLab: HostLab,
  plan: PausePlan,
  progress: (text: string) => void,
): AsyncGenerator<Row> {
  const diskBytes = plan.diskMiB * MIB;
  const shape = { words: '', writeBytes: 64 * 1024, order: 'random' } as const;
  const made = await makeFrames(shape, diskBytes / 2, diskBytes);
  const jobDir = lab.path('job');
  const end = await ApplianceEnd.start({
    jobDir,
    disks: [
      {
        ...{ diskId: 'disk', index: 0, devicePath: '/dev/none', sizeBytes: diskBytes },
        ...{ replicaPath: null, freshReplica: true },
      },
    ],
    ringBytes: 0,
    journalBytes: 64 * 1024 * MIB,
    pem: lab.pem,
    host: hostLab.config,
  });
  try {
    const stream = await MadeStream.open(end.port, lab.pem);
    const acks: Array<{ atMs: number; tookMs: number }> = [];
    stream.onAck = (_, tookMs) => acks.push({ atMs: performance.now(), tookMs });
    const beganMs = performance.now();
    let stop = false;
    const sending = (async () => {
      const frameMs = (made.sourceBytes / made.frames.length / plan.bytesPerSec) * 1000;
      for (let n = 0; !stop; n++) {
        const dueMs = beganMs + n * frameMs;
        if (performance.now() < dueMs) await sleep(dueMs - performance.now());
        await stream.send(made.frames[n % made.frames.length]!);
      }
      await stream.durable();
    })();
    // A rejection is met below; until then it is not unhandled.
    sending.catch(() => {});
    const taken: Array<Checkpointed & { fromMs: number; toMs: number }> = [];
    for (let n = 0; n < plan.checkpoints; n++) {
      await Promise.race([sleep(plan.everyMs), sending]);
      const fromMs = performance.now();
      const one = await end.ask<Checkpointed>({ ask: 'checkpoint' });
      taken.push({ ...one, fromMs, toMs: performance.now() });
      progress(
        `checkpoint ${n + 1} of ${plan.checkpoints}: apply paused ${one.pauseMs.toFixed(0)} ms, ${one.waitedMs.toFixed(0)} ms after the request`,
      );
    }
    await sleep(plan.everyMs);
    stop = true;
    await sending;
    stream.close();
    const during = ({ atMs, tookMs }: (typeof acks)[number]) =>
      taken.some(({ fromMs, toMs }) => atMs - tookMs <= toMs && atMs >= fromMs);
    const within = acks.filter(during).map(({ tookMs }) => tookMs);
    const outside = acks.filter((ack) => !during(ack)).map(({ tookMs }) => tookMs);
    const pauses = taken.map(({ pauseMs }) => pauseMs);
    const rate = `${(plan.bytesPerSec / 1e6).toFixed(0)} MB/s`;
    yield row({
      figure: `checkpoint: pause of apply at ${rate}`,
      value: median(pauses),
      unit: 'ms',
      goal: { atMost: 1000 },
      note: `of ${pauses.length}, at most ${Math.max(...pauses).toFixed(0)} ms; ${median(taken.map(({ takenMs }) => takenMs)).toFixed(0)} ms of it with apply at its point, the rest is its batch and flush; ${median(taken.map(({ waitedMs }) => waitedMs)).toFixed(0)} ms (at most ${Math.max(...taken.map(({ waitedMs }) => waitedMs)).toFixed(0)}) before it apply flushed beside its writing; the snapshot is taken twice, by libvirt and by QEMU alone (local-host.ts); the last: ${taken.at(-1)!.calls}`,
    });
    yield row({
      figure: `checkpoint: acknowledgement meanwhile, p99`,
      value: quantile(within, 0.99),
      unit: 'ms',
      against: { what: 'at other times', value: quantile(outside, 0.99) },
      note: `of ${within.length} and ${outside.length} frames; medians ${median(within).toFixed(1)} and ${median(outside).toFixed(1)} ms, most ${Math.max(...within).toFixed(0)} and ${Math.max(...outside).toFixed(0)} ms`,
    });
  } finally {
    await end.stop();
    lab.remove(jobDir);
  }
}
