/** The agent's service against a real listener for agents, with the appliance's real authority; no capture. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { AgentState, type EnrolTicket, writeDurably } from '../../agent/config.ts';
import { AgentService, type Ended, type Stream } from '../../agent/service/run.ts';
import type { EnrolRequest } from '../../appliance/api/schema.ts';
import { SecretBox } from '../../appliance/auth/secret-box.ts';
import { CertificateAuthority } from '../../appliance/identity/certificate-authority.ts';
import {
  type AgentServer,
  type AgentSession,
  createAgentServer,
} from '../../appliance/receive/agent-server.ts';
import type { ControlMessage, ControlOf, MachineIdentity } from '../../protocol/control.ts';
import { type UndError, undError } from '../../protocol/errors.ts';
import { freePort, until } from './push.lab.ts';
import { StandInSystemd } from './systemd.lab.ts';

t.setTimeout(300_000);
const dir = mkdtempSync(join(tmpdir(), 'understudy-agent-test.'));
t.teardown(() => rmSync(dir, { recursive: true, force: true }));
const ca = await CertificateAuthority.open(
  join(dir, 'ca'),
  SecretBox.open(join(dir, 'secrets.key')),
);
const tls = await ca.serverIdentity(['127.0.0.1']);
const SOURCE = 'source-1';
const TOKEN = 'a-token-that-is-long-enough';
const ME: MachineIdentity = {
  smbiosUuid: '4c4c4544-0042-3510-8054-b7c04f564433',
  diskSerials: ['D1', 'D2'],
  bootId: 'boot-1',
  hostname: 'web1',
};
const JOB: ControlOf<'configureJob'> = {
  type: 'configureJob',
  jobId: 'job-1',
  journalId: 'journal-1',
  streamEpoch: 1,
  epochReason: 'the first mirror',
  disks: [{ diskId: 'd1', index: 0, devicePath: '/dev/vda', sizeBytes: 1 << 20 }],
  compression: 'fast',
  bandwidthLimitBytesPerSec: null,
  ringBytes: 1 << 20,
  durable: { seq: 0, capturePos: 0, bootTimeNs: '0' },
  binding: null,
  orderLost: null,
  intakeOpen: true,
};

/** The appliance's two doors, as far as an agent sees them. */
class Doors {
  readonly sessions: AgentSession[] = [];
  readonly hellos: { hello: ControlOf<'hello'>; serial: string }[] = [];
  readonly messages: ControlMessage[] = [];
  readonly refused: UndError[] = [];
  enrolments: EnrolRequest[] = [];
  /** Throws to turn an agent away. */
  judge: (serial: string, hello: ControlOf<'hello'>) => void = () => undefined;
  enrolAnswer: ((request: EnrolRequest) => { status: number; body: unknown }) | undefined;
  apiPort = 0;
  agentPort = 0;
  #api: Server | undefined;
  #agents: AgentServer | undefined;
  readonly serverTls: { cert: string; key: string };

  constructor(serverTls = { cert: tls.certPem, key: tls.keyPem }) {
    this.serverTls = serverTls;
  }

