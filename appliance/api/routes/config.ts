import Type, { type Static } from 'typebox';
import type { Router } from '../app.ts';
import { BackupRequest, RestoreRequest } from '../schema.ts';
import type { Services } from '../services.ts';

export function registerConfigRoutes(route: Router, { backup }: Services): void {
  route({
    method: 'POST',
    url: '/api/config/backup',
    access: 'admin',
    summary: "The appliance's configuration, encrypted with a passphrase",
    act: 'config.backup',
    schema: { body: BackupRequest, response: { 200: { type: 'string', format: 'binary' } } },
    handler: async (request, reply) => {
      const { passphrase } = request.body as Static<typeof BackupRequest>;
      const file = await backup.create(passphrase);
      return reply
        .type('application/octet-stream')
        .header('content-disposition', 'attachment; filename="understudy-config.undbak"')
        .send(file);
    },
  });

  route({
    method: 'POST',
    url: '/api/config/restore',
    access: 'admin',
    summary: 'Replace the configuration by a backup; the service restarts itself',
    act: 'config.restore',
    bodyLimit: 65 * 1024 * 1024,
    schema: { body: RestoreRequest, response: { 202: Type.Object({}) } },
    handler: async (request, reply) => {
      const { passphrase, backupBase64 } = request.body as Static<typeof RestoreRequest>;
      await backup.restore(Buffer.from(backupBase64, 'base64'), passphrase);
      return reply.status(202).send({});
    },
  });
}
