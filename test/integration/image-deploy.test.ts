/**
 * scripts/deploy against real libvirt and sshd in a lab: what it refuses, and what it does. In place of the appliance a
 * boot sector says on the serial console what the appliance's banner says and hears the power button, and a server of
 * the lab answers at the page's address; image-deploy.long.ts does it with the real image. Needs root.
 */
import { spawn } from 'node:child_process';
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { execa } from 'execa';
import t, { type Test } from 'tap';
import { bootSectorImage } from './boot-sector.ts';
import { ROOT, startLab, waitFor } from './hypervisor-lab.ts';

t.setTimeout(900_000);
const lab = await startLab('deploytest');
t.teardown(() => lab.down());
const work = await mkdtemp(join(tmpdir(), 'deploy-test-'));
t.teardown(() => rm(work, { recursive: true, force: true }));

const PAGE = '192.168.150.40';
const banner = `\r\nUnderstudy appliance\r\n  The page:     https://${PAGE}/\r\n`;
const image = await bootSectorImage(work, '0.0.1', banner);
const keys = join(lab.dir, 'ssh/authorized_keys');
const keysBefore = await readFile(keys, 'utf8');

const WHERE = ['--pool', 'default', '--network', 'default'];
const HOW = ['--dhcp', '--journal-size', '1', '--image', image];
async function deploy(...args: string[]): Promise<{ code: number; said: string }> {
  const { exitCode, all } = await execa(
    join(ROOT, 'scripts/deploy'),
    [
      ...['--host', 'host', '--ssh-config', join(lab.dir, 'ssh/config')],
      ...['--host-dir', join(lab.dir, 'host'), '--authorized-keys', keys, '--virt-type', 'qemu'],
      ...args,
    ],
    { all: true, reject: false, stdin: 'ignore' },
  );
  return { code: exitCode ?? -1, said: all };
}

/** Nothing of an appliance is on the host: no disk, no key, no VM. */
async function untouched(t: Test): Promise<void> {
  const volumes = await lab.exec(['virsh', 'vol-list', 'default']);
  t.notMatch(volumes, /appliance-/, volumes);
  t.equal(await readFile(keys, 'utf8'), keysBefore);
  t.notMatch(await lab.exec(['virsh', 'list', '--all', '--name']), /understudy/);
}

const refusals: [string, string[], RegExp][] = [
  ['a name that is not one', [...WHERE, ...HOW, '--name', 'a b'], /--name: lower-case/],
  ['neither --ip nor --dhcp', [...WHERE, '--image', image], /say --dhcp, or --ip/],
  ['both', [...WHERE, ...HOW, '--ip', '192.0.2.1/24'], /--ip or --dhcp, not both/],
  [
    'an address without its prefix',
    [...WHERE, '--image', image, '--ip', '192.0.2.1'],
    /--ip: not an IP address with its prefix/,
  ],
  [
    'a gateway elsewhere',
    [...WHERE, '--image', image, '--ip', '192.0.2.1/24', '--gateway', '192.0.3.1'],
    /is not in the network of --ip/,
  ],
  [
    'a DNS server that is a name',
    [...WHERE, '--image', image, '--ip', '192.0.2.1/24', '--dns', 'dns'],
    /--dns: not an IP address/,
  ],
  [
    'a journal of no size',
    [...WHERE, ...HOW, '--journal-size', '0'],
    /--journal-size: a number of at least 1/,
  ],
  [
    'an image that is not there',
    [...WHERE, '--dhcp', '--image', `${work}/none.qcow2`],
    /no such image/,
  ],
  [
    'a pool that is not there',
    ['--pool', 'nowhere', '--network', 'default', ...HOW],
    /there is no storage pool named nowhere/,
  ],
  [
    'a network that is not there',
    ['--pool', 'default', '--network', 'nowhere', ...HOW],
    /there is no active network named nowhere/,
  ],
  [
    'a pool that is too small',
    [...WHERE, ...HOW, '--journal-size', '9999999'],
    /GiB free; the appliance needs 10000004 GiB/,
  ],
  [
    'a host without SSH at that port',
    [...WHERE, ...HOW, '--host-port', '9'],
    /no SSH server with an ed25519 key answers/,
  ],
  ['an upgrade of nothing', ['--upgrade', '--image', image], /there is no VM named understudy/],
];
for (const [what, args, said] of refusals) {
  t.test(`refuses ${what}, and touches nothing`, async (t) => {
    const result = await deploy(...args);
    t.not(result.code, 0);
    t.match(result.said, said);
    await untouched(t);
  });
}

