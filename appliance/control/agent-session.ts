/** What control needs of a live agent, whoever carries the connection. */
import type { MachineIdentity } from '../../protocol/control.ts';
import type { UndError } from '../../protocol/errors.ts';
import type { Inventory, PreflightReport, SshTarget } from '../api/schema.ts';

export interface AgentSession {
  readonly sourceId: string;
  readonly agentVersion: string;
  readonly machine: MachineIdentity;
  readonly remoteAddress: string;
  /** @throws UND_LINK_CLOSED, UND_LINK_TIMEOUT, UND_INVENTORY_FAILED */
  inventory(): Promise<Inventory>;
  /** Asks the agent to take itself off its machine. @throws as above, UND_UNINSTALL_INCOMPLETE */
  uninstall(reason: string): Promise<void>;
  /** Asks the agent to renew its certificate now. */
  askRenewal(): void;
  close(error: UndError): void;
}

/** What control needs of the room that talks to source servers by SSH. */
export interface SourceInstaller {
  preflight(target: SshAccess): Promise<PreflightReport>;
  /**
   * Pushes, starts and enrols the agent; resolves when its service runs.
   * @throws UND_SSH_…, UND_PREFLIGHT_FAILED, UND_PUSH_…
   */
  install(
    target: SshAccess,
    options: { token: string; onStep: (step: string) => void; signal: AbortSignal },
  ): Promise<void>;
  uninstall(
    target: SshAccess,
    options: { onStep: (step: string) => void; signal: AbortSignal },
  ): Promise<void>;
}

/** SSH access with what is known about the server's host key (`SHA256:…`, null at first contact). */
export type SshAccess = SshTarget & { knownHostKey: string | null };
