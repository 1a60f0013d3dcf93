/**
 * The target host as the page sees it. Asking the host costs half a second and an SSH round trip, so answers are kept
 * for some seconds and concurrent questions share one call.
 */
import { undError } from '../../protocol/errors.ts';
import type { HostView, Network, Pool } from '../api/schema.ts';
import type * as hv from '../hypervisor/hypervisor.ts';

const FRESH_MS = 4_000;

const poolView = (pool: hv.StoragePool): Pool => ({
  name: pool.name,
  type: pool.type,
  totalBytes: pool.capacityBytes,
  freeBytes: pool.availableBytes,
  usable: pool.usable,
  ...(pool.usable ? {} : { reason: pool.reason }),
});

const networkView = (network: hv.Network): Network => ({
  name: network.name,
  bridge: network.bridge ?? null,
  mode: network.isolated ? 'isolated' : network.forward,
  active: network.active,
});

/** Pure: the driver's words in the API's. */
export function hostView(
  host: hv.HostDescription,
  pools: hv.StoragePool[],
  networks: hv.Network[],
  vms: hv.VmRef[],
): HostView {
  return {
    name: host.name,
    hypervisor: host.hypervisor,
    cpuModel: host.cpu.model,
    cpuCount: host.cpu.count,
    cpuUsePercent: Number.isFinite(host.cpu.use) ? Math.round(host.cpu.use * 1000) / 10 : null,
    memoryTotalBytes: host.memory.totalBytes,
    memoryFreeBytes: host.memory.availableBytes,
    networkRxBytesPerSec: host.network.receiveBytesPerSecond,
    networkTxBytesPerSec: host.network.sendBytesPerSecond,
    acceleration: host.acceleration === 'kvm' ? 'kvm' : 'tcg',
    pools: pools.map(poolView),
    networks: networks.map(networkView),
    vms: vms.map((vm) => ({
      name: vm.name,
      state: vm.state.state,
      isAppliance: vm.role === 'appliance',
      isReplica: vm.role === 'replica',
    })),
  };
}

export class HostService {
  readonly #hypervisor: hv.Hypervisor | null;
  #cached: { atMs: number; view: Promise<HostView> } | null = null;

  /** @param hypervisor null while the appliance has not been told its host */
  constructor(hypervisor: hv.Hypervisor | null) {
    this.#hypervisor = hypervisor;
  }

  /** @throws UND_HOST_NOT_CONFIGURED */
  get hypervisor(): hv.Hypervisor {
    if (!this.#hypervisor) throw undError('UND_HOST_NOT_CONFIGURED');
    return this.#hypervisor;
  }

  /** @throws UND_HOST_NOT_CONFIGURED, UND_HV_… */
  view(): Promise<HostView> {
    const hypervisor = this.hypervisor;
    const now = Date.now();
    if (this.#cached && now - this.#cached.atMs < FRESH_MS) return this.#cached.view;
    const view = (async () => {
      const [host, pools, networks, vms] = await Promise.all([
        hypervisor.describeHost(),
        hypervisor.listPools(),
        hypervisor.listNetworks(),
        hypervisor.listVms(),
      ]);
      return hostView(host, pools, networks, vms);
    })();
    const entry = { atMs: now, view };
    this.#cached = entry;
    view.catch(() => {
      if (this.#cached === entry) this.#cached = null;
    });
    return view;
  }

  forget(): void {
    this.#cached = null;
  }
}
