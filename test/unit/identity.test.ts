/** Who may speak as which source: enrolment over real HTTPS, and agents over real mutual TLS on loopback. */
import { X509Certificate } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect, type TLSSocket } from 'node:tls';
import t from 'tap';
import { makeRequest } from '../../agent/enrol/csr.ts';
import type { AuditEntry, Certificate, Source } from '../../appliance/api/schema.ts';
import { SecretBox } from '../../appliance/auth/secret-box.ts';
import {
  CertificateAuthority,
  SERVER_NAME,
} from '../../appliance/identity/certificate-authority.ts';
import { compareMachines } from '../../appliance/identity/machine.ts';
import {
  type ControlMessage,
  type MachineIdentity,
  PROTOCOL_VERSION,
} from '../../protocol/control.ts';
import { Link } from '../../protocol/link.ts';
import { Lab, until } from '../integration/api.lab.ts';

t.setTimeout(300_000);
const lab = new Lab();
const scratch = mkdtempSync(join(tmpdir(), 'und-id-'));
t.before(() => lab.start());
t.teardown(async () => {
  await lab.close();
  rmSync(scratch, { recursive: true });
});

interface Pair {
  certPem: string;
  keyPem: string;
}
const machineOf = (name: string, patch: Partial<MachineIdentity> = {}): MachineIdentity => ({
  hostname: name,
  smbiosUuid: `uuid-${name}`,
  bootId: `boot-${name}`,
  diskSerials: [`disk-${name}`],
  ...patch,
});

/** A source in the list and the one-time token that its push would carry. */
async function newSource(name: string): Promise<{ sourceId: string; token: string }> {
  let token = '';
  const { installer } = lab;
  lab.installer = {
    ...installer,
    install: async (_target, options) => {
      token = options.token;
    },
  };
  const source = await lab.call<Source>('POST', '/api/sources', {
    address: name,
    username: 'root',
  });
  await until('the token of the push', () => token !== '');
  lab.installer = installer;
  return { sourceId: source.sourceId, token };
}

async function enrol(token: string, machine: MachineIdentity) {
  const { keyPem, csrPem } = await makeRequest(machine.hostname);
  const answer = await lab.appliance.app.inject({
    method: 'POST',
    url: '/agent/enrol',
    payload: { token, csrPem, agentVersion: '1', machine },
  });
  return { answer, pair: { keyPem, certPem: answer.json().certificatePem as string } };
}

async function enrolled(name: string): Promise<{ sourceId: string; pair: Pair }> {
  const { sourceId, token } = await newSource(name);
  const { answer, pair } = await enrol(token, machineOf(name));
  if (answer.statusCode !== 200) throw new Error(answer.body);
  return { sourceId, pair };
}

type Outcome =
  | { kind: 'welcome'; link: Link; socket: TLSSocket; messages: ControlMessage[] }
  | { kind: 'refused'; code: string }
  | { kind: 'tls'; message: string };

/** Connects as an agent would and says hello. Without a pair: without a certificate. */
async function hello(
  pair: Pair | null,
  machine: MachineIdentity,
  passive: { reason: string } | null = null,
): Promise<Outcome> {
  const socket = connect({
    host: '127.0.0.1',
    port: lab.appliance.agentPort,
    ca: lab.address.caPem,
    servername: SERVER_NAME,
    ...(pair ? { cert: pair.certPem, key: pair.keyPem } : {}),
  });
  return new Promise((resolve) => {
    const messages: ControlMessage[] = [];
    socket.once('error', (error) => resolve({ kind: 'tls', message: error.message }));
    socket.once('secureConnect', () => {
      const link = new Link(socket);
      link.once('close', (error) => resolve({ kind: 'tls', message: error?.message ?? 'closed' }));
      link.start({
        frame() {},
        control(message) {
          messages.push(message);
          if (message.type === 'refused') resolve({ kind: 'refused', code: message.error.code });
          if (message.type === 'welcome') resolve({ kind: 'welcome', link, socket, messages });
        },
      });
      link.send({
        type: 'hello',
        protocolVersion: PROTOCOL_VERSION,
        agentVersion: '1',
        machine,
        passive,
      });
    });
  });
}

async function welcomed(pair: Pair, machine: MachineIdentity) {
  const outcome = await hello(pair, machine);
  if (outcome.kind !== 'welcome') throw new Error(JSON.stringify(outcome));
  return outcome;
}
const sourceOf = (sourceId: string) => lab.call<Source>('GET', `/api/sources/${sourceId}`);

