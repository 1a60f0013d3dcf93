/** The proof of the drain in its short form; `scripts/prove drain` runs as many rounds as asked. */
import t from 'tap';
import { prove } from '../../scripts/lib/proof.ts';
import { proof } from '../prove/drain.ts';
import { run } from './capture.lab.ts';

const skip = proof.require() ?? false;
t.setTimeout(1_200_000);

t.test('replicas are their sources after overflows, cuts and kills', { skip }, async (t) => {
  run('scripts/build-capture');
  const lines: string[] = [];
  const held = await prove(proof, {
    name: 'drain',
    rounds: 2,
    seed: Date.now() % 2 ** 31,
    first: 1,
    short: true,
    keepRoot: 'build/prove',
    print: (line) => {
      lines.push(line);
      t.comment(line);
    },
  });
  t.equal(held, 2, 'both rounds hold', { lines });
});
