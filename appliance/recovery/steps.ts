/**
 * What each step of a failover does and how it is taken back. A step may be interrupted at any point and is then run
 * again from its beginning, so each reads back first what is there; a compensation likewise, and it may meet a step that
 * never got anywhere. Docs: docs/failover.md.
 */
import { asUndError, undError } from '../../protocol/errors.ts';
import type { FailoverStepName } from '../api/schema.ts';
import { bySerial, findLeftover, readSnapshot, sameDisk } from '../checkpoints/snapshot.ts';
import type { DiskRef, Hypervisor } from '../hypervisor/hypervisor.ts';
import type { AddressProbe } from './probe.ts';
import type { BootProver } from './prove-boot.ts';
import { type FailoverRecord, layerName, type RecordDisk, vmDiskOrder } from './record.ts';
import type { TestChecker } from './test-checks.ts';
import type { GuestPreparer, JobHandle, PointServer } from './types.ts';

export interface StepContext {
  readonly record: FailoverRecord;
  /** Persists the change before it returns. */
  save(change: (record: FailoverRecord) => Partial<FailoverRecord>): Promise<void>;
  /** What the step is doing now, for the page. */
  detail(text: string): void;
  hypervisor: Hypervisor;
  job: JobHandle;
  preparer: GuestPreparer;
  prover: BootProver;
  checker: TestChecker;
  probe: AddressProbe;
  server: PointServer;
  /** What serves a mount has ended by itself. */
  gone(reason: string): void;
  /** The appliance's device for an attached disk; waits for it to appear. Throws `UND_FAILOVER_DEVICE_MISSING`. */
  locate(serial: string, signal: AbortSignal): Promise<string>;
  /** Writes back and drops what the appliance's kernel has cached of a device. */
  flushDevice(path: string): Promise<void>;
  now(): string;
  /** Throws when the engine is closed. */
  wait(ms: number): Promise<void>;
  signal: AbortSignal;
}

export interface Step {
  /** Returns what was achieved, in words. */
  run(context: StepContext): Promise<string>;
  /** Returns what was taken back, or null when there is nothing to say. */
  compensate(context: StepContext): Promise<string | null>;
}

const plural = (count: number, word: string): string => `${count} ${word}${count === 1 ? '' : 's'}`;

const updateDisks = (
  record: FailoverRecord,
  change: (disk: RecordDisk) => Partial<RecordDisk>,
): { disks: RecordDisk[] } => ({
  disks: record.disks.map((disk) => ({ ...disk, ...change(disk) })),
});

/** The image that replication goes on with when the failover is taken back. */
const replicationImage = (disk: RecordDisk): DiskRef => disk.top ?? disk.image;

const nameOf = (record: FailoverRecord, diskId: string): string =>
  record.disks.find((disk) => disk.diskId === diskId)?.sourceName ?? diskId;

// ---- on the source: stop-services, final-mark, power-off ---------------------------------------------------------
/**
 * The source goes on as before. Where its agent is away, or the source is off, it is told when it comes back: what
 * stands on record there asks for it.
 */
async function letSourceGoOn({ job, record, save }: StepContext): Promise<string> {
  try {
    const started = await job.cancelHandover(record.failoverId);
    if (started === null) {
      return record.powerOffAsked && record.plan?.powerOff
        ? 'the source server was told to power off: when it is switched on, it goes on by itself'
        : 'the source server is not connected: when it is, it goes on by itself';
    }
    return started.length > 0 ? `started again: ${started.join(', ')}` : 'it goes on';
  } catch (error) {
    // It has let go of the failover all the same, and trying again would start nothing more.
    const note = asUndError(error).message;
    await save(({ notes }) => ({ notes: [...notes.filter((one) => one !== note), note] }));
    return note;
  }
}

const stopServices: Step = {
  async run({ job, record }) {
    const stopped = await job.prepareHandover(record.failoverId, record.plan?.stopUnits ?? []);
    return stopped.length > 0 ? stopped.join(', ') : 'no services to stop';
  },
  compensate: letSourceGoOn,
};

const finalMark: Step = {
  /** Interrupted, another mark is placed: it covers what was written in between. */
  async run({ job, record, detail, save }) {
    const final = await job.finalMark(record.failoverId, detail);
    await save((current) => ({ final, point: { ...current.point, lossMs: 0 } }));
    const how = final.quiesced ? 'file systems at rest' : `not at rest: ${final.reason}`;
    return `everything up to frame ${final.seq} is kept; ${how}`;
  },
  compensate: async () => null,
};

