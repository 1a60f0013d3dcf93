/** The stream end to end on files, with a scripted capture: both ends real, the faults injected. */
import { cp, mkdir, readFile, rename, rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { Journal } from '../../appliance/journal/journal.ts';
import { undError } from '../../protocol/errors.ts';
import { type FrameHeader, packFrame } from '../../protocol/frame.ts';
import { MIB, StreamLab, until } from './stream.lab.ts';

t.setTimeout(600_000);

t.test('a full mirror while the source writes is byte-identical', async (t) => {
  const lab = await new StreamLab(t, [24 * MIB, 10 * MIB]).start();
  lab.startAgent();
  lab.startWorkload();
  await until('the mirror to be done', () => lab.stream.state().consistent);
  t.ok((await lab.stopWorkload()) > 20, 'the source was writing');
  await lab.settled();
  t.same(await lab.differences(), []);
  const { disks, mode } = lab.stream.state();
  t.equal(mode.mode, 'ordered');
  t.ok(disks.every(({ mirror }) => mirror.state === 'done' && mirror.kind === 'full'));
  t.ok(disks[0]!.mirror.skippedBytes > 8 * MIB, 'zeroes were not sent');
});

t.test(
  'the agent is killed mid-mirror and mid-stream: the next one goes on, nothing is lost',
  async (t) => {
    const lab = await new StreamLab(t, [32 * MIB]).start();
    lab.proxy.bytesPerSec = 12 * MIB;
    lab.startAgent();
    lab.startWorkload();
    for (let kill = 0; kill < 3; kill++) {
      const from = lab.stream.state().durableSeq;
      await until('some frames to be durable', () => lab.stream.state().durableSeq > from + 10);
      await lab.agent!.kill();
      lab.startAgent();
    }
    lab.proxy.bytesPerSec = null;
    await until('the mirror to be done', () => lab.stream.state().consistent);
    await lab.stopWorkload();
    await lab.settled();
    t.same(await lab.differences(), []);
    t.equal(lab.stream.state().disks[0]!.mirror.kind, 'full', 'the first run was resumed');
    t.equal(lab.stream.epoch, 1, 'in the same epoch');
    t.same((await lab.stream.verifyJournal()).faults, []);
  },
);

// Seen red with the restarted agent's own start as its first moment.
t.test('no frame of a restarted agent vouches for writes that are still in the ring', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB]).start(false);
  lab.startAgent();
  await lab.settled();
  await lab.agent!.kill();
  const from = lab.stream.state().durableSeq;
  const writes = 120;
  for (let write = 0; write < writes; write++) {
    await lab.kernel.write(0, write * 131_072, Buffer.alloc(65_536, write + 1));
  }
  const issuedNs = lab.kernel.ring.map(({ record }) => record.bootNs);
  lab.startAgent();
  await lab.settled();
  await lab.agent!.kill();
  await lab.stream.close();
  const frames: FrameHeader[] = [];
  const journal = await Journal.open(
    { jobId: 'job-1', dir: join(lab.dir, 'job/journal'), appliedSeq: from, limitBytes: 512 * MIB },
    { durable: () => {}, failed: () => {} },
    ({ header }) => frames.push(header),
  );
  await journal.close();
  t.equal(issuedNs.length, writes);
  t.ok(frames.filter(({ kind }) => kind === 'stream').length > 3, 'the writes are in some frames');
  let carried = 0;
  for (const { seq, extentCount, bootTimeNs } of frames) {
    carried += extentCount;
    const before = issuedNs.filter((ns) => ns < bootTimeNs).length;
    if (carried < before) t.fail(`frame ${seq} vouches for ${before} writes, ${carried} are there`);
  }
  t.equal(carried, writes);
});

t.test('links are cut and bytes damaged: frames are sent again', async (t) => {
  const lab = await new StreamLab(t, [32 * MIB]).start();
  lab.startAgent();
  lab.startWorkload();
  for (let fault = 0; fault < 4; fault++) {
    const at = lab.proxy.passedBytes + 700_000 + fault * 131_071;
    const before = lab.server.errors.length;
    if (fault % 2 === 0) lab.proxy.cutAt = at;
    else lab.proxy.corruptAt = at;
    await until('the fault to happen', () => lab.proxy.cuts + lab.proxy.corruptions > fault);
    if (fault % 2 === 1) {
      await until('the damage to be noticed', () => lab.server.errors.length > before);
    }
  }
  await until('the mirror to be done', () => lab.stream.state().consistent);
  await lab.stopWorkload();
  await lab.settled();
  t.same(await lab.differences(), []);
  t.equal(lab.stream.epoch, 1, 'no new epoch was needed');
  t.match(
    lab.server.errors.map(({ code }) => code),
    [/^UND_(FRAME|LINK|CONTROL)_/, /^UND_(FRAME|LINK|CONTROL)_/],
  );
});

