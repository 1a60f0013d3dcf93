/** Turns the push's one-time token into a client certificate. */
import { request } from 'node:https';
import { Value } from 'typebox/value';
import { type EnrolRequest, EnrolResponse } from '../../appliance/api/schema.ts';
import type { MachineIdentity } from '../../protocol/control.ts';
import {
  asUndError,
  ERRORS,
  type ErrorCode,
  type UndError,
  undError,
} from '../../protocol/errors.ts';
import type { AgentIdentity, EnrolTicket } from '../config.ts';
import { AGENT_VERSION } from '../version.ts';
import { makeRequest } from './csr.ts';

/** The name in the appliance's certificate, whatever address it is reached at. */
export const APPLIANCE_NAME = 'understudy-appliance';
const TIMEOUT_MS = 20_000;
const MAX_ANSWER_BYTES = 256 * 1024;

function post(
  ticket: EnrolTicket,
  address: string,
  body: string,
): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const call = request(
      {
        host: address,
        port: ticket.apiPort,
        method: 'POST',
        path: '/agent/enrol',
        // The appliance is known by its own authority, which came with the ticket over SSH; never by public ones.
        ca: ticket.caPem,
        servername: APPLIANCE_NAME,
        minVersion: 'TLSv1.3',
        agent: false,
        timeout: TIMEOUT_MS,
        headers: {
          host: APPLIANCE_NAME,
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
        },
      },
      (answer) => {
        let text = '';
        answer.setEncoding('utf8');
        answer.on('data', (chunk: string) => {
          text += chunk;
          if (text.length > MAX_ANSWER_BYTES) call.destroy(new Error('the answer is too long'));
        });
        answer.on('end', () => resolve({ status: answer.statusCode ?? 0, text }));
        answer.on('error', reject);
      },
    );
    call.on('timeout', () => call.destroy(new Error(`no answer within ${TIMEOUT_MS} ms`)));
    call.on('error', reject);
    call.end(body);
  });
}

const parse = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
};

/**
 * Enrols at the first of the ticket's addresses that answers.
 * @throws UND_ENROL_… when the appliance refuses (final: the token is of no use any more),
 *   UND_AGENT_ENROL_FAILED when it cannot be reached or answers something else (try again later)
 */
export async function enrol(ticket: EnrolTicket, machine: MachineIdentity): Promise<AgentIdentity> {
  const { keyPem, csrPem } = await makeRequest(machine.hostname);
  const body: EnrolRequest = {
    token: ticket.token,
    csrPem,
    agentVersion: AGENT_VERSION,
    machine: {
      hostname: machine.hostname,
      smbiosUuid: machine.smbiosUuid,
      bootId: machine.bootId,
      diskSerials: machine.diskSerials,
    },
  };
  let failure: UndError | undefined;
  for (const address of ticket.addresses) {
    const appliance = `${address}:${ticket.apiPort}`;
    try {
      const { status, text } = await post(ticket, address, JSON.stringify(body));
      const answer = parse(text);
      if (status === 200 && Value.Check(EnrolResponse, answer)) {
        return {
          sourceId: answer.sourceId,
          addresses: [address, ...ticket.addresses.filter((other) => other !== address)],
          apiPort: ticket.apiPort,
          agentPort: answer.agentPort,
          caPem: answer.caPem,
          caFingerprintSha256: ticket.caFingerprintSha256,
          current: { certificatePem: answer.certificatePem, keyPem },
          previous: null,
          machine,
          enrolledAt: new Date().toISOString(),
        };
      }
      const { code } = (answer ?? {}) as { code?: unknown };
      if (
        typeof code === 'string' &&
        code.startsWith('UND_ENROL_') &&
        Object.hasOwn(ERRORS, code)
      ) {
        throw undError(code as ErrorCode, { reason: 'refused by the appliance' });
      }
      const said = (answer as { message?: string } | null)?.message ?? `HTTP status ${status}`;
      failure = undError('UND_AGENT_ENROL_FAILED', { appliance, reason: said });
    } catch (error) {
      const coded = asUndError(error);
      if (coded.code.startsWith('UND_ENROL_')) throw coded;
      const reason = error instanceof Error ? error.message : String(error);
      failure = undError('UND_AGENT_ENROL_FAILED', { appliance, reason }, { cause: error });
    }
  }
  throw failure ?? undError('UND_AGENT_ENROL_FAILED', { appliance: '?', reason: 'no address' });
}
