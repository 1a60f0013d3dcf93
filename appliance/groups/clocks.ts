/** Compares the clocks of the connected sources with the appliance's, and remembers what was found. */
import {
  type ClockOffset,
  type ClockReading,
  earliestOnAppliance,
  withReading,
} from './source-clock.ts';

export interface SourceClocksOptions {
  store: {
    clock(sourceId: string): ClockOffset[];
    putClock(sourceId: string, offsets: readonly ClockOffset[]): void;
  };
  /** Of the agents that are connected and can tell their clock. */
  sessions(): { sourceId: string; readClock(): Promise<ClockReading> }[];
  pollMs?: number;
}

const POLL_MS = 10_000;

export class SourceClocks {
  readonly #o: SourceClocksOptions;
  readonly #offsets = new Map<string, readonly ClockOffset[]>();
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(options: SourceClocksOptions) {
    this.#o = options;
  }

  start(): void {
    if (this.#closed) return;
    this.#timer = setTimeout(() => {
      this.read().finally(() => this.start());
    }, this.#o.pollMs ?? POLL_MS);
    this.#timer.unref();
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
  }

  /** Oldest first; empty: its clock was never read. */
  offsets(sourceId: string): readonly ClockOffset[] {
    const known = this.#offsets.get(sourceId) ?? this.#o.store.clock(sourceId);
    this.#offsets.set(sourceId, known);
    return known;
  }

  /** When a past moment of the source's wall clock was by the appliance's, at the earliest; as it is if the clocks were never compared. */
  earliest(sourceId: string, sourceTime: string): string {
    const ms = earliestOnAppliance(this.offsets(sourceId), Date.parse(sourceTime), Date.now());
    return new Date(Math.floor(ms)).toISOString();
  }

  /** Asks all of them, or those, now; one that does not answer is passed over. */
  async read(sourceIds?: readonly string[]): Promise<void> {
    const asked = this.#o
      .sessions()
      .filter(({ sourceId }) => sourceIds?.includes(sourceId) ?? true);
    await Promise.all(
      asked.map(async (session) => {
        try {
          this.#take(session.sourceId, await session.readClock());
        } catch {
          // Its connection broke, which others tell; what was known of its clock still holds.
        }
      }),
    );
  }

  #take(sourceId: string, reading: ClockReading): void {
    if (this.#closed) return;
    const before = this.offsets(sourceId);
    const next = withReading(before, reading);
    if (next === before) return;
    this.#o.store.putClock(sourceId, next);
    this.#offsets.set(sourceId, next);
  }
}
