/**
 * Day two of an appliance, the real one in this process: its own certificate is renewed while it runs, and its
 * configuration goes out and back by the scripts that people use.
 */
import { createHash, X509Certificate } from 'node:crypto';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { connect } from 'node:tls';
import { execa } from 'execa';
import t from 'tap';
import type { Source, User } from '../../appliance/api/schema.ts';
import { SERVER_NAME } from '../../appliance/identity/certificate-authority.ts';
import { keepBeforeUpgrade, schemaVersion } from '../../appliance/state/before-upgrade.ts';
import { Lab, PASSWORD, until } from './api.lab.ts';

t.setTimeout(300_000);
const root = join(import.meta.dirname, '../..');

/** The certificate that a port shows now to somebody who trusts the appliance's authority. */
function shown(port: number, ca: string, name: string): Promise<X509Certificate> {
  return new Promise((resolve, reject) => {
    const socket = connect({
      host: '127.0.0.1',
      port,
      ca,
      servername: name,
      minVersion: 'TLSv1.2',
    });
    socket.once('secureConnect', () => {
      resolve(new X509Certificate(socket.getPeerCertificate().raw));
      socket.destroy();
    });
    socket.once('error', reject);
  });
}

// Red when only the page's port, or only the agents', takes the new certificate.
t.test("the appliance's own certificate is renewed while everything goes on", async (t) => {
  const lab = new Lab();
  t.teardown(() => lab.close());
  lab.outside = { certificateCheckMs: 50 };
  await lab.start();
  const server = lab.addSource('web1');
  await server.addDisk('vda', 1024 * 1024);
  const added = await lab.call<Source>('POST', '/api/sources', {
    address: 'web1',
    port: 22,
    username: 'root',
    auth: { kind: 'password', password: 'x' },
    acceptHostKey: 'SHA256:test',
  });
  const state = async () =>
    (await lab.call<Source>('GET', `/api/sources/${added.sourceId}`)).state as { name: string };
  await until('the agent', async () => (await state()).name === 'online');
  const since = JSON.stringify(await state());
  const events = lab.events(() => {});
  let ended = false;
  events.onEnd(() => {
    ended = true;
  });
  await events.opened;

  const ports = [lab.appliance.httpsPort, lab.appliance.agentPort];
  const look = () => Promise.all(ports.map((port) => shown(port, lab.address.caPem, SERVER_NAME)));
  const before = await look();
  t.equal(before[0]!.fingerprint256, before[1]!.fingerprint256);
  t.equal(before[0]!.checkIP('192.0.2.99'), undefined);
  // The machine gets another address: what the certificate says is not true any more.
  lab.addresses.push('192.0.2.99');
  await until('the new certificate on both ports', async () =>
    (await look()).every((now) => now.fingerprint256 !== before[0]!.fingerprint256),
  );
  const after = await look();
  t.equal(after[0]!.fingerprint256, after[1]!.fingerprint256);
  t.equal(after[0]!.checkIP('192.0.2.99'), '192.0.2.99');
  t.equal(JSON.stringify(await state()), since, 'the agent was not disturbed');
  t.notOk(ended, 'nor was the page');
  events.close();

  // A new connection of an agent is still mutual TLS.
  await server.stop();
  await until('the agent to be away', async () => (await state()).name === 'offline');
  server.start();
  await until('the agent to be back', async () => (await state()).name === 'online');
});

// Red when the appliance gives the way back away at its start, and when it never does.
t.test('after a failed upgrade the appliance goes on with its state of before', async (t) => {
  const lab = new Lab();
  t.teardown(() => lab.close());
  await lab.start();
  const state = join(lab.config.dataDir, 'state.db');
  await lab.appliance.close();
  const db = new DatabaseSync(state);
  keepBeforeUpgrade(db, state);
  // The newer version, which nobody ever reached.
  db.exec("UPDATE users SET role = 'viewer'");
  db.exec(`PRAGMA user_version = ${schemaVersion(db) + 1}`);
  db.close();
  await lab.start();
  t.equal((await lab.call<User>('GET', '/api/session')).role, 'admin');
  const entries = await lab.call<{ entries: { detail: string }[] }>('GET', '/api/audit');
  t.match(JSON.stringify(entries), /before an upgrade that was given up/);

  await lab.appliance.close();
  const again = new DatabaseSync(state);
  keepBeforeUpgrade(again, state);
  again.close();
  await lab.start();
  t.ok(existsSync(`${state}.before-upgrade`), 'nobody has asked the new version for anything yet');
  await lab.call('GET', '/api/session');
  t.notOk(existsSync(`${state}.before-upgrade`));
});

