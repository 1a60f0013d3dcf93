/**
 * Which disk is verified when: one at a time, when no mirror runs and order is held. Everything that was asked for is
 * dropped when that ends; the appliance sees it in the stream and asks again when the replica is whole.
 */
import { asUndError, type UndError } from '../../protocol/errors.ts';
import { runVerify, type VerifyAsk, type VerifyHost } from './verify-run.ts';

const RETRY_MS = 10_000;

export interface VerificationsHost {
  host(signal: AbortSignal): VerifyHost;
  /** Order is held. */
  isHeld(): boolean;
  /** A mirror runs, or waits to. */
  isMirroring(): boolean;
  /** Aborts when the connection ends; null while there is none. */
  connection(): AbortSignal | null;
  failed(ask: VerifyAsk, error: UndError): void;
  log(text: string): void;
}

export class Verifications {
  readonly #h: VerificationsHost;
  #asks = new Map<number, VerifyAsk>();
  #running: { ask: VerifyAsk; abort: AbortController } | undefined;

  constructor(host: VerificationsHost) {
    this.#h = host;
  }

  ask({ disk, run, cursorBytes, endBytes }: VerifyAsk): void {
    const running = this.#running;
    const isSame = running?.ask.disk === disk && running.ask.run === run;
    if (!this.#h.isHeld() || (isSame && !running.abort.signal.aborted)) return;
    this.#asks.set(disk, { disk, run, cursorBytes, endBytes });
    this.poke();
  }

  drop(reason: Error): void {
    this.#asks.clear();
    this.#running?.abort.abort(reason);
  }

  /** Something ended that may have been in the way. */
  poke(): void {
    const connection = this.#h.connection();
    if (this.#running || !connection || !this.#h.isHeld() || this.#h.isMirroring()) return;
    const [ask] = [...this.#asks.values()].sort((a, b) => a.disk - b.disk);
    if (!ask) return;
    this.#asks.delete(ask.disk);
    const abort = new AbortController();
    const { signal } = abort;
    this.#running = { ask, abort };
    const reached = { ...ask };
    const host = this.#h.host(signal);
    const marked: VerifyHost = {
      ...host,
      markVerified: async (_ask, section) => {
        await host.markVerified(ask, section);
        reached.cursorBytes = section.endBytes;
      },
    };
    this.#h.log(`verification of disk ${ask.disk} from byte ${ask.cursorBytes}`);
    runVerify(marked, ask, signal)
      .then(() => this.#h.log(`verification of disk ${ask.disk} is done`))
      .catch((error) => {
        if (signal.aborted) return;
        this.#h.failed(ask, asUndError(error));
        setTimeout(() => {
          if (this.#h.connection() === connection && !this.#asks.has(ask.disk)) this.ask(reached);
        }, RETRY_MS).unref();
      })
      .finally(() => {
        this.#running = undefined;
        this.poke();
      });
  }
}
