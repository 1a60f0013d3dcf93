/**
 * Between a point's mark in the ring and its mark in the stream: whoever reads the ring asks here what a mark record
 * stands for, and waits for it, because the answer (thawed in time, for how long it was frozen) comes after the mark.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import type { ControlOf } from '../../protocol/control.ts';
import { undError } from '../../protocol/errors.ts';
import { MAX_MARK_BYTES } from '../../protocol/frame.ts';
import type { ConsistencyPointMark, HookReport } from '../../protocol/marks.ts';
import type { CaptureBatch } from '../capture/capture.ts';
import type { Quiesced, QuiesceRequest } from './quiesce.ts';

/** A point, its mark's number in the stream, and what the post-hooks said. */
export type PointTaken = Pick<ControlOf<'pointTaken'>, 'seq' | 'point' | 'postHooks'>;

export interface PointHost {
  jobName: string;
  devicePaths(): string[];
  putMark(): Promise<bigint>;
  /** Undefined: this agent cannot bring applications to rest. */
  quiesce?(request: QuiesceRequest): Promise<HookReport[]>;
}

/** No moment is waited for longer: hooks may hold applications still meanwhile. */
const MAX_AHEAD_MS = 10_000;

interface Pending {
  markId: bigint;
  mark: ConsistencyPointMark;
  placed: PromiseWithResolvers<number>;
}

const CRASH_CONSISTENT: Quiesced = {
  quiesced: false,
  reason: null,
  freezeMs: null,
  fileSystems: [],
  hooks: [],
};

/** A mark is one small frame: what is said at length is cut, what the point is never is. */
function fitting(mark: ConsistencyPointMark): ConsistencyPointMark {
  const short = {
    ...mark,
    reason: mark.reason?.slice(0, 500) ?? null,
    fileSystems: mark.fileSystems.slice(0, 64).map((path) => path.slice(0, 200)),
    hooks: mark.hooks.slice(0, 64),
  };
  if (JSON.stringify(short).length <= MAX_MARK_BYTES / 4) return short;
  return { ...short, hooks: short.hooks.map((hook) => ({ ...hook, text: '' })) };
}

export class PointTaker {
  readonly #host: PointHost;
  #taking = false;
  /** Settled when it is known what the mark that is being put stands for. */
  #marking: Promise<void> = Promise.resolve();
  #pending: Pending | undefined;
  #stopped: Error | undefined;

  constructor(host: PointHost) {
    this.#host = host;
  }

  /**
   * Take a point; resolves when its mark has its number in the stream and the post-hooks have run.
   * @param atMs moment of this machine's wall clock for the mark, or the freeze before it; at once if it has passed
   * @throws UND_POINT_FAILED
   */
  async take(
    pointId: string,
    name: string,
    quiesced: boolean,
    { final = false, atMs }: { final?: boolean; atMs?: number } = {},
  ): Promise<PointTaken> {
    if (this.#taking) throw this.#failed('another point is being taken');
    this.#taking = true;
    const marked = Promise.withResolvers<void>();
    const placed = Promise.withResolvers<number>();
    placed.promise.catch(() => {});
    let markId = 0n;
    let mark: ConsistencyPointMark | undefined;
    const ready = async () => {
      const aheadMs = atMs === undefined ? 0 : Math.min(atMs - Date.now(), MAX_AHEAD_MS);
      if (aheadMs > 0) await sleep(aheadMs);
    };
    const request: QuiesceRequest = {
      ready,
      point: { pointId, name },
      devicePaths: this.#host.devicePaths(),
      mark: async () => {
        // Before the record can be in the ring: whoever finds it there has to find this.
        this.#marking = marked.promise;
        markId = await this.#host.putMark();
      },
      marked: (state) => {
        mark = fitting({
          type: 'consistencyPoint',
          pointId,
          name,
          ...state,
          ...(final ? { final } : {}),
        });
        if (this.#stopped) placed.reject(this.#stopped);
        else this.#pending = { markId, mark, placed };
        marked.resolve();
      },
    };
    try {
      let postHooks: HookReport[] = [];
      if (quiesced && this.#host.quiesce) postHooks = await this.#host.quiesce(request);
      else {
        await ready();
        await request.mark();
        const reason = quiesced ? 'this agent cannot freeze file systems' : null;
        request.marked({ ...CRASH_CONSISTENT, reason });
      }
      const seq = await placed.promise;
      return { seq, point: mark!, postHooks };
    } catch (error) {
      throw this.#failed((error as Error).message);
    } finally {
      marked.resolve();
      this.#pending = undefined;
      this.#taking = false;
    }
  }

  #failed(reason: string): Error {
    return undError('UND_POINT_FAILED', { job: this.#host.jobName, reason });
  }

  /** Resolves when it is known what the marks of the batch stand for: at once, but for the moment of a freeze. */
  async known(batch: CaptureBatch): Promise<void> {
    if (batch.records.hasMark) await this.#marking;
  }

  /**
   * The batch with this mark record is done. If the point is one of this process, `place` is called with its mark and
   * returns its number.
   * @param exact false: writes from behind the mark are in the batch as well. The helper ends a batch at a mark unless
   * some write is half copied just then, which no frozen file system can have.
   */
  at(
    markId: bigint | undefined,
    exact: boolean,
    place: (mark: ConsistencyPointMark) => number,
  ): void {
    const pending = this.#pending;
    if (!pending || pending.markId !== markId) return;
    this.#pending = undefined;
    if (!exact && pending.mark.quiesced) {
      pending.mark.quiesced = false;
      pending.mark.reason = 'something outside of the frozen file systems was being written';
    }
    try {
      pending.placed.resolve(place(pending.mark));
    } catch (error) {
      pending.placed.reject(error);
    }
  }

  /** Nothing more will come out of the ring. */
  stop(reason: Error): void {
    this.#stopped = reason;
    this.#pending?.placed.reject(reason);
    this.#pending = undefined;
  }
}
