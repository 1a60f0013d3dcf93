import type { VmSpec } from '../hypervisor.ts';
import { type Element, element, writeXml } from './xml.ts';

export type VirtType = 'kvm' | 'qemu';

export interface DiskElement {
  path: string;
  serial: string;
  readOnly: boolean;
  /** 'none' where the pool's file system takes direct I/O, else 'writeback'; never 'unsafe'. */
  cache: 'none' | 'writeback';
  slot: Slot;
  /** Absent on a hot-attached disk: nothing boots from it. */
  bootOrder?: number;
}

/** Where a disk sits: libvirt's name of it, and its address on a virtio-scsi controller. */
export interface Slot {
  target: string;
  controller: number;
  scsiTarget: number;
  unit: number;
}

/**
 * The n-th slot (from 0) of a virtio-scsi controller. Addresses are said in full: left alone, libvirt puts few disks
 * on a controller and then wants a new one in a PCI slot. Linux takes 256 targets on virtio-scsi, so from there on the
 * disks are units of them.
 */
export function slotNumber(n: number, controller: number): Slot {
  return {
    target: `sd${letters(n)}`,
    controller,
    scsiTarget: n % 256,
    unit: Math.floor(n / 256),
  };
}

/** 0 -> a, 25 -> z, 26 -> aa, ... as the kernel names its disks. */
function letters(n: number): string {
  const last = String.fromCharCode(97 + (n % 26));
  return n < 26 ? last : letters(Math.floor(n / 26) - 1) + last;
}

function diskElement(disk: DiskElement): Element {
  return element(
    'disk',
    { type: 'file', device: 'disk' },
    // report: a full pool or a bad sector is an I/O error of this one disk. The default pauses the whole VM.
    element('driver', {
      name: 'qemu',
      type: 'qcow2',
      cache: disk.cache,
      error_policy: 'report',
      rerror_policy: 'report',
      discard: 'unmap',
    }),
    element('source', { file: disk.path }),
    element('target', { dev: disk.slot.target, bus: 'scsi' }),
    disk.readOnly ? element('readonly') : undefined,
    element('serial', {}, disk.serial),
    disk.bootOrder === undefined ? undefined : element('boot', { order: disk.bootOrder }),
    element('address', {
      type: 'drive',
      controller: disk.slot.controller,
      bus: 0,
      target: disk.slot.scsiTarget,
      unit: disk.slot.unit,
    }),
  );
}

/** XML for attach-device. */
export function buildDiskXml(disk: DiskElement): string {
  return writeXml(diskElement(disk));
}

/**
 * XML of a VM. Firmware and machine are such that a guest of the last ten years boots: q35, virtio-scsi disks, a VGA
 * screen, a serial console, a guest agent channel. `caches` has the cache mode of each of `spec.disks`.
 */
export function buildDomainXml(
  spec: VmSpec,
  host: { virtType: VirtType; caches: DiskElement['cache'][] },
): string {
  const kib = Math.ceil(spec.memoryBytes / 1024);
  return writeXml(
    element(
      'domain',
      { type: host.virtType },
      element('name', {}, spec.name),
      spec.uuid === undefined ? undefined : element('uuid', {}, spec.uuid),
      spec.title === undefined ? undefined : element('title', {}, spec.title),
      element('memory', { unit: 'KiB' }, String(kib)),
      element('currentMemory', { unit: 'KiB' }, String(kib)),
      element('vcpu', { placement: 'static' }, String(spec.vcpus)),
      osElement(spec),
      element('features', {}, element('acpi'), element('apic')),
      // TCG knows no host model; 'maximum' is all that it can do.
      element('cpu', { mode: host.virtType === 'kvm' ? 'host-model' : 'maximum' }),
      element(
        'clock',
        { offset: 'utc' },
        element('timer', { name: 'rtc', tickpolicy: 'catchup' }),
        element('timer', { name: 'pit', tickpolicy: 'delay' }),
        element('timer', { name: 'hpet', present: 'no' }),
      ),
      element('on_poweroff', {}, 'destroy'),
      element('on_reboot', {}, 'restart'),
      element('on_crash', {}, 'destroy'),
      element(
        'devices',
        {},
        ...spec.disks.map((disk, index) =>
          diskElement({
            path: disk.disk.path,
            serial: disk.serial,
            readOnly: disk.readOnly ?? false,
            cache: host.caches[index] ?? 'writeback',
            slot: slotNumber(index, 0),
            bootOrder: index + 1,
          }),
        ),
        element('controller', { type: 'scsi', index: 0, model: 'virtio-scsi' }),
        element('controller', { type: 'virtio-serial', index: 0 }),
        ...spec.nics.map((nic) =>
          element(
            'interface',
            { type: 'network' },
            nic.mac === undefined ? undefined : element('mac', { address: nic.mac.toLowerCase() }),
            element('source', { network: nic.network }),
            element('model', { type: nic.model }),
            nic.connected === false ? element('link', { state: 'down' }) : undefined,
          ),
        ),
        element('serial', { type: 'pty' }, element('target', { type: 'isa-serial', port: 0 })),
        element('console', { type: 'pty' }, element('target', { type: 'serial', port: 0 })),
        element(
          'channel',
          { type: 'unix' },
          element('target', { type: 'virtio', name: 'org.qemu.guest_agent.0' }),
        ),
        element('input', { type: 'tablet', bus: 'usb' }),
        // A socket that only the host's administrator may open.
        element('graphics', { type: 'vnc' }, element('listen', { type: 'socket' })),
        element(
          'video',
          {},
          element('model', { type: 'vga', vram: 16384, heads: 1, primary: 'yes' }),
        ),
        element('memballoon', { model: 'virtio' }),
        element(
          'rng',
          { model: 'virtio' },
          element('backend', { model: 'random' }, '/dev/urandom'),
        ),
      ),
    ),
  );
}

function osElement(spec: VmSpec): Element {
  const type = element('type', { arch: 'x86_64', machine: 'q35' }, 'hvm');
  if (spec.firmware === 'bios') {
    // What the BIOS says ("No bootable device") belongs into the console's log.
    return element('os', {}, type, element('bios', { useserial: 'yes' }));
  }
  return element(
    'os',
    { firmware: 'efi' },
    type,
    element('firmware', {}, element('feature', { enabled: 'no', name: 'secure-boot' })),
  );
}
