/**
 * The proof of guest preparation is a guest that boots: the sample source server, set up for virtio-blk, device names
 * and an interface called ens3, is started with virtio-scsi disks, its network card in another slot and another MAC
 * address. Prepared it comes up with its network and both disks; unprepared it does not get beyond its initramfs.
 * Needs root and QEMU; builds the sample image when it is not there.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import t from 'tap';
import { createGuestPreparer } from '../../appliance/recovery/prepare-guest/index.ts';
import { readConsole } from '../../appliance/recovery/prove-boot.ts';
import {
  buildSample,
  IMAGES,
  prepareSample,
  type SampleDisks,
  sampleCopy,
} from './recovery.lab.ts';

const ROOT = join(import.meta.dirname, '../..');
const WORKER = join(ROOT, 'appliance/recovery/prepare-guest/worker-main.ts');
const MAC = '52:54:00:ab:cd:ef';
/** An emulated processor on a busy machine: the limit is there for a hang, not for speed. */
const LIMIT_MS = 15 * 60_000;
const PATIENT = { timeout: 2 * LIMIT_MS };

const logs = join(ROOT, 'build/test-logs');
mkdirSync(logs, { recursive: true });
const work = mkdtempSync('/var/tmp/understudy-boot-');
const children: ChildProcess[] = [];
// At the exit too: a runner that loses patience takes no other leave.
process.on('exit', () => {
  for (const child of children) child.kill('SIGKILL');
});
t.setTimeout(4 * LIMIT_MS);
t.teardown(() => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(work, { recursive: true, force: true });
});

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** Starts a VM like a replica; TCG works everywhere. Returns its console and how to log in. */
async function start(name: string, disks: SampleDisks) {
  const console = join(logs, `prepare-guest-boot-${name}.console.txt`);
  rmSync(console, { force: true });
  const port = await freePort();
  const args = [
    '-machine q35 -accel tcg,thread=multi -cpu max -m 768 -smp 2 -nodefaults -display none -vga std',
    '-device virtio-scsi-pci,id=scsi,addr=0x9',
    `-drive if=none,id=root,file=${disks.root},format=raw,cache=unsafe -device scsi-hd,bus=scsi.0,drive=root,bootindex=1`,
    `-drive if=none,id=data,file=${disks.data},format=raw,cache=unsafe -device scsi-hd,bus=scsi.0,drive=data,bootindex=2`,
    `-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:${port}-:22 -device virtio-net-pci,netdev=net,mac=${MAC},addr=0xb`,
    `-serial file:${console}`,
  ].flatMap((line) => line.split(' '));
  const vm = spawn('qemu-system-x86_64', args, { stdio: 'ignore' });
  children.push(vm);
  const text = () => (existsSync(console) ? readFileSync(console, 'utf8') : '');
  const ssh = (command: string): string | null => {
    const options = [
      'StrictHostKeyChecking=no',
      'UserKnownHostsFile=/dev/null',
      'ConnectTimeout=10',
      'BatchMode=yes',
    ];
    const result = spawnSync(
      'ssh',
      [
        ...options.flatMap((option) => ['-o', option]),
        '-i',
        join(IMAGES, 'source_key'),
        '-p',
        String(port),
        'admin@127.0.0.1',
        command,
      ],
      { encoding: 'utf8', timeout: 60_000, stdio: ['ignore', 'pipe', 'ignore'] },
    );
    return result.status === 0 ? result.stdout : null;
  };
  return { text, ssh, running: () => vm.exitCode === null, stop: () => vm.kill('SIGKILL') };
}

async function until<T>(what: string, probe: () => T | null | false): Promise<T> {
  const end = Date.now() + LIMIT_MS;
  while (Date.now() < end) {
    const value = probe();
    if (value !== null && value !== false) return value;
    await pause(1000);
  }
  throw new Error(`waited 15 minutes for: ${what}`);
}

t.before(buildSample);

t.test('unprepared, the sample server does not find its disk', PATIENT, async (t) => {
  const vm = await start('unprepared', sampleCopy(work, 'unprepared'));
  const state = await until('a failure to boot, or a login', () => {
    const seen = readConsole(vm.text());
    return seen.state === 'unknown' ? null : seen;
  });
  vm.stop();
  t.match(state, { state: 'failed', reason: /vda3 does not exist/ });
});

t.test('prepared, it boots with its network, its disks and its service', PATIENT, async (t) => {
  const disks = sampleCopy(work, 'prepared');
  const preparer = createGuestPreparer({ workerCommand: [process.execPath, WORKER] });
  const report = await prepareSample(disks, preparer, MAC);
  t.match(report.os, /Debian/);
  t.same(report.unfixable, []);

  const vm = await start('prepared', disks);
  await until('a login over the network', () => vm.ssh('true') ?? !vm.running());
  const seen = vm.ssh(
    'ip -br -4 address; findmnt -rno SOURCE,TARGET / ; findmnt -rno SOURCE,TARGET /srv/data; cat /proc/swaps /proc/cmdline',
  );
  t.match(seen, /^ens3 +UP +10\.0\.2\./m, 'the interface has its old name and an address');
  // SCSI disks are looked for at the same time: which is sda is decided anew at each boot.
  const root = /^\/dev\/(sd[ab])3 \/$/m.exec(seen ?? '')?.[1];
  t.ok(root, 'the root file system', { seen });
  const data = root === 'sda' ? 'sdb' : 'sda';
  t.match(seen, new RegExp(`^/dev/${data}1 /srv/data$`, 'm'));
  t.match(seen, new RegExp(`^/dev/${root}4 `, 'm'), 'swap is on');
  t.match(seen, / root=UUID=/);
  const rows = await until('rows of the database on both disks', () => {
    const answer = vm.ssh(
      'psql -XAtd ledger -c "SELECT count(*) FROM entries_root JOIN entries_data USING (n)"',
    );
    return answer !== null && Number(answer) > 0 ? answer : null;
  });
  t.ok(Number(rows) > 0, `${rows.trim()} rows`);
  vm.stop();
});
