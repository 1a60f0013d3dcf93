import type { AuditEntry } from '../api/schema.ts';
import type { AuditStore } from '../state/audit.ts';

/** Records acts. `who` is a user's name, `source:ID` for an agent, or `appliance` for what it does by itself. */
export class AuditLog {
  readonly #store: AuditStore;
  readonly #now: () => Date;

  constructor(store: AuditStore, now: () => Date = () => new Date()) {
    this.#store = store;
    this.#now = now;
  }

  add(entry: Omit<AuditEntry, 'at'>): void {
    this.#store.add({ at: this.#now().toISOString(), ...entry });
  }

  list(limit: number): AuditEntry[] {
    return this.#store.list(limit);
  }
}
