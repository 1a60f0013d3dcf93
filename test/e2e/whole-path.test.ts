/**
 * The whole path, as a person walks it: demo, first login, add a source, protect it, lose it mid-write, fail over; then
 * the replica is asked what it holds, and held against what the source said that it had committed.
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import t, { type Test } from 'tap';
import type { Failover, Job, Source } from '../../appliance/api/schema.ts';
import { ApplianceClient, GiveUp, until } from '../../scripts/lib/api-client.ts';
import { type DiaryRow, Lab, type LabDescription, root } from './lab.ts';
import * as drive from './page.ts';
import { createSteps } from './steps.ts';

const MINUTE = 60_000;
const PASSWORD = 'understudy-e2e-1';
const evidence = join(root, 'build/e2e');
mkdirSync(evidence, { recursive: true });

const lab = new Lab('e2e', 8543);
let described: LabDescription;
let open: drive.OpenPage;
let page: drive.Page;
let api: ApplianceClient;
let source: Source;
let job: Job;
let failover: Failover;
let claimed: Awaited<ReturnType<typeof drive.failover>>;
let lastTold: DiaryRow;

// The file as a whole may take this long; each step has its own limit.
t.setTimeout(90 * MINUTE);

const step = createSteps(async () => {
  if (page) await page.screenshot({ path: join(evidence, 'failure.png') }).catch(() => undefined);
  await lab.keepEvidence(evidence);
});

const snap = (name: string) =>
  page.screenshot({ path: join(evidence, `${name}.png`), fullPage: true });

t.teardown(async () => {
  await open?.close();
  await lab.keepEvidence(evidence);
  if (!process.env.KEEP_LAB) await lab.down();
});

step('the demo brings up an appliance and a sample source', async (t) => {
  described = await lab.up(25 * MINUTE);
  t.match(described.url, /^https:\/\/127\.0\.0\.1:\d+$/);
  t.ok(described.password.length >= 10, 'a one-time password was told');
  open = await drive.openPage({
    url: described.url,
    width: 1440,
    height: 1000,
    picturesDir: evidence,
  });
  page = open.page;
});

step('the first login asks for a password of one’s own', async (t) => {
  // A lab that was kept from an earlier run (KEEP_LAB) has the password already.
  const kept = new ApplianceClient(described.url);
  await kept.trustOnFirstUse();
  const first = await kept.login(described.username, PASSWORD).then(
    () => undefined,
    () => described.password,
  );
  await drive.login(page, {
    username: described.username,
    password: first ?? PASSWORD,
    newPassword: PASSWORD,
  });
  api = new ApplianceClient(described.url);
  await api.trustOnFirstUse();
  await api.login('admin', PASSWORD);
  const old = new ApplianceClient(described.url, await api.trustOnFirstUse());
  const refusal = await old.login('admin', described.password).catch((error) => error);
  t.equal(refusal?.status, 401, 'the one-time password is spent');
});

step('a source is added from the page and its agent comes online', async (t) => {
  const added = await drive.addSource(page, {
    address: described.source.address,
    username: described.source.username,
    password: described.source.password,
  });
  source = await until('the source to be online with its inventory', 15 * MINUTE, async () => {
    const one = await api.source(added.sourceId);
    if (one.state.name === 'install-failed' || one.state.name === 'refused')
      throw new GiveUp(JSON.stringify(one.state.error));
    return one.state.name === 'online' && one.inventory ? one : undefined;
  });
  await snap('source');
  t.equal(source.inventory?.disks.length, 2, 'both disks are in the inventory');
  t.match(source.inventory?.os, /Debian GNU\/Linux 12/);
  t.equal(source.inventory?.firmware, 'bios');
  const mounts = source.inventory?.disks.flatMap((d) =>
    d.volumes.map((v) => v.fileSystem?.mountpoint),
  );
  t.ok(mounts?.includes('/'), 'the root file system is found');
  t.ok(mounts?.includes('/srv/data'), 'the data file system is found');
});

/** The job's mirrors, in words: the first full ones, or what else was needed. */
const mirrors = (now: Job) =>
  now.disks.map(({ mirror }) => `${mirror?.kind}: ${mirror?.reason}`).join('; ');
