/**
 * Runs failovers: asks the planner for the next action, does it, saves the outcome, and so on. The record is saved
 * before and after everything that has an effect, so that a crash at any point is taken up again by `resumeAll`.
 */
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { asUndError, undError } from '../../protocol/errors.ts';
import type { Failover, FailoverStepName } from '../api/schema.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { type Fence, fenceOf } from './fence.ts';
import { flushDevice, locateDisk } from './locate.ts';
import {
  applyEvent,
  type FailoverEvent,
  isActive,
  nextAction,
  ownsDisks,
  retryDelayMs,
} from './planner.ts';
import { type BootProver, createBootProver } from './prove-boot.ts';
import { type FailoverRecord, newRecord, type StartOptions, toApi } from './record.ts';
import { ReplicaWatch } from './replica-watch.ts';
import { commit, STEPS, type StepContext } from './steps.ts';
import type { FailoverStore, GuestPreparer, JobHandle } from './types.ts';

export interface FailoverEngineOptions {
  hypervisor: Hypervisor;
  store: FailoverStore;
  /** Throws when there is no such job. */
  job(jobId: string): Promise<JobHandle> | JobHandle;
  preparer: GuestPreparer;
  /** Folder for screenshots and console texts. */
  evidenceFolder: string;
  /** Called after every change that a person can see; must not throw. */
  onChange?: (failover: Failover) => void;
  prover?: BootProver;
  locate?: typeof locateDisk;
  flushDevice?: typeof flushDevice;
  now?: () => string;
  /** How long to wait before a failed call is tried again; null gives up. */
  retryDelayMs?: typeof retryDelayMs;
  /** How often to look whether the replica VM of a completed failover runs. Default 10 s. */
  watchMs?: number;
}

