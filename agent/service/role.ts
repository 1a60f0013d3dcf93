/** Active or passive: may this agent speak for its source? */
import type { MachineIdentity } from '../../protocol/control.ts';
import { sameMachine } from '../inventory/machine.ts';

export type Role = { role: 'active' } | { role: 'passive'; reason: string };

/**
 * | passive file | machine is the one that enrolled | role    |
 * |--------------|----------------------------------|---------|
 * | there        | any                              | passive |
 * | none         | no                               | passive |
 * | none         | yes                              | active  |
 *
 * A passive agent says hello, which proves that the machine booted, and does nothing else: no capture, no stream.
 */
export function decideRole(
  passiveFile: string | null,
  enrolled: MachineIdentity,
  now: MachineIdentity,
): Role {
  if (passiveFile !== null) return { role: 'passive', reason: passiveFile };
  const verdict = sameMachine(enrolled, now);
  return verdict.same ? { role: 'active' } : { role: 'passive', reason: verdict.reason };
}
