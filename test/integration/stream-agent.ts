/** An agent's stream in a process of its own, so that it can be killed: PORT PINDIR RUNDIR [skip]. */
import { createCapture, freeze, openBlockReader } from '../../agent/capture/capture.ts';
import { openFileMap } from '../../agent/capture/file-map.ts';
import { checkNow, findUnneeded, type UnneededEdges } from '../../agent/mirror/unneeded.ts';
import { PlainAgent } from './stream.lab.ts';

const [port, pinDir, runDir, skip] = process.argv.slice(2) as [string, string, string, string?];
const edges: UnneededEdges = {
  openReader: (path) => openBlockReader(path),
  openFileMap,
  freeze,
  log: (level, text) => agent.logs.push(`${level}: ${text}`),
};
const agent: PlainAgent = new PlainAgent(Number(port), {
  createCapture: () => createCapture(),
  openReader: (path) => openBlockReader(path),
  pinDir,
  runDir,
  // Without it a replica is the source byte for byte, which most tests want to see.
  unneeded:
    skip === 'skip'
      ? (devicePath, sizeBytes, exclusions) =>
          findUnneeded(devicePath, sizeBytes, exclusions, edges)
      : undefined,
  checkExcluded: (files, exclusions) => checkNow(files, exclusions, edges),
});
process.on('SIGTERM', async () => {
  await agent.kill();
  process.exit(0);
});
if (process.env.STREAM_LOG) {
  let shown = 0;
  setInterval(() => {
    for (const line of agent.logs.slice(shown))
      process.stderr.write(`# agent ${process.pid}: ${line}\n`);
    shown = agent.logs.length;
  }, 100).unref();
}
