import Type from 'typebox';
import type { Router } from '../app.ts';
import { AuditEntry, Certificate, HostView, SystemInfo } from '../schema.ts';
import type { Services } from '../services.ts';

export function registerSystemRoutes(route: Router, services: Services): void {
  route({
    method: 'GET',
    url: '/api/system',
    access: 'viewer',
    summary: 'The appliance itself',
    act: null,
    schema: { response: { 200: SystemInfo } },
    handler: () => services.system(),
  });

  route({
    method: 'GET',
    url: '/api/ca.pem',
    access: 'public',
    summary: "The certificate of the appliance's own authority",
    act: null,
    schema: { response: { 200: Type.String() } },
    handler: (_request, reply) =>
      reply.type('application/x-pem-file').serializer(String).send(services.caPem()),
  });

  route({
    method: 'GET',
    url: '/api/host',
    access: 'viewer',
    summary: 'The target host with its live use, storage pools and networks',
    act: null,
    schema: { response: { 200: HostView } },
    handler: () => services.host.view(),
  });

  route({
    method: 'GET',
    url: '/api/certificates',
    access: 'viewer',
    summary: 'All client certificates ever issued, newest first',
    act: null,
    schema: { response: { 200: Type.Array(Certificate) } },
    handler: () => services.identity.listCertificates(),
  });

  route({
    method: 'GET',
    url: '/api/audit',
    access: 'operator',
    summary: 'Who did what, newest first',
    act: null,
    schema: {
      querystring: Type.Object({
        limit: Type.Optional(Type.String({ pattern: '^[1-9][0-9]{0,3}$' })),
      }),
      response: { 200: Type.Array(AuditEntry) },
    },
    handler: (request) => {
      const { limit } = request.query as { limit?: string };
      return services.audit.list(limit ? Number(limit) : 200);
    },
  });
}
