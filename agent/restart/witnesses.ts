/**
 * Which places of the disks can tell, at the next start, that nobody has written to them since the shutdown: the list for
 * `understudy-capture save` (helper/witness.h). Pure: the edge that looks is plan.ts.
 */
import { type BlockNode, walk } from '../inventory/lsblk.ts';

const MIB = 1024 * 1024;

export type Witness = { disk: number } & (
  | {
      kind: 'same' | 'ext4' | 'xfs' | 'touched';
      offsetBytes: number;
      lengthBytes: number;
      name: string;
    }
  | { kind: 'refuse'; reason: string }
);

/** A target of a device-mapper table, as `dmsetup table` prints it; bytes. */
export interface DmTarget {
  type: string;
  lengthBytes: number;
  /** Of a linear target: the device below, `major:minor`, and where on it. */
  below: { majMin: string; offsetBytes: number } | null;
}

/** Reads `dmsetup table --noheadings DEVICE`. */
export function parseDmTable(text: string): DmTarget[] {
  const targets: DmTarget[] = [];
  for (const line of text.split('\n')) {
    const [, length, type, device, offset] = line.trim().split(/\s+/);
    if (!length || !type) continue;
    const isLinear = type === 'linear' && /^\d+:\d+$/.test(device ?? '') && offset !== undefined;
    targets.push({
      type,
      lengthBytes: Number(length) * 512,
      below: isLinear ? { majMin: device!, offsetBytes: Number(offset) * 512 } : null,
    });
  }
  return targets;
}

export interface DiskLayout {
  index: number;
  node: BlockNode;
  /** Where a partition begins on the disk, by `major:minor`. */
  partitionStarts: ReadonlyMap<string, number>;
}

export interface Layout {
  disks: readonly DiskLayout[];
  dmTables: ReadonlyMap<string, readonly DmTarget[]>;
  /** Pieces of files that the boot loader may write to, on the device of their file system. */
  bootFiles: ReadonlyArray<{ majMin: string; offsetBytes: number; lengthBytes: number }>;
}

/** Of what holds a file system: where on the whole disk its device begins. */
type Places = Map<string, { disk: number; offsetBytes: number }>;

const BIOS_BOOT = '21686148-6449-6e6f-744e-656564454649';
const EXTENDED = new Set(['0x5', '0xf', '0x85']);
const GPT_BACKUP_BYTES = 33 * 512;
/** What lies before the first partition: its table, and a boot loader. */
const TABLE_BYTES = MIB;
const PV_HEAD_BYTES = MIB;
const BIOS_BOOT_MAX_BYTES = 16 * MIB;
const SWAP_HEADER_BYTES = 4096;

/** Every disk of the layout has at least one entry; a disk with a `refuse` is compared after each restart. */
export function witnessesOf(layout: Layout): Witness[] {
  const places: Places = new Map();
  const witnesses = layout.disks.flatMap((disk) => ofDisk(disk, layout, places));
  for (const { majMin, offsetBytes, lengthBytes } of layout.bootFiles) {
    const place = places.get(majMin);
    // Elsewhere it is on a disk that is refused, or not protected.
    if (!place) continue;
    witnesses.push({
      disk: place.disk,
      kind: 'touched',
      offsetBytes: place.offsetBytes + offsetBytes,
      lengthBytes,
      name: 'boot loader environment',
    });
  }
  return witnesses;
}

