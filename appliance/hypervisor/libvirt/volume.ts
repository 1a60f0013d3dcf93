import { undError } from '../../../protocol/errors.ts';
import type { DiskInfo, DiskLayer, DiskRef } from '../hypervisor.ts';
import { checkName, volumeName } from '../names.ts';
import { asDiskRef, asFields, asList, number } from './answer.ts';
import type { Transport } from './transport.ts';

/** The fields by which the wrapper knows a disk. Its path is not among them: the wrapper makes its own. */
export function addressOf(disk: DiskRef): { pool: string; name: string } {
  return { pool: checkName('The storage pool', disk.pool), name: volumeName(disk.name) };
}

export async function createVolume(
  transport: Transport,
  request: { pool: string; name: string; sizeBytes: number },
): Promise<DiskRef> {
  return asDiskRef(
    await transport.call('disk-create', {
      pool: checkName('The storage pool', request.pool),
      name: volumeName(request.name),
      sizeBytes: request.sizeBytes,
    }),
  );
}

export async function createOverlay(
  transport: Transport,
  request: { base: DiskRef; name: string; pool?: string },
): Promise<DiskRef> {
  const base = addressOf(request.base);
  return asDiskRef(
    await transport.call('disk-overlay', {
      pool: checkName('The storage pool', request.pool ?? base.pool),
      name: volumeName(request.name),
      basePool: base.pool,
      baseName: base.name,
    }),
  );
}

async function read(
  transport: Transport,
  disk: DiskRef,
  { lock }: { lock: boolean },
): Promise<{ layers: DiskLayer[]; locked: boolean }> {
  const fields = asFields(await transport.call('disk-info', { ...addressOf(disk), lock }));
  const layers = asList(fields.layers).map((layer) => ({
    ...asDiskRef(layer),
    sizeBytes: number(layer, 'sizeBytes'),
    allocatedBytes: number(layer, 'allocatedBytes'),
  }));
  return { layers, locked: fields.locked === true };
}

export async function readInfo(transport: Transport, disk: DiskRef): Promise<DiskInfo> {
  const { layers, locked } = await read(transport, disk, { lock: true });
  const [top, below] = layers;
  if (!top) throw undError('UND_HV_DISK_NOT_FOUND', { disk: disk.name, pool: disk.pool });
  return { ...top, format: 'qcow2', locked, ...(below && { backing: asDiskRef(below) }) };
}

export async function readChain(transport: Transport, disk: DiskRef): Promise<DiskLayer[]> {
  return (await read(transport, disk, { lock: false })).layers;
}

/** The disk behind a path, by the pools' directories; undefined when the path is in none of them. */
export function diskAt(
  path: string | undefined,
  pools: { name: string; path?: string }[],
): DiskRef | undefined {
  if (path === undefined) return undefined;
  const cut = path.lastIndexOf('/');
  const pool = pools.find((one) => one.path === path.slice(0, cut));
  return pool && { pool: pool.name, name: path.slice(cut + 1), path };
}
