/** Disks whose dirty map does not cover what they missed (pass-through commands, say): only a comparison does. */
import Type, { type Static } from 'typebox';

export const CompareDisks = Type.Union([
  Type.Literal('all'),
  Type.Array(Type.Integer({ minimum: 0, maximum: 63 }), { maxItems: 64 }),
]);
export type CompareDisks = Static<typeof CompareDisks>;

/** Both together. */
export function uniteCompare(a: CompareDisks, b: CompareDisks): CompareDisks {
  if (a === 'all' || b === 'all') return 'all';
  return [...new Set([...a, ...b])].sort((x, y) => x - y);
}
