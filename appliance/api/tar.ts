/** Small files as a tar archive (POSIX ustar). Pure. */

export interface TarFile {
  /** Plain ASCII, at most 100 characters. */
  name: string;
  mode: number;
  data: Buffer;
}

const BLOCK = 512;

export function tar(files: readonly TarFile[], mtimeMs: number): Buffer {
  const blocks: Buffer[] = [];
  for (const { name, mode, data } of files) {
    const header = Buffer.alloc(BLOCK);
    const octal = (value: number, at: number, length: number) =>
      header.write(`${value.toString(8).padStart(length - 1, '0')}\0`, at, 'latin1');
    header.write(name, 0, 100, 'latin1');
    octal(mode, 100, 8);
    octal(0, 108, 8);
    octal(0, 116, 8);
    octal(data.length, 124, 12);
    octal(Math.floor(mtimeMs / 1000), 136, 12);
    header.write('0', 156, 'latin1');
    header.write('ustar\x0000', 257, 'latin1');
    header.fill(' ', 148, 156);
    const sum = header.reduce((total, byte) => total + byte, 0);
    header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
    blocks.push(header, data, Buffer.alloc((BLOCK - (data.length % BLOCK)) % BLOCK));
  }
  return Buffer.concat([...blocks, Buffer.alloc(2 * BLOCK)]);
}
