/**
 * Guest preparation on real block devices: a Debian-like guest on two disks, made with Debian's own tools, is prepared
 * in the real isolated process, and what it did is read back from outside with debugfs and mtools. Needs root.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { gzipSync } from 'node:zlib';
import t from 'tap';
import {
  S_IFDIR,
  S_IFLNK,
  S_IFREG,
  writeCpio,
} from '../../appliance/recovery/prepare-guest/cpio.ts';
import { createGuestPreparer } from '../../appliance/recovery/prepare-guest/index.ts';
import { modulesIn, readInitramfs } from '../../appliance/recovery/prepare-guest/initramfs.ts';
import type { PrepareReport, PrepareRequest } from '../../appliance/recovery/types.ts';

const ROOT = join(import.meta.dirname, '../..');
const WORKER = join(ROOT, 'appliance/recovery/prepare-guest/worker-main.ts');
const KERNEL = '6.1.0-test-amd64';
const OLD_MAC = '52:54:00:00:00:01';
const NEW_MAC = '52:54:00:ab:cd:ef';
const STAMP = '20260102T030405Z';
const MIB = 1024 * 1024;
const ESP = 2;
const BOOT = 18;
const SYSTEM = 50;
const SWAP = 114;
/** On a busy machine mke2fs alone may take long. */
const PATIENT = { timeout: 300_000 };
t.setTimeout(900_000);
const SECRET = 'this belongs to the appliance\n';

const work = mkdtempSync('/var/tmp/understudy-prepare-');
const loops: string[] = [];
const children: ChildProcess[] = [];
t.teardown(() => {
  for (const child of children) child.kill('SIGKILL');
  for (const loop of loops) spawnSync('losetup', ['-d', loop]);
  rmSync(work, { recursive: true, force: true });
});

const sh = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

function attach(file: string): string {
  const loop = sh('losetup', '--find', '--show', file).trim();
  loops.push(loop);
  return loop;
}

function release(loop: string): void {
  sh('losetup', '-d', loop);
  loops.splice(loops.indexOf(loop), 1);
}

function put(tree: string, path: string, text: string | Buffer, mode = 0o644): void {
  const file = join(tree, path);
  mkdirSync(join(file, '..'), { recursive: true });
  writeFileSync(file, text, { mode });
}

const DEP = [
  'kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio.ko',
  'kernel/drivers/virtio/virtio.ko:',
  'kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/scsi/scsi_mod.ko kernel/drivers/virtio/virtio.ko',
  'kernel/drivers/scsi/scsi_mod.ko:',
  'kernel/drivers/scsi/sd_mod.ko: kernel/drivers/scsi/scsi_mod.ko',
  'kernel/drivers/net/virtio_net.ko: kernel/drivers/virtio/virtio.ko',
  '',
].join('\n');

function initramfs(): Buffer {
  const folder = `usr/lib/modules/${KERNEL}`;
  const file = (name: string, text: string) => ({
    name,
    mode: S_IFREG | 0o644,
    data: Buffer.from(text),
  });
  return gzipSync(
    writeCpio([
      file('init', '#!/bin/sh\n'),
      { name: 'lib', mode: S_IFLNK | 0o777, data: Buffer.from('usr/lib') },
      { name: 'scripts', mode: S_IFDIR | 0o755 },
      file('scripts/functions', ''),
      { name: 'conf', mode: S_IFDIR | 0o755 },
      file('conf/modules', 'virtio_pci\nvirtio_blk\n'),
      { name: folder, mode: S_IFDIR | 0o755 },
      file(`${folder}/modules.dep`, DEP.split('\n').slice(0, 2).join('\n')),
      file(`${folder}/virtio_pci.ko`, 'x'),
      file(`${folder}/virtio.ko`, 'x'),
    ]),
  );
}

