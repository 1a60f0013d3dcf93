/** Free blocks as the agent reads them, against what e2fsprogs says of the same file system. */
import { execFileSync } from 'node:child_process';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type Ext4Free, ext4Free } from '../../agent/mirror/ext4.ts';
import { parseMounts, parseSwaps } from '../../agent/mirror/mounts.ts';

const MIB = 1024 * 1024;
const run = (command: string, ...args: string[]) =>
  execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] });

t.setTimeout(600_000);

async function freeOf(path: string, bytes: number): Promise<Ext4Free> {
  const fd = openSync(path, 'r');
  try {
    return await ext4Free(async (offset, length) => {
      const data = Buffer.alloc(length);
      readSync(fd, data, 0, length, offset);
      return data;
    }, bytes);
  } finally {
    closeSync(fd);
  }
}

/** Free block ranges as dumpe2fs lists them, group by group. */
function listed(path: string): { blockBytes: number; free: Set<number> } {
  const text = run('dumpe2fs', path);
  const free = new Set<number>();
  for (const [, ranges] of text.matchAll(/^ {2}Free blocks: (.*)$/gm)) {
    for (const range of ranges!.split(', ').filter(Boolean)) {
      const [from, to] = range.split('-').map(Number) as [number, number | undefined];
      for (let block = from; block <= (to ?? from); block++) free.add(block);
    }
  }
  return { blockBytes: Number(/Block size: +(\d+)/.exec(text)![1]), free };
}

const cases: Array<[string, number, string[]]> = [
  ['defaults', 300, []],
  ['1 KiB blocks', 80, ['-b', '1024']],
  ['many groups, flex_bg', 900, ['-b', '1024', '-g', '8192']],
  [
    'no flex_bg, no 64bit',
    400,
    ['-O', '^flex_bg,^64bit,^metadata_csum', '-b', '4096', '-g', '8192'],
  ],
  ['ext3', 200, ['-t', 'ext3']],
  ['ext2 without sparse_super', 120, ['-t', 'ext2', '-O', '^sparse_super,^resize_inode']],
];

for (const [name, mib, args] of cases) {
  t.test(`free blocks: ${name}`, async (t) => {
    const dir = mkdtempSync(join(tmpdir(), 'ext4-test-'));
    t.teardown(() => rmSync(dir, { recursive: true, force: true }));
    const path = join(dir, 'disk');
    writeFileSync(path, '');
    truncateSync(path, mib * MIB);
    const files = join(dir, 'files');
    run('mkdir', files);
    for (let file = 0; file < 30; file++) {
      writeFileSync(join(files, `f${file}`), Buffer.alloc(1 + file * 37_000, 1));
    }
    const type = args.includes('-t') ? [] : ['-t', 'ext4'];
    run('mke2fs', '-q', '-F', ...type, '-E', 'lazy_itable_init=1', '-d', files, ...args, path);
    const { blockBytes, free } = listed(path);
    const found = await freeOf(path, mib * MIB);
    if (found.kind !== 'free') return t.fail(found.reason);
    let freeBytes = 0;
    for (const { offsetBytes, lengthBytes } of found.spans) {
      freeBytes += lengthBytes;
      for (let at = offsetBytes; at < offsetBytes + lengthBytes; at += blockBytes) {
        if (!free.has(at / blockBytes)) return t.fail(`block ${at / blockBytes} is in use`);
      }
    }
    t.ok(freeBytes > 0.9 * free.size * blockBytes, 'nearly all free blocks are found');
  });
}

t.test('what cannot be told is copied', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'ext4-test-'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const path = join(dir, 'disk');
  for (const args of [
    ['-O', 'bigalloc'],
    ['-O', 'meta_bg,^resize_inode'],
    ['-O', 'sparse_super2'],
  ]) {
    writeFileSync(path, '');
    truncateSync(path, 64 * MIB);
    run('mke2fs', '-q', '-F', '-t', 'ext4', ...args, path);
    t.match(await freeOf(path, 64 * MIB), { kind: 'unusable', reason: /feature/ }, args.join(' '));
  }
  t.match(await freeOf(path, 32 * MIB), { kind: 'unusable' }, 'larger than its partition');
  writeFileSync(path, Buffer.alloc(MIB, 0xa5));
  t.match(await freeOf(path, MIB), { kind: 'unusable', reason: /superblock/ });
});

t.test('mounts and swap areas as the kernel lists them', async (t) => {
  const mountinfo = [
    '22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro',
    '30 22 254:1 /var /srv/bind rw - ext4 /dev/vda1 rw',
    '31 22 254:17 / /data\\040disk rw - ext4 /dev/vdb1 rw',
    '32 22 0:30 / /run rw - tmpfs tmpfs rw',
  ].join('\n');
  t.same(
    parseMounts(mountinfo).map(({ dev, root, mountPoint, type }) => [dev, root, mountPoint, type]),
    [
      ['254:1', '/', '/', 'ext4'],
      ['254:1', '/var', '/srv/bind', 'ext4'],
      ['254:17', '/', '/data disk', 'ext4'],
      ['0:30', '/', '/run', 'tmpfs'],
    ],
  );
  t.same(
    parseSwaps(
      'Filename\tType\tSize\tUsed\tPriority\n/dev/vda5 partition 1 0 -2\n/swapfile file 1 0 -3\n',
    ),
    { devices: ['/dev/vda5'], files: ['/swapfile'] },
  );
});
