/**
 * Looks into an initramfs and makes the archive that extends it. The kernel unpacks an initramfs as a row of cpio
 * archives, each plain or compressed, and a later file replaces an earlier one of the same name. So nothing has to be
 * unpacked, changed and packed again: a second, plain archive at the end adds the drivers, and cutting it off gives the
 * original back.
 */
import { spawn } from 'node:child_process';
import { closeSync, createReadStream, fstatSync, openSync, readSync } from 'node:fs';
import type { Readable } from 'node:stream';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { type CpioEntry, CpioReader, isSymlink, S_IFDIR, S_IFREG, writeCpio } from './cpio.ts';
import {
  formatModulesDep,
  type ModuleDep,
  moduleName,
  modulesDepIndex,
  parseModulesDep,
} from './modules.ts';
import type { PrepareProgram } from './programs.ts';

/** First entry of the archive that we append; by it a later preparation finds where the original's compressed part ends. */
const MARKER = 'understudy-extension';
const MAX_KEPT_BYTES = 4 * 1024 * 1024;
const MAX_UNPACKED_BYTES = 4 * 1024 * 1024 * 1024;

export type Compression = 'none' | 'gzip' | 'zstd' | 'xz' | 'lz4' | 'lzma' | 'bzip2' | 'lzo';

export interface Initramfs {
  sizeBytes: number;
  compression: Compression;
  /** Who made it, as far as its layout tells. */
  maker: 'initramfs-tools' | 'dracut' | 'unknown';
  /** Every name in it, later archives over earlier ones. */
  entries: Map<string, CpioEntry>;
}

const MAGICS: [string, Compression][] = [
  ['1f8b', 'gzip'],
  ['28b52ffd', 'zstd'],
  ['fd377a585a00', 'xz'],
  ['02214c18', 'lz4'],
  ['04224d18', 'lz4'],
  ['5d0000', 'lzma'],
  ['425a68', 'bzip2'],
  ['894c5a4f', 'lzo'],
];

const TOOLS: Partial<Record<Compression, [PrepareProgram, string[]]>> = {
  xz: ['xz', ['-dc']],
  lzma: ['xz', ['--format=lzma', '-dc']],
  lz4: ['lz4', ['-dc']],
  bzip2: ['bzip2', ['-dc']],
  lzo: ['lzop', ['-dc']],
};

export const compressionOf = (head: Buffer): Compression | null =>
  MAGICS.find(([magic]) => head.toString('hex').startsWith(magic))?.[1] ?? null;

function readAt(fd: number, offset: number, length: number): Buffer {
  const buffer = Buffer.alloc(length);
  return buffer.subarray(0, readSync(fd, buffer, 0, length, offset));
}

/** Where the first archive that was appended by us begins, or null. */
function findExtension(fd: number, sizeBytes: number): number | null {
  const marker = Buffer.from(`${MARKER}\0`, 'latin1');
  const chunkBytes = 4 * 1024 * 1024;
  for (let start = 0; start < sizeBytes; start += chunkBytes) {
    // Overlapping, because the marker may lie across two chunks.
    const chunk = readAt(fd, start, chunkBytes + 256);
    for (let at = chunk.indexOf(marker); at >= 0; at = chunk.indexOf(marker, at + 1)) {
      if (at >= 110 && chunk.toString('latin1', at - 110, at - 104) === '070701') {
        return start + at - 110;
      }
    }
  }
  return null;
}

/**
 * Reads an initramfs; contents are kept of the files that `want` names (at most 4 MiB each). Throws a plain Error when
 * it is not an initramfs, or is packed in a way that nothing here can unpack.
 */
