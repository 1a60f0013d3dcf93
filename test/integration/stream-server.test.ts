/** The agents' port: who may come in, what a stranger learns, what a session can do. */
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ConnectionOptions, connect, type TLSSocket } from 'node:tls';
import t from 'tap';
import {
  type AgentServerOptions,
  type AgentSession,
  createAgentServer,
} from '../../appliance/receive/agent-server.ts';
import { ReplicationStream } from '../../appliance/replication/replication-stream.ts';
import { type ControlMessage, PROTOCOL_VERSION } from '../../protocol/control.ts';
import { type UndError, undError } from '../../protocol/errors.ts';
import { Link } from '../../protocol/link.ts';
import { until } from './stream.lab.ts';

t.setTimeout(600_000);

const dir = mkdtempSync(join(tmpdir(), 'agent-server-test-'));
t.teardown(() => rmSync(dir, { recursive: true, force: true }));
const openssl = (...args: string[]) => execFileSync('openssl', args, { cwd: dir, stdio: 'pipe' });

function ca(name: string): void {
  openssl(
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    `${name}.key`,
    '-out',
    `${name}.crt`,
    '-subj',
    `/CN=${name}`,
    '-days',
    '2',
  );
}
function certificate(name: string, issuer: string): { key: Buffer; cert: Buffer } {
  openssl(
    'req',
    '-new',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    `${name}.key`,
    '-out',
    `${name}.csr`,
    '-subj',
    `/CN=${name}`,
  );
  openssl(
    'x509',
    '-req',
    '-in',
    `${name}.csr`,
    '-CA',
    `${issuer}.crt`,
    '-CAkey',
    `${issuer}.key`,
    '-CAcreateserial',
    '-out',
    `${name}.crt`,
    '-days',
    '2',
  );
  return {
    key: readFileSync(join(dir, `${name}.key`)),
    cert: readFileSync(join(dir, `${name}.crt`)),
  };
}

ca('ca');
ca('other');
const server = certificate('server', 'ca');
const agent = certificate('source-1', 'ca');
const foreign = certificate('source-9', 'other');
const caCert = readFileSync(join(dir, 'ca.crt'));

const hello = (patch: object = {}): ControlMessage => ({
  type: 'hello',
  protocolVersion: PROTOCOL_VERSION,
  agentVersion: '1',
  machine: { smbiosUuid: null, diskSerials: [], bootId: 'boot', hostname: 'h' },
  passive: null,
  ...patch,
});

type TestLike = { teardown: (fn: () => unknown) => void };

async function start(t: TestLike, options: Partial<AgentServerOptions> = {}) {
  const refused: UndError[] = [];
  const sessions: AgentSession[] = [];
  const listener = createAgentServer({
    tls: { ...server, ca: caCert },
    applianceId: 'appliance',
    applianceVersion: '1',
    authorize: (certificate) => ({ sourceId: String(certificate.subject.CN) }),
    onRefused: (error) => refused.push(error),
    ...options,
  });
  listener.on('session', (session) => sessions.push(session));
  const port = await listener.listen(0, '127.0.0.1');
  t.teardown(() => listener.close());
  return { listener, port, refused, sessions };
}

/** An agent that keeps everything it hears. */
function dial(t: TestLike, port: number, options: ConnectionOptions = agent) {
  const socket: TLSSocket = connect({
    host: '127.0.0.1',
    port,
    ca: caCert,
    checkServerIdentity: () => undefined,
    ...options,
  });
  const link = new Link(socket);
  const heard: ControlMessage[] = [];
  link.start({ frame: () => {}, control: (message) => void heard.push(message) });
  t.teardown(() => link.close());
  return { link, heard, types: () => heard.map(({ type }) => type) };
}

t.test('an agent with its certificate is welcomed, and asked things', async (t) => {
  const { port, sessions, listener } = await start(t);
  const one = dial(t, port);
  one.link.send(hello());
  await until('the welcome', () => one.types().includes('welcome'));
  const [session] = sessions as [AgentSession];
  t.equal(session.sourceId, 'source-1');
  t.equal(listener.sessions.get('source-1'), session);
  const inventory = session.inventory();
  await until('the question', () => one.types().includes('inventoryRequest'));
  const asked = one.heard.find((message) => message.type === 'inventoryRequest');
  one.link.send({
    type: 'inventory',
    requestId: (asked as { requestId: string }).requestId,
    inventory: { cpus: 3 },
  });
  t.same(await inventory, { cpus: 3 });
  const other = once(session, 'message');
  one.link.send({ type: 'renewCertificate', requestId: 'r', csr: 'pem' });
  t.match(await other, [{ type: 'renewCertificate', csr: 'pem' }]);
  const waiting = session.inventory();
  one.link.close();
  await t.rejects(waiting, { code: 'UND_LINK_CLOSED' });
  await until('the session to end', () => listener.sessions.size === 0);
});

