/**
 * What the appliance asks of the target host, in the field's words. A driver (libvirt first) implements it; nothing
 * outside `appliance/hypervisor/` knows which driver it is.
 *
 * Rules for every method:
 * - It throws a coded error (`UND_HV_…`, see `protocol/errors.ts`) and never a bare one. Besides the codes named at a
 *   method, each may throw `UND_HV_UNREACHABLE` (the host does not answer: retry later; the outcome of the call is
 *   unknown, so read back before acting), `UND_HV_REFUSED` (the host's wrapper forbids it) and `UND_HV_FAILED` (the
 *   hypervisor said no, in its own words).
 * - Names are checked before anything is sent: `UND_HV_BAD_NAME`.
 * - Sizes are bytes, times are milliseconds.
 * - A method that makes something refuses to take over a thing that is already there: `UND_HV_NAME_IN_USE`.
 * - VMs are the appliance's own: itself, and those that it defined. Any other VM of the host is `UND_HV_REFUSED`.
 */
export interface Hypervisor {
  /** The host's name, versions, processors, memory and live use. The first call takes about half a second longer. */
  describeHost(): Promise<HostDescription>;

  /** All storage pools that this appliance may see, those that can't hold replica disks with the reason. */
  listPools(): Promise<StoragePool[]>;

  /** All networks that a replica VM may be connected to. */
  listNetworks(): Promise<Network[]>;

  /**
   * Makes an empty, sparse disk (qcow2, compat 1.1) in a pool. The volume's full name is the driver's choice
   * (`understudy-NAME.qcow2`): use the returned reference.
   * Throws `UND_HV_POOL_UNUSABLE` (no such pool, or it cannot hold qcow2: with the reason), `UND_HV_POOL_FULL`
   * (the pool's free space is less than `sizeBytes` and `allowOvercommit` is not set), `UND_HV_NAME_IN_USE`.
   */
  createDisk(request: {
    pool: string;
    name: string;
    sizeBytes: number;
    /** Default true: a sparse disk starts near zero. */
    allowOvercommit?: boolean;
  }): Promise<DiskRef>;

  /** Throws `UND_HV_DISK_NOT_FOUND`. Works on a disk in use. */
  diskInfo(disk: DiskRef): Promise<DiskInfo>;

  /**
   * Grows a disk, attached or not; shrinking is refused (`UND_HV_SHRINK`). An attached disk's guest sees the new size
   * at once. Throws `UND_HV_DISK_NOT_FOUND`.
   */
  resizeDisk(disk: DiskRef, sizeBytes: number): Promise<void>;

  /**
   * Deletes a disk or an overlay that nothing uses. No error when it is gone already.
   * Throws `UND_HV_DISK_IN_USE` when a VM of the host, running or not, or another image rests on it (names them).
   */
  deleteDisk(disk: DiskRef): Promise<void>;

  /**
   * Hot-attaches a disk to a running VM (virtio-scsi; not written into the VM's lasting definition: the appliance
   * attaches its disks again after each start). The guest finds it by `serial`
   * (`/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_SERIAL`), some moments after this returns. A full pool or a failed
   * write is reported to the guest as an I/O error; it never pauses the VM. Host cache: none where the pool's file
   * system can do direct I/O, else writeback; never unsafe.
   * Attaching what is attached already under the same serial is no error.
   * Throws `UND_HV_VM_NOT_FOUND`, `UND_HV_VM_NOT_RUNNING`, `UND_HV_DISK_NOT_FOUND`, `UND_HV_DISK_IN_USE` (another VM
   * holds it, or the serial belongs to another disk of this VM), `UND_HV_BAD_SERIAL`, `UND_HV_NO_CONTROLLER` (the VM
   * must be powered off and on once before it takes disks).
   */
  attachDisk(vm: string, disk: DiskRef, options: AttachOptions): Promise<AttachedDisk>;

