/**
 * A failover against real libvirt and QEMU, from the checkpoint to a replica VM that shows a login prompt, then undo,
 * then another one with commit. The tiny guest stands in for the appliance: the disks are hot-plugged into it and
 * written there. What the job service and guest preparation do is played; those have tests of their own. On the way the
 * engine is stopped in the middle and started again, as when the appliance restarts.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import type { Failover } from '../../appliance/api/schema.ts';
import type { DiskRef } from '../../appliance/hypervisor/hypervisor.ts';
import { LibvirtHypervisor } from '../../appliance/hypervisor/libvirt/libvirt-hypervisor.ts';
import { localTransport } from '../../appliance/hypervisor/libvirt/transport.ts';
import { FailoverEngine } from '../../appliance/recovery/engine.ts';
import { createGuestPreparer } from '../../appliance/recovery/prepare-guest/index.ts';
import { type FailoverRecord, replicaMac } from '../../appliance/recovery/record.ts';
import type { JobDescription, JobHandle } from '../../appliance/recovery/types.ts';
import {
  APPLIANCE,
  type Lab,
  ROOT,
  startAppliance,
  startLab,
  tinyGuest,
  waitFor,
} from './hypervisor-lab.ts';
import { buildSample, prepareSample, sampleCopy } from './recovery.lab.ts';

t.setTimeout(45 * 60_000);
const PATIENT = { timeout: 30 * 60_000 };
const JOB = '11112222-3333-4444-8555-666677778888';
const REPLICA = 'sample-replica';
const MAC = replicaMac(JOB, 'ens3');
const SERIALS = ['u0000000000000000001', 'u0000000000000000002'] as const;
/** A place on the second disk that no file system uses: behind the table, before the first partition. */
const MARK_SECTOR = 100;

const work = mkdtempSync('/var/tmp/understudy-recovery-');
const evidence = join(work, 'evidence');
let lab: Lab | undefined;
let hypervisor: LibvirtHypervisor | undefined;
t.teardown(async () => {
  await hypervisor?.close();
  await lab?.down();
  rmSync(work, { recursive: true, force: true });
});

// Without these none of the tests can run.
await buildSample();
const sample = sampleCopy(work, 'sample');
await prepareSample(
  sample,
  createGuestPreparer({
    workerCommand: [
      process.execPath,
      join(ROOT, 'appliance/recovery/prepare-guest/worker-main.ts'),
    ],
  }),
  MAC,
);
lab = await startLab('recovery');
const host = lab;
await execa(join(ROOT, 'scripts/lab'), ['admit', APPLIANCE, 'ssh-ed25519 AAAA'], {
  env: { LAB_NAME: host.name },
});
const guest = await startAppliance({
  ...host,
  ...(await tinyGuest()),
  consoleDir: join(host.dir, 'console'),
  prefix: '192.168.150',
});
const hv = new LibvirtHypervisor(
  localTransport({
    command: [
      ...host.launcher,
      ...['/usr/bin/python3', '-I', join(host.dir, 'host/lib/understudy-host-shell')],
      join(host.dir, 'host/etc', `${APPLIANCE}.json`),
    ],
  }),
);
hypervisor = hv;

