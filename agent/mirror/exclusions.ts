/** Which files were left out of the mirror and are not on the replica since, known across restarts of the agent. */
import { readFile, rename, unlink, writeFile } from 'node:fs/promises';
import type { Extent } from '../capture/capture.ts';
import type { ExcludedFile, Verdict } from './excluded-files.ts';
import type { Span } from './touched.ts';

type Noted = Array<{ disk: number; file: ExcludedFile }>;

/** The grain of the dirty map at its finest. */
const BLOCK_BYTES = 4096;

/** Pure: sorted, widened to whole grains, and joined where they meet. */
export function joinSpans(spans: readonly Span[], grainBytes = 1): Extent[] {
  const joined: Extent[] = [];
  const sorted = [...spans].sort((a, b) => a.offsetBytes - b.offsetBytes);
  for (const { offsetBytes, lengthBytes } of sorted) {
    const from = Math.floor(offsetBytes / grainBytes) * grainBytes;
    const to = Math.ceil((offsetBytes + lengthBytes) / grainBytes) * grainBytes;
    const last = joined.at(-1);
    if (last && from <= last.offsetBytes + last.lengthBytes) {
      last.lengthBytes = Math.max(last.lengthBytes, to - last.offsetBytes);
    } else joined.push({ offsetBytes: from, lengthBytes: to - from });
  }
  return joined;
}

export class Exclusions {
  readonly #path: string;
  /** null: not read from the note yet. */
  #noted: Noted | null = null;
  /** One act after the other: a file is not to be added while the list is gone through. */
  #last: Promise<unknown> = Promise.resolve();

  /** @param path the note, on a tmpfs: it lives as long as the pinned capture, and after that every disk is compared */
  constructor(path: string) {
    this.#path = path;
  }

  /** These files will be left out: noted first. What was left out of a file by an earlier run still is. */
  add(disk: number, files: readonly ExcludedFile[]): Promise<void> {
    return this.#inTurn(async () => {
      const next: Noted = [...(await this.#read())];
      for (const file of files) {
        const at = next.findIndex(
          (one) =>
            one.disk === disk && one.file.dev === file.dev && one.file.handle === file.handle,
        );
        const before = at < 0 ? [] : next[at]!.file.spans;
        if (at < 0) next.push({ disk, file });
        else next[at] = { disk, file: { ...file, spans: joinSpans([...before, ...file.spans]) } };
      }
      await this.#write(next);
    });
  }

  /**
   * Go through what was left out. What has to be read is marked dirty before it leaves the note.
   * @returns the disks of which anything was marked dirty
   */
  follow(
    check: (files: ExcludedFile[]) => Promise<Verdict[]>,
    markDirty: (disk: number, extents: Extent[]) => Promise<void>,
  ): Promise<Set<number>> {
    return this.#inTurn(async () => {
      const noted = await this.#read();
      const marked = new Set<number>();
      if (noted.length === 0) return marked;
      const verdicts = await check(noted.map(({ file }) => file));
      for (const [at, { disk, file }] of noted.entries()) {
        if (verdicts[at] !== 'read') continue;
        await markDirty(disk, joinSpans(file.spans, BLOCK_BYTES));
        marked.add(disk);
      }
      const next = noted.filter((_, at) => verdicts[at] === 'holds');
      if (next.length !== noted.length) await this.#write(next);
      return marked;
    });
  }

  /**
   * After a restart of the machine, over which the note was carried: the file systems' devices have the numbers of now.
   * What lies on one that is not found is marked dirty before it leaves the note.
   */
  rename(
    deviceAt: (disk: number, offsetBytes: number) => Promise<string | null>,
    markDirty: (disk: number, extents: Extent[]) => Promise<void>,
  ): Promise<void> {
    return this.#inTurn(async () => {
      const noted = await this.#read();
      const next: Noted = [];
      for (const { disk, file } of noted) {
        const dev = await deviceAt(disk, file.deviceOffsetBytes);
        if (dev !== null) next.push({ disk, file: { ...file, dev } });
        else await markDirty(disk, joinSpans(file.spans, BLOCK_BYTES));
      }
      if (JSON.stringify(next) !== JSON.stringify(noted)) await this.#write(next);
    });
  }

  /** Per disk: how much of it is not on the replica for being excluded. */
  totals(): Array<{ disk: number; files: number; bytes: number }> {
    const totals = new Map<number, { disk: number; files: number; bytes: number }>();
    for (const { disk, file } of this.#noted ?? []) {
      const total = totals.get(disk) ?? { disk, files: 0, bytes: 0 };
      total.files++;
      for (const { lengthBytes } of file.spans) total.bytes += lengthBytes;
      totals.set(disk, total);
    }
    return [...totals.values()];
  }

  /** Sorted: what of a disk is not on the replica for being excluded. */
  async spans(disk: number): Promise<Span[]> {
    const noted = await this.#inTurn(() => this.#read());
    return noted
      .flatMap((one) => (one.disk === disk ? one.file.spans : []))
      .sort((a, b) => a.offsetBytes - b.offsetBytes);
  }

  async forget(): Promise<void> {
    await this.#inTurn(async () => {
      this.#noted = [];
      await unlink(this.#path).catch(() => {});
    });
  }

  #inTurn<T>(act: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(act);
    this.#last = mine.catch(() => {});
    return mine;
  }

  async #read(): Promise<Noted> {
    this.#noted ??= await readFile(this.#path, 'utf8').then(
      (text) => JSON.parse(text) as Noted,
      () => [],
    );
    return this.#noted;
  }

  async #write(next: Noted): Promise<void> {
    await writeFile(`${this.#path}.new`, JSON.stringify(next));
    await rename(`${this.#path}.new`, this.#path);
    this.#noted = next;
  }
}