export async function readInitramfs(
  path: string,
  want: (name: string) => boolean,
): Promise<Initramfs> {
  const fd = openSync(path, 'r');
  try {
    const sizeBytes = fstatSync(fd).size;
    const extension = findExtension(fd, sizeBytes);
    const entries = new Map<string, CpioEntry>();
    const keep = (reader: CpioReader) => {
      for (const entry of reader.entries) entries.set(entry.name, entry);
    };
    const wanted = (name: string, size: number) => size <= MAX_KEPT_BYTES && want(name);

    let compression: Compression = 'none';
    let offset = 0;
    while (offset < sizeBytes) {
      const head = readAt(fd, offset, 16);
      if (head.length < 16 && head.every((byte) => byte === 0)) break;
      if (head[0] === 0) {
        offset += head.findIndex((byte) => byte !== 0) < 0 ? 16 : head.findIndex((b) => b !== 0);
        continue;
      }
      if (head.toString('latin1', 0, 5) === '07070') {
        const reader = new CpioReader(wanted);
        for (let at = offset; !reader.ended; ) {
          const chunk = readAt(fd, at, 1024 * 1024);
          if (chunk.length === 0) throw new Error('an archive in it is cut short');
          reader.feed(chunk);
          at += chunk.length;
        }
        keep(reader);
        offset += reader.consumedBytes;
        continue;
      }
      const packed = compressionOf(head);
      if (!packed) throw new Error(`unknown contents at byte ${offset}`);
      compression = packed;
      // Where a compressed part ends only its unpacking tells, so it goes up to our own extension or the end.
      const end = extension !== null && extension > offset ? extension : sizeBytes;
      const reader = new CpioReader(wanted);
      await unpack(path, offset, end, packed, reader);
      keep(reader);
      offset = end;
    }
    if (entries.size === 0) throw new Error('it is empty');
    return { sizeBytes, compression, maker: makerOf(entries), entries };
  } finally {
    closeSync(fd);
  }
}

function makerOf(entries: Map<string, CpioEntry>): Initramfs['maker'] {
  if (entries.has('scripts/functions') && entries.has('init')) return 'initramfs-tools';
  for (const name of entries.keys()) {
    if (/^(usr\/)?lib\/dracut/.test(name)) return 'dracut';
  }
  return 'unknown';
}

async function unpack(
  path: string,
  start: number,
  end: number,
  packed: Compression,
  reader: CpioReader,
): Promise<void> {
  const file = createReadStream(path, { start, end: end - 1 });
  let stream: Readable;
  let stop = () => {};
  let failure: Error | null = null;
  if (packed === 'gzip' || packed === 'zstd') {
    stream = file.pipe(packed === 'gzip' ? createGunzip() : createZstdDecompress());
    stop = () => stream.destroy();
  } else {
    const tool = TOOLS[packed];
    if (!tool) throw new Error(`it is packed with ${packed}`);
    const child = spawn(tool[0], tool[1], { stdio: ['pipe', 'pipe', 'ignore'] });
    child.on('error', (error) => {
      failure = error;
      child.stdout.destroy();
    });
    // The tool may stop reading at the padding behind its data.
    child.stdin.on('error', () => {});
    file.pipe(child.stdin);
    stream = child.stdout;
    stop = () => child.kill('SIGKILL');
  }
  let total = 0;
  try {
    for await (const chunk of stream) {
      total += (chunk as Buffer).length;
      if (total > MAX_UNPACKED_BYTES) throw new Error('it unpacks to more than 4 GiB');
      reader.feed(chunk as Buffer);
      if (reader.ended) break;
    }
  } catch (error) {
    // What comes after the trailer is padding to us, and junk to some decompressors.
    if (!reader.ended) throw failure ?? error;
  } finally {
    stop();
    file.destroy();
  }
  if (failure) throw failure;
  if (!reader.ended) throw new Error('its archive is cut short');
}