function ofDisk(layout: DiskLayout, { dmTables }: Layout, places: Places): Witness[] {
  const { index, node, partitionStarts } = layout;
  const found: Witness[] = [];
  const refuse = (reason: string) => found.push({ disk: index, kind: 'refuse', reason });
  const add = (
    kind: 'same' | 'ext4' | 'xfs' | 'touched',
    offsetBytes: number,
    lengthBytes: number,
    name: string,
  ) => found.push({ disk: index, kind, offsetBytes, lengthBytes, name });

  const volumeOffset = (pv: BlockNode, volume: BlockNode, pvOffset: number): number | string => {
    const targets = dmTables.get(volume.majMin);
    if (!targets?.length) return 'how it lies on its disk cannot be told';
    let next: number | null = null;
    for (const { below, lengthBytes, type } of targets) {
      if (!below) return `it is no plain volume (${type})`;
      if (below.majMin !== pv.majMin || (next !== null && below.offsetBytes !== next))
        return 'it lies in several pieces';
      next = below.offsetBytes + lengthBytes;
    }
    return pvOffset + targets[0]!.below!.offsetBytes;
  };

  const physicalVolume = (pv: BlockNode, offsetBytes: number): void => {
    let headBytes = Math.min(PV_HEAD_BYTES, pv.sizeBytes);
    for (const volume of pv.children) {
      for (const { below } of dmTables.get(volume.majMin) ?? []) {
        if (below?.majMin === pv.majMin) headBytes = Math.min(headBytes, below.offsetBytes);
      }
    }
    add('same', offsetBytes, headBytes, `LVM on ${pv.name}`);
    for (const volume of pv.children) {
      const at = volume.type === 'lvm' ? volumeOffset(pv, volume, offsetBytes) : 'it is no volume';
      if (typeof at === 'string') refuse(`${volume.name}: ${at}`);
      else content(volume, at);
    }
  };

  const content = (holder: BlockNode, offsetBytes: number): void => {
    const { fsType, sizeBytes, name } = holder;
    places.set(holder.majMin, { disk: index, offsetBytes });
    if (fsType === 'LVM2_member') {
      physicalVolume(holder, offsetBytes);
    } else if (holder.children.length > 0) {
      refuse(`${name}: ${holder.children[0]!.type} lies on it`);
    } else if (fsType === 'ext4' || fsType === 'ext3' || fsType === 'ext2') {
      add('ext4', offsetBytes, sizeBytes, name);
    } else if (fsType === 'xfs') {
      add('xfs', offsetBytes, sizeBytes, name);
    } else if (fsType === 'swap') {
      add('same', offsetBytes, Math.min(SWAP_HEADER_BYTES, sizeBytes), `swap on ${name}`);
    } else if (fsType === 'vfat') {
      // Firmware and boot loaders write to it, never through Linux.
      add('touched', offsetBytes, sizeBytes, name);
    } else if (
      holder.partType === BIOS_BOOT
        ? sizeBytes <= BIOS_BOOT_MAX_BYTES
        : EXTENDED.has(holder.partType ?? '')
    ) {
      add('same', offsetBytes, sizeBytes, name);
    } else {
      refuse(`${name} holds ${fsType ?? 'nothing that can be told'}`);
    }
  };

  if (node.ptType === null) {
    content(node, 0);
  } else {
    const partitions = node.children.filter(({ type }) => type === 'part');
    for (const other of node.children) {
      if (other.type !== 'part') refuse(`${other.name}: ${other.type} lies on the whole disk`);
    }
    const starts = partitions.map(({ majMin }) => partitionStarts.get(majMin));
    const first = Math.min(...starts.map((start) => start ?? 0), node.sizeBytes);
    add('same', 0, Math.min(first || 512, TABLE_BYTES), `partition table of ${node.name}`);
    if (node.ptType === 'gpt') {
      const backup = node.sizeBytes - GPT_BACKUP_BYTES;
      add('same', backup, GPT_BACKUP_BYTES, `backup of the partition table of ${node.name}`);
    }
    for (const [at, partition] of partitions.entries()) {
      const start = starts[at];
      if (start === undefined) refuse(`${partition.name}: where it begins cannot be told`);
      else content(partition, start);
    }
  }
  if (!found.some(({ kind }) => kind === 'ext4' || kind === 'xfs' || kind === 'refuse')) {
    const what = [...walk(node)].find(({ fsType }) => fsType)?.fsType ?? 'nothing';
    refuse(`no file system on it can tell (${what})`);
  }
  return found;
}

/** The list as the helper reads it. Names are one line of plain text. */
export function witnessLines(witnesses: readonly Witness[]): string {
  const plain = (text: string) => text.replace(/[^\x20-\x7e]/g, '?').slice(0, 150);
  return witnesses
    .map((w) =>
      w.kind === 'refuse'
        ? `refuse ${w.disk} 0 0 ${plain(w.reason)}\n`
        : `${w.kind} ${w.disk} ${w.offsetBytes} ${w.lengthBytes} ${plain(w.name)}\n`,
    )
    .join('');
}
