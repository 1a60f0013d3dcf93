/**
 * The appliance image, booted once on its own: it takes its settings from the CD-ROM and its data disk, its service
 * answers, and it looks into no replica disk, whatever that holds. Builds the image when it is not up to date. Needs root.
 */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { PREPARE_PROGRAMS } from '../../appliance/recovery/prepare-guest/programs.ts';
import { ROOT, waitFor } from './hypervisor-lab.ts';

// An emulated processor on a busy machine takes minutes; building the image takes more.
t.setTimeout(20 * 60_000);

const freePort = (): Promise<number> =>
  new Promise((resolve, reject) => {
    const server = createServer();
    server.on('error', reject);
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });

await execa('bash', ['-c', '. scripts/lib/env.sh; apt_need genisoimage curl openssl gdisk'], {
  cwd: ROOT,
});
await execa(join(ROOT, 'scripts/build-images'), ['appliance'], {
  stdout: 'ignore',
  stderr: 'inherit',
});
const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
const { stdout: virtType } = await execa(
  'bash',
  ['-c', '. scripts/lib/env.sh; . scripts/lib/lab.sh; lab_virt_type'],
  { cwd: ROOT },
);

const work = await mkdtemp(join(tmpdir(), 'image-boot-'));
t.teardown(() => rm(work, { recursive: true, force: true }));
const qcow2 = async (name: string, ...args: string[]) => {
  await execa('qemu-img', ['create', '-q', '-f', 'qcow2', join(work, name), ...args]);
  return join(work, name);
};
const system = await qcow2(
  'system.qcow2',
  '-F',
  'qcow2',
  '-b',
  join(ROOT, `build/images/understudy-appliance-${version}.qcow2`),
);
const data = await qcow2('data.qcow2', '4G');

/** A replica that would be taken for the appliance's own data disk, by label, if anybody looked. */
async function replica(name: string): Promise<string> {
  const raw = join(work, `${name}.raw`);
  await execa('truncate', ['-s', '64M', raw]);
  await execa('sgdisk', ['--new=1:1M:+40M', raw]);
  await execa('mkfs.ext4', [
    '-q',
    '-F',
    '-L',
    'understudy-data',
    '-E',
    'offset=1048576',
    raw,
    '40M',
  ]);
  return raw;
}
const replicas = {
  u00000000000000000a1: await replica('a'),
  u00000000000000000b2: await replica('b'),
};

