"""What a table looks like to a source: row changes that it does not find change this."""

from collections.abc import Sequence
from dataclasses import dataclass

from cdc.cursor import Fingerprint
from cdc.tables import CapturedTable, SourceKind

SHAPES = """tree AS (
    SELECT attachment, root AS oid FROM wanted
    UNION ALL
    SELECT t.attachment, i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
), columns AS (
    -- What ADD COLUMN with DEFAULT adds to rows, and what a virtual column is computed by, are part of the rows' shape.
    SELECT w.attachment, string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod, a.attgenerated,
        a.atthasmissing, a.attmissingval::text,
        CASE WHEN a.attgenerated = 'v' THEN (SELECT d.xmin FROM pg_catalog.pg_attrdef d
            WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) END), ';' ORDER BY a.attnum) AS text
    FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.root AND a.attnum > 0 AND NOT a.attisdropped
    GROUP BY w.attachment
), types AS (
    -- Types that somebody made, and what those are made from: Postgres's own, below 16384, stay as they are.
    SELECT w.attachment, a.atttypid AS oid
    FROM wanted w JOIN pg_catalog.pg_attribute a ON a.attrelid = w.root AND a.attnum > 0 AND NOT a.attisdropped
    WHERE a.atttypid >= 16384
    UNION
    SELECT t.attachment, p.oid FROM types t JOIN pg_catalog.pg_type y ON y.oid = t.oid CROSS JOIN LATERAL (
        SELECT unnest(ARRAY[y.typbasetype, y.typelem]) UNION ALL
        SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE y.oid IN (g.rngtypid, g.rngmultitypid) UNION ALL
        SELECT a.atttypid FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = y.typrelid AND a.attnum > 0 AND NOT a.attisdropped) AS p (oid)
    WHERE p.oid >= 16384
), labels AS (
    -- Renaming an enum's label or a composite type's attribute rewrites no row, and changes what is read of it.
    SELECT t.attachment, string_agg(concat_ws(' ', t.oid,
        (SELECT string_agg(e.enumlabel, ',' ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e
         WHERE e.enumtypid = t.oid),
        (SELECT string_agg(concat_ws(' ', a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum)
         FROM pg_catalog.pg_type y JOIN pg_catalog.pg_attribute a ON a.attrelid = y.typrelid
         WHERE y.oid = t.oid AND a.attnum > 0 AND NOT a.attisdropped)), ';' ORDER BY t.oid) AS text
    FROM types t GROUP BY t.attachment
)"""
"""Of each table in `wanted` (attachment, root): it and its partitions, and, as texts, its columns and their made types.

It stands in a WITH RECURSIVE; `labels` has no row for a table without such types.
"""

