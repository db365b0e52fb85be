"""The tables that the timestamp source polls, made of the catalog alone: their keys, columns and what orders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row

from cdc.column_types import CAST, COLUMN_TYPES, TYPE
from cdc.errors import CaptureError
from cdc.fingerprints import SHAPES, Seen
from cdc.table_options import Level, Mode, TableOptions
from cdc.tables import CapturedTable, Column, Kind, SourceKind
from cdc.wire import TableName
from runtime.errors import ConfigurationError

_RELATION = """
SELECT c.oid,
       CASE c.relkind WHEN 'r' THEN 'table' WHEN 'p' THEN 'partitioned' WHEN 'v' THEN 'view' ELSE c.relkind::text END
           AS kind,
       ARRAY(SELECT a.attname
             FROM pg_catalog.pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = c.oid AND i.indisprimary AND k.place <= i.indnkeyatts
             ORDER BY k.place)::text[] AS primary_key,
       -- A deferred constraint will do: what a snapshot sees has been checked.
       ARRAY(SELECT pg_catalog.array_to_string(array_agg(a.attname ORDER BY a.attname), ',')
             FROM pg_catalog.pg_index i
             CROSS JOIN LATERAL unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(attnum, place)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE i.indrelid = c.oid AND k.place <= i.indnkeyatts
               AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
             GROUP BY i.indexrelid
             HAVING bool_and(a.attnotnull))::text[] AS unique_keys,
       NOT c.relispartition AND c.relkind = 'r' AND EXISTS (
           SELECT FROM pg_catalog.pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)) AS inherits,
       (WITH RECURSIVE tree AS (
            SELECT c.oid
            UNION ALL
            SELECT i.inhrelid FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid)
        SELECT l.relnamespace::regnamespace || '.' || l.relname
        FROM tree t JOIN pg_catalog.pg_class l ON l.oid = t.oid
        WHERE l.relpersistence <> 'p' ORDER BY l.oid LIMIT 1) AS fleeting
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(name)s
"""
_COLUMNS = f"""
SELECT a.attname AS name, base.oid AS type_oid, base.typtype = 'e' AND base.brackets = '' AS is_enum,
       coalesce(l.collisdeterministic, true) AS is_deterministic,
       {TYPE} AS type,
       {CAST} AS cast,
       base.modifier AS type_modifier,
       ARRAY(SELECT e.oid || ' ' || e.enumlabel FROM pg_catalog.pg_enum e
             WHERE e.enumtypid = base.oid ORDER BY e.oid)::text[] AS labels
FROM pg_catalog.pg_attribute a
{COLUMN_TYPES}
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
WHERE a.attrelid = %(oid)s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""  # noqa: S608 - constants alone
# A role that polls mostly may not look there, and mostly there is nothing.
_MAY_ASK = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'cdc' AND c.relname = 'captured_table'
      AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT'))
"""
_STILL_ATTACHED = """
SELECT pg_catalog.format('%%s.%%s', table_schema, table_name) AS name, source
FROM cdc.captured_table WHERE capture = %(capture)s ORDER BY id
"""
# What changes with rows that no column tells of: other columns, another view, partitions, and a table's files, which
# TRUNCATE and rewriting statements make anew.
_LOOKS = f"""
WITH RECURSIVE wanted AS (
    -- Rows are read by name: those of another table that has it now are not of the one that is looked at.
    SELECT c.oid AS attachment, c.oid AS root
    FROM unnest(%(oids)s::oid[], %(schemas)s::text[], %(names)s::text[]) AS w (oid, schema, name)
    JOIN pg_catalog.pg_class c ON c.oid = w.oid AND c.relname = w.name
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace AND n.nspname = w.schema
), {SHAPES}, relations AS (
    SELECT t.attachment, string_agg(concat_ws(' ', c.oid, c.relpersistence,
               (SELECT r.xmin FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND c.relkind = 'v')), ';'
               ORDER BY c.oid) AS text,
           string_agg(c.relfilenode::text, ' ' ORDER BY c.oid) AS files
    FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid
    GROUP BY t.attachment
)
SELECT w.root, md5(concat_ws('|', c.text, l.text, r.text,
           -- Under another key masked values are other ones.
           CASE WHEN w.root = ANY (%(masked)s::oid[]) THEN current_setting('viewkeeper.mask_outer', true) END)),
       md5(r.files)
