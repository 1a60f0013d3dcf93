/**
 * Cuts a server off that has been failed over and comes back, when that was asked for: nothing of its network but the way
 * to the appliance. Done by nftables, in tables of our own: a drop there is final whatever other tables accept, and
 * deleting them brings everything back.
 */
import { isIP, isIPv4, isIPv6 } from 'node:net';
import { execa } from 'execa';
import { undError } from '../../protocol/errors.ts';
import type { Isolation } from '../config.ts';

/** Runs a program; throws with what it said. */
export type Run = (program: string, args: string[], input?: string) => Promise<string>;

const run: Run = async (program, args, input) => {
  const { failed, stdout, stderr, shortMessage } = await execa(program, args, {
    reject: false,
    timeout: 30_000,
    ...(input === undefined ? { stdin: 'ignore' as const } : { input }),
  });
  if (failed) throw new Error(stderr.trim().slice(0, 500) || shortMessage);
  return stdout;
};

const TABLE = 'understudy_isolation';
/** Before connection tracking and everything that others put there. */
const PRIORITY = -350;

/** What stays reachable: where the appliance is, and by which names it is looked for. */
export function isolationOf(addresses: readonly string[], seenAt: string | undefined): Isolation {
  const seen = seenAt?.replace(/^::ffff:/, '');
  const all = seen ? [...addresses, seen] : addresses;
  return {
    peers: [...new Set(all.filter((one) => isIP(one) !== 0))],
    names: all.some((one) => isIP(one) === 0),
  };
}

/**
 * The tables as nft reads them; applied as a whole or not at all. `neighbours` are the IPv4 addresses that ARP may go to:
 * the server must not answer for an address that its replica may have now.
 */
export function isolationRules(
  { peers, names }: Isolation,
  neighbours: readonly string[] | null,
): string {
  const four = peers.filter((peer) => isIPv4(peer));
  const six = peers.filter((peer) => isIPv6(peer));
  const set = (list: readonly string[]) => `{ ${list.join(', ')} }`;
  const chain = (name: 'input' | 'output', end: 'saddr' | 'daddr', port: 'sport' | 'dport') => {
    const accepted = [
      `${name === 'input' ? 'iif' : 'oif'} "lo"`,
      ...(four.length > 0 ? [`ip ${end} ${set(four)}`] : []),
      ...(six.length > 0
        ? [`ip6 ${end} ${set(six)}`, 'icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }']
        : []),
      // Without its lease it would lose the address that the appliance knows.
      name === 'input' ? 'udp sport 67 udp dport 68' : 'udp sport 68 udp dport 67',
      ...(names ? [`udp ${port} 53`, `tcp ${port} 53`] : []),
    ];
    return `  chain ${name} {
    type filter hook ${name} priority ${PRIORITY}; policy drop;
${accepted.map((rule) => `    ${rule} accept\n`).join('')}  }
`;
  };
  const arp =
    neighbours === null
      ? ''
      : `table arp ${TABLE} {
  chain input {
    type filter hook input priority ${PRIORITY}; policy drop;
    ${neighbours.length > 0 ? `arp saddr ip ${set(neighbours)} accept` : ''}
  }
  chain output {
    type filter hook output priority ${PRIORITY}; policy drop;
    ${neighbours.length > 0 ? `arp daddr ip ${set(neighbours)} accept` : ''}
  }
}
`;
  return `table inet ${TABLE} {
${chain('input', 'saddr', 'sport')}${chain('output', 'daddr', 'dport')}  chain forward {
    type filter hook forward priority ${PRIORITY}; policy drop;
  }
}
${arp}`;
}

export interface Isolator {
  /**
   * From its return on only the appliance is reached; nothing happens when it is so already. Returns what could not be
   * done, in words; null: all was. Throws `UND_ISOLATION_FAILED`.
   */
  isolate(isolation: Isolation): Promise<string | null>;
  /** Everything is as before. Throws `UND_ISOLATION_FAILED`. */
  release(): Promise<void>;
}

const failed = (error: unknown) =>
  undError('UND_ISOLATION_FAILED', { source: 'this machine', reason: (error as Error).message });

export function createIsolator(how: Run = run): Isolator {
  const tables = async (): Promise<string[]> =>
    (await how('nft', ['list', 'tables']))
      .split('\n')
      .flatMap((line) => /^table (\S+) understudy_isolation$/.exec(line)?.[1] ?? []);

  /** The peers on the server's own networks, and the gateways to the others. */
  const neighboursOf = async (peers: readonly string[]): Promise<string[]> => {
    const found = new Set<string>();
    for (const peer of peers.filter((one) => isIPv4(one))) {
      const said = await how('ip', ['-4', 'route', 'get', peer]).catch(() => '');
      found.add(/ via (\S+)/.exec(said)?.[1] ?? peer);
    }
    return [...found].filter((one) => isIPv4(one));
  };

  return {
    async isolate(isolation) {
      try {
        if ((await tables()).includes('inet')) return null;
      } catch (error) {
        throw failed(error);
      }
      const neighbours = await neighboursOf(isolation.peers);
      const apply = (rules: string) => how('nft', ['-f', '-'], rules);
      try {
        await apply(isolationRules(isolation, neighbours));
        return null;
      } catch {
        // A kernel without ARP tables: it still answers for its address, and sends and takes nothing else.
        await apply(isolationRules(isolation, null)).catch((error) => {
          throw failed(error);
        });
        return 'it still answers ARP requests for its addresses';
      }
    },

    async release() {
      try {
        for (const family of await tables()) await how('nft', ['delete', 'table', family, TABLE]);
      } catch (error) {
        throw failed(error);
      }
    },
  };
}
