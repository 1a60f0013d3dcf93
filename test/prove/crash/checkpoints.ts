/** The checkpoints of a crash round's job, in the appliance's process; what is on record outlives it, as its state does. */
import { Checkpointer } from '../../../appliance/checkpoints/checkpointer.ts';
import type { DiskRef, Hypervisor } from '../../../appliance/hypervisor/hypervisor.ts';
import type {
  AppliedPoint,
  OpenStreamOptions,
} from '../../../appliance/replication/replication-stream.ts';
import { CheckpointStore } from '../../../appliance/state/checkpoints.ts';
import { type Database, openDatabase } from '../../../appliance/state/database.ts';

/** Of the VM that has the replica disks, as FolderHypervisor knows it. */
export const APPLIANCE_VM = 'understudy-appliance';
export const serialOf = (disk: number) => `crash-${disk}`;

export class CrashCheckpoints {
  readonly #db: Database;
  readonly #store: CheckpointStore;
  readonly #options: OpenStreamOptions;
  readonly #checkpointer: Checkpointer;

  /** @param options its disks' replica paths become those of the images on record */
  constructor(path: string, hypervisor: Hypervisor, options: OpenStreamOptions) {
    this.#db = openDatabase(path);
    this.#db.exec('PRAGMA foreign_keys = OFF');
    this.#db.exec('CREATE TABLE IF NOT EXISTS crash_images (disk TEXT PRIMARY KEY, ref TEXT)');
    this.#store = new CheckpointStore(this.#db);
    this.#options = options;
    for (const { diskId, replicaPath } of options.disks) {
      const name = replicaPath!.slice(replicaPath!.lastIndexOf('/') + 1);
      const ref: DiskRef = { pool: 'default', name, path: replicaPath! };
      this.#db
        .prepare('INSERT OR IGNORE INTO crash_images VALUES (?, ?)')
        .run(diskId, JSON.stringify(ref));
    }
    this.#checkpointer = new Checkpointer({
      jobId: options.jobId,
      jobName: () => options.jobId,
      store: this.#store,
      hypervisor: () => hypervisor,
      applianceVm: async () => APPLIANCE_VM,
      disks: () =>
        options.disks.map(({ diskId, index }) => ({
          diskId,
          serial: serialOf(index),
          image: this.#image(diskId),
        })),
      setImages: (images) => {
        for (const [diskId, ref] of images) {
          this.#db
            .prepare('UPDATE crash_images SET ref = ? WHERE disk = ?')
            .run(JSON.stringify(ref), diskId);
        }
      },
      everyMs: () => 60_000,
      mayMerge: () => false,
      refusal: () => null,
      log: { warn: () => {}, info: () => {} } as never,
      changed: () => {},
    });
  }

  #image(diskId: string): DiskRef {
    const row = this.#db.prepare('SELECT ref FROM crash_images WHERE disk = ?').get(diskId);
    return JSON.parse(String(row!.ref)) as DiskRef;
  }

  async settle(): Promise<void> {
    await this.#checkpointer.settle();
    for (const disk of this.#options.disks) disk.replicaPath = this.#image(disk.diskId).path;
  }

  async take(point: AppliedPoint, journalId: string): Promise<number> {
    await this.#checkpointer.take(point, journalId, 'proof');
    return point.seq;
  }

  /** What is on record: kept layers by disk, oldest first, open intents, and what is written now. */
  found() {
    const rows = this.#checkpointer.list();
    const { disks } = this.#options;
    return {
      kept: rows.flatMap(({ seq, state }) =>
        state.name === 'kept'
          ? [{ seq, paths: disks.map(({ diskId }) => state.layers[diskId]!.path) }]
          : [],
      ),
      open: rows.filter(({ state }) => state.name !== 'kept').length,
      images: disks.map(({ diskId }) => this.#image(diskId).path),
    };
  }
}
