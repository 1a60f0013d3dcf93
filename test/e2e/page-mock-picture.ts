/** A console picture without a VM: a black screen with a few grey bars for lines of text, as a PNG. */
import { crc32, deflateSync } from 'node:zlib';

const WIDTH = 720;
const HEIGHT = 400;

function chunk(type: string, data: Buffer): Buffer {
  const body = Buffer.concat([Buffer.from(type, 'latin1'), data]);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(data.length);
  const crc = Buffer.alloc(4);
  crc.writeUInt32BE(crc32(body));
  return Buffer.concat([length, body, crc]);
}

export function consolePicture(): Buffer {
  // Grey, 8 bit; each row begins with its filter byte.
  const rows = Buffer.alloc((WIDTH + 1) * HEIGHT);
  const lengths = [38, 0, 16, 0, 52, 44, 0, 12];
  lengths.forEach((length, line) => {
    for (let y = 16 + line * 16; y < 26 + line * 16; y += 1) {
      for (let x = 8; x < 8 + length * 9; x += 1) {
        if (x % 9 < 7) rows[y * (WIDTH + 1) + 1 + x] = 170;
      }
    }
  });
  const header = Buffer.alloc(13);
  header.writeUInt32BE(WIDTH, 0);
  header.writeUInt32BE(HEIGHT, 4);
  header.set([8, 0, 0, 0, 0], 8);
  return Buffer.concat([
    Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(rows)),
    chunk('IEND', Buffer.alloc(0)),
  ]);
}
