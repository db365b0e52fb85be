"""The SQL that says what columns are made of, for every statement that asks the catalog for columns.

It is put into a statement over `pg_catalog.pg_attribute a` that is executed with parameters.
"""

COLUMN_TYPES = """-- A domain is written as the type that it is made from, over however many domains, inside arrays too.
LEFT JOIN LATERAL (
    WITH RECURSIVE made_from AS (
        SELECT a.atttypid AS oid, '' AS brackets, a.atttypmod AS modifier
        UNION ALL
        SELECT CASE y.typbasetype WHEN 0 THEN y.typelem ELSE y.typbasetype END,
               m.brackets || CASE y.typbasetype WHEN 0 THEN '[]' ELSE '' END,
               CASE y.typbasetype WHEN 0 THEN m.modifier ELSE y.typtypmod END
        FROM made_from m JOIN pg_catalog.pg_type y ON y.oid = m.oid
        WHERE y.typbasetype <> 0 OR y.typsubscript = 'pg_catalog.array_subscript_handler'::regproc)
    SELECT y.oid, y.typname, y.typnamespace, y.typtype, m.brackets, m.modifier
    FROM made_from m JOIN pg_catalog.pg_type y ON y.oid = m.oid
    WHERE y.typbasetype = 0 AND y.typsubscript <> 'pg_catalog.array_subscript_handler'::regproc) AS base ON true
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = base.typnamespace
LEFT JOIN pg_catalog.pg_type own ON own.oid = a.atttypid
LEFT JOIN pg_catalog.pg_namespace o ON o.oid = own.typnamespace"""
"""Joins with what TYPE and CAST need; `base` is the type that a column is made from, and its `modifier`."""

TYPE = """CASE n.nspname WHEN 'pg_catalog' THEN pg_catalog.format_type(base.oid, NULL)
     ELSE format('%%I.%%I', n.nspname, base.typname) END || base.brackets"""
"""The type that a column is made from, as SQL names it."""

CAST = """CASE o.nspname WHEN 'pg_catalog' THEN pg_catalog.format_type(own.oid, NULL)
     ELSE format('%%I.%%I', o.nspname, own.typname) END"""
"""A column's own type, as SQL names it: another one for a domain."""
