-- The type that a domain is made from, over however many domains; any other type itself.
CREATE FUNCTION cdc.base_type(of_type oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE made_from AS (
        SELECT y.oid, y.typbasetype FROM pg_catalog.pg_type y WHERE y.oid = of_type
        UNION ALL
        SELECT y.oid, y.typbasetype FROM made_from m JOIN pg_catalog.pg_type y ON y.oid = m.typbasetype)
    SELECT m.oid FROM made_from m WHERE m.typbasetype = 0
$$;

-- The types whose equality in SQL is equality of what is written for them, and how the log holds them.
-- `family`: types that may take each other's place. `shape`: what the text of a row's JSON looks like, where another
-- type's would look different. `is_time`: its plain text hangs on the session's DateStyle or TimeZone; JSON's does not.
CREATE VIEW cdc.key_type AS
    SELECT type_oid, log_type, family, shape, is_time
    FROM (VALUES
        ('smallint'::regtype::oid, 'bigint', '{smallint,integer,bigint}'::regtype[]::oid[], '', false),
        ('integer'::regtype, 'bigint', '{smallint,integer,bigint}'::regtype[]::oid[], '', false),
        ('bigint'::regtype, 'bigint', '{smallint,integer,bigint}'::regtype[]::oid[], '', false),
        ('text'::regtype, 'text', '{text,varchar}'::regtype[]::oid[], '', false),
        ('varchar'::regtype, 'text', '{text,varchar}'::regtype[]::oid[], '', false),
        ('uuid'::regtype, 'text', '{uuid}'::regtype[]::oid[], '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$', false),
        ('boolean'::regtype, 'text', '{boolean}'::regtype[]::oid[], '^(true|false)$', false),
        ('numeric'::regtype, 'text', '{numeric}'::regtype[]::oid[], '^(-?[0-9]+([.][0-9]+)?|NaN|-?Infinity)$', false),
        ('bytea'::regtype, 'text', '{bytea}'::regtype[]::oid[], '', false),
        ('inet'::regtype, 'text', '{inet}'::regtype[]::oid[], '^[0-9a-f.:]+(/[0-9]+)?$', false),
        ('cidr'::regtype, 'text', '{cidr}'::regtype[]::oid[], '^[0-9a-f.:]+/[0-9]+$', false),
        ('date'::regtype, 'text', '{date}'::regtype[]::oid[], '^([0-9]+-[0-9]{2}-[0-9]{2}( BC)?|-?infinity)$', true),
        ('time'::regtype, 'text', '{time}'::regtype[]::oid[], '^[0-9]{2}:[0-9]{2}:[0-9.]+$', true),
        ('timestamp'::regtype, 'text', '{timestamp}'::regtype[]::oid[],
         '^([0-9]+-[0-9]{2}-[0-9]{2}T[0-9:.]+( BC)?|-?infinity)$', true),
        ('timestamptz'::regtype, 'text', '{timestamptz}'::regtype[]::oid[],
         '^([0-9]+-[0-9]{2}-[0-9]{2}T[0-9:.]+[+-][0-9:]+( BC)?|-?infinity)$', true)
    ) AS known(type_oid, log_type, family, shape, is_time)
    UNION ALL
    SELECT y.oid, 'text', ARRAY[y.oid], '', false FROM pg_catalog.pg_type y WHERE y.typtype = 'e';
GRANT SELECT ON cdc.key_type TO PUBLIC;

-- A relation's key: the columns that `wanted` names, in that order, or those of the primary key. Types are NULL where
-- they cannot be a key's.
CREATE FUNCTION cdc.key_of(target regclass, wanted name[])
RETURNS TABLE (
    place bigint, column_name name, is_deterministic boolean, type_name text,
    log_type text, type_oid oid, type_oids oid[], shape text, is_time boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT named.place, named.column_name, coalesce(o.collisdeterministic, true),
           pg_catalog.format_type(a.atttypid, a.atttypmod), t.log_type, a.atttypid, t.family || a.atttypid,
           t.shape, t.is_time
    FROM (
        SELECT w.place, w.column_name FROM unnest(wanted) WITH ORDINALITY w(column_name, place)
        UNION ALL
        -- Columns that the index only includes come after those of the key.
        SELECT k.place, p.attname
        FROM pg_catalog.pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, place)
        JOIN pg_catalog.pg_attribute p ON p.attrelid = i.indrelid AND p.attnum = k.attnum
        WHERE wanted IS NULL AND i.indrelid = target AND i.indisprimary AND k.place <= i.indnkeyatts
    ) AS named
    LEFT JOIN pg_catalog.pg_attribute a
           ON a.attrelid = target AND a.attname = named.column_name AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_collation o ON o.oid = a.attcollation
    LEFT JOIN cdc.key_type t ON t.type_oid = cdc.base_type(a.atttypid)
    ORDER BY named.place
$$;

-- Whether a unique index, over columns that are never NULL, is of exactly these columns in any order.
CREATE FUNCTION cdc.has_unique_index(target regclass, wanted name[]) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT
        FROM pg_catalog.pg_index i
        CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY k(attnum, place)
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
        WHERE i.indrelid = target AND k.place <= i.indnkeyatts
          AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
        GROUP BY i.indexrelid
        HAVING bool_and(a.attnotnull)
           AND array_agg(a.attname ORDER BY a.attname) = ARRAY(SELECT w FROM unnest(wanted) w ORDER BY w))
