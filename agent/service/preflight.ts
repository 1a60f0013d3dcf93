/**
 * What would keep the agent from working here, asked with the agent's own means: its Node runs, its helper loads, the
 * appliance answers over TLS. The shell checks of the appliance came before; these need the agent on the machine.
 */
import { access, readFile, rm, statfs } from 'node:fs/promises';
import { freemem } from 'node:os';
import { connect } from 'node:tls';
import type { PreflightCheck, SourceDisk } from '../../appliance/api/schema.ts';
import { asUndError, type ErrorCode, undError } from '../../protocol/errors.ts';
import { createCapture } from '../capture/capture.ts';
import type { AgentIdentity, AgentPaths, EnrolTicket } from '../config.ts';
import { APPLIANCE_NAME } from '../enrol/enrol.ts';
import { takeInventory } from '../inventory/take.ts';
import { ensureHelper } from './helper.ts';

const MIB = 1024 * 1024;
const NEEDED_STATE_BYTES = 32 * MIB;
const NEEDED_MEMORY_BYTES = 256 * MIB;

type Outcome =
  | { detail: string }
  | { code: ErrorCode; detail: string; hint: string; warning?: boolean };

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

async function check(
  id: string,
  title: string,
  run: () => Promise<Outcome>,
): Promise<PreflightCheck> {
  let outcome: Outcome;
  try {
    outcome = await run();
  } catch (error) {
    const coded = asUndError(error);
    outcome = { code: coded.code, detail: coded.message, hint: coded.hint };
  }
  if (!('code' in outcome)) return { id, title, result: 'ok', detail: outcome.detail };
  const { code, detail, hint } = outcome;
  return { id, title, result: outcome.warning ? 'warning' : 'failed', detail, code, hint };
}

const problem = (
  code: ErrorCode,
  params: Record<string, string | number>,
  warning = false,
): Outcome => {
  const error = undError(code, { source: 'this machine', ...params });
  return { code, detail: error.message, hint: error.hint, warning };
};

async function reach(host: string, port: number, caPem: string): Promise<string | null> {
  return new Promise((resolve) => {
    const socket = connect({ host, port, ca: caPem, servername: APPLIANCE_NAME, timeout: 10_000 });
    const end = (reason: string | null) => {
      socket.destroy();
      resolve(reason);
    };
    // The agents' port asks for a certificate, and under TLS 1.3 says so only after this: reachable is what counts.
    socket.once('secureConnect', () => end(null));
    socket.once('timeout', () => end('no answer within 10 s'));
    socket.once('error', (error) => end(error.message));
  });
}

/** What the trial of the capture says of this kernel: what it can, and what it can less well than others. */
export function captureDetail(diskName: string, dirtyBlockBytes: number): string {
  const works = `ordered capture works on this kernel (tried on ${diskName})`;
  if (dirtyBlockBytes <= 4096) return works;
  return `${works}; after an overflow it re-reads blocks of ${dirtyBlockBytes / 1024} KiB instead of 4 KiB, because the kernel is older than 5.12`;
}

const PROBE_RING_BYTES = 1024 * 1024;

/** Captures a disk for a moment, beside whatever capture may be running already: nothing else proves as much. */
async function captureCheck(paths: AgentPaths, disks: readonly SourceDisk[]): Promise<Outcome> {
  const helperPath = await ensureHelper(paths.programDir);
  const disk = disks.find((one) => one.protectable);
  if (!disk) return problem('UND_SOURCE_NO_DISK', { reason: 'none to try the capture on' });
  const pinDir = `${paths.pinDir}-probe`;
  const capture = createCapture({ helperPath });
  let dirtyBlockBytes: number;
  try {
    ({ dirtyBlockBytes } = await capture.start(
      [{ index: 0, devicePath: disk.devicePath, sizeBytes: disk.sizeBytes }],
      { ringBytes: PROBE_RING_BYTES, pinDir },
    ));
    await capture.stop({ unpin: true });
  } finally {
    await rm(pinDir, { recursive: true, force: true });
  }
  return { detail: captureDetail(disk.name, dirtyBlockBytes) };
}

