/** The look at an old server's address, between two network namespaces: there, firewalled, and gone. */
import { join } from 'node:path';
import { execa } from 'execa';
import t from 'tap';
import { probed } from '../../appliance/recovery/probe.ts';

t.setTimeout(120_000);
const HERE = `und-probe-a-${process.pid}`;
const THERE = `und-probe-b-${process.pid}`;
const ip = (...args: string[]) => execa('ip', args);
const inside = (ns: string, ...args: string[]) => execa('ip', ['netns', 'exec', ns, ...args]);

const isRoot = process.getuid?.() === 0;
const skip = isRoot ? false : 'network namespaces need root';

const probeModule = join(import.meta.dirname, '../../appliance/recovery/probe.ts');
const probe = async (): Promise<string | null> => {
  const program = `import { probeAddresses } from '${probeModule}';
console.log(JSON.stringify(await probeAddresses(['10.97.0.2'])));`;
  const { stdout } = await inside(
    HERE,
    process.execPath,
    '--disable-warning=ExperimentalWarning',
    '--input-type=module',
    '-e',
    program,
  );
  return JSON.parse(stdout) as string | null;
};

t.before(async () => {
  if (!isRoot) return;
  for (const ns of [HERE, THERE]) await ip('netns', 'add', ns);
  t.teardown(async () => {
    for (const ns of [HERE, THERE]) await execa('ip', ['netns', 'del', ns], { reject: false });
  });
  await ip(
    'link',
    'add',
    'veth0',
    'netns',
    HERE,
    'type',
    'veth',
    'peer',
    'name',
    'veth0',
    'netns',
    THERE,
  );
  for (const [ns, address] of [
    [HERE, '10.97.0.1/24'],
    [THERE, '10.97.0.2/24'],
  ] as const) {
    await inside(ns, 'ip', 'addr', 'add', address, 'dev', 'veth0');
    await inside(ns, 'ip', 'link', 'set', 'veth0', 'up');
  }
});

// Red without the flush: the kernel goes on believing for half a minute what it heard before.
t.test('a server that is there is seen, also when it drops everything', { skip }, async (t) => {
  t.match(await probe(), /^10\.97\.0\.2 is answered for by ([0-9a-f]{2}:){5}/);
  await inside(THERE, 'ip', 'route', 'add', 'blackhole', '10.97.0.1/32');
  t.match(await probe(), /is answered for by/, 'ARP tells of one that answers nothing else');
  await inside(THERE, 'ip', 'addr', 'del', '10.97.0.2/24', 'dev', 'veth0');
  t.equal(await probe(), null, 'gone');
});

t.test('addresses that mean nothing elsewhere are not asked', async (t) => {
  t.same(probed(['127.0.0.1/8', '10.1.2.3/24', 'fe80::1/64', '::1/128', '2001:db8::2/64']), [
    '10.1.2.3',
    '2001:db8::2',
  ]);
});
