/**
 * What the appliance says of itself, live: sources, jobs and failovers, kept current by its event stream.
 *
 * The stream starts with the current state of everything but failovers that are long over, and every later change is an
 * event, in order, so applying events in order is always right. It cannot tell of what was removed while the page was
 * away: for that, and for what is long over, the lists are read once after every (re)connection, and only what the stream
 * has not spoken of since is taken from them.
 */
import type {
  ApiError,
  Failover,
  Group,
  GroupRunView,
  Job,
  ServerEvent,
  Source,
} from '../../../api/schema.ts';
import { ApiFailure, api, applianceNow, asApiError } from './client.ts';

export type Link =
  | { name: 'connecting' }
  | { name: 'live' }
  | { name: 'lost'; sinceMs: number; reason: string };

export interface Notice {
  key: number;
  level: 'info' | 'warning' | 'danger';
  error: ApiError;
}

/** One job's figures at a moment, for the charts. */
export interface Sample {
  atMs: number;
  rateBytesPerSec: number;
  lagMs: number | null;
  lagBytes: number | null;
}

export interface LiveState {
  link: Link;
  /** The first full picture has arrived; before it, empty lists mean nothing. */
  synced: boolean;
  /** The appliance runs another version than when this page was loaded. */
  upgraded: boolean;
  sources: ReadonlyMap<string, Source>;
  jobs: ReadonlyMap<string, Job>;
  failovers: ReadonlyMap<string, Failover>;
  /** Recovery points that are or were open for reading. */
  mounts: ReadonlyMap<string, Failover>;
  groups: ReadonlyMap<string, Group>;
  groupRuns: ReadonlyMap<string, GroupRunView>;
  notices: readonly Notice[];
}

/** How long the charts look back. */
export const SAMPLES_KEPT_MS = 10 * 60_000;
const SAMPLE_EVERY_MS = 1000;
/** Silence after which the page asks whether the appliance is still there. */
const QUIET_MS = 15_000;
const RETRY_MS = [500, 1000, 2000, 4000, 8000];

const EMPTY: LiveState = {
  link: { name: 'connecting' },
  synced: false,
  upgraded: false,
  sources: new Map(),
  jobs: new Map(),
  failovers: new Map(),
  mounts: new Map(),
  groups: new Map(),
  groupRuns: new Map(),
  notices: [],
};

let state: LiveState = EMPTY;
const listeners = new Set<() => void>();
const samples = new Map<string, Sample[]>();
let stream: EventSource | undefined;
let retryTimer: ReturnType<typeof setTimeout> | undefined;
let watchTimer: ReturnType<typeof setInterval> | undefined;
let attempts = 0;
let lastHeardMs = 0;
let noticeKey = 0;
let versionAtLoad: string | undefined;
/** What the stream has spoken of since it was opened, by kind and id. */
let spoken = new Set<string>();
/** Which of all events of the stream was the last to speak of something, by kind and id. */
const lastEvent = new Map<string, number>();
let eventCount = 0;

function update(change: Partial<LiveState>): void {
  state = { ...state, ...change };
  for (const listener of listeners) listener();
}

const withEntry = <T>(map: ReadonlyMap<string, T>, key: string, value: T) =>
  new Map(map).set(key, value);
function without<T>(map: ReadonlyMap<string, T>, key: string): ReadonlyMap<string, T> {
  const copy = new Map(map);
  copy.delete(key);
  return copy;
}

function keepSample(job: Job): void {
  const kept = samples.get(job.jobId) ?? [];
  const atMs = Date.now();
  const { rateBytesPerSec, lagMs, lagBytes } = job.figures;
  const now: Sample = { atMs, rateBytesPerSec, lagMs, lagBytes };
  const before = kept.at(-2);
  const recent = kept.filter((sample) => atMs - sample.atMs <= SAMPLES_KEPT_MS);
  // The newest sample follows every event; one per second stays.
  if (before && atMs - before.atMs < SAMPLE_EVERY_MS) recent.pop();
  samples.set(job.jobId, [...recent, now]);
}

/** The job's figures of the last minutes, oldest first; a new array whenever there is a new one. */
export const samplesOf = (jobId: string): readonly Sample[] => samples.get(jobId) ?? NO_SAMPLES;
const NO_SAMPLES: readonly Sample[] = [];

