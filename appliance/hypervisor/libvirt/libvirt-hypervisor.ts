import { setTimeout as sleep } from 'node:timers/promises';
import { undError } from '../../../protocol/errors.ts';
import type {
  AttachedDisk,
  AttachOptions,
  DiskInfo,
  DiskLayer,
  DiskRef,
  DiskSnapshot,
  GuestAddress,
  GuestExecResult,
  HostDescription,
  Hypervisor,
  Network,
  StoragePool,
  VmRef,
  VmSpec,
  VmState,
} from '../hypervisor.ts';
import { checkName, checkSerial, volumeName } from '../names.ts';
import { asDiskRef, asFields, asList, number, text } from './answer.ts';
import {
  detachUntilGone,
  isCode,
  parseAddresses,
  pollPause,
  readDomain,
  readState,
  shutDown,
  slotFor,
  stateOf,
} from './domain.ts';
import { buildDiskXml, buildDomainXml, type DiskElement } from './domain-xml-build.ts';
import { HostReader } from './host.ts';
import { listNetworks } from './network.ts';
import { type LibvirtPool, listPools, usablePool } from './pool.ts';
import type { Transport } from './transport.ts';
import { addressOf, createOverlay, createVolume, diskAt, readChain, readInfo } from './volume.ts';

const DETACH_TIMEOUT_MS = 60_000;
const LOCK_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 120_000;
/** Which directories the pools have, and whether they take direct I/O, changes only by an administrator's hand. */
const POOLS_FRESH_MS = 30_000;

export interface LibvirtOptions {
  /** How long a guest may take to let go of a disk. Default 60 s. */
  detachTimeoutMs?: number;
}

/** The libvirt driver. One object per target host. */
export class LibvirtHypervisor implements Hypervisor {
  readonly #transport: Transport;
  readonly #host: HostReader;
  readonly #detachTimeoutMs: number;
  #pools: { at: number; list: LibvirtPool[] } | undefined;
  readonly #queues = new Map<string, Promise<unknown>>();

  constructor(transport: Transport, options: LibvirtOptions = {}) {
    this.#transport = transport;
    this.#host = new HostReader(transport);
    this.#detachTimeoutMs = options.detachTimeoutMs ?? DETACH_TIMEOUT_MS;
  }

  describeHost(): Promise<HostDescription> {
    return this.#host.describe();
  }

