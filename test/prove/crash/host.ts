/**
 * The target host of a crash round: it outlives the appliance, whose calls travel to it and may never be answered. Its
 * disks are files (FolderHypervisor); what is proven is what the appliance makes of a command whose outcome it cannot know.
 */
import type { Hypervisor } from '../../../appliance/hypervisor/hypervisor.ts';
import {
  asUndError,
  type ErrorCode,
  type ErrorParams,
  undError,
} from '../../../protocol/errors.ts';
import { FolderHypervisor } from '../../integration/api.lab.ts';

/** What becomes of the next checkpoint's command. `died`: with the appliance, whose connection it came by. */
export const FATES = [
  'answered',
  'done, the connection died',
  'not done, the connection died',
  'done, the appliance died',
  'not done, the appliance died',
] as const;
export type Fate = (typeof FATES)[number];

export interface HostCall {
  id: number;
  method: string;
  args: unknown[];
}
export type HostAnswer = { id: number } & (
  | { value: unknown }
  | { code: ErrorCode; params: ErrorParams }
);

export class CrashHost {
  readonly folder: FolderHypervisor;
  fate: Fate = 'answered';

  constructor(dir: string) {
    this.folder = new FolderHypervisor(dir);
  }

  /** @returns null: nobody is there any more to be answered */
  async serve({ id, method, args }: HostCall): Promise<HostAnswer | null> {
    const fate = method === 'snapshotDisks' ? this.fate : 'answered';
    if (fate !== 'answered') this.fate = 'answered';
    try {
      const call = this.folder[method as keyof FolderHypervisor] as (...all: unknown[]) => unknown;
      const value = fate.startsWith('not done') ? null : await call.apply(this.folder, args);
      if (fate === 'answered') return { id, value };
      if (fate.endsWith('appliance died')) return null;
      throw undError('UND_HV_UNREACHABLE', { host: 'host', reason: fate });
    } catch (error) {
      const { code, params } = asUndError(error);
      return { id, code, params };
    }
  }
}

/** The host as the appliance has it: `send` carries a call there, the returned function takes what comes back. */
export function remoteHost(send: (call: HostCall) => void): {
  hypervisor: Hypervisor;
  answered(answer: HostAnswer): void;
} {
  const waiting = new Map<number, PromiseWithResolvers<unknown>>();
  let calls = 0;
  const hypervisor = new Proxy({} as Hypervisor, {
    get: (_target, method) => {
      // Not a promise, though it answers to any name.
      if (typeof method !== 'string' || method === 'then') return undefined;
      return (...args: unknown[]) => {
        const answer = Promise.withResolvers<unknown>();
        const id = ++calls;
        waiting.set(id, answer);
        send({ id, method, args });
        return answer.promise;
      };
    },
  });
  return {
    hypervisor,
    answered: (answer) => {
      const one = waiting.get(answer.id);
      waiting.delete(answer.id);
      if ('code' in answer) one?.reject(undError(answer.code, answer.params));
      else one?.resolve(answer.value);
    },
  };
}
