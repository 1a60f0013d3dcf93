/**
 * Makes the pictures of docs/img anew, from the scripted API of page-mock.ts: `node test/e2e/page-pictures.ts`.
 * Takes some minutes, so that the charts have something to show. A failover's result is not among them: its proof
 * of boot would be an invented one.
 */
import { join } from 'node:path';
import { buildPage, dist, root } from '../integration/web.lab.ts';
import {
  addSource,
  go,
  login,
  openPage,
  press,
  protect,
  see,
  shoot,
  showJob,
  waitForJob,
} from './page.ts';
import { MOCK_SOURCE, startPageMock } from './page-mock.ts';

const CHART_MS = 120_000;
const LIMIT_MS = 300_000;
const to = (name: string) => join(root, 'docs/img', `${name}.png`);

await buildPage();
const mock = await startPageMock({ dist, stepMs: 700 });
const opened = await openPage({ url: mock.url, width: 1280, height: 860 });
try {
  const { page } = opened;
  await login(page, {
    username: 'admin',
    password: mock.firstPassword,
    newPassword: 'a password of my own',
  });
  const source = await addSource(page, {
    ...MOCK_SOURCE,
    sight: async (name) => {
      if (name === 'checked') await shoot(page, to('preflight'), true);
    },
  });
  await shoot(page, to('source'), true);
  const job = await protect(page, {
    sourceId: source.sourceId,
    sight: async (name) => {
      if (name === 'summary') await shoot(page, to('protect'), true);
    },
  });
  await waitForJob(page, job.jobId, ['protected'], LIMIT_MS);
  await page.waitForTimeout(CHART_MS);
  await shoot(page, to('job'), true);
  await go(page, '/');
  await see(page, '#job-table');
  await shoot(page, to('overview'), true);
  await showJob(page, job.jobId);
  await press(page, '#failover-button');
  await see(page, '#failover-dialog');
  await shoot(page, to('failover-dialog'));
} finally {
  await opened.close();
  await mock.close();
}
