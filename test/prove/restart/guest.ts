/** A Debian guest as it is installed, on disks of its own, that is shut down and started again. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { agentPaths, EARLY_UNIT_NAME } from '../../../agent/config.ts';
import { LSBLK_COLUMNS, parseLsblk, walk } from '../../../agent/inventory/lsblk.ts';
import { earlyUnitText, hookText } from '../../../agent/restart/early-boot.ts';
import { type Layout, parseDmTable } from '../../../agent/restart/witnesses.ts';
import { KernelGuest } from '../kernels/guest.ts';

export const SUITES = ['bullseye', 'bookworm', 'trixie'] as const;
export type Suite = (typeof SUITES)[number];
export const LAYOUTS = ['ext4', 'xfs', 'lvm'] as const;
export type LayoutName = (typeof LAYOUTS)[number];

const ROOT = join(import.meta.dirname, '../../..');
const HERE = import.meta.dirname;
const MIB = 1024 * 1024;
const ROOT_MIB = 1400;
const DATA_MIB = 320;
const LIMIT_MS = 300_000;
const paths = agentPaths();

const sh = (script: string, ...args: string[]): string =>
  execFileSync('bash', ['--norc', '-euo', 'pipefail', '-c', script, 'bash', ...args], {
    cwd: ROOT,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'pipe'],
  });

export interface GuestDisks {
  dir: string;
  /** By index: the root disk, the data disk. */
  files: [string, string];
  /** Where the root file system lies on its disk. */
  rootOffsetBytes: number;
  dataOffsetBytes: number;
  kernel: string;
  initrd: string;
  rootDevice: string;
  fsType: 'ext4' | 'xfs';
}

/** What an installation with the agent has, and the proof's own service. */
function furnish(tree: string, layout: LayoutName, rootDevice: string): void {
  const put = (path: string, text: string, mode = 0o644) => {
    fs.mkdirSync(join(tree, path, '..'), { recursive: true });
    fs.writeFileSync(join(tree, path), text, { mode });
  };
  const type = layout === 'xfs' ? 'xfs' : 'ext4';
  // An emulated guest finds its disks in its own time.
  const waits = 'x-systemd.device-timeout=900';
  const swap = layout === 'lvm' ? '' : `/dev/vda2 none swap sw,${waits} 0 0\n`;
  const data = layout === 'xfs' ? '/dev/vdb' : '/dev/vdb1';
  put(
    'etc/fstab',
    `${rootDevice} / ${type} defaults 0 1\n${swap}${data} /srv/data ${type} defaults,${waits} 0 2\n`,
  );
  put(
    'etc/systemd/system.conf.d/patient.conf',
    '[Manager]\nDefaultTimeoutStartSec=900\nDefaultTimeoutStopSec=900\n',
  );
  fs.mkdirSync(join(tree, 'srv/data'), { recursive: true });
  put(paths.shutdownHook, hookText(paths), 0o755);
  put(paths.earlyUnitFile, earlyUnitText(paths));
  const wants = join(tree, 'etc/systemd/system/sysinit.target.wants');
  fs.mkdirSync(wants, { recursive: true });
  fs.symlinkSync(`../${EARLY_UNIT_NAME}`, join(wants, EARLY_UNIT_NAME));
  put('usr/lib/understudy/columns', LSBLK_COLUMNS);
  // Zeroes would become holes on their way into the image.
  fs.writeFileSync(join(tree, paths.saveArea), Buffer.alloc(16 * MIB, 0xff));
  fs.copyFileSync(
    join(ROOT, 'build/capture/understudy-capture'),
    join(tree, 'usr/lib/understudy/understudy-capture'),
  );
  fs.copyFileSync(join(HERE, 'guest/proof.sh'), join(tree, 'usr/lib/understudy/proof.sh'));
  put(
    'etc/systemd/system/proof.service',
    '[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/usr/lib/understudy/proof.sh\n[Install]\nWantedBy=multi-user.target\n',
  );
  const multi = join(tree, 'etc/systemd/system/multi-user.target.wants');
  fs.mkdirSync(multi, { recursive: true });
  fs.symlinkSync('../proof.service', join(multi, 'proof.service'));
}

