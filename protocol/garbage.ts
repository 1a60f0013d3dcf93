/**
 * When V8 collects garbage, for a program whose memory is buffers.
 *
 * V8 lets a heap grow by a share of what lives in it. Of ours that is a few megabytes, beside it hundreds of megabytes
 * of buffers come and go each second, and by its defaults V8 then marks the whole heap twenty times a second: half of
 * the processor time of an agent under load. So buffers count as part of the heap (they have a limit of 64 MiB of their
 * own otherwise), and both together may grow to a multiple of what lives.
 */
import { setFlagsFromString } from 'node:v8';

export const GARBAGE_FLAGS = [
  '--heap-growing-percent=150',
  '--external-memory-accounted-in-global-limit',
] as const;

/** Buffers alone may else grow by no more than a third of what lives, whatever the heap may. */
export const ROOMY_GARBAGE_FLAGS = [
  ...GARBAGE_FLAGS,
  '--external-memory-max-growing-factor=3',
] as const;

/**
 * Call it first of all, in each program that carries a stream.
 * @param memory `roomy` collects less often still, for tens of MiB more
 */
export function collectLessOften(memory: 'tight' | 'roomy'): void {
  for (const flag of memory === 'roomy' ? ROOMY_GARBAGE_FLAGS : GARBAGE_FLAGS) {
    setFlagsFromString(flag);
  }
}
