import { undError } from '../../../protocol/errors.ts';
import type { StoragePool } from '../hypervisor.ts';
import { asList, text } from './answer.ts';
import { parsePoolXml } from './pool-xml-parse.ts';
import type { Transport } from './transport.ts';

export interface LibvirtPool {
  pool: StoragePool;
  /** Whether its file system takes O_DIRECT. */
  directIo: boolean;
}

export async function listPools(transport: Transport): Promise<LibvirtPool[]> {
  return asList(await transport.call('pool-list')).map((fields) => {
    const parsed = parsePoolXml(text(fields, 'xml'));
    const common = {
      name: text(fields, 'name'),
      type: parsed.type,
      // The file system's own figures where the wrapper has them: libvirt's are as old as its last refresh.
      capacityBytes: Number(fields.capacityBytes ?? parsed.capacityBytes),
      availableBytes: Number(fields.availableBytes ?? parsed.availableBytes),
    };
    const reason = reasonAgainst(fields.unusable, parsed.path);
    return {
      pool:
        reason === undefined
          ? { ...common, usable: true as const, path: parsed.path ?? '' }
          : { ...common, usable: false as const, reason },
      directIo: fields.directIo === true,
    };
  });
}

function reasonAgainst(unusable: unknown, path: string | undefined): string | undefined {
  if (typeof unusable === 'string') return unusable;
  return path === undefined ? 'it has no directory' : undefined;
}

/** The pool with this name, fit for replica disks; else throws UND_HV_POOL_UNUSABLE with the reason. */
export function usablePool(pools: LibvirtPool[], name: string): LibvirtPool {
  const found = pools.find((one) => one.pool.name === name);
  if (!found) {
    throw undError('UND_HV_POOL_UNUSABLE', { pool: name, reason: 'there is no such pool' });
  }
  if (!found.pool.usable) {
    throw undError('UND_HV_POOL_UNUSABLE', { pool: name, reason: found.pool.reason });
  }
  return found;
}
