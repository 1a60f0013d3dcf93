import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { HostView, ProtectRequest, Source } from '../../appliance/api/schema.ts';
import { hostView } from '../../appliance/control/host-service.ts';
import {
  deviceSizeBytes,
  replicaSerial,
  waitForDisk,
  waitForSize,
} from '../../appliance/jobs/disk-locator.ts';
import { jobState, type LiveFacts, recoverable } from '../../appliance/jobs/job-state.ts';
import { type JobEvent, type JobPhase, nextPhase } from '../../appliance/jobs/phase.ts';
import { humanBytes, type PlanFacts, planProtection } from '../../appliance/jobs/plan.ts';
import { nextPointMs } from '../../appliance/jobs/point-schedule.ts';
import { nextVerifyMs } from '../../appliance/jobs/verify-schedule.ts';
import { poolLevel, reserveBytes } from '../../appliance/jobs/watermark.ts';
import type { StreamView } from '../../appliance/replication/replication-stream.ts';
import { undError } from '../../protocol/errors.ts';

const GIB = 1024 ** 3;
const disk = (name: string, patch = {}) => ({
  diskId: `id-${name}`,
  name,
  devicePath: `/dev/${name}`,
  sizeBytes: 20 * GIB,
  usedBytes: 5 * GIB,
  model: null,
  serial: null,
  bus: null,
  partitionTable: null,
  volumes: [],
  isBoot: name === 'vda',
  protectable: true,
  ...patch,
});
const source = (state: Source['state'], disks = [disk('vda'), disk('vdb')]): Source =>
  ({
    sourceId: 's1',
    name: 'web1',
    address: 'web1',
    state,
    agentVersion: '1',
    certificate: null,
    inventory: { disks },
    jobId: null,
    addedAt: '',
  }) as unknown as Source;
const online = source({ name: 'online', since: '' });
const host = (patch: Partial<HostView> = {}): HostView => ({
  name: 'h',
  hypervisor: 'x',
  cpuModel: 'x',
  cpuCount: 4,
  cpuUsePercent: 0,
  memoryTotalBytes: 16 * GIB,
  memoryFreeBytes: 8 * GIB,
  networkRxBytesPerSec: 0,
  networkTxBytesPerSec: 0,
  acceleration: 'kvm',
  pools: [
    { name: 'default', type: 'dir', totalBytes: 100 * GIB, freeBytes: 80 * GIB, usable: true },
    { name: 'zfs', type: 'zfs', totalBytes: 1, freeBytes: 1, usable: false, reason: 'no files' },
  ],
  networks: [
    { name: 'lan', bridge: 'br0', mode: 'nat', active: true },
    { name: 'off', bridge: null, mode: 'nat', active: false },
  ],
  vms: [{ name: 'taken', state: 'running', isAppliance: false, isReplica: false }],
  ...patch,
});
const request = (patch: Partial<ProtectRequest> = {}): ProtectRequest => ({
  sourceId: 's1',
  diskIds: ['id-vda', 'id-vdb'],
  pool: 'default',
  network: 'lan',
  replicaName: 'web1-replica',
  vcpus: 2,
  memoryBytes: 2 * GIB,
  compression: 'fast',
  bandwidthLimitBytesPerSec: null,
  ...patch,
});
const pool = (freeBytes: number): HostView => {
  const view = host();
  view.pools[0]!.freeBytes = freeBytes;
  return view;
};