await execa('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(work, 'key')]);
const cd = join(work, 'cd');
await mkdir(join(cd, 'host'), { recursive: true });
await writeFile(
  join(cd, 'network'),
  'HOSTNAME=boot-test\nADDRESS=10.0.2.77/24\nGATEWAY=10.0.2.2\nDNS=10.0.2.3\n',
);
await writeFile(join(cd, 'authorized_keys'), await readFile(join(work, 'key.pub')));
await execa('genisoimage', ['-quiet', '-R', '-V', 'UNDERSTUDY', '-o', join(work, 'cd.iso'), cd]);

const [sshPort, httpsPort] = [await freePort(), await freePort()];
const serial = join(work, 'serial.log');
const disk = (id: string, file: string, format: string) => [
  '-drive',
  `file=${file},if=none,id=${id},format=${format},cache=unsafe`,
];
const qemu = spawn(
  'qemu-system-x86_64',
  [
    ...[
      '-machine',
      'q35',
      '-accel',
      virtType === 'kvm' ? 'kvm' : 'tcg,thread=multi',
      '-cpu',
      'max',
      '-smp',
      '2',
      '-m',
      '1024',
    ],
    ...['-display', 'none', '-no-reboot', '-serial', `file:${serial}`, '-qmp', 'stdio'],
    ...(virtType === 'kvm' ? [] : ['-smbios', 'type=11,value=understudy-emulated']),
    ...[
      '-netdev',
      `user,id=n,restrict=on,hostfwd=tcp:127.0.0.1:${sshPort}-10.0.2.77:22,hostfwd=tcp:127.0.0.1:${httpsPort}-10.0.2.77:443`,
    ],
    ...['-device', 'virtio-net-pci,netdev=n'],
    ...[...disk('system', system, 'qcow2'), '-device', 'virtio-blk-pci,drive=system,bootindex=1'],
    ...[
      ...disk('data', data, 'qcow2'),
      '-device',
      'virtio-blk-pci,drive=data,serial=understudy-data',
    ],
    ...['-device', 'virtio-scsi-pci,id=scsi'],
    ...[
      '-drive',
      `file=${join(work, 'cd.iso')},if=none,id=cd,format=raw,readonly=on`,
      '-device',
      'scsi-cd,drive=cd',
    ],
    ...[
      ...disk('ra', replicas.u00000000000000000a1, 'raw'),
      '-device',
      'scsi-hd,drive=ra,serial=u00000000000000000a1',
    ],
    ...disk('rb', replicas.u00000000000000000b2, 'raw'),
  ],
  { stdio: ['pipe', 'ignore', 'inherit'] },
);
t.teardown(() => {
  qemu.kill('SIGKILL');
});
let ended = false;
qemu.on('close', () => {
  ended = true;
});

const ssh = async (command: string): Promise<string> => {
  const options = [
    'BatchMode=yes',
    'StrictHostKeyChecking=no',
    'UserKnownHostsFile=/dev/null',
    'LogLevel=ERROR',
    'ConnectTimeout=60',
  ];
  const { stdout } = await execa('ssh', [
    ...['-i', join(work, 'key'), '-p', String(sshPort), ...options.flatMap((o) => ['-o', o])],
    ...['root@127.0.0.1', command],
  ]);
  return stdout;
};
const page = async (path: string): Promise<string> =>
  (await execa('curl', ['-ksSf', '--max-time', '60', `https://127.0.0.1:${httpsPort}${path}`]))
    .stdout;

try {
  await waitFor(
    'the page of the booted appliance',
    async () => {
      if (ended) throw new Error('QEMU has ended');
      return (await page('/api/ca.pem')).includes('BEGIN CERTIFICATE');
    },
    10 * 60_000,
  );
} catch (error) {
  console.error(await readFile(serial, 'utf8').catch(() => 'no serial log'));
  throw error;
}

t.test(
  'the console tells the address, the fingerprint of the CA and the first password',
  async (t) => {
    await writeFile(join(work, 'ca.pem'), await page('/api/ca.pem'));
    const { stdout } = await execa('openssl', [
      'x509',
      '-in',
      join(work, 'ca.pem'),
      '-noout',
      '-fingerprint',
      '-sha256',
    ]);
    const banner = await waitFor('the first password on the serial console', async () => {
      const text = await readFile(serial, 'utf8');
      return /First login: +admin \/ \S+/.test(text) && text;
    });
    t.match(banner, 'The page:     https://10.0.2.77/');
    t.match(banner, `CA SHA-256:   ${stdout.split('=')[1]}`);
  },
);

// The path unit is deaf while the banner is drawn. Red when the timer is stopped with it.
t.test('the console tells an address that no file told of', async (t) => {
  await ssh('systemctl stop understudy-banner.path');
  await ssh(
    'ip addr add 10.0.2.78/24 dev $(ip -o route get 10.0.2.2 | sed "s/.* dev //; s/ .*//")',
  );
  const banner = await waitFor('the new address on the serial console', async () => {
    const text = await readFile(serial, 'utf8');
    return text.includes('https://10.0.2.78/') && text;
  });
  t.match(banner, 'https://10.0.2.78/');
  await ssh('systemctl start understudy-banner.path');
});

t.test('the settings of the CD-ROM are taken and kept on the data disk', async (t) => {
  t.equal(
    await ssh('hostname; findmnt -nro SOURCE,FSTYPE /var/lib/understudy'),
    'boot-test\n/dev/vdb ext4',
  );
  t.match(await ssh('cat /var/lib/understudy/system/network'), 'ADDRESS=10.0.2.77/24');
  t.match(await ssh('ip -br addr show scope global'), '10.0.2.77/24');
});

t.test('no unit has failed', async (t) => {
  t.equal(await ssh('systemctl --failed --plain --no-legend'), '');
});

// Red without mtools in the image, for one.
t.test('every program that guest preparation starts is there', async (t) => {
  for (const program of Object.keys(PREPARE_PROGRAMS)) {
    t.match(await ssh(`command -v ${program} || true`), new RegExp(`/${program}$`), program);
  }
});

t.test('nothing of the build is left: no key, no identity', async (t) => {
  const places =
    '/root/.ssh /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d/packer.conf /etc/apt/apt.conf.d/99mmdebstrap';
  t.equal(await ssh(`find ${places} -type f 2>/dev/null || true`), '');
  t.equal(await ssh('cat /etc/apt/sources.list; ls -A /etc/apt/sources.list.d'), '');
});

async function unseen(t: import('tap').Test, serialNumber: string): Promise<void> {
  const link = `/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_${serialNumber}`;
  const name = await waitFor(
    `the link ${link}`,
    async () =>
      (await ssh(`readlink -e ${link}-part1`)) && (await ssh(`basename $(readlink -e ${link})`)),
  );
  for (const device of [name, `${name}1`]) {
    const properties = await ssh(`udevadm settle; udevadm info -q property /dev/${device}`);
    t.match(properties, /^SYSTEMD_READY=0$/m);
    t.notMatch(properties, /^ID_FS_|^ID_PART_TABLE/m, `${device} was not looked into`);
    t.notMatch(
      await ssh(`ls /run/udev/watch`),
      new RegExp(`^b${await ssh(`lsblk -dno MAJ:MIN /dev/${device} | tr -d ' '`)}$`, 'm'),
    );
  }
  const links = await ssh(
    'ls -l /dev/disk/by-label /dev/disk/by-uuid /dev/disk/by-partuuid 2>/dev/null || true',
  );
  t.notMatch(links, new RegExp(`/${name}`));
}

t.test('a replica disk that is there at boot is not looked into', (t) =>
  unseen(t, 'u00000000000000000a1'),
);

t.test('a replica disk that is attached later is not looked into', async (t) => {
  for (const command of [
    { execute: 'qmp_capabilities' },
    {
      execute: 'device_add',
      arguments: { driver: 'scsi-hd', drive: 'rb', id: 'late', serial: 'u00000000000000000b2' },
    },
  ]) {
    qemu.stdin.write(`${JSON.stringify(command)}\n`);
  }
  await unseen(t, 'u00000000000000000b2');
});

t.test(
  'the service runs with few rights: replica disks may be opened, the system disk may not',
  async (t) => {
    const pid = await ssh('systemctl show -p MainPID --value understudy-appliance');
    t.match(
      await ssh(`grep -E 'NoNewPrivs|Seccomp:' /proc/${pid}/status`),
      /NoNewPrivs:\t1\nSeccomp:\t2/,
    );
    // In its cgroup and with its mounts, as the service itself would do it.
    const inside = (command: string) =>
      ssh(
        `sh -c 'echo $$ >/sys/fs/cgroup/system.slice/understudy-appliance.service/cgroup.procs; exec nsenter -t ${pid} -m ${command}' 2>&1 || true`,
      );
    t.match(await inside('dd if=/dev/sda of=/dev/null bs=4k count=1'), /1\+0 records out/);
    t.match(await inside('dd if=/dev/vda of=/dev/null bs=4k count=1'), /Operation not permitted/);
    t.match(await inside('touch /usr/lib/understudy/x'), /Read-only file system/);
  },
);
