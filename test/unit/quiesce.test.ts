/** Which file systems are frozen in which order, which hooks run, and clock marks of a stream that lags. */
import { mkdtempSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type BlockFacts, freezeOrder, parseMountinfo } from '../../agent/quiesce/freeze-order.ts';
import { chooseHooks } from '../../agent/quiesce/hooks.ts';
import { PointTaker } from '../../agent/quiesce/point-taker.ts';
import { FrameKeeper } from '../integration/quiesce.lab.ts';
import { MIB, ScriptedKernel, until } from '../integration/stream.lab.ts';

/** sda: boot partition and an LVM of root and srv; sdb and sdc: a RAID1 with /data; sdd: not protected. */
const MOUNTINFO = `
22 28 0:20 / /sys rw,nosuid - sysfs sysfs rw
28 1 254:0 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw,errors=remount-ro
30 28 8:1 / /boot rw,relatime shared:2 - ext4 /dev/sda1 rw
31 30 8:2 / /boot/efi rw,relatime - vfat /dev/sda2 rw,fmask=0077
32 28 254:1 / /srv rw - xfs /dev/mapper/vg-srv rw
33 32 7:0 / /srv/with\\040space rw - ext4 /dev/loop0 rw
34 33 7:1 / /srv/deep rw - ext4 /dev/loop1 rw
35 28 9:0 / /data rw - ext4 /dev/md0 rw
36 28 8:48 / /scratch rw - ext4 /dev/sdd rw
37 36 7:2 / /scratch/img rw - ext4 /dev/loop2 rw
38 28 254:1 /www /var/www rw - xfs /dev/mapper/vg-srv rw
39 28 0:44 /@home /home rw - btrfs /dev/sdc1 rw,subvolid=256
40 28 8:35 / /cd ro - iso9660 /dev/sdc3 ro
41 28 0:45 / /net rw - nfs server:/x rw
`;
const FACTS: BlockFacts = {
  below: new Map([
    ['8:1', ['8:0']],
    ['8:2', ['8:0']],
    ['8:3', ['8:0']],
    ['254:0', ['8:3']],
    // An LVM volume over two disks, one of them not protected: its file system counts.
    ['254:1', ['8:3', '8:48']],
    ['9:0', ['8:16', '8:32']],
    ['8:33', ['8:32']],
    ['8:35', ['8:32']],
  ]),
  loopFiles: new Map([
    ['7:0', '/srv/images/a.img'],
    ['7:1', '/srv/with space/b.img'],
    ['7:2', '/scratch/c.img'],
  ]),
  sourceDevs: new Map([['/dev/sdc1', '8:33']]),
};
const order = (...disks: string[]) =>
  freezeOrder(parseMountinfo(MOUNTINFO), new Set(disks), FACTS).map(({ mountPoint }) => mountPoint);

t.test('what rests on the disks, each file system once, the root last', async (t) => {
  t.same(order('8:0'), ['/boot/efi', '/srv/deep', '/srv/with space', '/boot', '/srv', '/']);
  t.same(order('8:16'), ['/data'], 'half of a RAID');
  t.same(order('8:32'), ['/data', '/home'], 'btrfs by its source; nothing that is read-only');
  t.same(order('8:48'), ['/scratch/img', '/srv/deep', '/srv/with space', '/scratch', '/srv']);
  t.same(order('8:64'), []);
});

// Seen red with the sort by mount point alone: `/a` was frozen before `/longer`, whose file it holds.
t.test('a file system never comes after the one that holds its file', async (t) => {
  const mounts = parseMountinfo(`
1 0 8:0 / / rw - ext4 /dev/sda rw
2 1 7:0 / /a rw - ext4 /dev/loop0 rw
3 1 7:1 / /longer rw - ext4 /dev/loop1 rw
`);
  const facts: BlockFacts = {
    below: new Map(),
    loopFiles: new Map([
      ['7:0', '/longer/x'],
      ['7:1', '/x'],
    ]),
    sourceDevs: new Map(),
  };
  const points = freezeOrder(mounts, new Set(['8:0']), facts);
  t.same(
    points.map(({ mountPoint }) => mountPoint),
    ['/a', '/longer', '/'],
  );
});

t.test('hooks: ready ones unless the user has one of that name', async (t) => {
  const ready = [
    { name: '50-postgresql', path: '/usr/50-postgresql', auto: true },
    { name: '60-mysql', path: '/usr/60-mysql', auto: false },
  ];
  const user = (name: string, executable = true, refused: string | null = null) => ({
    name,
    path: `/etc/${name}`,
    executable,
    refused,
  });
  const paths = (users: ReturnType<typeof user>[]) =>
    chooseHooks(ready, users).map(({ path }) => path);
  t.same(paths([]), ['/usr/50-postgresql']);
  t.same(paths([user('60-mysql'), user('10-mine.sh')]), [
    '/etc/10-mine.sh',
    '/usr/50-postgresql',
    '/etc/60-mysql',
  ]);
  t.same(paths([user('50-postgresql', false)]), [], 'one that cannot be run switches it off');
  t.same(paths([user('50-postgresql')]), ['/etc/50-postgresql']);
  t.same(paths([user('20-x~'), user('.swp'), user('20-x.dpkg-old'), user('README', false)]), [
    '/usr/50-postgresql',
  ]);
  t.same(
    chooseHooks([], [user('1', true, 'others may write to it')])[0]?.refused,
    'others may write to it',
  );
});

