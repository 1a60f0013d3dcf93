/** The part of the scripted API that has recovery points open for reading: a small guest with names of all kinds. */
import { randomUUID } from 'node:crypto';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import Type, { type Static, type TSchema } from 'typebox';
import * as contract from '../../appliance/api/schema.ts';

const GIB = 2 ** 30;
const MIB = 2 ** 20;

interface MockHost {
  jobs: Map<string, contract.Job>;
  failovers: Map<string, contract.Failover>;
  tell: (event: contract.ServerEvent) => void;
  later: (ms: number, act: () => void) => void;
  stepMs: number;
  check: <T extends TSchema>(schema: T, value: unknown, what: string) => Static<T>;
  missing: (reply: FastifyReply) => FastifyReply;
  note: (request: FastifyRequest, act: string, object: string) => void;
}

const volume = (
  volumeId: string,
  content: string,
  sizeBytes: number,
  more: Partial<contract.GuestVolume>,
): contract.GuestVolume => ({
  volumeId,
  disk: volumeId.slice(0, 3),
  sizeBytes,
  content,
  label: null,
  uuid: null,
  mountPoint: null,
  browsable: true,
  note: null,
  ...more,
});

const VOLUMES = [
  volume('vda1', 'vfat', 256 * MIB, { label: 'EFI', mountPoint: '/boot/efi' }),
  volume('vda2', 'ext4', 7.7 * GIB, { label: 'root', mountPoint: '/' }),
  volume('vdb', 'lvm', 20 * GIB, {
    browsable: false,
    note: 'a part of a volume group',
  }),
];

const entry = (
  path: string,
  kind: contract.FileEntry['kind'],
  more: Partial<contract.FileEntry> = {},
): contract.FileEntry => ({
  name: path.slice(path.lastIndexOf('/') + 1),
  path,
  kind,
  sizeBytes: kind === 'file' ? 1200 : null,
  modifiedAt: '2026-11-20T08:15:00.000Z',
  mode: kind === 'folder' ? 0o755 : 0o640,
  uid: 0,
  gid: 0,
  target: null,
  ...more,
});

const MANY = Array.from({ length: 1203 }, (_, n) =>
  entry(`/var/log/log.${String(n).padStart(4, '0')}`, 'file'),
);
const FOLDERS: Record<string, contract.FileEntry[]> = {
  '/': [
    entry('/etc', 'folder'),
    entry('/var', 'folder'),
    entry('/bin', 'link', { target: 'usr/bin' }),
    entry('/initctl', 'special'),
  ],
  '/etc': [
    entry('/etc/caf%C3%A9', 'folder', { name: 'café' }),
    entry('/etc/hosts', 'file', { sizeBytes: 222 }),
    entry('/etc/%FF', 'file', { name: '\u{fffd}', sizeBytes: null, kind: 'unreadable' }),
  ],
  '/etc/caf%C3%A9': [],
  '/var': [entry('/var/log', 'folder')],
  '/var/log': MANY,
};

type ById = { Params: { id: string } };
type FileQuery = ById & {
  Querystring: { volume: string; path: string; from: string; limit: string };
};

export function serveMockMounts(app: FastifyInstance, host: MockHost): void {
  const { failovers, check, missing, tell } = host;
  const isMount = ({ kind }: contract.Failover) => kind === 'mount';

  app.post<ById & { Body: contract.MountRequest }>(
    '/api/jobs/:id/mount',
    { schema: { body: contract.MountRequest } },
    async (request, reply) => {
      const job = host.jobs.get(request.params.id);
      if (!job) return missing(reply);
      const { point = 'newest', purpose, keepMinutes = 60 } = request.body;
      const mount: contract.Failover = {
        failoverId: randomUUID(),
        jobId: job.jobId,
        kind: 'mount',
        replicaName: job.settings.replicaName,
        startedAt: new Date().toISOString(),
        endedAt: null,
        state: { name: 'running' },
        steps: (['hold-point', 'overlay', 'serve'] as const).map((name) => ({
          name,
          title: name,
          state: 'running',
          detail: null,
          startedAt: null,
          endedAt: null,
        })),
        point: {
          seq: 48_213,
          sourceTime: point === 'newest' ? job.figures.newestPointAt : point.sourceTime,
          wanted: point === 'newest' ? null : point.sourceTime,
          lossMs: null,
        },
        test: null,
        mount: { purpose, keepMinutes, endsAt: null, volumes: [], exports: [] },
        autoEnd: null,
        isolateOnReturn: false,
        guestChanges: [],
        addresses: [],
        hasScreenshot: false,
        replicaVm: null,
        notes: [],
      };
      tell({ type: 'failover', failover: mount });
      host.note(request, 'mount.start', job.jobId);
      host.later(host.stepMs, () =>
        tell({
          type: 'failover',
          failover: {
            ...mount,
            state: { name: 'completed', proof: '2 file systems mounted' },
            mount: {
              purpose,
              keepMinutes,
              endsAt: new Date(Date.now() + keepMinutes * 60_000).toISOString(),
              volumes: purpose === 'files' ? VOLUMES : [],
              exports:
                purpose === 'nbd'
                  ? ['vda', 'vdb'].map((name, index) => ({
                      addresses: ['192.0.2.10'],
                      port: 10_809 + index,
                      name,
                      disk: name,
                      sizeBytes: 8 * GIB,
                    }))
                  : [],
            },
          },
        }),
      );
      return reply.code(202).send(check(contract.Failover, mount, 'new mount'));
    },
  );
  app.get('/api/mounts', async () =>
    check(Type.Array(contract.Failover), [...failovers.values()].filter(isMount), 'mounts'),
  );
  app.post<ById>('/api/mounts/:id/end', async (request, reply) => {
    const mount = failovers.get(request.params.id);
    if (!mount) return missing(reply);
    const closing: contract.Failover = { ...mount, state: { name: 'undoing' } };
    tell({ type: 'failover', failover: closing });
    host.later(host.stepMs, () =>
      tell({ type: 'failover', failover: { ...closing, state: { name: 'undone' } } }),
    );
    return reply.code(202).send(check(contract.Failover, closing, 'mount that ends'));
  });
  app.get<FileQuery>('/api/mounts/:id/files', async (request, reply) => {
    const { volume: asked, path, from, limit } = request.query;
    // Its link leads there.
    const folder = path === '/bin' ? '/etc' : path;
    const all = asked === 'vda2' ? FOLDERS[folder] : [];
    if (!all) {
      return reply.code(409).send({
        code: 'UND_MOUNT_PATH',
        message: `${path} on ${asked} cannot be read: it is not there.`,
        hint: 'Choose another file or folder.',
      });
    }
    const listing = {
      path: folder,
      entries: all.slice(Number(from), Number(from) + Number(limit)),
      from: Number(from),
      total: all.length,
      truncated: false,
    };
    return check(contract.FileListing, listing, 'listing');
  });
  app.get<FileQuery>('/api/mounts/:id/file', async (request, reply) => {
    host.note(request, 'mount.download', request.query.path);
    return reply
      .type('application/octet-stream')
      .header('content-disposition', 'attachment; filename="hosts"')
      .send(Buffer.from('127.0.0.1 localhost\n'));
  });
  app.get<ById>('/api/mounts/:id/nbd-credentials.tar', async (_request, reply) =>
    reply
      .type('application/x-tar')
      .header('content-disposition', 'attachment; filename="understudy-nbd.tar"')
      .send(Buffer.alloc(1024)),
  );
}
