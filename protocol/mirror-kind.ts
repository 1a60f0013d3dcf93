/** What a mirror run reads; control messages and marks both name it. */
import Type, { type Static } from 'typebox';

/**
 * - `full`: every block, onto a replica that reads as zeroes.
 * - `difference`: every block is read and compared, only what differs travels.
 * - `drain`: only the blocks that the dirty map names; the rest is proven covered by the captured stream.
 */
export const MirrorKind = Type.Union([
  Type.Literal('full'),
  Type.Literal('difference'),
  Type.Literal('drain'),
]);
export type MirrorKind = Static<typeof MirrorKind>;
