/** The inventory's disks and NICs out of what the tools printed. Pure. */
import type { Inventory, SourceDisk } from '../../appliance/api/schema.ts';
import { diskId, identityKeys } from './disk-id.ts';
import { type BlockNode, type Mount, mountsOf, walk } from './lsblk.ts';
import { findTwins, protectability, worthListing } from './protectable.ts';

type Volume = SourceDisk['volumes'][number];

export interface SysfsFacts {
  nvmeMultipath: boolean;
  logicalBlockBytes: number;
}

const volumeKind = (node: BlockNode, isDisk: boolean): Volume['kind'] => {
  if (isDisk) return 'whole';
  if (node.type === 'part') return 'partition';
  if (node.type === 'lvm') return 'lv';
  if (node.type === 'crypt') return 'crypt';
  if (/^(md|raid\d+|linear)$/.test(node.type)) return 'md';
  return 'other';
};

function volume(node: BlockNode, isDisk: boolean, mounts: readonly Mount[]): Volume {
  const mounted = mountsOf(node, mounts);
  // Bind mounts and subvolumes repeat a file system; the first is where it was mounted as a whole.
  const mount = mounted[0];
  const type = node.fsType ?? mount?.fsType ?? null;
  return {
    name: node.name,
    kind: volumeKind(node, isDisk),
    sizeBytes: node.sizeBytes,
    fileSystem:
      type === null
        ? null
        : {
            type,
            mountpoint: mount?.target ?? node.mountpoint,
            sizeBytes: mount?.sizeBytes ?? null,
            usedBytes: mount?.usedBytes ?? null,
            label: node.label,
            uuid: node.uuid,
          },
  };
}

/** Mounted file systems by the device they are on, with the whole disks under each. */
function usage(disks: readonly BlockNode[], mounts: readonly Mount[]): Map<string, number> {
  const nodes = disks.flatMap((disk) => [...walk(disk)].map((node) => ({ disk, node })));
  const usedOf = (node: BlockNode) => mountsOf(node, mounts)[0]?.usedBytes ?? null;
  // btrfs over several disks: only one of them is shown as mounted, all have its UUID.
  const btrfs = new Map<string, number>();
  for (const { node } of nodes) {
    const used = usedOf(node);
    if (node.fsType === 'btrfs' && node.uuid && used !== null) btrfs.set(node.uuid, used);
  }
  const disksUnder = new Map<string, { usedBytes: number; disks: Set<string> }>();
  for (const { disk, node } of nodes) {
    const shared = node.fsType === 'btrfs' && node.uuid ? btrfs.get(node.uuid) : undefined;
    const used = shared ?? usedOf(node);
    if (used === null) continue;
    const key = shared === undefined ? node.majMin : node.uuid!;
    const entry = disksUnder.get(key) ?? { usedBytes: used, disks: new Set() };
    entry.disks.add(disk.name);
    disksUnder.set(key, entry);
  }
  const byDisk = new Map<string, number>();
  for (const { usedBytes, disks } of disksUnder.values()) {
    for (const disk of disks) {
      // Which part of a file system over several disks is where can't be told from outside: equal shares.
      byDisk.set(disk, (byDisk.get(disk) ?? 0) + Math.round(usedBytes / disks.size));
    }
  }
  return byDisk;
}

const BOOT_MOUNTS = ['/boot/efi', '/efi', '/boot', '/'];

/** The disks that the machine boots from: those that hold the ESP, or /boot, or the root file system. */
function bootDisks(disks: readonly BlockNode[], mounts: readonly Mount[]): Set<string> {
  for (const target of BOOT_MOUNTS) {
    const holding = disks.filter((disk) =>
      [...walk(disk)].some((node) =>
        mountsOf(node, mounts).some((mount) => mount.target === target),
      ),
    );
    if (holding.length > 0) return new Set(holding.map((disk) => disk.name));
  }
  return new Set();
}

