import { mkdtempSync, rmSync } from 'node:fs';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { PreflightReport, Source } from '../../appliance/api/schema.ts';
import { type Appliance, startAppliance } from '../../appliance/appliance.ts';
import type { SourceInstaller } from '../../appliance/control/agent-session.ts';
import { type ApplianceAddress, createSourceInstaller } from '../../appliance/sources/installer.ts';
import { undError } from '../../protocol/errors.ts';
import { FakeServer, freePort, PASSWORD, until } from './push.lab.ts';

t.setTimeout(600_000);
const agentDir = join(import.meta.dirname, '../../build/agent');
const server = await FakeServer.start();
t.teardown(() => server.close());
const data = mkdtempSync(join(tmpdir(), 'understudy-push.'));
let self: ApplianceAddress | undefined;
const httpsPort = await freePort();
const appliance: Appliance = await startAppliance(
  {
    dataDir: join(data, 'data'),
    journalDir: join(data, 'journal'),
    webDir: null,
    agentDir,
    hostFile: join(data, 'host.json'),
    listen: '127.0.0.1',
    httpsPort,
    agentPort: 0,
    addresses: ['127.0.0.1'],
  },
  () => ({
    hypervisor: null,
    locator: { locate: async () => null } as never,
    installer: (address) => {
      // Only the loopback address: the others of this machine are not listened on.
      self = { ...address, addresses: () => ['127.0.0.1'] };
      return createSourceInstaller({ appliance: self, agentDir });
    },
    preparer: { prepare: async () => Promise.reject(undError('UND_INTERNAL')) } as never,
    server: () => ({ closeAll: async () => {} }) as never,
    passwordCost: { log2N: 10, r: 8, p: 1 },
  }),
  { logger: false, restart: () => undefined },
);
t.teardown(async () => {
  await appliance.close();
  rmSync(data, { recursive: true, force: true });
});

const installer = (over: Partial<ApplianceAddress> = {}, options = {}): SourceInstaller =>
  createSourceInstaller({ appliance: { ...self!, ...over }, agentDir, ...options });
const check = (report: PreflightReport, id: string) =>
  report.checks.find((one) => one.id === id) ?? { result: 'absent', code: undefined };
const never = new AbortController().signal;

t.test('preflight: everything is said, nothing is changed', async (t) => {
  const before = server.traces();
  const report = await installer().preflight(server.target());
  t.same(
    report.checks.filter((one) => one.result === 'failed'),
    [],
    'nothing keeps the agent from this machine',
  );
  t.equal(report.ok, true);
  t.equal(report.hostKeyKnown, true);
  for (const id of [
    'ssh',
    'sudo',
    'os',
    'kernel',
    'btf',
    'bpf',
    'space',
    'disks',
    'memory',
    'agent-port',
    'clock',
  ]) {
    t.equal(check(report, id).result, 'ok', id);
  }
  t.same(server.traces(), before);
});

t.test(
  'preflight: a host key that is not known yet is shown, and no password is sent',
  async (t) => {
    const report = await installer().preflight(server.target({ knownHostKey: null }));
    t.equal(report.ok, false);
    t.equal(report.hostKeyFingerprint, server.hostKeyFingerprint);
    t.equal(report.hostKeyKnown, false);
    t.equal(check(report, 'ssh').code, 'UND_SSH_HOST_KEY_UNKNOWN');
    const confirmed = await installer().preflight(
      server.target({ knownHostKey: null, acceptHostKey: server.hostKeyFingerprint }),
    );
    t.equal(confirmed.ok, true);
    t.equal(confirmed.hostKeyKnown, false);
  },
);

t.test('preflight: a changed host key is refused until it is confirmed', async (t) => {
  const old = 'SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA';
  const report = await installer().preflight(server.target({ knownHostKey: old }));
  t.equal(check(report, 'ssh').code, 'UND_SSH_HOST_KEY_CHANGED');
  const wrong = await installer().preflight(
    server.target({ knownHostKey: old, acceptHostKey: old }),
  );
  t.equal(check(wrong, 'ssh').code, 'UND_SSH_HOST_KEY_CHANGED');
  await t.rejects(
    installer().install(server.target({ knownHostKey: old }), {
      token: 'x'.repeat(40),
      onStep: () => undefined,
      signal: never,
    }),
    { code: 'UND_SSH_HOST_KEY_CHANGED' },
  );
});

