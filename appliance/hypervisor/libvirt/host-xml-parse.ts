import type { Firmware } from '../hypervisor.ts';
import { all, attribute, first, parseXml, textOf } from './xml.ts';

/** The firmwares that `virsh domcapabilities` offers. BIOS is always there on x86. */
export function parseFirmwares(text: string): Firmware[] {
  const os = first(parseXml(text, 'domainCapabilities'), 'os');
  const values = all(os, 'enum')
    .filter((one) => attribute(one, 'name') === 'firmware')
    .flatMap((one) => all(one, 'value'))
    .map((value) => textOf({ value }, 'value'));
  return values.includes('efi') ? ['bios', 'uefi'] : ['bios'];
}
