-- One row a capture: its lease, and the mark that proves which history this database has.
CREATE TABLE cdc.capture (
    name text PRIMARY KEY,
    -- Random token of the newest flush, and of the newest flush known to be in a cursor that Kafka committed.
    pending_token text NOT NULL DEFAULT '',
    published_token text NOT NULL DEFAULT '',
    -- The leader's name, and a count that it raises at least each second; without progress another may take over.
    leader text,
    beat bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- One row a captured table. `id` is never used again, so that a table attached anew is not taken for the old one.
CREATE TABLE cdc.captured_table (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    capture text NOT NULL REFERENCES cdc.capture,
    table_oid oid NOT NULL,
    table_schema name NOT NULL,
    table_name name NOT NULL,
    kind text NOT NULL CHECK (kind IN ('table', 'partitioned', 'view')),
    level text NOT NULL CHECK (level IN ('statement', 'row')),
    key_columns name[] NOT NULL,
    -- The type of each key column in the change log: bigint for all integers, text for everything else.
    key_types text[] NOT NULL,
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

-- Why a table cannot be captured, or NULL. Key types are those whose equality in SQL is equality of their text.
CREATE FUNCTION cdc.refusal(target regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT CASE
        WHEN c.relkind <> 'r' THEN 'is not a plain table'
        WHEN c.relpersistence <> 'p' THEN 'is unlogged or temporary: a crash would empty it without a trace'
        WHEN EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
            THEN 'takes part in inheritance or partitioning'
        WHEN NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
            THEN 'has no primary key, and changes are keyed by it: add one'
        ELSE (
            SELECT format('has key column %I of type %s; a key column is smallint, integer, bigint, text, '
                          'varchar or uuid, with a deterministic collation',
                          a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod))
            FROM pg_catalog.pg_index i
            JOIN pg_catalog.pg_attribute a
              ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::smallint[])[0:i.indnkeyatts - 1])
            LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
            WHERE i.indrelid = c.oid AND i.indisprimary
              AND (a.atttypid NOT IN ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype,
                                      'text'::regtype, 'varchar'::regtype, 'uuid'::regtype)
                   OR NOT coalesce(o.collisdeterministic, true))
            LIMIT 1)
    END
    FROM pg_catalog.pg_class c
    WHERE c.oid = target
$$;

-- Attach a table to a capture: its change log in two parts, and the triggers that fill it. Returns false if it is
-- attached already. CREATE TRIGGER's lock waits for open writers, so that the first snapshot taken after this
-- transaction's commit misses nothing.
CREATE FUNCTION cdc.attach(capture_name text, target regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    refused text := cdc.refusal(target);
    schema_name name;
    relation_name name;
    keys name[];
    types text[];
    attached integer;
    log_columns text;
    log_names text;
    old_keys text;
    new_keys text;
    part integer;
BEGIN
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION 'table % %', target, refused USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    SELECT n.nspname, c.relname INTO schema_name, relation_name
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = target;

    -- Log columns are named by position, and integers are wide, so that a renamed or widened key fits the log.
    SELECT array_agg(a.attname ORDER BY k.place),
           array_agg(w.log_type ORDER BY k.place),
           string_agg(format('k%s %s', k.place, w.log_type), ', ' ORDER BY k.place),
           string_agg(format('k%s', k.place), ', ' ORDER BY k.place),
           string_agg(format('o.%I::%s', a.attname, w.log_type), ', ' ORDER BY k.place),
           string_agg(format('n.%I::%s', a.attname, w.log_type), ', ' ORDER BY k.place)
    INTO keys, types, log_columns, log_names, old_keys, new_keys
    FROM pg_catalog.pg_index i,
         LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, place)
         JOIN pg_catalog.pg_attribute a ON a.attnum = k.attnum,
         LATERAL (SELECT CASE WHEN a.atttypid IN ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype)
                              THEN 'bigint' ELSE 'text' END) w(log_type)
    -- Columns that the index only includes come after those of the key.
    WHERE i.indrelid = target AND i.indisprimary AND a.attrelid = target AND k.place <= i.indnkeyatts;

    INSERT INTO cdc.capture (name) VALUES (capture_name) ON CONFLICT DO NOTHING;
    INSERT INTO cdc.captured_table
        (capture, table_oid, table_schema, table_name, kind, level, key_columns, key_types)
    VALUES (capture_name, target, schema_name, relation_name, 'table', 'statement', keys, types)
    ON CONFLICT (capture, table_schema, table_name) DO NOTHING
    RETURNING id INTO attached;
    IF attached IS NULL THEN
        RETURN false;
    END IF;

    FOR part IN 0..1 LOOP
        -- `mark` is NULL for a record of keys, else why a record holds none.
        EXECUTE format('CREATE TABLE cdc.log_%s_%s (xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), '
                       'mark text, %s)', attached, part, log_columns);
        EXECUTE format('CREATE INDEX ON cdc.log_%s_%s (xid)', attached, part);
        EXECUTE format('CREATE INDEX ON cdc.log_%s_%s (xid) WHERE mark IS NOT NULL', attached, part);
    END LOOP;

    PERFORM cdc.create_log_trigger(attached, target, 'insert', log_names,
        format('SELECT %s FROM new_rows n', new_keys));
    PERFORM cdc.create_log_trigger(attached, target, 'update', log_names,
        format('SELECT %s FROM old_rows o UNION SELECT %s FROM new_rows n', old_keys, new_keys));
    PERFORM cdc.create_log_trigger(attached, target, 'delete', log_names,
        format('SELECT %s FROM old_rows o', old_keys));
    PERFORM cdc.create_log_trigger(attached, target, 'truncate', 'mark', 'SELECT ''truncate''');
    RETURN true;