/** `lib/modules` or `usr/lib/modules`, as this initramfs has it. Null when it has no modules of this kernel. */
export function modulesFolder(image: Initramfs, kernel: string): string | null {
  for (const folder of ['usr/lib/modules', 'lib/modules']) {
    if (image.entries.has(`${folder}/${kernel}`)) return `${folder}/${kernel}`;
    for (const name of image.entries.keys()) {
      if (name.startsWith(`${folder}/${kernel}/`)) return `${folder}/${kernel}`;
    }
  }
  // A monolithic kernel's initramfs has none; new ones go where `lib` leads to.
  const lib = image.entries.get('lib');
  return lib && isSymlink(lib.mode) ? `usr/lib/modules/${kernel}` : null;
}

/** Names of the modules in it for this kernel. */
export function modulesIn(image: Initramfs, kernel: string): Set<string> {
  const found = new Set<string>();
  for (const name of image.entries.keys()) {
    if (name.includes(`lib/modules/${kernel}/`) && /\.ko(\.(gz|xz|zst))?$/.test(name)) {
      found.add(moduleName(name));
    }
  }
  return found;
}

/** Whether the initramfs may be extended by appending; if not, why. */
export function appendable(image: Initramfs, kernel: string): string | null {
  if (image.maker !== 'initramfs-tools')
    return `it was made by ${image.maker}, not initramfs-tools`;
  // Before 5.16 the kernel takes the padding behind an LZ4 part for a damaged archive.
  const [major = 0, minor = 0] = kernel.split(/[.-]/).map(Number);
  if (image.compression === 'lz4' && (major < 5 || (major === 5 && minor < 16))) {
    return `kernel ${kernel} reads nothing behind LZ4`;
  }
  return null;
}

/**
 * What goes behind the file: padding and an archive with `modules`, the index of modprobe for old and new ones, a
 * list of modules to load first, and `files`. `folder` is where this initramfs has the modules of the kernel.
 */
export function extension(
  image: Initramfs,
  folder: string,
  modules: { dep: ModuleDep; data: Buffer }[],
  load: readonly string[],
  files: { name: string; data: Buffer }[],
): Buffer {
  const textOf = (name: string): string => image.entries.get(name)?.data?.toString('utf8') ?? '';
  const dep = parseModulesDep(textOf(`${folder}/modules.dep`));
  for (const module of modules) dep.set(moduleName(module.dep.path), module.dep);
  const listed = textOf('conf/modules');
  const present = new Set(listed.split('\n').map((line) => line.trim().replaceAll('-', '_')));
  const list = [
    ...(listed === '' || listed.endsWith('\n') ? [listed] : [`${listed}\n`]),
    ...load.filter((name) => !present.has(name)).map((name) => `${name}\n`),
  ].join('');

  const contents = new Map<string, Buffer>([
    ...modules.map(({ dep: { path }, data }) => [`${folder}/${path}`, data] as const),
    [`${folder}/modules.dep`, Buffer.from(formatModulesDep(dep.values()))],
    [`${folder}/modules.dep.bin`, modulesDepIndex(dep)],
    ['conf/modules', Buffer.from(list)],
    ...files.map(({ name, data }) => [name, data] as const),
  ]);
  const entries: { name: string; mode: number; data?: Buffer }[] = [
    { name: MARKER, mode: S_IFREG | 0o444, data: Buffer.from('made by Understudy\n') },
  ];
  const folders = new Set<string>();
  for (const name of contents.keys()) {
    const parts = name.split('/').slice(0, -1);
    for (let depth = 1; depth <= parts.length; depth++)
      folders.add(parts.slice(0, depth).join('/'));
  }
  for (const name of [...folders].sort()) {
    // What exists stays as it is: a directory entry over a symbolic link such as lib would take the link's place.
    if (!image.entries.has(name)) entries.push({ name, mode: S_IFDIR | 0o755 });
  }
  for (const [name, data] of contents) entries.push({ name, mode: S_IFREG | 0o644, data });

  // Behind a compressed part some decompressors want to see zeroes; an archive begins at a multiple of 4.
  const padded = Math.ceil((image.sizeBytes + 8) / 512) * 512;
  return Buffer.concat([Buffer.alloc(padded - image.sizeBytes), writeCpio(entries)]);
}