t.test('without a certificate, or with a foreign one, nobody comes in', async (t) => {
  const { port, refused, sessions } = await start(t);
  for (const [at, options] of [{}, foreign].entries()) {
    const stranger = dial(t, port, options);
    const closed = once(stranger.link, 'close');
    stranger.link.send(hello());
    await closed;
    await until('the refusal', () => refused.length > at);
    t.same(stranger.heard, []);
  }
  t.same(
    refused.map(({ code }) => code),
    ['UND_AGENT_TLS', 'UND_AGENT_TLS'],
  );
  t.equal(sessions.length, 0);
});

t.test('who is refused is told why', async (t) => {
  const { port, sessions } = await start(t, {
    authorize: () => {
      throw undError('UND_AGENT_CERT_REVOKED', { serial: '01', source: 'web' });
    },
  });
  const cases: Array<[ControlMessage, string]> = [
    [hello(), 'UND_AGENT_CERT_REVOKED'],
    [hello({ protocolVersion: 99 }), 'UND_PROTOCOL_VERSION'],
    [{ type: 'notice', level: 'info', text: 'hi' }, 'UND_HELLO_EXPECTED'],
  ];
  for (const [message, code] of cases) {
    const stranger = dial(t, port);
    const closed = once(stranger.link, 'close');
    stranger.link.send(message);
    await closed;
    t.match(stranger.heard, [{ type: 'refused', error: { code } }]);
  }
  t.equal(sessions.length, 0);
});

t.test('a frame before the hello ends the connection', async (t) => {
  const { port, refused } = await start(t);
  const stranger = dial(t, port);
  await stranger.link.sendFrame(Buffer.alloc(100));
  await until('the refusal', () => refused.length === 1);
  t.equal(refused[0]!.code, 'UND_HELLO_EXPECTED');
});

t.test('the same source again takes the place of its old connection', async (t) => {
  const { port, sessions, listener } = await start(t);
  const one = dial(t, port);
  one.link.send(hello());
  await until('the first session', () => sessions.length === 1);
  const closed = once(one.link, 'close');
  const two = dial(t, port);
  two.link.send(hello());
  await until('the second session', () => sessions.length === 2);
  await closed;
  t.equal(listener.sessions.get('source-1'), sessions[1]);
});

t.test('a session serves its job, and what it damages is its own connection', async (t) => {
  const { port, sessions } = await start(t);
  const stream = await ReplicationStream.open({
    jobId: 'job',
    jobDir: join(dir, 'job'),
    disks: [
      {
        diskId: 'd',
        index: 0,
        devicePath: '/dev/vda',
        sizeBytes: 4096,
        replicaPath: null,
        freshReplica: true,
      },
    ],
    settings: { compression: 'best', bandwidthLimitBytesPerSec: 70_000 },
    limits: { journalBytes: 1 << 20 },
  });
  t.teardown(() => stream.close());
  const one = dial(t, port);
  one.link.send(hello());
  await until('the session', () => sessions.length === 1);
  sessions[0]!.attach(stream);
  await until('the job', () => one.types().includes('configureJob'));
  t.match(
    one.heard.find(({ type }) => type === 'configureJob'),
    {
      jobId: 'job',
      streamEpoch: 1,
      compression: 'best',
      bandwidthLimitBytesPerSec: 70_000,
      durable: { seq: 0, capturePos: 0 },
      binding: null,
      disks: [{ diskId: 'd', index: 0, devicePath: '/dev/vda', sizeBytes: 4096 }],
    },
  );
  one.link.send({ type: 'jobReady', jobId: 'job', streamEpoch: 1, nextSeq: 1 });
  await until('the mirror to be asked for', () => one.types().includes('startMirror'));
  stream.configure({ compression: 'none', bandwidthLimitBytesPerSec: null });
  await until('the change to arrive', () => one.types().includes('tuneJob'));
  const closed = once(one.link, 'close');
  await one.link.sendFrame(Buffer.alloc(96, 0xff));
  await closed;
  t.match(stream.state().phase, { name: 'waiting-for-agent', reason: /Frame .* is damaged/ });
});
