/**
 * Drives the appliance's page in a headless browser, as a person would: by what is on the screen. Used against the
 * mock (test/integration/web.test.ts) and against a real appliance in the lab.
 *
 * Every function waits on conditions with a generous limit; when a limit passes, the error says what was waited for,
 * what the page showed instead, and where the picture of it lies.
 */
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type Browser, type BrowserContext, chromium, type Page } from 'playwright-core';

export type { Page } from 'playwright-core';

export interface OpenOptions {
  /** The page's address, e.g. `https://192.0.2.5/`. Certificates of the appliance's own CA are accepted. */
  url: string;
  dark?: boolean;
  width?: number;
  height?: number;
  /** Where pictures of failures go. */
  picturesDir?: string;
  /** An open browser to use; it stays open. */
  browser?: Browser;
}

export interface OpenPage {
  browser: Browser;
  context: BrowserContext;
  page: Page;
  /** Errors of the page's own code and what its console complained of. */
  complaints: string[];
  close: () => Promise<void>;
}

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const POLL_MS = 200;
/** For what only the page itself does, on a busy machine. */
const PAGE_LIMIT_MS = 60 * SECOND;

let picturesDir = 'build/test-logs/page';

/** Starts Debian's Chromium. */
export const openBrowser = (): Promise<Browser> =>
  chromium.launch({
    executablePath: process.env.UNDERSTUDY_CHROMIUM ?? '/usr/bin/chromium',
    // The tests run as root, and without a GPU.
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--font-render-hinting=none',
    ],
  });

/** Opens the page, in a browser of its own unless one is given. */
export async function openPage(options: OpenOptions): Promise<OpenPage> {
  picturesDir = options.picturesDir ?? picturesDir;
  const browser = options.browser ?? (await openBrowser());
  try {
    const context = await browser.newContext({
      ignoreHTTPSErrors: true,
      colorScheme: options.dark ? 'dark' : 'light',
      viewport: { width: options.width ?? 1360, height: options.height ?? 900 },
      acceptDownloads: true,
      // Without a GPU a spinner takes half a processor from the machines under test.
      reducedMotion: 'reduce',
    });
    const page = await context.newPage();
    page.setDefaultTimeout(PAGE_LIMIT_MS);
    const complaints: string[] = [];
    page.on('pageerror', (error) => complaints.push(`error: ${error.message}`));
    page.on('console', (message) => {
      if (message.type() === 'error' || message.type() === 'warning') {
        complaints.push(`${message.type()}: ${message.text()}`);
      }
    });
    await page.goto(options.url);
    const close = () => (options.browser ? context.close() : browser.close());
    return { browser, context, page, complaints, close };
  } catch (error) {
    if (!options.browser) await browser.close();
    throw error;
  }
}

/** A picture of what is on the screen now; with `full`, of the whole page. */
export async function shoot(page: Page, path: string, full = false): Promise<void> {
  mkdirSync(dirname(path), { recursive: true });
  const before = page.viewportSize();
  if (full && before) {
    // The page scrolls inside its frame, so the window is made as high as what is in it.
    const hidden = Number(
      await page.evaluate(
        "(() => { const main = document.querySelector('.pf-v6-c-page__main'); return main ? main.scrollHeight - main.clientHeight : 0; })()",
      ),
    );
    if (hidden > 0) await page.setViewportSize({ ...before, height: before.height + hidden });
  }
  await page.screenshot({ path, fullPage: full, animations: 'disabled' });
  if (full && before) await page.setViewportSize(before);
}

/** What the page shows, in few words: for error messages. */
async function told(page: Page): Promise<string> {
  const texts = async (selector: string) =>
    (await page.locator(selector).allInnerTexts()).map((text) => text.replace(/\s+/g, ' ').trim());
  try {
    const title = (await texts('#page-title, h1'))[0] ?? 'no title';
    const states = await texts('[data-testid=state]');
    const errors = await texts('[data-testid=error-alert], #connection-lost, [data-testid=notice]');
    return `the page "${title}" shows states [${states.slice(0, 8).join(', ')}]${errors.length ? ` and errors [${errors.join(' | ')}]` : ''}`;
  } catch (error) {
    return `the page could not be read: ${error}`;
  }
}

/** The wait is over without hope: what was waited for cannot come any more. */
export class Hopeless extends Error {}

/**
 * Polls until `probe` gives something other than undefined or false.
 * @throws Error that says what was waited for and what the page showed, with a picture of it.
 */
