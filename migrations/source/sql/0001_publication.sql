-- What the WAL source has in the database: a publication and a slot a capture, of these names.
CREATE FUNCTION cdc.publication_name(capture_name text) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    -- A slot's name takes [a-z0-9_] alone, and has to have room for a database's number.
    SELECT 'viewkeeper_' || CASE
        WHEN capture_name ~ '^[a-z0-9_]{1,40}$' THEN capture_name
        ELSE left(regexp_replace(lower(capture_name), '[^a-z0-9_]', '_', 'g'), 30) || '_' || left(md5(capture_name), 8)
    END
$$;

-- Slots are of the whole server, captures of one database.
CREATE FUNCTION cdc.slot_name(capture_name text) RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT cdc.publication_name(capture_name) || '_' || d.oid
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
$$;

-- The columns of a table's replica identity, unless that is FULL or NOTHING. Those that its index only includes are none of it.
CREATE FUNCTION cdc.identity_columns(target regclass) RETURNS TABLE (attnum smallint, name name)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attnum, a.attname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_index i ON i.indrelid = c.oid
    CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
    -- Postgres takes no deferrable one for an identity.
    WHERE c.oid = target AND k.place <= i.indnkeyatts AND i.indisvalid AND i.indimmediate
      AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
    ORDER BY a.attnum
$$;

-- Why the WAL does not say which keys of a table change, or NULL. Without a replica identity Postgres refuses UPDATE
-- and DELETE of a published table; one that lacks a key column hides which key a row had.
CREATE FUNCTION cdc.identity_refusal(target regclass, wanted_key name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('has replica identity %s%s, which does not cover its key (%s), so that the WAL does not say which '
                  'rows change: ALTER TABLE %s REPLICA IDENTITY FULL, or USING INDEX a unique index that has the key',
                  CASE c.relreplident WHEN 'n' THEN 'NOTHING' WHEN 'i' THEN 'USING INDEX'
                                      ELSE 'DEFAULT' END,
                  CASE WHEN c.oid = target THEN '' ELSE format(' on its partition %s', c.oid::regclass) END,
                  array_to_string(wanted_key, ', '), c.oid::regclass)
    FROM cdc.tree_of(target) t JOIN pg_catalog.pg_class c ON c.oid = t
    WHERE c.relkind = 'r' AND c.relreplident <> 'f' AND NOT EXISTS (
        -- As cdc.identity_columns, which would be planned anew for each partition, each time that somebody looks.
        SELECT FROM pg_catalog.pg_index i
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
          AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
          AND wanted_key <@ ARRAY(
              SELECT a.attname FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, place)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
              WHERE k.place <= i.indnkeyatts))
    LIMIT 1
$$;

