/** A planned restart of the source that is carried over: the stream goes on with a drain, and never when it must not. */
import { access, cp, mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type { Carried } from '../../agent/restart/carried.ts';
import { MIB, StreamLab, until } from './stream.lab.ts';

t.setTimeout(600_000);

const noteOf = (lab: StreamLab) => join(lab.dir, 'run', 'carried.json');

/** The source goes down with writes that are not acknowledged, and is written to before its agent is back. */
async function restart(lab: StreamLab, change: (carried: Carried) => void = () => {}) {
  await lab.stopWorkload();
  lab.proxy.stalled = true;
  for (let at = 0; at < 30; at++) {
    await lab.kernel.write(at % 2, at * 65_536, Buffer.alloc(65_536, at + 1));
  }
  await lab.agent!.kill();
  await lab.kernel.write(0, 3 * MIB, Buffer.alloc(8192, 'e'));
  const carried = lab.kernel.rebootCarried();
  change(carried);
  await writeFile(noteOf(lab), JSON.stringify(carried));
  await lab.kernel.write(1, 5 * MIB, Buffer.alloc(8192, 'f'));
  lab.proxy.stalled = false;
}

const kinds = (lab: StreamLab) => lab.stream.state().disks.map(({ mirror }) => mirror.kind);

/** Whole again, and the same as the source. */
async function whole(t: Test, lab: StreamLab): Promise<void> {
  await lab.until('the replica to be whole', () => lab.stream.state().consistent);
  await lab.stopWorkload();
  await lab.settled();
  t.same(await lab.differences(), []);
}

t.test('what changed is drained, and all of it is verified behind that', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 16 * MIB]).start();
  lab.startAgent();
  lab.startWorkload();
  await until('the first mirror', () => lab.stream.state().consistent);
  await restart(lab);
  lab.startWorkload(20, 16);
  lab.startAgent();
  await until('a new epoch', () => lab.stream.epoch === 2);
  await until('its first frame', () => !lab.stream.state().consistent);
  const lagMs = () => lab.stream.state().lagMs;
  await until('the lag to be known', () => lagMs() !== null);
  t.ok(lagMs()! < 60_000, `lag ${lagMs()} ms: not by the clock of the boot before`);
  await whole(t, lab);
  t.same(kinds(lab), ['drain', 'drain']);
  for (const { mirror, sizeBytes } of lab.stream.state().disks) {
    t.equal(mirror.reason, 'the source server was restarted');
    t.ok(mirror.totalBytes < sizeBytes, `${mirror.totalBytes} bytes were dirty`);
  }
  await until('the verification', () =>
    lab.stream.state().disks.every(({ verification }) => verification?.last),
  );
  for (const { verification } of lab.stream.state().disks) {
    t.match(verification, { asked: null, last: { mismatches: 0 } });
  }
  await until('the note to be gone', () =>
    access(noteOf(lab)).then(
      () => false,
      () => true,
    ),
  );
});

t.test('a disk that cannot be vouched for is compared, the other is drained', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 16 * MIB]).start();
  lab.startAgent();
  lab.startWorkload();
  await until('the first mirror', () => lab.stream.state().consistent);
  await restart(lab, (carried) => {
    carried.disks['1'] = 'data: its file system was mounted in between';
  });
  // Seen by nobody.
  await lab.kernel.files[1]!.write(Buffer.alloc(4096, 'g'), 0, 4096, 9 * MIB);
  lab.startAgent();
  await until('a new epoch', () => lab.stream.epoch === 2);
  await until('its first frame', () => !lab.stream.state().consistent);
  await whole(t, lab);
  t.same(kinds(lab), ['drain', 'difference']);
});

