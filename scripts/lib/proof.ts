/**
 * The frame of `scripts/prove`: randomised proofs, round by round, from one seed.
 *
 * To add a proof, add one file `test/prove/NAME.ts` that exports `proof`, a `Proof` (what it needs beside it goes into a
 * folder `test/prove/NAME/`). `scripts/prove NAME` finds it by its file name, installs and builds what it asks for, and
 * runs it as root in a mount namespace of its own. A round does its work with the real thing, undoes it by
 * `context.teardown`, and returns what it did and what it found wrong. Every choice comes from `context.random`, so that
 * the seed gives the same choices again (not the same interleaving: the machine has its own).
 */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { random } from '../../test/random.ts';

export interface Proof {
  /** One line: what is shown when every round holds. */
  readonly what: string;
  /** Debian packages that it needs. */
  readonly packages: readonly string[];
  /** Scripts that build what it needs, by name: `build-capture`. */
  readonly builds: readonly string[];
  /** Rounds when none were asked for. */
  readonly rounds: number;
  /** For a proof that goes through named cases: round n is case n, and then the first again. Parts are joined by `:`. */
  readonly cases?: readonly string[];
  /** Why it cannot run on this machine, or null. Packages and builds are there when it is called. */
  require(): string | null;
  /** One round. What it throws counts as wrong. */
  round(context: RoundContext): Promise<RoundResult>;
}

export interface RoundContext {
  /** Counts from 1. */
  readonly round: number;
  /** The round's own seed. */
  readonly seed: number;
  /** A whole number from 0 up to, not including, `below`; the same ones again for the same seed and round. */
  random(below: number): number;
  /** The short form, which runs in the tests: the same work, less of it. */
  readonly short: boolean;
  /** The case of this round, of a proof that has cases; otherwise ''. */
  readonly case: string;
  /** A folder that stays if the round fails; made at the first call. */
  keepDir(): string;
  /** Called when the round is over, however it ended, the last one first. */
  teardown(undo: () => unknown): void;
}

export interface RoundResult {
  /** What was done, for the round's line. */
  did: string;
  /** What was found that must not be; empty: the round holds. */
  wrong: string[];
}

export interface ProveOptions {
  name: string;
  rounds: number;
  seed: number;
  /** The first round's number: a failed round is run again by its number. */
  first: number;
  short: boolean;
  /** Of a proof with cases, those to go through (`chooseCases`). */
  only?: string;
  /** build/prove: failed rounds are kept below it. */
  keepRoot: string;
  print(line: string): void;
}

/** Knuth's multiplicative hash keeps the seeds of neighbouring rounds, and of neighbouring seeds, apart. */
export const roundSeed = (seed: number, round: number): number =>
  (Math.imul(seed, 0x9e3779b1) ^ Math.imul(round, 0x85ebca6b)) >>> 0;

/**
 * The cases that `only` asks for: words joined by commas, each the first parts of a case's name. Null when a word asks
 * for none.
 */
export function chooseCases(cases: readonly string[], only: string): string[] | null {
  const words = only.split(',');
  const asks = (word: string, name: string) => `${name}:`.startsWith(`${word}:`);
  if (!words.every((word) => cases.some((name) => asks(word, name)))) return null;
  return cases.filter((name) => words.some((word) => asks(word, name)));
}

/** Runs the rounds, one after the other. @returns how many held */
export async function prove(proof: Proof, options: ProveOptions): Promise<number> {
  const { name, rounds, seed, first, short, only, print } = options;
  const all = proof.cases ?? [];
  const cases = (only === undefined ? all : chooseCases(all, only)) ?? [];
  print(`${proof.what} (seed ${seed})`);
  let held = 0;
  for (let round = first; round < first + rounds; round++) {
    const keep = join(options.keepRoot, `${name}-${seed}-${round}`);
    rmSync(keep, { recursive: true, force: true });
    const startedAt = Date.now();
    const named = cases[(round - 1) % cases.length] ?? '';
    const { did, wrong } = await runRound(proof, round, roundSeed(seed, round), short, named, keep);
    const seconds = ((Date.now() - startedAt) / 1000).toFixed(1);
    if (wrong.length === 0) {
      held++;
      rmSync(keep, { recursive: true, force: true });
      print(`ok   ${round}  ${did}  ${seconds} s`);
      continue;
    }
    mkdirSync(keep, { recursive: true });
    const same = `${only === undefined ? '' : ` --only ${only}`}${short ? ' --short' : ''}`;
    const again = `scripts/prove ${name} --seed ${seed} --first ${round} --rounds 1${same}`;
    writeFileSync(join(keep, 'wrong.txt'), `${again}\n${did}\n${wrong.join('\n')}\n`);
    print(`FAIL ${round}  ${did}  ${seconds} s`);
    for (const line of wrong) print(`     ${line}`);
    print(`     kept in ${keep}; again: ${again}`);
  }
  print(`${held} of ${rounds}`);
  return held;
}

async function runRound(
  proof: Proof,
  round: number,
  seed: number,
  short: boolean,
  named: string,
  keep: string,
): Promise<RoundResult> {
  const undo: Array<() => unknown> = [];
  let result: RoundResult;
  try {
    result = await proof.round({
      round,
      seed,
      random: random(seed),
      short,
      case: named,
      keepDir: () => {
        mkdirSync(keep, { recursive: true });
        return keep;
      },
      teardown: (act) => undo.push(act),
    });
  } catch (error) {
    result = { did: 'did not come to its end', wrong: [(error as Error)?.stack ?? String(error)] };
  }
  for (const act of undo.reverse()) {
    try {
      await act();
    } catch (error) {
      result.wrong.push(`clean-up: ${(error as Error)?.stack ?? error}`);
    }
  }
  return result;
}
