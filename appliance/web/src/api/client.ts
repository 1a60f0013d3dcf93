/**
 * The API's calls, typed by the contract. Every failure is an ApiFailure that carries code, message and hint, whether
 * the appliance refused, answered something else, or did not answer at all.
 */
import { undError } from '../../../../protocol/errors.ts';
import type {
  ApiError,
  AuditEntry,
  AutoEnd,
  Certificate,
  Checkpoint,
  Failover,
  FailoverRequest,
  FileListing,
  Group,
  GroupFailoverRequest,
  GroupMark,
  GroupMarkRequest,
  GroupPoints,
  GroupRequest,
  GroupRunView,
  HostView,
  Job,
  JobPoints,
  JobSettingsPatch,
  JournalCheck,
  LabelRequest,
  MountRequest,
  PointLabel,
  PointRequest,
  PreflightReport,
  ProtectPlan,
  ProtectRequest,
  Role,
  Source,
  SshTarget,
  SystemInfo,
  TakenPoint,
  TestFailoverRequest,
  User,
} from '../../../api/schema.ts';

export class ApiFailure extends Error {
  readonly status: number;
  readonly error: ApiError;
  constructor(status: number, error: ApiError) {
    super(`${error.code}: ${error.message}`);
    this.status = status;
    this.error = error;
  }
}

/** Whatever was thrown, as the coded error that the page shows. */
export function asApiError(thrown: unknown): ApiError {
  if (thrown instanceof ApiFailure) return thrown.error;
  const reason = thrown instanceof Error ? thrown.message : String(thrown);
  const { code, message, hint } = undError('UND_INTERNAL', { reason });
  return { code, message, hint };
}

let sessionLost: (() => void) | undefined;
/** Called when the appliance answers that a login is needed. */
export function onSessionLost(listener: () => void): void {
  sessionLost = listener;
}

let clockOffsetMs = 0;
/**
 * The appliance's clock, in ms since 1970, as its answers tell it (to about a second): ages of the appliance's times
 * are told by this clock, as the reader's own may be wrong.
 */
export const applianceNow = (): number => Date.now() + clockOffsetMs;

function learnClock(response: Response): void {
  const date = Date.parse(response.headers.get('date') ?? '');
  if (Number.isNaN(date)) return;
  const offset = date + 500 - Date.now();
  // The header has whole seconds: smaller differences are noise.
  clockOffsetMs = Math.abs(offset) < 2000 ? 0 : offset;
}

interface Options {
  method?: string;
  body?: unknown;
  limitMs?: number;
  /** A 401 is an answer here and not the end of the session. */
  anonymous?: boolean;
}

async function send(path: string, options: Options): Promise<Response> {
  const limitMs = options.limitMs ?? 60_000;
  const method = options.method ?? (options.body === undefined ? 'GET' : 'POST');
  let response: Response;
  try {
    response = await fetch(path, {
      method,
      signal: AbortSignal.timeout(limitMs),
      cache: 'no-store',
      headers: {
        ...(method === 'GET' ? {} : { 'x-understudy': '1' }),
        ...(options.body === undefined ? {} : { 'content-type': 'application/json' }),
      },
      body: options.body === undefined ? undefined : JSON.stringify(options.body),
    });
  } catch (thrown) {
    const timedOut = thrown instanceof DOMException && thrown.name === 'TimeoutError';
    const reason = timedOut ? `no answer for ${limitMs / 1000} s` : 'the connection failed';
    const { code, message, hint } = undError('UND_PAGE_OFFLINE', { reason });
    throw new ApiFailure(0, { code, message, hint });
  }
  learnClock(response);
  if (response.ok) return response;
  const error = await readError(response, path);
  // Other errors are 401, too: a wrong password of the user or of a source server does not end the session.
  if (error.code === 'UND_AUTH_REQUIRED' && !options.anonymous) sessionLost?.();
  throw new ApiFailure(response.status, error);
}

async function readError(response: Response, path: string): Promise<ApiError> {
  try {
    const body = (await response.json()) as Partial<ApiError>;
    if (typeof body.code === 'string' && typeof body.message === 'string') {
      return { code: body.code, message: body.message, hint: body.hint ?? '', field: body.field };
    }
  } catch {
    // Not JSON: said below.
  }
  const { code, message, hint } = undError('UND_PAGE_ANSWER_INVALID', {
    path,
    status: response.status,
  });
  return { code, message, hint };
}

