/** The stream with the real capture, on loop devices: the agent is a process, and is killed. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { openBlockReader } from '../../agent/capture/capture.ts';
import { directWrite, MIB, mixedWorkload, run, runAside, unable } from './capture.lab.ts';
import { LiveLab } from './live.lab.ts';
import { until } from './stream.lab.ts';

const skip = unable();
t.setTimeout(600_000);

t.before(() => {
  if (!skip) run('scripts/build-capture');
});

/**
 * Replays the file system's journal and checks it. Not read-only: an unmounted file system can still be held by another
 * mount namespace of the machine, and is then not closed.
 */
const fsck = (path: string): boolean => {
  const { status, stdout } = spawnSync('e2fsck', ['-fp', path], { encoding: 'utf8' });
  if (status !== 0 && status !== 1) console.error(`# ${stdout}`);
  return status === 0 || status === 1;
};

const none = (lab: LiveLab) => lab.disks.map(() => undefined);

t.test(
  'a mounted file system in use: mirror and replication give the disk',
  { skip },
  async (t) => {
    const live = await new LiveLab(t, [128, 64]).start();
    const [first, second] = live.disks as [(typeof live.disks)[0], (typeof live.disks)[0]];
    await runAside('mkfs.ext4', '-q', '-F', first.dev);
    const mountpoint = live.lab.mount(first.dev);
    fs.writeFileSync(join(mountpoint, 'before'), Buffer.alloc(9 * MIB, 'before '));
    live.startAgent();
    await until('the mirror to begin', () => live.stream.state().durableSeq > 2);
    await mixedWorkload(live.lab, second.dev, second.sizeBytes, 7);
    for (let file = 0; file < 40; file++) {
      fs.writeFileSync(
        join(mountpoint, `during-${file % 13}`),
        Buffer.alloc(200_000 + file, `${file} `),
      );
      if (file % 5 === 0) await runAside('sync', '-f', mountpoint);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    await until('the mirror to be done', () => live.stream.state().consistent);
    await runAside('umount', mountpoint);
    await live.settled();
    t.same(await live.differences(), none(live));
    t.ok(fsck(first.replica), 'a sound file system');
    t.equal(live.stream.epoch, 1);
    t.equal(live.stream.state().mode.mode, 'ordered');
  },
);

t.test(
  'free blocks of a mounted ext4 are not read, and nothing is missed for it',
  { skip },
  async (t) => {
    const live = await new LiveLab(t, [192]).start();
    const [disk] = live.disks as [(typeof live.disks)[0]];
    await runAside('mkfs.ext4', '-q', '-F', disk.dev);
    const mountpoint = live.lab.mount(disk.dev);
    const content = (file: number) => Buffer.alloc(700_000 + file * 4099, `${file} `);
    fs.writeFileSync(join(mountpoint, 'deleted'), Buffer.alloc(60 * MIB, 'waste'));
    for (let file = 0; file < 10; file++)
      fs.writeFileSync(join(mountpoint, `${file}`), content(file));
    run('sync', '-f', mountpoint);
    fs.rmSync(join(mountpoint, 'deleted'));
    // Not yet on the disk when the mirror begins: allocated by the freeze at the latest.
    for (let file = 10; file < 20; file++)
      fs.writeFileSync(join(mountpoint, `${file}`), content(file));
    live.proxy.bytesPerSec = 24 * MIB;
    live.startAgent('skip');
    await until(
      'the mirror to begin',
      () => live.stream.state().disks[0]!.mirror.state === 'running',
    );
    for (let file = 20; file < 60; file++) {
      fs.writeFileSync(join(mountpoint, `${file}`), content(file % 30));
      if (file % 3 === 0) fs.rmSync(join(mountpoint, `${file - 20}`));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await until('the mirror to be done', () => live.stream.state().consistent);
    const { mirror } = live.stream.state().disks[0]!;
    t.ok(mirror.skippedBytes > 100 * MIB, `${mirror.skippedBytes} bytes were left out`);
    const names = fs.readdirSync(mountpoint).sort();
    await runAside('umount', mountpoint);
    await live.settled();
    t.not((await live.differences())[0], undefined, 'the deleted file is not on the replica');
    t.ok(fsck(disk.replica), 'a sound file system');
    const copy = live.lab.mount(disk.replica, '-o', 'ro,loop');
    t.same(fs.readdirSync(copy).sort(), names);
    const wrong = names.filter((name) => {
      const number = Number(name);
      if (Number.isNaN(number)) return false;
      const want = content(number >= 20 ? number % 30 : number);
      return !fs.readFileSync(join(copy, name)).equals(want);
    });
    t.same(wrong, [], 'every file is what it was');
    await runAside('umount', copy);
  },
);

t.test('kill -9 of the agent mid-mirror and mid-stream loses nothing', { skip }, async (t) => {
  const live = await new LiveLab(t, [96]).start();
  const [disk] = live.disks as [(typeof live.disks)[0]];
  live.proxy.bytesPerSec = 20 * MIB;
  live.startAgent();
  const workload = mixedWorkload(live.lab, disk.dev, disk.sizeBytes, 11);
  for (let kill = 0; kill < 3; kill++) {
    const from = live.stream.state().durableSeq;
    await until('frames to be durable', () => live.stream.state().durableSeq > from + 5);
    await live.stopAgent('SIGKILL');
    live.startAgent();
  }
  live.proxy.bytesPerSec = null;
  await workload;
  await until('the mirror to be done', () => live.stream.state().consistent, 60_000);
  await live.settled();
  t.same(await live.differences(), none(live));
  t.equal(live.stream.epoch, 1, 'the pinned capture was adopted each time');
});

t.test(
  'a real overflow: tracking, a drain or a comparison, identical again',
  { skip },
  async (t) => {
    const live = await new LiveLab(t, [96]).start(MIB);
    const [disk] = live.disks as [(typeof live.disks)[0]];
    live.startAgent();
    await until('the first mirror', () => live.stream.state().phase.name === 'protected');
    live.proxy.stalled = true;
    // More than the ring and everything on the way take.
    await runAside(
      'dd',
      'if=/dev/urandom',
      `of=${disk.dev}`,
      'bs=1M',
      'count=40',
      'oflag=direct',
      'conv=notrunc',
    );
    live.proxy.stalled = false;
    await until('the loss to be known', () => live.stream.state().mode.mode !== 'ordered', 60_000);
    await until(
      'order to be held again',
      () => live.stream.state().mode.mode === 'ordered',
      60_000,
    );
    await live.settled();
    t.same(await live.differences(), none(live));
    t.match(live.stream.state().disks[0]!.mirror, { kind: 'drain', reason: /overflow/ });
  },
);

// Seen red with more than half of the disk for a mirror: it was a difference mirror of the whole disk. Without the maps
// of free blocks nothing is skipped.
t.test('a trim of most of the disk while order is lost costs a drain', { skip }, async (t) => {
  const live = await new LiveLab(t, [3072]).start(MIB);
  const [disk] = live.disks as [(typeof live.disks)[0]];
  await runAside('mkfs.ext4', '-q', '-F', disk.dev);
  const mountpoint = live.lab.mount(disk.dev);
  const write = (name: string, mib: number) => {
    fs.writeFileSync(join(mountpoint, name), Buffer.alloc(mib * MIB, `${name} `));
    return runAside('sync', '-f', mountpoint);
  };
  await write('deleted', 30);
  live.startAgent('skip');
  await until('the first mirror', () => live.stream.state().phase.name === 'protected', 60_000);
  live.proxy.stalled = true;
  for (const name of ['one', 'two', 'three']) await write(name, 12);
  fs.rmSync(join(mountpoint, 'deleted'));
  await runAside('sync', '-f', mountpoint);
  await runAside('fstrim', mountpoint);
  live.proxy.stalled = false;
  await until('the loss to be known', () => live.stream.state().mode.mode !== 'ordered', 60_000);
  await until('order again', () => live.stream.state().mode.mode === 'ordered', 60_000);
  const { mirror } = live.stream.state().disks[0]!;
  t.match(mirror, { kind: 'drain', reason: /overflow/ });
  t.ok(mirror!.skippedBytes > 2048 * MIB, `${mirror!.skippedBytes / MIB} MiB were left out`);
  await write('four', 3);
  await runAside('umount', mountpoint);
  await live.settled();
  t.ok(fsck(disk.replica), 'a sound file system');
  const copy = live.lab.mount(disk.replica, '-o', 'ro,loop');
  for (const [name, mib] of [
    ['one', 12],
    ['two', 12],
    ['three', 12],
    ['four', 3],
  ] as const) {
    t.ok(fs.readFileSync(join(copy, name)).equals(Buffer.alloc(mib * MIB, `${name} `)), name);
  }
  t.notOk(fs.existsSync(join(copy, 'deleted')));
  await runAside('umount', copy);
});

t.test('blocks are read past the page cache', { skip }, async (t) => {
  const live = await new LiveLab(t, [16]).start();
  const reader = await openBlockReader(live.disks[0]!.dev);
  t.teardown(() => reader.close());
  const { data, zero } = await reader.read(0, MIB);
  t.equal(data.length, MIB);
  t.equal(zero, false);
});

t.test(
  'another ring: the disks are compared, and the agent says what it takes',
  { skip },
  async (t) => {
    const live = await new LiveLab(t, [32]).start(16 * MIB);
    const [disk] = live.disks as [(typeof live.disks)[0]];
    live.startAgent();
    await until('the first mirror', () => live.stream.state().phase.name === 'protected');
    await until('the agent to say what it takes', () => live.stream.state().agent !== null);
    const before = live.stream.state().agent!;
    t.equal(before.ringBytes, 16 * MIB);
    t.ok(before.agentRssBytes > 10 * MIB, 'its memory');
    t.ok(before.helperRssBytes > 0 && before.helperRssBytes < 64 * MIB, 'without the mapped ring');
    await directWrite(disk.dev, 4 * MIB, MIB);
    live.stream.configure({
      compression: 'none',
      bandwidthLimitBytesPerSec: null,
      ringBytes: 32 * MIB,
    });
    // Seen red with the ring left out of what makes two captures the same.
    await until('the other ring', () => live.stream.state().agent?.ringBytes === 32 * MIB);
    await until('order', () => live.stream.state().consistent);
    t.equal(live.stream.epoch, 2);
    await live.settled();
    t.same(await live.differences(), none(live));
    t.match(live.stream.state().disks[0]!.mirror, { kind: 'difference' });
  },
);

t.test(
  'verification of a mounted file system in use: nothing false, what is spoilt is repaired',
  { skip },
  async (t) => {
    const live = await new LiveLab(t, [96]).start();
    const [disk] = live.disks as [(typeof live.disks)[0]];
    await runAside('mkfs.ext4', '-q', '-F', disk.dev);
    const mountpoint = live.lab.mount(disk.dev);
    fs.writeFileSync(join(mountpoint, 'deleted'), Buffer.alloc(30 * MIB, 'waste'));
    fs.writeFileSync(join(mountpoint, 'kept'), Buffer.alloc(5 * MIB, 'kept '));
    run('sync', '-f', mountpoint);
    fs.rmSync(join(mountpoint, 'deleted'));
    live.startAgent('skip');
    await until('the first mirror', () => live.stream.state().phase.name === 'protected');
    const last = () => live.stream.state().disks[0]!.verification;
    const verified = async () => {
      await live.stream.verifyDisks();
      for (let file = 0; last()?.asked; file++) {
        fs.writeFileSync(join(mountpoint, `${file % 9}`), Buffer.alloc(90_000 + file, `${file} `));
        if (file % 3 === 0) await runAside('sync', '-f', mountpoint);
        await new Promise((resolve) => setTimeout(resolve, 10));
        if (file > 6000) throw new Error(JSON.stringify(live.stream.state()));
      }
    };
    await verified();
    // Seen red with free blocks compared: what was deleted before the mirror differs, and nobody misses it.
    t.match(last()!.last, { mismatches: 0 });
    t.ok(last()!.last!.comparedBytes < 90 * MIB, 'free blocks were left out');
    const replica = fs.readFileSync(disk.replica);
    const kept = replica.indexOf(Buffer.alloc(64 * 1024, 'kept '));
    const at = Math.ceil(kept / 4096) * 4096 + 8192;
    fs.closeSync(
      ((fd) => {
        fs.writeSync(fd, Buffer.alloc(100, 0x5a), 0, 100, at + 1000);
        return fd;
      })(fs.openSync(disk.replica, 'r+')),
    );
    await verified();
    t.match(last()!.last, { mismatches: 1, repaired: 1 });
    await runAside('umount', mountpoint);
    await live.settled();
    t.ok(fsck(disk.replica), 'a sound file system');
    const copy = live.lab.mount(disk.replica, '-o', 'ro,loop');
    const want = Buffer.alloc(5 * MIB, 'kept ');
    t.ok(fs.readFileSync(join(copy, 'kept')).equals(want), 'the file is whole again');
    await runAside('umount', copy);
  },
);

// Seen red with the cache kept.
t.test('verification reads the disk, not what the appliance remembers', { skip }, async (t) => {
  const live = await new LiveLab(t, [8]).start();
  const replica = live.lab.disk(8, { random: false });
  await live.stream.reopenDisks(new Map([['disk-0', replica.dev]]));
  live.startAgent();
  await until('the first mirror', () => live.stream.state().phase.name === 'protected');
  await live.stream.drainApply();
  // The device's pages are in the page cache, and clean; below it the medium changes.
  fs.readFileSync(replica.dev);
  const fd = fs.openSync(replica.file, 'r+');
  fs.writeSync(fd, Buffer.alloc(4096, 0x5a), 0, 4096, 2 * MIB);
  fs.closeSync(fd);
  await live.stream.verifyDisks();
  const last = () => live.stream.state().disks[0]!.verification;
  await until('the verification', () => last()?.asked === null);
  t.match(last()!.last, { mismatches: 1, repaired: 1 });
  await live.settled();
  const want = fs.readFileSync(live.disks[0]!.file);
  t.ok(fs.readFileSync(replica.dev).equals(want));
});
