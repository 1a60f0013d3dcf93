/**
 * Files of a guest that nobody vouches for, read in the real isolated process from real file systems: ones that were in
 * use when they were copied, hostile ones, ones that are left alone. Needs root.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { connect as tlsConnect } from 'node:tls';
import t from 'tap';
import type { GuestVolume } from '../../appliance/api/schema.ts';
import {
  type ExportIdentity,
  exportIdentity,
  type KeyPair,
} from '../../appliance/identity/export-identity.ts';
import { NBD_LEASH } from '../../appliance/recovery/browse/nbd-export.ts';
import { createPointServer } from '../../appliance/recovery/browse/point-server.ts';
import { isolated } from '../../appliance/recovery/prepare-guest/isolation.ts';
import { loopsOf } from '../../appliance/recovery/prepare-guest/loops.ts';
import { lvmGroup } from '../lvm-group.ts';

const WORKER = join(import.meta.dirname, '../../appliance/recovery/browse/worker-main.ts');
const MIB = 1024 * 1024;
const PATIENT_MS = 120_000;
t.setTimeout(600_000);

const work = mkdtempSync('/var/tmp/understudy-browse-');
const mounted: string[] = [];
const loops: string[] = [];
const children: ChildProcess[] = [];
t.teardown(() => {
  for (const child of children) child.kill('SIGKILL');
  for (const target of mounted) spawnSync('umount', [target]);
  for (const loop of loops) spawnSync('losetup', ['-d', loop]);
  rmSync(work, { recursive: true, force: true });
});

const sh = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

const empty = (name: string, sizeBytes: number): string => {
  const file = join(work, name);
  closeSync(openSync(file, 'w'));
  truncateSync(file, sizeBytes);
  return file;
};

/** As a disk: the isolated process has every file system of the appliance read-only, but not its devices. */
function attach(file: string): string {
  const loop = sh('losetup', '--find', '--show', file).trim();
  loops.push(loop);
  return loop;
}

function release(loop: string): void {
  sh('losetup', '-d', loop);
  loops.splice(loops.indexOf(loop), 1);
}

/** The file system as it is while it is in use: files are durable in its journal, not in their places. */
function copiedInUse(file: string, options: string, fill: (root: string) => void): string {
  const root = `${file}.mnt`;
  mkdirSync(root);
  sh('mount', '-o', `loop,${options}`, file, root);
  mounted.push(root);
  fill(root);
  const fd = openSync(root, 'r');
  sh('sync', '-f', root);
  closeSync(fd);
  const copy = `${file}.copy`;
  sh('cp', '--sparse=always', file, copy);
  sh('umount', root);
  mounted.pop();
  return copy;
}

const place = (disk: string, part: string, atBytes: number): void => {
  sh(
    'dd',
    `if=${part}`,
    `of=${disk}`,
    'bs=1M',
    `seek=${atBytes / MIB}`,
    'conv=notrunc,sparse',
    'status=none',
  );
};

const sha = (path: string) => createHash('sha256').update(readFileSync(path)).digest('hex');

async function until(what: string, condition: () => boolean): Promise<void> {
  const end = Date.now() + PATIENT_MS;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`waited for ${what}`);
    await pause(50);
  }
}

const points = createPointServer({
  workerCommand: [process.execPath, WORKER],
  nbd: { bind: '127.0.0.1', addresses: () => ['127.0.0.1'] },
});
t.teardown(() => points.closeAll());
const never = new AbortController().signal;

const open = async (
  mountId: string,
  files: string[],
  onGone: (reason: string) => void = () => {},
) => {
  const { volumes } = await points.open(
    {
      mountId,
      purpose: 'files',
      keepMinutes: 60,
      disks: files.map((devicePath, index) => ({
        devicePath,
        sourceName: `vd${'abc'[index]}`,
        boot: index === 0,
        sizeBytes: 0,
      })),
      onGone,
    },
    never,
  );
  return { volumes, browser: points.browser(mountId) };
};

