/** Points and clock marks with the real capture, real file systems and a real PostgreSQL. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { CaptureLab, directWrite, run, runAside, unable } from './capture.lab.ts';
import { keeper } from './keeper.lab.ts';
import { MIB } from './quiesce.lab.ts';
import { until } from './stream.lab.ts';

const skip = unable();
t.setTimeout(240_000);

t.before(() => {
  if (!skip) run('scripts/build-capture');
});

/** Appends and syncs small files for ever; its first line says that it is at work. */
async function worker(lab: CaptureLab, at: string): Promise<ChildProcess> {
  const child = spawn(
    'sh',
    [
      '-c',
      'echo at work; n=0; while :; do n=$((n+1)); head -c 20000 /dev/zero >>"$0/f$((n % 20))"; echo $n >"$0/n"; [ $((n % 7)) = 0 ] && rm -f "$0"/f1*; sleep 0.01; done',
      at,
    ],
    { stdio: ['ignore', 'pipe', 'ignore'] },
  );
  lab.later(() => child.kill('SIGKILL'));
  await once(child.stdout!, 'data');
  return child;
}

const needsRecovery = (image: string) =>
  /needs_recovery/.test(run('dumpe2fs', '-h', image).match(/^Filesystem features:.*$/m)?.[0] ?? '');

t.test('a quiesced point: clean file systems, and hooks around them', { skip }, async (t) => {
  const lab = new CaptureLab(t, 1500);
  const ext = lab.disk(96, { random: false });
  const xfs = lab.disk(320, { random: false });
  await runAside('mkfs.ext4', '-q', '-F', ext.dev);
  await runAside('mkfs.xfs', '-q', '-f', xfs.dev);
  for (const { file, replica } of [ext, xfs]) run('cp', '--sparse=always', file, replica);
  const { kept, hook } = await keeper(t, lab, [ext, xfs]);
  const extAt = lab.mount(ext.dev);
  const xfsAt = lab.mount(xfs.dev);
  // A file system in a file of a protected one: frozen after its host it would wait for ever.
  fs.writeFileSync(join(extAt, 'inner.img'), '');
  fs.truncateSync(join(extAt, 'inner.img'), 16 * MIB);
  const inner = run('losetup', '-f', '--show', join(extAt, 'inner.img')).trim();
  lab.later(() => run('losetup', '-d', inner));
  await runAside('mkfs.ext4', '-q', '-F', inner);
  const innerAt = lab.mount(inner);
  for (const at of [extAt, xfsAt, innerAt]) await worker(lab, at);

  hook('10-first', `echo "$1 10" >>${extAt}/log`);
  hook('20-second', `echo "$1 20" >>${extAt}/log`);
  t.equal(kept.ordered, true);
  const crash = await kept.takePoint('as it is', false);
  t.match(crash, { point: { quiesced: false, reason: null, freezeMs: null } });
  const { point, seq, postHooks, error } = await kept.takePoint('at rest', true);
  t.equal(error, undefined);
  t.match(point, { type: 'consistencyPoint', name: 'at rest', quiesced: true, reason: null });
  t.same([...point!.fileSystems].sort(), [extAt, xfsAt, innerAt].sort(), 'all three were frozen');
  t.ok(point!.fileSystems.indexOf(innerAt) < point!.fileSystems.indexOf(extAt));
  t.ok((point!.freezeMs ?? 0) > 0, `frozen for ${point!.freezeMs?.toFixed(1)} ms`);
  t.same(
    [...point!.hooks, ...postHooks!].map(
      ({ name, phase, outcome }) => `${phase} ${name} ${outcome}`,
    ),
    [
      'pre 10-first done',
      'pre 20-second done',
      'pre 50-postgresql skipped',
      'post 20-second done',
      'post 10-first done',
    ],
    'in order and back; PostgreSQL has nothing on these disks',
  );
  t.equal(fs.readFileSync(join(extAt, 'log'), 'utf8'), 'pre 10\npre 20\npost 20\npost 10\n');
  t.same(
    kept.frames
      .filter(({ mark }) => mark?.type === 'consistencyPoint')
      .map(({ header }) => header.seq),
    [crash.seq, seq],
    'each once, where it said',
  );

  // Seen red with the mark put after the thaw.
  const image = join(lab.dir, 'cut.img');
  kept.cut(0, crash.seq!, image, ext.replica);
  t.ok(needsRecovery(image), 'any other moment of a mounted ext4 has a journal to replay');
  kept.cut(0, seq!, image, ext.replica);
  t.notOk(needsRecovery(image), 'the point has none');
  const { status, stdout } = spawnSync('e2fsck', ['-fn', image], { encoding: 'utf8' });
  t.equal(status, 0, stdout);
  const cutAt = lab.mount(image, '-o', 'loop');
  t.equal(fs.readFileSync(join(cutAt, 'log'), 'utf8'), 'pre 10\npre 20\n', 'between pre and post');
  t.equal(spawnSync('e2fsck', ['-fn', join(cutAt, 'inner.img')]).status, 0, 'the inner one too');
  t.notOk(needsRecovery(join(cutAt, 'inner.img')));
  const xfsImage = join(lab.dir, 'xfs.img');
  kept.cut(1, seq!, xfsImage, xfs.replica);
  const xfsCut = lab.mount(xfsImage, '-o', 'loop,nouuid');
  t.match(fs.readFileSync(join(xfsCut, 'n'), 'utf8'), /^\d*\n?$/);
  run('umount', xfsCut);
  t.equal(spawnSync('xfs_repair', ['-n', xfsImage]).status, 0, 'xfs_repair finds nothing');
});

