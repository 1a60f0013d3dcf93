/**
 * A target host on this machine, for figures that a guest on an emulated processor would spoil: the product's driver on
 * the libvirt of a lab, and this process in the place of the appliance's VM.
 *
 * An attached disk is open in a storage daemon, which is QEMU's block layer, and shown here as a loop device. In the
 * lab a VM that is powered on and never runs stands in for the appliance: each disk has a shadow attached to it, on which
 * libvirt does all that it would do on the disk itself. So a command takes what both take: no less than in the product.
 */

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import type {
  AttachedDisk,
  AttachOptions,
  DiskRef,
  DiskSnapshot,
  Hypervisor,
} from '../../appliance/hypervisor/hypervisor.ts';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { localTransport, type Transport } from '../../appliance/hypervisor/libvirt/transport.ts';
import { volumeName } from '../../appliance/hypervisor/names.ts';
import type { DiskLocator } from '../../appliance/jobs/disk-locator.ts';
import { run } from './lab.ts';
import { StorageDaemon } from './storage-daemon.ts';

const execute = promisify(execFile);

export interface LocalHostConfig {
  /** The wrapper and its configuration, run on the lab's host. */
  wrapper: string[];
  applianceVm: string;
  /** For sockets and mount points of exports; a short path. */
  dir: string;
  /** Attachments in all: for each a shadow is made beforehand. */
  attachments: number;
}

interface Attached {
  disk: DiskRef;
  readOnly: boolean;
  /** The first node, by which the export is known; those of later layers go with the export. */
  exported: string;
  node: string;
  file: string;
  dev: string;
}

/** One request to the host's wrapper. */
export interface HostCall {
  verb: string;
  fromMs: number;
  tookMs: number;
}

/** What calls took, in words; those at the same time count each. */
export function callWords(calls: readonly HostCall[]): string {
  const seconds = calls.reduce((sum, { tookMs }) => sum + tookMs, 0) / 1000;
  const verbs = new Map<string, number>();
  for (const { verb } of calls) verbs.set(verb, (verbs.get(verb) ?? 0) + 1);
  const each = [...verbs].map(([verb, count]) => (count > 1 ? `${count} ${verb}` : verb));
  return `${calls.length} calls to the host, ${seconds.toFixed(2)} s: ${each.join(', ')}`;
}

function recorded(transport: Transport, calls: HostCall[]): Transport {
  return {
    async call(verb, fields) {
      const fromMs = performance.now();
      try {
        return await transport.call(verb, fields);
      } finally {
        calls.push({ verb, fromMs, tookMs: performance.now() - fromMs });
      }
    },
    close: () => transport.close(),
  };
}

export class LocalHost implements DiskLocator {
  readonly driver: LibvirtHypervisor;
  readonly hypervisor: Hypervisor;
  /** All that were answered so far. */
  readonly calls: HostCall[] = [];
  readonly #config: LocalHostConfig;
  readonly #daemon: StorageDaemon;
  #attached = new Map<string, Attached>();
  #shadows: DiskRef[] = [];
  #nodes = 0;

  private constructor(config: LocalHostConfig, daemon: StorageDaemon) {
    this.#config = config;
    this.#daemon = daemon;
    this.driver = new LibvirtHypervisor(
      recorded(localTransport({ command: config.wrapper }), this.calls),
    );
    const own: Partial<Hypervisor> = {
      attachDisk: (vm, disk, options) => this.#attach(vm, disk, options),
      detachDisk: (vm, serial) => this.#detach(vm, serial),
      listAttachedDisks: (vm) => this.#list(vm),
      snapshotDisks: (vm, disks) => this.#snapshot(vm, disks),
      commitOverlay: (overlay) => this.#commit(overlay),
    };
    this.hypervisor = new Proxy(this.driver as Hypervisor, {
      get: (driver, name) => {
        const found = (own[name as keyof Hypervisor] ?? driver[name as keyof Hypervisor]) as object;
        return typeof found === 'function' ? found.bind(driver) : found;
      },
    });
  }

