/**
 * Runs failovers: asks the planner for the next action, does it, saves the outcome, and so on. The record is saved
 * before and after everything that has an effect, so that a crash at any point is taken up again by `resumeAll`.
 */
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { AutoEnd, Failover, FailoverStepName, MountFacts } from '../api/schema.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { type Fence, fenceOf } from './fence.ts';
import { flushDevice, locateDisk } from './locate.ts';
import {
  applyEvent,
  dueEnd,
  type FailoverEvent,
  isActive,
  nextAction,
  ownEnd,
  ownsDisks,
  retryDelayMs,
} from './planner.ts';
import { type AddressProbe, probeAddresses, probed } from './probe.ts';
import { type BootProver, createBootProver } from './prove-boot.ts';
import {
  type FailoverRecord,
  isAside,
  newMountRecord,
  newRecord,
  newTestRecord,
  type StartOptions,
  toApi,
} from './record.ts';
import { ReplicaWatch } from './replica-watch.ts';
import { reportPage } from './report.ts';
import { commit, STEPS, type StepContext } from './steps.ts';
import { createTestChecker, type TestChecker } from './test-checks.ts';
import type {
  FailoverStore,
  GuestPreparer,
  JobHandle,
  PointServer,
  WantedMoment,
} from './types.ts';

export interface FailoverEngineOptions {
  hypervisor: Hypervisor;
  store: FailoverStore;
  /** Throws when there is no such job. */
  job(jobId: string): Promise<JobHandle> | JobHandle;
  preparer: GuestPreparer;
  server: PointServer;
  /** Folder for screenshots and console texts. */
  evidenceFolder: string;
  /** Called after every change that a person can see; must not throw. */
  onChange?: (failover: Failover) => void;
  /** A completed failover is being ended because its time had come, on record already; must not throw. */
  onAutoEnd?: (failover: Failover, act: AutoEnd['act']) => void;
  prover?: BootProver;
  checker?: TestChecker;
  /** Default: ARP and TCP, from the appliance. */
  probe?: AddressProbe;
  locate?: typeof locateDisk;
  flushDevice?: typeof flushDevice;
  now?: () => string;
  /** How long to wait before a failed call is tried again; null gives up. */
  retryDelayMs?: typeof retryDelayMs;
  /** How often to look whether the replica VM of a completed failover runs. Default 10 s. */
  watchMs?: number;
}

export interface TestOptions {
  /** The moment to go back to; null: a checkpoint is taken now. */
  wanted: WantedMoment | null;
  /** How long the VM is kept after a good verdict. */
  keepMinutes: number;
  trigger: 'person' | 'schedule';
  /** As in `StartOptions`. */
  failoverId?: string;
}

export interface MountOptions extends Pick<MountFacts, 'purpose' | 'keepMinutes'> {
  /** The moment to look at; null: a checkpoint is taken now. */
  wanted: WantedMoment | null;
}

/** Wall time may step while a timer counts: an end in the far future is looked at this often. */
const LONGEST_TIMER_MS = 10 * 60_000;
const HELD_BACK_MS = 10_000;

export class FailoverEngine {
  readonly #options: FailoverEngineOptions;
  readonly #prover: BootProver;
  readonly #checker: TestChecker;
  readonly #records = new Map<string, FailoverRecord>();
  readonly #running = new Map<string, Promise<void>>();
  /** Jobs for which a failover is being started but has no record yet. */
  readonly #starting = new Set<string>();
  /** Tests and mounts that are to be taken down, whatever they are doing. */
  readonly #ending = new Set<string>();
  /** Each ends the step that is under way of one of them. */
  readonly #interrupts = new Map<string, AbortController>();
  /** Each looks again when a completed failover's own end has come. */
  readonly #timers = new Map<string, NodeJS.Timeout>();
  /** Why what is due by itself is not done, by failover. */
  readonly #heldBack = new Map<string, string>();
  /** Changes of one record, one after the other: two decisions at a time see each other. */
  readonly #turns = new Map<string, Promise<unknown>>();
  readonly #stop = new AbortController();
  readonly #watch: ReplicaWatch;