/** The guest's system disk: ESP, /boot, /, swap; and a second disk without a partition table. */
function makeGuest(change: (tree: string) => void = () => {}): { system: string; data: string } {
  const folder = mkdtempSync(join(work, 'guest-'));
  const tree = join(folder, 'tree');
  const boot = join(folder, 'boot');
  const initrd = initramfs();
  put(
    tree,
    'usr/lib/os-release',
    'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (made for a test)"\n',
  );
  mkdirSync(join(tree, 'etc'));
  mkdirSync(join(tree, 'boot'));
  mkdirSync(join(tree, 'usr/lib/systemd'));
  symlinkSync('usr/lib', join(tree, 'lib'));
  symlinkSync('../usr/lib/os-release', join(tree, 'etc/os-release'));
  put(
    tree,
    'etc/fstab',
    '/dev/vda3 / ext4 errors=remount-ro 0 1\n/dev/vda2 /boot ext4 defaults 0 2\n' +
      '/dev/vda1 /boot/efi vfat umask=0077 0 1\n/dev/vda4 none swap sw 0 0\n/dev/vdb /srv ext4 defaults 0 2\n',
  );
  put(tree, 'etc/crypttab', '# none\n');
  put(
    tree,
    'etc/default/grub',
    'GRUB_DISABLE_LINUX_UUID=true\nGRUB_CMDLINE_LINUX="resume=/dev/vda4"\n',
  );
  put(tree, 'etc/initramfs-tools/modules', '# modules\n');
  put(tree, 'etc/initramfs-tools/conf.d/resume', 'RESUME=/dev/vda4\n');
  put(tree, 'etc/network/interfaces', 'source /etc/network/interfaces.d/*\n');
  put(
    tree,
    'etc/network/interfaces.d/lan',
    `auto ens3\niface ens3 inet static\n  address 192.0.2.7/24\n  hwaddress ether ${OLD_MAC.toUpperCase()}\n`,
    0o600,
  );
  put(tree, 'etc/blkid.tab', '<device DEVNO="0xfe03">/dev/vda3</device>\n');
  put(tree, 'var/lib/understudy-agent/agent.json', '{}');
  put(
    tree,
    `var/lib/initramfs-tools/${KERNEL}`,
    `${createHash('sha1').update(initrd).digest('hex')}  /boot/initrd.img-${KERNEL}\n`,
  );
  put(tree, `usr/lib/modules/${KERNEL}/modules.dep`, DEP);
  put(tree, `usr/lib/modules/${KERNEL}/modules.builtin`, 'kernel/fs/ext4/ext4.ko\n');
  for (const line of DEP.split('\n').filter((row) => row !== '')) {
    const path = line.slice(0, line.indexOf(':'));
    put(tree, `usr/lib/modules/${KERNEL}/${path}`, `ELF of ${path}`);
  }
  put(boot, `initrd.img-${KERNEL}`, initrd);
  put(boot, 'grub/grub.cfg', 'linux /vmlinuz root=/dev/vda3 ro quiet\n', 0o400);
  put(boot, 'grub/device.map', '(hd0) /dev/vda\n');
  change(tree);

  const system = join(folder, 'system.raw');
  sh('truncate', '-s', '128M', system);
  sh(
    'sgdisk',
    '--clear',
    `--new=1:${ESP}M:+16M`,
    '--typecode=1:ef00',
    `--new=2:${BOOT}M:+32M`,
    `--new=3:${SYSTEM}M:+64M`,
    `--new=4:${SWAP}M:+8M`,
    system,
  );
  sh('mke2fs', '-q', '-F', '-t', 'ext4', '-d', boot, '-E', `offset=${BOOT * MIB}`, system, '32M');
  sh('mke2fs', '-q', '-F', '-t', 'ext4', '-d', tree, '-E', `offset=${SYSTEM * MIB}`, system, '64M');
  const swap = join(folder, 'swap.raw');
  sh('truncate', '-s', '8M', swap);
  spawnSync('mkswap', ['-q', swap]);
  sh('dd', `if=${swap}`, `of=${system}`, 'bs=1M', `seek=${SWAP}`, 'conv=notrunc', 'status=none');
  const esp = join(folder, 'esp.raw');
  sh('truncate', '-s', '16M', esp);
  sh('mformat', '-i', esp, '::');
  sh('mmd', '-i', esp, '::/EFI', '::/EFI/debian');
  for (const name of ['shimx64.efi', 'grubx64.efi']) {
    put(folder, name, `code of ${name}`);
    sh('mcopy', '-i', esp, join(folder, name), `::/EFI/debian/${name}`);
  }
  sh('dd', `if=${esp}`, `of=${system}`, 'bs=1M', `seek=${ESP}`, 'conv=notrunc', 'status=none');
  const data = join(folder, 'data.raw');
  sh('truncate', '-s', '16M', data);
  sh('mke2fs', '-q', '-F', '-t', 'ext4', data);
  return { system, data };
}

