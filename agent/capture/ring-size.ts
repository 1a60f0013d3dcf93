/** How much of the source server's memory the ring takes. */

const MIB = 1024 * 1024;
const MIN_BYTES = 16 * MIB;
/** What a server gives without being asked: at 200 MB/s more than two seconds. */
const MAX_DEFAULT_BYTES = 512 * MIB;
/** However much is asked for, the server's own work keeps seven eighths. */
const MAX_SHARE = 1 / 8;

const powerOfTwoBelow = (bytes: number): number => 2 ** Math.floor(Math.log2(bytes));

/**
 * The ring's size in bytes, a power of two: what was asked for, but at most an eighth of the memory; or (0) a 64th of
 * the memory between 16 and 512 MiB.
 */
export function ringBytesFor(memoryBytes: number, askedBytes: number): number {
  return askedBytes > 0
    ? powerOfTwoBelow(Math.min(askedBytes, memoryBytes * MAX_SHARE))
    : powerOfTwoBelow(Math.min(Math.max(memoryBytes / 64, MIN_BYTES), MAX_DEFAULT_BYTES));
}

/**
 * The bound of the frames that are on the way and not acknowledged, in bytes: a quarter of the ring, so that on a small
 * server both are small, between 8 and 32 MiB.
 */
export const windowBytesFor = (ringBytes: number): number =>
  Math.min(Math.max(ringBytes / 4, 8 * MIB), 32 * MIB);
