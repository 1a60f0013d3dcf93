/**
 * A disk that stands in for the appliance's system where its machine matters and its contents do not: a boot sector that
 * says something on the serial console and hears the power button.
 */
import { rm, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { execa } from 'execa';

/**
 * Makes `folder`/understudy-appliance-VERSION.qcow2. Its boot sector sends each byte of `says` to COM1, then waits for
 * ACPI's power button and powers off; with `dies` it powers off at once. On q35: SeaBIOS puts PM1's status at 0x600 (bit 8
 * is the button), its enable at 0x602, its control at 0x604 (0x2000: sleep, state 5).
 */
export async function bootSectorImage(
  folder: string,
  version: string,
  says: string,
  dies = false,
): Promise<string> {
  const code = Buffer.from(
    '31c08ed8be377cac08c0741050bafd03eca82074fb58baf803eeebebba0206b80001effbf4ba0006edf6c40174f6ba0406b80020efebfe',
    'hex',
  );
  // No operation instead of the waiting.
  if (dies) code.fill(0x90, 0x1c, 0x2e);
  const sector = Buffer.alloc(512);
  code.copy(sector);
  sector.write(says, code.length, 'latin1');
  sector.writeUInt16LE(0xaa55, 510);
  const raw = join(folder, `${version}.raw`);
  await writeFile(raw, sector);
  await truncate(raw, 16 << 20);
  const qcow2 = join(folder, `understudy-appliance-${version}.qcow2`);
  await execa('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, qcow2]);
  await rm(raw);
  return qcow2;
}
