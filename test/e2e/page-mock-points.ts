/** The part of the scripted API that tells of recovery points: a day of history with a gap of each usual kind. */
import { randomUUID } from 'node:crypto';
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify';
import type { Static, TSchema } from 'typebox';
import * as contract from '../../appliance/api/schema.ts';

const HOUR = 3_600_000;
const MINUTE = 60_000;
const GIB = 2 ** 30;

interface MockHost {
  jobs: Map<string, contract.Job>;
  check: <T extends TSchema>(schema: T, value: unknown, what: string) => Static<T>;
  missing: (reply: FastifyReply) => FastifyReply;
  who: (request: FastifyRequest) => string;
}

type Gap = [startAgoMs: number, lengthMs: number, kind: contract.PointGap['kind'], reason: string];

/** A day, with what a day may bring. */
const GAPS: Gap[] = [
  [15 * HOUR, 4 * MINUTE, 'order-lost', 'the ring buffer overflowed'],
  [15 * HOUR - 4 * MINUTE, 11 * MINUTE, 'difference-mirror', 'the ring buffer overflowed'],
  [
    5 * HOUR,
    25 * MINUTE,
    'source-away',
    'the source was away: what it wrote in these 1500 s came in one piece',
  ],
  [
    2 * MINUTE,
    20_000,
    'source-away',
    'the source was away: what it wrote in these 20 s came in one piece',
  ],
];
const REACH_MS = 19 * HOUR;

export function serveMockPoints(app: FastifyInstance, host: MockHost): void {
  const labels = new Map<string, contract.PointLabel[]>();
  const checks = new Map<string, contract.JournalCheck>();
  const startedMs = Date.now();
  type ById = { Params: { id: string } };

  const pointsOf = (job: contract.Job): contract.JobPoints => {
    const now = Date.now();
    const iso = (ms: number) => new Date(ms).toISOString();
    const named = labels.get(job.jobId) ?? [];
    const base = {
      marks: [],
      labels: named,
      newestAt: null,
      rebuildPercent: null,
      stretches: [],
      gaps: [],
    };
    if (!['protected', 'paused', 'failing-over', 'failed-over'].includes(job.state.name)) {
      const gap = {
        fromSeq: 1,
        toSeq: null,
        fromAt: iso(startedMs),
        toAt: null,
        kind: 'first-mirror' as const,
        reason: 'first mirror',
        crossable: false,
      };
      return { ...base, gaps: [gap], history: null };
    }
    const stretches: contract.JobPoints['stretches'] = [];
    const gaps: contract.JobPoints['gaps'] = [];
    const stretch = (fromMs: number, toMs: number) => {
      if (toMs <= fromMs) return;
      stretches.push({
        fromSeq: Math.round((fromMs - (now - REACH_MS)) / 100) + 1,
        toSeq: Math.round((toMs - (now - REACH_MS)) / 100),
        fromAt: iso(fromMs),
        toAt: iso(toMs),
        fromBootMs: 0,
        toBootMs: toMs - fromMs,
      });
    };
    let at = now - REACH_MS;
    for (const [agoMs, lengthMs, kind, reason] of GAPS) {
      const fromMs = startedMs - agoMs;
      stretch(at, fromMs);
      at = fromMs + lengthMs;
      gaps.push({
        fromSeq: 1,
        toSeq: 2,
        fromAt: iso(fromMs),
        toAt: iso(at),
        kind,
        reason,
        crossable: kind === 'source-away',
      });
    }
    stretch(at, now);
    return {
      stretches,
      gaps,
      marks: [12, 9, 6, 3].map((hours) => ({
        seq: 100 - hours,
        at: iso(startedMs - hours * HOUR),
        pointId: `point-${hours}`,
        name: 'every 3 h, PostgreSQL',
        quiesced: hours !== 6,
      })),
      labels: named,
      newestAt: iso(now),
      rebuildPercent: null,
      history: {
        hours: job.settings.historyHours === undefined ? 24 : job.settings.historyHours,
        limitBytes: job.settings.historyBytes ?? 45 * GIB,
        usedBytes: 44.2 * GIB,
        oldestSeq: 1,
        churnBytesPerSec: (45 * GIB) / (REACH_MS / 1000),
        reachMs: REACH_MS,
        boundBy: 'size',
        warning:
          "At today's churn the journal holds 19 h of history, less than the 24 h that are asked for.",
      },
    };
  };

  app.get<ById>('/api/jobs/:id/points', async (request, reply) => {
    const job = host.jobs.get(request.params.id);
    if (!job) return host.missing(reply);
    return host.check(contract.JobPoints, pointsOf(job), 'points');
  });
  app.post<ById & { Body: contract.LabelRequest }>(
    '/api/jobs/:id/labels',
    { schema: { body: contract.LabelRequest } },
    async (request, reply) => {
      const job = host.jobs.get(request.params.id);
      if (!job) return host.missing(reply);
      const label = {
        labelId: randomUUID(),
        ...request.body,
        createdBy: host.who(request),
        createdAt: new Date().toISOString(),
        recoverable: true,
      };
      labels.set(job.jobId, [...(labels.get(job.jobId) ?? []), label]);
      return reply.code(201).send(host.check(contract.PointLabel, label, 'label'));
    },
  );
  app.delete<{ Params: { id: string; labelId: string } }>(
    '/api/jobs/:id/labels/:labelId',
    async (request, reply) => {
      const { id, labelId } = request.params;
      labels.set(
        id,
        (labels.get(id) ?? []).filter((label) => label.labelId !== labelId),
      );
      return reply.code(204).send();
    },
  );
  app.get<ById>('/api/jobs/:id/journal-check', async (request) =>
    host.check(contract.JournalCheck, checks.get(request.params.id) ?? { state: 'none' }, 'check'),
  );
  app.post<ById>('/api/jobs/:id/journal-check', async (request, reply) => {
    const startedAt = new Date().toISOString();
    const running = {
      state: 'running' as const,
      startedAt,
      readBytes: 4 * GIB,
      totalBytes: 44 * GIB,
    };
    const done: contract.JournalCheck = {
      state: 'done',
      startedAt,
      endedAt: new Date().toISOString(),
      frames: 581_204,
      bytes: 44.2 * GIB,
      faultCount: 1,
      faults: [
        {
          segment: 's-0000000000041877.seg',
          offsetBytes: 20_971_520,
          reason: 'The checksum of frame 42011 (epoch 1) is wrong in its payload.',
        },
      ],
    };
    checks.set(request.params.id, done);
    return reply.code(202).send(host.check(contract.JournalCheck, running, 'check'));
  });
}
