/** The agent's way out to the appliance: mutual TLS to a pinned authority. */
import { connect, type TLSSocket } from 'node:tls';
import { undError } from '../../protocol/errors.ts';
import type { KeyPair } from '../config.ts';
import { APPLIANCE_NAME } from '../enrol/enrol.ts';

const CONNECT_TIMEOUT_MS = 10_000;

export interface DialTarget {
  addresses: readonly string[];
  port: number;
  caPem: string;
  pair: KeyPair;
}

function dialOne(target: DialTarget, host: string, signal: AbortSignal): Promise<TLSSocket> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host,
      port: target.port,
      ca: target.caPem,
      cert: target.pair.certificatePem,
      key: target.pair.keyPem,
      // The certificate names the appliance, not its address, which may change or be translated on the way.
      servername: APPLIANCE_NAME,
      minVersion: 'TLSv1.3',
    });
    const fail = (error: Error) => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.destroy();
      reject(error);
    };
    const onAbort = () => fail(new Error('the agent stops'));
    const timer = setTimeout(
      () => fail(new Error(`no answer within ${CONNECT_TIMEOUT_MS} ms`)),
      CONNECT_TIMEOUT_MS,
    );
    signal.addEventListener('abort', onAbort, { once: true });
    socket.once('error', fail);
    socket.once('secureConnect', () => {
      clearTimeout(timer);
      signal.removeEventListener('abort', onAbort);
      socket.off('error', fail);
      socket.setNoDelay(true);
      socket.setKeepAlive(true, 15_000);
      resolve(socket);
    });
  });
}

/**
 * A connection to the first address that answers and proves to be the appliance.
 * @throws UND_LINK_CLOSED with the reason of every address
 */
export async function dial(target: DialTarget, signal: AbortSignal): Promise<TLSSocket> {
  const reasons: string[] = [];
  for (const host of target.addresses) {
    if (signal.aborted) break;
    try {
      return await dialOne(target, host, signal);
    } catch (error) {
      reasons.push(`${host}:${target.port}: ${(error as Error).message}`);
    }
  }
  throw undError('UND_LINK_CLOSED', { reason: reasons.join('; ') || 'the agent stops' });
}
