/**
 * Extents on their way into a frame: the rows of the payload's table as the frame will have them, and where the data of
 * the writes lie, which are copied once, when the frame is packed. Small writes that came together go as one piece.
 */
import type { FrameExtent } from './frame.ts';

/** A row of the table: u8 kind, u8 reserved, u16 disk, u32 reserved, u64 offset, u64 length. */
export const EXTENT_BYTES = 24;
export const EXTENT_KINDS = ['write', 'zero'] as const;
const KIND_WRITE = 0;
const KIND_ZERO = 1;
const FIRST_ROWS = 256;

export class ExtentList {
  #count = 0;
  #table = Buffer.allocUnsafe(FIRST_ROWS * EXTENT_BYTES);
  #view = viewOf(this.#table);
  #dataBytes = 0;
  /** Runs of data, [from, to) of their buffers. */
  readonly #sources: Uint8Array[] = [];
  readonly #froms: number[] = [];
  readonly #tos: number[] = [];

  static of(extents: readonly FrameExtent[]): ExtentList {
    const list = new ExtentList();
    for (const extent of extents) {
      const { disk, offsetBytes, lengthBytes } = extent;
      if (extent.kind === 'zero') list.addZero(disk, offsetBytes, lengthBytes);
      else list.addWrite(disk, offsetBytes, lengthBytes, extent.data, 0);
    }
    return list;
  }

  get count(): number {
    return this.#count;
  }

  /** Of the payload: table and data. */
  get bytes(): number {
    return this.#count * EXTENT_BYTES + this.#dataBytes;
  }

  /**
   * A write whose `lengthBytes` of data begin at `dataAt` of `source`, which stays as it is until the frame is packed. One
   * that goes on where the one before it ended, on the disk and in `source`, is one with it: the pieces of a large write
   * come so.
   * @throws RangeError if the data are not all there, or an offset or length is no whole number of bytes; so addZero
   */
  addWrite(
    disk: number,
    offsetBytes: number,
    lengthBytes: number,
    source: Uint8Array,
    dataAt: number,
  ): void {
    checkWhole(offsetBytes, lengthBytes);
    const at = (this.#count - 1) * EXTENT_BYTES;
    if (
      at >= 0 &&
      this.#sources.at(-1) === source &&
      this.#tos.at(-1) === dataAt &&
      this.#view.getUint8(at) === KIND_WRITE &&
      this.#view.getUint16(at + 2, true) === disk
    ) {
      const length = wide(this.#view, at + 16);
      if (wide(this.#view, at + 8) + length === offsetBytes) {
        this.#data(source, dataAt, lengthBytes);
        setWide(this.#view, at + 16, length + lengthBytes);
        return;
      }
    }
    this.#data(source, dataAt, lengthBytes);
    this.#row(KIND_WRITE, disk, offsetBytes, lengthBytes);
  }

  addZero(disk: number, offsetBytes: number, lengthBytes: number): void {
    checkWhole(offsetBytes, lengthBytes);
    this.#row(KIND_ZERO, disk, offsetBytes, lengthBytes);
  }

  /** Writes the payload to the beginning of `raw`, which has `bytes` of room. */
  layOut(raw: Buffer): void {
    let at = this.#count * EXTENT_BYTES;
    this.#table.copy(raw, 0, 0, at);
    this.#sources.forEach((source, run) => {
      const to = this.#tos[run]!;
      const from = this.#froms[run]!;
      const whole = from === 0 && to === source.length;
      raw.set(whole ? source : source.subarray(from, to), at);
      at += to - from;
    });
  }

  #row(kind: number, disk: number, offsetBytes: number, lengthBytes: number): void {
    const at = this.#count * EXTENT_BYTES;
    if (at === this.#table.length) {
      const larger = Buffer.allocUnsafe(this.#table.length * 2);
      this.#table.copy(larger);
      this.#table = larger;
      this.#view = viewOf(larger);
    }
    const view = this.#view;
    view.setUint32(at, kind, true);
    view.setUint16(at + 2, disk, true);
    view.setUint32(at + 4, 0, true);
    setWide(view, at + 8, offsetBytes);
    setWide(view, at + 16, lengthBytes);
    this.#count++;
  }

  #data(source: Uint8Array, from: number, lengthBytes: number): void {
    // What lay in the frame's memory before would go to the appliance in its place.
    if (from + lengthBytes > source.length) {
      throw new RangeError(`${source.length - from} bytes of data for a write of ${lengthBytes}`);
    }
    const last = this.#sources.length - 1;
    if (last >= 0 && this.#sources[last] === source && this.#tos[last] === from) {
      this.#tos[last] = from + lengthBytes;
    } else {
      this.#sources.push(source);
      this.#froms.push(from);
      this.#tos.push(from + lengthBytes);
    }
    this.#dataBytes += lengthBytes;
  }
}

const isWhole = (value: number) => Number.isSafeInteger(value) && value >= 0;

function checkWhole(offsetBytes: number, lengthBytes: number): void {
  if (isWhole(offsetBytes) && isWhole(lengthBytes)) return;
  throw new RangeError(`an extent of ${lengthBytes} bytes at ${offsetBytes}`);
}

const viewOf = (buffer: Buffer) => new DataView(buffer.buffer, buffer.byteOffset, buffer.length);

/** Below 2^53, as all offsets and lengths are. */
const wide = (view: DataView, at: number): number =>
  view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;

function setWide(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}
