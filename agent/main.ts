/** The agent's one executable. `understudy-agent help` lists what it does. */

import { dirname } from 'node:path';
import { undError } from '../protocol/errors.ts';
import { collectLessOften } from '../protocol/garbage.ts';
import { AgentState, agentPaths, UNIT_NAME } from './config.ts';
import { enrol } from './enrol/enrol.ts';
import { machineIdentity } from './inventory/machine.ts';
import { takeInventory } from './inventory/take.ts';
import { OwedPosts } from './quiesce/owed.ts';
import { ensureHelper } from './service/helper.ts';
import { inWords, log } from './service/log.ts';
import { agentPreflight } from './service/preflight.ts';
import { ProcessorShare } from './service/processor-share.ts';
import { AgentService } from './service/run.ts';
import { createStream } from './service/stream.ts';
import { removeTraces, systemctl, uninstall } from './service/uninstall.ts';
import { EXIT_NOT_ENROLLED } from './service/unit.ts';
import { AGENT_VERSION } from './version.ts';

const HELP = `understudy-agent: replicates this server's disks to its recovery appliance

  run         the service (started by systemd)
  enrol       use the ticket in the state folder now, and end
  inventory   print what this server is and has, as JSON
  settle      call the post-hooks that an agent owes that has ended (by systemd, at its end)
  preflight   print what would keep the agent from working here, as JSON
  uninstall   stop the service and remove every trace of the agent
  version     print the version
`;

const print = (value: unknown) => process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);

/** Tests run the agent with its state in a folder of their own. */
const paths = agentPaths(process.env.UNDERSTUDY_AGENT_ROOT ?? '');
const state = new AgentState(paths.stateDir);
const owed = new OwedPosts({ ...paths, log });

async function run(): Promise<number> {
  collectLessOften('tight');
  // Without its helper the agent still connects: the appliance learns from it what is wrong.
  const helper = await ensureHelper(paths.programDir).catch((error) => {
    log('error', inWords(error));
    return undefined;
  });
  const share = ProcessorShare.start();
  const service = new AgentService({
    state,
    log,
    createStream: (log) => createStream(paths, helper, share, owed, log),
    machine: machineIdentity,
    inventory: takeInventory,
    removeTraces: () => removeTraces(paths, systemctl, owed),
  });
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => service.stop());
  log('info', `understudy-agent ${AGENT_VERSION} starts`);
  // Not awaited: the capture must go on meanwhile. Points wait for it.
  void owed.settle();
  const ended = await service.run();
  if (ended.kind === 'not-enrolled') {
    log('error', inWords(ended.error));
    return EXIT_NOT_ENROLLED;
  }
  // The unit is gone by now: end what systemd still runs, so that it does not start it again.
  if (ended.kind === 'uninstalled') await systemctl('stop', '--no-block', UNIT_NAME);
  return 0;
}

async function main(command: string | undefined): Promise<number> {
  switch (command) {
    case 'run':
      return run();
    case 'enrol': {
      const ticket = await state.ticket();
      if (!ticket) throw undError('UND_AGENT_NOT_ENROLLED');
      const identity = await enrol(ticket, await machineIdentity());
      await state.putIdentity(identity);
      await state.dropTicket();
      print({ sourceId: identity.sourceId });
      return 0;
    }
    case 'inventory':
      print(await takeInventory());
      return 0;
    case 'preflight': {
      // Before the installation the executable and its ticket lie in a folder of their own.
      const here = process.execPath.endsWith('/understudy-agent')
        ? dirname(process.execPath)
        : null;
      const ticket = here ? await new AgentState(here).ticket() : null;
      const checks = await agentPreflight(
        { ...paths, programDir: here ?? paths.programDir },
        ticket ?? (await state.ticket()) ?? (await state.identity()),
      );
      const ok = checks.every((check) => check.result !== 'failed');
      print({ version: AGENT_VERSION, ok, checks });
      return 0;
    }
    case 'settle':
      await owed.settle();
      return 0;
    case 'uninstall':
      await uninstall(paths);
      return 0;
    case 'version':
    case '--version':
      process.stdout.write(`${AGENT_VERSION}\n`);
      return 0;
    case 'help':
    case '--help':
      process.stdout.write(HELP);
      return 0;
    default:
      process.stderr.write(HELP);
      return 2;
  }
}

main(process.argv[2]).then(
  (code) => process.exit(code),
  (error) => {
    process.stderr.write(`${inWords(error)}\n`);
    process.exit(1);
  },
);