export async function waitFor<T>(
  page: Page,
  what: string,
  limitMs: number,
  probe: () => Promise<T | undefined | false>,
): Promise<T> {
  const end = Date.now() + limitMs;
  let last: unknown;
  let hopeless = false;
  for (;;) {
    try {
      const value = await probe();
      if (value !== undefined && value !== false) return value;
    } catch (error) {
      last = error;
      hopeless = error instanceof Hopeless;
    }
    if (hopeless || Date.now() > end) break;
    await page.waitForTimeout(POLL_MS);
  }
  const picture = join(picturesDir, `${what.replace(/[^a-z0-9]+/gi, '-').slice(0, 60)}.png`);
  await shoot(page, picture).catch(() => undefined);
  throw new Error(
    `waited ${hopeless ? 'in vain' : `${limitMs / SECOND} s`} for ${what}; ${await told(page)}${last ? `; last: ${last}` : ''}; picture: ${picture}`,
    { cause: last },
  );
}

const byId = (id: string) => `[id="${id}"]`;

async function visible(page: Page, selector: string): Promise<boolean> {
  return page.locator(selector).first().isVisible();
}

/** Waits until something is on the screen. */
export async function see(page: Page, selector: string, limitMs = PAGE_LIMIT_MS): Promise<void> {
  await waitFor(page, `${selector} to be seen`, limitMs, () => visible(page, selector));
}

/** Waits until a button can be pressed, and presses it. */
export async function press(page: Page, selector: string, limitMs = PAGE_LIMIT_MS): Promise<void> {
  const button = page.locator(selector).first();
  await waitFor(
    page,
    `${selector} to be ready to press`,
    limitMs,
    async () =>
      (await button.isVisible()) &&
      (await button.isEnabled()) &&
      (await button.getAttribute('aria-disabled')) !== 'true',
  );
  await button.click();
}

async function fill(page: Page, selector: string, value: string | number): Promise<void> {
  await page.locator(selector).fill(String(value));
}

/** The attribute of something on the page; undefined if one of them is not there. */
async function attribute(page: Page, selector: string, name: string): Promise<string | undefined> {
  const found = page.locator(selector).first();
  if ((await found.count()) === 0) return undefined;
  return (await found.getAttribute(name)) ?? undefined;
}

async function text(page: Page, selector: string): Promise<string> {
  return (await page.locator(selector).allInnerTexts())[0]?.trim() ?? '';
}

const numberOf = (value: string | undefined): number | null =>
  value === undefined || value === '' ? null : Number(value);

