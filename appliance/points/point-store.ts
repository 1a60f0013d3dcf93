/**
 * The point index on the journal disk: pages, each written once and whole, named by their first frame. The newest
 * frames are in no page yet; after a restart they are folded in again from the journal, as everything is for which
 * there is no page. Where that is much, it goes on in the background: what becomes durable meanwhile waits in memory and
 * is folded in behind it.
 */
import { readdir, rm, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import Type, { type Static } from 'typebox';
import { Value } from 'typebox/value';
import { undError } from '../../protocol/errors.ts';
import type { FrameHeader } from '../../protocol/frame.ts';
import { readMark } from '../../protocol/marks.ts';
import { makeDirDurably, readJson, writeJsonDurably } from '../journal/durable-file.ts';
import type { JournalHeader } from '../journal/header-scan.ts';
import { StreamRecord } from '../replication/stream-record.ts';
import { type Point, PointIndex, type Span } from './point-index.ts';
import { assumeMark, changesRecord, unknownRecord } from './point-rebuild.ts';

const Int = Type.Integer({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER });
const Nanoseconds = Type.String({ pattern: '^[0-9]+$' });
const Page = Type.Object({
  version: Type.Literal(1),
  firstSeq: Int,
  lastSeq: Int,
  spans: Type.Array(
    Type.Union([
      Type.Object({
        name: Type.Literal('stretch'),
        fromSeq: Int,
        toSeq: Int,
        fromMs: Int,
        toMs: Int,
        fromBootNs: Nanoseconds,
        toBootNs: Nanoseconds,
      }),
      Type.Object({
        name: Type.Literal('gap'),
        fromSeq: Int,
        toSeq: Int,
        fromMs: Int,
        toMs: Int,
        kind: Type.String(),
        reason: Type.String(),
        crossable: Type.Boolean(),
      }),
    ]),
  ),
  /** Differences, one point after the other. */
  seqs: Type.Array(Int),
  ms: Type.Array(Type.Integer()),
  marks: Type.Array(
    Type.Object({
      seq: Int,
      sourceMs: Int,
      pointId: Type.String(),
      name: Type.String(),
      quiesced: Type.Boolean(),
    }),
  ),
  /** Where the fold stands behind it. */
  state: Type.Object({ epoch: Int, bootTimeNs: Nanoseconds, reachedPos: Int }),
  record: StreamRecord,
});
type Page = Static<typeof Page>;

/** A page is closed at so many points (an hour) or so many bytes of the journal: what is read again at a start. */
const PAGE_POINTS = 3600;
const PAGE_BYTES = 256 * 1024 * 1024;

/** More frames than these are not waited for when a job is opened. */
const BACKGROUND_FRAMES = 10_000;

/** How far the frames that are in no page are folded in. */
export interface Rebuild {
  fromSeq: number;
  doneSeq: number;
  toSeq: number;
}

/** Whole per cent of it that are done. */
export const percentOf = ({ fromSeq, doneSeq, toSeq }: Rebuild): number =>
  Math.floor((100 * (doneSeq + 1 - fromSeq)) / (toSeq + 1 - fromSeq));

interface Running extends Rebuild {
  work: Promise<void>;
  stopped: boolean;
  /** As of `doneSeq`. */
  record: StreamRecord;
  /** Durable since, oldest first. */
  live: Array<Parameters<PointIndex['add']>>;
}

/** What the store needs of the journal. */
export interface History {
  readonly oldestSeq: number;
  readonly durableSeq: number;
  headers(fromSeq: number): AsyncGenerator<JournalHeader>;
}

export class PointStore {
  readonly index: PointIndex;
  readonly #dir: string;
  /** First and last frame of the pages on the disk, in order. */
  #pages: Array<{ firstSeq: number; lastSeq: number }> = [];
  /** The page that is being filled. */
  #firstSeq: number;
  #bytes = 0;
  #entriesBefore = 0;
  #writing: Promise<void> = Promise.resolve();
  #rebuild: Running | null = null;

  private constructor(dir: string, index: PointIndex) {
    this.#dir = dir;
    this.index = index;
    this.#firstSeq = index.seq + 1;
  }

  /**
   * Read the pages, and fold in what is behind them: at once, or in the background (`rebuild`) if it is much.
   * @param record the stream's record at its `seq`, which is known for sure
   */
  static async open(
    dir: string,
    history: History,
    record: StreamRecord,
    backgroundFrames = BACKGROUND_FRAMES,
  ): Promise<PointStore> {
    await makeDirDurably(dir);
    const index = new PointIndex();
    const pages: Page[] = [];
    for (const name of (await readdir(dir)).sort()) {
      if (!/^points-\d{16}\.json$/.test(name)) continue;
      const page = await readPage(join(dir, name));
      const last = pages.at(-1);
      const fits =
        page && (last ? page.firstSeq === last.lastSeq + 1 : page.firstSeq <= history.oldestSeq);
      // Behind a page that is missing or damaged, and behind the journal's end, nothing is known.
      if (fits && page.lastSeq <= history.durableSeq) pages.push(page);
      else await unlink(join(dir, name));
    }
    for (const page of pages) {
      const { epoch, bootTimeNs, reachedPos } = page.state;
      index.restore(unpack(page), {
        epoch,
        seq: page.lastSeq,
        bootTimeNs: BigInt(bootTimeNs),
        reachedPos,
      });
    }
    index.evictBefore(history.oldestSeq);
    const store = new PointStore(dir, index);
    store.#pages = pages.map(({ firstSeq, lastSeq }) => ({ firstSeq, lastSeq }));
    const last = pages.at(-1);
    const known =
      last && last.lastSeq + 1 >= history.oldestSeq ? { ...last.record, seq: last.lastSeq } : null;
    const fromSeq = known ? known.seq + 1 : history.oldestSeq;
    const rebuild: Running = {
      fromSeq,
      doneSeq: fromSeq - 1,
      toSeq: history.durableSeq,
      work: Promise.resolve(),
      stopped: false,
      record: known ?? unknownRecord(record, fromSeq),
      live: [],
    };
    const background = rebuild.toSeq - rebuild.doneSeq > backgroundFrames;
    if (background) {
      store.#rebuild = rebuild;
      // What cannot be read is a hole: what is durable from now on is judged as behind one.
      rebuild.work = store
        .#catchUp(history, rebuild, known !== null, record, true)
        .catch(() => {})
        .then(() => store.#goLive(rebuild));
    } else {
      await store.#catchUp(history, rebuild, known !== null, record, false);
    }
    await store.#dropPages(history.oldestSeq);
    return store;
  }

  /** Null: every frame is folded in. */
  get rebuild(): Rebuild | null {
    if (!this.#rebuild) return null;
    const { fromSeq, doneSeq, toSeq } = this.#rebuild;
    return { fromSeq, doneSeq, toSeq };
  }

  /** Resolves when nothing is being folded in, in the background. */
  async settled(): Promise<void> {
    await this.#rebuild?.work;
  }

  /** @param background frames of mirror runs may be applied and leave while they are to be read */
  async #catchUp(
    history: History,
    rebuild: Running,
    known: boolean,
    certain: StreamRecord,
    background: boolean,
  ): Promise<void> {
    const { fromSeq: from, toSeq } = rebuild;
    let { record } = rebuild;
    if (!known) {
      this.#firstSeq = from;
      // With nothing in the history that could have changed it, it was then as it is at the certain frame.
      if (!(await this.#changes(history, rebuild, certain.seq)))
        record = { ...certain, seq: from - 1 };
    }
    // Whether the history begins within a repetition is known at the first tick that follows no captured writes: such a
    // one comes when all that was in the ring has been sent.
    let unsure = !known && from > 1;
    let before: FrameHeader['kind'] | null = null;
    let last = from - 1;
    for await (const { header, frame } of history.headers(from)) {
      // The journal goes on meanwhile.
      if (rebuild.stopped || header.seq > toSeq) break;
      const mark = frame && header.kind === 'mark' ? readMark(header, frame) : null;
      const { seq } = header;
      // The certain record's own frame may have left: it is a mirror's, say.
      if (last < certain.seq && certain.seq < seq) record = certain;
      const framesLeft = background || seq < certain.seq;
      record = seq === certain.seq ? certain : assumeMark(record, header, mark, framesLeft);
      if (seq !== last + 1) {
        this.index.holeBefore();
        before = null;
      }
      if (unsure) {
        const idle = mark?.type === 'tick' && before !== null && before !== 'stream';
        unsure = !idle && mark?.type !== 'epochStart';
        this.index.standAt({
          ...this.index.state,
          epoch: header.epoch,
          reachedPos: unsure ? Number.MAX_SAFE_INTEGER : header.capturePos,
        });
      }
      last = seq;
      before = header.kind;
      this.#fold(header, mark, record);
      rebuild.doneSeq = seq;
      rebuild.record = record;
      if (this.#pageFull) {
        const sealed = this.seal(record);
        // In the background as behind it: a page that could not be written is read from the journal at the next start.
        await (background ? sealed.catch(() => {}) : sealed);
      }
    }
    if (last < toSeq && !rebuild.stopped) this.index.passOver(toSeq);
  }

  /** At one stroke: between what was waiting and the next frame nothing is missed. */
  #goLive(rebuild: Running): void {
    this.#rebuild = null;
    if (rebuild.stopped) return;
    for (const [header, mark, record] of rebuild.live) {
      this.add(header, mark, record);
      if (this.full) this.seal(record).catch(() => {});
    }
  }

  async #changes(history: History, rebuild: Running, toSeq: number): Promise<boolean> {
    for await (const { header, frame } of history.headers(rebuild.fromSeq)) {
      if (header.seq > toSeq || rebuild.stopped) return false;
      if (header.kind === 'mirror' && header.run !== 0) return true;
      if (frame && header.kind === 'mark' && changesRecord(readMark(header, frame))) return true;
    }
    return false;
  }

  /** One more durable frame; see PointIndex.add. */
  add(...[header, mark, record]: Parameters<PointIndex['add']>): void {
    if (this.#rebuild) this.#rebuild.live.push([header, mark, record]);
    else this.#fold(header, mark, record);
  }

  #fold(...[header, mark, record]: Parameters<PointIndex['add']>): void {
    this.index.add(header, mark, record);
    this.#bytes += header.kind === 'mirror' && header.run !== 0 ? 0 : header.packedBytes;
  }

  /** The page has all that a page holds. */
  get full(): boolean {
    return this.#rebuild === null && this.#pageFull;
  }

  get #pageFull(): boolean {
    return this.index.entryCount - this.#entriesBefore >= PAGE_POINTS || this.#bytes >= PAGE_BYTES;
  }

  /**
   * Write the page down and begin the next. Not urgent: until then the journal holds the same.
   * Rejects with the file system's error if it cannot be written; the next restart then reads the journal instead.
   */
  seal(record: StreamRecord): Promise<void> {
    const { state, seq } = this.index;
    if (seq < this.#firstSeq) return this.#writing;
    const page: Page = {
      version: 1,
      firstSeq: this.#firstSeq,
      lastSeq: seq,
      ...pack(this.index.since(this.#firstSeq)),
      state: {
        epoch: state.epoch,
        bootTimeNs: String(state.bootTimeNs),
        reachedPos: state.reachedPos,
      },
      record,
    };
    this.#firstSeq = seq + 1;
    this.#bytes = 0;
    this.#entriesBefore = this.index.entryCount;
    const written = this.#writing.then(async () => {
      await writeJsonDurably(join(this.#dir, pageName(page.firstSeq)), page);
      this.#pages.push({ firstSeq: page.firstSeq, lastSeq: page.lastSeq });
    });
    this.#writing = written.catch(() => {});
    return written;
  }

  /** The journal now begins at `oldestSeq`. `record`: as of the newest frame. */
  async evictBefore(oldestSeq: number, record: StreamRecord): Promise<void> {
    // Else a restart would find a page's beginning neither in a page nor in the journal.
    if (oldestSeq > this.#firstSeq) await this.seal(this.#rebuild?.record ?? record);
    this.index.evictBefore(oldestSeq);
    this.#entriesBefore = Math.min(this.#entriesBefore, this.index.entryCount);
    await this.#dropPages(oldestSeq);
  }

  async #dropPages(oldestSeq: number): Promise<void> {
    while (this.#pages[0] && this.#pages[0].lastSeq < oldestSeq) {
      await unlink(join(this.#dir, pageName(this.#pages.shift()!.firstSeq)));
    }
  }

  /** Frames after `seq` were taken back. `record`: as of then. */
  async truncateAfter(seq: number, record: StreamRecord): Promise<void> {
    await this.settled();
    await this.#writing;
    while (this.#pages.length > 0 && this.#pages.at(-1)!.lastSeq > seq) {
      const { firstSeq } = this.#pages.pop()!;
      await unlink(join(this.#dir, pageName(firstSeq)));
      this.#firstSeq = firstSeq;
    }
    this.index.truncateAfter(seq);
    this.#firstSeq = Math.min(this.#firstSeq, seq + 1);
    await this.seal({ ...record, seq });
  }

  async close(): Promise<void> {
    if (this.#rebuild) this.#rebuild.stopped = true;
    await this.settled();
    await this.#writing;
  }

  async destroy(): Promise<void> {
    await this.close();
    await rm(this.#dir, { recursive: true, force: true });
  }
}

const pageName = (firstSeq: number): string => `points-${String(firstSeq).padStart(16, '0')}.json`;

async function readPage(path: string): Promise<Page | null> {
  try {
    const value = await readJson(path);
    return Value.Check(Page, value) ? value : null;
  } catch (error) {
    if (error instanceof SyntaxError) return null;
    throw undError('UND_JOURNAL_IO', { job: path, reason: (error as Error).message });
  }
}

type Content = ReturnType<PointIndex['since']>;

function pack({ spans, entries, marks }: Content): Pick<Page, 'spans' | 'seqs' | 'ms' | 'marks'> {
  return {
    spans: spans.map((span) =>
      span.name === 'gap'
        ? span
        : { ...span, fromBootNs: String(span.fromBootNs), toBootNs: String(span.toBootNs) },
    ),
    seqs: entries.map(({ seq }, at) => seq - (entries[at - 1]?.seq ?? 0)),
    ms: entries.map(({ sourceMs }, at) => sourceMs - (entries[at - 1]?.sourceMs ?? 0)),
    marks,
  };
}

function unpack(page: Page): Content {
  let seq = 0;
  let sourceMs = 0;
  return {
    spans: page.spans.map((span) =>
      span.name === 'gap'
        ? (span as Span)
        : { ...span, fromBootNs: BigInt(span.fromBootNs), toBootNs: BigInt(span.toBootNs) },
    ),
    entries: page.seqs.map((step, at): Point => {
      seq += step;
      sourceMs += page.ms[at] ?? 0;
      return { seq, sourceMs };
    }),
    marks: page.marks,
  };
}
