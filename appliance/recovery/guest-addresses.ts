import type { GuestAddress } from '../hypervisor/hypervisor.ts';

/** Pure: the addresses of one NIC that others can reach, each once. */
export const addressesOf = (known: readonly GuestAddress[], mac: string): string[] => [
  ...new Set(
    known
      .filter((entry) => entry.mac.toLowerCase() === mac.toLowerCase())
      .filter((entry) => !/^(fe80:|127\.|::1$)/i.test(entry.address))
      .map((entry) => entry.address),
  ),
];