const POWER_OFF_LIMIT_MS = 5 * 60_000;

const powerOff: Step = {
  async run(context) {
    const { job, record, save, detail, wait } = context;
    const { failoverId, replicaName, sourceName } = record;
    const how = record.plan?.powerOff ? 'power-off' : 'passive';
    const askedBefore = record.powerOffAsked === true;
    const online = async () => (await job.describe()).sourceOnline;
    if (!askedBefore && !(await online())) {
      throw undError('UND_AGENT_OFFLINE', { source: sourceName });
    }
    await save(() => ({ powerOffAsked: true }));
    try {
      await job.powerOff(failoverId, how, `${sourceName} was failed over to ${replicaName}`);
    } catch (error) {
      const { code } = asUndError(error);
      // Told before, or while it was: a machine that powers off gives no answer.
      const gone = code.startsWith('UND_LINK_') || (code === 'UND_AGENT_OFFLINE' && askedBefore);
      if (!gone) throw error;
    }
    const end = Date.now() + POWER_OFF_LIMIT_MS;
    while (await online()) {
      if (Date.now() > end) {
        throw undError('UND_HANDOVER_FAILED', {
          source: sourceName,
          reason: 'its agent is still connected after it was told to go',
        });
      }
      detail('waiting until the source server has gone');
      await wait(500);
    }
    return how === 'passive' ? 'its agent is passive' : `${sourceName} has gone`;
  },
  compensate: async (context) => (context.record.powerOffAsked ? letSourceGoOn(context) : null),
};

/** What was written for so long before it was asked for is not in it. The source's clock may be anything. */
function lossMs(job: JobHandle, { wanted, startedAt }: FailoverRecord, sourceTime: string): number {
  const askedAt = wanted?.askedAt ?? startedAt;
  return Math.max(0, Date.parse(askedAt) - Date.parse(job.earliestHere(sourceTime)));
}

// ---- hold-point --------------------------------------------------------------------------------------------------
/** Of tests and mounts. Nothing merges what the overlays rest on until this is taken back, which is the last of all. */
const holdPoint: Step = {
  async run({ job, record, save }) {
    if (!record.chosen) {
      // A former run may have held another one.
      await job.releasePoint(record.failoverId);
      const found = await job.holdPoint(
        record.wanted?.sourceTime ?? null,
        record.failoverId,
        record.kind === 'mount' ? 'to be looked into' : 'test failover',
      );
      await save((current) => ({
        chosen: found,
        point: {
          seq: found.seq,
          sourceTime: found.sourceTime,
          lossMs: lossMs(job, current, found.sourceTime),
        },
      }));
      const from = found.seq > found.baseSeq ? `, from the checkpoint at ${found.baseSeq}` : '';
      return `frame ${found.seq}, of ${found.sourceTime}${from}`;
    }
    return `frame ${record.chosen.seq}, of ${record.chosen.sourceTime}`;
  },
  async compensate({ job, record }) {
    await job.releasePoint(record.failoverId);
    return null;
  },
};

// ---- stop-intake -------------------------------------------------------------------------------------------------
const stopIntake: Step = {
  async run({ job, record, save }) {
    const point = await job.stopIntake(
      record.failoverId,
      `failover to ${record.replicaName} began at ${record.startedAt}`,
    );
    const { final } = record;
    if (final && point.durableSeq < final.seq) {
      throw undError('UND_HANDOVER_FAILED', {
        source: record.sourceName,
        reason: `its final mark, frame ${final.seq}, is not in the journal, which ends at ${point.durableSeq}`,
      });
    }
    if (!record.wanted) {
      await save((current) => ({
        point: { ...current.point, seq: point.durableSeq, sourceTime: point.sourceTime },
      }));
      return `newest frame received: ${point.durableSeq}`;
    }
    const chosen = await job.choosePoint(record.wanted.sourceTime, record.failoverId);
    await save((current) => ({
      chosen,
      point: {
        seq: chosen.seq,
        sourceTime: chosen.sourceTime,
        lossMs: lossMs(job, current, chosen.sourceTime),
      },
    }));
    return `newest frame received: ${point.durableSeq}; chosen: frame ${chosen.seq}, from the checkpoint at ${chosen.baseSeq}`;
  },
  async compensate(context) {
    const { job, record } = context;
    // The last compensation: everything else is back in its place, so the disks may be written again. A restart of the
    // appliance VM meanwhile may have detached them.
    await attachMissing(context);
    await job.reopen(
      record.disks.map((disk) => ({ diskId: disk.diskId, image: replicationImage(disk) })),
      record.phase.name === 'undoing'
        ? { mirror: 'difference', reason: `the failover to ${record.replicaName} was undone` }
        : { mirror: 'none', reason: `the failover to ${record.replicaName} failed` },
    );
    return 'replication goes on';
  },
};

