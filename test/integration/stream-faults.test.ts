/** What the two ends of a stream tell a person when something is wrong, and what they do about it. */
import { open } from 'node:fs/promises';
import t from 'tap';
import type { Capture } from '../../agent/capture/capture.ts';
import { undError } from '../../protocol/errors.ts';
import { MIB, StreamLab, until } from './stream.lab.ts';

t.setTimeout(600_000);

// Red when `jobFailed` is only kept as the reason of a lost connection.
t.test('an agent that cannot take up the job: its error is the state of the job', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB]).start();
  let broken = true;
  const refuse = (): Capture => {
    throw undError('UND_CAPTURE_NO_BTF', { reason: 'no /sys/kernel/btf/vmlinux' });
  };
  lab.agentOptions = { createCapture: () => (broken ? refuse() : lab.kernel.capture()) };
  lab.startAgent();
  await until('the error', () => lab.stream.state().phase.name === 'error');
  t.match(lab.stream.state().phase, {
    from: 'agent',
    error: { code: 'UND_CAPTURE_NO_BTF', message: /vmlinux/, hint: /CONFIG_DEBUG_INFO_BTF/ },
  });
  broken = false;
  lab.stream.reconnectAgent('a person asked to try again');
  await until('the error to be over', () => lab.stream.state().phase.name !== 'error');
  await lab.settled();
  t.same(await lab.differences(), []);
});

// Seen red (for ever UND_CAPTURE_BUSY) when a capture that was started is left to itself by what fails behind it.
t.test('a capture whose start ends half way gives its pins back', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB]).start();
  let holders = 0;
  let broken = true;
  const only = (): Capture => {
    const capture = lab.kernel.capture();
    const { start, status, stop } = capture;
    let holds = false;
    return Object.assign(capture, {
      start: async (...args: Parameters<Capture['start']>) => {
        if (holders > 0) throw undError('UND_CAPTURE_BUSY', { reason: 'the pins' });
        holders++;
        holds = true;
        return start.apply(capture, args);
      },
      status: () =>
        broken
          ? Promise.reject(undError('UND_CAPTURE_COMMAND', { command: 'status', reason: 'no' }))
          : status.apply(capture),
      stop: async (...args: Parameters<Capture['stop']>) => {
        if (holds) holders--;
        holds = false;
        await stop.apply(capture, args);
      },
    });
  };
  lab.agentOptions = { createCapture: only };
  lab.startAgent();
  await until('the error', () => lab.stream.state().phase.name === 'error');
  t.match(lab.stream.state().phase, { error: { code: 'UND_CAPTURE_COMMAND' } });
  t.equal(holders, 0);
  broken = false;
  // The agent tries again by itself.
  await until('the error to be over', () => lab.stream.state().phase.name !== 'error');
  await lab.settled();
  t.same(await lab.differences(), []);
});

// Red when a notice of the agent ends in the stream.
t.test('a block that cannot be read is a problem of the job until it is read', async (t) => {
  const lab = await new StreamLab(t, [8 * MIB]).start();
  const offsetBytes = 5 * MIB;
  let broken = true;
  lab.agentOptions = {
    openReader: async (devicePath) => {
      const reader = lab.kernel.reader(devicePath);
      return {
        ...reader,
        read: (at, length) =>
          broken && at === offsetBytes
            ? Promise.reject(
                undError('UND_SOURCE_READ_FAILED', {
                  disk: devicePath,
                  offsetBytes,
                  reason: 'EIO',
                }),
              )
            : reader.read(at, length),
      };
    },
  };
  lab.startAgent();
  await until('the problem', () => lab.stream.state().problems.length > 0);
  t.match(lab.stream.state().problems, [
    { diskId: 'disk-0', error: { code: 'UND_SOURCE_READ_FAILED', message: /EIO/ } },
  ]);
  t.equal(lab.stream.state().phase.name, 'mirroring', 'it is tried again');
  broken = false;
  await until('the problem to be over', () => lab.stream.state().problems.length === 0);
  await lab.settled();
  t.same(await lab.differences(), []);
});

