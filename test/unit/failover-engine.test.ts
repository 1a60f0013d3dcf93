/**
 * The failover engine against a model of the target host: every call is a place where the appliance may die (before or
 * after the call had its effect), where the host may refuse, and where an answer may get lost. After every one of them,
 * alone and in pairs, the outcome must be one of two: the replica runs, or replication goes on. The model itself
 * watches what must never happen: two writers on an image, a write below an overlay, a half-prepared guest powered on.
 */
import t from 'tap';
import type { AutoEnd, Failover } from '../../appliance/api/schema.ts';
import type {
  AttachedDisk,
  DiskRef,
  Hypervisor,
  VmSpec,
} from '../../appliance/hypervisor/hypervisor.ts';
import { FailoverEngine, type FailoverEngineOptions } from '../../appliance/recovery/engine.ts';
import { type FailoverRecord, replicaMac } from '../../appliance/recovery/record.ts';
import type {
  FailoverStore,
  GuestPreparer,
  HandoverPlan,
  JobDescription,
  JobHandle,
  PointServer,
} from '../../appliance/recovery/types.ts';
import { type ErrorCode, undError } from '../../protocol/errors.ts';

// On a busy machine the sweeps take longer than the runner's usual patience.
t.setTimeout(300_000);

const APPLIANCE = 'understudy-appliance';
const REPLICA = 'web1-replica';
const JOB = 'job-1';

/** What happens at one numbered place. `die` never returns: the process is gone and nothing of it runs on. */
type Trouble =
  | { at: number; kind: 'die' }
  | { at: number; kind: 'die-with-vm' }
  | { at: number; kind: 'refuse' }
  | { at: number; kind: 'lose-answer' };

interface Image {
  backing: string | null;
  data: string | null;
}

class World {
  readonly autostart = new Set<string>();
  images = new Map<string, Image>();
  attached = new Map<string, string>();
  vms = new Map<string, { uuid: string; running: boolean; spec: VmSpec }>();
  records = new Map<string, string>();
  job = {
    intake: true,
    durable: 7,
    applied: 5,
    images: new Map<string, string>(),
    released: false,
  };
  /** Lost when the process dies. */
  open = false;
  reopened: { mirror: string; reason: string }[] = [];
  /** Images with writes that are only in the appliance's cache; detached like that, they are damaged. */
  unflushed = new Set<string>();
  damaged = new Set<string>();
  violations: string[] = [];
  places: string[] = [];
  troubles: Trouble[] = [];
  dead: () => void = () => {};
  boots = true;
  /** What is played; a test recovers the chosen moment, or the checkpoint of frame 3 itself. */
  kind: 'unplanned' | 'test' | 'mount' = 'unplanned';
  keepMinutes = 0;
  purpose: 'files' | 'nbd' = 'files';
  /** What serves a mount; lost when the process dies, and with it what it had open. */
  served = new Map<string, string[]>();
  held = new Set<string>();
  isolated = true;
  /** A moment is recovered: from a checkpoint of frame 3 below the replica disks, by replay up to frame 4. */
  readonly chosen: boolean;
  refuses: () => boolean = () => false;
  /** Of the failover that is played; null: an unplanned one. */
  plan: HandoverPlan | null = null;
  source = { online: true, off: false, services: true, prepared: false, written: 7 };
  /** How long the host takes to say what the replica VM does. */
  vmStateAnswers: Promise<void> = Promise.resolve();
  /** Of a test; one of a moment has checks as well. */
  moment = false;
  checksPass = true;
  /** What is to be done by itself with the failover that is played. */
  autoEnd: AutoEnd | null = null;
  /** An hour passes when a failover with an end of its own is completed. */
  /** The source's wall clock, behind ours. */
  sourceBehindMs = 0;
  clockMs = Date.parse('2026-01-01T00:00:00.000Z');

  constructor(chosen = false) {
    this.chosen = chosen;
    for (const disk of ['vda', 'vdb']) {
      if (chosen) this.images.set(`ck-${disk}`, { backing: null, data: 'frame 3' });
      this.images.set(`base-${disk}`, { backing: chosen ? `ck-${disk}` : null, data: 'frame 5' });
      this.attached.set(`u${disk}`, `base-${disk}`);
      this.job.images.set(disk, `base-${disk}`);
    }
    this.open = true;
  }

  /** What the job service does at the appliance's start with disks that are its own. */
  startJob(): void {
    for (const [disk, image] of this.job.images) this.attached.set(`u${disk}`, image);
    this.open = true;
  }

  /** One place where trouble may strike. `effect` is what the call does; it happens or not, never by half. */
  async place<T>(name: string, effect: () => T): Promise<T> {
    // While its services run, a source always has something that is not here yet.
    if (this.plan && this.source.services && !this.source.off) this.source.written++;
    const before = this.places.push(`before ${name}`) - 1;
    await this.#strike(before, 'before');
    if (this.refuses()) throw undError('UND_HV_FAILED', { action: name, reason: 'injected' });
    const result = effect();
    const after = this.places.push(`after ${name}`) - 1;
    await this.#strike(after, 'after');
    return result;
  }

  async #strike(at: number, when: 'before' | 'after'): Promise<void> {
    const trouble = this.troubles.find((candidate) => candidate.at === at);
    if (!trouble) return;
    switch (trouble.kind) {
      case 'die':
      case 'die-with-vm':
        this.open = false;
        this.served.clear();
        if (trouble.kind === 'die-with-vm') {
          this.attached.clear();
          for (const image of this.unflushed) this.damaged.add(image);
          this.unflushed.clear();
        }
        this.dead();
        return new Promise(() => {});
      case 'refuse':
        if (when === 'before') throw undError('UND_HV_FAILED', { action: 'x', reason: 'injected' });
        return;
      case 'lose-answer':
        throw undError('UND_HV_UNREACHABLE', { host: 'h', reason: 'injected' });
    }
  }

  forbid(condition: boolean, what: string): void {
    if (condition) this.violations.push(what);
  }

  content(name: string): string | null {
    const image = this.images.get(name);
    if (!image) return null;
    return image.data ?? (image.backing ? this.content(image.backing) : null);
  }

  writersOf(name: string): string[] {
    const writers = [...this.attached].filter(([, image]) => image === name).map(([s]) => s);
    for (const [vm, { running, spec }] of this.vms) {
      if (running && spec.disks.some((disk) => disk.disk.name === name)) writers.push(vm);
    }
    return writers;
  }

  childrenOf(name: string): string[] {
    return [...this.images].filter(([, image]) => image.backing === name).map(([child]) => child);
  }
}

const ref = (name: string): DiskRef => ({ pool: 'default', name, path: `/pool/${name}` });
const notFound = (name: string) =>
  undError('UND_HV_DISK_NOT_FOUND', { disk: name, pool: 'default' });