// ---- apply -------------------------------------------------------------------------------------------------------
const apply: Step = {
  async run({ job, detail, save }) {
    const { appliedSeq, images } = await job.drainApply(detail);
    // A checkpoint of the job's own may have come between the start and here.
    await save((current) =>
      updateDisks(current, (disk) => ({
        image: images.find(({ diskId }) => diskId === disk.diskId)?.image ?? disk.image,
      })),
    );
    return `applied up to frame ${appliedSeq}`;
  },
  // What is applied stays applied: it is what the source wrote.
  compensate: async () => null,
};

// ---- checkpoint --------------------------------------------------------------------------------------------------
/**
 * All disks at once, by one atomic snapshot while they are attached. When a restart of the appliance VM has detached
 * them, there is nothing that could write them, so their present content is the point, and the layer for replication is
 * made by hand: in both cases a disk ends as `frozen` with an empty `top`.
 */
const checkpoint: Step = {
  async run(context) {
    const { hypervisor, save } = context;
    const readBack = async (): Promise<'done' | 'not yet'> => {
      const { record } = context;
      const found = await readSnapshot(hypervisor, record.applianceVm, record.disks);
      if (found.name === 'none') return 'not yet';
      if (found.name === 'broken') {
        throw undError('UND_DISK_CHAIN', {
          job: record.jobId,
          disk: nameOf(record, found.disk.diskId),
          expected: found.expected,
          found: found.found,
        });
      }
      await save((current) =>
        updateDisks(current, (disk) => ({ frozen: disk.image, top: found.tops.get(disk.diskId) })),
      );
      return 'done';
    };

    const words = () => `${plural(context.record.disks.length, 'disk')} at one point in time`;
    if (context.record.disks.every((disk) => disk.frozen && disk.top)) return words();

    const attached = await hypervisor.listAttachedDisks(context.record.applianceVm);
    const present = context.record.disks.filter((disk) => bySerial(attached, disk.serial));
    if (present.length === 0) {
      await freezeDetached(context);
      return words();
    }
    for (const disk of context.record.disks) {
      if (!bySerial(attached, disk.serial)) {
        await hypervisor.attachDisk(context.record.applianceVm, disk.image, {
          serial: disk.serial,
        });
      }
    }
    if (context.record.checkpointIntent && (await readBack()) === 'done') return words();

    for (const disk of context.record.disks) {
      const now = bySerial(attached, disk.serial)?.disk;
      if (!now || sameDisk(now, disk.image)) continue;
      throw undError('UND_DISK_CHAIN', {
        job: context.record.jobId,
        disk: disk.sourceName,
        expected: disk.image.name,
        found: now.name,
      });
    }
    const attempt = (context.record.checkpointIntent?.attempt ?? 0) + 1;
    const names = Object.fromEntries(
      context.record.disks.map((disk, index) => [
        disk.diskId,
        layerName(context.record, 'checkpoint', index, attempt),
      ]),
    );
    await save(() => ({ checkpointIntent: { attempt, names } }));
    await hypervisor.snapshotDisks(
      context.record.applianceVm,
      context.record.disks.map((disk) => ({
        serial: disk.serial,
        overlayName: names[disk.diskId] as string,
      })),
    );
    if ((await readBack()) !== 'done') {
      throw undError('UND_DISK_CHAIN', {
        job: context.record.jobId,
        disk: context.record.disks.map((disk) => disk.sourceName).join(', '),
        expected: 'a checkpoint layer',
        found: 'the disks as they were',
      });
    }
    return words();
  },

  /** The chain gets short again. A chain that can't be merged now does no harm: replication goes on in its top. */
  async compensate(context) {
    const { hypervisor, save, detail } = context;
    const adopted = await adoptSnapshot(context);
    let merged = 0;
    for (const { diskId } of context.record.disks) {
      const disk = context.record.disks.find((candidate) => candidate.diskId === diskId);
      if (!disk?.top || !disk.frozen) continue;
      detail(`merging the checkpoint of ${disk.sourceName}`);
      try {
        const chain = await hypervisor.chain(disk.top);
        const image = chain.length > 1 ? await hypervisor.commitOverlay(disk.top) : disk.top;
        await save((current) =>
          updateDisks(current, (candidate) =>
            candidate.diskId === diskId ? { top: undefined, frozen: undefined, image } : {},
          ),
        );
        merged++;
      } catch (error) {
        const coded = asUndError(error);
        if (coded.code === 'UND_HV_UNREACHABLE') throw coded;
        if (coded.code === 'UND_HV_DISK_NOT_FOUND') {
          // A former run merged it and died before it could say so.
          await save((current) =>
            updateDisks(current, (candidate) =>
              candidate.diskId === diskId ? { top: undefined, frozen: undefined } : {},
            ),
          );
          merged++;
          continue;
        }
        await save((current) => ({
          notes: [...current.notes, `${disk.sourceName}: checkpoint layer kept: ${coded.message}`],
        }));
      }
    }
    return merged > 0 || adopted ? 'checkpoint merged' : null;
  },
};

