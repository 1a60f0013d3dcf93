/**
 * A source server to push to, without a VM: a copy-on-write view of this machine's root in namespaces of its own, with
 * a real sshd on loopback, real sudo, throw-away users, an empty BPF file system, and a stand-in for systemctl that
 * runs what the unit says. Nothing of it reaches the machine itself; it ends with its first process.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, truncateSync, writeFileSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { SshAccess } from '../../appliance/control/agent-session.ts';
import { fingerprintOf } from '../../appliance/sources/ssh.ts';

export const PASSWORD = 'correct horse 7';
const DISK_BYTES = 64 * 1024 * 1024;

const SYSTEMCTL = `#!/bin/sh
# Stand-in: one unit, run without systemd. Knows just what installing an agent asks for.
unit=/etc/systemd/system/understudy-agent.service
pidfile=/run/agent.pid
now=no
block=yes
verb=
for a in "$@"; do
  case $a in --now) now=yes ;; --no-block) block=no ;; -*) ;; *) [ -n "$verb" ] || verb=$a ;; esac
done
echo "systemctl $*" >>/run/systemctl.log
# A process that has ended stays as a zombie here: sshd is the first process and does not wait for strangers.
alive() { [ -s $pidfile ] && grep -q '^State:[[:space:]]*[^Z]' "/proc/$(cat $pidfile)/status" 2>/dev/null; }
stop() {
  alive || return 0
  kill "$(cat $pidfile)"
  [ $block = yes ] || return 0
  i=0
  while alive && [ $i -lt 100 ]; do sleep 0.1; i=$((i + 1)); done
  rm -f $pidfile
}
case $verb in
  enable)
    [ -e $unit ] || exit 1
    mkdir -p /etc/systemd/system/multi-user.target.wants
    ln -sf $unit /etc/systemd/system/multi-user.target.wants/understudy-agent.service ;;
  disable)
    rm -f /etc/systemd/system/multi-user.target.wants/understudy-agent.service
    [ $now = no ] || stop ;;
  stop) stop ;;
  restart | start)
    stop
    [ ! -e /run/refuse-start ] || { echo 'Job for understudy-agent.service failed'; exit 1; }
    run=$(sed -n 's/^ExecStart=//p' $unit)
    rm -f $pidfile
    setsid env LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin sh -c 'echo $$ >/run/agent.pid; exec "$0" "$@"' $run \\
      >>/run/agent.log 2>&1 </dev/null & 
    i=0
    while [ ! -s $pidfile ] && [ $i -lt 300 ]; do sleep 0.1; i=$((i + 1)); done ;;
  is-active) alive ;;
  is-failed) ! alive ;;
esac
`;

const JOURNALCTL = '#!/bin/sh\ntail -n 3 /run/agent.log\n';

const INIT = `
set -e
lab=$1 port=$2
mount --make-rprivate /
mkdir -p $lab/fs
mount -t tmpfs -o size=1g tmpfs $lab/fs
mkdir $lab/fs/upper $lab/fs/work $lab/fs/root
root=$lab/fs/root
mount -t overlay overlay -o lowerdir=/,upperdir=$lab/fs/upper,workdir=$lab/fs/work $root
mount -t proc proc $root/proc
mount --rbind /sys $root/sys
mount -t bpf bpf $root/sys/fs/bpf
mount --rbind /dev $root/dev
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mount -t tmpfs tmpfs $root/var/tmp
mkdir -p $root/run/sshd $root/run/systemd/system $root/var/tmp
chmod 1777 $root/tmp $root/var/tmp
rm -rf $root/usr/lib/understudy $root/var/lib/understudy-agent
install -m 0755 $lab/systemctl $lab/journalctl $lab/lsblk $root/usr/bin/
for user in admin nopass nosudo; do
  chroot $root useradd --create-home --shell /bin/bash $user
  echo "$user:$(cat $lab/password)" | chroot $root chpasswd
done
mkdir -p $root/etc/sudoers.d
printf 'admin ALL=(ALL) ALL\\nnopass ALL=(ALL) NOPASSWD: ALL\\nDefaults !fqdn\\n' >$root/etc/sudoers.d/lab
chmod 0440 $root/etc/sudoers.d/lab
install -d -m 0700 -o $(chroot $root id -u nopass) $root/home/nopass/.ssh
install -m 0600 -o $(chroot $root id -u nopass) $lab/user_key.pub $root/home/nopass/.ssh/authorized_keys
cp $lab/host_key $root/etc/ssh/lab_host_key
chmod 0600 $root/etc/ssh/lab_host_key
cat >$root/etc/ssh/lab_config <<EOF
Port $port
ListenAddress 127.0.0.1
HostKey /etc/ssh/lab_host_key
PasswordAuthentication yes
KbdInteractiveAuthentication no
PermitRootLogin no
UsePAM no
PidFile none
MaxStartups 100
Subsystem sftp internal-sftp
EOF
exec chroot $root /usr/sbin/sshd -D -e -f /etc/ssh/lab_config
`;

/** The server's one disk: a real block device, so that the capture can be tried on it. */
function makeDisk(dir: string): string {
  const image = join(dir, 'disk.img');
  writeFileSync(image, '');
  truncateSync(image, DISK_BYTES);
  return execFileSync('losetup', ['--find', '--show', image], { encoding: 'utf8' }).trim();
}

