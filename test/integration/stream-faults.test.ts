/** What the two ends of a stream tell a person when something is wrong, and what they do about it. */
import t from 'tap';
import type { Capture } from '../../agent/capture/capture.ts';
import { undError } from '../../protocol/errors.ts';
import { MIB, StreamLab, until } from './stream.lab.ts';

t.setTimeout(180_000);

// Red when `jobFailed` is only kept as the reason of a lost connection.
t.test('an agent that cannot take up the job: its error is the state of the job', async (t) => {
  const lab = await new StreamLab(t, [4 * MIB]).start();
  let broken = true;
  const refuse = (): Capture => {
    throw undError('UND_CAPTURE_NO_BTF', { reason: 'no /sys/kernel/btf/vmlinux' });
  };
  lab.agentOptions = { createCapture: () => (broken ? refuse() : lab.kernel.capture()) };
  lab.startAgent();
  await until('the error', () => lab.stream.state().phase.name === 'error');
  t.match(lab.stream.state().phase, {
    from: 'agent',
    error: { code: 'UND_CAPTURE_NO_BTF', message: /vmlinux/, hint: /CONFIG_DEBUG_INFO_BTF/ },
  });
  broken = false;
  lab.stream.reconnectAgent('a person asked to try again');
  await until('the error to be over', () => lab.stream.state().phase.name !== 'error');
  await lab.settled();
  t.same(await lab.differences(), []);
});

// Red when a notice of the agent ends in the stream.
t.test('a block that cannot be read is a problem of the job until it is read', async (t) => {
  const lab = await new StreamLab(t, [8 * MIB]).start();
  const offsetBytes = 5 * MIB;
  let broken = true;
  lab.agentOptions = {
    openReader: async (devicePath) => {
      const reader = lab.kernel.reader(devicePath);
      return {
        ...reader,
        read: (at, length) =>
          broken && at === offsetBytes
            ? Promise.reject(
                undError('UND_SOURCE_READ_FAILED', {
                  disk: devicePath,
                  offsetBytes,
                  reason: 'EIO',
                }),
              )
            : reader.read(at, length),
      };
    },
  };
  lab.startAgent();
  await until('the problem', () => lab.stream.state().problems.length > 0);
  t.match(lab.stream.state().problems, [
    { diskId: 'disk-0', error: { code: 'UND_SOURCE_READ_FAILED', message: /EIO/ } },
  ]);
  t.equal(lab.stream.state().phase.name, 'mirroring', 'it is tried again');
  broken = false;
  await until('the problem to be over', () => lab.stream.state().problems.length === 0);
  await lab.settled();
  t.same(await lab.differences(), []);
});

t.test('a disk that is gone from the source stops the job, also told late', async (t) => {
  const lab = await new StreamLab(t, [2 * MIB, 2 * MIB]).start();
  lab.startAgent();
  await until('the first mirror', () => lab.stream.state().phase.name === 'protected');
  lab.kernel.emit({ kind: 'disk-gone', disk: 1 });
  const isGone = () => lab.stream.state().phase.name === 'error';
  await until('the error', isGone);
  const { phase } = lab.stream.state();
  t.match(phase, { from: 'agent', error: { code: 'UND_CAPTURE_DISK_NOT_FOUND' } });
  t.match(phase, { error: { message: /source-1 .*gone/ } });
  lab.proxy.cut();
  await until('the connection to be seen lost', () => !isGone());
  await until('the error again on the next connection', isGone);
});
