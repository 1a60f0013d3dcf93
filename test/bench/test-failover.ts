/**
 * A test failover from the request to the power-on of its VM, through the whole appliance and on a real libvirt: hold or
 * take a checkpoint, overlay, replay, guest preparation, definition, start. What the guest does then is not waited for.
 */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import type { Checkpoint, Failover, Job } from '../../appliance/api/schema.ts';
import {
  CHECKPOINT_MINUTES,
  DENSEST_MS,
  REPLAY_BYTES,
} from '../../appliance/checkpoints/policy.ts';
import { flushDevice } from '../../appliance/recovery/locate.ts';
import { createGuestPreparer } from '../../appliance/recovery/prepare-guest/index.ts';
import { Lab } from '../integration/api.lab.ts';
import { ROOT } from '../integration/hypervisor-lab.ts';
import { median, type Row, row } from './frame.ts';
import type { HostLab } from './host-lab.ts';
import { MIB, until } from './lab.ts';
import { callWords, type HostCall, LocalHost } from './local-host.ts';

export interface FailoverPlan {
  diskMiB: number;
  rounds: number;
  /** What the source writes between the checkpoint and the moment that is recovered: so long, at this rate. */
  spanSeconds: number;
  bytesPerSec: number;
}

/** The most that lies between two checkpoints at this rate, with a schedule that nobody changed. */
export const mostBetweenSeconds = (bytesPerSec: number): number =>
  Math.min(CHECKPOINT_MINUTES * 60, Math.max(DENSEST_MS / 1000, REPLAY_BYTES / bytesPerSec));
const GUEST_MIB = 64;
const PREPARE_WORKER = join(ROOT, 'appliance/recovery/prepare-guest/worker-main.ts');

/** A Debian-like root file system on a partition, small, so that preparing it is real work. */
function guestDisk(dir: string): string {
  const tree = join(dir, 'guest');
  const put = (path: string, text: string) => {
    fs.mkdirSync(join(tree, path, '..'), { recursive: true });
    fs.writeFileSync(join(tree, path), text);
  };
  put('etc/os-release', 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (made for a bench)"\n');
  put('etc/fstab', '/dev/vda1 / ext4 errors=remount-ro 0 1\n');
  put('etc/initramfs-tools/modules', '# modules\n');
  put('etc/network/interfaces', 'auto eth0\niface eth0 inet dhcp\n');
  put('boot/grub/grub.cfg', 'linux /boot/vmlinuz-6.1.0 root=/dev/vda1 ro quiet\n');
  put('usr/lib/modules/6.1.0/modules.dep', '');
  const disk = join(dir, 'guest.raw');
  const sh = (command: string, args: string[], input?: string) =>
    execFileSync(command, args, { input, stdio: [input ? 'pipe' : 'ignore', 'ignore', 'pipe'] });
  sh('truncate', ['-s', `${GUEST_MIB}M`, disk]);
  sh('sfdisk', ['-q', disk], 'label: gpt\nstart=2048, type=linux\n');
  const offset = `offset=${1 * MIB}`;
  const size = `${GUEST_MIB - 2}M`;
  sh('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', tree, '-E', offset, disk, size]);
  return disk;
}