/** A loop device is no disk to protect; here it goes by the name of one. */
const lsblkOf = (loop: string): string =>
  JSON.stringify({
    blockdevices: [
      {
        name: 'sdx',
        kname: 'sdx',
        path: loop,
        'maj:min': `7:${loop.replace('/dev/loop', '')}`,
        fstype: null,
        label: null,
        uuid: null,
        ptuuid: null,
        pttype: null,
        ro: false,
        rm: false,
        model: 'LAB',
        serial: 'LAB-0001',
        size: DISK_BYTES,
        type: 'disk',
        tran: null,
        wwn: null,
        zoned: 'none',
        mountpoint: null,
      },
    ],
  }); // prettier-ignore

export async function freePort(): Promise<number> {
  const server = createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

/** Polls until `check` is true. */
export async function until(
  what: string,
  check: () => Promise<boolean> | boolean,
  limitMs = 180_000,
) {
  const end = Date.now() + limitMs;
  for (;;) {
    if (await check()) return;
    if (Date.now() > end) throw new Error(`waited ${limitMs} ms in vain for: ${what}`);
    await sleep(100);
  }
}

const ROOT = join(import.meta.dirname, '../..');

export class FakeServer {
  readonly port: number;
  readonly dir: string;
  readonly hostKeyFingerprint: string;
  readonly userKey: string;
  readonly loop: string;
  readonly #child: ChildProcess;
  #log = '';
  /** What has the product's name on this machine, whose files are seen over there. */
  #ownTraces: string[] = [];

  private constructor(
    port: number,
    dir: string,
    fingerprint: string,
    userKey: string,
    loop: string,
    child: ChildProcess,
  ) {
    this.port = port;
    this.dir = dir;
    this.hostKeyFingerprint = fingerprint;
    this.userKey = userKey;
    this.loop = loop;
    this.#child = child;
  }

  static async start(): Promise<FakeServer> {
    const dir = mkdtempSync('/var/tmp/understudy-push-lab.');
    const port = await freePort();
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, 'host_key')]);
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, 'user_key')]);
    const publicKey = execFileSync('cat', [join(dir, 'host_key.pub')], { encoding: 'utf8' });
    const userKey = execFileSync('cat', [join(dir, 'user_key')], { encoding: 'utf8' });
    writeFileSync(join(dir, 'systemctl'), SYSTEMCTL);
    writeFileSync(join(dir, 'journalctl'), JOURNALCTL);
    writeFileSync(join(dir, 'password'), PASSWORD);
    const loop = makeDisk(dir);
    writeFileSync(join(dir, 'lsblk'), `#!/bin/sh\ncat <<'EOF'\n${lsblkOf(loop)}\nEOF\n`);
    writeFileSync(join(dir, 'init'), INIT);
    const child = spawn(
      'unshare',
      ['--mount', '--pid', '--fork', '--kill-child', 'sh', join(dir, 'init'), dir, String(port)],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    const fingerprint = fingerprintOf(Buffer.from(publicKey.split(' ')[1]!, 'base64'));
    const server = new FakeServer(port, dir, fingerprint, userKey, loop, child);
    for (const stream of [child.stdout, child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        server.#log += text;
      });
    }
    try {
      await until(`sshd on port ${port}`, () => {
        if (child.exitCode !== null) throw new Error(`the lab ended: ${server.#log}`);
        return server.#log.includes('Server listening');
      });
    } catch (error) {
      await server.close();
      throw error;
    }
    server.#ownTraces = server.traces();
    return server;
  }

  target(over: Partial<SshAccess> = {}): SshAccess {
    return {
      address: '127.0.0.1',
      port: this.port,
      username: 'admin',
      password: PASSWORD,
      knownHostKey: this.hostKeyFingerprint,
      ...over,
    };
  }

  /** Runs a shell command as root over there. */
  sh(command: string): string {
    const pid = execFileSync('pgrep', ['-P', String(this.#child.pid)], { encoding: 'utf8' }).trim();
    return execFileSync(
      'nsenter',
      ['-t', pid, '-m', '-p', 'chroot', join(this.dir, 'fs/root'), 'sh', '-c', command],
      { encoding: 'utf8' },
    );
  }

  /** Every path over there that has to do with the product, was not there at the start, and is not this very folder's. */
  traces(): string[] {
    const found = this.sh(
      `find /usr/lib /usr/bin /etc /var /run /root /home /opt /tmp /sys/fs/bpf -xdev -path '${ROOT}' -prune -o \\( -iname '*understudy*' -o -path '*/understudy*' \\) -print 2>/dev/null; true`,
    );
    return found.split('\n').filter((path) => path && !this.#ownTraces.includes(path));
  }

  async close(): Promise<void> {
    if (this.#child.exitCode === null) {
      const ended = once(this.#child, 'exit');
      // Its first process: with it go all of the namespace's.
      try {
        execFileSync('pkill', ['-KILL', '-P', String(this.#child.pid)]);
      } catch {
        this.#child.kill('SIGKILL');
      }
      await ended;
    }
    const { loop } = this;
    execFileSync('losetup', ['--detach', loop]);
    await rm(this.dir, { recursive: true, force: true });
  }
}
