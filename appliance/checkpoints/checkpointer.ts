/**
 * The checkpoints of one job: instant snapshots of all its replica disks at a known sequence number, while apply stands
 * still there and is flushed. The intent is persisted before the command; whether it happened is read back from the
 * chain, after a lost answer and after a crash as well, before anything is applied again.
 *
 * Checkpoints that are not to be kept are merged in the background, one pair of neighbours at a time: the layers of the
 * upper one into those of the lower one, whose point is given up on record first.
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as pause } from 'node:timers/promises';
import { asUndError, type UndError, undError } from '../../protocol/errors.ts';
import type { Logger } from '../control/logger.ts';
import type { DiskRef, Hypervisor } from '../hypervisor/hypervisor.ts';
import type { AppliedPoint, ReplicationStream } from '../replication/replication-stream.ts';
import type { CheckpointRow, CheckpointStore } from '../state/checkpoints.ts';
import {
  dueCheckpoint,
  type Merge,
  type MergeFacts,
  type MergePolicy,
  planMerges,
} from './policy.ts';
import { bySerial, findLeftover, readSnapshot, type SnapshotDisk, sameDisk } from './snapshot.ts';

/** After a failure on schedule; the gate asks again by itself. */
const RETRY_MS = 60_000;
const CANCEL_MS = 500;

export interface CheckpointContext {
  jobId: string;
  /** What people call the job. */
  jobName(): string;
  store: CheckpointStore;
  hypervisor(): Hypervisor;
  applianceVm(): Promise<string>;
  /** The replica disks with what is written now. */
  disks(): SnapshotDisk[];
  /** Persists what is written from now on; called within a transaction. */
  setImages(images: ReadonlyMap<string, DiskRef>): void;
  everyMs(): number;
  /** Whether layers may be merged: the job has its disks, and they are attached. */
  mayMerge(): boolean;
  mergePolicy?: MergePolicy;
  /** Why none may be taken now, or null. */
  refusal(): UndError | null;
  log: Logger;
  changed(): void;
}

export type Kept = CheckpointRow & { state: { name: 'kept' } };
const isKept = (row: CheckpointRow): row is Kept => row.state.name === 'kept';

export class Checkpointer {
  readonly #c: CheckpointContext;
  #rows: CheckpointRow[] | null = null;
  #last: Promise<unknown> = Promise.resolve();
  #scheduled: Promise<void> | null = null;
  #notBeforeMs = 0;
  #merging: Promise<void> | null = null;
  /** The overlay that the host is merging now. */
  #committing: DiskRef | null = null;
  /** How many wait for a merge to end early. */
  #interruptions = 0;

  constructor(context: CheckpointContext) {
    this.#c = context;
  }

  /** Oldest first, those included that are being made or given up. */
  list(): CheckpointRow[] {
    this.#rows ??= this.#c.store.list(this.#c.jobId);
    return this.#rows;
  }

  /** The frame of the oldest checkpoint that a replay of this journal can begin from; null if there is none. */
  oldestSeq(journalId: string): number | null {
    return this.list().find((row) => isKept(row) && row.journalId === journalId)?.seq ?? null;
  }

  /**
   * Whether the outcome of every checkpoint is known. As long as it is not, nothing may be applied: what is written then
   * would go into a layer that may be taken for an empty one.
   */
  get settled(): boolean {
    return this.list().every(({ state }) => state.name !== 'intended');
  }

