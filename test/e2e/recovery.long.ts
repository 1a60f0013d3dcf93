/**
 * Recovery with real machines, over the API: a mark with the applications at rest, a power cut of the appliance under load, a
 * verification, a test failover to a chosen second with checks inside the guest, files and whole disks out of a point, a
 * planned failover that loses no row, and its undo. Without KVM that takes the better part of an hour, so:
 *
 *   sudo scripts/test long
 *   sudo KEEP_LAB=1 node test/e2e/recovery.long.ts             leaves the lab up
 *   sudo KEEP_LAB=1 STEPS=1,6 node test/e2e/recovery.long.ts   then: the sixth step alone; the first finds all as it is
 */

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import type {
  Checkpoint,
  Failover,
  FileListing,
  Group,
  GroupMark,
  GroupPoints,
  Job,
  JobPoints,
  Source,
  TakenPoint,
} from '../../appliance/api/schema.ts';
import { ApplianceClient, GiveUp, until } from '../../scripts/lib/api-client.ts';
import { type DiaryRow, Lab, type LabDescription, root } from './lab.ts';
import { createSteps } from './steps.ts';
import { addSource, MINUTE, onlineSource, protectedJob, reach, took, words } from './walk.ts';

const PASSWORD = 'understudy-e2e-1';
const REPLICA = 'source-replica';
const MIB = 2 ** 20;
/** What a planned failover stops, in this order. */
const UNITS = ['understudy-writer.service', 'postgresql@15-main.service'];
const evidence = join(root, 'build/e2e-recovery');
mkdirSync(evidence, { recursive: true });

const lab = new Lab('e2e-recovery', 8544);
let described: LabDescription;
let api: ApplianceClient;
let source: Source;
let job: Job;
/** A moment between two rows: the first was acknowledged before it, the next one was begun after it. */
type Moment = { at: string; lastRow: number };

t.setTimeout(3 * 60 * MINUTE);
const step = createSteps(() => lab.keepEvidence(evidence));
t.teardown(async () => {
  await lab.keepEvidence(evidence);
  if (!process.env.KEEP_LAB) await lab.down();
});

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));
const onSource = (command: string) => lab.ssh(described.source.address, command);
const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');
const lastRow = () => lab.diary().at(-1)?.n ?? 0;
const vms = async () => words(await lab.virsh('list', '--all', '--name'));
const networks = async () => words(await lab.virsh('net-list', '--all', '--name'));
/** Names of the pool's images. */
const volumes = async () => {
  await lab.virsh('pool-refresh', 'default');
  const listed = await lab.virsh('-q', 'vol-list', 'default');
  return words(listed.replaceAll(/^\s*(\S+).*$/gm, '$1'));
};
/** The appliance's disks, as its host has them. */
const attached = async () =>
  words((await lab.virsh('-q', 'domblklist', 'understudy')).replaceAll(/^\s*(\S+).*$/gm, '$1'));
/** What an overlay of this failover, or a layer that it asked for, has in its name. */
const layerOf = ({ failoverId }: Failover) => failoverId.replaceAll('-', '').slice(0, 8);

const rowsGoOn = (howMany: number) => {
  const seen = lastRow();
  return until(`${howMany} more rows`, 3 * MINUTE, () =>
    lastRow() >= seen + howMany ? true : undefined,
  );
};

const durable = (seq: number, limitMs = 5 * MINUTE) =>
  until(`frame ${seq} to be durable`, limitMs, async () => {
    const one = await api.job(job.jobId);
    return one.figures.durableSeq >= seq ? one : undefined;
  });
const points = () => api.call<JobPoints>(`/api/jobs/${job.jobId}/points`);

