import { once } from 'node:events';
import { duplexPair } from 'node:stream';
import t from 'tap';
import { decodeControl, encodeControl } from '../../protocol/control.ts';
import type { UndError } from '../../protocol/errors.ts';
import { Link } from '../../protocol/link.ts';

t.test('a message is what was sent', async (t) => {
  const ack = { type: 'ack', jobId: 'j', seq: 3, capturePos: 4 } as const;
  t.same(decodeControl(encodeControl(ack)), ack);
});

t.test('what is not valid is refused with the path of the field', async (t) => {
  const decode = (value: unknown) => () => decodeControl(Buffer.from(JSON.stringify(value)));
  t.throws(decode({ type: 'ack', jobId: 'j', seq: -1, capturePos: 4 }), {
    code: 'UND_CONTROL_INVALID',
    message: /\/seq/,
  });
  t.throws(decode({ type: 'ack', jobId: 'j', seq: 2 ** 60, capturePos: 4 }), {
    code: 'UND_CONTROL_INVALID',
  });
  t.throws(decode({ type: 'hashRequest' }), { code: 'UND_CONTROL_INVALID' });
  t.throws(decode('hello'), { code: 'UND_CONTROL_INVALID' });
  t.throws(decode(null), { code: 'UND_CONTROL_INVALID' });
  t.throws(() => decodeControl(Buffer.from('{')), { code: 'UND_CONTROL_INVALID' });
});

t.test('an unknown type is an error, or nothing if the sender said so', async (t) => {
  const unknown = (optional: boolean) =>
    Buffer.from(JSON.stringify({ type: 'ofTheFuture', optional }));
  t.throws(() => decodeControl(unknown(false)), { code: 'UND_CONTROL_UNKNOWN' });
  t.equal(decodeControl(unknown(true)), null);
  t.throws(() => decodeControl(Buffer.from('{"type":"__proto__"}')), {
    code: 'UND_CONTROL_UNKNOWN',
  });
});

const closed = async (link: Link): Promise<UndError | undefined> =>
  ((await once(link, 'close')) as [UndError | undefined])[0];

t.test('a link carries messages and frames in order, and waits for its handler', async (t) => {
  const [a, b] = duplexPair({ highWaterMark: 1024 });
  const left = new Link(a);
  const right = new Link(b);
  const got: string[] = [];
  let busy = 0;
  const done = new Promise<void>((resolve) => {
    right.start({
      frame: async (frame) => {
        t.equal(busy++, 0, 'one at a time');
        await new Promise((r) => setImmediate(r));
        busy--;
        got.push(`frame ${frame.length}`);
      },
      control: (message) => {
        got.push(message.type);
        if (message.type === 'ack') resolve();
      },
    });
  });
  left.start({ frame: () => {}, control: () => {} });
  left.send({ type: 'inventoryRequest', requestId: '1' });
  await left.sendFrame(Buffer.alloc(5000));
  await left.sendFrame(Buffer.alloc(7));
  left.send({ type: 'ack', jobId: 'j', seq: 0, capturePos: 0 });
  await done;
  t.same(got, ['inventoryRequest', 'frame 5000', 'frame 7', 'ack']);
  left.close();
  t.match(await closed(right), { code: 'UND_LINK_CLOSED' });
  await t.rejects(left.sendFrame(Buffer.alloc(1)), { code: 'UND_LINK_CLOSED' });
});

t.test('messages come out whole however the bytes arrive', async (t) => {
  const [a, b] = duplexPair();
  const sent: Buffer[] = [];
  a.on('data', (chunk: Buffer) => sent.push(chunk));
  const left = new Link(b);
  for (let at = 0; at < 12; at++) {
    await left.sendFrame(Buffer.alloc(at * 37, at));
    left.send({ type: 'ack', jobId: 'j', seq: at, capturePos: 0 });
  }
  const stream = () => Buffer.concat(sent);
  while (stream().length < left.bytesSent) await new Promise((r) => setImmediate(r));
  const bytes = stream();
  for (const step of [1, 2, 4, 5, 6, 41, 100, bytes.length]) {
    const [c, d] = duplexPair();
    const right = new Link(d);
    const got: string[] = [];
    const done = new Promise<void>((resolve) => {
      right.start({
        // Now with a promise, now without: both ways on have to be right.
        frame: (frame) => {
          got.push(`${frame.length} of ${frame[0] ?? 0}`);
          if (frame.length % 2) return new Promise((r) => setImmediate(r));
        },
        control: (message) => {
          if (message.type === 'ack') got.push(`ack ${message.seq}`);
          if (message.type === 'ack' && message.seq === 11) resolve();
        },
      });
    });
    for (let at = 0; at < bytes.length; at += step) c.write(bytes.subarray(at, at + step));
    await done;
    const expected = Array.from({ length: 12 }, (_, at) => [`${at * 37} of ${at}`, `ack ${at}`]);
    t.same(got, expected.flat(), `in pieces of ${step}`);
    right.close();
  }
});

t.test('an absurd length or an unknown type closes the link at once', async (t) => {
  for (const prefix of [
    [0xff, 0xff, 0xff, 0xff, 2],
    [0xff, 0xff, 0xff, 0x7f, 1],
    [1, 0, 0, 0, 9],
  ]) {
    const [a, b] = duplexPair();
    const link = new Link(b);
    link.start({ frame: () => {}, control: () => {} });
    a.resume();
    const closing = closed(link);
    a.write(Buffer.from(prefix));
    t.match(await closing, { code: 'UND_LINK_MESSAGE_INVALID' });
  }
});

t.test(
  'a handler that fails closes the link with its error; the last word still goes out',
  async (t) => {
    const [a, b] = duplexPair();
    const left = new Link(a);
    const right = new Link(b);
    const heard: string[] = [];
    left.start({ frame: () => {}, control: (message) => void heard.push(message.type) });
    right.start({
      frame: () => {},
      control: () => {
        right.send({ type: 'notice', level: 'error', text: 'goodbye' });
        throw new Error('broken');
      },
    });
    const ends = Promise.all([closed(left), closed(right)]);
    left.send({ type: 'inventoryRequest', requestId: '1' });
    const [, error] = await ends;
    t.match(error, { code: 'UND_INTERNAL', message: /broken/ });
    t.same(heard, ['notice']);
  },
);

t.test('a link on which nothing arrives is dead after a while', async (t) => {
  const [, b] = duplexPair();
  const link = new Link(b);
  // The link's own timer does not keep a process alive.
  const alive = setTimeout(() => {}, 20_000);
  t.teardown(() => clearTimeout(alive));
  link.start({ frame: () => {}, control: () => {} }, 40);
  t.match(await closed(link), { code: 'UND_LINK_TIMEOUT' });
});
