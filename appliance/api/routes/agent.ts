import type { Router } from '../app.ts';
import { EnrolRequest, EnrolResponse } from '../schema.ts';
import type { Services } from '../services.ts';

export function registerAgentRoutes(route: Router, services: Services): void {
  route({
    method: 'POST',
    url: '/agent/enrol',
    access: 'public',
    summary: 'An agent turns its one-time token into a client certificate',
    // The identity service audits it: only there is known which source it is.
    act: null,
    schema: { body: EnrolRequest, response: { 200: EnrolResponse } },
    handler: async (request) => {
      const { source, certificatePem, caPem } = await services.identity.enrol(
        request.body as EnrolRequest,
      );
      services.sources.enrolled(source.sourceId);
      return {
        sourceId: source.sourceId,
        certificatePem,
        caPem,
        agentPort: services.agentPort(),
      } satisfies EnrolResponse;
    },
  });
}
