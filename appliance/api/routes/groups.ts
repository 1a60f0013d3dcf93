import Type, { type Static } from 'typebox';
import { REPORT_POLICY } from '../../recovery/report.ts';
import type { Router } from '../app.ts';
import {
  Group,
  GroupFailoverRequest,
  GroupMark,
  GroupMarkRequest,
  GroupPoints,
  GroupRequest,
  GroupRunView,
} from '../schema.ts';
import type { Services } from '../services.ts';

const ById = Type.Object({ id: Type.String({ minLength: 1, maxLength: 64 }) });
const Confirm = Type.Object({ confirm: Type.String({ maxLength: 256 }) });
const idOf = (request: { params: unknown }) => (request.params as { id: string }).id;

export function registerGroupRoutes(route: Router, { groups }: Services): void {
  route({
    method: 'GET',
    url: '/api/groups',
    access: 'viewer',
    summary: 'All consistency groups',
    act: null,
    schema: { response: { 200: Type.Array(Group) } },
    handler: () => groups.list(),
  });

  route({
    method: 'POST',
    url: '/api/groups',
    access: 'operator',
    summary: 'Put jobs into a group that is recovered to one moment',
    act: 'group.create',
    object: (request) => (request.body as GroupRequest).name,
    schema: { body: GroupRequest, response: { 201: Group } },
    handler: (request, reply) =>
      reply.status(201).send(groups.create(request.body as GroupRequest)),
  });

  route({
    method: 'PATCH',
    url: '/api/groups/:id',
    access: 'operator',
    summary: 'Change the name, the members and the order of a group',
    act: 'group.change',
    schema: { params: ById, body: GroupRequest, response: { 200: Group } },
    handler: (request) => groups.change(idOf(request), request.body as GroupRequest),
  });

  route({
    method: 'DELETE',
    url: '/api/groups/:id',
    access: 'operator',
    summary: 'Dissolve a group; its jobs stay',
    act: 'group.remove',
    schema: { params: ById, response: { 204: Type.Null() } },
    handler: (request, reply) => {
      groups.remove(idOf(request));
      return reply.status(204).send();
    },
  });

  route({
    method: 'GET',
    url: '/api/groups/:id/points',
    access: 'viewer',
    summary: 'What all members can be recovered to, and how well their clocks are known',
    act: null,
    schema: { params: ById, response: { 200: GroupPoints } },
    handler: (request) => groups.points(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/groups/:id/marks',
    access: 'operator',
    summary: 'Take a named point of all members at one moment, as far as their clocks allow',
    act: 'group.mark',
    schema: { params: ById, body: GroupMarkRequest, response: { 201: GroupMark } },
    handler: async (request, reply) => {
      const asked = request.body as GroupMarkRequest;
      return reply.status(201).send(await groups.takeMark(idOf(request), asked));
    },
  });

  route({
    method: 'POST',
    url: '/api/groups/:id/failover',
    access: 'operator',
    summary: 'Fail all members over to one moment, or test that, in the order of their priorities',
    act: 'group.failover',
    schema: { params: ById, body: GroupFailoverRequest, response: { 202: GroupRunView } },
    handler: async (request, reply) => {
      const asked = request.body as GroupFailoverRequest;
      return reply.status(202).send(await groups.failOver(idOf(request), asked));
    },
  });

  route({
    method: 'GET',
    url: '/api/group-runs',
    access: 'viewer',
    summary: 'All failovers of groups',
    act: null,
    schema: { response: { 200: Type.Array(GroupRunView) } },
    handler: () => groups.runs(),
  });

  route({
    method: 'GET',
    url: '/api/group-runs/:id',
    access: 'viewer',
    summary: 'One failover of a group with its members',
    act: null,
    schema: { params: ById, response: { 200: GroupRunView } },
    handler: (request) => groups.run(idOf(request)),
  });

  route({
    method: 'GET',
    url: '/api/group-runs/:id/report',
    access: 'viewer',
    summary: 'The report of a failover or test of a group as one page',
    act: null,
    schema: { params: ById, response: { 200: { type: 'string' } } },
    handler: (request, reply) =>
      reply
        .header('content-security-policy', REPORT_POLICY)
        .type('text/html; charset=utf-8')
        .send(groups.report(idOf(request))),
  });

  for (const [verb, summary] of [
    ['undo', 'Take all members back, the last priority first; a test also while it runs'],
    ['commit', 'Make the failovers of all members final'],
  ] as const) {
    route({
      method: 'POST',
      url: `/api/group-runs/:id/${verb}`,
      access: 'operator',
      summary,
      act: `group.${verb}`,
      schema: { params: ById, body: Confirm, response: { 202: GroupRunView } },
      handler: (request, reply) => {
        const { confirm } = request.body as Static<typeof Confirm>;
        return reply.status(202).send(groups.decide(idOf(request), verb, confirm));
      },
    });
  }

  route({
    method: 'POST',
    url: '/api/group-runs/:id/resume',
    access: 'operator',
    summary: 'Try the members again that failed, and go on with the others',
    act: 'group.resume',
    schema: { params: ById, response: { 202: GroupRunView } },
    handler: (request, reply) => reply.status(202).send(groups.decide(idOf(request), 'resume', '')),
  });
}