t.test('a mirror that was under way goes on where it was', async (t) => {
  const lab = await new StreamLab(t, [32 * MIB, 16 * MIB]).start();
  lab.proxy.bytesPerSec = 8 * MIB;
  lab.startAgent();
  const doneBytes = () => lab.stream.state().disks[0]!.mirror.doneBytes;
  await until('a part of the mirror', () => doneBytes() > 6 * MIB);
  await restart(lab);
  const before = doneBytes();
  lab.proxy.bytesPerSec = 2 * MIB;
  lab.startAgent();
  await until('a new epoch', () => lab.stream.epoch === 2);
  await lab.until('order to be held', () => lab.stream.state().mode.mode !== 'tracking');
  t.ok(doneBytes() >= before, `${doneBytes()} of ${before} bytes are still done`);
  lab.proxy.bytesPerSec = null;
  await whole(t, lab);
  t.equal(kinds(lab)[0], 'full');
});

t.test('what was saved is not believed when it does not fit the journal', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 16 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  await lab.settled();

  const differs = async (what: string, reason: RegExp, epoch: number) => {
    lab.startAgent();
    await until(`${what}: a new epoch`, () => lab.stream.epoch === epoch);
    await until('its first frame', () => !lab.stream.state().consistent);
    await whole(t, lab);
    t.same(kinds(lab), ['difference', 'difference'], what);
    for (const { mirror } of lab.stream.state().disks) t.match(mirror.reason, reason, what);
  };

  await restart(lab);
  await writeFile(noteOf(lab), JSON.stringify({ reason: 'nothing was saved' }));
  await differs('early says why', /^the source server was restarted \(nothing was saved\)$/, 2);

  await restart(lab, (carried) => {
    carried.saved.captureId = 'another';
  });
  await differs('another capture', /^the source server was restarted$/, 3);

  await restart(lab, (carried) => {
    carried.saved.releasedPos += MIB * MIB;
  });
  await differs('the journal ends before it', /restarted/, 4);

  await restart(lab, (carried) => {
    carried.captureId = 'a capture of before';
  });
  await differs('another capture was attached', /restarted/, 5);

  await restart(lab);
  await writeFile(noteOf(lab), '{"captureId":');
  await differs('it cannot be read', /restarted \(what was brought over it cannot be read\)/, 6);

  // An appliance that is set back to before what it had acknowledged.
  await lab.stream.stopIntake('copying its state');
  const old = join(lab.dir, 'old');
  await cp(join(lab.dir, 'job'), old, { recursive: true });
  lab.stream.startIntake();
  const from = lab.stream.state().durableSeq;
  lab.startWorkload();
  await until('more to be durable', () => lab.stream.state().durableSeq > from + 20);
  await restart(lab);
  lab.server.stream = undefined;
  await lab.stream.close();
  await rm(join(lab.dir, 'job'), { recursive: true });
  await rename(old, join(lab.dir, 'job'));
  await lab.openStream();
  await differs('set back', /acknowledged/, 7);
});

t.test('what one restart was granted is not another’s', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 16 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  await lab.settled();
  // Granted, but no frame of the epoch becomes durable.
  await lab.stream.stopIntake('paused');
  await restart(lab, (carried) => {
    carried.disks['1'] = 'it was mounted in between';
  });
  await lab.kernel.files[1]!.write(Buffer.alloc(4096, 'g'), 0, 4096, 9 * MIB);
  lab.startAgent();
  await until('the epoch to be granted', () => lab.agent!.configuredEpoch === 2);
  // The next restart vouches for all that it knows of: what was written since the one before.
  await restart(lab);
  lab.startAgent();
  lab.stream.startIntake();
  await until('its first frame', () => !lab.stream.state().consistent);
  await whole(t, lab);
  t.same(kinds(lab), ['difference', 'difference']);
});

t.test('an appliance that was told to begin anew compares all the same', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 16 * MIB]).start();
  await mkdir(join(lab.dir, 'run'), { recursive: true });
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  await lab.settled();
  await restart(lab);
  await lab.stream.restart('a person doubts it');
  lab.startAgent();
  await until('its first frame', () => !lab.stream.state().consistent);
  await whole(t, lab);
  t.equal(lab.stream.epoch, 2);
  t.same(kinds(lab), ['difference', 'difference']);
});
