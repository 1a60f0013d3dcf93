import { XMLParser } from 'fast-xml-parser';

/** An element to be written. Attributes that are undefined are left out. */
export interface Element {
  tag: string;
  attributes: Record<string, string | number | undefined>;
  children: (Element | string)[];
}

export function element(
  tag: string,
  attributes: Element['attributes'] = {},
  ...children: (Element | string | undefined)[]
): Element {
  return { tag, attributes, children: children.filter((child) => child !== undefined) };
}

const ENTITIES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  "'": '&apos;',
  '"': '&quot;',
};

/** Text for XML 1.0: what it cannot hold at all (most control characters, lone surrogates) is dropped. */
export function escapeXml(text: string): string {
  return (
    text
      .toWellFormed()
      // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is to be dropped
      .replace(/[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, '')
      .replace(/[&<>'"]/g, (character) => ENTITIES[character]!)
      // As references, else a parser folds them into blanks in attributes.
      .replace(/[\t\n\r]/g, (character) => `&#${character.charCodeAt(0)};`)
  );
}

export function writeXml(node: Element): string {
  const attributes = Object.entries(node.attributes)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}='${escapeXml(String(value))}'`)
    .join('');
  if (node.children.length === 0) return `<${node.tag}${attributes}/>`;
  const inner = node.children
    .map((child) => (typeof child === 'string' ? escapeXml(child) : writeXml(child)))
    .join('');
  return `<${node.tag}${attributes}>${inner}</${node.tag}>`;
}

/** A parsed element: attributes as `@name`, text as `#text`, children by tag; see `all` and `first`. */
export type Parsed = { [key: string]: unknown };

const parser = new XMLParser({
  ignoreAttributes: false,
  attributeNamePrefix: '@',
  alwaysCreateTextNode: true,
  parseTagValue: false,
  parseAttributeValue: false,
  ignoreDeclaration: true,
  trimValues: false,
  // For character references; libvirt's XML has no others than XML's own.
  htmlEntities: true,
});

/** The root element of libvirt's XML; `{}` when it is another than `tag`. */
export function parseXml(text: string, tag: string): Parsed {
  const document = parser.parse(text) as Parsed;
  return first(document, tag) ?? {};
}

/** All children with this tag, in order. */
export function all(node: Parsed | undefined, tag: string): Parsed[] {
  const value = node?.[tag];
  if (value === undefined) return [];
  return (Array.isArray(value) ? value : [value]).filter(
    (one): one is Parsed => typeof one === 'object' && one !== null,
  );
}

/** The first element at this path of tags. */
export function first(node: Parsed | undefined, ...path: string[]): Parsed | undefined {
  return path.reduce<Parsed | undefined>((at, tag) => all(at, tag)[0], node);
}

export function attribute(node: Parsed | undefined, name: string): string | undefined {
  const value = node?.[`@${name}`];
  return value === undefined ? undefined : String(value);
}

/** The text inside the element at this path. */
export function textOf(node: Parsed | undefined, ...path: string[]): string | undefined {
  const value = first(node, ...path)?.['#text'];
  return value === undefined ? undefined : String(value).trim();
}