/** The disks of a fresh installation, in `dir`. */
export async function install(suite: Suite, layout: LayoutName, dir: string): Promise<GuestDisks> {
  sh('"$1" "$2"', join(HERE, 'build-guest.sh'), suite);
  const built = join(ROOT, 'build/restart', suite);
  const tree = join(dir, 'tree');
  const files: [string, string] = [join(dir, 'root.img'), join(dir, 'data.img')];
  const rootDevice = layout === 'lvm' ? '/dev/mapper/group-root' : '/dev/vda1';
  fs.mkdirSync(tree);
  sh('tar -C "$1" --numeric-owner -xf "$2"', tree, join(built, 'tree.tar'));
  furnish(tree, layout, rootDevice);
  for (const [at, mib] of [ROOT_MIB, DATA_MIB].entries()) {
    fs.writeFileSync(files[at]!, '');
    fs.truncateSync(files[at]!, mib * MIB);
  }
  let rootOffsetBytes = MIB;
  const dataOffsetBytes = layout === 'xfs' ? 0 : MIB;
  const rootMib = ROOT_MIB - 80;
  if (layout === 'lvm') {
    const guest = await KernelGuest.boot('bookworm', dir, [{ bus: 'virtio-blk', file: files[0] }]);
    const [dev] = await guest.disks('virtio-blk');
    await guest.shell(`lvm pvcreate -q ${dev} && lvm vgcreate -q group ${dev}`);
    await guest.shell(`lvm lvcreate -q -an -Zn -Wn -n root -L ${rootMib}M group && sync`);
    const start = await guest.shell('lvm pvs --noheadings --units b --nosuffix -o pe_start');
    rootOffsetBytes = Number(start.trim().split(/\s+/).at(-1));
    await guest.stop();
  } else {
    sh(
      'printf "start=1MiB,size=$2MiB,type=83\\ntype=82\\n" | sfdisk -q "$1"',
      files[0],
      String(rootMib),
    );
    const swap = `${files[0]}.swap`;
    fs.writeFileSync(swap, '', { mode: 0o600 });
    fs.truncateSync(swap, 64 * MIB);
    const start = String(1 + rootMib);
    sh(
      'mkswap -q "$1" && dd if="$1" of="$2" bs=1M seek="$3" conv=notrunc,sparse status=none',
      swap,
      files[0],
      start,
    );
  }
  if (layout !== 'xfs') sh('printf "label:gpt\\nstart=1MiB\\n" | sfdisk -q "$1"', files[1]);
  const make = (file: string, from: string, offset: number, mib: number) => {
    if (layout === 'xfs') {
      sh(
        'dev=$(losetup -f --show -o "$3" --sizelimit $(($4 << 20)) "$1"); at=$(mktemp -d); trap \'umount "$at"; losetup -d "$dev"; rmdir "$at"\' EXIT; mkfs.xfs -q -f "$dev"; mount "$dev" "$at"; cp -a "$2/." "$at/"',
        ...[file, from, String(offset), String(mib)],
      );
    } else {
      sh(
        'mke2fs -q -F -t ext4 -b 4096 -d "$2" -E "offset=$3,root_owner=0:0" "$1" "$4M"',
        file,
        from,
        String(offset),
        String(mib),
      );
    }
  };
  make(files[0], tree, rootOffsetBytes, rootMib);
  const empty = join(dir, 'empty');
  fs.mkdirSync(empty);
  make(
    files[1],
    empty,
    dataOffsetBytes,
    DATA_MIB - dataOffsetBytes / MIB - (dataOffsetBytes ? 1 : 0),
  );
  fs.rmSync(tree, { recursive: true });
  return {
    dir,
    files,
    rootOffsetBytes,
    dataOffsetBytes,
    kernel: join(built, 'vmlinuz'),
    initrd: join(built, 'initrd.img'),
    rootDevice,
    fsType: layout === 'xfs' ? 'xfs' : 'ext4',
  };
}

/** The file `path` of the root file system of a guest that is off. */
export function readRootFile(disks: GuestDisks, path: string): Buffer {
  const options = disks.fsType === 'xfs' ? 'ro,norecovery' : 'ro,noload';
  const copy = join(disks.dir, 'read.bin');
  sh(
    'at=$(mktemp -d); mount -o "loop,offset=$2,$3" "$1" "$at"; trap \'umount "$at"; rmdir "$at"\' EXIT; cp "$at/$4" "$5"',
    ...[disks.files[0], String(disks.rootOffsetBytes), options, path, copy],
  );
  const data = fs.readFileSync(copy);
  fs.rmSync(copy);
  return data;
}

/** One run of the guest, from its start to its end. */
export class Running {
  /** What `early` told. */
  carried: { reason?: string; disks?: Record<string, string | null> } = {};
  /** How long `early` took, ms. */
  earlyMs = 0;
  layout!: Layout;
  readonly #disks: GuestDisks;
  readonly #qemu: ChildProcess;
  readonly #ended: Promise<void>;
  #answers = '';
  #dead = false;
  #asked = 0;