t.test('a token enrols once, in its time, for a proper request', async (t) => {
  const { sourceId, token } = await newSource('web1');
  const bad = await lab.appliance.app.inject({
    method: 'POST',
    url: '/agent/enrol',
    payload: { token, csrPem: 'rubbish', agentVersion: '1', machine: machineOf('web1') },
  });
  t.match(bad.json(), { code: 'UND_ENROL_CSR_INVALID' });
  const { answer, pair } = await enrol(token, machineOf('web1'));
  t.equal(answer.statusCode, 200, 'a refused request has not used the token up');
  t.equal(answer.json().sourceId, sourceId);
  const again = await enrol(token, machineOf('thief'));
  t.match(again.answer.json(), { code: 'UND_ENROL_TOKEN_USED' });
  const unknown = await enrol('x'.repeat(43), machineOf('web1'));
  t.match(unknown.answer.json(), { code: 'UND_ENROL_TOKEN_INVALID' });
  const audit = await lab.call<AuditEntry[]>('GET', '/api/audit');
  t.ok(
    audit.some(
      ({ act, outcome, detail }) =>
        act === 'enrol' && outcome === 'refused' && /thief/.test(detail),
    ),
  );

  const certificate = new X509Certificate(pair.certPem);
  const authority = new X509Certificate(answer.json().caPem);
  t.equal(
    certificate.subject,
    `CN=${sourceId}`,
    'the subject is the source, not what was asked for',
  );
  t.equal(certificate.ca, false);
  t.same(certificate.keyUsage, ['1.3.6.1.5.5.7.3.2'], 'for TLS clients only');
  t.ok(certificate.checkIssued(authority) && certificate.verify(authority.publicKey));
});

t.test('an agent with its certificate is welcomed, and its source is online', async (t) => {
  const { sourceId, pair } = await enrolled('web2');
  const session = await welcomed(pair, machineOf('web2'));
  await until(
    'the source to be online',
    async () => (await sourceOf(sourceId)).state.name === 'online',
  );
  session.link.close();
  await until(
    'the source to be offline',
    async () => (await sourceOf(sourceId)).state.name === 'offline',
  );
  t.pass();
});

t.test('without a certificate of our authority nobody gets as far as a hello', async (t) => {
  t.equal((await hello(null, machineOf('x'))).kind, 'tls', 'no certificate');
  const foreign = await CertificateAuthority.open(
    join(scratch, 'ca'),
    SecretBox.open(join(scratch, 'key')),
  );
  const { keyPem, csrPem } = await makeRequest('x');
  const issued = await foreign.issueClient(csrPem, 'x');
  t.equal(
    (await hello({ keyPem, certPem: issued.pem }, machineOf('x'))).kind,
    'tls',
    'another authority',
  );
});

t.test('an expired certificate is refused, one that was never recorded too', async (t) => {
  const { sourceId } = await enrolled('web3');
  const ca = await CertificateAuthority.open(
    join(lab.dir, 'data/ca'),
    SecretBox.open(join(lab.dir, 'data/secrets.key')),
  );
  const { keyPem, csrPem } = await makeRequest('web3');
  const expired = await ca.issueClient(csrPem, sourceId, -0.01);
  t.equal(
    (await hello({ keyPem, certPem: expired.pem }, machineOf('web3'))).kind,
    'tls',
    'expired',
  );
  const unrecorded = await ca.issueClient(csrPem, sourceId);
  t.match(await hello({ keyPem, certPem: unrecorded.pem }, machineOf('web3')), {
    kind: 'refused',
    code: 'UND_AGENT_CERT_UNKNOWN',
  });
});

t.test('revoking closes the live connection at once and refuses the next', async (t) => {
  const { sourceId, pair } = await enrolled('web4');
  const session = await welcomed(pair, machineOf('web4'));
  const view = await lab.call<Source>('POST', `/api/sources/${sourceId}/certificate`, {
    action: 'revoke',
  });
  t.match(view, { state: { name: 'refused' }, certificate: { revoked: true } });
  await until('the live connection to be closed', () => session.link.closed);
  t.match(await hello(pair, machineOf('web4')), {
    kind: 'refused',
    code: 'UND_AGENT_CERT_REVOKED',
  });
  const renewed = await lab.inject('POST', `/api/sources/${sourceId}/certificate`, {
    action: 'renew',
  });
  t.match(renewed.json(), { code: 'UND_AGENT_OFFLINE' });
  const list = await lab.call<Certificate[]>('GET', '/api/certificates');
  t.equal(list.find((one) => one.sourceId === sourceId)?.state, 'revoked');
});

