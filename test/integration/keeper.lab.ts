/** The real capture and the real hooks of an agent whose frames are kept. */
import fs from 'node:fs';
import { join } from 'node:path';
import { createCapture, openBlockReader } from '../../agent/capture/capture.ts';
import { OwedPosts } from '../../agent/quiesce/owed.ts';
import { createQuiesce } from '../../agent/service/quiesce.ts';
import type { CaptureLab } from './capture.lab.ts';
import { FrameKeeper, type KeptDisk } from './quiesce.lab.ts';

type TestLike = { teardown: (fn: () => unknown) => void };

/** An agent of its own folders over loop devices. */
export async function keeper(
  t: TestLike,
  lab: CaptureLab,
  disks: KeptDisk[],
  options: { windowBytes?: number } = {},
) {
  const paths = {
    programDir: join(lab.dir, 'program'),
    runDir: join(lab.dir, 'run'),
    hooksDir: join(lab.dir, 'hooks.d'),
  };
  fs.mkdirSync(paths.hooksDir);
  const kept = new FrameKeeper(disks, {
    ...options,
    createCapture: () => createCapture(),
    openReader: (path) => openBlockReader(path),
    pinDir: lab.pinDir,
    runDir: paths.runDir,
    quiesce: createQuiesce(paths, {}, new OwedPosts({ ...paths, log: () => {} })),
  });
  t.teardown(() => kept.stream.stop({ unpin: true }));
  await kept.start();
  const hook = (name: string, text: string, mode = 0o755) => {
    fs.writeFileSync(join(paths.hooksDir, name), `#!/bin/sh\n${text}\n`);
    fs.chmodSync(join(paths.hooksDir, name), mode);
  };
  return { kept, hook };
}