/** A snapshot may have happened although the step failed: what the appliance has attached is the truth. */
async function adoptSnapshot(context: StepContext): Promise<boolean> {
  const { hypervisor, record, save } = context;
  if (!record.checkpointIntent || record.disks.some((disk) => disk.top)) return false;
  const attached = await hypervisor.listAttachedDisks(record.applianceVm);
  const found = new Map<string, DiskRef>();
  for (const disk of record.disks) {
    const top = bySerial(attached, disk.serial)?.disk;
    if (!top || sameDisk(top, disk.image)) continue;
    const below = (await hypervisor.chain(top))[1];
    if (sameDisk(below, disk.image)) found.set(disk.diskId, top);
  }
  if (found.size === 0) return false;
  await save((current) =>
    updateDisks(current, (disk) => {
      const top = found.get(disk.diskId);
      return top ? { top, frozen: disk.image } : {};
    }),
  );
  return true;
}

async function freezeDetached(context: StepContext): Promise<void> {
  const { save } = context;
  for (const [index, { diskId }] of context.record.disks.entries()) {
    const disk = context.record.disks[index] as RecordDisk;
    if (disk.frozen && disk.top) continue;
    // A snapshot whose answer was lost may have made its layer: it is empty, because nothing wrote since.
    const asked = context.record.checkpointIntent?.names[diskId];
    const made = asked ? await findLeftover(context.hypervisor, disk.image, asked) : null;
    if (made) {
      await save((current) =>
        updateDisks(current, (candidate) =>
          candidate.diskId === diskId ? { top: made, frozen: disk.image } : {},
        ),
      );
      continue;
    }
    const attempt = (context.record.checkpointIntent?.attempt ?? 0) + 1;
    const name = layerName(context.record, 'checkpoint', index, attempt);
    await save((current) => ({
      checkpointIntent: {
        attempt,
        names: { ...current.checkpointIntent?.names, [diskId]: name },
      },
    }));
    const top = await createOverlay(context, disk.image, name);
    await save((current) =>
      updateDisks(current, (candidate) =>
        candidate.diskId === diskId ? { top, frozen: disk.image } : {},
      ),
    );
  }
}

/** As the hypervisor's, but takes over an overlay of this very name and base that a former try left behind. */
async function createOverlay(context: StepContext, base: DiskRef, name: string): Promise<DiskRef> {
  try {
    return await context.hypervisor.createOverlay({ base, name });
  } catch (error) {
    const coded = asUndError(error);
    if (coded.code !== 'UND_HV_NAME_IN_USE') throw coded;
    const left = await findLeftover(context.hypervisor, base, name);
    if (!left) throw coded;
    return left;
  }
}

