/**
 * Blocks of which issue order cannot tell what the disk holds (a write failed, or two overlapped in flight) end on the
 * replica as on the disk, whatever the schedule. The runs are the product's (mirror-run.ts, drain.ts, compare.ts and
 * reread.ts); around them are a disk on which writes land late, in any order, or not at all, a pump that finds the
 * overlaps, a consumer of the ring that lags, and an appliance that applies when it likes.
 */
import fc from 'fast-check';
import t from 'tap';
import type { Extent } from '../../agent/capture/capture.ts';
import { type MirrorAsk, type MirrorHost, runMirror } from '../../agent/mirror/mirror-run.ts';
import { type RereadHost, runReread } from '../../agent/mirror/reread.ts';
import { Touched } from '../../agent/mirror/touched.ts';
import { hashRange } from '../../appliance/replication/replica-hashes.ts';
import type { MirrorKind } from '../../protocol/control.ts';
import type { FrameExtent } from '../../protocol/frame.ts';
import { hashOf } from '../../protocol/hash-tree.ts';

const SECTOR = 512;
const BLOCK = 4096;
const BLOCKS = 6;
const BYTES = BLOCKS * BLOCK;

/** Ways to break the rule: each must be seen. */
type Variant = 'rule' | 'no barrier' | 'not overtaken';

interface Write {
  offsetBytes: number;
  data: Buffer;
  overlaps: boolean;
}

class World {
  readonly #variant: Variant;
  readonly #steps: Array<[choice: number, a: number, b: number]>;
  readonly disk = Buffer.alloc(BYTES, 1);
  readonly replica = Buffer.alloc(BYTES);
  readonly #dirty = new Set<number>();
  readonly #taken = new Set<number>();
  #inFlight: Write[] = [];
  readonly #ring: Write[] = [];
  #pumped = 0;
  #consumed = 0;
  readonly #stream: FrameExtent[][] = [];
  #applied = 0;
  #startAt = 0;
  readonly #trackers = new Set<Touched>();
  #value = 2;

  constructor(variant: Variant, steps: Array<[number, number, number]>, kind: MirrorKind) {
    this.#variant = variant;
    this.#steps = [...steps];
    // The replica of a full run reads as zeroes; others have something, here and there something else.
    if (kind !== 'full') this.disk.copy(this.replica);
    if (kind === 'difference') this.replica.fill(9, BLOCK, 2 * BLOCK);
  }

  get dirty(): boolean {
    return this.#dirty.size > 0;
  }

