/**
 * Invariant 2: a block that was read from the disk never lands over a newer captured write. The model has writes in
 * flight that land late and in any order, reads that are not atomic, a consumer that lags, an appliance that applies
 * and makes durable when it likes, and an agent that is killed. The rule under test is the product's: Touched, and the
 * order of steps of agent/mirror/mirror-run.ts.
 */
import fc from 'fast-check';
import t from 'tap';
import { chunkExtents, subtractSpans } from '../../agent/mirror/chunk.ts';
import { Touched } from '../../agent/mirror/touched.ts';
import type { FrameExtent } from '../../protocol/frame.ts';

const SECTOR = 512;
const SECTORS = 24;
const CHUNK = 6;

/** The rule, and ways to break it: each must be seen by the model. */
type Variant =
  | 'rule'
  | 'no barrier'
  | 'end not awaited'
  | 'nothing cut'
  | 'tracker not from the start';

interface Write {
  first: number;
  count: number;
  value: number;
}

type Op =
  | { kind: 'write'; write: Write; consumed: number; cursor: number }
  | {
      kind: 'mirror';
      sectors: Array<[sector: number, value: number]>;
      consumed: number;
      cursor: number;
    }
  | { kind: 'start' | 'end'; consumed: number; cursor: number };

class Model {
  readonly #variant: Variant;
  readonly #difference: boolean;
  #disk: number[];
  #replica: number[];
  #inFlight: Array<Write & { id: number }> = [];
  #ring: Write[] = [];
  #consumed = 0;
  #stream: Op[] = [];
  #applied = 0;
  #durable = 0;
  #nextValue = 100;
  #nextId = 0;
  #cursor = 0;
  #tracker: Touched | undefined;
  #barrier: Set<number> | undefined;
  #startSeq = 0;
  #read: { sector: number; data: number[]; hash: number[] | null } | undefined;
  /** The ring's end when the last read had ended. */
  #endPos: number | undefined;
  #ended = false;
  /** What the disk is once everything before the ring's first record has landed. */
  #before: number[];
  #inconsistent = false;

  constructor(variant: Variant, difference: boolean, before: Array<[number, number]>) {
    this.#variant = variant;
    this.#difference = difference;
    this.#disk = Array.from({ length: SECTORS }, (_, at) => 1 + at);
    this.#replica = this.#disk.map((value, at) => (difference && at % 5 !== 0 ? value : 0));
    // Issued before the capture was attached, and not captured.
    for (const [first, count] of before) this.#issue(first, count, false);
    this.#before = [...this.#disk];
    for (const { first, count, value } of this.#inFlight) {
      this.#before.fill(value, first, first + count);
    }
  }

  #issue(first: number, count: number, captured: boolean): void {
    const end = Math.min(SECTORS, first + count);
    if (this.#inFlight.some((other) => other.first < end && first < other.first + other.count))
      return;
    const write = { first, count: end - first, value: this.#nextValue++ };
    this.#inFlight.push({ ...write, id: this.#nextId++ });
    if (captured) this.#ring.push(write);
  }

  #land(which: number): void {
    const [write] = this.#inFlight.splice(which % this.#inFlight.length, 1);
    for (let at = 0; at < write!.count; at++) this.#disk[write!.first + at] = write!.value;
  }

