/**
 * Proof that a replica VM booted: evidence from outside the guest, of one of four kinds, and what its screen showed.
 * A guest is believed to run when its own agent talks to the appliance, when the QEMU guest agent answers, when a TCP
 * port at the guest's address takes a connection, or when the serial console shows a login prompt. A ping or an address
 * alone is no proof: an initramfs may have both.
 */
import { mkdir, rename, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { addressesOf } from './guest-addresses.ts';
import type { FailoverRecord } from './record.ts';
import type { JobHandle } from './types.ts';

export interface BootProof {
  kind: 'agent-hello' | 'guest-agent' | 'tcp' | 'console-login';
  words: string;
  addresses: string[];
}

export interface ProveContext {
  signal: AbortSignal;
  detail(text: string): void;
  save(change: (record: FailoverRecord) => Partial<FailoverRecord>): Promise<void>;
}

export interface BootProver {
  /** Throws `UND_FAILOVER_BOOT_FAILED`, `UND_FAILOVER_NO_BOOT_PROOF`. Keeps a screenshot in both cases. */
  prove(record: FailoverRecord, job: JobHandle, context: ProveContext): Promise<BootProof>;
}

export interface ProverOptions {
  hypervisor: Hypervisor;
  /** Where screenshots and console texts are kept. */
  evidenceFolder: string;
  /** Default 15 minutes: a guest on an emulated processor that checks its file systems. */
  limitMs?: number;
  intervalMs?: number;
  /** Ports of which any may answer. */
  ports?: number[];
  /** Whether a connection to the address is accepted. */
  connects?: (address: string, port: number) => Promise<boolean>;
}

/** Nobody listens here (compressnet): where this port answers, a proxy on the way answers for everybody. */
const NOBODYS_PORT = 2;
const DEFAULT_PORTS = [22, 443, 80, 5432, 3306, 3389, 25, 8080];

const ESC = String.fromCharCode(27);
/** Colours, cursor moves and the like, then what is left of control characters but line feeds. */
const CONTROL_SEQUENCES = new RegExp(
  `${ESC}(?:\\[[0-9;?]*[ -/]*[@-~]|[()][A-Z0-9]|[@-Z\\\\-_=>])|[^\\n\\P{Cc}]`,
  'gu',
);

/** What a console text says about the boot. Only signs after which nothing comes any more count as a failure. */
export function readConsole(
  raw: string,
): { state: 'login' } | { state: 'failed'; reason: string } | { state: 'unknown' } {
  const text = raw.replace(CONTROL_SEQUENCES, '');
  const lines = text.split('\n').map((line) => line.trim());
  const tail = lines.filter((line) => line !== '').slice(-8);
  // The name before `login:` tells a getty from a message that happens to contain the word.
  if (tail.some((line) => /^[A-Za-z0-9][A-Za-z0-9._-]* login:/.test(line)))
    return { state: 'login' };
  const signs: [RegExp, string][] = [
    [/Kernel panic - not syncing[^\n]*/, ''],
    [/ALERT!\s+\S+ does not exist\.\s+Dropping to a shell!/, ''],
    [/You are in (?:emergency|rescue) mode/, ''],
    [/grub rescue>/, 'GRUB does not find its files'],
    [/No bootable device/, ''],
    [/^Shell>\s*$/m, 'the firmware found no boot loader and started its shell'],
    [/Cannot open access to console, the root account is locked/, ''],
  ];
  for (const [sign, words] of signs) {
    const found = text.match(sign);
    if (found) return { state: 'failed', reason: words || found[0].replaceAll(/\s+/g, ' ') };
  }
  return { state: 'unknown' };
}

export function tcpConnects(address: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({ host: address, port, timeout: 2500 });
    const end = (answer: boolean) => {
      socket.destroy();
      resolve(answer);
    };
    socket.once('connect', () => end(true));
    socket.once('timeout', () => end(false));
    socket.once('error', () => end(false));
  });
}