const request = (disks: string[], firmware: 'bios' | 'uefi' = 'uefi'): PrepareRequest => ({
  failoverId: 'failover-1',
  jobId: 'job-1',
  at: '2026-01-02T03:04:05.678Z',
  firmware,
  disks: disks.map((devicePath, index) => ({
    devicePath,
    sourceName: `vd${'abc'[index]}`,
    boot: index === 0,
  })),
  nics: [{ name: 'ens3', sourceMac: OLD_MAC, mac: NEW_MAC }],
  droppedNics: [],
});

const preparer = createGuestPreparer({ workerCommand: [process.execPath, WORKER] });
const prepare = (disks: string[]): Promise<PrepareReport> =>
  preparer.prepare(request(disks), new AbortController().signal);

/** Reads a file of the guest from outside. */
const cat = (image: string, startMib: number, path: string): string =>
  spawnSync('debugfs', ['-R', `cat ${path}`, `${image}?offset=${startMib * MIB}`], {
    encoding: 'utf8',
  }).stdout;

const uuidAt = (image: string, startMib: number): string =>
  sh('blkid', '-p', '-o', 'value', '-s', 'UUID', '-O', String(startMib * MIB), image).trim();

const backingOf = (loop: string): string => {
  try {
    return readFileSync(`/sys/block/${loop.replace('/dev/', '')}/loop/backing_file`, 'utf8').trim();
  } catch {
    return '';
  }
};
/** Loop devices on one of these devices. Others on this machine are somebody else's. */
const loopsOn = (disks: string[]): string[] =>
  readdirSync('/sys/block').filter((name) => disks.includes(backingOf(name)));
/** Mounts of this process's namespace that come from one of these devices, or lie where preparation mounts. */
const mountsOf = (disks: string[]): string[] => {
  const loops = loopsOn(disks).map((name) => `/dev/${name}`);
  return readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter((row) => {
      const [source = ''] = (row.split(' - ')[1] ?? '').split(' ').slice(1);
      return [...disks, ...loops].includes(source) || / \/mnt\/root( |\/)/.test(row);
    });
};
/** What sits on these devices or their partitions: device-mapper, md, bcache. */
const holdersOf = (disks: string[]): string[] =>
  disks.flatMap((disk) => readdirSync(`/sys/block/${disk.replace('/dev/', '')}/holders`));

async function until(what: string, condition: () => boolean): Promise<void> {
  for (let tries = 0; tries < 600; tries++) {
    if (condition()) return;
    await pause(100);
  }
  throw new Error(`waited 60 s for: ${what}`);
}

