/**
 * Checkpoints on a host whose disks are files: what becomes of one whose answer is lost, whose command is refused, and
 * whose appliance dies, before and after the command had its effect.
 */
import { randomUUID } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { Checkpointer } from '../../appliance/checkpoints/checkpointer.ts';
import {
  newestImage,
  noteWrittenImages,
  readWrittenImages,
} from '../../appliance/checkpoints/written-images.ts';
import type { DiskRef } from '../../appliance/hypervisor/hypervisor.ts';
import { CheckpointStore } from '../../appliance/state/checkpoints.ts';
import { type Database, openDatabase } from '../../appliance/state/database.ts';
import { undError } from '../../protocol/errors.ts';
import { FolderHypervisor, until } from './api.lab.ts';

const VM = 'understudy-appliance';
const JOURNAL = 'journal-1';
const at = (seq: number) => ({ seq, sourceMs: 1000 * seq, sinceSeq: 1 });

/** One job with two disks; `restart` is a new process on the same state. */
class World {
  readonly dir = mkdtempSync(join(tmpdir(), 'checkpointer-'));
  readonly db: Database = openDatabase(join(this.dir, 'state.db'));
  readonly store = new CheckpointStore(this.db);
  readonly host = new FolderHypervisor(join(this.dir, 'pool'));
  readonly jobId = randomUUID();
  readonly images = new Map<string, DiskRef>();
  mayMerge = true;
  refusal: ReturnType<typeof undError> | null = null;
  checkpoints!: Checkpointer;

  async start(): Promise<this> {
    this.db.exec(`PRAGMA foreign_keys = OFF`);
    for (const disk of ['vda', 'vdb']) {
      const image = await this.host.createDisk({ pool: 'default', name: disk, sizeBytes: 4096 });
      this.images.set(disk, image);
      await this.host.attachDisk(VM, image, { serial: `u${disk}` });
    }
    this.restart();
    return this;
  }

  restart(host: FolderHypervisor = this.host): void {
    this.checkpoints = new Checkpointer({
      jobId: this.jobId,
      jobName: () => 'web1-replica',
      store: this.store,
      hypervisor: () => host,
      applianceVm: async () => VM,
      disks: () =>
        [...this.images].map(([diskId, image]) => ({ diskId, serial: `u${diskId}`, image })),
      setImages: (images) => {
        for (const [diskId, image] of images) this.images.set(diskId, image);
      },
      everyMs: () => 60_000,
      mayMerge: () => this.mayMerge,
      refusal: () => this.refusal,
      log: { warn: () => {}, info: () => {} } as never,
      changed: () => {},
    });
  }

  take(seq: number): Promise<void> {
    return this.checkpoints.take(at(seq), JOURNAL, 'test');
  }

  /** What has to hold at any time between two operations. */
  wrong(): string[] {
    const wrong: string[] = [];
    for (const [disk, image] of this.images) {
      const attached = this.host.attached.get(`u${disk}`)?.disk.name;
      if (attached !== image.name) wrong.push(`${disk}: ${attached}, on record ${image.name}`);
      const chain: string[] = [];
      for (let layer: DiskRef | undefined = image; layer; ) {
        chain.push(layer.name);
        layer = this.host.bases.get(layer.name);
      }
      const kept = this.store
        .list(this.jobId)
        .flatMap(({ state }) => (state.name === 'kept' ? [state.layers[disk]!.name] : []));
      const below = chain.slice(1).reverse();
      if (below.join() !== kept.join()) wrong.push(`${disk}: kept ${kept}, in the chain ${below}`);
    }
    for (const { state } of this.store.list(this.jobId)) {
      if (state.name === 'intended') wrong.push('an open intent');
    }
    return wrong;
  }

  /** What the disk is at a checkpoint. */
  async contentAt(seq: number, disk: string): Promise<string> {
    const row = this.store.list(this.jobId).find((one) => one.seq === seq);
    if (row?.state.name !== 'kept') return `no checkpoint ${seq}`;
    return (await readFile(row.state.layers[disk]!.path, 'latin1')).replaceAll('\0', '');
  }

