/** Active or passive: may this agent speak for its source? */
import type { MachineIdentity } from '../../protocol/control.ts';
import type { Handover } from '../config.ts';
import { sameMachine } from '../inventory/machine.ts';

export type Role = { role: 'active' } | { role: 'passive'; reason: string };

/**
 * | passive file | machine is the one that enrolled | handed over to its replica | role    |
 * |--------------|----------------------------------|----------------------------|---------|
 * | there        | any                              | any                        | passive |
 * | none         | no                               | any                        | passive |
 * | none         | yes                              | yes                        | passive |
 * | none         | yes                              | no                         | active  |
 *
 * A passive agent says hello, which proves that the machine booted, and does nothing else: no capture, no stream.
 */
export function decideRole(
  passiveFile: string | null,
  enrolled: MachineIdentity,
  now: MachineIdentity,
  handover: Handover | null = null,
): Role {
  if (passiveFile !== null) return { role: 'passive', reason: passiveFile };
  const verdict = sameMachine(enrolled, now);
  if (!verdict.same) return { role: 'passive', reason: verdict.reason };
  if (handover?.stage === 'handed-over') return { role: 'passive', reason: handover.reason };
  return { role: 'active' };
}
