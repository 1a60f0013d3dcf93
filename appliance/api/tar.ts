/** Tar archives (POSIX ustar, with GNU's way for long names and large files). Pure. */

export interface TarEntry {
  /** Bytes as they are on the disk; relative, with a slash at the end of a folder. */
  name: Buffer;
  kind: 'file' | 'folder' | 'link';
  mode: number;
  sizeBytes: number;
  uid?: number;
  gid?: number;
  mtimeMs: number;
  /** Of a link. */
  target?: Buffer;
}

const BLOCK = 512;
const NAME_BYTES = 100;
const TYPES = { file: '0', folder: '5', link: '2' } as const;
/** The first size that eleven octal digits do not hold. */
const LARGE = 8 ** 11;

/** What stands before the content of an entry. */
export function tarHeader(entry: TarEntry): Buffer {
  const target = entry.target ?? Buffer.alloc(0);
  return Buffer.concat([
    ...(entry.name.length > NAME_BYTES ? longName('L', entry.name) : []),
    ...(target.length > NAME_BYTES ? longName('K', target) : []),
    header(entry.name, TYPES[entry.kind], entry, target),
  ]);
}

/** What fills the last block of a content of this length. */
export const tarPadding = (sizeBytes: number): Buffer =>
  Buffer.alloc((BLOCK - (sizeBytes % BLOCK)) % BLOCK);

export const TAR_END = Buffer.alloc(2 * BLOCK);

function longName(type: 'L' | 'K', name: Buffer): Buffer[] {
  const content = Buffer.concat([name, Buffer.alloc(1)]);
  const meta = { mode: 0o644, sizeBytes: content.length, mtimeMs: 0 };
  const head = header(Buffer.from('././@LongLink'), type, meta, Buffer.alloc(0));
  return [head, content, tarPadding(content.length)];
}

function header(
  name: Buffer,
  type: string,
  { mode, sizeBytes, uid = 0, gid = 0, mtimeMs }: Omit<TarEntry, 'name' | 'kind' | 'target'>,
  target: Buffer,
): Buffer {
  const block = Buffer.alloc(BLOCK);
  const octal = (value: number, at: number, length: number) => {
    const most = 8 ** (length - 1) - 1;
    const digits = Math.min(Math.max(0, Math.floor(value)), most).toString(8);
    block.write(`${digits.padStart(length - 1, '0')}\0`, at, 'latin1');
  };
  name.copy(block, 0, 0, NAME_BYTES);
  octal(mode, 100, 8);
  octal(uid, 108, 8);
  octal(gid, 116, 8);
  if (sizeBytes < LARGE) octal(sizeBytes, 124, 12);
  else {
    block.writeUInt8(0x80, 124);
    block.writeBigUInt64BE(BigInt(sizeBytes), 128);
  }
  octal(mtimeMs / 1000, 136, 12);
  block.write(type, 156, 'latin1');
  target.copy(block, 157, 0, NAME_BYTES);
  block.write('ustar\x0000', 257, 'latin1');
  block.fill(' ', 148, 156);
  const sum = block.reduce((total, byte) => total + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** A whole archive of small files. */
export function tar(
  files: readonly { name: string; mode: number; data: Buffer }[],
  mtimeMs: number,
): Buffer {
  return Buffer.concat([
    ...files.flatMap(({ name, mode, data }) => [
      tarHeader({
        name: Buffer.from(name),
        kind: 'file',
        mode,
        sizeBytes: data.length,
        mtimeMs,
      }),
      data,
      tarPadding(data.length),
    ]),
    TAR_END,
  ]);
}
