import type { Router } from '../app.ts';
import { type Failover, type GroupRunView, ServerEvent } from '../schema.ts';
import type { Services } from '../services.ts';

const KEEP_ALIVE_MS = 15_000;
/** A reader that is this far behind is cut off; it comes back and is told the state of everything. */
const MAX_BEHIND_BYTES = 4 * 1024 * 1024;
/** Of what is over the stream begins with so many; nothing ever leaves those lists, and whoever wants all reads them. */
const OVER_TOLD = 200;
type State = Failover['state'] | GroupRunView['state'];
const OVER: readonly State['name'][] = ['failed', 'undone', 'committed'];

/** What is not over, and the newest of what is. @param all newest first */
function recent<T extends { state: State }>(all: readonly T[]): T[] {
  let left = OVER_TOLD;
  return all.filter(({ state }) => !OVER.includes(state.name) || left-- > 0);
}

export function registerEventRoutes(route: Router, services: Services): void {
  route({
    method: 'GET',
    url: '/api/events',
    access: 'viewer',
    summary:
      'Server-sent events: first the state of everything (of failovers that are over: of the newest), then every change',
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
      let maxBehindBytes = Number.POSITIVE_INFINITY;
      const send = (event: ServerEvent) => {
        if (out.writableLength > maxBehindBytes) return out.destroy();
        out.write(`event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
      };
      for (const source of services.sources.list()) send({ type: 'source', source });
      for (const job of services.jobs.list()) send({ type: 'job', job });
      for (const failover of recent(services.failovers.list())) {
        send({ type: 'failover', failover });
      }
      for (const mount of recent(services.mounts.list())) {
        send({ type: 'failover', failover: mount });
      }
      for (const group of services.groups.list()) send({ type: 'group', group });
      for (const run of recent(services.groups.runs())) send({ type: 'group-run', run });
      // Nobody is behind for what was said in one breath: it does not count until it is out.
      maxBehindBytes = out.writableLength + MAX_BEHIND_BYTES;
      out.once('drain', () => {
        maxBehindBytes = MAX_BEHIND_BYTES;
      });
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
