import fc from 'fast-check';
import t from 'tap';
import { ExtentList } from '../../protocol/extent-list.ts';
import {
  checkFrame,
  FRAME_HEADER_BYTES,
  type FrameExtent,
  packList,
  unpackFrame,
} from '../../protocol/frame.ts';

const DISK_BYTES = 2 ** 41;
const meta = { kind: 'stream', epoch: 1, bootTimeNs: 5n, wallMs: 7, capturePos: 9 } as const;

async function through(list: ExtentList, codec: 'none' | 'fast'): Promise<FrameExtent[]> {
  const frame = await packList({ ...meta, seq: 1 }, list, codec);
  const sizes = [DISK_BYTES, DISK_BYTES];
  return unpackFrame(checkFrame(frame), frame.subarray(FRAME_HEADER_BYTES), sizes);
}

/** What a disk's bytes are by these extents, as a map of sectors: what matters of them. */
function sectors(extents: readonly FrameExtent[]): Map<string, string> {
  const map = new Map<string, string>();
  for (const extent of extents) {
    for (let at = 0; at < extent.lengthBytes; at += 512) {
      const bytes = extent.kind === 'write' ? extent.data.subarray(at, at + 512) : [];
      map.set(`${extent.disk}:${extent.offsetBytes + at}`, Buffer.from(bytes).toString('hex'));
    }
  }
  return map;
}

t.test('what goes in comes out, in order, whatever lies beside what', async () => {
  const one = fc.record({
    kind: fc.constantFrom('write', 'write', 'write', 'zero'),
    disk: fc.constantFrom(0, 0, 1),
    // Far behind 4 GiB as well, and often where the one before it ended.
    at: fc.constantFrom('next', 'next', 0, 4096, 2 ** 32 - 512, 2 ** 40),
    sectors: fc.integer({ min: 1, max: 8 }),
    /** Its data do not follow those of the write before it: something between them was left out. */
    gap: fc.boolean(),
    /** Of another batch. */
    another: fc.boolean(),
  });
  await fc.assert(
    fc.asyncProperty(
      fc.array(one, { maxLength: 600 }),
      fc.constantFrom('none' as const, 'fast' as const),
      async (writes, codec) => {
        const list = new ExtentList();
        const expected: FrameExtent[] = [];
        let body = Buffer.alloc(4096 * 700, 1);
        let dataAt = 0;
        let offsetBytes = 0;
        for (const [n, { kind, disk, at, sectors, gap, another }] of writes.entries()) {
          const lengthBytes = sectors * 512;
          if (typeof at === 'number') offsetBytes = at;
          if (another) {
            // Its data often begin where those of the one before ended.
            body = Buffer.alloc(4096 * 700, 2);
            if (gap) dataAt = 0;
          } else if (gap) dataAt += 512;
          if (kind === 'zero') {
            list.addZero(disk, offsetBytes, lengthBytes);
            expected.push({ kind, disk, offsetBytes, lengthBytes });
          } else {
            const data = body.subarray(dataAt, dataAt + lengthBytes);
            data.fill(n % 256);
            list.addWrite(disk, offsetBytes, lengthBytes, body, dataAt);
            dataAt += lengthBytes;
            expected.push({ kind: 'write', disk, offsetBytes, lengthBytes, data });
          }
          offsetBytes += lengthBytes;
        }
        const bytes = list.bytes;
        const got = await through(list, codec);
        if (got.length > expected.length || got.length !== list.count) return false;
        const unpacked = got.reduce(
          (sum, extent) => sum + 24 + (extent.kind === 'write' ? extent.lengthBytes : 0),
          0,
        );
        if (unpacked !== bytes) return false;
        // Joined ones are fewer, and mean the same.
        return JSON.stringify([...sectors(got)]) === JSON.stringify([...sectors(expected)]);
      },
    ),
    { numRuns: 200 },
  );
});

t.test('only what goes on where the last write ended is joined to it', async (t) => {
  const body = Buffer.alloc(8192, 3);
  const counts = (act: (list: ExtentList) => void): number => {
    const list = new ExtentList();
    list.addWrite(0, 4096, 512, body, 0);
    act(list);
    return list.count;
  };
  t.equal(
    counts((list) => list.addWrite(0, 4608, 512, body, 512)),
    1,
  );
  t.equal(
    counts((list) => list.addWrite(1, 4608, 512, body, 512)),
    2,
    'another disk',
  );
  t.equal(
    counts((list) => list.addWrite(0, 5120, 512, body, 512)),
    2,
    'another place',
  );
  t.equal(
    counts((list) => list.addWrite(0, 4608, 512, body, 1024)),
    2,
    'other data',
  );
  t.equal(
    counts((list) => list.addWrite(0, 4608, 512, Buffer.alloc(8192), 512)),
    2,
    'batch',
  );
  const zero = (list: ExtentList) => {
    list.addZero(0, 4608, 512);
    list.addWrite(0, 5120, 512, body, 512);
  };
  t.equal(counts(zero), 3, 'a zero between them');
});
