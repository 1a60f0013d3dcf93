/** The proof of crashes in its short form; `scripts/prove crash` runs as many rounds as asked. */
import t from 'tap';
import { prove } from '../../scripts/lib/proof.ts';
import { proof } from '../prove/crash.ts';
import { run } from './capture.lab.ts';

const skip = proof.require() ?? false;
t.setTimeout(600_000);

t.test('nothing acknowledged is lost by a kill, nor by a power cut', { skip }, async (t) => {
  run('scripts/build-capture');
  const lines: string[] = [];
  const held = await prove(proof, {
    name: 'crash',
    rounds: 2,
    seed: Date.now() % 2 ** 31,
    first: 1,
    short: true,
    only: 'killed,unflushed',
    keepRoot: 'build/prove',
    print: (line) => {
      lines.push(line);
      t.comment(line);
    },
  });
  t.equal(held, 2, 'both rounds hold', { lines });
});