const POINT = 'at rest';
/** The point that was taken with the applications at rest, as the job has it. */
async function takenPoint(): Promise<TakenPoint & { at: string }> {
  const found = (await api.job(job.jobId)).askedPoints.newest.find(({ name }) => name === POINT);
  if (!found?.at) throw new Error('the point is not known any more');
  return { ...found, at: found.at };
}
const LABEL = /^behind row (\d+)$/;
/** The moment that was labelled before the power cut. */
async function labelled(t: Test): Promise<Moment> {
  const found = (await points()).labels.find(({ text }) => LABEL.test(text));
  if (!found) throw new Error('the label is not known any more');
  t.ok(found.recoverable, 'the labelled moment can be recovered', { label: found });
  return { at: found.at, lastRow: Number(LABEL.exec(found.text)?.[1]) };
}

/** Watches the job until it is told to stop: a test, or a look into a point, must not be felt by replication. */
function watch(): () => Promise<{ modes: string[]; states: string[]; maxLagMs: number }> {
  let over = false;
  const modes = new Set<string>();
  const states = new Set<string>();
  let maxLagMs = 0;
  const loop = (async () => {
    while (!over) {
      // A busy host may answer late; what is judged is what the appliance says.
      const now = await api.job(job.jobId).catch(() => undefined);
      if (now) {
        modes.add(now.stream.mode);
        states.add(now.state.name);
        maxLagMs = Math.max(maxLagMs, now.figures.lagMs ?? 0);
      }
      await sleep(1000);
    }
  })();
  return async () => {
    over = true;
    await loop;
    return { modes: [...modes], states: [...states], maxLagMs };
  };
}
async function untouched(t: Test, stop: ReturnType<typeof watch>): Promise<void> {
  const seen = await stop();
  t.comment(
    `meanwhile: modes ${seen.modes}, states ${seen.states}, lag ${seen.maxLagMs} ms at most`,
  );
  t.same(seen.modes, ['ordered'], 'order was never lost meanwhile');
  t.same(seen.states, ['protected'], 'the job was protected all the time');
  t.ok(seen.maxLagMs < 90_000, 'replication went on meanwhile', seen);
}

/** A row whose end and whose successor's beginning are apart by enough to name a moment between them. */
function momentNow(): Moment {
  const rows = lab.diary();
  for (let i = rows.length - 2; i >= 0; i--) {
    const [row, next] = [rows[i] as DiaryRow, rows[i + 1] as DiaryRow];
    // The writer rests for 200 ms between a commit's acknowledgement and the next row: 100 ms before that one begins, this
    // one has been durable for as long.
    if (next.n === row.n + 1)
      return { at: new Date(next.atMs - 100).toISOString(), lastRow: row.n };
  }
  throw new Error('the writer has told of no two rows');
}

step('the source is protected: both disks, while PostgreSQL is written', async (t) => {
  described = await lab.up(25 * MINUTE);
  api = new ApplianceClient(described.url);
  await api.trustOnFirstUse();
  await api.login('admin', PASSWORD).catch(() => api.login('admin', described.password, PASSWORD));
  const { sourceId } = await addSource(api, described.source);
  source = await onlineSource(api, sourceId);
  const services = source.inventory?.services?.map(({ unit }) => unit) ?? [];
  for (const unit of UNITS) t.ok(services.includes(unit), `${unit} is offered to be stopped`);
  job = source.jobId
    ? await api.job(source.jobId)
    : await api.call<Job>('/api/jobs', {
        body: {
          sourceId,
          diskIds: source.inventory?.disks.map(({ diskId }) => diskId),
          pool: described.pool,
          network: described.network,
          replicaName: REPLICA,
          vcpus: 1,
          memoryBytes: 1024 * MIB,
          compression: 'fast',
          bandwidthLimitBytesPerSec: null,
          // Another machine that boots on the same two processors must not push the stream out of order.
          ringBytes: 64 * MIB,
        },
        timeoutMs: 2 * MINUTE,
      });
  job = await protectedJob(api, job.jobId, 30 * MINUTE);
  t.equal(job.disks.length, 2);
  t.ok(
    job.disks.every((disk) => disk.attached),
    'both replica disks are at the appliance',
  );
  await rowsGoOn(10);
  await until('the first checkpoint', 10 * MINUTE, async () => {
    const [first] = await api.call<Checkpoint[]>(`/api/jobs/${job.jobId}/checkpoints`);
    return first;
  });
});