const FIRST_MIRRORS = 'full: first mirror; full: first mirror';
const RESTARTED = 'the source server was restarted';
/** On a slow machine the ring may fill while the appliance is away: then what changed is drained, and no more. */
const NO_MIRROR = new RegExp(
  `^(full: first mirror|drain: the ring buffer overflowed|drain: ${RESTARTED})$`,
);
const needsNoMirror = (t: Test, now: Job) => {
  for (const { mirror } of now.disks) t.match(`${mirror?.kind}: ${mirror?.reason}`, NO_MIRROR);
};

const protectedJob = (limitMs: number) =>
  until('the job to be protected', limitMs, async () => {
    const one = await api.job(job.jobId);
    if (one.state.name === 'error') throw new GiveUp(JSON.stringify(one.state.error));
    return one.state.name === 'protected' ? one : undefined;
  });

/** Sessions do not outlive the appliance's VM being replaced under them in every case: log in again. */
async function pageIsBack(): Promise<void> {
  await until('the page to answer again', 10 * MINUTE, () =>
    api.login('admin', PASSWORD).then(() => true),
  );
}

step(
  'protecting it mirrors both disks while the writer goes on, over a power cut of the appliance',
  async (t) => {
    const before = lab.diary().at(-1)?.n ?? 0;
    const started = await drive.protect(page, {
      sourceId: source.sourceId,
      compression: 'fast',
      replicaName: 'source-replica',
      pool: described.pool,
      network: described.network,
      bandwidthMibPerSec: 2,
    });
    t.ok(started.actions.length > 0, 'the summary told what would be done', {
      actions: started.actions,
    });
    job = await until('a part of the mirror to be durable', 10 * MINUTE, async () => {
      const one = await api.job(started.jobId);
      if (one.state.name === 'error') throw new GiveUp(JSON.stringify(one.state.error));
      const [mirror] = one.disks.map((disk) => disk.mirror);
      return mirror && mirror.doneBytes > 0 && one.figures.durableSeq > 10 ? one : undefined;
    });
    t.equal(job.state.name, 'mirroring');
    const { durableSeq } = job.figures;
    await lab.restartAppliance();
    await pageIsBack();
    await api.call(`/api/jobs/${job.jobId}`, {
      method: 'PATCH',
      body: { bandwidthLimitBytesPerSec: null },
    });
    job = await protectedJob(30 * MINUTE);
    t.ok(job.figures.durableSeq > durableSeq, 'the stream goes on where it was durable');
    t.equal(mirrors(job), FIRST_MIRRORS, 'the first mirrors went on');
    t.ok(
      job.disks.every(({ attached }) => attached),
      'the disks are attached again',
    );
    await snap('protected');
    t.equal(job.stream.mode, 'ordered');
    t.equal(job.disks.length, 2);
    const after = lab.diary().at(-1)?.n ?? 0;
    t.ok(after > before, 'rows were committed while the mirror ran', { before, after });
  },
);

step('the appliance is upgraded in place, without a mirror', async (t) => {
  const { durableSeq } = job.figures;
  await lab.upgradeAppliance(15 * MINUTE);
  await pageIsBack();
  job = await until('the stream to go on', 10 * MINUTE, async () => {
    const one = await protectedJob(10 * MINUTE);
    return one.figures.durableSeq > durableSeq + 5 ? one : undefined;
  });
  needsNoMirror(t, job);
});

step('the configuration is saved and restored by the scripts, without a mirror', async (t) => {
  const file = join(evidence, 'configuration.backup');
  // Of an earlier run in this checkout: the script writes over nothing.
  rmSync(file, { force: true });
  const secrets = { password: PASSWORD, passphrase: 'a long passphrase of the test' };
  await lab.transferConfig('backup', ['--url', described.url, '--out', file], secrets);
  await api.call('/api/users', {
    body: { username: 'passer-by', password: 'passer-by-1', role: 'viewer' },
  });
  await lab.transferConfig('restore', ['--url', described.url, '--file', file, '--yes'], secrets);
  await pageIsBack();
  const users = await api.call<Array<{ username: string }>>('/api/users');
  t.notOk(
    users.some(({ username }) => username === 'passer-by'),
    'the configuration is as it was',
  );
  job = await protectedJob(10 * MINUTE);
  needsNoMirror(t, job);
  await drive.loginAgain(page, { username: 'admin', password: PASSWORD });
});