  /**
   * Hot-detaches the disk with this serial: asks the guest, waits until the hypervisor's own description of the VM no
   * longer has it, then proves that the image's lock is free. Unmount, flush and close it in the guest first.
   * No error when it is not attached.
   * Throws `UND_HV_DETACH_TIMEOUT` (the guest does not let go: THE DISK IS STILL ATTACHED, do not start anything on
   * it; call again), `UND_HV_DISK_LOCKED` (gone from the VM, but something still has the image open),
   * `UND_HV_VM_NOT_FOUND`, `UND_HV_OWN_DISK` (the appliance's own system or journal disk).
   */
  detachDisk(vm: string, serial: string): Promise<void>;

  /** The disks of a VM as the hypervisor has them now (live when it runs, else as defined). */
  listAttachedDisks(vm: string): Promise<AttachedDisk[]>;

  /**
   * One atomic, instant point in time over the disks of one job: a new, empty overlay becomes the top of each named
   * disk, the former top becomes a frozen layer; every other disk of the VM is left alone. The guest is not told:
   * drain and flush first. All or nothing. Read `listAttachedDisks` and `chain` to know what the VM writes now: the
   * result says what was asked for, and after `UND_HV_UNREACHABLE` nothing else tells whether it happened.
   * Throws `UND_HV_VM_NOT_RUNNING`, `UND_HV_DISK_NOT_ATTACHED` (names the serial), `UND_HV_NAME_IN_USE`.
   */
  snapshotDisks(
    vm: string,
    disks: { serial: string; overlayName: string }[],
  ): Promise<DiskSnapshot[]>;

  /**
   * A writable overlay on a disk that nobody writes (detached, or a frozen layer): reads come from `base`, writes go
   * to the overlay. In the base's pool unless `pool` is given.
   * Throws `UND_HV_DISK_NOT_FOUND`, `UND_HV_DISK_IN_USE` (the base is the writable top of a VM that may run),
   * `UND_HV_POOL_UNUSABLE`, `UND_HV_NAME_IN_USE`.
   */
  createOverlay(request: { base: DiskRef; name: string; pool?: string }): Promise<DiskRef>;

  /**
   * Merges an overlay into the layer directly below it and deletes the overlay; live when a VM runs on it, else
   * offline. Returns the layer that now has the data. A VM's disk keeps its serial.
   * Throws `UND_HV_DISK_IN_USE` when another image or VM rests on the layer below (names them: their data would
   * change under them), `UND_HV_NO_BASE` when it is not an overlay, `UND_HV_DISK_NOT_FOUND`.
   */
  commitOverlay(overlay: DiskRef): Promise<DiskRef>;

  /**
   * Ends a merge of this overlay that is under way: its `commitOverlay` throws then, and what the disk holds is as before;
   * the layer below has got a part of it, so its own state is lost. No error when there is none, or when it is that of a
   * running VM's top layer (that one goes on).
   */
  cancelCommit(overlay: DiskRef): Promise<void>;

  /** Throws an overlay's changes away. As `deleteDisk`, but refuses a disk that is no overlay (`UND_HV_NO_BASE`). */
  deleteOverlay(overlay: DiskRef): Promise<void>;

  /** The image and all layers below it, top first. Throws `UND_HV_DISK_NOT_FOUND`. Works on a disk in use. */
  chain(disk: DiskRef): Promise<DiskLayer[]>;

  /**
   * Defines a VM, powered off. Throws `UND_HV_NAME_IN_USE` (name or UUID), `UND_HV_DISK_NOT_FOUND`,
   * `UND_HV_DISK_IN_USE`, `UND_HV_NETWORK_NOT_FOUND`, `UND_HV_UNSUPPORTED` (for example no UEFI firmware on the host).
   */
  defineVm(spec: VmSpec): Promise<VmRef>;

  /**
   * Powers a VM on. No error when it runs already. Throws `UND_HV_VM_NOT_FOUND`, `UND_HV_DISK_LOCKED` (one of its
   * disks is open elsewhere), `UND_HV_NO_MEMORY`, `UND_HV_FAILED`.
   */
  startVm(vm: string): Promise<void>;

