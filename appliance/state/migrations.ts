/**
 * The schema, one step per entry; a released step is never changed, only followed by another one.
 * Columns that end in `_json` hold values of the types that the store of the table declares.
 */
export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

  CREATE TABLE users (
    username TEXT PRIMARY KEY,
    password_hash TEXT NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('admin','operator','viewer')),
    must_change_password INTEGER NOT NULL,
    created_at TEXT NOT NULL
  ) STRICT;

  CREATE TABLE sessions (
    token_hash TEXT PRIMARY KEY,
    username TEXT NOT NULL REFERENCES users(username) ON DELETE CASCADE,
    created_at TEXT NOT NULL,
    last_used_at TEXT NOT NULL,
    expires_at TEXT NOT NULL
  ) STRICT;

  CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    who TEXT NOT NULL,
    act TEXT NOT NULL,
    object TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('ok','refused','failed')),
    detail TEXT NOT NULL
  ) STRICT;

  CREATE TABLE sources (
    source_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    ssh_port INTEGER NOT NULL,
    ssh_username TEXT NOT NULL,
    state_json TEXT NOT NULL,
    agent_version TEXT,
    machine_json TEXT,
    inventory_json TEXT,
    added_at TEXT NOT NULL
  ) STRICT;
  CREATE UNIQUE INDEX sources_address ON sources(address, ssh_port);

  CREATE TABLE host_keys (
    address TEXT NOT NULL,
    port INTEGER NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (address, port)
  ) STRICT;

  CREATE TABLE enrol_tokens (
    token_hash TEXT PRIMARY KEY,
    source_id TEXT NOT NULL REFERENCES sources(source_id) ON DELETE CASCADE,
    expires_at TEXT NOT NULL,
    used_at TEXT
  ) STRICT;

  CREATE TABLE certificates (
    serial TEXT PRIMARY KEY,
    source_id TEXT NOT NULL,
    source_name TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    not_before TEXT NOT NULL,
    not_after TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('valid','revoked','superseded'))
  ) STRICT;
  CREATE INDEX certificates_source ON certificates(source_id);

  CREATE TABLE passive_instances (
    source_id TEXT NOT NULL REFERENCES sources(source_id) ON DELETE CASCADE,
    boot_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    machine_json TEXT NOT NULL,
    first_seen_at TEXT NOT NULL,
    last_seen_at TEXT NOT NULL,
    PRIMARY KEY (source_id, boot_id)
  ) STRICT;

  CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY,
    source_id TEXT NOT NULL REFERENCES sources(source_id),
    settings_json TEXT NOT NULL,
    phase_json TEXT NOT NULL,
    proven_bootable_at TEXT,
    created_at TEXT NOT NULL
  ) STRICT;

  CREATE TABLE job_disks (
    job_id TEXT NOT NULL REFERENCES jobs(job_id) ON DELETE CASCADE,
    disk_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    serial TEXT NOT NULL UNIQUE,
    replica_json TEXT,
    PRIMARY KEY (job_id, disk_id)
  ) STRICT;

  CREATE TABLE failovers (
    failover_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    started_at TEXT NOT NULL,
    ended_at TEXT,
    record_json TEXT NOT NULL
  ) STRICT;
  CREATE INDEX failovers_job ON failovers(job_id);
  `,
  // Jobs that ended: an agent that was away then still runs its part, and is told when it comes back.
  `
  CREATE TABLE ended_jobs (
    job_id TEXT PRIMARY KEY,
    source_id TEXT NOT NULL REFERENCES sources(source_id) ON DELETE CASCADE
  ) STRICT;
  `,
  // Names that people give to moments of a job's history.
  `
  CREATE TABLE point_labels (
    label_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs(job_id) ON DELETE CASCADE,
    at TEXT NOT NULL,
    text TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TEXT NOT NULL
  ) STRICT;
  CREATE INDEX point_labels_job ON point_labels(job_id, at);
  `,
  // Checkpoints of the replica disks, and what rests on their layers.
  `
  CREATE TABLE checkpoints (
    checkpoint_id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL REFERENCES jobs(job_id) ON DELETE CASCADE,
    journal_id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    since_seq INTEGER NOT NULL,
    source_ms INTEGER NOT NULL,
    taken_ms INTEGER NOT NULL,
    reason TEXT NOT NULL,
    state_json TEXT NOT NULL
  ) STRICT;
  CREATE INDEX checkpoints_job ON checkpoints(job_id, checkpoint_id);

  CREATE TABLE checkpoint_references (
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoints(checkpoint_id) ON DELETE CASCADE,
    holder TEXT NOT NULL,
    PRIMARY KEY (checkpoint_id, holder)
  ) STRICT;
  `,
  // Consistency groups of jobs, their failovers and marks, and what is known of the sources' clocks.
  `
  CREATE TABLE job_groups (
    group_id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    wait_json TEXT NOT NULL,
    created_at TEXT NOT NULL
  ) STRICT;

  CREATE TABLE group_members (
    job_id TEXT PRIMARY KEY REFERENCES jobs(job_id) ON DELETE CASCADE,
    group_id TEXT NOT NULL REFERENCES job_groups(group_id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    priority INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX group_members_group ON group_members(group_id);

  CREATE TABLE group_runs (
    run_id TEXT PRIMARY KEY,
    group_id TEXT NOT NULL,
    started_at TEXT NOT NULL,
    record_json TEXT NOT NULL
  ) STRICT;

  CREATE TABLE group_marks (
    mark_id TEXT PRIMARY KEY,
    group_id TEXT NOT NULL REFERENCES job_groups(group_id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    at_ms REAL NOT NULL,
    apart_ms REAL,
    quiesced INTEGER NOT NULL,
    members_json TEXT NOT NULL
  ) STRICT;
  CREATE INDEX group_marks_group ON group_marks(group_id, at_ms);

  CREATE TABLE source_clocks (
    source_id TEXT NOT NULL REFERENCES sources(source_id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    from_ms REAL NOT NULL,
    offset_ms REAL NOT NULL,
    error_ms REAL NOT NULL,
    PRIMARY KEY (source_id, position)
  ) STRICT;
  `,
  // The last check of each job's journal.
  `
  CREATE TABLE journal_checks (
    job_id TEXT PRIMARY KEY REFERENCES jobs(job_id) ON DELETE CASCADE,
    check_json TEXT NOT NULL
  ) STRICT;
  `,
  // Marks of groups on schedule.
  `
  ALTER TABLE job_groups ADD COLUMN schedule_json TEXT;
  `,
  // Tests of groups on schedule.
  `
  ALTER TABLE job_groups ADD COLUMN test_every TEXT NOT NULL DEFAULT 'off';
  `,
];