t.test('a clone on another machine is refused and shown; the first one goes on', async (t) => {
  const { sourceId, pair } = await enrolled('web5');
  const first = await welcomed(pair, machineOf('web5'));
  const clone = machineOf('web5', {
    smbiosUuid: 'uuid-of-the-clone',
    bootId: 'boot-clone',
    hostname: 'clone',
  });
  t.match(await hello(pair, clone), { kind: 'refused', code: 'UND_AGENT_CLONE' });
  const source = await sourceOf(sourceId);
  t.equal(source.state.name, 'online');
  t.match(source.alert, { code: 'UND_AGENT_CLONE', message: /uuid-of-the-clone/ });
  t.equal(first.link.closed, false);
  const audit = await lab.call<AuditEntry[]>('GET', '/api/audit');
  t.ok(audit.some(({ act, outcome }) => act === 'agent.connect' && outcome === 'refused'));
  first.link.close();
  await until('offline', async () => (await sourceOf(sourceId)).state.name === 'offline');
  t.match(await hello(pair, clone), { kind: 'refused', code: 'UND_AGENT_CLONE' });
  t.match((await sourceOf(sourceId)).state, {
    name: 'refused',
    error: { code: 'UND_AGENT_CLONE' },
  });
});

t.test(
  'a second instance is refused while the first answers, and admitted when it does not',
  async (t) => {
    const { sourceId, pair } = await enrolled('web6');
    const first = await welcomed(pair, machineOf('web6'));
    const second = machineOf('web6', { bootId: 'another-boot' });
    t.match(await hello(pair, second), { kind: 'refused', code: 'UND_AGENT_SECOND_INSTANCE' });
    t.equal(first.link.closed, false);
    t.equal((await sourceOf(sourceId)).state.name, 'online');
    // The machine restarted: its old connection is still open here, but nobody is behind it.
    (first.socket as unknown as { _handle: { readStop(): void } })._handle.readStop();
    const after = await hello(pair, second);
    t.equal(after.kind, 'welcome', JSON.stringify(after));
    if (after.kind === 'welcome') after.link.close();
  },
);

t.test('the same machine that connects again takes the place of its old connection', async (t) => {
  const { sourceId, pair } = await enrolled('web7');
  const first = await welcomed(pair, machineOf('web7'));
  const again = await welcomed(
    pair,
    machineOf('web7', { diskSerials: ['disk-web7', 'a new disk'] }),
  );
  await until('the old connection to be closed', () => first.link.closed);
  t.equal((await sourceOf(sourceId)).state.name, 'online');
  again.link.close();
});

t.test('a passive instance is remembered and takes part in nothing', async (t) => {
  const { sourceId, pair } = await enrolled('web8');
  const replica = machineOf('web8', { smbiosUuid: 'uuid-of-the-replica', bootId: 'boot-replica' });
  t.match(await hello(pair, replica, { reason: 'a replica of failover f1' }), {
    kind: 'refused',
    code: 'UND_AGENT_PASSIVE',
  });
  t.match((await sourceOf(sourceId)).state, {
    name: 'passive',
    reason: 'a replica of failover f1',
  });
  const first = await welcomed(pair, machineOf('web8'));
  t.match(await hello(pair, replica, { reason: 'a replica' }), { code: 'UND_AGENT_PASSIVE' });
  t.equal((await sourceOf(sourceId)).state.name, 'online', 'the source itself is not disturbed');
  first.link.close();
});

