import { setTimeout as sleep } from 'node:timers/promises';
import { undError } from '../../../protocol/errors.ts';
import type { GuestAddress, VmState } from '../hypervisor.ts';
import { checkName } from '../names.ts';
import { asFields, text } from './answer.ts';
import { type Slot, slotNumber } from './domain-xml-build.ts';
import { type ParsedDomain, parseDomainXml } from './domain-xml-parse.ts';
import type { Transport } from './transport.ts';

/** A call is cheap, and most waits are short: asked often at first, then less and less. */
const POLL_MS = 40;
const MAX_POLL_MS = 250;
/** The pause before a poll. */
export const pollPause = (polls: number): number => Math.min(MAX_POLL_MS, POLL_MS * 2 ** polls);
const ASK_AGAIN_MS = 10_000;

export async function readDomain(transport: Transport, vm: string): Promise<ParsedDomain> {
  const xml = await transport.call('vm-xml', { vm: checkName('The VM', vm) });
  return parseDomainXml(typeof xml === 'string' ? xml : '');
}

/** `virsh domstate --reason` in the field's words. */
export function stateOf(state: string, reason: string): VmState {
  switch (state) {
    case 'running':
    case 'idle':
      return { state: 'running' };
    case 'paused':
    case 'pmsuspended':
      return { state: 'paused', reason: reason || state };
    case 'in shutdown':
      return { state: 'stopping' };
    case 'crashed':
      return { state: 'crashed' };
    default:
      return { state: 'off', reason: reason || state };
  }
}

export async function readState(transport: Transport, vm: string): Promise<VmState> {
  try {
    const fields = asFields(await transport.call('vm-state', { vm: checkName('The VM', vm) }));
    return stateOf(text(fields, 'state'), text(fields, 'reason'));
  } catch (error) {
    if (isCode(error, 'UND_HV_VM_NOT_FOUND')) return { state: 'absent' };
    throw error;
  }
}

export function isCode(error: unknown, ...codes: string[]): boolean {
  return (
    typeof error === 'object' &&
    error !== null &&
    'code' in error &&
    codes.includes(String(error.code))
  );
}

/** The first free slot of the VM's first virtio-scsi controller; undefined when it has none. */
export function freeSlot(domain: ParsedDomain): Slot | undefined {
  const controller = domain.virtioScsi[0];
  if (controller === undefined) return undefined;
  const taken = new Set(domain.disks.map((disk) => disk.target));
  const addresses = new Set(
    domain.disks
      .filter((disk) => disk.bus === 'scsi' && disk.address?.controller === controller)
      .map((disk) => `${disk.address?.target}:${disk.address?.unit}`),
  );
  for (let n = 0; ; n++) {
    const slot = slotNumber(n, controller);
    if (!taken.has(slot.target) && !addresses.has(`${slot.scsiTarget}:${slot.unit}`)) return slot;
  }
}

/**
 * A free slot of the running VM. A VM without a virtio-scsi controller is given one: an appliance that was imported from
 * its OVA has none, because importers agree on no name for it. Throws UND_HV_NO_CONTROLLER when the VM takes none before
 * its next start.
 */
export async function slotFor(
  transport: Transport,
  vm: string,
  domain: ParsedDomain,
): Promise<Slot> {
  const free = freeSlot(domain);
  if (free) return free;
  const { reason } = asFields(await transport.call('controller-add', { vm }));
  const now = freeSlot(await readDomain(transport, vm));
  if (now) return now;
  throw undError('UND_HV_NO_CONTROLLER', { vm, reason: String(reason ?? 'libvirt said nothing') });
}

/**
 * Asks for the detach until the live XML no longer has the disk. `virsh detach-disk` alone proves nothing: with a guest
 * that does not answer it says "Disk detached successfully" after 5 s and the disk is still there. Returns the image's
 * path, undefined when no such disk was attached.
 */
export async function detachUntilGone(
  transport: Transport,
  vm: string,
  serial: string,
  timeoutMs: number,
): Promise<string | undefined> {
  const end = performance.now() + timeoutMs;
  let path: string | undefined;
  let askedAt = Number.NEGATIVE_INFINITY;
  let refusal: unknown;
  for (let polls = 0; ; ) {
    const disk = (await readDomain(transport, vm)).disks.find((one) => one.serial === serial);
    if (!disk) return path;
    path = disk.path;
    if (performance.now() > end) {
      throw undError('UND_HV_DETACH_TIMEOUT', { serial, vm, timeoutMs }, { cause: refusal });
    }
    if (performance.now() - askedAt > ASK_AGAIN_MS) {
      askedAt = performance.now();
      try {
        await transport.call('disk-detach', { vm, serial });
      } catch (error) {
        // FAILED: "already in the process of unplug", or the guest said no; the XML decides.
        if (!isCode(error, 'UND_HV_FAILED', 'UND_HV_DISK_NOT_ATTACHED')) throw error;
        refusal = error;
      }
      continue;
    }
    await sleep(pollPause(polls++));
  }
}

/** Asks the guest to power off until it is off. */
export async function shutDown(transport: Transport, vm: string, timeoutMs: number): Promise<void> {
  const end = performance.now() + timeoutMs;
  let askedAt = Number.NEGATIVE_INFINITY;
  for (;;) {
    const { state } = await readState(transport, vm);
    if (state === 'absent') throw undError('UND_HV_VM_NOT_FOUND', { vm });
    if (state === 'off' || state === 'crashed') return;
    if (performance.now() > end) throw undError('UND_HV_STOP_TIMEOUT', { vm, timeoutMs });
    // A guest that is not up yet does not hear the power button.
    if (performance.now() - askedAt > ASK_AGAIN_MS) {
      askedAt = performance.now();
      try {
        await transport.call('vm-shutdown', { vm });
      } catch (error) {
        if (!isCode(error, 'UND_HV_VM_NOT_RUNNING')) throw error;
      }
    }
    await sleep(MAX_POLL_MS);
  }
}

/** The table of `virsh domifaddr --full`. */
export function parseAddresses(table: string, source: GuestAddress['source']): GuestAddress[] {
  const found: GuestAddress[] = [];
  for (const line of table.split('\n')) {
    const match =
      /^\s*\S+\s+([0-9a-f]{2}(?::[0-9a-f]{2}){5})\s+ipv[46]\s+([0-9a-f.:]+)\/(\d+)\s*$/i.exec(line);
    if (match) {
      found.push({
        mac: match[1]!.toLowerCase(),
        address: match[2]!,
        prefixLength: Number(match[3]),
        source,
      });
    }
  }
  return found;
}