const bytesOf = async (chunks: AsyncIterable<Buffer>): Promise<Buffer> => {
  const all: Buffer[] = [];
  for await (const chunk of chunks) all.push(chunk);
  return Buffer.concat(all);
};

const refusal = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => 'nothing',
    (error) => `${error.code}: ${error.params?.reason}`,
  );

const mountsHere = () => readFileSync('/proc/self/mounts', 'utf8');

t.test('the disks of a guest, journals in use, hostile trees', async (t) => {
  const ext4 = empty('root.ext4', 48 * MIB);
  // A superblock that asks for a panic, as a hostile one would.
  sh('mke2fs', '-q', '-t', 'ext4', '-L', 'system', '-e', 'panic', ext4);
  const big = Buffer.alloc(3 * MIB + 77, 'Understudy ');
  const root = copiedInUse(ext4, 'noatime', (to) => {
    mkdirSync(join(to, 'etc'));
    writeFileSync(join(to, 'etc/passwd'), "the guest's");
    writeFileSync(
      join(to, 'etc/fstab'),
      'LABEL=system / ext4 defaults 0 1\n/dev/vda2 /srv xfs defaults 0 2\n/dev/vdb /boot/efi vfat defaults 0 2\n',
    );
    writeFileSync(join(to, 'etc/shadow'), 'secret', { mode: 0 });
    writeFileSync(join(to, 'big'), big);
    const sparse = openSync(join(to, 'sparse'), 'w');
    writeSync(sparse, 'end', 1024 ** 4);
    closeSync(sparse);
    symlinkSync('/etc/passwd', join(to, 'link'));
    symlinkSync('../../../../../../../etc/hostname', join(to, 'out'));
    sh('mkfifo', join(to, 'fifo'));
    sh('mknod', join(to, 'disk'), 'b', '7', '0');
    mkdirSync(Buffer.concat([Buffer.from(`${to}/caf`), Buffer.from([0xe9])]));
    writeFileSync(
      Buffer.concat([Buffer.from(`${to}/caf`), Buffer.from([0xe9]), Buffer.from('/x')]),
      'odd',
    );
    mkdirSync(join(to, 'many'));
    for (let n = 0; n < 1500; n++)
      writeFileSync(join(to, `many/${String(n).padStart(4, '0')}`), '');
  });
  t.match(sh('dumpe2fs', '-h', root), /needs_recovery/, 'its journal has to be replayed');

  const xfsFile = empty('srv.xfs', 320 * MIB);
  sh('mkfs.xfs', '-q', '-L', 'data', xfsFile);
  const xfs = copiedInUse(xfsFile, 'nouuid', (to) => {
    mkdirSync(join(to, 'a/b'), { recursive: true });
    writeFileSync(join(to, 'a/b/rows'), Buffer.alloc(200_000, 7));
  });

  const vda = empty('vda', 400 * MIB);
  sh('sgdisk', '-n', '1:2048:+48M', '-n', '2:0:+320M', '-n', '3:0:+8M', '-n', '4:0:+8M', vda);
  place(vda, root, MIB);
  place(vda, xfs, 49 * MIB);
  const lvm = Buffer.alloc(1024);
  lvm.write('LABELONE', 512);
  lvm.write('LVM2 001', 512 + 24);
  const fd = openSync(vda, 'r+');
  writeSync(fd, lvm, 0, lvm.length, 369 * MIB);
  closeSync(fd);
  const stranger = empty('stranger', 8 * MIB);
  const journal = empty('journal', 8 * MIB);
  sh('mke2fs', '-q', '-O', 'journal_dev', '-b', '4096', journal);
  sh('mke2fs', '-q', '-t', 'ext4', '-b', '4096', '-O', '^has_journal', stranger);
  // has_journal, whose journal is device 7:0.
  const own = openSync(stranger, 'r+');
  writeSync(own, Buffer.from([0x04 | 0x38]), 0, 1, 1024 + 92);
  writeSync(own, Buffer.from([0x00, 0x07, 0, 0]), 0, 4, 1024 + 228);
  closeSync(own);
  place(vda, stranger, 377 * MIB);
  const vdb = empty('vdb', 40 * MIB);
  sh('mkfs.vfat', '-n', 'EFI', vdb);
  writeFileSync(join(work, 'loader'), 'loads');
  sh('mcopy', '-i', vdb, join(work, 'loader'), '::LOADER.EFI');

  const disks = [attach(vda), attach(vdb)];
  t.teardown(() => points.close('one', disks));
  const { volumes, browser } = await open('one', disks);
  const seen = loopsOf(disks).filter((name) => mountsHere().includes(`/dev/${name} `));
  t.equal(loopsOf(disks).length, volumes.filter(({ browsable }) => browsable).length);
  t.same(seen, [], 'the appliance sees nothing of what is mounted');
  t.same(
    volumes.map(({ volumeId, content, label, mountPoint, browsable }: GuestVolume) =>
      // This machine's kernel may be without FAT.
      [volumeId, content, label, mountPoint, content === 'vfat' || browsable].join(' '),
    ),
    [
      'vda1 ext4 system / true',
      'vda2 xfs data /srv true',
      'vda3 lvm   false',
      'vda4 ext4   false',
      'vdb vfat EFI /boot/efi true',
    ],
  );
  t.match(volumes[3], { note: 'its journal is on another device' });
  t.same(
    volumes.filter(({ browsable, note }) => browsable && note),
    [],
    'journals were replayed',
  );

  const read = (volume: string, path: string, length: number, from = 0) =>
    bytesOf(browser.read(volume, path, from, length));
  t.equal((await read('vda1', '/etc/passwd', 11)).toString(), "the guest's");
  t.equal((await read('vda1', '/link', 11)).toString(), "the guest's", 'not that of the appliance');
  t.equal((await read('vda1', '/etc/shadow', 6)).toString(), 'secret', 'whoever owns it');
  t.equal((await read('vda1', '/caf%E9/x', 3)).toString(), 'odd');
  t.ok((await read('vda1', '/big', big.length)).equals(big));
  t.equal((await read('vda1', '/sparse', 3, 1024 ** 4)).toString(), 'end');
  t.equal((await browser.stat('vda1', '/sparse')).sizeBytes, 1024 ** 4 + 3);
  t.equal((await read('vda2', '/a/b/rows', 200_000)).length, 200_000);
  if (volumes.at(-1)?.browsable) {
    t.equal((await read('vdb', '/LOADER.EFI', 5)).toString(), 'loads');
  }
  for (const [volume, path, reason] of [
    ['vda1', '/out', 'it is not there'],
    ['vda1', '/fifo', 'it is no plain file'],
    ['vda1', '/disk', 'it is no plain file'],
    ['vda1', '/big/x', 'a part of it is no folder'],
    ['vda3', '/', 'there is no such file system, or it cannot be browsed'],
    ['../..', '/', 'there is no such file system, or it cannot be browsed'],
  ] as const) {
    t.equal(await refusal(browser.stat(volume, path)), `UND_MOUNT_PATH: ${reason}`, path);
  }
  const listing = await browser.list('vda1', '/', 0, 100);
  t.same(
    listing.entries.map(({ kind, path }) => `${kind} ${path}`),
    [
      'folder /caf%E9',
      'folder /etc',
      'folder /lost%2Bfound'.replace('%2B', '+'),
      'folder /many',
      'file /big',
      'special /disk',
      'special /fifo',
      'link /link',
      'link /out',
      'file /sparse',
    ],
  );
  const page = await browser.list('vda1', '/many', 1400, 50);
  t.match(page, { total: 1500, from: 1400, truncated: false });
  t.same([page.entries.length, page.entries[0]?.name], [50, '1400']);

  await points.close('one', disks);
  t.same(loopsOf(disks), [], 'nothing has the disks open');
  t.equal(await refusal(browser.stat('vda1', '/')), 'UND_MOUNT_NOT_OPEN: its process ended with 0');
});

