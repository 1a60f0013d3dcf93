/** Every route: who may call it, what it refuses, and that the table in the contract is what is served. */
import { readFileSync } from 'node:fs';
import t from 'tap';
import type { AuditEntry, User } from '../../appliance/api/schema.ts';
import { Lab, PASSWORD } from '../integration/api.lab.ts';

t.setTimeout(300_000);
const lab = new Lab();
t.before(() => lab.start());
t.teardown(() => lab.close());

/** `POST /api/login …` lines of the comment that is the contract, those that match. */
function contract(which = /^/): string[] {
  const text = readFileSync(new URL('../../appliance/api/schema.ts', import.meta.url), 'utf8');
  return [...text.matchAll(/^ \* (GET|POST|PATCH|DELETE) +(\/\S+).*$/gm)]
    .filter(([line]) => which.test(line))
    .map(([, method, url]) => `${method} ${url!.split('?')[0]}`)
    .sort();
}

const PUBLIC = [
  'POST /api/login',
  'POST /api/logout',
  'GET /api/ca.pem',
  'POST /agent/enrol',
  'GET /api/openapi.json',
];
const ADMIN = [
  'GET /api/users',
  'POST /api/users',
  'DELETE /api/users/:username',
  'POST /api/sources/:id/certificate',
  'POST /api/config/backup',
  'POST /api/config/restore',
];
/** Reading is for everyone who is logged in, but for these and what the contract says is an operator's. */
const OPERATOR_GET = ['GET /api/audit', ...contract(/ \(operator\)$/)];
const OWN = ['GET /api/session', 'POST /api/session/password'];

const real = (route: string): [string, string] => {
  const [method, url] = route.split(' ') as [string, string];
  return [method, url.replace(':id', 'nobody').replace(':username', 'nobody')];
};

t.test('the routes of the contract are served, no more and no less', async (t) => {
  const { paths } = await lab.call<{ paths: Record<string, Record<string, unknown>> }>(
    'GET',
    '/api/openapi.json',
  );
  const served = Object.entries(paths).flatMap(([url, methods]) =>
    Object.keys(methods).map(
      (method) => `${method.toUpperCase()} ${url.replaceAll(/\{(\w+)\}/g, ':$1')}`,
    ),
  );
  served.push('GET /api/openapi.json');
  t.same(served.sort(), contract());
});

t.test('without a session everything but the public routes is refused', async (t) => {
  for (const route of contract()) {
    if (PUBLIC.includes(route)) continue;
    const [method, url] = real(route);
    const answer = await lab.inject(method, url, undefined, { cookie: '' });
    t.equal(answer.statusCode, 401, route);
    t.equal(answer.json().code, 'UND_AUTH_REQUIRED', route);
  }
});

t.test('what changes something needs the header that no form can send', async (t) => {
  for (const route of contract()) {
    const [method, url] = real(route);
    if (method === 'GET' || url.startsWith('/agent/')) continue;
    const answer = await lab.inject(method, url, undefined, { 'x-understudy': '' });
    t.equal(answer.statusCode, 403, route);
    t.equal(answer.json().code, 'UND_AUTH_HEADER_MISSING', route);
  }
});

