/** Which spans of the disks are left out because they are active swap, known across restarts of the agent. */
import { readFile, rename, unlink, writeFile } from 'node:fs/promises';
import type { Span } from './touched.ts';

type Noted = Array<[disk: number, spans: Span[]]>;

export class SwapAreas {
  readonly #path: string;
  #spans = new Map<number, Span[]>();
  /** Everything that may have been left out and was not marked dirty since; null: not read from the note yet. */
  #noted: Noted | null = null;
  #following = false;

  /** @param path the note, on a tmpfs */
  constructor(path: string) {
    this.#path = path;
  }

  spans(disk: number): readonly Span[] {
    return this.#spans.get(disk) ?? [];
  }

  /** Whether the extent lies in an active swap area as a whole. */
  covers(disk: number, offsetBytes: number, lengthBytes: number): boolean {
    return this.spans(disk).some(
      (span) =>
        offsetBytes >= span.offsetBytes &&
        offsetBytes + lengthBytes <= span.offsetBytes + span.lengthBytes,
    );
  }

  /**
   * Take over what is active now. An area is left out only once that is noted; one that is gone is marked dirty before
   * it leaves the note.
   * @returns whether anything was marked dirty
   */
  async follow(
    now: ReadonlyMap<number, Span[]>,
    markDirty: (disk: number, spans: Span[]) => Promise<void>,
  ): Promise<boolean> {
    if (this.#following) return false;
    this.#following = true;
    try {
      this.#noted ??= await this.#read();
      const isActive = (disk: number, span: Span) =>
        now
          .get(disk)
          ?.some(
            ({ offsetBytes, lengthBytes }) =>
              offsetBytes === span.offsetBytes && lengthBytes === span.lengthBytes,
          ) ?? false;
      let marked = false;
      for (const [disk, spans] of this.#noted) {
        const gone = spans.filter((span) => !isActive(disk, span));
        if (gone.length === 0) continue;
        this.#spans.set(
          disk,
          this.spans(disk).filter((span) => isActive(disk, span)),
        );
        await markDirty(disk, gone);
        marked = true;
      }
      const next: Noted = [...now].filter(([, spans]) => spans.length > 0);
      if (marked || JSON.stringify(next) !== JSON.stringify(this.#noted)) {
        await writeFile(`${this.#path}.new`, JSON.stringify(next));
        await rename(`${this.#path}.new`, this.#path);
        this.#noted = next;
      }
      this.#spans = new Map(next);
      return marked;
    } finally {
      this.#following = false;
    }
  }

  async #read(): Promise<Noted> {
    try {
      return JSON.parse(await readFile(this.#path, 'utf8')) as Noted;
    } catch {
      return [];
    }
  }

  async forget(): Promise<void> {
    await unlink(this.#path).catch(() => {});
  }
}
