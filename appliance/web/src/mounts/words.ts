import type { Failover, FileEntry } from '../../../api/schema.ts';
import type { JobWords } from '../jobs/words.ts';

/** A mounted recovery point's state as a person reads it. */
export function describeMount({ state }: Pick<Failover, 'state'>): JobWords {
  switch (state.name) {
    case 'running':
      return { label: 'Being opened', tone: 'busy' };
    case 'completed':
      return { label: 'Open', tone: 'good' };
    case 'compensating':
      return { label: 'Going back', tone: 'attention', reason: state.error.message };
    case 'failed':
      return { label: 'Failed', tone: 'bad', reason: state.error.message };
    case 'undoing':
      return { label: 'Being closed', tone: 'busy' };
    default:
      return { label: 'Closed', tone: 'neutral', reason: 'Nothing of it is left.' };
  }
}

/** The folders on the way to a path of the API (percent-encoded bytes), the root first. */
export function crumbsOf(path: string): { name: string; path: string }[] {
  const parts = path.split('/').filter((part) => part !== '');
  return parts.map((part, index) => ({
    name: shown(part),
    path: `/${parts.slice(0, index + 1).join('/')}`,
  }));
}

/** What is no UTF-8 is replaced, as in the names that the API tells. */
function shown(part: string): string {
  const bytes = Uint8Array.from(
    part.replaceAll(/%([0-9A-F]{2})/gi, (_, hex: string) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    ),
    (char) => char.charCodeAt(0),
  );
  return new TextDecoder().decode(bytes).replaceAll(/[\p{Cc}\p{Cf}]/gu, '\u{fffd}');
}

/** As `ls -l` writes it: `rwxr-x---`. */
export const modeInWords = (mode: number): string =>
  [6, 3, 0]
    .map((shift) => {
      const bits = (mode >> shift) & 7;
      return `${bits & 4 ? 'r' : '-'}${bits & 2 ? 'w' : '-'}${bits & 1 ? 'x' : '-'}`;
    })
    .join('');

export const KIND_WORDS: Record<FileEntry['kind'], string> = {
  file: 'file',
  folder: 'folder',
  link: 'link',
  special: 'device, pipe or socket',
  unreadable: 'cannot be read',
};

/** The command that copies one exported disk, to be pasted into a shell. */
export const copyCommand = (host: string, port: number, name: string): string =>
  `qemu-img convert -p -O qcow2 --object tls-creds-x509,id=tls,dir=understudy-nbd,endpoint=client --image-opts driver=nbd,server.type=inet,server.host=${host},server.port=${port},export=${name},tls-creds=tls ${name}.qcow2`;

export const nbdUri = (host: string, port: number, name: string): string =>
  `nbds://${host.includes(':') ? `[${host}]` : host}:${port}/${name}?tls-certificates=understudy-nbd`;