t.test('the appliance restarts mid-mirror: the mirror goes on where it was durable', async (t) => {
  const lab = await new StreamLab(t, [48 * MIB]).start();
  lab.proxy.bytesPerSec = 16 * MIB;
  lab.startAgent();
  lab.startWorkload(10, 16);
  const doneBytes = () => lab.stream.state().disks[0]!.mirror.doneBytes;
  await until('a part of the mirror to be durable', () => doneBytes() > 8 * MIB);
  const before = doneBytes();
  await lab.restartAppliance();
  t.ok(doneBytes() >= before, 'progress is known after the restart');
  t.equal(lab.stream.state().disks[0]!.mirror.state, 'running');
  lab.proxy.bytesPerSec = null;
  await until('the mirror to be done', () => lab.stream.state().consistent);
  await lab.stopWorkload();
  await lab.settled();
  t.same(await lab.differences(), []);
  t.equal(lab.stream.epoch, 1);
  t.equal(lab.stream.state().disks[0]!.mirror.kind, 'full');
});

t.test('the ring overflows: tracking, then only the dirty blocks, with the reason', async (t) => {
  const lab = await new StreamLab(t, [24 * MIB, 24 * MIB], { ringBytes: MIB }).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  lab.proxy.stalled = true;
  // Slow enough for so small a ring on a busy machine: else it overflows again and again.
  // In a third of each disk, so that how much is dirty never says how long this machine took.
  lab.startWorkload(10, 16, 8 * MIB);
  await until('the ring to be full', () => lab.kernel.mode.mode === 'tracking', 60_000);
  t.ok(lab.kernel.drops > 0, 'writes were not captured');
  lab.proxy.stalled = false;
  await until('the loss to be known', () => lab.stream.state().mode.mode === 'tracking');
  t.match(lab.stream.state().mode.reason, /overflow/);
  await until('the loss to be durable: no recovery point', () => !lab.stream.state().consistent);
  // The workload goes on meanwhile: a drain never needs the source to be still.
  await lab.until('order to be held again', () => lab.stream.state().mode.mode === 'ordered');
  await lab.stopWorkload();
  await lab.settled();
  t.same(await lab.differences(), []);
  for (const { mirror, sizeBytes } of lab.stream.state().disks) {
    t.equal(mirror.kind, 'drain');
    t.match(mirror.reason, /overflow/);
    t.ok(mirror.totalBytes < sizeBytes / 2, `${mirror.totalBytes} bytes were dirty`);
  }
  t.equal(lab.stream.epoch, 1);
});

t.test(
  'a source that was restarted, or whose capture was, is compared in a new epoch',
  async (t) => {
    const lab = await new StreamLab(t, [16 * MIB]).start();
    lab.startAgent();
    lab.startWorkload();
    await until('the first mirror', () => lab.stream.state().consistent);
    await lab.agent!.kill();
    lab.kernel.captureId = '';
    lab.kernel.ring = [];
    lab.kernel.consumerPos = 4096;
    lab.kernel.producerPos = 4096;
    await lab.kernel.write(0, 4096, Buffer.alloc(65_536, 0x5a));
    lab.startAgent();
    await until('a new epoch', () => lab.stream.epoch === 2);
    await until('the difference mirror', () => lab.stream.state().consistent);
    await lab.stopWorkload();
    await lab.settled();
    t.same(await lab.differences(), []);
    t.match(lab.stream.state().disks[0]!.mirror, {
      kind: 'difference',
      reason: 'the capture of writes was started anew',
    });
  },
);

