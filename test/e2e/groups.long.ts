/**
 * A consistency group with real machines: two sample servers, each with a PostgreSQL that is written all the time, the
 * clock of the second one 37 minutes behind. A mark of both at rest, a test failover of the group to it judged inside both guests,
 * both plugs pulled and the group failed over in the order of its priorities, undone as a whole. That both came up as of one
 * moment is told by a third clock: the host saw when each row appeared in the diaries.
 *
 *   sudo scripts/test long
 *   sudo KEEP_LAB=1 node test/e2e/groups.long.ts             leaves the lab up
 *   sudo KEEP_LAB=1 STEPS=1,2,3 node test/e2e/groups.long.ts   then: the third step again, to a mark whose rows were seen to
 *                                                            appear; the first step finds all as it is
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type {
  Checkpoint,
  Failover,
  Group,
  GroupMark,
  GroupPoints,
  GroupRunView,
  Job,
} from '../../appliance/api/schema.ts';
import { ApplianceClient, GiveUp, until } from '../../scripts/lib/api-client.ts';
import { Lab, type LabDescription, root } from './lab.ts';
import { createSteps } from './steps.ts';
import { addSource, MINUTE, onlineSource, protectedJob, took, words } from './walk.ts';

const PASSWORD = 'understudy-e2e-1';
const MIB = 2 ** 20;
const GROUP = 'shop';
/** The unit's certificate is good from two hours before it was made. */
const BEHIND_MS = 37 * MINUTE;
/** An emulated guest's serial line comes late by what its processor was not given. */
const SERIAL_MS = 3000;
const evidence = join(root, 'build/e2e-groups');
mkdirSync(evidence, { recursive: true });

type Member = {
  domain: string;
  address: string;
  replica: string;
  priority: number;
  job: Job;
};

const lab = new Lab('e2e-groups', 8545);
let described: LabDescription;
let api: ApplianceClient;
let members: Member[] = [];

t.setTimeout(3 * 60 * MINUTE);
const step = createSteps(() => lab.keepEvidence(evidence));
t.teardown(async () => {
  clearInterval(sampling);
  await lab.keepEvidence(evidence);
  if (!process.env.KEEP_LAB) await lab.down();
});

const vms = async () => words(await lab.virsh('list', '--all', '--name'));
const lastRow = (domain: string) => lab.diary(domain).at(-1)?.n ?? 0;

/** How many rows each diary had at some moment of the host's clock. */
const samples: { hostMs: number; rows: Record<string, number> }[] = [];
const sampling = setInterval(() => {
  if (members.length === 0) return;
  const rows = Object.fromEntries(members.map(({ domain }) => [domain, lastRow(domain)]));
  samples.push({ hostMs: Date.now(), rows });
}, 250);

/** When, by the host's clock, the last row of this source was the given one. */
function lastWas(domain: string, row: number): { fromMs: number; toMs: number } {
  const told = samples.at(-1)?.rows[domain] ?? 0;
  // A row that was durable when the plug was pulled may not have been told any more: the one after the last one told.
  const seen = row === told + 1 ? told : row;
  const at = samples.findIndex(({ rows }) => (rows[domain] ?? 0) >= seen);
  const behind = samples.findIndex(({ rows }) => (rows[domain] ?? 0) > row);
  const from = samples[at - 1];
  const to = samples.at(behind);
  // What was there at the first look may have been there for any time.
  if (!from || !to) throw new Error(`when row ${row} of ${domain} appeared was not seen`);
  return { fromMs: from.hostMs, toMs: to.hostMs };
}

const rowsGoOn = (howMany: number) => {
  const seen = members.map(({ domain }) => lastRow(domain));
  return until(`${howMany} more rows on each`, 5 * MINUTE, () =>
    members.every(({ domain }, i) => lastRow(domain) >= (seen[i] ?? 0) + howMany)
      ? true
      : undefined,
  );
};

const points = (groupId: string) => api.call<GroupPoints>(`/api/groups/${groupId}/points`);

async function theGroup(): Promise<Group> {
  const [group] = await api.call<Group[]>('/api/groups');
  if (!group) throw new Error('there is no group');
  return group;
}

