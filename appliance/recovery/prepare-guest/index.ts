/**
 * Guest preparation, the appliance's side: starts the process that does it in mount, PID, network, IPC and host name
 * namespaces of its own, and with a leash: it dies with the appliance.
 */
import { spawn } from 'node:child_process';
import { readlinkSync } from 'node:fs';
import { UndError, undError } from '../../../protocol/errors.ts';
import type { GuestPreparer, PrepareReport, PrepareRequest } from '../types.ts';
import { ISOLATED_ENV, isolated } from './isolation.ts';
import type { WorkerInput, WorkerOutput } from './worker.ts';

export interface GuestPreparerOptions {
  /**
   * What runs `runPrepareWorker`, such as `[process.execPath, '/usr/lib/understudy/understudy.js',
   * 'prepare-guest-worker']`.
   */
  workerCommand: readonly [string, ...string[]];
  /** Default 15 minutes: journal replay and file system checks of large disks. */
  limitMs?: number;
}

const MAX_OUTPUT_BYTES = 8 * 1024 * 1024;

export function createGuestPreparer(options: GuestPreparerOptions): GuestPreparer {
  return {
    prepare: (request, signal) =>
      runWorker(options.workerCommand, options.limitMs ?? 15 * 60_000, request, signal),
  };
}

function runWorker(
  workerCommand: readonly string[],
  limitMs: number,
  request: PrepareRequest,
  signal: AbortSignal,
): Promise<PrepareReport> {
  const [command = '', ...args] = isolated(workerCommand);
  const input: WorkerInput = {
    ...request,
    outsideMountNamespace: readlinkSync('/proc/self/ns/mnt'),
  };
  return new Promise((resolve, reject) => {
    const fail = (reason: string) => reject(undError('UND_GUEST_PREPARE_FAILED', { reason }));
    const child = spawn(command, args, {
      signal,
      killSignal: 'SIGKILL',
      timeout: limitMs,
      stdio: ['pipe', 'pipe', 'pipe'],
      env: ISOLATED_ENV,
    });
    let output = '';
    let complaint = '';
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      if (output.length < MAX_OUTPUT_BYTES) output += chunk;
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      complaint = (complaint + chunk).slice(-2000);
    });
    // Once it has begun, its end is waited for also when it is killed: until then it has the disks.
    child.on('error', (error) => {
      if (child.pid === undefined) fail(error.message);
    });
    child.on('close', (code, killed) => {
      let answer: WorkerOutput;
      try {
        answer = JSON.parse(output) as WorkerOutput;
      } catch {
        const how = killed ? `was ended by ${killed}` : `ended with ${code}`;
        fail(`its process ${how}: ${complaint.trim() || 'it said nothing'}`);
        return;
      }
      if ('error' in answer) reject(new UndError(answer.error.code, answer.error.params));
      else resolve(answer.report);
    });
    child.stdin.on('error', () => {});
    child.stdin.end(JSON.stringify(input));
  });
}
