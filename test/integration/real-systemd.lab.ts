/**
 * A real systemd as process 1 of namespaces of its own: processes, mounts, control groups, network. It has the machine's
 * programs (read-only) and no units but those it is given; the machine's own systemd, if there is one, sees nothing of it.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { join } from 'node:path';
import { run } from './capture.lab.ts';
import { until } from './stream.lab.ts';

const cgroup2 = (): string | undefined =>
  / (\/\S+) \S+ (?:\S+ )*- cgroup2 /.exec(fs.readFileSync('/proc/self/mountinfo', 'utf8'))?.[1];

/** Why there can be none here, or false. */
export function noSystemd(): string | false {
  if (process.getuid?.() !== 0) return 'needs root';
  const programs = [
    '/lib/systemd/systemd',
    '/usr/bin/dbus-daemon',
    '/usr/share/dbus-1/system.conf',
  ];
  if (!programs.every((path) => fs.existsSync(path))) {
    return 'needs systemd and dbus';
  }
  const at = cgroup2();
  if (!at) return 'the machine has no version 2 control groups';
  try {
    fs.accessSync(at, fs.constants.W_OK);
  } catch {
    return 'control groups cannot be made here';
  }
  return false;
}

/** systemd-run waits for its unit over the system bus. */
const UNITS: Record<string, string> = {
  'default.target': '[Unit]\nRequires=dbus.socket\n',
  'dbus.socket': '[Socket]\nListenStream=/run/dbus/system_bus_socket\n',
  'dbus.service': `[Unit]
Requires=dbus.socket
[Service]
Type=notify
NotifyAccess=main
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation
`,
};

/** Arguments: the new root, the machine's folders to show read-only. $OUT is to be seen at the same path. */
const BOOT = String.raw`
set -eu
root=$1
shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"
cd "$root"
mkdir usr etc run tmp var proc sys dev root
chmod 1777 tmp
for link in bin sbin lib lib64; do [ ! -e "/usr/$link" ] || ln -s "usr/$link" "$link"; done
for at in /usr "$@"; do
  mkdir -p "./$at"
  mount --bind "$at" "./$at"
  mount -o remount,bind,ro "./$at"
done
mkdir -p "./$OUT"
mount --bind "$OUT" "./$OUT"
cp -a /etc/passwd /etc/group /etc/nsswitch.conf /etc/ld.so.cache etc/
: >etc/machine-id
mkdir -p etc/systemd
cp -r "$OUT/units" etc/systemd/system
# The distribution's units would want the whole machine.
mount -t tmpfs tmpfs usr/lib/systemd/system
for target in sysinit basic shutdown; do
  printf '[Unit]\nDefaultDependencies=no\n' >"etc/systemd/system/$target.target"
done
mount -t proc proc proc
# What systemd sets for the whole machine is not its own to set.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --rbind /sys sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
for node in null zero full random urandom; do
  : >"dev/$node"
  mount --bind "/dev/$node" "dev/$node"
done
mkdir dev/shm
ln -s /proc/self/fd dev/fd
mkdir old
pivot_root . old
umount -l /old
exec env -i container=understudy PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
  /lib/systemd/systemd --system --show-status=no
`;

export class RealSystemd {
  readonly #pid: number;

  private constructor(pid: number) {
    this.#pid = pid;
  }

  /**
   * @param out a folder that it has in common with the machine, at the same path
   * @param show folders of the machine that it sees, read-only
   * @param units texts by name; a name with a folder is a drop-in
   */
  static async boot(
    lab: { later(undo: () => unknown): void },
    out: string,
    show: string[],
    units: Record<string, string>,
  ): Promise<RealSystemd> {
    for (const [name, text] of Object.entries({ ...UNITS, ...units })) {
      const file = join(out, 'units', name);
      fs.mkdirSync(join(file, '..'), { recursive: true });
      fs.writeFileSync(file, text);
    }
    const root = fs.mkdtempSync(join(out, 'root-'));
    const group = fs.mkdtempSync(join(cgroup2()!, 'understudy-test-'));
    lab.later(() => run('find', group, '-depth', '-type', 'd', '-exec', 'rmdir', '{}', ';'));
    const log = fs.openSync(join(out, 'systemd.log'), 'a');
    const outside = spawn(
      'sh',
      [
        '-c',
        'echo $$ >"$0/cgroup.procs" && exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup -- sh -c "$@"',
        group,
        BOOT,
        'boot',
        root,
        ...show,
      ],
      { env: { ...process.env, OUT: out }, stdio: ['ignore', log, log] },
    );
    fs.closeSync(log);
    const pid = () =>
      Number(spawnSync('pgrep', ['-P', String(outside.pid)], { encoding: 'utf8' }).stdout) || 0;
    lab.later(() => {
      const init = pid();
      if (init === 0) return;
      process.kill(init, 'SIGKILL');
      // Its control groups can be removed when all of it has ended.
      execFileSync(
        'sh',
        ['-c', 'while grep -q . "$0"/cgroup.procs "$0"/*/cgroup.procs; do sleep 0.05; done', group],
        { timeout: 10_000 },
      );
    });
    let booted: RealSystemd | undefined;
    await until(
      'systemd',
      () => {
        if (outside.exitCode !== null)
          throw new Error(fs.readFileSync(join(out, 'systemd.log'), 'utf8'));
        const init = pid();
        if (init === 0) return false;
        booted = new RealSystemd(init);
        return booted.try('systemctl', 'is-system-running').stdout.trim() === 'running';
      },
      60_000,
    );
    return booted!;
  }

  #enter = (command: string[]): string[] => ['-t', String(this.#pid), '-a', '--', ...command];

  /** Runs a command as root of that system. */
  run = (...command: string[]): string => run('nsenter', ...this.#enter(command));

  try = (...command: string[]) =>
    spawnSync('nsenter', this.#enter(command), { encoding: 'utf8', timeout: 60_000 });
}
