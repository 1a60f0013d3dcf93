/**
 * Where the agent keeps what, and its state files. The state folder lies on a protected disk, so it stays small and is
 * written rarely (at enrolment, renewal and when a job is configured): the agent must not capture itself.
 */
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { ConfigureJob, MachineIdentity } from '../protocol/control.ts';
import { undError } from '../protocol/errors.ts';

/** Everything the agent leaves on a source server; uninstalling is removing these. */
export interface AgentPaths {
  /** Holds the executable, its library and the capture helper. */
  programDir: string;
  stateDir: string;
  unitFile: string;
  /** Pinned BPF programs and maps. */
  pinDir: string;
  runDir: string;
  /** The user's own hook scripts; made by the user, and left alone by an uninstallation. */
  hooksDir: string;
  /** What a planned restart is carried over by (docs/early-boot.md); only where it is asked for. */
  shutdownHook: string;
  earlyUnitFile: string;
  saveArea: string;
}

export const UNIT_NAME = 'understudy-agent.service';
export const EARLY_UNIT_NAME = 'understudy-early.service';
/** Beside the unit: what makes systemd start it. */
export const EARLY_WANTS = `sysinit.target.wants/${EARLY_UNIT_NAME}`;

/** The product's paths; `root` is for tests. */
export const agentPaths = (root = ''): AgentPaths => ({
  programDir: `${root}/usr/lib/understudy`,
  stateDir: `${root}/var/lib/understudy-agent`,
  unitFile: `${root}/etc/systemd/system/${UNIT_NAME}`,
  pinDir: `${root}/sys/fs/bpf/understudy`,
  runDir: `${root}/run/understudy-agent`,
  hooksDir: `${root}/etc/understudy-agent/hooks.d`,
  // Not below /usr: some that came from older releases have systemd beside it; elsewhere it is the same folder.
  shutdownHook: `${root}/lib/systemd/system-shutdown/understudy-agent`,
  earlyUnitFile: `${root}/etc/systemd/system/${EARLY_UNIT_NAME}`,
  saveArea: `${root}/usr/lib/understudy/save-area`,
});

/** Every path that an installed or half-installed agent may have left, the ones to remove first first. */
export const traces = (paths: AgentPaths): string[] => [
  paths.unitFile,
  `${paths.unitFile}.new`,
  // What `systemctl edit` leaves.
  `${paths.unitFile}.d`,
  `${dirname(paths.unitFile)}/multi-user.target.wants/${UNIT_NAME}`,
  // It calls what goes below.
  paths.shutdownHook,
  `${paths.shutdownHook}.new`,
  paths.earlyUnitFile,
  `${paths.earlyUnitFile}.new`,
  `${dirname(paths.earlyUnitFile)}/${EARLY_WANTS}`,
  paths.stateDir,
  paths.runDir,
  // The links go with their pins: the programs come off the disks.
  paths.pinDir,
  `${paths.pinDir}-probe`,
  paths.programDir,
  `${paths.programDir}.new`,
  `${paths.programDir}.old`,
];

const Address = Type.String({ minLength: 1, maxLength: 253 });
const Port = Type.Integer({ minimum: 1, maximum: 65535 });
const Pem = Type.String({ minLength: 1, maxLength: 65_536 });

/** Written by the push, removed once it has been used. */
export const EnrolTicket = Type.Object({
  token: Type.String({ minLength: 20, maxLength: 128 }),
  /** Of the appliance; tried in turn. */
  addresses: Type.Array(Address, { minItems: 1, maxItems: 16 }),
  apiPort: Port,
  agentPort: Port,
  caPem: Pem,
  caFingerprintSha256: Type.String({ maxLength: 128 }),
});
export type EnrolTicket = Static<typeof EnrolTicket>;

const KeyPair = Type.Object({ certificatePem: Pem, keyPem: Pem });
export type KeyPair = Static<typeof KeyPair>;

/** Who this agent is and whom it belongs to. */
export const AgentIdentity = Type.Object({
  sourceId: Type.String({ minLength: 1, maxLength: 64 }),
  addresses: Type.Array(Address, { minItems: 1, maxItems: 16 }),
  apiPort: Port,
  agentPort: Port,
  caPem: Pem,
  caFingerprintSha256: Type.String({ maxLength: 128 }),
  current: KeyPair,
  /** The pair before the last renewal: an appliance that was set back to an older state knows only this one. */
  previous: Type.Union([KeyPair, Type.Null()]),
  /** The machine that enrolled. */
  machine: MachineIdentity,
  enrolledAt: Type.String(),
});
export type AgentIdentity = Static<typeof AgentIdentity>;

export type JobConfiguration = Static<typeof ConfigureJob>;