step('a point with PostgreSQL and the file systems at rest, with its freeze time', async (t) => {
  const checkpointed = () =>
    onSource(
      'cd / && sudo -u postgres psql -XAtqc "SELECT extract(epoch FROM checkpoint_time) FROM pg_control_checkpoint()"',
    ).then(Number);
  await onSource('echo "before the point" | sudo tee /srv/data/told >/dev/null');
  const before = await checkpointed();
  const point = await api.call<TakenPoint>(`/api/jobs/${job.jobId}/points`, {
    body: { name: POINT },
    timeoutMs: 3 * MINUTE,
  });
  await onSource('echo "after the point" | sudo tee /srv/data/told >/dev/null');
  t.comment(`frozen for ${point.freezeMs} ms; hooks ${JSON.stringify(point.hooks)}`);
  t.equal(point.reason, null, 'there is no reason for it to be less');
  t.ok(point.quiesced, 'it is application-consistent');
  t.same(point.fileSystems, ['/srv/data', '/'], 'both file systems were frozen, the root last');
  t.ok(point.freezeMs !== null && point.freezeMs > 0 && point.freezeMs < 10_000, 'for a moment');
  t.match(
    point.hooks.filter(({ name }) => name === '50-postgresql'),
    [
      { phase: 'pre', outcome: 'done', text: /checkpoint of 1 PostgreSQL server/ },
      { phase: 'post', outcome: 'done' },
    ],
    'the hook ran before and after, each as a unit of its own',
  );
  t.ok((await checkpointed()) > before, 'PostgreSQL itself has made its checkpoint');
  const units = await onSource('sudo journalctl --no-pager -o cat | grep -c hooks/50-postgresql');
  t.ok(Number(units) >= 1, 'systemd has run it');
  await durable(point.seq);
  const mark = (await points()).marks.find(({ pointId }) => pointId === point.pointId);
  t.match(mark, { seq: point.seq, name: POINT, quiesced: true }, 'it is in the history');
  const shown = (await api.job(job.jobId)).askedPoints.newest[0];
  t.match(shown, { pointId: point.pointId, freezeMs: point.freezeMs }, 'its freeze is shown');
  await rowsGoOn(5);
});

step('a mark of a group: the same, with a checkpoint at its very point', async (t) => {
  const group = await api.call<Group>('/api/groups', {
    body: {
      name: 'ledger',
      members: [{ jobId: job.jobId, priority: 1 }],
      wait: { for: 'proof' },
    },
  });
  const mark = await api.call<GroupMark>(`/api/groups/${group.groupId}/marks`, {
    body: { name: 'all at rest', checkpoint: true },
    timeoutMs: 5 * MINUTE,
  });
  t.equal(mark.quiesced, true);
  t.match(mark.members, [{ jobId: job.jobId, quiesced: true, reason: null }]);
  t.ok(mark.apartMs !== null && mark.apartMs >= 0, 'how far apart members may be is known', {
    mark,
  });
  const marks = await until('the mark to be recoverable', 2 * MINUTE, async () => {
    const now = await api.call<GroupPoints>(`/api/groups/${group.groupId}/points`);
    return now.marks[0]?.recoverable ? now.marks : undefined;
  });
  t.equal(marks[0]?.markId, mark.markId);
  const checkpoints = await api.call<Checkpoint[]>(`/api/jobs/${job.jobId}/checkpoints`);
  t.ok(
    checkpoints.some(({ seq }) => seq === mark.members[0]?.seq),
    'a checkpoint of the disks is exactly there',
    { checkpoints, mark },
  );
  await api.call(`/api/groups/${group.groupId}`, { method: 'DELETE' });
});

