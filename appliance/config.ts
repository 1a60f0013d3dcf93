/**
 * Where the appliance keeps what, and where it listens: flags over environment over `/etc/understudy/appliance.json`
 * over defaults. How to reach the target host is a file of its own, written by scripts/deploy.
 */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { undError } from '../protocol/errors.ts';
import { writeFileDurably } from './state/files.ts';

const DEFAULT_FILE = '/etc/understudy/appliance.json';
const Port = Type.Integer({ minimum: 0, maximum: 65535 });
const Path = Type.String({ minLength: 1, maxLength: 4096 });

const ApplianceFile = Type.Partial(
  Type.Object({
    dataDir: Path,
    journalDir: Path,
    webDir: Path,
    agentDir: Path,
    hostFile: Path,
    listen: Type.String({ minLength: 1, maxLength: 64 }),
    httpsPort: Port,
    agentPort: Port,
    addresses: Type.Array(Type.String({ minLength: 1, maxLength: 253 }), { maxItems: 16 }),
  }),
);

export interface ApplianceConfig {
  /** State, authority, secrets. */
  dataDir: string;
  /** One folder per job; on the journal disk. */
  journalDir: string;
  /** The page's built files; null: none, the API only. */
  webDir: string | null;
  /** What is pushed to source servers. */
  agentDir: string;
  hostFile: string;
  listen: string;
  httpsPort: number;
  agentPort: number;
  /** Names and addresses by which this appliance is reached, besides those of its own interfaces. */
  addresses: string[];
}

export const HELP = `Understudy appliance

  --config FILE        settings (${DEFAULT_FILE})
  --data-dir DIR       state, certificate authority, secrets (/var/lib/understudy)
  --journal-dir DIR    journals, one folder per job (DATA/journal)
  --web-dir DIR        the page's built files
  --agent-dir DIR      the agent that is pushed to source servers
  --host-file FILE     how to reach the target host (DATA/host/host.json)
  --listen ADDRESS     where to listen (all addresses)
  --https-port PORT    page and API (443)
  --agent-port PORT    agents (7443)
  --address NAME       a name or address by which this appliance is reached; may be repeated
  --version            print the version
  --help               print this

Each has an environment variable, such as UNDERSTUDY_DATA_DIR.
`;

const FLAGS = {
  config: { type: 'string' },
  'data-dir': { type: 'string' },
  'journal-dir': { type: 'string' },
  'web-dir': { type: 'string' },
  'agent-dir': { type: 'string' },
  'host-file': { type: 'string' },
  listen: { type: 'string' },
  'https-port': { type: 'string' },
  'agent-port': { type: 'string' },
  address: { type: 'string', multiple: true },
  version: { type: 'boolean' },
  help: { type: 'boolean' },
} as const;

const invalid = (path: string, reason: string) => undError('UND_CONFIG_INVALID', { path, reason });

function readJsonFile<T extends Type.TSchema>(path: string, schema: T): Static<T> {
  let value: unknown;
  try {
    value = JSON.parse(readFileSync(path, 'utf8'));
  } catch (cause) {
    throw undError(
      'UND_CONFIG_INVALID',
      { path, reason: `${path}: ${(cause as Error).message}` },
      { cause },
    );
  }
  if (!Value.Check(schema, value)) {
    const first = Value.Errors(schema, value)[0];
    throw invalid(path, `${path}: ${first?.instancePath || '/'} ${first?.message ?? ''}`);
  }
  return value as Static<T>;
}

const port = (name: string, text: string): number => {
  const value = Number(text);
  if (!/^[0-9]{1,5}$/.test(text) || value > 65535) {
    throw invalid(`the setting ${name}`, `${name} is not a port: ${text}`);
  }
  return value;
};