const OVER = ['failed', 'stopping', 'stopped'];
/** Waits for a state of the group's failover, and tells of every step on the way. */
async function runTo(runId: string, state: string, limitMs: number): Promise<GroupRunView> {
  let seen = '';
  return until(`the group to be ${state}`, limitMs, async () => {
    const run = await api.call<GroupRunView>(`/api/group-runs/${runId}`);
    const told = `${run.state.name}: ${run.members
      .map(({ replicaName, state }) =>
        state.name === 'begun'
          ? `${replicaName} ${state.failover.name} ${state.stepsDone}/${state.stepsAll}`
          : `${replicaName} ${state.name}`,
      )
      .join(', ')}`;
    if (told !== seen) console.error(`# ${new Date().toISOString()} ${told}`);
    seen = told;
    if (run.state.name === state) return run;
    if (OVER.includes(run.state.name)) throw new GiveUp(JSON.stringify(run));
    return undefined;
  });
}

/** The member's own failover. */
async function failoverOf(run: GroupRunView, { job }: Member): Promise<Failover> {
  const failoverId = run.members.find(({ jobId }) => jobId === job.jobId)?.failoverId;
  if (!failoverId) throw new Error('it has not begun');
  return api.failover(failoverId);
}

/** The second one began only when the first had proven that it boots. */
async function inOrder(t: Test, run: GroupRunView): Promise<void> {
  const [first, second] = await Promise.all(members.map((member) => failoverOf(run, member)));
  const proof = first?.steps.find(({ name }) => name === 'prove-boot');
  t.ok(
    proof?.endedAt && second && second.startedAt >= proof.endedAt,
    'in the order of priorities',
    {
      proof,
      second: second?.startedAt,
    },
  );
}

/** Both had these last rows at moments of the host's clock that are no further apart than a row and what is known of the clocks. */
function oneMoment(t: Test, last: number[], apartMs: number | null): void {
  const seen = members.map(({ domain }, i) => lastWas(domain, last[i] ?? 0));
  const [a, b] = seen as [(typeof seen)[0], (typeof seen)[0]];
  const gapMs = Math.max(0, a.fromMs - b.toMs, b.fromMs - a.toMs);
  t.comment(`last rows ${last}: ${gapMs} ms apart by the host's clock, ${apartMs} ms by the group`);
  t.ok(gapMs <= (apartMs ?? 0) + SERIAL_MS, 'both are of one moment', { last, seen, apartMs });
}

step('two servers are protected, the clock of one of them wrong', async (t) => {
  described = await lab.up(25 * MINUTE);
  const other = await lab.addSource(2);
  api = new ApplianceClient(described.url);
  await api.trustOnFirstUse();
  await api.login('admin', PASSWORD).catch(() => api.login('admin', described.password, PASSWORD));
  const offsetMs = async () =>
    Date.parse((await lab.ssh(other.address, 'date -u +%FT%TZ')).trim()) - Date.now();
  if (Math.abs(await offsetMs()) < MINUTE) {
    // Its rows of before carry times that are ahead of its clock from now on.
    const commands = [
      'sudo systemctl stop understudy-writer',
      'cd / && sudo -u postgres psql -Xqd ledger -c "TRUNCATE entries_root, entries_data"',
      `sudo date -s "@$(($(date +%s) - ${BEHIND_MS / 1000}))" >/dev/null`,
      'sudo systemctl start understudy-writer',
    ];
    await lab.ssh(other.address, commands.join(' && '));
  }
  t.ok(Math.abs((await offsetMs()) + BEHIND_MS) < MINUTE, 'its clock is behind');
  const { username, password } = described.source;
  const found: Member[] = [];
  for (const [index, { domain, address }] of [described.source, other].entries()) {
    const { sourceId } = await addSource(api, { address, username, password });
    const source = await onlineSource(api, sourceId);
    const replica = `${domain}-replica`;
    const job = source.jobId
      ? await api.job(source.jobId)
      : await api.call<Job>('/api/jobs', {
          body: {
            sourceId,
            diskIds: source.inventory?.disks.map(({ diskId }) => diskId),
            pool: described.pool,
            network: described.network,
            replicaName: replica,
            vcpus: 1,
            memoryBytes: 1024 * MIB,
            compression: 'fast',
            bandwidthLimitBytesPerSec: null,
            ringBytes: 64 * MIB,
          },
          timeoutMs: 2 * MINUTE,
        });
    found.push({ domain, address, replica, priority: index + 1, job });
  }
  members = found;
  for (const member of members) {
    member.job = await protectedJob(api, member.job.jobId, 40 * MINUTE);
    await until('its first checkpoint', 10 * MINUTE, async () => {
      const { jobId } = member.job;
      return (await api.call<Checkpoint[]>(`/api/jobs/${jobId}/checkpoints`))[0];
    });
  }
  if ((await api.call<Group[]>('/api/groups')).length === 0) {
    await api.call<Group>('/api/groups', {
      body: {
        name: GROUP,
        members: members.map(({ job: { jobId }, priority }) => ({ jobId, priority })),
        wait: { for: 'proof' },
      },
    });
  }
  const group = await theGroup();
  const offsetsOf = (one: GroupPoints) =>
    members.map(
      ({ job }) =>
        one.members.find(({ jobId }) => jobId === job.jobId)?.clockOffsetMs ?? Number.NaN,
    );
  // In a lab that was kept it has just been set back: the agent is asked every ten seconds.
  const now = await until('both clocks to be known', 3 * MINUTE, async () => {
    const one = await points(group.groupId);
    const isBehind = Math.abs((offsetsOf(one)[1] ?? Number.NaN) + BEHIND_MS) < MINUTE;
    return isBehind && one.errorMs !== null && one.newestAt ? one : undefined;
  });
  const [right, behind] = offsetsOf(now);
  t.comment(`clocks: ${right} and ${behind} ms, known within ${now.errorMs} ms`);
  t.ok(Math.abs(right ?? Number.NaN) < MINUTE, 'the first clock is right');
  t.ok(Math.abs((behind ?? Number.NaN) + BEHIND_MS) < MINUTE, 'that the second is behind is known');
  t.ok(
    now.newestAt && Date.now() - Date.parse(now.newestAt) < 2 * MINUTE,
    'yet there is a common point that is new',
    now,
  );
  await rowsGoOn(5);
});