/** What an event is about; undefined: about nothing that stays. */
function subjectOf(event: ServerEvent): string | undefined {
  switch (event.type) {
    case 'source':
      return `source ${event.source.sourceId}`;
    case 'source-removed':
      return `source ${event.sourceId}`;
    case 'job':
      return `job ${event.job.jobId}`;
    case 'job-removed':
      return `job ${event.jobId}`;
    case 'failover':
      return `failover ${event.failover.failoverId}`;
    case 'group':
      return `group ${event.group.groupId}`;
    case 'group-removed':
      return `group ${event.groupId}`;
    case 'group-run':
      return `group-run ${event.run.runId}`;
    case 'notice':
      return undefined;
  }
}

function take(event: ServerEvent): void {
  const subject = subjectOf(event);
  if (subject) spoken.add(subject);
  switch (event.type) {
    case 'source':
      update({ sources: withEntry(state.sources, event.source.sourceId, event.source) });
      return;
    case 'source-removed':
      update({ sources: without(state.sources, event.sourceId) });
      return;
    case 'job':
      keepSample(event.job);
      update({ jobs: withEntry(state.jobs, event.job.jobId, event.job) });
      return;
    case 'job-removed':
      samples.delete(event.jobId);
      update({ jobs: without(state.jobs, event.jobId) });
      return;
    case 'failover':
      {
        const { failover } = event;
        const kept = failover.kind === 'mount' ? 'mounts' : 'failovers';
        update({ [kept]: withEntry(state[kept], failover.failoverId, failover) });
      }
      return;
    case 'group':
      update({ groups: withEntry(state.groups, event.group.groupId, event.group) });
      return;
    case 'group-removed':
      update({ groups: without(state.groups, event.groupId) });
      return;
    case 'group-run':
      update({ groupRuns: withEntry(state.groupRuns, event.run.runId, event.run) });
      return;
    case 'notice':
      update({
        notices: [
          ...state.notices.slice(-9),
          { key: ++noticeKey, level: event.level, error: event.error },
        ],
      });
  }
}

function reconcile<T>(
  kind: string,
  have: ReadonlyMap<string, T>,
  listed: readonly T[],
  idOf: (item: T) => string,
): ReadonlyMap<string, T> {
  const result = new Map<string, T>();
  for (const item of listed) {
    const known = spoken.has(`${kind} ${idOf(item)}`);
    // Spoken of and not there: removed since the list was made.
    const value = known ? have.get(idOf(item)) : item;
    if (value !== undefined) result.set(idOf(item), value);
  }
  for (const [key, item] of have) {
    if (spoken.has(`${kind} ${key}`) && !result.has(key)) result.set(key, item);
  }
  return result;
}

async function readLists(of: EventSource): Promise<void> {
  const [sources, jobs, failovers, mounts, groups, runs, system] = await Promise.all([
    api.sources(),
    api.jobs(),
    api.failovers(),
    api.mounts(),
    api.groups(),
    api.groupRuns(),
    api.system(),
  ]);
  if (of !== stream) return;
  versionAtLoad ??= system.version;
  update({
    sources: reconcile('source', state.sources, sources, (source) => source.sourceId),
    jobs: reconcile('job', state.jobs, jobs, (job) => job.jobId),
    failovers: reconcile('failover', state.failovers, failovers, (one) => one.failoverId),
    mounts: reconcile('failover', state.mounts, mounts, (one) => one.failoverId),
    groups: reconcile('group', state.groups, groups, (group) => group.groupId),
    groupRuns: reconcile('group-run', state.groupRuns, runs, (run) => run.runId),
    synced: true,
    upgraded: system.version !== versionAtLoad,
    link: { name: 'live' },
  });
}

function lose(reason: string): void {
  stream?.close();
  stream = undefined;
  if (state.link.name !== 'lost') {
    update({ link: { name: 'lost', sinceMs: applianceNow(), reason } });
  }
  const waitMs = RETRY_MS[Math.min(attempts, RETRY_MS.length - 1)]!;
  attempts += 1;
  clearTimeout(retryTimer);
  retryTimer = setTimeout(open, waitMs);
}

