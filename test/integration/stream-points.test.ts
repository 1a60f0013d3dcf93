/** Recovery points of a real stream on files: what the index says can be replayed, to the frame. */
import { copyFile, open, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import t from 'tap';
import type { Point } from '../../appliance/points/point-index.ts';
import { unpackFrame } from '../../protocol/frame.ts';
import { MIB, StreamLab, until } from './stream.lab.ts';

t.setTimeout(600_000);

/** Redo, in order, on a copy: what recovery to a point does. */
async function replay(lab: StreamLab, copy: string, fromSeq: number, toSeq: number): Promise<void> {
  const file = await open(copy, 'r+');
  const reader = lab.stream.journalReader(fromSeq);
  const sizes = lab.kernel.sizes;
  try {
    while (reader.nextSeq <= toSeq) {
      const next = await reader.next();
      if (!next) throw new Error(`frame ${reader.nextSeq} is not there`);
      for (const extent of await unpackFrame(next.header, next.frame.subarray(96), sizes)) {
        const data = extent.kind === 'write' ? extent.data : Buffer.alloc(extent.lengthBytes);
        await file.write(data, 0, extent.lengthBytes, extent.offsetBytes);
      }
    }
  } finally {
    await reader.close();
    await file.close();
  }
}

t.test(
  'from a copy of an older point, replay gives exactly what the disk was at a later one',
  async (t) => {
    const lab = await new StreamLab(t, [16 * MIB]).start();
    const { kernel } = lab;
    kernel.maxLatencyMs = 0;
    lab.startAgent();
    await lab.settled();
    // The checkpoint of this test: apply drained, intake stopped, a copy of the replica.
    await lab.stream.stopIntake('a checkpoint is taken');
    const checkpoint = await lab.stream.drainApply();
    await copyFile(lab.replicaPath(0), join(lab.dir, 'checkpoint'));
    lab.stream.startIntake();

    lab.startWorkload(4, 32);
    const atStart = lab.stream.state().durableSeq;
    await until('some writes', () => lab.stream.state().durableSeq > atStart + 20);
    // Blocks whose content issue order could not tell are read again, and are part of the history.
    for (let block = 100; block < 164; block++) kernel.dirty[0]!.add(block);
    kernel.emit({ kind: 'dirty-marked' });
    await until('the blocks to be read again', () => kernel.dirty[0]!.size === 0);
    await lab.stopWorkload();
    await lab.settled();
    // What the disk is now, and a point that says so: nothing is written until the tick that is waited for.
    const then = await readFile(kernel.paths[0]!);
    const seen = lab.stream.state().durableSeq;
    await until('a tick', () => lab.stream.state().durableSeq > seen);
    const point = lab.stream.points().newest!;
    const rereads: number[] = [];
    const reader = lab.stream.journalReader(checkpoint + 1);
    for (let next = await reader.next(); next; next = await reader.next()) {
      if (next.header.kind === 'mirror') rereads.push(next.header.seq);
    }
    await reader.close();
    t.ok(rereads.length > 0, 'blocks read again are in between, and were applied before');

    lab.startWorkload(4, 32);
    await until('later writes', () => lab.stream.state().durableSeq > point.seq + 60);
    await lab.stopWorkload();
    await lab.settled();
    t.notSame(await lab.stream.points().newest, point);
    const stretch = lab.stream.points().stretches().at(-1)!;
    t.ok(stretch.fromSeq <= checkpoint && stretch.toSeq > point.seq, 'one stretch over all of it');

    const exact = (await lab.stream.exactPointAt(point.sourceMs))!;
    t.ok(exact.seq >= point.seq && exact.sourceMs <= point.sourceMs);
    const copy = join(lab.dir, 'copy');
    await copyFile(join(lab.dir, 'checkpoint'), copy);
    // With familyOf putting run 0 into `m-`, this rejects with UND_HISTORY_GONE.
    await replay(lab, copy, checkpoint + 1, point.seq);
    t.ok((await readFile(copy)).equals(then), 'the point is what the disk was then');
    await replay(lab, copy, point.seq + 1, lab.stream.state().durableSeq);
    t.ok((await readFile(copy)).equals(await readFile(kernel.paths[0]!)), 'and so is the newest');
  },
);

t.test('gaps of a real loss, over restarts, and without the index', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB], { ringBytes: MIB }).start();
  lab.startAgent();
  await lab.settled();
  lab.proxy.stalled = true;
  lab.startWorkload();
  await until('the ring to be full', () => lab.kernel.mode.mode === 'tracking', 60_000);
  lab.proxy.stalled = false;
  await until('the loss to be durable', () => !lab.stream.state().consistent);
  await lab.stopWorkload();
  await lab.settled();
  await lab.agent!.kill();
  // A mark may still be on its way.
  await until(
    'the link to have ended',
    () => lab.stream.state().phase.name === 'waiting-for-agent',
  );
  await lab.stream.drainApply();
  const shape = () => {
    const points = lab.stream.points();
    return { stretches: points.stretches(), gaps: points.gaps(), newest: points.newest };
  };
  const before = shape();
  t.match(before.gaps[0], { kind: 'first-mirror', fromSeq: 1, crossable: false });
  t.match(
    before.gaps.find(({ kind }) => kind === 'order-lost'),
    { reason: /overflow/ },
  );
  t.ok(
    before.gaps.every(({ toSeq }) => toSeq !== null),
    'points again at the end',
  );
  t.equal(before.stretches.length, 2);
  const answers = (moments: number[]) => moments.map((at) => lab.stream.points().pointAt(at));
  const from = before.stretches[0]!.fromMs;
  const moments = Array.from({ length: 40 }, (_, at) => from + at * 250);
  const told = answers(moments);
  const isTrue = (point: Point | null) => !point || lab.stream.points().isPoint(point.seq);
  t.ok(told.every(isTrue));

  await lab.restartAppliance();
  t.same(shape(), before, 'after a restart');
  await lab.stream.close();
  t.same(await readdir(join(lab.dir, 'job', 'points')), [], 'no page was full yet');
  await lab.openStream();
  await rm(join(lab.dir, 'job', 'points'), { recursive: true });
  await lab.restartAppliance();
  t.same(shape(), before, 'made again from the segments');
  t.same(answers(moments), told);
  t.same((await lab.stream.verifyJournal()).faults, []);
});