-- Why the WAL would show columns of a table that are not among those that may leave the database, or NULL. The others are
-- kept back by a list of columns in the publication, which has to be that of the replica identity at least.
CREATE FUNCTION cdc.exposure(target regclass, plain smallint[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN plain IS NULL THEN NULL
        WHEN c.relkind = 'p'
            THEN 'is partitioned and has columns that may not leave the database, which a publication shows of partitions '
                 'all the same: attach it with VIEWKEEPER_CDC_SOURCE=triggers'
        WHEN c.relreplident = 'f'
            THEN format('has columns that may not leave the database, and replica identity FULL, which shows them in the '
                        'WAL: ALTER TABLE %s REPLICA IDENTITY DEFAULT, or attach it with '
                        'VIEWKEEPER_CDC_SOURCE=triggers', target)
        ELSE (SELECT format('has column %I in its replica identity, which the WAL shows, and it may not leave the '
                            'database as it is: ALTER TABLE %s REPLICA IDENTITY DEFAULT, or attach it with '
                            'VIEWKEEPER_CDC_SOURCE=triggers', i.name, target)
              FROM cdc.identity_columns(target) i WHERE i.attnum <> ALL (plain) LIMIT 1)
    END
    FROM pg_catalog.pg_class c WHERE c.oid = target
$$;

-- Why a relation cannot be captured from the WAL, or NULL.
CREATE FUNCTION cdc.publication_refusal(target regclass, wanted name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN cdc.kind_of(target) = 'view'
            THEN 'is a view, whose changes are not in the WAL: attach it with VIEWKEEPER_CDC_SOURCE=triggers'
        WHEN cdc.kind_of(target) = 'partitioned'
             AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i
                             WHERE i.indrelid = target AND i.indisprimary AND i.indimmediate)
            THEN 'is partitioned and has no primary key that is not deferrable: a partition that comes later would have no replica identity, '
                 'and Postgres would refuse its writers'' UPDATE and DELETE; add one, or attach it with '
                 'VIEWKEEPER_CDC_SOURCE=triggers'
        -- Rows that a subscription applies are in the WAL, as those that row triggers log.
        ELSE coalesce(
            cdc.refusal(target, 'row', wanted),
            (SELECT format('has the generated key column %I, which is not in the WAL', a.attname)
             FROM cdc.key_of(target, wanted) k
             JOIN pg_catalog.pg_attribute a ON a.attrelid = target AND a.attname = k.column_name
             WHERE a.attgenerated <> '' LIMIT 1),
            cdc.identity_refusal(target, ARRAY(SELECT k.column_name FROM cdc.key_of(target, wanted) k)))
    END
$$;

-- Why a captured table is not to be in its publication as it is now, or NULL.
CREATE FUNCTION cdc.unpublishable(attached integer) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(cdc.identity_refusal(t.table_oid, t.key_columns), cdc.exposure(t.table_oid, t.plain_columns))
    FROM cdc.captured_table t WHERE t.id = attached
$$;

-- Whether an entry of a publication shows just the columns that it is to show: all, or those that keys are told by.
CREATE FUNCTION cdc.is_listed_so(known cdc.captured_table, entry pg_catalog.pg_publication_rel) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT entry.prattrs::text IS NOT DISTINCT FROM CASE WHEN known.plain_columns IS NOT NULL THEN (
        SELECT string_agg(i.attnum::text, ' ') FROM cdc.identity_columns(known.table_oid) i) END
$$;

-- Why not all changes of a captured table are published, or more of them than may be, or NULL.
CREATE FUNCTION cdc.publication_trouble(attached integer) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN p.oid IS NULL THEN format('lost its publication %I', cdc.publication_name(t.capture))
        WHEN NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate) OR p.pubviaroot
            THEN format('is in a publication that was altered: ALTER PUBLICATION %I SET (publish = ''insert, update, '
                        'delete, truncate'', publish_via_partition_root = false)', p.pubname)
        WHEN whole.schema_name IS NOT NULL
            THEN format('is in publication %1$I beside all tables of schema %2$I, whose UPDATE and DELETE Postgres may '
                        'refuse now: ALTER PUBLICATION %1$I DROP TABLES IN SCHEMA %2$I', p.pubname, whole.schema_name)
        ELSE coalesce(cdc.unpublishable(attached), CASE
            WHEN r.oid IS NULL THEN format('is not in publication %I any more', p.pubname)
            WHEN t.plain_columns IS NOT NULL AND NOT cdc.is_listed_so(t, r)
                THEN format('is in publication %I with other columns than those of its replica identity', p.pubname)
            WHEN r.prqual IS NOT NULL OR NOT cdc.is_listed_so(t, r)
                THEN format('is in publication %I with a row filter or a list of columns that the capture did not make: '
                            'take it out of there, and the capture adds it anew', p.pubname) END)
    END
    FROM cdc.captured_table t
    LEFT JOIN pg_catalog.pg_publication p ON p.pubname = cdc.publication_name(t.capture)
    LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = t.table_oid
    LEFT JOIN LATERAL (
        SELECT n.nspname AS schema_name FROM pg_catalog.pg_publication_namespace s
        JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid WHERE s.pnpubid = p.oid LIMIT 1) whole ON true
    WHERE t.id = attached
$$;

-- Add a captured table to its publication, with no more columns than may leave. The lock waits for open writers, whose
-- earlier changes would not be decoded, and for an open ALTER TABLE: what it makes of the replica identity is told after.
CREATE FUNCTION cdc.add_to_publication(attached integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known cdc.captured_table;
    complaint text;
    columns text := '';
BEGIN
    SELECT * INTO STRICT known FROM cdc.captured_table t WHERE t.id = attached;
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', known.table_oid::regclass);
    complaint := cdc.unpublishable(attached);
    IF complaint IS NOT NULL THEN
        RAISE EXCEPTION 'table %.% %', known.table_schema, known.table_name, complaint
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF known.plain_columns IS NOT NULL THEN
        -- Postgres takes no empty list, and without a list it would show all columns.
        SELECT format(' (%s)', string_agg(format('%I', i.name), ', ')) INTO STRICT columns
        FROM cdc.identity_columns(known.table_oid) i;
    END IF;
    EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s%s', cdc.publication_name(known.capture),
                   known.table_oid::regclass, columns);
    UPDATE cdc.captured_table t SET published_by = r.xmin
    FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
    WHERE t.id = attached AND p.pubname = cdc.publication_name(known.capture) AND r.prrelid = known.table_oid;
END
$$;

-- Attach a table to a capture that reads the WAL: it is added to the publication, which is there already. Returns false
-- if it is attached already.
CREATE FUNCTION cdc.attach_published(
    capture_name text, target regclass, wanted_key name[] DEFAULT NULL, listed name[] DEFAULT NULL,
    masks name[] DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    attached integer;
BEGIN
    wanted_key := cdc.kept_key(capture_name, target, wanted_key);
    attached := cdc.register(capture_name, target, 'wal', NULL, wanted_key, listed, masks,
                             cdc.publication_refusal(target, wanted_key));
    IF attached IS NULL THEN
        RETURN false;
    END IF;
    PERFORM cdc.add_to_publication(attached);
    RETURN true;
END
$$;

-- Add a captured table to its publication again; returns whether it was missing, or showed other columns than it is to
-- show. One that is not to be there is taken out, since Postgres refuses UPDATE and DELETE of a published table whose
-- replica identity is gone, or is another one than its list of columns.
CREATE FUNCTION cdc.publish(attached integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known cdc.captured_table;
    entry pg_catalog.pg_publication_rel;
BEGIN
    SELECT * INTO STRICT known FROM cdc.captured_table t WHERE t.id = attached;
    SELECT r.* INTO entry FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
    WHERE p.pubname = cdc.publication_name(known.capture) AND r.prrelid = known.table_oid;
    IF cdc.unpublishable(attached) IS NOT NULL THEN
        PERFORM cdc.withdraw(known.capture, known.table_oid);
        RETURN false;
    END IF;
    IF entry.oid IS NOT NULL THEN
        -- Another list than all columns is somebody's wish, unless it is ours of before.
        IF known.plain_columns IS NULL OR cdc.is_listed_so(known, entry) THEN
            RETURN false;
        END IF;
        PERFORM cdc.withdraw(known.capture, known.table_oid);
    END IF;
    PERFORM cdc.add_to_publication(attached);
    RETURN true;
EXCEPTION WHEN insufficient_privilege OR undefined_object OR object_not_in_prerequisite_state
               OR invalid_parameter_value THEN
    -- Whoever captures may not, or the publication itself is gone, or has a whole schema beside which it takes no list of
    -- columns, or the table was altered before it was locked: the capture stops and says what to do.
    RETURN false;
END
$$;
REVOKE EXECUTE ON FUNCTION cdc.publish(integer) FROM PUBLIC;

-- Whether Postgres refuses UPDATE and DELETE of a captured table for being published as it is: without a replica identity,
-- or with one that its list of columns does not cover.
CREATE FUNCTION cdc.refuses_writers(known cdc.captured_table) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT FROM cdc.tree_of(known.table_oid) t JOIN pg_catalog.pg_class c ON c.oid = t
        LEFT JOIN (pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid)
               ON r.prrelid = c.oid AND p.pubname = cdc.publication_name(known.capture)
        WHERE c.relkind = 'r' AND CASE c.relreplident
            WHEN 'f' THEN r.prattrs IS NOT NULL
            ELSE NOT EXISTS (SELECT FROM cdc.identity_columns(c.oid))
                 OR EXISTS (SELECT FROM cdc.identity_columns(c.oid) i WHERE i.attnum <> ALL (r.prattrs::smallint[]))
            END)
$$;

-- Take those tables out of a capture's publication whose writers Postgres refuses.
CREATE FUNCTION cdc.withdraw_refused(capture_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM cdc.withdraw(t.capture, t.table_oid) FROM cdc.captured_table t
    WHERE t.capture = capture_name AND 'wal' IN (t.source, t.moving_to) AND cdc.refuses_writers(t);
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    -- Whoever captures may not: the capture stops and says what to do.
END
$$;
REVOKE EXECUTE ON FUNCTION cdc.withdraw_refused(text) FROM PUBLIC;

-- Take a table out of a capture's publication, if it is there.
CREATE FUNCTION cdc.withdraw(capture_name text, target oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
               WHERE p.pubname = cdc.publication_name(capture_name) AND r.prrelid = target) THEN
        EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', cdc.publication_name(capture_name), target::regclass);
    END IF;
END
$$;
