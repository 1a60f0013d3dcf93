import { PassThrough } from 'node:stream';
import t from 'tap';
import { ByteSource } from '../../agent/capture/byte-source.ts';
import {
  BATCH_HEADER_BYTES,
  parseBatchBody,
  parseBatchHeader,
  RECORD_BYTES,
} from '../../agent/capture/wire.ts';

type Wire = {
  kind: number;
  flags?: number;
  disk?: number;
  offset?: bigint;
  data?: Buffer;
  length?: number;
  mark?: bigint;
};

function batch(list: Wire[], lost = 0): Buffer {
  const head = Buffer.alloc(BATCH_HEADER_BYTES);
  const data = Buffer.concat(list.map((w) => w.data ?? Buffer.alloc(0)));
  head.writeUInt32LE(0x31424355, 0);
  head.writeUInt32LE(list.length, 4);
  head.writeBigUInt64LE(2n ** 40n, 8);
  head.writeBigUInt64LE(2n ** 40n + 64n, 16);
  head.writeBigUInt64LE(BigInt(data.length), 24);
  head.writeUInt32LE(lost, 32);
  const records = list.map((w, i) => {
    const r = Buffer.alloc(RECORD_BYTES);
    r.writeUInt8(w.kind, 0);
    r.writeUInt8(w.flags ?? 0, 1);
    r.writeUInt16LE(w.disk ?? 0, 2);
    r.writeUInt32LE(w.length ?? w.data?.length ?? 0, 4);
    r.writeBigUInt64LE(w.offset ?? 0n, 8);
    r.writeBigUInt64LE(1000n + BigInt(i), 16);
    r.writeBigUInt64LE(w.mark ?? 0n, 24);
    r.writeBigUInt64LE(2n ** 40n + BigInt(i), 32);
    return r;
  });
  return Buffer.concat([head, ...records, data]);
}

const parse = (bytes: Buffer) =>
  parseBatchBody(
    parseBatchHeader(bytes.subarray(0, BATCH_HEADER_BYTES)),
    bytes.subarray(BATCH_HEADER_BYTES),
  );

t.test('a batch is read as the helper writes it', async (t) => {
  const a = Buffer.alloc(512, 1);
  const b = Buffer.alloc(1024, 2);
  const got = parse(
    batch([
      { kind: 1, disk: 2, offset: 2n ** 41n, data: a },
      { kind: 2, disk: 1, length: 4096, flags: 2 },
      { kind: 3, mark: 77n },
      { kind: 4, disk: 5 },
      { kind: 1, data: b },
    ]),
  );
  t.equal(got.startPos, 2n ** 40n);
  t.equal(got.endPos, 2n ** 40n + 64n);
  t.equal(got.order, 'held');
  t.same(
    got.records.map((r) => [r.kind, r.disk, r.offsetBytes, r.lengthBytes, r.bootNs, r.pos]),
    [
      ['write', 2, 2 ** 41, 512, 1000n, 2n ** 40n],
      ['zero', 1, 0, 4096, 1001n, 2n ** 40n + 1n],
      ['mark', -1, 0, 0, 1002n, 2n ** 40n + 2n],
      ['opaque', 5, 0, 0, 1003n, 2n ** 40n + 3n],
      ['write', 0, 0, 1024, 1004n, 2n ** 40n + 4n],
    ],
  );
  t.ok(got.records[0]?.data?.equals(a));
  t.ok(got.records[4]?.data?.equals(b));
  t.equal(got.records[1]?.discard, true);
  t.equal(got.records[2]?.markId, 77n);
});

t.test('lost order is told', async (t) => t.equal(parse(batch([], 1)).order, 'lost'));

t.test('what is not a batch is refused', async (t) => {
  const bad = batch([{ kind: 9 }]);
  t.throws(() => parse(bad), /kind 9/);
  const short = batch([{ kind: 1, data: Buffer.alloc(512), length: 513 }]);
  t.throws(() => parse(short), /disagree/);
  bad.writeUInt32LE(0, 0);
  t.throws(() => parse(bad), /not a batch/);
});

t.test('the byte source gives exact pieces and pushes back', async (t) => {
  const pipe = new PassThrough({ highWaterMark: 4 });
  const source = new ByteSource(pipe);
  pipe.write('abc');
  pipe.write('defgh');
  t.equal(String(await source.take(2)), 'ab');
  t.equal(String(await source.take(4)), 'cdef');
  t.equal((await source.take(0))?.length, 0);
  t.equal(pipe.isPaused(), true, 'nothing is read ahead');
  const waiting = source.take(5);
  pipe.end('ijk');
  t.equal(String(await waiting), 'ghijk');
  t.equal(await source.take(1), undefined, 'the end');
});
