/**
 * Paths in a guest's file system. They are bytes, they may be anything, and symbolic links in them may point anywhere:
 * every path is walked step by step, and links are followed within the file system's root only, as openat2(2) does with
 * RESOLVE_IN_ROOT. That is safe here although the steps are not one call: the file system is mounted read-only and
 * nobody writes it.
 */
import { undError } from '../../../protocol/errors.ts';

const SLASH = 0x2f;
const DOT = Buffer.from('.');
const DOT_DOT = Buffer.from('..');
/** As the kernel's own limit. */
const MAX_LINKS = 40;
/** The kernel takes no longer path in one call (PATH_MAX). */
const MAX_PATH_BYTES = 4095;

/** Letters, digits and what needs no thought in an address or a shell. */
const PLAIN = /^[A-Za-z0-9._~/+,@=:-]$/;

/** The path as the API has it: bytes that are not plain are percent-encoded, so that any name survives the way. */
export function encodePath(path: Buffer): string {
  let text = '';
  for (const byte of path) {
    const char = String.fromCharCode(byte);
    text += PLAIN.test(char) ? char : `%${byte.toString(16).toUpperCase().padStart(2, '0')}`;
  }
  return text;
}

/**
 * The bytes of a path of the API. Printable ASCII stands for itself.
 * Throws `UND_MOUNT_PATH` for anything else, for a relative path, and for a zero byte.
 */
export function decodePath(text: string, volume: string): Buffer {
  const refuse = (reason: string) => undError('UND_MOUNT_PATH', { path: text, volume, reason });
  if (!/^\/(?:[!-$&-~]|%[0-9A-Fa-f]{2})*$/.test(text)) {
    throw refuse('it is no absolute, percent-encoded path');
  }
  const bytes = Buffer.from(
    text.replaceAll(/%([0-9A-Fa-f]{2})/g, (_, hex: string) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    ),
    'latin1',
  );
  if (bytes.includes(0)) throw refuse('no name has a zero byte');
  return bytes;
}

/** A name for people: what is no UTF-8, and what would move the cursor or the direction of writing, is replaced. */
export const shownName = (name: Buffer): string =>
  name.toString('utf8').replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '\u{fffd}');

export const splitPath = (path: Buffer): Buffer[] => {
  const parts: Buffer[] = [];
  for (let from = 0; from <= path.length; ) {
    const slash = path.indexOf(SLASH, from);
    const end = slash < 0 ? path.length : slash;
    if (end > from) parts.push(path.subarray(from, end));
    from = end + 1;
  }
  return parts;
};

export const joinPath = (parts: readonly Buffer[]): Buffer =>
  parts.length === 0
    ? Buffer.from('/')
    : Buffer.concat(parts.flatMap((part) => [Buffer.from('/'), part]));

/** What the walk asks the file system; paths are of the appliance. */
export interface PathLooker {
  /** Throws as lstat(2), without following a last link. */
  isLink(path: Buffer): boolean;
  readLink(path: Buffer): Buffer;
}

/**
 * The path in the appliance for a path of the guest below `root`, without any symbolic link in it. `..` does not lead out
 * of the root. With `last` 'keep' a last link is not followed.
 * @throws UND_MOUNT_PATH on a circle of links, a path that is too long; whatever the looker throws
 */
export function resolveInRoot(
  root: Buffer,
  path: Buffer,
  looker: PathLooker,
  last: 'follow' | 'keep' = 'follow',
): { real: Buffer; inside: Buffer } {
  const refuse = (reason: string) =>
    undError('UND_MOUNT_PATH', { path: encodePath(path), volume: 'the volume', reason });
  const done: Buffer[] = [];
  const todo = splitPath(path);
  let links = 0;
  while (todo.length > 0) {
    const part = todo.shift() as Buffer;
    if (part.equals(DOT)) continue;
    if (part.equals(DOT_DOT)) {
      done.pop();
      continue;
    }
    const here = Buffer.concat([root, joinPath([...done, part])]);
    if (here.length > MAX_PATH_BYTES) throw refuse('it is longer than a path can be');
    if (!looker.isLink(here) || (last === 'keep' && todo.length === 0)) {
      done.push(part);
      continue;
    }
    if (++links > MAX_LINKS) throw refuse('too many symbolic links');
    const target = looker.readLink(here);
    if (target[0] === SLASH) done.length = 0;
    todo.unshift(...splitPath(target));
    if (todo.length > MAX_PATH_BYTES) throw refuse('it is longer than a path can be');
  }
  const inside = joinPath(done);
  return { real: done.length === 0 ? root : Buffer.concat([root, inside]), inside };
}
