/**
 * What is changed in a guest so that it runs on the replica's hardware: virtio-scsi disks and one virtio network
 * interface with another MAC address. Each fix looks first and changes only what needs it, keeps the original beside it
 * (`*.understudy-DATE`), and says in words what it did. A fix that fails does not keep the others from being made.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { asUndError, undError } from '../../../protocol/errors.ts';
import type { PrepareReport, PrepareRequest, Unfixable } from '../types.ts';
import {
  type GuestPartition,
  type Rewritten,
  replaceMac,
  rewriteCommandLines,
  rewriteTable,
} from './devices.ts';
import type { GuestRoot } from './guest-root.ts';
import {
  appendable,
  extension,
  type Initramfs,
  modulesFolder,
  modulesIn,
  readInitramfs,
} from './initramfs.ts';
import {
  closure,
  type ModuleDep,
  moduleName,
  parseModulesBuiltin,
  parseModulesDep,
} from './modules.ts';

/** What it takes to reach a disk on a virtio-scsi controller. */
export const BOOT_DRIVERS = ['virtio_pci', 'virtio_scsi', 'sd_mod'] as const;
const NETWORK_DRIVER = 'virtio_net';

export interface Guest {
  root: GuestRoot;
  request: PrepareRequest;
  partitions: readonly GuestPartition[];
  report: PrepareReport;
}

/** `20260102T030405Z`: fit for a file name. */
export const stamp = (at: string): string => at.replace(/\.\d+/, '').replaceAll(/[-:]/g, '');

const unfixable = (guest: Guest, item: Unfixable): void => {
  const known = guest.report.unfixable.some(({ message }) => message === item.message);
  if (!known) guest.report.unfixable.push(item);
};

const coded = (error: unknown): Unfixable => {
  const known = asUndError(error);
  const { code, message } =
    known.code === 'UND_INTERNAL'
      ? undError('UND_GUEST_PREPARE_FAILED', { reason: (error as Error).message ?? String(error) })
      : known;
  return { code, message };
};

/** Keeps the original; in folders that are read as a whole under a name that starts with a dot, so it isn't read. */
function backUp(guest: Guest, path: string, hidden = false): void {
  const name = path.slice(path.lastIndexOf('/') + 1);
  guest.root.copy(path, `${hidden ? '.' : ''}${name}.understudy-${stamp(guest.request.at)}`);
}

function apply(guest: Guest, path: string, result: Rewritten, hidden = false): void {
  for (const device of result.unknown) {
    unfixable(guest, coded(undError('UND_GUEST_DEVICE_NAME', { file: path, device })));
  }
  if (result.changes.length === 0) return;
  backUp(guest, path, hidden);
  guest.root.write(path, result.text);
  guest.report.changes.push(`${path}: ${result.changes.join(', ')}`);
}

// ---- the agent ---------------------------------------------------------------------------------------------------
/** The agent in the replica wakes up passive: it says hello with its own identity and captures nothing. */
export function agentPassive(guest: Guest): void {
  const { root, request, report } = guest;
  if (!root.isFolder('/var/lib/understudy-agent')) return;
  const marker = {
    reason: `this is the replica made by failover ${request.failoverId}`,
    failoverId: request.failoverId,
    jobId: request.jobId,
    at: request.at,
  };
  root.write('/var/lib/understudy-agent/passive', `${JSON.stringify(marker)}\n`, 0o600);
  report.changes.push('/var/lib/understudy-agent/passive: the agent starts in its passive role');
}

// ---- device names ------------------------------------------------------------------------------------------------
export function deviceNames(guest: Guest): void {
  const { root, partitions, report } = guest;
  for (const [path, field] of [
    ['/etc/fstab', 0],
    ['/etc/crypttab', 1],
  ] as const) {
    const text = root.text(path);
    if (text !== null) apply(guest, path, rewriteTable(text, field, partitions));
  }
  const inFolder = (folder: string, suffix: string): string[] =>
    root
      .list(folder)
      .filter((name) => !name.startsWith('.') && name.endsWith(suffix))
      .map((name) => `${folder}/${name}`);
  const alone = ['/boot/grub/grub.cfg', '/boot/grub2/grub.cfg', '/etc/kernel/cmdline'];
  const inFolders = [
    ...inFolder('/etc/default/grub.d', '.cfg'),
    ...inFolder('/boot/loader/entries', '.conf'),
    ...inFolder('/etc/initramfs-tools/conf.d', ''),
  ];
  for (const path of [...alone, ...inFolders]) {
    const text = root.text(path);
    if (text !== null) {
      apply(guest, path, rewriteCommandLines(text, partitions), inFolders.includes(path));
    }
  }
  grubDefaults(guest);
  for (const path of ['/boot/grub/device.map', '/boot/grub2/device.map']) {
    if (root.isFile(path)) {
      root.rename(path, `device.map.understudy-${stamp(guest.request.at)}`);
      report.changes.push(`${path}: set aside, it names disks that are gone`);
    }
  }
}