t.test('preflight: wrong credentials, unreachable', async (t) => {
  const wrong = await installer().preflight(server.target({ password: 'wrong horse' }));
  t.equal(check(wrong, 'ssh').code, 'UND_SSH_AUTH');
  t.notMatch(JSON.stringify(wrong), /wrong horse/);
  const nobody = await installer().preflight(server.target({ username: 'nobody-here' }));
  t.equal(check(nobody, 'ssh').code, 'UND_SSH_AUTH');
  const garbled = await installer().preflight(
    server.target({ password: undefined, privateKey: 'not a key' }),
  );
  t.equal(check(garbled, 'ssh').code, 'UND_SSH_KEY_INVALID');
  const away = await installer().preflight(server.target({ port: await freePort() }));
  t.equal(check(away, 'ssh').code, 'UND_SSH_UNREACHABLE');
});

t.test('preflight: root by password, without password, not at all', async (t) => {
  const key = await installer().preflight(
    server.target({ username: 'nopass', password: undefined, privateKey: server.userKey }),
  );
  t.equal(check(key, 'sudo').result, 'ok');
  const none = await installer().preflight(server.target({ username: 'nosudo' }));
  t.equal(check(none, 'sudo').code, 'UND_SUDO_REFUSED');
  t.equal(check(none, 'kernel').result, 'ok', 'the rest is looked at all the same');
  t.equal(none.ok, false);
});

t.test('preflight: a blocked port', async (t) => {
  const blocked = await freePort();
  const report = await installer({ agentPort: () => blocked }).preflight(server.target());
  t.equal(check(report, 'agent-port').code, 'UND_SOURCE_PORT_BLOCKED');
  t.match(JSON.stringify(report), new RegExp(`127\\.0\\.0\\.1:${blocked}`));
});

// ---- from here on by the API, as the page does it ------------------------------------------------------------------
let cookie = '';
async function api(method: 'GET' | 'POST', url: string, payload?: object) {
  const answer = await appliance.app.inject({
    method,
    url,
    headers: { 'x-understudy': '1', cookie },
    ...(payload ? { payload } : {}),
  });
  const [session] = [answer.headers['set-cookie'] ?? []].flat();
  if (session) cookie = session.split(';')[0]!;
  return answer.json();
}
await api('POST', '/api/login', { username: 'admin', password: appliance.firstPassword });
await api('POST', '/api/session/password', {
  current: appliance.firstPassword,
  next: 'a better password',
});
const ssh = { address: '127.0.0.1', port: server.port, username: 'admin', password: PASSWORD };
const source = async (): Promise<Source> => (await api('GET', '/api/sources'))[0];

t.test('the push installs an agent that enrols, connects and tells its inventory', async (t) => {
  const added = await api('POST', '/api/sources', {
    ...ssh,
    acceptHostKey: server.hostKeyFingerprint,
  });
  t.equal(added.state.name, 'installing', JSON.stringify(added));
  await until('the source to be online with its inventory', async () => {
    const now = await source();
    if (now.state.name === 'install-failed') throw new Error(JSON.stringify(now.state));
    return now.state.name === 'online' && now.inventory !== null;
  });
  const now = await source();
  t.ok(now.inventory!.disks.length > 0);
  t.equal(now.certificate?.revoked, false);
  t.equal(
    server
      .sh('stat -c %a /var/lib/understudy-agent /var/lib/understudy-agent/identity.json')
      .trim(),
    '700\n600',
  );
  t.equal(
    server.sh('ls /var/lib/understudy-agent').trim(),
    'identity.json',
    'the ticket is used up',
  );
  // The agent is online a moment before the push has cleaned up behind itself.
  await until(
    'nothing but the agent to be left',
    () => server.sh('ls -A /var/tmp /usr/lib | grep understudy').trim() === 'understudy',
  );
  t.notMatch(server.sh('cat /run/agent.log /run/systemctl.log'), new RegExp(PASSWORD));
});

t.test('pushed again, the agent is replaced and keeps working', async (t) => {
  const before = server.sh('cat /run/agent.pid');
  await installAgain();
  await until('the new agent to be online', async () => (await source()).state.name === 'online');
  t.not(server.sh('cat /run/agent.pid'), before);
  t.equal(server.sh('ls -d /usr/lib/understudy*').trim(), '/usr/lib/understudy');
});

/** As `POST /api/sources` does it, but while the agent is connected: an upgrade by hand. */
async function installAgain(options = {}, dir = agentDir): Promise<void> {
  const { identity, sourceId } = await inside();
  await createSourceInstaller({ appliance: self!, agentDir: dir, ...options }).install(
    server.target(),
    {
      token: identity.createEnrolToken(sourceId),
      onStep: () => undefined,
      signal: never,
    },
  );
}
async function inside() {
  // The token is made where the appliance makes it: in its own database, by a second view of it.
  const { openDatabase } = await import('../../appliance/state/database.ts');
  const { EnrolTokenStore } = await import('../../appliance/state/enrol-tokens.ts');
  const { IdentityService } = await import('../../appliance/identity/identity-service.ts');
  const db = openDatabase(join(data, 'data/state.db'));
  const identity = new IdentityService({ db, tokens: new EnrolTokenStore(db) } as never);
  return { identity, sourceId: (await source()).sourceId };
}