/** The disks of the inventory. `slots` are by-path names, `facts` what sysfs says; both by kernel name. */
export function buildDisks(input: {
  devices: readonly BlockNode[];
  mounts: readonly Mount[];
  slots: ReadonlyMap<string, string>;
  facts: ReadonlyMap<string, SysfsFacts>;
  machineKey: string;
}): SourceDisk[] {
  const { devices, mounts } = input;
  const keys = identityKeys(devices, input.slots);
  const twins = findTwins(devices);
  const used = usage(devices, mounts);
  const boot = bootDisks(devices, mounts);
  return devices.filter(worthListing).map((disk) => {
    const facts = input.facts.get(disk.name) ?? { nvmeMultipath: false, logicalBlockBytes: 512 };
    const verdict = protectability(disk, { ...facts, twin: twins.get(disk.name) ?? null });
    const volumes: Volume[] = [];
    const listed = new Set<string>();
    for (const node of walk(disk)) {
      const isDisk = node === disk;
      if (isDisk && node.fsType === null && mountsOf(node, mounts).length === 0) continue;
      if (listed.has(node.majMin)) continue;
      listed.add(node.majMin);
      volumes.push(volume(node, isDisk, mounts));
    }
    return {
      diskId: diskId(input.machineKey, keys.get(disk.name)!),
      name: disk.name,
      devicePath: disk.path,
      sizeBytes: disk.sizeBytes,
      usedBytes: used.get(disk.name) ?? null,
      model: disk.model,
      serial: disk.serial,
      bus: disk.transport,
      partitionTable: disk.ptType,
      volumes,
      isBoot: boot.has(disk.name),
      protectable: verdict.protectable,
      ...(verdict.protectable ? {} : { reason: verdict.reason }),
    };
  });
}

type Nic = Inventory['nics'][number];
interface IpAddress {
  local: string;
  prefixlen: number;
  scope: string;
  family: string;
  dynamic?: boolean;
}
interface IpLink {
  ifname: string;
  link_type: string;
  address?: string;
  addr_info?: IpAddress[];
}
interface IpRoute {
  dst: string;
  dev: string;
  gateway?: string;
}

/**
 * NICs out of `ip -j addr` and `ip -j route`. Listed are those with hardware behind them (`physical`) and others that
 * have an address of their own (bridges, bonds, VLANs). `dhcp` is told by the IPv4 address being leased ("dynamic").
 */
export function buildNics(
  addrJson: string,
  routeJson: string,
  physical: ReadonlySet<string>,
): Nic[] {
  const links = JSON.parse(addrJson || '[]') as IpLink[];
  const routes = JSON.parse(routeJson || '[]') as IpRoute[];
  const nics: Nic[] = [];
  for (const link of links) {
    if (link.link_type !== 'ether') continue;
    const addresses = (link.addr_info ?? []).filter((one) => one.scope === 'global');
    if (!physical.has(link.ifname) && addresses.length === 0) continue;
    if (/^(veth|docker|br-|virbr|cni|flannel|cali|tap|vnet)/.test(link.ifname)) continue;
    const v4 = addresses.filter((one) => one.family === 'inet');
    nics.push({
      name: link.ifname,
      mac: link.address ?? '',
      addresses: addresses.map((one) => `${one.local}/${one.prefixlen}`),
      gateway:
        routes.find((route) => route.dst === 'default' && route.dev === link.ifname)?.gateway ??
        null,
      dhcp: v4.length === 0 ? null : v4.some((one) => one.dynamic === true),
    });
  }
  return nics;
}

/** `PRETTY_NAME` of /etc/os-release, or null. */
export function prettyOsName(osRelease: string): string | null {
  const line = /^PRETTY_NAME=(.*)$/m.exec(osRelease)?.[1];
  return line ? line.replace(/^(["'])(.*)\1$/, '$2').trim() || null : null;
}
