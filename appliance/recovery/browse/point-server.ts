/** Which mounted points are served, and by what. */
import { setTimeout as pause } from 'node:timers/promises';
import { execa } from 'execa';
import { undError } from '../../../protocol/errors.ts';
import { loopsOf } from '../prepare-guest/loops.ts';
import type { PrepareProgram } from '../prepare-guest/programs.ts';
import type { PointServer } from '../types.ts';
import { Browser } from './browser.ts';
import { NbdExports, type NbdOptions } from './nbd-export.ts';

export interface PointServerOptions {
  /** What runs `runBrowseWorker`. */
  workerCommand: readonly [string, ...string[]];
  nbd: NbdOptions;
}

/** What the API asks of points that are open. */
export interface OpenPoints extends PointServer {
  /** @throws UND_MOUNT_NOT_OPEN when it is not open for its files */
  browser(mountId: string): Browser;
  /** @throws UND_MOUNT_NOT_OPEN when it is not open for export */
  nbd(mountId: string): NbdExports;
  /** Ends all of them; for the end of the appliance. */
  closeAll(): Promise<void>;
}

const LOOP_LIMIT_MS = 30_000;

export function createPointServer(options: PointServerOptions): OpenPoints {
  const browsers = new Map<string, Browser>();
  const exported = new Map<string, NbdExports>();
  return {
    async open(request, signal) {
      if (request.purpose === 'nbd') {
        const nbd = await NbdExports.open(request, options.nbd, signal);
        exported.set(request.mountId, nbd);
        return { volumes: [], exports: nbd.exports };
      }
      const { browser, volumes } = Browser.open(options.workerCommand, request, signal);
      browsers.set(request.mountId, browser);
      return { volumes: await volumes, exports: [] };
    },

    async close(mountId, devicePaths) {
      const browser = browsers.get(mountId);
      if (browser) {
        await browser.close();
        browsers.delete(mountId);
      }
      await exported.get(mountId)?.close();
      exported.delete(mountId);
      await loopsGone(devicePaths);
    },

    browser(mountId) {
      const browser = browsers.get(mountId);
      if (browser) return browser;
      const reason = 'its files are not';
      throw undError('UND_MOUNT_NOT_OPEN', { mount: mountId, reason });
    },

    nbd(mountId) {
      const found = exported.get(mountId);
      if (found) return found;
      const reason = 'it is not exported';
      throw undError('UND_MOUNT_NOT_OPEN', { mount: mountId, reason });
    },

    async closeAll() {
      const all = [...browsers.values(), ...exported.values()];
      await Promise.all(all.map((one) => one.close()));
    },
  };
}

/**
 * A process that was killed between making a loop device and mounting it leaves the device behind; and one that was mounted
 * lets go of its disk some moments after the mount.
 * @throws UND_MOUNT_BUSY
 */
async function loopsGone(devicePaths: readonly string[]): Promise<void> {
  const end = Date.now() + LOOP_LIMIT_MS;
  for (;;) {
    const left = loopsOf(devicePaths);
    if (left.length === 0) return;
    for (const name of left) {
      await execa('losetup' satisfies PrepareProgram, ['-d', `/dev/${name}`], { reject: false });
    }
    if (Date.now() > end) throw undError('UND_MOUNT_BUSY', { users: left.join(', ') });
    await pause(100);
  }
}
