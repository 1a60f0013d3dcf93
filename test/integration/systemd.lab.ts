/** systemd's units, for agents that must not stop those of the machine that the tests run on. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { execa } from 'execa';
import type { Systemctl } from '../../agent/service/uninstall.ts';

/** A systemctl that keeps its units as files and writes down what it was asked to do. */
export class StandInSystemd {
  readonly dir: string;
  /** Called when the machine is to power off. */
  onPowerOff: () => void = () => {};
  constructor(dir: string) {
    this.dir = dir;
    mkdirSync(dir, { recursive: true });
    for (const unit of ['postgresql.service', 'nginx.service']) this.#set(unit, 'active');
    this.#set('cron.service', 'inactive');
    writeFileSync(
      join(dir, 'systemctl'),
      `#!/bin/sh
cd '${dir}' || exit 1
echo "$*" >>calls
[ ! -e "refuse-$1" ] || { echo "Job failed" >&2; exit 1; }
case "$1" in
show) if [ -e "$3" ]; then echo LoadState=loaded; echo "ActiveState=$(cat "$3")"
  else echo LoadState=not-found; echo ActiveState=inactive; fi ;;
stop) echo inactive >"$2" ;;
start) echo active >"$2" ;;
esac
`,
      { mode: 0o755 },
    );
  }

  #set(unit: string, state: string): void {
    writeFileSync(join(this.dir, unit), state);
  }

  refuse(verb: string): void {
    writeFileSync(join(this.dir, `refuse-${verb}`), '');
  }

  run: Systemctl = async (...args) => {
    const { failed, all } = await execa(join(this.dir, 'systemctl'), args, {
      reject: false,
      all: true,
    });
    if (args[0] === 'poweroff') this.onPowerOff();
    return { ok: !failed, text: all ?? '' };
  };

  state = (unit: string): string => readFileSync(join(this.dir, unit), 'utf8').trim();

  /** Without looking. */
  acts(): string[] {
    if (!existsSync(join(this.dir, 'calls'))) return [];
    const calls = readFileSync(join(this.dir, 'calls'), 'utf8').trim().split('\n');
    return calls.filter((call) => !call.startsWith('show'));
  }
}
