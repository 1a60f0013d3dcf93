/**
 * What any driver must do, against a real hypervisor. A driver's own test file prepares the fixture and calls this;
 * each promise of `hypervisor.ts` that can be tried is one test.
 */
import t, { type Test } from 'tap';
import type { DiskRef, Hypervisor } from '../../appliance/hypervisor/hypervisor.ts';
import { waitFor } from './hypervisor-lab.ts';

export interface Fixture {
  hypervisor: Hypervisor;
  /** The VM that stands in for the appliance; it runs, and has one disk of its own with this serial. */
  applianceVm: string;
  ownSerial: string;
  applianceMac: string;
  applianceAddress: string;
  /** Runs a shell script in that VM. */
  run(script: string): Promise<string>;
  /** Stops that VM's processors: its guest answers nothing any more. */
  freeze(): Promise<unknown>;
  pool: string;
  /** A pool that cannot hold qcow2 files. */
  unusablePool: string;
  /** A pool of a few MiB, for filling it up. */
  smallPool: string;
  network: string;
  isolatedNetwork: string;
  /** A VM of somebody else, powered off. */
  foreignVm: string;
  /** Whether the host starts that VM when it starts itself. */
  autostarts(vm: string): Promise<boolean>;
  /** `qemu-img info --output=json` on the host, whoever uses the image. */
  imageInfo(disk: DiskRef): Promise<{ 'format-specific': { data: { compat: string } } }>;
}

const MiB = 1024 * 1024;

/**
 * A boot sector that prints TEXT through the BIOS and halts: xor ax,ax; mov ds,ax; mov si,msg; next: lodsb; or al,al;
 * jz end; mov ah,0eh; mov bx,7; int 10h; jmp next; end: hlt; jmp end; msg.
 */
