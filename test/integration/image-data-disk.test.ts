/**
 * What the appliance does with the disks it finds at its first boot, run for real in a mount namespace whose /sys/block
 * shows only loop devices under invented names. Needs root.
 */
import { createHash } from 'node:crypto';
import { mkdtemp, open, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';

t.setTimeout(300_000);

const root = join(import.meta.dirname, '../..');
const system = join(root, 'image/appliance/tree/usr/lib/understudy/system');
const MIB = 1024 ** 2;

await execa('bash', ['-c', '. scripts/lib/env.sh; apt_need gdisk e2fsprogs'], { cwd: root });

type Disk = { name: string; serial?: string; image: string };

async function folder(t: Test): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'data-disk-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function blank(work: string, name: string): Promise<string> {
  const image = join(work, name);
  await writeFile(image, '');
  await truncate(image, 64 * MIB);
  return image;
}

const digest = async (file: string) =>
  createHash('sha256')
    .update(await readFile(file))
    .digest('hex');

/** Runs the data-disk script with these disks; `then` runs afterwards where its mounts are. */
async function boot(disks: Disk[], then = 'true') {
  const setUp = disks
    .map(
      ({ name, serial, image }) => `
loop=$(losetup --find --show ${image}); loops="$loops $loop"
mkdir /sys/block/${name}
cat /sys/class/block/\${loop##*/}/size >/sys/block/${name}/size
${serial ? `echo ${serial} >/sys/block/${name}/serial` : ''}
mknod /dev/${name} b $(stat -c '0x%t 0x%T' $loop)`,
    )
    .join('\n');
  const script = `
set -eu
loops=
trap 'umount -l /var/lib/understudy 2>/dev/null || true; for l in $loops; do losetup -d $l; done' EXIT
mkdir -p /var/lib
mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /var/lib
mount -t tmpfs tmpfs /sys/block
mkdir /run/dev
mount -t tmpfs tmpfs /run/dev
cp -a /dev/loop* /dev/null /dev/zero /dev/urandom /run/dev/
mount --bind /run/dev /dev
${setUp}
# The real one would ask the machine's own udev, which knows nothing of invented names.
mkdir /run/bin; printf '#!/bin/sh\n' >/run/bin/udevadm; chmod 755 /run/bin/udevadm
set +e
PATH=/run/bin:$PATH sh ${system}/data-disk >/run/said 2>&1
echo "status $?"
cat /run/said
[ ! -f /run/understudy/problem ] || echo "problem: $(cat /run/understudy/problem)"
findmnt -nro SOURCE /var/lib/understudy || echo 'not mounted'
${then}
`;
  const { stdout } = await execa(
    'unshare',
    ['--mount', '--propagation', 'private', '--', 'bash', '-c', script],
    { stderr: 'inherit' },
  );
  return stdout;
}

t.test('a blank disk is formatted and mounted, and kept at the next boot', async (t) => {
  const work = await folder(t);
  const image = await blank(work, 'a');
  const first = await boot(
    [{ name: 'tda', image }],
    'echo kept >/var/lib/understudy/file; ls /var/lib/understudy',
  );
  t.match(first, /^status 0\n\/dev\/tda/);
  t.match(first, /host\njournal\n/);
  const second = await boot([{ name: 'tda', image }], 'cat /var/lib/understudy/file');
  t.match(second, /^status 0\n\/dev\/tda\nkept$/);
});

t.test('an enlarged disk is used in full', async (t) => {
  const work = await folder(t);
  const image = await blank(work, 'a');
  await boot([{ name: 'tda', image }]);
  await truncate(image, 128 * MIB);
  const out = await boot(
    [{ name: 'tda', image }],
    'df --output=size -m /var/lib/understudy | tail -1',
  );
  t.ok(Number(out.trim().split('\n').at(-1)) > 100, out);
});

const refused: [string, (image: string) => Promise<void>][] = [
  [
    'a file system',
    async (image) => void (await execa('mkfs.ext4', ['-q', '-F', '-L', 'precious', image])),
  ],
  ['a partition table', async (image) => void (await execa('sgdisk', ['--new=1:1M:8M', image]))],
  ['bytes that no one knows, at its beginning', (image) => poke(image, 3 * MIB)],
  ['bytes that no one knows, at its end', (image) => poke(image, 64 * MIB - 512)],
  [
    'an ext4 of an appliance under another label',
    async (image) => void (await execa('mkfs.ext4', ['-q', '-F', '-L', 'understudy-dat', image])),
  ],
];

async function poke(image: string, offset: number) {
  const handle = await open(image, 'r+');
  await handle.write(Buffer.from('precious'), 0, 8, offset);
  await handle.close();
}

for (const [what, fill] of refused) {
  t.test(`a disk with ${what} is refused and left as it is`, async (t) => {
    const image = await blank(await folder(t), 'a');
    await fill(image);
    const before = await digest(image);
    const out = await boot([{ name: 'tda', image }]);
    t.match(out, /^status 1\nUND_DATA_DISK: .*not empty/);
    t.match(out, /problem: the disk \/dev\/tda is not empty/);
    t.match(out, /not mounted/);
    t.equal(await digest(image), before);
  });
}

t.test('of two unnamed disks neither is touched', async (t) => {
  const work = await folder(t);
  const [a, b] = [await blank(work, 'a'), await blank(work, 'b')];
  const out = await boot([
    { name: 'tda', image: a },
    { name: 'tdb', image: b },
  ]);
  t.match(out, /which of the disks tda tdb is the data disk/);
  t.match(out, /not mounted/);
});

t.test('the named disk is taken, wherever it is', async (t) => {
  const work = await folder(t);
  const [a, b] = [await blank(work, 'a'), await blank(work, 'b')];
  const before = await digest(a);
  const out = await boot([
    { name: 'tda', image: a },
    { name: 'tdb', serial: 'understudy-data', image: b },
  ]);
  t.match(out, /^status 0\n\/dev\/tdb/);
  t.equal(await digest(a), before);
});

t.test('a replica disk never counts, even if it holds a data disk of an appliance', async (t) => {
  const work = await folder(t);
  const [replica, own] = [await blank(work, 'r'), await blank(work, 'o')];
  await execa('mkfs.ext4', ['-q', '-F', '-L', 'understudy-data', replica]);
  const before = await digest(replica);
  const out = await boot([
    { name: 'sdx', serial: 'u0123456789abcdef012', image: replica },
    { name: 'tdb', image: own },
  ]);
  t.match(out, /^status 0\n\/dev\/tdb/);
  t.equal(await digest(replica), before);
});
