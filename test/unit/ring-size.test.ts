import fc from 'fast-check';
import t from 'tap';
import { ringBytesFor, windowBytesFor } from '../../agent/capture/ring-size.ts';

const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

t.test('by the memory of the source server', async (t) => {
  t.equal(ringBytesFor(512 * MIB, 0), 16 * MIB);
  t.equal(ringBytesFor(2 * GIB, 0), 32 * MIB);
  t.equal(ringBytesFor(8 * GIB, 0), 128 * MIB);
  t.equal(ringBytesFor(24 * GIB, 0), 256 * MIB);
  t.equal(ringBytesFor(1024 * GIB, 0), 512 * MIB);
});

t.test('what is asked for is given, up to an eighth of the memory', async (t) => {
  t.equal(ringBytesFor(16 * GIB, 1024 * MIB), 1024 * MIB);
  t.equal(ringBytesFor(16 * GIB, 100 * MIB), 64 * MIB);
  t.equal(ringBytesFor(2 * GIB, 1024 * MIB), 256 * MIB);
});

t.test('always a power of two within its bounds', async (t) => {
  // Seen red without the floor of 16 MiB, and with the share of the memory left out.
  fc.assert(
    fc.property(
      fc.integer({ min: 64 * MIB, max: 4096 * GIB }),
      fc.oneof(fc.constant(0), fc.integer({ min: MIB, max: 64 * GIB })),
      (memory, asked) => {
        const ring = ringBytesFor(memory, asked);
        t.equal(Math.log2(ring) % 1, 0);
        if (asked === 0) t.ok(ring >= 16 * MIB && ring <= 512 * MIB);
        else t.ok(ring <= asked && ring <= memory / 8 && ring * 2 > Math.min(asked, memory / 8));
        const window = windowBytesFor(ring);
        t.ok(window >= 8 * MIB && window <= 32 * MIB);
      },
    ),
  );
});
