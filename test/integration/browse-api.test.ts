/**
 * A recovery point opened for reading through the whole appliance: the files are those of the chosen moment, only operators
 * may read them, each download is on record, replication goes on, and nothing is left, also after a restart. Needs root.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { request } from 'node:https';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import t from 'tap';
import type {
  AuditEntry,
  Checkpoint,
  Failover,
  FileListing,
  Job,
} from '../../appliance/api/schema.ts';
import { loopsOf } from '../../appliance/recovery/prepare-guest/loops.ts';
import { Lab, PASSWORD, until } from './api.lab.ts';

const MIB = 1024 * 1024;
const PATIENT_MS = 120_000;
t.setTimeout(600_000);
const lab = new Lab();
const work = mkdtempSync(join(tmpdir(), 'und-files-'));
t.teardown(async () => {
  await lab.close();
  for (const loop of devices.values()) sh('losetup', '-d', loop);
  rmSync(work, { recursive: true, force: true });
});

const sh = (command: string, ...args: string[]): string =>
  execFileSync(command, args, { encoding: 'utf8' }).trim();

/** Overlays as devices, as the appliance has them: the isolated process sees no files of the appliance. */
const devices = new Map<string, string>();
const detach = lab.host.detachDisk.bind(lab.host);
lab.host.detachDisk = async (vm, serial) => {
  const loop = devices.get(serial);
  if (loop) sh('losetup', '-d', loop);
  devices.delete(serial);
  await detach(vm, serial);
};
lab.outside.failover = {
  locate: async (serial) => {
    const known = devices.get(serial);
    if (known) return known;
    const loop = sh('losetup', '--find', '--show', (await lab.host.find(serial))!);
    devices.set(serial, loop);
    return loop;
  },
};

/** A disk that is one ext4 file system with these files. */
function fileSystem(name: string, files: Record<string, string | Buffer>): Buffer {
  const tree = join(work, name);
  const image = join(work, `${name}.ext4`);
  for (const [path, data] of Object.entries(files)) {
    mkdirSync(join(tree, path, '..'), { recursive: true });
    writeFileSync(join(tree, path), data);
  }
  sh('mke2fs', '-q', '-t', 'ext4', '-d', tree, image, '8M');
  return readFileSync(image);
}