/** Goes to one of the page's places, e.g. `/jobs`. */
export async function go(page: Page, place: string): Promise<void> {
  await page.evaluate(`location.hash = ${JSON.stringify(`#${place}`)}`);
}

export interface LoginOptions {
  username: string;
  password: string;
  /** Set when the page asks for a password of one's own; needed at the first login. */
  newPassword?: string;
}

/** Logs in; at the first login sets the password that it asks for. */
export async function login(page: Page, options: LoginOptions): Promise<void> {
  await see(page, '#login-username', 2 * MINUTE);
  await fill(page, '#login-username', options.username);
  await fill(page, '#login-password', options.password);
  await press(page, '#login-submit');
  const next = await waitFor(page, 'the login to be accepted', PAGE_LIMIT_MS, async () => {
    if (await visible(page, '#login-error')) throw new Hopeless(await text(page, '#login-error'));
    if (await visible(page, '#password-next')) return 'password';
    return (await visible(page, '#session-user')) && 'in';
  });
  if (next === 'in') return;
  if (!options.newPassword) throw new Error('the page asks for a new password and none was given');
  await fill(page, '#password-current', options.password);
  await fill(page, '#password-next', options.newPassword);
  await fill(page, '#password-again', options.newPassword);
  await press(page, '#password-submit');
  await waitFor(page, 'the new password to be accepted', PAGE_LIMIT_MS, async () => {
    if (await visible(page, '#password-error')) {
      throw new Hopeless(await text(page, '#password-error'));
    }
    return visible(page, '#session-user');
  });
}

export interface AddSourceOptions {
  address: string;
  port?: number;
  username: string;
  password?: string;
  privateKey?: string;
  /** Compared with the one that the page shows, as a person would at the server's console. */
  fingerprint?: string;
  /** Called at each sight worth a picture: `address`, `host-key`, `checked`, `installing`, `installed`. */
  sight?: (name: string) => Promise<void>;
  preflightLimitMs?: number;
  installLimitMs?: number;
}

/** Adds a source server: address and login, preflight with the host key confirmed, install until it is online. */
export async function addSource(
  page: Page,
  options: AddSourceOptions,
): Promise<{ sourceId: string; name: string; fingerprint: string }> {
  const sight = options.sight ?? (async () => undefined);
  await go(page, '/sources');
  await press(page, '#add-source');
  await see(page, '#source-address');
  await fill(page, '#source-address', options.address);
  if (options.port) await fill(page, '#source-port', options.port);
  await fill(page, '#source-username', options.username);
  if (options.privateKey) {
    await page.locator('#source-auth-key').check();
    await fill(page, '#source-key', options.privateKey);
    if (options.password) await fill(page, '#source-sudo-password', options.password);
  } else {
    await fill(page, '#source-password', options.password ?? '');
  }
  await sight('address');
  await press(page, '#wizard-next');

  const preflightLimitMs = options.preflightLimitMs ?? 5 * MINUTE;
  const settled = async () => {
    if (await visible(page, '#preflight-error')) {
      throw new Hopeless(await text(page, '#preflight-error'));
    }
    const state = await attribute(page, '#preflight', 'data-state');
    return state !== undefined && state !== 'busy' && state;
  };
  await waitFor(page, 'the first preflight to end', preflightLimitMs, settled);
  let fingerprint = '';
  if (await visible(page, '#host-key-accept')) {
    fingerprint = await text(page, '#host-key-fingerprint');
    if (options.fingerprint && fingerprint !== options.fingerprint) {
      throw new Error(
        `the page shows host key ${fingerprint}, the server has ${options.fingerprint}`,
      );
    }
    await sight('host-key');
    await page.locator('#host-key-accept').check();
  }
  await waitFor(page, 'the preflight to say that all is in order', preflightLimitMs, async () => {
    const state = await settled();
    if (state === 'failed' && (await visible(page, '#preflight-verdict'))) {
      throw new Hopeless(
        (
          await page.locator('[data-testid=preflight-check][data-result=failed]').allInnerTexts()
        ).join(' | '),
      );
    }
    return state === 'ok';
  });
  await sight('checked');
  await press(page, '#wizard-next');

  await see(page, '#install-progress');
  await waitFor(page, 'the installation to be under way', PAGE_LIMIT_MS, async () => {
    const state = await attribute(page, '#install-progress', 'data-state');
    return state !== undefined && state !== 'starting';
  });
  await sight('installing');
  await waitFor(
    page,
    'the agent to be installed and connected',
    options.installLimitMs ?? 10 * MINUTE,
    async () => {
      const state = await attribute(page, '#install-progress', 'data-state');
      if (state === 'refused' || state === 'install-failed') {
        throw new Hopeless(await text(page, '#install-progress'));
      }
      return (await visible(page, '#install-done')) && true;
    },
  );
  await sight('installed');
  const sourceId = (await attribute(page, '#install-progress', 'data-source-id'))!;
  await press(page, '#wizard-next');
  await see(page, '#source-state');
  return { sourceId, name: await text(page, '#page-title'), fingerprint };
}

export interface ProtectOptions {
  sourceId: string;
  /** Kernel names; default: all that can be protected. */
  disks?: string[];
  pool?: string;
  network?: string;
  replicaName?: string;
  vcpus?: number;
  memoryMib?: number;
  compression?: 'none' | 'fast' | 'balanced' | 'best';
  bandwidthMibPerSec?: number;
  carryRestarts?: boolean;
  /** `disks`, `target`, `replica`, `transfer`, `summary`. */
  sight?: (name: string) => Promise<void>;
}

/** Goes through the protection wizard; returns when the job's page is shown. */
export async function protect(
  page: Page,
  options: ProtectOptions,
): Promise<{ jobId: string; replicaName: string; actions: string[] }> {
  const sight = options.sight ?? (async () => undefined);
  await go(page, `/sources/${options.sourceId}`);
  await see(page, '#source-state');
  // Ready once the agent is online and its inventory is known.
  await press(page, 'a[id^="protect-"], button[id^="protect-"]', 5 * MINUTE);
  await see(page, '#protect-disks');
  if (options.disks) {
    for (const row of await page.locator('[id^="protect-disk-"]').all()) {
      const name = (await row.getAttribute('id'))!.slice('protect-disk-'.length);
      const box = row.locator('input[type=checkbox]');
      if (await box.isEnabled()) await box.setChecked(options.disks.includes(name));
    }
  }
  await sight('disks');
  await press(page, '#wizard-next');

  await see(page, '#protect-pools');
  if (options.pool) await page.locator(`${byId(`protect-pool-${options.pool}`)} input`).check();
  if (options.network) {
    await page.locator(`${byId(`protect-network-${options.network}`)} input`).check();
  }
  // Each table keeps its own choice, the one proposed or the one made.
  for (const table of ['#protect-pools', '#protect-networks']) {
    const chosen = await page.locator(`${table} input:checked`).count();
    if (chosen !== 1) throw new Error(`${chosen} rows of ${table} are chosen`);
  }
  await sight('target');
  await press(page, '#wizard-next');

  await see(page, '#replica-name');
  if (options.replicaName) await fill(page, '#replica-name', options.replicaName);
  if (options.vcpus) await fill(page, '#replica-vcpus', options.vcpus);
  if (options.memoryMib) await fill(page, '#replica-memory-mib', options.memoryMib);
  const replicaName = await page.locator('#replica-name').inputValue();
  await sight('replica');
  await press(page, '#wizard-next');

  await see(page, '#bandwidth-limited');
  if (options.compression) await page.locator(`#compression-${options.compression}`).check();
  if (options.bandwidthMibPerSec) {
    await page.locator('#bandwidth-limited').check();
    await fill(page, '#bandwidth-limit-mib', options.bandwidthMibPerSec);
  }
  if (options.carryRestarts) await page.locator('#carry-restarts').check();
  await sight('transfer');
  await press(page, '#wizard-next');

  await waitFor(page, 'the summary of what will be done', 2 * MINUTE, async () => {
    const state = await attribute(page, '#protect-summary', 'data-state');
    if (state === 'problems') {
      throw new Hopeless(await text(page, '#protect-summary'));
    }
    return state === 'ok';
  });
  const actions = await page.locator('#plan-actions li').allInnerTexts();
  await sight('summary');
  await press(page, '#wizard-next');
  await waitFor(page, 'the protection to be started', 2 * MINUTE, async () => {
    if (await visible(page, '#protect-error'))
      throw new Hopeless(await text(page, '#protect-error'));
    return visible(page, '#job-state');
  });
  const jobId = (await attribute(page, '#job', 'data-job-id'))!;
  return { jobId, replicaName, actions };
}

export interface JobSight {
  state: string;
  stream: string;
  /** Lag as the page claims it; null: unknown. */
  lagMs: number | null;
  lagBytes: number | null;
  rateBytesPerSec: number | null;
  durableSeq: number | null;
  appliedSeq: number | null;
  /** ISO 8601. */
  newestPointAt: string | null;
  /** The page has lost its connection: the figures are old. */
  stale: boolean;
}

/** What the job's page shows now; go there first (`showJob`). */
export async function readJob(page: Page): Promise<JobSight> {
  return {
    state: (await attribute(page, '#job-state', 'data-state')) ?? '',
    stream: (await attribute(page, '#job-stream', 'data-state')) ?? '',
    lagMs: numberOf(await attribute(page, '#job-lag', 'data-ms')),
    lagBytes: numberOf(await attribute(page, '#job-lag-bytes', 'data-bytes')),
    rateBytesPerSec: numberOf(await attribute(page, '#job-rate', 'data-bytes-per-sec')),
    durableSeq: numberOf(await text(page, '#job-durable-seq')),
    appliedSeq: numberOf(await text(page, '#job-applied-seq')),
    newestPointAt: (await attribute(page, '#job-newest-point', 'datetime')) ?? null,
    stale: (await attribute(page, '#job', 'data-stale')) === 'true',
  };
}

export async function showJob(page: Page, jobId: string): Promise<void> {
  await go(page, `/jobs/${jobId}`);
  await see(page, `#job[data-job-id="${jobId}"]`);
}

/** Waits on the job's page until it shows one of the states; gives up at once when the job is stopped by an error. */
export async function waitForJob(
  page: Page,
  jobId: string,
  states: string[],
  limitMs: number,
): Promise<JobSight> {
  await showJob(page, jobId);
  return waitFor(page, `the job to be ${states.join(' or ')}`, limitMs, async () => {
    const sight = await readJob(page);
    if (states.includes(sight.state)) return sight;
    if (sight.state === 'error') throw new Hopeless(await text(page, '#job-error'));
    return undefined;
  });
}

export interface FailoverOptions {
  jobId: string;
  replicaName: string;
  /** `asked`. */
  sight?: (name: string) => Promise<void>;
}

/**
 * Presses "Fail over", types the replica's name and confirms. Returns what the dialog had said would be lost, read in
 * the moment before the confirmation.
 */
export async function failover(
  page: Page,
  options: FailoverOptions,
): Promise<{
  failoverId: string;
  claimedLagMs: number | null;
  claimedLagBytes: number | null;
  claimedPointAt: string | null;
}> {
  await showJob(page, options.jobId);
  await press(page, '#failover-button');
  await see(page, '#failover-dialog');
  await fill(page, '#confirm-input', options.replicaName);
  await options.sight?.('asked');
  const claimedLagMs = numberOf(await attribute(page, '#failover-loss', 'data-lag-ms'));
  const claimedLagBytes = numberOf(await attribute(page, '#failover-loss', 'data-lag-bytes'));
  const claimedPointAt = (await attribute(page, '#failover-point time', 'datetime')) ?? null;
  await press(page, '#confirm-submit');
  const failoverId = await waitFor(page, 'the failover to start', 2 * MINUTE, async () => {
    if (await visible(page, '#confirm-error'))
      throw new Hopeless(await text(page, '#confirm-error'));
    return attribute(page, '#failover', 'data-failover-id');
  });
  return { failoverId, claimedLagMs, claimedLagBytes, claimedPointAt };
}

export interface FailoverSight {
  state: string;
  lostMs: number | null;
  recoveredTo: string | null;
  proof: string;
  addresses: string[];
  guestChanges: string[];
  steps: { name: string; state: string }[];
  screenshot: boolean;
}

export async function readFailover(page: Page): Promise<FailoverSight> {
  const steps = [];
  for (const step of await page.locator('[data-testid=failover-step]').all()) {
    steps.push({
      name: ((await step.getAttribute('id')) ?? '').slice('failover-step-'.length),
      state: (await step.getAttribute('data-state')) ?? '',
    });
  }
  return {
    state: (await attribute(page, '#failover-state', 'data-state')) ?? '',
    lostMs: numberOf(await attribute(page, '#failover-lost', 'data-ms')),
    recoveredTo: (await attribute(page, '#failover-recovered-to time', 'datetime')) ?? null,
    proof: await text(page, '#failover-proof'),
    addresses: (await text(page, '#failover-addresses')).match(/[0-9a-f]*[.:][0-9a-f.:]+/gi) ?? [],
    guestChanges: await page.locator('#failover-guest-changes li').allInnerTexts(),
    steps,
    screenshot: (await page.locator('#failover-screenshot').count()) > 0,
  };
}

/** Waits on the failover's page for one of the states (`completed`, `undone`, `committed`, …). */
export async function waitForFailover(
  page: Page,
  failoverId: string,
  states: string[],
  limitMs: number,
): Promise<FailoverSight> {
  await go(page, `/failovers/${failoverId}`);
  await see(page, `#failover[data-failover-id="${failoverId}"]`);
  return waitFor(page, `the failover to be ${states.join(' or ')}`, limitMs, async () => {
    const state = (await attribute(page, '#failover-state', 'data-state')) ?? '';
    if (states.includes(state)) return readFailover(page);
    if (state === 'failed') throw new Hopeless(await text(page, '#failover-error'));
    return undefined;
  });
}

/** Undoes or commits a completed failover, with its typed confirmation. */
export async function settleFailover(
  page: Page,
  failoverId: string,
  act: 'undo' | 'commit',
  replicaName: string,
  limitMs = 10 * MINUTE,
): Promise<FailoverSight> {
  await go(page, `/failovers/${failoverId}`);
  await press(page, `#${act}-button`);
  await fill(page, '#confirm-input', replicaName);
  await press(page, '#confirm-submit');
  return waitForFailover(page, failoverId, [act === 'undo' ? 'undone' : 'committed'], limitMs);
}

/** As `login`, where a session may have outlived a restart. */
export async function loginAgain(page: Page, options: LoginOptions): Promise<void> {
  await page.reload();
  const asked = await waitFor(page, 'the page, or its login', 2 * MINUTE, async () =>
    (await visible(page, '#login-username'))
      ? 'yes'
      : (await visible(page, '#session-user')) && 'no',
  );
  if (asked === 'yes') await login(page, options);
}

/** Uninstalls the agent of a source that is online, and forgets the source. */
export async function uninstall(page: Page, sourceId: string, name: string): Promise<void> {
  await go(page, `/sources/${sourceId}`);
  await press(page, '#uninstall-source');
  await fill(page, '#confirm-input', name);
  await press(page, '#confirm-submit');
  await waitFor(page, 'the source to be gone from the list', 5 * MINUTE, async () => {
    if (await visible(page, '#confirm-error'))
      throw new Hopeless(await text(page, '#confirm-error'));
    return visible(page, '#add-source');
  });
}

export async function logout(page: Page): Promise<void> {
  await press(page, '#logout');
  await see(page, '#login-username');
}