async function call<T>(path: string, options: Options = {}): Promise<T> {
  const response = await send(path, options);
  if (response.status === 204) return undefined as T;
  try {
    return (await response.json()) as T;
  } catch {
    const { code, message, hint } = undError('UND_PAGE_ANSWER_INVALID', {
      path,
      status: response.status,
    });
    throw new ApiFailure(response.status, { code, message, hint });
  }
}

const id = encodeURIComponent;
const post = <T>(path: string, body: unknown = {}, limitMs?: number) =>
  call<T>(path, { method: 'POST', body, limitMs });

/** Preflight and install speak SSH to another machine: they may take their time. */
const SSH_LIMIT_MS = 300_000;
/** Hooks on a source server run before a point is there. */
const HOOKS_LIMIT_MS = 300_000;

export const api = {
  login: (username: string, password: string) =>
    call<User>('/api/login', { body: { username, password }, anonymous: true }),
  logout: () => post<void>('/api/logout'),
  session: () => call<User>('/api/session', { anonymous: true, limitMs: 15_000 }),
  changePassword: (current: string, next: string) =>
    post<User>('/api/session/password', { current, next }),

  users: () => call<User[]>('/api/users'),
  addUser: (user: { username: string; password: string; role: Role }) =>
    post<User>('/api/users', user),
  removeUser: (username: string) => call<void>(`/api/users/${id(username)}`, { method: 'DELETE' }),

  system: () => call<SystemInfo>('/api/system'),
  host: () => call<HostView>('/api/host'),

  sources: () => call<Source[]>('/api/sources'),
  preflight: (target: SshTarget) =>
    post<PreflightReport>('/api/sources/preflight', target, SSH_LIMIT_MS),
  addSource: (target: SshTarget) => post<Source>('/api/sources', target, SSH_LIMIT_MS),
  refreshInventory: (sourceId: string) => post<Source>(`/api/sources/${id(sourceId)}/inventory`),
  uninstall: (sourceId: string, request: { ssh?: SshTarget; force?: boolean }) =>
    post<Source>(`/api/sources/${id(sourceId)}/uninstall`, request, SSH_LIMIT_MS),
  certificate: (sourceId: string, action: 'renew' | 'revoke') =>
    post<Source>(`/api/sources/${id(sourceId)}/certificate`, { action }),
  certificates: () => call<Certificate[]>('/api/certificates'),

  planJob: (request: ProtectRequest) => post<ProtectPlan>('/api/jobs/plan', request),
  createJob: (request: ProtectRequest) => post<Job>('/api/jobs', request),
  jobs: () => call<Job[]>('/api/jobs'),
  patchJob: (jobId: string, patch: JobSettingsPatch) =>
    call<Job>(`/api/jobs/${id(jobId)}`, { method: 'PATCH', body: patch }),
  pauseJob: (jobId: string) => post<Job>(`/api/jobs/${id(jobId)}/pause`),
  resumeJob: (jobId: string) => post<Job>(`/api/jobs/${id(jobId)}/resume`),
  mirrorJob: (jobId: string, diskId?: string) =>
    post<Job>(`/api/jobs/${id(jobId)}/mirror`, diskId ? { diskId } : {}),
  verifyJob: (jobId: string) => post<Job>(`/api/jobs/${id(jobId)}/verify`, {}),
  takePoint: (jobId: string, request: PointRequest) =>
    post<TakenPoint>(`/api/jobs/${id(jobId)}/points`, request, HOOKS_LIMIT_MS),
  deleteJob: (jobId: string, disks: 'keep' | 'delete') =>
    call<Job>(`/api/jobs/${id(jobId)}?disks=${disks}`, { method: 'DELETE' }),

  points: (jobId: string) => call<JobPoints>(`/api/jobs/${id(jobId)}/points`),
  addLabel: (jobId: string, label: LabelRequest) =>
    post<PointLabel>(`/api/jobs/${id(jobId)}/labels`, label),
  removeLabel: (jobId: string, labelId: string) =>
    call<void>(`/api/jobs/${id(jobId)}/labels/${id(labelId)}`, { method: 'DELETE' }),
  journalCheck: (jobId: string) => call<JournalCheck>(`/api/jobs/${id(jobId)}/journal-check`),
  startJournalCheck: (jobId: string) => post<JournalCheck>(`/api/jobs/${id(jobId)}/journal-check`),

  checkpoints: (jobId: string) => call<Checkpoint[]>(`/api/jobs/${id(jobId)}/checkpoints`),
  failOver: (jobId: string, request: FailoverRequest) =>
    post<Failover>(`/api/jobs/${id(jobId)}/failover`, request),
  testFailover: (jobId: string, request: TestFailoverRequest) =>
    post<Failover>(`/api/jobs/${id(jobId)}/test-failover`, request),
  setAutoEnd: (failoverId: string, autoEnd: AutoEnd | null) =>
    post<Failover>(`/api/failovers/${id(failoverId)}/auto-end`, { autoEnd }),
  endTest: (failoverId: string) => post<Failover>(`/api/failovers/${id(failoverId)}/end-test`),
  groupReportUrl: (runId: string) => `/api/group-runs/${id(runId)}/report`,
  reportUrl: (failoverId: string) => `/api/failovers/${id(failoverId)}/report`,
  failovers: () => call<Failover[]>('/api/failovers'),

  mount: (jobId: string, request: MountRequest) =>
    post<Failover>(`/api/jobs/${id(jobId)}/mount`, request),
  mounts: () => call<Failover[]>('/api/mounts'),
  endMount: (mountId: string) => post<Failover>(`/api/mounts/${id(mountId)}/end`),
  files: (mountId: string, volume: string, path: string, from: number, limit: number) =>
    call<FileListing>(
      `/api/mounts/${id(mountId)}/files?volume=${id(volume)}&path=${id(path)}&from=${from}&limit=${limit}`,
    ),
  fileUrl: (mountId: string, volume: string, path: string) =>
    `/api/mounts/${id(mountId)}/file?volume=${id(volume)}&path=${id(path)}`,
  folderUrl: (mountId: string, volume: string, path: string) =>
    `/api/mounts/${id(mountId)}/folder.tar?volume=${id(volume)}&path=${id(path)}`,
  nbdCredentialsUrl: (mountId: string) => `/api/mounts/${id(mountId)}/nbd-credentials.tar`,

  undo: (failoverId: string, confirm: string) =>
    post<Failover>(`/api/failovers/${id(failoverId)}/undo`, { confirm }),
  commit: (failoverId: string, confirm: string) =>
    post<Failover>(`/api/failovers/${id(failoverId)}/commit`, { confirm }),
  screenshotUrl: (failoverId: string, version: string) =>
    `/api/failovers/${id(failoverId)}/screenshot?v=${id(version)}`,

  groups: () => call<Group[]>('/api/groups'),
  createGroup: (request: GroupRequest) => post<Group>('/api/groups', request),
  changeGroup: (groupId: string, request: GroupRequest) =>
    call<Group>(`/api/groups/${id(groupId)}`, { method: 'PATCH', body: request }),
  removeGroup: (groupId: string) => call<void>(`/api/groups/${id(groupId)}`, { method: 'DELETE' }),
  groupPoints: (groupId: string) => call<GroupPoints>(`/api/groups/${id(groupId)}/points`),
  markGroup: (groupId: string, request: GroupMarkRequest) =>
    post<GroupMark>(`/api/groups/${id(groupId)}/marks`, request, HOOKS_LIMIT_MS),
  failOverGroup: (groupId: string, request: GroupFailoverRequest) =>
    post<GroupRunView>(`/api/groups/${id(groupId)}/failover`, request),
  groupRuns: () => call<GroupRunView[]>('/api/group-runs'),
  undoGroup: (runId: string, confirm: string) =>
    post<GroupRunView>(`/api/group-runs/${id(runId)}/undo`, { confirm }),
  commitGroup: (runId: string, confirm: string) =>
    post<GroupRunView>(`/api/group-runs/${id(runId)}/commit`, { confirm }),
  resumeGroup: (runId: string) => post<GroupRunView>(`/api/group-runs/${id(runId)}/resume`),

  audit: (limit: number) => call<AuditEntry[]>(`/api/audit?limit=${limit}`),
  backup: async (passphrase: string): Promise<Blob> =>
    (await send('/api/config/backup', { body: { passphrase }, limitMs: 300_000 })).blob(),
  restore: (passphrase: string, backupBase64: string) =>
    call<unknown>('/api/config/restore', { body: { passphrase, backupBase64 }, limitMs: 300_000 }),
};
