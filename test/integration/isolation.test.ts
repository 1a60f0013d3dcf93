/**
 * A server that cuts itself off, with the kernel's own nftables in network namespaces: the appliance is reached, a
 * neighbour is not, neither of them by ARP, and afterwards everything is as before.
 */
import { execa } from 'execa';
import t from 'tap';
import { createIsolator, isolationOf, isolationRules } from '../../agent/service/isolation.ts';

t.setTimeout(300_000);
const NAME = `undiso${process.pid}`;
const [SERVER, APPLIANCE, NEIGHBOUR] = [`${NAME}s`, `${NAME}a`, `${NAME}n`] as const;
const BRIDGE = `${NAME}b`;
const ip = (...args: string[]) => execa('ip', args);
const inside = (ns: string, ...args: string[]) => execa('ip', ['netns', 'exec', ns, ...args]);
const ns = (address: string) => ({ four: `192.0.2.${address}`, six: `fd00::${address}` });
const AT = { [SERVER]: ns('5'), [APPLIANCE]: ns('6'), [NEIGHBOUR]: ns('7') };

t.before(async () => {
  t.teardown(async () => {
    for (const one of [...Object.keys(AT), BRIDGE]) {
      await execa('ip', ['netns', 'del', one], { reject: false });
    }
  });
  await ip('netns', 'add', BRIDGE);
  await inside(BRIDGE, 'ip', 'link', 'add', 'br0', 'type', 'bridge');
  await inside(BRIDGE, 'ip', 'link', 'set', 'br0', 'up');
  for (const [index, [one, { four, six }]] of Object.entries(AT).entries()) {
    await ip('netns', 'add', one);
    const peer = ['peer', 'name', `p${index}`, 'netns', BRIDGE];
    await inside(one, 'ip', 'link', 'add', 'eth0', 'type', 'veth', ...peer);
    await inside(BRIDGE, 'ip', 'link', 'set', `p${index}`, 'master', 'br0', 'up');
    await inside(one, 'ip', 'link', 'set', 'lo', 'up');
    await inside(one, 'ip', 'address', 'add', `${four}/24`, 'dev', 'eth0');
    await inside(one, 'ip', 'address', 'add', `${six}/64`, 'dev', 'eth0', 'nodad');
    await inside(one, 'ip', 'link', 'set', 'eth0', 'up');
  }
});

/** Whether `address` answers, if only that nobody listens; without a neighbour entry of before: ARP is a part of it. */
async function reaches(from: string, address: string): Promise<boolean> {
  await inside(from, 'ip', 'neigh', 'flush', 'all');
  const { stderr } = await execa(
    'ip',
    ['netns', 'exec', from, 'timeout', '3', 'bash', '-c', `exec 3<>/dev/tcp/${address}/9`],
    { reject: false },
  );
  return /refused/.test(stderr);
}

async function untilReached(from: string, address: string): Promise<void> {
  for (const end = Date.now() + 60_000; !(await reaches(from, address)); ) {
    if (Date.now() > end) throw new Error(`${from} does not reach ${address}`);
  }
}

/** What the neighbour's kernel has found out about an address. */
const neighbour = async (address: string) =>
  (await inside(NEIGHBOUR, 'ip', 'neigh', 'show', address)).stdout;

t.test('cut off, and back', async (t) => {
  const isolator = createIsolator(async (program, args, input) => {
    const { stdout } = await execa(
      'ip',
      ['netns', 'exec', SERVER, program, ...args],
      input === undefined ? { stdin: 'ignore' } : { input },
    );
    return stdout;
  });
  const { four, six } = AT[APPLIANCE]!;
  for (const other of [AT[APPLIANCE]!, AT[NEIGHBOUR]!]) {
    await untilReached(SERVER, other.four);
    await untilReached(SERVER, other.six);
  }
  // A firewall of the server's own that accepts everything, and one that is there afterwards.
  await inside(SERVER, 'nft', 'add table inet own');
  await inside(
    SERVER,
    'nft',
    'add chain inet own input { type filter hook input priority -400; policy accept; }',
  );

  const isolation = isolationOf([six, 'appliance.example'], `::ffff:${four}`);
  t.same(isolation, { peers: [six, four], names: true });
  t.equal(await isolator.isolate(isolation), null);
  t.equal(await isolator.isolate(isolation), null, 'once more changes nothing');
  await untilReached(SERVER, four);
  await untilReached(APPLIANCE, AT[SERVER]!.four);
  await untilReached(SERVER, six);
  await untilReached(SERVER, '127.0.0.1');
  // Red without the table, and without its policy.
  t.notOk(await reaches(SERVER, AT[NEIGHBOUR]!.four), 'nobody else');
  t.notOk(await reaches(SERVER, AT[NEIGHBOUR]!.six));
  t.notOk(await reaches(NEIGHBOUR, AT[SERVER]!.six));
  t.notOk(await reaches(NEIGHBOUR, AT[SERVER]!.four), 'from outside');
  // Red without the table of ARP: the address would be taken twice.
  t.notMatch(await neighbour(AT[SERVER]!.four), /lladdr/, 'nor is it there for ARP');

  await isolator.release();
  await isolator.release();
  t.equal((await inside(SERVER, 'nft', 'list', 'tables')).stdout, 'table inet own');
  await untilReached(SERVER, AT[NEIGHBOUR]!.four);
  await untilReached(NEIGHBOUR, AT[SERVER]!.four);
});

t.test('what cannot be done is told', async (t) => {
  const without = createIsolator(async (program) => {
    throw new Error(`${program}: not found`);
  });
  await t.rejects(without.isolate({ peers: ['192.0.2.6'], names: false }), {
    code: 'UND_ISOLATION_FAILED',
    message: /nft: not found/,
  });
  const tried: string[] = [];
  const noArp = createIsolator(async (_program, args, input) => {
    if (args[0] === 'list' || args[0] === '-4') return '';
    tried.push(input ?? '');
    if (input?.includes('table arp')) throw new Error('no ARP tables');
    return '';
  });
  t.match(await noArp.isolate({ peers: ['192.0.2.6'], names: false }), /ARP/);
  t.equal(tried.length, 2);
  t.notMatch(isolationRules({ peers: [], names: false }, []), / ip saddr| 53 /);
});
