import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import t from 'tap';
import type { ServerEvent } from '../../appliance/api/schema.ts';
import {
  SourceService,
  type SourceServiceOptions,
} from '../../appliance/control/source-service.ts';
import { readAgentPackage } from '../../appliance/sources/package.ts';
import { fingerprintOf, judgeHostKey } from '../../appliance/sources/ssh.ts';
import type { SourceRow } from '../../appliance/state/sources.ts';
import { undError } from '../../protocol/errors.ts';

t.test('a host key: known, confirmed, unknown, changed', async (t) => {
  const [a, b, c] = ['SHA256:a', 'SHA256:b', 'SHA256:c'] as const;
  t.same(judgeHostKey(a, a, undefined), { trusted: true, known: true });
  t.same(judgeHostKey(a, a, b), { trusted: true, known: true });
  t.same(judgeHostKey(a, null, a), { trusted: true, known: false });
  t.same(judgeHostKey(a, b, a), { trusted: true, known: false }, 'confirmed after a change');
  t.same(judgeHostKey(a, null, undefined), { trusted: false, reason: 'unknown' });
  t.same(judgeHostKey(a, null, b), { trusted: false, reason: 'unknown' });
  t.same(judgeHostKey(a, b, undefined), { trusted: false, reason: 'changed' });
  t.same(
    judgeHostKey(a, b, b),
    { trusted: false, reason: 'changed' },
    'the old one again is no yes',
  );
  t.same(judgeHostKey(a, b, c), { trusted: false, reason: 'changed' });
});

t.test('fingerprints are written as ssh-keygen writes them', async (t) => {
  const { publicKey } = generateKeyPairSync('ed25519');
  const shown = fingerprintOf(publicKey.export({ type: 'spki', format: 'der' }));
  t.match(shown, /^SHA256:[A-Za-z0-9+/]{43}$/);
});

t.test('an agent that is not there, or not whole, is refused', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'understudy-package.'));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const code = 'UND_AGENT_PACKAGE_MISSING';
  await t.rejects(readAgentPackage(dir), { code });
  const archive = (file: string) => ({ file, sizeBytes: 3, sha256: '0'.repeat(64) });
  const manifest = {
    version: '1.0',
    installedBytes: 10,
    files: { 'understudy-agent': '0'.repeat(64) },
    archives: { zst: archive('a.zst'), gz: archive('a.gz') },
  };
  const put = (value: object) => writeFile(join(dir, 'manifest.json'), JSON.stringify(value));
  await put(manifest);
  await t.rejects(readAgentPackage(dir), { code, message: /a\.zst/ });
  await writeFile(join(dir, 'a.zst'), 'abc');
  await writeFile(join(dir, 'a.gz'), 'ab');
  await t.rejects(readAgentPackage(dir), { code, message: /a\.gz/ }, 'half a file');
  await writeFile(join(dir, 'a.gz'), 'abc');
  t.equal((await readAgentPackage(dir)).version, '1.0');
  // These names go into a shell script that runs as root.
  await put({ ...manifest, version: '1.0; rm -rf /' });
  await t.rejects(readAgentPackage(dir), { code });
  await put({ ...manifest, files: { '../x': '0'.repeat(64) } });
  await t.rejects(readAgentPackage(dir), { code });
  await put({ ...manifest, archives: { ...manifest.archives, gz: archive('$(id)') } });
  await t.rejects(readAgentPackage(dir), { code });
});

// Red when it is said once in the life of the process, and when nobody is told that it is over.
t.test('a copy that calls in is told of, and again when it comes back after long', async (t) => {
  const ALERT_MS = 300;
  const row = { sourceId: 's', name: 'web1', state: { name: 'installing', step: 'x' } };
  const said: ServerEvent[] = [];
  const sources = new SourceService({
    store: { get: () => row as SourceRow },
    identity: { onRevoked: () => {}, certificateOf: () => null },
    audit: { add: () => {} },
    events: { publish: (event: ServerEvent) => said.push(event) },
    jobOf: () => null,
    alertMs: ALERT_MS,
  } as unknown as SourceServiceOptions);
  t.teardown(() => sources.close());
  const call = (source: string) =>
    sources.refused('s', undError('UND_AGENT_SECOND_INSTANCE', { source }), '192.0.2.9');
  const notices = () => said.filter(({ type }) => type === 'notice').length;
  const shown = () => {
    const last = said.findLast((event) => event.type === 'source');
    return last?.source.alert?.message ?? null;
  };
  call('web1');
  t.equal(notices(), 1);
  t.match(shown(), /web1/);
  for (let times = 0; times < 4; times++) {
    await pause(ALERT_MS / 3);
    call('web1');
  }
  t.equal(notices(), 1, 'it goes on calling: once is enough');
  t.match(shown(), /web1/, 'and it is shown as long as it does');
  call('another');
  t.equal(notices(), 2, 'something else is news');
  await pause(ALERT_MS * 1.5);
  t.equal(shown(), null, 'told that it is over');
  call('another');
  t.equal(notices(), 3);
});
