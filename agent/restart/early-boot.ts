/**
 * What a planned restart needs on this machine to be carried over (docs/early-boot.md): a hook of systemd-shutdown that
 * saves, a unit that attaches early, and the file between them.
 */
import { access, constants, mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execa } from 'execa';
import type { FileMap } from '../capture/file-map.ts';
import { helperPath } from '../capture/helper.ts';
import { type AgentPaths, EARLY_UNIT_NAME, EARLY_WANTS, writeDurably } from '../config.ts';
import type { Log } from '../service/log.ts';
import type { Systemctl } from '../service/uninstall.ts';
import { lookAtDisks } from './look.ts';
import { witnessesOf, witnessLines } from './witnesses.ts';

/** A bit for each 4 KiB of a disk, written as runs: room for some 600 000 of them before neighbours are joined. */
const AREA_BYTES = 16 * 1024 * 1024;
/** Between one MiB of it and the next. */
const AREA_PACE_MS = 250;
/** What is on the disks changes rarely, and is looked at once more when the agent ends. */
const LOOK_MS = 60_000;

type Paths = Pick<
  AgentPaths,
  'programDir' | 'pinDir' | 'runDir' | 'shutdownHook' | 'earlyUnitFile' | 'saveArea'
>;

const helperCall = (verb: string, { programDir, pinDir, runDir, saveArea }: Paths): string =>
  `${programDir}/understudy-capture ${verb} --pin ${pinDir} --run ${runDir} --area ${saveArea}`;

/** systemd-shutdown calls it with how the machine goes down, when everything is unmounted or read-only. */
export const hookText = (paths: Paths): string => `#!/bin/sh
exec ${helperCall('save', paths)} "$1" 2>/dev/kmsg
`;

/** Before anything can write to a disk: there must be nothing that it waits for. */
export const earlyUnitText = (paths: Paths): string => `[Unit]
Description=Understudy agent: takes up the capture of before the restart
DefaultDependencies=no
Before=sysinit.target local-fs-pre.target systemd-remount-fs.service systemd-fsck-root.service
Before=systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service
Before=systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service systemd-udev-trigger.service
ConditionPathExists=${paths.saveArea}

[Service]
Type=oneshot
# Once in the life of a kernel.
RemainAfterExit=yes
# It writes to the kernel's log itself: if systemd were to do that for it, it would have to wait for journald's socket.
ExecStart=${helperCall('early', paths)} --log /dev/kmsg
StandardInput=null
StandardOutput=null
StandardError=null
# The start of the machine waits for it, but not for long.
TimeoutStartSec=60

[Install]
WantedBy=sysinit.target
`;

export interface CarryState {
  ready: boolean;
  reason: string | null;
}

/** Keeps the machine ready for a restart that is carried over, or takes everything off that was put there for it. */
export class EarlyBoot {
  readonly #paths: Paths;
  readonly #run: Systemctl;
  readonly #openFileMap: () => FileMap;
  readonly #log: Log;
  #disks: ReadonlyArray<{ index: number; devicePath: string }> = [];
  #wanted = false;
  #state: CarryState | null = null;
  #lookedMs = Number.NEGATIVE_INFINITY;
  #told = '';
  #last: Promise<void> = Promise.resolve();

  constructor(paths: Paths, run: Systemctl, openFileMap: () => FileMap, log: Log) {
    this.#paths = paths;
    this.#run = run;
    this.#openFileMap = openFileMap;
    this.#log = log;
  }

  /** What the appliance is told; null: it is not wanted. */
  get state(): CarryState | null {
    return this.#wanted ? this.#state : null;
  }