function open(): void {
  stream?.close();
  spoken = new Set();
  const opened = new EventSource('/api/events');
  stream = opened;
  lastHeardMs = Date.now();
  opened.onopen = () => {
    lastHeardMs = Date.now();
    readLists(opened).then(
      () => {
        attempts = 0;
      },
      (thrown) => {
        if (opened === stream) lose(asApiError(thrown).message);
      },
    );
  };
  const hear = (message: Event) => {
    if (opened !== stream) return;
    const { data } = message as Event & { data: string };
    lastHeardMs = Date.now();
    try {
      const event = JSON.parse(data) as ServerEvent;
      const subject = subjectOf(event);
      if (subject) lastEvent.set(subject, ++eventCount);
      take(event);
    } catch (thrown) {
      console.error('an event that the page does not understand', data, thrown);
    }
  };
  for (const type of [
    'source',
    'source-removed',
    'job',
    'job-removed',
    'failover',
    'group',
    'group-removed',
    'group-run',
    'notice',
  ] satisfies ServerEvent['type'][]) {
    opened.addEventListener(type, hear);
  }
  opened.onmessage = hear;
  opened.onerror = () => {
    if (opened !== stream) return;
    lose('The connection to the appliance broke.');
    // A stream that was refused does not say why; an ended session is found by this call's 401.
    api.system().catch(() => undefined);
  };
}

/** A dead network does not end a stream: after some silence the page asks. */
function watch(): void {
  if (state.link.name !== 'live' || Date.now() - lastHeardMs < QUIET_MS) return;
  const asked = stream;
  lastHeardMs = Date.now();
  api.session().catch((thrown) => {
    if (asked === stream && thrown instanceof ApiFailure && thrown.status === 0) {
      lose(thrown.error.message);
    }
  });
}

/** Starts to listen; call when logged in. */
export function startLive(): void {
  if (watchTimer) return;
  watchTimer = setInterval(watch, 5000);
  open();
}

/** Stops to listen and forgets everything; call when logged out. */
export function stopLive(): void {
  clearInterval(watchTimer);
  clearTimeout(retryTimer);
  watchTimer = undefined;
  stream?.close();
  stream = undefined;
  attempts = 0;
  samples.clear();
  lastEvent.clear();
  state = { ...EMPTY };
  update({});
}

/** Tries again now instead of when the wait is over. */
export function retryNow(): void {
  clearTimeout(retryTimer);
  attempts = 0;
  open();
}

export function dismissNotice(key: number): void {
  update({ notices: state.notices.filter((notice) => notice.key !== key) });
}

/**
 * Does an act and takes its answer. The answer and the stream come by two ways. What the stream said of the same thing since
 * the act was asked for may be older than the answer or newer, but the last word is always the stream's: then the answer is
 * not taken, nor when another stream was begun, which began with how things were.
 */
async function learnBy<T>(ask: () => Promise<T>, toEvent: (answer: T) => ServerEvent): Promise<T> {
  const asked = eventCount;
  const askedBeside = stream;
  const answer = await ask();
  if (stream !== askedBeside) return answer;
  const event = toEvent(answer);
  const subject = subjectOf(event);
  if (!subject || (lastEvent.get(subject) ?? 0) <= asked) take(event);
  return answer;
}

/** Acts whose answers say how something is now; each resolves with the answer. */
export const learn = {
  source: (ask: () => Promise<Source>) => learnBy(ask, (source) => ({ type: 'source', source })),
  job: (ask: () => Promise<Job>) => learnBy(ask, (job) => ({ type: 'job', job })),
  /** A mount, too. */
  failover: (ask: () => Promise<Failover>) =>
    learnBy(ask, (failover) => ({ type: 'failover', failover })),
  group: (ask: () => Promise<Group>) => learnBy(ask, (group) => ({ type: 'group', group })),
  groupRun: (ask: () => Promise<GroupRunView>) =>
    learnBy(ask, (run) => ({ type: 'group-run', run })),
  groupRemoved: (groupId: string) => take({ type: 'group-removed', groupId }),
};

/** Tells of every change until the function that it returns is called. */
export function subscribe(listener: () => void): () => void {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** What the page knows now. */
export const liveNow = (): LiveState => state;
