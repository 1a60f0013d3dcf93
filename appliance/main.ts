/** The appliance's one program. `--help` lists its settings. */
import { mkdirSync } from 'node:fs';
import { asUndError } from '../protocol/errors.ts';
import { collectLessOften } from '../protocol/garbage.ts';
import { VERSION } from '../protocol/version.ts';
import { type Outside, startAppliance } from './appliance.ts';
import { HELP, type HostSettings, readConfig, readHostSettings } from './config.ts';
import type { Hypervisor } from './hypervisor/hypervisor.ts';
import { LibvirtHypervisor } from './hypervisor/libvirt/libvirt-hypervisor.ts';
import { localTransport, sshTransport } from './hypervisor/libvirt/transport.ts';
import { SysfsDiskLocator } from './jobs/disk-locator.ts';
import { createPointServer } from './recovery/browse/point-server.ts';
import { runBrowseWorker } from './recovery/browse/worker.ts';
import { createGuestPreparer } from './recovery/prepare-guest/index.ts';
import { runPrepareWorker } from './recovery/prepare-guest/worker.ts';
import { createSourceInstaller } from './sources/installer.ts';

/** Short, because the path of a socket is; private to the service. */
const SSH_CONTROL_DIR = '/tmp/und-ssh';

/** This program again, as the process that prepares a guest in namespaces of its own. */
const PREPARE_WORKER = 'prepare-guest-worker';
/** And as the one that reads the files of a recovery point. */
const BROWSE_WORKER = 'browse-worker';

function connectHost(host: HostSettings | null): Hypervisor | null {
  if (!host) return null;
  if (host.transport === 'local') {
    return new LibvirtHypervisor(localTransport({ command: host.command }));
  }
  mkdirSync(SSH_CONTROL_DIR, { recursive: true, mode: 0o700 });
  return new LibvirtHypervisor(sshTransport({ ...host, controlDir: SSH_CONTROL_DIR }));
}

async function main(): Promise<void> {
  if (process.argv[2] === PREPARE_WORKER) return runPrepareWorker();
  if (process.argv[2] === BROWSE_WORKER) return runBrowseWorker();
  const read = readConfig(process.argv.slice(2), process.env);
  if (read.act === 'help') return void process.stdout.write(HELP);
  if (read.act === 'version') return void process.stdout.write(`${VERSION}\n`);
  collectLessOften('roomy');
  const { config } = read;
  let stopping = false;
  const stop = (exitCode: number) => {
    if (stopping) return;
    stopping = true;
    // What is under way is persisted: if closing hangs, ending hard loses nothing.
    setTimeout(() => process.exit(exitCode || 1), 30_000).unref();
    appliance.close().then(
      () => process.exit(exitCode),
      () => process.exit(1),
    );
  };
  const appliance = await startAppliance(
    config,
    (log): Outside => {
      const host = readHostSettings(config.hostFile, config.dataDir);
      if (!host) log.warn({ file: config.hostFile }, 'there is no host file yet');
      return {
        hypervisor: connectHost(host),
        locator: new SysfsDiskLocator(),
        installer: (appliance, sourceWithUuid) =>
          createSourceInstaller({ appliance, agentDir: config.agentDir, sourceWithUuid }),
        preparer: createGuestPreparer({
          workerCommand: [process.execPath, process.argv[1]!, PREPARE_WORKER],
        }),
        server: (nbd) =>
          createPointServer({
            workerCommand: [process.execPath, process.argv[1]!, BROWSE_WORKER],
            nbd,
          }),
      };
    },
    // Exit with a failure: the service manager starts it again whatever its policy.
    { logger: { level: 'info', base: null }, restart: () => stop(75) },
  );
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => stop(0));
  appliance.app.log.info({ https: appliance.httpsPort, agents: appliance.agentPort }, 'ready');
}

main().catch((thrown) => {
  const error = asUndError(thrown);
  process.stderr.write(`${error.code}: ${error.message} ${error.hint}\n`);
  if (error.code === 'UND_INTERNAL') process.stderr.write(`${(thrown as Error)?.stack ?? ''}\n`);
  process.exit(1);
});
