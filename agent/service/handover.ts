/**
 * The source's side of a planned failover, and what is left of it afterwards. Every request may come again, after a
 * crash of either side: what was done is in the state folder before it is done, and is not done twice.
 *
 * | stage       | units              | asked to prepare | asked to hand over      | asked to cancel             |
 * |-------------|--------------------|------------------|-------------------------|-----------------------------|
 * | none        | as they were       | prepared         | refused                 | nothing                     |
 * | prepared    | stopped            | more may stop    | handed-over, power off  | units started, none         |
 * | handed-over | stopped            | refused          | power off once more     | units started, none, active |
 */
import { asUndError, undError } from '../../protocol/errors.ts';
import { type AgentState, type Handover, type Isolation, UNIT_NAME } from '../config.ts';
import type { Isolator } from './isolation.ts';
import type { Systemctl } from './uninstall.ts';

export interface HandoverEdges {
  state: Pick<AgentState, 'handover' | 'putHandover' | 'dropHandover'>;
  systemctl: Systemctl;
  isolator: Isolator;
  log(level: 'info' | 'warning' | 'error', text: string): void;
}

const failed = (reason: string) =>
  undError('UND_HANDOVER_FAILED', { source: 'this machine', reason });

export class HandoverKeeper {
  readonly #edges: HandoverEdges;
  /** Answers by request id, so that a request that comes twice is answered twice and done once. */
  readonly #answers = new Map<string, Promise<unknown>>();
  /** Whether the machine is cut off now, as far as we know. */
  #isolated = false;
  /** What is asked is done one after the other. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(edges: HandoverEdges) {
    this.#edges = edges;
  }

  /** Does `work` in its turn, and once for a request id. */
  once<T>(requestId: string, work: () => Promise<T>): Promise<T> {
    const known = this.#answers.get(requestId);
    if (known) return known as Promise<T>;
    const run = this.#last.then(work);
    this.#last = run.catch(() => undefined);
    this.#answers.set(requestId, run);
    if (this.#answers.size > 100) this.#answers.delete([...this.#answers.keys()][0]!);
    return run;
  }

  state(): Promise<Handover | null> {
    return this.#edges.state.handover();
  }

  /**
   * Stops what runs of these units.
   * @returns all that has been stopped for this failover
   * @throws UND_HANDOVER_FAILED; what was stopped so far stays stopped until `cancel`
   */
  async prepare(failoverId: string, units: readonly string[]): Promise<string[]> {
    const { state, log } = this.#edges;
    let now = await state.handover();
    if (now?.stage === 'handed-over') throw failed(`it is handed over already: ${now.reason}`);
    // A former failover that was given up while nobody could tell us.
    if (now && now.failoverId !== failoverId) {
      await this.cancel(now.failoverId);
      now = null;
    }
    now ??= { failoverId, stage: 'prepared', stoppedUnits: [], reason: 'a planned failover began' };
    await state.putHandover(now);
    for (const unit of units) {
      if (unit === UNIT_NAME) throw failed(`${unit} is needed for the handover`);
      if (!(await this.#isActive(unit))) continue;
      if (!now.stoppedUnits.includes(unit)) {
        // Before the act: a unit that we stop and die is one to start again.
        now = { ...now, stoppedUnits: [...now.stoppedUnits, unit] };
        await state.putHandover(now);
      }
      log('info', `stopping ${unit} for a planned failover`);
      await this.#systemctl('stop', unit);
      if (await this.#isActive(unit)) throw failed(`${unit} was stopped but runs again`);
    }
    return now.stoppedUnits;
  }

  /** @throws UND_HANDOVER_UNKNOWN */
  async require(failoverId: string): Promise<Handover> {
    const now = await this.#edges.state.handover();
    if (now?.failoverId === failoverId) return now;
    throw undError('UND_HANDOVER_UNKNOWN', { source: 'this machine', failover: failoverId });
  }

  /**
   * From its return on this machine is passive, over every start. @throws UND_HANDOVER_UNKNOWN
   */
  async handOver(failoverId: string, reason: string): Promise<void> {
    const now = await this.require(failoverId);
    if (now.stage === 'handed-over') return;
    await this.#edges.state.putHandover({ ...now, stage: 'handed-over', reason });
  }

  /** Makes systemd power the machine off; it goes on in the background. @throws UND_HANDOVER_FAILED */
  async powerOff(): Promise<void> {
    this.#edges.log('warning', 'powering off: this server is handed over to its replica');
    await this.#systemctl('poweroff', '--no-wall');
  }

  /**
   * The appliance found this machine failed over when it came back.
   * @param isolation the machine is to cut itself off; null: it is not
   */
  async fence(failoverId: string, reason: string, isolation: Isolation | null): Promise<void> {
    const now = await this.#edges.state.handover();
    const isKnown = now?.stage === 'handed-over' && now.failoverId === failoverId;
    if (isKnown && (isolation === null || now.isolation)) return;
    const stoppedUnits = now?.stoppedUnits ?? [];
    await this.#edges.state.putHandover({
      failoverId,
      stage: 'handed-over',
      stoppedUnits,
      reason,
      ...(isolation && { isolation }),
    });
  }

  /**
   * Cuts the machine off if that is on record and it is not: after a reboot, or when somebody has flushed all rules.
   * @returns whether it is cut off
   */
  async enforceIsolation(): Promise<boolean> {
    const { state, isolator, log } = this.#edges;
    const now = await state.handover();
    if (!now?.isolation) return false;
    try {
      const left = await isolator.isolate(now.isolation);
      if (!this.#isolated) {
        const peers = now.isolation.peers.join(', ');
        log('warning', `cut off from the network, all but ${peers}: ${now.reason}`);
        if (left) log('warning', left);
      }
      this.#isolated = true;
    } catch (error) {
      this.#isolated = false;
      log('error', asUndError(error).message);
    }
    return this.#isolated;
  }

  /**
   * Takes everything back. What cannot be started is logged and named; it is not tried again.
   * @returns the units that run again
   * @throws UND_HANDOVER_FAILED
   */
  async cancel(failoverId: string): Promise<string[]> {
    const now = await this.#edges.state.handover();
    if (!now || now.failoverId !== failoverId) return [];
    const started: string[] = [];
    const problems: string[] = [];
    if (now.isolation) {
      await this.#edges.isolator.release().then(
        () => this.#edges.log('info', 'no longer cut off from the network'),
        (error) => problems.push(asUndError(error).params.reason as string),
      );
      this.#isolated = false;
    }
    for (const unit of now.stoppedUnits.toReversed()) {
      await this.#systemctl('start', unit).then(
        () => started.push(unit),
        (error) => problems.push(asUndError(error).params.reason as string),
      );
    }
    await this.#edges.state.dropHandover();
    this.#edges.log(
      'info',
      `the handover was cancelled; started again: ${started.join(', ') || '-'}`,
    );
    if (problems.length > 0) throw failed(problems.join('; '));
    return started;
  }

  async #isActive(unit: string): Promise<boolean> {
    const { text } = await this.#systemctl('show', '--property=LoadState,ActiveState', unit);
    const value = (name: string) => new RegExp(`^${name}=(.*)$`, 'm').exec(text)?.[1];
    // A misspelt name must not pass for a service that is at rest.
    if (value('LoadState') === 'not-found') throw failed(`there is no unit ${unit}`);
    const active = value('ActiveState');
    return active !== 'inactive' && active !== 'failed';
  }

  async #systemctl(...args: string[]): Promise<{ text: string }> {
    const { ok, text } = await this.#edges.systemctl(...args);
    if (!ok) throw failed(`systemctl ${args.join(' ')}: ${text.trim().slice(0, 300) || 'failed'}`);
    return { text };
  }
}