  async open(
    t: Test,
    ports: { api: number; agents: number } = { api: 0, agents: 0 },
  ): Promise<this> {
    this.#api = createServer(this.serverTls, async (request, response) => {
      let text = '';
      for await (const chunk of request) text += chunk;
      const body = JSON.parse(text) as EnrolRequest;
      this.enrolments.push(body);
      const answer = this.enrolAnswer?.(body) ?? {
        status: 200,
        body: {
          sourceId: SOURCE,
          certificatePem: (await ca.issueClient(body.csrPem, SOURCE)).pem,
          caPem: ca.caPem,
          agentPort: this.agentPort,
        },
      };
      response.writeHead(answer.status, { 'content-type': 'application/json' });
      response.end(JSON.stringify(answer.body));
    });
    this.#api.listen(ports.api, '127.0.0.1');
    await once(this.#api, 'listening');
    this.apiPort = (this.#api.address() as { port: number }).port;
    this.#agents = createAgentServer({
      tls: { ...this.serverTls, ca: ca.caPem },
      applianceId: 'appliance-1',
      applianceVersion: '1',
      authorize: (certificate, hello) => {
        this.hellos.push({ hello, serial: certificate.serialNumber });
        this.judge(certificate.serialNumber, hello);
        return { sourceId: SOURCE };
      },
      onRefused: (error) => void this.refused.push(error),
    });
    this.#agents.on('session', (session) => {
      this.sessions.push(session);
      session.on('message', (message) => void this.messages.push(message));
    });
    this.agentPort = await this.#agents.listen(ports.agents, '127.0.0.1');
    t.teardown(() => this.close());
    return this;
  }

  async close(): Promise<void> {
    this.#api?.closeAllConnections();
    this.#api?.close();
    await this.#agents?.close();
    this.#agents = undefined;
  }

  ticket(over: Partial<EnrolTicket> = {}): EnrolTicket {
    return {
      token: TOKEN,
      addresses: ['127.0.0.1'],
      apiPort: this.apiPort,
      agentPort: this.agentPort,
      caPem: ca.caPem,
      caFingerprintSha256: ca.fingerprintSha256,
      ...over,
    };
  }

  async session(count = 1): Promise<AgentSession> {
    await until(`session ${count}`, () => this.sessions.length >= count);
    return this.sessions[count - 1]!;
  }
}

const FINAL = {
  type: 'consistencyPoint' as const,
  pointId: 'p1',
  name: 'Final state',
  quiesced: true,
  reason: null,
  freezeMs: 3,
  fileSystems: ['/'],
  hooks: [],
  final: true,
};

/** Writes down what the service asks of the stream. */
class Recorder implements Stream {
  readonly acts: string[];
  constructor(acts: string[]) {
    this.acts = acts;
  }
  async adopt(job: { jobId: string }) {
    this.acts.push(`adopt ${job.jobId}`);
  }
  connected() {
    this.acts.push('connected');
  }
  control(message: ControlMessage) {
    this.acts.push(message.type);
  }
  disconnected() {
    this.acts.push('disconnected');
  }
  async finalMark() {
    this.acts.push('final mark');
    return { seq: 42, point: FINAL, postHooks: [] };
  }
  async stop({ unpin }: { unpin: boolean }) {
    this.acts.push(unpin ? 'stop, off the disks' : 'stop');
  }
}

class Agent {
  readonly state: AgentState;
  readonly acts: string[] = [];
  readonly log: string[] = [];
  machine = ME;
  left: string[] = [];
  abandonedMs: number | undefined;
  readonly systemd: StandInSystemd;
  #service: AgentService | undefined;
  ended: Promise<Ended> | undefined;

  constructor(t: Test) {
    this.state = new AgentState(mkdtempSync(join(dir, 'agent.')));
    this.systemd = new StandInSystemd(mkdtempSync(join(dir, 'systemd.')));
    t.teardown(() => this.stop());
  }

  async give(ticket: EnrolTicket): Promise<this> {
    await writeDurably(join(this.state.dir, 'enrol.json'), JSON.stringify(ticket));
    return this;
  }

  start(): this {
    this.#service = new AgentService({
      state: this.state,
      log: (level, text) => void this.log.push(`${level} ${text}`),
      createStream: () => new Recorder(this.acts),
      systemctl: this.systemd.run,
      abandonedMs: this.abandonedMs,
      machine: async () => this.machine,
      inventory: async () => ({ hostname: 'web1' }) as never,
      removeTraces: async () => {
        this.acts.push('remove traces');
        return this.left;
      },
      wait: (_, signal) => sleep(20, undefined, { signal }).catch(() => undefined),
    });
    this.ended = this.#service.run();
    return this;
  }

  async stop(): Promise<Ended | undefined> {
    this.#service?.stop();
    return this.ended;
  }
}

