/** One replica disk on a target host, and the appliance's own keeper of its checkpoints. */
import { Checkpointer } from '../../appliance/checkpoints/checkpointer.ts';
import type { DiskRef } from '../../appliance/hypervisor/hypervisor.ts';
import type { StreamDisk } from '../../appliance/replication/replication-stream.ts';
import { CheckpointStore } from '../../appliance/state/checkpoints.ts';
import { openDatabase } from '../../appliance/state/database.ts';
import { type HostCall, LocalHost, type LocalHostConfig } from './local-host.ts';

const SERIAL = 'ubench';

export class HostedDisk {
  readonly checkpoints: Checkpointer;
  /** The block device of the disk. */
  readonly path: string;
  readonly #host: LocalHost;

  private constructor(host: LocalHost, path: string, checkpoints: Checkpointer) {
    this.#host = host;
    this.path = path;
    this.checkpoints = checkpoints;
  }

  static async make(
    config: LocalHostConfig,
    dir: string,
    { diskId, sizeBytes }: StreamDisk,
  ): Promise<HostedDisk> {
    const host = await LocalHost.start(config);
    const { hypervisor } = host;
    const name = `bench-${process.pid}`;
    let image: DiskRef = await hypervisor.createDisk({ pool: 'default', name, sizeBytes });
    await hypervisor.attachDisk(config.applianceVm, image, { serial: SERIAL });
    const db = openDatabase(`${dir}.db`);
    // The job itself is in no table here.
    db.exec('PRAGMA foreign_keys = OFF');
    const checkpoints = new Checkpointer({
      jobId: 'bench',
      jobName: () => 'bench',
      store: new CheckpointStore(db),
      hypervisor: () => hypervisor,
      applianceVm: async () => config.applianceVm,
      disks: () => [{ diskId, serial: SERIAL, image }],
      setImages: (images) => {
        image = images.get(diskId)!;
      },
      everyMs: () => Number.POSITIVE_INFINITY,
      mayMerge: () => false,
      refusal: () => null,
      log: { warn: () => {}, info: () => {} } as never,
      changed: () => {},
    });
    return new HostedDisk(host, (await host.find(SERIAL))!, checkpoints);
  }

  get calls(): readonly HostCall[] {
    return this.#host.calls;
  }

  cleanUp(): void {
    this.#host.cleanUp();
  }
}
