-- Attach a relation to a capture: its change log in two parts, and for tables the triggers that fill it. Returns false
-- if it is attached already. The table's lock waits for open writers, so that the first snapshot taken after this
-- transaction's commit misses nothing; a projected view's is that of the table that it reads.
CREATE FUNCTION cdc.attach(
    capture_name text, target regclass, wanted_level text DEFAULT NULL, wanted_key name[] DEFAULT NULL,
    listed name[] DEFAULT NULL, masks name[] DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    level text := coalesce(wanted_level, 'statement');
    projected name[] := cdc.projected_key(target);
    log_role name;
    attached integer;
BEGIN
    IF wanted_key <> projected THEN
        RAISE EXCEPTION 'view % is kept by viewkeeper-projector, which logs its changes by (%): leave its key out',
                        target, array_to_string(projected, ', ')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    wanted_key := coalesce(cdc.kept_key(capture_name, target, wanted_key), projected);
    attached := cdc.register(capture_name, target, 'triggers', wanted_level, wanted_key, listed, masks,
                             cdc.refusal(target, level, wanted_key));
    IF attached IS NULL THEN
        RETURN false;
    END IF;
    -- A row's JSON runs casts that the table's owner may have made: it is made as that role, as nobody who may do more.
    -- At statement level nothing of a user's runs, and whoever attaches keeps the right to log.
    SELECT CASE level WHEN 'row' THEN pg_catalog.pg_get_userbyid(c.relowner) ELSE current_user END INTO log_role
    FROM pg_catalog.pg_class c WHERE c.oid = target;
    PERFORM cdc.create_log(attached, target, wanted_key, log_role);
    IF cdc.kind_of(target) <> 'view' THEN
        PERFORM cdc.create_log_functions(attached, target, wanted_key, level, log_role);
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', target);
        PERFORM cdc.create_log_triggers(attached, target, level);
    ELSIF projected IS NOT NULL THEN
        PERFORM cdc.grant_projecting();
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', target);
    END IF;
    RETURN true;
END
$$;

-- The wanted key; where none is named, that of a relation that is attached already, which may move to another source:
-- its log is to hold the same key, and its replica identity to cover it.
CREATE FUNCTION cdc.kept_key(capture_name text, target regclass, wanted_key name[]) RETURNS name[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(wanted_key, (
        SELECT t.key_columns FROM cdc.captured_table t
        JOIN pg_catalog.pg_class c ON c.oid = t.table_oid AND c.relname = t.table_name
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = t.table_schema
        WHERE t.capture = capture_name AND t.table_oid = target))
$$;

-- Note an attachment, and make the view of its columns if not all of them may leave; returns its number, or NULL if the
-- relation is attached so already. One that is attached for the other source is to move to the wanted one: it keeps its
-- number, and both sources find its changes until the capture has taken it over. Asked for the source that it has, what
-- the other one has of it goes. `refused` says why it cannot be captured from this source, NULL if it can.
CREATE FUNCTION cdc.register(
    capture_name text, target regclass, wanted_source text, wanted_level text, wanted_key name[],
    listed name[], masks name[], refused text) RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    complaint text := coalesce(refused, cdc.columns_refusal(target, wanted_key, listed, masks));
    relation record;
    known cdc.captured_table;
    attached integer;
BEGIN
    SELECT n.nspname AS schema_name, c.relname AS name INTO relation
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = target;
    SELECT * INTO known FROM cdc.captured_table t
    WHERE t.capture = capture_name AND t.table_schema = relation.schema_name AND t.table_name = relation.name;
    IF known.id IS NOT NULL THEN
        PERFORM cdc.demand_same(known, target, wanted_source, wanted_level, wanted_key, listed, masks);
    END IF;
    IF known.source = wanted_source THEN
        PERFORM cdc.drop_source(known.id, cdc.other_source(wanted_source));
    END IF;
    IF known.source = wanted_source AND known.moving_to IS NOT NULL THEN
        UPDATE cdc.captured_table t SET moving_to = NULL WHERE t.id = known.id;
    END IF;
    IF wanted_source IN (known.source, known.moving_to) THEN
        RETURN NULL;
    END IF;
    IF complaint IS NOT NULL THEN
        RAISE EXCEPTION 'table %.% %', relation.schema_name, relation.name, complaint
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF known.id IS NOT NULL THEN
        -- It may have come from there, and the capture could not drop all of it.
        PERFORM cdc.drop_source(known.id, wanted_source);
        UPDATE cdc.captured_table t
        SET moving_to = wanted_source,
            level = coalesce(wanted_level, CASE wanted_source WHEN 'triggers' THEN 'statement' ELSE t.level END)
        WHERE t.id = known.id;
        RETURN known.id;
    END IF;

    INSERT INTO cdc.capture (name) VALUES (capture_name) ON CONFLICT DO NOTHING;
    INSERT INTO cdc.captured_table
        (capture, table_oid, table_schema, table_name, kind, is_projected, source, level, listed, masks,
         key_columns, key_types, key_type_oids)
    SELECT capture_name, target, relation.schema_name, relation.name, cdc.kind_of(target),
           cdc.projected_key(target) IS NOT NULL, wanted_source, coalesce(wanted_level, 'statement'), listed, masks,
           array_agg(k.column_name ORDER BY k.place), array_agg(k.log_type ORDER BY k.place),
           array_agg(k.type_oid ORDER BY k.place)
    FROM cdc.key_of(target, wanted_key) k
    RETURNING id INTO attached;
    IF listed IS NOT NULL OR masks IS NOT NULL THEN
        PERFORM cdc.create_rows(attached, target, listed, masks);
    END IF;
    RETURN attached;
END
$$;

-- Raise an error if what is attached under a relation's name is another one, or is attached with other options; NULL
-- stands for any. A level is that of triggers, so that one that comes from the WAL has none yet.
CREATE FUNCTION cdc.demand_same(
    known cdc.captured_table, target regclass, wanted_source text, wanted_level text,
    wanted_key name[], wanted_listed name[], wanted_masks name[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF known.table_oid <> target THEN
        RAISE EXCEPTION 'another table is attached under the name %.%, and it is gone; detach it, delete its topic, '
                        'then attach this one', known.table_schema, known.table_name
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF ('triggers' IN (known.source, known.moving_to) AND known.level <> coalesce(wanted_level, known.level))
       OR known.key_columns <> coalesce(wanted_key, known.key_columns) THEN
        RAISE EXCEPTION 'table %.% is attached with level % and key %; to change that, detach it and attach it anew '
                        '(after a change of its key, delete its topic in between)',
                        known.table_schema, known.table_name, known.level, array_to_string(known.key_columns, ',')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF NOT (coalesce(known.listed, '{}') @> coalesce(wanted_listed, known.listed, '{}')
            AND coalesce(known.listed, '{}') <@ coalesce(wanted_listed, known.listed, '{}')
            AND coalesce(known.masks, '{}') @> coalesce(wanted_masks, known.masks, '{}')
            AND coalesce(known.masks, '{}') <@ coalesce(wanted_masks, known.masks, '{}')) THEN
        RAISE EXCEPTION 'table %.% is attached with columns % and masks %; to change that, detach it, attach it anew, '
                        'and ask for a snapshot of it', known.table_schema, known.table_name,
                        coalesce(array_to_string(known.listed, ','), '(all)'),
                        coalesce(array_to_string(known.masks, ','), '(none)')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$$;

-- The one of the two sources that tables are attached for that is not this one.
CREATE FUNCTION cdc.other_source(source text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE source WHEN 'wal' THEN 'triggers' ELSE 'wal' END
$$;

-- Drop what one source has of an attachment, if there is anything; the tables may have been renamed or dropped since.
CREATE FUNCTION cdc.drop_source(attached integer, dropped text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    operation text;
BEGIN
    IF dropped = 'wal' THEN
        PERFORM cdc.withdraw(t.capture, t.table_oid) FROM cdc.captured_table t WHERE t.id = attached;
        RETURN;
    END IF;
    PERFORM cdc.drop_log_triggers(attached, '{}');
    FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        EXECUTE format('DROP FUNCTION IF EXISTS cdc.log_%s_%s()', attached, operation);
    END LOOP;
    EXECUTE format('DROP TABLE IF EXISTS cdc.log_%1$s_0, cdc.log_%1$s_1', attached);
END
$$;

-- Raise an error unless a capture's lease is this leader's, and keep it so until the transaction ends: called last in the
-- statement of what its successor must not find done behind its back. The error is that of a lock, to be put off: whoever
-- has lost the lease hears of that when it renews it.
CREATE FUNCTION cdc.demand_leader(capture_name text, leader_name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM cdc.capture c WHERE c.name = capture_name AND c.leader = leader_name FOR SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the lease of capture % is another leader''s', capture_name
            USING ERRCODE = 'lock_not_available';
    END IF;
END
$$;

-- End a move to a source: the capture has taken the table over, and needs what the other source has of it no more.
-- Returns NULL if the table does not move there (any more), and false if the role that captures may not drop that: it
-- stays then, and goes with the next `attach`.
CREATE FUNCTION cdc.settle(attached integer, arrived text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- One that was given up meanwhile has been waited for, and is not found.
    UPDATE cdc.captured_table t SET source = arrived, moving_to = NULL
    WHERE t.id = attached AND t.moving_to = arrived;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    BEGIN
        PERFORM cdc.drop_source(attached, cdc.other_source(arrived));
    EXCEPTION WHEN insufficient_privilege THEN
        RETURN false;
    END;
    RETURN true;
END
$$;
REVOKE EXECUTE ON FUNCTION cdc.settle(integer, text) FROM PUBLIC;

-- Make an attachment's change log. Its columns are named by position and wide, so that a renamed or widened key fits.
CREATE FUNCTION cdc.create_log(attached integer, target regclass, wanted name[], log_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    key_columns text := (SELECT string_agg(format('k%s %s', k.place, k.log_type), ', ' ORDER BY k.place)
                         FROM cdc.key_of(target, wanted) k);
    part text;
BEGIN
    FOREACH part IN ARRAY ARRAY[format('cdc.log_%s_0', attached), format('cdc.log_%s_1', attached)] LOOP
        -- `mark` is NULL for a record of keys, else why a record holds none: truncate, limit, or key, when a row's key
        -- could not be told.
        EXECUTE format('CREATE TABLE %s (xid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), mark text, %s)',
                       part, key_columns);
        EXECUTE format('CREATE INDEX ON %s (xid)', part);
        EXECUTE format('CREATE INDEX ON %s (xid) WHERE mark IS NOT NULL', part);
        EXECUTE format('GRANT ALL ON %s TO %I', part, cdc.capture_role());
    END LOOP;
    PERFORM cdc.grant_logging(attached, log_role);
END
$$;

-- Give a role what the triggers' functions need of their owner. Whoever attaches may be neither the role that captures
-- nor the one as which the triggers log: what that has already is not given again.
CREATE FUNCTION cdc.grant_logging(attached integer, log_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT has_schema_privilege(log_role, 'cdc', 'USAGE') THEN
        EXECUTE format('GRANT USAGE ON SCHEMA cdc TO %I', log_role);
    END IF;
    IF NOT has_table_privilege(log_role, 'cdc.captured_table', 'SELECT') THEN
        EXECUTE format('GRANT SELECT ON cdc.captured_table TO %I', log_role);
    END IF;
    EXECUTE format('GRANT SELECT, INSERT ON cdc.log_%1$s_0, cdc.log_%1$s_1 TO %2$I', attached, log_role);
END
$$;

-- The roles that own an attachment's trigger functions: one, unless somebody changed that for some of them.
CREATE FUNCTION cdc.log_roles(attached integer) RETURNS SETOF name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT DISTINCT pg_catalog.pg_get_userbyid(p.proowner) FROM pg_catalog.pg_proc p
    WHERE p.pronamespace = 'cdc'::regnamespace AND p.proname = ANY (ARRAY[
        format('log_%s_insert', attached), format('log_%s_update', attached),
        format('log_%s_delete', attached), format('log_%s_truncate', attached)]::name[])
$$;

-- Whether those roles have what `grant_logging` gives; without it the triggers log nothing.
CREATE FUNCTION cdc.is_logging_granted(attached integer) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(bool_and(
        has_schema_privilege(r.role, 'cdc', 'USAGE') AND has_table_privilege(r.role, 'cdc.captured_table', 'SELECT')
        AND has_table_privilege(r.role, part.name, 'SELECT') AND has_table_privilege(r.role, part.name, 'INSERT')), true)
    FROM cdc.log_roles(attached) r(role)
    CROSS JOIN unnest(ARRAY[format('cdc.log_%s_0', attached), format('cdc.log_%s_1', attached)]) part(name)
$$;

-- Give the rights that are missing since the functions have another owner; returns whether that helped. The table's
-- lock waits for those who wrote without a record: what they commit is there when the table is read anew.
CREATE FUNCTION cdc.restore_logging(attached integer, target regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    log_role name;
BEGIN
    IF cdc.is_logging_granted(attached) THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', target);
    FOR log_role IN SELECT r FROM cdc.log_roles(attached) r LOOP
        PERFORM cdc.grant_logging(attached, log_role);
    END LOOP;
    RETURN cdc.is_logging_granted(attached);
EXCEPTION WHEN insufficient_privilege THEN
    -- Whoever captures may not give them: the capture stops and says what to do.
    RETURN false;
END
$$;

CREATE FUNCTION cdc.create_log_functions(
    attached integer, target regclass, wanted name[], level text, log_role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    operation text;
BEGIN
    FOREACH operation IN ARRAY ARRAY['insert', 'update', 'delete', 'truncate'] LOOP
        PERFORM cdc.create_log_function(attached, target, wanted, level, operation);
        EXECUTE format('GRANT EXECUTE ON FUNCTION cdc.log_%s_%s() TO %I', attached, operation, cdc.capture_role());
        EXECUTE format('ALTER FUNCTION cdc.log_%s_%s() OWNER TO %I', attached, operation, log_role);
    END LOOP;
END
$$;

-- The role that captures: whoever made this schema's tables.
CREATE FUNCTION cdc.capture_role() RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT pg_catalog.pg_get_userbyid(c.relowner) FROM pg_catalog.pg_class c
    WHERE c.oid = 'cdc.captured_table'::regclass
$$;

-- Put what triggers are missing on partitions that came later, and give rights that the triggers' owner lacks; returns
-- whether anything was missing. Triggers on what is no longer in the tree go: a detached partition would log on.
CREATE FUNCTION cdc.complete(attachment integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known cdc.captured_table;
    refused text;
    restored boolean;
BEGIN
    SELECT * INTO STRICT known FROM cdc.captured_table t WHERE t.id = attachment;
    IF known.kind = 'view' THEN
        RETURN known.is_projected AND cdc.restore_projecting(known.table_oid);
    END IF;
    PERFORM cdc.hold(known.table_oid);
    refused := cdc.refusal(known.table_oid, known.level, known.key_columns);
    IF refused IS NOT NULL THEN
        RAISE EXCEPTION 'table %.% %', known.table_schema, known.table_name, refused
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM cdc.drop_log_triggers(attachment, ARRAY(SELECT t::oid FROM cdc.tree_of(known.table_oid) t));
    restored := cdc.restore_logging(attachment, known.table_oid);
    RETURN cdc.create_log_triggers(attachment, known.table_oid, known.level) OR restored;
END
$$;
REVOKE EXECUTE ON FUNCTION cdc.complete(integer) FROM PUBLIC;

-- Take back what attach made, of a table that may have been renamed or dropped since: it is found by its name then, or
-- by its name now. Returns false if it is not attached.
CREATE FUNCTION cdc.detach(capture_name text, schema_name name, relation_name name) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    attached integer;
    projected regclass;
BEGIN
    SELECT k.id, v.oid INTO attached, projected
    FROM cdc.captured_table k
    LEFT JOIN pg_catalog.pg_class v ON v.oid = k.table_oid AND k.is_projected
    WHERE k.capture = capture_name
      AND ((k.table_schema, k.table_name) = (schema_name, relation_name)
           OR k.table_oid = to_regclass(format('%I.%I', schema_name, relation_name)))
    ORDER BY (k.table_schema, k.table_name) <> (schema_name, relation_name) LIMIT 1;
    IF attached IS NULL THEN
        RETURN false;
    END IF;
    IF projected IS NOT NULL THEN
        -- Whoever has been told to log a change does so before its log goes.
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', projected);
    END IF;
    PERFORM cdc.drop_source(attached, source) FROM unnest(ARRAY['triggers', 'wal']) AS dropped (source);
    EXECUTE format('DROP VIEW IF EXISTS cdc.rows_%s', attached);
    DELETE FROM cdc.captured_table t WHERE t.id = attached;
    RETURN true;
END
$$;

-- Log keys as changed in one attachment's change log, as its triggers would: one array literal a key column. A key that
-- is NULL in part is no row's, and is left out.
CREATE FUNCTION cdc.log_keys(attachment integer, VARIADIC keys text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known cdc.captured_table;
    part text;
BEGIN
    SELECT * INTO STRICT known FROM cdc.captured_table t WHERE t.id = attachment;
    IF cardinality(keys) <> cardinality(known.key_columns) THEN
        RAISE EXCEPTION 'the key of %.% is (%): % arrays are wanted, not %', known.table_schema, known.table_name,
                        array_to_string(known.key_columns, ', '), cardinality(known.key_columns), cardinality(keys)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    part := format('cdc.log_%s_%s', known.id, known.active_part);
    IF pg_catalog.pg_relation_size(part::regclass) >= known.log_limit_bytes THEN
        EXECUTE cdc.limit_record(known.id, known.active_part);
    ELSE
        EXECUTE (
            SELECT format('INSERT INTO %1$s (%2$s) SELECT %2$s FROM unnest(%3$s) AS given(%2$s) '
                          'WHERE (%2$s) IS NOT NULL', part,
                          string_agg(format('k%s', k.place), ', ' ORDER BY k.place),
                          string_agg(format('%L::%s[]', keys[k.place], k.log_type), ', ' ORDER BY k.place))
            FROM unnest(known.key_types) WITH ORDINALITY k(log_type, place));
    END IF;
END
$$;
REVOKE EXECUTE ON FUNCTION cdc.log_keys(integer, text[]) FROM PUBLIC;

-- Log keys of a relation that has no triggers of its own, a plain SQL view for instance, for every capture that it is
-- attached to: SELECT cdc.log_changes('public.user_information', '{1,2,3}'), the keys as cdc.log_keys takes them. Call
-- it from a SECURITY DEFINER function of a role that may.
CREATE FUNCTION cdc.log_changes(target regclass, VARIADIC keys text[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT cdc.log_keys(t.id, VARIADIC keys) FROM cdc.captured_table t WHERE t.table_oid = target
$$;
REVOKE EXECUTE ON FUNCTION cdc.log_changes(regclass, text[]) FROM PUBLIC;
