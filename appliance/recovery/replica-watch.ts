/**
 * Looks, again and again, whether the replica VMs of completed failovers still run: until commit nobody else does, and
 * a proof of boot says nothing about later.
 */
import { isDeepStrictEqual } from 'node:util';
import { asUndError } from '../../protocol/errors.ts';
import type { Hypervisor, VmState } from '../hypervisor/hypervisor.ts';
import { addressesOf } from './guest-addresses.ts';

export interface ReplicaSight {
  /** `unknown` when the host does not answer, with its reason. */
  state: VmState['state'] | 'unknown';
  reason: string | null;
  /** Of its NIC, as far as the host knows them now; a proof of boot may come before the guest has one. */
  addresses: string[];
  /** When it was first seen so (ISO 8601). */
  since: string;
}

export interface ReplicaWatchOptions {
  hypervisor: Pick<Hypervisor, 'listVms' | 'guestAddresses'>;
  /** The replica VMs to look at now. */
  watched(): { failoverId: string; vmUuid: string; mac: string }[];
  /** Called when another state is seen; must not throw. */
  changed(failoverId: string): void;
  now(): string;
  /** Default 10 s. */
  intervalMs?: number;
}

const INTERVAL_MS = 10_000;

export class ReplicaWatch {
  readonly #options: ReplicaWatchOptions;
  readonly #sights = new Map<string, ReplicaSight>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: ReplicaWatchOptions) {
    this.#options = options;
  }

  /** Null while it was not looked at, or is not watched any more. */
  of(failoverId: string): ReplicaSight | null {
    const isWatched = this.#options.watched().some((one) => one.failoverId === failoverId);
    return isWatched ? (this.#sights.get(failoverId) ?? null) : null;
  }

  start(): void {
    if (this.#closed) return;
    this.#timer = setTimeout(() => {
      this.#look().finally(() => this.start());
    }, this.#options.intervalMs ?? INTERVAL_MS);
    this.#timer.unref();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  async #look(): Promise<void> {
    const watched = this.#options.watched();
    for (const failoverId of this.#sights.keys()) {
      if (!watched.some((one) => one.failoverId === failoverId)) this.#sights.delete(failoverId);
    }
    if (watched.length === 0) return;
    const seen = await this.#options.hypervisor.listVms().catch((error) => asUndError(error));
    for (const { failoverId, vmUuid, mac } of watched) {
      if (Array.isArray(seen)) {
        const vm = seen.find(({ uuid }) => uuid.toLowerCase() === vmUuid.toLowerCase());
        const state = vm?.state ?? ({ state: 'absent' } as const);
        const addresses =
          vm && state.state === 'running'
            ? addressesOf(
                await this.#options.hypervisor.guestAddresses(vm.name).catch(() => []),
                mac,
              )
            : [];
        const reason = 'reason' in state ? state.reason : null;
        this.#saw(failoverId, { state: state.state, reason, addresses });
      } else {
        this.#saw(failoverId, { state: 'unknown', reason: seen.message, addresses: [] });
      }
    }
  }

  #saw(failoverId: string, sight: Omit<ReplicaSight, 'since'>): void {
    const before = this.#sights.get(failoverId);
    const since =
      before?.state === sight.state && before.reason === sight.reason
        ? before.since
        : this.#options.now();
    const next = { ...sight, since };
    if (isDeepStrictEqual(before, next)) return;
    this.#sights.set(failoverId, next);
    if (!this.#closed) this.#options.changed(failoverId);
  }
}