END
$$;

-- One statement-level trigger with a function of its own. The function runs as its owner with a fixed search path,
-- so that writers need no rights on the log. ENABLE ALWAYS fires it under session_replication_role = replica, too; rows
-- that logical replication applies fire no statement-level trigger at all.
CREATE FUNCTION cdc.create_log_trigger(attached integer, target regclass, operation text, log_names text, keys text)
RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    routine text := format('cdc.log_%s_%s', attached, operation);
    trigger_name text := format('viewkeeper_%s_%s', attached, operation);
BEGIN
    EXECUTE format($body$
        CREATE FUNCTION %s() RETURNS trigger
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $function$
        BEGIN
            IF (SELECT active_part FROM cdc.captured_table WHERE id = %s) = 0 THEN
                INSERT INTO cdc.log_%s_0 (%s) %s;
            ELSE
                INSERT INTO cdc.log_%s_1 (%s) %s;
            END IF;
            RETURN NULL;
        END
        $function$ $body$, routine, attached, attached, log_names, keys, attached, log_names, keys);
    EXECUTE format('CREATE TRIGGER %I %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION %s()',
        trigger_name,
        CASE operation WHEN 'truncate' THEN 'BEFORE TRUNCATE' ELSE 'AFTER ' || upper(operation) END,
        target,
        CASE operation WHEN 'insert' THEN 'REFERENCING NEW TABLE AS new_rows'
                       WHEN 'update' THEN 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows'
                       WHEN 'delete' THEN 'REFERENCING OLD TABLE AS old_rows'
                       ELSE '' END,
        routine);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', target, trigger_name);
END
$$;

-- Take back what attach made. Returns false if the table is not attached.
CREATE FUNCTION cdc.detach(capture_name text, schema_name name, relation_name name) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    attached integer;
    target oid;
    operation text;
    part integer;
BEGIN
    DELETE FROM cdc.captured_table t
    WHERE t.capture = capture_name AND t.table_schema = schema_name AND t.table_name = relation_name
    RETURNING t.id, t.table_oid INTO attached, target;
    IF attached IS NULL THEN
        RETURN false;
    END IF;
    FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        IF EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = target) THEN
            EXECUTE format('DROP TRIGGER IF EXISTS %I ON %s',
                           format('viewkeeper_%s_%s', attached, operation), target::regclass);
        END IF;
        EXECUTE format('DROP FUNCTION cdc.log_%s_%s()', attached, operation);
    END LOOP;
    FOR part IN 0..1 LOOP
        EXECUTE format('DROP TABLE cdc.log_%s_%s', attached, part);
    END LOOP;
    RETURN true;
END
$$;
