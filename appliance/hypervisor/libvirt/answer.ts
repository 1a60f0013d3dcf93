import { undError } from '../../../protocol/errors.ts';
import type { DiskRef } from '../hypervisor.ts';

/** Readers of the wrapper's answers: what does not have the agreed form is UND_HV_FAILED, not `undefined` later on. */
export type Fields = Record<string, unknown>;

function misread(what: string): Error {
  return undError('UND_HV_FAILED', { action: 'answer', reason: `its answer has no ${what}` });
}

export function asFields(value: unknown): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw misread('object');
  return value as Fields;
}

export function asList(value: unknown): Fields[] {
  if (!Array.isArray(value)) throw misread('list');
  return value.map(asFields);
}

export function text(fields: Fields, key: string): string {
  const value = fields[key];
  if (typeof value !== 'string') throw misread(key);
  return value;
}

export function number(fields: Fields, key: string): number {
  const value = fields[key];
  if (typeof value !== 'number' || !Number.isFinite(value)) throw misread(key);
  return value;
}

export function asDiskRef(value: unknown): DiskRef {
  const fields = asFields(value);
  return { pool: text(fields, 'pool'), name: text(fields, 'name'), path: text(fields, 'path') };
}
