/** Paths of a hostile guest: whatever its names and links say, the walk stays below the root. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import t from 'tap';
import { attachment, byteRange } from '../../appliance/api/download.ts';
import { externalJournal } from '../../appliance/recovery/browse/external-journal.ts';
import { GuestFiles } from '../../appliance/recovery/browse/guest-files.ts';
import {
  decodePath,
  encodePath,
  joinPath,
  resolveInRoot,
  splitPath,
} from '../../appliance/recovery/browse/guest-path.ts';
import { AnswerReader, encodeAnswer } from '../../appliance/recovery/browse/wire.ts';

const folder = mkdtempSync(join(tmpdir(), 'und-path-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const codeOf = (work: () => unknown): string => {
  try {
    work();
    return 'no error';
  } catch (error) {
    const { code, params } = error as { code: string; params?: { reason?: string } };
    return `${code}: ${params?.reason}`;
  }
};

t.test('any bytes survive the way through the API', async (t) => {
  const name = fc
    .uint8Array({ minLength: 1, maxLength: 40 })
    .map((bytes) => Buffer.from(bytes.map((byte) => (byte === 0 || byte === 0x2f ? 0x25 : byte))));
  fc.assert(
    fc.property(fc.array(name, { maxLength: 5 }), (parts) => {
      const path = joinPath(parts);
      const text = encodePath(path);
      return /^[!-~]+$/.test(text) && decodePath(text, 'vda1').equals(path);
    }),
  );
  t.equal(encodePath(Buffer.from('/srv/a b%é')), '/srv/a%20b%25%C3%A9');
  t.equal(decodePath('/etc/hosts', 'v').toString(), '/etc/hosts');
  for (const bad of ['etc', '', '/a%0', '/a%zz', '/a b', '/a\n', '/é', '/a%00b']) {
    t.match(
      codeOf(() => decodePath(bad, 'v')),
      /^UND_MOUNT_PATH/,
      bad,
    );
  }
});

// Red when `..` or an absolute link is left to the kernel.
t.test('no tree of links leads out of the root', async (t) => {
  const part = fc.constantFrom('..', '.', 'a', 'b', 'l1', 'l2', 'l3', '');
  const target = fc
    .tuple(fc.constantFrom('', '/', '../../..', '/../..'), fc.array(part, { maxLength: 6 }))
    .map(([start, parts]) => `${start}/${parts.join('/')}`.slice(start === '' ? 1 : 0) || '.');
  let resolved = 0;
  fc.assert(
    fc.property(
      fc.array(part, { maxLength: 8 }),
      fc.record({ l1: target, l2: target, l3: target }),
      (parts, links) => {
        const looked: string[] = [];
        const nameOf = (path: Buffer) => path.toString().split('/').at(-1) ?? '';
        try {
          const { real, inside } = resolveInRoot(
            Buffer.from('/jail'),
            Buffer.from(`/${parts.join('/')}`),
            {
              isLink: (path) => {
                looked.push(path.toString());
                return nameOf(path) in links;
              },
              readLink: (path) => Buffer.from(links[nameOf(path) as keyof typeof links]),
            },
          );
          resolved++;
          const clean = (path: string) =>
            path === '/jail' || (path.startsWith('/jail/') && !/\/\.{1,2}(\/|$)|\/\//.test(path));
          return (
            [real.toString(), ...looked].every(clean) &&
            !splitPath(real).some((one) => one.toString() in links) &&
            real.toString() === (inside.toString() === '/' ? '/jail' : `/jail${inside}`)
          );
        } catch (error) {
          return (error as Error).message.includes('too many symbolic links');
        }
      },
    ),
    { numRuns: 2000 },
  );
  t.ok(resolved > 200, `${resolved} led somewhere`);
});

t.test(
  'a real tree: links stay inside, odd names are listed, special files are left alone',
  async (t) => {
    const root = join(folder, 'root');
    mkdirSync(join(root, 'etc'), { recursive: true });
    writeFileSync(join(folder, 'secret'), "the appliance's");
    writeFileSync(join(root, 'etc/passwd'), "the guest's");
    symlinkSync('/etc/passwd', join(root, 'absolute'));
    symlinkSync('../../../../etc', join(root, 'up'));
    mkdirSync(join(root, 'deep/er'), { recursive: true });
    symlinkSync('/etc/passwd', join(root, 'deep/er/absolute'));
    symlinkSync('../secret', join(root, 'beside'));
    symlinkSync('loop', join(root, 'loop'));
    const odd = Buffer.concat([Buffer.from(`${root}/caf`), Buffer.from([0xe9, 0x0a, 0x22])]);
    writeFileSync(odd, 'latin');
    const files = new GuestFiles(root, 'vda1');
    t.equal(files.read('/absolute', 0, 100).toString(), "the guest's");
    t.equal(files.read('/deep/er/absolute', 0, 100).toString(), "the guest's");
    rmSync(join(root, 'deep'), { recursive: true });
    t.equal(files.read('/up/passwd', 0, 100).toString(), "the guest's");
    t.equal(files.read('/../../etc/../etc/passwd', 4, 5).toString(), 'guest');
    t.equal(
      codeOf(() => files.read('/beside', 0, 100)),
      'UND_MOUNT_PATH: it is not there',
    );
    t.match(
      codeOf(() => files.stat('/loop')),
      /too many symbolic links/,
    );
    t.match(
      codeOf(() => files.stat('/etc')),
      /it is a folder/,
    );
    t.match(
      codeOf(() => files.list('/etc/passwd', 0, 10)),
      /it is no folder/,
    );
    t.match(
      codeOf(() => files.read(`/${'d/'.repeat(3000)}x`, 0, 1)),
      /not there|longer/,
    );

    const { entries, total } = files.list('/', 0, 100);
    t.equal(total, 6);
    t.same(
      entries.map(({ kind, path }) => `${kind} ${path}`),
      [
        'folder /etc',
        'link /absolute',
        'link /beside',
        'file /caf%E9%0A%22',
        'link /loop',
        'link /up',
      ],
    );
    t.match(entries[1], { target: '/etc/passwd', sizeBytes: null });
    t.equal(entries[3]!.name, 'caf\u{fffd}\u{fffd}"');
    t.equal(files.read(entries[3]!.path, 0, 10).toString(), 'latin');
    t.same(
      files.list('/', 1, 2).entries.map(({ name }) => name),
      ['absolute', 'beside'],
    );
    t.equal(files.list('/up', 0, 1).path, '/etc', 'where one is, with no link in it');
  },
);

t.test('names in headers, ranges', async (t) => {
  t.equal(attachment('notes.txt'), `attachment; filename="notes.txt"; filename*=UTF-8''notes.txt`);
  t.equal(
    attachment('a"\r\nSet-Cookie: x=1; é\u202e/../b'),
    `attachment; filename="a___Set-Cookie_ x=1_ ___.._b"; filename*=UTF-8''a%22__Set-Cookie%3A%20x%3D1%3B%20%C3%A9__.._b`,
  );
  fc.assert(
    fc.property(
      fc.string({ unit: 'binary' }),
      (name) =>
        /^[\x20-\x7e]+$/.test(attachment(name)) && !attachment(name).slice(11).includes('/'),
    ),
  );
  t.equal(byteRange(undefined, 10), null);
  t.equal(byteRange('bytes=0-1,3-4', 10), null);
  t.equal(byteRange('bytes=5-2', 10), null);
  t.same(byteRange('bytes=2-4', 10), { fromBytes: 2, lengthBytes: 3 });
  t.same(byteRange('bytes=2-', 10), { fromBytes: 2, lengthBytes: 8 });
  t.same(byteRange('bytes=-3', 10), { fromBytes: 7, lengthBytes: 3 });
  t.same(byteRange('bytes=-30', 10), { fromBytes: 0, lengthBytes: 10 });
  t.same(byteRange('bytes=4-999999999999999', 10), { fromBytes: 4, lengthBytes: 6 });
  t.equal(byteRange('bytes=10-', 10), 'unsatisfiable');
  t.equal(byteRange('bytes=-0', 10), 'unsatisfiable');
});

t.test('answers of the process, however the pipe cuts them', async (t) => {
  const said = [
    encodeAnswer({ op: 'read' }, Buffer.from('body')),
    encodeAnswer({ op: 'read' }),
    encodeAnswer({ op: 'volumes', volumes: [] }),
  ];
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 1, max: 30 }), { minLength: 1 }), (sizes) => {
      const all = Buffer.concat(said);
      const reader = new AnswerReader();
      const got: string[] = [];
      for (let at = 0, n = 0; at < all.length; n++) {
        const size = sizes[n % sizes.length] as number;
        const found = reader.add(all.subarray(at, at + size));
        got.push(...found.map(({ answer, body }) => `${answer.op} ${body}`));
        at += size;
      }
      return got.join() === 'read body,read ,volumes ';
    }),
  );
  const huge = Buffer.alloc(8, 0xff);
  t.throws(() => new AnswerReader().add(huge), RangeError);
});

t.test('a journal that is elsewhere', async (t) => {
  const of = (change: (superblock: Buffer) => void) => {
    const disk = Buffer.alloc(4096);
    disk.writeUInt32LE(0x4, 1024 + 92);
    disk.writeUInt32LE(8, 1024 + 224);
    change(disk.subarray(1024));
    const read = (offset: number, length: number) => disk.subarray(offset, offset + length);
    return externalJournal({ sizeBytes: disk.length, read });
  };
  t.equal(
    of(() => {}),
    null,
  );
  t.match(
    of((sb) => sb.writeUInt32LE(0, 224)),
    /another device/,
  );
  t.match(
    of((sb) => sb.writeUInt32LE(0x801, 228)),
    /another device/,
  );
  t.match(
    of((sb) => sb.writeUInt32LE(0x8, 96)),
    /of another file system/,
  );
  t.equal(
    of((sb) => sb.writeUInt32LE(0, 92) && sb.writeUInt32LE(0, 224)),
    null,
    'no journal at all',
  );
});