step('a planned restart of the source is carried over: a drain, no comparison', async (t) => {
  const { jobId } = job;
  await api.call(`/api/jobs/${jobId}`, { method: 'PATCH', body: { carryRestarts: true } });
  await until('the source to be ready for it', 5 * MINUTE, async () => {
    const { carry } = (await api.job(jobId)).figures.agent ?? {};
    return carry?.ready ? carry : undefined;
  });
  const before = lab.diary().at(-1)?.n ?? 0;
  // The connection ends before the answer comes.
  await lab.ssh(described.source.address, 'sudo systemctl reboot').catch(() => undefined);
  const sight = await until('the new epoch', 10 * MINUTE, async () => {
    const now = await api.job(jobId);
    return now.disks.every(({ mirror }) => mirror?.reason === RESTARTED) ? now : undefined;
  });
  const drained = `drain: ${RESTARTED}`;
  t.equal(mirrors(sight), `${drained}; ${drained}`, 'nothing has to be compared');
  job = await protectedJob(10 * MINUTE);
  needsNoMirror(t, job);
  for (const { mirror, sizeBytes } of job.disks) {
    t.ok((mirror?.totalBytes ?? Infinity) < sizeBytes / 4, `${mirror?.totalBytes} of ${sizeBytes}`);
  }
  await until('rows of after the restart', 5 * MINUTE, () =>
    (lab.diary().at(-1)?.n ?? 0) > before + 5 ? true : undefined,
  );
});

step('the plug is pulled mid-write, and the page fails it over', async (t) => {
  // Lag is only honest while rows are being written: see some go by first.
  const seen = lab.diary().at(-1)?.n ?? 0;
  await until('more rows', 2 * MINUTE, () =>
    (lab.diary().at(-1)?.n ?? 0) > seen + 10 ? true : undefined,
  );
  await lab.virsh('destroy', described.source.domain);
  const told = lab.diary().at(-1);
  if (!told) throw new Error('the source told of no row');
  lastTold = told;
  claimed = await drive.failover(page, { jobId: job.jobId, replicaName: 'source-replica' });
  const sight = await drive.waitForFailover(page, claimed.failoverId, ['completed'], 20 * MINUTE);
  failover = await api.failover(claimed.failoverId);
  t.equal(failover.state.name, 'completed');
  t.equal(sight.lostMs, failover.point.lossMs, 'the page shows the loss that the failover names');
  t.ok(
    sight.steps.every(({ state }) => state === 'done'),
    'every step is shown as done',
  );
  await snap('failed-over');
  t.ok(
    failover.steps.every((s) => s.state === 'done'),
    'every step is done',
    { steps: failover.steps },
  );
  t.ok(failover.hasScreenshot, 'there is a screenshot of the console');
  const picture = await api.raw(`/api/failovers/${failover.failoverId}/screenshot`);
  writeFileSync(join(evidence, 'console.png'), picture.body);
  t.equal(picture.body.subarray(1, 4).toString(), 'PNG');
});