  async listPools(): Promise<StoragePool[]> {
    return (await this.#readPools(0)).map((one) => one.pool);
  }

  listNetworks(): Promise<Network[]> {
    return listNetworks(this.#transport);
  }

  async createDisk(request: {
    pool: string;
    name: string;
    sizeBytes: number;
    allowOvercommit?: boolean;
  }): Promise<DiskRef> {
    const { pool } = usablePool(await this.#readPools(0), request.pool);
    if (request.allowOvercommit === false && pool.availableBytes < request.sizeBytes) {
      throw undError('UND_HV_POOL_FULL', {
        pool: pool.name,
        availableBytes: pool.availableBytes,
        neededBytes: request.sizeBytes,
      });
    }
    return createVolume(this.#transport, request);
  }

  async diskInfo(disk: DiskRef): Promise<DiskInfo> {
    return readInfo(this.#transport, disk);
  }

  async resizeDisk(disk: DiskRef, sizeBytes: number): Promise<void> {
    await this.#transport.call('disk-resize', { ...addressOf(disk), sizeBytes });
  }

  async deleteDisk(disk: DiskRef): Promise<void> {
    await this.#transport.call('disk-delete', addressOf(disk));
  }

  async deleteOverlay(overlay: DiskRef): Promise<void> {
    await this.#transport.call('disk-delete', { ...addressOf(overlay), overlayOnly: true });
  }

  async attachDisk(vm: string, disk: DiskRef, options: AttachOptions): Promise<AttachedDisk> {
    const serial = checkSerial(options.serial);
    const address = addressOf(disk);
    // One after the other: each picks the first slot that is free.
    return this.#inTurn(vm, async () => {
      const pools = await this.#readPools();
      const { pool, directIo } = usablePool(pools, address.pool);
      const path = `${pool.usable ? pool.path : ''}/${address.name}`;
      const domain = await readDomain(this.#transport, vm);
      const present = domain.disks.find((one) => one.serial === serial);
      if (present) {
        if (present.path === path) return this.#attached(present, pools);
        throw undError('UND_HV_DISK_IN_USE', {
          disk: present.path ?? serial,
          users: `VM ${vm} under serial ${serial}`,
        });
      }
      await this.#transport.call('disk-attach', {
        vm,
        xml: buildDiskXml({
          path,
          serial,
          readOnly: options.readOnly ?? false,
          cache: directIo ? 'none' : 'writeback',
          slot: await slotFor(this.#transport, vm, domain),
        }),
      });
      return this.#findAttached(vm, serial);
    });
  }

  async detachDisk(vm: string, serial: string): Promise<void> {
    checkSerial(serial);
    return this.#inTurn(vm, async () => {
      const path = await detachUntilGone(this.#transport, vm, serial, this.#detachTimeoutMs);
      const disk = diskAt(path, poolPaths(await this.#readPools()));
      if (disk) await this.#proveUnlocked(disk);
    });
  }

  async #proveUnlocked(disk: DiskRef): Promise<void> {
    const end = performance.now() + LOCK_TIMEOUT_MS;
    // QEMU closes the image some moments after the device is gone.
    for (let polls = 0; (await readInfo(this.#transport, disk)).locked; polls++) {
      if (performance.now() > end) throw undError('UND_HV_DISK_LOCKED', { disk: disk.name });
      await sleep(pollPause(polls));
    }
  }

  async listAttachedDisks(vm: string): Promise<AttachedDisk[]> {
    const [pools, domain] = await Promise.all([this.#readPools(), readDomain(this.#transport, vm)]);
    return domain.disks.map((disk) => this.#attached(disk, pools));
  }

  #attached(
    disk: Awaited<ReturnType<typeof readDomain>>['disks'][number],
    pools: LibvirtPool[],
  ): AttachedDisk {
    return {
      serial: disk.serial,
      target: disk.target,
      bus: disk.bus,
      readOnly: disk.readOnly,
      cache: disk.cache,
      disk: diskAt(disk.path, poolPaths(pools)),
    };
  }

  async #findAttached(vm: string, serial: string): Promise<AttachedDisk> {
    const found = (await this.listAttachedDisks(vm)).find((disk) => disk.serial === serial);
    if (!found) throw undError('UND_HV_DISK_NOT_ATTACHED', { serial, vm });
    return found;
  }

  async snapshotDisks(
    vm: string,
    disks: { serial: string; overlayName: string }[],
  ): Promise<DiskSnapshot[]> {
    const wanted = disks.map((disk) => ({
      serial: checkSerial(disk.serial),
      name: volumeName(disk.overlayName),
    }));
    return this.#inTurn(vm, async () => {
      const answer = await this.#transport.call('disk-snapshot', { vm, disks: wanted });
      const taken = asList(answer).map((fields) => ({
        serial: text(fields, 'serial'),
        top: asDiskRef(fields.top),
        frozen: asDiskRef(fields.frozen),
      }));
      // Not read back here: whoever asks stands still with apply meanwhile, and reads the chains anyhow.
      return wanted.map(({ serial }) => {
        const snapshot = taken.find((one) => one.serial === serial);
        if (snapshot) return snapshot;
        throw undError('UND_HV_FAILED', {
          action: `take a checkpoint of VM ${vm}`,
          reason: `its answer does not name disk ${serial}`,
        });
      });
    });
  }

  async createOverlay(request: { base: DiskRef; name: string; pool?: string }): Promise<DiskRef> {
    return createOverlay(this.#transport, request);
  }

  async commitOverlay(overlay: DiskRef): Promise<DiskRef> {
    return asDiskRef(await this.#transport.call('disk-commit', addressOf(overlay)));
  }

  async cancelCommit(overlay: DiskRef): Promise<void> {
    await this.#transport.call('disk-commit-cancel', addressOf(overlay));
  }

  async chain(disk: DiskRef): Promise<DiskLayer[]> {
    return readChain(this.#transport, disk);
  }

  async defineVm(spec: VmSpec): Promise<VmRef> {
    checkName('The VM', spec.name);
    for (const disk of spec.disks) checkSerial(disk.serial);
    const [pools, virtType] = await Promise.all([this.#readPools(), this.#host.virtType()]);
    const caches = spec.disks.map((disk): DiskElement['cache'] =>
      usablePool(pools, disk.disk.pool).directIo ? 'none' : 'writeback',
    );
    const disks = spec.disks.map((disk) => {
      const { pool, name } = addressOf(disk.disk);
      const found = usablePool(pools, pool).pool;
      return { ...disk, disk: { pool, name, path: `${found.usable ? found.path : ''}/${name}` } };
    });
    try {
      const xml = buildDomainXml({ ...spec, disks }, { virtType, caches });
      const fields = asFields(await this.#transport.call('vm-define', { xml }));
      return {
        name: text(fields, 'name'),
        uuid: text(fields, 'uuid'),
        role: 'replica',
        state: { state: 'off', reason: 'defined' },
      };
    } catch (error) {
      if (spec.firmware === 'uefi' && isCode(error, 'UND_HV_FAILED') && /efi/i.test(`${error}`)) {
        throw undError(
          'UND_HV_UNSUPPORTED',
          { what: 'UEFI firmware for VMs', reason: `${error}` },
          { cause: error },
        );
      }
      throw error;
    }
  }

  async startVm(vm: string): Promise<void> {
    await this.#transport.call('vm-start', { vm: checkName('The VM', vm) });
  }

  async stopVm(vm: string, options: { force: boolean; timeoutMs?: number }): Promise<void> {
    checkName('The VM', vm);
    if (!options.force) {
      await shutDown(this.#transport, vm, options.timeoutMs ?? STOP_TIMEOUT_MS);
      return;
    }
    try {
      await this.#transport.call('vm-destroy', { vm });
    } catch (error) {
      if (!isCode(error, 'UND_HV_VM_NOT_RUNNING')) throw error;
    }
  }

  async undefineVm(vm: string): Promise<void> {
    try {
      await this.#transport.call('vm-undefine', { vm: checkName('The VM', vm) });
    } catch (error) {
      if (!isCode(error, 'UND_HV_VM_NOT_FOUND')) throw error;
    }
  }

  async vmState(vm: string): Promise<VmState> {
    return readState(this.#transport, vm);
  }

  async isNameTaken(vm: string): Promise<boolean> {
    try {
      return (await readState(this.#transport, vm)).state !== 'absent';
    } catch (error) {
      // The wrapper says that it is somebody else's, and nothing more.
      if (isCode(error, 'UND_HV_REFUSED')) return true;
      throw error;
    }
  }

  async setAutostart(vm: string, on: boolean): Promise<void> {
    await this.#transport.call('vm-autostart', { vm: checkName('The VM', vm), on });
  }

  async diskUsers(disks: readonly DiskRef[]): Promise<{ vm: string; disk: DiskRef }[]> {
    const answer = await this.#transport.call('disk-users', { disks: disks.map(addressOf) });
    return asList(answer).map((fields) => ({
      vm: text(fields, 'vm'),
      disk: asDiskRef(fields.disk),
    }));
  }

  async listVms(): Promise<VmRef[]> {
    return asList(await this.#transport.call('vm-list')).map((fields) => ({
      name: text(fields, 'name'),
      uuid: text(fields, 'uuid'),
      role: text(fields, 'role') === 'appliance' ? 'appliance' : 'replica',
      state: stateOf(text(fields, 'state'), text(fields, 'reason')),
    }));
  }

  async screenshot(vm: string): Promise<Buffer> {
    const image = await this.#transport.call('screenshot', { vm: checkName('The VM', vm) });
    const data = Buffer.from(String(image), 'base64');
    if (data.subarray(1, 4).toString('latin1') !== 'PNG') {
      throw undError('UND_HV_UNSUPPORTED', {
        what: 'screenshots as PNG',
        reason: 'its QEMU is older than 7.1',
      });
    }
    return data;
  }

  async consoleTail(vm: string): Promise<string> {
    const tail = await this.#transport.call('console-tail', { vm: checkName('The VM', vm) });
    return Buffer.from(String(tail), 'base64').toString('utf8');
  }

  async guestAddresses(vm: string): Promise<GuestAddress[]> {
    const fields = asFields(
      await this.#transport.call('addresses', { vm: checkName('The VM', vm) }),
    );
    return (['agent', 'lease', 'arp'] as const).flatMap((source) =>
      parseAddresses(String(fields[source] ?? ''), source),
    );
  }

  async guestAgentPing(vm: string): Promise<boolean> {
    return (await this.#transport.call('agent-ping', { vm: checkName('The VM', vm) })) === true;
  }

  async guestExec(
    vm: string,
    { argv, input = '' }: { argv: readonly string[]; input?: string },
  ): Promise<number> {
    const pid = await this.#transport.call('guest-exec', {
      vm: checkName('The VM', vm),
      argv,
      input: Buffer.from(input).toString('base64'),
    });
    return number({ pid }, 'pid');
  }

  async guestExecResult(vm: string, pid: number): Promise<GuestExecResult | null> {
    const answer = await this.#transport.call('guest-exec-result', {
      vm: checkName('The VM', vm),
      pid,
    });
    if (answer === null) return null;
    const fields = asFields(answer);
    const read = (key: string) => Buffer.from(text(fields, key), 'base64').toString('utf8');
    return {
      exitCode: fields.exitCode === null ? null : number(fields, 'exitCode'),
      signal: fields.signal === null ? null : number(fields, 'signal'),
      output: read('output'),
      errors: read('errors'),
    };
  }

  close(): Promise<void> {
    return this.#transport.close();
  }

  async #readPools(maxAgeMs = POOLS_FRESH_MS): Promise<LibvirtPool[]> {
    if (!this.#pools || performance.now() - this.#pools.at >= maxAgeMs) {
      this.#pools = { list: await listPools(this.#transport), at: performance.now() };
    }
    return this.#pools.list;
  }

  /** Runs what changes one VM's disks one after the other. */
  #inTurn<T>(vm: string, act: () => Promise<T>): Promise<T> {
    const turn = (this.#queues.get(vm) ?? Promise.resolve()).then(act, act);
    this.#queues.set(
      vm,
      turn.catch(() => {}),
    );
    return turn;
  }
}

function poolPaths(pools: LibvirtPool[]): { name: string; path?: string }[] {
  return pools.map(({ pool }) => ({
    name: pool.name,
    path: pool.usable ? pool.path : undefined,
  }));
}
