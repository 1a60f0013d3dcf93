import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { undError } from '../../protocol/errors.ts';
import type { HelperOptions } from './capture.ts';

/**
 * Where the helper executable is: the caller's word, `UNDERSTUDY_CAPTURE`, beside this program, or this checkout's
 * build folder. Error: UND_CAPTURE_HELPER_MISSING.
 */
export function helperPath(options: HelperOptions): string {
  const candidates = [
    options.helperPath,
    process.env.UNDERSTUDY_CAPTURE,
    join(dirname(process.execPath), 'understudy-capture'),
    join(process.cwd(), 'build/capture/understudy-capture'),
  ];
  for (const path of candidates) if (path && existsSync(path)) return path;
  throw undError('UND_CAPTURE_HELPER_MISSING', {
    reason: candidates.filter((c) => c !== undefined).join(', '),
  });
}
