import type { Network } from '../hypervisor.ts';
import { all, attribute, first, parseXml } from './xml.ts';

const FORWARDS = ['nat', 'route', 'bridge', 'open'] as const;

export function parseNetworkXml(text: string): Omit<Network, 'name' | 'active'> {
  const root = parseXml(text, 'network');
  const forward = first(root, 'forward');
  const mode = forward === undefined ? undefined : (attribute(forward, 'mode') ?? 'nat');
  return {
    bridge: attribute(first(root, 'bridge'), 'name'),
    forward:
      mode === undefined ? 'isolated' : (FORWARDS.find((known) => known === mode) ?? 'other'),
    isolated: mode === undefined,
    addresses: all(root, 'ip').map((ip) => {
      const address = attribute(ip, 'address') ?? '';
      return `${address}/${attribute(ip, 'prefix') ?? prefixOf(attribute(ip, 'netmask'), address)}`;
    }),
  };
}

/** 255.255.255.0 -> 24. libvirt takes a netmask or a prefix; without both it is the address's whole length. */
function prefixOf(netmask: string | undefined, address: string): number {
  if (netmask === undefined) return address.includes(':') ? 64 : 32;
  return netmask
    .split('.')
    .reduce((bits, part) => bits + Number(part).toString(2).replaceAll('0', '').length, 0);
}
