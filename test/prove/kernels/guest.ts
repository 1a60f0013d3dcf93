/** A guest with a stock Debian kernel, its disks, and a way to run commands and the capture helper in it. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';

const ROOT = join(import.meta.dirname, '../../..');
const HERE = import.meta.dirname;

export const SUITES = ['bullseye', 'bookworm', 'trixie'] as const;
export type Suite = (typeof SUITES)[number];
export const BUSES = ['virtio-blk', 'virtio-scsi', 'nvme', 'ahci'] as const;
export type Bus = (typeof BUSES)[number];

export type GuestDisk = { bus: Bus; file: string };
/** `dm` and `nvme`: one more disk with two paths to it, of that kind. */
export type Paths = { kind: 'dm' | 'nvme'; file: string };

const PORTS = [
  ...['shell', 'run', 'run.in', 'run.out', 'run.ctl'],
  ...['read', 'read.in', 'read.out', 'freeze', 'freeze.in', 'freeze.out'],
];
// A boot takes 10 s on an idle machine; the rest is for one that is not.
const BOOT_LIMIT_MS = 300_000;

const sh = (command: string, ...args: string[]) =>
  execFileSync(command, args, {
    cwd: ROOT,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  });

/** Builds the guest of a suite unless it is built, and what changes more often than it. Returns its initramfs. */
function build(suite: Suite, dir: string): { kernel: string; initrd: string; release: string } {
  sh(join(HERE, 'build-guest.sh'), suite);
  const top = join(dir, 'top');
  for (const folder of ['usr/bin', 'usr/lib/kernels']) {
    fs.mkdirSync(join(top, folder), { recursive: true });
  }
  fs.copyFileSync(join(HERE, 'guest/init'), join(top, 'init'));
  for (const name of fs.readdirSync(join(HERE, 'guest'))) {
    if (name.endsWith('.sh')) {
      fs.copyFileSync(join(HERE, 'guest', name), join(top, 'usr/lib/kernels', name));
    }
  }
  fs.copyFileSync(
    join(ROOT, 'build/capture/understudy-capture'),
    join(top, 'usr/bin/understudy-capture'),
  );
  const io = join(top, 'usr/bin/kernels-io');
  const options = ['-std=gnu17', '-O2', '-Wall', '-Wextra', '-Werror', '-static', '-pthread'];
  sh('gcc', ...options, '-o', io, join(HERE, 'guest/kernels-io.c'));
  const built = join(ROOT, 'build/kernels', suite);
  const initrd = join(dir, 'initrd');
  const cpio = 'find . | cpio -o -H newc -R 0:0 --quiet';
  sh('bash', '-c', `cd '${top}' && cat '${built}/base.cpio' <(${cpio}) > '${initrd}'`);
  const release = fs.readFileSync(join(built, 'release'), 'utf8').trim();
  return { kernel: join(built, 'vmlinuz'), initrd, release };
}

function diskArgs(disks: readonly GuestDisk[], paths: readonly Paths[]): string[] {
  const args = ['-device', 'virtio-scsi-pci,id=scsi'];
  const counts = new Map<Bus, number>();
  for (const [i, { bus, file }] of disks.entries()) {
    const n = counts.get(bus) ?? 0;
    counts.set(bus, n + 1);
    const drive = `if=none,id=d${i},file=${file},format=raw,cache=unsafe,discard=unmap`;
    const device: Record<Bus, string> = {
      'virtio-blk': `virtio-blk-pci,drive=d${i},serial=blk${n}`,
      'virtio-scsi': `scsi-hd,drive=d${i},bus=scsi.0,lun=${n},serial=scsi${n}`,
      nvme: `nvme,drive=d${i},serial=nvme${n}`,
      ahci: `ide-hd,drive=d${i},bus=ide.${n},serial=ahci${n}`,
    };
    args.push('-drive', drive, '-device', device[bus]);
  }
  for (const { kind, file } of paths) {
    if (kind === 'dm') {
      for (const path of ['a', 'b']) {
        const drive = `if=none,id=path${path},file=${file},format=raw,cache=unsafe,file.locking=off`;
        const device = `scsi-hd,drive=path${path},bus=scsi.0,lun=${path === 'a' ? 10 : 11}`;
        args.push('-drive', drive, '-device', `${device},serial=twopaths,wwn=0x5000c50015ea71aa`);
      }
    } else {
      args.push('-device', 'nvme-subsys,id=sub,nqn=twopaths');
      for (const path of ['a', 'b']) {
        args.push('-device', `nvme,id=ctl${path},serial=twopaths,subsys=sub`);
      }
      args.push('-drive', `if=none,id=ns,file=${file},format=raw,cache=unsafe`);
      args.push('-device', 'nvme-ns,drive=ns,bus=ctla,nsid=1,shared=on');
    }
  }
  return args;
}

export class KernelGuest {
  readonly release: string;
  /** What the product takes for its capture helper: runs it in the guest. */
  readonly helperPath: string;
  readonly #qemu: ChildProcess;
  readonly #ended: Promise<void>;
  #shell!: Socket;
  #console = '';
  #answer = '';
  #onAnswer: () => void = () => {};
  #dead = false;

