import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import t from 'tap';
import { AuditStore } from '../../appliance/state/audit.ts';
import {
  keepBeforeUpgrade,
  schemaVersion,
  takeBack,
  upgradeAccepted,
} from '../../appliance/state/before-upgrade.ts';
import { CertificateStore } from '../../appliance/state/certificates.ts';
import {
  inTransaction,
  openDatabase,
  openState,
  SCHEMA_VERSION,
} from '../../appliance/state/database.ts';
import { EnrolTokenStore } from '../../appliance/state/enrol-tokens.ts';
import { writeFileDurably } from '../../appliance/state/files.ts';
import { HostKeyStore } from '../../appliance/state/host-keys.ts';
import { type JobRow, JobStore } from '../../appliance/state/jobs.ts';
import { type LabelRow, LabelStore } from '../../appliance/state/labels.ts';
import { MIGRATIONS } from '../../appliance/state/migrations.ts';
import { PassiveInstanceStore } from '../../appliance/state/passive-instances.ts';
import { SettingStore } from '../../appliance/state/settings.ts';
import { type SourceRow, SourceStore } from '../../appliance/state/sources.ts';

const dir = mkdtempSync(join(tmpdir(), 'und-state-'));
t.teardown(() => rmSync(dir, { recursive: true }));
const NOW = '2026-01-01T00:00:00.000Z';
const machine = { hostname: 'web1', smbiosUuid: 'u', bootId: 'b', diskSerials: ['s'] };
const source: SourceRow = {
  sourceId: 's1',
  name: 'web1',
  address: '192.0.2.5',
  sshPort: 22,
  sshUsername: 'root',
  state: { name: 'installing', step: 'preflight' },
  agentVersion: null,
  machine: null,
  inventory: null,
  addedAt: NOW,
};
const job: JobRow = {
  jobId: 'j1',
  sourceId: 's1',
  settings: {
    sourceId: 's1',
    diskIds: ['d1', 'd2'],
    pool: 'default',
    network: 'lan',
    replicaName: 'r',
    vcpus: 1,
    memoryBytes: 2 ** 30,
    compression: 'fast',
    bandwidthLimitBytesPerSec: null,
  },
  phase: { name: 'creating', failed: null },
  provenBootableAt: null,
  createdAt: NOW,
  disks: [
    { diskId: 'd2', name: 'vdb', sizeBytes: 2 ** 40, serial: 'u2', replica: null },
    { diskId: 'd1', name: 'vda', sizeBytes: 512, serial: 'u1', replica: null },
  ],
};

t.test('the state file survives being closed, and is not of a newer version', async (t) => {
  const path = join(dir, 'state.db');
  const db = openDatabase(path);
  new SettingStore(db).set('applianceId', 'a');
  new SettingStore(db).set('applianceId', 'b');
  db.close();
  const again = openDatabase(path);
  t.equal(new SettingStore(again).get('applianceId'), 'b');
  again.exec(`PRAGMA user_version = ${SCHEMA_VERSION + 1}`);
  again.close();
  t.throws(() => openDatabase(path), /newer appliance/);
});

/** A state file as a version before this one wrote it. */
function olderState(path: string): void {
  const db = new DatabaseSync(path);
  db.exec('PRAGMA journal_mode = WAL');
  for (const migration of MIGRATIONS.slice(0, -1)) db.exec(migration);
  db.exec(`PRAGMA user_version = ${SCHEMA_VERSION - 1}`);
  new SettingStore(db).set('applianceId', 'before');
  db.close();
}

const versionOf = (path: string) => {
  const db = new DatabaseSync(path, { readOnly: true });
  const version = schemaVersion(db);
  db.close();
  return version;
};

// Red without the copy, with one that is made after the migration, and when what was written since stays in its WAL.
t.test('an upgrade that is given up: the version before goes on with its own state', async (t) => {
  const path = join(dir, 'upgrade.db');
  olderState(path);
  const { db, takenBack } = openState(path);
  t.equal(takenBack, false);
  t.equal(versionOf(`${path}.before-upgrade`), SCHEMA_VERSION - 1, 'a copy in the old form');
  new SettingStore(db).set('applianceId', 'written by the new version');
  db.close();

  // Power fails while it migrates, and it is started again: the copy is still the one from before.
  const half = new DatabaseSync(path);
  half.exec(`PRAGMA user_version = ${SCHEMA_VERSION - 1}`);
  keepBeforeUpgrade(half, path);
  half.exec(`PRAGMA user_version = ${SCHEMA_VERSION}`);
  half.close();

  t.equal(takeBack(path, SCHEMA_VERSION - 2), false, 'not by a version that is older still');
  t.equal(versionOf(path), SCHEMA_VERSION);
  t.equal(takeBack(path, SCHEMA_VERSION - 1), true);
  t.equal(versionOf(path), SCHEMA_VERSION - 1);
  const back = new DatabaseSync(path);
  t.equal(new SettingStore(back).get('applianceId'), 'before');
  back.close();
  t.equal(versionOf(`${path}.given-up`), SCHEMA_VERSION, 'what was given up can be looked at');
  t.equal(takeBack(path, SCHEMA_VERSION - 1), false, 'there is one way back only');
});