  private constructor(disks: GuestDisks, accel: string, kernelOptions: string) {
    this.#disks = disks;
    const asked = join(disks.dir, 'asked.img');
    fs.writeFileSync(asked, Buffer.alloc(64 * 1024));
    const drives = [...disks.files, asked].flatMap((file, at) => [
      ...['-drive', `if=none,id=d${at},file=${file},format=raw,cache=unsafe`],
      ...['-device', `virtio-blk-pci,drive=d${at},serial=disk${at}`],
    ]);
    const args = [
      ...['-machine', 'q35', '-accel', accel, '-cpu', accel === 'kvm' ? 'host' : 'max'],
      ...['-smp', '1', '-m', '640', '-nodefaults', '-no-user-config', '-display', 'none'],
      ...[
        '-no-reboot',
        '-serial',
        `file:${join(disks.dir, 'console.log')}`,
        '-serial',
        'stdio',
        '-kernel',
        disks.kernel,
        '-initrd',
        disks.initrd,
      ],
      ...['-append', `root=${disks.rootDevice} ro console=ttyS0 quiet panic=-1 ${kernelOptions}`],
    ];
    this.#qemu = spawn('qemu-system-x86_64', [...args, ...drives], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const stream of [this.#qemu.stdout, this.#qemu.stderr]) {
      stream?.on('data', (chunk: Buffer) => {
        this.#answers += chunk.toString();
      });
    }
    this.#ended = new Promise((resolve) => {
      this.#qemu.once('error', (error) => {
        this.#answers += error.message;
        resolve();
      });
      this.#qemu.once('exit', () => resolve());
    });
    const end = () => this.#qemu.kill('SIGKILL');
    process.once('exit', end);
    void this.#ended.then(() => {
      this.#dead = true;
      process.off('exit', end);
    });
  }

  static async start(disks: GuestDisks, kernelOptions = ''): Promise<Running> {
    const accel = sh('. scripts/lib/env.sh; . scripts/lib/lab.sh; lab_virt_type').trim();
    const guest = new Running(disks, accel === 'kvm' ? 'kvm' : 'tcg', kernelOptions);
    await guest.#until(() => guest.#said('ready').length > 0, 'the guest to be up');
    guest.carried = JSON.parse(guest.#said('carried')[0] ?? '{}');
    const [from, to] = (guest.#said('early')[0] ?? '').trim().split(/\s+/).map(Number);
    guest.earlyMs = ((to ?? 0) - (from ?? 0)) / 1000;
    guest.layout = guest.#layout();
    return guest;
  }

  get console(): string {
    const log = fs.readFileSync(join(this.#disks.dir, 'console.log'), 'utf8');
    return `${log.slice(-3000)}\n${this.#answers.slice(-1000)}`;
  }

  #said(word: string): string[] {
    return [...this.#answers.matchAll(new RegExp(`^PROOF: ${word}\\b ?(.*?)\\r?$`, 'gm'))].map(
      (match) => match[1] ?? '',
    );
  }

  #layout(): Layout {
    const forest = parseLsblk(this.#said('lsblk')[0] ?? '{}');
    const starts = new Map(
      this.#said('part').map((line) => {
        const [dev, sectors] = line.split(' ');
        return [dev!, Number(sectors) * 512];
      }),
    );
    const dmTables = new Map(
      this.#said('dm').map((line) => {
        const at = line.indexOf(' ');
        return [line.slice(0, at), parseDmTable(line.slice(at + 1))];
      }),
    );
    const disks = ['vda', 'vdb'].map((name, index) => {
      const node = forest.find((root) => root.name === name);
      if (!node)
        throw new Error(
          `${name} is not among ${forest.flatMap((n) => [...walk(n)].map((one) => one.name))}`,
        );
      return { index, node, partitionStarts: starts };
    });
    return { disks, dmTables, bootFiles: [] };
  }

  async #until(condition: () => boolean, what: string): Promise<void> {
    const end = Date.now() + LIMIT_MS;
    while (!condition()) {
      if (this.#dead || Date.now() > end) {
        this.kill();
        throw new Error(`waited for ${what}:\n${this.console}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  /** Has a command of proof.sh done. */
  async ask(command: string, body = ''): Promise<void> {
    const id = ++this.#asked;
    const block = Buffer.alloc(64 * 1024);
    block.write(`${id} ${command}\n${body}`);
    const fd = fs.openSync(join(this.#disks.dir, 'asked.img'), 'r+');
    fs.writeSync(fd, block, 0, block.length, 0);
    fs.closeSync(fd);
    await this.#until(() => this.#said(`done ${id}`).length > 0, `'${command}'`);
    const [failed] = this.#said('failed');
    if (failed !== undefined) throw new Error(failed);
  }

  async powerOff(): Promise<void> {
    await this.ask('poweroff');
    const timer = setTimeout(() => this.#qemu.kill('SIGKILL'), LIMIT_MS);
    await this.#ended;
    clearTimeout(timer);
    if (this.#qemu.signalCode) throw new Error(`it did not power off:\n${this.console}`);
  }

  /** The plug is pulled. */
  async cut(): Promise<void> {
    this.kill();
    await this.#ended;
  }

  kill(): void {
    this.#qemu.kill('SIGKILL');
  }
}
