import { execFileSync } from 'node:child_process';
import t from 'tap';
import { factsScript, parseFacts, type SourceFacts } from '../../appliance/sources/facts.ts';
import { type JudgeInput, judge, versionAtLeast } from '../../appliance/sources/judge.ts';

const MIB = 1024 * 1024;
const NOW_S = 1_800_000_000;
const lsblk = (over: object) =>
  JSON.stringify({
    blockdevices: [
      { name: 'vda', type: 'disk', size: 10 * 1024 ** 3, ro: false, rm: false, ...over },
    ],
  }); // prettier-ignore
const good = (): SourceFacts => ({
  system: 'Linux',
  kernel: '6.1.0-28-amd64',
  architecture: 'x86_64',
  os: 'Debian GNU/Linux 12 (bookworm)',
  init: 'systemd',
  systemd: true,
  btf: true,
  bpfFs: true,
  lockdown: null,
  glibc: 'glibc 2.36',
  availableMemoryBytes: 2048 * MIB,
  folders: new Map(
    ['/usr/lib', '/var/lib', '/var/tmp'].map((folder) => [
      folder,
      { device: '/dev/vda1', freeBytes: 1024 * MIB, writable: true },
    ]),
  ),
  tools: new Set(['gzip', 'tar', 'sha256sum', 'lsblk', 'findmnt', 'bash', 'timeout']),
  smbiosUuid: null,
  owner: null,
  agentInstalled: false,
  isAppliance: false,
  clockSeconds: NOW_S,
  reach: [
    { address: '10.0.0.2', port: 443, result: 'ok' },
    { address: '10.0.0.2', port: 7443, result: 'ok' },
  ],
  lsblkJson: lsblk({}),
});
const input = (over: Partial<SourceFacts> = {}, more: Partial<JudgeInput> = {}): JudgeInput => ({
  source: 'server',
  facts: { ...good(), ...over },
  archiveBytes: 35 * MIB,
  installedBytes: 120 * MIB,
  applianceFingerprint: 'AA:BB',
  apiPort: 443,
  agentPort: 7443,
  nowMs: NOW_S * 1000,
  ...more,
});
const troubles = (over: Partial<SourceFacts> = {}, more: Partial<JudgeInput> = {}) =>
  judge(input(over, more))
    .filter(({ result }) => result !== 'ok')
    .map(({ result, code }) => `${result} ${code}`);

t.test('a good server has nothing to say', async (t) => {
  t.same(troubles(), []);
});

t.test('each thing that is wrong has its code, its words and a hint', async (t) => {
  const cases: [Partial<SourceFacts>, string][] = [
    [{ system: 'FreeBSD' }, 'failed UND_SOURCE_NOT_LINUX'],
    [{ isAppliance: true }, 'failed UND_SOURCE_IS_APPLIANCE'],
    [{ architecture: 'aarch64' }, 'failed UND_SOURCE_ARCHITECTURE'],
    [{ systemd: false, init: 'init' }, 'failed UND_SOURCE_NO_SYSTEMD'],
    [{ glibc: 'glibc 2.17' }, 'failed UND_SOURCE_GLIBC_TOO_OLD'],
    [{ glibc: null }, 'failed UND_SOURCE_GLIBC_TOO_OLD'],
    [{ kernel: '4.19.0-27-amd64' }, 'failed UND_SOURCE_KERNEL_TOO_OLD'],
    [{ btf: false }, 'failed UND_SOURCE_NO_BTF'],
    [{ bpfFs: false }, 'failed UND_SOURCE_NO_BPF_FS'],
    [{ lockdown: 'confidentiality' }, 'failed UND_SOURCE_LOCKDOWN'],
    [
      { tools: new Set(['tar', 'sha256sum', 'lsblk', 'findmnt']) },
      'failed UND_SOURCE_TOOL_MISSING',
    ],
    [{ availableMemoryBytes: 100 * MIB }, 'warning UND_SOURCE_LOW_MEMORY'],
    [{ lsblkJson: lsblk({ rm: true }) }, 'failed UND_SOURCE_NO_DISK'],
    [{ lsblkJson: 'broken' }, 'failed UND_SOURCE_NO_DISK'],
    [{ owner: 'CC:DD' }, 'failed UND_SOURCE_DIFFERENT_APPLIANCE'],
    [{ clockSeconds: NOW_S - 3 * 3600 }, 'failed UND_SOURCE_CLOCK_SKEW'],
    [{ clockSeconds: NOW_S - 120 }, 'warning UND_SOURCE_CLOCK_SKEW'],
    [{ clockSeconds: NOW_S + 3600 }, 'warning UND_SOURCE_CLOCK_SKEW'],
  ];
  for (const [over, expected] of cases) {
    const checks = judge(input(over));
    t.same(troubles(over), [expected], JSON.stringify(Object.keys(over)));
    for (const check of checks.filter(({ result }) => result !== 'ok')) {
      t.match(check.detail, /server/, 'it names the server');
      t.ok(check.hint);
    }
  }
  t.same(troubles({ lockdown: 'integrity' }), []);
  t.same(troubles({ owner: 'AA:BB', agentInstalled: true }), [], 'our own agent is replaced');
});

