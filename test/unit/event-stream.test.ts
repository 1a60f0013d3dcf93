/** How the event stream begins, however much there is to say, and whom it cuts off. */
import { createServer, type IncomingMessage, request } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setImmediate as turn } from 'node:timers/promises';
import t from 'tap';
import type { Router } from '../../appliance/api/app.ts';
import { registerEventRoutes } from '../../appliance/api/routes/events.ts';
import type { ServerEvent } from '../../appliance/api/schema.ts';
import type { Services } from '../../appliance/api/services.ts';
import { EventHub } from '../../appliance/control/event-hub.ts';

const MIB = 1024 * 1024;
/** Some 4 KiB, as a test failover with its steps. */
const STEPS = 'x'.repeat(4096);
/** Newest first: an old one that is still open, and those that are over. */
const endings = (count: number, kind = 'test') => [
  ...Array.from({ length: count }, (_, index) => ({
    failoverId: `${kind} ${index}`,
    runId: `run ${index}`,
    kind,
    state: { name: ['undone', 'failed', 'committed'][index % 3] },
    notes: [STEPS],
  })),
  { failoverId: `${kind} open`, runId: 'run open', kind, state: { name: 'completed' } },
];

/** Serves the stream of these lists alone. */
async function serve(
  t: { teardown(end: () => void): void },
  lists: { sources?: unknown[]; failovers?: unknown[]; mounts?: unknown[]; runs?: unknown[] } = {},
) {
  const events = new EventHub(() => null);
  let handler: ((request: unknown, reply: unknown) => unknown) | undefined;
  const route = (spec: { handler: typeof handler }) => {
    handler = spec.handler;
  };
  registerEventRoutes(
    route as unknown as Router,
    {
      events,
      sources: { list: () => lists.sources ?? [] },
      jobs: { list: () => [] },
      failovers: { list: () => lists.failovers ?? [] },
      mounts: { list: () => lists.mounts ?? [] },
      groups: { list: () => [], runs: () => lists.runs ?? [] },
      auth: { resolveHash: () => ({}), onSessionsEnded: () => () => {} },
    } as unknown as Services,
  );
  const server = createServer((incoming, out) => {
    handler?.({ ...incoming, session: { tokenHash: 'h' } }, { hijack: () => {}, raw: out });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  t.teardown(() => {
    events.close();
    server.closeAllConnections();
    server.close();
  });
  const answer = await new Promise<IncomingMessage>((resolve, reject) => {
    request({ host: '127.0.0.1', port }, resolve).on('error', reject).end();
  });
  answer.on('error', () => {});
  return { events, answer };
}

/** All that is said until `last`; throws when the stream ends before. */
async function heard(answer: IncomingMessage, last: string): Promise<ServerEvent[]> {
  let text = '';
  answer.setEncoding('utf8');
  for await (const chunk of answer.iterator({ destroyOnReturn: false })) {
    text += chunk;
    // Only the end is looked at: the whole is long.
    if (text.slice(-chunk.length - last.length).includes(last)) break;
  }
  return [...text.matchAll(/^data: (.*)$/gm)].map(([, data]) => JSON.parse(data!) as ServerEvent);
}

const notice = (code: string, message = '') =>
  ({ type: 'notice', level: 'info', error: { code, message, hint: '' } }) as ServerEvent;

// Red when what is said at first counts as being behind: whoever comes is cut off, comes back and is cut off, for ever.
t.test(
  'more than anybody may be behind is said at first, and what happens meanwhile',
  async (t) => {
    const sources = Array.from({ length: 6 }, (_, index) => ({
      sourceId: `s${index}`,
      name: 'y'.repeat(MIB),
    }));
    const { events, answer } = await serve(t, { sources });
    events.publish(notice('MEANWHILE'));
    const told = await heard(answer, 'MEANWHILE');
    t.same(
      told.map(({ type }) => type),
      [...sources.map(() => 'source'), 'notice'],
    );
  },
);

// Red when all that ever was is said, which grows with every test, or what is looked into is left out.
t.test('of what is over the newest are said, and what is open however old it is', async (t) => {
  const failovers = endings(1500);
  const mounts = endings(1500, 'mount');
  const runs = endings(1500, 'planned');
  t.ok(JSON.stringify([failovers, runs]).length > 3 * 4 * MIB);
  const { events, answer } = await serve(t, { failovers, mounts, runs });
  events.publish(notice('END'));
  const told = await heard(answer, 'END');
  const ids = told.flatMap((event) =>
    event.type === 'failover'
      ? [event.failover.failoverId]
      : event.type === 'group-run'
        ? [event.run.runId]
        : [],
  );
  const expected = (name: string) => [
    ...Array.from({ length: 200 }, (_, index) => `${name} ${index}`),
    `${name} open`,
  ];
  t.same(ids, [...expected('test'), ...expected('mount'), ...expected('run')]);
});

t.test('whoever does not read is cut off', async (t) => {
  const sources = [{ sourceId: 's', name: 'y'.repeat(6 * MIB) }];
  const { events, answer } = await serve(t, { sources });
  answer.pause();
  const ended = new Promise<string>((resolve) => answer.on('close', () => resolve('ended')));
  // Sockets take some before it counts.
  for (let saidMib = 0; saidMib < 60; saidMib++) {
    events.publish(notice('MORE', 'z'.repeat(MIB)));
    await turn();
  }
  answer.resume();
  t.equal(await ended, 'ended');
});