function modelHypervisor(world: World): Hypervisor {
  const full = (name: string) => `understudy-${name}.qcow2`;
  const attachedList = (): AttachedDisk[] =>
    [...world.attached].map(([serial, image]) => ({
      serial,
      target: 'sdb',
      bus: 'scsi',
      readOnly: false,
      cache: 'none',
      disk: ref(image),
    }));
  const chain = (name: string): DiskRef[] => {
    const image = world.images.get(name);
    if (!image) throw notFound(name);
    return [ref(name), ...(image.backing ? chain(image.backing) : [])];
  };
  const model: Partial<Hypervisor> = {
    describeHost: async () => ({ applianceVm: APPLIANCE }) as never,
    listNetworks: async () =>
      [
        { name: 'default', isolated: false, active: true },
        { name: 'idle', isolated: true, active: false },
        { name: 'alone', isolated: world.isolated, active: true },
      ] as never,
    listAttachedDisks: () => world.place('listAttachedDisks', attachedList),
    chain: (disk) =>
      world.place('chain', () =>
        chain(disk.name).map((layer) => ({ ...layer, sizeBytes: 1, allocatedBytes: 1 })),
      ),
    diskInfo: (disk) =>
      world.place('diskInfo', () => {
        const image = world.images.get(disk.name);
        if (!image) throw notFound(disk.name);
        return {
          ...ref(disk.name),
          format: 'qcow2' as const,
          sizeBytes: 1,
          allocatedBytes: 1,
          locked: false,
          ...(image.backing ? { backing: ref(image.backing) } : {}),
        };
      }),
    attachDisk: (_vm, disk, { serial }) =>
      world.place(`attachDisk ${serial}`, () => {
        if (!world.images.has(disk.name)) throw notFound(disk.name);
        const now = world.attached.get(serial);
        if (now === undefined) {
          const writers = world.writersOf(disk.name);
          world.forbid(writers.length > 0, `second writer on ${disk.name}: ${writers}`);
          world.forbid(
            world.childrenOf(disk.name).length > 0,
            `${disk.name} attached for writing below ${world.childrenOf(disk.name)}`,
          );
          world.attached.set(serial, disk.name);
        } else if (now !== disk.name) throw undError('UND_HV_DISK_IN_USE', { disk: serial });
        return attachedList().find((entry) => entry.serial === serial) as AttachedDisk;
      }),
    detachDisk: (_vm, serial) =>
      world.place(`detachDisk ${serial}`, () => {
        const image = world.attached.get(serial);
        world.forbid(/^uvd[ab]$/.test(serial) && world.open, `${serial} yanked while open`);
        const served = [...world.served.values()].flat();
        world.forbid(image !== undefined && served.includes(image), `${image} yanked while served`);
        if (image && world.unflushed.delete(image)) world.damaged.add(image);
        world.attached.delete(serial);
      }),
    snapshotDisks: (_vm, disks) =>
      world.place('snapshotDisks', () => {
        world.forbid(world.job.applied !== world.job.durable, 'checkpoint before apply was done');
        for (const disk of disks) {
          if (!world.attached.has(disk.serial)) throw undError('UND_HV_DISK_NOT_ATTACHED');
          if (world.images.has(full(disk.overlayName))) throw undError('UND_HV_NAME_IN_USE');
        }
        return disks.map((disk) => {
          const frozen = world.attached.get(disk.serial) as string;
          world.images.set(full(disk.overlayName), { backing: frozen, data: null });
          world.attached.set(disk.serial, full(disk.overlayName));
          return { serial: disk.serial, frozen: ref(frozen), top: ref(full(disk.overlayName)) };
        });
      }),
    createOverlay: ({ base, name }) =>
      world.place('createOverlay', () => {
        if (world.images.has(full(name))) throw undError('UND_HV_NAME_IN_USE', { name });
        if (world.writersOf(base.name).length > 0) throw undError('UND_HV_DISK_IN_USE');
        world.forbid(
          world.kind !== 'unplanned' && world.held.size === 0,
          'an overlay on what may go',
        );
        world.images.set(full(name), { backing: base.name, data: null });
        return ref(full(name));
      }),
    commitOverlay: (disk) =>
      world.place('commitOverlay', () => {
        const image = world.images.get(disk.name);
        if (!image) throw notFound(disk.name);
        if (!image.backing) throw undError('UND_HV_NO_BASE', { disk: disk.name });
        if (world.childrenOf(image.backing).length > 1) throw undError('UND_HV_DISK_IN_USE');
        const base = world.images.get(image.backing) as Image;
        base.data = image.data ?? base.data;
        world.images.delete(disk.name);
        for (const [serial, name] of world.attached) {
          if (name === disk.name) world.attached.set(serial, image.backing);
        }
        for (const { spec } of world.vms.values()) {
          for (const entry of spec.disks) {
            if (entry.disk.name === disk.name) entry.disk = ref(image.backing);
          }
        }
        return ref(image.backing);
      }),
    deleteDisk: (disk) =>
      world.place('deleteDisk', () => {
        if (world.childrenOf(disk.name).length > 0 || world.writersOf(disk.name).length > 0) {
          throw undError('UND_HV_DISK_IN_USE', { disk: disk.name });
        }
        for (const { spec } of world.vms.values()) {
          if (spec.disks.some((entry) => entry.disk.name === disk.name)) {
            throw undError('UND_HV_DISK_IN_USE', { disk: disk.name });
          }
        }
        world.forbid(disk.name.startsWith(world.chosen ? 'ck-' : 'base-'), `${disk.name} deleted`);
        world.images.delete(disk.name);
        world.damaged.delete(disk.name);
      }),
    guestAddresses: async (vm) =>
      world.vms.get(vm)?.running
        ? [
            {
              mac: replicaMac(JOB, 'ens3'),
              address: '192.0.2.9',
              prefixLength: 24,
              source: 'lease' as const,
            },
          ]
        : [],
    listVms: () =>
      world.place('listVms', () =>
        [...world.vms].map(([name, vm]) => ({
          name,
          uuid: vm.uuid,
          role: 'replica' as const,
          state: vm.running
            ? { state: 'running' as const }
            : { state: 'off' as const, reason: 'shut off' },
        })),
      ),
    defineVm: (spec) =>
      world.place('defineVm', () => {
        if (world.vms.has(spec.name)) throw undError('UND_HV_NAME_IN_USE', { name: spec.name });
        const uuid = spec.uuid ?? '';
        world.vms.set(spec.name, { uuid, running: false, spec: structuredClone(spec) });
        return { name: spec.name, uuid, role: 'replica', state: { state: 'off', reason: '' } };
      }),
    startVm: (name) =>
      world.place('startVm', () => {
        const vm = world.vms.get(name);
        if (!vm) throw undError('UND_HV_VM_NOT_FOUND', { vm: name });
        for (const { disk } of vm.spec.disks) {
          const writers = world.writersOf(disk.name).filter((writer) => writer !== name);
          world.forbid(writers.length > 0, `${name} started on ${disk.name}, open by ${writers}`);
          world.forbid(
            world.kind === 'test' && vm.spec.nics.some(({ network }) => network !== 'alone'),
            'a test on a network that is not isolated',
          );
          world.forbid(world.damaged.has(disk.name), `${name} started on unflushed ${disk.name}`);
          const { chosen, job, kind, moment } = world;
          const frame = kind === 'test' && !moment ? 3 : chosen ? 4 : job.durable;
          world.forbid(
            world.content(disk.name) !== `prepared frame ${frame}`,
            `${name} started on ${world.content(disk.name)}`,
          );
          world.forbid(
            world.childrenOf(disk.name).length > 0,
            `${name} started on a backing image ${disk.name}`,
          );
        }
        vm.running = true;
      }),
    stopVm: (name) =>
      world.place('stopVm', () => {
        const vm = world.vms.get(name);
        if (!vm) throw undError('UND_HV_VM_NOT_FOUND', { vm: name });
        vm.running = false;
      }),
    undefineVm: (name) =>
      world.place('undefineVm', () => {
        if (world.vms.get(name)?.running) throw undError('UND_HV_VM_RUNNING', { vm: name });
        world.vms.delete(name);
      }),
    isNameTaken: async (name) => world.vms.has(name),
    setAutostart: (name, on) =>
      world.place('setAutostart', () => {
        if (on) world.autostart.add(name);
        else world.autostart.delete(name);
      }),
    vmState: async (name) => {
      await world.vmStateAnswers;
      const vm = world.vms.get(name);
      if (!vm) return { state: 'absent' };
      return vm.running ? { state: 'running' } : { state: 'off', reason: 'shut off' };
    },
  };
  return model as Hypervisor;
}

const requireOnline = (world: World): void => {
  if (!world.source.online) throw undError('UND_AGENT_OFFLINE', { source: 'web1' });
};

