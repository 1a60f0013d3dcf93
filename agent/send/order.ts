/**
 * Whether order is held, and the way back when it was lost:
 *
 *   held -> lost: `orderLost` into the stream -> acknowledged -> the writes fit the link -> ordered capture on again
 *        -> the ring position of the switch is passed -> `orderResumed` names what was missed -> held
 *
 * Each step waits for the one before it because the agent may die between any two: docs/stream.md, "When order is lost".
 */
import { type CompareDisks, uniteCompare } from '../../protocol/compare-disks.ts';
import { asUndError } from '../../protocol/errors.ts';
import type { Mark } from '../../protocol/marks.ts';
import type { Capture } from '../capture/capture.ts';
import { type Churn, lost, mayDrain, planCatchUp, type Relapses } from './drain-gate.ts';

const LOOK_MS = 200;

export type OrderState =
  | { name: 'held' }
  | { name: 'lost'; reason: string; compare: CompareDisks; markSeq: number; waitsFor: string };

export interface OrderHost {
  capture: Pick<Capture, 'resumeOrdered' | 'status'>;
  disks(): ReadonlyArray<{ index: number; sizeBytes: number }>;
  /** Put a mark into the stream; its sequence number. */
  mark(mark: Mark): number;
  /** Everything up to this frame is acknowledged. */
  ackedSeq(): number;
  /** Resolves when `condition` holds; looked at after every change of the window. */
  until(condition: () => boolean, signal: AbortSignal): Promise<void>;
  consumedPos(): number;
  /** Few bytes are on the way: what the ring had when order was lost is nearly sent. */
  nearlySent(): boolean;
  linkPerSec(): number | null;
  /** Aborts when the connection ends; null while there is none. */
  connection(): AbortSignal | null;
  interruptMirrors(reason: string): void;
  resumed(): void;
  /** Tell it at once: what a person sees must not be a second behind. */
  changed(): void;
  log(level: 'info' | 'warning', text: string): void;
}

export class Order {
  readonly #host: OrderHost;
  readonly #stopping: AbortSignal;
  #state: OrderState = { name: 'held' };
  #relapses: Relapses | null = null;
  #writtenPerSec: number[] = [];
  #resuming = false;

  constructor(host: OrderHost, stopping: AbortSignal) {
    this.#host = host;
    this.#stopping = stopping;
  }

  get state(): OrderState {
    return this.#state;
  }

  get held(): boolean {
    return this.#state.name === 'held';
  }

  /** Writes were missed. `compare`: disks whose dirty map does not say which. */
  lose(reason: string, compare: CompareDisks = []): void {
    const state = this.#state;
    if (state.name === 'lost') {
      const both = uniteCompare(state.compare, compare);
      if (both === state.compare || both.length === state.compare.length) return;
      // Durable before order is resumed, as the first one: the next agent must know these disks too.
      state.compare = both;
      state.markSeq = this.#host.mark({ type: 'orderLost', reason, compare: both });
      return;
    }
    this.#host.log('warning', `order is lost: ${reason}`);
    this.#relapses = lost(this.#relapses, performance.now());
    this.#writtenPerSec = [];
    this.#host.interruptMirrors(reason);
    const begun = { name: 'lost' as const, reason, compare, markSeq: 0, waitsFor: '' };
    this.#state = begun;
    begun.markSeq = this.#host.mark({ type: 'orderLost', reason, compare });
    this.#say('what was captured before is being sent');
  }

  /** About each second: what the source wrote meanwhile. */
  written(bytesPerSec: number): void {
    this.#writtenPerSec = [...this.#writtenPerSec.slice(-9), bytesPerSec];
  }

  /** Something changed that the way back may have waited for. */
  poke(): void {
    const state = this.#state;
    const connection = this.#host.connection();
    if (state.name !== 'lost' || this.#resuming || !connection) return;
    if (this.#host.ackedSeq() < state.markSeq) return;
    this.#resuming = true;
    const signal = AbortSignal.any([connection, this.#stopping]);
    this.#resume(signal)
      .catch((error) => {
        if (signal.aborted) return;
        this.#host.log('warning', `order cannot be resumed: ${asUndError(error).message}`);
        this.#relapses = lost(this.#relapses, performance.now());
      })
      .finally(() => {
        this.#resuming = false;
        // Lost again while this was under way, or failed: once more.
        if (!this.#stopping.aborted) setImmediate(() => this.poke());
      });
  }

  async #resume(signal: AbortSignal): Promise<void> {
    const host = this.#host;
    await host.until(() => host.nearlySent(), signal);
    for (;;) {
      const churn: Churn = { writtenPerSec: this.#writtenPerSec, linkPerSec: host.linkPerSec() };
      const may = mayDrain(this.#relapses!, churn, performance.now());
      if (may.name === 'go') break;
      this.#say(may.reason);
      await look(signal);
    }
    // Also asked when it is on already: an earlier try may have ended before its position was passed.
    this.#say('ordered capture is being switched on again');
    const pos = Number(await host.capture.resumeOrdered());
    await host.until(() => host.consumedPos() >= pos, signal);
    const { mode, dirtyBytes } = await host.capture.status();
    const state = this.#state;
    signal.throwIfAborted();
    if (state.name !== 'lost' || host.ackedSeq() < state.markSeq) return;
    if (mode.mode === 'tracking') {
      this.#relapses = lost(this.#relapses, performance.now());
      this.#writtenPerSec = [];
      return;
    }
    const disks = host.disks().map(({ index, sizeBytes }) => ({
      index,
      sizeBytes,
      dirtyBytes: dirtyBytes[index] ?? 0,
    }));
    this.#relapses = { ...this.#relapses!, resumedAtMs: performance.now() };
    this.#state = { name: 'held' };
    host.mark({
      type: 'orderResumed',
      ...planCatchUp(disks, state.compare),
      reason: state.reason,
    });
    host.log('info', 'order is held again');
    host.resumed();
    host.changed();
  }

  #say(waitsFor: string): void {
    const state = this.#state;
    if (state.name !== 'lost' || state.waitsFor === waitsFor) return;
    state.waitsFor = waitsFor;
    this.#host.changed();
  }
}

const look = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const onAbort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', onAbort);
      resolve();
    }, LOOK_MS);
    signal.addEventListener('abort', onAbort, { once: true });
  });