  static async start(config: LocalHostConfig): Promise<LocalHost> {
    fs.mkdirSync(config.dir, { recursive: true });
    const daemon = await StorageDaemon.start(join(config.dir, `q${process.pid}`));
    const host = new LocalHost(config, daemon);
    for (let n = 0; n < config.attachments; n++) {
      const name = `shadow-${process.pid}-${n}`;
      host.#shadows.push(
        await host.driver.createDisk({ pool: 'default', name, sizeBytes: 1024 * 1024 }),
      );
    }
    return host;
  }

  async find(serial: string): Promise<string | null> {
    return this.#attached.get(serial)?.dev ?? null;
  }

  async #attach(vm: string, disk: DiskRef, options: AttachOptions): Promise<AttachedDisk> {
    const { serial, readOnly = false } = options;
    if (!this.#attached.has(serial)) {
      const shadow = this.#shadows.shift();
      if (!shadow) throw new Error('more attachments than shadows');
      await this.driver.attachDisk(vm, shadow, options);
      const node = `n${++this.#nodes}`;
      const file = join(this.#config.dir, `${process.pid}-${node}`);
      fs.writeFileSync(file, '');
      await this.#daemon.open(node, disk.path, true);
      await this.#daemon.exportFile(node, file);
      // Direct writes of a loop device to such a file get lost (seen on Linux 6.18).
      const loop = await execute('losetup', ['-f', '--show', '--direct-io=off', file]);
      const dev = loop.stdout.trim();
      this.#attached.set(serial, { disk, readOnly, exported: node, node, file, dev });
    }
    return this.#view(serial);
  }

  #view(serial: string): AttachedDisk {
    const { disk, readOnly } = this.#attached.get(serial)!;
    return { serial, target: 'sdb', bus: 'scsi', readOnly, disk, cache: 'none' };
  }

  async #detach(vm: string, serial: string): Promise<void> {
    const found = this.#attached.get(serial);
    if (!found) return;
    this.#attached.delete(serial);
    await execute('losetup', ['-d', found.dev]);
    await this.#daemon.endExport(found.exported);
    await this.#daemon.close(found.exported);
    fs.rmSync(found.file);
    await this.driver.detachDisk(vm, serial);
  }

  async #list(vm: string): Promise<AttachedDisk[]> {
    // Asked for the time that it takes; what it shows are the shadows.
    await this.driver.listAttachedDisks(vm);
    return [...this.#attached.keys()].map((serial) => this.#view(serial));
  }

  async #snapshot(
    vm: string,
    disks: { serial: string; overlayName: string }[],
  ): Promise<DiskSnapshot[]> {
    await this.driver.snapshotDisks(
      vm,
      disks.map(({ serial, overlayName }) => ({ serial, overlayName: `shadow-${overlayName}` })),
    );
    const taken = disks.map(({ serial, overlayName }) => {
      const at = this.#attached.get(serial)!;
      const name = volumeName(overlayName);
      const top = { pool: at.disk.pool, name, path: join(dirname(at.disk.path), name) };
      return { serial, at, top, node: `n${++this.#nodes}` };
    });
    await this.#daemon.qmp('transaction', {
      actions: taken.map(({ at, top, node }) => ({
        type: 'blockdev-snapshot-sync',
        data: {
          ...{ 'node-name': at.node, 'snapshot-node-name': node },
          ...{ 'snapshot-file': top.path, format: 'qcow2' },
        },
      })),
    });
    return taken.map(({ serial, at, top, node }) => {
      const frozen = at.disk;
      at.disk = top;
      at.node = node;
      return { serial, top, frozen };
    });
  }

  /** Live, when the overlay lies below an attached disk. */
  async #commit(overlay: DiskRef): Promise<DiskRef> {
    for (const { disk, node } of this.#attached.values()) {
      const chain = await this.driver.chain(disk);
      const at = chain.findIndex(({ path }) => path === overlay.path);
      const base = chain[at + 1];
      if (at <= 0 || !base) continue;
      await this.#daemon.commit(node, overlay.path, base.path);
      await this.driver.deleteOverlay(overlay);
      return { pool: base.pool, name: base.name, path: base.path };
    }
    return this.driver.commitOverlay(overlay);
  }

  /** For a process that ends anyhow: nothing is asked of the lab, which goes with all its disks. */
  cleanUp(): void {
    const left = [...this.#attached.values()];
    this.#attached.clear();
    for (const { dev } of left) run('losetup', '-d', dev);
    this.#daemon.kill();
    // A killed daemon leaves its mounts.
    for (const { file } of left) run('umount', '-l', file);
  }
}