$$;

-- Why a relation cannot be keyed so, or NULL.
CREATE FUNCTION cdc.key_refusal(target regclass, kind text, wanted name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN kind = 'view' AND wanted IS NULL
            THEN 'is a view, and changes are keyed: name the columns of its key, --key a,b'
        WHEN NOT EXISTS (SELECT FROM cdc.key_of(target, wanted))
            THEN 'has no primary key, and changes are keyed by it: add one, or name the columns of a unique index '
                 'on NOT NULL columns, --key a,b'
        WHEN EXISTS (SELECT FROM cdc.key_of(target, wanted) k WHERE k.type_name IS NULL)
            THEN (SELECT format('has no column %I, which its key names', k.column_name)
                  FROM cdc.key_of(target, wanted) k WHERE k.type_name IS NULL LIMIT 1)
        WHEN EXISTS (SELECT FROM cdc.key_of(target, wanted) k WHERE k.log_type IS NULL OR NOT k.is_deterministic)
            THEN (SELECT format(
                      'has key column %I of type %s%s, where values that are equal may be written differently (or may '
                      'not be told apart): a key column is smallint, integer, bigint, text, varchar, uuid, boolean, '
                      'date, time, timestamp, timestamptz, numeric, bytea, inet, cidr, an enum, or a domain over one '
                      'of these, with a deterministic collation',
                      k.column_name, k.type_name,
                      CASE WHEN k.is_deterministic THEN '' ELSE ' with a nondeterministic collation' END)
                  FROM cdc.key_of(target, wanted) k WHERE k.log_type IS NULL OR NOT k.is_deterministic LIMIT 1)
        WHEN kind <> 'view' AND wanted IS NOT NULL AND NOT cdc.has_unique_index(target, wanted)
            THEN format('has no unique index on exactly (%s) that is valid, immediate and not partial, with all of '
                        'these columns NOT NULL', array_to_string(wanted, ', '))
    END
$$;

-- What kind of captured relation it is, or NULL for one that cannot be captured.
CREATE FUNCTION cdc.kind_of(target regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned' WHEN 'v' THEN 'view' END
    FROM pg_catalog.pg_class c WHERE c.oid = target
$$;

-- The relations that carry a captured table's triggers: the table itself, and everything below a partitioned one.
-- Not by pg_partition_tree, which locks all of them: a capture that only looks would wait behind who alters one.
CREATE FUNCTION cdc.tree_of(target regclass) RETURNS SETOF regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE tree (relation) AS (
        SELECT target
        UNION ALL
        SELECT i.inhrelid::regclass
        FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.relation AND c.relkind = 'p'
        JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid)
    SELECT relation FROM tree
$$;

-- Keep a table, and all that is below it, from being dropped or taken out of its tree until the transaction ends. One that
-- is gone is none to keep, and one that the role may not read cannot be kept.
CREATE FUNCTION cdc.hold(target regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- Not the regclass itself: as text that is a number once the table is gone.
    name text := (SELECT format('%I.%I', n.nspname, c.relname)
                  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.oid = target AND c.relkind IN ('r', 'p'));
BEGIN
    IF name IS NOT NULL THEN
        EXECUTE format('LOCK TABLE %s IN ACCESS SHARE MODE', name);
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    -- Who may not even read it has nothing to do with its triggers: rights to log can be given all the same.
    NULL;
END
$$;

-- Why a relation cannot be captured at this level, or NULL.
CREATE FUNCTION cdc.refusal(target regclass, level text, wanted name[]) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE
        WHEN cdc.kind_of(target) IS NULL THEN 'is not a table, a partitioned table or a plain view'
        WHEN c.relispartition
            THEN format('is a partition by itself: attach its root, %s', pg_catalog.pg_partition_root(target))
        WHEN c.relkind = 'v' AND level = 'row' THEN 'is a view, which has no triggers: leave its level out'
        WHEN c.relkind = 'r' AND EXISTS (
            SELECT FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))
            THEN 'takes part in inheritance: its rows are in several tables without a common key'
        ELSE coalesce(
            (SELECT CASE WHEN l.relkind = 'f'
                         THEN format('has the foreign table %s as a partition: its changes fire no trigger here',
                                     l.oid::regclass)
                         WHEN l.relpersistence <> 'p' AND l.oid <> target
                         THEN format('has the unlogged partition %s: a crash would empty it without a trace',
                                     l.oid::regclass)
                         WHEN l.relpersistence <> 'p'
                         THEN 'is unlogged or temporary: a crash would empty it without a trace' END
             FROM cdc.tree_of(target) t JOIN pg_catalog.pg_class l ON l.oid = t
             WHERE l.relkind = 'f' OR l.relpersistence <> 'p' LIMIT 1),
            (SELECT format('has rows that logical replication applies (to %s), which fire no statement-level trigger: '
                           'attach it with --level row', s.srrelid::regclass)
             FROM cdc.tree_of(target) t JOIN pg_catalog.pg_subscription_rel s ON s.srrelid = t
             WHERE level <> 'row' LIMIT 1),
            cdc.key_refusal(target, cdc.kind_of(target), wanted))
    END
    FROM pg_catalog.pg_class c
    WHERE c.oid = target
$$;