const enrolled = async (t: Test): Promise<{ doors: Doors; agent: Agent }> => {
  const doors = await new Doors().open(t);
  const agent = (await new Agent(t).give(doors.ticket())).start();
  await doors.session();
  return { doors, agent };
};
const hasTicket = (agent: Agent) => existsSync(join(agent.state.dir, 'enrol.json'));

t.test('enrols with its ticket, connects, says who it is, tells its inventory', async (t) => {
  const { doors, agent } = await enrolled(t);
  t.match(doors.enrolments, [{ token: TOKEN, machine: ME }]);
  t.equal(hasTicket(agent), false, 'the ticket is used up');
  t.notMatch(readFileSync(join(agent.state.dir, 'identity.json'), 'utf8'), TOKEN);
  t.match(doors.hellos[0]!.hello, { machine: ME, passive: null });
  t.same(await doors.sessions[0]!.inventory(), { hostname: 'web1' });
  t.same(agent.acts, ['connected']);
  t.same(await agent.stop(), { kind: 'stopped' });
  t.same(agent.acts, ['connected', 'disconnected', 'stop'], 'the capture stays in the kernel');
});

t.test('waits for an appliance that is not there yet', async (t) => {
  const ports = { api: await freePort(), agents: await freePort() };
  const agent = new Agent(t);
  const doors = new Doors();
  await agent.give(doors.ticket({ apiPort: ports.api, agentPort: ports.agents }));
  agent.start();
  await until('a try that failed', () =>
    agent.log.some(
      (line) => line.includes('UND_AGENT_ENROLL') || line.includes('UND_AGENT_ENROL_FAILED'),
    ),
  );
  t.equal(hasTicket(agent), true);
  await doors.open(t, ports);
  await doors.session();
  t.pass('connected');
});

t.test('gives its token to no one but the appliance', async (t) => {
  const strangerDir = mkdtempSync(join(dir, 'stranger.'));
  const stranger = await CertificateAuthority.open(
    strangerDir,
    SecretBox.open(join(strangerDir, 'key')),
  );
  const other = await stranger.serverIdentity(['127.0.0.1']);
  const { makeRequest } = await import('../../agent/enrol/csr.ts');
  // An agent's certificate is of the right authority, but an agent is no appliance.
  const { keyPem, csrPem } = await makeRequest('understudy-appliance');
  const agentCertificate = await ca.issueClient(csrPem, 'understudy-appliance');
  for (const serverTls of [
    { cert: other.certPem, key: other.keyPem },
    { cert: agentCertificate.pem, key: keyPem },
  ]) {
    const doors = await new Doors(serverTls).open(t);
    const agent = (await new Agent(t).give(doors.ticket())).start();
    await until('a try that failed', () => agent.log.length > 0);
    t.match(agent.log[0], /UND_AGENT_ENROL_FAILED/);
    t.same(doors.enrolments, []);
    t.equal(hasTicket(agent), true, 'it goes on trying');
    await agent.stop();
  }
});

t.test('a token that is refused ends the agent that has no identity', async (t) => {
  const doors = await new Doors().open(t);
  doors.enrolAnswer = () => ({ status: 403, body: { code: 'UND_ENROL_TOKEN_EXPIRED' } });
  const agent = (await new Agent(t).give(doors.ticket())).start();
  t.match(await agent.ended, { kind: 'not-enrolled', error: { code: 'UND_ENROL_TOKEN_EXPIRED' } });
  t.equal(hasTicket(agent), false);
  t.match(await new Agent(t).start().ended, {
    kind: 'not-enrolled',
    error: { code: 'UND_AGENT_NOT_ENROLLED' },
  });
});

