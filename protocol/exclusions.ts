/**
 * Exclusions: paths on the source server whose content is not worth mirroring. A pattern is an absolute path; `*` and
 * `?` match within one name, `**` any number of folders. One that names a folder stands for everything below it.
 */

/**
 * What nobody misses after a recovery: it is made anew (package caches, database temp space), or it is thrown away at
 * the next start. Every program named here copes with files of zeroes in these places: package managers check what they
 * find against its checksum, databases delete their temp space when they start.
 */
export const DEFAULT_EXCLUSIONS: readonly string[] = [
  '/tmp',
  '/var/tmp',
  '/swapfile',
  '/swap.img',
  '/var/cache/apt/archives',
  '/var/cache/dnf/**/packages',
  '/var/cache/yum/**/packages',
  '/var/cache/zypp/packages',
  '/var/cache/pacman/pkg',
  '/var/lib/postgresql/**/pgsql_tmp',
  '/var/lib/postgresql/**/pg_stat_tmp',
  '/var/lib/pgsql/**/pgsql_tmp',
  '/var/lib/pgsql/**/pg_stat_tmp',
  '/var/lib/mysql/#innodb_temp',
  '/var/lib/mysql/ibtmp1',
];

export const MAX_EXCLUSIONS = 200;
export const MAX_EXCLUSION_CHARS = 1000;

/**
 * An absolute path without empty names, `.` and `..`, of which at least one name is more than wildcards: a pattern that
 * stands for everything is a slip.
 */
export const EXCLUSION_PATTERN =
  '^(?=.*/[^/]*[^/*?])(/(?!\\.{1,2}(/|$))[^/\\u0000-\\u001f]+)+/?$' as const;

/** How far the patterns have come along a path. */
export interface ExclusionState {
  /** The path so far is excluded, and everything below it. */
  readonly excluded: boolean;
  /** Nothing below it can be excluded any more. */
  readonly dead: boolean;
  /** One name further. */
  step(name: string): ExclusionState;
}

/** `*` and `?` in one name; linear in both but for the last `*`, so no pattern can be made to take long. */
export function matchesName(pattern: string, name: string): boolean {
  let at = 0;
  let star = -1;
  let resume = 0;
  let p = 0;
  while (at < name.length) {
    if (pattern[p] === '*') {
      star = p++;
      resume = at;
    } else if (p < pattern.length && (pattern[p] === '?' || pattern[p] === name[at])) {
      p++;
      at++;
    } else if (star >= 0) {
      p = star + 1;
      at = ++resume;
    } else return false;
  }
  while (pattern[p] === '*') p++;
  return p === pattern.length;
}

const namesOf = (path: string): string[] => path.split('/').filter((name) => name !== '');

/** The state at the root, `/`. */
export function compileExclusions(patterns: readonly string[]): ExclusionState {
  const all = patterns.map(namesOf).filter((names) => names.length > 0);
  const done: ExclusionState = { excluded: true, dead: false, step: () => done };
  const dead: ExclusionState = { excluded: false, dead: true, step: () => dead };
  /** @param places per pattern that is still possible: how many of its names have been matched */
  const stateAt = (places: ReadonlyArray<readonly [pattern: string[], at: number]>) => {
    const open: Array<readonly [string[], number]> = [];
    const seen = new Map<string[], Set<number>>();
    const enter = (pattern: string[], at: number): boolean => {
      const known = seen.get(pattern) ?? new Set();
      seen.set(pattern, known);
      if (known.has(at)) return false;
      known.add(at);
      if (at === pattern.length) return true;
      open.push([pattern, at]);
      // No folder at all is also any number of folders.
      return pattern[at] === '**' && enter(pattern, at + 1);
    };
    for (const [pattern, at] of places) if (enter(pattern, at)) return done;
    if (open.length === 0) return dead;
    const state: ExclusionState = {
      excluded: false,
      dead: false,
      step: (name) =>
        stateAt(
          open.flatMap(([pattern, at]): Array<[string[], number]> => {
            if (pattern[at] === '**') return [[pattern, at]];
            return matchesName(pattern[at]!, name) ? [[pattern, at + 1]] : [];
          }),
        ),
    };
    return state;
  };
  return stateAt(all.map((pattern) => [pattern, 0]));
}

/** The state at an absolute path. */
export const stepPath = (state: ExclusionState, path: string): ExclusionState =>
  namesOf(path).reduce((at, name) => at.step(name), state);

/** Folders that a server does not start without. */
const NEEDED = ['bin', 'boot', 'etc', 'lib', 'lib32', 'lib64', 'sbin', 'usr'];

/** Patterns that leave out what the replica needs to start. */
export const riskyExclusions = (patterns: readonly string[]): string[] =>
  patterns.filter((pattern) => {
    const [first, second] = namesOf(pattern);
    return first !== undefined && second === undefined && NEEDED.some((n) => matchesName(first, n));
  });
