/**
 * The agent's end of one stream in a process of its own: real capture, mutual TLS. Configured by the environment's
 * BENCH (JSON). SIGTERM, or the end of its parent, takes the capture off the disks.
 */
import { readFileSync } from 'node:fs';
import { connect } from 'node:tls';
import { createCapture, openBlockReader } from '../../agent/capture/capture.ts';
import { ProcessorShare } from '../../agent/service/processor-share.ts';
import { SourceStream } from '../../agent/source-stream.ts';
import { PROTOCOL_VERSION } from '../../protocol/control.ts';
import { collectLessOften } from '../../protocol/garbage.ts';
import { Link } from '../../protocol/link.ts';

export interface AgentConfig {
  port: number;
  pinDir: string;
  runDir: string;
  helperPath: string;
  pem: string;
}

collectLessOften('tight');
// Where the lab has made a group for it, as the unit is one.
ProcessorShare.start();
const config = JSON.parse(process.env.BENCH!) as AgentConfig;
const pem = readFileSync(config.pem);
const helper = { helperPath: config.helperPath };
const stream = new SourceStream({
  createCapture: () => createCapture(helper),
  openReader: (path) => openBlockReader(path, helper),
  pinDir: config.pinDir,
  runDir: config.runDir,
  log: (level, text) => {
    if (process.env.BENCH_LOG || level === 'error') console.error(`# agent: ${level}: ${text}`);
  },
});

let ended = false;
function dial(): void {
  if (ended) return;
  const socket = connect({
    host: '127.0.0.1',
    port: config.port,
    key: pem,
    cert: pem,
    ca: pem,
    servername: 'bench',
  });
  socket.setNoDelay(true);
  const link = new Link(socket);
  link.once('close', () => {
    stream.disconnected();
    setTimeout(dial, 50);
  });
  link.start({
    frame: () => {},
    control: async (message) => {
      if (message.type === 'welcome') stream.connected(link);
      else await stream.control(message);
    },
  });
  link.send({
    type: 'hello',
    protocolVersion: PROTOCOL_VERSION,
    agentVersion: 'bench',
    machine: { smbiosUuid: null, diskSerials: [], bootId: 'bench', hostname: 'bench' },
    passive: null,
  });
}
dial();

const end = async () => {
  if (ended) return;
  ended = true;
  await stream.stop({ unpin: true }).catch((error) => console.error(`# agent: ${error}`));
  process.exit(0);
};
process.on('SIGTERM', end);
process.on('disconnect', end);