t.test('space: folders of one file system draw on the same space', async (t) => {
  const folder = (device: string, mib: number, writable = true) => ({
    device,
    freeBytes: mib * MIB,
    writable,
  });
  const on = (usr: object, lib: object, tmp: object) =>
    troubles({
      folders: new Map([
        ['/usr/lib', usr],
        ['/var/lib', lib],
        ['/var/tmp', tmp],
      ]) as never,
    }); // prettier-ignore
  const no = ['failed UND_SOURCE_NO_SPACE'];
  t.same(on(folder('a', 140), folder('b', 100), folder('b', 100)), []);
  t.same(
    on(folder('a', 140), folder('a', 140), folder('a', 140)),
    no,
    '187 MiB are needed together',
  );
  t.same(on(folder('a', 100), folder('b', 100), folder('b', 100)), no);
  t.same(on(folder('a', 140), folder('b', 100), folder('c', 30)), no);
  t.same(on(folder('a', 140, false), folder('b', 100), folder('b', 100)), [
    'failed UND_SOURCE_READ_ONLY',
  ]);
});

t.test('ports: one address with both ports is enough', async (t) => {
  const reach = (...results: string[]) =>
    troubles({
      reach: results.map((result, i) => ({
        address: `10.0.0.${i >> 1}`,
        port: i & 1 ? 7443 : 443,
        result,
      })),
    }); // prettier-ignore
  t.same(reach('Connection refused', 'Connection refused', 'ok', 'ok'), []);
  t.same(reach('ok', 'Connection refused', 'Connection refused', 'ok'), [
    'failed UND_SOURCE_PORT_BLOCKED',
  ]);
  t.same(reach('ok', 'no answer within 8 s'), ['failed UND_SOURCE_PORT_BLOCKED']);
  t.same(reach('unknown', 'unknown'), ['warning UND_SOURCE_PORT_BLOCKED']);
});

t.test('a clone of a source is told apart by its machine', async (t) => {
  const sourceWithUuid = (uuid: string) => (uuid === 'u' ? 'the original' : null);
  t.same(troubles({ smbiosUuid: 'u' }, { sourceWithUuid }), ['failed UND_SOURCE_SAME_MACHINE']);
  t.same(troubles({ smbiosUuid: 'v' }, { sourceWithUuid }), []);
});

t.test('versions', async (t) => {
  t.ok(versionAtLeast('5.10.0-33-amd64', '5.10'));
  t.ok(versionAtLeast('6.1', '5.10'));
  t.notOk(versionAtLeast('5.9.16', '5.10'));
  t.notOk(versionAtLeast('unknown', '5.10'));
  t.ok(versionAtLeast('glibc 2.31', '2.28'));
});

t.test('what the script prints is what the parser reads', async (t) => {
  const facts = parseFacts(
    [
      'Welcome to server! = have fun',
      'system=Linux',
      'kernel=5.10.0-33-amd64',
      'os=Debian GNU/Linux 11 (bullseye)',
      'systemd=yes',
      'memory=1024',
      'folder=/usr/lib yes 2048 /dev/mapper/vg-usr local',
      'folder=/var/lib no 12 tmpfs',
      'tool=gzip',
      'uuid=4C4C4544-0042-3510-8054-B7C04F564433',
      'reach=10.0.0.2 443 ok',
      'reach=10.0.0.2 7443 bash: line 1: /dev/tcp/10.0.0.2/7443: Connection refused',
      'clock=1700000000',
      'lsblk={"blockdevices": []}',
    ].join('\n'),
  );
  t.match(facts, {
    system: 'Linux',
    systemd: true,
    btf: false,
    availableMemoryBytes: 1024 * 1024,
    clockSeconds: 1_700_000_000,
    smbiosUuid: '4c4c4544-0042-3510-8054-b7c04f564433',
    lockdown: null,
    owner: null,
  });
  t.same(facts.folders.get('/usr/lib'), {
    device: '/dev/mapper/vg-usr local',
    freeBytes: 2048 * 1024,
    writable: true,
  });
  t.equal(facts.folders.get('/var/lib')!.writable, false);
  t.same(
    facts.reach.map(({ result }) => result),
    ['ok', 'Connection refused'],
  );
});

t.test('the script runs in a plain shell and finds this machine', async (t) => {
  const script = factsScript([{ address: '127.0.0.1', port: 9 }]);
  const stdout = execFileSync('dash', ['-s'], { input: script, encoding: 'utf8' });
  const facts = parseFacts(stdout);
  t.equal(facts.system, 'Linux');
  t.equal(facts.kernel, execFileSync('uname', ['-r'], { encoding: 'utf8' }).trim());
  t.ok(facts.folders.get('/usr/lib')!.freeBytes > 0);
  t.ok(facts.tools.has('gzip'));
  t.ok(facts.availableMemoryBytes! > 0);
  t.match(facts.reach, [{ address: '127.0.0.1', port: 9, result: 'Connection refused' }]);
  t.ok(JSON.parse(facts.lsblkJson!).blockdevices);
});
