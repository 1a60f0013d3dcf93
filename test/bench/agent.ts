/**
 * What the agent takes of a source server: memory, processor while nothing happens and under writes, and what is sent to
 * install it. The agent is the product's, bundled, with its unit's limits for Node; the disk is a loop device.
 *
 * --set idleSeconds=N loadSeconds=N diskMiB=N archive=no writes=64k rate=100M (per second)
 */
// apt: fio util-linux openssl
import fs from 'node:fs';
import { join } from 'node:path';
import { type Bench, row } from './frame.ts';
import { BenchLab, MIB, run, sleep, usage } from './lab.ts';
import { fio } from './loads.ts';

const bench: Bench = {
  summary: 'what the agent takes of a source server',
  hasQuick: true,
  async *run({ short, quick, set, progress }) {
    const idleSeconds = Number(set.idleSeconds ?? (short ? 2 : quick ? 10 : 60));
    const { writes = '64k', rate = '100M' } = set;
    const loadSeconds = Number(set.loadSeconds ?? (short ? 1 : quick ? 10 : 20));
    const lab = new BenchLab({
      medium: 'memory',
      priority: 'unit',
      diskMiB: Number(set.diskMiB ?? (short ? 64 : 512)),
    });
    try {
      await lab.startAppliance();
      await lab.startAgent();
      const pids = { agent: lab.agentPid, helper: lab.helperPid };
      const cpu = () => usage(pids.agent).cpuSeconds + usage(pids.helper).cpuSeconds;
      // What the first mirror left to collect is no idling.
      await sleep(short ? 0 : 5_000);
      let before = cpu();
      progress(`idle for ${idleSeconds} s`);
      await sleep(idleSeconds * 1000);
      yield row({
        figure: 'processor time of agent and helper, idle',
        value: ((cpu() - before) / idleSeconds) * 100,
        unit: '%',
        goal: { atMost: 1 },
        note: `over ${idleSeconds} s, of one processor`,
      });
      const most = { agent: 0, helper: 0 };
      const timer = setInterval(() => {
        most.agent = Math.max(most.agent, usage(pids.agent).rssBytes);
        most.helper = Math.max(most.helper, usage(pids.helper).anonBytes);
      }, 100);
      before = cpu();
      progress(`writes for ${loadSeconds} s`);
      const { bytesPerSec } = await fio(lab.dev, loadSeconds, [
        '--rw=randwrite',
        `--bs=${writes}`,
        '--iodepth=4',
        `--rate=${rate}`,
      ]);
      clearInterval(timer);
      const { agent } = await lab.state();
      yield row({
        figure: 'processor time of agent and helper per GB written',
        value: (cpu() - before) / ((bytesPerSec * loadSeconds) / 1e9),
        unit: 's',
        note: `${writes} random writes at ${(bytesPerSec / 1e6).toFixed(0)} MB/s`,
      });
      yield row({
        figure: 'memory of agent and helper beside the ring, at most',
        value: (most.agent + most.helper) / MIB,
        unit: 'MiB',
        goal: { atMost: 200 },
        note: `agent ${(most.agent / MIB).toFixed(0)}, helper ${(most.helper / MIB).toFixed(0)}, under these writes`,
      });
      yield row({
        figure: 'ring',
        value: (agent?.ringBytes ?? 0) / MIB,
        unit: 'MiB',
        against: {
          what: "a 64th of the machine's memory",
          value: memoryBytes() / 64 / MIB,
        },
      });
    } finally {
      await lab.close();
    }
    if (set.archive === 'no' || short) return;
    progress('building the agent');
    run('scripts/build-agent');
    const archive = join(import.meta.dirname, '../../build/agent/understudy-agent.tar.zst');
    yield row({
      figure: 'what is sent to install it, compressed',
      value: fs.statSync(archive).size / MIB,
      unit: 'MiB',
      goal: { atMost: 45 },
    });
  },
};

const memoryBytes = (): number =>
  Number(/MemTotal:\s+(\d+)/.exec(fs.readFileSync('/proc/meminfo', 'utf8'))![1]) * 1024;

export default bench;