// ---- detach ------------------------------------------------------------------------------------------------------
const detach: Step = {
  async run({ hypervisor, job, record, detail }) {
    await job.closeDisks();
    for (const disk of record.disks) {
      detail(`detaching ${disk.sourceName}`);
      await hypervisor.detachDisk(record.applianceVm, disk.serial);
    }
    const left = await hypervisor.listAttachedDisks(record.applianceVm);
    for (const disk of record.disks) {
      if (bySerial(left, disk.serial)) {
        throw undError('UND_HV_DETACH_TIMEOUT', {
          serial: disk.serial,
          vm: record.applianceVm,
          timeoutMs: 0,
        });
      }
    }
    return `${plural(record.disks.length, 'disk')} detached, image locks free`;
  },

  async compensate(context) {
    const again = await attachMissing(context);
    return again > 0 ? `${plural(again, 'disk')} attached to the appliance again` : null;
  },
};

async function attachMissing({ hypervisor, record, detail }: StepContext): Promise<number> {
  const attached = await hypervisor.listAttachedDisks(record.applianceVm);
  let again = 0;
  for (const disk of record.disks) {
    if (bySerial(attached, disk.serial)) continue;
    detail(`attaching ${disk.sourceName} again`);
    await hypervisor.attachDisk(record.applianceVm, replicationImage(disk), {
      serial: disk.serial,
    });
    again++;
  }
  return again;
}

// ---- overlay -----------------------------------------------------------------------------------------------------
/** What a disk's overlay rests on: the chosen checkpoint's layer, else the disk as it was frozen. */
const overlayBase = (record: FailoverRecord, disk: RecordDisk): DiskRef | undefined =>
  record.chosen
    ? record.chosen.base.find(({ diskId }) => diskId === disk.diskId)?.image
    : disk.frozen;

async function makeOverlays(context: StepContext): Promise<void> {
  const { save } = context;
  if (context.record.disks.every((disk) => disk.overlay)) return;
  const attempt = context.record.overlayIntent?.attempt ?? 1;
  const names = Object.fromEntries(
    context.record.disks.map((disk, index) => [
      disk.diskId,
      layerName(context.record, 'replica', index, attempt),
    ]),
  );
  await save(() => ({ overlayIntent: { attempt, names } }));
  for (const { diskId } of context.record.disks) {
    const disk = context.record.disks.find((candidate) => candidate.diskId === diskId);
    if (!disk || disk.overlay) continue;
    const base = overlayBase(context.record, disk);
    if (!base) {
      throw undError('UND_DISK_CHAIN', {
        job: context.record.jobId,
        disk: disk.sourceName,
        expected: 'a frozen layer',
        found: 'none',
      });
    }
    const overlay = await createOverlay(context, base, names[diskId] as string);
    await save((current) =>
      updateDisks(current, (candidate) => (candidate.diskId === diskId ? { overlay } : {})),
    );
  }
}

/** Deletes the overlays, those of a lost call included. The next ones get other names. */
async function dropOverlays(context: StepContext): Promise<number> {
  const { hypervisor, save } = context;
  const intent = context.record.overlayIntent;
  if (!intent) return 0;
  let dropped = 0;
  for (const { diskId } of context.record.disks) {
    const disk = context.record.disks.find((candidate) => candidate.diskId === diskId);
    if (!disk) continue;
    const name = intent.names[diskId];
    const base = overlayBase(context.record, disk);
    const overlay =
      disk.overlay ??
      (base && name ? await findLeftover(context.hypervisor, base, name) : undefined);
    if (!overlay) continue;
    await hypervisor.deleteDisk(overlay);
    dropped++;
    await save((current) =>
      updateDisks(current, (candidate) =>
        candidate.diskId === diskId ? { overlay: undefined } : {},
      ),
    );
  }
  await save(() => ({
    overlayIntent: { attempt: intent.attempt + 1, names: {} },
    overlaysTouched: false,
    replayed: false,
  }));
  return dropped;
}

const overlay: Step = {
  async run(context) {
    await makeOverlays(context);
    return context.record.disks.map((disk) => disk.overlay?.name ?? '?').join(', ');
  },
  async compensate(context) {
    const dropped = await dropOverlays(context);
    return dropped > 0 ? `${plural(dropped, 'overlay')} deleted` : null;
  },
};

// ---- overlays at the appliance --------------------------------------------------------------------------------------
async function detachOverlays({ hypervisor, record }: StepContext): Promise<void> {
  for (const disk of record.disks) {
    await hypervisor.detachDisk(record.applianceVm, disk.prepareSerial);
  }
}

