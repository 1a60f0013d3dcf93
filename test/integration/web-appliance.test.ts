/**
 * The page against the appliance's own API (with stand-ins only for the target host, SSH and the capture): whatever
 * the two of them understand differently of the contract shows here, long before the lab.
 */
import { statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { ApplianceConfig } from '../../appliance/config.ts';
import {
  addSource,
  failover,
  go,
  login,
  openPage,
  press,
  protect,
  readJob,
  see,
  settleFailover,
  shoot,
  showJob,
  waitFor,
  waitForFailover,
  waitForJob,
} from '../e2e/page.ts';
import { Lab, PASSWORD } from './api.lab.ts';
import { buildPage, dist } from './web.lab.ts';

const MIB = 2 ** 20;
const LIMIT_MS = 60_000;
t.setTimeout(600_000);

/** The lab's appliance, with the page. */
class PageLab extends Lab {
  override get config(): ApplianceConfig {
    return { ...super.config, webDir: dist };
  }
}

t.test('the whole path, from the page through the real API', async (t) => {
  await buildPage();
  const lab = new PageLab();
  t.teardown(() => lab.close());
  await lab.start();
  const server = lab.addSource('files-1');
  await server.addDisk('vda', 8 * MIB);
  await server.addDisk('vdb', 4 * MIB);
  await server.kernel.write(0, 0, Buffer.alloc(MIB, 'a'));

  const pictures = 'build/web-appliance';
  const opened = await openPage({
    url: `https://127.0.0.1:${lab.appliance.httpsPort}/`,
    picturesDir: pictures,
  });
  t.teardown(() => opened.close());
  const { page } = opened;
  await login(page, { username: 'admin', password: PASSWORD });

  const source = await addSource(page, { address: 'files-1', username: 'root', password: 'any' });
  t.equal(source.name, 'files-1');
  const job = await protect(page, {
    sourceId: source.sourceId,
    network: 'lan',
    memoryMib: 256,
    compression: 'best',
    bandwidthMibPerSec: 90,
  });
  t.equal(job.replicaName, 'files-1-replica');
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  await server.kernel.write(1, MIB, Buffer.alloc(MIB, 'b'));
  const before = await readJob(page);
  await waitFor(page, 'the write to be safe and applied', LIMIT_MS, async () => {
    const now = await readJob(page);
    return (
      (now.durableSeq ?? 0) > (before.durableSeq ?? 0) &&
      now.appliedSeq === now.durableSeq &&
      now.newestPointAt !== null
    );
  });
  await shoot(page, join(pictures, 'job.png'), true);

  await press(page, '#job-pause');
  await waitForJob(page, job.jobId, ['paused'], LIMIT_MS);
  await press(page, '#job-resume');
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  await press(page, '#job-menu');
  await press(page, '#job-settings');
  await page.locator('#compression-none').check();
  await page.locator('#bandwidth-limited').uncheck();
  await page.locator('#settings-units-add').selectOption('nginx.service');
  await page.locator('#test-script').fill('echo "rows: 42"');
  await page.locator('#test-ports').fill('0');
  t.equal(await page.locator('#confirm-submit').isDisabled(), true, 'no such port');
  await page.locator('#test-ports').fill('');
  await shoot(page, join(pictures, 'settings.png'), true);
  await press(page, '#confirm-submit');
  await waitFor(page, 'the changed settings', LIMIT_MS, async () =>
    (await page.locator('#job-bandwidth').allInnerTexts())[0]?.includes('no limit'),
  );

  // Red when the dialogs send what the API does not take, or show what it does not say.
  await showJob(page, job.jobId);
  t.match(await page.locator('#job-tests-checks').textContent(), /a script of at most 60 s/);
  await press(page, '#test-button');
  await see(page, '#test-checks');
  await shoot(page, join(pictures, 'test-dialog.png'));
  await press(page, '#confirm-submit');
  await waitFor(
    page,
    'the verdict of the test',
    LIMIT_MS,
    async () =>
      (await page.locator('#failover-state').allInnerTexts())[0]?.includes('Passed') &&
      (await page.locator('[data-testid=test-check][data-state=passed]').count()) === 1,
  );
  t.match(await page.locator('#failover-checks').textContent(), /rows: 42/);
  await shoot(page, join(pictures, 'test.png'), true);
  await waitForFailover(
    page,
    (await page.locator('#failover').getAttribute('data-failover-id')) ?? '',
    ['undone'],
    LIMIT_MS,
  );

  await showJob(page, job.jobId);
  await press(page, '#failover-button');
  await page.locator('#failover-planned').check();
  t.equal(await page.locator('#failover-units').inputValue(), 'nginx.service', "the job's own");
  await page.locator('#failover-units-add').selectOption('postgresql.service');
  await page.locator('#failover-power-off').uncheck();
  await page.locator('#auto-end-act').selectOption('undo');
  await page.locator('#auto-end-minutes').fill('0');
  await page.locator('#confirm-input').fill(job.replicaName);
  t.equal(await page.locator('#confirm-submit').isDisabled(), true, 'no minutes');
  await page.locator('#auto-end-minutes').fill('600');
  await page.locator('#failover-isolate').check();
  await shoot(page, join(pictures, 'planned-dialog.png'), true);
  await press(page, '#confirm-submit');
  await see(page, '#failover');
  const plannedId = (await page.locator('#failover').getAttribute('data-failover-id')) ?? '';
  const planned = await waitForFailover(page, plannedId, ['completed'], LIMIT_MS);
  t.equal(planned.steps.length, 12);
  t.match(
    await page.locator('#failover-step-stop-services').textContent(),
    /nginx\.service.*postgresql\.service/s,
  );
  await waitFor(page, 'the countdown', LIMIT_MS, async () =>
    /undone by itself in \d/.test(
      (await page.locator('#failover-auto-end').allInnerTexts())[0] ?? '',
    ),
  );
  await waitFor(page, 'the source to be cut off', LIMIT_MS, async () => server.isolation);
  await shoot(page, join(pictures, 'planned.png'), true);
  await press(page, '#auto-end-change');
  await page.locator('#auto-end-act').selectOption('none');
  await press(page, '#confirm-submit');
  await waitFor(
    page,
    'nothing to be done by itself',
    LIMIT_MS,
    async () => (await page.locator('#failover-auto-end').count()) === 0,
  );
  await settleFailover(page, plannedId, 'undo', job.replicaName);
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  t.equal(server.isolation, null);

  const started = await failover(page, { jobId: job.jobId, replicaName: job.replicaName });
  const done = await waitForFailover(page, started.failoverId, ['completed'], LIMIT_MS);
  t.ok(done.steps.every((step) => step.state === 'done'));
  t.equal(done.steps.length, 9);
  t.match(done.proof, /the guest agent answered/);
  t.same(done.addresses, ['192.0.2.77']);
  await shoot(page, join(pictures, 'failover.png'), true);
  await settleFailover(page, started.failoverId, 'undo', job.replicaName);

  for (const [place, seen] of [
    ['/', '#overview-protected'],
    ['/host', '#pool-table'],
    ['/certificates', '#certificate-table'],
    ['/users', '#user-table'],
    ['/audit', '#audit-table'],
    ['/settings', '#ca-fingerprint'],
  ] as const) {
    await go(page, place);
    await see(page, seen);
    t.equal(await page.locator('[data-testid=error-alert]').count(), 0, `${place} has no error`);
  }

  // A restart of the appliance: the page finds it again, and the person stays logged in.
  await showJob(page, job.jobId);
  await lab.restart();
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  await waitFor(
    page,
    'the page to be connected again',
    LIMIT_MS,
    async () =>
      !(await page.locator('#connection-lost').isVisible()) && !(await readJob(page)).stale,
  );

  await press(page, '#job-menu');
  await press(page, '#job-delete');
  await page.locator('#delete-delete-disks').check();
  await page.locator('#confirm-input').fill(job.replicaName);
  await press(page, '#confirm-submit');
  await see(page, '#no-jobs');
  await go(page, `/sources/${source.sourceId}`);
  await see(page, '#source-state');
  await press(page, '#uninstall-source');
  await page.locator('#confirm-input').fill('files-1');
  await press(page, '#confirm-submit');
  await see(page, '#no-sources');
  t.same(
    // The console tells of the connections that broke with the restart.
    opened.complaints.filter((line) => !/ERR_|Failed to load resource/.test(line)),
    [],
    'no error in the page',
  );
});

// Red when the page and the API understand one of these acts differently, or the login is not asked for again.
t.test('certificates, backup and restore, from the page', async (t) => {
  await buildPage();
  const lab = new PageLab();
  t.teardown(() => lab.close());
  await lab.start();
  const server = lab.addSource('files-2');
  await server.addDisk('vda', 4 * MIB);
  const opened = await openPage({
    url: `https://127.0.0.1:${lab.appliance.httpsPort}/`,
    picturesDir: 'build/web-appliance',
  });
  t.teardown(() => opened.close());
  const { page } = opened;
  await login(page, { username: 'admin', password: PASSWORD });
  const source = await addSource(page, { address: 'files-2', username: 'root', password: 'any' });

  await go(page, '/settings');
  await page.locator('#backup-passphrase').fill('a good passphrase');
  const download = page.waitForEvent('download');
  await press(page, '#backup-submit');
  const file = join(lab.dir, (await download).suggestedFilename());
  await (await download).saveAs(file);
  await see(page, '#backup-done');
  t.match(file, /understudy-config-.*\.backup$/);
  t.ok(statSync(file).size > 1000);

  const rows = () =>
    page
      .locator('#certificate-table tbody tr')
      .evaluateAll((all) =>
        all.map((row) => row.textContent?.match(/Valid|Revoked|Superseded/)?.[0]),
      );
  await go(page, `/sources/${source.sourceId}`);
  await press(page, '#certificate-renew');
  await press(page, '#confirm-submit');
  await go(page, '/certificates');
  await waitFor(page, 'the new certificate', LIMIT_MS, async () => (await rows()).length === 2);

  await go(page, `/sources/${source.sourceId}`);
  await press(page, '#certificate-revoke');
  await page.locator('#confirm-input').fill('files-2');
  await press(page, '#confirm-submit');
  await waitFor(page, 'the agent to be cut off', LIMIT_MS, async () =>
    /Revoked/.test((await page.locator('#certificate-state').allInnerTexts())[0] ?? ''),
  );
  await waitFor(page, 'the source to be refused', LIMIT_MS, async () =>
    ['offline', 'refused'].includes(
      (await page.locator('#source-state').getAttribute('data-state')) ?? '',
    ),
  );
  await go(page, '/certificates');
  await waitFor(page, 'no certificate to be valid', LIMIT_MS, async () => {
    const now = await rows();
    return now.length === 2 && now.every((state) => state === 'Revoked');
  });

  await go(page, '/settings');
  await page.locator('input[type=file]').setInputFiles(file);
  await page.locator('#restore-passphrase').fill('another passphrase');
  await press(page, '#restore-submit');
  await page.locator('#confirm-input').fill('restore');
  await press(page, '#confirm-submit');
  await waitFor(
    page,
    'the refusal of a wrong passphrase',
    LIMIT_MS,
    async () =>
      (await page.locator('#confirm-error').getAttribute('data-code')) === 'UND_BACKUP_DAMAGED',
  );
  t.equal(lab.restartsAsked, 0);
  await press(page, '#confirm-cancel');
  await page.locator('#restore-passphrase').fill('a good passphrase');
  await press(page, '#restore-submit');
  await page.locator('#confirm-input').fill('restore');
  const restarted = lab.serveRestart();
  await press(page, '#confirm-submit');
  await see(page, '#restore-done');
  await restarted;
  await go(page, '/');
  await login(page, { username: 'admin', password: PASSWORD });
  await go(page, '/certificates');
  // The agent has kept the certificate that counted then; whether it has renewed that since is its own affair.
  await waitFor(page, 'the certificates of before', LIMIT_MS, async () => {
    const now = await rows();
    return now.length > 0 && now.every((state) => state === 'Valid');
  });
  await go(page, `/sources/${source.sourceId}`);
  await waitFor(
    page,
    'the agent to be back by itself',
    LIMIT_MS,
    async () => (await page.locator('#source-state').getAttribute('data-state')) === 'online',
  );
});