/** So that the next update-grub in the replica does not bring device names back. */
function grubDefaults(guest: Guest): void {
  const path = '/etc/default/grub';
  const text = guest.root.text(path);
  if (text === null) return;
  const result = rewriteCommandLines(text, guest.partitions);
  const uuids = result.text.replace(
    /^(\s*GRUB_DISABLE_LINUX_(?:PART)?UUID=["']?true["']?\s*)$/gm,
    '# $1  # Understudy: device names change with the disk bus',
  );
  if (uuids !== result.text) {
    result.text = uuids;
    result.changes.push('boot entries name the root file system by its UUID from now on');
  }
  apply(guest, path, result);
}

/** Caches of who is where: wrong on other hardware, and rebuilt when they are missing. */
export function staleCaches(guest: Guest): void {
  const { root, report } = guest;
  for (const path of ['/etc/blkid.tab', '/etc/blkid/blkid.tab', '/etc/lvm/cache/.cache']) {
    if (root.isFile(path)) {
      root.remove(path);
      report.changes.push(`${path}: removed, a stale cache`);
    }
  }
  const devices = '/etc/lvm/devices/system.devices';
  if (root.isFile(devices)) {
    root.rename(devices, `system.devices.understudy-${stamp(guest.request.at)}`);
    report.changes.push(`${devices}: set aside, it ties LVM to the old disks`);
  }
}

// ---- network -----------------------------------------------------------------------------------------------------
export const linkFile = (name: string, mac: string, source: string): string =>
  `# Written by Understudy: the interface that was ${name} on ${source} keeps its name here.\n` +
  `[Match]\nMACAddress=${mac}\n\n[Link]\nName=${name}\n`;

const MAC_FOLDERS = [
  '/etc/systemd/network',
  '/etc/netplan',
  '/etc/NetworkManager/system-connections',
  '/etc/network/interfaces.d',
  '/etc/udev/rules.d',
  '/etc/sysconfig/network-scripts',
];

/** The guest configures its network by interface name or by MAC address; the new interface answers to both. */
export function network(guest: Guest): void {
  const { root, request, report } = guest;
  const files = [
    '/etc/network/interfaces',
    ...MAC_FOLDERS.flatMap((folder) =>
      root
        .list(folder)
        .filter((name) => !name.startsWith('.') && !name.includes('.understudy-'))
        .map((name) => `${folder}/${name}`),
    ),
  ];
  for (const nic of request.nics) {
    for (const path of files) {
      const text = root.text(path);
      if (text === null) continue;
      const changed = replaceMac(text, nic.sourceMac, nic.mac);
      if (changed === text) continue;
      backUp(guest, path, path !== '/etc/network/interfaces');
      root.write(path, changed);
      report.changes.push(`${path}: ${nic.sourceMac} → ${nic.mac}`);
    }
    const path = linkPath(nic.name);
    if (root.isFolder('/lib/systemd') || root.isFolder('/usr/lib/systemd')) {
      root.write(path, linkFile(nic.name, nic.mac, 'the source server'));
      report.changes.push(`${path}: ${nic.mac} is called ${nic.name}, as on the source server`);
    } else {
      const rule = `SUBSYSTEM=="net", ACTION=="add", ATTR{address}=="${nic.mac.toLowerCase()}", NAME="${nic.name}"\n`;
      root.write('/etc/udev/rules.d/70-understudy-net.rules', rule);
      report.changes.push(`/etc/udev/rules.d/70-understudy-net.rules: ${nic.mac} is ${nic.name}`);
    }
  }
  for (const name of request.droppedNics) {
    report.changes.push(`interface ${name} of the source server has no counterpart here`);
  }
}

/** Sorted before every other link file: the first that matches is taken. */
const linkPath = (name: string): string => `/etc/systemd/network/00-understudy-${name}.link`;

// ---- drivers -----------------------------------------------------------------------------------------------------
/** Kernels by the folders of their modules. */
const kernelsOf = (root: GuestRoot): string[] =>
  root.list('/lib/modules').filter((name) => root.isFile(`/lib/modules/${name}/modules.dep`));

export async function drivers(guest: Guest): Promise<void> {
  const { root } = guest;
  const kernels = kernelsOf(root);
  for (const kernel of kernels) {
    const text = (name: string): string => root.text(`/lib/modules/${kernel}/${name}`) ?? '';
    const dep = parseModulesDep(text('modules.dep'));
    const builtin = parseModulesBuiltin(text('modules.builtin'));
    for (const module of closure([NETWORK_DRIVER], dep, builtin).missing) {
      unfixable(guest, coded(undError('UND_GUEST_DRIVER_MISSING', { kernel, module })));
    }
    const needed = closure(BOOT_DRIVERS, dep, builtin);
    for (const module of needed.missing) {
      unfixable(guest, coded(undError('UND_GUEST_DRIVER_MISSING', { kernel, module })));
    }
    for (const path of initramfsOf(root, kernel)) {
      try {
        await extendInitramfs(guest, path, kernel, needed.modules);
      } catch (error) {
        const { code } = asUndError(error);
        unfixable(
          guest,
          coded(
            code === 'UND_INTERNAL'
              ? undError('UND_GUEST_INITRAMFS', { file: path, reason: (error as Error).message })
              : error,
          ),
        );
      }
    }
  }
  keepDrivers(guest);
  if (kernels.length === 0) {
    const kernel = 'of unknown version';
    unfixable(
      guest,
      coded(undError('UND_GUEST_DRIVER_MISSING', { kernel, module: 'virtio_scsi' })),
    );
  }
}

const initramfsOf = (root: GuestRoot, kernel: string): string[] =>
  [`initrd.img-${kernel}`, `initrd-${kernel}`, `initrd-${kernel}.img`, `initramfs-${kernel}.img`]
    .map((name) => `/boot/${name}`)
    .filter((path) => root.isFile(path));

async function extendInitramfs(
  guest: Guest,
  path: string,
  kernel: string,
  needed: Map<string, ModuleDep>,
): Promise<void> {
  const { root, request, report } = guest;
  const file = root.resolve(path);
  const wanted = (name: string) => name === 'conf/modules' || name.endsWith('/modules.dep');
  const image: Initramfs = await readInitramfs(file, wanted);
  const present = modulesIn(image, kernel);
  const absent = [...needed].filter(([name]) => !present.has(name));
  const links = request.nics
    .filter(() => image.entries.has('usr/lib/systemd/network'))
    .map((nic) => ({
      name: `usr/lib/systemd/network/00-understudy-${nic.name}.link`,
      data: Buffer.from(linkFile(nic.name, nic.mac, 'the source server')),
    }));
  const listed = image.entries.get('conf/modules')?.data?.toString('utf8') ?? '';
  const loads = (name: string) =>
    listed.split('\n').some((line) => line.trim().replaceAll('-', '_') === name);
  const load = BOOT_DRIVERS.filter((name) => needed.has(name));
  // With udev in it, an initramfs that has every driver finds the right one by the hardware.
  const udev = image.entries.has('scripts/init-top/udev');
  const unloaded = image.maker === 'initramfs-tools' && !udev && !load.every(loads);
  if (absent.length === 0 && !unloaded) return;
  const refusal = appendable(image, kernel);
  if (refusal) throw undError('UND_GUEST_INITRAMFS', { file: path, reason: refusal });
  const folder = modulesFolder(image, kernel);
  if (!folder) {
    throw undError('UND_GUEST_INITRAMFS', { file: path, reason: 'it has no place for modules' });
  }
  const modules = absent.map(([name, dep]) => {
    const data = root.read(`/lib/modules/${kernel}/${dep.path}`, 64 * 1024 * 1024);
    if (!data) throw undError('UND_GUEST_DRIVER_MISSING', { kernel, module: name });
    return { dep, data };
  });
  const addition = extension(image, folder, modules, load, links);
  let kept = `the original is its first ${image.sizeBytes} bytes`;
  try {
    const name = path.slice(path.lastIndexOf('/') + 1);
    root.copy(path, `${name}.understudy-${stamp(request.at)}`);
    kept = `the original is kept as ${name}.understudy-${stamp(request.at)}`;
  } catch (error) {
    // A full /boot holds no copy, but the original is still in the extended file.
    if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
  }
  root.append(path, addition, image.sizeBytes);
  await updateChecksum(guest, path, kernel);
  const words = absent.length > 0 ? absent.map(([name]) => name).join(', ') : load.join(', ');
  report.changes.push(`${path}: added ${words} (${kept})`);
}

/** initramfs-tools remembers a checksum, by which it tells its own images from a person's. */
async function updateChecksum(guest: Guest, path: string, kernel: string): Promise<void> {
  const record = `/var/lib/initramfs-tools/${kernel}`;
  const text = guest.root.text(record);
  if (text === null || !/^[0-9a-f]{40}\b/.test(text)) return;
  const hash = createHash('sha1');
  for await (const chunk of createReadStream(guest.root.resolve(path)))
    hash.update(chunk as Buffer);
  guest.root.write(record, text.replace(/^[0-9a-f]{40}/, hash.digest('hex')));
}

/** The next initramfs that the replica makes for itself has the drivers too. */
function keepDrivers(guest: Guest): void {
  const { root, report } = guest;
  const path = '/etc/initramfs-tools/modules';
  if (!root.isFolder('/etc/initramfs-tools')) return;
  const text = root.text(path) ?? '';
  const listed = new Set(
    text.split('\n').map((line) => moduleName(line.trim().split(/\s/)[0] ?? '')),
  );
  const missing = BOOT_DRIVERS.filter((name) => !listed.has(name));
  if (missing.length === 0) return;
  if (root.isFile(path)) backUp(guest, path);
  const lines = `# Understudy: this server runs on virtio-scsi disks now.\n${missing.join('\n')}\n`;
  root.write(path, text === '' || text.endsWith('\n') ? text + lines : `${text}\n${lines}`);
  report.changes.push(`${path}: ${missing.join(', ')}`);
}

/** Runs a fix; its failure is reported and does not end the preparation. */
export async function attempt(
  guest: Guest,
  fix: (guest: Guest) => void | Promise<void>,
): Promise<void> {
  try {
    await fix(guest);
  } catch (error) {
    unfixable(guest, coded(error));
  }
}