type OverlayDevice = { diskId: string; sourceName: string; devicePath: string; boot: boolean };

async function attachOverlays(
  context: StepContext,
  { readOnly = false } = {},
): Promise<OverlayDevice[]> {
  const { hypervisor, record, locate, signal, detail } = context;
  const devices: OverlayDevice[] = [];
  for (const { diskId, sourceName, boot, overlay, prepareSerial } of record.disks) {
    detail(`attaching the overlay of ${sourceName}`);
    await hypervisor.attachDisk(record.applianceVm, overlay as DiskRef, {
      serial: prepareSerial,
      ...(readOnly ? { readOnly } : {}),
    });
    devices.push({ diskId, sourceName, boot, devicePath: await locate(prepareSerial, signal) });
  }
  return devices;
}

// ---- replay ------------------------------------------------------------------------------------------------------
/** Redo: an interrupted one is run again from its beginning, on the same overlays. */
const replayStep: Step = {
  async run(context) {
    await detachOverlays(context);
    await makeOverlays(context);
    await replayOnto(context, await attachOverlays(context));
    await detachOverlays(context);
    const { chosen } = context.record;
    return chosen ? `${chosen.seq - chosen.baseSeq} frames, up to ${chosen.sourceTime}` : 'none';
  },
  async compensate(context) {
    await detachOverlays(context);
    return null;
  },
};

async function replayOnto(context: StepContext, devices: OverlayDevice[]): Promise<void> {
  const { job, record, save, detail, signal, flushDevice } = context;
  if (!record.chosen || record.replayed || record.chosen.seq === record.chosen.baseSeq) return;
  await job.replay(record.chosen, devices, detail, signal);
  for (const { devicePath } of devices) await flushDevice(devicePath);
  await save(() => ({ replayed: true }));
}

// ---- prepare-guest -----------------------------------------------------------------------------------------------
const prepareGuest: Step = {
  async run(context) {
    const { save, preparer, flushDevice, signal, detail } = context;
    await detachOverlays(context);
    if (context.record.overlaysTouched) {
      // An interrupted preparation may have left a guest half changed. Its overlays hold nothing else: begin anew.
      detail('the former preparation was interrupted: beginning anew on fresh overlays');
      await dropOverlays(context);
    }
    await makeOverlays(context);
    const devices = await attachOverlays(context);
    // Fresh overlays read as the checkpoint again.
    await replayOnto(context, devices);
    await save(() => ({ overlaysTouched: true }));
    detail('preparing the guest');
    const { record } = context;
    const primary = record.nics.find((nic) => nic.primary) ?? record.nics[0];
    const report = await preparer.prepare(
      {
        failoverId: record.failoverId,
        jobId: record.jobId,
        at: context.now(),
        firmware: record.vm.firmware,
        disks: devices,
        nics: primary ? [{ name: primary.name, sourceMac: primary.mac, mac: record.vm.mac }] : [],
        droppedNics: record.nics.filter((nic) => nic !== primary).map((nic) => nic.name),
      },
      signal,
    );
    for (const { devicePath } of devices) await flushDevice(devicePath);
    detail('detaching the overlays');
    await detachOverlays(context);
    await save(() => ({ guestChanges: report.changes, unfixable: report.unfixable }));
    const open = report.unfixable.length > 0 ? `, ${report.unfixable.length} not possible` : '';
    return `${report.os ?? 'no operating system found'}: ${plural(report.changes.length, 'change')}${open}`;
  },

  async compensate(context) {
    await detachOverlays(context);
    return null;
  },
};

// ---- define, power-on --------------------------------------------------------------------------------------------
/** The replica VM if it is there; by its UUID, because its name may be somebody else's. */
const ownVm = async ({ hypervisor, record }: StepContext) =>
  (await hypervisor.listVms()).find((vm) => vm.uuid.toLowerCase() === record.vm.uuid.toLowerCase());