export async function* failoverRows(
  hostLab: HostLab,
  plan: FailoverPlan,
  progress: (text: string) => void,
): AsyncGenerator<Row> {
  const host = await LocalHost.start(hostLab.config);
  const poweredOnMs = new Map<string, number>();
  const lab = new Lab();
  lab.outside = {
    hypervisor: host.hypervisor,
    locator: host,
    preparer: createGuestPreparer({ workerCommand: [process.execPath, PREPARE_WORKER] }),
    failover: {
      locate: async (serial) => (await host.find(serial))!,
      flushDevice,
      probe: async () => null,
      prover: {
        // The proof here is that the host says that the VM runs.
        prove: async ({ failoverId, replicaName }) => {
          const { state } = await host.hypervisor.vmState(replicaName);
          if (state !== 'running') throw new Error(`${replicaName} is ${state}`);
          poweredOnMs.set(failoverId, performance.now());
          return { kind: 'tcp', words: 'it is powered on', addresses: [] };
        },
      },
    },
    poolPollMs: 10_000,
  };
  try {
    await lab.start();
    const source = lab.addSource('web1');
    source.kernel.maxLatencyMs = 0;
    await source.addDisk('vda', plan.diskMiB * MIB);
    const [path] = source.kernel.paths;
    execFileSync('dd', [
      ...[`if=${guestDisk(lab.dir)}`, `of=${path}`, 'bs=1M', 'conv=notrunc,sparse'],
      'status=none',
    ]);
    const { sourceId } = await lab.call<{ sourceId: string }>('POST', '/api/sources', {
      address: 'web1',
      username: 'root',
    });
    await until('the inventory', async () => {
      const known = await lab.call<{ inventory: unknown }>('GET', `/api/sources/${sourceId}`);
      return known.inventory;
    });
    const { jobId } = await lab.call<Job>('POST', '/api/jobs', {
      ...{ sourceId, diskIds: ['disk-0-web1'], pool: 'default', network: 'default' },
      ...{ replicaName: 'bench-replica', vcpus: 1, memoryBytes: 128 * MIB },
      ...{ compression: 'fast', bandwidthLimitBytesPerSec: null },
    });
    const job = () => lab.call<Job>('GET', `/api/jobs/${jobId}`);
    const isProtected = async () => (await job()).state.name === 'protected';
    const checkpoints = () => lab.call<Checkpoint[]>('GET', `/api/jobs/${jobId}/checkpoints`);
    await until('protected', isProtected, 300_000);
    await until('the first checkpoint', async () => (await checkpoints()).length > 0);
    progress('protected, with its first checkpoint');

    const test = async (
      body: object,
    ): Promise<{ seconds: number; ended: Failover; calls: HostCall[] }> => {
      const beganMs = performance.now();
      const { failoverId } = await lab.call<Failover>(
        'POST',
        `/api/jobs/${jobId}/test-failover`,
        body,
      );
      let ended!: Failover;
      await until(
        'the test to be over',
        async () => {
          ended = await lab.call<Failover>('GET', `/api/failovers/${failoverId}`);
          return ended.state.name === 'undone' || ended.state.name === 'failed';
        },
        1_800_000,
      );
      if (!ended.guestChanges.some((change) => change.includes('/etc/fstab'))) {
        throw new Error(`the guest was not found on its disk: ${ended.guestChanges.join('; ')}`);
      }
      const onMs = poweredOnMs.get(failoverId);
      if (onMs === undefined) throw new Error(`never powered on: ${JSON.stringify(ended)}`);
      const calls = host.calls.filter(
        ({ fromMs, tookMs }) => fromMs >= beganMs && fromMs + tookMs <= onMs,
      );
      return { seconds: (onMs - beganMs) / 1000, ended, calls };
    };

    // ---- a moment behind a span of churn, from the first checkpoint
    const kernel = source.kernel;
    const bytes = plan.spanSeconds * plan.bytesPerSec;
    const block = 64 * 1024;
    const slots = (plan.diskMiB - GUEST_MIB) * (MIB / block);
    const data = Buffer.alloc(8 * MIB);
    for (let at = 0; at < data.length; at += 4096) {
      crypto.getRandomValues(data.subarray(at, at + 2048));
    }
    const beganMs = performance.now();
    for (let n = 0; n * block < bytes; n++) {
      // Never over the ring's end: order would be lost, and with it the moment.
      while (kernel.producerPos - kernel.consumerPos > kernel.ringBytes / 2) {
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
      const from = (n % 127) * block;
      const at = GUEST_MIB * MIB + ((n * 1_000_003) % slots) * block;
      await kernel.write(0, at, data.subarray(from, from + block));
    }
    const wroteSeconds = (performance.now() - beganMs) / 1000;
    progress(`${(bytes / 1e9).toFixed(1)} GB written in ${wroteSeconds.toFixed(0)} s`);
    await until('protected again', isProtected, 1_800_000);
    const at = new Date().toISOString();
    await kernel.write(0, GUEST_MIB * MIB, data.subarray(0, block));
    const moment = await test({ point: { sourceTime: at } });
    progress(`a moment: ${moment.seconds.toFixed(1)} s`);
    const rate = `${(plan.bytesPerSec / 1e6).toFixed(0)} MB/s`;
    const replay = secondsOf(moment.ended, 'replay');
    const mostSeconds = mostBetweenSeconds(plan.bytesPerSec);
    const interval = moment.seconds - replay + (replay * mostSeconds) / plan.spanSeconds;
    // Of a shorter one the attaching of the overlay is the most.
    const scaled =
      plan.spanSeconds < 30 || plan.spanSeconds >= mostSeconds
        ? ''
        : `; for the ${mostSeconds.toFixed(0)} s between the two newest checkpoints at most it would be ${interval.toFixed(0)} s`;
    yield row({
      figure: `test failover to a moment ${plan.spanSeconds} s of ${rate} behind its checkpoint`,
      value: moment.seconds,
      unit: 's',
      goal: plan.spanSeconds >= mostSeconds ? { atMost: 60 } : undefined,
      note: `${stepsOf(moment.ended)}; replay at ${(bytes / 1e6 / replay).toFixed(0)} MB/s${scaled}`,
    });

    // ---- the newest point
    const newest: Array<Awaited<ReturnType<typeof test>>> = [];
    for (let n = 0; n < plan.rounds; n++) {
      newest.push(await test({}));
      progress(
        `newest point, round ${n + 1} of ${plan.rounds}: ${newest.at(-1)!.seconds.toFixed(1)} s`,
      );
    }
    const seconds = newest.map((one) => one.seconds);
    const typical = newest.find((one) => one.seconds >= median(seconds))!;
    yield row({
      figure: 'test failover to the newest point, request to power-on',
      value: median(seconds),
      unit: 's',
      goal: { atMost: 10 },
      note: `of ${seconds.length}, ${Math.min(...seconds).toFixed(1)} to ${Math.max(...seconds).toFixed(1)} s; ${stepsOf(typical.ended)}; ${callWords(typical.calls)}`,
    });
  } finally {
    await lab.close().catch((error) => console.error(`# clean-up: ${error}`));
    host.cleanUp();
  }
}

/** From its beginning to that of the next one: its end is overwritten when it is taken back. */
function secondsOf({ steps }: Failover, name: string): number {
  const at = steps.findIndex((one) => one.name === name);
  const [from, to] = [steps[at]?.startedAt, steps[at + 1]?.startedAt];
  return from && to ? (Date.parse(to) - Date.parse(from)) / 1000 : 0;
}

/** How long each step took, as the record of the failover has it. */
const stepsOf = (failover: Failover): string =>
  failover.steps
    .filter(({ name }) => name !== 'prove-boot')
    .map(({ name }) => `${name} ${secondsOf(failover, name).toFixed(1)}`)
    .join(', ');
