/**
 * The whole appliance in one process, with stand-ins for what lies outside: a target host that keeps its disks as
 * files in a folder, and a source server that is the real agent service with a scripted capture.
 */
import { constants, mkdirSync, mkdtempSync } from 'node:fs';
import { copyFile, link, open, readdir, rename, rm, stat, truncate } from 'node:fs/promises';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { AgentState, type Isolation } from '../../agent/config.ts';
import { AgentService } from '../../agent/service/run.ts';
import { SourceStream } from '../../agent/source-stream.ts';
import type { Inventory } from '../../appliance/api/schema.ts';
import { type Appliance, type Outside, startAppliance } from '../../appliance/appliance.ts';
import type { ApplianceConfig } from '../../appliance/config.ts';
import type { SourceInstaller } from '../../appliance/control/agent-session.ts';
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
} from '../../appliance/hypervisor/hypervisor.ts';
import { volumeName } from '../../appliance/hypervisor/names.ts';
import type { DiskLocator } from '../../appliance/jobs/disk-locator.ts';
import { createPointServer } from '../../appliance/recovery/browse/point-server.ts';
import type { ApplianceAddress } from '../../appliance/sources/installer.ts';
import type { MachineIdentity } from '../../protocol/control.ts';
import { type ErrorCode, type ErrorParams, undError } from '../../protocol/errors.ts';
import { ScriptedKernel, until } from './stream.lab.ts';
import { StandInSystemd } from './systemd.lab.ts';

export { until };

const VM = 'understudy-appliance';
const BROWSE_WORKER = join(import.meta.dirname, '../../appliance/recovery/browse/worker-main.ts');

const isOn = (spec: VmSpec, { path }: DiskRef): boolean =>
  spec.disks.some(({ disk }) => disk.path === path);

/**
 * A host whose pool is a folder. An attached disk is its file, and stays that very file (inode) whatever layer it is
 * called: as a device node does, it goes on being open over a snapshot. An overlay has the full content of what is below
 * it. Faults are set by the test.
 */
export class FolderHypervisor implements Hypervisor, DiskLocator {
  readonly dir: string;
  attached = new Map<string, { disk: DiskRef; readOnly: boolean }>();
  vms = new Map<string, { spec: VmSpec; running: boolean }>();
  bases = new Map<string, DiskRef>();
  isolatedNetwork = true;
  capacityBytes = 100 * 1024 ** 3;
  availableBytes = 80 * 1024 ** 3;
  /** By method name: thrown, once or as often as it is there. */
  faults = new Map<string, { code: ErrorCode; params?: ErrorParams; times: number }>();
  lost = new Map<string, number>();
  calls: string[] = [];

  constructor(dir: string) {
    this.dir = dir;
    mkdirSync(dir, { recursive: true });
  }

  fail(method: string, code: ErrorCode, times = 1, params?: ErrorParams): void {
    this.faults.set(method, { code, params, times });
  }

