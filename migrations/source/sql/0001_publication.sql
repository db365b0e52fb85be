-- What the WAL source has in the database: a publication and a slot a capture, of these names.
CREATE FUNCTION cdc.publication_name(capture_name text) RETURNS name
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    -- A slot's name takes [a-z0-9_] alone, and has to have room for a database's number.
    SELECT 'viewkeeper_' || CASE
        WHEN capture_name ~ '^[a-z0-9_]{1,40}$' THEN capture_name
        ELSE left(regexp_replace(lower(capture_name), '[^a-z0-9_]', '_', 'g'), 30) || '_' || left(md5(capture_name), 8)
    END
$$;

-- Slots are of the whole server, captures of one database.
CREATE FUNCTION cdc.slot_name(capture_name text) RETURNS name
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT cdc.publication_name(capture_name) || '_' || d.oid
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()
$$;

-- Why the WAL does not say which keys of a table change, or NULL. Without a replica identity Postgres refuses UPDATE
-- and DELETE of a published table; one that lacks a key column hides which key a row had.
CREATE FUNCTION cdc.identity_refusal(target regclass, wanted_key name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT format('has replica identity %s%s, which does not cover its key (%s), so that the WAL does not say which '
                  'rows change: ALTER TABLE %s REPLICA IDENTITY FULL, or USING INDEX a unique index that has the key',
                  CASE c.relreplident WHEN 'n' THEN 'NOTHING' WHEN 'i' THEN 'USING INDEX'
                                      ELSE 'DEFAULT' END,
                  CASE WHEN c.oid = target THEN '' ELSE format(' on its partition %s', c.oid::regclass) END,
                  array_to_string(wanted_key, ', '), c.oid::regclass)
    FROM cdc.tree_of(target) t JOIN pg_catalog.pg_class c ON c.oid = t
    WHERE c.relkind = 'r' AND c.relreplident <> 'f' AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_index i
        -- Postgres takes no deferrable one for an identity.
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
          AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
          AND wanted_key <@ ARRAY(SELECT a.attname FROM unnest(i.indkey::smallint[]) AS k (attnum)
                                  JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum))
    LIMIT 1
$$;

-- Why a relation cannot be captured from the WAL, or NULL.
CREATE FUNCTION cdc.publication_refusal(target regclass, wanted name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
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

-- Why not all changes of a captured table are published, or NULL.
CREATE FUNCTION cdc.publication_trouble(attached integer) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT CASE
        WHEN p.oid IS NULL THEN format('lost its publication %I', cdc.publication_name(t.capture))
        WHEN NOT (p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate) OR p.pubviaroot
            THEN format('is in a publication that was altered: ALTER PUBLICATION %I SET (publish = ''insert, update, '
                        'delete, truncate'', publish_via_partition_root = false)', p.pubname)
        WHEN r.oid IS NULL THEN format('is not in publication %I any more', p.pubname)
        WHEN r.prqual IS NOT NULL OR r.prattrs IS NOT NULL
            THEN format('is in publication %I with a row filter or a list of columns: take it out and add it anew '
                        'without', p.pubname)
        ELSE cdc.identity_refusal(t.table_oid, t.key_columns)
    END
    FROM cdc.captured_table t
    LEFT JOIN pg_catalog.pg_publication p ON p.pubname = cdc.publication_name(t.capture)
    LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = t.table_oid
    WHERE t.id = attached
$$;

-- Add a captured table to its publication. The lock waits for open writers, whose earlier changes would not be decoded.
CREATE FUNCTION cdc.add_to_publication(attached integer) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    known cdc.captured_table;
BEGIN
    SELECT * INTO STRICT known FROM cdc.captured_table t WHERE t.id = attached;
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', known.table_oid::regclass);
    EXECUTE format('ALTER PUBLICATION %I ADD TABLE %s', cdc.publication_name(known.capture), known.table_oid::regclass);
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
LANGUAGE plpgsql SET search_path = '' AS $$
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

-- Add a captured table to its publication again; returns whether it was missing.
CREATE FUNCTION cdc.publish(attached integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    known cdc.captured_table;
BEGIN
    SELECT * INTO STRICT known FROM cdc.captured_table t WHERE t.id = attached;
    IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
               WHERE p.pubname = cdc.publication_name(known.capture) AND r.prrelid = known.table_oid) THEN
        RETURN false;
    END IF;
    PERFORM cdc.add_to_publication(attached);
    RETURN true;
EXCEPTION WHEN insufficient_privilege OR undefined_object THEN
    -- Whoever captures may not, or the publication itself is gone: the capture stops and says what to do.
    RETURN false;
END
$$;
REVOKE EXECUTE ON FUNCTION cdc.publish(integer) FROM PUBLIC;

-- Take a table out of a capture's publication, if it is there.
CREATE FUNCTION cdc.withdraw(capture_name text, target oid) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
               WHERE p.pubname = cdc.publication_name(capture_name) AND r.prrelid = target) THEN
        EXECUTE format('ALTER PUBLICATION %I DROP TABLE %s', cdc.publication_name(capture_name), target::regclass);
    END IF;
END
$$;
