/** What the routes call. Each is made in `main.ts`; tests make them on fakes of the outside world. */
import type { AuditLog } from '../auth/audit-log.ts';
import type { AuthService } from '../auth/auth-service.ts';
import type { BackupService } from '../backup/backup-service.ts';
import type { EventHub } from '../control/event-hub.ts';
import type { HostService } from '../control/host-service.ts';
import type { SourceService } from '../control/source-service.ts';
import type { GroupService } from '../groups/group-service.ts';
import type { IdentityService } from '../identity/identity-service.ts';
import type { JobService } from '../jobs/job-service.ts';
import type { PointService } from '../jobs/point-service.ts';
import type { Browser } from '../recovery/browse/browser.ts';
import type { NbdExports } from '../recovery/browse/nbd-export.ts';
import type {
  AutoEnd,
  Failover,
  FailoverRequest,
  MountRequest,
  SystemInfo,
  TestFailoverRequest,
} from './schema.ts';

/** What the routes need of the failover engine. */
export interface FailoverControl {
  list(): Failover[];
  /** @throws UND_NOT_FOUND */
  get(failoverId: string): Failover;
  /** @throws UND_FAILOVER_CONFIRM, UND_FAILOVER_RUNNING, UND_JOB_STATE, UND_JOB_NO_POINT */
  start(jobId: string, request: FailoverRequest): Promise<Failover>;
  /** @throws UND_TEST_RUNNING, UND_TEST_NO_NETWORK, UND_FAILOVER_RUNNING, UND_FAILOVER_NOT_READY, UND_POINT_GONE */
  startTest(jobId: string, request: TestFailoverRequest): Promise<Failover>;
  /** @throws UND_FAILOVER_STATE */
  endTest(failoverId: string): Promise<Failover>;
  /** A page of HTML that stands alone. */
  report(failoverId: string): Promise<string>;
  undo(failoverId: string, confirm: string): Promise<Failover>;
  commit(failoverId: string, confirm: string): Promise<Failover>;
  /** @throws UND_FAILOVER_STATE */
  setAutoEnd(failoverId: string, autoEnd: AutoEnd | null): Promise<Failover>;
  /** A PNG. @throws UND_NOT_FOUND */
  screenshot(failoverId: string): Promise<Buffer>;
}

/** Recovery points that are looked into. */
export interface MountControl {
  list(): Failover[];
  /** @throws UND_FAILOVER_NOT_FOUND */
  get(mountId: string): Failover;
  /** @throws UND_MOUNT_OPEN, UND_FAILOVER_RUNNING, UND_FAILOVER_NOT_READY, UND_POINT_GONE */
  start(jobId: string, request: MountRequest): Promise<Failover>;
  /** @throws UND_FAILOVER_NOT_FOUND, UND_FAILOVER_STATE */
  end(mountId: string): Failover;
  /** @throws UND_FAILOVER_NOT_FOUND, UND_MOUNT_NOT_OPEN */
  browser(mountId: string): Browser;
  /** @throws UND_FAILOVER_NOT_FOUND, UND_MOUNT_NOT_OPEN */
  nbd(mountId: string): NbdExports;
}

export interface Services {
  auth: AuthService;
  audit: AuditLog;
  identity: IdentityService;
  sources: SourceService;
  jobs: JobService;
  points: PointService;
  failovers: FailoverControl;
  groups: GroupService;
  mounts: MountControl;
  host: HostService;
  backup: BackupService;
  events: EventHub;
  system: () => SystemInfo;
  caPem: () => string;
  agentPort: () => number;
  /** The page's built files; null when the API runs without a page. */
  webDir: string | null;
}
