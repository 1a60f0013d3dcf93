import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import t from 'tap';
import type { SystemInfo, User } from '../../appliance/api/schema.ts';
import { openBackup, sealBackup } from '../../appliance/backup/backup-file.ts';
import { stageRestore, swapInRestore } from '../../appliance/backup/backup-service.ts';
import { Lab, PASSWORD } from '../integration/api.lab.ts';

t.setTimeout(120_000);
const PHRASE = 'a long passphrase';
const scratch = mkdtempSync(join(tmpdir(), 'und-backup-'));
t.teardown(() => rmSync(scratch, { recursive: true }));

t.test('the file opens with its passphrase and unchanged only', async (t) => {
  const file = await sealBackup({ secret: 'in here' }, PHRASE, 10);
  t.same(await openBackup(file, PHRASE), { secret: 'in here' });
  await t.rejects(openBackup(file, 'another phrase'), { code: 'UND_BACKUP_DAMAGED' });
  t.notOk(file.includes('in here'));
  for (let at = 0; at < file.length; at++) {
    const hurt = Buffer.from(file);
    hurt[at]! ^= 0x01;
    await t.rejects(openBackup(hurt, PHRASE), { code: /^UND_BACKUP_/ }, `byte ${at}`);
  }
  for (const length of [0, 7, 52, file.length - 1]) {
    await t.rejects(openBackup(file.subarray(0, length), PHRASE), { code: /^UND_BACKUP_/ });
  }
  const newer = Buffer.from(file);
  newer[7] = 9;
  await t.rejects(openBackup(newer, PHRASE), { code: 'UND_BACKUP_VERSION' });
  const costly = Buffer.from(file);
  costly[8] = 40;
  await t.rejects(openBackup(costly, PHRASE), { code: 'UND_BACKUP_INVALID' });
});

t.test('what is sealed well but is no backup is refused, and nothing is left of it', async (t) => {
  const content = {
    product: 'understudy-appliance',
    version: '1',
    schemaVersion: 1,
    madeAt: '',
    files: {} as Record<string, string>,
  };
  const cases: [string, unknown, string][] = [
    ['another product', { ...content, product: 'x' }, 'UND_BACKUP_INVALID'],
    ['of a newer schema', { ...content, schemaVersion: 9999 }, 'UND_BACKUP_VERSION'],
    ['files missing', content, 'UND_BACKUP_INVALID'],
    [
      'a state file that is none',
      {
        ...content,
        files: Object.fromEntries(
          ['secrets.key', 'ca/ca.pem', 'ca/ca.key.sealed', 'state.db'].map((path) => [
            path,
            'AAAA',
          ]),
        ),
      },
      'UND_BACKUP_INVALID',
    ],
  ];
  for (const [name, value, code] of cases) {
    const dir = mkdtempSync(join(scratch, 'data-'));
    await t.rejects(stageRestore(dir, await sealBackup(value, PHRASE, 10), PHRASE), { code }, name);
    t.equal(swapInRestore(dir), false, name);
    t.notOk(existsSync(join(dir, 'restore.staging')), name);
  }
});

