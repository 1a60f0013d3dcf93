import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import {
  CPU_WEIGHT,
  isStarved,
  ProcessorShare,
  type Scheduled,
} from '../../agent/service/processor-share.ts';

const GROUP = '/system.slice/understudy-agent.service';
const at = (atMs: number, ranMs: number, waitedMs: number): Scheduled => ({
  atMs,
  ranMs,
  waitedMs,
});

/** A control group of the agent's as files, and a scheduler that says what the test wants. */
function lab(t: Test, files: Record<string, string>, selfCgroup = `0::${GROUP}\n`) {
  const sysRoot = mkdtempSync(join(tmpdir(), 'und-group-'));
  t.teardown(() => rmSync(sysRoot, { recursive: true }));
  mkdirSync(join(sysRoot, GROUP), { recursive: true });
  for (const [name, text] of Object.entries(files)) writeFileSync(join(sysRoot, GROUP, name), text);
  const state = { now: at(0, 0, 0) };
  const share = ProcessorShare.start({
    sysRoot,
    selfCgroup: () => selfCgroup,
    scheduled: () => state.now,
  });
  t.teardown(() => share?.close());
  return {
    share,
    read: (name: string) => readFileSync(join(sysRoot, GROUP, name), 'utf8').trim(),
    write: (name: string, text: string) => writeFileSync(join(sysRoot, GROUP, name), text),
    look: (now: Scheduled) => {
      state.now = now;
      share!.look();
    },
  };
}

t.test('starved: it waited most of the time and hardly ran', async (t) => {
  t.equal(isStarved(at(0, 0, 0), at(1000, 50, 800)), true);
  t.equal(isStarved(at(0, 0, 0), at(1000, 300, 600)), false, 'slow, but it has its share');
  t.equal(isStarved(at(0, 0, 0), at(1000, 5, 20)), false, 'it had nothing to do');
});

// Red when a claim ends at the next look, and when it never ends.
t.test('the group is idle, and takes its weight for a while when it starves', async (t) => {
  const { share, read, look } = lab(t, { 'cpu.idle': '0\n', 'cpu.weight': '35\n' });
  t.ok(share);
  t.equal(read('cpu.idle'), '1');
  look(at(1_000, 500, 100));
  t.equal(read('cpu.idle'), '1');
  look(at(2_000, 501, 1_050));
  t.equal(read('cpu.idle'), '0');
  t.equal(read('cpu.weight'), '35', 'what its administrator gave it');
  look(at(3_000, 1_000, 1_100));
  look(at(11_000, 4_000, 1_200));
  t.equal(read('cpu.idle'), '0');
  look(at(12_100, 4_100, 1_200));
  t.equal(read('cpu.idle'), '1');
});

// Red when the weight is left to the kernel, which gives the usual one.
t.test('leaving idle restores the weight', async (t) => {
  const { share, read, write } = lab(t, { 'cpu.idle': '0', 'cpu.weight': '35' });
  write('cpu.weight', '100');
  await share!.during(async () => {
    t.equal(read('cpu.idle'), '0');
    t.equal(read('cpu.weight'), '35');
  });
  const after = lab(t, { 'cpu.idle': '1', 'cpu.weight': '0' });
  after.share!.close();
  t.equal(after.read('cpu.weight'), String(CPU_WEIGHT), 'an agent before it had left it idle');
});

t.test('whoever waits for the agent gets its weight, also one of two', async (t) => {
  const { share, read, look } = lab(t, { 'cpu.idle': '0', 'cpu.weight': '20' });
  const first = Promise.withResolvers<void>();
  const waiting = share!.during(() => first.promise);
  await t.rejects(share!.during(() => Promise.reject(new Error('failed'))));
  look(at(5_000, 100, 100));
  t.equal(read('cpu.idle'), '0');
  first.resolve();
  await waiting;
  look(at(7_000, 200, 100));
  t.equal(read('cpu.idle'), '1');
});

t.test('where it has no say, it does not try', async (t) => {
  t.equal(lab(t, { 'cpu.weight': '100' }).share, null, 'a kernel without idle groups');
  t.equal(lab(t, {}, '0::/user.slice/session-1.scope\n').share, null, 'started from a shell');
  t.equal(lab(t, {}, '').share, null);
});
