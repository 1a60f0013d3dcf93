/** Saves and restores an appliance's configuration over its API; see scripts/config-backup and scripts/config-restore. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline/promises';
import { Writable } from 'node:stream';
import { parseArgs } from 'node:util';
import type { ApiError } from '../../appliance/api/schema.ts';
import { ApiFailure, ApplianceClient, until } from './api-client.ts';

const RESTART_LIMIT_MS = 120_000;

function read() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        url: { type: 'string' },
        user: { type: 'string', default: 'admin' },
        ca: { type: 'string' },
        out: { type: 'string' },
        file: { type: 'string' },
        yes: { type: 'boolean', default: false },
      },
    });
  } catch (error) {
    process.stderr.write(`${(error as Error).message.split('. ', 1)[0]}\n`);
    process.exit(2);
  }
}

const { values, positionals } = read();

function needed(name: 'url' | 'out' | 'file'): string {
  const value = values[name];
  if (!value) throw new Error(`--${name} is missing`);
  return value;
}

/** Asks on the terminal; what is typed is not shown when it is secret. */
async function ask(question: string, secret: boolean): Promise<string> {
  process.stderr.write(question);
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const input = createInterface({
    input: process.stdin,
    output: secret ? nowhere : process.stderr,
    terminal: process.stdin.isTTY,
  });
  try {
    return await input.question('');
  } finally {
    input.close();
    if (secret) process.stderr.write('\n');
  }
}

const refusal = (status: number, body: Buffer): ApiFailure =>
  new ApiFailure(status, JSON.parse(body.toString('utf8')) as ApiError);

async function connect(): Promise<ApplianceClient> {
  const ca = values.ca ? readFileSync(values.ca, 'utf8') : undefined;
  const client = new ApplianceClient(needed('url'), ca);
  await client.trustOnFirstUse();
  const password =
    process.env.UNDERSTUDY_PASSWORD ?? (await ask(`Password of ${values.user}: `, true));
  await client.login(values.user, password);
  return client;
}

async function backup(): Promise<void> {
  const out = needed('out');
  if (existsSync(out)) throw new Error(`${out} exists already`);
  const client = await connect();
  const passphrase =
    process.env.UNDERSTUDY_PASSPHRASE ??
    (await ask('Passphrase of the backup (10 or more): ', true));
  const { status, body } = await client.raw('/api/config/backup', { body: { passphrase } });
  if (status !== 200) throw refusal(status, body);
  writeFileSync(out, body, { mode: 0o600, flag: 'wx' });
  process.stdout.write(`saved ${out} (${body.length} bytes)\n`);
}

async function restore(): Promise<void> {
  const file = readFileSync(needed('file'));
  if (!values.yes) {
    const answer = await ask('This replaces the configuration of the appliance. Type yes: ', false);
    if (answer.trim() !== 'yes') throw new Error('nothing was changed');
  }
  const client = await connect();
  const passphrase =
    process.env.UNDERSTUDY_PASSPHRASE ?? (await ask('Passphrase of the backup: ', true));
  const { status, body } = await client.raw('/api/config/restore', {
    body: { passphrase, backupBase64: file.toString('base64') },
  });
  if (status !== 202) throw refusal(status, body);
  process.stdout.write('the backup is accepted; waiting for the appliance to come back\n');
  // The authority may be another one afterwards: each look is a fresh one.
  const answers = async () => {
    const fresh = new ApplianceClient(needed('url'));
    return (await fresh.raw('/api/ca.pem', { timeoutMs: 5000 })).status === 200;
  };
  await until(
    'the appliance to end',
    RESTART_LIMIT_MS,
    async () => (await answers().catch(() => false)) === false || undefined,
    200,
  );
  await until(
    'the appliance to be back',
    RESTART_LIMIT_MS,
    async () => (await answers()) || undefined,
  );
  process.stdout.write('restored\n');
}

const ACTS: Record<string, () => Promise<void>> = { backup, restore };
const act = ACTS[positionals[0] ?? ''];
if (!act) {
  process.stderr.write('usage: config-transfer.ts backup|restore ...\n');
  process.exit(2);
}
act().catch((error: Error) => {
  process.stderr.write(`${error.message}\n`);
  process.exit(1);
});
