/** What the page knows of the appliance: its event stream and the answers to its acts come by two ways, in any order. */
import t from 'tap';
import type { Failover, ServerEvent } from '../../appliance/api/schema.ts';
import { learn, liveNow, retryNow, startLive, stopLive } from '../../appliance/web/src/api/live.ts';

class ScriptedStream {
  static last: ScriptedStream;
  onopen = () => {};
  readonly #hearers = new Map<string, (message: { data: string }) => void>();

  constructor() {
    ScriptedStream.last = this;
  }

  addEventListener(type: string, hear: (message: { data: string }) => void): void {
    this.#hearers.set(type, hear);
  }

  close(): void {}

  say(event: ServerEvent): void {
    this.#hearers.get(event.type)?.({ data: JSON.stringify(event) });
  }
}

const failover = (name: string): Failover =>
  ({ failoverId: 'f1', kind: 'unplanned', state: { name } }) as unknown as Failover;
const saidNow = () => liveNow().failovers.get('f1')?.state.name;

t.beforeEach(() => {
  Object.assign(globalThis, { EventSource: ScriptedStream });
  startLive();
});
t.afterEach(() => stopLive());

// Red when an answer is always taken: the page showed an undo that had ended as under way, for ever.
t.test('an answer that comes after what happened since is not taken', async (t) => {
  const stream = ScriptedStream.last;
  stream.say({ type: 'failover', failover: failover('completed') });
  const answer = await learn.failover(async () => {
    stream.say({ type: 'failover', failover: failover('undone') });
    return failover('undoing');
  });
  t.equal(answer.state.name, 'undoing', 'whoever asked hears the answer');
  t.equal(saidNow(), 'undone');
});

// Red when an answer is never taken, or not after the stream had spoken of the thing before the act.
t.test('an answer that is ahead of the stream is taken at once', async (t) => {
  const stream = ScriptedStream.last;
  stream.say({ type: 'failover', failover: failover('completed') });
  await learn.failover(async () => failover('undoing'));
  t.equal(saidNow(), 'undoing');
  stream.say({ type: 'failover', failover: failover('undone') });
  t.equal(saidNow(), 'undone');
});

// Red when an answer is dropped for whatever was said since, or taken beside another stream than it was asked beside.
t.test('what is said of others does not matter, and what a new stream says does', async (t) => {
  const stream = ScriptedStream.last;
  await learn.failover(async () => {
    stream.say({ type: 'source', source: { sourceId: 's1' } as never });
    return failover('undoing');
  });
  t.equal(saidNow(), 'undoing');
  await learn.failover(async () => {
    stopLive();
    return failover('undone');
  });
  t.equal(liveNow().failovers.size, 0, 'logged out: nothing is kept');
  startLive();
  const again = ScriptedStream.last;
  again.say({ type: 'failover', failover: failover('undone') });
  t.equal(saidNow(), 'undone');
});

t.test('what was removed since does not come back by an answer', async (t) => {
  const stream = ScriptedStream.last;
  const source = { sourceId: 's1' } as never;
  stream.say({ type: 'source', source });
  await learn.source(async () => {
    stream.say({ type: 'source-removed', sourceId: 's1' });
    return source;
  });
  t.equal(liveNow().sources.size, 0);
});

t.test('a refused act changes nothing and throws', async (t) => {
  const stream = ScriptedStream.last;
  stream.say({ type: 'failover', failover: failover('completed') });
  await t.rejects(
    learn.failover(async () => {
      throw new Error('refused');
    }),
    { message: 'refused' },
  );
  t.equal(saidNow(), 'completed');
});

// Red when only what the stream says is known, or is taken for all there is when the page comes back.
t.test('what the stream leaves out because it is long over is known by the lists', async (t) => {
  const old = { ...failover('undone'), failoverId: 'old' };
  const before = globalThis.fetch;
  t.teardown(() => {
    globalThis.fetch = before;
  });
  globalThis.fetch = async (path) =>
    Response.json(
      path === '/api/system' ? { version: '1' } : path === '/api/failovers' ? [old] : [],
    );
  const ids = () => [...liveNow().failovers.keys()].sort();
  const connect = async () => {
    const stream = ScriptedStream.last;
    stream.onopen();
    stream.say({ type: 'failover', failover: failover('completed') });
    await new Promise((resolve) => setTimeout(resolve, 20));
  };
  await connect();
  t.same(ids(), ['f1', 'old']);
  retryNow();
  t.same(ids(), ['f1', 'old'], 'nothing is gone while it connects');
  await connect();
  t.same(ids(), ['f1', 'old']);
});
