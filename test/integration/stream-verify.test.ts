/** Difference mirror and verification: hashes decide what travels, and a replica that is not what it should be is found. */
import { randomBytes } from 'node:crypto';
import { open } from 'node:fs/promises';
import t from 'tap';
import { MIB, StreamLab, until } from './stream.lab.ts';

t.setTimeout(600_000);

const BLOCK = 4096;

/** Behind the applier's back, as a bad disk would. */
async function spoil(path: string, offsetBytes: number, data: Buffer): Promise<void> {
  const file = await open(path, 'r+');
  await file.write(data, 0, data.length, offsetBytes);
  await file.sync();
  await file.close();
}

const verification = (lab: StreamLab, disk = 0) => lab.stream.state().disks[disk]!.verification;

async function verified(lab: StreamLab): Promise<void> {
  await lab.stream.verifyDisks();
  await until('the verification to end', () =>
    lab.stream.state().disks.every(({ verification }) => verification?.asked === null),
  ).catch((error) => {
    const { disks, phase } = lab.stream.state();
    throw new Error(
      `${error.message}\n${JSON.stringify({ phase, disks, logs: lab.agent?.logs, errors: lab.server.errors })}`,
    );
  });
}

t.test('a spoilt replica is found, repaired and counted; points go on', async (t) => {
  const lab = await new StreamLab(t, [66 * MIB, 8 * MIB]).start();
  lab.startAgent();
  await lab.settled();
  t.equal(verification(lab), null);
  const points = lab.stream.points().stretches().length;
  // One block, a part of one, a run over a piece's end, and the last block of the disk.
  const spoilt = [
    [5 * MIB, BLOCK],
    [17 * MIB + 512, 512],
    [30 * MIB + 15 * BLOCK, 3 * BLOCK],
    [66 * MIB - BLOCK, BLOCK],
  ] as const;
  for (const [at, length] of spoilt) {
    await spoil(lab.replicaPath(0), at, randomBytes(length));
  }
  t.same((await lab.differences()).length, 1, 'it is spoilt');
  await verified(lab);
  await lab.settled();
  t.same(await lab.differences(), []);
  t.match(verification(lab), {
    run: 1,
    last: { comparedBytes: 66 * MIB, mismatches: 6, repaired: 6 },
  });
  t.match(verification(lab, 1)?.last, { comparedBytes: 8 * MIB, mismatches: 0, repaired: 0 });
  t.equal(lab.stream.points().stretches().length, points, 'no gap in the timeline');
  t.equal(lab.stream.epoch, 1);
  await lab.restartAppliance();
  t.match(verification(lab)?.last, { mismatches: 6 }, 'known after a restart');
});

// Seen red with the touched set ignored in the second look: blocks that moved are called wrong.
t.test(
  'under writes no block is called wrong that only moves, and a wrong one is found',
  async (t) => {
    const lab = await new StreamLab(t, [24 * MIB]).start();
    lab.startAgent();
    await lab.settled();
    lab.startWorkload(2);
    const written = lab.kernel.producerPos;
    await verified(lab);
    t.ok(lab.kernel.producerPos > written, 'the source was writing');
    t.match(verification(lab)?.last, { comparedBytes: 24 * MIB, mismatches: 0 });
    // What the workload hits is healed by that. A lighter one leaves most of them, however long this takes.
    await lab.stopWorkload();
    await lab.settled();
    lab.startWorkload(100, 8);
    const spoilt = 40;
    for (let at = 0; at < spoilt; at++) {
      await spoil(lab.replicaPath(0), at * 150 * BLOCK, Buffer.alloc(BLOCK, 0xa5));
    }
    await verified(lab);
    const { mismatches, repaired } = verification(lab)!.last!;
    t.ok(mismatches > 0 && mismatches <= spoilt, `${mismatches} of ${spoilt}`);
    t.equal(repaired, mismatches);
    await lab.stopWorkload();
    await lab.settled();
    t.same(await lab.differences(), []);
  },
);

t.test('a verification outlives its agent, the appliance, lost order and a mirror', async (t) => {
  const lab = await new StreamLab(t, [16 * MIB, 8 * MIB], { ringBytes: 2 * MIB }).start();
  lab.startAgent();
  await lab.settled();
  await lab.agent!.kill();
  await spoil(lab.replicaPath(0), 3 * MIB, Buffer.alloc(BLOCK, 0x11));
  // Asked for while there is no agent, and the appliance restarts.
  await lab.stream.verifyDisks(['disk-0']);
  await lab.restartAppliance();
  t.match(verification(lab)?.asked, { cursorBytes: 0 });
  t.equal(verification(lab, 1), null, 'the other disk was not asked for');
  lab.startAgent();
  await until('it to end', () => verification(lab)?.asked === null);
  t.match(verification(lab)?.last, { mismatches: 1, repaired: 1 });
  // Order is lost as soon as one begins: no difference of that time counts, and it is done when order is held again.
  await lab.stream.verifyDisks();
  lab.kernel.track('overflow');
  await lab.kernel.write(0, 6 * MIB, randomBytes(256 * 1024));
  await until('order to be lost', () => lab.stream.state().mode.mode !== 'ordered');
  await until(
    'both to end',
    () => lab.stream.state().disks.every(({ verification }) => verification?.asked === null),
    60_000,
  );
  t.match(verification(lab)?.last, { comparedBytes: 16 * MIB, mismatches: 0 });
  // A mirror goes first, and what it heals is no mismatch.
  await spoil(lab.replicaPath(0), 9 * MIB, Buffer.alloc(BLOCK, 0x22));
  await lab.stream.verifyDisks();
  await lab.stream.mirrorDisk('disk-0', 'the test asked for it');
  await until('both to end', () =>
    lab.stream.state().disks.every(({ verification }) => verification?.asked === null),
  );
  await lab.settled();
  t.same(await lab.differences(), []);
  await t.rejects(lab.stream.verifyDisks(['nobody']), { code: 'UND_NOT_FOUND' });
});

t.test(
  'a difference mirror sends pieces, and asks for hashes only where spans differ',
  async (t) => {
    const lab = await new StreamLab(t, [136 * MIB]).start(false);
    lab.startAgent();
    await lab.settled();
    for (const at of [10, 11, 130]) {
      await spoil(lab.replicaPath(0), at * MIB + 7 * BLOCK, Buffer.alloc(BLOCK, 0x33));
    }
    const before = lab.proxy.passedBytes;
    await lab.stream.mirrorDisk('disk-0', 'the test asked for it');
    await until('the mirror', () => {
      const { mirror } = lab.stream.state().disks[0]!;
      return mirror.kind === 'difference' && mirror.state === 'done';
    });
    const passed = lab.proxy.passedBytes - before;
    const { skippedBytes, totalBytes } = lab.stream.state().disks[0]!.mirror;
    t.equal(totalBytes - skippedBytes, 3 * 64 * 1024, 'three pieces');
    // Everything else of the agent in this time: marks, status, requests.
    t.ok(passed < 3 * 64 * 1024 + 64 * 1024, `${passed} bytes from the agent`);
    await lab.settled();
    t.same(await lab.differences(), []);
  },
);