t.test(
  'a failed hook: crash-consistent, says why, post runs, nothing is held',
  { skip },
  async (t) => {
    const lab = new CaptureLab(t);
    const disk = lab.disk(64, { random: false });
    const { kept, hook } = await keeper(t, lab, [disk]);
    await runAside('mkfs.ext4', '-q', '-F', disk.dev);
    const at = lab.mount(disk.dev);
    hook('10-good', `echo "$1" >>${at}/good`);
    hook('20-bad', `echo "$1" >>${at}/bad; [ "$1" = post ] || { echo "no licence"; exit 3; }`);
    hook('30-never', `echo "$1" >>${at}/never`);
    const bad = await kept.takePoint('bad', true);
    t.match(bad.point, { quiesced: false, freezeMs: null, reason: /20-bad failed: no licence/ });
    t.equal(fs.readFileSync(join(at, 'good'), 'utf8'), 'pre\npost\n');
    t.equal(fs.readFileSync(join(at, 'bad'), 'utf8'), 'pre\npost\n', 'also after its pre failed');
    t.notOk(fs.existsSync(join(at, 'never')));

    hook('20-bad', 'exit 0', 0o777);
    const open = await kept.takePoint('writable', true);
    t.match(open.point, { quiesced: false, reason: /others may write to it/ });
    fs.rmSync(join(lab.dir, 'hooks.d', '20-bad'));

    // Frozen by somebody else: no point of ours may thaw that.
    run('fsfreeze', '-f', at);
    let frozen = true;
    lab.later(() => frozen && run('fsfreeze', '-u', at));
    for (const name of ['10-good', '30-never']) fs.rmSync(join(lab.dir, 'hooks.d', name));
    const busy = kept.takePoint('busy', true);
    const answer = await busy;
    t.match(answer.point, { quiesced: false, freezeMs: null, reason: /Freezing .* failed/ });
    run('fsfreeze', '-u', at);
    frozen = false;
    const again = await kept.takePoint('again', true);
    t.match(again.point, { quiesced: true, fileSystems: [at] });
  },
);

// Seen red with the two disks' roles swapped in the check: the order of one disk's records says nothing of the other's.
t.test('writes to two disks keep their order in every prefix', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const disks = [lab.disk(16, { random: false }), lab.disk(16, { random: false })];
  const { kept } = await keeper(t, lab, disks);
  const workers = 4;
  const rounds = 2000;
  const withData = () => kept.frames.filter(({ extents }) => extents.length > 0).length;
  // How many frames a number of writes becomes is the machine's: it goes on until there are enough to judge.
  let last = 0;
  while (withData() < 20) {
    await runAside(
      'python3',
      join(import.meta.dirname, 'order.py'),
      disks[0]!.dev,
      disks[1]!.dev,
      String(workers),
      String(rounds),
      String(last + 1),
    );
    last += rounds;
  }
  const { seq } = await kept.takePoint('end', false);
  const numbers = [new Map<number, number>(), new Map<number, number>()];
  let prefixes = 0;
  let ahead = 0;
  // A prefix ends with a frame: within one, only the last write of a block is there.
  for (const { extents } of kept.frames) {
    for (const extent of extents) {
      if (extent.kind !== 'write') continue;
      for (let at = 0; at < extent.lengthBytes; at += 4096) {
        const slot = (extent.offsetBytes + at) / 4096;
        const data = Buffer.from(extent.data.buffer, extent.data.byteOffset + at, 8);
        numbers[extent.disk]!.set(slot, Number(data.readBigUInt64LE()));
      }
    }
    if (extents.length > 0) prefixes++;
    for (const slot of numbers[1]!.keys()) {
      if (numbers[1]!.get(slot)! > (numbers[0]!.get(slot) ?? 0)) ahead++;
    }
  }
  t.equal(ahead, 0, `of ${prefixes} prefixes none has the second disk ahead of the first`);
  t.ok(prefixes >= 20, `${prefixes} prefixes`);
  for (const disk of numbers) t.same([...disk.values()], Array(workers).fill(last));
  t.ok(seq! > 0);
  t.equal(kept.ordered, true);
});

