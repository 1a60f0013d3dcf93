/** A folder of a guest's file system as a tar archive, made as it is taken. */
import { TAR_END, tarHeader, tarPadding } from '../../api/tar.ts';
import type { Browser } from './browser.ts';
import { decodePath } from './guest-path.ts';

const PAGE_ENTRIES = 5000;

/**
 * Files, folders and links below a folder, with their owners, rights and times; devices and what cannot be read are left out,
 * and links are not followed. Names are the bytes that they are.
 * @param path as `list` has it: without links in it
 * @throws UND_MOUNT_PATH when a file is damaged: an archive that ends there is not whole, and must not look so
 */
export async function* folderTar(
  browser: Pick<Browser, 'list' | 'read'>,
  volume: string,
  path: string,
): AsyncGenerator<Buffer, void> {
  const above = decodePath(path.slice(0, path.lastIndexOf('/') + 1), volume).length;
  const nameOf = (full: string) => decodePath(full, volume).subarray(path === '/' ? 1 : above);
  const todo = [path];
  for (let folder = todo.pop(); folder !== undefined; folder = todo.pop()) {
    for (let from = 0, total = 1; from < total; from += PAGE_ENTRIES) {
      const page = await browser.list(volume, folder, from, PAGE_ENTRIES);
      total = page.total;
      for (const {
        kind,
        path: at,
        sizeBytes,
        modifiedAt,
        mode,
        uid,
        gid,
        target,
      } of page.entries) {
        const mtimeMs = Date.parse(modifiedAt ?? '') || 0;
        const meta = { mode, uid, gid, mtimeMs };
        if (kind === 'folder') {
          const name = Buffer.concat([nameOf(at), Buffer.from('/')]);
          yield tarHeader({ ...meta, name, kind, sizeBytes: 0 });
          todo.push(at);
        } else if (kind === 'file' && sizeBytes !== null) {
          yield tarHeader({ ...meta, name: nameOf(at), kind, sizeBytes });
          yield* browser.read(volume, at, 0, sizeBytes);
          yield tarPadding(sizeBytes);
        } else if (kind === 'link' && target !== null && !target.includes('\u{fffd}')) {
          yield tarHeader({
            ...meta,
            name: nameOf(at),
            kind,
            sizeBytes: 0,
            target: Buffer.from(target),
          });
        }
      }
    }
  }
  yield TAR_END;
}