step('the appliance VM loses its power under load: replication goes on', async (t) => {
  await rowsGoOn(5);
  const { at, lastRow } = momentNow();
  await api.call(`/api/jobs/${job.jobId}/labels`, { body: { at, text: `behind row ${lastRow}` } });
  t.comment(`the moment to be recovered later: ${at}, behind row ${lastRow}`);
  await rowsGoOn(10);
  const load =
    'i=0; while :; do i=$(((i + 1) % 16)); dd if=/dev/urandom of=/srv/data/load.$i bs=64k count=8 conv=fsync status=none; sleep 0.5; done';
  await onSource(`sudo systemd-run --quiet --collect --unit=load sh -c '${load}'`);
  try {
    const before = await api.job(job.jobId);
    await durable(before.figures.durableSeq + 20);
    const { durableSeq } = (await api.job(job.jobId)).figures;
    await lab.restartAppliance();
    await until('the page to answer again', 10 * MINUTE, () =>
      api.login('admin', PASSWORD).then(() => true),
    );
    await durable(durableSeq + 20, 10 * MINUTE);
    job = await protectedJob(api, job.jobId, 20 * MINUTE);
    const lastSeq = job.figures.durableSeq;
    await durable(lastSeq + 20);
  } finally {
    await onSource('sudo systemctl stop load && sudo rm -f /srv/data/load.*').catch(
      () => undefined,
    );
  }
  t.ok(
    job.disks.every((disk) => disk.attached),
    'the disks are attached again',
  );
  // Order may be lost while the appliance is away for minutes: what was missed is drained then, and that is no mirror.
  const { gaps } = await points();
  t.comment(`gaps: ${JSON.stringify(gaps.map(({ kind, reason }) => `${kind}: ${reason}`))}`);
  t.same(
    gaps.filter(({ kind }) => kind === 'difference-mirror' || kind === 'missing'),
    [],
    'no mirror was needed, and nothing is missing',
  );
});

step('a verification finds no block that differs', async (t) => {
  const startedAt = new Date().toISOString();
  await api.call(`/api/jobs/${job.jobId}/verify`, { method: 'POST' });
  const disks = await until('both disks to be verified', 30 * MINUTE, async () => {
    const one = await api.job(job.jobId);
    if (one.state.name === 'error') throw new GiveUp(JSON.stringify(one.state.error));
    return one.disks.every(
      ({ verification: { last, running } }) => !running && last && last.at > startedAt,
    )
      ? one.disks
      : undefined;
  });
  for (const { name, verification } of disks) {
    t.comment(`${name}: ${JSON.stringify(verification.last)}`);
    t.ok((verification.last?.comparedBytes ?? 0) > MIB, `${name} was read`);
    t.equal(verification.last?.mismatches, 0, `${name} is the same on both sides`);
  }
});

/** Run in the guest by its agent: the rows up to the moment are there, none begun after it, and nobody is reached. */
const guestScript = ({ at, lastRow }: Moment) => `#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
ask() { cd / && runuser -u postgres -- /usr/lib/postgresql/15/bin/psql -XAtq -d ledger -c "$1"; }
until ask 'SELECT 1' >/dev/null 2>&1; do sleep 2; done
bad=0
for table in entries_root entries_data; do
  # What this machine has written since it booted does not count.
  found=$(ask "SELECT count(*), min(n), max(n), count(*) FILTER (WHERE at > '${at}') FROM $table WHERE at < pg_postmaster_start_time()")
  echo "$table: $found"
  [ "$found" = "${lastRow}|1|${lastRow}|0" ] || bad=1
done
if timeout 5 bash -c 'exec 3<>/dev/tcp/192.168.150.10/443' 2>/dev/null; then echo "the appliance is reached"; bad=1; fi
exit $bad
`;