t.test(
  'an appliance that was set back to an older state is compared, never believed',
  async (t) => {
    const lab = await new StreamLab(t, [16 * MIB]).start();
    lab.startAgent();
    await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
    await lab.settled();
    const old = join(lab.dir, 'old');
    await lab.stream.stopIntake('copying its state');
    await cp(join(lab.dir, 'job'), old, { recursive: true });
    lab.stream.startIntake();
    lab.startWorkload();
    const from = lab.stream.state().durableSeq;
    await until('more to be durable', () => lab.stream.state().durableSeq > from + 20);
    await lab.stopWorkload();
    lab.server.stream = undefined;
    await lab.stream.close();
    await rm(join(lab.dir, 'job'), { recursive: true });
    await rename(old, join(lab.dir, 'job'));
    await lab.openStream();
    await until('a new epoch', () => lab.stream.epoch === 2);
    await lab.settled();
    t.same(await lab.differences(), []);
    t.match(lab.stream.state().disks[0]!.mirror, { kind: 'difference', reason: /acknowledged/ });
  },
);

t.test(
  'a replica disk without space stops apply, not the stream; resumed, nothing is lost',
  {
    skip: process.getuid?.() === 0 ? false : 'needs root',
  },
  async (t) => {
    const lab = await new StreamLab(t, [24 * MIB]).start();
    const small = join(lab.dir, 'small');
    await mkdir(small);
    await execa('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', small]);
    t.teardown(() => execa('umount', ['-l', small], { reject: false }));
    await execa('truncate', ['-s', String(24 * MIB), join(small, 'replica')]);
    await lab.stream.closeDisks();
    await lab.stream.reopenDisks(new Map([['disk-0', join(small, 'replica')]]));
    lab.startAgent();
    lab.startWorkload();
    await until('apply to stop', () => lab.stream.state().phase.name === 'error');
    t.match(lab.stream.state().phase, { error: { code: 'UND_APPLY_NO_SPACE' } });
    const durable = lab.stream.state().durableSeq;
    await until('the journal to go on', () => lab.stream.state().durableSeq > durable + 10);
    await execa('mount', ['-o', 'remount,size=64m', small]);
    lab.stream.resumeApply();
    await until('the mirror to be applied', () => lab.stream.state().phase.name === 'protected');
    await lab.stopWorkload();
    await lab.settled();
    await execa('cp', ['--sparse=always', join(small, 'replica'), lab.replicaPath(0)]);
    t.same(await lab.differences(), []);
  },
);

t.test(
  'a journal that is full holds the agent, and lets it go on when there is room',
  async (t) => {
    const lab = await new StreamLab(t, [24 * MIB], {
      limits: { journalBytes: 2 * MIB, segmentBytes: MIB },
    }).start();
    await lab.stream.pauseApply('the test says so');
    lab.startAgent();
    await until('intake to be held', () => lab.stream.state().phase.name === 'held');
    t.match(lab.stream.state().phase, { reason: /journal of job job-1 holds/ });
    lab.stream.resumeApply();
    await lab.settled();
    t.same(await lab.differences(), []);
    t.ok(lab.stream.state().journalBytes < 4 * MIB, 'history is kept within its limit');
  },
);

t.test(
  'intake stops for a failover and starts again; disks are closed and opened between',
  async (t) => {
    const lab = await new StreamLab(t, [12 * MIB]).start();
    lab.startAgent();
    lab.startWorkload();
    await until('the first mirror', () => lab.stream.state().consistent);
    await lab.stream.stopIntake('failover');
    const seq = await lab.stream.drainApply();
    t.equal(lab.stream.state().appliedSeq, seq);
    await lab.stream.closeDisks();
    t.match(lab.stream.state().phase, { name: 'held', reason: 'failover' });
    const passed = lab.proxy.passedBytes;
    await until('the agent to send more', () => lab.proxy.passedBytes > passed);
    t.equal(lab.stream.state().durableSeq, seq, 'nothing was taken');
    await lab.stream.reopenDisks(new Map());
    lab.stream.startIntake();
    await lab.stopWorkload();
    await lab.settled();
    t.same(await lab.differences(), []);
    t.equal(lab.stream.epoch, 1);
  },
);