t.test(
  'a VM that cannot start is taken back whole: its disks, its key, its definition',
  async (t) => {
    const result = await deploy(...WHERE, ...HOW, '--memory', '9999999');
    t.not(result.code, 0);
    t.match(result.said, /taking back what was done/);
    await untouched(t);
  },
);

t.test('a name in use is refused, and an upgrade of a VM that deploy did not make', async (t) => {
  await lab.exec(
    ['virsh', 'define', '/dev/stdin'],
    `<domain type='qemu'><name>other</name><memory unit='MiB'>64</memory><os><type arch='x86_64'>hvm</type></os></domain>`,
  );
  t.match(
    (await deploy(...WHERE, ...HOW, '--name', 'other')).said,
    /a VM named other is on host already/,
  );
  t.match(
    (await deploy('--upgrade', '--name', 'other', '--image', image)).said,
    /was not made by this script/,
  );
  await untouched(t);
});

t.test('a data disk of an earlier appliance is not touched without a word', async (t) => {
  await lab.exec([
    'virsh',
    'vol-create-as',
    'default',
    'appliance-understudy-data.qcow2',
    '1M',
    '--format',
    'qcow2',
  ]);
  t.match(
    (await deploy(...WHERE, ...HOW)).said,
    /has a data disk of an earlier appliance .*--adopt uses it/,
  );
  await lab.exec(['virsh', 'vol-delete', '--pool', 'default', 'appliance-understudy-data.qcow2']);
  await untouched(t);
});

/** A server of the lab, at the page's address once the lab has that: the CA's certificate over TLS, which is what deploy asks for. */
const pem = join(work, 'page.pem');
await execa('openssl', [
  ...['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'],
  ...['-subj', '/CN=stand-in', '-keyout', pem, '-out', `${pem}.crt`],
]);
const pageAt = (address: string) =>
  lab.exec(['ip', 'address', 'replace', `${address}/32`, 'dev', 'virbr0']);
async function startPage(): Promise<void> {
  const [enter = '', ...inside] = lab.launcher;
  const program = `
import http.server, ssl, sys
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = open(sys.argv[1], "rb").read() if self.path == "/api/ca.pem" else b""
        self.send_response(200 if body else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("", 443), Page)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[1], sys.argv[2])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()`;
  // It ends with the lab.
  spawn(enter, [...inside, 'python3', '-Ic', program, `${pem}.crt`, pem], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

const VM = 'understudy';
const DATA = join(lab.poolDir, 'appliance-understudy-data.qcow2');
const virsh = (...args: string[]) => lab.exec(['virsh', ...args]);
const ours = async () => (await readFile(keys, 'utf8')).replace(keysBefore, '').trim().split('\n');
const volumes = async () =>
  (await virsh('vol-list', 'default')).match(/appliance-\S+(?=\s+\/)/g)?.sort();
/** Source files of the VM's disks, by serial; the empty drive has none. */
async function disksOf(...options: string[]): Promise<Record<string, string>> {
  const xml = await virsh('dumpxml', ...options, VM);
  const found = [...xml.matchAll(/<disk [\s\S]*?<\/disk>/g)].map(([disk]) => [
    /<serial>(.*)<\/serial>/.exec(disk)?.[1] ?? 'cd',
    /<source file='([^']*)'/.exec(disk)?.[1] ?? '',
  ]);
  return Object.fromEntries(found);
}
const system = (version: string) =>
  join(lab.poolDir, `appliance-understudy-system-${version}.qcow2`);
/** What the host lets the holder of the key do that the appliance got. */
async function withKey(key: string, command: string): Promise<string> {
  const [enter = '', ...inside] = lab.launcher;
  const { stdout } = await execa(
    enter,
    [
      ...[...inside, 'ssh', '-i', key, '-o', 'IdentitiesOnly=yes', '-o', 'BatchMode=yes'],
      ...['-o', `UserKnownHostsFile=${join(lab.dir, 'ssh/known_hosts')}`],
      ...['root@192.168.150.1', command],
    ],
    { reject: false, stdin: 'ignore' },
  );
  return stdout;
}
/** The settings that the appliance finds on its CD-ROM, while that is there. */
async function settings(file: string): Promise<string> {
  const iso = join(lab.poolDir, 'appliance-understudy-settings.iso');
  return waitFor(`${file} on the CD-ROM`, async () => {
    const { stdout } = await execa('isoinfo', ['-R', '-i', iso, '-x', `/${file}`]);
    return stdout !== '' && stdout;
  });
}
const running = () =>
  waitFor('the VM to run', async () => (await virsh('domstate', VM)).trim() === 'running');