t.test('a second ticket that is refused costs an agent its identity not', async (t) => {
  const { doors, agent } = await enrolled(t);
  await agent.stop();
  doors.enrolAnswer = () => ({ status: 403, body: { code: 'UND_ENROL_TOKEN_USED' } });
  (await agent.give(doors.ticket())).start();
  await doors.session(2);
  t.equal(hasTicket(agent), false);
});

t.test('comes back when the connection is lost', async (t) => {
  const { doors, agent } = await enrolled(t);
  doors.sessions[0]!.close();
  await doors.session(2);
  await until('the stream to have its link', () => agent.acts.length === 3);
  t.same(agent.acts, ['connected', 'disconnected', 'connected']);
  const ports = { api: doors.apiPort, agents: doors.agentPort };
  await doors.close();
  await until('a try that failed', () => agent.log.some((line) => /ECONNREFUSED/.test(line)));
  const again = await new Doors().open(t, ports);
  await again.session();
  t.pass('connected to the restarted appliance');
});

t.test(
  'a job is remembered before it is acted on, and taken up without the appliance',
  async (t) => {
    const { doors, agent } = await enrolled(t);
    doors.sessions[0]!.send(JOB);
    await until('the job to reach the stream', () => agent.acts.includes('configureJob'));
    t.same(await agent.state.job(), JOB);
    await agent.stop();
    await doors.close();
    agent.acts.length = 0;
    agent.start();
    await until('the job to be taken up', () => agent.acts.length > 0);
    t.same(agent.acts, ['adopt job-1'], 'while no appliance answers');
    const again = await new Doors().open(t, { api: doors.apiPort, agents: doors.agentPort });
    const session = await again.session();
    session.send({ type: 'stopJob', jobId: 'job-1', reason: 'deleted' });
    await until('the job to be forgotten', async () => (await agent.state.job()) === null);
    t.ok(agent.acts.includes('stopJob'));
  },
);

t.test('renews its certificate; the new one is used at the next connection', async (t) => {
  const { doors, agent } = await enrolled(t);
  const first = doors.hellos[0]!.serial;
  await renew(doors, doors.sessions[0]!);
  await until('the new certificate', async () => (await agent.state.identity())?.previous !== null);
  doors.sessions[0]!.close();
  await doors.session(2);
  const second = doors.hellos[1]!.serial;
  t.not(second, first);

  // The appliance is set back to a state in which it did not know the new one.
  doors.judge = (serial) => {
    if (serial === second) throw undError('UND_AGENT_CERT_UNKNOWN', { serial });
  };
  doors.messages.length = 0;
  doors.sessions[1]!.close();
  await doors.session(3);
  t.equal(doors.hellos.at(-1)!.serial, first, 'the one before is tried');
  await until('a request for a new one', () =>
    doors.messages.some(({ type }) => type === 'renewCertificate'),
  );
  await answerRenewal(doors, doors.sessions[2]!);
  await until('the third certificate', async () => {
    const identity = await agent.state.identity();
    return (
      identity?.previous?.certificatePem !== undefined &&
      !agent.log.at(-1)!.includes('not renewed') &&
      agent.log.filter((line) => line.includes('is renewed')).length === 2
    );
  });
  doors.sessions[2]!.close();
  await doors.session(4);
  t.notOk([first, second].includes(doors.hellos.at(-1)!.serial));
});

async function renew(doors: Doors, session: AgentSession): Promise<void> {
  session.send({ type: 'renewNow' });
  await until('a request for a new certificate', () =>
    doors.messages.some(({ type }) => type === 'renewCertificate'),
  );
  await answerRenewal(doors, session);
}
async function answerRenewal(doors: Doors, session: AgentSession): Promise<void> {
  const asked = doors.messages.findLast(
    (message): message is ControlOf<'renewCertificate'> => message.type === 'renewCertificate',
  )!;
  session.send({
    type: 'certificate',
    requestId: asked.requestId,
    certificate: (await ca.issueClient(asked.csr, SOURCE)).pem,
    ca: ca.caPem,
  });
}