t.test('a disk that is gone from the source stops the job, also told late', async (t) => {
  const lab = await new StreamLab(t, [2 * MIB, 2 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  lab.kernel.emit({ kind: 'disk-gone', disk: 1 });
  const isGone = () => lab.stream.state().phase.name === 'error';
  await until('the error', isGone);
  const { phase } = lab.stream.state();
  t.match(phase, { from: 'agent', error: { code: 'UND_CAPTURE_DISK_NOT_FOUND' } });
  t.match(phase, { error: { message: /source-1 .*gone/ } });
  lab.proxy.cut();
  await until('the connection to be seen lost', () => !isGone());
  await until('the error again on the next connection', isGone);
});

// Red when the appliance does not ask again for what the agent dropped with its order.
t.test(
  'order is lost during the first mirror: a disk that missed nothing is mirrored too',
  async (t) => {
    const lab = await new StreamLab(t, [16 * MIB, 4 * MIB]).start();
    lab.proxy.bytesPerSec = 8 * MIB;
    lab.startAgent();
    await until(
      'the mirror to run',
      () => (lab.stream.state().disks[0]?.mirror.doneBytes ?? 0) > MIB,
    );
    lab.kernel.track('requested');
    await lab.kernel.write(0, MIB, Buffer.alloc(MIB, 'x'));
    await until('the loss', () => lab.stream.state().mode.mode === 'tracking');
    lab.proxy.bytesPerSec = null;
    await lab.settled();
    t.same(await lab.differences(), []);
  },
);

t.test('one disk is compared at a wish, which a restart does not forget', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB, 4 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  await lab.settled();
  const { epoch } = lab.stream;
  const mirror = (disk: number) => lab.stream.state().disks[disk]!.mirror;

  // Somebody wrote to the replica behind the stream's back, on both disks.
  const hurt = async () => {
    for (const disk of [0, 1]) {
      const file = await open(lab.replicaPath(disk), 'r+');
      await file.write(Buffer.alloc(4096, 'e'), 0, 4096, MIB);
      await file.close();
    }
  };
  await hurt();
  await t.rejects(lab.stream.mirrorDisk('none', 'x'), { code: 'UND_NOT_FOUND' });
  // Where it was hurt nothing is written: that would heal it.
  await lab.kernel.write(1, 2 * MIB, Buffer.alloc(65_536, 'w'));
  await lab.stream.mirrorDisk('disk-1', 'a person asked for it');
  t.notOk(lab.stream.state().consistent, 'no point until it is done');
  await until('the comparison', () => mirror(1).state === 'done');
  await lab.settled();
  t.match(mirror(1), { kind: 'difference', reason: 'a person asked for it' });
  t.match(mirror(0), { kind: 'full' }, 'the other disk was left alone');
  t.same((await lab.differences()).length, 1, 'and still differs');
  t.equal(lab.stream.epoch, epoch, 'no new epoch');

  await lab.agent!.kill();
  await lab.stream.mirrorDisk('disk-0', 'a second wish');
  await lab.restartAppliance();
  t.match(mirror(0), { state: 'needed', reason: 'a second wish' });
  lab.startAgent();
  await lab.settled();
  t.same(await lab.differences(), []);
  t.equal(lab.stream.epoch, epoch);
});

// Red when the figure is 0 where it is not known.
t.test('lag in data: as told, with its time, and unknown after a restart', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB]).start();
  t.match(lab.stream.state(), { lagBytes: null, lagBytesAtMs: null });
  lab.startAgent();
  await lab.settled();
  await lab.stream.stopIntake('a test');
  await lab.kernel.write(0, MIB, Buffer.alloc(MIB, 'l'));
  await until('the lag', () => (lab.stream.state().lagBytes ?? 0) >= MIB);
  await lab.agent!.kill();
  const { lagBytes, lagBytesAtMs, newestPointMs } = lab.stream.state();
  t.ok((lagBytes ?? 0) >= MIB, 'what was last said stays');
  t.ok(lagBytesAtMs !== null && lagBytesAtMs <= Date.now());
  await lab.restartAppliance();
  t.match(lab.stream.state(), { lagBytes: null, lagMs: null, newestPointMs });
  t.ok(newestPointMs, 'the point that the replica holds is still known');
  lab.kernel.track('requested');
  await lab.kernel.write(0, 2 * MIB, Buffer.alloc(2 * MIB, 'm'));
  await lab.stream.stopIntake('a test');
  lab.startAgent();
  await until('dirty blocks to count', () => (lab.stream.state().lagBytes ?? 0) >= 3 * MIB);
  lab.stream.startIntake();
  await lab.settled();
  t.same(await lab.differences(), []);
});

// Red when a gap is passed over, or ends the job.
t.test('a gap ends the connection, and the stream goes on from what is durable', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB]).start();
  lab.startAgent();
  await lab.settled();
  const before = lab.stream.state().durableSeq;
  const { epoch } = lab.stream;
  const restore = lab.server.dropFrames(1);
  await lab.kernel.write(0, MIB, Buffer.alloc(64 * 1024, 'g'));
  await until('the gap', () => lab.server.errors.some(({ code }) => code === 'UND_FRAME_GAP'));
  restore();
  await until('the stream to go on', () => lab.stream.state().durableSeq > before);
  await lab.settled();
  t.same(await lab.differences(), []);
  t.equal(lab.stream.epoch, epoch, 'the same frames were sent again');
});

// Red when the new boot is taken for the old one: what was written between would be missing.
t.test('a source that dies and starts again during the first mirror', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 8 * MIB]).start();
  lab.proxy.bytesPerSec = 6 * MIB;
  lab.startAgent();
  lab.startWorkload();
  await until(
    'the mirror to run',
    () => (lab.stream.state().disks[0]?.mirror.doneBytes ?? 0) > 2 * MIB,
  );
  await lab.agent!.kill();
  await lab.stopWorkload();
  await until('the loss to be seen', () => lab.stream.state().phase.name === 'waiting-for-agent');
  t.match(
    lab.stream.state(),
    { consistent: false, newestPointMs: null },
    'nothing to fail over to',
  );
  lab.kernel.reboot();
  // Written during the boot, before the capture is there.
  await lab.kernel.write(0, 512, Buffer.alloc(MIB, 'b'));
  await lab.kernel.write(1, 512, Buffer.alloc(MIB, 'c'));
  lab.startAgent();
  await until('a new epoch', () => lab.stream.epoch === 2);
  lab.startWorkload();
  // The epoch's first frame says so.
  await until('the reason to be told', () => {
    const { phase } = lab.stream.state();
    return phase.name === 'mirroring' && phase.reason === 'the source server was restarted';
  });
  t.notOk(lab.stream.state().consistent);
  lab.proxy.bytesPerSec = null;
  await until('the mirrors', () => lab.stream.state().consistent, 60_000);
  await lab.stopWorkload();
  await lab.settled();
  t.same(await lab.differences(), []);
  for (const { mirror } of lab.stream.state().disks) t.equal(mirror.kind, 'difference');
});
