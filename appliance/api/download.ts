/** Headers of a file that is downloaded. Pure. */

/**
 * Content-Disposition for a name that nobody vouches for (RFC 6266): a plain fallback, and the name itself percent-encoded.
 * Slashes and what is no printable text never reach the browser.
 */
export function attachment(name: string): string {
  const bare = name.replaceAll(/[/\\\p{Cc}\p{Cf}]/gu, '_').slice(0, 200) || 'file';
  const plain = bare.replaceAll(/[^A-Za-z0-9._+@=~ -]/g, '_');
  const encoded = encodeURIComponent(bare.toWellFormed()).replaceAll(
    /['()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  return `attachment; filename="${plain}"; filename*=UTF-8''${encoded}`;
}

/**
 * The one range that a Range header asks for (RFC 9110, 14.1.2). Null: the whole file is answered, also to a header that is
 * not understood or asks for several ranges, as the standard has it.
 */
export function byteRange(
  header: string | undefined,
  sizeBytes: number,
): { fromBytes: number; lengthBytes: number } | 'unsatisfiable' | null {
  const match = header?.match(/^bytes=(\d{0,15})-(\d{0,15})$/);
  if (!match || (match[1] === '' && match[2] === '')) return null;
  const [, first = '', last = ''] = match;
  if (first === '') {
    const lengthBytes = Math.min(Number(last), sizeBytes);
    return lengthBytes === 0
      ? 'unsatisfiable'
      : { fromBytes: sizeBytes - lengthBytes, lengthBytes };
  }
  const fromBytes = Number(first);
  if (last !== '' && Number(last) < fromBytes) return null;
  if (fromBytes >= sizeBytes) return 'unsatisfiable';
  const end = last === '' ? sizeBytes : Math.min(Number(last) + 1, sizeBytes);
  return { fromBytes, lengthBytes: end - fromBytes };
}