t.test('roles: a viewer looks, an operator works, an admin rules', async (t) => {
  const cookies: Record<string, string> = { admin: lab.cookie };
  for (const role of ['viewer', 'operator'] as const) {
    await lab.call('POST', '/api/users', { username: role, password: 'given by an admin', role });
    await lab.login(role, 'given by an admin');
    const early = await lab.inject('GET', '/api/jobs');
    t.equal(early.json().code, 'UND_AUTH_PASSWORD_CHANGE_NEEDED', 'the given password first');
    await lab.call('POST', '/api/session/password', {
      current: 'given by an admin',
      next: PASSWORD,
    });
    cookies[role] = lab.cookie;
    lab.cookie = cookies.admin!;
  }
  const forbidden = async (role: string, route: string) => {
    const [method, url] = real(route);
    // Refused before the body is looked at: a viewer learns nothing from its validation.
    const answer = await lab.inject(method, url, {}, { cookie: cookies[role]! });
    return answer.statusCode === 403 && answer.json().code === 'UND_AUTH_FORBIDDEN';
  };
  for (const route of contract()) {
    if (PUBLIC.includes(route) || OWN.includes(route) || route === 'GET /api/events') continue;
    const admin = ADMIN.includes(route);
    const operator = admin || !route.startsWith('GET ') || OPERATOR_GET.includes(route);
    t.equal(await forbidden('viewer', route), operator, `viewer: ${route}`);
    t.equal(await forbidden('operator', route), admin, `operator: ${route}`);
  }
  const audit = await lab.call<AuditEntry[]>('GET', '/api/audit');
  t.ok(
    audit.some(({ who, outcome }) => who === 'viewer' && outcome === 'refused'),
    'refusals are in the audit log',
  );
});

t.test('bad input is refused with the path of the field', async (t) => {
  const ssh = { address: 'web1', username: 'root' };
  const protect = {
    sourceId: 's',
    diskIds: ['d'],
    pool: 'p',
    network: 'n',
    replicaName: 'r',
    vcpus: 1,
    memoryBytes: 256 * 1024 * 1024,
    compression: 'fast',
    bandwidthLimitBytesPerSec: null,
  };
  const cases: [string, string, unknown, string][] = [
    ['POST', '/api/login', { username: 'admin' }, 'password'],
    ['POST', '/api/login', { username: 7, password: 'x' }, 'username'],
    ['POST', '/api/session/password', { current: 'x', next: 'short' }, 'next'],
    [
      'POST',
      '/api/users',
      { username: 'Bad Name', password: 'long enough 1', role: 'viewer' },
      'username',
    ],
    ['POST', '/api/users', { username: 'good', password: 'long enough 1', role: 'root' }, 'role'],
    ['POST', '/api/sources', { ...ssh, address: 'a;reboot' }, 'address'],
    ['POST', '/api/sources', { ...ssh, port: 70000 }, 'port'],
    ['POST', '/api/sources', { ...ssh, port: '22' }, 'port'],
    ['POST', '/api/sources/preflight', { address: 'web1' }, 'username'],
    ['POST', '/api/sources/x/certificate', { action: 'burn' }, 'action'],
    ['POST', '/api/jobs', { ...protect, diskIds: [] }, 'diskIds'],
    ['POST', '/api/jobs', { ...protect, diskIds: [1] }, 'diskIds.0'],
    ['POST', '/api/jobs', { ...protect, replicaName: '../etc' }, 'replicaName'],
    ['POST', '/api/jobs', { ...protect, vcpus: 1.5 }, 'vcpus'],
    ['POST', '/api/jobs', { ...protect, compression: 'max' }, 'compression'],
    [
      'POST',
      '/api/jobs/plan',
      { ...protect, bandwidthLimitBytesPerSec: 5 },
      'bandwidthLimitBytesPerSec',
    ],
    ['PATCH', '/api/jobs/x', { bandwidthLimitBytesPerSec: 'fast' }, 'bandwidthLimitBytesPerSec'],
    ['PATCH', '/api/jobs/x', { historyHours: 0 }, 'historyHours'],
    ['PATCH', '/api/jobs/x', { historyBytes: 1000 }, 'historyBytes'],
    ['POST', '/api/jobs/x/labels', { at: 'yesterday', text: 'x' }, 'at'],
    ['POST', '/api/jobs/x/labels', { at: '2026-01-01T00:00:00Z', text: '' }, 'text'],
    ['POST', '/api/jobs', { ...protect, exclusions: ['tmp'] }, 'exclusions.0'],
    ['PATCH', '/api/jobs/x', { exclusions: ['/tmp', '/**'] }, 'exclusions.1'],
    ['POST', '/api/jobs', { ...protect, carryRestarts: 'yes' }, 'carryRestarts'],
    ['PATCH', '/api/jobs/x', { carryRestarts: null }, 'carryRestarts'],
    ['DELETE', '/api/jobs/x', undefined, 'disks'],
    ['DELETE', '/api/jobs/x?disks=burn', undefined, 'disks'],
    ['POST', '/api/jobs/x/failover', { kind: 'sudden', confirm: 'x' }, 'kind'],
    ['POST', '/api/failovers/x/undo', {}, 'confirm'],
    ['GET', '/api/audit?limit=-1', undefined, 'limit'],
    ['POST', '/api/config/backup', { passphrase: 'short' }, 'passphrase'],
    ['POST', '/agent/enrol', { token: 'x' }, 'csrPem'],
  ];
  for (const [method, url, body, field] of cases) {
    const answer = await lab.inject(method, url, body);
    const what = `${method} ${url} ${field}`;
    t.equal(answer.statusCode, 400, `${what}: ${answer.body}`);
    t.match(answer.json(), { code: 'UND_REQUEST_INVALID', field: new RegExp(field) }, what);
    t.ok(answer.json().message && answer.json().hint, what);
  }
});