t.test('files of a moment, through the API', async (t) => {
  await lab.start();
  const web1 = lab.addSource('web1');
  await web1.addDisk('vda', 8 * MIB);
  await web1.addDisk('vdb', 2 * MIB);
  const write = async (disk: Buffer) => {
    for (let at = 0; at < disk.length; at += 65_536) {
      await web1.kernel.write(0, at, disk.subarray(at, at + 65_536));
    }
  };
  const rows = Buffer.alloc(2 * MIB + 5, 'row ');
  const old = fileSystem('old', {
    'etc/motd': 'old',
    'srv/rows': rows,
    [`srv/deep/${'long'.repeat(40)}`]: 'far',
    'srv/naïve "name"': 'x',
  });
  await write(old);
  const added = await lab.inject('POST', '/api/sources', { address: 'web1', username: 'root' });
  const { sourceId } = added.json();
  await until('the inventory', async () => {
    const source = await lab.call<{ inventory: unknown }>('GET', `/api/sources/${sourceId}`);
    return source.inventory;
  });
  const { jobId } = await lab.call<Job>('POST', '/api/jobs', {
    sourceId,
    diskIds: ['disk-0-web1', 'disk-1-web1'],
    pool: 'default',
    network: 'lan',
    replicaName: 'web1-replica',
    vcpus: 2,
    memoryBytes: 1024 * MIB,
    compression: 'fast',
    bandwidthLimitBytesPerSec: null,
  });
  const isProtected = async () =>
    (await lab.call<Job>('GET', `/api/jobs/${jobId}`)).state.name === 'protected';
  const checkpoints = () => lab.call<Checkpoint[]>('GET', `/api/jobs/${jobId}/checkpoints`);
  const get = (id: string) => lab.call<Failover>('GET', `/api/mounts/${id}`);
  const reaches = async (id: string, name: string) => {
    await until(
      `the mount to be ${name}`,
      async () => {
        const { state } = await get(id);
        if ('error' in state) throw new Error(JSON.stringify(state));
        return state.name === name;
      },
      PATIENT_MS,
    );
    return get(id);
  };
  const mount = (body: object) => lab.inject('POST', `/api/jobs/${jobId}/mount`, body);
  await until('protected', isProtected, PATIENT_MS);
  await until('a checkpoint', async () => (await checkpoints()).length > 0, PATIENT_MS);
  await web1.kernel.write(1, 0, Buffer.alloc(4096, 'm'));
  // The writes' frames and the moment are of one clock here; a frame is closed within 50 ms.
  await delay(300);
  const at = new Date().toISOString();
  await delay(300);
  const fresh = fileSystem('new', { 'etc/motd': 'new' });
  await write(fresh);

  const early = { purpose: 'files', point: { sourceTime: '2001-01-01T00:00:00Z' } };
  t.match((await mount(early)).json(), { code: 'UND_POINT_GONE' });
  const began = await mount({ purpose: 'files', point: { sourceTime: at } });
  t.equal(began.statusCode, 202, began.body);
  const { failoverId: id } = began.json() as Failover;
  const open = await reaches(id, 'completed');
  t.match(open, {
    kind: 'mount',
    point: { wanted: at },
    mount: { purpose: 'files', keepMinutes: 60 },
    steps: [{ name: 'hold-point' }, { name: 'overlay' }, { name: 'replay' }, { name: 'serve' }],
  });
  t.match(open.mount!.volumes, [
    { volumeId: 'vda', content: 'ext4', browsable: true },
    { volumeId: 'vdb', content: 'unknown', browsable: false },
  ]);
  t.same(await lab.call('GET', '/api/failovers'), [], 'it is no failover');
  t.equal((await lab.call<Failover[]>('GET', '/api/mounts')).length, 1);

  const url = (path: string, what = 'file', volume = 'vda') =>
    `/api/mounts/${id}/${what}?${new URLSearchParams({ volume, path })}`;
  const listing = await lab.call<FileListing>('GET', url('/srv', 'files'));
  t.same(
    listing.entries.map(({ kind, path }) => `${kind} ${path}`),
    ['folder /srv/deep', 'file /srv/na%C3%AFve%20%22name%22', 'file /srv/rows'],
  );
  const motd = await lab.inject('GET', url('/etc/motd'));
  t.equal(motd.body, 'old');
  t.match(motd.headers, {
    'content-type': 'application/octet-stream',
    'content-disposition': `attachment; filename="motd"; filename*=UTF-8''motd`,
    'content-security-policy': /sandbox/,
    'content-length': '3',
  });
  t.ok((await lab.inject('GET', url('/srv/rows'))).rawPayload.equals(rows));
  const part = await lab.inject('GET', url('/srv/rows'), undefined, { range: 'bytes=2097150-' });
  t.equal(part.statusCode, 206);
  t.equal(part.headers['content-range'], `bytes 2097150-2097156/${rows.length}`);
  t.ok(part.rawPayload.equals(rows.subarray(2_097_150)));
  const beyond = await lab.inject('GET', url('/srv/rows'), undefined, { range: 'bytes=9999999-' });
  t.equal(beyond.statusCode, 416);
  const odd = await lab.inject('GET', url('/srv/na%C3%AFve%20%22name%22'));
  t.match(odd.headers['content-disposition'], /filename\*=UTF-8''na%C3%AFve%20%22name%22$/);
  for (const [bad, status, code] of [
    [url('/../../../etc/hostname'), 409, 'UND_MOUNT_PATH'],
    [url('/srv'), 409, 'UND_MOUNT_PATH'],
    [url('/', 'files', 'vdb'), 409, 'UND_MOUNT_PATH'],
    [url('relative'), 400, 'UND_REQUEST_INVALID'],
    [url('/a b'), 400, 'UND_REQUEST_INVALID'],
    ['/api/mounts/nothing/files?volume=vda&path=/', 404, 'UND_FAILOVER_NOT_FOUND'],
  ] as const) {
    const answer = await lab.inject('GET', bad);
    t.equal(answer.statusCode, status, bad);
    t.equal(answer.json().code, code, bad);
  }
  // A reader that goes away in the middle holds nothing up.
  await new Promise<void>((resolve, reject) => {
    const call = request(
      {
        host: '127.0.0.1',
        port: lab.appliance.httpsPort,
        path: url('/srv/rows'),
        ca: lab.address.caPem,
        headers: { cookie: lab.cookie },
      },
      (answer) => {
        answer.once('data', () => {
          answer.destroy();
          resolve();
        });
      },
    );
    call.on('error', reject);
    call.end();
  });
  t.equal((await lab.inject('GET', url('/etc/motd'))).body, 'old');

  const archive = await lab.inject('GET', url('/srv', 'folder.tar'));
  t.equal(archive.statusCode, 200);
  writeFileSync(join(work, 'srv.tar'), archive.rawPayload);
  const unpacked = join(work, 'unpacked');
  mkdirSync(unpacked);
  sh('tar', '-C', unpacked, '-xf', join(work, 'srv.tar'));
  // Red without the padding behind a file, and with names that are cut.
  sh('diff', '-r', join(work, 'old/srv'), join(unpacked, 'srv'));
  t.match((await lab.inject('GET', url('/etc/motd', 'folder.tar'))).json(), {
    code: 'UND_MOUNT_PATH',
  });

  const downloads = (await lab.call<AuditEntry[]>('GET', '/api/audit?limit=100')).filter(
    ({ act }) => act === 'mount.download',
  );
  t.match(
    downloads.map(({ who, object, outcome }) => ({ who, object, outcome })),
    new Array(downloads.length).fill({ who: 'admin' }),
  );
  t.equal(downloads.filter(({ object }) => object === `${id}: vda /srv/rows`).length, 4);
  t.ok(
    downloads.some(({ outcome }) => outcome === 'refused'),
    'the refused ones as well',
  );
  const admin = lab.cookie;
  await lab.call('POST', '/api/users', { username: 'vera', password: PASSWORD, role: 'viewer' });
  await lab.login('vera', PASSWORD);
  const second = 'another password of the test';
  await lab.inject('POST', '/api/session/password', { current: PASSWORD, next: second });
  for (const what of ['file', 'files', 'folder.tar']) {
    t.equal((await lab.inject('GET', url('/etc/motd', what))).json().code, 'UND_AUTH_FORBIDDEN');
  }
  t.equal((await mount({ purpose: 'files' })).json().code, 'UND_AUTH_FORBIDDEN');
  t.equal((await lab.inject('POST', `/api/mounts/${id}/end`)).statusCode, 403);
  t.equal((await lab.inject('GET', `/api/mounts/${id}`)).statusCode, 200);
  const viewer = lab.cookie;
  lab.cookie = admin;

  t.match((await mount({ purpose: 'files' })).json(), { code: 'UND_MOUNT_OPEN' });
  const deletion = await lab.inject('DELETE', `/api/jobs/${jobId}?disks=delete`);
  t.match(deletion.json(), { code: 'UND_MOUNT_OPEN' });
  t.ok(await isProtected(), 'replication goes on');

  const nothingLeft = async () => {
    t.equal(lab.host.attached.size, 2, 'nothing else is attached');
    t.same(
      (await checkpoints()).flatMap(({ holders }) => holders),
      [],
      'nothing is held',
    );
    const files = (await lab.host.files()).filter((name) => /-d\d-replica-/.test(name));
    t.same(files, [], 'no overlay');
    t.same(
      loopsOf((await lab.host.files()).map((name) => join(lab.host.dir, name))),
      [],
      'no loop device',
    );
  };
  await lab.call('POST', `/api/mounts/${id}/end`);
  await reaches(id, 'undone');
  t.match((await lab.inject('GET', url('/etc/motd'))).json(), { code: 'UND_MOUNT_NOT_OPEN' });
  await nothingLeft();
  t.match((await lab.inject('POST', `/api/mounts/${id}/end`)).json(), {
    code: 'UND_FAILOVER_STATE',
  });

  const nbd = (await mount({ purpose: 'nbd', point: { sourceTime: at } })).json() as Failover;
  const exported = await reaches(nbd.failoverId, 'completed');
  t.match(exported.mount, {
    purpose: 'nbd',
    volumes: [],
    exports: [{ name: 'vda' }, { name: 'vdb' }],
  });
  const readOnly = [...lab.host.attached.values()].filter((one) => one.readOnly).length;
  t.equal(readOnly, 2, 'the overlays are attached read-only');
  const credentialsUrl = `/api/mounts/${nbd.failoverId}/nbd-credentials.tar`;
  const credentials = await lab.inject('GET', credentialsUrl);
  t.match(credentials.headers['content-type'], /^application\/x-tar/);
  writeFileSync(join(work, 'nbd.tar'), credentials.rawPayload);
  sh('tar', '-C', work, '-xf', join(work, 'nbd.tar'));
  const client = join(work, 'understudy-nbd');
  const copies = exported.mount!.exports.map(({ name, port }) => {
    const copy = join(work, `${name}.copy`);
    sh(
      'qemu-img',
      'convert',
      '-O',
      'raw',
      '--object',
      `tls-creds-x509,id=tls,dir=${client},endpoint=client`,
      '--image-opts',
      `driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=${port},export=${name},tls-creds=tls`,
      copy,
    );
    return readFileSync(copy);
  });
  t.ok(copies[0]!.equals(old), 'the disk as it was at the moment');
  // Red without the replay: it was written behind the checkpoint.
  t.equal(copies[1]!.toString('latin1', 0, 4), 'mmmm');
  t.same(
    (await lab.call<AuditEntry[]>('GET', '/api/audit?limit=100'))
      .filter(({ act }) => act === 'mount.credentials')
      .map(({ who, object }) => `${who} ${object}`),
    [`admin ${nbd.failoverId}`],
  );
  lab.cookie = viewer;
  t.equal((await lab.inject('GET', credentialsUrl)).statusCode, 403);
  lab.cookie = admin;
  await lab.call('POST', `/api/mounts/${nbd.failoverId}/end`);
  await reaches(nbd.failoverId, 'undone');
  await nothingLeft();

  await until(
    'the replica to be the source',
    async () => {
      const { disks } = await lab.call<Job>('GET', `/api/jobs/${jobId}`);
      return readFileSync(disks[0]!.replicaPath!).equals(fresh);
    },
    PATIENT_MS,
  );
  const newest = (await mount({ purpose: 'files', keepMinutes: 5 })).json() as Failover;
  await reaches(newest.failoverId, 'completed');
  const now = await lab.inject(
    'GET',
    `/api/mounts/${newest.failoverId}/file?volume=vda&path=/etc/motd`,
  );
  t.equal(now.body, 'new');
  await lab.restart();
  await reaches(newest.failoverId, 'undone');
  await until('protected after the restart', isProtected, PATIENT_MS);
  await nothingLeft();
});