t.test('clock marks come while the source is being written to', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const disk = lab.disk(32, { random: false });
  const { kept } = await keeper(t, lab, [disk]);
  const load = spawn(
    'sh',
    [
      '-c',
      'while :; do dd if=/dev/urandom of="$0" bs=64k count=64 oflag=direct conv=notrunc status=none; done',
      disk.dev,
    ],
    { stdio: 'ignore' },
  );
  lab.later(() => load.kill('SIGKILL'));
  // Between two marks there are captured writes: it was not the idle source that gave them.
  const underLoad = () => {
    const marks = kept.frames.flatMap(({ mark }, at) => (mark?.type === 'tick' ? [at] : []));
    return marks.filter((at, n) => n > 0 && at - marks[n - 1]! > 1).length;
  };
  await until('five clock marks under load', () => underLoad() >= 5, 60_000);
  const clocks = kept.frames.map(({ header }) => header.bootTimeNs);
  t.same(
    clocks,
    clocks.toSorted((a, b) => (a < b ? -1 : a > b ? 1 : 0)),
    'the clock only rises',
  );
});

// Seen red with batches and frames that may span any time: one spans seconds.
t.test('a stream that was held up has its clock marks where they belong', { skip }, async (t) => {
  const lab = new CaptureLab(t);
  const disk = lab.disk(32, { random: false });
  const { kept } = await keeper(t, lab, [disk], { windowBytes: 16 * 1024 });
  const open = kept.holdBack();
  // Fill the window, so that the rest stays in the ring until the link takes frames again.
  await directWrite(disk.dev, 0, 64 * 1024);
  const before = kept.frames.length;
  const halfSeconds = new Set<number>();
  /** When each block had been written, on the clock of the frames. */
  const writtenMs: number[] = [];
  while (halfSeconds.size < 12) {
    halfSeconds.add(Math.floor(performance.now() / 500));
    await directWrite(disk.dev, MIB + writtenMs.length * 4096, 4096);
    writtenMs.push(Number(fs.readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 1000);
  }
  open();
  const { seq } = await kept.takePoint('end', false);
  const clocks = new Set<bigint>();
  let data = 0n;
  let longestMs = 0;
  for (const { header, mark, extents } of kept.frames.slice(before)) {
    if (header.seq > seq!) break;
    for (const { offsetBytes } of extents) {
      const ms = writtenMs[(offsetBytes - MIB) / 4096] ?? Number.POSITIVE_INFINITY;
      longestMs = Math.max(longestMs, Number(header.bootTimeNs) / 1e6 - ms);
    }
    if (header.kind === 'stream') data = header.bootTimeNs;
    // Those that follow data at once: the idle moments in between prove nothing here.
    else if (mark?.type === 'tick' && header.bootTimeNs === data) clocks.add(data);
  }
  t.ok(clocks.size >= 2, `${clocks.size} marks for ${halfSeconds.size} half seconds of writes`);
  t.ok(longestMs < 1100, `no frame spans more than a second: ${longestMs.toFixed(0)} ms`);
  t.equal(kept.frames.filter(({ header }) => header.aheadBytes > 0).length, 0, 'none is cut');
});

/** The server's programs, wherever this distribution has them. */
const postgres = (() => {
  const at = '/usr/lib/postgresql';
  const versions = fs.existsSync(at) ? fs.readdirSync(at) : [];
  const newest = versions.toSorted((a, b) => Number(a) - Number(b)).at(-1);
  return newest && fs.existsSync(join(at, newest, 'bin/initdb')) ? join(at, newest, 'bin') : null;
})();

t.test(
  'PostgreSQL: a checkpoint before the point, and every committed row in it',
  { skip: skip || (!postgres && 'needs a PostgreSQL server') },
  async (t) => {
    const lab = new CaptureLab(t, 1200);
    fs.chmodSync(lab.dir, 0o755);
    const disk = lab.disk(384, { random: false });
    const { kept } = await keeper(t, lab, [disk]);
    await runAside('mkfs.ext4', '-q', '-F', disk.dev);
    const at = lab.mount(disk.dev);
    fs.chmodSync(at, 0o755);
    const asPostgres = (...args: string[]) => run('runuser', '-u', 'postgres', '--', ...args);
    const bin = (name: string) => join(postgres!, name);
    const serve = (data: string, port: number) => {
      const options = `-p ${port} -c listen_addresses= -k ${lab.dir}/sock -c shared_buffers=16MB`;
      asPostgres(
        bin('pg_ctl'),
        '-D',
        data,
        '-w',
        '-s',
        '-l',
        `${data}/log`,
        '-o',
        options,
        'start',
      );
      lab.later(() =>
        spawnSync('runuser', [
          '-u',
          'postgres',
          '--',
          bin('pg_ctl'),
          '-D',
          data,
          '-m',
          'immediate',
          'stop',
        ]),
      );
    };
    const sql = (port: number, text: string) =>
      asPostgres(
        bin('psql'),
        '-X',
        '-At',
        '-h',
        `${lab.dir}/sock`,
        '-p',
        String(port),
        '-d',
        'postgres',
        '-c',
        text,
      ).trim();
    const checkpoint = (data: string) =>
      asPostgres(bin('pg_controldata'), data).match(/REDO location:\s*(\S+)/)?.[1];

    for (const dir of [join(at, 'pg'), join(lab.dir, 'sock')]) {
      fs.mkdirSync(dir, { mode: 0o700 });
      run('chown', 'postgres', dir);
    }
    const data = join(at, 'pg');
    asPostgres(bin('initdb'), '-D', data, '-A', 'trust', '--no-sync', '-U', 'postgres');
    serve(data, 45_991);
    sql(45_991, 'CREATE TABLE ledger (n int PRIMARY KEY)');
    const inserts = spawn(
      'runuser',
      [
        '-u',
        'postgres',
        '--',
        bin('psql'),
        '-X',
        '-q',
        '-h',
        `${lab.dir}/sock`,
        '-p',
        '45991',
        '-d',
        'postgres',
      ],
      { stdio: ['pipe', 'ignore', 'ignore'] },
    );
    lab.later(() => inserts.kill('SIGKILL'));
    inserts.stdin!.on('error', () => {});
    for (let n = 1; n <= 20_000; n++) inserts.stdin!.write(`INSERT INTO ledger VALUES (${n});\n`);
    await until('some rows', () => Number(sql(45_991, 'SELECT count(*) FROM ledger')) > 100);
    const before = checkpoint(data);
    const committed = Number(sql(45_991, 'SELECT max(n) FROM ledger'));
    const { point, seq, postHooks } = await kept.takePoint('postgres', true);
    t.match(point, { quiesced: true, reason: null });
    t.match(point!.hooks, [{ name: '50-postgresql', outcome: 'done', text: /checkpoint of 1 / }]);
    t.match(postHooks, [{ name: '50-postgresql', outcome: 'done' }]);

    const image = join(lab.dir, 'cut.img');
    kept.cut(0, seq!, image);
    const cutAt = lab.mount(image, '-o', 'loop');
    const replica = join(cutAt, 'pg');
    t.not(checkpoint(replica), before, 'the hook made a checkpoint');
    fs.rmSync(join(replica, 'postmaster.pid'));
    serve(replica, 45_992);
    const [count, max] = sql(45_992, 'SELECT count(*), max(n) FROM ledger').split('|').map(Number);
    t.equal(count, max, 'no row is missing in between');
    t.ok(
      max! >= committed,
      `${max} rows; ${committed} were committed when the point was asked for`,
    );
    t.comment(`frozen for ${point!.freezeMs?.toFixed(1)} ms`);
  },
);