t.test('the state goes back with its labels and without its checkpoints', async (t) => {
  const path = join(dir, 'back.db');
  const { db } = openState(path);
  new SettingStore(db).set('applianceId', 'a');
  new SourceStore(db).put(source);
  new JobStore(db).put(job);
  db.exec(`INSERT INTO checkpoints
    (job_id, journal_id, seq, since_seq, source_ms, taken_ms, reason, state_json)
    VALUES ('j1', 'x', 1, 1, 1, 1, 'schedule', '{}')`);
  keepBeforeUpgrade(db, path);
  new SettingStore(db).set('applianceId', 'b');
  db.exec(`PRAGMA user_version = ${SCHEMA_VERSION + 1}`);
  db.close();
  const back = openState(path);
  t.equal(back.takenBack, true);
  t.equal(new SettingStore(back.db).get('applianceId'), 'a');
  t.equal(new JobStore(back.db).list().length, 1);
  const { left } = back.db.prepare('SELECT count(*) AS left FROM checkpoints').get() as {
    left: number;
  };
  t.equal(left, 0, 'the newer version may have merged what they name');
  back.db.close();
});

t.test('once somebody relies on the new version there is no way back', async (t) => {
  const path = join(dir, 'accepted.db');
  olderState(path);
  const { db } = openState(path);
  upgradeAccepted(path);
  upgradeAccepted(path);
  db.exec(`PRAGMA user_version = ${SCHEMA_VERSION + 1}`);
  db.close();
  t.throws(() => openState(path), /newer appliance/);
  t.equal(versionOf(path), SCHEMA_VERSION + 1, 'and it is left as it is');
});

t.test('labels of a job, by their moment; they end with it', async (t) => {
  const db = openDatabase(':memory:');
  const labels = new LabelStore(db);
  new SourceStore(db).put(source);
  new JobStore(db).put(job);
  const label = (labelId: string, at: string): LabelRow => ({
    labelId,
    jobId: 'j1',
    at,
    text: `label ${labelId}`,
    createdBy: 'admin',
    createdAt: NOW,
  });
  labels.add(label('b', '2026-02-01T00:00:00.000Z'));
  labels.add(label('a', '2026-01-01T00:00:00.000Z'));
  t.same(
    labels.list('j1').map(({ labelId }) => labelId),
    ['a', 'b'],
  );
  t.same(labels.list('j1')[0], label('a', '2026-01-01T00:00:00.000Z'));
  t.throws(() => labels.remove('j2', 'a'), { code: 'UND_NOT_FOUND' });
  labels.remove('j1', 'a');
  new JobStore(db).put({ ...job, provenBootableAt: NOW });
  t.equal(labels.list('j1').length, 1, 'a job that is saved keeps them');
  for (let n = 1; n < 1000; n++) labels.add(label(String(n), NOW));
  t.throws(() => labels.add(label('one more', NOW)), { code: 'UND_LABELS_FULL' });
  new JobStore(db).remove('j1');
  t.same(labels.list('j1'), []);
  db.close();
});

t.test('a transaction is all or nothing, also inside another one', async (t) => {
  const db = openDatabase(':memory:');
  const settings = new SettingStore(db);
  settings.set('applianceId', 'before');
  t.throws(
    () =>
      inTransaction(db, () => {
        settings.set('applianceId', 'after');
        inTransaction(db, () => settings.set('applianceId', 'inner'));
        throw new Error('stop');
      }),
    /stop/,
  );
  t.equal(settings.get('applianceId'), 'before');
  t.equal(db.isTransaction, false);
});

