/**
 * Names of block devices in a guest's configuration: which of them will not exist on the replica, and what to write
 * instead. Kernel names (`/dev/vda3`) go with the bus; UUIDs, labels and device-mapper names stay.
 */

import type { Partition } from './partitions.ts';
import type { Content } from './superblock.ts';

export interface GuestPartition {
  /** The kernel's name on the source: `vda3`, or `vdb` for a disk without partitions. */
  sourceName: string;
  /** Index of the disk in the request. */
  disk: number;
  partition: Partition;
  content: Content;
}

/** The kernel puts a `p` between a disk whose name ends in a digit and the partition's number. */
export const partitionName = (disk: string, number: number): string =>
  number === 0 ? disk : /\d$/.test(disk) ? `${disk}p${number}` : `${disk}${number}`;

export type Verdict =
  | { kind: 'stable' }
  | { kind: 'rewrite'; to: string; partition: GuestPartition }
  | { kind: 'unknown' };

const KERNEL_NAME = /^\/dev\/((?:vd|sd|hd|xvd)[a-z]+\d*|nvme\d+n\d+(?:p\d+)?|mmcblk\d+(?:p\d+)?)$/;
/** These name the old bus, slot or serial number. */
const HARDWARE_LINK = /^\/dev\/disk\/by-(?:id|path)\//;

/**
 * What becomes of a device name. `stable`: it means the same on the replica. A UUID is preferred; where two of the
 * guest's own partitions share one (a copied partition) the partition's GUID tells them apart.
 */
export function judge(name: string, partitions: readonly GuestPartition[]): Verdict {
  const kernel = name.match(KERNEL_NAME)?.[1];
  if (kernel === undefined) {
    return HARDWARE_LINK.test(name) ? { kind: 'unknown' } : { kind: 'stable' };
  }
  const partition = partitions.find((candidate) => candidate.sourceName === kernel);
  if (!partition) return { kind: 'unknown' };
  const { content } = partition;
  const unique =
    content.uuid !== null &&
    partitions.filter((candidate) => candidate.content.uuid === content.uuid).length === 1;
  if (unique) return { kind: 'rewrite', to: `UUID=${content.uuid}`, partition };
  const { partUuid } = partition.partition;
  if (partUuid) return { kind: 'rewrite', to: `PARTUUID=${partUuid}`, partition };
  return { kind: 'unknown' };
}

/** The partition that a device specification of fstab means, if it is on these disks. */
export function findDevice(
  spec: string,
  partitions: readonly GuestPartition[],
): GuestPartition | undefined {
  const [, tag = '', quoted = ''] =
    spec.match(/^(UUID|LABEL|PARTUUID|PARTLABEL)=(.+)$/) ??
    spec.match(/^\/dev\/disk\/by-(uuid|label|partuuid|partlabel)\/(.+)$/) ??
    [];
  const value = quoted.replace(/^"(.*)"$/, '$1');
  const same = (text: string | null): boolean => text?.toLowerCase() === value.toLowerCase();
  switch (tag.toUpperCase()) {
    case 'UUID':
      return partitions.find(({ content }) => same(content.uuid));
    case 'LABEL':
      return partitions.find(({ content }) => content.label === value);
    case 'PARTUUID':
      return partitions.find(({ partition }) => same(partition.partUuid));
    default: {
      const kernel = spec.match(KERNEL_NAME)?.[1];
      return partitions.find(({ sourceName }) => sourceName === kernel);
    }
  }
}

export interface Rewritten {
  text: string;
  /** `from → to`, once each. */
  changes: string[];
  /** Device names that nothing is known about. */
  unknown: string[];
}

function collect(
  text: string,
  change: (judge: (name: string) => string) => string,
  partitions: readonly GuestPartition[],
): Rewritten {
  const changes = new Set<string>();
  const unknown = new Set<string>();
  const replaced = change((name) => {
    const verdict = judge(name, partitions);
    if (verdict.kind === 'rewrite') {
      changes.add(`${name} → ${verdict.to}`);
      return verdict.to;
    }
    if (verdict.kind === 'unknown') unknown.add(name);
    return name;
  });
  return { text: changes.size > 0 ? replaced : text, changes: [...changes], unknown: [...unknown] };
}

/**
 * fstab(5) and crypttab(5): the device is the field with this index (0 in fstab, 1 in crypttab). Everything else, the
 * spacing too, stays as it is. Optical and floppy drives are nobody's boot device.
 */
export function rewriteTable(
  text: string,
  field: 0 | 1,
  partitions: readonly GuestPartition[],
): Rewritten {
  const line = field === 0 ? /^(\s*)([^\s#]\S*)(.*)$/ : /^(\s*[^\s#]\S*\s+)(\S+)(.*)$/;
  return collect(
    text,
    (judged) =>
      text
        .split('\n')
        .map((row) => {
          const parts = row.match(line);
          if (!parts) return row;
          const [, before = '', device = '', after = ''] = parts;
          if (field === 0 && /\bnoauto\b/.test(after)) {
            return judge(device, partitions).kind === 'rewrite'
              ? before + judged(device) + after
              : row;
          }
          return before + judged(device) + after;
        })
        .join('\n'),
    partitions,
  );
}

/**
 * Kernel command lines, in grub.cfg, /etc/default/grub, /etc/kernel/cmdline and boot loader entries: the values of
 * `root=`, `resume=` and `cryptdevice=`, and RESUME= of initramfs-tools.
 */
export function rewriteCommandLines(
  text: string,
  partitions: readonly GuestPartition[],
): Rewritten {
  return collect(
    text,
    (judged) =>
      text
        .split('\n')
        .map((line) =>
          /^\s*#/.test(line)
            ? line
            : line.replace(
                /(^|[\s"'])(root|resume|cryptdevice|RESUME)=(\/dev\/[^\s"':;,]+)/g,
                (_, before: string, key: string, device: string) =>
                  `${before}${key}=${judged(device)}`,
              ),
        )
        .join('\n'),
    partitions,
  );
}

/** A MAC address replaced wherever it stands, in either case of letters. */
export function replaceMac(text: string, from: string, to: string): string {
  const pattern = from.split(':').join('[:-]');
  return text.replace(new RegExp(`(?<![0-9a-fA-F:])${pattern}(?![0-9a-fA-F:])`, 'gi'), to);
}
