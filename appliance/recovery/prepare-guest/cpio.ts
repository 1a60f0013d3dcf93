/**
 * cpio archives in the "newc" form, the one that the kernel unpacks as an initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst).
 */

const HEADER_BYTES = 110;
const TRAILER = 'TRAILER!!!';
const S_IFMT = 0o170000;
export const S_IFDIR = 0o040000;
export const S_IFREG = 0o100000;
export const S_IFLNK = 0o120000;

export interface CpioEntry {
  name: string;
  /** With the type bits. */
  mode: number;
  sizeBytes: number;
  /** Present when `want` asked for it. */
  data?: Buffer;
}

export const isDirectory = (mode: number): boolean => (mode & S_IFMT) === S_IFDIR;
export const isSymlink = (mode: number): boolean => (mode & S_IFMT) === S_IFLNK;

const align4 = (n: number): number => (n + 3) & ~3;

/** Writes entries in the given order; the kernel needs a directory before what is in it. */
export function writeCpio(entries: { name: string; mode: number; data?: Buffer }[]): Buffer {
  const parts: Buffer[] = [];
  let inode = 0;
  const hex = (value: number): string => value.toString(16).padStart(8, '0').toUpperCase();
  const add = (name: string, mode: number, data: Buffer) => {
    inode++;
    const nameBytes = Buffer.from(`${name}\0`);
    const directory = isDirectory(mode);
    const fields = [
      name === TRAILER ? 0 : inode,
      mode,
      0,
      0,
      directory ? 2 : 1,
      0,
      data.length,
      0,
      0,
      0,
      0,
      nameBytes.length,
      0,
    ];
    const header = Buffer.from(`070701${fields.map(hex).join('')}`, 'latin1');
    const head = Buffer.alloc(align4(HEADER_BYTES + nameBytes.length));
    header.copy(head);
    nameBytes.copy(head, HEADER_BYTES);
    const body = Buffer.alloc(align4(data.length));
    data.copy(body);
    parts.push(head, body);
  };
  for (const { name, mode, data } of entries) add(name, mode, data ?? Buffer.alloc(0));
  add(TRAILER, 0, Buffer.alloc(0));
  return Buffer.concat(parts);
}

/**
 * Reads an archive as it comes, chunk by chunk, and keeps only what is wanted: an initramfs may be hundreds of MiB.
 * Throws a plain Error on anything that is not an archive.
 */
export class CpioReader {
  readonly entries: CpioEntry[] = [];
  ended = false;
  /** Bytes used up to the end of the trailer; less than what was fed once it ended. */
  consumedBytes = 0;
  readonly #want: (name: string, sizeBytes: number) => boolean;
  #pending: Buffer = Buffer.alloc(0);
  #skip = 0;

  constructor(want: (name: string, sizeBytes: number) => boolean) {
    this.#want = want;
  }

  feed(chunk: Buffer): void {
    this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk]);
    while (!this.ended) {
      if (this.#skip > 0) {
        const skipped = Math.min(this.#skip, this.#pending.length);
        this.#take(skipped);
        this.#skip -= skipped;
        if (this.#skip > 0) return;
      }
      if (this.#pending.length < HEADER_BYTES) return;
      const magic = this.#pending.toString('latin1', 0, 6);
      if (magic !== '070701' && magic !== '070702') {
        throw new Error(`no cpio header at byte ${this.consumedBytes}`);
      }
      const field = (index: number): number => {
        const digits = this.#pending.toString('latin1', 6 + index * 8, 14 + index * 8);
        if (!/^[0-9a-fA-F]{8}$/.test(digits)) throw new Error('a cpio header is damaged');
        return Number.parseInt(digits, 16);
      };
      const sizeBytes = field(6);
      const nameBytes = field(11);
      if (nameBytes < 1 || nameBytes > 4096) throw new Error('a cpio name is too long');
      const headBytes = align4(HEADER_BYTES + nameBytes);
      if (this.#pending.length < headBytes) return;
      const name = this.#pending.toString('utf8', HEADER_BYTES, HEADER_BYTES + nameBytes - 1);
      const mode = field(1);
      if (name === TRAILER) {
        this.#take(headBytes);
        this.ended = true;
        return;
      }
      const bodyBytes = align4(sizeBytes);
      const entry: CpioEntry = { name: name.replace(/^\.?\/+/, ''), mode, sizeBytes };
      if (this.#want(entry.name, sizeBytes)) {
        if (this.#pending.length < headBytes + bodyBytes) return;
        entry.data = Buffer.from(this.#pending.subarray(headBytes, headBytes + sizeBytes));
        this.#take(headBytes + bodyBytes);
      } else {
        this.#take(headBytes);
        this.#skip = bodyBytes;
      }
      this.entries.push(entry);
    }
  }

  #take(bytes: number): void {
    this.#pending = this.#pending.subarray(bytes);
    this.consumedBytes += bytes;
  }
}
