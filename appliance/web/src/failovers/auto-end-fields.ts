/** The choice of what a failover comes to by itself, as it stands in a form. Pure. */
import type { AutoEnd } from '../../../api/schema.ts';

export interface AutoEndFields {
  act: AutoEnd['act'] | 'none';
  /** As typed; kept while `none` is chosen. */
  minutes: string;
}

/** The contract's. */
export const MAX_MINUTES = 10_080;

export const autoEndFields = (autoEnd: AutoEnd | null): AutoEndFields => ({
  act: autoEnd?.act ?? 'none',
  minutes: String(autoEnd?.afterMinutes ?? 60),
});

/** As the API takes it; undefined while the minutes are none. */
export function autoEndOf({ act, minutes }: AutoEndFields): AutoEnd | null | undefined {
  if (act === 'none') return null;
  const afterMinutes = /^\d{1,5}$/.test(minutes.trim()) ? Number(minutes) : 0;
  return afterMinutes >= 1 && afterMinutes <= MAX_MINUTES ? { act, afterMinutes } : undefined;
}