  #call(method: string): void {
    this.calls.push(method);
    const fault = this.faults.get(method);
    if (!fault) return;
    if (--fault.times <= 0) this.faults.delete(method);
    throw undError(fault.code, { host: 'host', reason: 'a fault of the test', ...fault.params });
  }

  /** As `fail`, but after the call has had its effect. */
  loseAnswer(method: string, times = 1): void {
    this.lost.set(method, times);
  }

  #lost(method: string): void {
    const times = this.lost.get(method) ?? 0;
    if (times === 0) return;
    this.lost.set(method, times - 1);
    throw undError('UND_HV_UNREACHABLE', { host: 'host', reason: 'a fault of the test' });
  }

  #ref(name: string): DiskRef {
    return { pool: 'default', name, path: join(this.dir, name) };
  }

  async #sizeOf(disk: DiskRef): Promise<number> {
    try {
      return (await stat(join(this.dir, disk.name))).size;
    } catch {
      throw undError('UND_HV_DISK_NOT_FOUND', { disk: disk.name, pool: disk.pool });
    }
  }

  async describeHost(): Promise<HostDescription> {
    this.#call('describeHost');
    return {
      name: 'host',
      os: 'Debian',
      kernel: '6.1',
      hypervisor: 'folders',
      cpu: { model: 'test', count: 4, use: 0.25, loadAverage1: 1 },
      memory: { totalBytes: 16 * 1024 ** 3, availableBytes: 8 * 1024 ** 3 },
      network: { receiveBytesPerSecond: 1, sendBytesPerSecond: 2 },
      acceleration: 'qemu',
      firmwares: ['bios', 'uefi'],
      applianceVm: VM,
    };
  }

  async listPools(): Promise<StoragePool[]> {
    this.#call('listPools');
    const { capacityBytes, availableBytes } = this;
    return [
      { name: 'default', type: 'dir', capacityBytes, availableBytes, usable: true, path: this.dir },
      {
        name: 'lvm',
        type: 'logical',
        capacityBytes,
        availableBytes,
        usable: false,
        reason: 'it cannot hold qcow2 files',
      },
    ];
  }

  async listNetworks(): Promise<Network[]> {
    const networks: Network[] = [
      { name: 'lan', bridge: 'br0', forward: 'nat', isolated: false, active: true, addresses: [] },
      { name: 'off', forward: 'nat', isolated: false, active: false, addresses: [] },
    ];
    if (this.isolatedNetwork) {
      const isolated = { forward: 'isolated', isolated: true, active: true } as const;
      networks.push({ name: 'alone', ...isolated, addresses: [] });
    }
    return networks;
  }

  async createDisk(r: { pool: string; name: string; sizeBytes: number }): Promise<DiskRef> {
    this.#call('createDisk');
    const disk = this.#ref(volumeName(r.name));
    const file = await open(disk.path, 'wx').catch(() => {
      throw undError('UND_HV_NAME_IN_USE', { name: disk.name });
    });
    await file.truncate(r.sizeBytes);
    await file.close();
    return disk;
  }

  async diskInfo(disk: DiskRef): Promise<DiskInfo> {
    const sizeBytes = await this.#sizeOf(disk);
    const backing = this.bases.get(disk.name);
    const info = { ...this.#ref(disk.name), sizeBytes, allocatedBytes: 0, locked: false };
    return { ...info, format: 'qcow2', ...(backing && { backing }) };
  }

  async resizeDisk(disk: DiskRef, sizeBytes: number): Promise<void> {
    this.#call('resizeDisk');
    await truncate(join(this.dir, disk.name), sizeBytes);
  }

  async deleteDisk(disk: DiskRef): Promise<void> {
    this.#call('deleteDisk');
    if ([...this.attached.values()].some((one) => one.disk.name === disk.name)) {
      throw undError('UND_HV_DISK_IN_USE', { disk: disk.name, users: `VM ${VM}` });
    }
    this.#refuseBelow(disk);
    this.bases.delete(disk.name);
    await rm(join(this.dir, disk.name), { force: true });
  }

  #inChainOf(name: string, tops: readonly string[]): boolean {
    return tops.some((top) => {
      for (let one: string | undefined = top; one; one = this.bases.get(one)?.name) {
        if (one === name) return true;
      }
      return false;
    });
  }

  #refuseBelow(disk: DiskRef, ...except: string[]): void {
    for (const [child, base] of this.bases) {
      if (base.name === disk.name && !except.includes(child)) {
        throw undError('UND_HV_DISK_IN_USE', { disk: disk.name, users: `disk ${child}` });
      }
    }
  }

  deleteOverlay(overlay: DiskRef): Promise<void> {
    return this.deleteDisk(overlay);
  }

  async attachDisk(vm: string, disk: DiskRef, options: AttachOptions): Promise<AttachedDisk> {
    this.#call('attachDisk');
    if (vm !== VM) throw undError('UND_HV_VM_NOT_FOUND', { vm });
    await this.#sizeOf(disk);
    if (!this.attached.has(options.serial)) this.#refuseBelow(disk);
    this.attached.set(options.serial, { disk, readOnly: options.readOnly ?? false });
    return this.#attachedDisk(options.serial);
  }

  #attachedDisk(serial: string): AttachedDisk {
    const { disk, readOnly } = this.attached.get(serial)!;
    return { serial, target: 'sdb', bus: 'scsi', readOnly, disk, cache: 'none' };
  }

  async detachDisk(_vm: string, serial: string): Promise<void> {
    this.#call('detachDisk');
    this.attached.delete(serial);
  }

  async listAttachedDisks(): Promise<AttachedDisk[]> {
    this.#call('listAttachedDisks');
    return [...this.attached.keys()].map((serial) => this.#attachedDisk(serial));
  }

  /** The file that is open becomes the top; the frozen layer is a copy of it under the former name. */
  async snapshotDisks(
    _vm: string,
    disks: { serial: string; overlayName: string }[],
  ): Promise<DiskSnapshot[]> {
    this.#call('snapshotDisks');
    const result: DiskSnapshot[] = [];
    for (const { serial, overlayName } of disks) {
      const { disk: frozen, readOnly } = this.attached.get(serial)!;
      const top = this.#ref(volumeName(overlayName));
      await link(frozen.path, top.path);
      await copyFile(top.path, `${frozen.path}.new`);
      await rename(`${frozen.path}.new`, frozen.path);
      this.bases.set(top.name, frozen);
      this.attached.set(serial, { disk: top, readOnly });
      result.push({ serial, top, frozen });
    }
    this.#lost('snapshotDisks');
    return result;
  }

  async createOverlay(r: { base: DiskRef; name: string }): Promise<DiskRef> {
    this.#call('createOverlay');
    const overlay = this.#ref(volumeName(r.name));
    if ([...this.attached.values()].some((one) => one.disk.name === r.base.name)) {
      throw undError('UND_HV_DISK_IN_USE', { disk: r.base.name, users: `VM ${VM}` });
    }
    await copyFile(join(this.dir, r.base.name), overlay.path, constants.COPYFILE_EXCL);
    this.bases.set(overlay.name, r.base);
    return overlay;
  }

  /** Merges go on until they are cancelled. */
  slowCommits = false;
  readonly #cancels = new Map<string, () => void>();

  async cancelCommit(overlay: DiskRef): Promise<void> {
    this.#call('cancelCommit');
    this.#cancels.get(overlay.name)?.();
    this.#cancels.delete(overlay.name);
  }

  async commitOverlay(overlay: DiskRef): Promise<DiskRef> {
    this.#call('commitOverlay');
    if (this.slowCommits) {
      const { promise, reject } = Promise.withResolvers<never>();
      const cancelled = undError('UND_HV_FAILED', { action: 'commit', reason: 'cancelled' });
      this.#cancels.set(overlay.name, () => reject(cancelled));
      await promise;
    }
    const base = this.bases.get(overlay.name);
    if (!base) throw undError('UND_HV_NO_BASE', { disk: overlay.name });
    const above = [...this.bases].filter(([, below]) => below.name === overlay.name);
    const live = [...this.attached.values()].map((one) => one.disk.name);
    if (above.some(([child]) => !this.#inChainOf(child, live)))
      throw undError('UND_HV_DISK_IN_USE', { disk: overlay.name, users: '?' });
    this.#refuseBelow(base, overlay.name);
    await rename(join(this.dir, overlay.name), join(this.dir, base.name));
    this.bases.delete(overlay.name);
    for (const [child] of above) this.bases.set(child, base);
    for (const one of this.attached.values()) if (one.disk.name === overlay.name) one.disk = base;
    for (const vm of this.vms.values()) {
      for (const one of vm.spec.disks) if (one.disk.name === overlay.name) one.disk = base;
    }
    this.#lost('commitOverlay');
    return base;
  }

  async chain(disk: DiskRef): Promise<DiskLayer[]> {
    const layers: DiskLayer[] = [];
    for (let one: DiskRef | undefined = disk; one; one = this.bases.get(one.name)) {
      layers.push({ ...one, sizeBytes: await this.#sizeOf(one), allocatedBytes: 0 });
    }
    return layers;
  }

  async defineVm(spec: VmSpec): Promise<VmRef> {
    this.#call('defineVm');
    if (this.vms.has(spec.name)) throw undError('UND_HV_NAME_IN_USE', { name: spec.name });
    this.vms.set(spec.name, { spec, running: false });
    return this.#vm(spec.name);
  }

  #vm(name: string): VmRef {
    const { spec, running } = this.vms.get(name)!;
    return {
      name,
      uuid: spec.uuid ?? name,
      role: 'replica',
      state: running ? { state: 'running' } : { state: 'off', reason: 'off' },
    };
  }

  async startVm(vm: string): Promise<void> {
    this.#call('startVm');
    this.vms.get(vm)!.running = true;
  }

  async stopVm(vm: string): Promise<void> {
    this.#call('stopVm');
    const found = this.vms.get(vm);
    if (found) found.running = false;
  }

  async undefineVm(vm: string): Promise<void> {
    this.#call('undefineVm');
    this.vms.delete(vm);
  }

  async vmState(vm: string): Promise<VmState> {
    return this.vms.has(vm) ? this.#vm(vm).state : { state: 'absent' };
  }

  /** VMs of somebody else. */
  foreign = new Set<string>();
  autostart = new Set<string>();

  async diskUsers(disks: readonly DiskRef[]): Promise<{ vm: string; disk: DiskRef }[]> {
    this.#call('diskUsers');
    return [...this.vms].flatMap(([vm, { spec, running }]) =>
      running ? disks.filter((disk) => isOn(spec, disk)).map((disk) => ({ vm, disk })) : [],
    );
  }

  async isNameTaken(vm: string): Promise<boolean> {
    return vm === VM || this.vms.has(vm) || this.foreign.has(vm);
  }

  async setAutostart(vm: string, on: boolean): Promise<void> {
    this.#call('setAutostart');
    if (!this.vms.has(vm)) throw undError('UND_HV_VM_NOT_FOUND', { vm });
    if (on) this.autostart.add(vm);
    else this.autostart.delete(vm);
  }

  async listVms(): Promise<VmRef[]> {
    const own: VmRef = { name: VM, uuid: VM, role: 'appliance', state: { state: 'running' } };
    return [own, ...[...this.vms.keys()].map((name) => this.#vm(name))];
  }

  async screenshot(): Promise<Buffer> {
    return Buffer.from('89504e470d0a1a0a', 'hex');
  }

  async consoleTail(): Promise<string> {
    return 'login: ';
  }

  async guestAddresses(): Promise<GuestAddress[]> {
    return [];
  }

  async guestAgentPing(): Promise<boolean> {
    return true;
  }

  /** Programs in a guest are programs of this machine. */
  readonly #programs = new Map<number, GuestExecResult | null>();

  async guestExec(
    vm: string,
    { argv: [program = '', ...rest], input = '' }: { argv: readonly string[]; input?: string },
  ): Promise<number> {
    if (!this.vms.has(vm)) throw undError('UND_HV_VM_NOT_FOUND', { vm });
    const pid = this.#programs.size + 1;
    this.#programs.set(pid, null);
    execa(program, rest, { input, reject: false }).then((done) =>
      this.#programs.set(pid, {
        exitCode: done.exitCode ?? null,
        signal: null,
        output: done.stdout,
        errors: done.stderr,
      }),
    );
    return pid;
  }

  async guestExecResult(_vm: string, pid: number): Promise<GuestExecResult | null> {
    return this.#programs.get(pid) ?? null;
  }

  async close(): Promise<void> {}

  async find(serial: string): Promise<string | null> {
    const found = this.attached.get(serial);
    return found ? join(this.dir, found.disk.name) : null;
  }

  /** What a reboot of the host does to hot-attached disks. */
  forgetAttached(): void {
    this.attached.clear();
  }

  files(): Promise<string[]> {
    return readdir(this.dir);
  }
}

const MIB = 1024 * 1024;

/** A source server: the real agent, whose disks are files and whose capture is scripted. */
export class TestSource {
  readonly kernel = new ScriptedKernel();
  readonly dir: string;
  readonly state: AgentState;
  machine: MachineIdentity;
  log: string[] = [];
  /** Where the kernel has a disk now, if not at its file's path. */
  devicePaths = new Map<number, string>();
  /** Disks that are not there. */
  hidden = new Set<number>();
  readonly systemd: StandInSystemd;
  /** Whether the server is cut off from its network; the real rules have a test of their own. */
  isolation: Isolation | null = null;
  #service: AgentService | null = null;
  #running: Promise<unknown> = Promise.resolve();

  constructor(dir: string, name: string) {
    this.dir = join(dir, name);
    mkdirSync(this.dir, { recursive: true });
    this.state = new AgentState(join(this.dir, 'state'));
    this.systemd = new StandInSystemd(join(this.dir, 'systemd'));
    // With the machine ends everything on it; what its disks have is left.
    this.systemd.onPowerOff = () => setImmediate(() => this.stop());
    this.machine = {
      hostname: name,
      smbiosUuid: `uuid-of-${name}`,
      bootId: this.kernel.bootId,
      diskSerials: [`serial-of-${name}`],
    };
  }

  addDisk(name: string, sizeBytes: number): Promise<void> {
    return this.kernel.addDisk(join(this.dir, name), sizeBytes);
  }

  inventory(): Inventory {
    return {
      takenAt: new Date().toISOString(),
      hostname: this.machine.hostname,
      os: 'Debian GNU/Linux 12 (bookworm)',
      kernel: '6.1.0',
      firmware: 'bios',
      virtualisation: 'kvm',
      cpuModel: 'test',
      cpuCount: 2,
      memoryBytes: 1024 * MIB,
      disks: this.kernel.paths
        .map((path, index) => ({
          diskId: `disk-${index}-${this.machine.hostname}`,
          name: `vd${'abcdef'[index]}`,
          devicePath: this.devicePaths.get(index) ?? path,
          sizeBytes: this.kernel.sizes[index]!,
          usedBytes: null,
          model: null,
          serial: `serial-${index}`,
          bus: 'virtio',
          partitionTable: 'gpt',
          volumes: [],
          isBoot: index === 0,
          protectable: true,
        }))
        .filter((_disk, index) => !this.hidden.has(index)),
      nics: [
        {
          name: 'eth0',
          mac: '52:54:00:00:00:01',
          addresses: ['192.0.2.5/24'],
          gateway: '192.0.2.1',
          dhcp: true,
        },
      ],
      services: [
        { unit: 'postgresql.service', description: 'PostgreSQL' },
        { unit: 'nginx.service', description: 'A web server' },
      ],
      machine: {
        smbiosUuid: this.machine.smbiosUuid,
        bootId: this.machine.bootId,
        diskSerials: this.machine.diskSerials,
      },
    };
  }

  #file(devicePath: string): string {
    const index = [...this.devicePaths].find(([, path]) => path === devicePath)?.[0];
    return index === undefined ? devicePath : this.kernel.paths[index]!;
  }

  /** The kernel forgets its capture, and the boot has another id. */
  reboot(): void {
    this.kernel.reboot();
    this.machine = { ...this.machine, bootId: this.kernel.bootId };
  }

  /** What the push leaves behind. */
  async giveTicket(token: string, self: ApplianceAddress): Promise<void> {
    const { writeDurably } = await import('../../agent/config.ts');
    await writeDurably(
      join(this.state.dir, 'enrol.json'),
      JSON.stringify({
        token,
        addresses: ['127.0.0.1'],
        apiPort: self.httpsPort(),
        agentPort: self.agentPort(),
        caPem: self.caPem,
        caFingerprintSha256: self.caFingerprintSha256,
      }),
    );
  }

  start(): void {
    this.#service = new AgentService({
      state: this.state,
      log: (level, text) => void this.log.push(`${level} ${text}`),
      createStream: () =>
        new SourceStream({
          createCapture: () => this.kernel.capture(),
          openReader: async (path) => this.kernel.reader(this.#file(path)),
          pinDir: join(this.dir, 'pin'),
          runDir: join(this.dir, 'run'),
          consumerTimeoutMs: 0,
        }),
      machine: async () => this.machine,
      inventory: async () => this.inventory(),
      removeTraces: async () => [],
      systemctl: this.systemd.run,
      isolator: {
        isolate: async (isolation) => {
          this.isolation = isolation;
          return null;
        },
        release: async () => {
          this.isolation = null;
        },
      },
      wait: (ms, signal) =>
        new Promise((resolve) => {
          const end = () => {
            clearTimeout(timer);
            signal.removeEventListener('abort', end);
            resolve();
          };
          const timer = setTimeout(end, Math.min(ms, 100));
          signal.addEventListener('abort', end);
        }),
    });
    this.#running = this.#service.run();
  }

  async stop(): Promise<void> {
    this.#service?.stop();
    this.#service = null;
    await this.#running;
  }

  async close(): Promise<void> {
    await this.stop();
    await this.kernel.close();
  }
}

export const PASSWORD = 'a password of the test';
const CHEAP = { log2N: 10, r: 8, p: 1 };

/** The appliance with its surroundings; `restart` keeps everything but the process. */
export class Lab {
  readonly dir = mkdtempSync(join(tmpdir(), 'und-api-'));
  readonly host = new FolderHypervisor(join(this.dir, 'pool'));
  readonly sources = new Map<string, TestSource>();
  appliance!: Appliance;
  address!: ApplianceAddress;
  cookie = '';
  restartsAsked = 0;
  /** What a look at a source's addresses finds. */
  stillAnswers: string | null = null;
  /** Replaced by tests that look at what the push does. */
  installer: SourceInstaller = {
    preflight: async (target) => ({
      ok: target.address !== 'broken',
      hostKeyFingerprint: 'SHA256:test',
      hostKeyKnown: target.knownHostKey === 'SHA256:test',
      checks:
        target.address === 'broken'
          ? [{ id: 'btf', title: 'Type information', result: 'failed', detail: 'there is none' }]
          : [],
    }),
    install: async (target, { token, onStep }) => {
      onStep('copying the agent');
      const source = this.sources.get(target.address);
      if (!source) throw undError('UND_SSH_UNREACHABLE', { source: target.address, reason: 'no' });
      await source.giveTicket(token, this.address);
      await source.stop();
      source.start();
    },
    uninstall: async (target) => {
      await this.sources.get(target.address)?.stop();
    },
  };

  get config(): ApplianceConfig {
    return {
      dataDir: join(this.dir, 'data'),
      journalDir: join(this.dir, 'journal'),
      webDir: null,
      agentDir: this.dir,
      hostFile: join(this.dir, 'host.json'),
      listen: '127.0.0.1',
      httpsPort: this.appliance?.httpsPort ?? 0,
      agentPort: this.appliance?.agentPort ?? 0,
      addresses: this.addresses,
    };
  }

  /** What else the appliance is told to be reached by. */
  addresses: string[] = [];
  outside: Partial<Outside> = {};

  /** Starts it anew whenever it asks for that, as systemd does. `between` runs while it is down. */
  async serveRestart(between: () => Promise<void> = async () => {}): Promise<void> {
    const before = this.restartsAsked;
    await until('the appliance to ask for its restart', () => this.restartsAsked > before, 120_000);
    await this.appliance.close();
    await between();
    await this.start();
  }

  async start(): Promise<this> {
    this.appliance = await startAppliance(
      this.config,
      () => ({
        hypervisor: this.host,
        locator: this.host,
        installer: (self) => {
          this.address = self;
          return {
            preflight: (target) => this.installer.preflight(target),
            install: (target, options) => this.installer.install(target, options),
            uninstall: (target, options) => this.installer.uninstall(target, options),
          };
        },
        preparer: { prepare: async () => ({ os: 'Debian', changes: ['none'], unfixable: [] }) },
        server: (nbd) =>
          createPointServer({ workerCommand: [process.execPath, BROWSE_WORKER], nbd }),
        failover: {
          locate: async (serial) => (await this.host.find(serial))!,
          flushDevice: async () => {},
          probe: async () => this.stillAnswers,
          prover: {
            prove: async () => ({
              kind: 'guest-agent',
              words: 'the guest agent answered',
              addresses: ['192.0.2.77'],
            }),
          },
        },
        passwordCost: CHEAP,
        poolPollMs: 100,
        ...this.outside,
      }),
      {
        logger: process.env.LAB_LOG ? { level: 'info', base: null } : false,
        restart: () => this.restartsAsked++,
      },
    );
    if (this.appliance.firstPassword) {
      await this.login('admin', this.appliance.firstPassword);
      await this.call('POST', '/api/session/password', {
        current: this.appliance.firstPassword,
        next: PASSWORD,
      });
    }
    return this;
  }

  async restart(): Promise<void> {
    await this.appliance.close();
    await this.start();
  }

  async login(username: string, password: string): Promise<void> {
    const answer = await this.inject('POST', '/api/login', { username, password });
    if (answer.statusCode !== 200) throw new Error(answer.body);
    this.cookie = String(answer.headers['set-cookie']).split(';')[0]!;
  }

  inject(method: string, url: string, body?: unknown, headers: Record<string, string> = {}) {
    return this.appliance.app.inject({
      method: method as 'GET',
      url,
      headers: { 'x-understudy': '1', cookie: this.cookie, ...headers },
      ...(body === undefined ? {} : { payload: body as object }),
    });
  }

  /** The answer's body; throws what the API said when it refused. */
  async call<T = unknown>(method: string, url: string, body?: unknown): Promise<T> {
    const answer = await this.inject(method, url, body);
    if (answer.statusCode >= 400) throw new Error(`${answer.statusCode} ${answer.body}`);
    return (answer.body === '' ? undefined : answer.json()) as T;
  }

  addSource(name: string): TestSource {
    const source = new TestSource(this.dir, name);
    this.sources.set(name, source);
    return source;
  }

  /** A real HTTPS request that follows the event stream. */
  events(onEvent: (event: { type: string } & Record<string, unknown>) => void): {
    opened: Promise<void>;
    onEnd(listener: () => void): void;
    close(): void;
  } {
    const opened = Promise.withResolvers<void>();
    const ended = Promise.withResolvers<void>();
    const call = request(
      {
        host: '127.0.0.1',
        port: this.appliance.httpsPort,
        path: '/api/events',
        ca: this.address.caPem,
        headers: { cookie: this.cookie },
      },
      (answer) => {
        let text = '';
        answer.setEncoding('utf8');
        answer.on('error', () => {});
        answer.on('close', () => ended.resolve());
        answer.on('data', (chunk: string) => {
          text += chunk;
          for (let end = text.indexOf('\n\n'); end >= 0; end = text.indexOf('\n\n')) {
            const data = /^data: (.*)$/m.exec(text.slice(0, end))?.[1];
            text = text.slice(end + 2);
            if (data) onEvent(JSON.parse(data));
          }
        });
        opened.resolve();
      },
    );
    call.on('error', () => {});
    call.end();
    return {
      opened: opened.promise,
      onEnd: (listener) => void ended.promise.then(listener),
      close: () => call.destroy(),
    };
  }

  async close(): Promise<void> {
    for (const source of this.sources.values()) await source.close();
    await this.appliance.close();
    await rm(this.dir, { recursive: true, force: true });
  }
}
