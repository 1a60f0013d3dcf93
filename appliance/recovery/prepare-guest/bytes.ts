/** Bounded, positioned reading of a disk or an image file. */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';

export interface ByteReader {
  sizeBytes: number;
  /** Fewer bytes than asked for only at the end. */
  read(offsetBytes: number, lengthBytes: number): Buffer;
}

/** `sizeBytes` of a block device is found by its end, because stat says 0. */
export function openReader(path: string): ByteReader & { close(): void } {
  const fd = openSync(path, 'r');
  const stat = fstatSync(fd);
  const read = (offsetBytes: number, lengthBytes: number): Buffer => {
    const buffer = Buffer.alloc(lengthBytes);
    let done = 0;
    while (done < lengthBytes) {
      const count = readSync(fd, buffer, done, lengthBytes - done, offsetBytes + done);
      if (count === 0) break;
      done += count;
    }
    return buffer.subarray(0, done);
  };
  let sizeBytes = stat.size;
  if (stat.isBlockDevice()) {
    // Doubling and halving: the last readable sector, without an ioctl.
    let low = 0;
    let high = 512;
    while (read(high - 512, 512).length === 512) {
      low = high;
      high *= 2;
    }
    while (high - low > 512) {
      const middle = Math.floor((low + high) / 1024) * 512;
      if (read(middle - 512, 512).length === 512) low = middle;
      else high = middle;
    }
    sizeBytes = low;
  }
  return { sizeBytes, read, close: () => closeSync(fd) };
}

/** A part of a reader, such as a partition. */
export function window(reader: ByteReader, startBytes: number, sizeBytes: number): ByteReader {
  return {
    sizeBytes,
    read: (offsetBytes, lengthBytes) =>
      offsetBytes >= sizeBytes
        ? Buffer.alloc(0)
        : reader.read(startBytes + offsetBytes, Math.min(lengthBytes, sizeBytes - offsetBytes)),
  };
}