const define: Step = {
  async run(context) {
    const { hypervisor, record } = context;
    if (!(await ownVm(context))) {
      await hypervisor.defineVm({
        name: record.replicaName,
        title: `Understudy ${record.kind === 'test' ? 'test' : 'replica'} of ${record.sourceName}`,
        uuid: record.vm.uuid,
        vcpus: record.vm.vcpus,
        memoryBytes: record.vm.memoryBytes,
        firmware: record.vm.firmware,
        disks: vmDiskOrder(record.disks).map((disk) => ({
          disk: disk.overlay as DiskRef,
          serial: disk.serial,
        })),
        nics: [{ network: record.vm.network, mac: record.vm.mac, model: 'virtio' }],
      });
    }
    return `${record.replicaName}: ${record.vm.vcpus} vCPU, ${Math.round(record.vm.memoryBytes / 1048576)} MiB, ${record.vm.firmware}, network ${record.vm.network}`;
  },
  async compensate(context) {
    const vm = await ownVm(context);
    if (!vm) return null;
    await context.hypervisor.undefineVm(vm.name);
    return `${vm.name} removed`;
  },
};

/** How long a server may take to power off. */
const SILENCE_LIMIT_MS = 3 * 60_000;

/** @throws UND_FAILOVER_SOURCE_ALIVE */
async function requireSilence({ record, probe, detail, wait, signal }: StepContext): Promise<void> {
  const addresses = record.probe ?? [];
  if (addresses.length === 0) return;
  // Only one that was told to power off is waited for.
  const end = Date.now() + (record.plan ? SILENCE_LIMIT_MS : 0);
  for (;;) {
    detail(`looking whether ${record.sourceName} still answers on ${addresses.join(', ')}`);
    const evidence = await probe(addresses, signal);
    if (evidence === null) return;
    if (Date.now() >= end) {
      throw undError('UND_FAILOVER_SOURCE_ALIVE', { source: record.sourceName, evidence });
    }
    await wait(1_000);
  }
}

const powerOn: Step = {
  async run(context) {
    const { hypervisor, record } = context;
    const isOn = (await ownVm(context))?.state.state === 'running';
    // Once it runs, it is the replica that answers there.
    if (!isOn) await requireSilence(context);
    await hypervisor.startVm(record.replicaName);
    return `${record.replicaName} is powered on`;
  },
  async compensate(context) {
    const vm = await ownVm(context);
    if (!vm) return null;
    await context.hypervisor.stopVm(vm.name, { force: true });
    return `${vm.name} powered off`;
  },
};

// ---- prove-boot --------------------------------------------------------------------------------------------------
const proveBoot: Step = {
  async run({ prover, record, save, detail, job, signal }) {
    const proof = await prover.prove(record, job, { signal, detail, save });
    await save(() => ({ addresses: proof.addresses }));
    return proof.words;
  },
  compensate: async () => null,
};

// ---- test-checks -------------------------------------------------------------------------------------------------
/** An interrupted one is made again from its beginning: a script may run twice. */
const testChecks: Step = {
  async run(context) {
    const { checker, record, save, detail, wait } = context;
    const { wanted } = record.test ?? {};
    const checks = await checker.check(record.replicaName, wanted, {
      wait,
      detail,
      results: (results) =>
        save(({ test }) => ({ test: test ? { ...test, checks: results } : test })),
    });
    const bad = checks.filter(({ state }) => state !== 'passed');
    if (bad.length > 0) {
      throw undError('UND_TEST_CHECKS_FAILED', {
        job: record.sourceName,
        failed: bad.map(({ name, words }) => `${name}: ${words}`).join('; '),
      });
    }
    const proof = record.steps.find(({ name }) => name === 'prove-boot')?.detail;
    return `${proof}; ${plural(checks.length, 'check')} passed`;
  },
  compensate: async () => null,
};

// ---- serve -------------------------------------------------------------------------------------------------------
/**
 * Of mounts. The overlays stay attached until it is taken back. For an export they are attached read-only: a backup tool
 * gets exactly the point. File systems get writable ones, because mounting one that was in use replays its journal.
 */
const serve: Step = {
  async run(context) {
    const { server, signal, detail, save, gone } = context;
    await closeServed(context);
    const readOnly = context.record.mount?.purpose === 'nbd';
    const devices = await attachOverlays(context, { readOnly });
    const { record } = context;
    const mount = record.mount as NonNullable<typeof record.mount>;
    detail(readOnly ? 'opening the export' : 'mounting its file systems');
    const served = await server.open(
      {
        mountId: record.failoverId,
        purpose: mount.purpose,
        keepMinutes: mount.keepMinutes,
        disks: devices.map((device, index) => ({
          ...device,
          sizeBytes: record.disks[index]?.sizeBytes ?? 0,
        })),
        onGone: gone,
      },
      signal,
    );
    await save((current) => ({ mount: { ...(current.mount ?? mount), ...served } }));
    const browsable = served.volumes.filter((volume) => volume.browsable).length;
    return readOnly
      ? `${plural(served.exports.length, 'disk')} exported`
      : `${plural(browsable, 'file system')} mounted`;
  },
  async compensate(context) {
    await closeServed(context);
    return 'closed';
  },
};