// Seen red with frames closed by size and time only: one mark for the ten seconds.
t.test(
  'a point for a moment to come is marked then, behind its hooks and before its freeze',
  async (t) => {
    for (const quiesced of [false, true]) {
      const said: string[] = [];
      let markedMs = 0;
      const taker: PointTaker = new PointTaker({
        jobName: 'web1',
        devicePaths: () => [],
        putMark: async () => {
          markedMs = Date.now();
          setImmediate(() => taker.at(7n, true, () => 41));
          return 7n;
        },
        quiesce: async (request) => {
          said.push('hooks');
          await request.ready?.();
          said.push('freeze');
          await request.mark();
          const rest = { freezeMs: 1, fileSystems: [], hooks: [] };
          request.marked({ quiesced: true, reason: null, ...rest });
          return [];
        },
      });
      const atMs = Date.now() + 200;
      const { seq } = await taker.take('p', 'name', quiesced, { atMs });
      t.equal(seq, 41);
      // Red without the wait. A timer may be a millisecond early.
      t.ok(markedMs >= atMs - 2, `marked ${markedMs - atMs} ms behind its moment`);
      t.same(said, quiesced ? ['hooks', 'freeze'] : []);
    }
  },
);

/** A stream of one disk of a scripted kernel, begun. */
async function scripted(t: Test): Promise<{ kernel: ScriptedKernel; kept: FrameKeeper }> {
  const dir = mkdtempSync(join(tmpdir(), 'stream-test-'));
  const kernel = new ScriptedKernel();
  await kernel.addDisk(join(dir, 'disk'), 16 * MIB);
  const kept = new FrameKeeper([{ dev: join(dir, 'disk'), sizeBytes: 16 * MIB }], {
    createCapture: () => kernel.capture(),
    openReader: async (path) => kernel.reader(path),
    pinDir: '',
    runDir: join(dir, 'run'),
  });
  t.teardown(async () => {
    await kept.stream.stop({ unpin: true });
    await kernel.close();
    await rm(dir, { recursive: true, force: true });
  });
  await kept.start();
  return { kernel, kept };
}

t.test('a stream that lags has a clock mark in each second of the source', async (t) => {
  const { kernel, kept } = await scripted(t);
  // Ten seconds of a slow source at once; its clock is ahead of the real one, so no status can help.
  const base = process.hrtime.bigint() + 60_000_000_000n;
  const second = 1_000_000_000n;
  for (let at = 0; at < 100; at++) {
    kernel.put(
      {
        kind: 'write',
        disk: 0,
        offsetBytes: at * 512,
        lengthBytes: 512,
        data: Buffer.alloc(512, at),
        bootNs: base + (BigInt(at) * second) / 10n,
        pos: BigInt(kernel.producerPos),
      },
      576,
    );
  }
  const written = () =>
    kept.frames.reduce(
      (sum, { extents }) => sum + extents.reduce((n, e) => n + e.lengthBytes, 0),
      0,
    );
  await until('all of it to come', () => written() === 100 * 512);
  const marks = kept.frames
    .filter(({ mark, header }) => mark?.type === 'tick' && header.bootTimeNs >= base)
    .map(({ header }) => header.bootTimeNs - base);
  t.ok(marks.length >= 10, `${marks.length} marks`);
  for (let n = 0n; n < 10n; n++) {
    t.ok(
      marks.some((mark) => mark >= n * second && mark < (n + 1n) * second),
      `second ${n}`,
    );
  }
});

// Red without the cut when a frame happens to go on to its timer or the next clock mark; framing.test sees it always.
t.test('no frame goes over the end of a second of the source', async (t) => {
  const { kernel, kept } = await scripted(t);
  const second = 1_000_000_000n;
  // Every 20 ms, and never within 10 ms of a second's end: the two clocks are read one after the other, here and there. From
  // 0.3 s on, so that a second's end lies between two clock marks.
  const wallOffset = BigInt(Date.now()) * 1_000_000n - process.hrtime.bigint();
  const base = (BigInt(Date.now() + 60_000) / 1000n) * second + (second * 31n) / 100n - wallOffset;
  for (let at = 0; at < 200; at++) {
    kernel.put(
      {
        // Apart: neighbours of one batch would become one extent.
        ...{ kind: 'write', disk: 0, offsetBytes: at * 1024, lengthBytes: 512 },
        ...{ data: Buffer.alloc(512, at), pos: BigInt(kernel.producerPos) },
        bootNs: base + (BigInt(at) * second) / 50n,
      },
      576,
    );
  }
  const count = () => kept.frames.reduce((sum, { extents }) => sum + extents.length, 0);
  await until('all of it to come', () => count() === 200);
  for (const { extents } of kept.frames) {
    const seconds = new Set(
      extents.map(({ offsetBytes }) => Math.floor((offsetBytes / 1024 + 15) / 50)),
    );
    t.ok(seconds.size <= 1, `seconds ${[...seconds]}`);
  }
});