const images: DiskRef[] = [];
for (const [index, file] of [sample.root, sample.data].entries()) {
  const sizeBytes = Number((await execa('stat', ['-c', '%s', file])).stdout);
  const disk = await hv.createDisk({ pool: 'default', name: `sample-${index}`, sizeBytes });
  await execa('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'qcow2', file, disk.path]);
  await hv.attachDisk(APPLIANCE, disk, { serial: SERIALS[index] as string });
  images.push(disk);
}

/** The device in the tiny guest, by the SCSI serial number page. */
const locate = (serial: string): Promise<string> =>
  waitFor(`the device of ${serial} in the guest`, async () => {
    const found = await guest.run(
      `for disk in /sys/block/sd*; do grep -q ${serial} $disk/device/vpd_pg80 2>/dev/null && echo /dev/\${disk##*/}; done; true`,
    );
    return found !== '' && found;
  });
const writeMark = async (serial: string, words: string): Promise<void> => {
  const device = await locate(serial);
  await guest.run(
    `echo '${words}' | dd of=${device} bs=512 seek=${MARK_SECTOR} conv=notrunc,fsync 2>/dev/null`,
  );
};
const readMark = async (serial: string): Promise<string> => {
  const device = await locate(serial);
  await guest.run('echo 3 > /proc/sys/vm/drop_caches');
  const read = await guest.run(
    `dd if=${device} bs=512 skip=${MARK_SECTOR} count=1 2>/dev/null | head -n 1 | tr -d '\\000'`,
  );
  return read.trim();
};

const records = new Map<string, string>();
const reopened: string[] = [];
let released = false;

const description = (): JobDescription => ({
  jobId: JOB,
  sourceName: 'sample',
  replicaName: REPLICA,
  network: 'default',
  vcpus: 1,
  memoryBytes: 768 * 1024 * 1024,
  firmware: 'bios',
  sourceId: 'source-1',
  sourceOnline: false,
  lagMs: 1200,
  recoverable: { ok: true },
  nics: [{ name: 'ens3', mac: '52:54:00:00:00:01', primary: true }],
  disks: images.map((image, index) => ({
    diskId: `disk-${index}`,
    sourceName: index === 0 ? 'vda' : 'vdb',
    boot: index === 0,
    sizeBytes: 1,
    serial: SERIALS[index] as string,
    image,
  })),
});

const notPlanned = async (): Promise<never> => {
  throw new Error('this failover is not a planned one');
};

const job: JobHandle = {
  describe: async () => description(),
  prepareHandover: notPlanned,
  finalMark: notPlanned,
  powerOff: notPlanned,
  cancelHandover: notPlanned,
  stopIntake: async () => ({ durableSeq: 7, sourceTime: new Date().toISOString() }),
  drainApply: async () => {
    await writeMark(SERIALS[1], 'applied');
    return {
      appliedSeq: 7,
      images: images.map((image, index) => ({ diskId: `disk-${index}`, image })),
    };
  },
  holdPoint: async () => {
    throw new Error('no test is played here');
  },
  releasePoint: async () => {},
  earliestHere: (sourceTime) => sourceTime,
  choosePoint: async () => {
    throw new Error('the newest point is what is recovered here');
  },
  replay: async () => {},
  closeDisks: async () => {
    await guest.run('sync');
  },
  reopen: async (disks, { mirror }) => {
    for (const [index, { image }] of disks.entries()) images[index] = image;
    reopened.push(mirror);
  },
  passiveHelloAt: async () => null,
  release: async () => {
    released = true;
  },
};

let interrupt: ((failover: Failover) => void) | null = null;
const engineOf = (): FailoverEngine =>
  new FailoverEngine({
    hypervisor: hv,
    store: {
      loadAll: () => [...records.values()].map((text) => JSON.parse(text) as FailoverRecord),
      save: (record) => {
        records.set(record.failoverId, JSON.stringify(record));
      },
    },
    job: () => job,
    preparer: {
      prepare: async (request) => {
        const record = JSON.parse(records.get(request.failoverId) ?? '') as FailoverRecord;
        await writeMark(record.disks[1]?.prepareSerial ?? '', 'prepared');
        return { os: 'the sample', changes: [], unfixable: [] };
      },
    },
    server: {
      open: async () => Promise.reject(new Error('no mounts here')),
      close: async () => {},
    },
    evidenceFolder: evidence,
    locate: (serial) => locate(serial),
    flushDevice: async () => {
      await guest.run('sync');
    },
    onChange: (failover) => interrupt?.(failover),
  });

const attachedNow = async (): Promise<(string | undefined)[]> =>
  (await hv.listAttachedDisks(APPLIANCE))
    .filter(({ serial }) => serial?.startsWith('u'))
    .map(({ serial, disk }) => `${serial} ${disk?.name}`)
    .sort();

t.before(() => mkdirSync(evidence));

t.test(
  'a failover boots a replica on overlays, also over a restart in its middle',
  PATIENT,
  async (t) => {
    const before = images.map(({ name }) => name);
    const first = engineOf();
    await first.load();
    const stopped = new Promise<void>((resolve) => {
      interrupt = ({ steps }) => {
        if (steps.find(({ name }) => name === 'overlay')?.state !== 'done') return;
        interrupt = null;
        first.close().then(resolve, resolve);
      };
    });
    const { failoverId } = await first.start(JOB, REPLICA);
    await stopped;
    t.equal(first.get(failoverId).state.name, 'running', 'stopped in the middle');

    const second = engineOf();
    await second.load();
    t.ok(second.ownsDisks(JOB));
    second.resumeAll();
    const failover = await second.settled(failoverId);
    t.match(failover.state, { name: 'completed' }, JSON.stringify(failover.state));
    t.ok(failover.hasScreenshot);
    const png = readFileSync(join(evidence, `${failoverId}.png`));
    t.equal(png.subarray(1, 4).toString('latin1'), 'PNG');
    t.same(await attachedNow(), [], 'the appliance holds no replica disk');
    t.match(await hv.vmState(REPLICA), { state: 'running' });
    for (const [index, disk] of (await hv.listAttachedDisks(REPLICA)).entries()) {
      const chain = await hv.chain(disk.disk as DiskRef);
      t.equal(chain.length, 2);
      t.equal(
        chain[1]?.name,
        before[index],
        'on the frozen replica disk, in the order of the source',
      );
    }

    await second.undo(failoverId, REPLICA);
    t.match((await second.settled(failoverId)).state, { name: 'undone' });
    t.match(await hv.vmState(REPLICA), { state: 'absent' });
    t.same(reopened, ['difference']);
    t.same(
      await attachedNow(),
      SERIALS.map((serial, index) => `${serial} ${before[index]}`),
      'the same images are attached again',
    );
    for (const image of images) t.equal((await hv.chain(image)).length, 1, 'no layer is left');
    t.equal(await readMark(SERIALS[1]), 'applied', 'nothing of the replica is in them');
  },
);

t.test('a committed failover keeps its VM on plain disks', PATIENT, async (t) => {
  const before = images.map(({ name }) => name);
  const engine = engineOf();
  await engine.load();
  const { failoverId } = await engine.start(JOB, REPLICA);
  t.match((await engine.settled(failoverId)).state, { name: 'completed' });
  await engine.commit(failoverId, REPLICA);
  t.match((await engine.settled(failoverId)).state, { name: 'committed' });
  t.ok(released, 'the job let go');
  t.match(await hv.vmState(REPLICA), { state: 'running' });
  const disks = await hv.listAttachedDisks(REPLICA);
  t.same(
    disks.map(({ disk }) => disk?.name),
    before,
  );
  for (const { disk } of disks) t.equal((await hv.chain(disk as DiskRef)).length, 1);
  const volumes = (await host.exec(['ls', host.poolDir]))
    .split('\n')
    .filter((name) => /checkpoint|replica/.test(name));
  t.same(volumes, [], 'no layer is left in the pool');
  await hv.stopVm(REPLICA, { force: true });
  await hv.undefineVm(REPLICA);
});
