"""What the source knows of the captured tables: their keys, columns and change logs."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import psycopg
from psycopg import errors as pg
from psycopg.rows import class_row

from cdc.column_types import CAST, COLUMN_TYPES, TYPE
from cdc.errors import CaptureError
from cdc.table_options import Level
from cdc.wire import TableName
from runtime.errors import ConfigurationError
from runtime.migrations import migration_command

_IF_POLLED = "or, if the capture polls its tables, set VIEWKEEPER_CDC_SOURCE=timestamp as it has it"

TABLES_SQL = f"""
SELECT t.id AS attachment, t.table_oid AS oid, r.oid AS rows_oid, t.masks IS NOT NULL AS is_masked,
       t.table_schema AS schema, t.table_name AS name, t.kind, t.is_projected, t.source, t.moving_to, t.level,
       t.key_columns, c.oid IS NOT NULL AS exists,
       coalesce(array_agg(a.attname ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '{{}}') AS column_names,
       coalesce(array_agg({TYPE} ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '{{}}') AS column_types,
       coalesce(array_agg({CAST} ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '{{}}') AS column_casts,
       coalesce(array_agg(base.modifier ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL), '{{}}')
           AS column_modifiers,
       -- Exactly those that the triggers do not log a key from.
       ARRAY(SELECT k.name
             FROM unnest(t.key_columns, t.key_type_oids) AS k(name, type_oid)
             JOIN pg_catalog.pg_attribute ka ON ka.attrelid = c.oid AND ka.attname = k.name
             JOIN cdc.key_type kt ON kt.type_oid = cdc.base_type(k.type_oid)
             WHERE ka.atttypid <> ALL (kt.family || k.type_oid))::text[] AS retyped,
       -- Those that our view shows under another name than the table has by now: a view keeps the names that it was
       -- made with, and the triggers look for them in the table. Its columns are in the table's order.
       ARRAY(SELECT k.name FROM unnest(t.key_columns) AS k(name)
             WHERE r.oid <> c.oid AND NOT EXISTS (
                 SELECT FROM pg_catalog.pg_attribute va
                 JOIN (SELECT ta.attname, row_number() OVER (ORDER BY ta.attnum) AS place
                       FROM pg_catalog.pg_attribute ta
                       WHERE ta.attrelid = c.oid AND EXISTS (
                           SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite w ON w.oid = d.objid
                           WHERE w.ev_class = r.oid AND d.classid = 'pg_catalog.pg_rewrite'::regclass
                             AND d.refclassid = 'pg_catalog.pg_class'::regclass
                             AND d.refobjid = c.oid AND d.refobjsubid = ta.attnum)) AS shown ON shown.place = va.attnum
                 WHERE va.attrelid = r.oid AND va.attname = k.name AND shown.attname = k.name))::text[] AS renamed,
       ARRAY(SELECT e.oid || ' ' || e.enumlabel
             FROM unnest(t.key_columns) AS k(name)
             JOIN pg_catalog.pg_attribute ka ON ka.attrelid = c.oid AND ka.attname = k.name
             JOIN pg_catalog.pg_enum e ON e.enumtypid = cdc.base_type(ka.atttypid)
             ORDER BY e.oid)::text[] AS labels,
       -- A deferred constraint will do: what a snapshot sees has been checked. Of a view nobody can tell.
       t.kind = 'view' OR EXISTS (
           SELECT
           FROM pg_catalog.pg_index i
           CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, place)
           JOIN pg_catalog.pg_attribute ia ON ia.attrelid = i.indrelid AND ia.attnum = k.attnum
           WHERE i.indrelid = c.oid AND k.place <= i.indnkeyatts
             AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
           GROUP BY i.indexrelid
           HAVING bool_and(ia.attnotnull)
              AND array_agg(ia.attname ORDER BY ia.attname) = ARRAY(SELECT n FROM unnest(t.key_columns) n ORDER BY n)
       ) AS is_unique
FROM cdc.captured_table t
LEFT JOIN pg_catalog.pg_class c
       ON c.oid = t.table_oid AND c.relname = t.table_name AND c.relnamespace = (
           SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = t.table_schema)
-- Only what the view shows, of a table with a list of columns: where the view is gone, there is nothing to read.
LEFT JOIN pg_catalog.pg_class r
       ON CASE WHEN coalesce(t.listed, t.masks) IS NULL THEN r.oid = c.oid
               ELSE r.oid = to_regclass(format('cdc.rows_%%s', t.id)) END
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
{COLUMN_TYPES}
WHERE t.capture = %(capture)s
GROUP BY t.id, c.oid, r.oid
ORDER BY t.id
"""  # noqa: S608 - constants alone


class SourceKind(StrEnum):
    """How a capture finds changed keys: `VIEWKEEPER_CDC_SOURCE`."""

    TRIGGERS = "triggers"
    WAL = "wal"
    TIMESTAMP = "timestamp"


def source_of(position: str) -> SourceKind:
    """Return the source whose words a position is in: a `pg_snapshot`, a place in the WAL, or something else."""
    if re.fullmatch(r"\d+:\d+:[\d,]*", position):
        return SourceKind.TRIGGERS
    return SourceKind.WAL if re.fullmatch(r"[0-9A-F]+/[0-9A-F]+", position) else SourceKind.TIMESTAMP


class Kind(StrEnum):
    """What a captured relation is; a plain SQL view has no triggers, whoever changes it says so."""

    TABLE = "table"
    PARTITIONED = "partitioned"
    VIEW = "view"


@dataclass(frozen=True, slots=True)
class Column:
    """A column: `type` is what it is made from, as `format_type` names it; `cast` its own type.

    Both are SQL, quoted, and with their schema unless that is pg_catalog. They differ for domains. `type_modifier` is
    what `type` is declared with, as the catalog has it: precision and scale of a numeric; -1 if there is none. One that
    `is_masked` leaves the database as a keyed hash of its text, and is text itself.
    """

    name: str
    type: str
    cast: str
    type_modifier: int = -1
    is_masked: bool = False


@dataclass(frozen=True, slots=True)
class CapturedTable:
    """A captured table as it is now. `attachment` numbers its change log and is never used again.

    `rows_oid` is what its rows are read from: the table itself, or our view of the columns that may leave. `labels` are
    those of the enums in its key, each with the number that it keeps when it is renamed. While it moves from a `source`
    to the one in `moving_to`, both find its changes. A view that `is_projected` is kept by a projector, which logs its
    changes and says as of when its rows are.
    """

    attachment: int
    oid: int
    rows_oid: int
    is_masked: bool
    name: TableName
    kind: Kind
    level: Level
    key: tuple[Column, ...]
    columns: tuple[Column, ...]
    labels: tuple[str, ...] = ()
    source: SourceKind = SourceKind.TRIGGERS
    moving_to: SourceKind | None = None
    is_projected: bool = False


@dataclass(frozen=True, slots=True)
class _Record:
    attachment: int
    oid: int
    rows_oid: int | None
    is_masked: bool
    schema: str
    name: str
    kind: str
    is_projected: bool
    source: str
    moving_to: str | None
    level: str
    key_columns: list[str]
    exists: bool
    column_names: list[str]
    column_types: list[str]
    column_casts: list[str]
    column_modifiers: list[int]
    retyped: list[str]
    renamed: list[str]
    labels: list[str]
    is_unique: bool

    def table(self) -> CapturedTable:
        name = TableName(self.schema, self.name)
        columns = tuple(
            Column(*parts)
            for parts in zip(
                self.column_names, self.column_types, self.column_casts, self.column_modifiers, strict=True
            )
        )
        types = {column.name: column for column in columns}
        missing = [column for column in self.key_columns if column not in types]
        if self.exists and self.rows_oid is None:
            raise CaptureError(
                f"{name}: the view cdc.rows_{self.attachment}, which shows the columns that may leave the database, is "
                f"gone; run: viewkeeper-cdc detach {name}, attach it anew, run: viewkeeper-cdc snapshot {name}"
            )
        if not self.exists or self.rows_oid is None or missing:
            gone = f"its key column {missing[0]}" if self.exists else "the table"
            raise CaptureError(f"{name}: {gone} was dropped or renamed; {_steps(name)}")
        if self.renamed:
            raise CaptureError(
                f"{name}: its key column {self.renamed[0]} was renamed, and the view of the columns that may leave "
                f"shows it under its old name; undo that and run: viewkeeper-cdc snapshot {name}; or run: "
                f"viewkeeper-cdc detach {name}, delete its topic, attach it anew, and rebuild the views that read it"
            )
        if self.retyped:
            raise CaptureError(f"{name}: its key column {self.retyped[0]} was changed in type; {_steps(name)}")
        if not self.is_unique:
            raise CaptureError(
                f"{name}: its key ({', '.join(self.key_columns)}) is unique no longer: it has no valid unique index on "
                f"just these columns, all of them NOT NULL; {_steps(name)}"
            )
        key = tuple(types[column] for column in self.key_columns)
        return CapturedTable(
            attachment=self.attachment,
            oid=self.oid,
            rows_oid=self.rows_oid,
            is_masked=self.is_masked,
            name=name,
            kind=Kind(self.kind),
            source=SourceKind(self.source),
            moving_to=SourceKind(self.moving_to) if self.moving_to else None,
            is_projected=self.is_projected,
            level=Level(self.level),
            key=key,
            columns=columns,
            labels=tuple(self.labels),
        )


def _steps(name: TableName) -> str:
    return (
        f"undo that; or run: viewkeeper-cdc detach {name}, delete its topic, run: viewkeeper-cdc attach {name}, "
        "and rebuild the views that read it"
    )


@contextmanager
def keys_of(table: CapturedTable) -> Iterator[None]:
    """Raise CaptureError, with what to do, where a key that was logged or published is none of the table's any more."""
    try:
        yield
    except pg.InvalidTextRepresentation as error:
        raise CaptureError(
            f"{table.name}: a key in its change log or its topic is no value of its column "
            f"({error.diag.message_primary}): was a label of an enum renamed? "
            f"Undo that, and run: viewkeeper-cdc snapshot {table.name}"
        ) from error


def captured_tables(connection: psycopg.Connection, capture: str) -> tuple[CapturedTable, ...]:
    """Return what is attached to a capture; raise CaptureError if a table or its key was changed."""
    with connection.cursor(row_factory=class_row(_Record)) as cursor:
        return tuple(record.table() for record in cursor.execute(TABLES_SQL, {"capture": capture}))


def demand_source(tables: Sequence[CapturedTable], source: SourceKind) -> None:
    """Raise ConfigurationError, with what to do, if a table is attached for another source."""
    for table in tables:
        if source not in (table.source, table.moving_to):
            raise ConfigurationError(
                f"{table.name} is attached for the source {table.source}, and VIEWKEEPER_CDC_SOURCE is {source}; set "
                f"VIEWKEEPER_CDC_SOURCE={table.source}; or have it moved by running, with VIEWKEEPER_CDC_SOURCE="
                f"{source}: viewkeeper-cdc attach {table.name}"
            )


def selected(tables: Sequence[CapturedTable], names: Sequence[TableName]) -> tuple[CapturedTable, ...]:
    """Return those of `tables` that `VIEWKEEPER_CDC_TABLES` names, all if it names none.

    Raises ConfigurationError if one is named that is not attached.
    """
    attached = {table.name for table in tables}
    for name in names:
        if name not in attached:
            raise ConfigurationError(
                f"VIEWKEEPER_CDC_TABLES names {name}, which is not attached; run: viewkeeper-cdc attach {name}"
            )
    return tuple(table for table in tables if not names or table.name in names)


def check_source(connection: psycopg.Connection, where: str) -> None:
    """Raise CaptureError for a standby, ConfigurationError with the command to run if the migration is missing."""
    # The catalog and no to_regprocedure(): that wants USAGE on the schema, and what is missing is said all at once.
    row = connection.execute(
        "SELECT pg_is_in_recovery(), EXISTS (SELECT FROM pg_catalog.pg_proc p "
        "JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'cdc' AND p.proname = 'attach')"
    ).fetchone()
    if row is not None and row[0]:
        raise CaptureError(
            f"{where} is a standby, where xids of the primary may yet be lost; "
            f"point VIEWKEEPER_SOURCE_URL at the primary; {_IF_POLLED}"
        )
    if row is None or not row[1]:
        raise ConfigurationError(f"{where}: schema cdc is missing; run: {migration_command('source')}\n{_IF_POLLED}")
