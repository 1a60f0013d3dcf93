/**
 * Whether the old server still answers on its addresses, looked at before its replica takes its place: two servers with
 * one address harm each other and those who talk to them. On the appliance's own network the answer is ARP's (or
 * neighbour discovery's), which no firewall of the server hides; elsewhere it is TCP's.
 */
import { connect } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { execa } from 'execa';

/** Evidence in words that one of the addresses answers; null when none does. */
export type AddressProbe = (
  addresses: readonly string[],
  signal?: AbortSignal,
) => Promise<string | null>;

const CONNECT_MS = 2_000;
/** The kernel asks a neighbour that it knew for five seconds and three probes more before it gives it up. */
const NEIGHBOUR_MS = 9_000;
/** SSH, and a port that nobody uses: a server refuses it, and where it is accepted a proxy answers for everybody. */
const PORTS = [22, 2] as const;

type Answer = 'accepted' | 'refused' | 'none';

const tcp = (address: string, port: number): Promise<Answer> =>
  new Promise((resolve) => {
    const socket = connect({ host: address, port });
    const end = (answer: Answer) => {
      socket.destroy();
      resolve(answer);
    };
    socket.setTimeout(CONNECT_MS, () => end('none'));
    socket.once('connect', () => end('accepted'));
    socket.once('error', (error: NodeJS.ErrnoException) =>
      end(error.code === 'ECONNREFUSED' ? 'refused' : 'none'),
    );
  });

interface Neighbour {
  lladdr?: string;
  state?: string[];
}

/** The MAC address that answers for this address just now; the connection attempt before has made the kernel ask. */
async function neighbour(address: string, signal?: AbortSignal): Promise<string | null> {
  const end = Date.now() + NEIGHBOUR_MS;
  for (;;) {
    const { stdout } = await execa('ip', ['-json', 'neigh', 'show', 'to', address], {
      reject: false,
      timeout: 5_000,
    });
    let entries: Neighbour[] = [];
    try {
      entries = JSON.parse(stdout || '[]') as Neighbour[];
    } catch {
      return null;
    }
    const known = entries.find(({ lladdr }) => lladdr !== undefined);
    if (!known) return null;
    if (known.state?.includes('REACHABLE')) return known.lladdr!;
    // An old entry: the kernel is finding out whether it still holds.
    const open = known.state?.some((state) => ['STALE', 'DELAY', 'PROBE'].includes(state));
    if (!open || Date.now() > end) return null;
    await pause(300, undefined, { signal });
  }
}

/** Addresses as an inventory has them, `ADDRESS/BITS`, without those that mean nothing to another machine. */
export const probed = (addresses: readonly string[]): string[] =>
  addresses
    .map((address) => address.split('/')[0]!)
    .filter((address) => !/^(127\.|169\.254\.|::1$|fe80:)/i.test(address));

export const probeAddresses: AddressProbe = async (addresses, signal) => {
  const seen = await Promise.all(
    addresses.map(async (address) => {
      // What the kernel has heard within the last half minute it would not ask again.
      await execa('ip', ['neigh', 'flush', 'to', address], { reject: false, timeout: 5_000 });
      const [used, unused] = await Promise.all(PORTS.map((port) => tcp(address, port)));
      const mac = await neighbour(address, signal);
      if (mac) return `${address} is answered for by ${mac}`;
      if (unused === 'accepted') return null;
      if (used === 'accepted') return `${address} takes connections`;
      return used === 'refused' || unused === 'refused' ? `${address} refuses connections` : null;
    }),
  );
  return seen.find((one) => one !== null) ?? null;
};
