/** The appliance's end of one stream: appliance-process.ts as a child, asked over IPC. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import type { ApplianceAsk, ApplianceConfig } from './appliance-process.ts';

export class ApplianceEnd {
  readonly port: number;
  readonly #child: ChildProcess;
  #nextAsk = 1;
  #asked = new Map<number, (answer: unknown) => void>();

  private constructor(child: ChildProcess, port: number) {
    this.#child = child;
    this.port = port;
  }

  /** @param words before the command, such as those that give it a priority */
  static async start(
    config: ApplianceConfig,
    words: readonly string[] = [],
  ): Promise<ApplianceEnd> {
    const [command, ...args] = [
      ...words,
      process.execPath,
      '--disable-warning=ExperimentalWarning',
      ...(process.env.BENCH_PROF_APPLIANCE ? ['--cpu-prof', '--cpu-prof-dir=build/bench'] : []),
      join(import.meta.dirname, 'appliance-process.ts'),
    ];
    const child = spawn(command!, args, {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, BENCH: JSON.stringify(config) },
      cwd: join(import.meta.dirname, '../..'),
    });
    const port = await new Promise<number>((resolve, reject) => {
      child.once('exit', () => reject(new Error('the appliance process ended')));
      child.once('message', (message: { port: number }) => resolve(message.port));
    });
    const end = new ApplianceEnd(child, port);
    child.on('message', ({ id, answer, error }: { id: number; answer?: unknown; error?: string }) =>
      end.#asked.get(id)?.(error === undefined ? answer : new Error(error)),
    );
    child.once('exit', () => {
      for (const answered of [...end.#asked.values()]) {
        answered(new Error('the appliance process ended'));
      }
    });
    return end;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  ask<T>(ask: ApplianceAsk): Promise<T> {
    const id = this.#nextAsk++;
    return new Promise<T>((resolve, reject) => {
      this.#asked.set(id, (answer) => {
        this.#asked.delete(id);
        if (answer instanceof Error) reject(answer);
        else resolve(answer as T);
      });
      this.#child.send({ id, ...ask });
    });
  }

  /** Ends it; its parent's end does the same. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, 'exit');
    this.#child.disconnect();
    await ended;
  }

  kill(): void {
    this.#child.kill('SIGKILL');
  }
}