function modelJob(world: World): JobHandle {
  const disks = ['vda', 'vdb'];
  return {
    describe: async (): Promise<JobDescription> => ({
      jobId: JOB,
      sourceId: 'source-1',
      sourceOnline: world.source.online,
      sourceName: 'web1',
      replicaName: REPLICA,
      network: 'default',
      vcpus: 1,
      memoryBytes: 512 * 1048576,
      firmware: 'bios',
      lagMs: 1500,
      recoverable: { ok: true },
      ...(world.moment && { testChecks: { tcpPorts: [22], script: null } }),
      nics: [
        { name: 'ens3', mac: '52:54:00:aa:bb:cc', primary: true, addresses: ['192.0.2.5/24'] },
      ],
      disks: disks.map((disk) => ({
        diskId: disk,
        sourceName: disk,
        boot: disk === 'vda',
        sizeBytes: 1,
        serial: `u${disk}`,
        image: ref(world.job.images.get(disk) as string),
      })),
    }),
    prepareHandover: () =>
      world.place('prepareHandover', () => {
        requireOnline(world);
        world.source.prepared = true;
        world.source.services = false;
        return ['postgresql.service'];
      }),
    finalMark: () =>
      world.place('finalMark', () => {
        requireOnline(world);
        world.forbid(world.source.services, 'final mark before the services were stopped');
        world.job.durable = world.source.written;
        return { seq: world.job.durable, sourceTime: null, quiesced: true, reason: null };
      }),
    powerOff: (_, how) =>
      world.place('powerOff', () => {
        requireOnline(world);
        if (!world.source.prepared) throw undError('UND_HANDOVER_UNKNOWN', {});
        world.forbid(world.job.durable !== world.source.written, 'off before all was durable');
        world.source.online = false;
        world.source.off = how === 'power-off';
      }),
    cancelHandover: () =>
      world.place('cancelHandover', () => {
        if (!world.source.online) return null;
        world.source.services = true;
        world.source.prepared = false;
        return ['postgresql.service'];
      }),
    stopIntake: () =>
      world.place('stopIntake', () => {
        world.forbid(world.kind !== 'unplanned', `a ${world.kind} stopped the intake`);
        world.forbid(world.held.size > 0, 'failed over under a test');
        world.job.intake = false;
        return { durableSeq: world.job.durable, sourceTime: '2026-01-01T00:00:00.000Z' };
      }),
    drainApply: () =>
      world.place('drainApply', () => {
        world.forbid(world.job.intake, 'drained with intake on');
        for (const disk of disks) {
          const image = world.job.images.get(disk) as string;
          if (!world.attached.has(`u${disk}`)) world.attached.set(`u${disk}`, image);
          const top = world.images.get(world.attached.get(`u${disk}`) as string) as Image;
          top.data = `frame ${world.job.durable}`;
        }
        world.open = true;
        world.job.applied = world.job.durable;
        const images = disks.map((diskId) => ({
          diskId,
          image: ref(world.job.images.get(diskId) as string),
        }));
        return { appliedSeq: world.job.applied, images };
      }),
    earliestHere: (sourceTime) =>
      new Date(Date.parse(sourceTime) + world.sourceBehindMs).toISOString(),
    choosePoint: async () => ({
      seq: 4,
      sourceTime: '2026-01-01T00:00:00.000Z',
      baseSeq: 3,
      base: disks.map((diskId) => ({ diskId, image: ref(`ck-${diskId}`) })),
    }),
    holdPoint: (sourceTime, failoverId) =>
      world.place('holdPoint', () => {
        world.held.add(failoverId);
        return {
          seq: sourceTime === null ? 3 : 4,
          sourceTime: '2026-01-01T00:00:00.000Z',
          baseSeq: 3,
          base: disks.map((diskId) => ({ diskId, image: ref(`ck-${diskId}`) })),
        };
      }),
    releasePoint: (failoverId) =>
      world.place('releasePoint', () => {
        world.held.delete(failoverId);
        const resting = disks.flatMap((disk) => world.childrenOf(`ck-${disk}`));
        world.forbid(
          world.held.size === 0 && resting.some((name) => !name.startsWith('base-')),
          `let go under ${resting}`,
        );
      }),
    replay: async (_point, devices) => {
      const targets = devices.map(({ devicePath }) => {
        const name = devicePath.slice('/dev/'.length);
        return { name, image: world.images.get(name) as Image };
      });
      await world.place('replay begins', () => {
        for (const { name, image } of targets) {
          const before = image.data ?? 'none';
          world.forbid(/prepared/.test(before), `replayed onto ${before}`);
          image.data = 'half replayed';
          // Redo writes again all that a former replay may have left unflushed.
          world.damaged.delete(name);
          world.unflushed.add(name);
        }
      });
      await world.place('replay ends', () => {
        for (const { image } of targets) image.data = 'frame 4';
      });
    },
    closeDisks: () =>
      world.place('closeDisks', () => {
        world.open = false;
      }),
    reopen: (images, { mirror, reason }) =>
      world.place('reopen', () => {
        for (const { diskId, image } of images) {
          world.job.images.set(diskId, image.name);
          world.forbid(
            world.attached.get(`u${diskId}`) !== image.name,
            `reopened ${diskId} on ${image.name}, attached is ${world.attached.get(`u${diskId}`)}`,
          );
        }
        world.open = true;
        world.job.intake = true;
        world.reopened.push({ mirror, reason });
      }),
    passiveHelloAt: async () => null,
    release: () =>
      world.place('release', () => {
        world.job.released = true;
      }),
  };
}

function modelServer(world: World): PointServer {
  return {
    open: async ({ mountId, purpose, disks }) => {
      const images = disks.map(({ devicePath }) => devicePath.slice('/dev/'.length));
      await world.place('open begins', () => {
        world.served.set(mountId, images);
        for (const image of images) {
          const frame = `frame ${world.moment ? 4 : 3}`;
          const now = world.content(image);
          world.forbid(now !== frame, `opened ${now}`);
          world.forbid(world.damaged.has(image), `opened unflushed ${image}`);
          // Mounting replays the journal of the file system.
          if (purpose === 'files') (world.images.get(image) as Image).data = frame;
        }
      });
      return world.place('open ends', () => ({ volumes: [], exports: [] }));
    },
    close: (mountId) =>
      world.place('close', () => {
        world.served.delete(mountId);
      }),
  };
}

function modelEngine(world: World, options: Partial<FailoverEngineOptions> = {}): FailoverEngine {
  const hypervisor = modelHypervisor(world);
  const store: FailoverStore = {
    loadAll: () => [...world.records.values()].map((text) => JSON.parse(text) as FailoverRecord),
    save: async (record) => {
      await world.place(`save ${record.phase.name}`, () => {
        world.records.set(record.failoverId, JSON.stringify(record));
      });
    },
  };
  const preparer: GuestPreparer = {
    prepare: async (request) => {
      const images = request.disks.map(({ devicePath }) => devicePath.slice('/dev/'.length));
      const before = new Map<string, string | null>();
      await world.place('prepare begins', () => {
        for (const image of images) {
          const target = world.images.get(image) as Image;
          const replayed = world.chosen && (world.kind !== 'test' || world.moment);
          const ready = replayed ? target.data === 'frame 4' : target.data === null;
          world.forbid(!ready, `preparing a used overlay: ${target.data}`);
          before.set(image, world.content(image));
          target.data = 'half prepared';
          world.unflushed.add(image);
        }
      });
      return world.place('prepare ends', () => {
        for (const image of images) {
          const target = world.images.get(image) as Image;
          target.data = `prepared ${before.get(image)}`;
        }
        return { os: 'Debian', changes: ['fstab'], unfixable: [] };
      });
    },
  };
  return new FailoverEngine({
    hypervisor,
    store,
    job: () => modelJob(world),
    preparer,
    server: modelServer(world),
    evidenceFolder: '/nonexistent',
    locate: async (serial) => `/dev/${world.attached.get(serial)}`,
    flushDevice: async (path) => {
      world.unflushed.delete(path.slice('/dev/'.length));
    },
    prover: {
      prove: async (record) => {
        const vm = world.vms.get(record.replicaName);
        if (!vm?.running)
          throw undError('UND_FAILOVER_BOOT_FAILED', { vm: REPLICA, reason: 'off' });
        if (!world.boots) {
          throw undError('UND_FAILOVER_NO_BOOT_PROOF', { vm: REPLICA, limitMs: 1, seen: 'none' });
        }
        return { kind: 'tcp', words: 'TCP port 22 answers', addresses: ['192.0.2.5'] };
      },
    },
    checker: {
      check: async (_vm, _wanted, { results }) => {
        const made = {
          name: 'TCP port 22',
          state: world.checksPass ? 'passed' : 'failed',
          how: '',
          words: 'closed',
          output: null,
        } as const;
        await results([made]);
        return [made];
      },
    },
    probe: async () => null,
    ...(world.autoEnd && {
      now: () => new Date(world.clockMs).toISOString(),
      onChange: ({ state }) => {
        if (state.name === 'completed') world.clockMs += 3_600_000;
      },
    }),
    // No waiting in the model; a way back never gives up, a lost answer is asked again.
    retryDelayMs: (code, attempt, _elapsed, direction) => {
      if (attempt > 20) throw new Error(`no end: ${code}`);
      return direction === 'back' || code === 'UND_HV_UNREACHABLE' ? 0 : null;
    },
    ...options,
  });
}

type Ask = 'undo' | 'commit' | null;

/** Runs a failover (and then undo or commit) through all troubles, restarting the appliance whenever it died. */
async function play(world: World, troubles: Trouble[], ask: Ask = null): Promise<Failover> {
  world.troubles = troubles;
  let asked = false;
  for (let life = 0; life < troubles.length + 3; life++) {
    const died = new Promise<'died'>((resolve) => {
      world.dead = () => resolve('died');
    });
    const engine = modelEngine(world);
    const live = async (): Promise<Failover> => {
      await engine.load();
      if (!engine.ownsDisks(JOB)) world.startJob();
      engine.resumeAll();
      let id = engine.list()[0]?.failoverId;
      const wanted = world.chosen ? { sourceTime: '2026-01-01T00:00:00.500Z' } : null;
      if (!id && world.kind === 'test') {
        const { keepMinutes, moment } = world;
        const options = { keepMinutes, trigger: 'person', wanted: moment ? wanted : null } as const;
        id = (await engine.startTest(JOB, options)).failoverId;
      }
      id ??= engine.mounts()[0]?.failoverId;
      if (!id && world.kind === 'mount') {
        const { keepMinutes, moment, purpose } = world;
        const options = { keepMinutes, purpose, wanted: moment ? wanted : null };
        id = (await engine.startMount(JOB, options)).failoverId;
      }
      const { plan, autoEnd } = world;
      if (!id) id = (await engine.start(JOB, REPLICA, { wanted, plan, autoEnd })).failoverId;
      let failover = await engine.settled(id);
      if (ask && !asked && failover.state.name === 'completed') {
        if (world.kind === 'test') engine.endTest(id);
        else if (world.kind === 'mount') engine.endMount(id);
        else await engine[ask](id, REPLICA);
        asked = true;
        failover = await engine.settled(id);
      }
      // A failover that never had the job: the job service opens the disks by itself when it hears of the end.
      if (failover.state.name === 'failed' && world.job.intake && !world.open) world.startJob();
      return failover;
    };
    const outcome = await Promise.race([died, live()]);
    // Died when it was completed, and nobody has seen that: the time goes on, and the appliance is started again.
    const waits = outcome !== 'died' && world.autoEnd && outcome.state.name === 'completed';
    if (waits) world.clockMs += 3_600_000;
    else if (outcome !== 'died') return outcome;
  }
  throw new Error('died more often than told to');
}

