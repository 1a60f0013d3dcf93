/**
 * Logical volumes out of a volume group's own description, read by us: nothing is scanned or activated, and no device-mapper
 * device is made, because two replicas of one template have the same names and UUIDs. A volume that lies in one piece is a
 * part of its disk like a partition. Formats: LVM2's lib/format_text/layout.h (label, PV header, metadata area) and the text
 * of vgcfgbackup(8). All of it comes from a machine that nobody vouches for.
 */
import type { ByteReader } from '../prepare-guest/bytes.ts';

const SECTOR = 512;
const MAGIC = ' LVM2 x[5A%r0N*>';
const MAX_AREAS = 8;
const MAX_TEXT_BYTES = 8 * 1024 * 1024;
const MAX_DEPTH = 12;
const MAX_VOLUMES = 1000;

export interface VolumeGroup {
  name: string;
  id: string;
  seqno: number;
  /** The physical volume that this was read from. */
  pvId: string;
  extentBytes: number;
  /** Where the extents begin on each physical volume, by its id. */
  pvs: Map<string, { startBytes: number }>;
  volumes: LogicalVolume[];
}

export interface LogicalVolume {
  name: string;
  /** The one piece that it is, or why it is not one. */
  place: { pvId: string; offsetBytes: number; sizeBytes: number } | { reason: string };
}

/** Null when there is no description that can be read; never throws for what it reads. */
export function readVolumeGroup(reader: ByteReader): VolumeGroup | null {
  try {
    const found = metadata(reader);
    return found && toGroup(found.pvId, parseText(found.text));
  } catch {
    return null;
  }
}

/** The id of a physical volume and the newest text of its first metadata area that is in use. */
function metadata(reader: ByteReader): { pvId: string; text: string } | null {
  const head = reader.read(0, 4 * SECTOR);
  let label = -1;
  for (let at = 0; at + SECTOR <= head.length; at += SECTOR) {
    const is = (text: string, offset: number) =>
      head.toString('latin1', at + offset, at + offset + 8) === text;
    if (is('LABELONE', 0) && is('LVM2 001', 24)) label = at;
  }
  if (label < 0) return null;
  let at = label + head.readUInt32LE(label + 20);
  const header = reader.read(at, 2 * SECTOR);
  const pvId = header.toString('latin1', 0, 32);
  at = 40;
  const skipList = (): { offset: number; size: number }[] => {
    const list: { offset: number; size: number }[] = [];
    while (list.length < MAX_AREAS) {
      const [offset, size] = [number64(header, at), number64(header, at + 8)];
      at += 16;
      if (offset === 0) return list;
      list.push({ offset, size });
    }
    return list;
  };
  skipList();
  for (const area of skipList()) {
    const text = newestText(reader, area.offset);
    if (text !== null) return { pvId, text };
  }
  return null;
}

function newestText(reader: ByteReader, areaBytes: number): string | null {
  const header = reader.read(areaBytes, SECTOR);
  if (header.toString('latin1', 4, 20) !== MAGIC) return null;
  const areaSize = number64(header, 32);
  const [offset, size, flags] = [
    number64(header, 40),
    number64(header, 48),
    header.readUInt32LE(60),
  ];
  if (offset < SECTOR || offset >= areaSize || size === 0 || size > MAX_TEXT_BYTES) return null;
  if (size > areaSize - SECTOR) return null;
  if ((flags & 1) !== 0) return null;
  // The area is a ring behind its header.
  const first = Math.min(size, areaSize - offset);
  const text = Buffer.concat([
    reader.read(areaBytes + offset, first),
    reader.read(areaBytes + SECTOR, size - first),
  ]);
  const end = text.indexOf(0);
  return text.toString('latin1', 0, end < 0 ? text.length : end);
}

/** @throws RangeError when it is larger than a disk can be */
function number64(bytes: Buffer, at: number): number {
  const value = Number(bytes.readBigUInt64LE(at));
  if (!Number.isSafeInteger(value)) throw new RangeError('no such offset');
  return value;
}

// ---- the text ----------------------------------------------------------------------------------------------------
type Value = string | number | Section | (string | number)[];
type Section = Map<string, Value>;

const TOKEN =
  /\s+|#[^\n]*|"((?:[^"\\]|\\.)*)"|(-?\d+(?:\.\d+)?)(?![\w.+-])|([\w.+-]+)|([{}=[\],])/gy;

