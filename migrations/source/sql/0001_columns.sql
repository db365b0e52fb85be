-- What leaves the database of a table that is attached with a list of columns, or with masks: what the view
-- cdc.rows_<attachment> shows. The role that captures needs no right on the table then, and a column that was not
-- listed, one that is added later for instance, is not in the view.

-- Why columns cannot be listed or masked so, or NULL.
CREATE FUNCTION cdc.columns_refusal(target regclass, wanted_key name[], listed name[], masks name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(
        (SELECT format('has no column %I, which its columns or masks name', n.name)
         FROM unnest(listed || masks) AS n(name)
         WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                           WHERE a.attrelid = target AND a.attname = n.name AND a.attnum > 0 AND NOT a.attisdropped)
         LIMIT 1),
        (SELECT format('has the key column %I, which its columns leave out', k.column_name)
         FROM cdc.key_of(target, wanted_key) k WHERE k.column_name <> ALL (listed) LIMIT 1),
        (SELECT format('has the key column %I, which cannot be masked: rows are told apart by it', k.column_name)
         FROM cdc.key_of(target, wanted_key) k WHERE k.column_name = ANY (masks) LIMIT 1),
        (SELECT format('has the masked column %I, which its columns leave out', m.name)
         FROM unnest(masks) AS m(name) WHERE m.name <> ALL (listed) LIMIT 1))
$$;

-- HMAC-SHA256 (RFC 2104) of a value's text. The session has the key's two pads; without them reading fails.
-- IS NOT NULL is false of a composite value with a NULL in it.
CREATE FUNCTION cdc.mask(column_name name) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        'CASE WHEN t.%1$I IS DISTINCT FROM NULL THEN pg_catalog.encode(pg_catalog.sha256('
        'pg_catalog.decode(pg_catalog.current_setting(''viewkeeper.mask_outer''), ''hex'') || pg_catalog.sha256('
        'pg_catalog.decode(pg_catalog.current_setting(''viewkeeper.mask_inner''), ''hex'') || '
        'pg_catalog.convert_to(t.%1$I::text, ''UTF8''))), ''hex'') END', column_name)
$$;

-- Make the view that an attachment's rows are read from, in the table's order of columns; all those of now are listed
-- where only masks are given. It belongs to whoever attaches the table. A view follows its columns when they are renamed:
-- which of them it shows as they are is noted by number.
CREATE FUNCTION cdc.create_rows(attached integer, target regclass, listed name[], masks name[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE (
        SELECT format('CREATE VIEW cdc.rows_%s AS SELECT %s FROM %s AS t', attached,
            string_agg(
                CASE WHEN a.attname = ANY (masks) THEN format('%s AS %I', cdc.mask(a.attname), a.attname)
                     ELSE format('t.%I', a.attname) END, ', ' ORDER BY a.attnum),
            target)
        FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (
            coalesce(listed, ARRAY(SELECT o.attname FROM pg_catalog.pg_attribute o
                                   WHERE o.attrelid = target AND o.attnum > 0 AND NOT o.attisdropped))));
    EXECUTE format('GRANT SELECT ON cdc.rows_%s TO %I', attached, cdc.capture_role());
    UPDATE cdc.captured_table t SET plain_columns = ARRAY(
        SELECT a.attnum FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_attribute shown
          ON shown.attrelid = format('cdc.rows_%s', attached)::regclass AND shown.attname = a.attname
        WHERE a.attrelid = target AND a.attnum > 0 AND a.attname <> ALL (coalesce(t.masks, '{}')))
    WHERE t.id = attached;
END
$$;
