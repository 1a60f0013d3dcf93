/**
 * Verification never calls a block wrong that only moves, and misses no wrong one that nobody writes. The model has writes
 * in flight that land late and in any order, a consumer of the ring that lags, and an appliance that applies when it
 * likes. The rule under test is the order of steps of agent/mirror/verify-run.ts.
 */
import fc from 'fast-check';
import t from 'tap';
import { Touched } from '../../agent/mirror/touched.ts';

const BLOCK = 4096;
const BLOCKS = 12;
const PIECE = 4;

/** The rule, and ways to break it: each must be seen by the model. */
type Variant = 'rule' | 'no barrier' | 'not overtaken' | 'nothing cut' | 'answer not awaited';

interface Write {
  first: number;
  count: number;
  value: number;
}
type Op =
  | { kind: 'write'; write: Write }
  | { kind: 'start' }
  | { kind: 'repair'; at: number; value: number };
type Step =
  | { name: 'begin' | 'barrier' | 'next' }
  | { name: 'read'; data: number[] }
  | { name: 'overtaken'; data: number[]; pos: number }
  | { name: 'asked'; data: number[]; still: number[]; behindSeq: number }
  | { name: 'done' };

class Model {
  readonly #variant: Variant;
  readonly #wrong: Set<number>;
  readonly #written = new Set<number>();
  readonly #found = new Set<number>();
  #falsely = false;
  #disk = Array.from({ length: BLOCKS }, (_, at) => 1 + at);
  #replica: number[];
  #inFlight: Array<Write & { id: number }> = [];
  #ring: Write[] = [];
  #consumed = 0;
  #stream: Op[] = [];
  #applied = 0;
  #nextValue = 100;
  #nextId = 0;
  #touched = new Touched(BLOCKS * BLOCK);
  #barrier = new Set<number>();
  #startSeq = 0;
  #cursor = 0;
  #step: Step = { name: 'begin' };

  constructor(variant: Variant, wrong: number[]) {
    this.#variant = variant;
    this.#wrong = new Set(wrong);
    this.#replica = this.#disk.map((value, at) => (this.#wrong.has(at) ? -1 : value));
  }

  #issue(first: number, count: number): void {
    const end = Math.min(BLOCKS, first + count);
    if (this.#inFlight.some((one) => one.first < end && first < one.first + one.count)) return;
    const write = { first, count: end - first, value: this.#nextValue++ };
    this.#inFlight.push({ ...write, id: this.#nextId++ });
    this.#ring.push(write);
    for (let at = first; at < end; at++) this.#written.add(at);
  }

  #land(which: number): void {
    const [write] = this.#inFlight.splice(which % this.#inFlight.length, 1);
    this.#disk.fill(write!.value, write!.first, write!.first + write!.count);
  }

  #consume(): void {
    const write = this.#ring[this.#consumed];
    if (!write) return;
    this.#consumed++;
    this.#touched.add(write.first * BLOCK, write.count * BLOCK);
    this.#stream.push({ kind: 'write', write });
  }

  #apply(): void {
    const op = this.#stream[this.#applied];
    if (!op) return;
    this.#applied++;
    if (op.kind === 'write')
      this.#replica.fill(op.write.value, op.write.first, op.write.first + op.write.count);
    if (op.kind === 'repair') this.#replica[op.at] = op.value;
  }

  #isStill(at: number): boolean {
    if (this.#variant === 'nothing cut') return true;
    return this.#touched.untouched(at * BLOCK, BLOCK)[0]?.lengthBytes === BLOCK;
  }

  #verify(): void {
    const step = this.#step;
    switch (step.name) {
      case 'begin':
        this.#touched = new Touched(BLOCKS * BLOCK);
        this.#stream.push({ kind: 'start' });
        this.#startSeq = this.#stream.length;
        this.#barrier = new Set(this.#inFlight.map(({ id }) => id));
        this.#step = { name: 'barrier' };
        break;
      case 'barrier': {
        const waits = this.#inFlight.some(({ id }) => this.#barrier.has(id));
        if (this.#variant !== 'no barrier' && waits) break;
        this.#step = { name: 'next' };
        break;
      }
      case 'next':
        this.#step = this.#cursor < BLOCKS ? { name: 'read', data: [] } : { name: 'done' };
        break;
      case 'read':
        step.data.push(this.#disk[this.#cursor + step.data.length]!);
        if (step.data.length === PIECE)
          this.#step = { name: 'overtaken', data: step.data, pos: this.#ring.length };
        break;
      case 'overtaken': {
        if (this.#variant !== 'not overtaken' && this.#consumed < step.pos) break;
        const all = step.data.map((_, at) => this.#cursor + at);
        const still = all.filter((at) => this.#isStill(at));
        this.#step = { name: 'asked', data: step.data, still, behindSeq: this.#stream.length };
        break;
      }
      case 'asked': {
        if (this.#applied < Math.max(step.behindSeq, this.#startSeq)) break;
        for (const at of step.still) {
          const value = step.data[at - this.#cursor]!;
          if (this.#replica[at] === value) continue;
          if (this.#variant !== 'answer not awaited' && !this.#isStill(at)) continue;
          this.#found.add(at);
          if (!this.#wrong.has(at)) this.#falsely = true;
          this.#stream.push({ kind: 'repair', at, value });
        }
        this.#cursor += PIECE;
        this.#step = { name: 'next' };
        break;
      }
      case 'done':
        break;
    }
  }

  step(choice: number, a: number, b: number): void {
    switch (choice) {
      case 0:
        this.#issue(a % BLOCKS, 1 + (b % 3));
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
        this.#verify();
        break;
      case 6:
        this.#apply();
    }
  }

  /** Everything comes to its end: nothing false, nothing missed, and the replica is the disk. */
  finish(): boolean {
    while (this.#step.name !== 'done') {
      if (this.#inFlight.length > 0) this.#land(0);
      this.#consume();
      this.#verify();
      this.#apply();
    }
    while (this.#inFlight.length > 0) this.#land(0);
    while (this.#consumed < this.#ring.length) this.#consume();
    while (this.#applied < this.#stream.length) this.#apply();
    const missed = [...this.#wrong].some((at) => !this.#written.has(at) && !this.#found.has(at));
    const same = this.#replica.every((value, at) => value === this.#disk[at]);
    return !this.#falsely && !missed && same;
  }
}

const scenario = (variant: Variant) =>
  fc.property(
    fc.array(fc.nat(BLOCKS - 1), { maxLength: 3 }),
    fc.array(fc.tuple(fc.nat(6), fc.nat(1000), fc.nat(1000)), { minLength: 40, maxLength: 200 }),
    (wrong, steps) => {
      const model = new Model(variant, wrong);
      for (const [choice, a, b] of steps) model.step(choice, a, b);
      return model.finish();
    },
  );

t.test(
  'whatever the schedule, exactly what is wrong and still is found and repaired',
  async (t) => {
    fc.assert(scenario('rule'), { numRuns: 6000 });
    t.pass('6000 random schedules');
  },
);

for (const variant of [
  'no barrier',
  'not overtaken',
  'nothing cut',
  'answer not awaited',
] as const) {
  t.test(`the model sees a rule that is broken: ${variant}`, async (t) => {
    const { failed } = fc.check(scenario(variant), { numRuns: 6000, endOnFailure: true });
    t.ok(failed, 'some schedule ends with a false alarm, or a wrong replica');
  });
}
