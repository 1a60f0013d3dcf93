/** Patterns, mounts, and what is left out of a file: no I/O but the note of what was left out. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { FileExtent, MappedFile } from '../../agent/capture/file-map.ts';
import {
  coversAll,
  type ExcludedFile,
  judge,
  plainSpans,
} from '../../agent/mirror/excluded-files.ts';
import { Exclusions, joinSpans } from '../../agent/mirror/exclusions.ts';
import { locate, type Mount, visiblePaths } from '../../agent/mirror/mounts.ts';
import {
  compileExclusions,
  DEFAULT_EXCLUSIONS,
  EXCLUSION_PATTERN,
  matchesName,
  riskyExclusions,
  stepPath,
} from '../../protocol/exclusions.ts';

const KIB = 1024;

t.test('patterns', async (t) => {
  const excluded = (patterns: readonly string[], path: string) =>
    stepPath(compileExclusions(patterns), path).excluded;
  const cases: Array<[pattern: string, path: string, excluded: boolean]> = [
    ['/tmp', '/tmp', true],
    ['/tmp', '/tmp/a/b', true],
    ['/tmp/', '/tmp/a', true],
    ['/tmp', '/tmpfiles', false],
    ['/tmp', '/var/tmp', false],
    ['/var/*/tmp', '/var/x/tmp/f', true],
    ['/var/*/tmp', '/var/x/y/tmp', false],
    ['/var/**/tmp', '/var/tmp/f', true],
    ['/var/**/tmp', '/var/x/y/tmp/f', true],
    ['/var/**/tmp', '/var/x/y/f', false],
    ['/**/*.iso', '/a/b/c.iso', true],
    ['/**/*.iso', '/c.iso.part', false],
    ['/a/**/b/**/c', '/a/b/x/b/y/c', true],
    ['/srv/log.?', '/srv/log.1', true],
    ['/srv/log.?', '/srv/log.10', false],
    ['/srv/[a]', '/srv/a', false],
  ];
  for (const [pattern, path, want] of cases) {
    t.equal(excluded([pattern], path), want, `${pattern} and ${path}`);
  }
  t.ok(excluded(DEFAULT_EXCLUSIONS, '/var/lib/postgresql/15/main/base/pgsql_tmp/pgsql_tmp1.0'));
  t.notOk(excluded(DEFAULT_EXCLUSIONS, '/var/lib/postgresql/15/main/base/16384/1259'));
  t.ok(stepPath(compileExclusions(['/var/tmp']), '/usr').dead, 'a walk need not go there');
  t.notOk(stepPath(compileExclusions(['/var/tmp']), '/var').dead);
  t.ok(compileExclusions([]).dead);
  // A star that is tried at every place does not end here.
  t.notOk(matchesName(`${'*a'.repeat(60)}*b`, 'a'.repeat(250)));
});

t.test('which patterns are taken', async (t) => {
  const good = new RegExp(EXCLUSION_PATTERN, 'u');
  for (const pattern of [...DEFAULT_EXCLUSIONS, '/a b', '/**/node_modules', '/.cache/..x']) {
    t.ok(good.test(pattern), pattern);
  }
  for (const pattern of [
    '',
    '/',
    'tmp',
    '/*',
    '/**',
    '/**/*',
    '//tmp',
    '/a/../b',
    '/a/.',
    '/a\n',
  ]) {
    t.notOk(good.test(pattern), JSON.stringify(pattern));
  }
  t.same(riskyExclusions(['/usr', '/usr/share/doc', '/e*', '/tmp', '/var/lib']), ['/usr', '/e*']);
});

t.test('the names under which a file is seen', async (t) => {
  const mounts: Mount[] = [
    { dev: '8:1', root: '/', mountPoint: '/', type: 'ext4' },
    { dev: '8:1', root: '/var/tmp/x', mountPoint: '/srv/x', type: 'ext4' },
    { dev: '8:2', root: '/', mountPoint: '/tmp', type: 'xfs' },
    { dev: '8:1', root: '/var/tmp/one', mountPoint: '/etc/one', type: 'ext4' },
  ];
  const root = mounts.filter(({ dev }) => dev === '8:1');
  t.same(visiblePaths(root, '/var/tmp/f'), ['/var/tmp/f']);
  t.same(visiblePaths(root, '/var/tmp/x/f'), ['/var/tmp/x/f', '/srv/x/f']);
  t.same(visiblePaths(root, '/var/tmp/xy'), ['/var/tmp/xy']);
  t.same(visiblePaths(root, '/var/tmp/one'), ['/var/tmp/one', '/etc/one']);
  t.match(locate(mounts, '/tmp/a'), { mount: { dev: '8:2' }, path: '/a' });
  t.match(locate(mounts, '/srv/x/a'), { mount: { dev: '8:1' }, path: '/var/tmp/x/a' });
  t.match(locate(mounts, '/swapfile'), { mount: { dev: '8:1' }, path: '/swapfile' });
  t.equal(locate([], '/a'), null);
});

const extent = (over: Partial<FileExtent>): FileExtent => ({
  logicalBytes: 0,
  physicalBytes: 1024 * KIB,
  lengthBytes: 128 * KIB,
  flags: 0,
  ...over,
});