/** @throws SyntaxError */
export function parseText(text: string): Section {
  const tokens: (string | number | { word: string })[] = [];
  TOKEN.lastIndex = 0;
  while (TOKEN.lastIndex < text.length) {
    const match = TOKEN.exec(text);
    if (!match) throw new SyntaxError('not a description of a volume group');
    const [, quoted, digits, word, sign] = match;
    if (quoted !== undefined) tokens.push({ word: quoted.replaceAll(/\\(.)/g, '$1') });
    else if (digits !== undefined) tokens.push(Number(digits));
    else if (word !== undefined) tokens.push({ word });
    else if (sign !== undefined) tokens.push(sign);
  }
  let at = 0;
  const section = (depth: number): Section => {
    if (depth > MAX_DEPTH) throw new SyntaxError('too deep');
    const found: Section = new Map();
    while (at < tokens.length && tokens[at] !== '}') {
      const key = tokens[at++];
      const name =
        typeof key === 'object' ? key.word : typeof key === 'number' ? String(key) : null;
      const sign = tokens[at++];
      if (name === null) throw new SyntaxError('a name is missing');
      if (sign === '{') {
        found.set(name, section(depth + 1));
        if (tokens[at++] !== '}') throw new SyntaxError('a section does not end');
      } else if (sign === '=') found.set(name, value());
      else throw new SyntaxError(`nothing behind ${name}`);
    }
    return found;
  };
  const value = (): Value => {
    const token = tokens[at++];
    if (typeof token === 'number') return token;
    if (typeof token === 'object') return token.word;
    if (token !== '[') throw new SyntaxError('a value is missing');
    const list: (string | number)[] = [];
    for (;;) {
      const item = tokens[at++];
      if (item === ']') return list;
      if (item === ',') continue;
      if (typeof item === 'number') list.push(item);
      else if (typeof item === 'object') list.push(item.word);
      else throw new SyntaxError('a list does not end');
    }
  };
  const root = section(0);
  if (at < tokens.length) throw new SyntaxError('a section ends that never began');
  return root;
}

const sectionOf = (of: Section | undefined, name: string): Section | undefined => {
  const found = of?.get(name);
  return found instanceof Map ? found : undefined;
};
const textOf = (of: Section, name: string): string => {
  const found = of.get(name);
  return typeof found === 'string' ? found : '';
};
/** @throws RangeError */
const countOf = (of: Section, name: string): number => {
  const found = of.get(name);
  if (typeof found !== 'number' || !Number.isSafeInteger(found) || found < 0) {
    throw new RangeError(`${name} is no count`);
  }
  return found;
};

/** In a header an id has no dashes. */
const bare = (id: string): string => id.replaceAll('-', '');

function toGroup(pvId: string, root: Section): VolumeGroup | null {
  const entry = [...root].find(
    (pair): pair is [string, Section] =>
      pair[1] instanceof Map && sectionOf(pair[1], 'physical_volumes') !== undefined,
  );
  if (!entry) return null;
  const [name, group] = entry;
  const extentBytes = countOf(group, 'extent_size') * SECTOR;
  const pvs = new Map<string, { startBytes: number }>();
  const idOf = new Map<string, string>();
  for (const [alias, pv] of sectionOf(group, 'physical_volumes') ?? []) {
    if (!(pv instanceof Map)) continue;
    const id = bare(textOf(pv, 'id'));
    idOf.set(alias, id);
    pvs.set(id, { startBytes: countOf(pv, 'pe_start') * SECTOR });
  }
  const volumes: LogicalVolume[] = [];
  for (const [lvName, lv] of sectionOf(group, 'logical_volumes') ?? []) {
    if (!(lv instanceof Map) || volumes.length === MAX_VOLUMES) continue;
    const status = lv.get('status');
    if (!Array.isArray(status) || !status.includes('VISIBLE')) continue;
    volumes.push({ name: lvName, place: placeOf(lv, idOf, pvs, extentBytes) });
  }
  const id = textOf(group, 'id');
  return { name, id, seqno: countOf(group, 'seqno'), pvId, extentBytes, pvs, volumes };
}

function placeOf(
  lv: Section,
  idOf: ReadonlyMap<string, string>,
  pvs: VolumeGroup['pvs'],
  extentBytes: number,
): LogicalVolume['place'] {
  const segments = [...lv.values()]
    .filter((one): one is Section => one instanceof Map && one.has('extent_count'))
    .sort((a, b) => countOf(a, 'start_extent') - countOf(b, 'start_extent'));
  let begun: { pvId: string; extent: number; count: number } | null = null;
  for (const segment of segments) {
    const type = textOf(segment, 'type');
    if (type !== 'striped' || countOf(segment, 'stripe_count') !== 1) {
      return { reason: `a logical volume of the kind ${type.slice(0, 40) || 'unknown'}` };
    }
    const [alias, extent] = (segment.get('stripes') as (string | number)[] | undefined) ?? [];
    const pvId = idOf.get(String(alias));
    if (pvId === undefined || typeof extent !== 'number' || !Number.isSafeInteger(extent)) {
      return { reason: 'a logical volume on an unknown disk' };
    }
    const count = countOf(segment, 'extent_count');
    if (countOf(segment, 'start_extent') !== (begun?.count ?? 0)) {
      return { reason: 'a logical volume with a hole' };
    }
    if (!begun) begun = { pvId, extent, count };
    else if (begun.pvId === pvId && begun.extent + begun.count === extent) begun.count += count;
    else return { reason: 'a logical volume in several pieces' };
  }
  if (!begun || begun.extent < 0 || begun.count === 0 || extentBytes === 0) {
    return { reason: 'a logical volume without extents' };
  }
  const { startBytes } = pvs.get(begun.pvId) ?? { startBytes: 0 };
  const offsetBytes = startBytes + begun.extent * extentBytes;
  const sizeBytes = begun.count * extentBytes;
  if (!Number.isSafeInteger(offsetBytes + sizeBytes))
    return { reason: 'larger than a disk can be' };
  return { pvId: begun.pvId, offsetBytes, sizeBytes };
}