step('the replica booted by itself and holds every row that it must', async (t) => {
  const address = await until('an address of the replica', 5 * MINUTE, async () => {
    const now = await api.failover(failover.failoverId);
    return now.addresses.find((a) => /^192\.168\.150\./.test(a))?.split('/')[0];
  });
  const psql = (sql: string) => lab.ssh(address, `psql -XAtq -d ledger -c "${sql}"`);
  // The writer goes on counting on the replica; what was there before is what came over.
  const bootedAt = Number(
    await until('PostgreSQL to answer on the replica', 5 * MINUTE, () =>
      psql('SELECT extract(epoch FROM pg_postmaster_start_time()) * 1000'),
    ),
  );
  const [, recovered] = await Promise.all([
    lab.ssh(address, 'sudo systemctl stop understudy-writer').catch(() => ''),
    psql(
      `SELECT count(*), min(n), max(n), extract(epoch FROM max(at)) * 1000 FROM entries_root WHERE extract(epoch FROM at) * 1000 < ${bootedAt}`,
    ),
  ]);
  const [count, min, max, newestAtMs] = recovered.trim().split('|').map(Number) as [
    number,
    number,
    number,
    number,
  ];
  t.equal(min, 1, 'the first row is there');
  t.equal(count, max, 'no hole in the sequence');
  const data = (
    await psql(
      `SELECT count(*), min(n), max(n) FROM entries_data WHERE extract(epoch FROM at) * 1000 < ${bootedAt}`,
    )
  )
    .trim()
    .split('|')
    .map(Number);
  t.same(data, [count, min, max], 'both disks hold the same rows: order holds across disks');
  const lossMs = lastTold.atMs - newestAtMs;
  const claimedMs = failover.point.lossMs ?? Number.NaN;
  t.comment(
    `rows ${max} of ${lastTold.n}; lost ${lossMs.toFixed(0)} ms, claimed ${claimedMs.toFixed(0)} ms`,
  );
  t.ok(lossMs <= claimedMs, 'no more is lost than the failover named', { lossMs, claimedMs });
  t.not(claimed.claimedLagMs, null, 'the page claimed something');
  // The page is told about once a second, and the plug was pulled a moment before.
  const claimedLagMs = (claimed.claimedLagMs ?? 0) + 2000;
  t.ok(lossMs <= claimedLagMs, 'nor than the page had claimed', { lossMs, claimed });
  // The claim is no excuse either: its point is the newest row, give or take a clock mark and the writer's pace.
  const claimedPointMs = Date.parse(claimed.claimedPointAt ?? '');
  t.ok(
    Math.abs(claimedPointMs - newestAtMs) < 15_000,
    'the point that the page had claimed is the one that was recovered',
    { claimed, newestAtMs },
  );
  // A row's time is taken before its commit, and the next row's after it: so a row was durable on the source before the
  // next one's time, and all that was durable at the point that the failover names must be there.
  const pointMs = Date.parse(failover.point.sourceTime ?? '');
  const diary = lab.diary();
  const mustHold =
    diary.filter((_, i) => (diary[i + 1]?.atMs ?? Infinity) <= pointMs).at(-1)?.n ?? 0;
  t.ok(mustHold > 0 && max >= mustHold, 'every row up to the last acknowledged frame is there', {
    mustHold,
    max,
  });
  const roots = await lab.ssh(address, 'findmnt -no SOURCE / && lsblk -dno TRAN,NAME');
  t.notMatch(roots, /\bvda\b/, 'the disks are no longer virtio-blk');
});

step(
  'committed, and the old server uninstalled: no trace of the agent is left on it',
  async (t) => {
    await drive.settleFailover(page, failover.failoverId, 'commit', 'source-replica');
    await lab.virsh('start', described.source.domain);
    await until('the agent of the old server to be back', 10 * MINUTE, async () => {
      const now = await api.source(source.sourceId);
      return now.state.name === 'online' && now.jobId === null ? now : undefined;
    });
    await drive.uninstall(page, source.sourceId, source.name);
    // What the sample image itself has of that name stays.
    const find =
      "sudo find / -xdev -iname '*understudy*' -not -iname '*understudy-writer*' -not -path '/usr/lib/understudy-writer/*' -not -path '/etc/initramfs-tools/conf.d/understudy' -not -path '/proc/*'; sudo ls /sys/fs/bpf; systemctl list-units --all 'understudy-agent*' --no-legend";
    const left = await until('the agent to be gone', 3 * MINUTE, async () => {
      const found = await lab.ssh(described.source.address, `${find}; true`);
      return found.trim() === '' ? found : undefined;
    }).catch(() => lab.ssh(described.source.address, `${find}; true`));
    t.equal(left.trim(), '', 'nothing of it is left');
    t.equal((await lab.virsh('domstate', 'source-replica')).trim(), 'running');
  },
);
