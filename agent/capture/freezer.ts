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
  /** Mount points whose type cannot be frozen (vfat, say): they were synced instead. */
  readonly skipped: string[];
  /** From before the first freeze to behind the last thaw; null until thawed, or if nobody was left to say. */
  readonly heldNs: bigint | null;
  /** Thaws; false if the watchdog had to thaw before (then the point is not application-consistent). */
  thaw(): Promise<boolean>;
}

/**
 * Syncs the file systems, then freezes them in the order given; two separate processes with locked memory, outside of
 * this one's control group, hold them and thaw at `thaw()`, `timeoutMs` after the first freeze began, or when this
 * process dies. Error: UND_FREEZE_FAILED (all are thawed again).
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
  const skipped: string[] = [];
  lines.on('line', (line) => {
    if (line.startsWith('thawed')) thawed.resolve(line);
    else if (line.startsWith('skipped')) skipped.push(line.split(' ').slice(2).join(' '));
    else first.resolve(line);
  });
  child.once('error', (error) => first.reject(error));
  const exited = new Promise<void>((resolve) => child.once('close', () => resolve()));
  void exited.then(() => {
    first.resolve('failed 0 the freezer process ended');
    thawed.resolve('thawed end');
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
  const begunNs = BigInt(rest[0] ?? number);
  let heldNs: bigint | null = null;
  return {
    frozenAtBootNs: BigInt(number),
    skipped,
    get heldNs() {
      return heldNs;
    },
    async thaw() {
      child.stdin.end('thaw\n');
      const [, why, at] = (await thawed.promise).split(' ');
      await exited;
      if (at && /^\d+$/.test(at)) heldNs = BigInt(at) - begunNs;
      return why === 'asked';
    },
  };
}