step('a mark of both at rest, with a checkpoint at its very point', async (t) => {
  const { groupId } = await theGroup();
  const mark = await api.call<GroupMark>(`/api/groups/${groupId}/marks`, {
    body: { name: 'all at rest', checkpoint: true },
    timeoutMs: 5 * MINUTE,
  });
  t.comment(`apart at most ${mark.apartMs} ms: ${JSON.stringify(mark.members)}`);
  t.ok(mark.quiesced, 'it is application-consistent on both', { mark });
  t.ok(mark.apartMs !== null && mark.apartMs >= 0, 'how far they may be apart is known');
  await until('the mark to be recoverable', 5 * MINUTE, async () =>
    (await points(groupId)).marks.find(({ markId }) => markId === mark.markId)?.recoverable
      ? true
      : undefined,
  );
  for (const { job, domain } of members) {
    const seq = mark.members.find(({ jobId }) => jobId === job.jobId)?.seq;
    const checkpoints = await api.call<Checkpoint[]>(`/api/jobs/${job.jobId}/checkpoints`);
    t.ok(
      checkpoints.some((one) => one.seq === seq),
      `${domain} has a checkpoint exactly there`,
      { seq, checkpoints },
    );
  }
  await rowsGoOn(5);
});

/** What the guest's own agent runs: every row up to the point, none begun behind it. Its words tell how many. */
const guestScript = (at: string, atLeast: number) => `#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
ask() { cd / && runuser -u postgres -- /usr/lib/postgresql/15/bin/psql -XAtq -d ledger -c "$1"; }
until ask 'SELECT 1' >/dev/null 2>&1; do sleep 2; done
bad=0
for table in entries_root entries_data; do
  # What this machine has written since it booted does not count.
  found=$(ask "SELECT count(*), min(n), max(n), count(*) FILTER (WHERE at > '${at}') FROM $table WHERE at < pg_postmaster_start_time()")
  echo "$table: $found"
  count=\${found%%|*}
  [ "$found" = "$count|1|$count|0" ] && [ "$count" -ge ${atLeast} ] || bad=1
done
exit $bad
`;