/** What a machine that cuts itself off still reaches. */
export const Isolation = Type.Object({
  /** IP addresses of the appliance. */
  peers: Type.Array(Type.String({ maxLength: 64 }), { maxItems: 64 }),
  /** It is looked for by a name as well: name servers stay reachable. */
  names: Type.Boolean(),
});
export type Isolation = Static<typeof Isolation>;

/**
 * How far this machine has been handed over to its replica. `prepared`: units are stopped, and it can still go on by
 * itself. `handed-over`: it is passive until the appliance says that the failover was taken back.
 */
export const Handover = Type.Object({
  failoverId: Type.String({ minLength: 1, maxLength: 128 }),
  stage: Type.Union([Type.Literal('prepared'), Type.Literal('handed-over')]),
  /** Units that ran and were stopped, in the order of stopping. */
  stoppedUnits: Type.Array(Type.String({ maxLength: 256 }), { maxItems: 64 }),
  reason: Type.String({ maxLength: 2000 }),
  /** It is to be cut off from the network; absent: it is not. */
  isolation: Type.Optional(Isolation),
});
export type Handover = Static<typeof Handover>;

/** Replaces `file` so that it is either the old or the new one, whatever happens; readable by root only. */
export async function writeDurably(
  file: string,
  content: string | Buffer,
  mode = 0o600,
): Promise<void> {
  const folder = dirname(file);
  await mkdir(folder, { recursive: true, mode: 0o700 });
  const temporary = `${file}.new`;
  await rm(temporary, { force: true });
  const handle = await open(temporary, 'wx', mode);
  try {
    await handle.writeFile(content);
    // The service's umask lets nobody else see anything.
    await handle.chmod(mode);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await rename(temporary, file);
  const dir = await open(folder, 'r');
  try {
    await dir.sync();
  } finally {
    await dir.close();
  }
}

async function readState<T extends Type.TSchema>(
  file: string,
  schema: T,
): Promise<Static<T> | null> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw undError('UND_AGENT_CONFIG_INVALID', { file, reason: String(error) }, { cause: error });
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw undError('UND_AGENT_CONFIG_INVALID', { file, reason: 'it is not JSON' }, { cause });
  }
  if (!Value.Check(schema, value)) {
    const first = Value.Errors(schema, value)[0];
    const reason = first ? `${first.instancePath || '/'} ${first.message}` : 'it does not match';
    throw undError('UND_AGENT_CONFIG_INVALID', { file, reason });
  }
  return value as Static<T>;
}

/** The state folder's files. Each method throws UND_AGENT_CONFIG_INVALID for what cannot be read. */
export class AgentState {
  readonly dir: string;
  constructor(dir: string) {
    this.dir = dir;
  }

  #file = (name: string) => join(this.dir, name);

  ticket(): Promise<EnrolTicket | null> {
    return readState(this.#file('enrol.json'), EnrolTicket);
  }
  async dropTicket(): Promise<void> {
    await rm(this.#file('enrol.json'), { force: true });
  }

  identity(): Promise<AgentIdentity | null> {
    return readState(this.#file('identity.json'), AgentIdentity);
  }
  async putIdentity(identity: AgentIdentity): Promise<void> {
    await writeDurably(this.#file('identity.json'), `${JSON.stringify(identity, null, 2)}\n`);
  }

  /** The job as the appliance last configured it, so that capture goes on at once after a restart. */
  job(): Promise<JobConfiguration | null> {
    return readState(this.#file('job.json'), ConfigureJob);
  }
  async putJob(job: JobConfiguration): Promise<void> {
    await writeDurably(this.#file('job.json'), `${JSON.stringify(job)}\n`);
  }
  async dropJob(): Promise<void> {
    await rm(this.#file('job.json'), { force: true });
  }

  handover(): Promise<Handover | null> {
    return readState(this.#file('handover.json'), Handover);
  }
  async putHandover(handover: Handover): Promise<void> {
    await writeDurably(this.#file('handover.json'), `${JSON.stringify(handover)}\n`);
  }
  async dropHandover(): Promise<void> {
    await rm(this.#file('handover.json'), { force: true });
  }

  /** Why this agent was told to be passive (guest preparation leaves the file in a replica); null when it was not. */
  async passiveReason(): Promise<string | null> {
    try {
      const text = (await readFile(this.#file('passive'), 'utf8')).trim();
      return reasonIn(text).slice(0, 500) || 'this machine is a replica';
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
      throw error;
    }
  }
}

/** A guest that was prepared for a failover has more beside its reason, as JSON; a person may have written a plain text. */
function reasonIn(text: string): string {
  try {
    const value = JSON.parse(text) as { reason?: unknown };
    return typeof value?.reason === 'string' ? value.reason : text;
  } catch {
    return text;
  }
}
