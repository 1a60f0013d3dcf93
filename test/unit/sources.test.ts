import { generateKeyPairSync } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { readAgentPackage } from '../../appliance/sources/package.ts';
import { fingerprintOf, judgeHostKey } from '../../appliance/sources/ssh.ts';

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