/** All checks, in the order in which a person would go through them. Never throws; reads only, but for the helper. */
export async function agentPreflight(
  paths: AgentPaths,
  appliance: EnrolTicket | AgentIdentity | null,
): Promise<PreflightCheck[]> {
  const kernel = (await readFile('/proc/sys/kernel/osrelease', 'utf8').catch(() => '?')).trim();
  // Without an inventory there is no disk to try the capture on; its own check says why.
  const inventory = takeInventory();
  const disks = (await inventory.catch(() => null))?.disks ?? [];
  const checks = [
    await check('root', 'Runs as root', async () =>
      process.getuid?.() === 0
        ? { detail: 'yes' }
        : problem('UND_SUDO_REFUSED', { username: String(process.getuid?.()), reason: 'not root' }),
    ),
    await check('btf', 'Kernel type information', async () =>
      (await exists('/sys/kernel/btf/vmlinux'))
        ? { detail: `kernel ${kernel}` }
        : problem('UND_SOURCE_NO_BTF', { kernel }),
    ),
    await check('bpffs', 'BPF file system', async () => {
      const mounts = await readFile('/proc/self/mounts', 'utf8');
      return / \/sys\/fs\/bpf bpf /.test(mounts)
        ? { detail: 'mounted at /sys/fs/bpf' }
        : problem('UND_SOURCE_NO_BPF_FS', {});
    }),
    await check('bpf', 'Capture', () => captureCheck(paths, disks)),
    await check('space', 'Space for the agent', async () => {
      const folder = '/var/lib';
      const { bavail, bsize } = await statfs(folder);
      return bavail * bsize >= NEEDED_STATE_BYTES
        ? { detail: `${Math.floor((bavail * bsize) / MIB)} MiB free in ${folder}` }
        : problem('UND_SOURCE_NO_SPACE', {
            folder,
            availableMiB: Math.floor((bavail * bsize) / MIB),
            neededMiB: NEEDED_STATE_BYTES / MIB,
          });
    }),
    await check('memory', 'Memory for the agent', async () =>
      freemem() >= NEEDED_MEMORY_BYTES
        ? { detail: `${Math.floor(freemem() / MIB)} MiB available` }
        : problem(
            'UND_SOURCE_LOW_MEMORY',
            {
              availableMiB: Math.floor(freemem() / MIB),
              neededMiB: NEEDED_MEMORY_BYTES / MIB,
            },
            true,
          ),
    ),
    await check('disks', 'Disks', async () => {
      await inventory;
      const good = disks.filter((disk) => disk.protectable);
      const reasons = disks
        .filter((disk) => !disk.protectable)
        .map((disk) => `${disk.name}: ${disk.reason}`)
        .join('; ');
      return good.length > 0
        ? {
            detail: `${good.map((disk) => disk.name).join(', ')}${reasons && ` (not: ${reasons})`}`,
          }
        : problem('UND_SOURCE_NO_DISK', { reason: reasons || 'none found' });
    }),
  ];
  if (appliance) {
    const ports = [
      { port: appliance.apiPort, name: 'page and enrolment' },
      { port: appliance.agentPort, name: 'agents' },
    ];
    for (const { port, name } of ports) {
      checks.push(
        await check(`port-${port}`, `Reaches the appliance (${name})`, async () => {
          const reasons: string[] = [];
          for (const address of appliance.addresses) {
            const reason = await reach(address, port, appliance.caPem);
            if (reason === null) return { detail: `${address}:${port}` };
            reasons.push(`${address}: ${reason}`);
          }
          return problem('UND_SOURCE_PORT_BLOCKED', {
            appliance: `port ${port}`,
            reason: reasons.join('; '),
          });
        }),
      );
    }
  }
  return checks;
}