t.test(
  'a disk that grows: the owner grows the replica, and the new range is mirrored',
  async (t) => {
    const grown: number[] = [];
    const lab = await new StreamLab(t, [8 * MIB], {
      hooks: {
        onDiskResized: async (_diskId, sizeBytes) => {
          await truncate(lab.replicaPath(0), sizeBytes);
          grown.push(sizeBytes);
        },
      },
    }).start();
    lab.startAgent();
    await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
    await lab.grow(0, 12 * MIB);
    lab.startWorkload();
    await until('the replica to be grown', () => grown.length === 1);
    await until('the new range to be mirrored', () => {
      const [disk] = lab.stream.state().disks;
      return disk!.sizeBytes === 12 * MIB && disk!.mirror.state === 'done';
    });
    await lab.stopWorkload();
    await lab.settled();
    t.same(await lab.differences(), []);
    t.match(lab.stream.state().disks[0]!.mirror, {
      reason: /grew from 8388608/,
      totalBytes: 4 * MIB,
    });
  },
);

t.test('a poison frame stops its job with a reason; restarted, all is compared', async (t) => {
  const lab = await new StreamLab(t, [8 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  await lab.agent!.kill();
  const closed: unknown[] = [];
  const evil = lab.stream.connect({ send: () => {}, close: (error) => closed.push(error) });
  // What the agent had sent last is settled: no frame of its is on the way any more.
  await lab.stream.drainApply();
  const frame = await packFrame(
    {
      kind: 'stream',
      epoch: 1,
      seq: lab.stream.state().durableSeq + 1,
      bootTimeNs: 1n,
      wallMs: 1,
      capturePos: 1,
    },
    [{ kind: 'zero', disk: 0, offsetBytes: 8 * MIB, lengthBytes: 512 }],
    'none',
  );
  await evil.frame(frame);
  await until('the job to stop', () => lab.stream.state().phase.name === 'error');
  t.match(lab.stream.state().phase, {
    error: { code: 'UND_FRAME_INVALID', message: /outside disk 0/ },
  });
  await lab.stream.restart('a person started it anew');
  lab.startAgent();
  await lab.settled();
  t.same(await lab.differences(), []);
  t.match(lab.stream.state().disks[0]!.mirror, { kind: 'difference', reason: /a person/ });
});

t.test('blocks that issue order cannot tell are read again', async (t) => {
  const lab = await new StreamLab(t, [8 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  // A write whose record says one thing and the disk another, as two that overlap in flight.
  const offset = 5 * MIB;
  await lab.kernel.write(0, offset, Buffer.alloc(8192, 1));
  await lab.kernel.files[0]!.write(Buffer.alloc(8192, 2), 0, 8192, offset);
  await lab.settled();
  t.not((await lab.differences()).length, 0, 'the stream alone cannot know');
  for (const block of [0, 1]) lab.kernel.dirty[0]!.add(offset / 4096 + block);
  lab.kernel.emit({ kind: 'dirty-marked' });
  await until(
    'the blocks to be clean',
    () => lab.kernel.dirty[0]!.size + lab.kernel.taken[0]!.size === 0,
  );
  await lab.settled();
  t.same(await lab.differences(), []);
});

t.test('the agent dies while order is lost: the next one ends the loss', async (t) => {
  const lab = await new StreamLab(t, [8 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  lab.kernel.track('overflow');
  await until('the loss to be durable', () => !lab.stream.state().consistent);
  await lab.kernel.write(0, 4096, Buffer.alloc(4096, 7));
  await lab.agent!.kill();
  // As if it had died right after it had switched ordered capture on again.
  lab.kernel.mode = { mode: 'ordered' };
  lab.startAgent();
  await lab.settled();
  t.same(await lab.differences(), []);
  t.equal(lab.stream.epoch, 1);
  t.match(lab.stream.state().disks[0]!.mirror, { kind: 'drain', reason: /overflow/ });
});

t.test('an agent that dies in a drain is followed by one that drains the rest', async (t) => {
  const lab = await new StreamLab(t, [24 * MIB], { ringBytes: MIB }).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  lab.kernel.track('overflow');
  lab.startWorkload();
  const dirtyBytes = () => (lab.kernel.dirty[0]!.size + lab.kernel.taken[0]!.size) * 4096;
  // Order is not resumed before the loss is durable.
  lab.proxy.stalled = true;
  await until('blocks to be dirty', () => dirtyBytes() > 4 * MIB);
  lab.proxy.stalled = false;
  lab.proxy.bytesPerSec = 2 * MIB;
  await until('the drain to begin', () => {
    const { kind, state } = lab.stream.state().disks[0]!.mirror;
    return kind === 'drain' && state === 'running';
  });
  t.equal(lab.stream.state().mode.mode, 'draining');
  t.notOk(lab.stream.state().consistent, 'no recovery point inside a drain');
  await lab.agent!.kill();
  t.ok(dirtyBytes() > 0, 'what was taken and not acknowledged is not forgotten');
  lab.proxy.bytesPerSec = null;
  lab.startAgent();
  // Still from here on, so that the end mark claims what can be compared: all of it was missed, and drained.
  await lab.stopWorkload();
  await until('the drain to end', () => lab.stream.state().consistent, 60_000);
  await lab.stream.drainApply();
  t.same(await lab.differences(), [], 'at the end mark, not some time behind it');
  await lab.settled();
  t.same(await lab.differences(), []);
  t.equal(lab.stream.epoch, 1, 'in the same epoch, without a mirror');
});

t.test(
  'the first mirror goes on after order was lost in it, and drains what it missed',
  async (t) => {
    const lab = await new StreamLab(t, [24 * MIB, 8 * MIB]).start();
    lab.proxy.bytesPerSec = 8 * MIB;
    lab.startAgent();
    const mirror = () => lab.stream.state().disks[0]!.mirror;
    await until('some of the mirror to be durable', () => mirror().doneBytes > 6 * MIB);
    lab.kernel.track('overflow');
    // Before and behind the cursor, and zeroes where something was: a full mirror passes over zeroes.
    await lab.kernel.write(0, MIB, Buffer.alloc(8192, 1));
    await lab.kernel.write(0, 3 * 256 * 1024, null, 65_536);
    await lab.kernel.write(0, 20 * MIB, Buffer.alloc(8192, 2));
    lab.proxy.bytesPerSec = null;
    await lab.settled();
    t.same(await lab.differences(), []);
    t.same(
      lab.stream.state().disks.map((disk) => disk.mirror.kind),
      ['full', 'full'],
      'no mirror was begun anew',
    );
  },
);

t.test(
  'active swap leaves the stream, and comes back whole when it is no longer swap',
  async (t) => {
    const lab = await new StreamLab(t, [12 * MIB]).start();
    const area = { offsetBytes: 4 * MIB + 4096, lengthBytes: 4 * MIB - 4096 };
    let active = [area];
    lab.agentOptions = { activeSwap: async () => active };
    lab.startAgent();
    await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
    await lab.kernel.write(0, area.offsetBytes, Buffer.alloc(65_536, 1));
    await lab.kernel.write(0, 4 * MIB, Buffer.alloc(4096, 2));
    await lab.settled();
    const replica = await readFile(lab.replicaPath(0));
    t.ok(
      replica.subarray(area.offsetBytes, 8 * MIB).every((byte) => byte === 0),
      'nothing of it',
    );
    t.equal(replica[4 * MIB], 2, 'its header page');
    // Switched off and made a file system of, while the agent is away.
    await lab.agent!.kill();
    active = [];
    await lab.kernel.write(0, area.offsetBytes + MIB, Buffer.alloc(8192, 3));
    lab.startAgent();
    await until('the area to be read again', async () => (await lab.differences()).length === 0);
    await lab.settled();
    t.same(await lab.differences(), []);
    t.equal(lab.stream.epoch, 1);
  },
);

t.test(
  'a block that cannot be read stops the mirror, not replication; it goes on from there',
  async (t) => {
    const lab = await new StreamLab(t, [12 * MIB]).start();
    let broken = true;
    lab.agentOptions = {
      openReader: async (path) => {
        const reader = lab.kernel.reader(path);
        return {
          ...reader,
          read: (offset, length) =>
            broken && offset >= 6 * MIB
              ? Promise.reject(
                  undError('UND_SOURCE_READ_FAILED', {
                    disk: path,
                    offsetBytes: offset,
                    reason: 'EIO',
                  }),
                )
              : reader.read(offset, length),
        };
      },
    };
    lab.startAgent();
    await until('the read to fail', () => lab.agent!.logs.some((line) => /EIO/.test(line)));
    const doneBytes = () => lab.stream.state().disks[0]!.mirror.doneBytes;
    await until('what was read before to be durable', () => doneBytes() === 6 * MIB);
    const { durableSeq } = lab.stream.state();
    await lab.kernel.write(0, 0, Buffer.alloc(4096, 9));
    await until('replication to go on', () => lab.stream.state().durableSeq > durableSeq);
    broken = false;
    await lab.settled();
    t.same(await lab.differences(), []);
  },
);