t.test('the plan: what stands against it, each at its field', async (t) => {
  const other = { jobId: 'j', sourceId: 's2', replicaName: 'db', pool: 'default', mayGrowBytes: 0 };
  const cases: [string, Partial<ProtectRequest>, Partial<PlanFacts>, string][] = [
    ['no such source', {}, { source: null }, 'UND_NOT_FOUND sourceId'],
    [
      'offline',
      {},
      { source: source({ name: 'offline', since: '', reason: '' }) },
      'UND_AGENT_OFFLINE sourceId',
    ],
    [
      'passive',
      {},
      { source: source({ name: 'passive', reason: 'a replica' }) },
      'UND_AGENT_PASSIVE sourceId',
    ],
    // Red when only the VMs that the appliance sees count.
    ["somebody's VM", {}, { replicaNameTaken: true }, 'UND_HV_NAME_IN_USE replicaName'],
    [
      'has a job',
      {},
      { otherJobs: [{ ...other, sourceId: 's1' }] },
      'UND_JOB_SOURCE_PROTECTED sourceId',
    ],
    ['unknown disk', { diskIds: ['nope'] }, {}, 'UND_NOT_FOUND diskIds.0'],
    ['a disk twice', { diskIds: ['id-vda', 'id-vda'] }, {}, 'UND_REQUEST_INVALID diskIds.1'],
    [
      'a disk that cannot be protected',
      {},
      {
        source: source({ name: 'online', since: '' }, [
          disk('vda'),
          disk('vdb', { protectable: false, reason: 'multipath' }),
        ]),
      },
      'UND_JOB_DISK_UNPROTECTABLE diskIds.1',
    ],
    ['no such pool', { pool: 'nope' }, {}, 'UND_HV_POOL_UNUSABLE pool'],
    ['a pool of a kind', { pool: 'zfs' }, {}, 'UND_HV_POOL_UNUSABLE pool'],
    ['no room for what is in use', {}, { host: pool(11 * GIB) }, 'UND_HV_POOL_FULL pool'],
    ['no such network', { network: 'nope' }, {}, 'UND_HV_NETWORK_NOT_FOUND network'],
    ['a network that is off', { network: 'off' }, {}, 'UND_NETWORK_INACTIVE network'],
    ['the name of a VM', { replicaName: 'taken' }, {}, 'UND_HV_NAME_IN_USE replicaName'],
    [
      'the name of another replica',
      { replicaName: 'db' },
      { otherJobs: [other] },
      'UND_HV_NAME_IN_USE replicaName',
    ],
  ];
  for (const [name, patch, facts, expected] of cases) {
    const { plan, errors } = planProtection(request(patch), {
      source: online,
      host: host(),
      replicaNameTaken: false,
      otherJobs: [],
      ...facts,
    });
    t.same(
      plan.problems.map(({ code, field }) => `${code} ${field}`),
      [expected],
      name,
    );
    t.equal(plan.ok, false, name);
    t.same(plan.actions, [], name);
    t.equal(errors[0]?.params.field, plan.problems[0]?.field, name);
  }
});

t.test('the plan: warnings and actions', async (t) => {
  const plan = (patch: Partial<ProtectRequest>, facts: Partial<PlanFacts> = {}) =>
    planProtection(request(patch), {
      source: online,
      host: host(),
      replicaNameTaken: false,
      otherJobs: [],
      ...facts,
    }).plan;
  const good = plan({});
  t.same(good.warnings, []);
  t.equal(good.actions.length, 6);
  t.match(good.actions[0], /20\.0 GiB in storage pool default for vda/);
  const carried = plan({ carryRestarts: true }).actions.filter(
    (action) => !good.actions.includes(action),
  );
  t.match(
    carried,
    [/^Put a hook, a small unit and a file of 16 MiB on web/],
    'what it leaves there',
  );
  t.match(plan({}, { host: pool(13 * GIB) }).warnings, [/may grow to 40\.0 GiB.*watch the pool/]);
  const grown = plan(
    {},
    {
      otherJobs: [
        { jobId: 'j', sourceId: 's2', replicaName: 'db', pool: 'default', mayGrowBytes: 50 * GIB },
      ],
    },
  );
  t.match(grown.warnings, [/those of other jobs there by 50\.0 GiB/]);
  t.match(plan({ diskIds: ['id-vdb'] }).warnings, [/boot disk vda is left out/]);
  const mounted = disk('vdb', { volumes: [{ name: 'vdb1', fileSystem: { mountpoint: '/srv' } }] });
  const left = source({ name: 'online', since: '' }, [disk('vda'), mounted]);
  t.match(plan({ diskIds: ['id-vda'] }, { source: left }).warnings, [/vdb \(\/srv\) is left out/]);
  t.match(plan({ vcpus: 8 }).warnings, [/8 vCPUs/]);
  t.match(plan({ memoryBytes: 10 * GIB }).warnings, [/8\.0 GiB free now/]);
  t.match(plan({ memoryBytes: 32 * GIB }).warnings, [/will not start/]);
  const unknown = source({ name: 'online', since: '' }, [
    disk('vda', { usedBytes: null }),
    disk('vdb'),
  ]);
  t.equal(
    plan({}, { source: unknown, host: pool(24 * GIB) }).ok,
    false,
    'what is not known counts as full',
  );
  t.same([1024, 3 * 1024 ** 2, 1.5 * GIB, 2 * 1024 ** 4].map(humanBytes), [
    '1 MiB',
    '3 MiB',
    '1.5 GiB',
    '2.0 TiB',
  ]);
});