t.test('a push that fails midway puts back the agent that was there', async (t) => {
  const broken = mkdtempSync(join(tmpdir(), 'understudy-broken.'));
  t.teardown(() => rmSync(broken, { recursive: true, force: true }));
  await cp(agentDir, broken, {
    recursive: true,
    filter: (path) => !/\/understudy-agent$/.test(path),
  });
  const manifest = JSON.parse(await readFile(join(broken, 'manifest.json'), 'utf8'));
  manifest.files['understudy-agent'] = '0'.repeat(64);
  await writeFile(join(broken, 'manifest.json'), JSON.stringify(manifest));
  const pid = server.sh('cat /run/agent.pid');
  await t.rejects(installAgain({}, broken), { code: 'UND_PUSH_FAILED' });
  t.equal(server.sh('cat /run/agent.pid'), pid, 'the agent was not touched');
  t.equal(
    server.sh('ls -d /usr/lib/understudy* /var/tmp/understudy-push.* 2>/dev/null || true').trim(),
    '/usr/lib/understudy',
  );

  server.sh('touch /run/refuse-start');
  await t.rejects(installAgain(), { code: 'UND_PUSH_FAILED' });
  server.sh('rm /run/refuse-start; systemctl restart understudy-agent.service');
  t.equal(
    server
      .sh('ls -d /usr/lib/understudy* /var/lib/understudy-agent/enrol.json 2>/dev/null || true')
      .trim(),
    '/usr/lib/understudy',
  );
  await until(
    'the agent of before to be online',
    async () => (await source()).state.name === 'online',
  );
});

t.test('the agent of another appliance is left alone', async (t) => {
  const other = installer({ caFingerprintSha256: 'AA:BB' });
  const report = await other.preflight(server.target());
  t.equal(check(report, 'agent').code, 'UND_SOURCE_DIFFERENT_APPLIANCE');
  await t.rejects(other.uninstall(server.target(), { onStep: () => undefined, signal: never }), {
    code: 'UND_SOURCE_DIFFERENT_APPLIANCE',
  });
  t.ok(server.traces().length > 0);
});

t.test('uninstalled over its own connection, nothing is left', async (t) => {
  const { sourceId } = await source();
  server.sh('mkdir -p /sys/fs/bpf/understudy/links');
  await api('POST', `/api/sources/${sourceId}/uninstall`, {});
  await until('the source to be gone from the list', async () => (await source()) === undefined);
  await until(
    'the agent to have ended',
    () => server.sh('systemctl is-active && echo yes || echo no').trim() === 'no',
  );
  t.same(server.traces(), []);
});

t.test('an agent that cannot enrol is taken away again, with its reason', async (t) => {
  await t.rejects(
    installer({}, { enrolLimitMs: 120_000 }).install(server.target(), {
      token: 'not-a-token-of-this-appliance-0000000000',
      onStep: () => undefined,
      signal: never,
    }),
    { code: 'UND_PUSH_AGENT_SILENT', message: /UND_ENROL_TOKEN_INVALID/ },
  );
  t.same(server.traces(), []);
});

t.test('a push that is cancelled is undone', async (t) => {
  const cancel = new AbortController();
  await t.rejects(
    installer().install(server.target(), {
      token: 'x'.repeat(40),
      onStep: (step) => {
        if (step === 'unpacking') setImmediate(() => cancel.abort());
      },
      signal: cancel.signal,
    }),
    { code: 'UND_PUSH_CANCELLED' },
  );
  t.same(server.traces(), []);
});

t.test('uninstalled by SSH, nothing is left', async (t) => {
  const added = await api('POST', '/api/sources', ssh);
  t.equal(added.state.name, 'installing', JSON.stringify(added));
  await until('the source to be online', async () => {
    const now = await source();
    if (now.state.name === 'install-failed') throw new Error(JSON.stringify(now.state));
    return now.state.name === 'online';
  });
  const { sourceId } = await source();
  await until('the push to have ended', async () => {
    const answer = await api('POST', `/api/sources/${sourceId}/uninstall`, { ssh });
    return answer.code !== 'UND_SOURCE_BUSY';
  });
  await until('the source to be gone from the list', async () => (await source()) === undefined);
  t.same(server.traces(), []);
});