t.test('a renewed certificate retires the old one at its first use', async (t) => {
  const { sourceId, pair } = await enrolled('web9');
  const first = await welcomed(pair, machineOf('web9'));
  await lab.call('POST', `/api/sources/${sourceId}/certificate`, { action: 'renew' });
  await until('the wish to renew', () => first.messages.some(({ type }) => type === 'renewNow'));
  const before = (await sourceOf(sourceId)).certificate?.serial;
  const told: unknown[] = [];
  const events = lab.events((event) => {
    const source = event.source as Source | undefined;
    if (source?.sourceId === sourceId) told.push(source.certificate?.serial);
  });
  await until('the source as it is', () => told.includes(before));
  const { keyPem, csrPem } = await makeRequest('web9');
  first.link.send({ type: 'renewCertificate', requestId: 'bad', csr: 'rubbish' });
  first.link.send({ type: 'renewCertificate', requestId: 'r', csr: csrPem });
  const answer = (id: string) =>
    first.messages.find((one) => one.type === 'certificate' && one.requestId === id);
  await until('both answers', () => answer('bad') && answer('r'));
  t.match(answer('bad'), { error: { code: 'UND_ENROL_CSR_INVALID' } });
  // Red when it is told by the next thing that happens to the source.
  const serial = (await sourceOf(sourceId)).certificate?.serial;
  t.not(serial, before);
  await until('the new certificate in the events', () => told.includes(serial), 5_000);
  events.close();
  const certPem = (answer('r') as { certificate: string }).certificate;
  first.link.close();
  const old = await welcomed(pair, machineOf('web9'));
  t.pass('until the new one is used, the old one counts: it may have been lost on the way');
  old.link.close();
  const next = await welcomed({ keyPem, certPem }, machineOf('web9'));
  next.link.close();
  t.match(await hello(pair, machineOf('web9')), { code: 'UND_AGENT_CERT_SUPERSEDED' });
});

t.test('enrolling anew revokes what was, and cuts it off', async (t) => {
  const { sourceId, pair } = await enrolled('web10');
  const first = await welcomed(pair, machineOf('web10'));
  first.link.close();
  await until('offline', async () => (await sourceOf(sourceId)).state.name === 'offline');
  const { token, sourceId: same } = await newSource('web10');
  t.equal(same, sourceId, 'the source keeps its id');
  const moved = machineOf('web10', { smbiosUuid: 'new hardware', diskSerials: ['new'] });
  const { answer, pair: fresh } = await enrol(token, moved);
  t.equal(answer.statusCode, 200);
  t.match(await hello(pair, machineOf('web10')), { code: 'UND_AGENT_CERT_REVOKED' });
  const now = await welcomed(fresh, moved);
  now.link.close();
});

t.test('hellos of another protocol, and connections without one, are refused', async (t) => {
  const { pair } = await enrolled('web11');
  const socket = connect({
    host: '127.0.0.1',
    port: lab.appliance.agentPort,
    ca: lab.address.caPem,
    servername: SERVER_NAME,
    cert: pair.certPem,
    key: pair.keyPem,
  });
  await once(socket, 'secureConnect');
  const link = new Link(socket);
  let code = '';
  link.start({
    frame() {},
    control(message) {
      if (message.type === 'refused') code = message.error.code;
    },
  });
  link.send({ type: 'ping', id: 1 });
  link.send({
    type: 'hello',
    protocolVersion: 999,
    agentVersion: '1',
    machine: machineOf('web11'),
    passive: null,
  });
  await until('the refusal', () => code !== '');
  t.equal(code, 'UND_PROTOCOL_VERSION');
  link.close();
});

t.test('what makes a machine another one', async (t) => {
  const bound = machineOf('a', { diskSerials: ['one', 'two'] });
  const same = (patch: Partial<MachineIdentity>) =>
    compareMachines(bound, { ...bound, ...patch }).same;
  t.ok(same({}));
  t.ok(same({ bootId: 'x', hostname: 'renamed' }));
  t.ok(same({ smbiosUuid: 'UUID-A ' }), 'written another way');
  t.notOk(same({ smbiosUuid: 'uuid-b' }));
  t.ok(same({ diskSerials: ['two', 'three'] }), 'disks come and go');
  t.notOk(same({ diskSerials: ['three'] }));
  t.ok(same({ smbiosUuid: null, diskSerials: ['one'] }));
  t.notOk(same({ smbiosUuid: null, diskSerials: ['three'] }));
  t.ok(same({ diskSerials: [] }), 'no serials say nothing');
});

t.test(
  'the server certificate is kept, and replaced when addresses or time demand it',
  async (t) => {
    const clock = { now: Date.now() };
    const ca = await CertificateAuthority.open(
      join(scratch, 'ca2'),
      SecretBox.open(join(scratch, 'key2')),
      () => clock.now,
    );
    const first = await ca.serverIdentity(['192.0.2.1', 'fd00::1', 'appliance.example']);
    t.equal((await ca.serverIdentity(['192.0.2.1'])).certPem, first.certPem, 'kept');
    const moved = await ca.serverIdentity(['192.0.2.2']);
    t.not(moved.certPem, first.certPem, 'a new address');
    clock.now += 300 * 86_400_000;
    t.not(
      (await ca.serverIdentity(['192.0.2.2'])).certPem,
      moved.certPem,
      'two thirds of its life are over',
    );
  },
);
