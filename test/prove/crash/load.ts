/** Writers on the source's disks that do not overlap in flight, so that the stream alone says what the disks hold. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { endWithUs } from '../prefixes/child.ts';

export class Load {
  #running: ChildProcess[] = [];

  /** O_DIRECT, buffered and discards, each on its third of the disk. */
  start(dev: string, sizeBytes: number, seed: number): void {
    const third = Math.floor(sizeBytes / 3 / 4096) * 4096;
    const job = (name: string, n: number, ...more: string[]) => [
      `--name=${name}`,
      `--filename=${dev}`,
      `--offset=${n * third}`,
      `--size=${third}`,
      `--randseed=${seed + n}`,
      '--norandommap',
      '--refill_buffers',
      '--allow_mounted_write=1',
      '--time_based',
      '--runtime=1800',
      ...more,
    ];
    const fio = spawn(
      'fio',
      [
        // One process, so that all of it stands still at once.
        '--thread',
        '--output=/dev/null',
        ...job('direct', 0, '--rw=randwrite', '--direct=1', '--ioengine=libaio', '--iodepth=8'),
        ...['--serialize_overlap=1', '--bsrange=512-128k', '--bs_unaligned=0', '--rate=1500k'],
        ...job('buffered', 1, '--rw=randwrite', '--ioengine=psync', '--fsync=16'),
        ...['--bsrange=4k-64k', '--rate=700k'],
        ...job('trim', 2, '--rw=randtrimwrite', '--ioengine=psync', '--direct=1'),
        ...['--bs=16k', '--rate_iops=20'],
      ],
      { stdio: 'ignore' },
    );
    endWithUs(fio, 'SIGKILL');
    this.#running.push(fio);
  }

  hold(): void {
    for (const fio of this.#running) fio.kill('SIGSTOP');
  }

  goOn(): void {
    for (const fio of this.#running) fio.kill('SIGCONT');
  }

  async stop(): Promise<void> {
    await Promise.all(
      this.#running.splice(0).map(async (fio) => {
        if (fio.exitCode !== null) throw new Error(`the load ended by itself: ${fio.exitCode}`);
        const exit = once(fio, 'exit');
        fio.kill('SIGCONT');
        fio.kill('SIGINT');
        await exit;
      }),
    );
  }
}