export class FailoverEngine {
  readonly #options: FailoverEngineOptions;
  readonly #prover: BootProver;
  readonly #records = new Map<string, FailoverRecord>();
  readonly #running = new Map<string, Promise<void>>();
  /** Jobs for which a failover is being started but has no record yet. */
  readonly #starting = new Set<string>();
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
    this.#watch = new ReplicaWatch({
      hypervisor: options.hypervisor,
      watched: () =>
        [...this.#records.values()]
          .filter(({ phase }) => phase.name === 'completed')
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
      if (isActive(record.phase)) this.#drive(record.failoverId);
    }
  }

  /** True while the job's disks belong to a failover: the job service must not attach, open or write them. */
  ownsDisks(jobId: string): boolean {
    if (this.#starting.has(jobId)) return true;
    for (const record of this.#records.values()) {
      if (record.jobId === jobId && ownsDisks(record.phase)) return true;
    }
    return false;
  }

  /** Newest first. */
  list(): Failover[] {
    return [...this.#records.values()]
      .sort((a, b) => b.startedAt.localeCompare(a.startedAt))
      .map((record) => this.#view(record));
  }

  /** Throws `UND_FAILOVER_NOT_FOUND`. */
  get(failoverId: string): Failover {
    return this.#view(this.#record(failoverId));
  }

  /** The newest failover of a job that is active or completed, for the job's state. */
  ofJob(jobId: string): Failover | null {
    const mine = [...this.#records.values()]
      .filter((record) => record.jobId === jobId && ownsDisks(record.phase))
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
      await this.#save({ ...record, fenceLifted: true });
    }
  }

  /** PNG. Throws `UND_FAILOVER_NOT_FOUND`, `UND_FAILOVER_NO_SCREENSHOT`. */
  async screenshot(failoverId: string): Promise<Buffer> {
    const record = this.#record(failoverId);
    if (!record.screenshot) throw undError('UND_FAILOVER_NO_SCREENSHOT', { failover: failoverId });
    return readFile(join(this.#options.evidenceFolder, basename(record.screenshot)));
  }

  /**
   * Begins a failover and returns at once; with a plan it is a planned one. `confirm` is the replica's name as a person
   * typed it. Throws `UND_POINT_GONE`, `UND_AGENT_OFFLINE` (planned), `UND_FAILOVER_CONFIRM`, `UND_FAILOVER_RUNNING`, `UND_FAILOVER_NOT_READY`, `UND_HV_NAME_IN_USE`, and whatever
   * keeps it from asking the target host: nothing has been changed then.
   */
  async start(jobId: string, confirm: string, options: StartOptions = {}): Promise<Failover> {
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
      const record = newRecord(description, applianceVm, this.#now(), { wanted, plan });
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
  undo(failoverId: string, confirm: string): Promise<Failover> {
    return this.#decide(failoverId, confirm, { type: 'undo-asked' }, 'undone');
  }

  /**
   * Keeps the replica VM for good and ends the job's claim on its disks. Throws as `undo`.
   */
  commit(failoverId: string, confirm: string): Promise<Failover> {
    return this.#decide(failoverId, confirm, { type: 'commit-asked' }, 'committed');
  }

  /** Resolves when the failover rests (or the engine was closed). */
  async settled(failoverId: string): Promise<Failover> {
    await this.#running.get(failoverId);
    return this.get(failoverId);
  }

  /** Stops where it is; `resumeAll` of the next start goes on from there. */
  async close(): Promise<void> {
    this.#stop.abort();
    this.#watch.close();
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
    const next = applyEvent(record, event, this.#now());
    if (next === record) {
      throw undError('UND_FAILOVER_STATE', {
        failover: record.replicaName,
        act,
        state: record.phase.name,
      });
    }
    // Set before the save, so that a second decision meets the first one.
    this.#records.set(failoverId, next);
    await this.#save(next);
    this.#drive(failoverId);
    return this.#view(next);
  }

  #view(record: FailoverRecord): Failover {
    return toApi(record, this.#watch.of(record.failoverId));
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

  #event(failoverId: string, event: FailoverEvent): Promise<void> {
    return this.#save(applyEvent(this.#record(failoverId), event, this.#now()));
  }

  #drive(failoverId: string): void {
    if (this.#running.has(failoverId)) return;
    const run = this.#loop(failoverId)
      .catch((error: unknown) => {
        // Only the store can fail here. Nothing more is done: an effect that is not on record must not happen.
        const record = this.#record(failoverId);
        const { message } = asUndError(error);
        this.#options.onChange?.(this.#view({ ...record, notes: [...record.notes, message] }));
      })
      .finally(() => this.#running.delete(failoverId));
    this.#running.set(failoverId, run);
  }

  async #loop(failoverId: string): Promise<void> {
    while (!this.#stop.signal.aborted) {
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
        const context = await this.#context(failoverId, step);
        const detail = await STEPS[step].run(context);
        return await this.#event(failoverId, { type: 'step-done', step, detail });
      } catch (error) {
        if (this.#stop.signal.aborted) return;
        const coded = asUndError(error);
        const delayMs = this.#retry(coded.code, attempt, Date.now() - began, 'forward');
        if (delayMs === null) {
          return await this.#event(failoverId, {
            type: 'step-failed',
            step,
            error: coded.toJSON(),
          });
        }
        this.#detail(failoverId, step, `trying again: ${coded.message}`);
        if (!(await this.#wait(delayMs))) return;
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

  async #wait(delayMs: number): Promise<boolean> {
    try {
      await pause(delayMs, undefined, { signal: this.#stop.signal });
      return true;
    } catch {
      return false;
    }
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

  async #context(failoverId: string, step: FailoverStepName | null): Promise<StepContext> {
    const record = () => this.#record(failoverId);
    return {
      get record() {
        return record();
      },
      save: async (change) => {
        await this.#save({ ...record(), ...change(record()) });
      },
      detail: (text) => {
        if (step) this.#detail(failoverId, step, text);
      },
      hypervisor: this.#options.hypervisor,
      job: await this.#options.job(record().jobId),
      preparer: this.#options.preparer,
      prover: this.#prover,
      locate: this.#options.locate ?? locateDisk,
      flushDevice: this.#options.flushDevice ?? flushDevice,
      now: () => this.#now(),
      wait: (ms) => pause(ms, undefined, { signal: this.#stop.signal }),
      signal: this.#stop.signal,
    };
  }
}