/** @throws UND_CONFIG_INVALID */
export function readConfig(
  args: string[],
  env: NodeJS.ProcessEnv,
): { act: 'run'; config: ApplianceConfig } | { act: 'help' } | { act: 'version' } {
  let values: ReturnType<typeof parseArgs<{ options: typeof FLAGS }>>['values'];
  try {
    values = parseArgs({ args, options: FLAGS, strict: true }).values;
  } catch (cause) {
    throw undError(
      'UND_CONFIG_INVALID',
      { path: 'the command line', reason: (cause as Error).message },
      { cause },
    );
  }
  if (values.help) return { act: 'help' };
  if (values.version) return { act: 'version' };
  const setting = (name: Exclude<keyof typeof FLAGS, 'address' | 'version' | 'help'>) =>
    values[name] ?? env[`UNDERSTUDY_${name.toUpperCase().replaceAll('-', '_')}`];

  const file = setting('config') ?? DEFAULT_FILE;
  const given = setting('config') !== undefined;
  const from = given || existsSync(file) ? readJsonFile(file, ApplianceFile) : {};
  const dataDir = setting('data-dir') ?? from.dataDir ?? '/var/lib/understudy';
  const httpsPort = setting('https-port');
  const agentPort = setting('agent-port');
  return {
    act: 'run',
    config: {
      dataDir,
      journalDir: setting('journal-dir') ?? from.journalDir ?? join(dataDir, 'journal'),
      webDir: setting('web-dir') ?? from.webDir ?? null,
      agentDir: setting('agent-dir') ?? from.agentDir ?? '/usr/lib/understudy/agent',
      hostFile: setting('host-file') ?? from.hostFile ?? join(dataDir, 'host', 'host.json'),
      listen: setting('listen') ?? from.listen ?? '::',
      httpsPort: httpsPort ? port('https-port', httpsPort) : (from.httpsPort ?? 443),
      agentPort: agentPort ? port('agent-port', agentPort) : (from.agentPort ?? 7443),
      addresses: values.address ?? from.addresses ?? [],
    },
  };
}

/** How to reach the target host. Further fields are the deployment's own. */
const HostFile = Type.Union([
  Type.Object({
    transport: Type.Optional(Type.Literal('ssh')),
    address: Type.String({ pattern: '^[A-Za-z0-9.:_-]{1,253}$' }),
    port: Type.Optional(Type.Integer({ minimum: 1, maximum: 65535 })),
    user: Type.Optional(Type.String({ pattern: '^[A-Za-z_][A-Za-z0-9._-]{0,63}$' })),
    /** Default: `id_ed25519` beside the host file. */
    keyPath: Type.Optional(Path),
    /** The host's public key: `ssh-ed25519 AAAA…`, or several, one a line. */
    hostKey: Type.String({ pattern: '^[a-z0-9@.-]+ [A-Za-z0-9+/=]+' }),
  }),
  Type.Object({
    transport: Type.Literal('local'),
    /** The wrapper and its configuration, as the forced command has them. */
    command: Type.Array(Type.String({ minLength: 1 }), { minItems: 1 }),
  }),
]);

export type HostSettings =
  | {
      transport: 'ssh';
      host: string;
      port: number;
      user: string;
      keyFile: string;
      knownHostsFile: string;
    }
  | { transport: 'local'; command: string[] };

/**
 * @returns null when there is no host file: an appliance that was imported and not yet told its host
 * @throws UND_CONFIG_INVALID
 */
export function readHostSettings(hostFile: string, dataDir: string): HostSettings | null {
  if (!existsSync(hostFile)) return null;
  const host = readJsonFile(hostFile, HostFile);
  if (host.transport === 'local') return host;
  const sshPort = host.port ?? 22;
  const name = sshPort === 22 ? host.address : `[${host.address}]:${sshPort}`;
  const keys = host.hostKey.split('\n').filter((line) => line.trim() !== '');
  const knownHostsFile = join(dataDir, 'host', 'known_hosts');
  mkdirSync(dirname(knownHostsFile), { recursive: true, mode: 0o700 });
  writeFileDurably(knownHostsFile, keys.map((key) => `${name} ${key.trim()}\n`).join(''), 0o600);
  return {
    transport: 'ssh',
    host: host.address,
    port: sshPort,
    user: host.user ?? 'root',
    keyFile: host.keyPath ?? join(dirname(hostFile), 'id_ed25519'),
    knownHostsFile,
  };
}