/** Serving ends before its disks go: a file system that is mounted must not lose its disk. */
async function closeServed(context: StepContext): Promise<void> {
  const { hypervisor, record, server, locate, signal } = context;
  const attached = await hypervisor.listAttachedDisks(record.applianceVm);
  const paths: string[] = [];
  for (const { prepareSerial } of record.disks) {
    if (bySerial(attached, prepareSerial)) paths.push(await locate(prepareSerial, signal));
  }
  await server.close(record.failoverId, paths);
  await detachOverlays(context);
}

export const STEPS: Record<FailoverStepName, Step> = {
  'stop-services': stopServices,
  'final-mark': finalMark,
  'power-off': powerOff,
  'hold-point': holdPoint,
  'stop-intake': stopIntake,
  apply,
  checkpoint,
  detach,
  overlay,
  replay: replayStep,
  'prepare-guest': prepareGuest,
  define,
  'power-on': powerOn,
  'prove-boot': proveBoot,
  'test-checks': testChecks,
  serve,
};

/**
 * Makes a completed failover final: the appliance gives up its own layer and merges the replica VM's overlay into the
 * frozen disk, the host is told to start it with itself, then the job lets go. A chain that cannot be merged now keeps the replica running all the same.
 */
export async function commit(context: StepContext): Promise<void> {
  const { hypervisor, save } = context;
  for (const { diskId } of context.record.disks) {
    const disk = context.record.disks.find((candidate) => candidate.diskId === diskId);
    if (!disk) continue;
    const forget = (change: Partial<RecordDisk>) =>
      save((current) =>
        updateDisks(current, (candidate) => (candidate.diskId === diskId ? change : {})),
      );
    // With a chosen moment, what is newer than its checkpoint goes as well; noted before the first of it is deleted.
    const base = overlayBase(context.record, disk);
    if (context.record.chosen && base && disk.frozen && !disk.obsolete) {
      const chain = await hypervisor.chain(disk.frozen);
      const at = chain.findIndex((layer) => sameDisk(layer, base));
      const newer = chain.slice(0, Math.max(0, at));
      await forget({ obsolete: newer.map(({ pool, name, path }) => ({ pool, name, path })) });
    }
    if (disk.top) {
      await hypervisor.deleteDisk(disk.top);
      await forget({ top: undefined });
    }
    const obsolete = context.record.disks.find((one) => one.diskId === diskId)?.obsolete ?? [];
    for (const layer of obsolete) await hypervisor.deleteDisk(layer);
    if (!disk.overlay) continue;
    try {
      let image = await hypervisor.commitOverlay(disk.overlay);
      await forget({ overlay: undefined, frozen: undefined, image });
      // The VM gets plain disks: older checkpoints are of no use without the job.
      while ((await hypervisor.chain(image)).length > 1) {
        image = await hypervisor.commitOverlay(image);
        await forget({ image });
      }
    } catch (error) {
      const coded = asUndError(error);
      if (coded.code === 'UND_HV_UNREACHABLE') throw coded;
      const merged = coded.code === 'UND_HV_DISK_NOT_FOUND' || coded.code === 'UND_HV_NO_BASE';
      if (merged) {
        await forget({ overlay: undefined, frozen: undefined });
      } else {
        await save((current) => ({
          notes: [...current.notes, `${disk.sourceName}: overlay kept: ${coded.message}`],
        }));
      }
    }
  }
  try {
    const vm = await ownVm(context);
    if (vm) await hypervisor.setAutostart(vm.name, true);
  } catch (error) {
    const coded = asUndError(error);
    if (coded.code === 'UND_HV_UNREACHABLE') throw coded;
    const note = `it does not start with its host: ${coded.message}`;
    await save(({ notes }) => ({ notes: [...notes.filter((one) => one !== note), note] }));
  }
  await context.job.release(context.record.failoverId);
}
