/** What `scripts/prove` runs: see there, and scripts/lib/proof.ts. */
import { randomInt } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { chooseCases, type Proof, prove } from './lib/proof.ts';

const root = join(import.meta.dirname, '..');
const folder = join(root, 'test/prove');

function fail(reason: string): never {
  const names = readdirSync(folder)
    .filter((file) => file.endsWith('.ts'))
    .map((file) => file.slice(0, -3));
  console.error(`${reason}
Usage: sudo scripts/prove NAME [--rounds N] [--seed S] [--first ROUND] [--only CASE,...] [--short]
NAME is one of: ${names.join(', ')}`);
  process.exit(2);
}

const count = (text: string, option: string): number => {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 0) fail(`--${option} is a whole number, not ${text}`);
  return value;
};

function read() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        rounds: { type: 'string' },
        seed: { type: 'string' },
        first: { type: 'string', default: '1' },
        only: { type: 'string' },
        short: { type: 'boolean', default: false },
        needs: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    return fail((error as Error).message.split('. ', 1)[0] ?? '');
  }
}

const { values, positionals } = read();
if (values.help)
  fail('The randomised proofs. The last line is `N of N`; a failed round is kept in build/prove.');
const [name] = positionals;
if (!name || positionals.length > 1) fail('Which proof?');
const file = join(folder, `${name}.ts`);
if (!/^[a-z-]+$/.test(name) || !existsSync(file)) fail(`There is no proof '${name}'.`);
const { proof } = (await import(file)) as { proof: Proof };

// For scripts/prove: packages in the first line, builds in the second.
if (values.needs) {
  console.log(proof.packages.join(' '));
  console.log(proof.builds.join(' '));
  process.exit(0);
}

const cases = values.only === undefined ? proof.cases : chooseCases(proof.cases ?? [], values.only);
if (cases === null) {
  fail(
    `--only ${values.only}: cases of ${name} are ${proof.cases?.join(' ') ?? 'not to be named'}`,
  );
}
const rounds =
  values.rounds === undefined ? (cases?.length ?? proof.rounds) : count(values.rounds, 'rounds');
if (rounds === 0) fail('--rounds is at least 1');
const seed = values.seed === undefined ? randomInt(2 ** 31) : count(values.seed, 'seed');
const cannot = proof.require();
if (cannot !== null) {
  console.log(`cannot run here: ${cannot}`);
  console.log(`0 of ${rounds}`);
  process.exit(1);
}
// Ended from outside, it takes along what its proofs started: they look to that at the exit.
for (const [signal, status] of [
  ['SIGHUP', 129],
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const)
  process.once(signal, () => process.exit(status));
const held = await prove(proof, {
  name,
  rounds,
  seed,
  first: count(values.first, 'first'),
  short: values.short,
  only: values.only,
  keepRoot: join(root, 'build/prove'),
  print: (line) => console.log(line),
});
process.exit(held === rounds ? 0 : 1);
