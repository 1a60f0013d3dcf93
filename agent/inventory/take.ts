/** Takes the inventory of this machine. */
import { access, readdir, readFile, readlink } from 'node:fs/promises';
import { basename } from 'node:path';
import si from 'systeminformation';
import type { Inventory } from '../../appliance/api/schema.ts';
import { buildDisks, buildNics, prettyOsName, type SysfsFacts } from './build.ts';
import { machineIdentity, machineKey } from './machine.ts';
import { isNativeMultipath } from './protectable.ts';
import { parseServices } from './services.ts';
import { findmnt, ip, lsblk, runningServices } from './tools.ts';

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

async function slots(): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  const folder = '/dev/disk/by-path';
  for (const name of (await readdir(folder).catch(() => [] as string[])).sort()) {
    if (/-part\d+$/.test(name)) continue;
    const device = basename(await readlink(`${folder}/${name}`).catch(() => ''));
    if (device && !found.has(device)) found.set(device, name);
  }
  return found;
}

async function sysfsFacts(name: string): Promise<SysfsFacts> {
  const block = await readFile(`/sys/block/${name}/queue/logical_block_size`, 'utf8').catch(
    () => '512',
  );
  return {
    nvmeMultipath: isNativeMultipath(name, {
      sysfsLink: await readlink(`/sys/block/${name}`).catch(() => ''),
      hasMultipathFolder: await exists(`/sys/block/${name}/multipath`),
    }),
    logicalBlockBytes: Number(block) || 512,
  };
}

async function physicalNics(): Promise<Set<string>> {
  const names = await readdir('/sys/class/net').catch(() => [] as string[]);
  const found = new Set<string>();
  for (const name of names) if (await exists(`/sys/class/net/${name}/device`)) found.add(name);
  return found;
}

/** What this machine is and has, now. Reads only; takes some hundred milliseconds. */
export async function takeInventory(): Promise<Inventory> {
  const [devices, mounts, cpu, os, system, machine, addresses, routes, osRelease, services] =
    await Promise.all([
      lsblk(),
      findmnt(),
      si.cpu(),
      si.osInfo(),
      si.system(),
      machineIdentity(),
      ip('addr'),
      ip('route'),
      readFile('/etc/os-release', 'utf8').catch(() => ''),
      runningServices(),
    ]);
  const facts = new Map<string, SysfsFacts>();
  for (const device of devices) facts.set(device.name, await sysfsFacts(device.name));
  const memory = await si.mem();
  return {
    takenAt: new Date().toISOString(),
    hostname: machine.hostname,
    os: prettyOsName(osRelease) ?? `${os.distro} ${os.release}`.trim(),
    kernel: os.kernel,
    firmware: (await exists('/sys/firmware/efi')) ? 'uefi' : 'bios',
    virtualisation: system.virtual ? (system.virtualHost ?? 'virtual machine') : null,
    cpuModel: `${cpu.manufacturer} ${cpu.brand}`.trim() || 'unknown',
    cpuCount: cpu.cores,
    memoryBytes: memory.total,
    disks: buildDisks({
      devices,
      mounts,
      slots: await slots(),
      facts,
      machineKey: await machineKey(machine),
    }),
    nics: buildNics(addresses, routes, await physicalNics()),
    services: parseServices(services),
    machine: {
      smbiosUuid: machine.smbiosUuid,
      bootId: machine.bootId,
      diskSerials: machine.diskSerials,
    },
  };
}