step('a test failover to a chosen second, judged inside the guest', async (t) => {
  const moment = await labelled(t);
  const before = { vms: await vms(), networks: await networks(), attached: await attached() };
  await api.call(`/api/jobs/${job.jobId}`, {
    method: 'PATCH',
    body: {
      testChecks: {
        tcpPorts: [22, 5432],
        script: { text: guestScript(moment), timeLimitSeconds: 900 },
      },
    },
  });
  const stop = watch();
  const began = await api.call<Failover>(`/api/jobs/${job.jobId}/test-failover`, {
    body: { point: { sourceTime: moment.at }, keepMinutes: 0 },
    timeoutMs: 2 * MINUTE,
  });
  const wire = await until('the test VM to be there', 15 * MINUTE, () =>
    lab.virsh('-q', 'domiflist', `${REPLICA}-test`),
  );
  const test = await reach(api, `/api/failovers/${began.failoverId}`, 'undone', 40 * MINUTE);
  await untouched(t, stop);
  t.comment(took(test));
  t.match(wire, /\snetwork\s+isolated\s/, 'it was on the isolated network');
  t.equal(wire.trim().split('\n').length, 1, 'and on no other');
  t.equal(test.point.wanted, moment.at);
  t.ok((test.point.sourceTime ?? '') <= moment.at, 'nothing behind the moment', test.point);
  t.match(test.test?.verdict, { passed: true });
  t.match(
    test.test?.checks,
    [
      { name: 'TCP port 22', state: 'passed' },
      { name: 'TCP port 5432', state: 'passed' },
      { name: 'Script', state: 'passed' },
    ],
    'the guest agent has seen both ports, and the script the rows',
  );
  t.comment(
    test.test?.checks.map(({ name, words, output }) => `${name}: ${words} ${output ?? ''}`),
  );

  const report = await api.raw(`/api/failovers/${test.failoverId}/report`);
  writeFileSync(join(evidence, 'test-report.html'), report.body);
  const html = report.body.toString();
  t.match(html, /class="verdict passed"/);
  t.match(html, `entries_data: ${moment.lastRow}|1|${moment.lastRow}|0`, 'the report has the rows');
  t.match(html, /src="data:image\/png;base64,/, 'and the screen');
  const picture = await api.raw(`/api/failovers/${test.failoverId}/screenshot`);
  writeFileSync(join(evidence, 'test-console.png'), picture.body);
  t.equal(picture.body.subarray(1, 4).toString(), 'PNG');

  const { provenBootableAt } = await api.job(job.jobId);
  t.ok(provenBootableAt && provenBootableAt > began.startedAt, 'proven bootable, now');
  t.same(await vms(), before.vms, 'no VM is left');
  t.same(await networks(), before.networks, 'nor a network');
  t.same(await attached(), before.attached, 'nor a disk at the appliance');
  const left = (await volumes()).filter((name) => name.includes(layerOf(test)));
  t.same(left, [], 'nor an image');
  t.same(test.notes, [], 'and it says so');
});

step('files out of the point that was taken at rest', async (t) => {
  const before = { vms: await vms(), attached: await attached() };
  const point = await takenPoint();
  const stop = watch();
  const began = await api.call<Failover>(`/api/jobs/${job.jobId}/mount`, {
    body: { purpose: 'files', point: { sourceTime: point.at } },
    timeoutMs: 2 * MINUTE,
  });
  const path = `/api/mounts/${began.failoverId}`;
  const open = await reach(api, path, 'completed', 15 * MINUTE);
  t.comment(took(open));
  const volumeAt = (mountPoint: string) => {
    const found = open.mount?.volumes.find((volume) => volume.mountPoint === mountPoint);
    if (!found?.browsable) throw new Error(JSON.stringify(open.mount?.volumes));
    return found.volumeId;
  };
  const rootVolume = volumeAt('/');
  const ask = (what: string, volume: string, where: string) =>
    `${path}/${what}?${new URLSearchParams({ volume, path: where })}`;
  const etc = await api.call<FileListing>(`${ask('files', rootVolume, '/etc')}&limit=5000`);
  const there = words(await onSource('ls -A /etc'));
  t.same(
    words(etc.entries.map(({ name }) => name).join(' ')),
    there,
    '/etc has the names that it has on the source',
  );
  const download = async (volume: string, where: string) =>
    (await api.raw(ask('file', volume, where))).body.toString();
  t.equal(await download(rootVolume, '/etc/hostname'), await onSource('cat /etc/hostname'));
  // What tells one moment from another: it was written over behind the point.
  t.equal(await download(volumeAt('/srv/data'), '/told'), 'before the point\n');
  const binary = await api.raw(ask('file', rootVolume, '/usr/bin/bash'));
  const [expected] = (await onSource('sha256sum /usr/bin/bash')).split(' ');
  t.equal(sha256(binary.body), expected, 'a program comes byte for byte');
  await api.call(`${path}/end`, { method: 'POST' });
  const closed = await reach(api, path, 'undone', 10 * MINUTE);
  await untouched(t, stop);
  t.same(await vms(), before.vms, 'no VM is left');
  t.same(await attached(), before.attached, 'nor a disk at the appliance');
  const left = (await volumes()).filter((name) => name.includes(layerOf(closed)));
  t.same(left, [], 'nor an image');
});

step('a whole disk of the point over NBD, by a tool that is not ours', async (t) => {
  const point = await takenPoint();
  const before = { attached: await attached() };
  const began = await api.call<Failover>(`/api/jobs/${job.jobId}/mount`, {
    body: { purpose: 'nbd', point: { sourceTime: point.at } },
    timeoutMs: 2 * MINUTE,
  });
  const path = `/api/mounts/${began.failoverId}`;
  const open = await reach(api, path, 'completed', 15 * MINUTE);
  t.comment(took(open));
  const exports = open.mount?.exports ?? [];
  t.same(exports.map(({ disk }) => disk).sort(), ['vda', 'vdb']);
  const folder = join(evidence, 'nbd');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder);
  writeFileSync(join(folder, 'tls.tar'), (await api.raw(`${path}/nbd-credentials.tar`)).body);
  execFileSync('tar', ['-xf', join(folder, 'tls.tar'), '-C', folder]);
  for (const one of exports) {
    const out = join(folder, `${one.name}.raw`);
    const address = one.addresses.find((a) => a.startsWith('192.168.150.'));
    t.ok(address, 'it is told where', { exports });
    const tls = `tls-creds-x509,id=tls,dir=${join(folder, 'understudy-nbd')},endpoint=client`;
    const from = `driver=nbd,server.type=inet,server.host=${address},server.port=${one.port},export=${one.name}`;
    const copy = (credentials: string[], image: string) =>
      lab.exec([
        ...['qemu-img', 'dd', ...credentials, '--image-opts', '-O', 'raw'],
        ...['bs=1M', 'count=1', `if=${image}`, `of=${out}`],
      ]);
    await t.rejects(copy([], from), 'without its credentials it is not read');
    await copy(['--object', tls], `${from},tls-creds=tls`);
    const bytes = readFileSync(out).subarray(0, MIB);
    t.equal(bytes.subarray(512, 520).toString(), 'EFI PART', `${one.name} has its GPT`);
    const [expected] = (
      await onSource(`sudo dd if=/dev/${one.disk} bs=1M count=1 status=none | sha256sum`)
    ).split(' ');
    t.equal(
      sha256(bytes),
      expected,
      'and what is before its first partition, as the source has it',
    );
  }
  await api.call(`${path}/end`, { method: 'POST' });
  const closed = await reach(api, path, 'undone', 10 * MINUTE);
  t.same(await attached(), before.attached, 'no disk is left at the appliance');
  const left = (await volumes()).filter((name) => name.includes(layerOf(closed)));
  t.same(left, [], 'nor an image');
});

