import fc from 'fast-check';
import t from 'tap';
import type { CaptureBatch } from '../../agent/capture/capture.ts';
import { CaptureRecords, RECORD_BYTES } from '../../agent/capture/wire.ts';
import { Framing, type FramingHost } from '../../agent/queue/framing.ts';
import { Window } from '../../agent/queue/window.ts';
import {
  checkFrame,
  FRAME_HEADER_BYTES,
  type FrameExtent,
  type FrameHeader,
  unpackFrame,
} from '../../protocol/frame.ts';
import { type Mark, readMark } from '../../protocol/marks.ts';

const MIB = 1024 * 1024;
const DISK_BYTES = 64 * MIB;
const SWAP = { disk: 0, from: 8 * MIB, to: 9 * MIB };
const KINDS = ['write', 'zero', 'mark', 'opaque'];

interface Made {
  kind: 'write' | 'zero' | 'mark' | 'opaque';
  disk: number;
  offsetBytes: number;
  lengthBytes: number;
  bootNs: bigint;
  /** What its data are filled with. */
  fill: number;
}

function batchOf(made: readonly Made[], startPos: number, recycle?: () => void): CaptureBatch {
  const rows = made.map((one) => {
    const row = Buffer.alloc(RECORD_BYTES);
    row.writeUInt8(KINDS.indexOf(one.kind) + 1, 0);
    row.writeUInt16LE(one.disk, 2);
    row.writeUInt32LE(one.lengthBytes, 4);
    row.writeBigUInt64LE(BigInt(one.offsetBytes), 8);
    row.writeBigUInt64LE(one.bootNs, 16);
    row.writeBigUInt64LE(7n, 24);
    return row;
  });
  const data = made.flatMap(({ kind, lengthBytes, fill }) =>
    kind === 'write' ? Buffer.alloc(lengthBytes, fill) : [],
  );
  return {
    records: new CaptureRecords(made.length, Buffer.concat([...rows, ...data])),
    startPos: BigInt(startPos),
    endPos: BigInt(startPos + 1000),
    order: 'held',
    recycle,
  };
}

interface Sent {
  header: FrameHeader;
  extents: FrameExtent[];
  mark: Mark | null;
}

function make(changed: Partial<FramingHost> = {}) {
  const window = new Window(1, 1 << 30);
  const framing = new Framing({
    epoch: () => 3,
    job: () => ({
      disks: [0, 1].map((index) => ({ index, sizeBytes: DISK_BYTES })),
      compression: 'fast',
    }),
    isLeftOut: (disk, offset, length) =>
      disk === SWAP.disk && offset >= SWAP.from && offset + length <= SWAP.to,
    trackers: () => undefined,
    opaque: () => {},
    point: () => {},
    orderHeld: () => false,
    attached: () => true,
    ...changed,
  });
  framing.begin(window, 0);
  framing.setWallClock({ bootNs: 1n, wallNs: 1n });
  const sent = async (): Promise<Sent[]> => {
    framing.flush();
    framing.close();
    const all: Sent[] = [];
    for (let seq = 1; seq < window.nextSeq; seq++) {
      const frame = await window.entry(seq)!.packed;
      const header = checkFrame(frame);
      const mark = header.kind === 'mark' ? readMark(header, frame) : null;
      const payload = frame.subarray(FRAME_HEADER_BYTES);
      const extents = mark ? [] : await unpackFrame(header, payload, [DISK_BYTES, DISK_BYTES]);
      all.push({ header, extents, mark });
    }
    return all;
  };
  return { framing, window, sent };
}

/** What is left of each record, by the rules: nothing of swap, nothing behind the disk's end. */
function expected(made: readonly Made[]): Array<{ place: string; sector: number | null }> {
  return made.flatMap(({ kind, disk, offsetBytes, lengthBytes, fill }) => {
    if (kind === 'mark' || kind === 'opaque' || disk > 1) return [];
    if (disk === SWAP.disk && offsetBytes >= SWAP.from && offsetBytes + lengthBytes <= SWAP.to) {
      return [];
    }
    const sectors = Math.max(0, Math.min(lengthBytes, DISK_BYTES - offsetBytes)) / 512;
    return Array.from({ length: sectors }, (_, at) => ({
      place: `${disk}:${offsetBytes + at * 512}`,
      sector: kind === 'zero' ? null : fill,
    }));
  });
}

const got = (sent: readonly Sent[]) =>
  sent.flatMap(({ extents }) =>
    extents.flatMap((extent) =>
      Array.from({ length: extent.lengthBytes / 512 }, (_, at) => ({
        place: `${extent.disk}:${extent.offsetBytes + at * 512}`,
        sector: extent.kind === 'zero' ? null : sectorOf(extent.data, at * 512),
      })),
    ),
  );

/** The byte that fills a sector; -1 if it is not one. */
function sectorOf(data: Uint8Array, at: number): number {
  const sector = data.subarray(at, at + 512);
  return sector.every((byte) => byte === sector[0]) ? sector[0]! : -1;
}

