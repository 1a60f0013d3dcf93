/**
 * Application-consistent points: pre-hooks, freeze, the mark, thaw, post-hooks. The file systems are held still only as
 * long as their flush and the mark take, never as long as anything is sent; whatever fails on the way leaves a
 * crash-consistent point and a source that goes on.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { asUndError } from '../../protocol/errors.ts';
import type { HookReport } from '../../protocol/marks.ts';
import type { Freeze } from '../capture/capture.ts';
import { type Hook, type HookNotes, type HookRunOptions, runPost, runPre } from './hooks.ts';

/** What holds at the mark. */
export interface Quiesced {
  quiesced: boolean;
  /** Why the point is only crash-consistent although more was asked for. */
  reason: string | null;
  /** From before the first freeze to behind the last thaw; null if nothing was frozen. */
  freezeMs: number | null;
  /** Mount points that were frozen. */
  fileSystems: string[];
  hooks: HookReport[];
}

export interface QuiesceEdges {
  findFileSystems(devicePaths: readonly string[]): Promise<string[]>;
  freeze(mountPoints: string[], timeoutMs: number): Promise<Freeze>;
  findHooks(): Promise<Hook[]>;
  hookOptions(
    point: { pointId: string; name: string },
    mountPoints: readonly string[],
  ): Promise<HookRunOptions>;
  hookNotes: HookNotes;
}

export interface QuiesceRequest {
  point: { pointId: string; name: string };
  /** Of the protected disks. */
  devicePaths: readonly string[];
  /** Called when the pre-hooks have run: what it waits for is waited for before anything is frozen. */
  ready?(): Promise<void>;
  /** Puts the mark into the ring. */
  mark(): Promise<void>;
  /** Called once what held at the mark is known, before the post-hooks run; not if `mark` fails. */
  marked(quiesced: Quiesced): void;
}

/** The file systems are thawed after so long whatever happens. */
const FREEZE_LIMIT_MS = 10_000;
/** A mark that takes so long is given up: the file systems must not wait for it. */
const MARK_LIMIT_MS = 5_000;

const withinLimit = async (act: Promise<void>): Promise<void> => {
  const timer = new AbortController();
  const late = sleep(MARK_LIMIT_MS, undefined, { signal: timer.signal }).then(
    () => {
      throw new Error(`the mark was not placed within ${MARK_LIMIT_MS / 1000} s`);
    },
    () => {},
  );
  try {
    await Promise.race([act, late.then(() => act)]);
  } finally {
    timer.abort();
  }
};

/**
 * Take one point.
 * @returns the reports of the post-hooks
 * @throws what `mark` throws; all is thawed and the post-hooks have run then
 */
export async function quiesce(request: QuiesceRequest, edges: QuiesceEdges): Promise<HookReport[]> {
  const found = await edges.findFileSystems(request.devicePaths).catch(asUndError);
  const mountPoints = Array.isArray(found) ? found : [];
  const options = await edges.hookOptions(request.point, mountPoints);
  const pre = await runPre(await edges.findHooks(), options, edges.hookNotes);
  try {
    const state: Quiesced = {
      quiesced: false,
      reason: pre.failed ? `hook ${pre.failed.name} failed: ${pre.failed.text}` : null,
      freezeMs: null,
      fileSystems: [],
      hooks: pre.reports,
    };
    if (!Array.isArray(found)) state.reason ??= found.message;
    await request.ready?.();
    const freeze = state.reason === null ? await hold(mountPoints, edges, state) : null;
    let inTime = true;
    try {
      await withinLimit(request.mark());
    } finally {
      if (freeze) inTime = await freeze.thaw();
    }
    if (freeze?.heldNs != null) state.freezeMs = Number(freeze.heldNs) / 1e6;
    if (!inTime) state.reason = 'the file systems were thawed by the watchdog before the mark';
    state.quiesced = state.reason === null;
    request.marked(state);
  } catch (error) {
    await runPost(pre.begun, pre.reports, options, edges.hookNotes);
    throw error;
  }
  return runPost(pre.begun, pre.reports, options, edges.hookNotes);
}

/** Freezes what is mounted; null if there is nothing to freeze or it cannot be done (then `state` says why). */
async function hold(
  mountPoints: string[],
  edges: QuiesceEdges,
  state: Quiesced,
): Promise<Freeze | null> {
  if (mountPoints.length === 0) return null;
  try {
    const freeze = await edges.freeze(mountPoints, FREEZE_LIMIT_MS);
    state.fileSystems = mountPoints.filter((mountPoint) => !freeze.skipped.includes(mountPoint));
    return freeze;
  } catch (error) {
    state.reason = asUndError(error).message;
    return null;
  }
}
