/**
 * A restart that is carried over, on loop devices: what `save` of a shutdown leaves is what `early` of the next start
 * brings, and whatever was written in between keeps a disk from it. The kernel goes on meanwhile; its restart is in
 * test/prove/restart.ts.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { basename, join } from 'node:path';
import t from 'tap';
import { openFileMap } from '../../agent/capture/file-map.ts';
import { helperPath } from '../../agent/capture/helper.ts';
import { type Carried, readCarried } from '../../agent/restart/carried.ts';
import {
  CaptureLab,
  directWrite,
  firstDifference,
  MIB,
  Replayer,
  random,
  run,
  unable,
  until,
} from './capture.lab.ts';

type TestLike = { teardown: (fn: () => unknown) => void };

t.setTimeout(600_000);
const skip = unable();
const SIZE_MIB = 320;
/** Of the data disk: nothing else writes there. */
const TOUCHED_MIB = 315;
const RING_BYTES = 8 * MIB;

const LOOP_CTL_ADD = 0x4c80;
const LOOP_CTL_REMOVE = 0x4c81;
let machines = 0;

function control(request: number, device: number): void {
  const text = `import fcntl; fcntl.ioctl(open('/dev/loop-control'), ${request}, ${device})`;
  run('python3', '-c', text);
}

/** A device of our own, made anew: it has written nothing yet, as after a start. */
function attach(file: string, number: number): string {
  control(LOOP_CTL_ADD, number);
  run('losetup', `/dev/loop${number}`, file);
  return `/dev/loop${number}`;
}

function detach(dev: string): void {
  run('losetup', '-d', dev);
  control(LOOP_CTL_REMOVE, Number(dev.slice(9)));
}

function copyAll(from: readonly string[], to: readonly string[]): void {
  for (const [at, file] of from.entries()) run('cp', '--sparse=always', file, to[at]!);
}

class Machine {
  readonly lab: CaptureLab;
  readonly files: string[] = [];
  readonly runDir: string;
  /** By index: 0 has ext4, with the save area; 1 has XFS. */
  devs: string[] = [];
  mounts: string[] = [];
  area = '';
  replicas: string[] = [];
  #undo: Array<() => void> = [];
  readonly #number = 1000 + (process.pid % 10_000) * 100 + 10 * machines++;