/** What a test or a mount has left behind or harmed, or nothing. */
function judgeTest(world: World): string[] {
  const wrong = [...world.violations];
  const check = (ok: boolean, what: string) => {
    if (!ok) wrong.push(what);
  };
  check(world.vms.size === 0, 'a VM is left');
  check(world.held.size === 0, 'the checkpoint is still held');
  check(world.served.size === 0, 'it is still served');
  const images = [...world.images.keys()].sort().join(' ');
  check(images === 'base-vda base-vdb ck-vda ck-vdb', `images: ${images}`);
  const attached = [...world.attached].map((pair) => pair.join(' ')).sort();
  check(attached.join(', ') === 'uvda base-vda, uvdb base-vdb', `attached: ${attached}`);
  check(world.job.intake && world.open && world.reopened.length === 0, 'replication was touched');
  for (const disk of ['vda', 'vdb']) {
    check(world.content(`base-${disk}`) === 'frame 5', `base-${disk} was written`);
    check(world.content(`ck-${disk}`) === 'frame 3', `ck-${disk} was written`);
  }
  return wrong;
}

/** What is wrong with the end state, or nothing. */
function judge(world: World, failover: Failover): string[] {
  const wrong = [...world.violations];
  const check = (ok: boolean, what: string) => {
    if (!ok) wrong.push(what);
  };
  const vm = world.vms.get(REPLICA);
  switch (failover.state.name) {
    case 'completed':
      check(vm?.running === true, 'the replica does not run');
      check(!world.job.intake, 'intake is on beside a replica');
      check(
        world.images.size === (world.chosen ? 8 : 6),
        `layers left over: ${[...world.images.keys()]}`,
      );
      if (world.plan) {
        check(!world.source.online, 'the source has not gone');
        const { durable } = world.job;
        check(durable === world.source.written, `${world.source.written - durable} rows lost`);
      }
      check(!world.open && world.attached.size === 0, 'disks still at the appliance');
      check(
        vm?.spec.disks.every(({ disk }) =>
          world.images.get(disk.name)?.backing?.startsWith(world.chosen ? 'ck-' : 'base-'),
        ) === true,
        'the replica is not on overlays',
      );
      for (const disk of ['vda', 'vdb']) {
        const frame = `frame ${world.job.durable}`;
        check(world.content(`base-${disk}`) === frame, `base-${disk} is not at the point`);
      }
      break;
    case 'committed':
      check(vm?.running === true, 'the replica does not run');
      check(world.job.released, 'the job did not let go');
      check(world.autostart.has(REPLICA), 'the replica does not start with its host');
      break;
    case 'failed':
    case 'undone':
      check(vm === undefined, 'a replica is left');
      check(world.source.services || !world.source.online, 'services of the source are down');
      check(!world.source.prepared || !world.source.online, 'the source waits for ever');
      check(world.job.intake && world.open, 'replication does not go on');
      for (const disk of ['vda', 'vdb']) {
        const image = world.job.images.get(disk) as string;
        check(world.attached.get(`u${disk}`) === image, `${disk} is not attached`);
        check(world.attached.size === 2, 'something else is attached');
        // Before apply was done the older content is right; the journal still has the rest.
        check(
          world.content(image) === `frame ${world.job.applied}`,
          `${disk} has ${world.content(image)}`,
        );
        check(world.childrenOf(image).length === 0, `an overlay is left on ${image}`);
      }
      break;
    default:
      wrong.push(`it rests in ${failover.state.name}`);
  }
  return wrong;
}

async function countPlaces(ask: Ask, setUp: (world: World) => void = () => {}) {
  const world = new World();
  setUp(world);
  await play(world, [], ask);
  return world.places;
}

async function sweep(
  st: Tap,
  ask: Ask,
  kind: Trouble['kind'],
  expected: string[],
  setUp: (world: World) => void = () => {},
): Promise<void> {
  const places = await countPlaces(ask, setUp);
  const failures: string[] = [];
  const ends = new Set<string>();
  for (let at = 0; at < places.length; at++) {
    const world = new World();
    setUp(world);
    try {
      const failover = await play(world, [{ at, kind }], ask);
      ends.add(failover.state.name);
      const wrong = judge(world, failover);
      if (!expected.includes(failover.state.name)) wrong.push(`ended ${failover.state.name}`);
      if (wrong.length > 0) failures.push(`${kind} ${places[at]} (${at}): ${wrong.join('; ')}`);
    } catch (error) {
      failures.push(`${kind} ${places[at]} (${at}): ${(error as Error).message}`);
    }
  }
  st.ok(places.length > 20, `${places.length} places`);
  st.same(failures, [], `every place; ends seen: ${[...ends].join(', ')}`);
}

type Tap = Pick<typeof t, 'ok' | 'same'>;

t.test('a failover without trouble completes and its steps say so', async (t) => {
  const world = new World();
  const failover = await play(world, []);
  t.equal(failover.state.name, 'completed');
  t.same(judge(world, failover), []);
  t.same(
    failover.steps.map((step) => step.state),
    Array(9).fill('done'),
  );
  t.same(failover.point, {
    seq: 7,
    sourceTime: '2026-01-01T00:00:00.000Z',
    wanted: null,
    lossMs: 1500,
  });
  t.same(failover.addresses, ['192.0.2.5']);
});

t.test('the appliance dies anywhere in a failover: it completes after the restart', (t) =>
  sweep(t, null, 'die', ['completed']),
);

t.test('the appliance VM dies anywhere and loses its attached disks: it completes', (t) =>
  sweep(t, null, 'die-with-vm', ['completed']),
);

t.test('an answer of the host is lost anywhere: it is read back and completes', (t) =>
  // A lost answer of the job service or of the store is no such thing: those are in the same process.
  sweepHost(t, 'lose-answer', ['completed']),
);

t.test('the host refuses anything once: replication goes on, or the replica runs', (t) =>
  sweepHost(t, 'refuse', ['failed', 'completed']),
);

async function sweepHost(st: Tap, kind: Trouble['kind'], expected: string[]): Promise<void> {
  const places = await countPlaces(null);
  const failures: string[] = [];
  let tried = 0;
  for (const [at, name] of places.entries()) {
    if (/ save |stopIntake|drainApply|closeDisks|reopen|release/.test(name)) continue;
    tried++;
    const world = new World();
    const failover = await play(world, [{ at, kind }]);
    const wrong = judge(world, failover);
    if (!expected.includes(failover.state.name)) wrong.push(`ended ${failover.state.name}`);
    if (wrong.length > 0) failures.push(`${kind} ${name} (${at}): ${wrong.join('; ')}`);
  }
  st.ok(tried > 30, `${tried} calls`);
  st.same(failures, []);
}

t.test(
  'a guest that does not boot: everything is taken back, and the next failover works',
  async (t) => {
    const world = new World();
    world.boots = false;
    const failover = await play(world, []);
    t.equal(failover.state.name, 'failed');
    t.match(failover.state, { error: { code: 'UND_FAILOVER_NO_BOOT_PROOF' } });
    t.same(judge(world, failover), []);
    t.same(
      world.reopened.map((entry) => entry.mirror),
      ['none'],
    );
    t.same([...world.images.keys()], ['base-vda', 'base-vdb'], 'no layer is left over');

    world.boots = true;
    const engine = modelEngine(world);
    await engine.load();
    const again = await engine.settled((await engine.start(JOB, REPLICA)).failoverId);
    t.equal(again.state.name, 'completed');
    t.same(judge(world, again), []);
  },
);

t.test('dying anywhere while taking back: it is taken back after the restart', async (t) => {
  await sweepFailing(t, 'die');
  await sweepFailing(t, 'die-with-vm');
});

async function sweepFailing(st: Tap, kind: Trouble['kind']): Promise<void> {
  const probe = new World();
  probe.boots = false;
  await play(probe, []);
  const failures: string[] = [];
  for (const [at, name] of probe.places.entries()) {
    const world = new World();
    world.boots = false;
    const failover = await play(world, [{ at, kind }]);
    const wrong = judge(world, failover);
    if (failover.state.name !== 'failed') wrong.push(`ended ${failover.state.name}`);
    if (wrong.length > 0) failures.push(`${kind} ${name} (${at}): ${wrong.join('; ')}`);
  }
  st.same(failures, [], `${kind} at ${probe.places.length} places`);
}