FINGERPRINTS_SQL = f"""
WITH RECURSIVE wanted AS (
    SELECT * FROM unnest(%(attachments)s::integer[], %(oids)s::oid[], %(rows_oids)s::oid[], %(sources)s::text[],
                         %(levels)s::text[], %(projected)s::boolean[])
        AS w (attachment, root, rows, source, level, projected)
), {SHAPES}, relations AS (
    -- Another query of a view changes rows; whoever leads a projected one to other tables logs which.
    SELECT t.attachment, string_agg(concat_ws(' ', c.oid, c.relpersistence,
               (SELECT r.xmin FROM pg_catalog.pg_rewrite r
                WHERE r.ev_class = c.oid AND c.relkind = 'v' AND NOT w.projected)), ';'
               ORDER BY c.oid) AS text,
           string_agg(c.relfilenode::text, ' ' ORDER BY c.oid) AS files,
           bool_and(c.relpersistence = 'p') AS permanent,
           bool_or(EXISTS (SELECT FROM pg_catalog.pg_subscription_rel s WHERE s.srrelid = c.oid)) AS subscribed,
           bool_and(c.relkind = 'v' OR coalesce(g.armed, 0) = 4) AS armed,
           string_agg(g.text, ';' ORDER BY c.oid) AS triggers
    FROM tree t JOIN wanted w USING (attachment) JOIN pg_catalog.pg_class c ON c.oid = t.oid
    LEFT JOIN LATERAL (
        -- A trigger that was disabled and enabled again has another xmin. Another owner of its function may have been
        -- without the right to log for a while.
        SELECT count(*) FILTER (WHERE g.tgenabled = 'A') AS armed,
               string_agg(concat_ws(' ', g.tgname, g.tgenabled, g.xmin, p.proowner), ',' ORDER BY g.tgname) AS text
        FROM pg_catalog.pg_trigger g JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
        WHERE g.tgrelid = c.oid AND starts_with(g.tgname, 'viewkeeper_' || t.attachment || '_')) AS g ON true
    GROUP BY t.attachment
)
SELECT w.attachment, md5(concat_ws('|', c.text, l.text, r.text,
           CASE WHEN w.source = 'triggers' THEN r.triggers END,
           -- Another view of the columns that may leave, or another key of their masks.
           (SELECT concat_ws(' ', v.xmin, current_setting('viewkeeper.mask_outer', true))
            FROM pg_catalog.pg_rewrite v WHERE v.ev_class = w.rows AND w.rows <> w.root),
           -- By other functions, or under other rights, the projector may not have logged for a while.
           CASE WHEN w.projected THEN (
               SELECT string_agg(concat_ws(' ', p.oid, p.proowner, p.since), ',' ORDER BY p.oid)
               FROM cdc.projecting p) END,
           -- A table that was taken out of its publication and added again has other ones.
           CASE WHEN w.source = 'wal' THEN (
               SELECT concat_ws(' ', p.xmin, pr.xmin)
               FROM cdc.captured_table t JOIN pg_catalog.pg_publication p ON p.pubname = cdc.publication_name(t.capture)
               LEFT JOIN pg_catalog.pg_publication_rel pr ON pr.prpubid = p.oid AND pr.prrelid = w.root
               WHERE t.id = w.attachment) END)), md5(r.files),
       CASE WHEN NOT r.permanent
            THEN 'is unlogged now: a crash would empty it without a trace; ALTER TABLE with SET LOGGED brings it back'
            WHEN w.source = 'wal' THEN cdc.publication_trouble(w.attachment)
            WHEN r.subscribed AND w.level = 'statement'
            THEN 'gets rows by a subscription, which fire no statement-level trigger; detach it, attach it --level row'
            WHEN w.projected AND NOT cdc.is_projecting_granted()
            THEN 'is kept by a projector that may not log its changes: its migration was taken back (alembic -n view '
                 'upgrade head), or its functions in schema projector have another owner (detach it and attach it anew)'
            -- Insert, update, delete and truncate, on each partition, too.
            WHEN NOT r.armed
            THEN 'has triggers of the capture that are missing or disabled; enable them with ALTER TABLE and '
                 'ENABLE ALWAYS TRIGGER, or detach it and attach it anew'
            WHEN NOT cdc.is_logging_granted(w.attachment)
            THEN 'is logged by functions in schema cdc whose owner was changed to a role that may not write to its '
                 'change log; detach it and attach it anew' END
FROM wanted w JOIN columns c USING (attachment) JOIN relations r USING (attachment)
LEFT JOIN labels l USING (attachment)
"""  # noqa: S608 - constants alone
"""One row a table, in the open transaction's snapshot: attachment, shape, files, and why its changes are not logged."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a table looks like in a snapshot; `trouble` says why not all of its changes are logged, if so."""

    shape: str
    files: str
    trouble: str | None

    @property
    def fingerprint(self) -> Fingerprint:
        """The part that goes into the cursor."""
        return Fingerprint(shape=self.shape, files=self.files)


def parameters(tables: Sequence[CapturedTable], source: SourceKind) -> dict[str, object]:
    """Return the parameters of `FINGERPRINTS_SQL`, for what a source sees of the tables."""
    return {
        "attachments": [table.attachment for table in tables],
        "oids": [table.oid for table in tables],
        "rows_oids": [table.rows_oid for table in tables],
        "sources": [source] * len(tables),
        "levels": [table.level for table in tables],
        "projected": [table.is_projected for table in tables],
    }
