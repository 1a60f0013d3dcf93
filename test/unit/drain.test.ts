/**
 * Order lost and held again, as a model: a ring that overflows, a dirty map that is marked at issue and at completion,
 * writes that land late, an agent that notices late and dies, an appliance that makes durable and applies when it
 * likes. Two things must hold whatever the schedule: at the end mark of a drain the replica is what the source had
 * issued by then (a point to recover to), and in the end it is the disk. The rule under test is the product's: Touched,
 * and the order of steps of agent/send/order.ts, agent/mirror/mirror-run.ts and agent/mirror/drain.ts.
 */
import fc from 'fast-check';
import t from 'tap';
import { planReads } from '../../agent/mirror/drain.ts';
import { Touched } from '../../agent/mirror/touched.ts';

const SECTOR = 512;
const PER_BLOCK = 8;
const BLOCKS = 5;
const SECTORS = BLOCKS * PER_BLOCK;

/** The rule, and ways to break it: each must be seen by the model. */
const BROKEN = [
  'resumed before the loss is durable',
  'no barrier',
  'nothing cut',
  'end not awaited',
  'mode not looked at before the end',
  'cleared when sent',
  'taken forgotten by a new agent',
] as const;
type Variant = 'rule' | (typeof BROKEN)[number];

interface Write {
  first: number;
  count: number;
  value: number;
  /** Its place in the ring; null: only the dirty map has it. */
  at: number | null;
}

type Op =
  | { kind: 'write'; write: Write; consumed: number }
  | { kind: 'drain'; sectors: Array<[number, number]>; blocks: number[]; consumed: number }
  | { kind: 'end'; atLeast: number; consumed: number }
  | { kind: 'lost' | 'resumed' | 'start'; consumed: number };
/** Without `consumed`, which `#put` adds. */
type NewOp =
  | { kind: 'write'; write: Write }
  | { kind: 'drain'; sectors: Array<[number, number]>; blocks: number[] }
  | { kind: 'end'; atLeast: number }
  | { kind: 'lost' | 'resumed' | 'start' };

class Model {
  readonly #variant: Variant;
  #disk: number[] = Array.from({ length: SECTORS }, (_, at) => 1 + at);
  #replica: number[] = [...this.#disk];
  readonly #before = [...this.#disk];
  #issued: Write[] = [];
  #inFlight: Write[] = [];
  #ring: Write[] = [];
  #tracking = false;
  #dirty = new Set<number>();
  #taken = new Set<number>();
  #consumed = 0;
  #stream: Op[] = [];
  #durable = 0;
  #applied = 0;
  #value = 100;
  /** The agent: what it believes, and its run. */
  #lost = false;
  #markAt = -1;
  #resuming: { waitFor: Set<Write>; pos: number | null } | undefined;
  #owes = false;
  /** So many writes had been issued when ordered capture was last switched on. */
  #switchedAt = 0;
  #run:
    | {
        tracker: Touched;
        waitFor: Set<Write>;
        sweep: number;
        blocks: number[];
        read: Array<[number, number]>;
        endPos: number | null;
        endAt: number | null;
        mine: number[];
      }
    | undefined;
  inconsistent = false;
  ends = 0;

  constructor(variant: Variant) {
    this.#variant = variant;
  }

