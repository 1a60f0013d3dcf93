import type { Router } from '../app.ts';
import { ServerEvent } from '../schema.ts';
import type { Services } from '../services.ts';

const KEEP_ALIVE_MS = 15_000;
/** A reader that is this far behind is cut off; it comes back and is told the state of everything. */
const MAX_BEHIND_BYTES = 4 * 1024 * 1024;

export function registerEventRoutes(route: Router, services: Services): void {
  route({
    method: 'GET',
    url: '/api/events',
    access: 'viewer',
    summary: 'Server-sent events: first the state of everything, then every change',
    act: null,
    schema: {
      response: {
        200: {
          description: 'a stream of these',
          content: { 'text/event-stream': { schema: ServerEvent } },
        },
      },
    },
    handler: (request, reply) => {
      const session = request.session!;
      reply.hijack();
      const out = reply.raw;
      out.writeHead(200, {
        'content-type': 'text/event-stream',
        'cache-control': 'no-store',
        'x-content-type-options': 'nosniff',
        'x-accel-buffering': 'no',
      });
      // Also sends the headers: a page with nothing to show yet must know that it is connected.
      out.write('retry: 2000\n\n');
      const send = (event: ServerEvent) => {
        if (out.writableLength > MAX_BEHIND_BYTES) return out.destroy();
        out.write(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
      };
      for (const source of services.sources.list()) send({ type: 'source', source });
      for (const job of services.jobs.list()) send({ type: 'job', job });
      for (const failover of services.failovers.list()) send({ type: 'failover', failover });
      for (const group of services.groups.list()) send({ type: 'group', group });
      for (const run of services.groups.runs()) send({ type: 'group-run', run });
      const unsubscribe = services.events.subscribe(send);
      // Streams outlive what opened them: the session is looked at again and again.
      const check = () => {
        if (services.auth.resolveHash(session.tokenHash) === null) out.end();
      };
      const unwatch = services.auth.onSessionsEnded(check);
      const timer = setInterval(() => {
        out.write(': still here\n\n');
        check();
      }, KEEP_ALIVE_MS);
      out.on('close', () => {
        clearInterval(timer);
        unsubscribe();
        unwatch();
      });
    },
  });
}
