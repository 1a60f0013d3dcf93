/**
 * Attempts to get out of the forced command of the appliance's key (image/host/understudy-host-shell), against a real
 * libvirt: whoever holds that key must reach nothing but the appliance's own VMs and images.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { copyFile, mkdir, readFile, realpath, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import {
  buildDiskXml,
  buildDomainXml,
  slotNumber,
} from '../../appliance/hypervisor/libvirt/domain-xml-build.ts';
import { APPLIANCE, type Lab, ROOT, startLab, waitFor } from './hypervisor-lab.ts';

t.setTimeout(1_800_000);

const MiB = 1024 * 1024;
const POOL = 'default';
let lab: Lab | undefined;
t.teardown(async () => {
  await lab?.down();
});
lab = await startLab('wrap');
const { dir, poolDir, exec, launcher } = lab;

const config = join(dir, 'host/wrapper.json');
await writeFile(
  config,
  JSON.stringify({
    appliance: APPLIANCE,
    pools: [POOL],
    networks: ['default'],
    virtType: 'qemu',
    consoleDir: join(dir, 'console'),
  }),
);

type Answer = { ok: boolean; code?: string; params?: Record<string, string>; result?: unknown };

/** One request as sshd hands it over; a string is sent as it is. */
async function ask(request: string | Record<string, unknown>): Promise<Answer> {
  const [program = '', ...rest] = [
    ...launcher,
    ...['/usr/bin/python3', '-I', join(ROOT, 'image/host/understudy-host-shell'), config],
  ];
  const text = typeof request === 'string' ? request : JSON.stringify(request);
  const { stdout } = await execa(program, rest, {
    reject: false,
    env: { SSH_ORIGINAL_COMMAND: text },
  });
  return JSON.parse(stdout) as Answer;
}

const image = (name: string) => join(poolDir, name);
const qcow2 = (path: string, ...more: string[]) =>
  execa('qemu-img', ['create', '-q', '-f', 'qcow2', ...more, path, '1M']);
const plainVm = (name: string, more = '', attributes = '') => `
  <domain type='qemu' ${attributes}><name>${name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><controller type='scsi' model='virtio-scsi'/>${more}</devices></domain>`;
const fileDisk = (path: string, target = 'sda') =>
  `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${path}'/><target dev='${target}' bus='scsi'/></disk>`;

// The neighbours: a foreign VM with a disk in the very same pool, and the appliance with its own system disk.
await qcow2(image('foreign.qcow2'));
await qcow2(image('understudy-theirs.qcow2'));
await qcow2(image('understudy-appliance.qcow2'));
const foreign = plainVm(
  'foreign',
  fileDisk(image('foreign.qcow2')) + fileDisk(image('understudy-theirs.qcow2'), 'sdb'),
);
await exec(['virsh', 'define', '/dev/stdin'], foreign);
await exec(
  ['virsh', 'define', '/dev/stdin'],
  plainVm(APPLIANCE, fileDisk(image('understudy-appliance.qcow2'))),
);
await exec(['virsh', 'start', APPLIANCE]);
await exec(['virsh', 'start', 'foreign']);
const made = await ask({
  verb: 'disk-create',
  pool: POOL,
  name: 'understudy-ok.qcow2',
  sizeBytes: MiB,
});

/** A domain of the kind that the driver makes, for a disk that may be used. */
const goodXml = (name = 'replica') =>
  buildDomainXml(
    {
      name,
      vcpus: 1,
      memoryBytes: 32 * MiB,
      firmware: 'bios',
      disks: [
        {
          disk: { pool: POOL, name: 'understudy-ok.qcow2', path: image('understudy-ok.qcow2') },
          serial: 'uok',
        },
      ],
      nics: [{ network: 'default', model: 'virtio' }],
    },
    { virtType: 'qemu', caches: ['none'] },
  );
const diskXml = (path: string) =>
  buildDiskXml({
    path,
    serial: 'uevil',
    readOnly: false,
    cache: 'none',
    slot: slotNumber(9, 0),
  });
const attach = (xml: string) => ask({ verb: 'disk-attach', vm: APPLIANCE, xml });
const define = (xml: string) => ask({ verb: 'vm-define', xml });
const refused = { ok: false, code: /^UND_HV_(REFUSED|BAD_NAME)$/ };

t.test('what the driver sends is accepted', { timeout: 600_000 }, async (t) => {
  t.match(made, { ok: true });
  t.match(await define(goodXml()), { ok: true, result: { name: 'replica' } });
  t.match(await ask({ verb: 'vm-autostart', vm: 'replica', on: true }), { ok: true });
  for (const on of [undefined, 1, 'yes', '--help']) {
    t.match(await ask({ verb: 'vm-autostart', vm: 'replica', on }), refused, `on: ${on}`);
  }
  t.match(await ask({ verb: 'vm-undefine', vm: 'replica' }), { ok: true });
  const one = await attach(diskXml(image('understudy-ok.qcow2')));
  t.match(one, { ok: true });
  t.match(await ask({ verb: 'disk-detach', vm: APPLIANCE, serial: 'uevil' }), { ok: true });
});

