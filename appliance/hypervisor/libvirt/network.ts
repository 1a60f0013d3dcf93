import type { Network } from '../hypervisor.ts';
import { asList, text } from './answer.ts';
import { parseNetworkXml } from './network-xml-parse.ts';
import type { Transport } from './transport.ts';

export async function listNetworks(transport: Transport): Promise<Network[]> {
  return asList(await transport.call('net-list')).map((fields) => ({
    name: text(fields, 'name'),
    active: fields.active === true,
    ...parseNetworkXml(text(fields, 'xml')),
  }));
}