function bootSector(text: string): Buffer {
  const sector = Buffer.alloc(512);
  Buffer.from('31c08ed8be187cac08c07409b40ebb0700cd10ebf2f4ebfd', 'hex').copy(sector);
  sector.write(text, 24, 'latin1');
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

/** `limitMs`: what one test may last, for a host that is slow. */
export function hypervisorConformance(fixture: () => Fixture, limitMs = 240_000): void {
  const disks = new Map<string, DiskRef>();
  const disk = (name: string): DiskRef => {
    const found = disks.get(name);
    if (!found) throw new Error(`an earlier test did not make disk ${name}`);
    return found;
  };
  /** Shell: sets `$d` to the guest's device with this serial, once it is there. */
  const device = (serial: string) =>
    `d=; for i in $(seq 300); do for b in /sys/block/sd*; do grep -q ${serial} $b/device/vpd_pg80 && d=/dev/\${b##*/}; done; [ -n "$d" ] && [ -b "$d" ] && break; usleep 100000; done; [ -n "$d" ] || exit 9`;
  const gone = (serial: string) =>
    `for i in $(seq 300); do grep -lq ${serial} /sys/block/sd*/device/vpd_pg80 || exit 0; usleep 100000; done; exit 9`;
  // Under emulation, with the machine's other work, a step can last; a hang must still end.
  const test = (name: string, body: (t: Test) => Promise<unknown>) =>
    t.test(name, { timeout: limitMs }, body);
  const code = (name: string) => ({ code: `UND_HV_${name}` });

  test('the host is described with its use', async (t) => {
    const host = await fixture().hypervisor.describeHost();
    t.ok(host.name && host.os && host.kernel && host.cpu.model);
    t.match(host.hypervisor, /QEMU \d/);
    t.ok(host.cpu.count >= 1);
    t.ok(host.cpu.use >= 0 && host.cpu.use <= 1, `use is a share: ${host.cpu.use}`);
    t.ok(host.memory.availableBytes > 0 && host.memory.availableBytes <= host.memory.totalBytes);
    t.equal(host.applianceVm, fixture().applianceVm);
    t.ok(host.firmwares.includes('bios'));
  });

  test('pools: those that hold qcow2 are usable, others say why not', async (t) => {
    const { hypervisor, pool, unusablePool } = fixture();
    const pools = await hypervisor.listPools();
    const good = pools.find((one) => one.name === pool);
    t.match(good, { usable: true });
    t.ok(good && good.availableBytes > 0 && good.availableBytes <= good.capacityBytes);
    const bad = pools.find((one) => one.name === unusablePool);
    t.match(bad, { usable: false, reason: /qcow2/ });
    const request = { pool: unusablePool, name: 'conf-x', sizeBytes: MiB };
    await t.rejects(hypervisor.createDisk(request), code('POOL_UNUSABLE'));
    await t.rejects(
      hypervisor.createDisk({ ...request, pool: 'nosuchpool' }),
      code('POOL_UNUSABLE'),
    );
  });

  test('networks: which are isolated', async (t) => {
    const { hypervisor, network, isolatedNetwork } = fixture();
    const networks = await hypervisor.listNetworks();
    t.match(
      networks.find((one) => one.name === network),
      { isolated: false, active: true, bridge: /./, addresses: [/^\d+\.\d+\.\d+\.\d+\/\d+$/] },
    );
    t.match(
      networks.find((one) => one.name === isolatedNetwork),
      { isolated: true, forward: 'isolated' },
    );
  });

  test('a disk is created once, as qcow2 1.1, sparse', async (t) => {
    const { hypervisor, pool } = fixture();
    for (const name of ['conf-a', 'conf-b']) {
      disks.set(name, await hypervisor.createDisk({ pool, name, sizeBytes: 4 * MiB }));
    }
    const info = await hypervisor.diskInfo(disk('conf-a'));
    t.match(info, { format: 'qcow2', sizeBytes: 4 * MiB, locked: false });
    t.notOk(info.backing);
    t.ok(info.allocatedBytes < MiB, 'it takes next to nothing');
    const { 'format-specific': format } = await fixture().imageInfo(disk('conf-a'));
    t.equal(format.data.compat, '1.1');
    const request = { pool, name: 'conf-a', sizeBytes: 4 * MiB };
    await t.rejects(hypervisor.createDisk(request), code('NAME_IN_USE'));
    await t.rejects(hypervisor.createDisk({ ...request, name: '../evil' }), code('BAD_NAME'));
    await t.rejects(
      hypervisor.createDisk({
        pool,
        name: 'conf-huge',
        sizeBytes: 2 ** 50,
        allowOvercommit: false,
      }),
      code('POOL_FULL'),
    );
    await t.rejects(
      hypervisor.diskInfo({ pool, name: 'conf-none', path: '' }),
      code('DISK_NOT_FOUND'),
    );
  });

  test('a disk is attached to the running VM, which finds it by serial', async (t) => {
    const { hypervisor, applianceVm, run } = fixture();
    const a = await hypervisor.attachDisk(applianceVm, disk('conf-a'), { serial: 'uaaa' });
    await hypervisor.attachDisk(applianceVm, disk('conf-b'), { serial: 'ubbb' });
    t.match(a, { serial: 'uaaa', bus: 'scsi', readOnly: false, disk: disk('conf-a') });
    t.match(a.cache, /^(none|writeback)$/, 'never unsafe');
    const sector = bootSector('REPLICA HAS BOOTED').toString('base64');
    await run(
      `${device('uaaa')}; echo ${sector} | base64 -d | dd of=$d bs=512 count=1 conv=notrunc,fsync 2>/dev/null`,
    );
    t.match(await hypervisor.diskInfo(disk('conf-a')), { locked: true });
    t.same(
      await hypervisor.attachDisk(applianceVm, disk('conf-a'), { serial: 'uaaa' }),
      a,
      'again is no error',
    );
    await t.rejects(
      hypervisor.attachDisk(applianceVm, disk('conf-b'), { serial: 'uaaa' }),
      code('DISK_IN_USE'),
    );
    await t.rejects(
      hypervisor.attachDisk(applianceVm, disk('conf-a'), { serial: 'uother' }),
      code('DISK_IN_USE'),
    );
    await t.rejects(
      hypervisor.attachDisk(applianceVm, disk('conf-a'), { serial: 'x y' }),
      code('BAD_SERIAL'),
    );
    await t.rejects(hypervisor.deleteDisk(disk('conf-a')), code('DISK_IN_USE'));
    const attached = await hypervisor.listAttachedDisks(applianceVm);
    t.same(attached.map((one) => one.serial).sort(), [fixture().ownSerial, 'uaaa', 'ubbb']);
  });

  test('an attached disk grows under its guest, and never shrinks', async (t) => {
    const { hypervisor, run } = fixture();
    await hypervisor.resizeDisk(disk('conf-b'), 6 * MiB);
    t.equal((await hypervisor.diskInfo(disk('conf-b'))).sizeBytes, 6 * MiB);
    const size = await run(
      `${device('ubbb')}; for i in $(seq 300); do echo 1 >/sys/block/\${d##*/}/device/rescan; [ $(blockdev --getsize64 $d) = ${6 * MiB} ] && break; usleep 100000; done; blockdev --getsize64 $d`,
    );
    t.equal(Number(size), 6 * MiB);
    await t.rejects(hypervisor.resizeDisk(disk('conf-b'), 2 * MiB), code('SHRINK'));
  });

  test('a snapshot of two disks is one step, and touches no other disk', async (t) => {
    const { hypervisor, applianceVm, ownSerial, run } = fixture();
    const before = await hypervisor.listAttachedDisks(applianceVm);
    const own = before.find((one) => one.serial === ownSerial);
    await t.rejects(
      hypervisor.snapshotDisks(applianceVm, [
        { serial: 'uaaa', overlayName: 'conf-a-1' },
        { serial: 'ubbb', overlayName: 'conf-b' },
      ]),
      code('NAME_IN_USE'),
    );
    t.same(
      await hypervisor.listAttachedDisks(applianceVm),
      before,
      'a refused one changes nothing',
    );
    await t.rejects(
      hypervisor.snapshotDisks(applianceVm, [{ serial: 'unone', overlayName: 'conf-n-1' }]),
      code('DISK_NOT_ATTACHED'),
    );
    await t.rejects(
      hypervisor.snapshotDisks(applianceVm, [{ serial: ownSerial, overlayName: 'conf-o-1' }]),
      code('OWN_DISK'),
    );
    const taken = await hypervisor.snapshotDisks(applianceVm, [
      { serial: 'ubbb', overlayName: 'conf-b-1' },
      { serial: 'uaaa', overlayName: 'conf-a-1' },
    ]);
    t.same(
      taken.map((one) => [one.serial, one.frozen]),
      [
        ['ubbb', disk('conf-b')],
        ['uaaa', disk('conf-a')],
      ],
    );
    for (const { serial, top } of taken) disks.set(serial, top);
    const after = await hypervisor.listAttachedDisks(applianceVm);
    t.same(
      after.find((one) => one.serial === ownSerial),
      own,
    );
    t.same(after.find((one) => one.serial === 'uaaa')?.disk, disk('uaaa'));
    t.same(
      (await hypervisor.chain(disk('uaaa'))).map((layer) => layer.name),
      [disk('uaaa').name, disk('conf-a').name],
    );
    t.same((await hypervisor.diskInfo(disk('uaaa'))).backing, disk('conf-a'));
    const { 'format-specific': format } = await fixture().imageInfo(disk('uaaa'));
    t.equal(format.data.compat, '1.1', 'an overlay that can hold dirty bitmaps');
    await run(
      `${device('uaaa')}; echo written-after | dd of=$d bs=512 seek=8 conv=notrunc,fsync 2>/dev/null`,
    );
  });

  test('an overlay goes on a frozen layer only, and keeps that from being merged', async (t) => {
    const { hypervisor } = fixture();
    await t.rejects(
      hypervisor.createOverlay({ base: disk('uaaa'), name: 'conf-test' }),
      code('DISK_IN_USE'),
      'not on the top that the VM writes',
    );
    const overlay = await hypervisor.createOverlay({ base: disk('conf-a'), name: 'conf-test' });
    t.match(await hypervisor.diskInfo(overlay), { sizeBytes: 4 * MiB, backing: disk('conf-a') });
    await t.rejects(
      hypervisor.commitOverlay(disk('uaaa')),
      code('DISK_IN_USE'),
      'the layer below would change under the overlay',
    );
    await t.rejects(hypervisor.deleteDisk(disk('conf-a')), code('DISK_IN_USE'));
    await hypervisor.deleteOverlay(overlay);
    await t.rejects(hypervisor.diskInfo(overlay), code('DISK_NOT_FOUND'));
    await hypervisor.deleteOverlay(overlay);
  });

  test('layers are merged under the running VM: one from the middle, then the top', async (t) => {
    const { hypervisor, applianceVm, run } = fixture();
    const [second] = await hypervisor.snapshotDisks(applianceVm, [
      { serial: 'uaaa', overlayName: 'conf-a-2' },
    ]);
    await run(
      `${device('uaaa')}; echo written-last | dd of=$d bs=512 seek=9 conv=notrunc,fsync 2>/dev/null`,
    );
    t.same(await hypervisor.commitOverlay(disk('uaaa')), disk('conf-a'), 'from the middle');
    t.same(
      (await hypervisor.chain(second!.top)).map((layer) => layer.name),
      [second!.top.name, disk('conf-a').name],
    );
    t.same(await hypervisor.commitOverlay(second!.top), disk('conf-a'), 'the top');
    const now = await hypervisor.listAttachedDisks(applianceVm);
    t.same(now.find((one) => one.serial === 'uaaa')?.disk, disk('conf-a'));
    await t.rejects(hypervisor.diskInfo(disk('uaaa')), code('DISK_NOT_FOUND'));
    await t.rejects(hypervisor.commitOverlay(disk('conf-a')), code('NO_BASE'));
    const read = await run(
      `${device('uaaa')}; echo 3 >/proc/sys/vm/drop_caches; dd if=$d bs=512 skip=8 count=2 2>/dev/null | tr -d '\\000'`,
    );
    t.equal(read, 'written-after\nwritten-last');
  });

  test('a full pool is an I/O error of the guest, and never pauses the VM', async (t) => {
    const { hypervisor, applianceVm, smallPool, run } = fixture();
    const full = await hypervisor.createDisk({
      pool: smallPool,
      name: 'conf-full',
      sizeBytes: 64 * MiB,
    });
    await hypervisor.attachDisk(applianceVm, full, { serial: 'ufull' });
    const said = await run(
      `${device('ufull')}; dd if=/dev/zero bs=1M count=40 2>/dev/null | tr '\\000' x | dd of=$d bs=64k conv=fsync; echo "dd $?"`,
    );
    t.match(said, /dd 1$/);
    t.match(await hypervisor.vmState(applianceVm), { state: 'running' });
    await hypervisor.detachDisk(applianceVm, 'ufull');
    await hypervisor.deleteDisk(full);
  });

  test('detach: gone from the VM, the image free; again is no error', async (t) => {
    const { hypervisor, applianceVm, ownSerial, run } = fixture();
    await hypervisor.detachDisk(applianceVm, 'uaaa');
    const left = await hypervisor.listAttachedDisks(applianceVm);
    t.notOk(left.some((one) => one.serial === 'uaaa'));
    t.match(await hypervisor.diskInfo(disk('conf-a')), { locked: false });
    await run(`(${gone('uaaa')})`);
    await hypervisor.detachDisk(applianceVm, 'uaaa');
    await t.rejects(hypervisor.detachDisk(applianceVm, ownSerial), code('OWN_DISK'));
  });

  test('an overlay that nothing runs is merged offline', async (t) => {
    const { hypervisor } = fixture();
    const overlay = await hypervisor.createOverlay({ base: disk('conf-a'), name: 'conf-off' });
    t.same(await hypervisor.commitOverlay(overlay), disk('conf-a'));
    await t.rejects(hypervisor.diskInfo(overlay), code('DISK_NOT_FOUND'));
  });

  test('a replica VM boots from the disk that the appliance has filled', async (t) => {
    const { hypervisor, applianceVm, network, isolatedNetwork } = fixture();
    const spec = {
      name: 'conf-replica',
      title: 'Replica <of> "a" & b',
      vcpus: 1,
      memoryBytes: 64 * MiB,
      firmware: 'bios' as const,
      disks: [{ disk: disk('conf-a'), serial: 'uaaa' }],
      nics: [{ network: isolatedNetwork, mac: '52:54:00:AA:00:02', model: 'virtio' as const }],
    };
    await t.rejects(
      hypervisor.defineVm({ ...spec, disks: [{ disk: disk('conf-b'), serial: 'ubbb' }] }),
      code('DISK_IN_USE'),
      'not with a disk that the appliance still has',
    );
    await t.rejects(
      hypervisor.defineVm({ ...spec, nics: [{ network: 'nosuchnet', model: 'virtio' }] }),
      code('NETWORK_NOT_FOUND'),
    );
    const vm = await hypervisor.defineVm(spec);
    t.match(vm, { name: 'conf-replica', role: 'replica', state: { state: 'off' } });
    await t.rejects(hypervisor.defineVm({ ...spec, disks: [] }), code('NAME_IN_USE'));
    await t.rejects(
      hypervisor.defineVm({ ...spec, name: 'conf-other', uuid: vm.uuid, disks: [] }),
      code('NAME_IN_USE'),
    );
    await t.rejects(
      hypervisor.attachDisk(applianceVm, disk('conf-a'), { serial: 'uaaa' }),
      code('DISK_IN_USE'),
      'nor does the appliance get it back meanwhile',
    );
    t.equal(await hypervisor.isNameTaken('conf-replica'), true);
    t.equal(await fixture().autostarts('conf-replica'), false, 'not unless it is asked for');
    await hypervisor.setAutostart('conf-replica', true);
    await hypervisor.setAutostart('conf-replica', true);
    t.equal(await fixture().autostarts('conf-replica'), true);
    await hypervisor.setAutostart('conf-replica', false);
    t.equal(await fixture().autostarts('conf-replica'), false);
    await hypervisor.setAutostart('conf-replica', true);
    t.equal(await hypervisor.consoleTail('conf-replica'), '');
    await t.rejects(hypervisor.screenshot('conf-replica'), code('VM_NOT_RUNNING'));
    const nobody = { ...disk('conf-a'), name: 'understudy-nobody.qcow2' };
    t.same(await hypervisor.diskUsers([disk('conf-a')]), [], 'one that is off uses nothing');
    await hypervisor.startVm('conf-replica');
    await hypervisor.startVm('conf-replica');
    t.same(await hypervisor.diskUsers([nobody, disk('conf-a')]), [
      { vm: 'conf-replica', disk: disk('conf-a') },
    ]);
    await waitFor(
      'the boot sector to speak on the console',
      async () => (await hypervisor.consoleTail('conf-replica')).includes('REPLICA HAS BOOTED'),
      limitMs,
    );
    const screen = await hypervisor.screenshot('conf-replica');
    t.equal(screen.subarray(0, 8).toString('hex'), '89504e470d0a1a0a', 'a PNG');
    t.equal(await hypervisor.guestAgentPing('conf-replica'), false);
    t.same(await hypervisor.guestAddresses('conf-replica'), []);
    t.match(await hypervisor.vmState('conf-replica'), { state: 'running' });
    t.match(
      (await hypervisor.listVms()).map((one) => [one.name, one.role]),
      [
        ['conf-replica', 'replica'],
        [applianceVm, 'appliance'],
      ],
    );
    await t.rejects(hypervisor.undefineVm('conf-replica'), code('VM_RUNNING'));
    await t.rejects(
      hypervisor.stopVm('conf-replica', { force: false, timeoutMs: 1000 }),
      code('STOP_TIMEOUT'),
      'a boot sector hears no power button',
    );
    await hypervisor.stopVm('conf-replica', { force: true });
    await hypervisor.stopVm('conf-replica', { force: true });
    t.match(await hypervisor.vmState('conf-replica'), { state: 'off' });
    t.match(
      await hypervisor.consoleTail('conf-replica'),
      /REPLICA HAS BOOTED/,
      'kept after its end',
    );
    await hypervisor.undefineVm('conf-replica');
    await hypervisor.undefineVm('conf-replica');
    t.same(await hypervisor.vmState('conf-replica'), { state: 'absent' });
    t.equal(await hypervisor.isNameTaken('conf-replica'), false);
    await t.rejects(hypervisor.setAutostart('conf-replica', true), code('VM_NOT_FOUND'));
    t.ok(await hypervisor.diskInfo(disk('conf-a')), 'its disk stays');
    t.ok(network);
  });

  test("somebody else's VM is not seen, and its name is not free", async (t) => {
    const { hypervisor, applianceVm, foreignVm } = fixture();
    t.notOk((await hypervisor.listVms()).some(({ name }) => name === foreignVm));
    t.equal(await hypervisor.isNameTaken(foreignVm), true);
    t.equal(await hypervisor.isNameTaken(applianceVm), true);
    t.equal(await hypervisor.isNameTaken('conf-nobody'), false);
    await t.rejects(hypervisor.setAutostart(foreignVm, true), code('REFUSED'));
    await t.rejects(hypervisor.setAutostart(applianceVm, false), code('REFUSED'));
    const spec = { vcpus: 1, memoryBytes: 64 * MiB, firmware: 'bios' as const };
    await t.rejects(
      hypervisor.defineVm({ ...spec, name: foreignVm, disks: [], nics: [] }),
      code('NAME_IN_USE'),
    );
  });

  test('a replica VM on an overlay, merged while it runs', async (t) => {
    const { hypervisor, isolatedNetwork } = fixture();
    const overlay = await hypervisor.createOverlay({ base: disk('conf-a'), name: 'conf-fo' });
    await hypervisor.defineVm({
      name: 'conf-fo',
      vcpus: 1,
      memoryBytes: 64 * MiB,
      firmware: 'bios',
      disks: [{ disk: overlay, serial: 'uaaa' }],
      nics: [{ network: isolatedNetwork, model: 'virtio', connected: false }],
    });
    await hypervisor.startVm('conf-fo');
    t.same(
      await hypervisor.diskUsers([disk('conf-a')]),
      [{ vm: 'conf-fo', disk: disk('conf-a') }],
      'below an overlay',
    );
    t.same(await hypervisor.commitOverlay(overlay), disk('conf-a'));
    t.same((await hypervisor.listAttachedDisks('conf-fo'))[0]?.disk, disk('conf-a'));
    await hypervisor.stopVm('conf-fo', { force: true });
    t.same(
      (await hypervisor.listAttachedDisks('conf-fo'))[0]?.disk,
      disk('conf-a'),
      'also in its lasting definition: it starts again after this',
    );
    await hypervisor.startVm('conf-fo');
    await hypervisor.stopVm('conf-fo', { force: true });
    await hypervisor.undefineVm('conf-fo');
  });

  test('a UEFI VM starts', async (t) => {
    const { hypervisor } = fixture();
    if (!(await hypervisor.describeHost()).firmwares.includes('uefi')) {
      t.pass('this host has no UEFI firmware: nothing to try');
      return;
    }
    await hypervisor.defineVm({
      name: 'conf-uefi',
      vcpus: 1,
      memoryBytes: 128 * MiB,
      firmware: 'uefi',
      disks: [{ disk: disk('conf-a'), serial: 'uaaa' }],
      nics: [],
    });
    await hypervisor.startVm('conf-uefi');
    await waitFor(
      'the UEFI firmware to speak on the console',
      async () => /BdsDxe|UEFI|Shell/.test(await hypervisor.consoleTail('conf-uefi')),
      limitMs,
    );
    await hypervisor.stopVm('conf-uefi', { force: true });
    await hypervisor.undefineVm('conf-uefi');
    t.same(await hypervisor.vmState('conf-uefi'), { state: 'absent' });
  });

  test('addresses of a guest are found', async (t) => {
    const { hypervisor, applianceVm, applianceMac, applianceAddress } = fixture();
    const found = await hypervisor.guestAddresses(applianceVm);
    t.ok(
      found.some((one) => one.address === applianceAddress && one.mac === applianceMac),
      JSON.stringify(found),
    );
  });

  test('detaching from a guest that does not answer never ends in a lie', async (t) => {
    const { hypervisor, applianceVm } = fixture();
    await fixture().freeze();
    const outcome = await hypervisor.detachDisk(applianceVm, 'ubbb').then(
      () => 'gone',
      (error) => error.code,
    );
    const attached = await hypervisor.listAttachedDisks(applianceVm);
    const still = attached.some((one) => one.serial === 'ubbb');
    const { locked } = await hypervisor.diskInfo(disk('conf-b'));
    if (outcome === 'gone') t.same({ still, locked }, { still: false, locked: false });
    else t.same({ outcome, still }, { outcome: 'UND_HV_DETACH_TIMEOUT', still: true });
  });

  test('the appliance itself can be neither removed nor stopped through this', async (t) => {
    const { hypervisor, applianceVm } = fixture();
    await t.rejects(hypervisor.undefineVm(applianceVm), code('REFUSED'));
    await t.rejects(hypervisor.stopVm(applianceVm, { force: true }), code('REFUSED'));
  });

  test('disks that nothing uses are deleted; again is no error', async (t) => {
    const { hypervisor } = fixture();
    await hypervisor.deleteDisk(disk('conf-a'));
    await hypervisor.deleteDisk(disk('conf-a'));
    await t.rejects(hypervisor.diskInfo(disk('conf-a')), code('DISK_NOT_FOUND'));
  });
}
