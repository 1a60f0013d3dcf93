/**
 * The page in headless Chromium against the scripted API of test/e2e/page-mock.ts: one story from the first login to
 * the failover's undo, and what the page says when things go wrong. Pictures of every screen go to build/web.
 */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { DEFAULT_EXCLUSIONS } from '../../protocol/exclusions.ts';
import {
  addSource,
  failover,
  go,
  login,
  logout,
  type OpenPage,
  openBrowser,
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
import { MOCK_FINGERPRINT, MOCK_SOURCE, type PageMock, startPageMock } from '../e2e/page-mock.ts';
import { buildPage, dist, root } from './web.lab.ts';

const pictures = join(root, 'build/web');
const LIMIT_MS = 60_000;
// A browser on a busy machine takes its time; every wait has a limit of its own.
t.setTimeout(600_000);

await buildPage();
const browser = await openBrowser();
t.teardown(() => browser.close());

/** A fresh mock with a logged-in page; both are closed when the test ends. */
async function start(
  test: Test,
  options: { dark?: boolean; width?: number; first?: boolean } = {},
): Promise<{ mock: PageMock; opened: OpenPage }> {
  const mock = await startPageMock({ dist, stepMs: 70 });
  test.teardown(() => mock.close());
  const opened = await openPage({
    url: mock.url,
    browser,
    picturesDir: pictures,
    ...options,
  });
  test.teardown(() => opened.close());
  if (!options.first) {
    await login(opened.page, {
      username: 'admin',
      password: mock.firstPassword,
      newPassword: 'a password of my own',
    });
  }
  return { mock, opened };
}
const picture = (opened: OpenPage, name: string) =>
  shoot(opened.page, join(pictures, `${name}.png`), true);

t.test(
  'recovery points: the timeline by keyboard, a gap and its reason, labels, the journal',
  async (t) => {
    const { mock, opened } = await start(t);
    const { page } = opened;
    const source = await addSource(page, { ...MOCK_SOURCE, fingerprint: MOCK_FINGERPRINT });
    const { jobId } = await protect(page, { sourceId: source.sourceId });
    await waitForJob(page, jobId, ['protected'], LIMIT_MS);
    const timeline = page.locator('#timeline');
    await see(page, '[data-testid=timeline-gap][data-kind=order-lost]');
    t.equal(await page.locator('[data-testid=timeline-mark]').count(), 4);
    t.match(
      await page.locator('#history-warning').textContent(),
      /19 h of history, less than the 24 h/,
    );
    t.match(
      await page.locator('#history-forecast').textContent(),
      /history for 19 h .* bound by size/,
    );

    const shown = async () =>
      Number(await timeline.getAttribute('data-to-ms')) -
      Number(await timeline.getAttribute('data-from-ms'));
    const moment = () => page.locator('#timeline-moment').getAttribute('data-moment');
    const all = await shown();
    await timeline.focus();
    for (let press = 0; press < 10; press++) await page.keyboard.press('ArrowLeft');
    t.equal(await moment(), 'point');
    await page.keyboard.press('+');
    t.ok(Math.abs((await shown()) - all / 2) < 60_000, 'half of it is shown');
    await picture(opened, '08-timeline');

    await press(page, '#label-button');
    await page.locator('#label-text').fill('before the upgrade');
    await page.locator('#label-dialog button', { hasText: 'Save label' }).click();
    await see(page, '[data-testid=label]');
    t.match(await page.locator('#label-table').textContent(), /before the upgrade.*admin/);
    t.equal(await page.locator('[data-testid=timeline-label]').count(), 1);

    await press(page, '#timeline-all');
    const gap = page.locator('[data-testid=timeline-gap][data-kind=order-lost]');
    await gap.focus();
    t.match(
      await page.locator('#timeline-told').textContent(),
      /Order of writes lost: the ring buffer/,
    );
    await page.keyboard.press('Enter');
    await timeline.focus();
    t.equal(await moment(), 'gap', 'the cursor is in the gap');
    t.ok(await page.locator('#label-button').isDisabled(), 'which cannot be labelled');
    await press(page, '#timeline-minutes');
    t.ok(Math.abs((await shown()) - 600_000) < 2000, 'ten minutes around the cursor');

    await press(page, '#journal-check-button');
    await see(page, '#journal-faults');
    t.match(
      await page.locator('#journal-faults').textContent(),
      /s-0000000000041877.seg at byte 20971520/,
    );
    await page.locator('[data-testid=label] button', { hasText: 'Remove' }).click();
    await page.locator('[data-testid=label]').waitFor({ state: 'detached' });

    await press(page, '#job-menu');
    await press(page, '#job-settings');
    await page.locator('#history-hours').fill('0');
    t.ok(await page.locator('#settings-dialog button', { hasText: 'Save' }).isDisabled());
    await page.locator('#history-hours').fill('12');
    await page.locator('#history-gib').fill('30');
    await page.locator('#settings-dialog button', { hasText: 'Save' }).click();
    await page.locator('#settings-dialog').waitFor({ state: 'detached' });
    t.match(mock.jobs.get(jobId)!.settings, { historyHours: 12, historyBytes: 30 * 2 ** 30 });
    t.same(mock.violations, []);
  },
);

t.test('planned restarts: asked for in the wizard, told on the page, put off', async (t) => {
  const { mock, opened } = await start(t);
  const { page } = opened;
  const source = await addSource(page, MOCK_SOURCE);
  // The scripted agent says nothing of itself before the job is protected.
  mock.holdMirror = true;
  const { jobId } = await protect(page, {
    sourceId: source.sourceId,
    carryRestarts: true,
    sight: async (name) => {
      if (name === 'transfer' || name === 'summary') await picture(opened, `64-restarts-${name}`);
    },
  });
  t.equal(mock.jobs.get(jobId)!.settings.carryRestarts, true);
  const told = (what: string) =>
    waitFor(page, what, LIMIT_MS, async () =>
      ((await page.locator('#job-restarts').textContent()) ?? '').endsWith(what),
    );
  await told('carried over, as soon as the agent is there');
  mock.holdMirror = false;
  await waitForJob(page, jobId, ['protected'], LIMIT_MS);
  await told('carried over');
  mock.carryProblem = 'vdb is a member of an md array';
  await told('compared anew: vdb is a member of an md array');
  await picture(opened, '65-restarts-job');

  await press(page, '#job-menu');
  await press(page, '#job-settings');
  await see(page, '#settings-dialog');
  t.ok(await page.locator('#carry-restarts').isChecked(), 'as it is set');
  await page.locator('#carry-restarts').scrollIntoViewIfNeeded();
  await shoot(page, join(pictures, '66-restarts-settings.png'));
  await page.locator('#carry-restarts').uncheck();
  await page.locator('#settings-dialog button', { hasText: 'Save' }).click();
  await page.locator('#settings-dialog').waitFor({ state: 'detached' });
  t.equal(mock.jobs.get(jobId)!.settings.carryRestarts, false);
  await told('compared anew');
  t.same(mock.violations, []);
});

t.test('the whole path through the page: log in, add, protect, fail over, undo', async (t) => {
  const { mock, opened } = await start(t, { first: true });
  const { page } = opened;

  await see(page, '#login-form');
  await picture(opened, '01-login');
  await page.locator('#login-username').fill('admin');
  await page.locator('#login-password').fill('wrong');
  await press(page, '#login-submit');
  await see(page, '#login-error');
  t.equal(await page.locator('#login-error').getAttribute('data-code'), 'UND_AUTH_FAILED');

  const password = 'a password of my own';
  await login(page, { username: 'admin', password: mock.firstPassword, newPassword: password });
  t.notOk(mock.violations.length, 'contract kept until here');
  await see(page, '#overview-empty');
  await picture(opened, '02-overview-empty');
  await go(page, '/sources');
  await see(page, '#no-sources');
  await picture(opened, '03-sources-empty');

  const source = await addSource(page, {
    ...MOCK_SOURCE,
    fingerprint: MOCK_FINGERPRINT,
    sight: (name) => picture(opened, `04-add-${name}`),
  });
  t.equal(source.name, 'orders-db');
  t.equal(source.fingerprint, MOCK_FINGERPRINT);
  await see(page, '#inventory');
  await picture(opened, '05-source');
  t.equal(await page.locator('[data-testid=source-disk]').count(), 3, 'every disk is listed');

  mock.holdMirror = true;
  const job = await protect(page, {
    sourceId: source.sourceId,
    pool: 'default',
    network: 'lan',
    compression: 'balanced',
    bandwidthMibPerSec: 80,
    sight: (name) => picture(opened, `06-protect-${name}`),
  });
  t.equal(job.replicaName, 'orders-db-replica');
  t.ok(job.actions.length >= 5, 'the summary lists the actions');
  const { settings } = mock.jobs.get(job.jobId)!;
  t.same(settings.diskIds, ['disk-vda', 'disk-vdb'], 'all that can be protected is preselected');
  t.equal(settings.bandwidthLimitBytesPerSec, 80 * 2 ** 20);
  t.equal(settings.compression, 'balanced');
  t.same(settings.exclusions, DEFAULT_EXCLUSIONS, 'the default list is there to edit');
  t.equal(settings.memoryBytes, 2048 * 2 ** 20);

  await waitForJob(page, job.jobId, ['mirroring'], LIMIT_MS);
  await waitFor(page, 'some of the mirror to be done', LIMIT_MS, async () => {
    const done = await page
      .locator('[data-testid=disk-mirror]')
      .first()
      .getAttribute('data-done-bytes');
    return Number(done) > 2 ** 30;
  });
  await picture(opened, '07-job-mirroring');
  mock.holdMirror = false;
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  const sight = await waitFor(page, 'a lag to be told', LIMIT_MS, async () => {
    const now = await readJob(page);
    return now.lagMs !== null && now;
  });
  t.equal(sight.stream, 'ordered');
  t.ok(sight.newestPointAt, 'the newest point is told');
  await waitFor(page, 'the charts to have a line', LIMIT_MS, async () =>
    ((await page.locator('#chart-rate .und-chart-line').first().getAttribute('d')) ?? '').includes(
      'L',
    ),
  );
  await picture(opened, '08-job-protected');

  await go(page, '/');
  await waitFor(
    page,
    'the overview to count the job',
    LIMIT_MS,
    async () => (await page.locator('#overview-protected').getAttribute('data-count')) === '1',
  );
  await picture(opened, '09-overview');

  await showJob(page, job.jobId);
  await press(page, '#failover-button');
  await see(page, '#failover-dialog');
  t.ok(await page.locator('#confirm-submit').isDisabled(), 'nothing typed: no failover');
  await page.locator('#confirm-input').fill('orders-db');
  t.ok(await page.locator('#confirm-submit').isDisabled(), 'another name: no failover');
  await press(page, '#confirm-cancel');
  const started = await failover(page, {
    jobId: job.jobId,
    replicaName: job.replicaName,
    sight: (name) => picture(opened, `10-failover-${name}`),
  });
  t.ok(started.claimedLagMs !== null && started.claimedPointAt, 'the dialog said what is lost');
  await picture(opened, '11-failover-running');
  const done = await waitForFailover(page, started.failoverId, ['completed'], LIMIT_MS);
  t.ok(done.steps.every((step) => step.state === 'done') && done.steps.length === 9);
  t.match(done.proof, /login prompt/);
  t.same(done.addresses, ['192.0.2.41']);
  t.equal(done.guestChanges.length, 4);
  await waitFor(
    page,
    'the screenshot to be loaded',
    LIMIT_MS,
    async () =>
      (await page.evaluate('document.getElementById("failover-screenshot")?.naturalWidth ?? 0')) ===
      720,
  );
  await picture(opened, '12-failover-completed');
  await settleFailover(page, started.failoverId, 'undo', job.replicaName);
  await picture(opened, '13-failover-undone');

  for (const [place, seen] of [
    ['/sources', '#source-table'],
    ['/jobs', '#job-table'],
    ['/failovers', '#failover-table'],
    ['/host', '#pool-table'],
    ['/certificates', '#certificate-table'],
    ['/users', '#user-table'],
    ['/audit', '#audit-table'],
    ['/settings', '#ca-fingerprint'],
  ] as const) {
    await go(page, place);
    await see(page, seen);
    await picture(opened, `20${place.replace('/', '-')}`);
  }
  await logout(page);
  t.same(mock.violations, [], 'requests and answers kept to the contract');
  t.same(
    // A refused login is a 401, which Chromium's console reports as it reports every failed load.
    opened.complaints.filter((line) => !/status of 40[13]/.test(line)),
    [],
    'no error in the page, none in its console, nothing against a strict CSP',
  );
});

t.test('a recovery point is looked into: folders, a download, the export over NBD', async (t) => {
  const { mock, opened } = await start(t);
  const { page } = opened;
  const source = await addSource(page, MOCK_SOURCE);
  const { jobId } = await protect(page, { sourceId: source.sourceId });
  await waitForJob(page, jobId, ['protected'], LIMIT_MS);
  await press(page, '#mount-moment-button');
  await see(page, '#mount-dialog');
  await picture(opened, '60-mount-dialog');
  await press(page, '#confirm-submit');
  await see(page, '#mount[data-state=completed]');
  const volumes = page.locator('[data-testid=volume]');
  t.equal(await volumes.count(), 3);
  t.match(await volumes.nth(2).textContent(), /a part of a volume group/);
  // The root file system is shown at once.
  const folder = async (path: string) => {
    await see(page, `#folder[data-path="${path}"]`);
    return page.locator('[data-testid=file]').count();
  };
  t.equal(await folder('/'), 4);
  await picture(opened, '61-mount-files');
  const row = (path: string) => `[data-testid=file][data-path="${path}"]`;
  t.equal(await page.locator(`${row('/initctl')} a, ${row('/initctl')} button`).count(), 0);
  await press(page, `${row('/etc')} button`);
  t.equal(await folder('/etc'), 3);
  const [download] = await Promise.all([
    page.waitForEvent('download', { timeout: LIMIT_MS }),
    page.locator(`${row('/etc/hosts')} a`).click(),
  ]);
  t.equal(download.suggestedFilename(), 'hosts');
  await press(page, `${row('/etc/caf%C3%A9')} button`);
  await see(page, '#folder-empty');
  t.match(await page.locator('#folder nav').textContent(), /vda2 · \/.*etc.*café/);
  t.ok(
    mock.requests.some((line) => line.includes('path=%2Fetc%2Fcaf%25C3%25A9')),
    'bytes are kept',
  );
  await press(page, '#folder-root');
  await folder('/');
  await press(page, `${row('/bin')} button`);
  t.equal(await folder('/etc'), 3, 'where a link leads to');
  await press(page, '#folder-root');
  await press(page, `${row('/var')} button`);
  await press(page, `${row('/var/log')} button`);
  t.equal(await folder('/var/log'), 500);
  await press(page, '#folder-later');
  await waitFor(page, 'the next names', LIMIT_MS, async () =>
    ((await page.locator('#folder-range').textContent()) ?? '').startsWith('501 to 1000 of 1203'),
  );
  await showJob(page, jobId);
  await press(page, '#open-mounts a');
  await press(page, '#mount-end');
  await see(page, '#mount[data-state=undone]');

  await showJob(page, jobId);
  await press(page, '#mount-moment-button');
  await page.locator('#mount-nbd').check();
  await press(page, '#confirm-submit');
  await see(page, '[data-testid=nbd-export][data-name=vdb][data-port="10810"]');
  t.match(
    await page.locator('#nbd-credentials').getAttribute('href'),
    /^\/api\/mounts\/[0-9a-f-]+\/nbd-credentials\.tar$/,
  );
  await picture(opened, '62-mount-nbd');
  await go(page, '/failovers');
  await see(page, '#no-failovers');
  t.same(mock.violations, []);
  t.same(
    opened.complaints.filter((line) => !/status of 401/.test(line)),
    [],
    'no error in the page beside the question whether somebody is logged in',
  );
});

t.test('what goes wrong is told with code, message and hint', async (t) => {
  const { mock, opened } = await start(t);
  const { page } = opened;

  await t.rejects(
    addSource(page, { ...MOCK_SOURCE, address: '192.0.2.99' }),
    /UND_SSH_UNREACHABLE/,
    'unreachable',
  );
  await picture(opened, '30-unreachable');
  await t.rejects(
    addSource(page, { ...MOCK_SOURCE, password: 'wrong' }),
    /refused the login of admin.*UND_SSH_AUTH/s,
    'wrong password',
  );
  await picture(opened, '31-wrong-password');
  t.ok(await page.locator('#wizard-next').isDisabled(), 'nothing can be installed then');
  t.equal(mock.sources.size, 0);

  const source = await addSource(page, MOCK_SOURCE);
  await t.rejects(
    protect(page, { sourceId: source.sourceId, replicaName: 'taken' }),
    /UND_HV_NAME_IN_USE/,
    'the plan has a problem',
  );
  await picture(opened, '32-plan-problem');
  t.ok(await page.locator('#wizard-next').isDisabled(), 'a plan with problems cannot be started');
  t.equal(mock.jobs.size, 0);

  const job = await protect(page, { sourceId: source.sourceId });
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  mock.tell({
    type: 'job',
    job: {
      ...mock.jobs.get(job.jobId)!,
      state: {
        name: 'error',
        error: {
          code: 'UND_APPLY_NO_SPACE',
          message: 'Replica disk vda of job orders-db is out of space.',
          hint: 'Free space in the storage pool of the replica disk, then resume the job.',
        },
      },
    },
  });
  await see(page, '#job-error');
  t.equal(await page.locator('#job-error').getAttribute('data-code'), 'UND_APPLY_NO_SPACE');
  t.match(
    (await page.locator('#job-error').allInnerTexts()).join(),
    /Free space in the storage pool/,
  );
  await picture(opened, '33-job-error');
  mock.tell({
    type: 'notice',
    level: 'danger',
    error: {
      code: 'UND_HV_UNREACHABLE',
      message: 'The target host does not answer.',
      hint: 'Check the network.',
    },
  });
  await see(page, '[data-testid=notice][data-code=UND_HV_UNREACHABLE]');
  const notice = await page.locator('[data-testid=notice]').boundingBox();
  t.ok((notice?.y ?? 0) > 400, 'the buttons of the head stay free', { notice });
  await go(page, '/');
  await see(page, '#overview-concerns');
  await picture(opened, '34-overview-attention');
  await press(page, '#nav-jobs');
  await go(page, `/jobs/${job.jobId}`);
  await press(page, '#job-resume');
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  await press(page, '#job-pause');
  await waitForJob(page, job.jobId, ['paused'], LIMIT_MS);

  // Refusals that are 401 as an ended session is, and yet leave the session alone.
  await go(page, '/settings');
  await see(page, '#password-current');
  await page.locator('#password-current').fill('not my password');
  await page.locator('#password-next').fill('another password');
  await page.locator('#password-again').fill('another password');
  await press(page, '#password-submit');
  await see(page, '#password-error');
  t.equal(await page.locator('#password-error').getAttribute('data-code'), 'UND_AUTH_FAILED');
  t.equal(await page.locator('#login-form').count(), 0, 'still logged in');
  t.same(mock.violations, []);
});

t.test('a lost connection is shown, and what changed meanwhile is found out', async (t) => {
  const { mock, opened } = await start(t, { dark: true });
  const { page } = opened;
  const source = await addSource(page, MOCK_SOURCE);
  const job = await protect(page, { sourceId: source.sourceId });
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);

  mock.cutLink();
  await see(page, '#connection-lost');
  t.equal((await readJob(page)).stale, true, 'the figures are marked as old');
  await picture(opened, '40-connection-lost-dark');
  // Removed while the page cannot hear it: no event will ever tell.
  mock.jobs.delete(job.jobId);
  mock.sources.set(source.sourceId, { ...mock.sources.get(source.sourceId)!, jobId: null });
  mock.restoreLink();
  await waitFor(
    page,
    'the page to connect again by itself',
    LIMIT_MS,
    async () => !(await page.locator('#connection-lost').isVisible()),
  );
  await go(page, '/jobs');
  await see(page, '#no-jobs');
  await go(page, '/sources');
  await see(page, '#protect-orders-db');

  mock.endSessions();
  await see(page, '#session-ended');
  await picture(opened, '41-session-ended-dark');
  await login(page, { username: 'admin', password: 'a password of my own' });
  await see(page, '#protect-orders-db');
  t.same(mock.violations, []);
});