t.test('config-backup and config-restore: out, and back', async (t) => {
  const lab = new Lab();
  t.teardown(() => lab.close());
  await lab.start();
  const users = async () => (await lab.call<User[]>('GET', '/api/users')).map((u) => u.username);
  const addUser = (username: string) =>
    lab.call('POST', '/api/users', { username, password: 'a first password', role: 'viewer' });
  await addUser('before');
  const ca = join(lab.dir, 'ca.pem');
  writeFileSync(ca, lab.address.caPem);
  const out = join(lab.dir, 'saved.backup');
  const script = (name: string, args: string[], passphrase: string, input = '') =>
    execa(join(root, 'scripts', name), args, {
      reject: false,
      input,
      env: { UNDERSTUDY_PASSWORD: PASSWORD, UNDERSTUDY_PASSPHRASE: passphrase },
    });
  const url = ['--url', `https://127.0.0.1:${lab.appliance.httpsPort}`, '--ca', ca];
  const backup = (passphrase: string, more: string[] = []) =>
    script('config-backup', [...url, '--out', out, ...more], passphrase);
  const restore = (passphrase: string, more: string[], input = '') =>
    script('config-restore', [...url, '--file', out, ...more], passphrase, input);

  const short = await backup('short');
  t.not(short.exitCode, 0, 'a passphrase that is too short');
  t.notOk(existsSync(out), 'leaves no file');
  const nobody = await backup('a good passphrase', ['--user', 'nobody']);
  t.match(nobody, { exitCode: 1, stderr: /UND_AUTH_FAILED/ });
  const saved = await backup('a good passphrase');
  t.match(saved, { exitCode: 0, stdout: /^saved .*saved\.backup \(\d+ bytes\)/ });
  const sum = createHash('sha256').update(readFileSync(out)).digest('hex');
  t.match(await backup('a good passphrase'), { exitCode: 1, stderr: /exists already/ });
  t.equal(createHash('sha256').update(readFileSync(out)).digest('hex'), sum, 'is left alone');
  t.notOk(readFileSync(out).includes('BEGIN CERTIFICATE'), 'nothing of it is readable');

  await addUser('after');
  t.match(await restore('another passphrase', ['--yes']), {
    exitCode: 1,
    stderr: /UND_BACKUP_DAMAGED/,
  });
  t.match(await restore('a good passphrase', [], 'no\n'), {
    exitCode: 1,
    stderr: /nothing was changed/,
  });
  t.same((await users()).sort(), ['admin', 'after', 'before']);
  t.equal(lab.restartsAsked, 0);

  const running = restore('a good passphrase', ['--yes']);
  await lab.serveRestart(async () => {
    // The script must see it down, however quick this machine is: somebody answers there who is not an appliance.
    const seen = Promise.withResolvers<void>();
    const nobodyHome = createServer((socket) => {
      socket.destroy();
      seen.resolve();
    });
    await new Promise<void>((resolve) =>
      nobodyHome.listen(lab.appliance.httpsPort, '127.0.0.1', () => resolve()),
    );
    await seen.promise;
    await new Promise<void>((resolve) => nobodyHome.close(() => resolve()));
  });
  t.match(await running, { exitCode: 0, stdout: /restored$/ });
  await lab.login('admin', PASSWORD);
  t.same((await users()).sort(), ['admin', 'before'], 'what came after the backup is gone');
  t.equal(
    (await lab.inject('GET', '/api/ca.pem')).body,
    readFileSync(ca, 'utf8'),
    'the same authority',
  );
});