t.test('phases: what may follow what', async (t) => {
  const error = undError('UND_HV_POOL_FULL').toJSON();
  const phases: JobPhase[] = [
    { name: 'creating', failed: null },
    { name: 'active', paused: false },
    { name: 'failing-over', failoverId: 'f' },
    { name: 'failed-over', failoverId: 'f' },
    { name: 'deleting', disks: 'keep', failed: null },
  ];
  const table: [JobEvent, string[]][] = [
    [{ type: 'created' }, ['active', '-', '-', '-', '-']],
    [{ type: 'create-failed', error }, ['creating', '-', '-', '-', '-']],
    [{ type: 'retried' }, ['creating', '-', '-', '-', 'deleting']],
    [{ type: 'paused' }, ['-', 'active', '-', '-', '-']],
    [{ type: 'resumed' }, ['-', 'active', '-', '-', '-']],
    [{ type: 'failover-started', failoverId: 'f' }, ['-', 'failing-over', '-', '-', '-']],
    [{ type: 'failover-completed', failoverId: 'f' }, ['-', '-', 'failed-over', '-', '-']],
    [{ type: 'failover-completed', failoverId: 'other' }, ['-', '-', '-', '-', '-']],
    [{ type: 'failover-reverted', failoverId: 'f' }, ['-', '-', 'active', 'active', '-']],
    [{ type: 'failover-reverted', failoverId: 'other' }, ['-', '-', '-', '-', '-']],
    [{ type: 'deletion-asked', disks: 'delete' }, ['deleting', 'deleting', '-', '-', '-']],
    [{ type: 'delete-failed', error }, ['-', '-', '-', '-', 'deleting']],
  ];
  for (const [event, expected] of table) {
    t.same(
      phases.map((phase) => nextPhase(phase, event)?.name ?? '-'),
      expected,
      event.type,
    );
  }
});

const view = (phase: StreamView['phase'], patch: Partial<StreamView> = {}): StreamView =>
  ({
    phase,
    mode: { mode: 'ordered', reason: null, sinceMs: null },
    disks: [],
    consistent: true,
    ...patch,
  }) as StreamView;
const live = (patch: Partial<LiveFacts>): LiveFacts => ({
  view: view({ name: 'protected' }),
  step: 'a step',
  problem: null,
  poolLow: null,
  verifyNextMs: null,
  attached: new Set(),
  agentOnline: true,
  sourceName: 'web1',
  points: { nextMs: null, problem: null },
  ...patch,
});

t.test('states: the first that matches, with its reason', async (t) => {
  const error = undError('UND_APPLY_NO_SPACE', { disk: 'd', job: 'j' }).toJSON();
  const active: JobPhase = { name: 'active', paused: false };
  const cases: [JobPhase, Partial<LiveFacts>, object][] = [
    [{ name: 'creating', failed: null }, {}, { name: 'creating', step: 'a step' }],
    [{ name: 'creating', failed: error }, {}, { name: 'error', error: { code: error.code } }],
    [{ name: 'deleting', disks: 'keep', failed: null }, {}, { name: 'deleting' }],
    [{ name: 'deleting', disks: 'keep', failed: error }, {}, { name: 'error' }],
    [{ name: 'failing-over', failoverId: 'f' }, {}, { name: 'failing-over', failoverId: 'f' }],
    [{ name: 'failed-over', failoverId: 'f' }, { problem: error }, { name: 'failed-over' }],
    [{ name: 'active', paused: true }, { problem: error }, { name: 'paused', reason: /person/ }],
    [active, { poolLow: error, problem: error }, { name: 'paused', reason: /out of space/ }],
    [active, { problem: error }, { name: 'error' }],
    [active, { view: null }, { name: 'waiting-for-agent' }],
    [active, { view: view({ name: 'error', from: 'appliance', error }) }, { name: 'error' }],
    [active, { view: view({ name: 'error', from: 'agent', error }) }, { name: 'error' }],
    [
      active,
      { view: view({ name: 'held', reason: 'journal' }) },
      { name: 'paused', reason: 'journal' },
    ],
    [active, { view: view({ name: 'mirroring', reason: 'first' }) }, { name: 'mirroring' }],
    [
      active,
      { view: view({ name: 'mirroring', reason: 'x' }), agentOnline: false },
      { name: 'waiting-for-agent' },
    ],
    [active, { view: view({ name: 'catching-up', reason: 'lag' }) }, { name: 'catching-up' }],
    [active, {}, { name: 'protected' }],
  ];
  for (const [phase, facts, expected] of cases) {
    t.match(jobState({ phase }, live(facts)), expected, JSON.stringify(expected));
  }
});

t.test('a failover needs a whole replica', async (t) => {
  t.same(recoverable(view({ name: 'protected' })), { ok: true });
  t.match(recoverable(null), { ok: false });
  const mirror = {
    state: 'running',
    kind: 'full',
    reason: 'first mirror',
    totalBytes: 200,
    doneBytes: 50,
    skippedBytes: 0,
  } as const;
  const disks = [
    { diskId: 'd', index: 0, sizeBytes: 200, mirror, excluded: null, verification: null },
  ];
  t.match(recoverable(view({ name: 'mirroring', reason: '' }, { consistent: false, disks })), {
    ok: false,
    reason: 'a mirror is at 25 % (first mirror)',
  });
});

