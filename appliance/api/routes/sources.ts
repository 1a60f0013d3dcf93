import Type, { type Static } from 'typebox';
import type { Router } from '../app.ts';
import { PreflightReport, Source, SshTarget, UninstallRequest } from '../schema.ts';
import type { Services } from '../services.ts';

const ById = Type.Object({ id: Type.String({ minLength: 1, maxLength: 64 }) });
const CertificateAction = Type.Object({
  action: Type.Union([Type.Literal('renew'), Type.Literal('revoke')]),
});
const idOf = (request: { params: unknown }) => (request.params as { id: string }).id;
const addressOf = (request: { body: unknown }) =>
  String((request.body as { address?: unknown } | undefined)?.address ?? '');

export function registerSourceRoutes(route: Router, { sources }: Services): void {
  route({
    method: 'GET',
    url: '/api/sources',
    access: 'viewer',
    summary: 'All source servers',
    act: null,
    schema: { response: { 200: Type.Array(Source) } },
    handler: () => sources.list(),
  });

  route({
    method: 'POST',
    url: '/api/sources/preflight',
    access: 'operator',
    summary:
      'Look at a server by SSH and say what would keep the agent from working; changes nothing',
    act: 'source.preflight',
    object: addressOf,
    schema: { body: SshTarget, response: { 200: PreflightReport } },
    handler: (request) => sources.preflight(request.body as SshTarget),
  });

  route({
    method: 'POST',
    url: '/api/sources',
    access: 'operator',
    summary: 'Add a source server: preflight, then install the agent in the background',
    act: 'source.add',
    object: addressOf,
    schema: { body: SshTarget, response: { 202: Source } },
    handler: async (request, reply) =>
      reply.status(202).send(await sources.add(request.body as SshTarget)),
  });

  route({
    method: 'GET',
    url: '/api/sources/:id',
    access: 'viewer',
    summary: 'One source server',
    act: null,
    schema: { params: ById, response: { 200: Source } },
    handler: (request) => sources.get(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/sources/:id/inventory',
    access: 'operator',
    summary: 'Ask the agent for a fresh inventory',
    act: 'source.inventory',
    schema: { params: ById, response: { 200: Source } },
    handler: (request) => sources.refreshInventory(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/sources/:id/uninstall',
    access: 'operator',
    summary: 'Take the agent off the source server, then forget the source',
    act: 'source.uninstall',
    schema: { params: ById, body: UninstallRequest, response: { 202: Source } },
    handler: async (request, reply) =>
      reply
        .status(202)
        .send(
          await sources.uninstall(idOf(request), request.body as Static<typeof UninstallRequest>),
        ),
  });

  route({
    method: 'POST',
    url: '/api/sources/:id/certificate',
    access: 'admin',
    summary: "Renew or revoke the source's certificate; revoking ends its connections at once",
    act: 'source.certificate',
    object: (request) =>
      `${idOf(request)}: ${(request.body as Static<typeof CertificateAction>).action}`,
    schema: { params: ById, body: CertificateAction, response: { 200: Source } },
    handler: (request) => {
      const { action } = request.body as Static<typeof CertificateAction>;
      return action === 'renew'
        ? sources.renewCertificate(idOf(request))
        : sources.revokeCertificate(idOf(request));
    },
  });
}
