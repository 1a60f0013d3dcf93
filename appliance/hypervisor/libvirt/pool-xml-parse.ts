import { attribute, first, parseXml, textOf } from './xml.ts';

export interface ParsedPool {
  type: string;
  capacityBytes: number;
  availableBytes: number;
  path?: string;
}

export function parsePoolXml(text: string): ParsedPool {
  const root = parseXml(text, 'pool');
  return {
    type: attribute(root, 'type') ?? 'unknown',
    capacityBytes: Number(textOf(root, 'capacity') ?? 0),
    availableBytes: Number(textOf(root, 'available') ?? 0),
    path: textOf(first(root, 'target'), 'path'),
  };
}
