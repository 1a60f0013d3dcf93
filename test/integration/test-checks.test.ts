/**
 * The checks of a test failover through the real driver, the real wrapper and the real QEMU guest agent; the guest is this
 * machine. Only libvirt between wrapper and agent is a stand-in: it hands over what it is told to, which is all that
 * libvirt does there, and a guest would have to be booted for it. It stands in for virsh, so this is also a host on which
 * Python cannot load libvirt's library.
 */
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import t from 'tap';
import type { TestCheckResult, TestChecks } from '../../appliance/api/schema.ts';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { localTransport } from '../../appliance/hypervisor/libvirt/transport.ts';
import { createTestChecker, listeners } from '../../appliance/recovery/test-checks.ts';
import { until } from './stream.lab.ts';

t.setTimeout(300_000);
const WRAPPER = new URL('../../image/host/understudy-host-shell', import.meta.url).pathname;
const UUID = '0b6bcb0e-0000-4000-8000-000000000001';

const VIRSH = (dir: string) => `#!/usr/bin/python3 -I
import json, socket, sys
args = sys.argv[sys.argv.index("--quiet") + 1:]
owner = {"web1-replica-test": "appl", "foreign": "other"}
if args[0] == "dumpxml":
    name = args[-1]
    print("""<domain type='qemu'><name>%s</name><uuid>${UUID}</uuid><metadata>
      <u:vm xmlns:u='https://understudy.invalid/xmlns/vm/1' appliance='%s'/></metadata><devices/></domain>""" % (name, owner[name]))
elif args[0] == "domstate":
    print("running (booted)")
elif args[0] == "qemu-agent-command":
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(20)
    try:
        link.connect("${dir}/agent.sock")
    except OSError:
        sys.exit("error: Guest agent is not responding: QEMU guest agent is not connected")
    link.sendall(args[2].encode() + b"\\n")
    said = link.makefile().readline()
    if '"error"' in said:
        sys.exit("error: guest agent command failed: " + json.loads(said)["error"]["desc"])
    print(said)
else:
    sys.exit("error: unknown " + args[0])
`;

t.test('ports and scripts in a guest', async (t) => {
  const dir = t.testdir({
    'host.json': JSON.stringify({ appliance: 'appl', pools: '*', networks: '*' }),
    'no-library': '',
  });
  await writeFile(join(dir, 'virsh'), VIRSH(dir), { mode: 0o755 });
  const hypervisor = new LibvirtHypervisor(
    localTransport({
      command: [
        ...['unshare', '--mount', '--propagation', 'private', 'sh', '-c'],
        `for library in /usr/lib/*/libvirt.so.0; do [ -e $library ] || continue; mount --bind ${join(dir, 'no-library')} $library || exit; done
        mount --bind ${join(dir, 'virsh')} /usr/bin/virsh && exec /usr/bin/python3 -I ${WRAPPER} ${join(dir, 'host.json')}`,
      ],
    }),
  );
  const seen: TestCheckResult[][] = [];
  const check = async (wanted: TestChecks, settleMs = 60_000) => {
    seen.length = 0;
    const checker = createTestChecker({ hypervisor, settleMs, intervalMs: 100 });
    return checker.check('web1-replica-test', wanted, {
      wait: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
      detail: () => {},
      results: async (results) => {
        seen.push(results);
      },
    });
  };
  const script = async (text: string, timeLimitSeconds = 60) =>
    (await check({ tcpPorts: [], script: { text, timeLimitSeconds } })).at(-1)!;

  t.match(
    await check({ tcpPorts: [22], script: { text: 'true', timeLimitSeconds: 5 } }, 0),
    [
      { name: 'TCP port 22', state: 'not-run', words: /not connected/ },
      { name: 'Script', state: 'not-run', words: /not connected/ },
    ],
    'no agent: neither passes',
  );

  // qemu-ga serves one connection after the other, as over a serial port.
  const agent = spawn('qemu-ga', [
    ...['--method', 'unix-listen', '--path', join(dir, 'agent.sock')],
    ...['--statedir', dir, '--pidfile', join(dir, 'agent.pid')],
  ]);
  t.teardown(() => agent.kill('SIGKILL'));
  await until('the guest agent', async () =>
    hypervisor.guestAgentPing('web1-replica-test').catch(() => false),
  );

  await t.rejects(hypervisor.guestExec('foreign', { argv: ['/bin/true'] }), {
    code: 'UND_HV_REFUSED',
  });
  await t.rejects(hypervisor.guestExec('web1-replica-test', { argv: ['true'] }), {
    code: 'UND_HV_REFUSED',
  });
  await t.rejects(hypervisor.guestExec('web1-replica-test', { argv: ['/nonexistent'] }), {
    code: 'UND_HV_GUEST_AGENT',
  });

  const listening = async (host: string) => {
    const server = createServer().listen(0, host);
    t.teardown(() => server.close());
    await new Promise((resolve) => server.once('listening', resolve));
    return (server.address() as { port: number }).port;
  };
  const [local, six, all] = [
    await listening('127.0.0.1'),
    await listening('::1'),
    await listening('127.0.0.2'),
  ];
  // Red when the loopback address passes, and when the first look decides.
  const ports = await check({ tcpPorts: [local, six, all], script: null }, 0);
  for (const one of ports) {
    t.match(one, { state: 'failed', words: /loopback address only/, how: /inside the guest/ });
  }
  t.match(await check({ tcpPorts: [1], script: null }, 0), [
    { state: 'failed', words: /nothing in the guest listens/ },
  ]);
  t.same(
    listeners(
      [
        '  sl  local_address rem_address   st',
        '   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1',
        '   1: 0100007F:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1',
        '   2: 0A00000A:01BB 0B00000A:D431 01 00000000:00000000 00:00000000 00000000 0 0 1',
        '   3: 0A00000A:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 1',
        `   4: ${'0'.repeat(32)}:0050 ${'0'.repeat(32)}:0000 0A 00000000:00000000 00:00000000 0 0 1`,
        `   5: 0000000000000000FFFF00000100007F:0051 ${'0'.repeat(32)}:0000 0A 0:0 00:0 0 0 1`,
      ].join('\n'),
    ),
    [
      { port: 22, address: 'any' },
      { port: 5432, address: 'loopback' },
      { port: 443, address: 'other' },
      { port: 80, address: 'any' },
      { port: 81, address: 'loopback' },
    ],
  );

  t.match(await script('id -u; echo "to stderr" >&2'), {
    state: 'passed',
    words: /exit status 0/,
    output: '0\nto stderr\n',
  });
  t.equal(seen[0]?.at(-1)?.state, 'running', 'shown while it runs');
  t.match(await script('#!/usr/bin/python3\nimport sys\nprint("\\x1b[1mPy\\x07")\nsys.exit(3)'), {
    state: 'failed',
    words: /exit status 3/,
    output: '[1mPy\n',
  });
  // Red when the pipe's status is taken for the script's, and when its end waits for the sleeper.
  t.match(await script('echo begun; sleep 600', 1), {
    state: 'failed',
    words: 'it did not end within 1 s',
  });
  const much = await script('seq 100000; exit 0');
  t.equal(much.state, 'passed');
  t.match(much.output, /^\[earlier output left out\]\n[\s\S]*\n100000\n$/);
  t.ok(Buffer.byteLength(much.output!) < 17_000);
  t.match(await script('kill -9 $$'), { state: 'failed', words: /exit status 137|signal 9/ });
});
