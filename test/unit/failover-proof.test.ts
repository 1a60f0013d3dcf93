/** What counts as proof that a replica booted, what counts as a failure, and what is kept as evidence. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import type { Hypervisor } from '../../appliance/hypervisor/hypervisor.ts';
import { serialFromVpd80 } from '../../appliance/recovery/locate.ts';
import { createBootProver, readConsole, tcpConnects } from '../../appliance/recovery/prove-boot.ts';
import {
  type FailoverRecord,
  newRecord,
  replicaMac,
  toApi,
  vmDiskOrder,
} from '../../appliance/recovery/record.ts';
import type { JobDescription, JobHandle } from '../../appliance/recovery/types.ts';
import { undError } from '../../protocol/errors.ts';

const job: JobDescription = {
  jobId: '7f1c9d52-0000-4000-8000-000000000001',
  sourceName: 'web1',
  replicaName: 'web1-replica',
  network: 'default',
  vcpus: 1,
  memoryBytes: 1,
  firmware: 'bios',
  disks: [],
  nics: [
    { name: 'ens4', mac: '52:54:00:00:00:02', primary: false },
    { name: 'ens3', mac: '52:54:00:00:00:01', primary: true },
  ],
  sourceId: 'source-1',
  sourceOnline: false,
  lagMs: null,
  recoverable: { ok: true },
};
const record = newRecord(job, 'appliance', '2026-01-01T00:00:00.000Z');
const silent = { passiveHelloAt: async () => null } as unknown as JobHandle;

function prover(
  change: Partial<Hypervisor>,
  options: { limitMs?: number; port?: number; proxy?: boolean } = {},
): {
  prove: (handle?: JobHandle, of?: FailoverRecord) => Promise<string>;
  saved: Partial<FailoverRecord>[];
  folder: string;
} {
  const folder = mkdtempSync(join(tmpdir(), 'understudy-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const saved: Partial<FailoverRecord>[] = [];
  const hypervisor = {
    vmState: async () => ({ state: 'running' }),
    guestAddresses: async () => [],
    guestAgentPing: async () => false,
    consoleTail: async () => '',
    screenshot: async () => Buffer.from('PNG'),
    ...change,
  } as unknown as Hypervisor;
  const made = createBootProver({
    hypervisor,
    evidenceFolder: folder,
    limitMs: options.limitMs ?? 20,
    intervalMs: 5,
    ports: [22],
    connects: async (address, port) =>
      options.proxy || (address === '192.0.2.5' && port === options.port),
  });
  return {
    folder,
    saved,
    prove: async (handle = silent, of = record) => {
      const proof = await made.prove(of, handle, {
        signal: new AbortController().signal,
        detail: () => {},
        save: async (apply) => {
          saved.push(apply(record));
        },
      });
      return `${proof.kind}: ${proof.words}`;
    },
  };
}

const at = (address: string, mac = record.vm.mac) => ({
  guestAddresses: async () => [{ mac, address, prefixLength: 24, source: 'lease' as const }],
});

t.test('each kind of proof', async (t) => {
  const hello = {
    passiveHelloAt: async (vmUuid: string, since: string) => {
      t.same([vmUuid, since], [record.vm.uuid, record.startedAt], 'only that machine counts');
      return '2026-01-01T00:01:00.000Z';
    },
  } as unknown as JobHandle;
  t.match(await prover({}).prove(hello), /^agent-hello: its agent said hello at 2026/);
  t.match(await prover({ guestAgentPing: async () => true }).prove(), /^guest-agent/);
  t.equal(
    await prover(at('192.0.2.5'), { port: 22 }).prove(),
    'tcp: TCP port 22 answers at 192.0.2.5',
  );
  // The source itself answers there: a test is on a network of its own, often with the source's addresses.
  await t.rejects(
    prover(at('192.0.2.5'), { port: 22 }).prove(silent, { ...record, kind: 'test' }),
    { code: 'UND_FAILOVER_NO_BOOT_PROOF' },
  );
  t.match(
    await prover({
      consoleTail: async () => 'Debian GNU/Linux 12 web1 ttyS0\r\n\r\nweb1 login: ',
    }).prove(),
    /^console-login/,
  );
});

t.test(
  'what is no proof: an address, another machine, a link-local address, a proxy that takes all',
  async (t) => {
    for (const hypervisor of [
      at('192.0.2.9'),
      at('192.0.2.5', '52:54:00:ff:ff:ff'),
      at('fe80::1'),
      {},
    ]) {
      await t.rejects(prover(hypervisor, { port: 22 }).prove(), {
        code: 'UND_FAILOVER_NO_BOOT_PROOF',
      });
    }
    await t.rejects(prover(at('192.0.2.5'), { proxy: true }).prove(), {
      code: 'UND_FAILOVER_NO_BOOT_PROOF',
    });
    await t.rejects(prover(at('192.0.2.9')).prove(), { message: /it has the address 192.0.2.9/ });
  },
);

t.test('a boot that failed is told at once, not at the end of the limit', async (t) => {
  const hour = { limitMs: 3_600_000 };
  const panic = {
    consoleTail: async () => 'Kernel panic - not syncing: VFS: Unable to mount root fs',
  };
  await t.rejects(prover(panic, hour).prove(), {
    code: 'UND_FAILOVER_BOOT_FAILED',
    message: /Kernel panic/,
  });
  const off = { vmState: async () => ({ state: 'off' as const, reason: 'crashed' }) };
  await t.rejects(prover(off, hour).prove(), { code: 'UND_FAILOVER_BOOT_FAILED' });
});

t.test('evidence is kept of a success and of a failure, and its lack fails nothing', async (t) => {
  const good = prover({ guestAgentPing: async () => true, consoleTail: async () => 'hello' });
  await good.prove();
  const name = `${record.failoverId}.png`;
  t.match(good.saved, [{ screenshot: name }]);
  t.equal(readFileSync(join(good.folder, name), 'utf8'), 'PNG');
  t.equal(readFileSync(join(good.folder, `${record.failoverId}.console.txt`), 'utf8'), 'hello');
  const bad = prover({});
  await t.rejects(bad.prove());
  t.equal(readFileSync(join(bad.folder, name), 'utf8'), 'PNG');
  const blind = prover({
    guestAgentPing: async () => true,
    screenshot: async () => {
      throw undError('UND_HV_FAILED', { action: 'x', reason: 'y' });
    },
  });
  t.match(await blind.prove(), /^guest-agent/);
  t.same(blind.saved, []);
});

t.test('a probe that fails is no answer; a host that is away is for the caller', async (t) => {
  const refuse = (code: 'UND_HV_FAILED' | 'UND_HV_UNREACHABLE') => ({
    guestAgentPing: async () => {
      throw undError(code, {});
    },
    consoleTail: async () => 'web1 login:',
  });
  t.match(await prover(refuse('UND_HV_FAILED')).prove(), /^console-login/);
  await t.rejects(prover(refuse('UND_HV_UNREACHABLE')).prove(), { code: 'UND_HV_UNREACHABLE' });
});

t.test('consoles as they are printed', async (t) => {
  const esc = String.fromCharCode(27);
  t.same(readConsole(`${esc}[0m${esc}[2J\r\nDebian GNU/Linux 12\r\n\r\nsource login: `), {
    state: 'login',
  });
  t.same(
    readConsole(
      'Gave up waiting for root file system device.\r\nALERT!  /dev/vda3 does not exist.  Dropping to a shell!\r\n(initramfs) ',
    ),
    { state: 'failed', reason: 'ALERT! /dev/vda3 does not exist. Dropping to a shell!' },
  );
  t.match(
    readConsole(`${esc}[20;01H${esc}[1m${esc}[33m${esc}[40mShell> ${esc}[0m${esc}[37m${esc}[40m`),
    {
      state: 'failed',
    },
  );
  t.match(readConsole('error: no such device.\r\ngrub rescue> '), { state: 'failed' });
  for (const text of ['', 'Loading initial ramdisk ...', 'sshd[1]: Last login: yesterday']) {
    t.same(readConsole(text), { state: 'unknown' }, text);
  }
});

t.test('a TCP port answers or does not', async (t) => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  t.equal(await tcpConnects('127.0.0.1', port), true);
  await new Promise((resolve) => server.close(resolve));
  t.equal(await tcpConnects('127.0.0.1', port), false);
});

t.test("the MAC address is stable, local to the job and never the source's", async (t) => {
  t.equal(record.vm.mac, replicaMac(job.jobId, 'ens3'), 'the interface with the default route');
  t.equal(newRecord(job, 'a', 'x').vm.mac, record.vm.mac);
  t.not(replicaMac('another-job', 'ens3'), record.vm.mac);
  t.match(record.vm.mac, /^52:54:00:[0-9a-f]{2}:[0-9a-f]{2}:[0-9a-f]{2}$/);
});

t.test('the boot disk comes first, the others in the order of the source', async (t) => {
  const disks = [
    { name: 'vda', boot: false },
    { name: 'vdb', boot: true },
    { name: 'vdc', boot: false },
  ];
  t.same(
    vmDiskOrder(disks).map(({ name }) => name),
    ['vdb', 'vda', 'vdc'],
  );
});

t.test('what could not be prepared is shown beside what was', async (t) => {
  const shown = toApi({
    ...record,
    guestChanges: ['/etc/fstab: changed'],
    unfixable: [{ code: 'UND_GUEST_DRIVER_MISSING', message: 'no driver' }],
  });
  t.same(shown.guestChanges, [
    '/etc/fstab: changed',
    'Not done (UND_GUEST_DRIVER_MISSING): no driver',
  ]);
});

t.test('a serial is read from its SCSI page', async (t) => {
  t.equal(serialFromVpd80(Buffer.from('\0\x80\0\x06uroot \0', 'latin1')), 'uroot');
});