FROM wanted w JOIN columns c USING (attachment) JOIN relations r USING (attachment)
LEFT JOIN labels l USING (attachment)
"""  # noqa: S608 - constants alone

_WHOLE_NUMBERS = ("smallint", "integer", "bigint")
_TIMES = ("timestamp without time zone", "timestamp with time zone")
# Those whose equality is that of their bytes on the wire: a row must not have two keys.
_KEY_TYPES = (
    *_WHOLE_NUMBERS,
    *_TIMES,
    *("text", "character varying", "uuid", "boolean", "numeric", "bytea", "inet", "cidr", "date"),
    "time without time zone",
)


@dataclass(frozen=True, slots=True)
class PolledTable:
    """A table, and how its changed rows are found: by the first of `timestamp` that is not NULL, by `incrementing`.

    Both are empty in mode bulk.
    """

    table: CapturedTable
    mode: Mode
    timestamp: tuple[Column, ...]
    incrementing: Column | None

    @property
    def has_zone(self) -> bool:
        """Whether the timestamps are moments, so that the server's clock can be compared with them."""
        return bool(self.timestamp) and self.timestamp[0].type == "timestamp with time zone"


@dataclass(frozen=True, slots=True)
class _Relation:
    oid: int
    kind: str
    primary_key: list[str]
    unique_keys: list[str]
    inherits: bool
    fleeting: str | None


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    type_oid: int
    is_enum: bool
    is_deterministic: bool
    type: str
    cast: str
    type_modifier: int
    labels: list[str]

    @property
    def column(self) -> Column:
        return Column(self.name, self.type, self.cast, self.type_modifier)

    @property
    def masked(self) -> Column:
        return Column(self.name, "text", "text", is_masked=True)


def polled_table(
    connection: psycopg.Connection, options: TableOptions, *, where: str, was_there: bool = True
) -> PolledTable:
    """Return a table as the catalog has it and its options say.

    Raises ConfigurationError, with what to do, for options that do not fit it, or name what never `was_there`;
    CaptureError if it is gone.
    """
    name = options.name
    mode = _mode(options)
    with connection.cursor(row_factory=class_row(_Relation)) as cursor:
        relation = cursor.execute(_RELATION, {"schema": name.schema, "name": name.name}).fetchone()
    if relation is None:
        error = CaptureError if was_there else ConfigurationError
        raise error(
            f"{where}: there is no table or view {name}, which VIEWKEEPER_CDC_TABLES names; was it dropped or renamed?"
        )
    if relation.kind not in list(Kind):
        raise ConfigurationError(f"{where}: {name} is neither a table nor a view: capture a view of it")
    if relation.inherits:
        raise ConfigurationError(
            f"{where}: {name} takes part in inheritance: its rows are in several tables without a common key; capture "
            "a view of them, and name a key that is unique there"
        )
    if relation.fleeting is not None:
        raise ConfigurationError(
            f"{where}: {relation.fleeting} is unlogged or temporary: a crash would empty it without a trace, and no "
            "replica has its rows; run: ALTER TABLE … SET LOGGED, or leave it out"
        )
    with connection.cursor(row_factory=class_row(_Column)) as columns_of:
        columns = {one.name: one for one in columns_of.execute(_COLUMNS, {"oid": relation.oid})}
    key = _key(options, relation, columns)
    table = CapturedTable(
        attachment=relation.oid,
        oid=relation.oid,
        rows_oid=relation.oid,
        is_masked=options.masks is not None,
        name=name,
        kind=Kind(relation.kind),
        level=Level.STATEMENT,
        source=SourceKind.TIMESTAMP,
        key=tuple(one.column for one in key),
        columns=_listed(options, columns, key),
        labels=tuple(label for one in key for label in one.labels),
    )
    return PolledTable(table, mode, _timestamps(options, columns), _incrementing(options, columns))


def still_attached(connection: psycopg.Connection, capture: str) -> tuple[str, ...]:
    """Return in words what is left of the sources that the capture's tables came from, as far as its role may know."""
    if connection.execute(_MAY_ASK).fetchone() != (True,):
        return ()
    return tuple(
        f"{name} is attached for the source {source}, and what is collected for that nobody reads; "
        f"run: VIEWKEEPER_CDC_SOURCE={source} viewkeeper-cdc detach {name}"
        for name, source in connection.execute(_STILL_ATTACHED, {"capture": capture})
    )


def looks(connection: psycopg.Connection, tables: Sequence[PolledTable]) -> dict[int, Seen]:
    """Return what tables look like in the open transaction's snapshot, by attachment, and how they are polled.

    One that has not its name any more looks like none that there is.
    """
    values = {
        "oids": [polled.table.oid for polled in tables],
        "schemas": [polled.table.name.schema for polled in tables],
        "names": [polled.table.name.name for polled in tables],
        "masked": [polled.table.oid for polled in tables if polled.table.is_masked],
    }
    rows = connection.execute(_LOOKS, values, prepare=True)
    found = {oid: (shape, files) for oid, shape, files in rows}
    return {
        polled.table.attachment: Seen(f"{shape} {_how(polled)}", files, None)
        for polled in tables
        for shape, files in [found.get(polled.table.oid, ("gone", ""))]
    }


