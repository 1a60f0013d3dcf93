/**
 * Puts the appliance together: state, identity, sources, jobs, failover, API. What touches the outside world (target
 * host, source servers, guests) is handed in, so that tests run the very same appliance on stand-ins.
 */
import { randomUUID } from 'node:crypto';
import { mkdirSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { hostname, networkInterfaces } from 'node:os';
import { join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { Value } from 'typebox/value';
import { FEATURE_CLOCK } from '../protocol/control.ts';
import { asUndError, undError } from '../protocol/errors.ts';
import { VERSION } from '../protocol/version.ts';
import { createServer, registerApi } from './api/app.ts';
import { type Failover, Inventory, type SystemInfo } from './api/schema.ts';
import { AuditLog } from './auth/audit-log.ts';
import { AuthService } from './auth/auth-service.ts';
import type { PasswordCost } from './auth/password.ts';
import { SecretBox } from './auth/secret-box.ts';
import { BackupService, swapInRestore } from './backup/backup-service.ts';
import type { ApplianceConfig } from './config.ts';
import type { AgentSession as ControlSession, SourceInstaller } from './control/agent-session.ts';
import { EventHub } from './control/event-hub.ts';
import { HostService } from './control/host-service.ts';
import type { Logger } from './control/logger.ts';
import { SourceService } from './control/source-service.ts';
import { SourceClocks } from './groups/clocks.ts';
import { GroupService } from './groups/group-service.ts';
import { memberEngine } from './groups/member-engine.ts';
import { GroupRunner } from './groups/runner.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import { admit } from './identity/admission.ts';
import { CertificateAuthority } from './identity/certificate-authority.ts';
import { IdentityService } from './identity/identity-service.ts';
import type { DiskLocator } from './jobs/disk-locator.ts';
import { endedJob, jobHandle } from './jobs/job-handle.ts';
import { JobService } from './jobs/job-service.ts';
import { PointService } from './jobs/point-service.ts';
import { type AgentSession, createAgentServer } from './receive/agent-server.ts';
import type { NbdOptions } from './recovery/browse/nbd-export.ts';
import type { OpenPoints } from './recovery/browse/point-server.ts';
import { FailoverEngine, type FailoverEngineOptions } from './recovery/engine.ts';
import { type Fence, fenced } from './recovery/fence.ts';
import { handoverPlan } from './recovery/handover-plan.ts';
import { retryDelayMs } from './recovery/planner.ts';
import { TestScheduler } from './recovery/test-schedule.ts';
import type { GuestPreparer } from './recovery/types.ts';
import type { ApplianceAddress } from './sources/installer.ts';
import { AuditStore } from './state/audit.ts';
import { upgradeAccepted } from './state/before-upgrade.ts';
import { CertificateStore } from './state/certificates.ts';
import { CheckpointStore } from './state/checkpoints.ts';
import { openState } from './state/database.ts';
import { EnrolTokenStore } from './state/enrol-tokens.ts';
import { FailoverRecordStore } from './state/failovers.ts';
import { writeFileDurably } from './state/files.ts';
import { GroupStore } from './state/groups.ts';
import { HostKeyStore } from './state/host-keys.ts';
import { JobStore } from './state/jobs.ts';
import { JournalCheckStore } from './state/journal-checks.ts';
import { LabelStore } from './state/labels.ts';
import { PassiveInstanceStore } from './state/passive-instances.ts';
import { SessionStore } from './state/sessions.ts';
import { SettingStore } from './state/settings.ts';
import { SourceStore } from './state/sources.ts';
import { UserStore } from './state/users.ts';

const CERTIFICATE_CHECK_MS = 3_600_000;

/** The outside world. */
export interface Outside {
  /** Null while the appliance has not been told its host. */
  hypervisor: Hypervisor | null;
  locator: DiskLocator;
  /** Made late, because it needs to tell source servers where the appliance is. */
  installer: (
    self: ApplianceAddress,
    sourceWithUuid: (smbiosUuid: string, address: string) => string | null,
  ) => SourceInstaller;
  preparer: GuestPreparer;
  /** Made late, because exports tell their clients where the appliance is. */
  server: (self: NbdOptions) => OpenPoints;
  failover?: Pick<
    FailoverEngineOptions,
    'prover' | 'probe' | 'locate' | 'flushDevice' | 'retryDelayMs' | 'watchMs'
  >;
  passwordCost?: PasswordCost;
  poolPollMs?: number;
  agentSilenceMs?: number;
  /** How often to look whether the appliance's own certificate needs to be renewed. Default one hour. */
  certificateCheckMs?: number;
  /** How often to look whether a scheduled test failover is due. Default one minute. */
  testPollMs?: number;
  /** How often the sources' clocks are compared with the appliance's. Default 10 s. */
  clockPollMs?: number;
  now?: () => number;
}

export interface Appliance {
  app: FastifyInstance;
  httpsPort: number;
  agentPort: number;
  /** The password of the very first login; null later on. */
  firstPassword: string | null;
  close(): Promise<void>;
}

/** Addresses and names of this machine; what cannot be reached from elsewhere is left out. */
function ownAddresses(extra: readonly string[]): string[] {
  const found = Object.values(networkInterfaces())
    .flatMap((list) => list ?? [])
    .filter((address) => !address.internal && !address.address.startsWith('fe80:'))
    .map((address) => address.address);
  return [...new Set([...extra, ...found])];
}

/** A DNS name that a certificate can hold, or none. */
const ownName = (): string[] =>
  /^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$/i.test(hostname()) ? [hostname().toLowerCase()] : [];

/**
 * Starts everything; resolves when both ports are open and all work of before is taken up.
 * @param restart ends the program so that its manager starts it anew
 */
export async function startAppliance(
  config: ApplianceConfig,
  makeOutside: (log: Logger) => Promise<Outside> | Outside,
  options: { logger: boolean | object; restart: () => void },
): Promise<Appliance> {
  mkdirSync(config.dataDir, { recursive: true, mode: 0o700 });
  mkdirSync(config.journalDir, { recursive: true, mode: 0o700 });
  const restored = swapInRestore(config.dataDir);
  const stateFile = join(config.dataDir, 'state.db');
  const { db, takenBack } = openState(stateFile);
  const box = SecretBox.open(join(config.dataDir, 'secrets.key'));

  const settings = new SettingStore(db);
  const applianceId = settings.get('applianceId') ?? randomUUID();
  settings.set('applianceId', applianceId);

  const preliminary = CertificateAuthority.open(join(config.dataDir, 'ca'), box);
  const ca = await preliminary;
  const names = () => [...ownAddresses(config.addresses), ...ownName()];
  let tls = await ca.serverIdentity(names());
  // For the console: a person compares it with what the browser shows.
  writeFileDurably(join(config.dataDir, 'ca.sha256'), `${ca.fingerprintSha256}\n`, 0o644);

  const app = createServer({
    logger: options.logger,
    https: { key: tls.keyPem, cert: tls.certPem },
  });
  const log: Logger = app.log;
  const outside = await makeOutside(log);
  const now = outside.now ?? Date.now;
  if (restored) log.warn({}, 'a configuration backup was restored');
  if (takenBack)
    log.warn({}, 'a newer version was given up: this is the state as it was before it');
  // Whoever installed this version sees its page answer: there is no way back from then on.
  let answered = false;
  app.addHook('onResponse', async () => {
    if (answered) return;
    answered = true;
    upgradeAccepted(stateFile);
  });

  const audit = new AuditLog(new AuditStore(db));
  const auth = new AuthService({
    users: new UserStore(db),
    sessions: new SessionStore(db),
    firstLoginFile: join(config.dataDir, 'first-login.txt'),
    cost: outside.passwordCost,
    now,
  });
  const firstPassword = await auth.createFirstAdmin();

  const sourceStore = new SourceStore(db);
  const passive = new PassiveInstanceStore(db);
  const identity = new IdentityService({
    db,
    ca,
    tokens: new EnrolTokenStore(db),
    certificates: new CertificateStore(db),
    sources: sourceStore,
    passive,
    audit,
    now,
  });
  const events = new EventHub((jobId) => {
    const job = jobs.find(jobId);
    return job && { type: 'job', job };
  });
  let agentPort = config.agentPort;
  let httpsPort = config.httpsPort;
  const sources: SourceService = new SourceService({
    store: sourceStore,
    hostKeys: new HostKeyStore(db),
    passive,
    identity,
    installer: outside.installer(
      {
        addresses: () => ownAddresses(config.addresses),
        httpsPort: () => httpsPort,
        agentPort: () => agentPort,
        caPem: ca.caPem,
        caFingerprintSha256: ca.fingerprintSha256,
      },
      (smbiosUuid, address) => {
        const wanted = smbiosUuid.trim().toLowerCase();
        const other = sourceStore
          .list()
          .find(
            (row) =>
              row.address !== address && row.machine?.smbiosUuid?.trim().toLowerCase() === wanted,
          );
        return other?.name ?? null;
      },
    ),
    events,
    audit,
    log,
    jobOf: (sourceId) => jobs.jobOf(sourceId),
    enrolledAnew: (sourceId) => {
      engine
        ?.liftFence(sourceId)
        .catch((error) => log.error({ err: error }, 'a fence was not lifted'));
    },
  });
  const host = new HostService(outside.hypervisor);
  const jobStore = new JobStore(db);
  const jobs: JobService = new JobService({
    store: jobStore,
    checkpoints: new CheckpointStore(db),
    sources,
    host,
    events,
    locator: outside.locator,
    log,
    journalDir: config.journalDir,
    sessionOf: (sourceId) => agents.sessions.get(sourceId) ?? null,
    ownedByFailover: (jobId) => engine?.ownsDisks(jobId) ?? false,
    underTest: (jobId) => Boolean(engine?.testOf(jobId)),
    mounted: (jobId) => (engine?.openMountsOf(jobId).length ?? 0) > 0,
    poolPollMs: outside.poolPollMs,
  });

  /** The replica runs: a source that is still connected becomes passive at once. */
  const fenceOff = (sourceId: string) => {
    const session = agents?.sessions.get(sourceId);
    const fence = engine?.fenceOf(sourceId, session?.hello.handover?.failoverId ?? null);
    if (!session || session.hello.passive || fence?.name !== 'stands') return;
    session.refuse(fenced(sources.find(sourceId)?.name ?? sourceId, fence));
  };

  /** What a failover has come to, for its job; told again at each start, because we may have died in between. */
  const tellJob = (failover: Failover) => {
    const job = jobs.find(failover.jobId) && jobs.actor(failover.jobId);
    if (!job) return;
    const { name } = failover.state;
    if (failover.kind === 'mount') return;
    if (failover.kind === 'test') {
      const verdict = failover.test?.verdict;
      if (verdict?.passed) job.provenBootable(verdict.at);
      return;
    }
    if (name === 'completed') {
      fenceOff(job.row.sourceId);
      job
        .failoverCompleted(failover.failoverId, failover.endedAt ?? new Date().toISOString())
        .catch((error) => log.error({ err: error }, 'a completed failover was not recorded'));
    } else if (name === 'failed' || name === 'undone') job.kick();
  };
  const groupStore = new GroupStore(db);
  const clocks = new SourceClocks({
    store: groupStore,
    sessions: () =>
      [...agents.sessions.values()].filter(({ hello }) => hello.features?.includes(FEATURE_CLOCK)),
    pollMs: outside.clockPollMs,
  });
  const handleOf = (jobId: string) => {
    const job = jobs.find(jobId) && jobs.actor(jobId);
    return job ? jobHandle(job, sources, clocks) : endedJob(jobId);
  };
  const server = outside.server({
    bind: config.listen,
    addresses: () => ownAddresses(config.addresses),
  });
  const engine: FailoverEngine | null = outside.hypervisor
    ? new FailoverEngine({
        hypervisor: outside.hypervisor,
        store: new FailoverRecordStore(db),
        preparer: outside.preparer,
        server,
        evidenceFolder: join(config.dataDir, 'evidence'),
        job: handleOf,
        onChange: (failover) => {
          events.publish({ type: 'failover', failover });
          tellJob(failover);
          events.jobChanged(failover.jobId);
          runner.memberChanged(failover);
        },
        onAutoEnd: ({ failoverId, replicaName, autoEnd }, act) =>
          audit.add({
            who: 'appliance',
            act: `failover.${act}`,
            object: failoverId,
            outcome: 'ok',
            detail: `${replicaName}: by itself, ${autoEnd?.afterMinutes} minutes were over`,
          }),
        ...outside.failover,
      })
    : null;
  mkdirSync(join(config.dataDir, 'evidence'), { recursive: true, mode: 0o700 });
  const failoverEngine = (): FailoverEngine => {
    if (!engine) throw undError('UND_HOST_NOT_CONFIGURED');
    return engine;
  };

  const members = memberEngine({
    engine: failoverEngine,
    hypervisor: () => host.hypervisor,
    job: handleOf,
    settings: (jobId) => jobs.get(jobId).settings,
  });
  const runner: GroupRunner = new GroupRunner({
    store: groupStore,
    engine: { ...members, find: (failoverId) => engine?.find(failoverId) ?? null },
    changed: (run) => {
      events.publish({ type: 'group-run', run: runner.view(run) });
      groups.told(run.groupId);
    },
    log,
    retryDelayMs: (code, attempt, elapsedMs) => retryDelayMs(code, attempt, elapsedMs, 'forward'),
    newId: randomUUID,
  });
  const groups: GroupService = new GroupService({
    store: groupStore,
    jobs,
    clocks,
    runner,
    events,
    log,
    check: members.check,
    find: (failoverId) => engine?.find(failoverId) ?? null,
  });
  /** @throws UND_FAILOVER_NOT_FOUND */
  const mountOf = (id: string): Failover => {
    const found = failoverEngine().get(id);
    if (found.kind !== 'mount') throw undError('UND_FAILOVER_NOT_FOUND', { failover: id });
    return found;
  };

  /** @throws UND_FAILOVER_NOT_FOUND, UND_MOUNT_NOT_OPEN */
  const openMount = (id: string): string => {
    const { failoverId, state } = mountOf(id);
    if (state.name === 'completed') return failoverId;
    throw undError('UND_MOUNT_NOT_OPEN', { mount: id, reason: `it is ${state.name}` });
  };

  const agentTls = () => ({ key: tls.keyPem, cert: tls.certPem, ca: ca.caPem });
  const agents = createAgentServer({
    tls: agentTls(),
    applianceId,
    applianceVersion: VERSION,
    authorize: (certificate, hello, context) =>
      admit(
        certificate,
        hello,
        { ...context, fenceOf: (id, handoverId) => engine?.fenceOf(id, handoverId) ?? NO_FENCE },
        { identity, sources },
      ),
    onRefused: (error, remoteAddress) =>
      log.warn({ code: error.code, from: remoteAddress }, `an agent was refused: ${error.message}`),
    silenceMs: outside.agentSilenceMs,
  });
  agents.on('session', (session) => {
    serveSession(session, { sources, jobs, identity, log, ended: (id) => jobStore.endedOf(id) });
    const { sourceId, hello } = session;
    const handoverId = hello.handover?.failoverId ?? null;
    if (hello.passive || handoverId === null) return;
    // It missed the end of the failover for which its services were stopped.
    const fence = engine?.fenceOf(sourceId, handoverId).name;
    if (fence !== 'lifted' && fence !== 'unknown') return;
    session
      .cancelHandover(handoverId)
      .catch((error) => log.warn({ sourceId, err: error }, 'a handover was not cancelled'));
  });

  const startedAt = new Date().toISOString();
  let journal = { totalBytes: 0, freeBytes: 0 };
  const measureJournal = async () => {
    const { blocks, bavail, bsize } = await statfs(config.journalDir);
    journal = { totalBytes: blocks * bsize, freeBytes: bavail * bsize };
  };
  await measureJournal();

  await registerApi(app, {
    auth,
    audit,
    identity,
    sources,
    jobs,
    points: new PointService(jobs, new LabelStore(db), new JournalCheckStore(db)),
    groups,
    host,
    events,
    failovers: {
      list: () => engine?.list() ?? [],
      get: (id) => failoverEngine().get(id),
      start: (jobId, request) =>
        failoverEngine().start(jobId, request.confirm, {
          plan: handoverPlan(request, jobs.get(jobId).settings),
          evenIfAlive: request.evenIfAlive,
          wanted: request.point === 'newest' ? null : request.point,
          autoEnd: request.autoEnd,
          isolateOnReturn: request.isolateOnReturn,
        }),
      startTest: (jobId, { point = 'newest', keepMinutes = 0 }) =>
        failoverEngine().startTest(jobId, {
          wanted: point === 'newest' ? null : point,
          keepMinutes,
          trigger: 'person',
        }),
      endTest: async (id) => failoverEngine().endTest(id),
      report: (id) => failoverEngine().report(id),
      undo: (id, confirm) => failoverEngine().undo(id, confirm),
      commit: (id, confirm) => failoverEngine().commit(id, confirm),
      setAutoEnd: (id, autoEnd) => failoverEngine().setAutoEnd(id, autoEnd),
      screenshot: (id) => failoverEngine().screenshot(id),
    },
    mounts: {
      list: () => engine?.mounts() ?? [],
      get: (id) => mountOf(id),
      start: (jobId, { point = 'newest', purpose, keepMinutes = 60 }) =>
        failoverEngine().startMount(jobId, {
          wanted: point === 'newest' ? null : point,
          purpose,
          keepMinutes,
        }),
      end: (id) => failoverEngine().endMount(mountOf(id).failoverId),
      browser: (id) => server.browser(openMount(id)),
      nbd: (id) => server.nbd(openMount(id)),
    },
    backup: new BackupService({
      dataDir: config.dataDir,
      db,
      // The answer to the request goes out first.
      restart: () => setTimeout(options.restart, 500).unref(),
      log2N: outside.passwordCost?.log2N,
    }),
    system: (): SystemInfo => {
      measureJournal().catch((error) =>
        log.warn({ err: error }, 'the journal disk cannot be read'),
      );
      return {
        version: VERSION,
        applianceId,
        caFingerprintSha256: ca.fingerprintSha256,
        startedAt,
        journal: { path: config.journalDir, ...journal },
        agentPort,
      };
    },
    caPem: () => ca.caPem,
    agentPort: () => agentPort,
    webDir: config.webDir,
  });

  // Order matters: failovers say which disks are theirs before jobs take up the rest; agents come when all is ready.
  sources.recover();
  await engine?.load();
  runner.load();
  jobs.start();
  for (const failover of engine?.list() ?? []) tellJob(failover);
  engine?.resumeAll();
  if (engine) runner.resumeAll();
  groups.start();
  clocks.start();
  /** Newest first. */
  const testsOf = () => (engine?.list() ?? []).filter(({ kind }) => kind === 'test');
  const tests = new TestScheduler({
    // Groups first: the test of a group is one of each member.
    scheduled: () => {
      const tests = testsOf();
      const ofJobs = jobs.list().map(({ jobId, state, settings }) => {
        const last = tests.find((test) => test.jobId === jobId);
        return {
          id: jobId,
          every: settings.testEvery ?? 'off',
          isReady: state.name === 'protected',
          lastMs: last ? Date.parse(last.startedAt) : null,
        };
      });
      return [...groups.scheduledTests(), ...ofJobs];
    },
    isTesting: () =>
      groups.isTesting() ||
      testsOf().some(({ state }) => state.name !== 'failed' && state.name !== 'undone'),
    start: (id) =>
      groupStore.get(id)
        ? groups.failOver(id, { kind: 'test' }, 'schedule')
        : failoverEngine().startTest(id, { wanted: null, keepMinutes: 0, trigger: 'schedule' }),
    log,
    now: outside.now,
    pollMs: outside.testPollMs,
  });
  tests.start();
  agentPort = await agents.listen(config.agentPort, config.listen);
  await app.listen({ port: config.httpsPort, host: config.listen });
  httpsPort = (app.server.address() as { port: number }).port;

  const renewServerCertificate = async () => {
    const next = await ca.serverIdentity(names());
    if (next.certPem === tls.certPem) return;
    tls = next;
    const server = app.server as unknown as { setSecureContext(o: object): void };
    server.setSecureContext({ key: tls.keyPem, cert: tls.certPem, minVersion: 'TLSv1.2' });
    agents.setTls(agentTls());
    log.info({ notAfter: tls.notAfter }, "the appliance's own certificate was renewed");
  };
  const certificateTimer = setInterval(() => {
    renewServerCertificate().catch((error) =>
      log.error({ err: error }, "the appliance's own certificate was not renewed"),
    );
  }, outside.certificateCheckMs ?? CERTIFICATE_CHECK_MS);
  certificateTimer.unref();
  audit.add({
    who: 'appliance',
    act: 'start',
    object: VERSION,
    outcome: 'ok',
    detail: restored
      ? 'after the restore of a configuration backup'
      : takenBack
        ? 'with the state as it was before an upgrade that was given up'
        : '',
  });

  return {
    app,
    httpsPort,
    agentPort,
    firstPassword,
    async close() {
      clearInterval(certificateTimer);
      sources.close();
      tests.close();
      clocks.close();
      groups.close();
      runner.close();
      await app.close();
      await engine?.close();
      await server.closeAll();
      await agents.close();
      await jobs.close();
      events.close();
      await outside.hypervisor?.close();
      db.close();
    },
  };
}

const NO_FENCE: Fence = { name: 'none' };

/** What an authorised connection may ask, and who is told of it. */
function serveSession(
  session: AgentSession,
  services: {
    sources: SourceService;
    jobs: JobService;
    identity: IdentityService;
    log: Logger;
    /** The jobs that this source had. */
    ended: (sourceId: string) => string[];
  },
): void {
  const { sources, jobs, identity, log } = services;
  const { sourceId } = session;
  const control: ControlSession = {
    sourceId,
    agentVersion: session.hello.agentVersion,
    machine: session.hello.machine,
    remoteAddress: session.remoteAddress,
    inventory: async () => checkInventory(await session.inventory(), sources.get(sourceId).name),
    uninstall: (reason) => session.uninstall(reason),
    askRenewal: () => session.send({ type: 'renewNow', optional: true }),
    close: (error) => session.close(error),
  };
  session.once('close', (error) => sources.disconnected(control, error));
  session.on('message', (message) => {
    if (message.type === 'renewCertificate') {
      const { requestId } = message;
      identity.renew(sourceId, message.csr).then(
        ({ certificatePem, caPem }) => {
          sources.told(sourceId);
          session.send({ type: 'certificate', requestId, certificate: certificatePem, ca: caPem });
        },
        (error) =>
          session.send({ type: 'certificate', requestId, error: asUndError(error).toJSON() }),
      );
      return;
    }
    if (message.type === 'notice') {
      const { jobId, error } = message;
      const level = message.level === 'info' ? 'info' : 'warn';
      log[level]({ sourceId, jobId, code: error?.code }, `agent: ${message.text}`);
      return;
    }
    if ('jobId' in message && message.jobId !== undefined && !jobs.find(message.jobId)) {
      session.send({ type: 'stopJob', jobId: message.jobId, reason: 'there is no such job' });
    }
  });
  // A job that ended while the agent was away still runs there: it is told, before it hears of another one.
  for (const jobId of services.ended(sourceId)) {
    session.send({ type: 'stopJob', jobId, reason: 'the job has ended' });
  }
  sources.connected(control);
}

/** What an agent says is checked like any request. @throws UND_INVENTORY_FAILED */
function checkInventory(value: unknown, source: string): Inventory {
  if (Value.Check(Inventory, value)) return value;
  const first = Value.Errors(Inventory, value)[0];
  const reason = `${first?.instancePath || '/'} ${first?.message ?? 'does not match'}`;
  throw undError('UND_INVENTORY_FAILED', { source, reason });
}