  #touched(): void {
    this.#rows = null;
    this.#c.changed();
  }

  /**
   * Takes a checkpoint of the disks, which stand still at `point`, flushed. No error when it is there already.
   * @throws UND_HV_… and UND_DISK_CHAIN; what `refusal` says. Whatever was thrown, the images of the job are what it writes
   *   now, or the next call finds that out before it does anything else.
   */
  take(point: AppliedPoint, journalId: string, reason: string): Promise<void> {
    return this.#inTurn(async () => {
      await this.#settle();
      const there = () =>
        this.list().some(
          (row) => isKept(row) && row.journalId === journalId && row.seq === point.seq,
        );
      if (there()) return;
      const refusal = this.#c.refusal();
      if (refusal) throw refusal;
      const hypervisor = this.#c.hypervisor();
      const vm = await this.#c.applianceVm();
      const disks = this.#c.disks();
      const names = layerNames(this.#c.jobId, point.seq, disks);
      this.#c.store.add({
        jobId: this.#c.jobId,
        journalId,
        seq: point.seq,
        sinceSeq: point.sinceSeq,
        sourceMs: point.sourceMs,
        takenMs: Date.now(),
        reason,
        state: {
          name: 'intended',
          names,
          images: Object.fromEntries(disks.map(({ diskId, image }) => [diskId, image])),
        },
      });
      this.#touched();
      const asked = disks.map(({ diskId, serial }) => ({ serial, overlayName: names[diskId]! }));
      const failure = await hypervisor.snapshotDisks(vm, asked).then(
        () => null,
        (error) => asUndError(error),
      );
      await this.#settle();
      if (there()) return;
      if (failure) throw failure;
      throw this.#chainError(disks[0]!.diskId, 'a checkpoint layer', 'the disks as they were');
    });
  }

  /** Takes the checkpoint that is due, if one is. Called whenever the stream has changed; returns at once. */
  schedule(stream: ReplicationStream): void {
    const nowMs = Date.now();
    const waitMs = this.#notBeforeMs - nowMs;
    // Never longer than was meant: the clock may have been set back since.
    if (this.#scheduled || (waitMs > 0 && waitMs <= RETRY_MS)) return;
    const { journalId, dataSeq } = stream;
    const newest = this.list().findLast((row) => isKept(row) && row.journalId === journalId);
    const due = dueCheckpoint({
      point: stream.appliedPoint(),
      dataSeq,
      newest: newest ?? null,
      replayBytes: newest ? stream.replayBytes(newest.seq) : 0,
      nowMs,
      everyMs: this.#c.everyMs(),
    });
    if (due) {
      this.#inBackground(
        'no checkpoint was taken',
        stream.atAppliedPoint(
          (point) => this.take(point, journalId, due),
          () => this.settled,
        ),
      );
    } else if (this.#c.mayMerge()) {
      const merge = this.#nextMerge({ nowMs, history: { journalId, oldestSeq: stream.oldestSeq } });
      if (merge) this.#inBackground('checkpoints were not merged', this.merge(merge));
    }
  }

  #inBackground(failed: string, work: Promise<unknown>): void {
    this.#scheduled = work
      .then(
        () => {},
        (error) => {
          this.#notBeforeMs = Date.now() + RETRY_MS;
          const { code, message } = asUndError(error);
          this.#c.log.warn({ jobId: this.#c.jobId, code }, `${failed}: ${message}`);
        },
      )
      .finally(() => {
        this.#scheduled = null;
      });
  }

  /** Whether something rests on this checkpoint's layers, or on layers above them. */
  #isHeld(checkpointId: number): boolean {
    // Asked of the store itself: a merge under a layer in use is not to hang on a cached list.
    return this.#c.store
      .list(this.#c.jobId)
      .some((row) => row.checkpointId >= checkpointId && row.holders.length > 0);
  }

  /** One that was begun goes first: its lower point is given up already. */
  #nextMerge(facts: MergeFacts): Merge | null {
    const rows = this.list();
    for (const { checkpointId, state } of rows) {
      if (state.name !== 'merging') continue;
      return this.#isHeld(checkpointId) ? null : { lowerId: checkpointId, upperId: state.upperId };
    }
    if (rows.some(({ state }) => state.name === 'intended')) return null;
    const retained = rows.map((row) => ({ ...row, held: row.holders.length > 0 }));
    return planMerges(retained, facts, this.#c.mergePolicy)[0] ?? null;
  }

  /**
   * Merges two neighbours. Interrupted, it goes on from what the chains say.
   * @throws UND_HV_…, UND_DISK_CHAIN
   */
  merge(merge: Merge): Promise<void> {
    return this.#inTurn(async () => {
      this.#merging = this.#merge(merge);
      try {
        await this.#merging;
      } finally {
        this.#merging = null;
      }
    });
  }

  async #merge({ lowerId, upperId }: Merge): Promise<void> {
    await this.#settle();
    const lower = this.#c.store.get(lowerId);
    if (!lower || lower.state.name === 'intended') return;
    // Somebody may have come to rest on them since it was planned or interrupted.
    if (this.#isHeld(lowerId)) return;
    if (lower.state.name === 'kept') {
      if (!this.#c.mayMerge()) return;
      this.#c.store.setState(lowerId, { ...lower.state, name: 'merging', upperId });
      this.#touched();
    }
    for (const { diskId, image } of this.#c.disks()) {
      const upper = this.#c.store.get(upperId);
      if (upper?.state.name !== 'kept' || !this.#c.mayMerge()) return;
      const from = upper.state.layers[diskId]!;
      const into = lower.state.layers[diskId]!;
      if (sameDisk(from, into)) continue;
      try {
        if (!(await this.#mergeLayer(diskId, image, from, into))) return;
      } catch (error) {
        // It ends by our own doing; what came of it, the next run reads back.
        if (this.#interruptions > 0) return;
        throw error;
      }
      const layers = { ...upper.state.layers, [diskId]: into };
      this.#c.store.setState(upperId, { name: 'kept', layers });
    }
    this.#c.store.remove(lowerId);
    this.#touched();
  }

  /**
   * Ends the merge that is under way, if there is one, so that what waits for it goes on at once. It is taken up again after
   * a minute. Returns when it has ended; never throws.
   */
  async interruptMerge(): Promise<void> {
    this.#interruptions++;
    this.#notBeforeMs = Math.max(this.#notBeforeMs, Date.now() + RETRY_MS);
    try {
      // Again and again: the host may not have begun with it when it is asked first.
      while (this.#merging) {
        if (this.#committing) await this.#cancel(this.#committing);
        await Promise.race([this.#merging?.catch(() => undefined), pause(CANCEL_MS)]);
      }
    } finally {
      this.#interruptions--;
    }
  }

  async #cancel(overlay: DiskRef): Promise<void> {
    try {
      await this.#c.hypervisor().cancelCommit(overlay);
    } catch (error) {
      const { code, message } = asUndError(error);
      this.#c.log.warn({ jobId: this.#c.jobId, code }, `a merge goes on: ${message}`);
    }
  }

  /** @returns false when it was not begun, because somebody waits for its end */
  async #mergeLayer(disk: string, image: DiskRef, from: DiskRef, into: DiskRef): Promise<boolean> {
    const hypervisor = this.#c.hypervisor();
    const chain = await hypervisor.chain(image);
    const at = chain.findIndex((layer) => sameDisk(layer, from));
    if (at > 0 && sameDisk(chain[at + 1], into)) {
      if (this.#interruptions > 0) return false;
      this.#committing = from;
      try {
        await hypervisor.commitOverlay(from);
      } finally {
        this.#committing = null;
      }
      return true;
    }
    if (at < 0 && chain.some((layer) => sameDisk(layer, into))) {
      // A former run merged it, and may have ended before the emptied file was deleted.
      const left = await findLeftover(hypervisor, into, from.name);
      if (left) await hypervisor.deleteOverlay(left);
      return true;
    }
    const found = chain.map(({ name }) => name).join(' on ');
    throw this.#chainError(disk, `${from.name} on ${into.name}`, found);
  }

  /**
   * The newest checkpoint at or before a frame, and what keeps its layers from now on until `release`. Waits for a merge
   * that is under way.
   */
  baseFor(seq: number, journalId: string, holder: string | null): Promise<Kept | null> {
    return this.#find((row) => row.journalId === journalId && row.seq <= seq, holder);
  }

  /**
   * The newest checkpoint at or before a moment of the source, of whatever journal, kept as by `baseFor`: its layers are a
   * recovery point by themselves.
   */
  newestAt(sourceMs: number, holder: string | null): Promise<Kept | null> {
    return this.#find((row) => row.sourceMs <= sourceMs, holder);
  }

  #find(fits: (row: Kept) => boolean, holder: string | null): Promise<Kept | null> {
    return this.#inTurn(async () => {
      const found = this.list().filter(isKept).findLast(fits);
      if (!found) return null;
      if (holder !== null) {
        this.#c.store.hold(found.checkpointId, holder);
        this.#touched();
      }
      return found;
    });
  }

  /** Ends what a holder keeps. */
  release(holder: string): void {
    this.#c.store.release(holder);
    this.#touched();
  }

  /**
   * Finds out what became of a checkpoint that was asked for and not answered. Before disks are attached, and before
   * anything is applied, the images of the job are those that this leaves.
   * @throws UND_HV_…, UND_DISK_CHAIN
   */
  settle(): Promise<void> {
    return this.#inTurn(() => this.#settle());
  }

  /** Resolves when nothing is under way. */
  async idle(): Promise<void> {
    await this.#scheduled;
    await this.#last;
  }

  async #settle(): Promise<void> {
    for (const row of this.list()) {
      if (row.state.name !== 'intended') continue;
      const { names, images } = row.state;
      const disks = this.#c
        .disks()
        .map(({ diskId, serial }) => ({ diskId, serial, image: images[diskId]! }));
      if (await this.#adopt(row, disks)) continue;
      if (await this.#adoptDetached(row, disks)) continue;
      // Nothing was written above the images since, so a layer that was made is empty. Deleting it also waits for a
      // command that is still under way on the host; if that comes through, the layer is in use, and is found then.
      for (const { diskId, image } of disks) {
        const name = names[diskId]!;
        const left = await findLeftover(this.#c.hypervisor(), image, name);
        await this.#c
          .hypervisor()
          .deleteOverlay(left ?? { pool: image.pool, name, path: '' })
          .catch((error) => {
            if (asUndError(error).code !== 'UND_HV_DISK_IN_USE') throw error;
          });
      }
      if (await this.#adopt(row, disks)) continue;
      this.#c.store.remove(row.checkpointId);
      this.#touched();
    }
  }

  /** @returns whether the snapshot has happened; then it is on record, and so are the images that are written now */
  async #adopt(row: CheckpointRow, disks: readonly SnapshotDisk[]): Promise<boolean> {
    const found = await readSnapshot(this.#c.hypervisor(), await this.#c.applianceVm(), disks);
    if (found.name === 'none') return false;
    if (found.name === 'broken') {
      throw this.#chainError(found.disk.diskId, found.expected, found.found);
    }
    this.#keep(row, disks, found.tops);
    return true;
  }

  /**
   * A restart of the appliance VM has detached the disks: only the files tell. Layers that are there for all of them are
   * taken over. They rest on what was frozen at the point, and should they hold anything, it would be lost with them.
   */
  async #adoptDetached(row: CheckpointRow, disks: readonly SnapshotDisk[]): Promise<boolean> {
    const { state } = row;
    if (state.name !== 'intended') return false;
    const hypervisor = this.#c.hypervisor();
    const attached = await hypervisor.listAttachedDisks(await this.#c.applianceVm());
    if (disks.some(({ serial }) => bySerial(attached, serial))) return false;
    const tops = new Map<string, DiskRef>();
    for (const { diskId, image } of disks) {
      const left = await findLeftover(hypervisor, image, state.names[diskId]!);
      if (!left) return false;
      tops.set(diskId, left);
    }
    this.#keep(row, disks, tops);
    return true;
  }

  #keep(
    row: CheckpointRow,
    disks: readonly SnapshotDisk[],
    tops: ReadonlyMap<string, DiskRef>,
  ): void {
    const layers = Object.fromEntries(disks.map(({ diskId, image }) => [diskId, image]));
    this.#c.store.setState(row.checkpointId, { name: 'kept', layers }, () =>
      this.#c.setImages(tops),
    );
    this.#touched();
  }

  #chainError(disk: string, expected: string, found: string): UndError {
    return undError('UND_DISK_CHAIN', { job: this.#c.jobName(), disk, expected, found });
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const run = this.#last.then(work);
    this.#last = run.catch(() => undefined);
    return run;
  }
}

/** Says whose layer it is and from where; the random part makes it this attempt's and no other's. */
function layerNames(
  jobId: string,
  seq: number,
  disks: readonly SnapshotDisk[],
): Record<string, string> {
  const attempt = randomBytes(4).toString('hex');
  const job = jobId.replaceAll('-', '').slice(0, 8);
  return Object.fromEntries(
    disks.map(({ diskId }, index) => [diskId, `${job}-d${index}-after-${seq}-${attempt}`]),
  );
}
