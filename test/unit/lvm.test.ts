/** Where logical volumes lie, by the group's own description; against what LVM's own tools said of the same group. */
import fc from 'fast-check';
import t from 'tap';
import { parseText, readVolumeGroup } from '../../appliance/recovery/browse/lvm.ts';
import { lvmGroup } from '../lvm-group.ts';

const MIB = 1024 * 1024;
const readerOf = (disk: Buffer) => ({
  sizeBytes: 64 * MIB,
  read: (offset: number, length: number) => disk.subarray(offset, offset + length),
});

// Red when the extents are counted from the start of the disk.
t.test('a group on two disks', async (t) => {
  const [first, second] = lvmGroup().map((disk) => readVolumeGroup(readerOf(disk)));
  t.ok(first && second);
  t.equal(first!.name, 'demo-vg');
  t.not(first!.pvId, second!.pvId);
  t.same([...first!.pvs.keys()].sort(), [first!.pvId, second!.pvId].sort());
  t.same(first!.volumes, second!.volumes, 'each disk has the whole description');
  t.same(Object.fromEntries(first!.volumes.map(({ name, place }) => [name, place])), {
    root: { reason: 'a logical volume in several pieces' },
    'srv-data': { pvId: first!.pvId, offsetBytes: MIB + 4 * 4 * MIB, sizeBytes: 8 * MIB },
    striped: { reason: 'a logical volume of the kind striped' },
    log: { pvId: second!.pvId, offsetBytes: MIB + 4 * MIB, sizeBytes: 8 * MIB },
  });
});

t.test('damaged and hostile descriptions are none, whatever they say', async (t) => {
  const [disk] = lvmGroup() as [Buffer];
  t.equal(readVolumeGroup(readerOf(Buffer.alloc(MIB))), null);
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(8191), fc.nat(255)), { minLength: 1, maxLength: 20 }),
      (changes) => {
        const bad = Buffer.from(disk);
        for (const [at, byte] of changes) bad[at] = byte;
        const found = readVolumeGroup(readerOf(bad));
        return (
          found === null ||
          found.volumes.every(
            ({ place }) => 'reason' in place || (place.offsetBytes >= 0 && place.sizeBytes > 0),
          )
        );
      },
    ),
    { numRuns: 300 },
  );
  // Megabytes of zeroes with something behind them, whose end was looked for from each of them.
  const zeroes = lvmGroup()[0]!;
  const area = zeroes.readUInt32LE(512 + zeroes.readUInt32LE(512 + 20) + 40 + 32);
  zeroes.writeBigUInt64LE(BigInt(4 * MIB), area + 32);
  zeroes.writeBigUInt64LE(BigInt(3 * MIB), area + 48);
  const large = Buffer.concat([zeroes, Buffer.alloc(4 * MIB)]);
  large[area + 2 * MIB] = 1;
  t.not(readVolumeGroup(readerOf(large)), undefined);
  for (const text of ['a {', 'a = [', 'a', 'a = {', '}', 'a = "', 'x { '.repeat(50), '\u{1}']) {
    t.throws(() => parseText(text), SyntaxError, text.slice(0, 20));
  }
  t.same(parseText('a = [ "x", 1 ] # no\nb { c = "q\\"" }').get('a'), ['x', 1]);
});