t.test('what is not there is a coded 404', async (t) => {
  const cases: [string, string, unknown?][] = [
    ['GET', '/api/sources/nope'],
    ['POST', '/api/sources/nope/inventory'],
    ['POST', '/api/sources/nope/uninstall', {}],
    ['POST', '/api/sources/nope/certificate', { action: 'revoke' }],
    ['GET', '/api/jobs/nope'],
    ['PATCH', '/api/jobs/nope', {}],
    ['POST', '/api/jobs/nope/pause'],
    ['POST', '/api/jobs/nope/resume'],
    ['POST', '/api/jobs/nope/mirror', {}],
    ['POST', '/api/jobs/nope/verify', {}],
    // What they may be told is optional: no body is as good as an empty one.
    ['POST', '/api/jobs/nope/mirror'],
    ['POST', '/api/jobs/nope/verify'],
    ['DELETE', '/api/jobs/nope?disks=keep'],
    ['POST', '/api/jobs/nope/failover', { kind: 'unplanned', confirm: 'x' }],
    ['GET', '/api/failovers/nope'],
    ['GET', '/api/failovers/nope/screenshot'],
    ['POST', '/api/failovers/nope/undo', { confirm: 'x' }],
    ['POST', '/api/failovers/nope/commit', { confirm: 'x' }],
    ['DELETE', '/api/users/nope'],
    ['GET', '/api/nowhere'],
    ['POST', '/nowhere'],
  ];
  for (const [method, url, body] of cases) {
    const answer = await lab.inject(method, url, body);
    t.equal(answer.statusCode, 404, `${method} ${url}: ${answer.body}`);
    t.match(answer.json(), { code: /^UND_/, message: /./, hint: /./ }, `${method} ${url}`);
  }
});

t.test('bodies that are no JSON, too large, or of another kind are refused', async (t) => {
  const post = (payload: string, type: string) =>
    lab.appliance.app.inject({
      method: 'POST',
      url: '/api/login',
      headers: { 'x-understudy': '1', 'content-type': type },
      payload,
    });
  for (const [payload, type, status] of [
    ['{"username":', 'application/json', 400],
    ['username=admin', 'application/x-www-form-urlencoded', 415],
    [JSON.stringify({ username: 'x'.repeat(300_000) }), 'application/json', 413],
    ['{"__proto__":{"role":"admin"},"username":"a","password":"b"}', 'application/json', 400],
  ] as const) {
    const answer = await post(payload, type);
    t.equal(answer.statusCode, status, `${type}: ${answer.body.slice(0, 200)}`);
    t.equal(answer.json().code, 'UND_REQUEST_INVALID');
  }
});

