import Type, { type Static } from 'typebox';
import type { Router } from '../app.ts';
import {
  Checkpoint,
  Job,
  JobSettingsPatch,
  PointRequest,
  ProtectPlan,
  ProtectRequest,
  TakenPoint,
} from '../schema.ts';
import type { Services } from '../services.ts';

const ById = Type.Object({ id: Type.String({ minLength: 1, maxLength: 64 }) });
const MirrorRequest = Type.Object({ diskId: Type.Optional(Type.String({ maxLength: 64 })) });
const DeleteQuery = Type.Object({
  disks: Type.Union([Type.Literal('keep'), Type.Literal('delete')]),
});
const idOf = (request: { params: unknown }) => (request.params as { id: string }).id;

export function registerJobRoutes(route: Router, { jobs }: Services): void {
  route({
    method: 'POST',
    url: '/api/jobs/plan',
    access: 'operator',
    summary: 'What protecting would do, and what stands against it; changes nothing',
    act: null,
    schema: { body: ProtectRequest, response: { 200: ProtectPlan } },
    handler: (request) => jobs.plan(request.body as ProtectRequest),
  });

  route({
    method: 'POST',
    url: '/api/jobs',
    access: 'operator',
    summary: 'Protect a source server',
    act: 'job.protect',
    object: (request) => (request.body as ProtectRequest).replicaName,
    schema: { body: ProtectRequest, response: { 202: Job } },
    handler: async (request, reply) =>
      reply.status(202).send(await jobs.protect(request.body as ProtectRequest)),
  });

  route({
    method: 'GET',
    url: '/api/jobs',
    access: 'viewer',
    summary: 'All protection jobs',
    act: null,
    schema: { response: { 200: Type.Array(Job) } },
    handler: () => jobs.list(),
  });

  route({
    method: 'GET',
    url: '/api/jobs/:id',
    access: 'viewer',
    summary: 'One protection job',
    act: null,
    schema: { params: ById, response: { 200: Job } },
    handler: (request) => jobs.get(idOf(request)),
  });

  route({
    method: 'GET',
    url: '/api/jobs/:id/checkpoints',
    access: 'viewer',
    summary: 'The checkpoints of its replica disks, from which a recovery to a moment begins',
    act: null,
    schema: { params: ById, response: { 200: Type.Array(Checkpoint) } },
    handler: (request) => jobs.actor(idOf(request)).checkpoints(),
  });

  route({
    method: 'PATCH',
    url: '/api/jobs/:id',
    access: 'operator',
    summary:
      'Change compression, bandwidth limit, exclusions, planned restarts and the schedules of a running job',
    act: 'job.change',
    object: (request) => `${idOf(request)}: ${JSON.stringify(request.body)}`,
    schema: { params: ById, body: JobSettingsPatch, response: { 200: Job } },
    handler: (request) =>
      jobs.patch(idOf(request), request.body as Static<typeof JobSettingsPatch>),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/pause',
    access: 'operator',
    summary: 'Stop taking data; the source goes on to record what changes',
    act: 'job.pause',
    schema: { params: ById, response: { 200: Job } },
    handler: (request) => jobs.pause(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/resume',
    access: 'operator',
    summary: 'Go on after a pause or an error',
    act: 'job.resume',
    schema: { params: ById, response: { 200: Job } },
    handler: (request) => jobs.resume(idOf(request)),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/mirror',
    access: 'operator',
    summary: 'Compare the replica disks with the source and send what differs',
    act: 'job.mirror',
    schema: { params: ById, body: Type.Optional(MirrorRequest), response: { 200: Job } },
    handler: (request) =>
      jobs.mirror(idOf(request), (request.body as { diskId?: string } | null)?.diskId),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/verify',
    access: 'operator',
    summary: 'Compare the replica disks with the source while replication goes on, and repair them',
    act: 'job.verify',
    schema: { params: ById, body: Type.Optional(MirrorRequest), response: { 200: Job } },
    handler: (request) =>
      jobs.verify(idOf(request), (request.body as { diskId?: string } | null)?.diskId),
  });

  route({
    method: 'POST',
    url: '/api/jobs/:id/points',
    access: 'operator',
    summary: 'Take a recovery point now, with the applications of the source at rest if possible',
    act: 'job.point',
    schema: { params: ById, body: PointRequest, response: { 201: TakenPoint } },
    handler: async (request, reply) =>
      reply.status(201).send(await jobs.takePoint(idOf(request), request.body as PointRequest)),
  });

  route({
    method: 'DELETE',
    url: '/api/jobs/:id',
    access: 'operator',
    summary: 'End the protection, and keep or delete the replica disks',
    act: 'job.delete',
    object: (request) => `${idOf(request)}: ${(request.query as { disks: string }).disks} disks`,
    schema: { params: ById, querystring: DeleteQuery, response: { 202: Job } },
    handler: async (request, reply) => {
      const { disks } = request.query as Static<typeof DeleteQuery>;
      return reply.status(202).send(await jobs.remove(idOf(request), disks));
    },
  });
}