t.test('deploys over SSH, with DHCP: the appliance gets a key that opens one thing', async (t) => {
  const json = join(work, 'deployed.json');
  const deployed = deploy(...WHERE, ...HOW, '--json', json);
  await running();
  t.equal(await settings('network'), 'HOSTNAME=understudy', 'no address: DHCP');
  const host = JSON.parse(await settings('host/host.json'));
  t.match(host, { transport: 'ssh', address: '192.168.150.1', port: 22, user: 'root' });
  t.equal(host.applianceVmName, VM);
  t.match(await readFile(join(lab.dir, 'ssh/host_key.pub'), 'utf8'), host.hostKey);
  const key = join(work, 'appliance_key');
  await writeFile(key, `${await settings('host/id_ed25519')}\n`, { mode: 0o600 });
  t.match(JSON.parse(await withKey(key, '{"verb":"vm-list"}')), {
    ok: true,
    result: [{ name: VM, role: 'appliance' }],
  });
  t.match(JSON.parse(await withKey(key, 'id')), { ok: false, code: 'UND_HV_REFUSED' });

  await startPage();
  await pageAt(PAGE);
  const { code, said } = await deployed;
  t.equal(code, 0, said);
  const { stdout } = await execa('openssl', [
    ...['x509', '-in', `${pem}.crt`, '-noout', '-fingerprint', '-sha256'],
  ]);
  const caSha256 = stdout.split('=')[1];
  t.match(JSON.parse(await readFile(json, 'utf8')), {
    url: `https://${PAGE}/`,
    address: PAGE,
    caSha256,
    vm: VM,
    version: '0.0.1',
  });
  t.match(said, `Its CA, SHA-256: ${caSha256}`);
  t.same(await volumes(), [
    'appliance-understudy-data.qcow2',
    'appliance-understudy-system-0.0.1.qcow2',
  ]);
  t.same(await disksOf('--inactive'), {
    'understudy-system': system('0.0.1'),
    'understudy-data': DATA,
    cd: '',
  });
  t.equal((await disksOf()).cd, '', 'the CD-ROM with the key is out of the running VM too');
  const xml = await virsh('dumpxml', '--inactive', VM);
  t.match(xml, /<controller type='scsi' index='0' model='virtio-scsi'>/);
  t.match(await virsh('dominfo', VM), /Autostart: +enable/);
  t.ok((await stat(DATA)).blocks * 512 >= 1 << 30, 'the journal has its room');
  const lines = await ours();
  t.equal(lines.length, 1);
  t.match(
    lines[0],
    /^command="\/usr\/bin\/python3 -I \S+ \S+\/understudy\.json",restrict ssh-ed25519 /,
  );
});

const wrapper = join(lab.dir, 'host/lib/understudy-host-shell');
const wrapperFiles = async () =>
  (await readdir(dirname(wrapper))).filter((name) => name.startsWith('understudy-host-shell'));
const theirs = () => readFile(wrapper, 'utf8');
const ofThisVersion = await readFile(join(ROOT, 'image/host/understudy-host-shell'), 'utf8');
/** As an earlier version left it. */
const older = `${ofThisVersion}# older\n`;

// Red without the try: the appliance was shut down for it, and its new system could do nothing on the host.
t.test('a wrapper that does not work on this host is not put there', async (t) => {
  const config = join(lab.dir, 'host/etc', `${VM}.json`);
  const before = await readFile(config, 'utf8');
  await writeFile(wrapper, older);
  await writeFile(config, '{}');
  const next = await bootSectorImage(work, '0.0.5', banner);
  const { code, said } = await deploy('--upgrade', '--image', next);
  await writeFile(config, before);
  t.not(code, 0);
  t.match(said, /the wrapper of this version does not work on host: .*; nothing was changed/);
  t.equal((await virsh('domstate', VM)).trim(), 'running');
  t.equal(await theirs(), older);
  t.same(await wrapperFiles(), ['understudy-host-shell']);
});