  constructor(t: TestLike) {
    this.lab = new CaptureLab(t, 2048);
    this.runDir = join(this.lab.dir, 'run');
    fs.mkdirSync(this.runDir);
    t.teardown(() => {
      for (const undo of this.#undo) undo();
    });
    for (const make of ['mkfs.ext4 -q -F -b 4096 -E lazy_itable_init=0', 'mkfs.xfs -q -f']) {
      const file = join(this.lab.dir, `disk-${this.files.length}.img`);
      fs.writeFileSync(file, '');
      fs.truncateSync(file, SIZE_MIB * MIB);
      const [command, ...args] = make.split(' ');
      run(command!, ...args, file);
      this.files.push(file);
    }
    this.attach();
    this.mount();
    this.area = join(this.mounts[0]!, 'save-area');
    fs.writeFileSync(this.area, Buffer.alloc(MIB));
    run('sync', '-f', this.area);
  }

  /** @param shift to give the disks other names than before */
  attach(shift = 0): void {
    const count = this.files.length;
    this.devs = this.files.map((file, at) => attach(file, this.#number + ((at + shift) % count)));
    this.#undo = this.devs.map((dev) => () => detach(dev));
  }

  mount(options = 'rw'): void {
    this.mounts = this.devs.map((dev) => this.lab.mount(dev, '-o', options));
  }

  unmount(): void {
    for (const at of this.mounts) run('umount', at);
    this.mounts = [];
  }

  copyReplicas(): void {
    this.replicas = this.files.map((_, at) => join(this.lab.dir, `replica-${at}.img`));
    copyAll(this.files, this.replicas);
  }

  disks() {
    return this.devs.map((devicePath, index) => ({ index, devicePath, sizeBytes: SIZE_MIB * MIB }));
  }

  witnesses(extra = ''): void {
    const bytes = SIZE_MIB * MIB;
    const lines = `ext4 0 0 ${bytes} root\nxfs 1 0 ${bytes} data\n${extra}`;
    fs.writeFileSync(join(this.runDir, 'witnesses'), lines);
  }

  call(verb: 'save' | 'early', ...rest: string[]): string {
    const folders = ['--pin', this.lab.pinDir, '--run', this.runDir, '--area', this.area];
    return execFileSync(
      'bash',
      ['-c', '"$@" 2>&1', 'bash', helperPath({}), verb, ...folders, ...rest],
      {
        encoding: 'utf8',
      },
    );
  }

  /** The shutdown: everything unmounted, the root read-only; then the hook. */
  shutDown(...rest: string[]): void {
    const [root, data] = this.mounts;
    run('umount', data!);
    run('mount', '-o', 'remount,ro', root!);
    this.call('save', ...rest);
    run('umount', root!);
    this.powerOff();
  }

  powerOff(): void {
    this.mounts = [];
    for (const dev of this.devs) detach(dev);
    this.devs = [];
    this.#undo = [];
    // A tmpfs does not outlive the kernel.
    for (const name of fs.readdirSync(this.runDir)) fs.rmSync(join(this.runDir, name));
  }

  /** The start up to the early unit: the initramfs checks the root and mounts it read-only. */
  start(shift = 0): void {
    this.attach(shift);
    run('fsck', '-a', this.devs[0]!);
    const root = this.lab.mount(this.devs[0]!, '-o', 'ro');
    this.mounts = [root];
    this.area = join(root, 'save-area');
  }

  async early(): Promise<Carried | { reason: string } | null> {
    this.call('early');
    return readCarried(join(this.runDir, 'carried.json'));
  }

  /** Between shutdown and start, by somebody else. */
  elsewhere(disk: number, act: (dev: string) => void): void {
    const dev = attach(this.files[disk]!, this.#number + 5);
    act(dev);
    detach(dev);
  }
}

/** A machine whose capture has been running for a while; what is acknowledged is on its replicas. */
async function ran(t: TestLike, seed: number) {
  const machine = new Machine(t);
  machine.unmount();
  machine.copyReplicas();
  const capture = machine.lab.capture();
  const opts = { ringBytes: RING_BYTES, pinDir: machine.lab.pinDir };
  const { captureId, bootId } = await capture.start(machine.disks(), opts);
  const replayer = new Replayer(machine.replicas);
  let isReleasing = true;
  replayer.onBatch = ({ endPos }) => {
    if (isReleasing) capture.release(endPos);
  };
  void replayer.follow(capture, false);
  machine.mount();
  machine.area = join(machine.mounts[0]!, 'save-area');
  const next = random(seed);
  const write = () => {
    const path = join(machine.mounts[next(2)]!, `file-${next(12)}`);
    fs.writeFileSync(path, Buffer.alloc(1 + next(120_000), 1 + next(255)), { flush: true });
  };
  for (let i = 0; i < 20; i++) write();
  await replayer.caughtUp(capture);
  // From here on nothing is acknowledged, and what was not goes nowhere.
  isReleasing = false;
  const released = replayer.endPos;
  await until('the acknowledgement to be taken', async () => {
    return (await capture.status()).consumerPos === released;
  });
  replayer.apply = () => {};
  for (let i = 0; i < 25; i++) write();
  return { machine, capture, replayer, captureId, bootId, released, write };
}

t.test('a clean restart: all that the replicas miss is in the dirty map', { skip }, async (t) => {
  for (const overflow of [false, true]) {
    const { machine, capture, replayer, captureId, bootId, released, write } = await ran(t, 7);
    if (overflow) {
      for (let i = 0; i < 400 && capture.mode().mode === 'ordered'; i++) write();
      await until('an overflow', () => capture.mode().mode === 'tracking');
    }
    t.equal(capture.mode().mode, overflow ? 'tracking' : 'ordered');
    await capture.stop({ unpin: false });
    machine.witnesses(`touched 1 ${TOUCHED_MIB * MIB} ${MIB} something\n`);
    const note = { journalId: 'J', epoch: 1, ackedSeq: 77 };
    fs.writeFileSync(join(machine.runDir, 'stream-job.json'), JSON.stringify(note).padEnd(256));
    fs.writeFileSync(join(machine.runDir, 'excluded-job.json'), '[]\n[]');
    write();
    machine.shutDown('reboot');
    t.notOk(fs.existsSync(machine.lab.pinDir), 'the capture has ended');

    // What may be written to before the capture is there counts as dirty.
    machine.elsewhere(1, (dev) => {
      const place = ['bs=1M', `seek=${TOUCHED_MIB}`, 'count=1', 'oflag=direct', 'status=none'];
      run('dd', 'if=/dev/urandom', `of=${dev}`, ...place);
      run('umount', machine.lab.mount(dev));
    });
    machine.start();
    const carried = (await machine.early()) as Carried;
    t.match(carried, {
      saved: { captureId, bootId, releasedPos: Number(released) },
      disks: { 0: null, 1: null },
    });
    t.not(carried.captureId, captureId, 'another capture');
    const kept = fs.readFileSync(join(machine.runDir, 'stream-job.json'), 'utf8');
    t.same(JSON.parse(kept), note, 'what the agent had noted');
    t.equal(fs.readFileSync(join(machine.runDir, 'excluded-job.json'), 'utf8'), '[]\n[]');

    // The start goes on: everything becomes writable, and is written to.
    run('mount', '-o', 'remount,rw', machine.mounts[0]!);
    machine.mounts.push(machine.lab.mount(machine.devs[1]!));
    write();
    const after = machine.lab.capture();
    const opts = { ringBytes: RING_BYTES, pinDir: machine.lab.pinDir };
    const started = await after.start(machine.disks(), opts);
    t.equal(started.notAdoptedBecause, undefined);
    t.equal(started.captureId, carried.captureId, 'the agent adopts it');
    t.equal(after.mode().mode, 'tracking');
    write();
    machine.unmount();
    let dirty = 0;
    for (const { index, devicePath } of machine.disks()) {
      const extents = await after.dirtyExtents(index);
      for (const { lengthBytes } of extents) dirty += lengthBytes;
      await replayer.copyExtents(devicePath, index, extents);
      t.equal(firstDifference(devicePath, machine.replicas[index]!), undefined, `disk ${index}`);
    }
    // The log of XFS is the most of it.
    t.ok(dirty < SIZE_MIB * MIB, `${dirty} bytes were dirty`);
    await after.stop({ unpin: true });
    replayer.close();
    machine.powerOff();
  }
});

t.test('whatever was written in between is noticed', { skip }, async (t) => {
  const { machine, capture, replayer } = await ran(t, 11);
  await capture.stop({ unpin: false });
  replayer.close();
  machine.witnesses(`same 1 ${200 * MIB} ${MIB} something\n`);
  machine.shutDown('poweroff');
  const images = machine.files.map((file) => `${file}.kept`);
  copyAll(machine.files, images);

  const mounted = (disk: number, act: (at: string) => void, ...options: string[]) =>
    machine.elsewhere(disk, (dev) => {
      const at = machine.lab.mount(dev, ...options);
      act(at);
      run('umount', at);
    });
  const write = (at: string) => fs.writeFileSync(join(at, 'new'), 'new', { flush: true });
  const CASES: Array<[what: string, act: () => void, disk0: RegExp | null, disk1: RegExp | null]> =
    [
      ['nothing', () => {}, null, null],
      ['ext4 was mounted', () => mounted(0, () => {}), /root: its file system was mounted/, null],
      ['ext4 was written to', () => mounted(0, write), /root: its file system was mounted/, null],
      // Superblock and log only, which count as dirty in any case: as by a read-only mount.
      ['XFS was mounted, and nothing was written', () => mounted(1, () => {}), null, null],
      [
        'XFS had a block of a file written in place',
        () =>
          mounted(
            1,
            (at) => {
              const name = fs.readdirSync(at).find((one) => fs.statSync(join(at, one)).size > 8192);
              run(
                ...(['dd', 'if=/dev/urandom', `of=${at}/${name}`, 'bs=4096', 'count=1'] as const),
                ...['conv=notrunc', 'oflag=direct', 'status=none'],
              );
            },
            '-o',
            'lazytime,noatime',
          ),
        null,
        /data: its file system was/,
      ],
      [
        'XFS was mounted read-only, as by the initramfs, and not unmounted',
        () =>
          machine.elsewhere(1, (dev) => {
            const at = machine.lab.mount(dev, '-o', 'ro');
            run('cp', '--sparse=always', machine.files[1]!, `${machine.files[1]}.mounted`);
            run('umount', at);
            fs.renameSync(`${machine.files[1]}.mounted`, machine.files[1]!);
          }),
        null,
        null,
      ],
      [
        'XFS was mounted read-only, and unmounted',
        () => mounted(1, () => {}, '-o', 'ro'),
        null,
        /data: its file system was mounted/,
      ],
      ['XFS was written to', () => mounted(1, write), null, /data: its file system was mounted/],
      [
        'XFS was written to, and not unmounted',
        () =>
          mounted(1, (at) => {
            write(at);
            run('xfs_io', '-x', '-c', 'shutdown -f', at);
          }),
        null,
        /data: its file system was/,
      ],
      [
        'a forced check',
        () => machine.elsewhere(0, (dev) => run('e2fsck', '-fy', dev)),
        /root: its file system was mounted/,
        null,
      ],
      [
        'XFS was repaired',
        () => machine.elsewhere(1, (dev) => void run('xfs_repair', dev)),
        null,
        /data: its file system was repaired/,
      ],
      [
        'a place that must not change',
        () =>
          run(
            'dd',
            'if=/dev/urandom',
            `of=${machine.files[1]}`,
            'bs=512',
            'count=1',
            `seek=${(200 * MIB) / 512 + 3}`,
            'conv=notrunc',
            'status=none',
          ),
        null,
        /something: it was changed/,
      ],
      [
        'another file system',
        () => run('mkfs.xfs', '-q', '-f', machine.files[1]!),
        null,
        /data: its file system was/,
      ],
    ];
  for (const [what, act, ...reasons] of CASES) {
    copyAll(images, machine.files);
    act();
    machine.start();
    const carried = (await machine.early()) as Carried;
    t.ok(carried.disks, `${what}: ${JSON.stringify(carried)}`);
    for (const [disk, reason] of reasons.entries()) {
      const told = carried.disks?.[disk];
      if (reason === null) t.equal(told, null, `${what}: disk ${disk}`);
      else t.match(told, reason, `${what}: disk ${disk}`);
    }
    run('umount', machine.mounts[0]!);
    fs.rmSync(machine.lab.pinDir, { recursive: true });
    machine.powerOff();
  }

  // Before the early unit, in the same start: the counters tell.
  copyAll(images, machine.files);
  machine.start();
  await directWrite(machine.devs[1]!, 100 * MIB, 4 * MIB, MIB);
  t.match((await machine.early()) as Carried, {
    disks: { 0: null, 1: /8192 sectors were written before the capture/ },
  });
  run('umount', machine.mounts[0]!);
  fs.rmSync(machine.lab.pinDir, { recursive: true });
  machine.powerOff();

  // The kernel has given the disks each other's names.
  for (const [what, act, ...reasons] of [CASES[0]!, CASES[4]!]) {
    copyAll(images, machine.files);
    act();
    machine.start(1);
    const carried = (await machine.early()) as Carried;
    t.equal(carried.disks?.[0], null, `renamed, ${what}: disk 0`);
    if (reasons[1]) t.match(carried.disks?.[1], reasons[1], `renamed, ${what}: disk 1`);
    else t.equal(carried.disks?.[1], null, `renamed, ${what}: disk 1`);
    const capture = machine.lab.capture();
    const opts = { ringBytes: RING_BYTES, pinDir: machine.lab.pinDir };
    t.ok((await capture.start(machine.disks(), opts)).adopted, 'the right ones are captured');
    await capture.stop({ unpin: true });
    run('umount', machine.mounts[0]!);
    machine.powerOff();
  }

  // A start without the early unit, as into a rescue shell: what was saved is not of the next one any more.
  copyAll(images, machine.files);
  machine.start();
  t.equal(machine.call('save', 'reboot'), '', 'nothing is captured, and nothing saved');
  run('umount', machine.mounts[0]!);
  machine.powerOff();
  machine.start();
  t.match(await machine.early(), { reason: /not shut down in an orderly way/ });
  run('umount', machine.mounts[0]!);
  machine.powerOff();
  // Nor when the agent has come up without it.
  copyAll(images, machine.files);
  machine.start();
  run(helperPath({}), 'area', machine.area);
  t.match(await machine.early(), { reason: /not shut down in an orderly way/ });
  run('umount', machine.mounts[0]!);
  machine.powerOff();

  // What was saved is used once, whatever comes of it.
  copyAll(images, machine.files);
  machine.start();
  const first = await machine.early();
  t.match(first, { disks: { 0: null, 1: null } });
  t.same(await machine.early(), first, 'called again by hand it changes nothing');
  t.ok(fs.existsSync(machine.lab.pinDir), 'and the capture goes on');
  run('umount', machine.mounts[0]!);
  fs.rmSync(machine.lab.pinDir, { recursive: true });
  machine.powerOff();
  machine.start();
  t.match(await machine.early(), { reason: 'the server was not shut down in an orderly way' });
  t.notOk(fs.existsSync(machine.lab.pinDir), 'nothing is attached');
  run('umount', machine.mounts[0]!);
  machine.powerOff();

  // Damaged: neither its head nor its text is believed, be it another number that reads as well.
  for (const [part, reason] of [
    ['head', /nothing was saved/],
    ['text', /damaged/],
  ] as const) {
    copyAll(images, machine.files);
    machine.start();
    const map = openFileMap();
    const { extents } = (await map.map(machine.mounts[0]!, 'save-area'))!;
    await map.close();
    const fd = fs.openSync(machine.files[0]!, 'r+');
    const at = extents[0]!.physicalBytes + (part === 'head' ? 0 : 4096);
    const bytes = Buffer.alloc(64 * 1024);
    fs.readSync(fd, bytes, 0, bytes.length, at);
    const digit = part === 'head' ? 16 : bytes.indexOf('\nrun ') + 7;
    t.ok(digit > 7, 'a run of blocks is among what was saved');
    bytes[digit]! ^= 1;
    fs.writeSync(fd, bytes, digit, 1, at + digit);
    fs.closeSync(fd);
    t.match(await machine.early(), { reason });
    run('umount', machine.mounts[0]!);
    machine.powerOff();
  }
});

t.test('what cannot be saved is not saved', { skip }, async (t) => {
  const { machine, capture, replayer } = await ran(t, 13);
  await capture.stop({ unpin: false });
  replayer.close();
  machine.witnesses();
  const refused = (...rest: string[]) => {
    try {
      machine.call('save', ...rest);
      return 'saved';
    } catch (error) {
      return (error as { stdout: string }).stdout;
    }
  };
  t.match(refused('reboot'), /still mounted for writing/);
  run('umount', machine.mounts[1]!);
  t.match(
    refused('reboot'),
    new RegExp(`${basename(machine.devs[0]!)} is still mounted for writing`),
  );
  run('mount', '-o', 'remount,ro', machine.mounts[0]!);
  t.match(refused('kexec'), /kexec is not carried over/);
  const list = join(machine.runDir, 'witnesses');
  fs.renameSync(list, `${list}.kept`);
  t.match(refused('reboot'), /was not looked at/);
  fs.renameSync(`${list}.kept`, list);
  t.ok(fs.existsSync(machine.lab.pinDir), 'the capture goes on');
  // A partition that was made behind the last look at the disks.
  run('addpart', machine.devs[1]!, '1', '2048', '2048');
  t.match(machine.call('save', 'reboot'), /is carried over/);
  run('delpart', machine.devs[1]!, '1');
  run('umount', machine.mounts[0]!);
  machine.powerOff();
  machine.start();
  t.match((await machine.early()) as Carried, {
    disks: { 0: null, 1: /partitioned since it was looked at/ },
  });
  run('umount', machine.mounts[0]!);
  fs.rmSync(machine.lab.pinDir, { recursive: true });
  machine.powerOff();
});
