/** What of a disk is swap just now: the machine's own view, on a loop device with partitions. */
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import t from 'tap';
import { activeSwap, partsOf } from '../../agent/mirror/unneeded.ts';
import { MIB, run, unable } from './capture.lab.ts';

const skip = unable() || (fs.existsSync('/proc/swaps') ? false : 'the kernel knows no swap');
const SIZE_BYTES = 64 * MIB;
const PAGE = 4096;

t.test('partitions, and those of them that are swap while they are', { skip }, async (t) => {
  const dir = fs.mkdtempSync(join(tmpdir(), 'active-swap-'));
  const undo = [() => fs.rmSync(dir, { recursive: true })];
  t.teardown(() => {
    for (const act of undo.reverse()) act();
  });
  const image = join(dir, 'disk.img');
  fs.writeFileSync(image, '');
  fs.truncateSync(image, SIZE_BYTES);
  const table = join(dir, 'table');
  fs.writeFileSync(table, 'label: dos\nstart=2048,size=40960\nstart=45056,size=40960,type=82\n');
  run('sh', '-c', 'sfdisk -q "$1" <"$2"', 'sh', image, table);
  const dev = run('losetup', '-f', '--show', image).trim();
  undo.push(() => run('losetup', '-d', dev));
  run('partx', '-a', dev);
  undo.push(() => run('partx', '-d', dev));

  const parts = await partsOf(dev, SIZE_BYTES);
  const places = parts.map(({ devicePath, offsetBytes, sizeBytes }) => [
    basename(devicePath),
    offsetBytes / MIB,
    sizeBytes / MIB,
  ]);
  t.same(places, [
    [basename(dev), 0, 64],
    [`${basename(dev)}p1`, 1, 20],
    [`${basename(dev)}p2`, 22, 20],
  ]);
  t.equal(new Set(parts.map((part) => part.dev)).size, 3, 'each has a number of its own');

  const swap = `${dev}p2`;
  run('mkswap', '-q', swap);
  t.same(await activeSwap(dev, SIZE_BYTES), [], 'made, and not in use');
  run('swapon', swap);
  let isOn = true;
  const off = () => {
    if (isOn) run('swapoff', swap);
    isOn = false;
  };
  undo.push(off);
  const area = { offsetBytes: 22 * MIB + PAGE, lengthBytes: 20 * MIB - PAGE };
  t.same(await activeSwap(dev, SIZE_BYTES), [area], 'all but its header');
  off();
  t.same(await activeSwap(dev, SIZE_BYTES), [], 'not any more');
});
