import Type from 'typebox';
import type { Router } from '../app.ts';
import { JobPoints, JournalCheck, LabelRequest, PointLabel } from '../schema.ts';
import type { Services } from '../services.ts';

const Id = Type.String({ minLength: 1, maxLength: 64 });
const ById = Type.Object({ id: Id });
const ByLabel = Type.Object({ id: Id, labelId: Id });
const idOf = (request: { params: unknown }) => (request.params as { id: string }).id;

export function registerPointRoutes(route: Router, { points }: Services): void {
  route({
    method: 'GET',
    url: '/api/jobs/:id/points',
    access: 'viewer',
    summary: 'What can be recovered: stretches, gaps with their reason, marks, labels, forecast',
    act: null,
    schema: { params: ById, response: { 200: JobPoints } },
    handler: (request) => points.points(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/labels',
    access: 'operator',
    summary: 'Give a moment of the history a name',
    act: 'job.label',
    object: (request) => {
      const { at, text } = request.body as LabelRequest;
      return `${idOf(request)}: ${text} (${at})`;
    },
    schema: { params: ById, body: LabelRequest, response: { 201: PointLabel } },
    handler: (request, reply) => {
      const who = request.session?.user.username ?? request.ip;
      const label = points.addLabel(idOf(request), request.body as LabelRequest, who);
      return reply.status(201).send(label);
    },
  });

  route({
    method: 'DELETE',
    url: '/api/jobs/:id/labels/:labelId',
    access: 'operator',
    summary: 'Take a name away; the history stays',
    act: 'job.unlabel',
    object: (request) => {
      const { id, labelId } = request.params as { id: string; labelId: string };
      return `${id}: ${labelId}`;
    },
    schema: { params: ByLabel, response: { 204: Type.Null() } },
    handler: (request, reply) => {
      const { id, labelId } = request.params as { id: string; labelId: string };
      points.removeLabel(id, labelId);
      return reply.status(204).send();
    },
  });

  route({
    method: 'GET',
    url: '/api/jobs/:id/journal-check',
    access: 'viewer',
    summary: 'The last check of the journal since the appliance started',
    act: null,
    schema: { params: ById, response: { 200: JournalCheck } },
    handler: (request) => points.check(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/journal-check',
    access: 'operator',
    summary: 'Read the whole journal back and name every fault; goes on in the background',
    act: 'job.check-journal',
    schema: { params: ById, response: { 202: JournalCheck } },
    handler: (request, reply) => reply.status(202).send(points.startCheck(idOf(request))),
  });
}