t.test('a guest is prepared: devices, drivers, network, boot loader, agent', PATIENT, async (t) => {
  const guest = makeGuest();
  const uuid = {
    esp: uuidAt(guest.system, ESP),
    boot: uuidAt(guest.system, BOOT),
    root: uuidAt(guest.system, SYSTEM),
    swap: uuidAt(guest.system, SWAP),
    data: uuidAt(guest.data, 0),
  };
  const before = createHash('sha1')
    .update(cat(guest.system, BOOT, `/initrd.img-${KERNEL}`))
    .digest('hex');
  const disks = [attach(guest.system), attach(guest.data)];
  const report = await prepare(disks);
  for (const disk of disks) release(disk);

  t.equal(report.os, 'Debian GNU/Linux 12 (made for a test)');
  t.same(report.unfixable, []);
  const root = (path: string) => cat(guest.system, SYSTEM, path);
  t.equal(
    root('/etc/fstab'),
    `UUID=${uuid.root} / ext4 errors=remount-ro 0 1\nUUID=${uuid.boot} /boot ext4 defaults 0 2\n` +
      `UUID=${uuid.esp} /boot/efi vfat umask=0077 0 1\nUUID=${uuid.swap} none swap sw 0 0\nUUID=${uuid.data} /srv ext4 defaults 0 2\n`,
  );
  t.match(root(`/etc/fstab.understudy-${STAMP}`), /^\/dev\/vda3 \/ /, 'the original is kept');
  t.equal(root('/etc/crypttab'), '# none\n', 'what needs no change has none');
  t.match(root('/etc/default/grub'), /^# GRUB_DISABLE_LINUX_UUID=true/);
  t.match(root('/etc/default/grub'), `resume=UUID=${uuid.swap}`);
  t.equal(root('/etc/initramfs-tools/conf.d/resume'), `RESUME=UUID=${uuid.swap}\n`);
  t.match(root('/etc/initramfs-tools/modules'), /virtio_scsi\nsd_mod\n/);
  t.equal(root('/etc/blkid.tab'), '');
  t.match(root('/etc/network/interfaces.d/lan'), `hwaddress ether ${NEW_MAC}`);
  t.match(
    root(`/etc/network/interfaces.d/.lan.understudy-${STAMP}`),
    OLD_MAC,
    'hidden, because everything in that folder is read',
  );
  t.match(root('/etc/systemd/network/00-understudy-ens3.link'), `MACAddress=${NEW_MAC}`);
  t.match(JSON.parse(root('/var/lib/understudy-agent/passive')), {
    failoverId: 'failover-1',
    jobId: 'job-1',
  });
  t.equal(root('/var/lib/understudy-agent/agent.json'), '{}', "the agent's identity stays");

  // /boot is a file system of its own.
  t.equal(
    cat(guest.system, BOOT, '/grub/grub.cfg'),
    `linux /vmlinuz root=UUID=${uuid.root} ro quiet\n`,
  );
  t.equal(cat(guest.system, BOOT, '/grub/device.map'), '');
  const copy = cat(guest.system, BOOT, `/initrd.img-${KERNEL}.understudy-${STAMP}`);
  t.equal(createHash('sha1').update(copy).digest('hex'), before, 'the old initramfs is kept');
  const image = join(work, 'initrd');
  sh(
    'debugfs',
    '-R',
    `dump /initrd.img-${KERNEL} ${image}`,
    `${guest.system}?offset=${BOOT * MIB}`,
  );
  const unpacked = await readInitramfs(image, (name) => name === 'conf/modules');
  t.same([...modulesIn(unpacked, KERNEL)].sort(), [
    'scsi_mod',
    'sd_mod',
    'virtio',
    'virtio_pci',
    'virtio_scsi',
  ]);
  t.equal(
    unpacked.entries.get('conf/modules')?.data?.toString(),
    'virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\n',
  );
  const sum = createHash('sha1').update(readFileSync(image)).digest('hex');
  t.match(root(`/var/lib/initramfs-tools/${KERNEL}`), sum);

  const esp = `${guest.system}@@${ESP * MIB}`;
  t.equal(sh('mtype', '-i', esp, '::/EFI/BOOT/BOOTX64.EFI'), 'code of shimx64.efi');
  t.equal(sh('mtype', '-i', esp, '::/EFI/BOOT/grubx64.efi'), 'code of grubx64.efi');

  for (const [image, start] of [
    [guest.system, BOOT],
    [guest.system, SYSTEM],
    [guest.data, 0],
  ] as const) {
    const check = spawnSync('e2fsck', ['-fn', `${image}?offset=${start * MIB}`]);
    t.equal(check.status, 0, 'the file system is clean');
  }
});

t.test(
  'two replicas of one template at once: nothing of them shows in the appliance',
  PATIENT,
  async (t) => {
    const first = makeGuest();
    const second = { system: `${first.system}.twin`, data: `${first.data}.twin` };
    copyFileSync(first.system, second.system);
    copyFileSync(first.data, second.data);
    // A third disk with things that wake up by themselves where somebody scans for them.
    const sleepers = join(work, 'sleepers.raw');
    sh('truncate', '-s', '384M', sleepers);
    sh('sgdisk', '--clear', '--new=1:1M:+128M', '--new=2:130M:+16M', '--new=3:150M:+16M', sleepers);
    const btrfs = join(work, 'btrfs.raw');
    sh('truncate', '-s', '128M', btrfs);
    sh('mkfs.btrfs', '-q', btrfs);
    const btrfsUuid = sh('blkid', '-p', '-o', 'value', '-s', 'UUID', btrfs).trim();
    sh('dd', `if=${btrfs}`, `of=${sleepers}`, 'bs=1M', 'seek=1', 'conv=notrunc', 'status=none');
    const label = Buffer.alloc(512);
    label.write('LABELONE');
    label.write('LVM2 001', 24);
    const md = Buffer.alloc(512);
    md.writeUInt32LE(0xa92b4efc);
    for (const [bytes, at] of [
      [label, 130 * MIB + 512],
      [md, 150 * MIB + 4096],
    ] as const) {
      const piece = join(work, 'piece');
      writeFileSync(piece, bytes);
      sh(
        'dd',
        `if=${piece}`,
        `of=${sleepers}`,
        'bs=512',
        `seek=${at / 512}`,
        'conv=notrunc',
        'status=none',
      );
    }
    const disks = [first.system, first.data, second.system, second.data, sleepers].map(attach);
    const [systemA, dataA, systemB, dataB, third] = disks as [
      string,
      string,
      string,
      string,
      string,
    ];

    let leaked: string[] = [];
    let samples = 0;
    let done = false;
    const watch = (async () => {
      while (!done) {
        samples++;
        leaked = [...leaked, ...mountsOf(disks), ...holdersOf(disks)];
        await pause(5);
      }
    })();
    const reports = await Promise.all([
      prepare([systemA, dataA, third]),
      prepare([systemB, dataB]),
    ]);
    done = true;
    await watch;

    t.ok(samples > 10, `${samples} looks at the appliance's mounts`);
    t.same(leaked, [], 'no mount and no holder was seen outside');
    t.same(loopsOn(disks), [], 'every loop device is gone');
    t.notOk(existsSync(`/sys/fs/btrfs/${btrfsUuid}`), 'btrfs was not registered');
    for (const disk of disks) release(disk);
    for (const report of reports) t.same(report.unfixable, []);
    for (const { system } of [first, second]) {
      t.match(cat(system, SYSTEM, '/var/lib/understudy-agent/passive'), 'failover-1');
    }
  },
);

t.test(
  'inside, everything of the guest is nosuid, nodev, noexec, and the rest read-only',
  PATIENT,
  async (t) => {
    const guest = makeGuest();
    const disks = [attach(guest.system), attach(guest.data)];
    // An umount that first says what is mounted; through a pipe, because nothing there can be written.
    const shims = join(work, 'shims');
    const pipe = join(work, 'pipe');
    const seen = join(work, 'seen');
    sh('mkfifo', pipe);
    put(
      shims,
      'umount',
      `#!/bin/sh\n[ "$1" = --lazy ] || cat /proc/self/mountinfo >${pipe}\nexec /bin/umount "$@"\n`,
      0o755,
    );
    const reader = spawn('sh', ['-c', `while true; do cat ${pipe} >>${seen}; done`], {
      stdio: 'ignore',
      detached: true,
    });
    children.push(reader);
    const command = `PATH=${shims}:$PATH exec ${process.execPath} ${WORKER}`;
    const shimmed = createGuestPreparer({ workerCommand: ['bash', '-c', command] });
    const report = await shimmed.prepare(request(disks), new AbortController().signal);
    if (reader.pid) process.kill(-reader.pid, 'SIGKILL');
    for (const disk of disks) release(disk);
    t.same(report.unfixable, []);

    const rows = readFileSync(seen, 'utf8')
      .split('\n')
      .filter((row) => row !== '')
      .map((row) => ({
        target: row.split(' ')[4] ?? '',
        options: (row.split(' ')[5] ?? '').split(','),
      }));
    const ofGuest = rows.filter(({ target }) => target.startsWith('/mnt/root'));
    t.ok(ofGuest.some(({ target }) => target === '/mnt/root/boot'));
    for (const { target, options } of ofGuest) {
      for (const flag of ['nosuid', 'nodev', 'noexec'])
        t.ok(options.includes(flag), `${target} ${flag}`);
    }
    const writable = rows.filter(
      ({ target, options }) =>
        !/^\/(proc|sys|dev|mnt|run|tmp)(\/|$)/.test(target) && !options.includes('ro'),
    );
    t.same(writable, [], 'nothing of the appliance can be written');
  },
);

t.test('a hostile guest reaches nothing outside of itself', PATIENT, async (t) => {
  const secret = join(work, 'secret');
  writeFileSync(secret, SECRET);
  const guest = makeGuest((tree) => {
    rmSync(join(tree, 'etc/crypttab'));
    symlinkSync(`../../../../../..${secret}`, join(tree, 'etc/crypttab'));
    rmSync(join(tree, 'etc/default/grub'));
    symlinkSync('/proc/self/root/../../etc/passwd', join(tree, 'etc/default/grub'));
    mkdirSync(join(tree, 'etc/systemd'), { recursive: true });
    symlinkSync(work, join(tree, 'etc/systemd/network'));
    rmSync(join(tree, 'var/lib/understudy-agent'), { recursive: true });
    symlinkSync('/var/lib', join(tree, 'var/lib/understudy-agent'));
  });
  const listed = readdirSync(work).sort();
  const passwd = readFileSync('/etc/passwd', 'utf8');
  const disks = [attach(guest.system), attach(guest.data)];
  const report = await prepare(disks);
  for (const disk of disks) release(disk);
  t.equal(readFileSync(secret, 'utf8'), SECRET);
  t.equal(readFileSync('/etc/passwd', 'utf8'), passwd);
  t.same(readdirSync(work).sort(), listed, 'no file appeared');
  t.notOk(existsSync('/var/lib/passive'), 'the marker went to the guest');
  t.match(cat(guest.system, SYSTEM, '/var/lib/passive'), 'failover-1');
  t.match(cat(guest.system, SYSTEM, '/etc/fstab'), /^UUID=/, 'the rest was done all the same');
  t.match(
    report.unfixable,
    [{ code: 'UND_GUEST_PATH' }],
    'and the link that leads nowhere is told',
  );
});

t.test('disks without a system: said so, and nothing is changed', PATIENT, async (t) => {
  const empty = join(work, 'empty.raw');
  sh('truncate', '-s', '4M', empty);
  const sum = () => sh('sha256sum', empty);
  const before = sum();
  const disk = attach(empty);
  const report = await preparer.prepare(request([disk], 'bios'), new AbortController().signal);
  release(disk);
  t.equal(report.os, null);
  t.same(report.changes, []);
  t.match(report.unfixable, [{ code: 'UND_GUEST_NO_ROOT' }]);
  t.equal(sum(), before);
  await t.rejects(prepare(['/dev/does-not-exist']), { code: 'UND_GUEST_PREPARE_FAILED' });
});

t.test('the process refuses to work in the namespace of the appliance', PATIENT, async (t) => {
  const rootIsReadOnly = () => / \/ ro[, ]/.test(readFileSync('/proc/self/mountinfo', 'utf8'));
  const before = rootIsReadOnly();
  const result = spawnSync(process.execPath, [WORKER], {
    input: JSON.stringify({
      ...request(['/dev/null']),
      outsideMountNamespace: readlinkSync('/proc/self/ns/mnt'),
    }),
    encoding: 'utf8',
  });
  t.match(JSON.parse(result.stdout), { error: { code: 'UND_GUEST_ISOLATION' } });
  t.equal(rootIsReadOnly(), before);
});

t.test('the process dies with the appliance', PATIENT, async (t) => {
  const flag = `understudy-leash-${process.pid}`;
  const script = `
    const { createGuestPreparer } = await import(${JSON.stringify(join(ROOT, 'appliance/recovery/prepare-guest/index.ts'))});
    const preparer = createGuestPreparer({ workerCommand: ['bash', '-c', 'exec -a ${flag} sleep 600'] });
    await preparer.prepare(${JSON.stringify(request(['/dev/null']))}, new AbortController().signal);
  `;
  const appliance = spawn(process.execPath, ['--input-type=module-typescript', '-e', script], {
    stdio: 'ignore',
  });
  children.push(appliance);
  const alive = () => spawnSync('pgrep', ['-f', `^${flag}`], { encoding: 'utf8' }).stdout !== '';
  await until('the process to run', alive);
  appliance.kill('SIGKILL');
  await until('the process to be gone', () => !alive());
  t.pass('gone');
});