  #blocksOf({ first, count }: Write): number[] {
    const blocks = [];
    for (let b = Math.floor(first / PER_BLOCK); b * PER_BLOCK < first + count; b++) blocks.push(b);
    return blocks;
  }

  #issue(first: number, count: number): void {
    const end = Math.min(SECTORS, first + count);
    if (this.#inFlight.some((w) => w.first < end && first < w.first + w.count)) return;
    const at = this.#tracking ? null : this.#ring.length;
    const write = { first, count: end - first, value: this.#value++, at };
    this.#issued.push(write);
    this.#inFlight.push(write);
    if (at !== null) this.#ring.push(write);
    else for (const block of this.#blocksOf(write)) this.#dirty.add(block);
  }

  #land(which: number): void {
    const [write] = this.#inFlight.splice(which % this.#inFlight.length, 1);
    this.#disk.fill(write!.value, write!.first, write!.first + write!.count);
    if (write!.at !== null) return;
    for (const block of this.#blocksOf(write!)) this.#dirty.add(block);
  }

  #put(op: NewOp): number {
    this.#stream.push({ ...op, consumed: this.#consumed } as Op);
    return this.#stream.length - 1;
  }

  #consume(): void {
    const write = this.#ring[this.#consumed];
    if (!write) return;
    this.#consumed++;
    this.#run?.tracker.add(write.first * SECTOR, write.count * SECTOR);
    this.#put({ kind: 'write', write });
  }

  #loseOrder(): void {
    this.#lost = true;
    this.#abortRun();
    this.#markAt = this.#put({ kind: 'lost' });
    this.#resuming = undefined;
  }

  #abortRun(): void {
    for (const block of this.#run?.mine ?? [])
      if (this.#taken.delete(block)) this.#dirty.add(block);
    if (this.#run) this.#owes = true;
    this.#run = undefined;
  }

  #barrier(): Set<Write> {
    return new Set(this.#variant === 'no barrier' ? [] : this.#inFlight);
  }

  /** One step of the agent's work beside consuming. */
  #act(): void {
    if (this.#lost) {
      if (this.#markAt >= this.#durable && this.#variant !== 'resumed before the loss is durable')
        return;
      if (!this.#resuming) {
        // Ordered again: from here on writes go into the ring; those that still saw the old mode are waited for.
        this.#tracking = false;
        this.#switchedAt = this.#issued.length;
        this.#resuming = { waitFor: this.#barrier(), pos: null };
        return;
      }
      const { waitFor } = this.#resuming;
      if (this.#inFlight.some((write) => waitFor.has(write))) return;
      this.#resuming.pos ??= this.#ring.length;
      if (this.#consumed < this.#resuming.pos) return;
      if (this.#tracking) {
        // Lost again meanwhile.
        this.#resuming = undefined;
        return;
      }
      this.#lost = false;
      this.#resuming = undefined;
      this.#put({ kind: 'resumed' });
      this.#owes = true;
      return;
    }
    if (!this.#run) {
      if (!this.#owes) return;
      this.#owes = false;
      const tracker = new Touched(SECTORS * SECTOR);
      this.#put({ kind: 'start' });
      this.#run = {
        ...{ tracker, waitFor: this.#barrier(), sweep: 0, blocks: [] },
        ...{ read: [], endPos: null, endAt: null, mine: [] },
      };
      return;
    }
    const run = this.#run;
    if (this.#inFlight.some((write) => run.waitFor.has(write))) return;
    if (run.endAt !== null) {
      if (run.endAt >= this.#durable && this.#variant !== 'cleared when sent') return;
      for (const block of run.mine) this.#taken.delete(block);
      run.mine = [];
      this.#run = undefined;
      return;
    }
    if (run.endPos !== null) {
      if (this.#variant !== 'end not awaited' && this.#consumed < run.endPos) return;
      run.endAt = this.#put({ kind: 'end', atLeast: this.#switchedAt });
      return;
    }
    if (run.blocks.length === 0) {
      const next = [...this.#dirty].filter((b) => b >= run.sweep).sort((a, b) => a - b)[0];
      if (next === undefined) {
        // The status that gives the ring's end tells the mode as well.
        if (this.#tracking && this.#variant !== 'mode not looked at before the end') {
          this.#loseOrder();
          return;
        }
        run.endPos = this.#ring.length;
        return;
      }
      run.sweep = next + 1;
      this.#dirty.delete(next);
      this.#taken.add(next);
      run.mine.push(next);
      run.blocks = [next];
      run.waitFor = this.#barrier();
      return;
    }
    const [block] = run.blocks;
    const from = block! * PER_BLOCK;
    if (run.read.length < PER_BLOCK) {
      const sector = from + run.read.length;
      run.read.push([sector, this.#disk[sector]!]);
      return;
    }
    const keep = new Set<number>();
    for (const span of run.tracker.untouched(from * SECTOR, PER_BLOCK * SECTOR)) {
      for (let n = 0; n < span.lengthBytes; n += SECTOR) keep.add((span.offsetBytes + n) / SECTOR);
    }
    const sectors = run.read.filter(([s]) => this.#variant === 'nothing cut' || keep.has(s));
    this.#put({ kind: 'drain', sectors, blocks: [block!] });
    run.blocks = [];
    run.read = [];
  }

  /** The agent dies: what is not durable is gone, the ring gives its records again, the pinned maps stay. */
  #kill(): void {
    this.#stream.length = this.#durable;
    this.#applied = Math.min(this.#applied, this.#durable);
    this.#consumed = this.#stream.at(-1)?.consumed ?? 0;
    this.#run = undefined;
    this.#resuming = undefined;
    if (this.#variant !== 'taken forgotten by a new agent') {
      for (const block of this.#taken) this.#dirty.add(block);
    }
    this.#taken.clear();
    // What the handshake tells: whether the journal ends in a lost stretch, and whether a drain has not ended.
    const kinds = this.#stream.map(({ kind }) => kind);
    this.#lost = kinds.lastIndexOf('lost') > kinds.lastIndexOf('resumed');
    this.#markAt = this.#lost ? kinds.lastIndexOf('lost') : -1;
    this.#owes = !this.#lost && kinds.lastIndexOf('resumed') > kinds.lastIndexOf('end');
    if (this.#tracking && !this.#lost) this.#loseOrder();
  }

  #apply(): void {
    const op = this.#stream[this.#applied];
    if (!op || this.#applied >= this.#durable) return;
    this.#applied++;
    if (op.kind === 'write')
      this.#replica.fill(op.write.value, op.write.first, op.write.first + op.write.count);
    if (op.kind === 'drain')
      for (const [sector, value] of op.sectors) this.#replica[sector] = value;
    if (op.kind !== 'end') return;
    this.ends++;
    // What was issued before the first record that is not in the stream yet; of the writes at its end that an overflow
    // missed since, any number may be in it, as after a power cut.
    const source = [...this.#before];
    const next = this.#ring[op.consumed];
    const cut = next ? this.#issued.slice(0, this.#issued.indexOf(next)) : this.#issued;
    const least = Math.max(cut.findLastIndex(({ at }) => at !== null) + 1, op.atLeast);
    const allowed = [];
    for (let n = Math.min(least, cut.length); n <= cut.length; n++) allowed.push(cut.slice(0, n));
    const fits = allowed.some((writes) => {
      const want = [...source];
      for (const { first, count, value } of writes) want.fill(value, first, first + count);
      return want.every((value, at) => value === this.#replica[at]);
    });
    this.inconsistent ||= !fits;
  }

  step(choice: number, a: number, b: number): void {
    switch (choice) {
      case 0:
        this.#issue(a % SECTORS, 1 + (b % 12));
        break;
      case 1:
      case 2:
        if (this.#inFlight.length > 0) this.#land(a);
        break;
      case 3:
      case 4:
        this.#consume();
        break;
      case 5:
        this.#apply();
        break;
      case 6:
        if (a % 6 === 0) this.#kill();
        else if (a % 6 === 1) this.#tracking = true;
        else if (a % 6 === 2) {
          if (this.#tracking && !this.#lost) this.#loseOrder();
        } else this.#durable = this.#stream.length;
        break;
      default:
        this.#act();
    }
  }

  /** Let everything come to its end: was every end mark a point, and is the replica the disk now? */
  finish(): boolean {
    for (let n = 0; n < 3000; n++) {
      if (this.#inFlight.length > 0) this.#land(0);
      if (this.#tracking && !this.#lost) this.#loseOrder();
      this.#consume();
      this.#act();
      this.#durable = this.#stream.length;
      this.#apply();
      const idle = !this.#run && !this.#lost && !this.#owes && !this.#tracking;
      const sent = this.#consumed === this.#ring.length && this.#applied === this.#stream.length;
      if (idle && sent && this.#inFlight.length === 0) break;
    }
    return !this.inconsistent && this.#replica.every((value, at) => value === this.#disk[at]);
  }
}

const scenario = (variant: Variant, counted?: (ends: number) => void) =>
  fc.property(
    fc.array(fc.tuple(fc.nat(12), fc.nat(1000), fc.nat(1000)), { minLength: 80, maxLength: 500 }),
    (steps) => {
      const model = new Model(variant);
      for (const [choice, a, b] of steps) model.step(choice, a, b);
      const good = model.finish();
      counted?.(model.ends);
      return good;
    },
  );

t.test('a drain ends in a point, and nothing is missed, whatever the schedule', async (t) => {
  let drains = 0;
  fc.assert(
    scenario('rule', (ends) => {
      drains += ends;
    }),
    { numRuns: 4000 },
  );
  t.ok(drains > 1000, `${drains} drains in 4000 schedules`);
});

for (const variant of BROKEN) {
  t.test(`the model sees a rule that is broken: ${variant}`, async (t) => {
    const { failed } = fc.check(scenario(variant), {
      numRuns: 30_000,
      endOnFailure: true,
      seed: 20,
    });
    t.ok(failed, 'some schedule ends with a wrong replica or a false point');
  });
}

t.test('reads of dirty blocks cover exactly them', async (t) => {
  const KIB = 1024;
  const extent = (from: number, blocks: number) => ({
    offsetBytes: from * 4 * KIB,
    lengthBytes: blocks * 4 * KIB,
  });
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 700 })), {
        minLength: 1,
        maxLength: 40,
      }),
      (shape) => {
        let at = 0;
        const extents = shape.map(([gap, blocks]) => {
          const one = extent(at + gap, blocks);
          at += gap + blocks;
          return one;
        });
        const reads = planReads(extents);
        const parts = reads.flatMap((read) => read.parts);
        const total = (spans: ReadonlyArray<{ lengthBytes: number }>) =>
          spans.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0);
        return (
          total(parts) === total(extents) &&
          reads.every(
            (read) =>
              read.lengthBytes <= KIB * KIB &&
              read.parts.every(
                (part) =>
                  part.offsetBytes >= read.offsetBytes &&
                  part.offsetBytes + part.lengthBytes <= read.offsetBytes + read.lengthBytes,
              ),
          ) &&
          extents.every(
            (one) =>
              total(
                parts.filter(
                  (part) =>
                    part.offsetBytes >= one.offsetBytes &&
                    part.offsetBytes < one.offsetBytes + one.lengthBytes,
                ),
              ) === one.lengthBytes,
          )
        );
      },
    ),
  );
  t.equal(planReads([extent(0, 1), extent(5, 1), extent(30, 1)]).length, 2, 'near ones together');
});
