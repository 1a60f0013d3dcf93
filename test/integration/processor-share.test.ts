/** The agent's share of the processors in real control groups, beside others who want all of them. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { UNIT_NAME } from '../../agent/config.ts';
import { CPU_WEIGHT } from '../../agent/service/processor-share.ts';
import { ProcessorShares } from '../bench/processor-shares.ts';
import { until } from './stream.lab.ts';

t.setTimeout(300_000);
const module = join(import.meta.dirname, '../../agent/service/processor-share.ts');
/** An agent that always has work, a little at a time as a real one. */
const AGENT = `
  const { readFileSync } = await import('node:fs');
  const { ProcessorShare } = await import(${JSON.stringify(module)});
  if (!ProcessorShare.start()) process.exit(3);
  // Told by itself: a second later it may starve already.
  process.stdout.write(readFileSync(process.argv[1] + '/cpu.idle'));
  setInterval(() => { const end = performance.now() + 20; while (performance.now() < end); }, 0);
`;

const shares = ProcessorShares.make();
const skip = shares ? false : 'needs control groups of the processors';

// Red when the agent does not look whether it starves, and when it leaves idle without its weight.
t.test('idle beside others, and its weight when it does not get to run', { skip }, async (t) => {
  const [command, ...args] = [
    ...shares!.words(UNIT_NAME, CPU_WEIGHT),
    ...[process.execPath, '--disable-warning=ExperimentalWarning', '--input-type=module'],
    ...['-e', AGENT, shares!.folder(UNIT_NAME)],
  ];
  const children: ChildProcess[] = [
    spawn(command!, args, { stdio: ['ignore', 'pipe', 'inherit'] }),
  ];
  const agent = children[0]!;
  const end = () => {
    for (const child of children) child.kill('SIGKILL');
    shares!.close();
  };
  t.teardown(end);
  process.on('exit', end);
  const read = (name: string) => readFileSync(join(shares!.folder(UNIT_NAME), name), 'utf8').trim();
  if (shares!.weightFile(CPU_WEIGHT) === null) return t.pass('a kernel without idle groups');
  let told = '';
  agent.stdout!.on('data', (text) => {
    told += text;
  });
  await until('the agent to have its group', () => {
    if (agent.exitCode !== null) throw new Error(`the agent ended: ${agent.exitCode}`);
    return told;
  });
  t.equal(told.trim(), '1', 'idle at first');

  for (let n = 0; n < 2 * availableParallelism(); n++) {
    children.push(spawn('sha1sum', ['/dev/zero'], { stdio: 'ignore' }));
  }
  await until('it to claim its weight', () => read('cpu.idle') === '0', 120_000);
  const { name, value } = shares!.weightFile(CPU_WEIGHT)!;
  await until('its weight', () => read(name) === value, 10_000);
});