  /** Checkpoints 10, 20, 30 and 40, each of other content. */
  async takeSome(): Promise<void> {
    for (const seq of [10, 20, 30, 40]) {
      for (const [disk, image] of this.images) await writeFile(image.path, `${disk} at ${seq}`);
      await this.take(seq);
    }
    for (const [disk, image] of this.images) await writeFile(image.path, `${disk} now`);
  }

  merge(lowerSeq: number): Promise<void> {
    const rows = this.checkpoints.list();
    const at = rows.findIndex(({ seq }) => seq === lowerSeq);
    return this.checkpoints.merge({
      lowerId: rows[at]!.checkpointId,
      upperId: rows[at + 1]!.checkpointId,
    });
  }

  async files(): Promise<number> {
    return (await this.host.files()).length;
  }

  close(): void {
    this.db.close();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

async function world(t: { teardown: (fn: () => unknown) => void }): Promise<World> {
  const made = await new World().start();
  t.teardown(() => made.close());
  return made;
}

t.test('a checkpoint freezes all disks; the same point is not taken twice', async (t) => {
  const w = await world(t);
  await w.take(10);
  await w.take(10);
  await w.take(20);
  t.same(
    w.checkpoints.list().map(({ seq, state }) => [seq, state.name]),
    [
      [10, 'kept'],
      [20, 'kept'],
    ],
  );
  t.same(w.wrong(), []);
  t.equal(await w.files(), 6);
  t.equal(w.checkpoints.oldestSeq(JOURNAL), 10);
  t.equal(w.checkpoints.oldestSeq('another journal'), null);
});

t.test('a lost answer is read back: it happened', async (t) => {
  const w = await world(t);
  w.host.loseAnswer('snapshotDisks');
  await w.take(10);
  t.same(w.wrong(), []);
  t.equal(w.checkpoints.list().length, 1);
});

t.test('a command that did not get through leaves nothing, and is tried again', async (t) => {
  const w = await world(t);
  w.host.fail('snapshotDisks', 'UND_HV_UNREACHABLE');
  await t.rejects(w.take(10), { code: 'UND_HV_UNREACHABLE' });
  t.same(w.wrong(), []);
  t.same(w.checkpoints.list(), []);
  t.equal(await w.files(), 2);
  await w.take(10);
  t.same(w.wrong(), []);
});

t.test('a pool that is nearly full refuses before anything is asked', async (t) => {
  const w = await world(t);
  w.refusal = undError('UND_POOL_LOW', { pool: 'p', job: 'j', availableBytes: 1, neededBytes: 2 });
  await t.rejects(w.take(10), { code: 'UND_POOL_LOW' });
  t.notOk(w.host.calls.includes('snapshotDisks'));
  t.same(w.checkpoints.list(), []);
});

t.test('the host stays away: the outcome is found out later, whatever it was', async (t) => {
  for (const happened of [true, false]) {
    const w = await world(t);
    if (happened) w.host.loseAnswer('snapshotDisks');
    else w.host.fail('snapshotDisks', 'UND_HV_UNREACHABLE');
    const asked = w.take(10);
    // From the first read-back on nothing answers.
    w.host.fail('listAttachedDisks', 'UND_HV_UNREACHABLE', 3);
    await t.rejects(asked, { code: 'UND_HV_UNREACHABLE' });
    t.equal(w.checkpoints.list()[0]?.state.name, 'intended');
    await t.rejects(w.take(20), { code: 'UND_HV_UNREACHABLE' }, 'nothing is done before that');
    w.host.faults.clear();
    w.restart();
    await w.checkpoints.settle();
    t.same(w.wrong(), [], `happened: ${happened}`);
    t.equal(w.checkpoints.list().length, happened ? 1 : 0);
  }
});

t.test(
  'the appliance dies with its VM: layers that are there for all disks are taken over with what they hold',
  async (t) => {
    // Seen red without #adoptDetached: what the layer holds goes with it.
    const w = await world(t);
    w.host.loseAnswer('snapshotDisks');
    const asked = w.take(10);
    w.host.fail('listAttachedDisks', 'UND_HV_UNREACHABLE', 1);
    await t.rejects(asked);
    t.notOk(w.checkpoints.settled, 'nothing may be applied');
    await writeFile(w.host.attached.get('uvda')!.disk.path, 'vda, written by mistake');
    w.host.forgetAttached();
    w.restart();
    await w.checkpoints.settle();
    t.ok(w.checkpoints.settled);
    for (const [disk, image] of w.images)
      await w.host.attachDisk(VM, image, { serial: `u${disk}` });
    t.same(w.wrong(), []);
    t.equal(w.checkpoints.list().length, 1);
    t.equal(await readFile(w.images.get('vda')!.path, 'latin1'), 'vda, written by mistake');
    await w.take(20);
    t.same(w.wrong(), []);
  },
);

t.test(
  'the appliance dies with its VM, and one layer is missing: what is there goes',
  async (t) => {
    const w = await world(t);
    w.host.loseAnswer('snapshotDisks');
    const asked = w.take(10);
    w.host.fail('listAttachedDisks', 'UND_HV_UNREACHABLE', 1);
    await t.rejects(asked);
    const made = w.host.attached.get('uvdb')!.disk;
    w.host.forgetAttached();
    await w.host.deleteOverlay(made);
    w.restart();
    await w.checkpoints.settle();
    for (const [disk, image] of w.images)
      await w.host.attachDisk(VM, image, { serial: `u${disk}` });
    t.same(w.wrong(), []);
    t.equal(await w.files(), 2, 'without the deletion in #settle they cannot be attached');
    await w.take(20);
    t.same(w.wrong(), []);
  },
);

t.test('a chain that somebody else changed is told, and nothing is touched', async (t) => {
  const w = await world(t);
  w.host.fail('snapshotDisks', 'UND_HV_UNREACHABLE');
  w.host.fail('listAttachedDisks', 'UND_HV_UNREACHABLE', 1);
  await t.rejects(w.take(10));
  await w.host.snapshotDisks(VM, [{ serial: 'uvda', overlayName: 'foreign' }]);
  const before = await w.host.files();
  await t.rejects(w.checkpoints.settle(), { code: 'UND_DISK_CHAIN' });
  t.same(await w.host.files(), before);
});

t.test('of several images on record the one that rests on the others is written', async (t) => {
  const w = await world(t);
  await w.take(10);
  await w.take(20);
  const top = w.images.get('vda')!;
  const [, middle, bottom] = await w.host.chain(top);
  const where = { job: 'web1-replica', disk: 'vda' };
  const newest = async (attached: DiskRef | null, written: DiskRef | null, recorded: DiskRef) =>
    (await newestImage(w.host, where, { attached, written, recorded })).name;
  t.equal(await newest(null, null, bottom!), bottom!.name);
  t.equal(await newest(top, null, bottom!), top.name, 'a state that was set back');
  t.equal(await newest(null, top, bottom!), top.name);
  t.equal(await newest(null, bottom!, middle!), middle!.name, 'a note that was not made');
  const gone = { ...middle!, name: 'merged-away' };
  t.equal(await newest(top, gone, bottom!), top.name);
  await t.rejects(newest(bottom!, top, middle!), { code: 'UND_DISK_CHAIN' });
  const other = w.images.get('vdb')!;
  await t.rejects(newest(other, null, bottom!), { code: 'UND_DISK_CHAIN' });

  noteWrittenImages(w.dir, w.images);
  t.same(readWrittenImages(w.dir), w.images);
  await writeFile(join(w.dir, 'images.json'), '{');
  t.equal(readWrittenImages(w.dir).size, 0);
});

t.test('references are persisted, and end with their holder', async (t) => {
  const w = await world(t);
  await w.take(10);
  const [row] = w.checkpoints.list();
  w.store.hold(row!.checkpointId, 'failover f1');
  w.store.hold(row!.checkpointId, 'failover f1');
  t.same(w.store.get(row!.checkpointId)?.holders, ['failover f1']);
  w.store.release('failover f1');
  t.same(w.store.get(row!.checkpointId)?.holders, []);
});

t.test('merging gives one point up and keeps the others, byte for byte', async (t) => {
  const w = await world(t);
  await w.takeSome();
  await w.merge(20);
  await w.merge(10);
  t.same(w.wrong(), []);
  t.same(
    w.checkpoints.list().map(({ seq }) => seq),
    [30, 40],
  );
  for (const seq of [30, 40]) {
    for (const disk of ['vda', 'vdb']) t.equal(await w.contentAt(seq, disk), `${disk} at ${seq}`);
  }
  t.equal(await w.files(), 6, 'two layers of each disk, and the one that is written');
  t.equal(await readFile(w.images.get('vda')!.path, 'latin1'), 'vda now');
});

t.test('a merge that is interrupted goes on from what the chains say', async (t) => {
  for (const lost of [1, 2]) {
    for (const happened of [true, false]) {
      const w = await world(t);
      await w.takeSome();
      const cut = () =>
        happened
          ? w.host.loseAnswer('commitOverlay')
          : w.host.fail('commitOverlay', 'UND_HV_FAILED');
      if (lost === 1) cut();
      else {
        const commit = w.host.commitOverlay.bind(w.host);
        w.host.commitOverlay = async (overlay) => {
          const base = await commit(overlay);
          w.host.commitOverlay = commit;
          cut();
          return base;
        };
      }
      await t.rejects(w.merge(20));
      t.equal(w.checkpoints.list()[1]?.state.name, 'merging', 'its point is given up already');
      w.restart();
      await w.merge(20);
      t.same(w.wrong(), [], `disk ${lost}, happened: ${happened}`);
      t.equal(await w.files(), 8);
      for (const disk of ['vda', 'vdb']) t.equal(await w.contentAt(30, disk), `${disk} at 30`);
    }
  }
});

// Red when the merge is waited for, and when its end by our own doing is an error or counts as done.
t.test('a merge ends early for what waits for it, and is done later', async (t) => {
  const w = await world(t);
  await w.takeSome();
  w.host.slowCommits = true;
  const merging = w.merge(20);
  await until('the merge', () => w.host.calls.includes('commitOverlay'));
  await w.checkpoints.interruptMerge();
  await merging;
  t.equal(w.checkpoints.list()[1]?.state.name, 'merging', 'its point is given up already');
  await w.take(50);
  t.ok(await w.checkpoints.baseFor(50, JOURNAL, null), 'and a checkpoint was taken meanwhile');
  w.host.slowCommits = false;
  await w.checkpoints.interruptMerge();
  await w.merge(20);
  t.same(w.wrong(), []);
  for (const seq of [10, 30, 40]) {
    for (const disk of ['vda', 'vdb']) t.equal(await w.contentAt(seq, disk), `${disk} at ${seq}`);
  }
});

t.test('nothing is merged that something rests on, or that the failover has', async (t) => {
  const w = await world(t);
  await w.takeSome();
  const [, second, third] = w.checkpoints.list();
  // Without the look at the holders in merge() this one is merged.
  w.store.hold(third!.checkpointId, 'failover f1');
  await w.merge(20);
  await w.merge(30);
  t.equal(w.store.list(w.jobId).length, 4);
  w.store.release('failover f1');
  w.mayMerge = false;
  await w.merge(20);
  t.equal(w.store.get(second!.checkpointId)?.state.name, 'kept');
  w.mayMerge = true;
  const layer = third!.state.name === 'kept' ? third!.state.layers.vda! : null;
  const overlay = await w.host.createOverlay({ base: layer!, name: 'unknown-to-the-store' });
  await t.rejects(w.merge(20), { code: 'UND_HV_DISK_IN_USE' }, 'the host looks as well');
  await w.host.deleteOverlay(overlay);
  await w.merge(20);
  t.same(w.wrong(), []);
});
