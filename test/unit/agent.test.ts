import { mkdtempSync, rmSync } from 'node:fs';
import { chmod, mkdir, readdir, readFile, stat, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { AgentState, agentPaths, traces, UNIT_NAME, writeDurably } from '../../agent/config.ts';
import { makeRequest } from '../../agent/enrol/csr.ts';
import { backoffMs, LINK_BACKOFF, REFUSED_BACKOFF } from '../../agent/service/backoff.ts';
import { onChange } from '../../agent/service/log.ts';
import { captureDetail } from '../../agent/service/preflight.ts';
import { renewalDue } from '../../agent/service/renewal.ts';
import { decideRole } from '../../agent/service/role.ts';
import { removeTraces, uninstall } from '../../agent/service/uninstall.ts';
import { unitText } from '../../agent/service/unit.ts';

const folder = (t: Test) => {
  const dir = mkdtempSync(join(tmpdir(), 'understudy-agent.'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
};
t.test('waiting grows, is bounded, and differs from agent to agent', async (t) => {
  for (const limits of [LINK_BACKOFF, REFUSED_BACKOFF]) {
    t.equal(backoffMs(0, limits, 0), limits.firstMs / 2);
    t.ok(backoffMs(3, limits, 0.5) > backoffMs(1, limits, 0.5));
    for (const attempt of [10, 100, 100_000]) {
      t.equal(backoffMs(attempt, limits, 1), limits.lastMs);
      t.equal(backoffMs(attempt, limits, 0), limits.lastMs / 2);
    }
  }
});

t.test('a certificate is renewed at two thirds of its life', async (t) => {
  const life = { notBeforeMs: 1000, notAfterMs: 4000 };
  t.equal(renewalDue(life, 2999), false);
  t.equal(renewalDue(life, 3000), true);
  t.equal(renewalDue(life, 9000), true, 'an expired one too');
});

t.test('active or passive', async (t) => {
  const me = { smbiosUuid: 'a', diskSerials: [], bootId: 'b', hostname: 'h' };
  t.same(decideRole(null, me, me), { role: 'active' });
  t.same(decideRole('a replica', me, me), { role: 'passive', reason: 'a replica' });
  t.match(decideRole(null, me, { ...me, smbiosUuid: 'z' }), { role: 'passive', reason: /copy/ });
});

t.test('the same line is not logged again and again', async (t) => {
  const lines: string[] = [];
  const log = onChange((_, text) => lines.push(text));
  for (let i = 0; i < 100; i++) log('warning', 'no answer');
  log('info', 'connected');
  log('warning', 'no answer');
  t.ok(lines.length < 12, lines.join('\n'));
  t.equal(lines.at(-1), 'no answer');
});

t.test('state files: kept, checked, readable by root only', async (t) => {
  const dir = join(folder(t), 'state');
  const state = new AgentState(dir);
  t.equal(await state.identity(), null);
  t.equal(await state.job(), null);
  t.equal(await state.passiveReason(), null);
  await writeDurably(join(dir, 'passive'), '  replica of web1\n');
  t.equal(await state.passiveReason(), 'replica of web1');
  await writeDurably(join(dir, 'passive'), '');
  t.match(await state.passiveReason(), /replica/, 'an empty file counts too');
  t.equal((await stat(join(dir, 'passive'))).mode & 0o777, 0o600);
  t.equal((await stat(dir)).mode & 0o777, 0o700);
  for (const bad of ['not json', '{}', '{"sourceId": 5}']) {
    await writeDurably(join(dir, 'identity.json'), bad);
    await t.rejects(
      state.identity(),
      { code: 'UND_AGENT_CONFIG_INVALID', message: /identity\.json/ },
      bad,
    );
  }
  // What a crash left half-written is no obstacle.
  await writeFile(join(dir, 'passive.new'), 'half');
  await writeDurably(join(dir, 'passive'), 'whole');
  t.equal(await state.passiveReason(), 'whole');
  t.same((await readdir(dir)).sort(), ['identity.json', 'passive']);
});

t.test('a request for a certificate holds a new key each time', async (t) => {
  const [one, two] = [await makeRequest('web1'), await makeRequest('odd name; \u00fc')];
  t.match(one.csrPem, /^-----BEGIN CERTIFICATE REQUEST-----\n/);
  t.match(one.keyPem, /^-----BEGIN PRIVATE KEY-----\n/);
  t.not(one.keyPem, two.keyPem);
});

t.test('the unit yields to the work of its server and may do what capture needs', async (t) => {
  const unit = unitText();
  for (const line of [
    'Nice=10',
    'CPUWeight=20',
    'IOSchedulingClass=best-effort',
    'IOSchedulingPriority=7',
    'Restart=always',
    'LimitMEMLOCK=infinity',
    'ExecStart=/usr/lib/understudy/understudy-agent run',
    'WantedBy=multi-user.target',
  ]) {
    t.ok(unit.split('\n').includes(line), line);
  }
  t.match(
    unit,
    /CapabilityBoundingSet=.*CAP_BPF.*CAP_PERFMON.*CAP_SYS_ADMIN.*CAP_SYS_RESOURCE.*CAP_NET_ADMIN/,
  );
});

t.test(
  'removing leaves nothing, also of a half-made installation, and nothing else is touched',
  async (t) => {
    const root = folder(t);
    const paths = agentPaths(root);
    const calls: string[] = [];
    const run = async (...args: string[]) => {
      calls.push(args.join(' '));
      return { ok: false, text: 'nothing of that name' };
    };
    await t.resolves(uninstall(paths, run), 'nothing there is no error');
    const others = [`${root}/etc/systemd/system/ssh.service`, `${root}/var/lib/other/file`];
    for (const file of [...traces(paths).filter((path) => !path.endsWith('.service')), ...others]) {
      if (others.includes(file)) {
        await mkdir(dirname(file), { recursive: true });
        await writeFile(file, 'x');
      } else {
        await mkdir(`${file}/deep`, { recursive: true });
        await writeFile(`${file}/deep/file`, 'x');
        await chmod(`${file}/deep`, 0o500);
      }
    }
    await writeFile(paths.unitFile, 'unit');
    await mkdir(`${root}/etc/systemd/system/multi-user.target.wants`, { recursive: true });
    await symlink('/nowhere', `${root}/etc/systemd/system/multi-user.target.wants/${UNIT_NAME}`);
    t.same(await removeTraces(paths, run), []);
    const left: string[] = [];
    const look = async (dir: string): Promise<void> => {
      for (const entry of await readdir(dir, { withFileTypes: true })) {
        const path = join(dir, entry.name);
        if (entry.isDirectory()) await look(path);
        else left.push(path);
      }
    };
    await look(root);
    t.same(left.sort(), others.sort());
    t.equal(await readFile(others[1]!, 'utf8'), 'x');
    t.ok(calls.includes(`stop ${UNIT_NAME}`));
  },
);

t.test('the preflight says what the capture can on this kernel', async (t) => {
  t.equal(captureDetail('vda', 4096), 'ordered capture works on this kernel (tried on vda)');
  t.match(captureDetail('sda', 65536), /works.*sda.*64 KiB instead of 4 KiB.*older than 5\.12/);
});
