"""What a role lacks for attaching a table, asked of the catalog before anything is tried."""

from collections.abc import Sequence

import psycopg

from cdc.tables import SourceKind

# The catalog alone: functions of schema cdc cannot be called before USAGE on it is there. Whoever owns
# cdc.captured_table reads the rows; triggers of the row level log as the table's owner.
_MISSING = """
WITH RECURSIVE target AS (
    SELECT c.oid, c.relkind, c.relnamespace, c.relowner FROM pg_catalog.pg_class c WHERE c.oid = %(table)s
), tree AS (
    SELECT t.oid, t.relkind FROM target t
    UNION ALL
    SELECT p.oid, p.relkind FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid AND t.relkind = 'p'
    JOIN pg_catalog.pg_class p ON p.oid = i.inhrelid
), ours AS (
    SELECT n.oid AS schema_oid, k.oid AS tables_oid, l.oid AS capture_oid, k.relowner AS reader
    FROM pg_catalog.pg_namespace n
    JOIN pg_catalog.pg_class k ON k.relnamespace = n.oid AND k.relname = 'captured_table'
    JOIN pg_catalog.pg_class l ON l.relnamespace = n.oid AND l.relname = 'capture'
    WHERE n.nspname = 'cdc'
), wanted AS (
    SELECT 1 AS place, pg_has_role(r.relowner, 'USAGE') AS given,
           format('ownership of %%I.%%I (%%s)', n.nspname, r.relname, CASE %(source)s::text
                  WHEN 'wal' THEN 'a publication takes tables of one''s own'
                  ELSE 'triggers that fire always want the owner' END) AS what
    FROM target t CROSS JOIN tree
    JOIN pg_catalog.pg_class r ON r.oid = tree.oid
    JOIN pg_catalog.pg_namespace n ON n.oid = r.relnamespace
    WHERE t.relkind <> 'v'
    UNION ALL
    SELECT 2, has_schema_privilege(o.reader, t.relnamespace, 'USAGE'),
           format('USAGE on schema %%I for role %%I, which reads the rows', t.relnamespace::regnamespace,
                  pg_get_userbyid(o.reader)) FROM target t, ours o
    UNION ALL
    SELECT 3, %(by_view)s OR has_table_privilege(o.reader, t.oid, 'SELECT'),
           format('SELECT on %%s for role %%I, which reads the rows', %(name)s::text, pg_get_userbyid(o.reader))
    FROM target t, ours o
    UNION ALL
    SELECT 4, has_schema_privilege(o.schema_oid, p.privilege), format('%%s on schema cdc', p.privilege)
    FROM ours o, unnest(ARRAY['USAGE', 'CREATE']) AS p(privilege)
    -- What is made there: change logs, functions of triggers, a view of the columns that may leave.
    WHERE p.privilege = 'USAGE' OR %(source)s::text <> 'wal' OR %(by_view)s
    UNION ALL
    SELECT 5, has_table_privilege(o.tables_oid, p.privilege), format('%%s on cdc.captured_table', p.privilege)
    FROM ours o, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS p(privilege)
    WHERE p.privilege <> 'UPDATE' OR %(source)s::text = 'wal'
    UNION ALL
    SELECT 6, has_table_privilege(o.capture_oid, 'INSERT'), 'INSERT on cdc.capture' FROM ours o
    UNION ALL
    SELECT 7, has_schema_privilege(t.relowner, o.schema_oid, 'CREATE'),
           format('CREATE on schema cdc for role %%I, as which the triggers log', pg_get_userbyid(t.relowner))
    FROM target t, ours o
    WHERE %(row_level)s AND t.relkind <> 'v' AND t.relowner <> current_user::regrole
      AND NOT (SELECT u.rolsuper FROM pg_catalog.pg_roles u WHERE u.rolname = current_user)
    UNION ALL
    SELECT 8, has_database_privilege(current_database(), 'CREATE'),
           format('CREATE on database %%I, for a publication', current_database()) WHERE %(source)s::text = 'wal'
    UNION ALL
    -- Amazon RDS keeps the attribute to itself, and gives what it allows to members of a role of its own.
    SELECT 9, u.rolreplication OR u.rolsuper OR EXISTS (
               SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(r.oid, 'MEMBER')),
           'the attribute REPLICATION (on Amazon RDS the role rds_replication), for a replication slot'
    FROM pg_catalog.pg_roles u WHERE u.rolname = current_user AND %(source)s::text = 'wal'
)
SELECT w.what FROM wanted w WHERE NOT w.given ORDER BY w.place, w.what
"""

_WITHOUT = (
    "somebody who has these rights attaches the table; VIEWKEEPER_CDC_SOURCE=wal makes no triggers, and wants "
    "REPLICATION and CREATE on the database instead; VIEWKEEPER_CDC_SOURCE=timestamp needs SELECT alone, and sees less"
)


def missing_rights(
    connection: psycopg.Connection,
    table_oid: int,
    name: str,
    *,
    source: SourceKind = SourceKind.TRIGGERS,
    row_level: bool,
    by_view: bool,
) -> list[str]:
    """Return what the session's role lacks for attaching a table, each in words; empty if nothing is missing.

    `by_view` says that the rows are read from a view of ours, which the role that captures is granted.
    """
    values = {"table": table_oid, "name": name, "source": source, "row_level": row_level, "by_view": by_view}
    rows = connection.execute(_MISSING, values)
    return [what for (what,) in rows]


def complaint(where: str, name: str, missing: Sequence[str]) -> str:
    """Say all that is missing at once, and which sources would work without it."""
    return "\n".join(
        [f"{where}: {name} cannot be attached; this role lacks:", *(f"  - {m}" for m in missing), _WITHOUT]
    )
