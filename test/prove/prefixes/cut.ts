/** Points of a stream, and the disk as it was at one: a base image and the journal's frames, by the product's apply. */
import fs from 'node:fs';
import { join } from 'node:path';
import { Value } from 'typebox/value';
import { Applier } from '../../../appliance/apply/applier.ts';
import { ReplicaDisk } from '../../../appliance/apply/replica-disk.ts';
import { Journal, type JournalFrame, JournalReader } from '../../../appliance/journal/journal.ts';
import { judgeFrame, newPointState } from '../../../appliance/points/point-fold.ts';
import { foldFrame, isWhole, StreamRecord } from '../../../appliance/replication/stream-record.ts';
import type { FrameHeader } from '../../../protocol/frame.ts';
import { readMark } from '../../../protocol/marks.ts';
import { run } from '../../integration/capture.lab.ts';

export interface Point {
  seq: number;
  /** Every write that was acknowledged before this moment is in the frames up to here. */
  bootTimeNs: bigint;
}

export class Cuttable {
  readonly #journal: Journal;
  readonly #base: { image: string; seq: number };
  readonly #sizeBytes: number;
  /** In order; all of them behind the base. */
  readonly points: readonly Point[];
  /** Frames of captured writes behind the base. */
  readonly writes: readonly FrameHeader[];

  private constructor(
    journal: Journal,
    base: { image: string; seq: number },
    sizeBytes: number,
    points: Point[],
    writes: FrameHeader[],
  ) {
    this.#journal = journal;
    this.#base = base;
    this.#sizeBytes = sizeBytes;
    this.points = points;
    this.writes = writes;
  }

  /** The journal of a closed stream whose apply was paused at the base; see LiveStream.keepBase. */
  static async open(
    jobDir: string,
    base: { image: string; seq: number },
    sizeBytes: number,
  ): Promise<Cuttable> {
    let record: StreamRecord = Value.Parse(
      StreamRecord,
      JSON.parse(fs.readFileSync(join(jobDir, 'base.json'), 'utf8')),
    );
    if (record.seq !== base.seq)
      throw new Error(`the base is of frame ${record.seq}, not ${base.seq}`);
    if (!isWhole(record)) throw new Error(`the base at frame ${base.seq} is not whole`);
    const points: Point[] = [];
    const writes: FrameHeader[] = [];
    let state = newPointState();
    const journal = await Journal.open(
      {
        jobId: 'prefixes',
        dir: join(jobDir, 'journal'),
        appliedSeq: base.seq,
        limitBytes: Number.MAX_SAFE_INTEGER,
      },
      { durable: () => {}, failed: () => {} },
      ({ header, frame }: JournalFrame) => {
        record = foldFrame(record, header, header.kind === 'mark' ? readMark(header, frame) : null);
        if (header.kind === 'stream') writes.push(header);
        const { state: next, verdict } = judgeFrame(state, header, record);
        state = next;
        if (verdict.name !== 'no-point') {
          points.push({ seq: header.seq, bootTimeNs: header.bootTimeNs });
        }
      },
    );
    return new Cuttable(journal, base, sizeBytes, points, writes);
  }

  /** The disk with every frame up to `seq`, or with all of them but one. */
  async build(image: string, seq: number, without?: number): Promise<void> {
    fs.rmSync(image, { force: true });
    run('cp', '--sparse=always', this.#base.image, image);
    const applier = new Applier(
      {
        jobId: 'prefixes',
        reader: (fromSeq) => new CutReader(this.#journal, fromSeq, seq, without),
        diskId: () => 'disk',
        diskSizes: () => [this.#sizeBytes],
        onWritten: () => {},
        onFlush: () => async () => {},
        gate: () => null,
        beforeUnordered: async () => {},
      },
      this.#base.seq,
    );
    const disk = await ReplicaDisk.open(image);
    try {
      applier.resume(new Map([[0, disk]]));
      // The frame that is left out may be the last one: nothing would ever reach it.
      await applier.drain(without === seq ? seq - 1 : seq);
    } finally {
      await applier.pause('the prefix is built');
      await disk.close();
    }
  }

  async close(): Promise<void> {
    await this.#journal.close();
  }
}

/** Ends at a frame; may leave one out. */
class CutReader extends JournalReader {
  readonly #lastSeq: number;
  readonly #without: number | undefined;

  constructor(journal: Journal, fromSeq: number, lastSeq: number, without?: number) {
    super(journal, fromSeq);
    this.#lastSeq = lastSeq;
    this.#without = without;
  }

  override async next(): Promise<JournalFrame | null> {
    if (this.nextSeq > this.#lastSeq) return null;
    const next = await super.next();
    return next?.header.seq === this.#without ? this.next() : next;
  }
}