t.test('the session cookie is for this site and for no script', async (t) => {
  const answer = await lab.inject('POST', '/api/login', { username: 'admin', password: PASSWORD });
  const cookie = String(answer.headers['set-cookie']);
  for (const part of ['und_session=', 'HttpOnly', 'Secure', 'SameSite=Strict', 'Path=/']) {
    t.ok(cookie.includes(part), part);
  }
  t.notOk(answer.body.includes('scrypt'), 'no hash leaves');
  const page = await lab.inject('GET', '/api/session');
  t.match(page.headers['content-security-policy'], /default-src 'self'/);
  t.equal(page.headers['cache-control'], 'no-store');
});

t.test('system, host, certificates and an empty beginning', async (t) => {
  const system = await lab.call<Record<string, unknown>>('GET', '/api/system');
  t.match(system, { version: /./, applianceId: /./, agentPort: lab.appliance.agentPort });
  t.match(system.caFingerprintSha256, /^([0-9A-F]{2}:){31}[0-9A-F]{2}$/);
  const host = await lab.call<Record<string, unknown>>('GET', '/api/host');
  t.match(host, { name: 'host', acceleration: 'tcg', cpuUsePercent: 25 });
  for (const url of ['/api/sources', '/api/jobs', '/api/failovers', '/api/certificates']) {
    t.same(await lab.call('GET', url), [], url);
  }
  const ca = await lab.inject('GET', '/api/ca.pem', undefined, { cookie: '' });
  t.match(ca.body, /^-----BEGIN CERTIFICATE-----\n/);
  const report = await lab.call('POST', '/api/sources/preflight', {
    address: 'broken',
    username: 'root',
  });
  t.match(report, { ok: false, checks: [{ id: 'btf', result: 'failed' }] });
});

t.test('a host that does not answer is a coded error, not a crash', async (t) => {
  lab.host.fail('describeHost', 'UND_HV_UNREACHABLE');
  // A plan looks at the host anew, whatever was seen of it a moment ago.
  const answer = await lab.inject('POST', '/api/jobs/plan', {
    sourceId: 's',
    diskIds: ['d'],
    pool: 'default',
    network: 'lan',
    replicaName: 'r',
    vcpus: 1,
    memoryBytes: 256 * 1024 * 1024,
    compression: 'none',
    bandwidthLimitBytesPerSec: null,
  });
  t.equal(answer.statusCode, 503);
  t.equal(answer.json().code, 'UND_HV_UNREACHABLE');
});

t.test('the last admin stays; a removed user is out at once', async (t) => {
  const last = await lab.inject('DELETE', '/api/users/admin');
  t.match(last.json(), { code: 'UND_USER_LAST_ADMIN' });
  await lab.call('POST', '/api/users', {
    username: 'guest',
    password: 'given by an admin',
    role: 'viewer',
  });
  const again = await lab.inject('POST', '/api/users', {
    username: 'guest',
    password: 'given by an admin',
    role: 'viewer',
  });
  t.match(again.json(), { code: 'UND_USER_EXISTS' });
  const admin = lab.cookie;
  await lab.login('guest', 'given by an admin');
  const guest = lab.cookie;
  lab.cookie = admin;
  await lab.call('DELETE', '/api/users/guest');
  t.equal((await lab.inject('GET', '/api/session', undefined, { cookie: guest })).statusCode, 401);
  const users = await lab.call<User[]>('GET', '/api/users');
  t.notOk(users.some(({ username }) => username === 'guest'));
});

t.test('an open event stream ends with its session', async (t) => {
  const admin = lab.cookie;
  await lab.login('viewer', PASSWORD);
  const events = lab.events(() => {});
  const ended = new Promise<void>((resolve) => events.onEnd(resolve));
  await events.opened;
  await lab.call('POST', '/api/logout');
  await ended;
  lab.cookie = admin;
  t.pass('it ended');
});
