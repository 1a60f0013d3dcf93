/**
 * Runs test files, each a TAP-speaking script of its own (`node FILE`), and prints the tally.
 *
 * Usage: node scripts/run-tests.ts [--jobs N] [--log DIR] [--tally FILE] FILE...
 *
 * With --tally, `passed failed skipped` is appended to FILE so that a caller can add up several runs.
 *
 * The last line is `N passed, N failed, N skipped`: assertions-bearing top-level subtests are what is counted, so a
 * file with ten named tests counts ten. A file that dies, prints no plan or runs no test counts as one failure.
 */
import { spawn } from 'node:child_process';
import { appendFileSync, createWriteStream, mkdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import { type FinalResults, Parser } from 'tap-parser';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    jobs: { type: 'string', default: '1' },
    log: { type: 'string', default: 'build/test-logs' },
    tally: { type: 'string' },
  },
});

/** What the log says of the assertions that failed, at most this many lines: what is read where only the output is kept. */
const TOLD_LINES = 40;

/** The failed assertions of a TAP text with their diagnostics; those of the tests around them say nothing more. */
function failedAssertions(tap: string): string[] {
  const lines = tap.split('\n');
  const told: string[] = [];
  for (let at = 0; at < lines.length; at++) {
    if (!/^\s*not ok /.test(lines[at]!) || !/^\s*---/.test(lines[at + 1] ?? '')) continue;
    const end = lines.findIndex((line, n) => n > at && /^\s*\.\.\.\s*$/.test(line));
    told.push(
      ...lines.slice(at, end < 0 ? undefined : end).filter((line) => !/^\s*---/.test(line)),
    );
  }
  return told.slice(0, TOLD_LINES);
}

type Outcome = { passed: number; failed: number; skipped: number };

function runFile(file: string): Promise<Outcome> {
  const logFile = join(values.log, `${basename(file)}.log`);
  const log = createWriteStream(logFile);
  const startedAt = Date.now();
  return new Promise((resolve) => {
    const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', file], {
      stdio: ['ignore', 'pipe', 'pipe'],
      // tap's own limit of 30 s a file judges the machine, not the code; a file that needs a limit sets it.
      env: { TAP_TIMEOUT: '1200', ...process.env, TAP_BAIL: '0' },
    });
    const parser = new Parser({});
    const tally: Outcome = { passed: 0, failed: 0, skipped: 0 };
    const failures: string[] = [];
    parser.on('assert', (result) => {
      if (result.skip || result.todo) tally.skipped++;
      else if (result.ok) tally.passed++;
      else {
        tally.failed++;
        failures.push(result.fullname || result.name);
      }
    });
    let results: FinalResults | undefined;
    parser.on('complete', (r) => {
      results = r;
    });
    child.stdout.on('data', (chunk: Buffer) => {
      log.write(chunk);
      parser.write(chunk);
    });
    child.stderr.pipe(log, { end: false });
    child.on('close', (code, signal) => {
      parser.end();
      log.end();
      const ran = tally.passed + tally.failed + tally.skipped;
      if (tally.failed === 0 && (code !== 0 || !results?.ok || ran === 0)) {
        tally.failed++;
        failures.push(`the file itself (exit ${code ?? signal}, ${ran} tests seen)`);
      }
      const seconds = ((Date.now() - startedAt) / 1000).toFixed(1);
      const mark = tally.failed ? 'FAIL' : 'ok  ';
      console.log(
        `${mark} ${file}  ${tally.passed} passed${tally.skipped ? `, ${tally.skipped} skipped` : ''}  ${seconds} s`,
      );
      for (const name of failures) console.log(`     failed: ${name}   (see ${logFile})`);
      if (failures.length > 0) {
        log.on('close', () => {
          for (const line of failedAssertions(readFileSync(logFile, 'utf8')))
            console.log(`     ${line}`);
          resolve(tally);
        });
      } else resolve(tally);
    });
  });
}

mkdirSync(values.log, { recursive: true });
const queue = [...positionals];
const total: Outcome = { passed: 0, failed: 0, skipped: 0 };
async function worker(): Promise<void> {
  for (let file = queue.shift(); file; file = queue.shift()) {
    const one = await runFile(file);
    total.passed += one.passed;
    total.failed += one.failed;
    total.skipped += one.skipped;
  }
}
await Promise.all(Array.from({ length: Math.max(1, Number(values.jobs)) }, worker));
console.log(
  `${total.passed} passed, ${total.failed} failed${total.skipped ? `, ${total.skipped} skipped` : ''}`,
);
if (values.tally)
  appendFileSync(values.tally, `${total.passed} ${total.failed} ${total.skipped}\n`);
process.exit(total.failed || total.passed === 0 ? 1 : 0);