t.test('a replica says that it is one, and does nothing else', async (t) => {
  const { doors, agent } = await enrolled(t);
  doors.sessions[0]!.send(JOB);
  await until('the job', async () => (await agent.state.job()) !== null);
  await agent.stop();
  await mkdir(agent.state.dir, { recursive: true });
  await writeFile(join(agent.state.dir, 'passive'), 'replica of web1, made by failover 7\n');
  agent.acts.length = 0;
  agent.start();
  const session = await doors.session(2);
  t.same(doors.hellos.at(-1)!.hello.passive, { reason: 'replica of web1, made by failover 7' });
  session.send(JOB);
  await until('the job to be refused', () =>
    doors.messages.some(
      (message) => message.type === 'jobFailed' && message.error.code === 'UND_AGENT_PASSIVE',
    ),
  );
  t.same(agent.acts, [], 'no stream, no capture');
});

t.test('a clone is passive by itself', async (t) => {
  const { doors, agent } = await enrolled(t);
  await agent.stop();
  agent.acts.length = 0;
  agent.machine = { ...ME, smbiosUuid: 'ffffffff-0042-3510-8054-b7c04f564433' };
  agent.start();
  await doors.session(2);
  t.match(doors.hellos.at(-1)!.hello.passive, { reason: /copy of that machine/ });
  t.same(agent.acts, []);
});

t.test('told that it is a clone, it takes its capture off the disks', async (t) => {
  const { doors, agent } = await enrolled(t);
  doors.judge = (_, hello) => {
    if (!hello.passive)
      throw undError('UND_AGENT_CLONE', { source: 'web1', reason: 'another UUID' });
  };
  doors.sessions[0]!.close();
  await doors.session(2);
  t.match(doors.hellos.at(-1)!.hello.passive, { reason: /another machine/ });
  t.same(agent.acts, ['connected', 'disconnected', 'stop, off the disks']);
});

t.test('refused for another reason it keeps capturing, and keeps asking', async (t) => {
  const { doors, agent } = await enrolled(t);
  let asked = 0;
  doors.judge = () => {
    if (++asked <= 3) throw undError('UND_AGENT_SECOND_INSTANCE', { source: 'web1' });
  };
  doors.sessions[0]!.close();
  await doors.session(2);
  t.equal(asked, 4);
  t.notOk(agent.acts.some((act) => act.startsWith('stop')));
});

t.test('uninstalls itself when the appliance says so', async (t) => {
  const { doors, agent } = await enrolled(t);
  await doors.sessions[0]!.uninstall('removed on the page');
  t.same(await agent.ended, { kind: 'uninstalled' });
  t.same(
    agent.acts.filter((act) => act !== 'disconnected'),
    ['connected', 'stop, off the disks', 'remove traces'],
  );
  const second = await enrolled(t);
  second.agent.left = ['/usr/lib/understudy'];
  await t.rejects(second.doors.sessions[0]!.uninstall('removed on the page'), {
    code: 'UND_UNINSTALL_INCOMPLETE',
    message: /\/usr\/lib\/understudy/,
  });
});

