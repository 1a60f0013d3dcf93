/**
 * `scripts/demo --auto`: does by itself what a person would do on the page, and shows how far it is.
 * Reads the lab's description (JSON, written by scripts/demo) from the file named on the command line.
 */
import { execFile } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import type { Failover, Job, PreflightReport, Source } from '../../appliance/api/schema.ts';
import { ApplianceClient, GiveUp, until } from './api-client.ts';

const run = promisify(execFile);
const file = process.argv[2];
if (!file) throw new Error('usage: demo-auto.ts LAB.json');
const lab = JSON.parse(readFileSync(file, 'utf8')) as {
  name: string;
  url: string;
  username: string;
  password: string;
  source: { domain: string; address: string; username: string; password: string };
  network: string;
  pool: string;
};
const root = join(import.meta.dirname, '../..');
process.on('uncaughtException', (error) => {
  console.error(error.message);
  process.exit(1);
});
const startedAt = Date.now();
let line = '';
let told = { what: '', at: 0 };
/**
 * One line per event. A repeated state overwrites its own line on a terminal; elsewhere it is said again every ten seconds
 * when only its numbers have changed.
 */
function say(text: string, progress = false): void {
  if (progress && !process.stdout.isTTY) {
    const what = text.replace(/\d+/g, '');
    if (what === told.what && Date.now() - told.at < 10_000) return;
    told = { what, at: Date.now() };
  }
  const stamp = `${Math.round((Date.now() - startedAt) / 1000)}`.padStart(5);
  const full = `${stamp} s  ${text}`;
  if (progress && process.stdout.isTTY) {
    process.stdout.write(`\r\x1b[K${full}`);
    line = full;
  } else if (!progress || full.slice(8) !== line.slice(8)) {
    if (line && process.stdout.isTTY) process.stdout.write('\n');
    console.log(full);
    line = progress ? full : '';
  }
}
const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;

const api = new ApplianceClient(lab.url);
await api.trustOnFirstUse();
// The first login demands a password of one's own; a second run finds that one, or is told what a person has set.
const PASSWORD = process.env.UNDERSTUDY_PASSWORD || 'understudy-demo';
try {
  await api.login(lab.username, PASSWORD).catch(async (error) => {
    if (!lab.password) throw error;
    await api.login(lab.username, lab.password, PASSWORD);
    say(`first login done; the password of ${lab.username} is now ${PASSWORD}`);
  });
} catch (error) {
  throw new Error(
    `${(error as Error).message}\nWith the password that was set on the page: sudo UNDERSTUDY_PASSWORD=... scripts/demo --auto`,
  );
}

const target = {
  address: lab.source.address,
  port: 22,
  username: lab.source.username,
  password: lab.source.password,
};
/** The source as a run before may have left it, or a new one. */
async function findOrAdd(): Promise<Source> {
  const known = (await api.call<Source[]>('/api/sources')).find(
    ({ address }) => address === target.address,
  );
  if (known) {
    say(`${known.name} was added before`);
    return known;
  }
  return add();
}

async function add(): Promise<Source> {
  say(`asking ${lab.source.address} what stands in the way (preflight)`);
  const first = await api.call<PreflightReport>('/api/sources/preflight', {
    body: target,
    timeoutMs: 300_000,
  });
  const acceptHostKey = first.hostKeyFingerprint ?? undefined;
  const report = await api.call<PreflightReport>('/api/sources/preflight', {
    body: { ...target, acceptHostKey },
    timeoutMs: 300_000,
  });
  for (const check of report.checks)
    say(`  ${check.result.padEnd(8)}${check.title}: ${check.detail}`);
  if (!report.ok) throw new Error('preflight refused the source');

  return api.call<Source>('/api/sources', {
    body: { ...target, acceptHostKey },
    timeoutMs: 300_000,
  });
}

let source = await findOrAdd();
// Before anything is waited for: the agent of a server that was failed over is passive.
const former = source.jobId ? await api.job(source.jobId) : undefined;
if (former?.state.name === 'failed-over' || former?.state.name === 'failing-over') {
  say(`${source.name} is failed over already: its replica is ${former.settings.replicaName}`);
  say('undo or commit that failover on the page, or start anew: scripts/demo down');
  process.exit(0);
}
source = await until('the agent to come online', 600_000, async () => {
  const now = await api.source(source.sourceId);
  say(
    `source ${now.name}: ${now.state.name}${'step' in now.state ? ` (${now.state.step})` : ''}`,
    true,
  );
  if (now.state.name === 'install-failed' || now.state.name === 'refused')
    throw new GiveUp(JSON.stringify(now.state.error));
  return now.state.name === 'online' && now.inventory ? now : undefined;
});
const inventory = source.inventory;
if (!inventory) throw new Error('no inventory');
say(`${inventory.os}, kernel ${inventory.kernel}, ${inventory.disks.length} disks`);

let job =
  former ??
  (await api.call<Job>('/api/jobs', {
    body: {
      sourceId: source.sourceId,
      diskIds: inventory.disks.filter((disk) => disk.protectable).map((disk) => disk.diskId),
      pool: lab.pool,
      network: lab.network,
      replicaName: `${source.name}-replica`,
      vcpus: 1,
      memoryBytes: inventory.memoryBytes,
      compression: 'fast',
      bandwidthLimitBytesPerSec: null,
    },
    timeoutMs: 120_000,
  }));
job = await until('the job to be protected', 1_800_000, async () => {
  const now = await api.job(job.jobId);
  const done = now.disks.reduce((sum, disk) => sum + (disk.mirror?.doneBytes ?? 0), 0);
  const total = now.disks.reduce((sum, disk) => sum + (disk.mirror?.totalBytes ?? 0), 0);
  say(
    `job ${now.name}: ${now.state.name}, mirror ${mib(done)} of ${mib(total)}, ${mib(now.figures.rateBytesPerSec)}/s, lag ${mib(now.figures.lagBytes ?? 0)}`,
    true,
  );
  if (now.state.name === 'error') throw new GiveUp(JSON.stringify(now.state.error));
  return now.state.name === 'protected' ? now : undefined;
});
say(`protected: lag ${Math.round(job.figures.lagMs ?? 0)} ms`);

say(`pulling the plug of ${lab.source.domain}`);
await run(join(root, 'scripts/lab'), ['exec', 'virsh', 'destroy', lab.source.domain], {
  env: { ...process.env, LAB_NAME: lab.name },
});
let failover = await api.call<Failover>(`/api/jobs/${job.jobId}/failover`, {
  body: { kind: 'unplanned', confirm: job.settings.replicaName },
});
failover = await until('the failover to end', 1_800_000, async () => {
  const now = await api.failover(failover.failoverId);
  const step = now.steps.find((one) => one.state === 'running' || one.state === 'compensating');
  say(`failover: ${now.state.name}${step ? `, ${step.title}` : ''}`, true);
  if (now.state.name === 'failed') throw new GiveUp(JSON.stringify(now.state.error));
  return now.state.name === 'completed' ? now : undefined;
});
if (failover.state.name === 'completed') say(`the replica runs: ${failover.state.proof}`);
say(
  `addresses ${failover.addresses.join(', ') || 'none seen'}; loss ${Math.round(failover.point.lossMs ?? 0)} ms`,
);
const picture = await api.raw(`/api/failovers/${failover.failoverId}/screenshot`);
if (picture.status === 200) {
  const path = join(root, 'build/demo-screenshot.png');
  writeFileSync(path, picture.body);
  say(`its console: ${path}`);
}
say(`undo or commit it on the page: ${lab.url}`);