t.test(
  'a batch that is cut into frames: the part is no point, and what follows it is',
  async (t) => {
    const lab = await new StreamLab(t, [16 * MIB]).start();
    lab.startAgent();
    await lab.settled();
    const before = lab.stream.state().durableSeq;
    await lab.kernel.write(0, MIB, Buffer.alloc(7 * MIB, 7));
    await lab.settled();
    await until('a point behind it', () => {
      const { durableSeq } = lab.stream.state();
      return durableSeq > before + 1 && lab.stream.points().isPoint(durableSeq);
    });
    const cut: number[] = [];
    const reader = lab.stream.journalReader(before + 1);
    for (let next = await reader.next(); next; next = await reader.next()) {
      if (next.header.aheadBytes > 0) cut.push(next.header.seq);
    }
    await reader.close();
    t.equal(cut.length, 1);
    t.notOk(lab.stream.points().isPoint(cut[0]!));
    t.match(lab.stream.points().gaps().at(-1), { kind: 'repetition', fromSeq: cut[0] });
  },
);

// Red when the mark is placed before the flush, or when `untilDurable` looks at what was sent.
t.test('a final mark that is durable has every write before it, and none behind it', async (t) => {
  const lab = new StreamLab(t, [16 * MIB]);
  const { kernel } = lab;
  kernel.maxLatencyMs = 0;
  // What lies in memory only reaches the disk by the flush.
  lab.agentOptions.flush = () => kernel.write(0, 8 * MIB, Buffer.alloc(MIB, 'f'));
  await lab.start();
  lab.startAgent();
  await lab.settled();
  await lab.stream.stopIntake('a checkpoint is taken');
  const checkpoint = await lab.stream.drainApply();
  await copyFile(lab.replicaPath(0), join(lab.dir, 'checkpoint'));
  lab.stream.startIntake();

  lab.startWorkload(4, 32);
  await until('some writes', () => lab.stream.state().durableSeq > checkpoint + 20);
  lab.proxy.stalled = true;
  await lab.stopWorkload();
  const before = await readFile(kernel.paths[0]!);
  const { seq, point } = await lab.agent!.stream.finalMark({
    type: 'finalMark',
    requestId: 'final-1',
    jobId: 'job-1',
    failoverId: 'failover-1',
  });
  t.match(point, { type: 'consistencyPoint', final: true });
  const then = await readFile(kernel.paths[0]!);
  t.notOk(then.equals(before), 'the flush wrote something');
  let looks = 0;
  let isDurable = false;
  const durable = lab.stream
    .untilDurable(seq!, () => void looks++)
    .then(() => {
      isDurable = true;
    });
  await kernel.write(0, 0, Buffer.alloc(MIB, 'x'));
  await until('a second look', () => looks > 1);
  t.notOk(isDurable, 'the link is stalled: the mark is in the window only');
  t.ok(lab.stream.state().durableSeq < seq!);
  lab.proxy.stalled = false;
  await durable;
  t.ok(lab.stream.state().durableSeq >= seq!);
  // The source is powered off.
  await lab.agent!.kill();
  await lab.restartAppliance();
  t.ok(lab.stream.points().isPoint(seq!));
  const copy = join(lab.dir, 'copy');
  await copyFile(join(lab.dir, 'checkpoint'), copy);
  await replay(lab, copy, checkpoint + 1, seq!);
  t.ok((await readFile(copy)).equals(then), 'to the byte');
  await t.rejects(
    lab.stream.untilDurable(Number.MAX_SAFE_INTEGER, () => {
      throw new Error('given up');
    }),
    /given up/,
  );
});

t.test('a busy source that hears its own clock late does not move the points', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB]).start();
  lab.startAgent();
  await lab.settled();
  lab.kernel.statusLateMs = 2000;
  // The lateness is of the answers from now on; a few of them have to be heard.
  await new Promise((resolve) => setTimeout(resolve, 5000));
  const reader = lab.stream.journalReader(lab.stream.state().durableSeq + 1);
  t.teardown(() => reader.close());
  const beganMs = Date.now();
  await lab.kernel.write(0, 0, Buffer.alloc(4096, 7));
  const endedMs = Date.now();
  let wallMs: number | undefined;
  await until('the write to be in the journal', async () => {
    while (wallMs === undefined && lab.stream.state().durableSeq >= reader.nextSeq) {
      const { header } = (await reader.next())!;
      if (header.kind === 'stream') wallMs = header.wallMs;
    }
    return wallMs !== undefined;
  });
  // With the wall clock read when the answer is heard it is 2000 ms off.
  t.ok(
    Math.abs(wallMs! - beganMs) < 1000 + endedMs - beganMs,
    'the write has the time at which it was issued',
    {
      wallMs,
      beganMs,
      endedMs,
    },
  );
});