  /**
   * Without `force`: asks the guest to power off (ACPI) and waits, at most `timeoutMs` (default 120 s), then throws
   * `UND_HV_STOP_TIMEOUT`. With `force`: pulls the plug. No error when it is off already. `UND_HV_VM_NOT_FOUND`.
   */
  stopVm(vm: string, options: { force: boolean; timeoutMs?: number }): Promise<void>;

  /**
   * Removes a VM that is off; its disks stay. No error when it is gone already. Throws `UND_HV_VM_RUNNING`,
   * `UND_HV_REFUSED` for the appliance itself.
   */
  undefineVm(vm: string): Promise<void>;

  /** `{ state: 'absent' }` rather than an error when there is no such VM. */
  vmState(vm: string): Promise<VmState>;

  /** Whether any VM of the host, also somebody else's, has this name: no other VM can be defined with it. */
  isNameTaken(vm: string): Promise<boolean>;

  /**
   * Whether the host starts the VM when it starts itself. Not for the appliance itself (`UND_HV_REFUSED`).
   * `UND_HV_VM_NOT_FOUND`.
   */
  setAutostart(vm: string, on: boolean): Promise<void>;

  /**
   * The running VMs, whoever's they are but the appliance, that have one of these disks open, as it is or below an
   * overlay of theirs. Disks that are not there are passed over.
   */
  diskUsers(disks: readonly DiskRef[]): Promise<{ vm: string; disk: DiskRef }[]>;

  /** The appliance's own VM and those that it defined. */
  listVms(): Promise<VmRef[]>;

  /** What is on the VM's screen now, as a PNG. Throws `UND_HV_VM_NOT_RUNNING`. */
  screenshot(vm: string): Promise<Buffer>;

  /**
   * The last bytes (at most 64 KiB) that the guest printed to its first serial port since the VM was defined, also
   * after it stopped; '' when nothing was printed. Control sequences are left in. `UND_HV_VM_NOT_FOUND`.
   */
  consoleTail(vm: string): Promise<string>;

  /**
   * Addresses of the guest's NICs as far as the host knows them. `source` tells how: 'agent' is what the guest says,
   * 'lease' what DHCP gave, 'arp' what the host saw. Empty when nothing is known yet. `UND_HV_VM_NOT_FOUND`.
   */
  guestAddresses(vm: string): Promise<GuestAddress[]>;

  /** True when the guest agent answers now. False when there is none, or it does not answer within 5 s. */
  guestAgentPing(vm: string): Promise<boolean>;

  /**
   * Begins a program in the guest by its guest agent, as the agent's user there (root), and returns the number to ask
   * for its result with. `argv` begins with an absolute path; `input` is its standard input, at most 48 KiB. Only in VMs
   * that the appliance defined. Throws `UND_HV_GUEST_AGENT` (there is none, or it does not do such things),
   * `UND_HV_VM_NOT_FOUND`, `UND_HV_VM_NOT_RUNNING`, `UND_HV_REFUSED`.
   */
  guestExec(vm: string, program: { argv: readonly string[]; input?: string }): Promise<number>;

  /** Null while it runs. Its result can be read once. Throws as `guestExec`. */
  guestExecResult(vm: string, pid: number): Promise<GuestExecResult | null>;

  /** Closes connections to the host. */
  close(): Promise<void>;
}

/** A disk image on the host. `path` is absolute and for people and logs: a disk is addressed by pool and name. */
export interface DiskRef {
  pool: string;
  name: string;
  path: string;
}

export interface DiskInfo extends DiskRef {
  format: 'qcow2';
  /** What a guest sees. */
  sizeBytes: number;
  /** What it takes in the pool. */
  allocatedBytes: number;
  /** The layer directly below, absent for a plain disk. */
  backing?: DiskRef;
  /** True when something has the image open for writing now. */
  locked: boolean;
}

export interface DiskLayer extends DiskRef {
  sizeBytes: number;
  allocatedBytes: number;
}