  constructor(options: FailoverEngineOptions) {
    this.#options = options;
    this.#prover =
      options.prover ??
      createBootProver({
        hypervisor: options.hypervisor,
        evidenceFolder: options.evidenceFolder,
      });
    this.#checker = options.checker ?? createTestChecker({ hypervisor: options.hypervisor });
    this.#watch = new ReplicaWatch({
      hypervisor: options.hypervisor,
      watched: () =>
        [...this.#records.values()]
          .filter(({ kind, phase }) => kind !== 'mount' && phase.name === 'completed')
          .map(({ failoverId, vm }) => ({ failoverId, vmUuid: vm.uuid, mac: vm.mac })),
      changed: (failoverId) => options.onChange?.(this.get(failoverId)),
      now: () => this.#now(),
      intervalMs: options.watchMs,
    });
  }

  /** Loads the records. Call it before the job service attaches or opens any disk (`ownsDisks`). */
  async load(): Promise<void> {
    for (const record of await this.#options.store.loadAll()) {
      this.#records.set(record.failoverId, record);
    }
  }

  /** Takes up every failover that was under way. Call it once, after `load`, when the job service is ready. */
  resumeAll(): void {
    this.#watch.start();
    for (const record of this.#records.values()) {
      if (!isActive(record.phase) && !ownEnd(record)) continue;
      // What served it, and those who used it, went with the former process.
      if (record.kind === 'mount') this.#ending.add(record.failoverId);
      this.#drive(record.failoverId);
    }
  }

  /** True while the job's disks belong to a failover: the job service must not attach, open or write them. */
  ownsDisks(jobId: string): boolean {
    if (this.#starting.has(jobId)) return true;
    for (const record of this.#records.values()) {
      if (record.jobId === jobId && ownsDisks(record)) return true;
    }
    return false;
  }

  /** Newest first; without mounts. */
  list(): Failover[] {
    return this.#list(({ kind }) => kind !== 'mount');
  }

  /** Points that are or were looked into; newest first. */
  mounts(): Failover[] {
    return this.#list(({ kind }) => kind === 'mount');
  }

  #list(which: (record: FailoverRecord) => boolean): Failover[] {
    return [...this.#records.values()]
      .filter(which)
      .sort((a, b) => b.startedAt.localeCompare(a.startedAt))
      .map((record) => this.#view(record));
  }

  /** Throws `UND_FAILOVER_NOT_FOUND`. */
  get(failoverId: string): Failover {
    return this.#view(this.#record(failoverId));
  }

  /** Null: there is no such failover. */
  find(failoverId: string | undefined): Failover | null {
    const record = failoverId === undefined ? undefined : this.#records.get(failoverId);
    return record ? this.#view(record) : null;
  }

  /** What answers on the addresses of a job's source now, in words; null if nothing does. Throws what describing it throws. */
  async sourceAnswers(jobId: string): Promise<string | null> {
    const job = await this.#options.job(jobId);
    const { nics } = await job.describe();
    const addresses = probed(nics.flatMap(({ addresses: own = [] }) => own));
    return addresses.length > 0 ? this.#probe(addresses, this.#stop.signal) : null;
  }

  /** The newest failover of a job that is active or completed, for the job's state. */
  ofJob(jobId: string): Failover | null {
    const mine = [...this.#records.values()]
      .filter((record) => record.jobId === jobId && ownsDisks(record))
      .sort((a, b) => b.startedAt.localeCompare(a.startedAt));
    return mine[0] ? this.#view(mine[0]) : null;
  }

  /** What a source has to be told that says hello. @see fenceOf */
  fenceOf(sourceId: string, handoverId: string | null): Fence {
    return fenceOf([...this.#records.values()], sourceId, handoverId);
  }

  /** The source was enrolled anew: what it was failed over to before no longer stands in its way. */
  async liftFence(sourceId: string): Promise<void> {
    for (const record of this.#records.values()) {
      if (record.sourceId !== sourceId || record.phase.name !== 'committed') continue;
      await this.#update(record.failoverId, (current) => ({ ...current, fenceLifted: true }));
    }
  }

  /** The test failover of a job that has not been taken down yet. */
  testOf(jobId: string): Failover | null {
    for (const record of this.#records.values()) {
      const { kind, phase } = record;
      if (record.jobId !== jobId || kind !== 'test') continue;
      if (isActive(phase) || phase.name === 'completed') return this.#view(record);
    }
    return null;
  }

  /** The mounts of a job that have not been closed yet. */
  openMountsOf(jobId: string): Failover[] {
    return this.#list(
      ({ kind, jobId: id, phase }) =>
        kind === 'mount' && id === jobId && (isActive(phase) || phase.name === 'completed'),
    );
  }

  /**
   * Begins to open a point for reading and returns at once; the job goes on. One per job and purpose. It is closed by
   * itself after its time, and at the next start of the appliance.
   * Throws `UND_MOUNT_OPEN`, `UND_FAILOVER_RUNNING`, `UND_FAILOVER_NOT_READY`, `UND_POINT_GONE`.
   */
  async startMount(jobId: string, options: MountOptions): Promise<Failover> {
    if (this.ownsDisks(jobId)) {
      throw undError('UND_FAILOVER_RUNNING', { job: this.ofJob(jobId)?.replicaName ?? jobId });
    }
    const open = this.openMountsOf(jobId).find(({ mount }) => mount?.purpose === options.purpose);
    if (open) throw undError('UND_MOUNT_OPEN', { job: open.replicaName });
    this.#starting.add(jobId);
    try {
      const job = await this.#options.job(jobId);
      const description = await job.describe();
      if (options.wanted) await job.choosePoint(options.wanted.sourceTime, null);
      else if (!description.recoverable.ok) {
        const { reason } = description.recoverable;
        throw undError('UND_FAILOVER_NOT_READY', { job: description.replicaName, reason });
      }
      const { applianceVm } = await this.#options.hypervisor.describeHost();
      const record = newMountRecord(description, applianceVm, this.#now(), options);
      await this.#save(record);
      this.#drive(record.failoverId);
      return this.#view(record);
    } finally {
      this.#starting.delete(jobId);
    }
  }

  /**
   * Closes a mount now, whatever it is doing. Returns at once.
   * Throws `UND_FAILOVER_NOT_FOUND`, `UND_FAILOVER_STATE`.
   */
  endMount(mountId: string): Failover {
    return this.#end(mountId, 'mount', 'closed');
  }

  /**
   * Begins a test failover and returns at once: a VM of another name, on an isolated network, on overlays of a checkpoint,
   * while the job goes on. It is taken down by itself after its verdict.
   * Throws `UND_TEST_RUNNING`, `UND_TEST_NO_NETWORK`, `UND_FAILOVER_RUNNING`, `UND_FAILOVER_NOT_READY`, `UND_POINT_GONE`,
   * `UND_HV_NAME_IN_USE`.
   */
  async startTest(jobId: string, options: TestOptions): Promise<Failover> {
    const begun = this.find(options.failoverId);
    if (begun) return begun;
    if (this.ownsDisks(jobId)) {
      throw undError('UND_FAILOVER_RUNNING', { job: this.ofJob(jobId)?.replicaName ?? jobId });
    }
    if (this.testOf(jobId)) {
      throw undError('UND_TEST_RUNNING', { job: this.testOf(jobId)?.replicaName ?? jobId });
    }
    this.#starting.add(jobId);
    try {
      const job = await this.#options.job(jobId);
      const description = await job.describe();
      const name = description.replicaName;
      if (options.wanted) await job.choosePoint(options.wanted.sourceTime, null);
      else if (!description.recoverable.ok) {
        const { reason } = description.recoverable;
        throw undError('UND_FAILOVER_NOT_READY', { job: name, reason });
      }
      const { hypervisor } = this.#options;
      const [{ applianceVm }, networks] = await Promise.all([
        hypervisor.describeHost(),
        hypervisor.listNetworks(),
      ]);
      const network = networks.find((one) => one.isolated && one.active);
      if (!network) throw undError('UND_TEST_NO_NETWORK', { job: name });
      const record = newTestRecord(description, applianceVm, this.#now(), network.name, options);
      if (await hypervisor.isNameTaken(record.replicaName)) {
        throw undError('UND_HV_NAME_IN_USE', { name: record.replicaName });
      }
      await this.#save(record);
      this.#drive(record.failoverId);
      return this.#view(record);
    } finally {
      this.#starting.delete(jobId);
    }
  }

  /**
   * Takes a test down now, in the middle of a step as well. Returns at once.
   * Throws `UND_FAILOVER_NOT_FOUND`, `UND_FAILOVER_STATE`.
   */
  endTest(failoverId: string): Failover {
    return this.#end(failoverId, 'test', 'ended as a test');
  }

  #end(failoverId: string, kind: 'test' | 'mount', act: string): Failover {
    const record = this.#record(failoverId);
    const { phase, replicaName } = record;
    const open = isActive(phase) || phase.name === 'completed';
    if (record.kind !== kind || !open) {
      const state = record.kind === kind ? phase.name : record.kind;
      throw undError('UND_FAILOVER_STATE', { failover: replicaName, act, state });
    }
    this.#ending.add(failoverId);
    this.#interrupts.get(failoverId)?.abort();
    this.#drive(failoverId);
    return this.#view(this.#record(failoverId));
  }

  /** PNG. Throws `UND_FAILOVER_NOT_FOUND`, `UND_FAILOVER_NO_SCREENSHOT`. */
  async screenshot(failoverId: string): Promise<Buffer> {
    const record = this.#record(failoverId);
    if (!record.screenshot) throw undError('UND_FAILOVER_NO_SCREENSHOT', { failover: failoverId });
    return readFile(join(this.#options.evidenceFolder, basename(record.screenshot)));
  }

  /**
   * What a failover did and came to, as a page of HTML that stands alone.
   * Throws `UND_FAILOVER_NOT_FOUND`.
   */
  async report(failoverId: string): Promise<string> {
    const { sourceName, screenshot } = this.#record(failoverId);
    const png = screenshot ? await this.screenshot(failoverId).catch(() => null) : null;
    return reportPage(this.get(failoverId), { sourceName, png, now: this.#now() });
  }

  /**
   * Begins a failover and returns at once; with a plan it is a planned one. `confirm` is the replica's name as a person
   * typed it. A test and mounts of the job are ended first. Throws `UND_POINT_GONE`, `UND_FAILOVER_SOURCE_ALIVE`, `UND_AGENT_OFFLINE` (planned), `UND_FAILOVER_CONFIRM`, `UND_FAILOVER_RUNNING`, `UND_FAILOVER_NOT_READY`, `UND_HV_NAME_IN_USE`, and whatever
   * keeps it from asking the target host: nothing has been changed then.
   */
  async start(jobId: string, confirm: string, options: StartOptions = {}): Promise<Failover> {
    const begun = this.find(options.failoverId);
    if (begun) return begun;
    if (this.ownsDisks(jobId)) {
      throw undError('UND_FAILOVER_RUNNING', { job: this.ofJob(jobId)?.replicaName ?? jobId });
    }
    this.#starting.add(jobId);
    try {
      const job = await this.#options.job(jobId);
      const description = await job.describe();
      if (confirm !== description.replicaName) {
        throw undError('UND_FAILOVER_CONFIRM', { name: description.replicaName });
      }
      const plan = options.plan ?? null;
      const wanted = plan ? null : (options.wanted ?? null);
      const test = this.testOf(jobId);
      if (test) {
        this.endTest(test.failoverId);
        await this.settled(test.failoverId);
      }
      for (const { failoverId } of this.openMountsOf(jobId)) {
        this.endMount(failoverId);
        await this.settled(failoverId);
      }
      // A moment in the past can be recovered whatever the replica disks are just now.
      if (wanted) await job.choosePoint(wanted.sourceTime, null);
      else if (!description.recoverable.ok) {
        throw undError('UND_FAILOVER_NOT_READY', {
          job: description.replicaName,
          reason: description.recoverable.reason,
        });
      }
      if (plan && !description.sourceOnline) {
        throw undError('UND_AGENT_OFFLINE', { source: description.sourceName });
      }
      const { hypervisor } = this.#options;
      const { applianceVm } = await hypervisor.describeHost();
      if (await hypervisor.isNameTaken(description.replicaName)) {
        throw undError('UND_HV_NAME_IN_USE', { name: description.replicaName });
      }
      const record = newRecord(description, applianceVm, this.#now(), {
        wanted,
        plan,
        evenIfAlive: options.evenIfAlive,
        autoEnd: options.autoEnd,
        isolateOnReturn: options.isolateOnReturn,
        failoverId: options.failoverId,
      });
      // Nothing has been changed yet; a planned one's source is still on, and is looked for when it is off.
      const evidence =
        !plan && record.probe?.length ? await this.#probe(record.probe, this.#stop.signal) : null;
      if (evidence !== null) {
        throw undError('UND_FAILOVER_SOURCE_ALIVE', { source: record.sourceName, evidence });
      }
      await this.#save(record);
      this.#drive(record.failoverId);
      return this.#view(record);
    } finally {
      this.#starting.delete(jobId);
    }
  }

  /**
   * Back to replication: destroys the replica VM with all that it has written since it was powered on.
   * Throws `UND_FAILOVER_NOT_FOUND`, `UND_FAILOVER_CONFIRM`, `UND_FAILOVER_STATE`.
   */
  async undo(failoverId: string, confirm: string): Promise<Failover> {
    const { kind, replicaName } = this.#record(failoverId);
    if (kind === 'test' && confirm === replicaName) return this.endTest(failoverId);
    return this.#decide(failoverId, confirm, { type: 'undo-asked', by: 'person' }, 'undone');
  }

  /**
   * Keeps the replica VM for good and ends the job's claim on its disks. Throws as `undo`.
   */
  commit(failoverId: string, confirm: string): Promise<Failover> {
    return this.#decide(failoverId, confirm, { type: 'commit-asked', by: 'person' }, 'committed');
  }

  /**
   * Sets or (null) takes back what is done by itself with a failover that is under way or completed.
   * Throws `UND_FAILOVER_NOT_FOUND`, `UND_FAILOVER_STATE`.
   */
  async setAutoEnd(failoverId: string, autoEnd: AutoEnd | null): Promise<Failover> {
    const act = autoEnd ? 'ended by itself' : 'kept from ending by itself';
    const next = await this.#ask(failoverId, { type: 'auto-end-set', autoEnd }, act);
    // Told once more: `#ask` told of it with the word of before.
    this.#setHeldBack(failoverId, null);
    clearTimeout(this.#timers.get(failoverId));
    this.#drive(failoverId);
    return this.#view(next);
  }

  /** Resolves when the failover rests (or the engine was closed). */
  async settled(failoverId: string): Promise<Failover> {
    // A test that is ended while it comes to rest begins to run again.
    while (this.#running.has(failoverId)) await this.#running.get(failoverId);
    return this.get(failoverId);
  }

  /** Stops where it is; `resumeAll` of the next start goes on from there. */
  async close(): Promise<void> {
    this.#stop.abort();
    this.#watch.close();
    for (const timer of this.#timers.values()) clearTimeout(timer);
    await Promise.all(this.#running.values());
  }

  async #decide(
    failoverId: string,
    confirm: string,
    event: FailoverEvent,
    act: string,
  ): Promise<Failover> {
    const record = this.#record(failoverId);
    if (confirm !== record.replicaName) {
      throw undError('UND_FAILOVER_CONFIRM', { name: record.replicaName });
    }
    const next = await this.#ask(failoverId, event, act);
    this.#drive(failoverId);
    return this.#view(next);
  }

  /** A wish that does not fit the phase is refused. Throws `UND_FAILOVER_STATE`. */
  #ask(failoverId: string, event: FailoverEvent, act: string): Promise<FailoverRecord> {
    return this.#update(failoverId, (record) => {
      const next = applyEvent(record, event, this.#now());
      if (next !== record) return next;
      throw undError('UND_FAILOVER_STATE', {
        failover: record.replicaName,
        act,
        state: record.phase.name,
      });
    });
  }

  #view(record: FailoverRecord): Failover {
    const { failoverId } = record;
    return toApi(record, this.#watch.of(failoverId), this.#heldBack.get(failoverId) ?? null);
  }

  get #probe(): AddressProbe {
    return this.#options.probe ?? probeAddresses;
  }

  #record(failoverId: string): FailoverRecord {
    const record = this.#records.get(failoverId);
    if (!record) throw undError('UND_FAILOVER_NOT_FOUND', { failover: failoverId });
    return record;
  }

  #now(): string {
    return this.#options.now?.() ?? new Date().toISOString();
  }

  async #save(record: FailoverRecord): Promise<void> {
    await this.#options.store.save(record);
    this.#records.set(record.failoverId, record);
    this.#options.onChange?.(this.#view(record));
  }

  /** Changes what is on record, after all changes that were asked for before; returns what is saved. */
  #update(
    failoverId: string,
    change: (record: FailoverRecord) => FailoverRecord,
  ): Promise<FailoverRecord> {
    const before = this.#turns.get(failoverId) ?? Promise.resolve();
    const turn = before.then(async () => {
      const next = change(this.#record(failoverId));
      await this.#save(next);
      return next;
    });
    this.#turns.set(
      failoverId,
      turn.catch(() => undefined),
    );
    return turn;
  }

  async #event(failoverId: string, event: FailoverEvent): Promise<FailoverRecord> {
    return this.#update(failoverId, (record) => applyEvent(record, event, this.#now()));
  }

  #drive(failoverId: string): void {
    if (this.#running.has(failoverId) || this.#stop.signal.aborted) return;
    this.#interrupts.set(failoverId, new AbortController());
    let broken = false;
    const run = this.#loop(failoverId)
      .catch((error: unknown) => {
        broken = true;
        // Only the store can fail here. Nothing more is done: an effect that is not on record must not happen.
        const record = this.#record(failoverId);
        const { message } = asUndError(error);
        if (!record.notes.includes(message)) {
          // Saved with what can be saved next.
          this.#records.set(failoverId, { ...record, notes: [...record.notes, message] });
        }
        this.#options.onChange?.(this.get(failoverId));
      })
      .finally(() => {
        this.#running.delete(failoverId);
        this.#interrupts.delete(failoverId);
        if (broken) return;
        // A decision may have come between the loop's last look and now.
        const goesOn = this.#ending.has(failoverId) || isActive(this.#record(failoverId).phase);
        if (goesOn) this.#drive(failoverId);
        else this.#awaitEnd(failoverId);
      });
    this.#running.set(failoverId, run);
  }

  /** What rests and ends by itself is looked at when its time has come. */
  #awaitEnd(failoverId: string): void {
    const end = ownEnd(this.#record(failoverId));
    clearTimeout(this.#timers.get(failoverId));
    this.#timers.delete(failoverId);
    if (!end || this.#stop.signal.aborted) return;
    const leftMs = Math.max(0, Date.parse(end.at ?? '') - Date.parse(this.#now())) || 0;
    const timer = setTimeout(
      () => this.#drive(failoverId),
      this.#heldBack.has(failoverId) ? HELD_BACK_MS : Math.min(leftMs, LONGEST_TIMER_MS),
    );
    timer.unref();
    this.#timers.set(failoverId, timer);
  }

  /** Whether it is ended without being told to by a person just now: a test that somebody ends, or its time is over. */
  async #endsItself(failoverId: string): Promise<boolean> {
    if (this.#ending.has(failoverId)) {
      await this.#event(failoverId, { type: 'undo-asked', by: 'person' });
      // Only now: until it is on record, a failed save must not lose the wish.
      this.#ending.delete(failoverId);
      return true;
    }
    const act = dueEnd(this.#record(failoverId), this.#now());
    const reason = act === 'commit' ? await this.#whyNotFinal(failoverId) : null;
    // Asked again, here and inside: the host took its time to answer, and a person may have decided meanwhile.
    const isDue = act !== null && dueEnd(this.#record(failoverId), this.#now()) === act;
    this.#setHeldBack(failoverId, isDue ? reason : null);
    if (!isDue || reason !== null) return false;
    let ended = false;
    const next = await this.#update(failoverId, (record) => {
      if (dueEnd(record, this.#now()) !== act) return record;
      ended = true;
      return applyEvent(record, { type: `${act}-asked`, by: 'time' }, this.#now());
    });
    if (ended && !isAside(next)) this.#options.onAutoEnd?.(this.#view(next), act);
    return ended;
  }

  /** Nothing makes a replica final by itself that does not run. Null: it runs. */
  async #whyNotFinal(failoverId: string): Promise<string | null> {
    const seen = await this.#options.hypervisor
      .vmState(this.#record(failoverId).replicaName)
      .catch((error) => asUndError(error));
    if (!('state' in seen)) return seen.message;
    return seen.state === 'running' ? null : `the replica VM is ${seen.state}`;
  }

  /** Told if it is another reason than before. */
  #setHeldBack(failoverId: string, reason: string | null): void {
    if (reason === (this.#heldBack.get(failoverId) ?? null)) return;
    if (reason === null) this.#heldBack.delete(failoverId);
    else this.#heldBack.set(failoverId, reason);
    this.#options.onChange?.(this.get(failoverId));
  }

  async #loop(failoverId: string): Promise<void> {
    while (!this.#stop.signal.aborted) {
      if (await this.#endsItself(failoverId)) continue;
      const action = nextAction(this.#record(failoverId));
      switch (action.do) {
        case 'rest':
          return;
        case 'run':
          await this.#event(failoverId, { type: 'step-started', step: action.step });
          await this.#forward(failoverId, action.step);
          break;
        case 'compensate': {
          const { step } = action;
          await this.#event(failoverId, { type: 'compensation-started', step });
          const result = await this.#back(failoverId, step, (context) =>
            STEPS[step].compensate(context),
          );
          if (!result) return;
          await this.#event(failoverId, {
            type: 'compensation-done',
            step,
            detail: result.value,
          });
          break;
        }
        case 'commit':
          if (!(await this.#back(failoverId, null, commit))) return;
          await this.#event(failoverId, { type: 'commit-done' });
          break;
      }
    }
  }

  async #forward(failoverId: string, step: FailoverStepName): Promise<void> {
    const began = Date.now();
    for (let attempt = 0; ; attempt++) {
      try {
        const context = await this.#context(failoverId, step, this.#interrupt(failoverId));
        const detail = await STEPS[step].run(context);
        await this.#event(failoverId, { type: 'step-done', step, detail });
        return;
      } catch (error) {
        if (this.#stop.signal.aborted || this.#ending.has(failoverId)) return;
        const coded = asUndError(error);
        const delayMs = this.#retry(coded.code, attempt, Date.now() - began, 'forward');
        if (delayMs === null) {
          await this.#event(failoverId, { type: 'step-failed', step, error: coded.toJSON() });
          return;
        }
        this.#detail(failoverId, step, `trying again: ${coded.message}`);
        if (!(await this.#wait(delayMs, this.#interrupt(failoverId)))) return;
      }
    }
  }

  /** Tried until it works; undefined when the engine was closed before. */
  async #back<T>(
    failoverId: string,
    step: FailoverStepName | null,
    work: (context: StepContext) => Promise<T>,
  ): Promise<{ value: T } | undefined> {
    const began = Date.now();
    for (let attempt = 0; ; attempt++) {
      try {
        return { value: await work(await this.#context(failoverId, step)) };
      } catch (error) {
        if (this.#stop.signal.aborted) return undefined;
        const coded = asUndError(error);
        const delayMs = this.#retry(coded.code, attempt, Date.now() - began, 'back');
        if (delayMs === null) throw coded;
        if (step) this.#detail(failoverId, step, `trying again: ${coded.message}`);
        if (!(await this.#wait(delayMs))) return undefined;
      }
    }
  }

  #retry(code: string, attempt: number, elapsedMs: number, way: 'forward' | 'back'): number | null {
    return (this.#options.retryDelayMs ?? retryDelayMs)(code, attempt, elapsedMs, way);
  }

  /** Aborted when the engine is closed, and when this test is to end. A way back is never interrupted by that. */
  #interrupt(failoverId: string): AbortSignal {
    const own = this.#interrupts.get(failoverId)?.signal;
    return own ? AbortSignal.any([this.#stop.signal, own]) : this.#stop.signal;
  }

  async #wait(delayMs: number, signal = this.#stop.signal): Promise<boolean> {
    try {
      await pause(delayMs, undefined, { signal });
      return true;
    } catch {
      return false;
    }
  }

  /** What served a mount has ended by itself: it is closed, and says why. */
  #gone(failoverId: string, reason: string): void {
    const record = this.#record(failoverId);
    if (record.phase.name !== 'running' && record.phase.name !== 'completed') return;
    // Saved with the undo that follows.
    this.#records.set(failoverId, { ...record, notes: [...record.notes, reason] });
    this.endMount(failoverId);
  }

  /** Shown, not saved: what a step is doing now is of no use after a crash. */
  #detail(failoverId: string, step: FailoverStepName, detail: string): void {
    const next = applyEvent(
      this.#record(failoverId),
      { type: 'step-detail', step, detail },
      this.#now(),
    );
    this.#records.set(failoverId, next);
    this.#options.onChange?.(this.#view(next));
  }

  async #context(
    failoverId: string,
    step: FailoverStepName | null,
    signal = this.#stop.signal,
  ): Promise<StepContext> {
    const record = () => this.#record(failoverId);
    return {
      get record() {
        return record();
      },
      save: async (change) => {
        await this.#update(failoverId, (current) => ({ ...current, ...change(current) }));
      },
      detail: (text) => {
        if (step) this.#detail(failoverId, step, text);
      },
      hypervisor: this.#options.hypervisor,
      job: await this.#options.job(record().jobId),
      preparer: this.#options.preparer,
      prover: this.#prover,
      checker: this.#checker,
      probe: this.#probe,
      server: this.#options.server,
      gone: (reason) => this.#gone(failoverId, reason),
      locate: this.#options.locate ?? locateDisk,
      flushDevice: this.#options.flushDevice ?? flushDevice,
      now: () => this.#now(),
      wait: (ms) => pause(ms, undefined, { signal }),
      signal,
    };
  }
}