  #consume(): void {
    const write = this.#ring[this.#consumed];
    if (!write) return;
    this.#consumed++;
    this.#tracker?.add(write.first * SECTOR, write.count * SECTOR);
    this.#put({ kind: 'write', write });
  }

  #put(
    op:
      | { kind: 'write'; write: Write }
      | { kind: 'mirror'; sectors: Array<[number, number]> }
      | { kind: 'start' | 'end' },
  ): void {
    this.#stream.push({ ...op, consumed: this.#consumed, cursor: this.#cursor } as Op);
  }

  #apply(): void {
    const op = this.#stream[this.#applied];
    if (!op) return;
    this.#applied++;
    this.#durable = Math.max(this.#durable, this.#applied);
    if (op.kind === 'end') {
      // From here on every frame is a point to recover to: what was issued before it, and nothing that came later.
      const source = [...this.#before];
      for (const { first, count, value } of this.#ring.slice(0, op.consumed)) {
        source.fill(value, first, first + count);
      }
      this.#inconsistent ||= !source.every((value, at) => value === this.#replica[at]);
    }
    if (op.kind === 'write')
      this.#replica.fill(op.write.value, op.write.first, op.write.first + op.write.count);
    if (op.kind === 'mirror')
      for (const [sector, value] of op.sectors) this.#replica[sector] = value;
  }

  /** The agent dies: what is not durable is gone, the ring gives its records again, the touched set is lost. */
  #kill(): void {
    this.#stream.length = this.#durable;
    const last = this.#stream.at(-1);
    this.#consumed = last?.consumed ?? 0;
    this.#cursor = last?.cursor ?? 0;
    this.#tracker = undefined;
    this.#barrier = undefined;
    this.#read = undefined;
    this.#endPos = undefined;
    this.#ended = this.#stream.some(({ kind }) => kind === 'end');
  }

  #mirrorStep(): void {
    if (this.#ended) return;
    if (!this.#barrier) {
      if (this.#variant !== 'tracker not from the start')
        this.#tracker = new Touched(SECTORS * SECTOR);
      this.#put({ kind: 'start' });
      this.#startSeq = this.#stream.length;
      this.#barrier = new Set(
        this.#variant === 'no barrier' ? [] : this.#inFlight.map(({ id }) => id),
      );
      return;
    }
    if (this.#inFlight.some(({ id }) => this.#barrier!.has(id))) return;
    if (this.#cursor >= SECTORS) {
      this.#endPos ??= this.#ring.length;
      if (this.#variant !== 'end not awaited' && this.#consumed < this.#endPos) return;
      this.#ended = true;
      this.#put({ kind: 'end' });
      return;
    }
    this.#read ??= {
      sector: this.#cursor,
      data: [],
      hash: null,
    };
    const read = this.#read;
    const end = Math.min(this.#cursor + CHUNK, SECTORS);
    if (read.sector < end) {
      read.data.push(this.#disk[read.sector++]!);
      return;
    }
    if (this.#difference && !read.hash) {
      // The appliance hashes its replica at any moment after the run's start was applied.
      if (this.#applied < this.#startSeq) return;
      read.hash = this.#replica.slice(this.#cursor, end);
      return;
    }
    const same = read.hash?.every((value, at) => value === read.data[at]) ?? false;
    const chunk = {
      offsetBytes: this.#cursor * SECTOR,
      lengthBytes: (end - this.#cursor) * SECTOR,
    };
    this.#tracker ??= new Touched(SECTORS * SECTOR);
    const spans =
      this.#variant === 'nothing cut'
        ? [chunk]
        : this.#tracker.untouched(chunk.offsetBytes, chunk.lengthBytes);
    const sectors: Array<[number, number]> = [];
    if (!same) {
      for (const span of spans) {
        for (let at = span.offsetBytes; at < span.offsetBytes + span.lengthBytes; at += SECTOR) {
          sectors.push([at / SECTOR, read.data[at / SECTOR - this.#cursor]!]);
        }
      }
    }
    this.#cursor = end;
    this.#read = undefined;
    this.#put({ kind: 'mirror', sectors });
  }

  step(choice: number, a: number, b: number): void {
    switch (choice) {
      case 0:
        this.#issue(a % SECTORS, 1 + (b % 10), true);
        break;
      case 1:
        if (this.#inFlight.length > 0) this.#land(a);
        break;
      case 2:
        this.#consume();
        break;
      case 3:
      case 4:
      case 5:
        this.#mirrorStep();
        break;
      case 6:
        this.#apply();
        break;
      case 7:
        if (a % 8 === 0) this.#kill();
        else this.#durable = this.#stream.length;
    }
  }

  /** Let everything come to its end: was the replica consistent at the end mark, and is it the disk now? */
  finish(): boolean {
    while (!this.#ended) {
      if (this.#inFlight.length > 0) this.#land(0);
      this.#consume();
      this.#mirrorStep();
      this.#apply();
    }
    while (this.#inFlight.length > 0) this.#land(0);
    while (this.#consumed < this.#ring.length) this.#consume();
    while (this.#applied < this.#stream.length) this.#apply();
    return !this.#inconsistent && this.#replica.every((value, at) => value === this.#disk[at]);
  }
}

const scenario = (variant: Variant) =>
  fc.property(
    fc.boolean(),
    fc.array(fc.tuple(fc.nat(SECTORS - 1), fc.integer({ min: 1, max: 8 })), { maxLength: 3 }),
    fc.array(fc.tuple(fc.nat(7), fc.nat(1000), fc.nat(1000)), { minLength: 60, maxLength: 400 }),
    (difference, before, steps) => {
      const model = new Model(variant, difference, before as Array<[number, number]>);
      for (const [choice, a, b] of steps) model.step(choice, a, b);
      return model.finish();
    },
  );

t.test('no read block lands over a newer write, whatever the schedule', async (t) => {
  fc.assert(scenario('rule'), { numRuns: 6000 });
  t.pass('6000 random schedules');
});

for (const variant of [
  'no barrier',
  'end not awaited',
  'nothing cut',
  'tracker not from the start',
] as const) {
  t.test(`the model sees a rule that is broken: ${variant}`, async (t) => {
    const { failed } = fc.check(scenario(variant), { numRuns: 6000, endOnFailure: true });
    t.ok(failed, 'some schedule ends with a wrong replica');
  });
}

t.test('touched sectors are exactly those that were written', async (t) => {
  const sectors = 512;
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.nat(sectors - 1), fc.integer({ min: 1, max: 200 })), { maxLength: 20 }),
      fc.nat(sectors - 1),
      fc.integer({ min: 1, max: sectors }),
      (writes, first, count) => {
        const touched = new Touched(sectors * SECTOR);
        const plain = new Set<number>();
        for (const [from, length] of writes) {
          touched.add(from * SECTOR, length * SECTOR);
          for (let at = from; at < from + length; at++) plain.add(at);
        }
        const end = Math.min(sectors, first + count);
        const free: number[] = [];
        for (const span of touched.untouched(first * SECTOR, (end - first) * SECTOR)) {
          for (let at = 0; at < span.lengthBytes; at += SECTOR)
            free.push((span.offsetBytes + at) / SECTOR);
        }
        const want: number[] = [];
        for (let at = first; at < end; at++) if (!plain.has(at)) want.push(at);
        return JSON.stringify(free) === JSON.stringify(want);
      },
    ),
    { numRuns: 500 },
  );
  t.pass('against a plain set');
});

t.test('what is sent of a chunk is what was read; zeroes are left out or said', async (t) => {
  const bytes = 512 * 1024;
  const data = Buffer.alloc(bytes);
  data.fill(7, 64 * 1024, 128 * 1024);
  data[300_000] = 9;
  const offset = 1024 * 1024;
  const spans = [
    { offsetBytes: offset, lengthBytes: 100 * 1024 },
    { offsetBytes: offset + 101 * 1024, lengthBytes: bytes - 101 * 1024 },
  ];
  for (const kind of ['full', 'difference'] as const) {
    const extents = chunkExtents(0, kind, offset, data, spans);
    const replica = Buffer.alloc(bytes, kind === 'full' ? 0 : 0xee);
    replica.copy(data, 100 * 1024, 100 * 1024, 101 * 1024);
    for (const extent of extents) write(replica, extent, offset);
    data.copy(replica, 100 * 1024, 100 * 1024, 101 * 1024);
    t.ok(replica.equals(data), kind);
    t.equal(
      extents.some((extent) => extent.kind === 'zero'),
      kind === 'difference',
    );
    t.ok(extents.every((extent, at) => at === 0 || extent.offsetBytes >= end(extents[at - 1]!)));
  }
});

const end = (extent: FrameExtent) => extent.offsetBytes + extent.lengthBytes;
function write(replica: Buffer, extent: FrameExtent, base: number): void {
  const at = extent.offsetBytes - base;
  if (extent.kind === 'zero') replica.fill(0, at, at + extent.lengthBytes);
  else replica.set(extent.data, at);
}

t.test('spans without holes', async (t) => {
  const span = (offsetBytes: number, to: number) => ({
    offsetBytes,
    lengthBytes: to - offsetBytes,
  });
  t.same(subtractSpans(span(10, 20), []), [span(10, 20)]);
  t.same(subtractSpans(span(10, 20), [span(0, 5), span(20, 30)]), [span(10, 20)]);
  t.same(subtractSpans(span(10, 20), [span(0, 12), span(14, 15), span(18, 40)]), [
    span(12, 14),
    span(15, 18),
  ]);
  t.same(subtractSpans(span(10, 20), [span(0, 40)]), []);
});
