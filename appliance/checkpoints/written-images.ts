/**
 * Which image of each replica disk the journal's frames are applied to, noted beside the journal. The state file says it
 * too, but can be older than the disks: a configuration that was restored is of the day of its backup, and a checkpoint
 * taken since has put a layer on top of the image that it names. Writing below that layer, or failing over without it,
 * would lose all that was written since.
 */
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import Type from 'typebox';
import { Value } from 'typebox/value';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { DiskRef, Hypervisor } from '../hypervisor/hypervisor.ts';
import { writeFileDurably } from '../state/files.ts';
import { sameDisk } from './snapshot.ts';

const FILE = 'images.json';
const Image = Type.Object({ pool: Type.String(), name: Type.String(), path: Type.String() });
const Images = Type.Record(Type.String(), Image);

/** By disk id; empty when nothing was noted, or nothing that can be read: then the state file is all there is. */
export function readWrittenImages(jobDir: string): Map<string, DiskRef> {
  try {
    const images = JSON.parse(readFileSync(join(jobDir, FILE), 'utf8'));
    if (Value.Check(Images, images)) return new Map(Object.entries(images));
  } catch {
    // Not there yet.
  }
  return new Map();
}

/** Durable when it returns. */
export function noteWrittenImages(jobDir: string, images: ReadonlyMap<string, DiskRef>): void {
  const before = readWrittenImages(jobDir);
  const changed = [...images].some(([diskId, image]) => !sameDisk(before.get(diskId), image));
  if (!changed && before.size === images.size) return;
  mkdirSync(jobDir, { recursive: true, mode: 0o700 });
  writeFileDurably(join(jobDir, FILE), JSON.stringify(Object.fromEntries(images)), 0o600);
}

/**
 * Of what is attached, noted and on record, the image that rests on all the others: the one that was written last. An
 * image that is gone was merged into what is there.
 * @throws UND_DISK_CHAIN when there is none, or something else is attached; UND_HV_…
 */
export async function newestImage(
  hypervisor: Hypervisor,
  where: { job: string; disk: string },
  known: { attached: DiskRef | null; written: DiskRef | null; recorded: DiskRef },
): Promise<DiskRef> {
  const { attached, written, recorded } = known;
  const named = [attached, written, recorded].filter((image) => image !== null);
  const images = named.filter((image, at) => named.findIndex((one) => sameDisk(one, image)) === at);
  if (images.length === 1) return images[0]!;
  const there: Array<{ image: DiskRef; chain: DiskRef[] }> = [];
  for (const image of images) {
    try {
      there.push({ image, chain: await hypervisor.chain(image) });
    } catch (error) {
      if (asUndError(error).code !== 'UND_HV_DISK_NOT_FOUND') throw error;
    }
  }
  const restsOnAll = ({ chain }: { chain: DiskRef[] }) =>
    there.every((other) => chain.some((layer) => sameDisk(layer, other.image)));
  const newest = there.find(restsOnAll)?.image;
  if (newest && (!attached || sameDisk(newest, attached))) return newest;
  throw undError('UND_DISK_CHAIN', {
    ...where,
    expected: `${(attached ?? recorded).name} on top of ${images.map(({ name }) => name).join(', ')}`,
    found: there.map(({ chain }) => chain.map(({ name }) => name).join(' on ')).join('; '),
  });
}