// Red when the process is not told to go, or its loop devices are left behind.
t.test('its process is killed: whoever reads is told, and the disks are free', async (t) => {
  const file = empty('killed', 16 * MIB);
  sh('mke2fs', '-q', '-t', 'ext4', file);
  const vda = attach(file);
  const gone = Promise.withResolvers<string>();
  const { volumes, browser } = await open('two', [vda], gone.resolve);
  t.match(volumes, [{ volumeId: 'vda', browsable: true }]);
  t.equal(loopsOf([vda]).length, 1);
  // What holds the namespaces; it is a child of this process.
  const children = readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, 'utf8');
  const holder = children
    .trim()
    .split(' ')
    .findLast((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(WORKER));
  process.kill(Number(holder), 'SIGKILL');
  t.match(await gone.promise, /has ended: its process ended with SIGKILL/);
  t.match(await refusal(browser.stat('vda', '/')), /^UND_MOUNT_NOT_OPEN/);
  await points.close('two', [vda]);
  t.same(loopsOf([vda]), []);

  const leftBehind = sh('losetup', '--find', '--show', vda).trim();
  t.ok(existsSync(leftBehind));
  await points.close('of a former life', [vda]);
  t.same(loopsOf([vda]), [], 'a loop device of a process that died is taken away');
});

