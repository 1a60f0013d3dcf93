/** The agent that this appliance installs: what scripts/build-agent left in a folder. */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { undError } from '../../protocol/errors.ts';

const Sha256 = Type.String({ pattern: '^[0-9a-f]{64}$' });
const FileName = Type.String({ pattern: '^[A-Za-z0-9._-]+$' });
const Archive = Type.Object({ file: FileName, sizeBytes: Type.Integer(), sha256: Sha256 });
const Manifest = Type.Object({
  version: Type.String({ pattern: '^[A-Za-z0-9._+-]{1,64}$' }),
  installedBytes: Type.Integer(),
  // Closed: these names go into a shell script.
  files: Type.Record(FileName, Sha256, { additionalProperties: false }),
  archives: Type.Object({ zst: Archive, gz: Archive }),
});

export interface AgentPackage extends Static<typeof Manifest> {
  dir: string;
}

/** @throws UND_AGENT_PACKAGE_MISSING */
export async function readAgentPackage(dir: string): Promise<AgentPackage> {
  const missing = (reason: string, cause?: unknown) =>
    undError('UND_AGENT_PACKAGE_MISSING', { reason }, { cause });
  let manifest: unknown;
  try {
    manifest = JSON.parse(await readFile(join(dir, 'manifest.json'), 'utf8'));
  } catch (cause) {
    throw missing(`${dir}/manifest.json cannot be read`, cause);
  }
  if (!Value.Check(Manifest, manifest)) throw missing(`${dir}/manifest.json is not valid`);
  for (const { file, sizeBytes } of Object.values(manifest.archives)) {
    const found = await stat(join(dir, file)).catch(() => null);
    if (found?.size !== sizeBytes) throw missing(`${dir}/${file} is missing or not whole`);
  }
  return { ...manifest, dir };
}
