/**
 * What the appliance and the process that has a guest's file systems mounted say to one another: requests as lines of
 * JSON, one at a time; answers as a head of JSON and, of a read, the bytes behind it. All bytes are pulled: whoever
 * downloads slowly holds nothing up.
 */
import type { SerialisedError } from '../../../protocol/errors.ts';
import type { FileListing, GuestVolume } from '../../api/schema.ts';
import type { PrepareDisk } from '../types.ts';
import type { FileFacts } from './guest-files.ts';

export interface BrowseInput {
  /** The mount namespace of the appliance: the process must not be in it. */
  outsideMountNamespace: string;
  disks: (PrepareDisk & { sizeBytes: number })[];
}

export type BrowseRequest =
  | { op: 'list'; volume: string; path: string; from: number; limit: number }
  | { op: 'stat'; volume: string; path: string }
  | { op: 'read'; volume: string; path: string; offsetBytes: number; lengthBytes: number };

export type BrowseAnswer =
  | { op: 'volumes'; volumes: GuestVolume[] }
  | { op: 'list'; listing: FileListing }
  | { op: 'stat'; facts: FileFacts }
  | { op: 'read' }
  | { op: 'error'; error: SerialisedError };

const HEAD_BYTES = 8;
const MAX_JSON_BYTES = 64 * 1024 * 1024;
const MAX_BODY_BYTES = 4 * 1024 * 1024;
const NOTHING = Buffer.alloc(0);

export function encodeAnswer(answer: BrowseAnswer, body: Buffer = NOTHING): Buffer {
  const json = Buffer.from(JSON.stringify(answer));
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeUInt32LE(json.length, 0);
  head.writeUInt32LE(body.length, 4);
  return Buffer.concat([head, json, body]);
}

/** Puts answers together from what comes through a pipe. */
export class AnswerReader {
  #chunks: Buffer[] = [];
  #bytes = 0;

  /** @throws RangeError when a length is out of bounds: the stream is of no use any more */
  add(chunk: Buffer): { answer: BrowseAnswer; body: Buffer }[] {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    const found: { answer: BrowseAnswer; body: Buffer }[] = [];
    for (;;) {
      if (this.#bytes < HEAD_BYTES) return found;
      if ((this.#chunks[0] as Buffer).length < HEAD_BYTES) this.#join();
      const head = this.#chunks[0] as Buffer;
      const jsonBytes = head.readUInt32LE(0);
      const bodyBytes = head.readUInt32LE(4);
      if (jsonBytes > MAX_JSON_BYTES || bodyBytes > MAX_BODY_BYTES) {
        throw new RangeError(`an answer of ${jsonBytes} and ${bodyBytes} bytes`);
      }
      const end = HEAD_BYTES + jsonBytes + bodyBytes;
      if (this.#bytes < end) return found;
      this.#join();
      const all = this.#chunks[0] as Buffer;
      const bodyAt = HEAD_BYTES + jsonBytes;
      found.push({
        answer: JSON.parse(all.toString('utf8', HEAD_BYTES, bodyAt)) as BrowseAnswer,
        body: all.subarray(bodyAt, end),
      });
      this.#chunks = [all.subarray(end)];
      this.#bytes -= end;
    }
  }

  #join(): void {
    this.#chunks = [Buffer.concat(this.#chunks)];
  }
}