  /** Called whenever the job may have changed, and about each second; does something only when there is something to do. */
  follow(wanted: boolean, disks: ReadonlyArray<{ index: number; devicePath: string }>): void {
    const changed =
      wanted !== this.#wanted || JSON.stringify(disks) !== JSON.stringify(this.#disks);
    this.#wanted = wanted;
    this.#disks = disks;
    const now = performance.now();
    if (!changed && (!wanted || now - this.#lookedMs < LOOK_MS)) return;
    this.#lookedMs = now;
    this.#inTurn(wanted ? () => this.#prepare() : () => this.remove());
  }

  /** What lies on the disks now, for a shutdown that may be under way. */
  async settle(): Promise<void> {
    if (this.#wanted) this.#inTurn(() => this.#prepare());
    await this.#last;
  }

  /** Nothing that was begun is under way any more. */
  idle(): Promise<void> {
    return this.#last;
  }

  #inTurn(act: () => Promise<unknown>): void {
    this.#last = this.#last.then(act).then(
      () => undefined,
      (error) => {
        this.#log('warning', `planned restarts: ${(error as Error).message}`);
      },
    );
  }

  async #prepare(): Promise<void> {
    const list = `${this.#paths.runDir}/witnesses`;
    try {
      await this.#install();
      const witnesses = witnessesOf(await lookAtDisks(this.#disks, this.#openFileMap));
      await mkdir(this.#paths.runDir, { recursive: true, mode: 0o700 });
      await writeDurably(list, witnessLines(witnesses));
      const refused = await this.#refused();
      const reasons = [...refused].map(([disk, reason]) => `${this.#nameOf(disk)}: ${reason}`);
      this.#set({
        ready: refused.size < this.#disks.length,
        reason: reasons.length > 0 ? reasons.join('; ').slice(0, 1000) : null,
      });
    } catch (error) {
      // One of before would be believed at the shutdown.
      await rm(list, { force: true });
      this.#set({ ready: false, reason: (error as Error).message.slice(0, 1000) });
    }
  }

  /** By disk, what the helper says of the list: which of them no shutdown will save. */
  async #refused(): Promise<Map<number, string>> {
    const disks = this.#disks.flatMap(({ index, devicePath }) => [
      '--disk',
      `${index}:${devicePath}`,
    ]);
    const args = ['witnesses', '--run', this.#paths.runDir, ...disks];
    const { stdout } = await execa(helperPath({}), args, { stdin: 'ignore', timeout: 60_000 });
    const refused = new Map<number, string>();
    for (const [, disk, reason] of stdout.matchAll(/^(\d+) (.+)$/gm)) {
      if (!refused.has(Number(disk))) refused.set(Number(disk), reason!);
    }
    return refused;
  }

  #nameOf(disk: number): string {
    return this.#disks.find(({ index }) => index === disk)?.devicePath ?? `disk ${disk}`;
  }

  #set(state: CarryState): void {
    this.#state = state;
    const told = state.ready
      ? `a planned restart will be carried over${state.reason ? ` (not ${state.reason})` : ''}`
      : `a planned restart will not be carried over: ${state.reason}`;
    if (told === this.#told) return;
    this.#told = told;
    this.#log(state.reason ? 'warning' : 'info', told);
  }

  async #install(): Promise<void> {
    const { shutdownHook, earlyUnitFile, saveArea } = this.#paths;
    if (!(await exists('/run/systemd/system'))) throw new Error('systemd does not run here');
    const hooks = dirname(shutdownHook);
    if (!(await exists(hooks))) throw new Error(`there is no ${hooks}`);
    await this.#makeArea();
    const unit = await put(earlyUnitFile, earlyUnitText(this.#paths), 0o644);
    const hook = await put(shutdownHook, hookText(this.#paths), 0o755);
    const isEnabled = await exists(join(dirname(earlyUnitFile), EARLY_WANTS));
    if (!unit && !hook && isEnabled) return;
    await this.#run('daemon-reload');
    const { ok, text } = await this.#run('enable', EARLY_UNIT_NAME);
    if (!ok) throw new Error(`${EARLY_UNIT_NAME} cannot be enabled: ${text.trim()}`);
    this.#log('info', `${shutdownHook}, ${earlyUnitFile} and ${saveArea} are installed`);
  }

  /** Written in full, so that its blocks are fixed; on the file system that is there when nothing else is mounted. */
  async #makeArea(): Promise<void> {
    const { saveArea, programDir } = this.#paths;
    const [root, here] = await Promise.all([stat('/'), stat(programDir)]);
    if (root.dev !== here.dev) throw new Error(`${programDir} is not on the root file system`);
    const size = await stat(saveArea).then(
      (found) => found.size,
      () => 0,
    );
    if (size !== AREA_BYTES) {
      const temporary = `${saveArea}.new`;
      await rm(temporary, { force: true });
      const handle = await open(temporary, 'wx', 0o600);
      try {
        const zeroes = Buffer.alloc(1024 * 1024);
        for (let at = 0; at < AREA_BYTES; at += zeroes.length) {
          await handle.write(zeroes);
          await handle.sync();
          // It is captured as any write: all of it at once would fill a small server's ring.
          await sleep(AREA_PACE_MS);
        }
      } catch (error) {
        await rm(temporary, { force: true });
        throw error;
      } finally {
        await handle.close();
      }
      await rename(temporary, saveArea);
    }
    const { failed, stderr } = await execa(helperPath({}), ['area', saveArea], {
      reject: false,
      stdin: 'ignore',
      timeout: 60_000,
    });
    if (failed) throw new Error(stderr.trim() || 'the save area cannot be used');
  }

  /** Takes everything off this machine that `follow` put on it. */
  async remove(): Promise<void> {
    const { shutdownHook, earlyUnitFile, saveArea } = this.#paths;
    this.#told = '';
    this.#state = null;
    const had = (await exists(shutdownHook)) || (await exists(earlyUnitFile));
    await rm(shutdownHook, { force: true });
    if (had) await this.#run('disable', EARLY_UNIT_NAME);
    await rm(earlyUnitFile, { force: true });
    await rm(saveArea, { force: true });
    if (had) await this.#run('daemon-reload');
  }
}

const exists = (path: string) =>
  access(path, constants.F_OK).then(
    () => true,
    () => false,
  );

/** @returns whether it was something else before */
async function put(path: string, text: string, mode: number): Promise<boolean> {
  if ((await readFile(path, 'utf8').catch(() => null)) === text) return false;
  await writeDurably(path, text, mode);
  return true;
}