t.test('the packed executable does the same', async (t) => {
  const executable = join(import.meta.dirname, '../../build/agent/understudy-agent');
  const doors = await new Doors().open(t);
  const root = mkdtempSync(join(dir, 'root.'));
  const state = join(root, 'var/lib/understudy-agent');
  await mkdir(state, { recursive: true });
  await writeFile(join(state, 'enrol.json'), JSON.stringify(doors.ticket()));
  const child = spawn(executable, ['run'], {
    env: { ...process.env, UNDERSTUDY_AGENT_ROOT: root },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  let said = '';
  child.stderr.on('data', (chunk: Buffer) => {
    said += chunk;
  });
  const session = await doors.session();
  const inventory = (await session.inventory()) as { hostname: string; disks: unknown[] };
  t.ok(inventory.disks, said);
  const helper = await readFile(join(root, 'usr/lib/understudy/understudy-capture'));
  t.ok(helper.subarray(0, 4).equals(Buffer.from('\x7fELF')), 'its helper is unpacked');
  const exit = once(child, 'exit');
  child.kill('SIGTERM');
  t.same(await exit, [0, null], said);
});

// ---- planned failover ---------------------------------------------------------------------------------------------
const PLAN = { jobId: 'job-1', failoverId: 'failover-1' };
const stopUnits = ['postgresql.service', 'cron.service'];

// Red when the units are noted after they were stopped, or when a request that comes twice is done twice.
t.test('a handover stops what runs, marks, and powers off; each once', async (t) => {
  const { doors, agent } = await enrolled(t);
  const session = doors.sessions[0]!;
  t.same(doors.hellos[0]!.hello.handover, null);
  await t.rejects(session.finalMark(PLAN), { code: 'UND_HANDOVER_UNKNOWN' }, 'not before it');
  t.same(await session.prepareHandover({ ...PLAN, stopUnits }), ['postgresql.service']);
  t.equal(agent.systemd.state('postgresql.service'), 'inactive');
  t.equal(agent.systemd.state('nginx.service'), 'active');
  t.same(await session.prepareHandover({ ...PLAN, stopUnits }), ['postgresql.service'], 'again');
  t.match(await session.finalMark(PLAN), { finalSeq: 42, point: { final: true } });
  await t.rejects(
    session.powerOff({ failoverId: 'another', how: 'power-off', reason: 'r' }),
    { code: 'UND_HANDOVER_UNKNOWN' },
    'no other failover switches this machine off',
  );
  t.same(agent.systemd.acts(), ['stop postgresql.service']);

  const request: ControlOf<'powerOff'> = {
    type: 'powerOff',
    requestId: 'request-1',
    failoverId: 'failover-1',
    how: 'power-off',
    reason: 'web1 was failed over to web1-replica',
  };
  session.send(request);
  session.send(request);
  const answers = () => doors.messages.filter(({ type }) => type === 'handedOver');
  await until('both answers', () => answers().length === 2);
  t.same(agent.systemd.acts(), ['stop postgresql.service', 'poweroff --no-wall'], 'off once');
  t.match(await agent.state.handover(), { stage: 'handed-over', failoverId: 'failover-1' });

  // Switched on again, and no appliance there: it must not go on.
  await agent.stop();
  await doors.close();
  agent.acts.length = 0;
  await agent.state.putJob(JOB);
  agent.start();
  await until('it to say so', () => agent.log.some((line) => line.includes('passive: web1 was')));
  t.same(agent.acts, [], 'no stream, no capture');
  await agent.stop();

  // The appliance is back, and the failover was taken back.
  const again = new Doors();
  again.judge = (_, hello) => {
    if (hello.passive === null) return;
    t.same(hello.handover, { failoverId: 'failover-1', isolated: false });
    throw undError('UND_FENCE_LIFTED', { failover: 'failover-1', source: 'web1' });
  };
  await again.open(t, { api: doors.apiPort, agents: doors.agentPort });
  agent.start();
  await again.session();
  t.equal(agent.systemd.state('postgresql.service'), 'active', 'started again');
  t.equal(await agent.state.handover(), null);
  await until('the job to be taken up', () => agent.acts.includes('connected'));
  t.ok(agent.acts.includes('adopt job-1'));
});

t.test('a cancelled handover starts again what it stopped, and only that', async (t) => {
  const { doors, agent } = await enrolled(t);
  const session = doors.sessions[0]!;
  await session.prepareHandover({ ...PLAN, stopUnits });
  // The agent is killed and comes back: it knows what it stopped, and says so.
  await agent.stop();
  agent.start();
  const second = await doors.session(2);
  t.same(doors.hellos[1]!.hello.handover, { failoverId: 'failover-1', isolated: false });
  t.same(await second.cancelHandover('another'), []);
  t.equal(agent.systemd.state('postgresql.service'), 'inactive');
  t.same(await second.cancelHandover('failover-1'), ['postgresql.service']);
  t.same(await second.cancelHandover('failover-1'), [], 'nothing twice');
  t.same(agent.systemd.acts(), ['stop postgresql.service', 'start postgresql.service']);
  t.equal(agent.systemd.state('cron.service'), 'inactive', 'it did not run before');
  await t.rejects(second.finalMark(PLAN), { code: 'UND_HANDOVER_UNKNOWN' });
});

t.test('units that are not there or cannot be stopped are said, not passed over', async (t) => {
  const { doors, agent } = await enrolled(t);
  const session = doors.sessions[0]!;
  await t.rejects(session.prepareHandover({ ...PLAN, stopUnits: ['postgres.service'] }), {
    code: 'UND_HANDOVER_FAILED',
    message: /there is no unit postgres.service/,
  });
  agent.systemd.refuse('stop');
  await t.rejects(session.prepareHandover({ ...PLAN, stopUnits }), {
    code: 'UND_HANDOVER_FAILED',
    message: /Job failed/,
  });
  // What may have been stopped is started all the same.
  t.same(await session.cancelHandover('failover-1'), ['postgresql.service']);
});

t.test('the appliance never comes back: services do not stay stopped', async (t) => {
  const doors = await new Doors().open(t);
  const agent = await new Agent(t).give(doors.ticket());
  agent.abandonedMs = 100;
  agent.start();
  await (await doors.session()).prepareHandover({ ...PLAN, stopUnits });
  t.equal(agent.systemd.state('postgresql.service'), 'inactive');
  await doors.close();
  await until('the services again', () => agent.systemd.state('postgresql.service') === 'active');
  t.equal(await agent.state.handover(), null, 'a late request to power off is refused');
});

t.test('told to stay passive, it stays so over restarts', async (t) => {
  const { doors, agent } = await enrolled(t);
  const session = doors.sessions[0]!;
  await session.prepareHandover({ ...PLAN, stopUnits: [] });
  await session.finalMark(PLAN);
  await session.powerOff({ failoverId: 'failover-1', how: 'passive', reason: 'failed over' });
  await until('the capture to be off', () => agent.acts.includes('stop, off the disks'));
  t.notOk(agent.systemd.acts().includes('poweroff --no-wall'));
  await doors.session(2);
  t.match(doors.hellos[1]!.hello, { passive: { reason: 'failed over' } });
  await agent.stop();
  agent.start();
  await doors.session(3);
  t.match(doors.hellos[2]!.hello, { passive: { reason: 'failed over' } });
});

// Red when the reason is only kept in memory.
t.test('a source that is told that it was failed over is passive from then on', async (t) => {
  const { doors, agent } = await enrolled(t);
  doors.judge = (_, hello) => {
    if (hello.passive) throw undError('UND_AGENT_PASSIVE', { source: 'web1', reason: 'r' });
    throw undError('UND_AGENT_FENCED', {
      source: 'web1',
      replica: 'web1-replica',
      failover: 'failover-2',
    });
  };
  doors.sessions[0]!.close();
  await until('a passive hello', () => doors.hellos.some(({ hello }) => hello.passive !== null));
  const { hello } = doors.hellos.find((one) => one.hello.passive !== null)!;
  t.match(hello, { passive: { reason: /its replica web1-replica/ } });
  t.same(hello.handover, { failoverId: 'failover-2', isolated: false });
  t.ok(agent.acts.includes('stop, off the disks'));
  await agent.stop();
  doors.hellos.length = 0;
  agent.start();
  await until('a hello', () => doors.hellos.length > 0);
  t.ok(doors.hellos[0]!.hello.passive, 'after a restart as well');
});
