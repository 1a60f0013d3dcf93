import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { getSystemErrorMessage } from 'node:util';
import { undError } from '../../protocol/errors.ts';
import type { HelperOptions } from './capture.ts';
import { helperPath } from './helper.ts';

/** Mounted file systems held still. */
export interface Freeze {
  /** Boot-time clock when the last of them was frozen. */
  readonly frozenAtBootNs: bigint;
  /** Thaws; false if the watchdog had to thaw before (then the point is not application-consistent). */
  thaw(): Promise<boolean>;
}

/**
 * Freezes the file systems in the order given; a separate process with locked memory holds them and thaws at
 * `thaw()`, after `timeoutMs`, or when this process dies. Error: UND_FREEZE_FAILED (all are thawed again).
 */
export async function freeze(
  mountPoints: string[],
  timeoutMs: number,
  options: HelperOptions = {},
): Promise<Freeze> {
  const child = spawn(
    helperPath(options),
    ['freeze', ...mountPoints, '--timeout-ms', String(timeoutMs)],
    { stdio: ['pipe', 'pipe', 'ignore'] },
  );
  child.stdin.on('error', () => {});
  const first = Promise.withResolvers<string>();
  const thawed = Promise.withResolvers<string>();
  const lines = createInterface({ input: child.stdout });
  lines.on('line', (line) => {
    if (line.startsWith('thawed')) thawed.resolve(line);
    else first.resolve(line);
  });
  child.once('error', (error) => first.reject(error));
  const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
  void exited.then(() => {
    first.resolve('failed 0 the freezer process ended');
    thawed.resolve('thawed by its end');
  });
  const line = await first.promise;
  const [word, number = '0', ...rest] = line.split(' ');
  if (word !== 'frozen') {
    await exited;
    const errno = Number(number);
    const what = rest.join(' ');
    throw undError('UND_FREEZE_FAILED', {
      mountPoint: what,
      reason: errno ? getSystemErrorMessage(-errno) : what,
    });
  }
  return {
    frozenAtBootNs: BigInt(number),
    async thaw() {
      child.stdin.end('thaw\n');
      const why = await thawed.promise;
      await exited;
      return why === 'thawed asked';
    },
  };
}
