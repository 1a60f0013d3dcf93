/**
 * The capture helper is a static program of its own, carried inside the agent's executable. It is unpacked at
 * installation and checked at every start: a helper of another version must never load its BPF programs.
 */
import { createHash } from 'node:crypto';
import { chmod, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { zstdDecompressSync } from 'node:zlib';
import { undError } from '../../protocol/errors.ts';
import { helperPath } from '../capture/helper.ts';
import { writeDurably } from '../config.ts';

/** Set by scripts/build-agent. */
declare const UNDERSTUDY_HELPER_ZST_BASE64: string | undefined;
declare const UNDERSTUDY_HELPER_SHA256: string | undefined;

const MAX_HELPER_BYTES = 64 * 1024 * 1024;
const sha256 = (data: Buffer) => createHash('sha256').update(data).digest('hex');

/**
 * Makes sure that the helper of this very build is in `programDir`; returns its path.
 * Run from the sources, when nothing is carried: wherever the capture finds one.
 * @throws UND_AGENT_HELPER_MISSING, UND_CAPTURE_HELPER_MISSING
 */
export async function ensureHelper(programDir: string): Promise<string> {
  if (typeof UNDERSTUDY_HELPER_ZST_BASE64 !== 'string') {
    return helperPath({});
  }
  const path = join(programDir, 'understudy-capture');
  const wanted = UNDERSTUDY_HELPER_SHA256!;
  const found = await readFile(path).catch(() => null);
  if (found && sha256(found) === wanted) {
    await chmod(path, 0o755).catch(() => undefined);
    return path;
  }
  const helper = zstdDecompressSync(Buffer.from(UNDERSTUDY_HELPER_ZST_BASE64, 'base64'), {
    maxOutputLength: MAX_HELPER_BYTES,
  });
  if (sha256(helper) !== wanted) {
    throw undError('UND_AGENT_HELPER_MISSING', {
      reason: 'what the executable carries is damaged',
    });
  }
  try {
    await writeDurably(path, helper, 0o755);
  } catch (cause) {
    throw undError('UND_AGENT_HELPER_MISSING', { reason: String(cause) }, { cause });
  }
  return path;
}
