/**
 * A scripted stand-in for the appliance's API, for tests of the page alone. It serves the built page, checks every
 * request and every answer against the contract (appliance/api/schema.ts), and plays one story: a source server is
 * added, protected, lost and failed over. It lives in test/ only.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import fastifyCookie from '@fastify/cookie';
import fastifyStatic from '@fastify/static';
import Fastify, { type FastifyReply, type FastifyRequest } from 'fastify';
import Type, { type Static, type TSchema } from 'typebox';
import Value from 'typebox/value';
import * as contract from '../../appliance/api/schema.ts';
import { serveMockGroups } from './page-mock-groups.ts';
import { serveMockMounts } from './page-mock-mounts.ts';
import { consolePicture } from './page-mock-picture.ts';
import { serveMockPoints } from './page-mock-points.ts';

type Source = contract.Source;
type Job = contract.Job;
type Failover = contract.Failover;
type ServerEvent = contract.ServerEvent;

export interface PageMockOptions {
  /** The built page. */
  dist: string;
  /** How long one scripted step takes, in ms. */
  stepMs?: number;
  port?: number;
}

export interface PageMock {
  url: string;
  firstPassword: string;
  /** Everything in which an answer or event departed from the contract; empty in a good run. */
  violations: string[];
  /** Requests in order: `POST /api/login`. */
  requests: string[];
  sources: Map<string, Source>;
  jobs: Map<string, Job>;
  failovers: Map<string, Failover>;
  groups: Map<string, contract.Group>;
  /** The source whose member fails in the failover of a group. */
  groupFails: string | null;
  /** Changes a thing and tells the page. */
  tell: (event: ServerEvent) => void;
  /** Why the agent of a protected job cannot carry planned restarts over; null: it can. */
  carryProblem: string | null;
  /** While true, mirrors stay at their half: a test that looks at one must not have to be quick. */
  holdMirror: boolean;
  /** Cuts all event streams and refuses new ones until `restoreLink`. */
  cutLink: () => void;
  restoreLink: () => void;
  /** Ends all sessions, as a restart of the appliance without its database would. */
  endSessions: () => void;
  close: () => Promise<void>;
}

export const MOCK_FINGERPRINT = 'SHA256:9kL2c0Qw8vVtqJx1mQ0mA3rj5U7hPz1b2nYt6uXyZ4w';
export const MOCK_SOURCE = {
  address: '192.0.2.20',
  username: 'admin',
  password: 'secret of the source',
};

const GIB = 2 ** 30;
const MIB = 2 ** 20;
const iso = (ageMs = 0) => new Date(Date.now() - ageMs).toISOString();
const problem = (code: string, message: string, hint: string): contract.ApiError => ({
  code,
  message,
  hint,
});

const inventory = (): contract.Inventory => ({
  takenAt: iso(),
  hostname: 'orders-db',
  os: 'Debian GNU/Linux 12 (bookworm)',
  kernel: '6.1.0-31-amd64',
  firmware: 'uefi',
  virtualisation: 'kvm',
  cpuModel: 'Intel Xeon Gold 6338',
  cpuCount: 2,
  memoryBytes: 2011 * MIB,
  disks: [
    {
      diskId: 'disk-vda',
      name: 'vda',
      devicePath: '/dev/vda',
      sizeBytes: 8 * GIB,
      usedBytes: 1.9 * GIB,
      model: null,
      serial: 'ORDERS-ROOT',
      bus: 'virtio',
      partitionTable: 'gpt',
      isBoot: true,
      protectable: true,
      volumes: [
        {
          name: 'vda1',
          kind: 'partition',
          sizeBytes: 256 * MIB,
          fileSystem: {
            type: 'vfat',
            mountpoint: '/boot/efi',
            sizeBytes: 255 * MIB,
            usedBytes: 6 * MIB,
            label: 'EFI',
            uuid: '6A3C-11FE',
          },
        },
        {
          name: 'vda2',
          kind: 'partition',
          sizeBytes: 7.7 * GIB,
          fileSystem: {
            type: 'ext4',
            mountpoint: '/',
            sizeBytes: 7.5 * GIB,
            usedBytes: 1.9 * GIB,
            label: 'root',
            uuid: randomUUID(),
          },
        },
      ],
    },
    {
      diskId: 'disk-vdb',
      name: 'vdb',
      devicePath: '/dev/vdb',
      sizeBytes: 20 * GIB,
      usedBytes: 4.2 * GIB,
      model: null,
      serial: 'ORDERS-DATA',
      bus: 'virtio',
      partitionTable: null,
      isBoot: false,
      protectable: true,
      volumes: [
        {
          name: 'vdb',
          kind: 'whole',
          sizeBytes: 20 * GIB,
          fileSystem: {
            type: 'ext4',
            mountpoint: '/srv/data',
            sizeBytes: 19.5 * GIB,
            usedBytes: 4.2 * GIB,
            label: null,
            uuid: randomUUID(),
          },
        },
      ],
    },
    {
      diskId: 'disk-sr0',
      name: 'sr0',
      devicePath: '/dev/sr0',
      sizeBytes: 374 * MIB,
      usedBytes: null,
      model: 'QEMU DVD-ROM',
      serial: null,
      bus: 'sata',
      partitionTable: null,
      isBoot: false,
      protectable: false,
      reason: 'It is a read-only optical drive.',
      volumes: [],
    },
  ],
  nics: [
    {
      name: 'enp1s0',
      mac: '52:54:00:12:34:56',
      addresses: ['192.0.2.20/24', '2001:db8::20/64'],
      gateway: '192.0.2.1',
      dhcp: true,
    },
  ],
  machine: {
    smbiosUuid: randomUUID(),
    bootId: randomUUID(),
    diskSerials: ['ORDERS-ROOT', 'ORDERS-DATA'],
  },
});