t.test('only plain extents are left out', async (t) => {
  t.same(plainSpans([extent({})], 4096), [{ offsetBytes: 1024 * KIB + 4096, lengthBytes: 131072 }]);
  t.equal(plainSpans([extent({ flags: 0x1801 })], 0).length, 1, 'last, merged, unwritten');
  // UNKNOWN, DELALLOC, ENCODED, ENCRYPTED, NOT_ALIGNED, INLINE, TAIL, SHARED, and one that is not known yet
  for (const flags of [0x2, 0x4, 0x8, 0x80, 0x100, 0x200, 0x400, 0x2000, 0x4000]) {
    t.same(plainSpans([extent({ flags })], 0), [], `flags ${flags.toString(16)}`);
  }
  t.same(plainSpans([extent({ lengthBytes: 60 * KIB })], 0), []);
  t.same(
    plainSpans([extent({}), extent({ logicalBytes: 128 * KIB, physicalBytes: 0 })], 0, {
      keepFirstBytes: 4096,
    }),
    [
      { offsetBytes: 0, lengthBytes: 128 * KIB },
      { offsetBytes: 1024 * KIB + 4096, lengthBytes: 124 * KIB },
    ],
    'the first page of the file stays, wherever it lies',
  );
});

t.test('what becomes of a file that was left out', async (t) => {
  const spans = [{ offsetBytes: 1024 * KIB, lengthBytes: 128 * KIB }];
  const file: ExcludedFile = {
    dev: '8:1',
    path: '/tmp/f',
    handle: '1:aa',
    deviceOffsetBytes: 0,
    shares: false,
    spans,
  };
  const here: MappedFile = { dev: '8:1', links: 1, handle: '1:aa', extents: [] };
  t.equal(judge(file, here, 'alive'), 'holds');
  t.equal(judge(file, { ...here, links: 2 }, 'alive'), 'read', 'a second name');
  t.equal(judge(file, { ...here, handle: '1:ab' }, 'alive'), 'read', 'another file in its place');
  t.equal(judge(file, { ...here, handle: '1:ab' }, 'gone'), 'forget', 'it was replaced');
  t.equal(judge(file, { ...here, dev: '8:2' }, 'unknown'), 'read');
  t.equal(judge(file, null, 'alive'), 'read', 'it was moved');
  t.equal(judge(file, null, 'gone'), 'forget', 'it was deleted');
  t.equal(judge(file, null, 'unknown'), 'read');
  const xfs = { ...file, shares: true };
  t.equal(judge(xfs, { ...here, extents: [extent({})] }, 'alive'), 'holds');
  t.equal(judge(xfs, { ...here, extents: [extent({ flags: 0x2000 })] }, 'alive'), 'read', 'shared');
  t.equal(judge(xfs, here, 'alive'), 'read', 'its blocks may be another file by now');
  t.equal(judge(xfs, null, 'gone'), 'read', 'a copy may have them');
  t.ok(
    coversAll(
      [
        { offsetBytes: 0, lengthBytes: 10 },
        { offsetBytes: 10, lengthBytes: 10 },
      ],
      [{ offsetBytes: 5, lengthBytes: 10 }],
    ),
  );
  t.notOk(coversAll([{ offsetBytes: 0, lengthBytes: 10 }], [{ offsetBytes: 5, lengthBytes: 6 }]));
});

t.test('what was left out is known after a restart, until it was marked dirty', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'exclusions-test-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const path = join(dir, 'note');
  const file = (handle: string, offsetBytes: number): ExcludedFile => ({
    dev: '8:1',
    path: `/tmp/${handle}`,
    handle,
    deviceOffsetBytes: 512,
    shares: false,
    spans: [{ offsetBytes, lengthBytes: 65536 }],
  });
  const first = new Exclusions(path);
  await first.add(0, [file('a', 512), file('b', 1 << 20)]);
  await first.add(0, [file('a', 512 + 65536)]);
  await first.add(2, [file('c', 0)]);
  const bytes = (all: Exclusions) =>
    all.totals().map(({ disk, files, bytes }) => [disk, files, bytes]);
  t.same(bytes(first), [
    [0, 2, 3 * 65536],
    [2, 1, 65536],
  ]);

  const second = new Exclusions(path);
  const marked: unknown[] = [];
  await t.rejects(
    second.follow(
      async (files) => files.map(() => 'read'),
      async () => {
        throw new Error('the helper is gone');
      },
    ),
  );
  const seen: string[] = [];
  const disks = await second.follow(
    async (files) =>
      files.map(({ handle }) => {
        seen.push(handle);
        return handle === 'a' ? 'read' : handle === 'b' ? 'holds' : 'forget';
      }),
    async (disk, extents) => {
      marked.push([disk, extents]);
    },
  );
  // Broken once (the note written before the marks): nothing was left to mark here.
  t.same(seen, ['a', 'b', 'c']);
  t.same([...disks], [0]);
  // Both spans of the file, though the second run only named one, in whole blocks of the dirty map.
  t.same(marked, [[0, [{ offsetBytes: 0, lengthBytes: 2 * 65536 + 4096 }]]]);
  t.same(bytes(second), [[0, 1, 65536]]);
  t.same(joinSpans([{ offsetBytes: 1, lengthBytes: 2 }]), [{ offsetBytes: 1, lengthBytes: 2 }]);
  await second.forget();
  t.same(bytes(second), []);
});
