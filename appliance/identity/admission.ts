/**
 * Which connections become sessions. TLS has proven a certificate of our authority that is in its time; here:
 *
 * | certificate | agent says passive | machine is the enrolled one | a session is live      | outcome                        |
 * |-------------|--------------------|-----------------------------|------------------------|--------------------------------|
 * | not counted |                    |                             |                        | refused: UND_AGENT_CERT_…      |
 * | counted     | yes                |                             |                        | recorded, UND_AGENT_PASSIVE    |
 * | counted     | no                 | no                          |                        | recorded, UND_AGENT_CLONE      |
 * | counted     | no                 | yes                         | of another boot, answers | UND_AGENT_SECOND_INSTANCE    |
 * | counted     | no                 | yes                         | none, same boot, or dead | admitted, takes its place    |
 *
 * With the fence of a failover (recovery/fence.ts), for the enrolled machine:
 *
 * | agent says passive    | fence                  | outcome                                                          |
 * |-----------------------|------------------------|------------------------------------------------------------------|
 * | no                    | stands, replica runs   | UND_AGENT_FENCED: it becomes passive and remembers it            |
 * | yes, by this handover | lifted                 | UND_FENCE_LIFTED: it becomes active                              |
 * | yes, by this handover | stands, committed      | admitted: it can be asked for its inventory and be uninstalled   |
 * | yes                   | otherwise              | recorded, UND_AGENT_PASSIVE                                      |
 */
import { randomInt } from 'node:crypto';
import type { ControlMessage, ControlOf } from '../../protocol/control.ts';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { SourceService } from '../control/source-service.ts';
import { type Fence, fenced } from '../recovery/fence.ts';
import type { IdentityService, PeerCertificate } from './identity-service.ts';

/** How long the first instance has to answer before a second one may take its place. */
const PROBE_MS = 4_000;

/** A live session, as far as admission looks at it. */
export interface LiveInstance {
  readonly hello: { machine: { bootId: string } };
  readonly closed: boolean;
  send(message: ControlMessage): void;
  on(event: 'message', listener: (message: ControlMessage) => void): unknown;
  off(event: 'message', listener: (message: ControlMessage) => void): unknown;
  once(event: 'close', listener: () => void): unknown;
}

/** Whether the other side of a session still answers. A half-open connection of a machine that restarted does not. */
export function isAlive(session: LiveInstance, timeoutMs = PROBE_MS): Promise<boolean> {
  if (session.closed) return Promise.resolve(false);
  return new Promise((resolve) => {
    // Far above what heartbeats count to, so that only the answer to this question is taken for one.
    const id = randomInt(2 ** 40, 2 ** 47);
    const end = (alive: boolean) => {
      clearTimeout(timer);
      session.off('message', onMessage);
      resolve(alive);
    };
    const onMessage = (message: ControlMessage) => {
      if (message.type === 'pong' && message.id === id) end(true);
    };
    const timer = setTimeout(() => end(false), timeoutMs);
    session.on('message', onMessage);
    session.once('close', () => end(false));
    session.send({ type: 'ping', id });
  });
}

/**
 * @throws UND_AGENT_CERT_UNKNOWN, UND_AGENT_CERT_REVOKED, UND_AGENT_CERT_SUPERSEDED, UND_AGENT_PASSIVE,
 *   UND_AGENT_CLONE, UND_AGENT_SECOND_INSTANCE, UND_AGENT_FENCED, UND_FENCE_LIFTED
 */
export async function admit(
  peer: PeerCertificate,
  hello: ControlOf<'hello'>,
  context: {
    remoteAddress: string;
    sessions: ReadonlyMap<string, LiveInstance>;
    fenceOf?: (sourceId: string, handoverId: string | null) => Fence;
  },
  { identity, sources }: { identity: IdentityService; sources: SourceService },
): Promise<{ sourceId: string }> {
  const owner = identity.ownerOf(peer);
  try {
    const source = identity.authorise(peer);
    const { sourceId } = source;
    const handoverId = hello.handover?.failoverId ?? null;
    const fence = context.fenceOf?.(sourceId, handoverId) ?? { name: 'none' };
    if (hello.passive && handoverId !== null) {
      if (fence.name === 'lifted') {
        identity.checkMachine(source, hello.machine);
        throw undError('UND_FENCE_LIFTED', { source: source.name, failover: handoverId });
      }
      // One that is passive by its own record has not heard of that yet, or could not do it.
      const isToIsolate = fence.name === 'stands' && fence.stage !== 'under way' && fence.isolate;
      if (isToIsolate && handoverId === fence.failoverId && !hello.handover?.isolated) {
        if (identity.isMachineOf(source, hello.machine)) throw fenced(source.name, fence);
      }
      const isFinal = fence.name === 'stands' && fence.stage === 'final';
      if (isFinal && identity.isMachineOf(source, hello.machine)) return { sourceId };
    }
    if (hello.passive) {
      sources.passiveSeen(sourceId, hello.machine, hello.passive.reason);
      throw undError('UND_AGENT_PASSIVE', { source: source.name, reason: hello.passive.reason });
    }
    identity.checkMachine(source, hello.machine);
    if (fence.name === 'stands' && fence.stage !== 'under way') {
      throw fenced(source.name, fence);
    }
    const first = context.sessions.get(sourceId);
    if (first && first.hello.machine.bootId !== hello.machine.bootId && (await isAlive(first))) {
      identity.recordPassive(sourceId, hello.machine, 'a second instance');
      throw undError('UND_AGENT_SECOND_INSTANCE', { source: source.name });
    }
    return { sourceId };
  } catch (thrown) {
    const error = asUndError(thrown);
    // A passive one that is told to cut itself off does what it should: that alarms nobody.
    const isOrder = hello.passive !== null && error.code === 'UND_AGENT_FENCED';
    const isExpected = error.code === 'UND_AGENT_PASSIVE' || error.code === 'UND_FENCE_LIFTED';
    if (owner && !isOrder && !isExpected) {
      sources.refused(owner, error, context.remoteAddress);
    }
    throw error;
  }
}
