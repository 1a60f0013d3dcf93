import { Readable } from 'node:stream';
import Type, { type Static } from 'typebox';
import { folderTar } from '../../recovery/browse/folder-tar.ts';
import type { Router } from '../app.ts';
import { attachment, byteRange } from '../download.ts';
import { Failover, FileListing, GuestPath, MountRequest } from '../schema.ts';
import type { Services } from '../services.ts';
import { tar } from '../tar.ts';

const ById = Type.Object({ id: Type.String({ minLength: 1, maxLength: 64 }) });
const Whole = (fallback: number, maximum: number) =>
  Type.String({
    pattern: '^\\d{1,9}$',
    default: String(fallback),
    description: `${maximum} at most`,
  });
const FileQuery = Type.Object({
  volume: Type.String({ minLength: 1, maxLength: 260 }),
  path: GuestPath,
});
const FolderQuery = Type.Object({
  ...FileQuery.properties,
  from: Type.Optional(Whole(0, 999_999_999)),
  limit: Type.Optional(Whole(1000, 5000)),
});
const idOf = (request: { params: unknown }) => (request.params as { id: string }).id;

export function registerMountRoutes(route: Router, { mounts }: Services): void {
  route({
    method: 'POST',
    url: '/api/jobs/:id/mount',
    access: 'operator',
    summary: 'Open a recovery point for reading, without booting it; replication goes on',
    act: 'mount.start',
    schema: { params: ById, body: MountRequest, response: { 202: Failover } },
    handler: async (request, reply) =>
      reply.status(202).send(await mounts.start(idOf(request), request.body as MountRequest)),
  });

  route({
    method: 'GET',
    url: '/api/mounts',
    access: 'viewer',
    summary: 'All recovery points that are or were open for reading',
    act: null,
    schema: { response: { 200: Type.Array(Failover) } },
    handler: () => mounts.list(),
  });

  route({
    method: 'GET',
    url: '/api/mounts/:id',
    access: 'viewer',
    summary: 'One of them, with its steps and file systems',
    act: null,
    schema: { params: ById, response: { 200: Failover } },
    handler: (request) => mounts.get(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/mounts/:id/end',
    access: 'operator',
    summary: 'Close it now, whatever it is doing',
    act: 'mount.end',
    schema: { params: ById, response: { 202: Failover } },
    handler: (request, reply) => reply.status(202).send(mounts.end(idOf(request))),
  });

  route({
    method: 'GET',
    url: '/api/mounts/:id/files',
    access: 'operator',
    summary: 'What a folder of a file system holds',
    act: null,
    schema: { params: ById, querystring: FolderQuery, response: { 200: FileListing } },
    handler: (request) => {
      const { volume, path, from, limit } = request.query as Static<typeof FolderQuery>;
      const start = Number(from ?? 0);
      return mounts.browser(idOf(request)).list(volume, path, start, Number(limit ?? 1000));
    },
  });

  route({
    method: 'GET',
    url: '/api/mounts/:id/file',
    access: 'operator',
    summary: 'A file, whole or a range of its bytes',
    act: 'mount.download',
    object: (request) => {
      const { volume, path } = request.query as Static<typeof FileQuery>;
      return `${idOf(request)}: ${volume} ${path}`;
    },
    schema: {
      params: ById,
      querystring: FileQuery,
      response: { 200: { type: 'string', format: 'binary' } },
    },
    handler: async (request, reply) => {
      const { volume, path } = request.query as Static<typeof FileQuery>;
      const browser = mounts.browser(idOf(request));
      const { name, sizeBytes } = await browser.stat(volume, path);
      const range = byteRange(request.headers.range, sizeBytes);
      reply.headers({
        'accept-ranges': 'bytes',
        'content-disposition': attachment(name),
        // Whatever it is, no browser is to show or run it as a page of the appliance.
        'content-security-policy': "default-src 'none'; sandbox",
      });
      if (range === 'unsatisfiable') {
        return reply.status(416).header('content-range', `bytes */${sizeBytes}`).send();
      }
      const { fromBytes, lengthBytes } = range ?? { fromBytes: 0, lengthBytes: sizeBytes };
      if (range) {
        const last = fromBytes + lengthBytes - 1;
        reply.status(206).header('content-range', `bytes ${fromBytes}-${last}/${sizeBytes}`);
      }
      return reply
        .type('application/octet-stream')
        .header('content-length', lengthBytes)
        .send(
          Readable.from(browser.read(volume, path, fromBytes, lengthBytes), { objectMode: false }),
        );
    },
  });

  route({
    method: 'GET',
    url: '/api/mounts/:id/folder.tar',
    access: 'operator',
    summary: 'A folder with all below it, as a tar archive',
    act: 'mount.download',
    object: (request) => {
      const { volume, path } = request.query as Static<typeof FileQuery>;
      return `${idOf(request)}: ${volume} ${path} (all below it)`;
    },
    schema: {
      params: ById,
      querystring: FileQuery,
      response: { 200: { type: 'string', format: 'binary' } },
    },
    handler: async (request, reply) => {
      const { volume, path: asked } = request.query as Static<typeof FileQuery>;
      const browser = mounts.browser(idOf(request));
      // Refused before anything is sent, and without the links on the way.
      const { path } = await browser.list(volume, asked, 0, 1);
      const name = path.slice(path.lastIndexOf('/') + 1) || volume;
      return reply
        .type('application/x-tar')
        .headers({
          'content-disposition': attachment(`${name}.tar`),
          'content-security-policy': "default-src 'none'; sandbox",
        })
        .send(Readable.from(folderTar(browser, volume, path), { objectMode: false }));
    },
  });

  route({
    method: 'GET',
    url: '/api/mounts/:id/nbd-credentials.tar',
    access: 'operator',
    summary: 'What an NBD client needs to be let in: certificates of this export alone',
    act: 'mount.credentials',
    schema: { params: ById, response: { 200: { type: 'string', format: 'binary' } } },
    handler: (request, reply) => {
      const { caPem, client } = mounts.nbd(idOf(request)).identity;
      // The names are those by which QEMU and libnbd look for them in a folder.
      const files = [
        ['ca-cert.pem', caPem],
        ['client-cert.pem', client.certPem],
        ['client-key.pem', client.keyPem],
      ].map(([name, pem]) => ({
        name: `understudy-nbd/${name}`,
        mode: 0o600,
        data: Buffer.from(pem as string),
      }));
      return reply
        .type('application/x-tar')
        .header('content-disposition', attachment('understudy-nbd.tar'))
        .send(tar(files, Date.now()));
    },
  });
}