for (const [version, what, says, dies, why] of [
  [
    '0.0.2',
    'says that it has a problem',
    '\r\n  PROBLEM:      the state is of a newer version\r\n',
    false,
    /says: the state is of a newer version/,
  ],
  ['0.0.3', 'powers off', '\r\nKernel panic\r\n', true, /has powered off/],
] as const) {
  // Red when deploy only starts what is defined: then the new system runs again.
  t.test(`an upgrade to a system that ${what} goes back to the old one`, async (t) => {
    const before = { keys: await readFile(keys, 'utf8'), volumes: await volumes() };
    const bad = await bootSectorImage(work, version, says, dies);
    const { code, said } = await deploy('--upgrade', '--image', bad);
    t.not(code, 0);
    t.match(said, why);
    t.match(said, /-0\.0\.1\.qcow2, runs again and its page answers/);
    t.equal((await virsh('domstate', VM)).trim(), 'running');
    t.equal((await disksOf())['understudy-system'], system('0.0.1'));
    t.equal((await disksOf('--inactive'))['understudy-system'], system('0.0.1'));
    t.same(await volumes(), before.volumes, 'the new disk is gone');
    t.equal(await readFile(keys, 'utf8'), before.keys);
    // Otherwise the old system would be with a wrapper that it was never tried with.
    t.match(said, /bringing the wrapper on the host up to date/);
    t.equal(await theirs(), older, 'and so is the new wrapper');
    t.same(await wrapperFiles(), ['understudy-host-shell']);
  });
}

t.test('an upgrade swaps the system disk and the wrapper, and nothing else', async (t) => {
  const before = { keys: await readFile(keys, 'utf8'), data: (await stat(DATA)).ino };
  const next = await bootSectorImage(work, '0.0.4', banner);
  const { code, said } = await deploy('--upgrade', '--image', next);
  t.equal(code, 0, said);
  t.same(await volumes(), [
    'appliance-understudy-data.qcow2',
    'appliance-understudy-system-0.0.4.qcow2',
  ]);
  t.equal((await disksOf())['understudy-system'], system('0.0.4'));
  t.equal((await disksOf('--inactive'))['understudy-system'], system('0.0.4'));
  t.equal((await disksOf())['understudy-data'], DATA);
  t.equal((await stat(DATA)).ino, before.data);
  t.equal(await readFile(keys, 'utf8'), before.keys);
  t.equal(await theirs(), ofThisVersion);
  t.equal((await stat(wrapper)).mode & 0o777, 0o755);
  t.same(await wrapperFiles(), ['understudy-host-shell']);
  t.match(await virsh('dominfo', VM), /Autostart: +enable/);
});

t.test('--adopt takes the data disk as it is, with a new key and a fixed address', async (t) => {
  const [oldLine] = await ours();
  await virsh('destroy', VM);
  await virsh('undefine', VM);
  // At its end: the first blocks of the file are libvirt's.
  const pattern = ['-f', 'qcow2', '-c'];
  await execa('qemu-io', [...pattern, 'write -P 0x5a 900M 64k', DATA]);
  const address = '192.168.150.41';
  const fixed = [
    '--ip',
    `${address}/24`,
    '--gateway',
    '192.168.150.1',
    '--dns',
    '192.0.2.1,192.0.2.2',
  ];
  const deployed = deploy(...WHERE, ...fixed, '--image', image, '--adopt');
  await running();
  t.equal(
    await settings('network'),
    `HOSTNAME=understudy\nADDRESS=${address}/24\nGATEWAY=192.168.150.1\nDNS=192.0.2.1 192.0.2.2`,
  );
  await pageAt(address);
  const { code, said } = await deployed;
  t.equal(code, 0, said);
  t.equal((await disksOf())['understudy-data'], DATA);
  const read = await execa('qemu-io', ['-U', '-r', ...pattern, 'read -P 0x5a 900M 64k', DATA]);
  t.notMatch(read.stdout, /verification failed/);
  const lines = await ours();
  t.equal(lines.length, 1, 'the old key is out');
  t.not(lines[0], oldLine);
  await virsh('destroy', VM);
  await virsh('undefine', VM);
  await virsh('vol-delete', '--pool', 'default', 'appliance-understudy-data.qcow2');
  const none = await deploy(...WHERE, ...HOW, '--adopt');
  t.not(none.code, 0);
  t.match(none.said, /--adopt: the pool default has no data disk/);
});