t.test('the watermark of a pool, with hysteresis', async (t) => {
  t.equal(reserveBytes(200 * GIB), 4 * GIB);
  t.equal(reserveBytes(10_000 * GIB), 8 * GIB);
  t.equal(reserveBytes(20 * GIB), GIB);
  t.equal(reserveBytes(GIB), Math.floor(0.1 * GIB), 'a small pool keeps a tenth');
  const at = (gib: number, before: 'ok' | 'low') =>
    poolLevel({ capacityBytes: 100 * GIB, availableBytes: gib * GIB }, before).name;
  t.equal(at(2.1, 'ok'), 'ok');
  t.equal(at(1.9, 'ok'), 'low');
  t.equal(at(2.1, 'low'), 'low', 'a little more is not enough to go on');
  t.equal(at(2.6, 'low'), 'ok');
});

t.test('a replica disk is found by its serial, or missed with a reason', async (t) => {
  const serial = replicaSerial('0F0E0D0C-aaaa-4bbb-8ccc-123456789abc');
  t.equal(serial, 'u0f0e0d0caaaa4bbb8cc');
  t.equal(serial.length, 20);
  let asked = 0;
  const late = { find: async () => (++asked < 3 ? null : '/dev/sdx') };
  const { signal } = new AbortController();
  t.equal(await waitForDisk(late, { serial, job: 'j' }, { timeoutMs: 5000, signal }), '/dev/sdx');
  const never = { find: async () => null };
  await t.rejects(waitForDisk(never, { serial, job: 'j' }, { timeoutMs: 0, signal }), {
    code: 'UND_REPLICA_DISK_ABSENT',
  });
  const gone = new AbortController();
  const waiting = waitForDisk(
    never,
    { serial, job: 'j' },
    { timeoutMs: 60_000, signal: gone.signal },
  );
  gone.abort();
  await t.rejects(waiting, { name: 'AbortError' });
});

t.test('a disk that was grown is waited for', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'und-jobs-'));
  t.teardown(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'disk');
  writeFileSync(path, Buffer.alloc(1024));
  t.equal(await deviceSizeBytes(path), 1024);
  const { signal } = new AbortController();
  await t.rejects(waitForSize(path, 2048, 0, signal), { code: 'UND_REPLICA_DISK_SMALL' });
  const waiting = waitForSize(path, 2048, 5000, signal);
  truncateSync(path, 2048);
  await waiting;
});

t.test('the host in the words of the API', async (t) => {
  const seen = hostView(
    {
      name: 'h',
      os: 'Debian',
      kernel: '6.1',
      hypervisor: 'libvirt 9',
      cpu: { model: 'm', count: 2, use: 0.123456, loadAverage1: 0 },
      memory: { totalBytes: 2, availableBytes: 1 },
      network: { receiveBytesPerSecond: 3, sendBytesPerSecond: 4 },
      acceleration: 'qemu',
      firmwares: ['bios'],
      applianceVm: 'a',
    },
    [{ name: 'p', type: 'zfs', capacityBytes: 2, availableBytes: 1, usable: false, reason: 'why' }],
    [{ name: 'n', forward: 'nat', isolated: true, active: true, addresses: [] }],
    [{ name: 'a', uuid: 'u', role: 'appliance', state: { state: 'running' } }],
  );
  t.match(seen, {
    cpuUsePercent: 12.3,
    acceleration: 'tcg',
    pools: [{ usable: false, reason: 'why', freeBytes: 1 }],
    networks: [{ mode: 'isolated', bridge: null }],
    vms: [{ name: 'a', state: 'running', isAppliance: true, isReplica: false }],
  });
});

t.test('scheduled points: at fixed moments, spread over the jobs, never in the past', async (t) => {
  const now = Date.parse('2026-03-01T10:00:00Z');
  const next = nextPointMs('job-a', 60, now);
  t.ok(next > now && next <= now + 3_600_000);
  t.equal(nextPointMs('job-a', 60, next - 1), next, 'a restart moves none');
  t.equal(nextPointMs('job-a', 60, next), next + 3_600_000, 'the one that is due is not due again');
  t.not(nextPointMs('job-b', 60, now), next, 'another job freezes its server at another moment');
});

t.test('a verification is due a period after the oldest one, and not while one runs', async (t) => {
  const day = 24 * 3_600_000;
  const found = { comparedBytes: 1, mismatches: 0, repaired: 0 };
  const at = (wallMs: number) => ({ run: 1, asked: null, last: { wallMs, ...found } });
  const running = { ...at(5), asked: { cursorBytes: 0, ...found } };
  t.equal(nextVerifyMs('daily', [at(2 * day), at(day)], 0), 2 * day);
  t.equal(nextVerifyMs('weekly', [at(2 * day), null], day), 8 * day, 'as old as the job');
  t.equal(nextVerifyMs('daily', [at(day), running], 0), null);
  t.equal(nextVerifyMs('off', [at(day)], 0), null);
  t.equal(nextVerifyMs('daily', null, 0), null);
});