  private constructor(dir: string, release: string, args: string[]) {
    this.release = release;
    this.helperPath = join(dir, 'understudy-capture');
    fs.writeFileSync(
      this.helperPath,
      `#!/bin/sh\nexec '${process.execPath}' --disable-warning=ExperimentalWarning '${join(HERE, 'bridge.ts')}' '${dir}' "$@"\n`,
      { mode: 0o755 },
    );
    const qemu = spawn('qemu-system-x86_64', args, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#qemu = qemu;
    for (const stream of [qemu.stdout, qemu.stderr]) {
      stream?.on('data', (chunk: Buffer) => {
        this.#console += chunk.toString();
      });
    }
    this.#ended = new Promise((resolve) => {
      qemu.once('error', (error) => {
        this.#console += error.message;
        resolve();
      });
      qemu.once('exit', () => resolve());
    });
    const end = () => qemu.kill('SIGKILL');
    process.once('exit', end);
    void this.#ended.then(() => {
      this.#dead = true;
      this.#onAnswer();
      process.off('exit', end);
    });
  }

  /** Boots it in `dir` (a folder of its own, with a short path). Throws with the console when it does not come up. */
  static async boot(
    suite: Suite,
    dir: string,
    disks: readonly GuestDisk[],
    paths: readonly Paths[] = [],
  ): Promise<KernelGuest> {
    const { kernel, initrd, release } = build(suite, dir);
    const type = sh(
      'bash',
      '-c',
      'source scripts/lib/env.sh; source scripts/lib/lab.sh; lab_virt_type',
    ).trim();
    const args = [
      ...['-machine', 'q35', '-accel', type === 'kvm' ? 'kvm' : 'tcg'],
      ...['-cpu', type === 'kvm' ? 'host' : 'max', '-smp', '1', '-m', '768'],
      ...['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-serial', 'stdio'],
      ...['-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1'],
      ...['-device', 'virtio-serial-pci,max_ports=16'],
    ];
    for (const [i, port] of PORTS.entries()) {
      const path = join(dir, port);
      args.push('-chardev', `socket,id=p${i},path=${path},server=on,wait=off`);
      args.push('-device', `virtserialport,chardev=p${i},name=${port}`);
    }
    const guest = new KernelGuest(dir, release, [...args, ...diskArgs(disks, paths)]);
    const end = Date.now() + BOOT_LIMIT_MS;
    while (!guest.#console.includes('UNDERSTUDY-GUEST: ready')) {
      if (guest.#dead || Date.now() > end) {
        await guest.stop();
        throw new Error(`the guest of ${suite} did not come up:\n${guest.#console.slice(-4000)}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    guest.#shell = connect(join(dir, 'shell'));
    guest.#shell.on('data', (chunk: Buffer) => {
      guest.#answer += chunk.toString();
      guest.#onAnswer();
    });
    guest.#shell.on('error', () => {});
    return guest;
  }

  /** Runs one line in the guest; its output. Throws with the output when it fails. One at a time. */
  async shell(line: string): Promise<string> {
    this.#answer = '';
    const done = Promise.withResolvers<void>();
    const exit = /^##EXIT (\d+)\n/m;
    this.#onAnswer = () => {
      if (this.#dead || exit.test(this.#answer)) done.resolve();
    };
    this.#onAnswer();
    this.#shell.write(`${line}\n`);
    await done.promise;
    const end = exit.exec(this.#answer);
    if (!end) throw new Error(`the guest ended:\n${this.#console.slice(-4000)}`);
    const output = this.#answer.slice(0, end.index);
    if (end[1] !== '0') throw new Error(`\`${line}\` failed (${end[1]}) in the guest:\n${output}`);
    return output;
  }

  /**
   * The disks of a bus in the order in which they were given. The kernel looks for them in parallel, so their names say
   * nothing of that order; PCI slots, ATA ports and logical units do.
   */
  async disks(bus: Bus): Promise<string[]> {
    const links = await this.shell('for b in /sys/block/*; do readlink -f $b; done');
    const order: Record<Bus, RegExp> = {
      'virtio-blk': /\/0000:00:([\da-f]+)\.0\/virtio\d+\/block\/vd[a-z]$/,
      'virtio-scsi': /\/virtio\d+\/host\d+\/.*:([\da-f]+)\/block\/sd[a-z]$/,
      nvme: /\/0000:00:([\da-f]+)\.0\/nvme\/nvme\d+\/nvme\d+n1$/,
      ahci: /\/ata([\da-f]+)\/.*\/block\/sd[a-z]$/,
    };
    const found: { name: string; key: number }[] = [];
    for (const link of links.split('\n')) {
      const place = order[bus].exec(link)?.[1];
      const name = link.slice(link.lastIndexOf('/') + 1);
      if (place) found.push({ name, key: Number.parseInt(place, 16) });
    }
    return found.sort((x, y) => x.key - y.key).map(({ name }) => `/dev/${name}`);
  }

  /** Everything the kernel said, by then. */
  console(): string {
    return this.#console;
  }

  async stop(): Promise<void> {
    this.#shell?.destroy();
    this.#qemu.kill('SIGKILL');
    await this.#ended;
  }
}