  #mark(offsetBytes: number, lengthBytes: number): void {
    const end = offsetBytes + lengthBytes;
    for (let b = Math.floor(offsetBytes / BLOCK); b * BLOCK < end; b++) this.#dirty.add(b);
  }

  #issue(sector: number, sectors: number): void {
    const offsetBytes = (sector * SECTOR) % BYTES;
    const lengthBytes = Math.min(BYTES - offsetBytes, sectors * SECTOR);
    this.#value = (this.#value % 250) + 2;
    const end = offsetBytes + lengthBytes;
    const overlaps = this.#inFlight.some(
      (one) => one.offsetBytes < end && offsetBytes < one.offsetBytes + one.data.length,
    );
    const write = { offsetBytes, data: Buffer.alloc(lengthBytes, this.#value), overlaps };
    this.#inFlight.push(write);
    this.#ring.push(write);
  }

  #complete(which: number, ok: boolean): void {
    const [write] = this.#inFlight.splice(which % this.#inFlight.length, 1);
    if (ok) write!.data.copy(this.disk, write!.offsetBytes);
    else this.#mark(write!.offsetBytes, write!.data.length);
  }

  #pump(): void {
    const write = this.#ring[this.#pumped];
    if (!write) return;
    this.#pumped++;
    if (write.overlaps) this.#mark(write.offsetBytes, write.data.length);
  }

  #consume(): void {
    if (this.#consumed === this.#pumped) return;
    const { offsetBytes, data } = this.#ring[this.#consumed++]!;
    for (const touched of this.#trackers) touched.add(offsetBytes, data.length);
    const lengthBytes = data.length;
    this.#stream.push([{ kind: 'write', disk: 0, offsetBytes, lengthBytes, data }]);
  }

  #apply(): void {
    for (const extent of this.#stream[this.#applied] ?? []) {
      const { offsetBytes, lengthBytes } = extent;
      if (extent.kind === 'zero') this.replica.fill(0, offsetBytes, offsetBytes + lengthBytes);
      else this.replica.set(extent.data, offsetBytes);
    }
    if (this.#applied < this.#stream.length) this.#applied++;
  }

  /** What happens while a run awaits something: as scheduled, and when that is over, all that is under way ends. */
  async #turn(): Promise<void> {
    const step = this.#steps.shift();
    if (!step) {
      if (this.#inFlight.length > 0) this.#complete(0, true);
      this.#pump();
      this.#consume();
      this.#apply();
      return;
    }
    const [choice, a, b] = step;
    if (choice === 0) this.#issue(a, 1 + (b % 12));
    else if (choice <= 2 && this.#inFlight.length > 0) this.#complete(a, b % 3 !== 0);
    else if (choice === 3) this.#pump();
    else if (choice === 4) this.#consume();
    else if (choice === 5) this.#apply();
  }

  async #turns(): Promise<void> {
    const until = Math.max(0, this.#steps.length - ((this.#steps[0]?.[1] ?? 0) % 6));
    do await this.#turn();
    while (this.#steps.length > until);
  }

  #extents(blocks: number[]): Extent[] {
    return blocks
      .sort((a, b) => a - b)
      .map((block) => ({ offsetBytes: block * BLOCK, lengthBytes: BLOCK }));
  }

  #each(extents: Extent[], act: (block: number) => void): void {
    for (const { offsetBytes, lengthBytes } of extents) {
      for (let at = 0; at < lengthBytes; at += BLOCK) act((offsetBytes + at) / BLOCK);
    }
  }

  readonly host: RereadHost = {
    track: () => {
      const touched = new Touched(BYTES);
      this.#trackers.add(touched);
      return { touched, stop: () => this.#trackers.delete(touched) };
    },
    markStart: async () => {
      this.#stream.push([]);
      this.#startAt = this.#stream.length;
      await this.#turns();
    },
    markEnd: () => this.#turns(),
    barrier: async () => {
      const before = new Set(this.#variant === 'no barrier' ? [] : this.#inFlight);
      await this.#turns();
      while (this.#inFlight.some((write) => before.has(write))) await this.#turn();
    },
    takeDirty: async (_disk, _max, fromBytes = 0) => {
      await this.#turns();
      const blocks = [...this.#dirty].filter((block) => block * BLOCK >= fromBytes);
      for (const block of blocks) {
        this.#dirty.delete(block);
        this.#taken.add(block);
      }
      const extents = this.#extents(blocks);
      await this.#turns();
      return extents;
    },
    clearDirty: async (_disk, extents) => {
      this.#each(extents, (block) => this.#taken.delete(block));
    },
    markDirty: async (_disk, extents) => {
      this.#each(extents, (block) => {
        this.#taken.delete(block);
        this.#dirty.add(block);
      });
    },
    openReader: async () => ({
      read: async (offsetBytes, lengthBytes) => {
        const data = Buffer.alloc(lengthBytes);
        for (let at = 0; at < lengthBytes; at += 3 * SECTOR) {
          this.disk.copy(
            data,
            at,
            offsetBytes + at,
            Math.min(offsetBytes + at + 3 * SECTOR, BYTES),
          );
          await this.#turn();
        }
        return { data, zero: data.equals(Buffer.alloc(lengthBytes)) };
      },
      close: async () => {},
    }),
    unneeded: async () => [],
    free: async () => [],
    leftOut: () => [],
    settle: () => this.#turns(),
    overtaken: async () => {
      const pos = this.#variant === 'not overtaken' ? 0 : this.#ring.length;
      await this.#turns();
      while (this.#consumed < pos) {
        this.#pump();
        this.#consume();
      }
    },
    replicaHashes: async ({ offsetBytes, lengthBytes, chunkBytes, mask, fold }) => {
      while (this.#applied < this.#startAt) this.#apply();
      await this.#turns();
      const hashes = await hashRange(
        { offsetBytes, lengthBytes, chunkBytes, mask },
        async (at, n) => Buffer.from(this.replica.subarray(at, at + n)),
      );
      return fold ? hashOf(hashes as Buffer<ArrayBuffer>) : hashes;
    },
    room: () => this.#turns(),
    emit: (_ask, _cursor, _skipped, extents) => {
      this.#stream.push(extents);
    },
    emitReread: (extents, onAcked) => {
      this.#stream.push(extents);
      this.#acks.push(onAcked);
    },
    untilAcked: async () => {
      await this.#turns();
      for (const acked of this.#acks.splice(0)) acked();
    },
    progress: () => {},
    read: () => {},
  };
  #acks: Array<() => void> = [];

  /** Some writes are under way, dirty or unread when the run begins. */
  async begin(): Promise<void> {
    for (let n = 0; n < 12; n++) await this.#turn();
  }

  /** Everything that is under way ends, and what is dirty is read again, as the agent does when it is told of marks. */
  async finish(): Promise<boolean> {
    const busy = () =>
      this.#steps.length > 0 || this.#inFlight.length > 0 || this.#consumed < this.#ring.length;
    do {
      while (busy()) await this.#turn();
      await runReread(this.host, 0, new AbortController().signal);
    } while (this.dirty || busy());
    while (this.#applied < this.#stream.length) this.#apply();
    return this.replica.equals(this.disk);
  }
}

async function holds(
  variant: Variant,
  kind: MirrorKind | null,
  steps: Array<[number, number, number]>,
): Promise<boolean> {
  const world = new World(variant, steps, kind ?? 'drain');
  await world.begin();
  const host: MirrorHost = world.host;
  const endBytes = BYTES;
  const run = { disk: 0, run: 1, reason: 'r', startBytes: 0, endBytes };
  const ask = (of: MirrorKind): MirrorAsk => ({
    ...run,
    kind: of,
    cursorBytes: 0,
    skippedBytes: 0,
  });
  const { signal } = new AbortController();
  if (kind) await runMirror(host, ask(kind), signal);
  else await runReread(world.host, 0, signal);
  return world.finish();
}

const scenario = (variant: Variant, kinds: readonly (MirrorKind | null)[]) =>
  fc.asyncProperty(
    fc.constantFrom(...kinds),
    fc.array(fc.tuple(fc.nat(5), fc.nat(1000), fc.nat(1000)), { minLength: 30, maxLength: 160 }),
    (kind, steps) => holds(variant, kind, steps),
  );

const KINDS = [null, 'drain', 'full', 'difference'] as const;

// Each seen red when its tracker begins before what marked the blocks is numbered.
for (const kind of KINDS) {
  t.test(`failed and overlapping writes around ${kind ?? 'a re-read'}`, async (t) => {
    await fc.assert(scenario('rule', [kind]), { numRuns: 1500 });
    t.pass('1500 random schedules');
  });
}

for (const variant of ['no barrier', 'not overtaken'] as const) {
  t.test(`a rule that is broken is seen: ${variant}`, async (t) => {
    const { failed } = await fc.check(scenario(variant, KINDS), {
      numRuns: 6000,
      endOnFailure: true,
    });
    t.ok(failed, 'some schedule ends with a wrong replica');
  });
}