step('a planned failover stops the services, and no row is lost', async (t) => {
  await rowsGoOn(10);
  const began = await api.call<Failover>(`/api/jobs/${job.jobId}/failover`, {
    body: { kind: 'planned', confirm: REPLICA, stopUnits: UNITS },
    timeoutMs: 2 * MINUTE,
  });
  const planned = await reach(api, `/api/failovers/${began.failoverId}`, 'completed', 40 * MINUTE);
  t.comment(took(planned));
  const said = (name: string) => planned.steps.find((s) => s.name === name)?.detail ?? '';
  t.equal(said('stop-services'), UNITS.join(', '), 'systemd has stopped both');
  t.match(said('final-mark'), /file systems at rest/);
  t.equal((await lab.virsh('domstate', described.source.domain)).trim(), 'shut off');
  t.equal(planned.point.lossMs, 0, 'it claims to have lost nothing');
  const told = lab.diary().at(-1) as DiaryRow;
  const address = await until('an address of the replica', 5 * MINUTE, async () => {
    const now = await api.failover(planned.failoverId);
    return now.addresses.find((a) => /^192\.168\.150\./.test(a))?.split('/')[0];
  });
  const psql = (sql: string) => lab.ssh(address, `psql -XAtq -d ledger -c "${sql}"`);
  const rows = (table: string) =>
    psql(
      `SELECT count(*), min(n), max(n) FROM ${table} WHERE at < pg_postmaster_start_time()`,
    ).then((line) => line.trim());
  const found = await until('PostgreSQL to answer on the replica', 5 * MINUTE, () =>
    rows('entries_root'),
  );
  const last = Number(found.split('|')[2]);
  t.comment(`the writer's last word was row ${told.n}; the replica has ${found}`);
  // A commit that was done when the writer was told to end may not have been told of any more.
  t.ok(last === told.n || last === told.n + 1, 'the last row is there', { told, found });
  t.equal(found, `${last}|1|${last}`, 'and all before it');
  t.equal(await rows('entries_data'), found, 'on both disks');
  t.equal(
    (
      await lab.ssh(
        address,
        'sudo journalctl -b -u postgresql@15-main --no-pager -o cat; sudo tail -n 40 /var/log/postgresql/postgresql-15-main.log',
      )
    ).includes('automatic recovery'),
    false,
    'PostgreSQL had been shut down: nothing was to be recovered',
  );
});