def _how(polled: PolledTable) -> str:
    """Say how a table is polled and what leaves it: where that changes, the table is read anew."""
    orders = [*polled.timestamp, *([polled.incrementing] if polled.incrementing else [])]
    listed = [(column.name, column.is_masked) for column in polled.table.columns]
    return f"{polled.mode} {listed} {[column.name for column in orders]} {[column.name for column in polled.table.key]}"


def _mode(options: TableOptions) -> Mode:
    name = options.name
    if options.masks is not None and options.columns is None:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {name}: list its columns beside its masks: one that is added later would "
            "leave as it is"
        )
    if options.level is not None:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {name}: level is an option of triggers, and VIEWKEEPER_CDC_SOURCE=timestamp "
            "has none: leave it out"
        )
    mode = options.mode
    if mode is None:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {name}: VIEWKEEPER_CDC_SOURCE=timestamp needs its mode, in a .toml file: "
            f"{', '.join(Mode)}"
        )
    given = {"timestamp": options.timestamp is not None, "incrementing": options.incrementing is not None}
    for option, is_given in given.items():
        if is_given != (option in mode.split("+")):
            words = "needs" if not is_given else "has no use for"
            raise ConfigurationError(f"VIEWKEEPER_CDC_TABLES: table {name}: mode {mode} {words} option {option}")
    return mode


def _key(options: TableOptions, relation: _Relation, columns: Mapping[str, _Column]) -> list[_Column]:
    names = options.key or tuple(relation.primary_key)
    if not names:
        what = "is a view" if relation.kind == Kind.VIEW else "has no primary key"
        raise ConfigurationError(f'VIEWKEEPER_CDC_TABLES: table {options.name} {what}: name its key, key = ["a"]')
    key = [_named(options.name, columns, name) for name in names]
    if relation.kind != Kind.VIEW and ",".join(sorted(names)) not in relation.unique_keys:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {options.name}: its key ({', '.join(names)}) is not unique: it needs a "
            "valid unique index on just these columns, all of them NOT NULL"
        )
    for one in key:
        if not one.is_deterministic or not (one.is_enum or one.type in _KEY_TYPES):
            raise ConfigurationError(
                f"VIEWKEEPER_CDC_TABLES: table {options.name}: {one.name} is of type {one.type}, whose equal values "
                "can differ in their bytes, so that a row would have two keys: name another unique key"
            )
    return key


def _listed(options: TableOptions, columns: Mapping[str, _Column], key: Sequence[_Column]) -> tuple[Column, ...]:
    if options.columns is None:
        return tuple(one.column for one in columns.values())
    for name in options.columns:
        _named(options.name, columns, name)
    for one in key:
        if one.name not in options.columns:
            raise ConfigurationError(
                f"VIEWKEEPER_CDC_TABLES: table {options.name}: key column {one.name} is missing in its columns"
            )
    for name in options.masks or ():
        if why := _why_not_masked(options, name, key):
            raise ConfigurationError(
                f"VIEWKEEPER_CDC_TABLES: table {options.name}: column {name} cannot be masked: {why}"
            )
    return tuple(
        one.masked if one.name in (options.masks or ()) else one.column
        for one in columns.values()
        if one.name in options.columns
    )


def _why_not_masked(options: TableOptions, name: str, key: Sequence[_Column]) -> str | None:
    if name not in (options.columns or ()):
        return "its columns leave it out"
    if name in [one.name for one in key]:
        return "rows are told apart by it"
    # A position is values as they are, which the cursor's topic keeps.
    if name in (*(options.timestamp or ()), options.incrementing):
        return "rows are ordered by it, and the cursor has what orders them in plain text: order them by another column"
    return None


def _timestamps(options: TableOptions, columns: Mapping[str, _Column]) -> tuple[Column, ...]:
    found = tuple(_named(options.name, columns, name).column for name in options.timestamp or ())
    types = {column.type for column in found}
    if len(types) > 1 or not types.issubset(_TIMES):
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {options.name}: timestamp columns are all of type {_TIMES[0]}, or all of "
            f"type {_TIMES[1]}; found {', '.join(sorted(types))}"
        )
    return found


def _incrementing(options: TableOptions, columns: Mapping[str, _Column]) -> Column | None:
    if options.incrementing is None:
        return None
    column = _named(options.name, columns, options.incrementing).column
    if column.type not in _WHOLE_NUMBERS:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {options.name}: incrementing column {column.name} is of type {column.type}; "
            f"accepted are {', '.join(_WHOLE_NUMBERS)}"
        )
    return column


def _named(table: TableName, columns: Mapping[str, _Column], name: str) -> _Column:
    if name not in columns:
        raise ConfigurationError(
            f"VIEWKEEPER_CDC_TABLES: table {table} has no column {name}; it has {', '.join(columns)}"
        )
    return columns[name]
