-- The same number in two tables, one per disk, in one transaction: after a recovery both must hold 1..n without a hole.
SET client_min_messages = warning;

DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'admin') THEN CREATE ROLE admin LOGIN IN ROLE pg_read_all_data; END IF;
END $$;

CREATE TABLE IF NOT EXISTS entries_root (
  n bigint PRIMARY KEY,
  at timestamptz NOT NULL,
  note text NOT NULL
);
CREATE TABLE IF NOT EXISTS entries_data (
  n bigint PRIMARY KEY USING INDEX TABLESPACE second_disk,
  at timestamptz NOT NULL,
  note text NOT NULL
) TABLESPACE second_disk;

-- One session and one statement: no process is started per row, so the load is the disks' and not the processor's.
CREATE OR REPLACE PROCEDURE write_rows() LANGUAGE plpgsql AS $$
DECLARE
  n bigint;
  now_at timestamptz;
  note text;
BEGIN
  SELECT coalesce(max(e.n), 0) INTO n FROM entries_root e;
  LOOP
    n := n + 1;
    now_at := clock_timestamp();
    note := repeat(md5(n::text), 8);
    INSERT INTO entries_root VALUES (n, now_at, note);
    INSERT INTO entries_data VALUES (n, now_at, note);
    COMMIT;
    -- The server sends this at once, and only when the row is durable: whoever reads it may hold us to it.
    RAISE INFO 'committed % at %', n, to_char(now_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    PERFORM pg_sleep(0.2);
    COMMIT;
  END LOOP;
END $$;
