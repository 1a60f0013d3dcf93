/**
 * The process that has the file systems of a point mounted. It runs in namespaces of its own (`prepare-guest/isolation.ts`),
 * so that the mounts are seen by nobody else and vanish with it, and answers one request after the other.
 */
import { createInterface } from 'node:readline';
import { asUndError, undError } from '../../../protocol/errors.ts';
import { isolate } from '../prepare-guest/isolation.ts';
import { type MountedVolumes, mountVolumes, unmountAll } from './volumes.ts';
import { type BrowseAnswer, type BrowseInput, type BrowseRequest, encodeAnswer } from './wire.ts';

const MAX_LISTED = 5000;

const send = (answer: BrowseAnswer, body?: Buffer): Promise<void> =>
  new Promise((resolve) => {
    process.stdout.write(encodeAnswer(answer, body), () => resolve());
  });

/** Of anything that is not coded, only the words: a stack would name the appliance's own files. */
function failure(thrown: unknown): BrowseAnswer {
  const coded = asUndError(thrown);
  const error =
    coded.code === 'UND_INTERNAL' || coded.code === 'UND_GUEST_PREPARE_FAILED'
      ? undError('UND_MOUNT_FAILED', {
          reason: String(coded.params.reason ?? (thrown as Error)?.message ?? thrown),
        })
      : coded;
  return { op: 'error', error: error.toJSON() };
}

function answer(
  { files }: MountedVolumes,
  request: BrowseRequest,
): { answer: BrowseAnswer; body?: Buffer } {
  const volume = files.get(request.volume);
  if (!volume) {
    throw undError('UND_MOUNT_PATH', {
      path: request.path,
      volume: request.volume,
      reason: 'there is no such file system, or it cannot be browsed',
    });
  }
  switch (request.op) {
    case 'list': {
      const limit = Math.min(request.limit, MAX_LISTED);
      return {
        answer: { op: 'list', listing: volume.list(request.path, request.from, limit) },
      };
    }
    case 'stat':
      return { answer: { op: 'stat', facts: volume.stat(request.path) } };
    case 'read':
      return {
        answer: { op: 'read' },
        body: volume.read(request.path, request.offsetBytes, request.lengthBytes),
      };
  }
}

/** Reads a `BrowseInput` and then requests from standard input, a line each, until it ends. */
export async function runBrowseWorker(): Promise<void> {
  let mounted: MountedVolumes | null = null;
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      if (!mounted) {
        const input = JSON.parse(line) as BrowseInput;
        isolate(input.outsideMountNamespace);
        mounted = mountVolumes(input.disks);
        await send({ op: 'volumes', volumes: mounted.volumes });
        continue;
      }
      const { answer: said, body } = answer(mounted, JSON.parse(line) as BrowseRequest);
      await send(said, body);
    } catch (error) {
      await send(failure(error));
      if (!mounted) break;
    }
  }
  unmountAll();
}