export function createBootProver(options: ProverOptions): BootProver {
  const { hypervisor, evidenceFolder } = options;
  const limitMs = options.limitMs ?? 15 * 60_000;
  const intervalMs = options.intervalMs ?? 3_000;
  const ports = options.ports ?? DEFAULT_PORTS;
  const connects = options.connects ?? tcpConnects;

  /** A probe that can't be made now is no answer; only the host's absence is for the caller. */
  async function quiet<T>(probe: Promise<T>, none: T): Promise<T> {
    try {
      return await probe;
    } catch (error) {
      if (asUndError(error).code === 'UND_HV_UNREACHABLE') throw error;
      return none;
    }
  }

  async function keepEvidence(record: FailoverRecord, context: ProveContext): Promise<void> {
    try {
      await mkdir(evidenceFolder, { recursive: true, mode: 0o700 });
      const text = await hypervisor.consoleTail(record.replicaName).catch(() => '');
      await writeFile(join(evidenceFolder, `${record.failoverId}.console.txt`), text);
      const png = await hypervisor.screenshot(record.replicaName);
      const name = `${record.failoverId}.png`;
      await writeFile(join(evidenceFolder, `${name}.part`), png);
      await rename(join(evidenceFolder, `${name}.part`), join(evidenceFolder, name));
      await context.save(() => ({ screenshot: name }));
    } catch {
      // Evidence is worth having, but its absence must not turn a booted replica into a failed failover.
    }
  }

  async function look(record: FailoverRecord, job: JobHandle): Promise<BootProof | string> {
    const vm = record.replicaName;
    const state = await hypervisor.vmState(vm);
    if (state.state === 'off' || state.state === 'crashed' || state.state === 'absent') {
      const why = 'reason' in state ? ` (${state.reason})` : '';
      throw undError('UND_FAILOVER_BOOT_FAILED', {
        vm,
        reason: `the VM is ${state.state}${why}`,
      });
    }
    const known = await quiet(hypervisor.guestAddresses(vm), []);
    const addresses = addressesOf(known, record.vm.mac);
    const at = addresses.length > 0 ? ` at ${addresses.join(', ')}` : '';
    const hello = await quiet(job.passiveHelloAt(record.vm.uuid, record.startedAt), null);
    if (hello) {
      return { kind: 'agent-hello', addresses, words: `its agent said hello at ${hello}${at}` };
    }
    if (await quiet(hypervisor.guestAgentPing(vm), false)) {
      return { kind: 'guest-agent', addresses, words: `its guest agent answers${at}` };
    }
    // The addresses of a test are the source's own as often as not: whoever answers there, it is not the test.
    for (const address of record.kind === 'test' ? [] : addresses) {
      const answers = await Promise.all(ports.map((port) => connects(address, port)));
      const port = ports.find((_, index) => answers[index]);
      if (port !== undefined && !(await connects(address, NOBODYS_PORT))) {
        return { kind: 'tcp', addresses, words: `TCP port ${port} answers at ${address}` };
      }
    }
    const console = readConsole(await quiet(hypervisor.consoleTail(vm), ''));
    if (console.state === 'login') {
      return { kind: 'console-login', addresses, words: `login prompt on its serial console${at}` };
    }
    if (console.state === 'failed') {
      throw undError('UND_FAILOVER_BOOT_FAILED', { vm, reason: console.reason });
    }
    return addresses.length > 0 ? `it has the address ${addresses.join(', ')}` : 'no sign yet';
  }

  return {
    async prove(record, job, context) {
      const began = Date.now();
      let seen = 'no sign yet';
      try {
        while (true) {
          const result = await look(record, job);
          if (typeof result !== 'string') {
            await keepEvidence(record, context);
            return result;
          }
          seen = result;
          context.detail(`waiting for a sign of life (${seen})`);
          if (Date.now() - began > limitMs) {
            throw undError('UND_FAILOVER_NO_BOOT_PROOF', {
              vm: record.replicaName,
              limitMs,
              seen,
            });
          }
          await pause(intervalMs, undefined, { signal: context.signal });
        }
      } catch (error) {
        if (!context.signal.aborted) await keepEvidence(record, context);
        throw error;
      }
    },
  };
}
