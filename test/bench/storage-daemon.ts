/**
 * QEMU's block layer without a VM (qemu-storage-daemon), driven over QMP: it does with image chains what the QEMU of the
 * appliance's VM does with attached disks.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { connect, type Socket } from 'node:net';
import { createInterface } from 'node:readline';
import { sleep, until } from './lab.ts';

export interface OpenNode {
  node: string;
  path: string;
}

export class StorageDaemon {
  readonly #child: ChildProcess;
  readonly #socket: Socket;
  #nextId = 1;
  #answers = new Map<number, { resolve(value: unknown): void; reject(error: Error): void }>();

  private constructor(child: ChildProcess, socket: Socket) {
    this.#child = child;
    this.#socket = socket;
  }

  /** @param socketPath short, as paths of sockets have to be */
  static async start(socketPath: string): Promise<StorageDaemon> {
    const child = spawn(
      'qemu-storage-daemon',
      [
        ...['--chardev', `socket,id=qmp,path=${socketPath},server=on,wait=off`],
        ...['--monitor', 'chardev=qmp'],
      ],
      { stdio: ['ignore', 'ignore', 'inherit'] },
    );
    await until('the storage daemon', () => {
      if (child.exitCode !== null) throw new Error('the storage daemon ended');
      return fs.existsSync(socketPath);
    });
    const socket = connect(socketPath);
    await once(socket, 'connect');
    const daemon = new StorageDaemon(child, socket);
    const lines = createInterface({ input: socket });
    // The end of the child says it.
    lines.on('error', () => {});
    lines.on('line', (line) => {
      const { id, return: value, error } = JSON.parse(line);
      const waiting = daemon.#answers.get(id);
      if (error) waiting?.reject(new Error(`${error.class}: ${error.desc}`));
      else waiting?.resolve(value);
    });
    child.once('exit', () => {
      for (const { reject } of daemon.#answers.values()) reject(new Error('it ended'));
    });
    await daemon.qmp('qmp_capabilities');
    return daemon;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  async qmp<T = unknown>(execute: string, args?: object): Promise<T> {
    const id = this.#nextId++;
    const answer = Promise.withResolvers<unknown>();
    this.#answers.set(id, answer);
    this.#socket.write(`${JSON.stringify({ execute, id, ...(args && { arguments: args }) })}\n`);
    try {
      return (await answer.promise) as T;
    } finally {
      this.#answers.delete(id);
    }
  }

  /** Opens an image with all that it rests on, past the page cache where the file system can. */
  async open(node: string, path: string, direct: boolean): Promise<void> {
    const cache = { direct };
    await this.qmp('blockdev-add', {
      ...{ driver: 'qcow2', 'node-name': node, discard: 'unmap', cache },
      file: { driver: 'file', filename: path, cache, discard: 'unmap' },
    });
  }

  /** Shows an open node as a file; an export follows its disk over snapshots. `mountpoint`: an empty file. */
  async exportFile(node: string, mountpoint: string): Promise<void> {
    await this.qmp('block-export-add', {
      ...{ type: 'fuse', id: `at-${node}`, 'node-name': node, mountpoint },
      ...{ writable: true, growable: false },
    });
  }

  /** Resolves when nothing of the export is left. */
  async endExport(node: string): Promise<void> {
    await this.qmp('block-export-del', { id: `at-${node}`, mode: 'hard' });
    await until('the export to end', async () => {
      const exports = await this.qmp<Array<{ id: string }>>('query-block-exports');
      return !exports.some(({ id }) => id === `at-${node}`);
    });
  }

  async close(node: string): Promise<void> {
    await this.qmp('blockdev-del', { 'node-name': node });
  }

  /** The qcow2 nodes that are open. */
  async nodes(): Promise<OpenNode[]> {
    const all = await this.qmp<Array<{ 'node-name': string; drv: string; file: string }>>(
      'query-named-block-nodes',
      { flat: true },
    );
    return all
      .filter(({ drv }) => drv === 'qcow2')
      .map((one) => ({ node: one['node-name'], path: one.file }));
  }

  /** Merges layer `topPath` into `basePath`, both below the open `node`, as a live merge of checkpoints does. */
  async commit(node: string, topPath: string, basePath: string): Promise<void> {
    const nodes = await this.nodes();
    const named = (path: string) => nodes.find((one) => one.path === path)!.node;
    await this.qmp('block-commit', {
      ...{ 'job-id': 'merge', device: node, 'auto-dismiss': false },
      ...{ 'top-node': named(topPath), 'base-node': named(basePath) },
    });
    for (;;) {
      const jobs =
        await this.qmp<Array<{ id: string; status: string; error?: string }>>('query-jobs');
      const job = jobs.find(({ id }) => id === 'merge');
      if (job?.status === 'concluded') {
        await this.qmp('job-dismiss', { id: 'merge' });
        if (job.error) throw new Error(job.error);
        return;
      }
      await sleep(1);
    }
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#socket.destroy();
    this.#child.kill('SIGTERM');
    await ended;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
