/**
 * How much of a storage pool is kept free. Below it applying is held before the pool is really full, so that other
 * VMs of the host, and the appliance's own bookkeeping of qcow2 files, still have room. Pure.
 */
const GIB = 1024 ** 3;

/** 2 %, from 1 to 8 GiB, but never more than a tenth of a small pool. */
export const reserveBytes = (capacityBytes: number): number =>
  Math.floor(Math.min(Math.max(GIB, capacityBytes * 0.02), 8 * GIB, capacityBytes * 0.1));

export type PoolLevel =
  | { name: 'ok' }
  | { name: 'low'; availableBytes: number; neededBytes: number };

/** With hysteresis: a quarter more than the reserve must be free before it is `ok` again. */
export function poolLevel(
  pool: { capacityBytes: number; availableBytes: number },
  before: PoolLevel['name'],
): PoolLevel {
  const reserve = reserveBytes(pool.capacityBytes);
  const neededBytes = before === 'low' ? Math.floor(reserve * 1.25) : reserve;
  return pool.availableBytes < neededBytes
    ? { name: 'low', availableBytes: pool.availableBytes, neededBytes }
    : { name: 'ok' };
}