t.test('a restore brings back users, authority and identity, at the next start', async (t) => {
  const lab = await new Lab().start();
  t.teardown(() => lab.close());
  const before = await lab.call<SystemInfo>('GET', '/api/system');
  await lab.call('POST', '/api/users', {
    username: 'kept',
    password: 'long enough 1',
    role: 'viewer',
  });
  const state = new DatabaseSync(join(lab.dir, 'data/state.db'), {
    enableForeignKeyConstraints: false,
  });
  state.exec(`INSERT INTO checkpoints VALUES (NULL, 'j', 'journal', 1, 1, 1, 1, 'test', '{}')`);
  state.close();
  const answer = await lab.inject('POST', '/api/config/backup', { passphrase: PHRASE });
  t.equal(answer.statusCode, 200);
  t.equal(answer.headers['content-type'], 'application/octet-stream');
  const backupBase64 = answer.rawPayload.toString('base64');
  await lab.call('DELETE', '/api/users/kept');
  await lab.call('POST', '/api/users', {
    username: 'later',
    password: 'long enough 1',
    role: 'viewer',
  });

  const wrong = await lab.inject('POST', '/api/config/restore', { passphrase: 'no', backupBase64 });
  t.match(wrong.json(), { code: 'UND_BACKUP_DAMAGED' });
  t.equal(lab.restartsAsked, 0);

  const accepted = await lab.inject('POST', '/api/config/restore', {
    passphrase: PHRASE,
    backupBase64,
  });
  t.equal(accepted.statusCode, 202, accepted.body);
  const still = await lab.call<User[]>('GET', '/api/users');
  t.ok(
    still.some(({ username }) => username === 'later'),
    'the running state is not touched',
  );
  await lab.restart();
  t.equal(
    (await lab.inject('GET', '/api/session')).statusCode,
    401,
    'sessions are not in a backup',
  );
  await lab.login('admin', PASSWORD);
  const users = (await lab.call<User[]>('GET', '/api/users')).map(({ username }) => username);
  t.same(users, ['admin', 'kept']);
  const after = await lab.call<SystemInfo>('GET', '/api/system');
  t.equal(after.applianceId, before.applianceId);
  t.equal(after.caFingerprintSha256, before.caFingerprintSha256);
  t.ok(existsSync(join(lab.dir, 'data/before-restore/state.db')), 'what was there is kept');

  // The same backup into an appliance of its own: it becomes the one that was backed up.
  const other = await new Lab().start();
  t.teardown(() => other.close());
  await stageRestore(join(other.dir, 'data'), Buffer.from(backupBase64, 'base64'), PHRASE);
  const staged = new DatabaseSync(join(other.dir, 'data/restore.pending/state.db'));
  const { rows } = staged.prepare('SELECT count(*) AS rows FROM checkpoints').get() as {
    rows: number;
  };
  staged.close();
  t.equal(rows, 0, 'what the backup knew of checkpoints is forgotten');
  await other.restart();
  await other.login('admin', PASSWORD);
  const there = await other.call<SystemInfo>('GET', '/api/system');
  t.equal(there.applianceId, before.applianceId);
  t.equal(there.caFingerprintSha256, before.caFingerprintSha256);
});

t.test('a swap that is interrupted anywhere is finished by the next start', async (t) => {
  const make = (dir: string) => {
    mkdirSync(join(dir, 'ca'), { recursive: true });
    mkdirSync(join(dir, 'restore.pending/ca'), { recursive: true });
    for (const path of ['state.db', 'state.db-wal', 'secrets.key', 'ca/ca.pem']) {
      writeFileSync(join(dir, path), 'old');
    }
    for (const path of ['state.db', 'secrets.key', 'ca/ca.pem']) {
      writeFileSync(join(dir, 'restore.pending', path), 'new');
    }
  };
  const check = (dir: string, name: string) => {
    for (const path of ['state.db', 'secrets.key', 'ca/ca.pem']) {
      t.equal(readFileSync(join(dir, path), 'utf8'), 'new', `${name}: ${path}`);
      t.equal(
        readFileSync(join(dir, 'before-restore', path), 'utf8'),
        'old',
        `${name}: old ${path}`,
      );
    }
    t.notOk(existsSync(join(dir, 'state.db-wal')), `${name}: no log of the old state`);
    t.equal(swapInRestore(dir), false, `${name}: once`);
  };
  const whole = mkdtempSync(join(scratch, 'swap-'));
  make(whole);
  t.equal(swapInRestore(whole), true);
  check(whole, 'without interruption');
  // Every rename on the way is a place to die: the function is run with the n-th one failing, then run again.
  for (let dieAt = 1; ; dieAt++) {
    const dir = mkdtempSync(join(scratch, 'swap-'));
    make(dir);
    let renames = 0;
    try {
      swapInRestore(dir, () => {
        if (++renames === dieAt) throw new Error('power cut');
      });
    } catch {
      t.equal(swapInRestore(dir), true, `after place ${dieAt}`);
      check(dir, `interrupted at place ${dieAt}`);
      continue;
    }
    t.ok(dieAt > 6, `${dieAt - 1} places were tried`);
    break;
  }
});
