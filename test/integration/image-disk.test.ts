/** The image builder's blocks: disks without loop devices, and where Debian packages come from. Needs no root. */
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';

t.setTimeout(300_000);

const root = join(import.meta.dirname, '../..');
const MIB = 1024 ** 2;

await execa(
  'bash',
  [
    '-c',
    '. scripts/lib/env.sh; apt_need gdisk mtools e2fsprogs dosfstools grub-common grub-pc-bin grub-efi-amd64-bin',
  ],
  { cwd: root },
);

const bash = (script: string, env: Record<string, string> = {}) =>
  execa('bash', ['-euc', `. image/base/disk.sh; . image/base/apt.sh; ${script}`], {
    cwd: root,
    env,
  });

async function folder(t: Test): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'image-test-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function bytes(file: string, offset: number, length: number): Promise<Buffer> {
  const handle = await open(file);
  try {
    return (await handle.read(Buffer.alloc(length), 0, length, offset)).buffer;
  } finally {
    await handle.close();
  }
}

t.test('a root disk holds its tree, boots with BIOS and UEFI, and has its swap', async (t) => {
  const work = await folder(t);
  const raw = join(work, 'disk.raw');
  await mkdir(join(work, 'tree/etc'), { recursive: true });
  await writeFile(join(work, 'tree/etc/hello'), 'world\n');
  await bash(`DISK_SWAP_MIB=8 disk_make_root ${raw} ${work}/tree 96 root`);

  const table = (await execa('sgdisk', ['--print', raw])).stdout;
  t.match(table, /1 +2048 .*EF02 +bios-boot/);
  t.match(table, /2 +4096 .*EF00 +esp/);
  t.match(table, /3 +36864 .*8300 +root/);
  t.match(table, /4 .*8200 +swap/);
  t.match((await execa('sgdisk', ['--verify', raw])).stdout, /No problems found/);

  // boot.img is told where core.img is, and core.img's first sector where the rest of it is.
  const boot = await bytes(raw, 0, 512);
  t.equal(boot.readBigUInt64LE(0x5c), 2048n);
  t.equal(boot.readUInt16LE(510), 0xaa55);
  const core = await bytes(raw, 2048 * 512, 512);
  t.equal(core.readBigUInt64LE(512 - 12), 2049n);
  t.ok(core.readUInt16LE(512 - 4) > 20, 'core.img has more sectors');

  const esp = join(work, 'esp');
  await writeFile(esp, await bytes(raw, 2 * MIB, 16 * MIB));
  const efi = join(work, 'BOOTX64.EFI');
  await execa('mcopy', ['-i', esp, '::/EFI/BOOT/BOOTX64.EFI', efi]);
  t.equal((await readFile(efi)).subarray(0, 2).toString(), 'MZ');

  const partition = join(work, 'root.ext4');
  await execa('dd', [
    `if=${raw}`,
    `of=${partition}`,
    'bs=1M',
    'skip=18',
    'count=69',
    'status=none',
  ]);
  await execa('e2fsck', ['-fn', partition]);
  t.equal((await execa('debugfs', ['-R', 'cat /etc/hello', partition])).stdout, 'world');
  const swap = await bytes(raw, (96 - 8 - 1) * MIB, 4096);
  t.equal(swap.subarray(4086).toString('latin1'), 'SWAPSPACE2');
});

t.test('a data disk holds its tree', async (t) => {
  const work = await folder(t);
  await mkdir(join(work, 'tree'));
  await writeFile(join(work, 'tree/row'), '1\n');
  await bash(`disk_make_data ${work}/data.raw ${work}/tree 32 data`);
  const partition = join(work, 'p1');
  await writeFile(partition, await bytes(join(work, 'data.raw'), MIB, 30 * MIB));
  await execa('e2fsck', ['-fn', partition]);
  t.equal((await execa('debugfs', ['-R', 'cat /row', partition])).stdout, '1');
});

/** An apt of its own, with repositories in folders. */
async function apt(work: string, entries: { name: string; origin: string; suite: string }[]) {
  const etc = join(work, 'apt');
  const lists = join(work, 'lists');
  await mkdir(join(lists, 'partial'), { recursive: true });
  await mkdir(join(etc, 'parts'), { recursive: true });
  await writeFile(join(work, 'status'), '');
  let sources = '';
  for (const { name, origin, suite } of entries) {
    const dist = join(work, name, 'dists', suite);
    await mkdir(join(dist, 'main/binary-amd64'), { recursive: true });
    const packages =
      'Package: nothing\nVersion: 1\nArchitecture: amd64\nFilename: nothing.deb\nSize: 1\n\n';
    const sum = createHash('sha256').update(packages).digest('hex');
    await writeFile(join(dist, 'main/binary-amd64/Packages'), packages);
    await writeFile(
      join(dist, 'Release'),
      `Origin: ${origin}\nSuite: ${suite}\nCodename: ${suite}\nComponents: main\nArchitectures: amd64\nDate: ${new Date().toUTCString()}\n` +
        `SHA256:\n ${sum} ${packages.length} main/binary-amd64/Packages\n`,
    );
    sources += `deb [trusted=yes arch=amd64] file:${join(work, name)} ${suite} main\n`;
  }
  await writeFile(join(etc, 'sources.list'), sources);
  const config = join(work, 'apt.conf');
  await writeFile(
    config,
    `Dir::Etc "${etc}"; Dir::Etc::sourceparts "${etc}/parts"; Dir::Etc::parts "${etc}/parts"; Dir::State "${work}";
Dir::State::lists "${lists}"; Dir::State::status "${work}/status"; Dir::Cache "${work}/cache"; APT::Architecture "amd64";
APT::Sandbox::User "root"; Acquire::http::Proxy "http://192.0.2.1:3128"; Acquire::Languages "none";\n`,
  );
  return { APT_CONFIG: config };
}

t.test('only the Debian entries of the apt configuration are taken', async (t) => {
  const work = await folder(t);
  const own = (await execa('bash', ['-c', '. /etc/os-release; echo "$VERSION_CODENAME"'])).stdout;
  const env = await apt(work, [
    { name: 'debian', origin: 'Debian', suite: own },
    { name: 'security', origin: 'Debian', suite: `${own}-security` },
    { name: 'vendor', origin: 'Vendor', suite: own },
    { name: 'backports', origin: 'Debian', suite: `${own}-backports` },
  ]);
  // The lists are empty at first, as on a machine whose image was made small: they are fetched.
  const { stdout } = await bash('debian_sources', env);
  t.same(stdout.split('\n').sort(), [
    `deb file:${work}/debian/ bookworm main`,
    `deb file:${work}/security/ bookworm-security main`,
  ]);
  const options = (await bash('debian_apt_options', env)).stdout;
  t.match(options, 'Acquire::http::Proxy "http://192.0.2.1:3128";');
});

t.test('a machine without Debian entries is told so', async (t) => {
  const work = await folder(t);
  const env = await apt(work, [{ name: 'vendor', origin: 'Vendor', suite: 'bookworm' }]);
  const failed = await t.rejects(bash('debian_sources', env));
  t.match(String((failed as unknown as { stderr?: string })?.stderr ?? failed), /no Debian entry/);
});

t.test('nothing in the image folder names a package mirror', async (t) => {
  const found = await execa(
    'grep',
    ['-rnEI', 'https?://[a-z0-9.-]*(debian|ubuntu)[a-z0-9.-]*/', 'image', 'scripts'],
    {
      cwd: root,
      reject: false,
    },
  );
  t.equal(found.stdout, '');
});
