/** Kernel modules: which ones a driver needs, and the index by which modprobe finds them. */

export interface ModuleDep {
  path: string;
  needs: string[];
}

/** `kernel/drivers/scsi/virtio_scsi.ko.xz` is the module `virtio_scsi`; the kernel takes `-` and `_` for the same. */
export function moduleName(path: string): string {
  const file = path.slice(path.lastIndexOf('/') + 1);
  return file.replace(/\.ko(\.(gz|xz|zst))?$/, '').replaceAll('-', '_');
}

/** The lines of a `modules.dep`, by module name. A later line of the same module wins. */
export function parseModulesDep(text: string): Map<string, ModuleDep> {
  const found = new Map<string, ModuleDep>();
  for (const line of text.split('\n')) {
    const colon = line.indexOf(':');
    if (colon <= 0) continue;
    const path = line.slice(0, colon).trim();
    const needs = line
      .slice(colon + 1)
      .trim()
      .split(/\s+/)
      .filter((word) => word !== '');
    found.set(moduleName(path), { path, needs });
  }
  return found;
}

/** `modules.builtin` as module names. */
export const parseModulesBuiltin = (text: string): Set<string> =>
  new Set(
    text
      .split('\n')
      .filter((line) => line.trim() !== '')
      .map((line) => moduleName(line.trim())),
  );

/**
 * The modules for these drivers with all that they need, by name. What is built into the kernel needs no module;
 * `missing` is neither.
 */
export function closure(
  drivers: readonly string[],
  dep: Map<string, ModuleDep>,
  builtin: ReadonlySet<string>,
): { modules: Map<string, ModuleDep>; missing: string[] } {
  const modules = new Map<string, ModuleDep>();
  const missing: string[] = [];
  const visit = (name: string) => {
    if (modules.has(name) || builtin.has(name)) return;
    const entry = dep.get(name);
    if (!entry) {
      missing.push(name);
      return;
    }
    modules.set(name, entry);
    for (const path of entry.needs) visit(moduleName(path));
  };
  for (const driver of drivers) visit(driver);
  return { modules, missing };
}

export const formatModulesDep = (dep: Iterable<ModuleDep>): string =>
  [...dep].map(({ path, needs }) => `${[`${path}:`, ...needs].join(' ')}\n`).join('');

interface TrieNode {
  prefix: string;
  children: Map<number, TrieNode>;
  values: { priority: number; value: string }[];
}

const INDEX_MAGIC = 0xb007f457;
const INDEX_VERSION = 0x00020001;
const NODE_PREFIX = 0x80000000;
const NODE_VALUES = 0x40000000;
const NODE_CHILDREN = 0x20000000;

/**
 * `modules.dep.bin`, the form of `modules.dep` that modprobe reads: a radix tree over the module names, children
 * before their parent, all integers big-endian. Format: the comment at the top of kmod's `libkmod/libkmod-index.c`.
 */
export function modulesDepIndex(dep: Map<string, ModuleDep>): Buffer {
  const root: TrieNode = { prefix: '', children: new Map(), values: [] };
  let priority = 0;
  for (const [name, entry] of dep) {
    insert(root, name, {
      priority: priority++,
      value: [`${entry.path}:`, ...entry.needs].join(' '),
    });
  }
  const parts: Buffer[] = [];
  let length = 12;
  const put = (part: Buffer) => {
    parts.push(part);
    length += part.length;
  };
  const u32 = (value: number): Buffer => {
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32BE(value >>> 0);
    return buffer;
  };
  const write = (node: TrieNode): number => {
    const keys = [...node.children.keys()].sort((a, b) => a - b);
    const first = keys[0];
    const last = keys.at(-1);
    const offsets: number[] = [];
    if (first !== undefined && last !== undefined) {
      for (let key = first; key <= last; key++) {
        const child = node.children.get(key);
        offsets.push(child ? write(child) : 0);
      }
    }
    let reference = length;
    if (node.prefix !== '') {
      put(Buffer.from(`${node.prefix}\0`, 'latin1'));
      reference += NODE_PREFIX;
    }
    if (first !== undefined && last !== undefined) {
      put(Buffer.from([first, last]));
      for (const offset of offsets) put(u32(offset));
      reference += NODE_CHILDREN;
    }
    if (node.values.length > 0) {
      put(u32(node.values.length));
      for (const { priority: rank, value } of node.values) {
        put(u32(rank));
        put(Buffer.from(`${value}\0`, 'latin1'));
      }
      reference += NODE_VALUES;
    }
    return reference;
  };
  const rootReference = write(root);
  return Buffer.concat([u32(INDEX_MAGIC), u32(INDEX_VERSION), u32(rootReference), ...parts]);
}

function insert(root: TrieNode, key: string, value: { priority: number; value: string }): void {
  let node = root;
  let rest = key;
  while (true) {
    let common = 0;
    while (common < node.prefix.length && node.prefix[common] === rest[common]) common++;
    if (common < node.prefix.length) {
      // Split: the rest of the prefix moves to a child; the character between them is the child's key.
      const lower: TrieNode = {
        prefix: node.prefix.slice(common + 1),
        children: node.children,
        values: node.values,
      };
      node.children = new Map([[node.prefix.charCodeAt(common), lower]]);
      node.values = [];
      node.prefix = node.prefix.slice(0, common);
    }
    rest = rest.slice(common);
    if (rest === '') {
      node.values.push(value);
      return;
    }
    const code = rest.charCodeAt(0);
    const child = node.children.get(code);
    if (!child) {
      node.children.set(code, { prefix: rest.slice(1), children: new Map(), values: [value] });
      return;
    }
    node = child;
    rest = rest.slice(1);
  }
}

/** Looks a module up in an index as modprobe does. Throws a plain Error on a damaged index. */
export function lookUpIndex(index: Buffer, key: string): string[] {
  if (index.readUInt32BE(0) !== INDEX_MAGIC || index.readUInt32BE(4) !== INDEX_VERSION) {
    throw new Error('not a module index');
  }
  let reference = index.readUInt32BE(8);
  let rest = key;
  while (true) {
    let at = reference & 0x0fffffff;
    if ((reference & NODE_PREFIX) !== 0) {
      const end = index.indexOf(0, at);
      const prefix = index.toString('latin1', at, end);
      if (!rest.startsWith(prefix)) return [];
      rest = rest.slice(prefix.length);
      at = end + 1;
    }
    let children: { first: number; offsets: number[] } | null = null;
    if ((reference & NODE_CHILDREN) !== 0) {
      const first = index.readUInt8(at);
      const last = index.readUInt8(at + 1);
      at += 2;
      const offsets: number[] = [];
      for (let code = first; code <= last; code++, at += 4) offsets.push(index.readUInt32BE(at));
      children = { first, offsets };
    }
    if (rest === '') {
      if ((reference & NODE_VALUES) === 0) return [];
      const count = index.readUInt32BE(at);
      at += 4;
      const values: string[] = [];
      for (let i = 0; i < count; i++) {
        const end = index.indexOf(0, at + 4);
        values.push(index.toString('latin1', at + 4, end));
        at = end + 1;
      }
      return values;
    }
    const next = children?.offsets[rest.charCodeAt(0) - children.first];
    if (!next) return [];
    reference = next;
    rest = rest.slice(1);
  }
}
