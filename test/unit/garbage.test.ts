import { spawnSync } from 'node:child_process';
import t from 'tap';
import { ROOMY_GARBAGE_FLAGS } from '../../protocol/garbage.ts';

t.test(
  'this Node still knows the flags: set at run time, an unknown one is passed over',
  async (t) => {
    const { status, stderr } = spawnSync(process.execPath, [...ROOMY_GARBAGE_FLAGS, '-e', '0']);
    t.equal(status, 0, String(stderr));
    t.equal(spawnSync(process.execPath, ['--heap-growing-percents=1', '-e', '0']).status, 9);
  },
);