t.test(
  'an overlay of a frozen qcow2 image: the journal is replayed, the image is not touched',
  async (t) => {
    const raw = empty('base.raw', 24 * MIB);
    sh('mke2fs', '-q', '-t', 'ext4', raw);
    const copy = copiedInUse(raw, 'noatime', (to) => writeFileSync(join(to, 'row'), 'committed'));
    const [base, overlay, device] = ['base.qcow2', 'overlay.qcow2', 'device'].map((name) =>
      join(work, name),
    ) as [string, string, string];
    sh('qemu-img', 'convert', '-O', 'qcow2', copy, base);
    sh('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'qcow2', overlay);
    const frozen = sha(base);
    closeSync(openSync(device, 'w'));
    const daemon = spawn(
      'qemu-storage-daemon',
      [
        '--blockdev',
        `driver=qcow2,node-name=o,file.driver=file,file.filename=${overlay}`,
        '--export',
        `type=fuse,id=e,node-name=o,mountpoint=${device},writable=on,allow-other=off`,
      ],
      { stdio: 'ignore' },
    );
    children.push(daemon);
    const ended = new Promise((resolve) => daemon.once('exit', resolve));
    await until('the export', () => mountsHere().includes(device));
    const vda = attach(device);
    const { volumes, browser } = await open('three', [vda]);
    t.match(volumes, [{ volumeId: 'vda', content: 'ext4', browsable: true, note: null }]);
    t.equal((await bytesOf(browser.read('vda', '/row', 0, 9))).toString(), 'committed');
    await points.close('three', [vda]);
    release(vda);
    daemon.kill('SIGTERM');
    await ended;
    t.equal(sha(base), frozen);
    t.match(sh('qemu-img', 'compare', base, copy), /identical/);
    t.throws(
      () => sh('qemu-img', 'compare', overlay, base),
      'the overlay has the replayed journal',
    );
  },
);

/** Whether an NBD server tells its exports to a client with this certificate, which looks at nothing itself. */
function listsExports(port: number, pair: KeyPair | null): Promise<boolean> {
  const option = (kind: number) => {
    const head = Buffer.alloc(16);
    head.write('IHAVEOPT', 'latin1');
    head.writeUInt32BE(kind, 8);
    return head;
  };
  const [STARTTLS, LIST, FIXED_NEWSTYLE] = [5, 3, Buffer.from([0, 0, 0, 1])];
  return new Promise((resolve, reject) => {
    const raw = connect(port, '127.0.0.1');
    raw.setTimeout(PATIENT_MS, () => reject(new Error('no answer')));
    raw.on('error', reject);
    let greeting = Buffer.alloc(0);
    let asked = false;
    raw.on('data', function more(chunk: Buffer) {
      greeting = Buffer.concat([greeting, chunk]);
      if (!asked && greeting.length >= 18) {
        asked = true;
        raw.write(Buffer.concat([FIXED_NEWSTYLE, option(STARTTLS)]));
      }
      if (greeting.length < 18 + 20) return;
      raw.off('data', more);
      raw.off('error', reject);
      const secure = tlsConnect({
        socket: raw,
        rejectUnauthorized: false,
        ...(pair ? { cert: pair.certPem, key: pair.keyPem } : {}),
      });
      secure.on('secureConnect', () => secure.write(option(LIST)));
      secure.on('data', () => {
        resolve(true);
        secure.destroy();
      });
      secure.on('error', () => resolve(false));
      secure.on('close', () => resolve(false));
    });
  });
}

t.test('a file system on a logical volume', async (t) => {
  const pvs = lvmGroup().map((head, index) => {
    const file = empty(`pv${index}`, 64 * MIB);
    const fd = openSync(file, 'r+');
    writeSync(fd, head, 0, head.length, 0);
    closeSync(fd);
    return file;
  });
  const fs = empty('srv-data', 8 * MIB);
  const tree = join(work, 'srv-data.tree');
  mkdirSync(join(tree, 'etc'), { recursive: true });
  writeFileSync(
    join(tree, 'etc/fstab'),
    '/dev/mapper/demo--vg-srv--data /srv/data ext4 defaults 0 2\n',
  );
  sh('mke2fs', '-q', '-t', 'ext4', '-d', tree, fs);
  // Extents 4 and 5 of the first disk.
  place(pvs[0]!, fs, 17 * MIB);
  const disks = pvs.map(attach);
  t.teardown(() => points.close('lvm', disks));
  const { volumes, browser } = await open('lvm', disks);
  t.same(
    volumes.map(({ volumeId, content, mountPoint, browsable }) =>
      [volumeId, content, mountPoint, browsable].join(' '),
    ),
    [
      'vda lvm  false',
      'vdb lvm  false',
      'demo-vg/srv-data ext4 /srv/data true',
      'demo-vg/log unknown  false',
      'demo-vg/root lvm  false',
      'demo-vg/striped lvm  false',
    ],
  );
  t.match(volumes.at(-2), { note: 'a logical volume in several pieces' });
  t.match((await browser.stat('demo-vg/srv-data', '/etc/fstab')).sizeBytes, 59);
  await points.close('lvm', disks);
  for (const loop of disks) release(loop);
});

// Red without verify-peer, and with a disk that is exported writable.
t.test(
  'whole disks over NBD: only with the certificate of this export, never written',
  async (t) => {
    const file = empty('exported', 24 * MIB);
    sh('mke2fs', '-q', '-t', 'ext4', file);
    writeFileSync(join(work, 'exported.data'), Buffer.alloc(MIB, 'x'));
    sh(
      'dd',
      `if=${join(work, 'exported.data')}`,
      `of=${file}`,
      'bs=1M',
      'seek=9',
      'conv=notrunc',
      'status=none',
    );
    const small = empty('small', 2 * MIB);
    const disks = [attach(file), attach(small)];
    t.teardown(() => points.close('nbd', disks));
    const gone: string[] = [];
    const served = await points.open(
      {
        mountId: 'nbd',
        purpose: 'nbd',
        keepMinutes: 60,
        disks: disks.map((devicePath, index) => ({
          devicePath,
          sourceName: `vd${'ab'[index]}`,
          boot: index === 0,
          sizeBytes: [24, 2][index]! * MIB,
        })),
        onGone: (reason) => gone.push(reason),
      },
      never,
    );
    t.match(served.exports, [
      { name: 'vda', disk: 'vda', sizeBytes: 24 * MIB, addresses: ['127.0.0.1'] },
      { name: 'vdb', sizeBytes: 2 * MIB },
    ]);
    const [vda] = served.exports;
    t.not(vda!.port, served.exports[1]!.port);
    const client = (name: string, identity: ExportIdentity): string => {
      const folder = join(work, name);
      mkdirSync(folder);
      writeFileSync(join(folder, 'ca-cert.pem'), points.nbd('nbd').identity.caPem);
      writeFileSync(join(folder, 'client-cert.pem'), identity.client.certPem);
      writeFileSync(join(folder, 'client-key.pem'), identity.client.keyPem);
      return folder;
    };
    const remote = (folder: string | null) => [
      ...(folder ? ['--object', `tls-creds-x509,id=tls,dir=${folder},endpoint=client`] : []),
      '--image-opts',
      `driver=raw,file.driver=nbd,file.server.type=inet,file.server.host=127.0.0.1,file.server.port=${vda!.port},file.export=vda${folder ? ',file.tls-creds=tls' : ''}`,
    ];
    const own = client('client', points.nbd('nbd').identity);
    const copy = join(work, 'backup.raw');
    sh('qemu-img', 'convert', '-O', 'raw', ...remote(own), copy);
    t.equal(sha(copy), sha(file), 'byte for byte');
    t.not(spawnSync('qemu-img', ['info', ...remote(null)]).status, 0, 'not without TLS');
    const other = await exportIdentity([], 3_600_000);
    t.equal(await listsExports(vda!.port, points.nbd('nbd').identity.client), true);
    t.equal(await listsExports(vda!.port, other.client), false, 'a client of another authority');
    t.equal(await listsExports(vda!.port, null), false, 'one without a certificate');
    const write = spawnSync('qemu-io', ['-c', 'write 0 512', ...remote(own)], { encoding: 'utf8' });
    t.match(write.stdout + write.stderr, /read-only|permitted|denied/i);
    t.equal(sha(copy), sha(file), 'as it was');
    t.same(gone, []);
    await points.close('nbd', disks);
    t.same(gone, [], 'whoever closes it is not told');
    t.throws(() => points.nbd('nbd'), { code: 'UND_MOUNT_NOT_OPEN' });
    t.not(spawnSync('qemu-img', ['info', ...remote(own)]).status, 0, 'nothing answers any more');
    for (const loop of disks) release(loop);
  },
);

// Red without CAP_SETPCAP in the unit: setpriv then leaves everything as it is, and says nothing.
t.test(
  'what the unit leaves the appliance is enough to isolate, and to disarm an export',
  async (t) => {
    const unit = readFileSync(
      join(
        import.meta.dirname,
        '../../image/appliance/tree/etc/systemd/system/understudy-appliance.service',
      ),
      'utf8',
    );
    const kept = /^CapabilityBoundingSet=(.+)$/m.exec(unit)![1]!.split(' ');
    const bounding = kept.map((name) => `+${name.toLowerCase().replace('cap_', '')}`).join(',');
    const asUnit = ['--no-new-privs', `--bounding-set=-all,${bounding}`, '--inh-caps=-all', '--'];
    const status = (command: readonly string[]) =>
      sh('setpriv', ...asUnit, ...command, 'cat', '/proc/self/status');
    t.notMatch(status([]), /^CapEff:\t0+$/m, 'the appliance has some');
    t.match(status(NBD_LEASH), /^CapEff:\t0+$/m);
    t.match(status(NBD_LEASH), /^CapBnd:\t0+$/m);
    t.match(status(isolated([])), /^NSpid:\t.*1$/m);
  },
);