const HANDOVER: [contract.FailoverStepName, string, string][] = [
  ['stop-services', 'Stop the chosen services on the source server', 'postgresql.service'],
  ['final-mark', 'Flush the source server and wait until everything has arrived', 'frame 48213'],
  ['power-off', 'Power the source server off', 'web-01 has gone'],
];
const STEPS: [contract.FailoverStepName, string, string][] = [
  ['stop-intake', 'Stop taking in new data', 'the stream is closed at frame 48213'],
  ['apply', 'Apply what arrived', '212 frames, 31 MiB applied'],
  ['checkpoint', 'Make a checkpoint', 'both replica disks at frame 48213'],
  ['detach', 'Detach the replica disks from the appliance', '2 disks, image locks free'],
  ['overlay', 'Put an overlay on each replica disk', 'the replica disks stay as they are'],
  ['prepare-guest', 'Prepare the guest', '4 changes'],
  ['define', 'Define the replica VM', 'orders-db-replica'],
  ['power-on', 'Power on', 'running'],
  ['prove-boot', 'Prove that it booted', 'login prompt on the console after 21 s'],
];

const NOT_IN_TESTS: readonly string[] = ['stop-intake', 'apply', 'checkpoint', 'detach'];

export async function startPageMock(options: PageMockOptions): Promise<PageMock> {
  const stepMs = options.stepMs ?? 150;
  const firstPassword = randomBytes(9).toString('base64url');
  const violations: string[] = [];
  const requests: string[] = [];
  const sources = new Map<string, Source>();
  const jobs = new Map<string, Job>();
  const failovers = new Map<string, Failover>();
  const groups = new Map<string, contract.Group>();
  const groupRuns = new Map<string, contract.GroupRunView>();
  const audit: contract.AuditEntry[] = [];
  const users = new Map<string, contract.User & { password: string }>([
    [
      'admin',
      {
        username: 'admin',
        role: 'admin',
        mustChangePassword: true,
        createdAt: iso(3_600_000),
        password: firstPassword,
      },
    ],
  ]);
  const sessions = new Map<string, string>();
  const streams = new Set<ServerResponse>();
  const timers = new Set<ReturnType<typeof setTimeout>>();
  let linkUp = true;

  const check = <T extends TSchema>(schema: T, value: unknown, what: string): Static<T> => {
    if (!Value.Check(schema, value)) {
      const [first] = Value.Errors(schema, value);
      violations.push(`${what}: ${JSON.stringify(first)}`);
    }
    return value as Static<T>;
  };
  const later = (ms: number, act: () => void) => {
    const timer = setTimeout(() => {
      timers.delete(timer);
      act();
    }, ms);
    timers.add(timer);
  };
  const send = (stream: ServerResponse, event: ServerEvent) => {
    check(contract.ServerEvent, event, `event ${event.type}`);
    stream.write(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
  };
  const tell = (event: ServerEvent) => {
    if (event.type === 'source') sources.set(event.source.sourceId, event.source);
    if (event.type === 'job') jobs.set(event.job.jobId, event.job);
    if (event.type === 'failover') failovers.set(event.failover.failoverId, event.failover);
    if (event.type === 'group') groups.set(event.group.groupId, event.group);
    if (event.type === 'group-removed') groups.delete(event.groupId);
    if (event.type === 'group-run') groupRuns.set(event.run.runId, event.run);
    if (event.type === 'source-removed') sources.delete(event.sourceId);
    if (event.type === 'job-removed') jobs.delete(event.jobId);
    for (const stream of streams) send(stream, event);
  };
  const note = (who: string, act: string, object: string, detail = '') =>
    audit.unshift({ at: iso(), who, act, object, outcome: 'ok', detail });

  const mock: PageMock = {
    url: '',
    holdMirror: false,
    firstPassword,
    violations,
    requests,
    sources,
    jobs,
    failovers,
    groups,
    groupFails: null,
    carryProblem: null,
    tell,
    cutLink: () => {
      linkUp = false;
      for (const stream of streams) stream.destroy();
    },
    restoreLink: () => {
      linkUp = true;
    },
    endSessions: () => {
      sessions.clear();
      for (const stream of streams) stream.destroy();
    },
    close: async () => {
      for (const timer of timers) clearTimeout(timer);
      for (const stream of streams) stream.destroy();
      await app.close();
    },
  };

  // ---- the story -------------------------------------------------------------------------------------------------
  const setSource = (sourceId: string, change: Partial<Source>) => {
    const source = sources.get(sourceId);
    if (source) tell({ type: 'source', source: { ...source, ...change } });
  };
  const setJob = (jobId: string, change: Partial<Job>) => {
    const job = jobs.get(jobId);
    if (job) tell({ type: 'job', job: { ...job, ...change } });
  };
  const figures = (change: Partial<contract.JobFigures> = {}): contract.JobFigures => ({
    rateBytesPerSec: 0,
    etaSeconds: null,
    lagBytes: 0,
    lagBytesAt: iso(),
    lagMs: null,
    durableSeq: 0,
    appliedSeq: 0,
    applyBacklogBytes: 0,
    journalBytes: 0,
    newestPointAt: null,
    agent: null,
    ...change,
  });

  function install(sourceId: string): void {
    const steps = [
      'Copying the agent (48 MiB)',
      'Installing the systemd unit',
      'Starting the agent',
      'Enrolling: waiting for its certificate request',
    ];
    steps.forEach((step, i) => {
      later(stepMs * (i + 1), () => setSource(sourceId, { state: { name: 'installing', step } }));
    });
    later(stepMs * (steps.length + 1), () =>
      setSource(sourceId, { state: { name: 'waiting-for-agent', since: iso() } }),
    );
    later(stepMs * (steps.length + 2), () =>
      setSource(sourceId, {
        state: { name: 'online', since: iso() },
        agentVersion: '0.1.0',
        certificate: {
          serial: '4f1c9a22e07b5d3310aa',
          notAfter: iso(-90 * 86_400_000),
          revoked: false,
        },
        inventory: inventory(),
      }),
    );
  }

  function mirror(jobId: string, doneParts: number, parts: number): void {
    const job = jobs.get(jobId);
    if (!job || job.state.name === 'paused' || job.state.name === 'deleting') return;
    const part = doneParts / parts;
    const disks = job.disks.map((disk) => ({
      ...disk,
      attached: true,
      replicaPath: `/var/lib/libvirt/images/${job.settings.replicaName}-${disk.name}.qcow2`,
      mirror: {
        kind: 'full' as const,
        reason: 'first mirror of a new replica disk',
        totalBytes: disk.sizeBytes,
        doneBytes: Math.round(disk.sizeBytes * part),
        skippedBytes: Math.round(disk.sizeBytes * part * 0.7),
      },
      excluded: { files: 7, bytes: Math.round(disk.sizeBytes * 0.05) },
    }));
    const stream = {
      mode: 'ordered' as const,
      reason: null,
      since: job.stream.since ?? iso(),
    };
    if (doneParts < parts) {
      setJob(jobId, {
        state: { name: 'mirroring', reason: 'First mirror: all allocated blocks are copied.' },
        stream,
        disks,
        figures: figures({
          rateBytesPerSec: 93 * MIB + Math.random() * 20 * MIB,
          etaSeconds: Math.round(((parts - doneParts) * stepMs) / 1000),
          lagBytes: Math.round(Math.random() * 3 * MIB),
          lagMs: null,
          durableSeq: doneParts * 1000,
          appliedSeq: doneParts * 1000 - 20,
          applyBacklogBytes: 5 * MIB,
          journalBytes: 60 * MIB,
        }),
      });
      const held = mock.holdMirror && doneParts * 2 >= parts;
      later(stepMs, () => mirror(jobId, doneParts + (held ? 0 : 1), parts));
      return;
    }
    setJob(jobId, { disks, stream, state: { name: 'catching-up', reason: 'The lag is 6 s.' } });
    later(stepMs, () => {
      setJob(jobId, {
        state: { name: 'protected' },
        disks: disks.map((disk) => ({ ...disk, mirror: null })),
      });
      replicate(jobId, 40_000);
    });
  }

  function replicate(jobId: string, seq: number): void {
    const job = jobs.get(jobId);
    if (job?.state.name !== 'protected') return;
    const lagMs = Math.round(400 + 350 * Math.sin(Date.now() / 9000) + Math.random() * 200);
    setJob(jobId, {
      figures: figures({
        rateBytesPerSec: Math.round((6 + 3 * Math.sin(Date.now() / 5000) + Math.random()) * MIB),
        lagBytes: Math.round((lagMs / 1000) * 5 * MIB),
        lagMs,
        durableSeq: seq,
        appliedSeq: seq - 7,
        applyBacklogBytes: 300 * 1024,
        journalBytes: 1.4 * GIB + (seq - 40_000) * 4096,
        newestPointAt: iso(lagMs),
        agent: {
          ringBytes: 128 * 2 ** 20,
          ringUsedBytes: 3 * 2 ** 20,
          agentCpuPercent: 4.2,
          agentRssBytes: 118 * 2 ** 20,
          helperCpuPercent: 0.8,
          helperRssBytes: 3 * 2 ** 20,
          windowBytes: 32 * 2 ** 20,
          carry: job.settings.carryRestarts
            ? { ready: mock.carryProblem === null, reason: mock.carryProblem }
            : null,
        },
      }),
    });
    later(Math.max(250, stepMs), () => replicate(jobId, seq + 37));
  }

  function playFailover(failoverId: string, at: number): void {
    const failover = failovers.get(failoverId);
    if (failover?.state.name !== 'running') return;
    const steps = failover.steps.map((step, i): contract.FailoverStep => {
      if (i < at) {
        return {
          ...step,
          state: 'done',
          detail: [...HANDOVER, ...STEPS].find(([name]) => name === step.name)![2],
          endedAt: step.endedAt ?? iso(),
        };
      }
      return i === at ? { ...step, state: 'running', startedAt: iso() } : step;
    });
    const prepared = at > failover.steps.length - 4;
    const proven = at >= failover.steps.length;
    tell({
      type: 'failover',
      failover: {
        ...failover,
        steps,
        point: { ...failover.point, seq: 48_213 },
        guestChanges: prepared
          ? [
              'Added virtio_scsi to the initramfs; the old one is kept as initrd.img-6.1.0-31-amd64.understudy',
              'Named the first network interface enp1s0 by its MAC address',
              'Put the EFI fallback loader at EFI/BOOT/BOOTX64.EFI',
              'Made the agent passive',
            ]
          : [],
        addresses: proven ? ['192.0.2.41'] : [],
        hasScreenshot: proven,
        endedAt: proven ? iso() : null,
        state: proven
          ? { name: 'completed', proof: 'login prompt on the console after 21 s' }
          : { name: 'running' },
      },
    });
    if (proven) {
      setJob(failover.jobId, {
        state: { name: 'failed-over', failoverId },
        provenBootableAt: iso(),
        stream: { mode: 'none', reason: 'failed over', since: iso() },
      });
    } else {
      later(stepMs, () => playFailover(failoverId, at + 1));
    }
  }

  // ---- the API ---------------------------------------------------------------------------------------------------
  const app = Fastify({
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false } },
    forceCloseConnections: true,
  });
  await app.register(fastifyCookie);
  await app.register(fastifyStatic, { root: options.dist, preCompressed: true });

  app.addHook('onSend', async (_request, reply) => {
    // As strict as the page can stand: nothing from elsewhere, no inline scripts.
    reply.header(
      'content-security-policy',
      "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    );
  });
  app.addHook('onRequest', async (request, reply) => {
    if (!request.url.startsWith('/api/')) return;
    requests.push(`${request.method} ${request.url}`);
    if (!linkUp) {
      request.raw.socket.destroy();
      return reply.hijack();
    }
    if (request.method !== 'GET' && request.headers['x-understudy'] !== '1') {
      violations.push(`${request.method} ${request.url} without the header x-understudy`);
    }
    const open = request.url === '/api/login' || request.url.startsWith('/api/ca.pem');
    if (!open && !sessions.has(request.cookies.und_session ?? '')) {
      return reply
        .code(401)
        .send(problem('UND_AUTH_REQUIRED', 'This needs a login.', 'Log in first.'));
    }
  });
  app.setErrorHandler((error: { message?: string; statusCode?: number }, request, reply) => {
    violations.push(`${request.method} ${request.url}: ${error.message}`);
    return reply
      .code(error.statusCode ?? 500)
      .send(problem('UND_INTERNAL', `Internal error: ${error.message}.`, 'Report this as a bug.'));
  });

  const who = (request: FastifyRequest) => sessions.get(request.cookies.und_session ?? '') ?? '';
  const publicUser = ({ password: _password, ...user }: contract.User & { password: string }) =>
    user;
  const refuse = (reply: FastifyReply, status: number, error: contract.ApiError) =>
    reply.code(status).send(check(contract.ApiError, error, 'an error'));
  const missing = (reply: FastifyReply) =>
    refuse(reply, 404, problem('UND_NOT_FOUND', 'There is no such thing.', 'Reload the page.'));
  const List = <T extends TSchema>(schema: T) => Type.Array(schema);

  app.post<{ Body: Static<typeof contract.LoginRequest> }>(
    '/api/login',
    { schema: { body: contract.LoginRequest } },
    async (request, reply) => {
      const user = users.get(request.body.username);
      if (user?.password !== request.body.password) {
        return refuse(
          reply,
          401,
          problem('UND_AUTH_FAILED', 'Username or password is wrong.', 'Check both and try again.'),
        );
      }
      const token = randomUUID();
      sessions.set(token, user.username);
      reply.setCookie('und_session', token, { httpOnly: true, sameSite: 'strict', path: '/' });
      note(user.username, 'login', user.username);
      return check(contract.User, publicUser(user), 'login');
    },
  );
  app.post('/api/logout', async (request, reply) => {
    sessions.delete(request.cookies.und_session ?? '');
    return reply.code(204).send();
  });
  app.get('/api/session', async (request) =>
    check(contract.User, publicUser(users.get(who(request))!), 'session'),
  );
  app.post<{ Body: Static<typeof contract.PasswordChange> }>(
    '/api/session/password',
    { schema: { body: contract.PasswordChange } },
    async (request, reply) => {
      const user = users.get(who(request))!;
      if (user.password !== request.body.current) {
        return refuse(
          reply,
          401,
          problem('UND_AUTH_FAILED', 'Username or password is wrong.', 'Check both and try again.'),
        );
      }
      user.password = request.body.next;
      user.mustChangePassword = false;
      note(user.username, 'change password', user.username);
      return check(contract.User, publicUser(user), 'password');
    },
  );
  app.get('/api/users', async () =>
    check(List(contract.User), [...users.values()].map(publicUser), 'users'),
  );
  app.post<{ Body: Static<typeof contract.NewUser> }>(
    '/api/users',
    { schema: { body: contract.NewUser } },
    async (request) => {
      const user = { ...request.body, mustChangePassword: true, createdAt: iso() };
      users.set(user.username, user);
      note(who(request), 'add user', user.username, user.role);
      return check(contract.User, publicUser(user), 'new user');
    },
  );
  app.delete<{ Params: { username: string } }>('/api/users/:username', async (request, reply) => {
    users.delete(request.params.username);
    note(who(request), 'remove user', request.params.username);
    return reply.code(204).send();
  });

  app.get('/api/system', async () =>
    check(
      contract.SystemInfo,
      {
        version: '0.1.0',
        applianceId: '0c7f4f0e-6d9a-4c4f-9f5e-5f1f6a1f8b11',
        caFingerprintSha256:
          'A1:7C:0D:55:E2:9B:31:F4:08:6E:C3:D7:42:19:8A:5B:F0:CC:77:2E:94:60:1D:B8:3A:E5:4F:90:26:D1:7B:C8',
        startedAt: iso(7_300_000),
        journal: {
          path: '/var/lib/understudy/journal',
          totalBytes: 32 * GIB,
          freeBytes: 29.1 * GIB,
        },
        agentPort: 7443,
      },
      'system',
    ),
  );
  app.get('/api/ca.pem', async () => '-----BEGIN CERTIFICATE-----\n');
  app.get('/api/host', async () =>
    check(
      contract.HostView,
      {
        name: 'kvm-2',
        hypervisor: 'QEMU 7.2.15, libvirt 9.0.0',
        cpuModel: 'AMD EPYC 7313P',
        cpuCount: 16,
        cpuUsePercent: 22 + 6 * Math.sin(Date.now() / 7000),
        memoryTotalBytes: 64 * GIB,
        memoryFreeBytes: 41.3 * GIB,
        networkRxBytesPerSec: 8.2 * MIB,
        networkTxBytesPerSec: 0.4 * MIB,
        acceleration: 'kvm',
        pools: [
          {
            name: 'default',
            type: 'dir',
            totalBytes: 480 * GIB,
            freeBytes: 212 * GIB,
            usable: true,
          },
          {
            name: 'fast-lvm',
            type: 'logical',
            totalBytes: 900 * GIB,
            freeBytes: 700 * GIB,
            usable: false,
            reason: 'A pool of type logical cannot hold qcow2 files.',
          },
        ],
        networks: [
          { name: 'lan', bridge: 'br0', mode: 'bridge', active: true },
          { name: 'isolated-test', bridge: 'virbr7', mode: 'isolated', active: true },
          { name: 'old', bridge: null, mode: 'nat', active: false },
        ],
        vms: [
          { name: 'understudy', state: 'running', isAppliance: true, isReplica: false },
          { name: 'mail', state: 'running', isAppliance: false, isReplica: false },
          ...[...failovers.values()]
            .filter((one) => one.state.name !== 'undone')
            .map((one) => ({
              name: one.replicaName,
              state: 'running',
              isAppliance: false,
              isReplica: true,
            })),
        ],
      },
      'host',
    ),
  );

  const ok = (id: string, title: string, detail: string): contract.PreflightCheck => ({
    id,
    title,
    result: 'ok',
    detail,
  });
  const preflight = (target: contract.SshTarget): contract.PreflightReport => {
    const known = [...sources.values()].some((source) => source.address === target.address);
    if (target.acceptHostKey !== MOCK_FINGERPRINT && !known) {
      return {
        ok: false,
        hostKeyFingerprint: MOCK_FINGERPRINT,
        hostKeyKnown: false,
        checks: [
          {
            id: 'ssh',
            title: 'SSH',
            result: 'failed',
            detail: `The host key of ${target.address} is not known yet.`,
            code: 'UND_SSH_HOST_KEY_UNKNOWN',
            hint: 'Compare its fingerprint with the server, then confirm it.',
          },
        ],
      };
    }
    if (target.password !== MOCK_SOURCE.password) {
      return {
        ok: false,
        hostKeyFingerprint: MOCK_FINGERPRINT,
        hostKeyKnown: known,
        checks: [
          {
            id: 'ssh',
            title: 'SSH',
            result: 'failed',
            detail: `${target.address} refused the login of ${target.username}.`,
            code: 'UND_SSH_AUTH',
            hint: 'Check user and password, or log in with a key.',
          },
        ],
      };
    }
    return {
      ok: true,
      hostKeyFingerprint: MOCK_FINGERPRINT,
      hostKeyKnown: known,
      checks: [
        ok('ssh', 'SSH', `Logged in as ${target.username}.`),
        ok('sudo', 'Root', 'sudo works with the given password.'),
        ok('os', 'System', 'Debian GNU/Linux 12 (bookworm), x86_64.'),
        ok('kernel', 'Kernel', '6.1.0-31-amd64: ordered capture is possible (5.10 or newer).'),
        ok('btf', 'Type information', '/sys/kernel/btf/vmlinux is there.'),
        ok('space', 'Space', '/usr has 4.9 GiB free; 120 MiB are needed.'),
        ok('disks', 'Disks', '2 of 3 disks can be protected.'),
        ok('agent-port', 'Way to the appliance', 'Port 7443 of the appliance is reached.'),
        {
          id: 'clock',
          title: 'Clock',
          result: 'warning',
          detail: "The server's clock is 4.2 s ahead of the appliance's.",
          hint: 'Recovery points are named by the server’s clock: let it synchronise.',
        },
      ],
    };
  };
  app.get('/api/sources', async () =>
    check(List(contract.Source), [...sources.values()], 'sources'),
  );
  app.post<{ Body: contract.SshTarget }>(
    '/api/sources/preflight',
    { schema: { body: contract.SshTarget } },
    async (request, reply) => {
      if (request.body.address === '192.0.2.99') {
        return refuse(
          reply,
          502,
          problem(
            'UND_SSH_UNREACHABLE',
            '192.0.2.99 does not answer on port 22.',
            'Check the address, that the server runs and that no firewall is between.',
          ),
        );
      }
      return check(contract.PreflightReport, preflight(request.body), 'preflight');
    },
  );
  app.post<{ Body: contract.SshTarget }>(
    '/api/sources',
    { schema: { body: contract.SshTarget } },
    async (request, reply) => {
      if (!preflight(request.body).ok) {
        return refuse(
          reply,
          409,
          problem('UND_PREFLIGHT_FAILED', 'The preflight failed.', 'Resolve what it says.'),
        );
      }
      const source: Source = {
        sourceId: randomUUID(),
        name: 'orders-db',
        address: request.body.address,
        state: { name: 'installing', step: 'Checking once more' },
        agentVersion: null,
        certificate: null,
        inventory: null,
        jobId: null,
        addedAt: iso(),
      };
      tell({ type: 'source', source });
      note(who(request), 'add source', source.name, source.address);
      install(source.sourceId);
      return reply.code(202).send(check(contract.Source, source, 'new source'));
    },
  );
  const oneSource = { Params: {} as { id: string } };
  app.post<typeof oneSource>('/api/sources/:id/inventory', async (request, reply) => {
    const source = sources.get(request.params.id);
    if (!source) return missing(reply);
    setSource(source.sourceId, { inventory: inventory() });
    return check(contract.Source, sources.get(source.sourceId), 'inventory');
  });
  app.post<{ Params: { id: string }; Body: { action: 'renew' | 'revoke' } }>(
    '/api/sources/:id/certificate',
    async (request, reply) => {
      const source = sources.get(request.params.id);
      if (!source?.certificate) return missing(reply);
      const revoke = request.body.action === 'revoke';
      setSource(source.sourceId, {
        certificate: revoke
          ? { ...source.certificate, revoked: true }
          : {
              serial: '77d0b1c3a9e24c5519fe',
              notAfter: iso(-90 * 86_400_000),
              revoked: false,
            },
      });
      note(who(request), `${request.body.action} certificate`, source.name);
      return check(contract.Source, sources.get(source.sourceId), 'certificate');
    },
  );
  app.post<{ Params: { id: string } }>(
    '/api/sources/:id/uninstall',
    { schema: { body: contract.UninstallRequest } },
    async (request, reply) => {
      const source = sources.get(request.params.id);
      if (!source) return missing(reply);
      if (source.jobId) {
        return refuse(
          reply,
          409,
          problem('UND_SOURCE_PROTECTED', 'The source is protected.', 'Delete the job first.'),
        );
      }
      setSource(source.sourceId, { state: { name: 'uninstalling', step: 'Removing the agent' } });
      later(stepMs, () => tell({ type: 'source-removed', sourceId: source.sourceId }));
      return reply
        .code(202)
        .send(check(contract.Source, sources.get(source.sourceId), 'uninstall'));
    },
  );
  app.get('/api/certificates', async () =>
    check(
      List(contract.Certificate),
      [...sources.values()].flatMap((source) =>
        source.certificate
          ? [
              {
                serial: source.certificate.serial,
                sourceId: source.sourceId,
                sourceName: source.name,
                notBefore: source.addedAt,
                notAfter: source.certificate.notAfter,
                state: source.certificate.revoked ? ('revoked' as const) : ('valid' as const),
              },
            ]
          : [],
      ),
      'certificates',
    ),
  );

  app.post<{ Body: contract.ProtectRequest }>(
    '/api/jobs/plan',
    { schema: { body: contract.ProtectRequest } },
    async (request) => {
      const { replicaName, pool, network } = request.body;
      const taken = replicaName === 'taken';
      return check(
        contract.ProtectPlan,
        {
          ok: !taken,
          actions: [
            `Create the volume ${replicaName}-vda.qcow2 (8 GiB) in pool ${pool}`,
            `Create the volume ${replicaName}-vdb.qcow2 (20 GiB) in pool ${pool}`,
            'Attach both to this appliance',
            'Start the capture of vda and vdb on orders-db',
            'Mirror the allocated blocks while every write is captured',
            `At failover: define the VM ${replicaName} on network ${network}`,
          ],
          warnings: ['sr0 cannot be protected: it is a read-only optical drive.'],
          problems: taken
            ? [
                {
                  ...problem(
                    'UND_HV_NAME_IN_USE',
                    'The name taken is in use on the target host already.',
                    'Choose another name.',
                  ),
                  field: 'replicaName',
                },
              ]
            : [],
        },
        'plan',
      );
    },
  );
  app.post<{ Body: contract.ProtectRequest }>(
    '/api/jobs',
    { schema: { body: contract.ProtectRequest } },
    async (request, reply) => {
      const source = sources.get(request.body.sourceId);
      if (!source?.inventory) return missing(reply);
      const job: Job = {
        jobId: randomUUID(),
        name: source.name,
        sourceId: source.sourceId,
        sourceName: source.name,
        state: { name: 'creating', step: 'Creating the replica disks' },
        stream: { mode: 'none', reason: 'the capture is not attached yet', since: null },
        disks: source.inventory.disks
          .filter((disk) => request.body.diskIds.includes(disk.diskId))
          .map((disk) => ({
            diskId: disk.diskId,
            name: disk.name,
            sizeBytes: disk.sizeBytes,
            replicaPath: null,
            serial: `u${randomBytes(10).toString('hex').slice(0, 19)}`,
            attached: false,
            mirror: null,
            excluded: null,
            verification: { running: null, last: null },
          })),
        problems: [],
        figures: figures(),
        askedPoints: { newest: [], nextAt: null, problem: null },
        verifyNextAt: null,
        settings: request.body,
        failoverId: null,
        provenBootableAt: null,
        createdAt: iso(),
      };
      tell({ type: 'job', job });
      setSource(source.sourceId, { jobId: job.jobId });
      note(who(request), 'protect', source.name, request.body.replicaName);
      later(stepMs * 2, () => mirror(job.jobId, 1, 12));
      return reply.code(202).send(check(contract.Job, job, 'new job'));
    },
  );
  app.get('/api/jobs', async () => check(List(contract.Job), [...jobs.values()], 'jobs'));
  app.patch<{ Params: { id: string }; Body: Static<typeof contract.JobSettingsPatch> }>(
    '/api/jobs/:id',
    { schema: { body: contract.JobSettingsPatch } },
    async (request, reply) => {
      const job = jobs.get(request.params.id);
      if (!job) return missing(reply);
      setJob(job.jobId, { settings: { ...job.settings, ...request.body } });
      return check(contract.Job, jobs.get(job.jobId), 'patch');
    },
  );
  for (const act of ['pause', 'resume', 'mirror', 'verify'] as const) {
    app.post<{ Params: { id: string } }>(`/api/jobs/:id/${act}`, async (request, reply) => {
      const job = jobs.get(request.params.id);
      if (!job) return missing(reply);
      if (act === 'pause') {
        setJob(job.jobId, { state: { name: 'paused', reason: 'Paused by admin.' } });
      } else if (act === 'resume') {
        setJob(job.jobId, { state: { name: 'protected' } });
        replicate(job.jobId, job.figures.durableSeq);
      } else if (act === 'verify') {
        const last = { at: iso(), comparedBytes: 3_000_000, mismatches: 0, repaired: 0 };
        const verification = { running: null, last };
        setJob(job.jobId, { disks: job.disks.map((disk) => ({ ...disk, verification })) });
      } else {
        later(stepMs, () => mirror(job.jobId, 1, 4));
      }
      note(who(request), `${act} job`, job.name);
      return check(contract.Job, jobs.get(job.jobId), act);
    });
  }
  serveMockPoints(app, { jobs, check, missing, who });
  serveMockMounts(app, {
    jobs,
    failovers,
    tell,
    later,
    stepMs,
    check,
    missing,
    note: (request, act, object) => note(who(request), act, object),
  });
  serveMockGroups(app, {
    jobs,
    groups,
    runs: groupRuns,
    check,
    missing,
    tell,
    later,
    stepMs,
    failing: () => mock.groupFails,
  });
  app.post<{ Params: { id: string }; Body: contract.PointRequest }>(
    '/api/jobs/:id/points',
    { schema: { body: contract.PointRequest } },
    async (request, reply) => {
      const job = jobs.get(request.params.id);
      if (!job) return missing(reply);
      const quiesced = request.body.quiesce ?? true;
      const point: contract.TakenPoint = {
        pointId: randomUUID(),
        name: request.body.name ?? 'On demand',
        seq: job.figures.durableSeq,
        at: iso(),
        quiesced,
        reason: null,
        freezeMs: quiesced ? 38.2 : null,
        fileSystems: quiesced ? ['/srv', '/'] : [],
        hooks: [],
      };
      setJob(job.jobId, {
        askedPoints: { ...job.askedPoints, newest: [point, ...job.askedPoints.newest] },
      });
      return reply.code(201).send(check(contract.TakenPoint, point, 'point'));
    },
  );
  app.delete<{ Params: { id: string } }>('/api/jobs/:id', async (request, reply) => {
    const job = jobs.get(request.params.id);
    if (!job) return missing(reply);
    setJob(job.jobId, { state: { name: 'deleting', step: 'Detaching the replica disks' } });
    later(stepMs, () => {
      tell({ type: 'job-removed', jobId: job.jobId });
      setSource(job.sourceId, { jobId: null });
    });
    return reply.code(202).send(check(contract.Job, jobs.get(job.jobId), 'delete job'));
  });

  app.post<{ Params: { id: string }; Body: Static<typeof contract.FailoverRequest> }>(
    '/api/jobs/:id/failover',
    { schema: { body: contract.FailoverRequest } },
    async (request, reply) => {
      const job = jobs.get(request.params.id);
      if (!job) return missing(reply);
      if (request.body.confirm !== job.settings.replicaName) {
        return refuse(
          reply,
          409,
          problem('UND_CONFIRM_MISMATCH', 'The typed name is another one.', 'Type it exactly.'),
        );
      }
      const failover: Failover = {
        failoverId: randomUUID(),
        jobId: job.jobId,
        kind: request.body.kind,
        replicaName: job.settings.replicaName,
        startedAt: iso(),
        endedAt: null,
        state: { name: 'running' },
        steps: (request.body.kind === 'planned' ? [...HANDOVER, ...STEPS] : STEPS).map(
          ([name, title]) => ({
            name,
            title,
            state: 'waiting',
            detail: null,
            startedAt: null,
            endedAt: null,
          }),
        ),
        point: {
          seq: null,
          sourceTime: job.figures.newestPointAt,
          wanted: null,
          lossMs: job.figures.lagMs,
        },
        test: null,
        autoEnd: request.body.autoEnd
          ? { ...request.body.autoEnd, at: null, heldBack: null }
          : null,
        isolateOnReturn: false,
        mount: null,
        guestChanges: [],
        addresses: [],
        hasScreenshot: false,
        replicaVm: null,
        notes: [],
      };
      tell({ type: 'failover', failover });
      setJob(job.jobId, {
        state: { name: 'failing-over', failoverId: failover.failoverId },
        failoverId: failover.failoverId,
      });
      note(who(request), 'fail over', job.name, 'unplanned');
      later(stepMs, () => playFailover(failover.failoverId, 0));
      return reply.code(202).send(check(contract.Failover, failover, 'new failover'));
    },
  );
  app.post<{ Params: { id: string }; Body: contract.TestFailoverRequest }>(
    '/api/jobs/:id/test-failover',
    { schema: { body: contract.TestFailoverRequest } },
    async (request, reply) => {
      const job = jobs.get(request.params.id);
      if (!job) return missing(reply);
      const { point = 'newest', keepMinutes = 0 } = request.body;
      const began = iso();
      const test: Failover = {
        failoverId: randomUUID(),
        jobId: job.jobId,
        kind: 'test',
        replicaName: `${job.settings.replicaName}-test`,
        startedAt: began,
        endedAt: null,
        state: { name: 'running' },
        steps: STEPS.filter(([name]) => !NOT_IN_TESTS.includes(name)).map(([name, title]) => ({
          name,
          title,
          state: 'waiting',
          detail: null,
          startedAt: null,
          endedAt: null,
        })),
        point: {
          seq: 48_213,
          sourceTime: point === 'newest' ? job.figures.newestPointAt : point.sourceTime,
          wanted: point === 'newest' ? null : point.sourceTime,
          lossMs: job.figures.lagMs,
        },
        test: {
          trigger: 'person',
          network: 'isolated',
          keepMinutes,
          verdict: null,
          endsAt: null,
          checks: [],
        },
        autoEnd: null,
        isolateOnReturn: false,
        mount: null,
        guestChanges: [],
        addresses: [],
        hasScreenshot: false,
        replicaVm: null,
        notes: [],
      };
      tell({ type: 'failover', failover: test });
      note(who(request), 'test failover', job.name);
      later(stepMs, () => {
        const at = iso();
        const verdict = { passed: true, words: 'login prompt on its serial console', at };
        tell({
          type: 'failover',
          failover: {
            ...test,
            state: { name: 'undone' },
            endedAt: at,
            hasScreenshot: true,
            test: { ...test.test!, verdict, endsAt: at },
            steps: test.steps.map((step) => ({ ...step, state: 'compensated' })),
          },
        });
        setJob(job.jobId, { provenBootableAt: at });
      });
      return reply.code(202).send(check(contract.Failover, test, 'new test'));
    },
  );
  app.get('/api/jobs/:id/checkpoints', async () =>
    check(List(contract.Checkpoint), [], 'checkpoints'),
  );
  app.post<{ Params: { id: string }; Body: { autoEnd: contract.AutoEnd | null } }>(
    '/api/failovers/:id/auto-end',
    async (request, reply) => {
      const failover = failovers.get(request.params.id);
      if (!failover) return missing(reply);
      const { autoEnd } = request.body;
      const at = new Date(Date.now() + (autoEnd?.afterMinutes ?? 0) * 60_000).toISOString();
      const changed = { ...failover, autoEnd: autoEnd && { ...autoEnd, at, heldBack: null } };
      tell({ type: 'failover', failover: changed });
      return check(contract.Failover, changed, 'auto-end');
    },
  );
  app.get('/api/failovers', async () =>
    check(
      List(contract.Failover),
      [...failovers.values()].filter(({ kind }) => kind !== 'mount'),
      'failovers',
    ),
  );
  for (const act of ['undo', 'commit'] as const) {
    app.post<{ Params: { id: string }; Body: { confirm: string } }>(
      `/api/failovers/:id/${act}`,
      async (request, reply) => {
        const failover = failovers.get(request.params.id);
        if (!failover) return missing(reply);
        const [during, after] =
          act === 'undo'
            ? ([{ name: 'undoing' }, { name: 'undone' }] as const)
            : ([{ name: 'committing' }, { name: 'committed' }] as const);
        tell({ type: 'failover', failover: { ...failover, state: during } });
        later(stepMs, () => {
          tell({ type: 'failover', failover: { ...failover, state: after } });
          if (act === 'undo') {
            setJob(failover.jobId, {
              state: { name: 'waiting-for-agent', reason: 'The source is not connected.' },
              failoverId: null,
            });
          }
        });
        note(who(request), `${act} failover`, failover.replicaName);
        return reply
          .code(202)
          .send(check(contract.Failover, failovers.get(failover.failoverId), act));
      },
    );
  }
  app.get('/api/failovers/:id/screenshot', async (_request, reply) =>
    reply.type('image/png').send(consolePicture()),
  );
  app.get('/api/audit', async () => check(List(contract.AuditEntry), audit, 'audit'));
  app.post(
    '/api/config/backup',
    { schema: { body: contract.BackupRequest } },
    async (_request, reply) =>
      reply.type('application/octet-stream').send(Buffer.from('a backup of the mock')),
  );
  app.post(
    '/api/config/restore',
    { schema: { body: contract.RestoreRequest }, bodyLimit: 64 * MIB },
    async (_request, reply) => reply.code(202).send({}),
  );

  app.get('/api/events', (request, reply) => {
    reply.hijack();
    const stream = reply.raw;
    stream.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-store' });
    stream.write(': hello\n\n');
    for (const source of sources.values()) send(stream, { type: 'source', source });
    for (const job of jobs.values()) send(stream, { type: 'job', job });
    for (const failover of failovers.values()) send(stream, { type: 'failover', failover });
    for (const group of groups.values()) send(stream, { type: 'group', group });
    for (const run of groupRuns.values()) send(stream, { type: 'group-run', run });
    streams.add(stream);
    request.raw.on('close', () => streams.delete(stream));
  });

  await app.listen({ host: '127.0.0.1', port: options.port ?? 0 });
  const { port } = app.server.address() as AddressInfo;
  mock.url = `http://127.0.0.1:${port}/`;
  return mock;
}