t.test('sources and their copies', async (t) => {
  const db = openDatabase(':memory:');
  const sources = new SourceStore(db);
  sources.put(source);
  t.same(sources.get('s1'), source);
  sources.put({ ...source, machine, state: { name: 'online', since: NOW } });
  t.same(sources.get('s1')?.machine, machine);
  t.same(sources.findByAddress('192.0.2.5', 22)?.sourceId, 's1');
  t.equal(sources.findByAddress('192.0.2.5', 2222), null);
  t.throws(() => sources.put({ ...source, sourceId: 's2' }), /UNIQUE/, 'one source per address');
  const passive = new PassiveInstanceStore(db);
  passive.see('s1', machine, 'a clone', NOW);
  passive.see('s1', machine, 'still', '2026-01-02T00:00:00.000Z');
  t.match(passive.list('s1'), [{ reason: 'still', firstSeenAt: NOW }]);
  // Red when any copy that calls in counts for the one that was asked about.
  const since = '2026-01-01T12:00:00.000Z';
  const replica = { ...machine, smbiosUuid: 'R', bootId: 'b2' };
  t.equal(passive.lastSeenOn('s1', 'r', since), null, 'a clone is not the replica');
  passive.see('s1', { ...replica, smbiosUuid: null, bootId: 'b3' }, 'who', since);
  passive.see('s1', replica, 'replica', NOW);
  t.equal(passive.lastSeenOn('s1', 'r', since), null, 'nor is it itself, seen before');
  passive.see('s1', replica, 'replica', since);
  t.equal(passive.lastSeenOn('s1', 'r', since), since);
  sources.remove('s1');
  t.same(passive.list('s1'), []);
});

t.test('jobs keep their disks in order', async (t) => {
  const db = openDatabase(':memory:');
  new SourceStore(db).put(source);
  const jobs = new JobStore(db);
  jobs.put(job);
  t.same(jobs.get('j1'), job);
  const replica = { pool: 'default', name: 'understudy-x.qcow2', path: '/p/x' };
  const next: JobRow = {
    ...job,
    phase: { name: 'active', paused: true },
    disks: job.disks.map((disk) => ({ ...disk, replica })),
  };
  jobs.put(next);
  t.same(jobs.list(), [next]);
  t.throws(() => new SourceStore(db).remove('s1'), /FOREIGN KEY/, 'a job keeps its source');
  jobs.remove('j1');
  t.same(jobs.list(), []);
  t.same(db.prepare('SELECT * FROM job_disks').all(), []);
  t.same(jobs.endedOf('s1'), ['j1']);
  jobs.remove('j1');
  t.same(jobs.endedOf('s1'), ['j1'], 'once');
});

t.test('an enrolment token is used once, whoever comes first', async (t) => {
  const db = openDatabase(':memory:');
  new SourceStore(db).put(source);
  const tokens = new EnrolTokenStore(db);
  tokens.insert({ tokenHash: 'h', sourceId: 's1', expiresAt: NOW, usedAt: null });
  t.equal(tokens.use('h', NOW), true);
  t.equal(tokens.use('h', NOW), false);
  tokens.insert({ tokenHash: 'i', sourceId: 's1', expiresAt: NOW, usedAt: null });
  tokens.removeUnused('s1');
  t.equal(tokens.get('i'), null);
  t.ok(tokens.get('h'), 'a used one stays known as used');
});

t.test('certificates retire together', async (t) => {
  const store = new CertificateStore(openDatabase(':memory:'));
  const add = (serial: string) =>
    store.insert({
      serial,
      sourceId: 's1',
      sourceName: 'web1',
      fingerprint: 'f',
      notBefore: NOW,
      notAfter: NOW,
      state: 'valid',
    });
  add('A');
  add('B');
  t.equal(store.newestOf('s1')?.serial, 'B');
  t.equal(store.retire('s1', 'superseded', 'B'), 1);
  t.equal(store.get('A')?.state, 'superseded');
  t.equal(store.retire('s1', 'revoked'), 2, 'a superseded one is revoked too');
  t.equal(store.retire('s1', 'superseded'), 0, 'a revoked one stays revoked');
});

t.test('host keys and the audit log', async (t) => {
  const db = openDatabase(':memory:');
  const keys = new HostKeyStore(db);
  keys.set('h', 22, 'SHA256:a');
  keys.set('h', 22, 'SHA256:b');
  t.equal(keys.get('h', 22), 'SHA256:b');
  t.equal(keys.get('h', 23), null);
  const audit = new AuditStore(db);
  for (let i = 0; i < 5; i++) {
    audit.add({ at: NOW, who: 'admin', act: 'x', object: String(i), outcome: 'ok', detail: '' });
  }
  t.same(
    audit.list(2).map(({ object }) => object),
    ['4', '3'],
  );
});

t.test('a file is replaced whole and with its mode', async (t) => {
  const path = join(dir, 'file');
  writeFileDurably(path, 'one', 0o600);
  writeFileDurably(path, Buffer.from('two'), 0o600);
  t.equal(readFileSync(path, 'utf8'), 'two');
  t.throws(() => writeFileDurably(join(dir, 'no/such/dir'), 'x', 0o600));
  t.ok(new DatabaseSync(':memory:'));
});
