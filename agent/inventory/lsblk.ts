/** What `lsblk` and `findmnt` print, read into plain values. Pure: the edge that runs them is take.ts. */

export const LSBLK_COLUMNS = [
  'NAME',
  'KNAME',
  'PATH',
  'MAJ:MIN',
  'FSTYPE',
  'LABEL',
  'UUID',
  'PTUUID',
  'PTTYPE',
  'PARTTYPE',
  'RO',
  'RM',
  'MODEL',
  'SERIAL',
  'SIZE',
  'TYPE',
  'TRAN',
  'WWN',
  'ZONED',
  'MOUNTPOINT',
].join(','); // prettier-ignore

export const FINDMNT_COLUMNS = 'TARGET,SOURCE,FSTYPE,SIZE,USED,MAJ:MIN,LABEL,UUID';

/** One block device of lsblk's tree. */
export interface BlockNode {
  name: string;
  path: string;
  majMin: string;
  /** lsblk's word: disk, part, lvm, crypt, raid1, mpath, loop, rom, … */
  type: string;
  sizeBytes: number;
  fsType: string | null;
  label: string | null;
  uuid: string | null;
  ptUuid: string | null;
  ptType: string | null;
  /** Of a partition: the table's word for what it is for; a GUID, or `0x…`. */
  partType: string | null;
  readOnly: boolean;
  removable: boolean;
  model: string | null;
  serial: string | null;
  wwn: string | null;
  transport: string | null;
  zoned: string | null;
  mountpoint: string | null;
  children: BlockNode[];
}

export interface Mount {
  target: string;
  source: string;
  fsType: string;
  sizeBytes: number | null;
  usedBytes: number | null;
  majMin: string;
}

const text = (value: unknown): string | null => {
  if (value === null || value === undefined) return null;
  const trimmed = String(value).trim();
  return trimmed === '' ? null : trimmed;
};
// util-linux before 2.33 prints numbers and flags as strings.
const flag = (value: unknown): boolean => value === true || value === '1' || value === 1;
const bytes = (value: unknown): number | null => {
  const text = value === null || value === undefined ? '' : String(value);
  const number = Number(text);
  return text !== '' && Number.isFinite(number) && number >= 0 ? number : null;
};

function readNode(raw: Record<string, unknown>): BlockNode {
  const name = text(raw.kname) ?? text(raw.name) ?? '?';
  return {
    name: text(raw.name) ?? name,
    path: text(raw.path) ?? `/dev/${name}`,
    majMin: text(raw['maj:min']) ?? '',
    type: text(raw.type) ?? 'disk',
    sizeBytes: bytes(raw.size) ?? 0,
    fsType: text(raw.fstype),
    label: text(raw.label),
    uuid: text(raw.uuid),
    ptUuid: text(raw.ptuuid),
    ptType: text(raw.pttype),
    partType: text(raw.parttype)?.toLowerCase() ?? null,
    readOnly: flag(raw.ro),
    removable: flag(raw.rm),
    model: text(raw.model),
    serial: text(raw.serial),
    wwn: text(raw.wwn),
    transport: text(raw.tran),
    zoned: text(raw.zoned),
    mountpoint: text(raw.mountpoint),
    children: Array.isArray(raw.children)
      ? raw.children.map((child) => readNode(child as Record<string, unknown>))
      : [],
  };
}

/** The tree of `lsblk -J -b -o LSBLK_COLUMNS`. Throws SyntaxError when it is not JSON. */
export function parseLsblk(json: string): BlockNode[] {
  const { blockdevices = [] } = JSON.parse(json) as { blockdevices?: Record<string, unknown>[] };
  return blockdevices.map(readNode);
}

/** The list of `findmnt -J -b -l -o FINDMNT_COLUMNS`; '' (nothing mounted) is an empty list. */
export function parseFindmnt(json: string): Mount[] {
  if (json.trim() === '') return [];
  const { filesystems = [] } = JSON.parse(json) as { filesystems?: Record<string, unknown>[] };
  return filesystems.map((raw) => ({
    target: text(raw.target) ?? '',
    source: text(raw.source) ?? '',
    fsType: text(raw.fstype) ?? '',
    sizeBytes: bytes(raw.size),
    usedBytes: bytes(raw.used),
    majMin: text(raw['maj:min']) ?? '',
  }));
}

/** The nodes below and including `node`, each once. */
export function* walk(node: BlockNode): Generator<BlockNode> {
  yield node;
  for (const child of node.children) yield* walk(child);
}

/** How `node` is mounted: by device number, or, where the file system has a number of its own (btrfs), by source. */
export function mountsOf(node: BlockNode, mounts: readonly Mount[]): Mount[] {
  return mounts.filter(
    (mount) => mount.majMin === node.majMin || mount.source.replace(/\[.*\]$/, '') === node.path,
  );
}
