import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import {
  chooseCases,
  type Proof,
  prove,
  type RoundContext,
  roundSeed,
} from '../../scripts/lib/proof.ts';

type TestLike = { teardown: (fn: () => unknown) => void };

async function run(
  t: TestLike,
  round: Proof['round'],
  { cases, ...more }: Partial<{ seed: number; only: string; cases: string[] }> = {},
) {
  const keepRoot = mkdtempSync(join(tmpdir(), 'prove-test-'));
  t.teardown(() => rmSync(keepRoot, { recursive: true, force: true }));
  const lines: string[] = [];
  const proof: Proof = {
    what: 'it holds',
    packages: [],
    builds: [],
    rounds: 3,
    require: () => null,
    round,
    ...(cases && { cases }),
  };
  const held = await prove(proof, {
    name: 'sample',
    rounds: 3,
    seed: 7,
    first: 1,
    short: false,
    keepRoot,
    print: (line) => lines.push(line),
    ...more,
  });
  return { held, lines, keepRoot };
}

t.test('every round holds: the tally is the last line, nothing is kept', async (t) => {
  const { held, lines, keepRoot } = await run(t, async (context) => {
    writeFileSync(join(context.keepDir(), 'evidence'), 'of no use');
    return { did: 'a thing', wrong: [] };
  });
  t.equal(held, 3);
  t.equal(lines.length, 5);
  t.equal(lines.at(-1), '3 of 3');
  t.notOk(existsSync(join(keepRoot, 'sample-7-1')));
});

t.test('a round that fails or throws is counted, named and kept', async (t) => {
  const undone: string[] = [];
  const { held, lines, keepRoot } = await run(t, async ({ round, keepDir, teardown }) => {
    teardown(() => undone.push(`first of ${round}`));
    teardown(() => undone.push(`second of ${round}`));
    if (round === 2) {
      writeFileSync(join(keepDir(), 'evidence'), 'kept');
      return { did: 'a thing', wrong: ['the sky fell'] };
    }
    if (round === 3) throw new Error('no end');
    return { did: 'a thing', wrong: [] };
  });
  t.equal(held, 1);
  t.equal(lines.at(-1), '1 of 3');
  t.equal(readFileSync(join(keepRoot, 'sample-7-2/evidence'), 'utf8'), 'kept');
  t.match(readFileSync(join(keepRoot, 'sample-7-2/wrong.txt'), 'utf8'), /the sky fell/);
  t.match(readFileSync(join(keepRoot, 'sample-7-3/wrong.txt'), 'utf8'), /no end/);
  t.match(lines.join('\n'), /again: scripts\/prove sample --seed 7 --first 2 --rounds 1/);
  t.same(undone.slice(0, 2), ['second of 1', 'first of 1'], 'undone from the last');
  t.equal(undone.length, 6, 'also after a round that threw');
});

t.test('a clean-up that fails is a failed round', async (t) => {
  const { held } = await run(t, async ({ teardown }) => {
    teardown(() => {
      throw new Error('still mounted');
    });
    return { did: 'a thing', wrong: [] };
  });
  t.equal(held, 0);
});

t.test('the seed gives the same choices again, another seed others', async (t) => {
  const choices = async (seed: number) => {
    const made: number[] = [];
    const round = async ({ random }: RoundContext) => {
      made.push(random(1_000_000), random(1_000_000));
      return { did: '', wrong: [] };
    };
    await run(t, round, { seed });
    return made;
  };
  const first = await choices(7);
  t.equal(new Set(first).size, 6, 'rounds differ');
  t.same(await choices(7), first);
  t.notSame(await choices(8), first);
  t.not(roundSeed(1, 2), roundSeed(2, 1));
});

t.test(
  'a proof with cases goes through them, or those asked for by their first parts',
  async (t) => {
    const cases = ['old:nvme:lvm', 'old:nvme:md', 'new:nvme:md', 'new:nvme-paths'];
    t.same(chooseCases(cases, 'old'), ['old:nvme:lvm', 'old:nvme:md']);
    t.same(chooseCases(cases, 'new:nvme,old:nvme:md'), ['old:nvme:md', 'new:nvme:md']);
    t.equal(chooseCases(cases, 'old,newer'), null, 'a word that asks for none is a mistake');
    t.equal(chooseCases([], 'old'), null);

    const seen: string[] = [];
    const round = async (context: RoundContext) => {
      seen.push(context.case);
      return { did: context.case, wrong: context.case === 'new:nvme:md' ? ['it differs'] : [] };
    };
    const { lines } = await run(t, round, { cases, only: 'old:nvme,new:nvme:md' });
    t.same(seen, ['old:nvme:lvm', 'old:nvme:md', 'new:nvme:md']);
    t.match(lines.join('\n'), /--first 3 --rounds 1 --only old:nvme,new:nvme:md$/m);
  },
);