t.test(
  'undo goes back to replication with a difference mirror, whenever the appliance dies',
  async (t) => {
    const world = new World();
    const failover = await play(world, [], 'undo');
    t.equal(failover.state.name, 'undone');
    t.same(judge(world, failover), []);
    t.same(
      world.reopened.map((entry) => entry.mirror),
      ['difference'],
    );
    t.same([...world.images.keys()], ['base-vda', 'base-vdb']);
    await sweep(t, 'undo', 'die', ['undone', 'completed']);
    await sweep(t, 'undo', 'die-with-vm', ['undone', 'completed']);
  },
);

t.test('commit keeps the replica and merges its disks, whenever the appliance dies', async (t) => {
  const world = new World();
  const failover = await play(world, [], 'commit');
  t.equal(failover.state.name, 'committed');
  t.same(judge(world, failover), []);
  t.same([...world.images.keys()], ['base-vda', 'base-vdb']);
  t.equal(world.content('base-vda'), 'prepared frame 7', 'what the replica had is what is kept');
  await sweep(t, 'commit', 'die', ['committed', 'completed']);
});

const ending = (act: AutoEnd['act']) => (world: World) => {
  world.autoEnd = { act, afterMinutes: 30 };
};

// Red when the end is not taken up after a restart, or its wish and its act are on record apart.
t.test('commit or undo by itself when the time is over, whenever the appliance dies', async (t) => {
  for (const [act, end] of [
    ['undo', 'undone'],
    ['commit', 'committed'],
  ] as const) {
    const world = new World();
    ending(act)(world);
    const failover = await play(world, []);
    t.equal(failover.state.name, end);
    t.match(failover.autoEnd, { act, afterMinutes: 30, heldBack: null });
    t.same(judge(world, failover), []);
    const places = await countPlaces(null, ending(act));
    const completed = places.indexOf('before save completed');
    t.ok(completed > 0 && places.length > completed + 20, `${places.length - completed} places`);
    const failures: string[] = [];
    // What is before is the same as in every other failover.
    for (const [at, name] of [...places.entries()].slice(completed)) {
      for (const kind of ['die', 'die-with-vm', 'lose-answer'] as const) {
        if (kind === 'die-with-vm' && act === 'commit') continue;
        if (kind === 'lose-answer' && / save |reopen|release/.test(name)) continue;
        const one = new World();
        ending(act)(one);
        const ended = await play(one, [{ at, kind }]);
        const wrong = judge(one, ended);
        if (ended.state.name !== end) wrong.push(`ended ${ended.state.name}`);
        if (wrong.length > 0) failures.push(`${kind} ${name} (${at}): ${wrong.join('; ')}`);
      }
    }
    t.same(failures, []);
  }
});

/** The engine of a world with a failover that is completed, at a time that the test sets. */
async function completedAt(st: Pick<typeof t, 'equal'>, world: World, autoEnd: AutoEnd | null) {
  const clock = { ms: Date.parse('2026-01-01T00:00:00.000Z') };
  const ends: string[] = [];
  const told: Failover[] = [];
  const options: Partial<FailoverEngineOptions> = {
    now: () => new Date(clock.ms).toISOString(),
    onAutoEnd: (_failover, act) => ends.push(act),
    onChange: (failover) => told.push(failover),
  };
  const engine = modelEngine(world, options);
  await engine.load();
  const { failoverId } = await engine.start(JOB, REPLICA, { autoEnd });
  st.equal((await engine.settled(failoverId)).state.name, 'completed');
  /** The appliance is started again. */
  const again = async () => {
    await engine.close();
    const next = modelEngine(world, options);
    await next.load();
    next.resumeAll();
    return next;
  };
  return { engine, failoverId, clock, ends, told, again };
}

// Red when the timer is not set by a change, and when a decision leaves it armed.
t.test('a person decides first, changes the time, or takes it back', async (t) => {
  const undo = { act: 'undo', afterMinutes: 30 } as const;
  {
    const world = new World();
    const { engine, failoverId, clock, ends, again } = await completedAt(t, world, undo);
    t.equal(engine.get(failoverId).autoEnd?.at, '2026-01-01T00:30:00.000Z');
    // The time is over, and a person is as fast as it: one of the two wins, and only that one is done.
    clock.ms += 3_600_000;
    const committed = engine.commit(failoverId, REPLICA);
    engine.resumeAll();
    await committed;
    t.match(await engine.settled(failoverId), { state: { name: 'committed' }, autoEnd: null });
    t.equal((await again()).get(failoverId).state.name, 'committed');
    t.same(ends, []);
    t.equal(
      await codeOf(engine.setAutoEnd(failoverId, undo)),
      'UND_FAILOVER_STATE',
      'too late to change',
    );
  }
  {
    const world = new World();
    const { engine, failoverId, clock, ends, again } = await completedAt(t, world, undo);
    clock.ms += 20 * 60_000;
    const changed = await engine.setAutoEnd(failoverId, { act: 'commit', afterMinutes: 20 });
    t.equal(changed.autoEnd?.at, '2026-01-01T00:40:00.000Z', 'from now on');
    clock.ms += 15 * 60_000;
    const next = await again();
    t.equal((await next.settled(failoverId)).state.name, 'completed', 'the old time has passed');
    await next.setAutoEnd(failoverId, null);
    clock.ms += 86_400_000;
    next.resumeAll();
    t.match(await next.settled(failoverId), { state: { name: 'completed' }, autoEnd: null });
    await next.close();
    t.same(ends, []);
  }
  {
    // By the timer of a running appliance, not by its start: 60 ms.
    const world = new World();
    const done = Promise.withResolvers<void>();
    const engine = modelEngine(world, {
      onChange: ({ state }) => {
        if (state.name === 'undone') done.resolve();
      },
    });
    await engine.load();
    const { failoverId } = await engine.start(JOB, REPLICA);
    const before = await engine.setAutoEnd(failoverId, { act: 'undo', afterMinutes: 0.001 });
    t.match(before, { state: { name: 'running' }, autoEnd: { at: null } });
    const keepAlive = setInterval(() => {}, 1000);
    await done.promise;
    clearInterval(keepAlive);
    t.same(judge(world, await engine.settled(failoverId)), []);
    await engine.close();
  }
});

t.test('a replica that does not run is never committed by itself', async (t) => {
  const world = new World();
  const commit = { act: 'commit', afterMinutes: 30 } as const;
  const { engine, failoverId, clock, ends, told } = await completedAt(t, world, commit);
  world.vms.get(REPLICA)!.running = false;
  clock.ms += 3_600_000;
  engine.resumeAll();
  t.match(await engine.settled(failoverId), {
    state: { name: 'completed' },
    autoEnd: { heldBack: 'the replica VM is off' },
  });
  // Red when the new time is told with the reason that held the old one back, and nothing after it.
  const later = await engine.setAutoEnd(failoverId, { act: 'commit', afterMinutes: 120 });
  t.equal(later.autoEnd?.heldBack, null);
  t.same(told.at(-1), later);
  await engine.settled(failoverId);
  clock.ms += 2 * 3_600_000;
  world.vms.get(REPLICA)!.running = true;
  engine.resumeAll();
  t.match(await engine.settled(failoverId), { state: { name: 'committed' } });
  t.same(ends, ['commit']);
  await engine.close();
});

// Red when the reason is taken away while the host is asked, or set for a time that was changed meanwhile.
t.test('what holds a commit back stands until the host has answered', async (t) => {
  const world = new World();
  const commit = { act: 'commit', afterMinutes: 30 } as const;
  const { engine, failoverId, clock, told } = await completedAt(t, world, commit);
  const heldBack = () => engine.get(failoverId).autoEnd?.heldBack;
  /** Looked at again; the host answers when the returned function is called. */
  const look = () => {
    const answer = Promise.withResolvers<void>();
    world.vmStateAnswers = answer.promise;
    engine.resumeAll();
    return () => {
      answer.resolve();
      return engine.settled(failoverId);
    };
  };
  world.vms.get(REPLICA)!.running = false;
  clock.ms += 3_600_000;
  await look()();
  t.equal(heldBack(), 'the replica VM is off');

  const before = told.length;
  const again = look();
  t.equal(heldBack(), 'the replica VM is off', 'while the host is asked');
  await again();
  t.equal(heldBack(), 'the replica VM is off');
  t.equal(told.length, before, 'nothing new, nothing told');

  const late = look();
  await engine.setAutoEnd(failoverId, { act: 'commit', afterMinutes: 120 });
  await late();
  t.equal(heldBack(), null, 'the time that is set now is not over');
  t.equal(told.at(-1)?.autoEnd?.heldBack, null);

  clock.ms += 2 * 3_600_000;
  await look()();
  t.equal(told.at(-1)?.autoEnd?.heldBack, 'the replica VM is off');
  clock.ms -= 2 * 3_600_000;
  await look()();
  t.equal(told.at(-1)?.autoEnd?.heldBack, null, 'the clock was set back: nothing is due');
  await engine.close();
});

