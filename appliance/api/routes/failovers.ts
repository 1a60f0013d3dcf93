import Type, { type Static } from 'typebox';
import { REPORT_POLICY } from '../../recovery/report.ts';
import type { Router } from '../app.ts';
import { AutoEndRequest, Failover, FailoverRequest, TestFailoverRequest } from '../schema.ts';
import type { Services } from '../services.ts';

const ById = Type.Object({ id: Type.String({ minLength: 1, maxLength: 64 }) });
const Confirm = Type.Object({ confirm: Type.String({ maxLength: 256 }) });
const idOf = (request: { params: unknown }) => (request.params as { id: string }).id;

export function registerFailoverRoutes(route: Router, { failovers }: Services): void {
  route({
    method: 'POST',
    url: '/api/jobs/:id/failover',
    access: 'operator',
    summary: 'Start the replica VM from the replica disks',
    act: 'failover.start',
    schema: { params: ById, body: FailoverRequest, response: { 202: Failover } },
    handler: async (request, reply) => {
      const asked = request.body as Static<typeof FailoverRequest>;
      return reply.status(202).send(await failovers.start(idOf(request), asked));
    },
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/test-failover',
    access: 'operator',
    summary: 'Start a VM from a recovery point on an isolated network; replication goes on',
    act: 'failover.test',
    schema: { params: ById, body: TestFailoverRequest, response: { 202: Failover } },
    handler: async (request, reply) => {
      const asked = request.body as TestFailoverRequest;
      return reply.status(202).send(await failovers.startTest(idOf(request), asked));
    },
  });

  route({
    method: 'POST',
    url: '/api/failovers/:id/end-test',
    access: 'operator',
    summary: 'Take a test failover down now, whatever it is doing',
    act: 'failover.end-test',
    schema: { params: ById, response: { 202: Failover } },
    handler: async (request, reply) =>
      reply.status(202).send(await failovers.endTest(idOf(request))),
  });

  route({
    method: 'GET',
    url: '/api/failovers',
    access: 'viewer',
    summary: 'All failovers',
    act: null,
    schema: { response: { 200: Type.Array(Failover) } },
    handler: () => failovers.list(),
  });

  route({
    method: 'GET',
    url: '/api/failovers/:id',
    access: 'viewer',
    summary: 'One failover with its steps',
    act: null,
    schema: { params: ById, response: { 200: Failover } },
    handler: (request) => failovers.get(idOf(request)),
  });

  for (const [verb, summary] of [
    ['undo', 'Stop and remove the replica VM and go on replicating'],
    ['commit', 'Make the failover final'],
  ] as const) {
    route({
      method: 'POST',
      url: `/api/failovers/:id/${verb}`,
      access: 'operator',
      summary,
      act: `failover.${verb}`,
      schema: { params: ById, body: Confirm, response: { 202: Failover } },
      handler: async (request, reply) => {
        const { confirm } = request.body as Static<typeof Confirm>;
        return reply.status(202).send(await failovers[verb](idOf(request), confirm));
      },
    });
  }

  route({
    method: 'POST',
    url: '/api/failovers/:id/auto-end',
    access: 'operator',
    summary: 'Set or take back what is done by itself with a completed failover',
    act: 'failover.auto-end',
    schema: { params: ById, body: AutoEndRequest, response: { 200: Failover } },
    handler: (request) => {
      const { autoEnd } = request.body as Static<typeof AutoEndRequest>;
      return failovers.setAutoEnd(idOf(request), autoEnd);
    },
  });

  route({
    method: 'GET',
    url: '/api/failovers/:id/screenshot',
    access: 'viewer',
    summary: "The replica VM's console when it had proven that it booted",
    act: null,
    schema: { params: ById, response: { 200: { type: 'string', format: 'binary' } } },
    handler: async (request, reply) =>
      reply.type('image/png').send(await failovers.screenshot(idOf(request))),
  });

  route({
    method: 'GET',
    url: '/api/failovers/:id/report',
    access: 'viewer',
    summary: 'The report of a failover as one page, with its screenshot',
    act: null,
    schema: { params: ById, response: { 200: { type: 'string' } } },
    handler: async (request, reply) =>
      reply
        .header('content-security-policy', REPORT_POLICY)
        .type('text/html; charset=utf-8')
        .send(await failovers.report(idOf(request))),
  });
}