step('undone: the source goes on, and is replicated again', async (t) => {
  const told = lastRow();
  const all = await api.call<Failover[]>('/api/failovers');
  const open = all.find(({ kind, state }) => kind === 'planned' && state.name === 'completed');
  if (!open) throw new Error('there is no planned failover to undo');
  await api.call(`/api/failovers/${open.failoverId}/undo`, { body: { confirm: REPLICA } });
  const planned = await reach(api, `/api/failovers/${open.failoverId}`, 'undone', 20 * MINUTE);
  t.notOk((await vms()).includes(REPLICA), 'the replica VM is gone');
  const left = (await volumes()).filter((name) => name.includes(layerOf(planned)));
  t.same(left, [], 'and its images');
  await lab.virsh('start', described.source.domain);
  await until('the agent of the source to be back', 15 * MINUTE, async () => {
    const { state } = await api.source(source.sourceId);
    return state.name === 'online' ? true : undefined;
  });
  job = await protectedJob(api, job.jobId, 30 * MINUTE);
  t.match(
    job.disks.map(({ mirror }) => mirror?.kind),
    ['difference', 'difference'],
    'only what differed has travelled',
  );
  await until('the writer to be at work again', 10 * MINUTE, async () => {
    const state = await onSource(`systemctl is-active ${UNITS.join(' ')}; true`);
    return words(state).every((word) => word === 'active') ? true : undefined;
  });
  const { durableSeq } = (await api.job(job.jobId)).figures;
  const max = () =>
    onSource("psql -XAtq -d ledger -c 'SELECT max(n) FROM entries_root'").then(Number);
  const rows = await until('new rows on the source', 5 * MINUTE, async () => {
    const now = await max();
    return now > told + 5 ? now : undefined;
  });
  await durable(durableSeq + 5);
  t.comment(`${told} rows before, ${rows} now`);
  t.equal(
    (await onSource('sudo ls /var/lib/understudy-agent/handover.json 2>/dev/null; true')).trim(),
    '',
    'its agent remembers no handover',
  );
});
