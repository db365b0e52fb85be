-- One row a capture: its lease, and the mark that proves which history this database has.
CREATE TABLE cdc.capture (
    name text PRIMARY KEY,
    -- Random token of the newest flush, and of the newest flush known to be in a cursor that Kafka committed.
    pending_token text NOT NULL DEFAULT '',
    published_token text NOT NULL DEFAULT '',
    -- The leader's name, and a count that it raises at least each second; without progress another may take over.
    leader text,
    beat bigint NOT NULL DEFAULT 0,
    -- Any role may write messages into the WAL: only who reads this row can write one that the capture takes for its own.
    message_secret uuid NOT NULL DEFAULT gen_random_uuid()
) WITH (fillfactor = 50);

-- One row a captured table. `id` is never used again, so that a table attached anew is not taken for the old one.
CREATE TABLE cdc.captured_table (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    capture text NOT NULL REFERENCES cdc.capture,
    table_oid oid NOT NULL,
    table_schema name NOT NULL,
    table_name name NOT NULL,
    kind text NOT NULL CHECK (kind IN ('table', 'partitioned', 'view')),
    -- How changed keys are found: logged by triggers, or read from the WAL.
    source text NOT NULL DEFAULT 'triggers' CHECK (source IN ('triggers', 'wal')),
    -- The source that is to find them once the capture has taken the table over.
    moving_to text CHECK (moving_to IN ('triggers', 'wal') AND moving_to <> source),
    -- A view that a projector keeps: it logs the changes, and says as of when the rows are.
    is_projected boolean NOT NULL DEFAULT false,
    -- The transaction in which we have added the table to the publication.
    published_by xid,
    level text NOT NULL CHECK (level IN ('statement', 'row')),
    -- The columns that may leave the database, all where it is NULL, and those of them that leave it as a keyed hash.
    listed name[],
    masks name[],
    -- The numbers of those that leave it as they are, NULL where all do.
    plain_columns smallint[],
    key_columns name[] NOT NULL,
    -- The type of each key column in the change log: bigint for all integers, text for everything else.
    key_types text[] NOT NULL,
    -- The columns' own types when the table was attached: the triggers log a key only from a type of that family.
    key_type_oids oid[] NOT NULL,
    -- The part of the change log that writers fill now; the other one is emptied once its rows are published.
    active_part smallint NOT NULL DEFAULT 0 CHECK (active_part IN (0, 1)),
    -- The snapshot up to which the log was emptied, for whoever has to find out what an older cursor has missed.
    pruned_snapshot pg_snapshot,
    -- Bytes of one part of the change log at which logging stops; the capture sets it.
    log_limit_bytes bigint NOT NULL DEFAULT 1073741824,
    UNIQUE (capture, table_schema, table_name)
) WITH (fillfactor = 50);

-- What a command asks of the running capture; it deletes the row once that is done.
CREATE TABLE cdc.request (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    capture text NOT NULL REFERENCES cdc.capture,
    attachment integer NOT NULL REFERENCES cdc.captured_table ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind = 'snapshot'),
    requested_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