t.test(
  'a group: made, marked, failed over with a member that fails, tried again, undone',
  async (t) => {
    const { mock, opened } = await start(t);
    const { page } = opened;
    const source = await addSource(page, { ...MOCK_SOURCE, fingerprint: MOCK_FINGERPRINT });
    const { jobId } = await protect(page, { sourceId: source.sourceId });
    await waitForJob(page, jobId, ['protected'], LIMIT_MS);
    const first = mock.jobs.get(jobId)!;
    mock.tell({
      type: 'job',
      job: {
        ...first,
        jobId: 'job-of-shop',
        name: 'shop-replica',
        sourceName: 'shop',
        settings: { ...first.settings, replicaName: 'shop-replica' },
      },
    });

    await press(page, '#nav-groups');
    await see(page, '#no-groups');
    await press(page, '#new-group');
    await page.locator('#group-name').fill('orders and shop');
    await page.locator(`[id="group-member-${first.name}"]`).check();
    await page.locator('#group-member-shop-replica').check();
    await page.locator('#group-priority-shop-replica').selectOption('2');
    await page.locator('#group-schedule').selectOption('60');
    await page.locator('#group-test-schedule').selectOption('weekly');
    await press(page, '#group-save');
    await see(page, '[data-testid=group-member]');
    t.match(
      [...mock.groups.values()],
      [
        {
          name: 'orders and shop',
          wait: { for: 'proof' },
          schedule: { everyMinutes: 60, quiesce: true, checkpoint: false },
          testEvery: 'weekly',
          members: [
            { jobId, priority: 1 },
            { jobId: 'job-of-shop', priority: 2 },
          ],
        },
      ],
    );
    await see(page, '#group-newest');
    t.match(
      await page.locator('#group-tests-schedule').textContent(),
      /Every Sunday, at 03:00 UTC/,
    );
    t.match(await page.locator('#group-apart').textContent(), /at most 26 ms/);
    t.match(await page.locator('#group-member-table').textContent(), /\+1788 ms ± 3 ms/);
    t.equal(await page.locator('[data-testid=timeline-stretch]').count(), 2);

    await press(page, '#group-mark-button');
    await page.locator('#group-mark-name').fill('before the upgrade');
    await press(page, '#confirm-submit');
    await see(page, '[data-testid=group-mark]');
    t.match(
      await page.locator('#group-mark-table').textContent(),
      /before the upgrade.*applications/,
    );
    await page.locator('[data-testid=group-mark] button').click();
    await see(page, '#group-at-mark');
    await picture(opened, '60-group');

    mock.groupFails = 'shop';
    await press(page, '#group-failover-button');
    await see(page, '#group-failover-dialog');
    t.match(await page.locator('#group-target').textContent(), /the mark “before the upgrade”/);
    await page.locator('#confirm-input').fill('orders and shop');
    await press(page, '#confirm-submit');
    const state = (name: string) => see(page, `#group-run-state[data-state=${name}]`, LIMIT_MS);
    await state('stopped');
    t.match(await page.locator('#group-run-reason').textContent(), /Undo all, or try again/);
    t.match(
      await page.locator('[id="group-run-member-shop-replica"]').textContent(),
      /gave no proof of having booted/,
    );
    await picture(opened, '61-group-stopped');
    mock.groupFails = null;
    await press(page, '#group-resume');
    await state('completed');
    await picture(opened, '62-group-failed-over');
    await press(page, '#group-undo');
    await page.locator('#confirm-input').fill('orders and shop');
    await press(page, '#confirm-submit');
    await state('undone');
    t.equal(await page.locator('#group-undo').count(), 0);
    await press(page, '#nav-groups');
    t.match(await page.locator('#group-table').textContent(), /Undone/);
    t.same(mock.violations, []);
  },
);

t.test('a viewer sees everything and can change nothing', async (t) => {
  const { mock, opened } = await start(t, { width: 420 });
  const { page } = opened;
  const source = await addSource(page, MOCK_SOURCE);
  const job = await protect(page, { sourceId: source.sourceId });
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  await picture(opened, '50-job-narrow');

  await go(page, '/users');
  await press(page, '#add-user');
  await page.locator('#user-name').fill('watcher');
  await page.locator('#user-password').fill('looking only');
  await page.locator('#user-role-viewer').check();
  await press(page, '#confirm-submit');
  await see(page, '#user-row-watcher');
  await logout(page);
  await login(page, {
    username: 'watcher',
    password: 'looking only',
    newPassword: 'looking only, really',
  });
  await showJob(page, job.jobId);
  await see(page, '#job-state');
  t.equal(await page.locator('#failover-button').count(), 0);
  await go(page, `/sources/${source.sourceId}`);
  await see(page, '#source-state');
  t.equal(await page.locator('#uninstall-source').count(), 0);
  await go(page, '/users');
  await waitFor(page, 'the refusal', LIMIT_MS, async () =>
    (await page.locator('h2').allInnerTexts()).includes('Only admins see the users'),
  );
  t.same(mock.violations, []);
});