// Red when the note is told and forgotten: whoever asks next reads another failover than the page was told of.
t.test('a record that cannot be saved says so to everyone', async (t) => {
  const world = new World();
  const told: Failover[] = [];
  let full = false;
  const engine = modelEngine(world, {
    onChange: (failover) => told.push(failover),
    store: {
      loadAll: async () => [],
      save: async () => {
        if (full) throw undError('UND_INTERNAL', { reason: 'the disk is full' });
        full = true;
      },
    },
  });
  const { failoverId } = await engine.start(JOB, REPLICA);
  const failover = await engine.settled(failoverId);
  t.match(failover.notes.at(-1), /the disk is full/);
  t.same(told.at(-1), failover);
  engine.resumeAll();
  t.same(await engine.settled(failoverId), failover, 'once');
  await engine.close();
});

const planned = (powerOff: boolean) => (world: World) => {
  world.plan = { stopUnits: ['postgresql.service'], powerOff };
};

// Red with the final mark before stop-services, and with the source told to go before the mark was durable.
t.test('a planned failover loses nothing, whenever the appliance dies', async (t) => {
  for (const powerOff of [true, false]) {
    const world = new World();
    planned(powerOff)(world);
    const failover = await play(world, []);
    t.same(judge(world, failover), []);
    t.match(failover, { kind: 'planned', state: { name: 'completed' }, point: { lossMs: 0 } });
    t.equal(world.source.off, powerOff);
    t.same(
      failover.steps.slice(0, 3).map(({ name, state }) => `${name} ${state}`),
      ['stop-services done', 'final-mark done', 'power-off done'],
    );
    await sweep(t, null, 'die', ['completed'], planned(powerOff));
    await sweep(t, null, 'die-with-vm', ['completed'], planned(powerOff));
  }
});

t.test(
  'a planned failover that fails: the services run again, unless the source is off',
  async (t) => {
    const places = await countPlaces(null, planned(true));
    const asked = places.indexOf('after powerOff');
    t.ok(asked > 0);
    const failures: string[] = [];
    for (const [at, name] of places.entries()) {
      // A store that is gone ends everything; what is asked here is the source and the host.
      if (!name.startsWith('before') || / save |drainApply|closeDisks|reopen/.test(name)) continue;
      const world = new World();
      planned(true)(world);
      const failover = await play(world, [{ at, kind: 'refuse' }]);
      const wrong = judge(world, failover);
      if (failover.state.name === 'failed' && at < asked && !world.source.services) {
        wrong.push('the source was left without its services');
      }
      if (at > asked && !world.source.off) wrong.push('the source is not off');
      if (wrong.length > 0) failures.push(`refuse ${name} (${at}): ${wrong.join('; ')}`);
    }
    t.same(failures, []);

    const world = new World();
    planned(true)(world);
    world.boots = false;
    const failover = await play(world, []);
    t.equal(failover.state.name, 'failed');
    t.match(failover.steps[2]!.detail, /when it is switched on, it goes on by itself/);
    t.same(judge(world, failover), []);
  },
);

t.test('dying while a planned failover is being taken back', async (t) => {
  const failing = (world: World) => {
    planned(true)(world);
    const { places } = world;
    // The final mark never becomes durable.
    world.refuses = () => places.at(-1) === 'before finalMark';
  };
  const world = new World();
  failing(world);
  const failover = await play(world, []);
  t.equal(failover.state.name, 'failed');
  t.ok(world.source.services);
  await sweep(t, null, 'die', ['failed'], failing);
});

t.test(
  'a planned failover of a source that is away is refused, and nothing has changed',
  async (t) => {
    const world = new World();
    world.source.online = false;
    const engine = modelEngine(world);
    await engine.load();
    const plan = { stopUnits: [], powerOff: true };
    t.equal(await codeOf(engine.start(JOB, REPLICA, { plan })), 'UND_AGENT_OFFLINE');
    t.equal(world.records.size, 0);
  },
);

// Red without the look in power-on.
t.test('the source comes back while its replica is being made: not two of them', async (t) => {
  const world = new World();
  const asked: string[] = [];
  const engine = modelEngine(world, {
    probe: async (addresses) => {
      asked.push(addresses.join(' '));
      return asked.length === 2 ? '192.0.2.5 takes connections' : null;
    },
  });
  await engine.load();
  const failover = await engine.settled((await engine.start(JOB, REPLICA)).failoverId);
  t.same(asked, ['192.0.2.5', '192.0.2.5'], 'before it began, and before power-on');
  t.match(failover.state, { name: 'failed', error: { code: 'UND_FAILOVER_SOURCE_ALIVE' } });
  t.same(judge(world, failover), []);

  const other = modelEngine(world, { probe: async () => '192.0.2.5 takes connections' });
  await other.load();
  t.equal(await codeOf(other.start(JOB, REPLICA)), 'UND_FAILOVER_SOURCE_ALIVE');
  t.ok(world.job.intake, 'nothing has begun');
  const { failoverId } = await other.start(JOB, REPLICA, { evenIfAlive: true });
  t.equal((await other.settled(failoverId)).state.name, 'completed');
});

t.test('two troubles in one failover, in every pair of a sample', async (t) => {
  const places = await countPlaces(null);
  const kinds: Trouble['kind'][] = ['die', 'die-with-vm', 'refuse', 'lose-answer'];
  const failures: string[] = [];
  let played = 0;
  // A refused save or job call is another fault (the store is gone); it is not what is asked here.
  const host = (at: number) =>
    !/ save |stopIntake|drainApply|closeDisks|reopen/.test(places[at] ?? '');
  for (let first = 0; first < places.length; first++) {
    for (const [index, kind] of kinds.entries()) {
      if (kind !== 'die' && kind !== 'die-with-vm' && !host(first)) continue;
      const second = first + 1 + ((first * 7 + index * 13) % 40);
      const world = new World();
      played++;
      try {
        const failover = await play(world, [
          { at: first, kind },
          { at: second, kind: index % 2 === 0 ? 'die' : 'die-with-vm' },
        ]);
        const wrong = judge(world, failover);
        if (wrong.length > 0)
          failures.push(`${kind}@${first} then @${second}: ${wrong.join('; ')}`);
      } catch (error) {
        failures.push(`${kind}@${first} then @${second}: ${(error as Error).message}`);
      }
    }
  }
  t.ok(played > 250, `${played} pairs`);
  t.same(failures, []);
});

const codeOf = async (promise: Promise<unknown>): Promise<ErrorCode | string> => {
  try {
    await promise;
    return 'no error';
  } catch (error) {
    return (error as { code: ErrorCode }).code;
  }
};

t.test('bad requests change nothing', async (t) => {
  const world = new World();
  const engine = modelEngine(world);
  await engine.load();
  t.equal(await codeOf(engine.start(JOB, 'web1')), 'UND_FAILOVER_CONFIRM');
  t.equal(await codeOf(engine.undo('nope', REPLICA)), 'UND_FAILOVER_NOT_FOUND');
  world.vms.set(REPLICA, { uuid: 'foreign', running: true, spec: { disks: [] } as never });
  t.equal(await codeOf(engine.start(JOB, REPLICA)), 'UND_HV_NAME_IN_USE');
  t.equal(world.records.size, 0);
  t.ok(world.job.intake, 'intake goes on');
  t.notOk(engine.ownsDisks(JOB));
});

t.test('two failovers at once: the second is refused, whatever the moment', async (t) => {
  const world = new World();
  const engine = modelEngine(world);
  await engine.load();
  const [first, second] = await Promise.allSettled([
    engine.start(JOB, REPLICA),
    engine.start(JOB, REPLICA),
  ]);
  t.equal(first.status, 'fulfilled');
  t.match(second, { status: 'rejected', reason: { code: 'UND_FAILOVER_RUNNING' } });
  const { failoverId } = engine.list()[0] as Failover;
  t.equal(await codeOf(engine.undo(failoverId, REPLICA)), 'UND_FAILOVER_STATE');
  await engine.settled(failoverId);
  t.equal(await codeOf(engine.start(JOB, REPLICA)), 'UND_FAILOVER_RUNNING');
  const both = await Promise.allSettled([
    engine.undo(failoverId, REPLICA),
    engine.commit(failoverId, REPLICA),
  ]);
  t.same(both.map((entry) => entry.status).sort(), ['fulfilled', 'rejected']);
});

t.test('a VM of the same name that is not ours is never touched', async (t) => {
  const world = new World();
  world.boots = true;
  // It appears after the name was checked: at the moment of define.
  const at = (await countPlaces(null)).indexOf('before defineVm');
  const engine = modelEngine(world);
  await engine.load();
  const place = world.place.bind(world);
  world.place = (name, effect) => {
    if (name === 'defineVm' && world.places.length >= at - 2 && !world.vms.has(REPLICA)) {
      world.vms.set(REPLICA, { uuid: 'foreign', running: true, spec: { disks: [] } as never });
    }
    return place(name, effect);
  };
  const failover = await engine.settled((await engine.start(JOB, REPLICA)).failoverId);
  t.match(failover.state, { name: 'failed', error: { code: 'UND_HV_NAME_IN_USE' } });
  t.match(world.vms.get(REPLICA), { uuid: 'foreign', running: true });
  t.ok(world.job.intake && world.open, 'replication goes on');
});