step('a test failover of the group to the mark, judged inside both guests', async (t) => {
  const { groupId } = await theGroup();
  const mark = (await points(groupId)).marks.at(-1);
  if (!mark) throw new Error('there is no mark');
  const before = await vms();
  for (const { job, domain } of members) {
    const at = mark.members.find(({ jobId }) => jobId === job.jobId)?.at ?? '';
    // A freeze lasts ten seconds at most: what was told of before that had been durable when it began.
    const atLeast = lab.diary(domain).findLast((row) => row.atMs < Date.parse(at) - 10_000)?.n ?? 1;
    await api.call(`/api/jobs/${job.jobId}`, {
      method: 'PATCH',
      body: {
        testChecks: {
          tcpPorts: [5432],
          script: { text: guestScript(at, atLeast), timeLimitSeconds: 900 },
        },
      },
    });
  }
  const began = await api.call<GroupRunView>(`/api/groups/${groupId}/failover`, {
    body: { kind: 'test', point: { markId: mark.markId }, keepMinutes: 0 },
    timeoutMs: 2 * MINUTE,
  });
  const run = await runTo(began.runId, 'undone', 60 * MINUTE);
  t.match(run.test?.verdict, { passed: true }, 'the group has passed');
  const last: number[] = [];
  for (const member of members) {
    const test = await failoverOf(run, member);
    t.comment(`${member.domain}: ${took(test)}`);
    t.match(test.test?.checks, [
      { name: 'TCP port 5432', state: 'passed' },
      { name: 'Script', state: 'passed' },
    ]);
    const output = test.test?.checks.map((check) => check.output ?? '').join('\n') ?? '';
    last.push(Number(/entries_data: \d+\|1\|(\d+)\|0/.exec(output)?.[1]));
  }
  await inOrder(t, run);
  oneMoment(t, last, mark.apartMs);
  t.same(await vms(), before, 'no VM is left');
  for (const { job } of members) await protectedJob(api, job.jobId, 10 * MINUTE);
});

step('both lose their power: the group is failed over in its order, to one moment', async (t) => {
  await rowsGoOn(10);
  const { groupId } = await theGroup();
  const { errorMs } = await points(groupId);
  await Promise.all(members.map(({ domain }) => lab.virsh('destroy', domain)));
  const began = await until('the sources to be silent', 10 * MINUTE, () =>
    api.call<GroupRunView>(`/api/groups/${groupId}/failover`, {
      body: { kind: 'unplanned', confirm: GROUP, point: 'newest' },
      timeoutMs: 2 * MINUTE,
    }),
  );
  const run = await runTo(began.runId, 'completed', 60 * MINUTE);
  await inOrder(t, run);
  const last: number[] = [];
  for (const member of members) {
    const failover = await failoverOf(run, member);
    t.comment(`${member.domain}: ${took(failover)}; loss ${failover.point.lossMs} ms`);
    const address = await until('an address of the replica', 5 * MINUTE, async () => {
      const { addresses } = await api.failover(failover.failoverId);
      return addresses.find((a) => /^192\.168\.150\./.test(a))?.split('/')[0];
    });
    const rows = (table: string) =>
      until(`PostgreSQL of ${member.replica}`, 5 * MINUTE, async () =>
        (
          await lab.ssh(
            address,
            `psql -XAtq -d ledger -c "SELECT count(*), min(n), max(n) FROM ${table} WHERE at < pg_postmaster_start_time()"`,
          )
        ).trim(),
      );
    const found = await rows('entries_root');
    const max = Number(found.split('|')[2]);
    t.equal(found, `${max}|1|${max}`, `${member.replica} has every row up to its last`);
    t.equal(await rows('entries_data'), found, 'on both disks');
    t.comment(`${member.domain} had told of row ${lastRow(member.domain)}`);
    const lossMs = failover.point.lossMs ?? Number.NaN;
    const askedMs = Date.parse(run.startedAt);
    const momentMs = run.target.name === 'final' ? Number.NaN : Date.parse(run.target.at);
    // Red with the second one's clock taken for the appliance's: 37 minutes more.
    t.ok(lossMs < askedMs - momentMs + MINUTE, 'it names no more lost than was', { lossMs, run });
    const before = samples.findLast(({ hostMs }) => hostMs < askedMs - lossMs - SERIAL_MS);
    t.ok((before?.rows[member.domain] ?? 0) <= max, 'nor less', { lossMs, before, max });
    last.push(max);
  }
  oneMoment(t, last, errorMs);
});

step('undone as a whole: both go on, and are replicated again', async (t) => {
  const all = await api.call<GroupRunView[]>('/api/group-runs');
  const open = all.find(({ kind, state }) => kind === 'unplanned' && state.name === 'completed');
  if (!open) throw new Error('there is no failover to undo');
  await api.call(`/api/group-runs/${open.runId}/undo`, { body: { confirm: GROUP } });
  await runTo(open.runId, 'undone', 20 * MINUTE);
  for (const { replica } of members) t.notOk((await vms()).includes(replica), `${replica} is gone`);
  for (const { domain } of members) await lab.virsh('start', domain);
  for (const { job, domain } of members) {
    const now = await protectedJob(api, job.jobId, 40 * MINUTE);
    t.match(
      now.disks.map(({ mirror }) => mirror?.kind),
      ['difference', 'difference'],
      `of ${domain} only what differed has travelled`,
    );
  }
});