t.test('a controller is added to a VM of its own that has none, and to no other', async (t) => {
  const before = await exec(['virsh', 'dumpxml', APPLIANCE]);
  t.match(await ask({ verb: 'controller-add', vm: 'foreign' }), refused);
  t.same(await ask({ verb: 'controller-add', vm: APPLIANCE }), {
    ok: true,
    result: { live: true },
  });
  t.equal(await exec(['virsh', 'dumpxml', APPLIANCE]), before, 'one is enough');
});

t.test("somebody else's VM on one of our disks is named, and nothing more", async (t) => {
  const name = 'understudy-theirs.qcow2';
  const disks = [{ pool: POOL, name }];
  t.same(await ask({ verb: 'disk-users', disks }), {
    ok: true,
    result: [{ vm: 'foreign', disk: { pool: POOL, name, path: image(name) } }],
  });
  const theirs = [{ pool: POOL, name: 'foreign.qcow2' }];
  t.match(await ask({ verb: 'disk-users', disks: theirs }), refused, 'a disk that is not ours');
  t.match(await ask({ verb: 'disk-users', disks: ['x'] }), refused);
});

t.test(
  'no shell: text, metacharacters, verbs that are not listed',
  { timeout: 600_000 },
  async (t) => {
    const flag = join(dir, 'pwned');
    for (const text of [
      '',
      'id',
      `touch ${flag}`,
      `{"verb":"host"}; touch ${flag}`,
      `$(touch ${flag})`,
      '[]',
      'null',
      '"host"',
      '{"verb":["host"]}',
      '{"verb":"__class__"}',
      '{"verb":"qemu-monitor-command","vm":"foreign"}',
      '{"verb":"vm-xml; id","vm":"foreign"}',
      '['.repeat(50_000),
      `{"verb":"host","a":"${'x'.repeat(110_000)}"}`,
      '{"verb":"vm-state","vm":1e999}',
      '{"verb":"vm-state","vm":"\\ud800"}',
    ]) {
      t.match(await ask(text), refused, text.slice(0, 60));
    }
    for (const name of [
      `a;touch ${flag}`,
      `$(touch ${flag})`,
      '`id`',
      'a b',
      'a\nb',
      'a\u0000b',
      '../foreign',
      '--config',
      '-c',
      '--help',
      '',
      'é',
      'x'.repeat(64),
    ]) {
      t.match(await ask({ verb: 'vm-start', vm: name }), refused, JSON.stringify(name));
      t.match(
        await ask({ verb: 'disk-info', pool: POOL, name }),
        refused,
        `volume ${JSON.stringify(name)}`,
      );
      t.match(
        await ask({ verb: 'disk-create', pool: name, name: 'understudy-x.qcow2', sizeBytes: MiB }),
        refused,
        `pool ${JSON.stringify(name)}`,
      );
    }
    t.notOk(existsSync(flag), 'nothing ran');
  },
);

/** Holds the lock that changing verbs wait for; the result lets it go. */
async function holdLock(): Promise<() => Promise<unknown>> {
  const hash = createHash('sha256')
    .update(await realpath(config))
    .digest('hex')
    .slice(0, 16);
  const holder = execa(
    launcher[0]!,
    [
      ...launcher.slice(1),
      ...['flock', `/run/understudy-host-${hash}.lock`, 'sh', '-c', 'echo held; read line'],
    ],
    { stdin: 'pipe', buffer: false },
  );
  await once(holder.stdout, 'data');
  return () => {
    holder.stdin.end('go\n');
    return holder;
  };
}

const creation = (name: string) => ({
  ...{ verb: 'disk-create', pool: POOL, name: `understudy-${name}.qcow2`, sizeBytes: MiB },
});

