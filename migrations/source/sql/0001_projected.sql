-- Views that a projector of this database keeps. It says which they are in projector.stable_view (its migration makes
-- that), logs the keys that each of its transactions changes, and knows as of when their rows are.

-- The key of a projector's view, NULL for any other relation.
CREATE FUNCTION cdc.projected_key(target regclass) RETURNS name[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- By the catalog: without USAGE on a schema no name in it may be looked for.
    IF NOT EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'projector' AND c.relname = 'stable_view' AND has_schema_privilege(n.oid, 'USAGE')) THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT v.key_columns FROM projector.stable_view v WHERE v.relation = target);
END
$$;

-- As of when the rows of projectors' views are, NULL while that is not known, and whether rows may be missing by then.
CREATE FUNCTION cdc.projected_as_of()
RETURNS TABLE (relation oid, as_of timestamptz, is_uncertain boolean)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'projector' AND c.relname = 'stable_view') THEN
        RETURN QUERY SELECT v.relation::oid, CASE WHEN isfinite(v.as_of) THEN v.as_of END, cardinality(v.flags) > 0
                     FROM projector.stable_view v;
    END IF;
END
$$;

-- The functions that the projector logs changes by: its own, and those of this schema that they call.
CREATE VIEW cdc.projecting AS
    SELECT p.oid, p.proowner, p.xmin AS since, n.nspname = 'projector' AS is_calling
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE (n.nspname, p.proname) IN (
        ('projector', 'is_captured'), ('projector', 'log_changes'), ('projector', 'made_anew'),
        ('cdc', 'is_attached'), ('cdc', 'log_changes'), ('cdc', 'made_anew'));
GRANT SELECT ON cdc.projecting TO PUBLIC;

-- Whether the roles that the projector's functions run as may call ours; without that they log nothing.
CREATE FUNCTION cdc.is_projecting_granted() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(DISTINCT calling.oid) = 3 AND bool_and(
        has_schema_privilege(calling.proowner, 'cdc', 'USAGE')
        AND has_function_privilege(calling.proowner, called.oid, 'EXECUTE'))
    FROM cdc.projecting calling CROSS JOIN cdc.projecting called WHERE calling.is_calling AND NOT called.is_calling
$$;

-- Let those roles log changes; what they have already is not given again.
CREATE FUNCTION cdc.grant_projecting() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    projecting name;
    called regprocedure;
BEGIN
    FOR projecting IN SELECT DISTINCT pg_catalog.pg_get_userbyid(p.proowner) FROM cdc.projecting p WHERE p.is_calling LOOP
        IF NOT has_schema_privilege(projecting, 'cdc', 'USAGE') THEN
            EXECUTE format('GRANT USAGE ON SCHEMA cdc TO %I', projecting);
        END IF;
        FOR called IN SELECT p.oid FROM cdc.projecting p WHERE NOT p.is_calling LOOP
            IF NOT has_function_privilege(projecting, called, 'EXECUTE') THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', called, projecting);
            END IF;
        END LOOP;
    END LOOP;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'role %, as which the projector logs changes, may not call the functions of schema cdc, and role % '
                    'may not let it: have the owner of schema cdc attach the view', projecting, current_user
        USING ERRCODE = 'object_not_in_prerequisite_state';
END
$$;

-- Have a view's changes be logged again; returns whether that helped. The lock waits for those who wrote without.
CREATE FUNCTION cdc.restore_projecting(target regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF cdc.is_projecting_granted() THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', target);
    PERFORM cdc.grant_projecting();
    RETURN cdc.is_projecting_granted();
EXCEPTION WHEN insufficient_privilege OR object_not_in_prerequisite_state THEN
    -- Whoever captures may not: the capture stops and says what to do.
    RETURN false;
END
$$;

-- Whether some capture wants to be told of a relation's changes.
CREATE FUNCTION cdc.is_attached(target regclass) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT FROM cdc.captured_table t WHERE t.table_oid = target)
$$;
REVOKE EXECUTE ON FUNCTION cdc.is_attached(regclass) FROM PUBLIC;

-- Have the attachments of a view that was dropped be those of the one that took its place, in the same transaction.
CREATE FUNCTION cdc.made_anew(was oid, target regclass) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE cdc.captured_table t SET table_oid = target WHERE t.table_oid = was
$$;
REVOKE EXECUTE ON FUNCTION cdc.made_anew(oid, regclass) FROM PUBLIC;