export interface AttachOptions {
  /** 1 to 20 characters of a-z, A-Z, 0-9, '-', '_'; unique in the VM. */
  serial: string;
  readOnly?: boolean;
}

export interface AttachedDisk {
  /** Absent on disks that nobody gave a serial, such as the appliance's own. */
  serial?: string;
  /** The hypervisor's name of the slot, such as `sdb`: not what the guest calls it. */
  target: string;
  bus: string;
  readOnly: boolean;
  /** The top image. Absent for an empty drive or one that is not in a pool of ours. */
  disk?: DiskRef;
  /** Cache mode as the hypervisor reports it. */
  cache: string;
}

export interface DiskSnapshot {
  serial: string;
  /** The new, empty top layer that takes the writes from now on. */
  top: DiskRef;
  /** The former top: frozen as it was at the point. */
  frozen: DiskRef;
}

export interface HostDescription {
  name: string;
  /** Such as `Debian GNU/Linux 12 (bookworm)`. */
  os: string;
  kernel: string;
  /** Such as `libvirt 9.0.0, QEMU 7.2.22`. */
  hypervisor: string;
  cpu: {
    model: string;
    count: number;
    /** Share of all processors in use, 0 to 1, over the last moments. */
    use: number;
    loadAverage1: number;
  };
  memory: { totalBytes: number; availableBytes: number };
  /** Bytes per second through the host's own network interfaces, over the last moments. */
  network: { receiveBytesPerSecond: number; sendBytesPerSecond: number };
  /** How guests are run: 'kvm', or 'qemu' where the processor's help is not usable (slow: labs only). */
  acceleration: 'kvm' | 'qemu';
  firmwares: Firmware[];
  /** The name that the host has for the VM that the appliance itself runs in. */
  applianceVm: string;
}

export type Firmware = 'bios' | 'uefi';

export type StoragePool = {
  name: string;
  /** The driver's word: `dir`, `fs`, `netfs`, `logical`, `zfs`, ... */
  type: string;
  capacityBytes: number;
  availableBytes: number;
} & ({ usable: true; path: string } | { usable: false; reason: string });

export interface Network {
  name: string;
  /** The host's bridge, where there is one. */
  bridge?: string;
  forward: 'nat' | 'route' | 'bridge' | 'open' | 'isolated' | 'other';
  /** True when guests on it reach nothing but each other (and the host's own address on it): fit for a test failover. */
  isolated: boolean;
  active: boolean;
  /** The host's addresses on it with prefix length, such as `192.168.122.1/24`. */
  addresses: string[];
}

export interface VmDiskSpec {
  disk: DiskRef;
  /** As in `AttachOptions`. */
  serial: string;
  readOnly?: boolean;
}

export interface VmNicSpec {
  network: string;
  /** Such as `52:54:00:12:34:56`; the hypervisor makes one up when absent. */
  mac?: string;
  model: 'virtio' | 'e1000e';
  /** False: the cable is unplugged. Default true. */
  connected?: boolean;
}

export interface VmSpec {
  /** Letters, digits, '.', '_', '-'; at most 63. */
  name: string;
  /** Shown by the host's own tools. */
  title?: string;
  uuid?: string;
  vcpus: number;
  memoryBytes: number;
  firmware: Firmware;
  /** Boot order is the order here. */
  disks: VmDiskSpec[];
  nics: VmNicSpec[];
}

export interface VmRef {
  name: string;
  uuid: string;
  role: 'appliance' | 'replica';
  state: VmState;
}

export type VmState =
  | { state: 'absent' }
  | { state: 'off'; reason: string }
  | { state: 'running' }
  | { state: 'paused'; reason: string }
  | { state: 'stopping' }
  | { state: 'crashed' };

export interface GuestExecResult {
  /** Null when a signal ended it. */
  exitCode: number | null;
  signal: number | null;
  output: string;
  errors: string;
}

export interface GuestAddress {
  mac: string;
  address: string;
  prefixLength: number;
  source: 'agent' | 'lease' | 'arp';
}
