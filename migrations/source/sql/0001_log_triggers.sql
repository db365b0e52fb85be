-- The SQL that reads one key column out of a transition table, whatever became of the column since: NULL if it is gone
-- or of another kind of type.
CREATE FUNCTION cdc.statement_key(column_name name, log_type text, type_oids oid[], is_time boolean) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    -- Only conversions that every type has, or planning would fail after a change of type. The type is asked for by its
    -- number, which is no dependency, of the value itself: a query of the catalog reads the snapshot, which may be old.
    SELECT format('CASE WHEN pg_catalog.pg_typeof(%1$I)::oid = ANY (%2$L::oid[]) THEN %3$s END',
        column_name, type_oids,
        format(CASE WHEN log_type = 'bigint' THEN '%I::text::bigint'
                    WHEN is_time THEN 'pg_catalog.to_json(%I) #>> ''{}'''
                    ELSE '%I::text' END, column_name))
$$;

-- The same for a row in JSON, `image`, where types are known by the look of their text only.
CREATE FUNCTION cdc.row_key(column_name name, log_type text, shape text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN log_type = 'bigint' THEN format(
            'CASE WHEN pg_catalog.json_typeof(image -> %1$L) = ''number'' AND image ->> %1$L ~ ''^-?[0-9]{1,19}$'' '
            'THEN CASE WHEN (image ->> %1$L)::numeric BETWEEN -9223372036854775808 AND 9223372036854775807 '
            'THEN (image ->> %1$L)::bigint END END', column_name)
        ELSE format('CASE WHEN image ->> %1$L ~ %2$L THEN image ->> %1$L END', column_name, shape)
    END
$$;

-- The query that selects the keys k1, k2 and so on of what an operation changed.
CREATE FUNCTION cdc.changed_keys(target regclass, wanted name[], level text, operation text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH key AS (
        SELECT string_agg(format('k%s', k.place), ', ' ORDER BY k.place) AS names,
               string_agg(format('keys.k%s', k.place), ', ' ORDER BY k.place) AS found,
               string_agg(format('NULL::%s', k.log_type), ', ' ORDER BY k.place) AS nothing,
               string_agg(format('%I', k.column_name), ', ' ORDER BY k.place) AS columns,
               string_agg(cdc.statement_key(k.column_name, k.log_type, k.type_oids, k.is_time), ', ' ORDER BY k.place)
                   AS of_statement,
               string_agg(cdc.row_key(k.column_name, k.log_type, k.shape), ', ' ORDER BY k.place) AS of_row
        FROM cdc.key_of(target, wanted) k
    ), source AS (
        -- An update logs the old and the new key.
        SELECT CASE level
            WHEN 'row' THEN format(
                'SELECT DISTINCT %s FROM (VALUES %s) AS changed(image)', key.of_row,
                CASE operation WHEN 'insert' THEN '(pg_catalog.row_to_json(NEW))'
                               WHEN 'delete' THEN '(pg_catalog.row_to_json(OLD))'
                               ELSE '(pg_catalog.row_to_json(OLD)), (pg_catalog.row_to_json(NEW))' END)
            ELSE CASE operation
                WHEN 'insert' THEN format('SELECT %s FROM new_rows', key.of_statement)
                WHEN 'delete' THEN format('SELECT %s FROM old_rows', key.of_statement)
                ELSE format('SELECT %1$s FROM old_rows UNION SELECT %1$s FROM new_rows', key.of_statement) END
            END AS query
        FROM key)
    -- A name is looked for in the transition table first, then in `absent`, one query further out: where the column is
    -- gone, NULL stands for it, and the query can be planned.
    SELECT format('SELECT CASE WHEN (%s) IS NOT NULL THEN NULL ELSE ''key'' END, %s '
                  'FROM (VALUES (%s)) AS absent(%s) CROSS JOIN LATERAL (%s) AS keys(%s)',
                  key.found, key.found, key.nothing, key.columns, source.query, key.names)
    FROM key, source
$$;

-- The function behind one operation's triggers on one captured table; all relations below a partitioned one share it.
-- Nothing in it fails whatever becomes of the table's columns, and there is no EXCEPTION block: that would be a
-- subtransaction and an xid for each statement. It runs as its owner with a fixed search path, so that writers need
-- no rights on the log. Where the owner is another role by now (REASSIGN OWNED) and may not log, the statement goes on
-- without a record: the capture finds that, gives the owner the rights and reads the table anew.
CREATE FUNCTION cdc.create_log_function(
    attached integer, target regclass, wanted name[], level text, operation text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    names text := (SELECT string_agg(format('k%s', k.place), ', ') FROM cdc.key_of(target, wanted) k);
    records text;
BEGIN
    IF operation = 'truncate' THEN
        -- One mark a transaction, however many partitions are truncated.
        records := 'INSERT INTO cdc.log_%1$s_%2$s (mark) SELECT ''truncate'' WHERE NOT EXISTS ('
                   'SELECT FROM cdc.log_%1$s_%2$s l '
                   'WHERE l.mark = ''truncate'' AND l.xid = pg_catalog.pg_current_xact_id())';
    ELSE
        -- No more than there is room for, however many rows one statement changes.
        records := 'INSERT INTO cdc.log_%1$s_%2$s (mark, ' || names || ') '
                   || replace(cdc.changed_keys(target, wanted, level, operation), '%', '%%') || ' LIMIT viewkeeper.room; '
                   'GET DIAGNOSTICS logged = ROW_COUNT; IF logged >= room THEN %3$s; END IF';
    END IF;
    EXECUTE format(
        'CREATE FUNCTION cdc.log_%s_%s() RETURNS trigger '
        'LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS %L',
        attached, operation,
        format(
            -- Columns may be called as variables are, PL/pgSQL's own too, found for instance; no relation in these
            -- queries is called as the block is.
            '
#variable_conflict use_column
<<viewkeeper>>
DECLARE
    place smallint;
    room bigint;
    logged bigint;
BEGIN
    -- In this order and by names as texts: without USAGE on the schema no name in it may even be planned with.
    IF NOT pg_catalog.has_schema_privilege(''cdc'', ''USAGE'') THEN
        RETURN NULL;
    ELSIF NOT (pg_catalog.has_table_privilege(''cdc.captured_table'', ''SELECT'')
               AND pg_catalog.has_table_privilege(''cdc.log_%1$s_0'', ''SELECT'')
               AND pg_catalog.has_table_privilege(''cdc.log_%1$s_0'', ''INSERT'')
               AND pg_catalog.has_table_privilege(''cdc.log_%1$s_1'', ''SELECT'')
               AND pg_catalog.has_table_privilege(''cdc.log_%1$s_1'', ''INSERT'')) THEN
        RETURN NULL;
    END IF;
    -- The part to fill; none is seen in a snapshot from before it was attached. A record takes 44 bytes at least.
    SELECT t.active_part, (t.log_limit_bytes - pg_catalog.pg_relation_size(
               CASE t.active_part WHEN 0 THEN ''cdc.log_%1$s_0''::regclass ELSE ''cdc.log_%1$s_1''::regclass END)) / 44
    INTO place, room FROM cdc.captured_table t WHERE t.id = %1$s;
    -- 2 and 3: that part is full.
    IF room <= 0 THEN
        place := place + 2;
    END IF;
    IF place = 0 THEN
        %2$s;
    ELSIF place = 2 THEN
        %4$s;
    ELSIF place = 3 THEN
        %5$s;
    ELSE
        %3$s;
    END IF;
    RETURN NULL;
END
',
            attached, format(records, attached, 0, cdc.limit_record(attached, 0)),
            format(records, attached, 1, cdc.limit_record(attached, 1)),
            cdc.limit_record(attached, 0), cdc.limit_record(attached, 1)));
    EXECUTE format('REVOKE EXECUTE ON FUNCTION cdc.log_%s_%s() FROM PUBLIC', attached, operation);
END
$$;

-- What is logged instead of keys into a part that is full: one mark. The statement holds a lock on the part until its
-- transaction ends, also where the mark is there already: who empties the part finds none that went without a record.
CREATE FUNCTION cdc.limit_record(attached integer, part integer) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('INSERT INTO cdc.log_%1$s_%2$s (mark) SELECT ''limit'' '
                  'WHERE NOT EXISTS (SELECT FROM cdc.log_%1$s_%2$s l WHERE l.mark = ''limit'')', attached, part)
$$;

-- Put an operation's trigger on one relation, unless it is there. ENABLE ALWAYS fires it under
-- session_replication_role = replica, too; rows that logical replication applies fire triggers of the row level only.
CREATE FUNCTION cdc.create_log_trigger(attached integer, target regclass, level text, operation text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    trigger_name text := format('viewkeeper_%s_%s', attached, operation);
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = target AND g.tgname = trigger_name) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE TRIGGER %I %s ON %s %s EXECUTE FUNCTION cdc.log_%s_%s()',
        trigger_name,
        CASE operation WHEN 'truncate' THEN 'BEFORE TRUNCATE' ELSE 'AFTER ' || upper(operation) END,
        target,
        CASE WHEN operation = 'truncate' THEN 'FOR EACH STATEMENT'
             WHEN level = 'row' THEN 'FOR EACH ROW'
             WHEN operation = 'insert' THEN 'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT'
             WHEN operation = 'delete' THEN 'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT'
             ELSE 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT' END,
        attached, operation);
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', target, trigger_name);
    RETURN true;
END
$$;

-- Put all triggers that are missing on a captured table and on what is below it; returns whether any was. A statement
-- aimed at a partition fires that partition's own statement triggers only. Row triggers are cloned by Postgres.
CREATE FUNCTION cdc.create_log_triggers(attached integer, target regclass, level text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    relation regclass;
    operation text;
    added boolean := false;
BEGIN
    -- Root first: the rest of the tree gets its clones from there.
    FOR relation IN SELECT t FROM cdc.tree_of(target) t ORDER BY t <> target, t LOOP
        FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
            added := cdc.create_log_trigger(attached, relation, level, operation) OR added;
        END LOOP;
    END LOOP;
    RETURN added;
END
$$;

-- Drop an attachment's triggers from all relations but `kept`. They are found by their functions: tables may have been
-- renamed, dropped, or taken out of their tree.
CREATE FUNCTION cdc.drop_log_triggers(attached integer, kept oid[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found record;
BEGIN
    FOR found IN
        SELECT g.oid, g.tgname, g.tgrelid::regclass AS relation
        FROM pg_catalog.pg_trigger g
        JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
        WHERE p.pronamespace = 'cdc'::regnamespace AND p.proname LIKE format('log\_%s\_%%', attached)
          -- Clones go with what they were cloned from.
          AND g.tgparentid = 0 AND g.tgrelid <> ALL (kept)
    LOOP
        PERFORM cdc.hold(found.relation);
        IF EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.oid = found.oid) THEN
            EXECUTE format('DROP TRIGGER %I ON %s', found.tgname, found.relation);
        END IF;
    END LOOP;
END
$$;
