import { all, attribute, first, type Parsed, parseXml, textOf } from './xml.ts';

/** A disk of a VM as libvirt describes it. */
export interface ParsedDisk {
  target: string;
  bus: string;
  serial?: string;
  readOnly: boolean;
  cache: string;
  path?: string;
  address?: { controller: number; target: number; unit: number };
}

export interface ParsedDomain {
  name: string;
  uuid: string;
  disks: ParsedDisk[];
  /** Indexes of the virtio-scsi controllers. */
  virtioScsi: number[];
}

export function parseDomainXml(text: string): ParsedDomain {
  const root = parseXml(text, 'domain');
  const devices = first(root, 'devices');
  return {
    name: textOf(root, 'name') ?? '',
    uuid: textOf(root, 'uuid') ?? '',
    disks: all(devices, 'disk').map(parseDisk),
    virtioScsi: all(devices, 'controller')
      .filter((controller) => attribute(controller, 'type') === 'scsi')
      .filter((controller) => attribute(controller, 'model')?.startsWith('virtio') ?? false)
      .map((controller) => Number(attribute(controller, 'index'))),
  };
}

function parseDisk(disk: Parsed): ParsedDisk {
  const target = first(disk, 'target');
  const address = first(disk, 'address');
  return {
    target: attribute(target, 'dev') ?? '',
    bus: attribute(target, 'bus') ?? '',
    serial: textOf(disk, 'serial'),
    readOnly: first(disk, 'readonly') !== undefined,
    cache: attribute(first(disk, 'driver'), 'cache') ?? 'default',
    path: attribute(first(disk, 'source'), 'file'),
    ...(attribute(address, 'type') === 'drive' && {
      address: {
        controller: Number(attribute(address, 'controller')),
        target: Number(attribute(address, 'target')),
        unit: Number(attribute(address, 'unit')),
      },
    }),
  };
}