// Seen red without awaited(): the disk is made after whoever asked for it has gone and looked.
t.test('nothing is done for somebody who has gone while it waited for its turn', async (t) => {
  const release = await holdLock();
  const [program = '', ...rest] = launcher;
  const shell = join(ROOT, 'image/host/understudy-host-shell');
  const request = creation('late');
  const asking = spawn(program, [...rest, '/usr/bin/python3', '-I', shell, config], {
    env: { ...process.env, SSH_ORIGINAL_COMMAND: JSON.stringify(request) },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  asking.stdout.destroy();
  await Promise.all([release(), once(asking, 'close')]);
  t.notOk(existsSync(image('understudy-late.qcow2')));
  t.match(await ask(request), { ok: true }, 'who is there gets it');
});

/** A session, whose lines are read one by one. */
async function openSession(t: Test) {
  const [program = '', ...rest] = launcher;
  const shell = join(ROOT, 'image/host/understudy-host-shell');
  const child = spawn(program, [...rest, '/usr/bin/python3', '-I', shell, config], {
    env: { ...process.env, SSH_ORIGINAL_COMMAND: '{"verb":"session"}' },
  });
  t.teardown(() => child.stdin.end());
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]();
  const line = async () => (await lines.next()).value as string | undefined;
  t.match(await line(), /"session": 1/);
  const children = async (pid: number) =>
    (await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')).trim().split(/\s+/).map(Number);
  // The launcher starts it as its child, in the lab's processes.
  const [pid = 0] = await children(child.pid!);
  return {
    say: (number: number, request: object | '-') =>
      child.stdin.write(`${number} ${request === '-' ? request : JSON.stringify(request)}\n`),
    line,
    end: () => child.stdin.end(),
    /** The processes that answer its requests. */
    workers: async () => (await children(pid)).filter((one) => one > 0),
  };
}

const ended = (pid: number) =>
  waitFor(`the end of process ${pid}`, async () => !existsSync(`/proc/${pid}`));

// Each red when requests are answered in the session's own process; the second without closing the ends of others.
t.test('in a session, one that waits holds up no other, and can be left', async (t) => {
  const session = await openSession(t);
  const release = await holdLock();
  session.say(1, creation('left'));
  session.say(2, { verb: 'vm-list' });
  t.match(await session.line(), /^2 \{"ok": true/, 'the second is answered first');
  session.say(3, creation('kept'));
  session.say(1, '-');
  session.say(4, { verb: 'vm-state', vm: 'foreign' });
  t.match(await session.line(), /^4 .*UND_HV_REFUSED/, 'what is not its own is not its own here');
  await release();
  t.match(await session.line(), /^3 \{"ok": true/);
  session.say(5, creation('left'));
  t.match(await session.line(), /^5 \{"ok": true/, 'the first was not made for nobody');
});

t.test('in a session, a number that is under way is not given twice', async (t) => {
  const session = await openSession(t);
  const release = await holdLock();
  session.say(1, creation('twice'));
  session.say(1, { verb: 'vm-list' });
  t.equal(await session.line(), undefined, 'it is over');
  await release();
});

t.test('what waits for its turn when a session ends is not done', async (t) => {
  const session = await openSession(t);
  const release = await holdLock();
  session.say(1, creation('orphan'));
  session.say(2, creation('orphan2'));
  const workers = await waitFor('both to wait', async () => {
    const found = await session.workers();
    return found.length === 2 && found;
  });
  session.end();
  t.equal(await session.line(), undefined);
  await release();
  for (const pid of workers) await ended(pid);
  t.notOk(existsSync(image('understudy-orphan.qcow2')));
  t.notOk(existsSync(image('understudy-orphan2.qcow2')));
});

t.test('in a session, one that dies has no answer, and the next is answered', async (t) => {
  const session = await openSession(t);
  const release = await holdLock();
  session.say(1, creation('killed'));
  const [worker = 0] = await waitFor('it to wait', async () => {
    const found = await session.workers();
    return found.length === 1 && found;
  });
  process.kill(worker, 'SIGKILL');
  t.equal(await session.line(), '1 !');
  await release();
  session.say(1, creation('killed'));
  t.match(await session.line(), /^1 \{"ok": true/);
});

const READERS = `
import importlib.machinery, importlib.util, json, sys
sys.dont_write_bytecode = True
loader = importlib.machinery.SourceFileLoader("shell", sys.argv[1])
shell = importlib.util.module_from_spec(importlib.util.spec_from_loader("shell", loader))
loader.exec_module(shell)
def read(reader):
    names, uuids = reader.domain_ids()
    return {
        "ids": [sorted(name for name in names if name), sorted(uuids)],
        "domains": [[reader.domain_xml(name, inactive) for inactive in (False, True)] for name in sorted(names) if name],
        "none": [reader.domain_xml("nosuchvm", False), reader.pool_xml("nosuchpool"), reader.network_xml("nosuchnet")],
        "states": [reader.domain_state(uuid) for uuid in sorted(uuids)],
        "all": sorted(reader.all_domain_xml()),
        "pools": [sorted(reader.pool_names(active)) for active in (False, True)],
        "pool": reader.pool_xml("default"),
        "networks": [sorted(reader.network_names(active)) for active in (False, True)],
        "network": reader.network_xml("default"),
    }
for name in sys.argv[2:]:
    print(json.dumps(read(shell.LibraryReader(shell.load_library()) if name == "library" else shell.CommandReader())))
`;

t.test("libvirt's library is read as virsh reads it", async (t) => {
  await exec(['virsh', 'suspend', 'foreign']);
  await exec(['virsh', 'net-define', '/dev/stdin'], '<network><name>off</name></network>');
  t.match(await define(goodXml()), { ok: true });
  const shell = join(ROOT, 'image/host/understudy-host-shell');
  const said = await exec(['/usr/bin/python3', '-I', '-c', READERS, shell, 'library', 'virsh']);
  await exec(['virsh', 'resume', 'foreign']);
  t.match(await ask({ verb: 'vm-undefine', vm: 'replica' }), { ok: true });
  // The pool's free space changes meanwhile, and virsh adds empty lines.
  const [library, virsh] = said
    .split('\n')
    .map((line) => line.replace(/<(allocation|available) unit='bytes'>\d+/g, ''))
    .map((line) => JSON.parse(line.replace(/(\\n)+"/g, '"')));
  t.same(library, virsh);
  for (const word of ['paused', 'user', 'shut off', 'running', 'booted']) {
    t.ok(library.states.flat().includes(word), word);
  }
  t.same(library.none, [null, null, null]);
  t.match(library.networks[0], ['default', 'isolated', 'off']);
  t.same(library.networks[1], ['default', 'isolated']);
});

// Red without again_when_lost(): the second reading fails with "Broken pipe" or the like.
t.test('libvirt may be started anew within a session, and within a request', async (t) => {
  const session = await openSession(t);
  session.say(1, { verb: 'vm-state', vm: APPLIANCE });
  t.match(await session.line(), /^1 .*"running"/);
  const script = `${READERS}
reader = shell.LibraryReader(shell.load_library())
print(len(reader.all_domain_xml()), flush=True)
sys.stdin.readline()
print(len(reader.all_domain_xml()), flush=True)
`;
  const [program = '', ...rest] = launcher;
  const shell = join(ROOT, 'image/host/understudy-host-shell');
  const reading = spawn(program, [...rest, '/usr/bin/python3', '-I', '-c', script, shell]);
  const counts = createInterface(reading.stdout)[Symbol.asyncIterator]();
  const { value: before } = await counts.next();
  t.ok(Number(before) >= 4);
  const pid = (await exec(['cat', '/run/libvirt/qemu/driver.pid'])).trim();
  await exec(['kill', pid]);
  await waitFor('libvirtd to be gone', async () =>
    exec(['sh', '-c', `! kill -0 ${pid} 2>/dev/null`]).then(() => true),
  );
  session.say(2, { verb: 'vm-state', vm: APPLIANCE });
  t.match(await session.line(), /^2 .*"UND_HV_FAILED".*connect/i);
  await execa(join(ROOT, 'scripts/lab'), ['up'], { env: { LAB_NAME: 'wrap' } });
  session.say(3, { verb: 'vm-state', vm: APPLIANCE });
  t.match(await session.line(), /^3 .*"running"/);
  reading.stdin.end('go\n');
  t.equal((await counts.next()).value, before);
});

t.test('a VM of somebody else: by name, id and UUID', { timeout: 600_000 }, async (t) => {
  const uuid = (await exec(['virsh', 'domuuid', 'foreign'])).trim();
  const id = (await exec(['virsh', 'domid', 'foreign'])).trim();
  for (const vm of ['foreign', uuid, id]) {
    for (const verb of [
      'vm-state',
      'vm-xml',
      'vm-start',
      'vm-shutdown',
      'vm-destroy',
      'vm-undefine',
      'vm-autostart',
      'screenshot',
      'console-tail',
      'addresses',
      'agent-ping',
    ]) {
      t.match(
        await ask({ verb, vm, on: true }),
        { ok: false, code: /REFUSED|VM_NOT_FOUND/ },
        `${verb} ${vm}`,
      );
    }
  }
  t.match(await ask({ verb: 'disk-detach', vm: 'foreign', serial: 'x' }), { ok: false });
  t.match(await ask({ verb: 'vm-destroy', vm: APPLIANCE }), { ok: false, code: /REFUSED/ });
  t.match(await ask({ verb: 'vm-autostart', vm: APPLIANCE, on: false }), {
    ok: false,
    code: /REFUSED/,
  });
  const names = (await ask({ verb: 'vm-list' })).result as { name: string }[];
  t.same(
    names.map((vm) => vm.name),
    [APPLIANCE],
  );
  t.match(await define(goodXml('foreign')), { ok: false, code: 'UND_HV_NAME_IN_USE' });
  t.match(
    await define(goodXml('other').replace('<memory', `<uuid>${uuid}</uuid><memory`)),
    { ok: false, code: 'UND_HV_NAME_IN_USE' },
    'nor is it redefined by its UUID',
  );
  t.equal((await exec(['virsh', 'domstate', 'foreign'])).trim(), 'running');
});

// Red without the abort: the merge goes on for minutes.
t.test('a merge is cancelled: nothing is lost, and it can be done later', async (t) => {
  const name = (layer: string) => `understudy-${layer}.qcow2`;
  const of = (layer: string) => ({ pool: POOL, name: name(layer) });
  const create = (layer: string, ...more: string[]) =>
    execa('qemu-img', ['create', '-q', '-f', 'qcow2', ...more, image(name(layer))]);
  await execa('qemu-img', ['create', '-q', '-f', 'qcow2', image(name('slow-base')), '16M']);
  for (const [layer, below] of [
    ['slow-mid', 'slow-base'],
    ['slow-top', 'slow-mid'],
  ] as const) {
    await create(layer, '-F', 'qcow2', '-b', image(name(below)));
    if (layer !== 'slow-mid') continue;
    await execa('qemu-io', ['-f', 'qcow2', '-c', 'write -P 0xab 0 8M', image(name(layer))]);
  }
  const disk = { ...of('slow-top'), path: image(name('slow-top')) };
  const xml = buildDomainXml(
    {
      name: 'slow',
      vcpus: 1,
      memoryBytes: 32 * MiB,
      firmware: 'bios',
      disks: [{ disk, serial: 'uslow' }],
      nics: [],
    },
    { virtType: 'qemu', caches: ['none'] },
  );
  t.match(await define(xml), { ok: true });
  t.match(await ask({ verb: 'vm-start', vm: 'slow' }), { ok: true });
  const [target = ''] = (await exec(['virsh', 'domblklist', 'slow'])).match(/\b[sv]d[a-z]\b/) ?? [];
  const jobs = () => exec(['virsh', 'blockjob', 'slow', target, '--raw']);
  const cancel = (layer: string) => ask({ verb: 'disk-commit-cancel', ...of(layer) });
  const layers = async () =>
    (await exec(['qemu-img', 'info', '-U', '--backing-chain', disk.path])).match(/^image:/gm)
      ?.length;
  t.match(await cancel('slow-mid'), { ok: true }, 'there is none');
  // 8 MiB at 16 KiB/s.
  await exec([
    ...['virsh', 'blockcommit', 'slow', target, '--bytes', '--bandwidth', '16384'],
    ...['--top', image(name('slow-mid')), '--base', image(name('slow-base'))],
  ]);
  t.match(await jobs(), /Commit/, 'it is under way');
  t.match(await cancel('slow-top'), { ok: true });
  t.match(await jobs(), /Commit/, 'the layer that is written is not meant');
  t.match(await cancel('slow-mid'), { ok: true });
  t.equal((await jobs()).trim(), '');
  t.equal(await layers(), 3, 'nothing was merged');
  t.match(await ask({ verb: 'disk-commit', ...of('slow-mid') }), { ok: true });
  t.equal(await layers(), 2);
  await exec(['qemu-io', '-U', '-r', '-f', 'qcow2', '-c', 'read -P 0xab 0 8M', disk.path]);
  t.match(await ask({ verb: 'vm-destroy', vm: 'slow' }), { ok: true });
  t.match(await ask({ verb: 'vm-undefine', vm: 'slow' }), { ok: true });
});

// Red with a reader that takes QEMU's lock to ask for it, as `qemu-img info` does.
t.test('who asks whether a disk is written keeps no one from writing it', async (t) => {
  const disk = { pool: POOL, name: 'understudy-asked.qcow2' };
  await qcow2(image(disk.name));
  const writing = spawn('qemu-io', ['-f', 'qcow2', image(disk.name)], { stdio: 'pipe' });
  await waitFor('its lock', async () => {
    const { result } = await ask({ verb: 'disk-info', ...disk });
    return (result as { locked: boolean }).locked;
  });
  writing.stdin.end('quit\n');
  await once(writing, 'exit');
  t.match(await ask({ verb: 'disk-info', ...disk }), { result: { locked: false } });

  let asking = true;
  const asked = (async () => {
    while (asking) await ask({ verb: 'disk-info', ...disk });
  })();
  for (let n = 0; n < 200; n++) {
    await execa('qemu-io', ['-f', 'qcow2', '-c', 'write -q 0 64k', image(disk.name)]);
  }
  asking = false;
  await asked;
});

// Red with the wrapper's lock held to the end of the merge (nobody else gets in), and without the look for a merge that is
// under way (the second one is refused).
t.test('a merge that no VM has: others get in, it can be ended early and done again', async (t) => {
  const name = (layer: string) => `understudy-off-${layer}.qcow2`;
  const of = (layer: string) => ({ pool: POOL, name: name(layer) });
  const create = (layer: string, ...more: string[]) =>
    execa('qemu-img', ['create', '-q', '-f', 'qcow2', ...more, image(name(layer)), '2G']);
  await create('base');
  await create('top', '-F', 'qcow2', '-b', image(name('base')));
  const written = ['write -P 0xab 0 8M', 'write -P 0xcd 1G 8M'];
  const io = (...commands: string[]) => commands.flatMap((command) => ['-c', command]);
  await execa('qemu-io', ['-f', 'qcow2', ...io(...written), image(name('top'))]);
  const merge = () => ask({ verb: 'disk-commit', ...of('top') });
  // A merge of this host takes as long as the test wants.
  const rate = join(dir, 'merge-rate');
  const slow = join(dir, 'slow-qemu-img');
  await copyFile('/usr/bin/qemu-img', join(dir, 'qemu-img'));
  await writeFile(
    slow,
    `#!/bin/bash
[ "$1" != commit ] || { shift; set -- commit -r "$(cat ${rate})" "$@"; }
exec -a qemu-img ${join(dir, 'qemu-img')} "$@"
`,
    { mode: 0o755 },
  );
  await exec(['mount', '--bind', slow, '/usr/bin/qemu-img']);
  t.teardown(() => exec(['umount', '/usr/bin/qemu-img']));
  /** Once the merge runs; one that ends before says why. */
  const underWay = (merging: Promise<Answer>) =>
    Promise.race([
      merging.then((answer) => {
        throw new Error(`the merge did not last: ${JSON.stringify(answer)}`);
      }),
      waitFor('the merge', async () => {
        const { exitCode } = await execa('pgrep', ['-f', `^qemu-img commit .*${name('top')}$`], {
          reject: false,
        });
        return exitCode === 0;
      }),
    ]);
  await writeFile(rate, '128k');
  const first = merge();
  await underWay(first);
  t.match(await ask({ verb: 'disk-create', ...of('other'), sizeBytes: MiB }), { ok: true });
  t.match(await ask({ verb: 'disk-delete', ...of('top') }), { code: 'UND_HV_DISK_LOCKED' });
  t.match(await ask({ verb: 'disk-delete', ...of('base') }), { code: 'UND_HV_DISK_IN_USE' });
  const above = { basePool: POOL, baseName: name('top'), ...of('above') };
  t.match(await ask({ verb: 'disk-overlay', ...above }), { code: 'UND_HV_DISK_LOCKED' });
  t.match(await ask({ verb: 'disk-commit-cancel', ...of('other') }), { ok: true });
  t.match(await ask({ verb: 'disk-commit-cancel', ...of('top') }), { ok: true });
  t.match(await first, {
    ok: false,
    code: 'UND_HV_FAILED',
    params: { reason: /ended early/ },
  });
  for (const layer of ['base', 'top']) {
    t.match(await execa('qemu-img', ['check', image(name(layer))]), { stdout: /^No errors/ });
  }

  // Once more, and asked a second time meanwhile, as after a restart of the appliance.
  await writeFile(rate, '4M');
  const second = merge();
  await underWay(second);
  const waiting = merge();
  t.match(await ask({ verb: 'disk-delete', ...of('other') }), { ok: true });
  t.match(await second, { ok: true, result: { name: name('base') } });
  t.match(await waiting, { ok: false, code: 'UND_HV_DISK_NOT_FOUND' }, 'it is done');
  t.notOk(existsSync(image(name('top'))));
  const reads = written.map((command) => command.replace('write', 'read'));
  const { stdout } = await execa('qemu-io', [
    '-r',
    '-f',
    'qcow2',
    ...io(...reads),
    image(name('base')),
  ]);
  t.notMatch(stdout, /failed/i);
});

t.test('files of somebody else: names, paths, links, chains', { timeout: 600_000 }, async (t) => {
  const secret = join(dir, 'secret.qcow2');
  await qcow2(secret);
  await symlink(secret, image('understudy-link.qcow2'));
  await mkdir(image('understudy-dir.qcow2'));
  await qcow2(image('understudy-chained.qcow2'), '-b', secret, '-F', 'qcow2');
  await qcow2(image('understudy-onforeign.qcow2'), '-b', image('foreign.qcow2'), '-F', 'qcow2');
  await qcow2(image('understudy-passwd.qcow2'), '-u', '-b', '/etc/passwd', '-F', 'raw');
  await writeFile(image('understudy-raw.qcow2'), Buffer.alloc(MiB));
  await qcow2(image('understudy-data.qcow2'), '-o', `data_file=${join(dir, 'data.raw')}`);
  await execa('mkfifo', [image('understudy-fifo.qcow2')]);
  const names = [
    ...['link', 'dir', 'chained', 'onforeign', 'passwd', 'raw', 'data', 'fifo'].map(
      (name) => `understudy-${name}.qcow2`,
    ),
    'foreign.qcow2',
    '../secret.qcow2',
    'understudy-../secret.qcow2',
    'understudy-a/../../secret.qcow2',
    '/etc/passwd',
    'understudy-appliance.qcow2',
  ];
  for (const name of names) {
    t.match(await ask({ verb: 'disk-info', pool: POOL, name }), { ok: false }, `info ${name}`);
    t.match(await attach(diskXml(image(name))), { ok: false }, `attach ${name}`);
    t.match(
      await define(goodXml().replace(image('understudy-ok.qcow2'), image(name))),
      { ok: false },
      `define ${name}`,
    );
    t.match(
      await ask({
        verb: 'disk-overlay',
        pool: POOL,
        name: 'understudy-o.qcow2',
        basePool: POOL,
        baseName: name,
      }),
      { ok: false },
      `overlay ${name}`,
    );
    t.notOk(existsSync(image('understudy-o.qcow2')), `no overlay on ${name}`);
  }
  for (const path of [
    '/etc/passwd',
    secret,
    `${poolDir}/../secret.qcow2`,
    `${poolDir}//foreign.qcow2`,
  ]) {
    t.match(await attach(diskXml(path)), { ok: false }, `attach ${path}`);
  }
  for (const name of ['understudy-link.qcow2', 'foreign.qcow2', 'understudy-appliance.qcow2']) {
    t.match(await ask({ verb: 'disk-delete', pool: POOL, name }), { ok: false }, `delete ${name}`);
    t.ok(existsSync(image(name)));
  }
  t.match(
    await ask({ verb: 'disk-delete', pool: POOL, name: 'understudy-theirs.qcow2' }),
    { ok: false, code: 'UND_HV_DISK_IN_USE', params: { users: 'another VM of the host' } },
    'in use elsewhere, and by whom is not told',
  );
  t.match(await attach(diskXml(image('understudy-theirs.qcow2'))), { code: 'UND_HV_DISK_IN_USE' });
  t.match(
    await ask({ verb: 'disk-create', pool: 'other', name: 'understudy-x.qcow2', sizeBytes: MiB }),
    { ok: false, code: 'UND_HV_POOL_UNUSABLE' },
    'a pool that is not its own',
  );
  t.match(
    await ask({ verb: 'disk-create', pool: POOL, name: 'understudy-link.qcow2', sizeBytes: MiB }),
    { ok: false, code: 'UND_HV_NAME_IN_USE' },
  );
  t.match(
    await ask({ verb: 'disk-create', pool: POOL, name: 'understudy-n.qcow2', sizeBytes: -512 }),
    {
      ok: false,
    },
  );
  t.match(
    await ask({ verb: 'disk-create', pool: POOL, name: 'understudy-n.qcow2', sizeBytes: true }),
    {
      ok: false,
    },
  );
  const passwd = await readFile('/etc/passwd');
  t.ok(passwd.length > 0);
});

t.test('domain XML: what gives the host away is refused', { timeout: 900_000 }, async (t) => {
  const good = goodXml('evil');
  const inDevices = (xml: string) => good.replace('</devices>', `${xml}</devices>`);
  const inDomain = (xml: string) => good.replace('<devices>', `${xml}<devices>`);
  const inOs = (xml: string) => good.replace('</os>', `${xml}</os>`);
  const qemu = 'http://libvirt.org/schemas/domain/qemu/1.0';
  const cases: Record<string, string> = {
    'qemu namespace': good
      .replace('<domain ', `<domain xmlns:qemu='${qemu}' `)
      .replace('</domain>', `<qemu:commandline><qemu:arg value='-s'/></qemu:commandline></domain>`),
    'qemu namespace, other prefix': good
      .replace('<domain ', `<domain xmlns:q='${qemu}' `)
      .replace('</domain>', `<q:commandline><q:arg value='-s'/></q:commandline></domain>`),
    'qemu as default namespace': good.replace(
      '</domain>',
      `<commandline xmlns='${qemu}'><arg value='-s'/></commandline></domain>`,
    ),
    'no namespace, same element': good.replace(
      '</domain>',
      `<commandline><arg value='-s'/></commandline></domain>`,
    ),
    hostdev: inDevices(
      `<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='1' function='0'/></source></hostdev>`,
    ),
    filesystem: inDevices(
      `<filesystem type='mount'><source dir='/'/><target dir='root'/></filesystem>`,
    ),
    'block disk': inDevices(
      `<disk type='block' device='disk'><driver name='qemu' type='raw'/><source dev='/dev/vda'/><target dev='sdz' bus='scsi'/></disk>`,
    ),
    'network disk': inDevices(
      `<disk type='network' device='disk'><source protocol='nbd' name='x'><host name='h'/></source><target dev='sdz' bus='scsi'/></disk>`,
    ),
    'disk without a driver': inDevices(
      `<disk type='file' device='disk'><source file='${image('understudy-ok.qcow2')}'/><target dev='sdz' bus='scsi'/><serial>z</serial></disk>`,
    ),
    'raw format': good.replace("type='qcow2'", "type='raw'"),
    'a cdrom of the host': inDevices(
      `<disk type='file' device='cdrom'><source file='/etc/passwd'/><target dev='sdz' bus='sata'/></disk>`,
    ),
    'a backing store of its own': good.replace(
      "<target dev='sda' bus='scsi'/>",
      `<backingStore type='file'><format type='raw'/><source file='/etc/passwd'/></backingStore><target dev='sda' bus='scsi'/>`,
    ),
    'cache=unsafe': good.replace("cache='none'", "cache='unsafe'"),
    'error policy that pauses': good.replace("error_policy='report'", "error_policy='stop'"),
    'shareable disk': good.replace('<serial>uok', '<shareable/><serial>uok'),
    loader: inOs(`<loader readonly='yes' type='pflash'>/etc/shadow</loader>`),
    nvram: inOs(`<nvram template='/etc/shadow'>/tmp/nvram</nvram>`),
    kernel: inOs(`<kernel>/etc/shadow</kernel>`),
    dtb: inOs(`<dtb>/etc/shadow</dtb>`),
    emulator: inDevices(`<emulator>/bin/sh</emulator>`),
    'bridge interface': inDevices(`<interface type='bridge'><source bridge='virbr0'/></interface>`),
    'direct interface': inDevices(
      `<interface type='direct'><source dev='eth0' mode='bridge'/></interface>`,
    ),
    'script of an interface': good.replace(
      "<source network='default'/>",
      `<source network='default'/><script path='/tmp/x'/>`,
    ),
    'network that is not allowed': good.replace("network='default'", "network='isolated'"),
    'interface without a source': good.replace("<source network='default'/>", ''),
    'serial to a file': good.replace(
      "<serial type='pty'>",
      "<serial type='file'><source path='/etc/cron.d/x'/>",
    ),
    'serial log elsewhere': good.replace(
      "<serial type='pty'>",
      "<serial type='pty'><log file='/etc/cron.d/x'/>",
    ),
    'console to a unix socket': inDevices(
      `<console type='unix'><source mode='connect' path='/run/libvirt/libvirt-sock'/></console>`,
    ),
    'channel with a path': good.replace(
      "<channel type='unix'>",
      "<channel type='unix'><source mode='connect' path='/run/libvirt/libvirt-sock'/>",
    ),
    'VNC for everybody': good.replace(
      "<listen type='socket'/>",
      "<listen type='address' address='0.0.0.0'/>",
    ),
    'rng from a file': good.replace('/dev/urandom', '/etc/shadow'),
    'shared memory': inDevices(`<shmem name='x'><model type='ivshmem-plain'/></shmem>`),
    'memory backing file': inDomain(`<memoryBacking><source type='file'/></memoryBacking>`),
    'security label': inDomain(`<seclabel type='none'/>`),
    'metadata of another appliance': inDomain(`<metadata><vm appliance='foreign'/></metadata>`),
    sysinfo: inDomain(`<sysinfo type='fwcfg'><entry name='opt/x' file='/etc/shadow'/></sysinfo>`),
    tpm: inDevices(
      `<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/sda'/></backend></tpm>`,
    ),
    'two disks on one image': inDevices(
      /<disk .*?<\/disk>/.exec(good)![0].replace("'sda'", "'sdb'").replace('uok', 'uok2'),
    ),
    'VM of another hypervisor': good.replace("type='qemu'", "type='lxc'"),
    'name with an option': good.replace('<name>evil', '<name>--config'),
    'name with a path': good.replace('<name>evil', '<name>../../etc/evil'),
    'name after a blank': good.replace('<name>evil', '<name>e<b/>vil'),
    'two names': inDomain('<name>second</name>'),
    'root is not a domain': '<network><name>x</name></network>',
    'no XML at all': 'hello',
    'cut off': good.slice(0, 200),
    'external entity': `<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]>${good.replace('<name>evil', '<title>&x;</title><name>evil')}`,
    'parameter entity': `<!DOCTYPE domain [<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;]>${good}`,
    'billion laughs': `<!DOCTYPE domain [<!ENTITY a "ha">${Array.from({ length: 20 }, (_, n) => `<!ENTITY a${n} "${`&a${n ? n - 1 : ''};`.repeat(10)}">`).join('')}]>${good}`,
    'external DTD': `<!DOCTYPE domain SYSTEM "http://127.0.0.1/x.dtd">${good}`,
    'processing instruction': `<?xml-stylesheet href="x"?>${good}`,
    'undefined entity': good.replace('<name>evil', '<title>&nope;</title><name>evil'),
    XInclude: inDevices(
      `<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="/etc/passwd" parse="text"/>`,
    ),
    'very deep': '<domain>'.repeat(5000),
    'very wide': inDevices(`<rng model='virtio'/>`.repeat(2500)),
    'very long': inDomain(`<title>${'x'.repeat(66_000)}</title>`),
    'UTF-7 declared': `<?xml version="1.0" encoding="utf-7"?>${good}`,
  };
  for (const [name, xml] of Object.entries(cases)) {
    t.match(await define(xml), { ok: false, code: /^UND_HV_/ }, name);
  }
  for (const [name, xml] of Object.entries(cases)) {
    t.not(xml, good, `${name}: the attempt really differs from what is allowed`);
  }
  t.match((await exec(['virsh', 'list', '--all', '--name'])).trim().split(/\s+/).sort(), [
    'foreign',
    APPLIANCE,
  ]);
  t.match(await attach(goodXml()), { ok: false }, 'a domain where a disk belongs');
  t.match(await define(diskXml(image('understudy-ok.qcow2'))), { ok: false }, 'and the reverse');
});

t.test(
  'a VM carries its appliance, and another appliance may not have it',
  { timeout: 600_000 },
  async (t) => {
    t.match(await define(goodXml('mine')), { ok: true });
    const xml = await exec(['virsh', 'dumpxml', 'mine']);
    t.match(xml, new RegExp(`appliance=.${APPLIANCE}.`));
    t.match(xml, new RegExp(`<log file=.${dir}/console/mine\\.console`));
    const before = await readFile(config, 'utf8');
    t.teardown(() => writeFile(config, before));
    await writeFile(config, before.replace(APPLIANCE, 'another-appliance'));
    t.match(await ask({ verb: 'vm-start', vm: 'mine' }), { ok: false, code: 'UND_HV_REFUSED' });
    await writeFile(config, before);
    t.match(await ask({ verb: 'vm-undefine', vm: 'mine' }), { ok: true });
  },
);

t.test(
  'the installer: one line in authorized_keys, taken out again',
  { timeout: 60_000 },
  async (t) => {
    const at = t.testdir({});
    const keys = join(at, 'ssh/authorized_keys');
    const install = (...more: string[]) =>
      execa(
        join(ROOT, 'image/host/install-host.sh'),
        [
          ...['--appliance', 'appl', '--lib-dir', join(at, 'lib'), '--etc-dir', join(at, 'etc')],
          ...['--authorized-keys', keys, ...more],
        ],
        { reject: false },
      );
    await mkdir(join(at, 'ssh'));
    await writeFile(keys, 'ssh-ed25519 AAAAadmin admin\n');
    const first = [
      '--key',
      'ssh-ed25519 AAAAone appliance',
      '--pools',
      'a,b',
      '--virt-type',
      'kvm',
    ];
    t.equal((await install(...first)).exitCode, 0);
    t.equal((await install('--key', 'ssh-ed25519 AAAAtwo appliance')).exitCode, 0);
    const lines = (await readFile(keys, 'utf8')).trim().split('\n');
    t.equal(lines.length, 2, 'a second run replaces its line');
    t.equal(lines[0], 'ssh-ed25519 AAAAadmin admin');
    t.match(
      lines[1],
      /^command="\/usr\/bin\/python3 -I \S+ \S+\/appl\.json",restrict ssh-ed25519 AAAAtwo/,
    );
    for (const bad of [
      ['--key', 'command="sh" ssh-ed25519 AAAA x'],
      ['--key', 'ssh-ed25519 AAAA x', '--appliance', '../x'],
      ['--key', 'ssh-ed25519 AAAA x', '--etc-dir', '/tmp/a b"'],
      ['--key', ''],
      ['--nonsense', 'x'],
    ]) {
      t.equal((await install(...bad)).exitCode, 2, bad.join(' '));
    }
    t.equal((await readFile(keys, 'utf8')).trim().split('\n').length, 2);
    t.equal((await install('--remove')).exitCode, 0);
    t.equal(await readFile(keys, 'utf8'), 'ssh-ed25519 AAAAadmin admin\n');
    t.notOk(existsSync(join(at, 'etc')) || existsSync(join(at, 'lib')), 'nothing is left');
  },
);