const record = fc.record({
  kind: fc.constantFrom('write', 'write', 'write', 'write', 'zero', 'mark', 'opaque'),
  disk: fc.constantFrom(0, 0, 0, 1, 2),
  // In swap, across its end, in front of the disk's end and across it, and behind.
  at: fc.constantFrom('next', 'next', 0, SWAP.from, SWAP.to - 512, DISK_BYTES - 1024, DISK_BYTES),
  sectors: fc.integer({ min: 1, max: 16 }),
  laterNs: fc.constantFrom(0, 1000, 100_000_000, 900_000_000),
});

// Seen red: the data of a write that is left out not skipped, a disk or a source not looked at when writes are joined, the
// second's end not looked at.
t.test('whatever is captured is in the frames, in order, each byte where it belongs', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.array(record, { maxLength: 40 }), { maxLength: 6 }),
      async (plan) => {
        const { framing, sent } = make();
        const all: Made[] = [];
        let bootNs = 5_000_000_000n;
        let offsetBytes = 0;
        let fill = 1;
        let recycled = 0;
        plan.forEach((records, n) => {
          const made = records.map(({ kind, disk, at, sectors, laterNs }): Made => {
            bootNs += BigInt(laterNs);
            if (typeof at === 'number') offsetBytes = at;
            const isData = kind === 'write' || kind === 'zero';
            const lengthBytes = isData ? sectors * 512 : 0;
            const one = {
              kind,
              disk,
              offsetBytes,
              lengthBytes,
              bootNs,
              fill: fill++ % 251,
            };
            offsetBytes += lengthBytes;
            return one as Made;
          });
          all.push(...made);
          framing.takeBatch(batchOf(made, n * 1000, () => recycled++));
        });
        const frames = await sent();
        if (JSON.stringify(got(frames)) !== JSON.stringify(expected(all))) return false;
        if (recycled !== plan.length || framing.consumedPos !== plan.length * 1000) return false;
        const written = all.filter(({ kind }) => kind === 'write');
        const bytes = expected(written).length * 512;
        // Clocks never go back, and the numbers are without a gap.
        return (
          framing.writtenBytes === bytes &&
          frames.every(({ header }, at) => header.seq === at + 1 && header.epoch === 3) &&
          frames.every(
            ({ header }, at) => at === 0 || header.bootTimeNs >= frames[at - 1]!.header.bootTimeNs,
          )
        );
      },
    ),
    { numRuns: 200, interruptAfterTimeLimit: 60_000, markInterruptAsFailure: true },
  );
});

const write = (offsetBytes: number, lengthBytes: number, bootNs: bigint, fill = 1): Made => ({
  ...{ kind: 'write', disk: 0, offsetBytes, lengthBytes, bootNs, fill },
});
const SECOND = 1_000_000_000n;

t.test('a frame ends with the second of its writes', async (t) => {
  const { framing, sent } = make({ orderHeld: () => true });
  const begin = 10n * SECOND + 600_000_000n;
  framing.takeBatch(batchOf([write(0, 512, begin)], 0));
  // A clock mark: none is due for half a second, which would end a frame as well.
  framing.flush();
  const times = [700_000_000n, 999_999_990n, 1_000_000_005n].map((ns) => 10n * SECOND + ns);
  times.forEach((at, n) => {
    framing.takeBatch(batchOf([write(512, 512, at)], 1000 * (n + 1)));
  });
  const frames = await sent();
  t.same(
    frames.map(({ header, mark }) => [mark?.type ?? 'data', header.bootTimeNs]),
    [
      ['data', begin],
      ['tick', begin],
      ['data', times[1]],
      ['data', times[2]],
    ],
  );
});

t.test(
  'a mark in the middle of a batch stands behind the writes before it, with their clock',
  async (t) => {
    const { framing, sent } = make({
      opaque: () => framing.mark({ type: 'orderLost', reason: 'opaque', compare: [0] }),
    });
    const opaque: Made = { ...write(0, 0, 10n * SECOND + 20n), kind: 'opaque' };
    framing.takeBatch(
      batchOf([write(0, 512, 10n * SECOND), opaque, write(512, 512, 10n * SECOND + 30n)], 0),
    );
    const frames = await sent();
    t.same(
      frames.map(({ header, mark }) => [
        mark?.type ?? 'data',
        header.bootTimeNs,
        header.capturePos,
      ]),
      [
        // Cut off inside the batch: nobody may begin again behind it.
        ['data', 10n * SECOND, 0],
        ['orderLost', 10n * SECOND, 0],
        ['data', 10n * SECOND + 30n, 1000],
      ],
    );
    t.equal(frames[0]!.header.aheadBytes, 1000);
  },
);

t.test(
  'a batch that is too large for a frame is cut, and its memory kept until all is packed',
  async (t) => {
    let recycled = 0;
    const { framing, window, sent } = make();
    const many = Array.from({ length: 15 }, (_, at) =>
      write(at * 2 * MIB, MIB, 10n * SECOND, at + 1),
    );
    framing.takeBatch(batchOf(many, 0, () => recycled++));
    t.equal(recycled, 0, 'the frames are still being packed');
    t.ok(window.nextSeq > 2, 'several frames');
    const frames = await sent();
    t.equal(recycled, 1);
    t.ok(JSON.stringify(got(frames)) === JSON.stringify(expected(many)), 'all of it');
    t.ok(frames.every(({ header }) => header.unpackedBytes <= 8 * MIB));
    t.same(
      frames.map(({ header }) => header.capturePos),
      [...frames.slice(1).map(() => 0), 1000],
    );
  },
);
