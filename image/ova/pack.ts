/**
 * Packs a disk image as an OVA: `node image/ova/pack.ts IMAGE.qcow2 VERSION OUT.ova`.
 *
 * The archive is a ustar whose first member is the descriptor, the second the manifest, then the disks in the order of
 * the references, as the OVF specification (5.3) asks of an importer that reads it as a stream.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdtemp, rename, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { execa } from 'execa';
import { type OvaDisk, ovfDescriptor, ovfManifest } from './ovf.ts';

const GIB = 1024 ** 3;
/** Recommended sizes; whoever imports may change them in the dialog. */
export const OVA_DEFAULTS = { vcpus: 2, memoryMib: 2048, dataBytes: 32 * GIB, network: 'LAN' };

async function sha256(file: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(file), hash);
  return hash.digest('hex');
}

/** `image` (any format qemu-img reads) as a stream-optimised VMDK called `file` in `folder`. */
async function vmdk(image: string, folder: string, file: string): Promise<OvaDisk> {
  const target = join(folder, file);
  await execa('qemu-img', [
    'convert',
    '-O',
    'vmdk',
    '-o',
    'subformat=streamOptimized,adapter_type=lsilogic',
    image,
    target,
  ]);
  const info = JSON.parse((await execa('qemu-img', ['info', '--output=json', image])).stdout);
  const map: { length: number; data: boolean; zero: boolean }[] = JSON.parse(
    (await execa('qemu-img', ['map', '--output=json', image])).stdout,
  );
  return {
    file,
    fileBytes: (await stat(target)).size,
    capacityBytes: info['virtual-size'],
    populatedBytes: map.filter((e) => e.data && !e.zero).reduce((sum, e) => sum + e.length, 0),
  };
}

/** Writes `out`, which appears only when it is complete. */
export async function packOva(image: string, version: string, out: string): Promise<void> {
  const folder = await mkdtemp(join(dirname(out), '.ova-'));
  try {
    const name = basename(out, '.ova');
    const blank = join(folder, 'blank.qcow2');
    await execa('qemu-img', ['create', '-q', '-f', 'qcow2', blank, String(OVA_DEFAULTS.dataBytes)]);
    // The data disk is a file too: importers differ in what they make of a disk without one.
    const disks = [
      await vmdk(image, folder, `${name}-disk1.vmdk`),
      await vmdk(blank, folder, `${name}-disk2.vmdk`),
    ];
    await writeFile(
      join(folder, `${name}.ovf`),
      ovfDescriptor({ version, ...OVA_DEFAULTS, disks }),
    );
    const files = [`${name}.ovf`, ...disks.map((d) => d.file)];
    const sums = [];
    for (const file of files) sums.push({ file, sha256Hex: await sha256(join(folder, file)) });
    await writeFile(join(folder, `${name}.mf`), ovfManifest(sums));
    const members = [`${name}.ovf`, `${name}.mf`, ...disks.map((d) => d.file)];
    await execa('tar', [
      '--format=ustar',
      '--owner=0',
      '--group=0',
      '--numeric-owner',
      '--mode=0644',
      '-C',
      folder,
      '-cf',
      join(folder, 'out.ova'),
      ...members,
    ]);
    await rename(join(folder, 'out.ova'), out);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

if (import.meta.main) {
  const [image, version, out] = process.argv.slice(2);
  if (!image || !version || !out) {
    console.error('Usage: node image/ova/pack.ts IMAGE.qcow2 VERSION OUT.ova');
    process.exit(2);
  }
  await packOva(image, version, out);
}
