/**
 * Stands in for `understudy-capture` on the host: runs it in the guest with the same arguments and joins its pipes to
 * ours over virtio ports, so that the product's own client drives the helper on the guest's kernel.
 *
 * Usage: bridge.ts SOCKET_FOLDER run|read|freeze ARGS...
 */
import { connect, Socket } from 'node:net';
import { join } from 'node:path';

const [folder = '', ...args] = process.argv.slice(2);
const port = args[0] ?? '';

const open = (name: string): Promise<Socket> =>
  new Promise((resolve, reject) => {
    const socket = connect(join(folder, name));
    socket.once('error', reject);
    socket.once('connect', () => resolve(socket));
  });

const launch = await open(port);
const input = await open(`${port}.in`);
const output = await open(`${port}.out`);
const control = port === 'run' ? await open(`${port}.ctl`) : undefined;

process.stdin.on('data', (chunk) => {
  if (!input.write(chunk)) {
    process.stdin.pause();
    input.once('drain', () => process.stdin.resume());
  }
});
// The guest's port reads as ended when nobody is connected to it here.
process.stdin.on('end', () => input.end(() => input.destroy()));
input.on('error', () => {});
output.pipe(process.stdout);
const ours = control && new Socket({ fd: 3, writable: true });
if (control && ours) control.pipe(ours);

const quoted = args.map((arg) => `'${arg}'`).join(' ');
const pipes = `</run/ports/${port}.in >/run/ports/${port}.out`;
const third = control ? ` 3>/run/ports/${port}.ctl` : '';
launch.write(`understudy-capture ${quoted} ${pipes}${third}\n`);

let said = '';
for await (const chunk of launch) {
  said += chunk;
  const exit = /^##EXIT (\d+)$/m.exec(said);
  if (!exit) continue;
  // What the helper wrote before it ended has reached our sockets: a port's write returns when the host has taken it.
  const read = () => output.bytesRead + (control?.bytesRead ?? 0);
  for (let before = -1; before !== read(); ) {
    before = read();
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  process.stderr.write(said.slice(0, exit.index));
  for (const stream of [process.stdout, ours]) {
    if (stream) await new Promise((resolve) => stream.write('', resolve));
  }
  process.exit(Number(exit[1]));
}
process.exit(1);