t.test(
  'a host that cannot start the replica with itself: committed all the same, with a note',
  async (t) => {
    const at = (await countPlaces('commit')).indexOf('before setAutostart');
    t.ok(at > 0);
    const failover = await play(new World(), [{ at, kind: 'refuse' }], 'commit');
    t.equal(failover.state.name, 'committed');
    t.match(failover.notes, [/does not start with its host/]);
  },
);

// Red when the state is what the proof of boot said.
t.test('after the proof the replica VM is looked at until commit', async (t) => {
  const world = new World();
  const seen: (string | undefined)[] = [];
  const engine = modelEngine(world, {
    watchMs: 1,
    onChange: ({ replicaVm }) => seen.push(replicaVm?.state),
  });
  await engine.load();
  engine.resumeAll();
  const { failoverId } = await engine.settled((await engine.start(JOB, REPLICA)).failoverId);
  const state = () => engine.get(failoverId).replicaVm?.state;
  const until = async (what: string, wanted: string | undefined) => {
    for (let tries = 0; state() !== wanted; tries++) {
      if (tries > 3000) throw new Error(`waited for ${what}, it is ${state()}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  };
  await until('the running VM', 'running');
  t.same(engine.get(failoverId).addresses, ['192.0.2.9'], 'an address that came after the proof');
  world.vms.get(REPLICA)!.running = false;
  await until('its end', 'off');
  t.ok(seen.includes('off'), 'people are told');
  world.vms.get(REPLICA)!.running = true;
  await until('its return', 'running');
  await engine.undo(failoverId, REPLICA);
  await engine.settled(failoverId);
  t.equal(state(), undefined, 'not watched any more');
  await engine.close();
});

t.test(
  'a chosen moment: the replica is at exactly that, and everything can be taken back',
  async (t) => {
    const world = new World(true);
    const failover = await play(world, []);
    t.equal(failover.state.name, 'completed');
    t.same(judge(world, failover), []);
    t.equal(failover.steps.find(({ name }) => name === 'replay')?.state, 'done');
    t.match(failover.point, { seq: 4, wanted: '2026-01-01T00:00:00.500Z' });

    const undone = new World(true);
    t.same(judge(undone, await play(undone, [], 'undo')), []);
    t.equal(undone.images.size, 4, 'the checkpoint is still there, nothing else');

    const committed = new World(true);
    t.same(judge(committed, await play(committed, [], 'commit')), []);
    t.same([...committed.images.keys()], ['ck-vda', 'ck-vdb'], 'what was newer is gone');
    t.equal(committed.content('ck-vda'), 'prepared frame 4');
  },
);

t.test('a chosen moment, whenever the appliance dies or an answer is lost', async (t) => {
  for (const ask of [null, 'undo', 'commit'] as const) {
    const probe = new World(true);
    await play(probe, [], ask);
    const failures: string[] = [];
    for (const [at, name] of probe.places.entries()) {
      for (const kind of ['die', 'die-with-vm', 'lose-answer'] as const) {
        if (kind === 'lose-answer') {
          if (ask !== null || / save |stopIntake|drainApply|closeDisks|reopen|replay/.test(name))
            continue;
        }
        if (kind === 'die-with-vm' && ask === 'commit') continue;
        const world = new World(true);
        const failover = await play(world, [{ at, kind }], ask).catch((error: Error) => error);
        const wrong = failover instanceof Error ? [failover.message] : judge(world, failover);
        if (wrong.length > 0) failures.push(`${ask} ${kind} ${name} (${at}): ${wrong.join('; ')}`);
      }
    }
    t.ok(probe.places.length > 70, `${probe.places.length} places`);
    // Without the replay in prepareGuest, a guest is prepared on fresh overlays at the checkpoint.
    t.same(failures, [], String(ask));
  }
});

const testWorld = (moment: boolean, change: Partial<World> = {}): World =>
  Object.assign(new World(true), { kind: 'test', moment, ...change });

t.test(
  'a test failover proves the boot and leaves nothing, replication is untouched',
  async (t) => {
    for (const moment of [false, true]) {
      const world = testWorld(moment);
      let spec: VmSpec | undefined;
      const place = world.place.bind(world);
      world.place = (name, effect) => {
        if (name === 'undefineVm') spec = [...world.vms.values()][0]?.spec;
        return place(name, effect);
      };
      const failover = await play(world, []);
      t.equal(failover.state.name, 'undone');
      t.match(failover, {
        kind: 'test',
        replicaName: `${REPLICA}-test`,
        point: { seq: moment ? 4 : 3 },
        test: { network: 'alone', verdict: { passed: true, words: /^TCP port 22 answers/ } },
      });
      t.same(judgeTest(world), []);
      t.equal(failover.steps.length, moment ? 8 : 6);
      t.match(spec, { name: `${REPLICA}-test`, nics: [{ network: 'alone' }] });
      const real = await play(new World(), []);
      t.equal(real.state.name, 'completed');
      t.not(spec?.nics[0]?.mac, replicaMac(JOB, 'ens3'), 'a MAC address of its own');
    }
  },
);

// Red when the checkpoint is let go before the overlays, and when a test owns the job's disks.
t.test('a test failover, whenever the appliance dies, an answer is lost or refused', async (t) => {
  for (const [moment, boots] of [
    [false, true],
    [true, true],
    [true, false],
  ] as const) {
    const probe = testWorld(moment, { boots });
    await play(probe, []);
    const failures: string[] = [];
    for (const [at, name] of probe.places.entries()) {
      for (const kind of ['die', 'die-with-vm', 'lose-answer', 'refuse'] as const) {
        const ours = / save |holdPoint|releasePoint|replay|prepare/.test(name);
        if ((kind === 'lose-answer' || kind === 'refuse') && (ours || !boots)) continue;
        const world = testWorld(moment, { boots });
        const failover = await play(world, [{ at, kind }]).catch((error: Error) => error);
        const wrong = failover instanceof Error ? [failover.message] : judgeTest(world);
        if (!(failover instanceof Error)) {
          const state = failover.state.name;
          const passed = failover.test?.verdict?.passed;
          const expected = boots && (kind !== 'refuse' || state === 'undone');
          if (state !== (expected ? 'undone' : 'failed')) wrong.push(`ended ${state}`);
          if (passed !== expected) wrong.push(`passed: ${passed}`);
        }
        if (wrong.length > 0) failures.push(`${kind} ${name} (${at}): ${wrong.join('; ')}`);
      }
    }
    t.ok(probe.places.length > 60, `${probe.places.length} places`);
    t.same(failures, [], `moment ${moment}, boots ${boots}`);
  }
});

t.test('a test that is kept: it runs until somebody ends it, over a restart as well', async (t) => {
  const world = testWorld(false, { keepMinutes: 60 });
  const kept = await play(world, []);
  t.equal(kept.state.name, 'completed');
  t.equal([...world.vms.values()][0]?.running, true);
  t.ok(world.open && world.attached.size === 2, 'replication goes on');
  const leftMs = Date.parse(kept.test!.endsAt!) - Date.parse(kept.test!.verdict!.at);
  t.equal(leftMs, 3_600_000);

  const probe = testWorld(false, { keepMinutes: 60 });
  await play(probe, [], 'undo');
  const failures: string[] = [];
  for (const [at, name] of probe.places.entries()) {
    for (const kind of ['die', 'die-with-vm'] as const) {
      const one = testWorld(false, { keepMinutes: 60 });
      const failover = await play(one, [{ at, kind }], 'undo');
      // Died before the end was on record: nobody asks again here, and the test is still kept.
      if (failover.state.name === 'completed') continue;
      const wrong = judgeTest(one);
      if (wrong.length > 0) failures.push(`${kind} ${name} (${at}): ${wrong.join('; ')}`);
    }
  }
  t.same(failures, []);

  // The appliance was away when the time was over.
  const late = modelEngine(world, { now: () => '2100-01-01T00:00:00.000Z' });
  await late.load();
  t.notOk(late.ownsDisks(JOB));
  t.same(late.fenceOf('source-1', null), { name: 'none' }, 'a test fences no source');
  late.resumeAll();
  const undone = await late.settled(kept.failoverId);
  t.equal(undone.state.name, 'undone');
  const ends = ({ steps }: Failover) => steps.map(({ name, endedAt }) => ({ name, endedAt }));
  t.same(ends(undone), ends(kept), 'each step says how long it took, not until when it stood');
  t.same(judgeTest(world), []);
});

// Red when a failed check is told and passes all the same.
t.test('a check that does not pass fails the test, and nothing is left', async (t) => {
  const world = testWorld(true, { checksPass: false });
  const failover = await play(world, []);
  t.match(failover, {
    state: { name: 'failed', error: { code: 'UND_TEST_CHECKS_FAILED' } },
    test: {
      verdict: { passed: false, words: /TCP port 22: closed/ },
      checks: [{ name: 'TCP port 22', state: 'failed' }],
    },
  });
  t.equal(failover.steps.find(({ name }) => name === 'prove-boot')?.state, 'compensated');
  t.same(judgeTest(world), []);
});

const hanging = (began: () => void): Partial<FailoverEngineOptions> => ({
  prover: {
    prove: (_record, _job, { signal }) =>
      new Promise((_resolve, reject) => {
        began();
        signal.addEventListener('abort', () => reject(signal.reason));
      }),
  },
});

t.test(
  'a test ends in the middle of a step, and a failover of the job ends it first',
  async (t) => {
    const world = testWorld(false);
    const began = Promise.withResolvers<void>();
    const engine = modelEngine(world, hanging(began.resolve));
    await engine.load();
    const options = { wanted: null, keepMinutes: 0, trigger: 'person' } as const;
    const first = await engine.startTest(JOB, options);
    t.equal(await codeOf(engine.startTest(JOB, options)), 'UND_TEST_RUNNING');
    t.equal(await codeOf(engine.commit(first.failoverId, first.replicaName)), 'UND_FAILOVER_STATE');
    await began.promise;
    engine.endTest(first.failoverId);
    const ended = await engine.settled(first.failoverId);
    t.match(ended, { state: { name: 'undone' }, test: { verdict: null } });
    t.same(judgeTest(world), []);

    const again = Promise.withResolvers<void>();
    const other = modelEngine(world, hanging(again.resolve));
    await other.load();
    const second = await other.startTest(JOB, options);
    await again.promise;
    t.equal(await codeOf(other.start(JOB, 'wrong')), 'UND_FAILOVER_CONFIRM');
    t.equal(other.get(second.failoverId).state.name, 'running', 'a mistyped name ends no test');
    world.kind = 'unplanned';
    const real = await other.start(JOB, REPLICA, {
      wanted: { sourceTime: '2026-01-01T00:00:00.500Z' },
    });
    t.match(other.get(second.failoverId), { state: { name: 'undone' } });
    t.equal(other.get(real.failoverId).kind, 'unplanned');
    t.same(world.violations, []);
    t.same([world.held.size, world.vms.has(`${REPLICA}-test`)], [0, false]);
    t.equal(await codeOf(other.startTest(JOB, options)), 'UND_FAILOVER_RUNNING');
    await other.close();
  },
);

t.test('what is lost is counted by our clock, from when it was asked for', async (t) => {
  // Red with the source's clock taken for ours (37 minutes more), and with a member's own start for its group's.
  const wanted = { sourceTime: '2026-01-01T00:00:00.500Z' };
  const asked = { ...wanted, askedAt: '2026-01-01T00:37:01.000Z' };
  const options = { keepMinutes: 60, trigger: 'person' } as const;
  for (const kind of ['unplanned', 'test'] as const) {
    for (const [one, lossMs] of [
      [wanted, 3000],
      [asked, 1000],
    ] as const) {
      const world = new World(true);
      Object.assign(world, { kind, sourceBehindMs: 37 * 60_000 });
      const engine = modelEngine(world, { now: () => '2026-01-01T00:37:03.000Z' });
      await engine.load();
      const { failoverId } =
        kind === 'test'
          ? await engine.startTest(JOB, { ...options, wanted: one })
          : await engine.start(JOB, REPLICA, { wanted: one });
      t.match(await engine.settled(failoverId), {
        state: { name: 'completed' },
        point: { lossMs },
      });
      await engine.close();
    }
  }
});

t.test('no test without an isolated network', async (t) => {
  const world = testWorld(false, { isolated: false });
  const engine = modelEngine(world);
  await engine.load();
  const options = { wanted: null, keepMinutes: 0, trigger: 'person' } as const;
  t.equal(await codeOf(engine.startTest(JOB, options)), 'UND_TEST_NO_NETWORK');
  t.equal(world.records.size, 0);
});

const mountWorld = (moment: boolean, change: Partial<World> = {}): World =>
  Object.assign(new World(true), { kind: 'mount', moment, keepMinutes: 60, ...change });

t.test('a point is open for reading until it is closed; replication is untouched', async (t) => {
  for (const moment of [false, true]) {
    for (const purpose of ['files', 'nbd'] as const) {
      const world = mountWorld(moment, { purpose });
      const open = await play(world, []);
      t.match(open, {
        kind: 'mount',
        state: { name: 'completed' },
        point: { seq: moment ? 4 : 3 },
      });
      t.equal(Date.parse(open.mount!.endsAt!) - Date.parse(open.endedAt!), 3_600_000);
      t.equal(world.served.size, 1);
      t.ok(world.open && world.job.intake && world.vms.size === 0, 'replication goes on');

      const closed = mountWorld(moment, { purpose });
      t.equal((await play(closed, [], 'undo')).state.name, 'undone');
      t.same(judgeTest(closed), []);
    }
  }
});

// Red when serving ends after its disks have gone, and when a mount is taken up again after a death.
t.test('a mount, whenever the appliance dies, an answer is lost or refused', async (t) => {
  for (const [moment, purpose] of [
    [false, 'files'],
    [true, 'files'],
    [true, 'nbd'],
  ] as const) {
    const probe = mountWorld(moment, { purpose });
    await play(probe, [], 'undo');
    const failures: string[] = [];
    for (const [at, name] of probe.places.entries()) {
      for (const kind of ['die', 'die-with-vm', 'lose-answer', 'refuse'] as const) {
        const ours = / save |holdPoint|releasePoint|replay|close/.test(name);
        if ((kind === 'lose-answer' || kind === 'refuse') && ours) continue;
        const world = mountWorld(moment, { purpose });
        const failover = await play(world, [{ at, kind }], 'undo').catch((error: Error) => error);
        const wrong = failover instanceof Error ? [failover.message] : judgeTest(world);
        if (!(failover instanceof Error)) {
          const state = failover.state.name;
          // Refused on the way to it; else whoever dies with it, and whoever closes it, finds it taken back.
          const failed = kind === 'refuse' || /open/.test(name);
          if (state !== 'undone' && !(failed && state === 'failed')) wrong.push(`ended ${state}`);
        }
        if (wrong.length > 0) failures.push(`${kind} ${name} (${at}): ${wrong.join('; ')}`);
      }
    }
    t.ok(probe.places.length > 40, `${probe.places.length} places`);
    t.same(failures, [], `moment ${moment}, ${purpose}`);
  }
});

t.test('a mount is closed by its time, by a failover, and when what serves it ends', async (t) => {
  const world = mountWorld(false);
  const options = { wanted: null, keepMinutes: 60, purpose: 'files' } as const;
  let gone: (reason: string) => void = () => {};
  const server = modelServer(world);
  const engine = modelEngine(world, {
    server: {
      ...server,
      open: (request, signal) => {
        gone = request.onGone;
        return server.open(request, signal);
      },
    },
  });
  await engine.load();
  const first = await engine.settled((await engine.startMount(JOB, options)).failoverId);
  t.same(engine.list(), [], 'it is among the mounts, not among the failovers');
  t.equal(await codeOf(engine.startMount(JOB, options)), 'UND_MOUNT_OPEN');
  const second = await engine.startMount(JOB, { ...options, purpose: 'nbd' });
  t.equal((await engine.settled(second.failoverId)).state.name, 'completed', 'one per purpose');
  t.equal(engine.openMountsOf(JOB).length, 2);
  t.notOk(engine.ownsDisks(JOB));
  t.same(engine.fenceOf('source-1', null), { name: 'none' }, 'a mount fences no source');
  t.equal(await codeOf(engine.commit(first.failoverId, REPLICA)), 'UND_FAILOVER_STATE');
  gone('it was out of memory');
  const ended = await engine.settled(second.failoverId);
  t.match(ended, { state: { name: 'undone' }, notes: ['it was out of memory'] });
  t.match(engine.get(first.failoverId), { state: { name: 'completed' } });

  world.kind = 'unplanned';
  const wanted = { sourceTime: '2026-01-01T00:00:00.500Z' };
  const real = await engine.start(JOB, REPLICA, { wanted });
  t.match(
    engine.get(first.failoverId),
    { state: { name: 'undone' } },
    'a failover closes it first',
  );
  await engine.settled(real.failoverId);
  t.equal(await codeOf(engine.startMount(JOB, options)), 'UND_FAILOVER_RUNNING');
  t.same(world.violations, []);
  await engine.close();

  const short = mountWorld(true, { keepMinutes: 0 });
  t.equal((await play(short, [])).state.name, 'undone');
  t.same(judgeTest(short), []);
});
