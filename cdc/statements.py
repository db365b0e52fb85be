"""The SQL of the triggers source, built once for each set of captured tables.

Keys and rows leave Postgres as finished JSON, so that no row is touched in Python. The wire's rules are casts here:
numeric as text, times as ISO 8601 in UTC with microseconds, bytea as base64, all else as Postgres's own JSON.
"""

import json
from collections.abc import Iterable, Sequence

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from cdc.tables import CapturedTable, Column

PARTS = (0, 1)

_AS_TEXT = ("numeric", "money", "interval", "xml", "bit", "bit varying")
# Years that ISO 8601 writes in four digits; outside (also ±infinity) Postgres's own text says it without a doubt.
_COMMON_ERA = SQL("BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'")


def log_name(table: CapturedTable, part: int) -> Identifier:
    """Name one part of a table's change log."""
    return Identifier("cdc", f"log_{table.attachment}_{part}")


def table_identifier(table: CapturedTable) -> Identifier:
    """Name a captured table."""
    return Identifier(table.name.schema, table.name.name)


def lock(tables: Iterable[CapturedTable]) -> Composed:
    """Begin the reading transaction of `tables`.

    The locks come before the first query, since that fixes the snapshot: a table that is being rewritten would read
    as empty under an older one.
    """
    names = [name for table in tables for name in (table_identifier(table), *(log_name(table, part) for part in PARTS))]
    return SQL("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE").format(
        SQL(", ").join(names)
    )


HEAD = """
SELECT pg_catalog.transaction_timestamp(), pg_catalog.pg_current_snapshot()::text,
       c.pending_token, c.published_token
FROM cdc.capture c WHERE c.name = %(capture)s
"""
"""Fixes the reading transaction's snapshot, and selects when it began, before that; the snapshot's text; the two tokens
of the mark."""


def probe(tables: Sequence[CapturedTable], *, most_records: int) -> Composed:
    """Select what was logged since each table's previous snapshot, parameter `snapshot_<i>` of table i.

    One row a table: its number i; whether its name belongs to another table by now; how many records, counted up to
    one more than `most_records`; whether a TRUNCATE is among all of them; their distinct keys as an array literal a key
    column. A table with more records than `most_records` is read by `key_pages` instead.
    """
    selects = []
    for number, table in enumerate(tables):
        names = log_columns(table)
        records = _records(table, SQL("%(snapshot_{})s").format(SQL(str(number))))
        select = SQL("""
            (WITH records AS MATERIALIZED ({records} LIMIT {limit})
             SELECT {number}, {identity} IS DISTINCT FROM {oid}, (SELECT count(*) FROM records),
                    EXISTS (SELECT FROM ({all_records}) AS unlimited WHERE mark = 'truncate'),
                    (SELECT ARRAY[{arrays}]
                     FROM (SELECT DISTINCT {names} FROM records WHERE mark IS NULL) AS changed))
        """)
        selects.append(
            select.format(
                records=records,
                all_records=records,
                identity=SQL("to_regclass({})::oid").format(Literal(table_identifier(table).as_string())),
                oid=Literal(table.oid),
                limit=Literal(most_records + 1),
                number=Literal(number),
                arrays=_array_literals(names),
                names=SQL(", ").join(names),
            )
        )
    return SQL(" UNION ALL ").join(selects)


def key_pages(table: CapturedTable, *, page_keys: int) -> Composed:
    """Select the distinct keys logged since `snapshot`, in pages: one row a page, an array literal a key column."""
    names = log_columns(table)
    return SQL("""
        SELECT {arrays}
        FROM (SELECT {names}, (row_number() OVER () - 1) / {page_keys} AS page
              FROM (SELECT DISTINCT {names} FROM ({records}) AS records WHERE mark IS NULL) AS changed) AS paged
        GROUP BY page
    """).format(
        arrays=_array_literals(names),
        names=SQL(", ").join(names),
        page_keys=Literal(page_keys),
        records=_records(table, SQL("%(snapshot)s")),
    )


def images(table: CapturedTable) -> Composed:
    """Select key and row, as JSON text, of the keys in parameters `k1`, `k2`, …; a row that is gone is NULL."""
    names = log_columns(table)
    arrays = [SQL("%(k{})s::{}[]").format(SQL(str(place)), SQL(log_type(c))) for place, c in enumerate(table.key, 1)]
    changed = [_logged(column, name) for name, column in zip(names, table.key, strict=True)]
    keys = [_json_field(column, value) for column, value in zip(table.key, changed, strict=True)]
    joined = [SQL("r.{} = {}").format(_column(column), value) for column, value in zip(table.key, changed, strict=True)]
    return SQL("""
        SELECT {key}, CASE WHEN r.{first} IS NOT NULL THEN row_to_json(r.*)::text END
        FROM unnest({arrays}) AS changed({names})
        LEFT JOIN (SELECT {values} FROM {table} AS t) AS r ON {joined}
    """).format(
        key=_json_object(keys),
        first=_column(table.key[0]),
        values=_wire_values(table.columns),
        arrays=SQL(", ").join(arrays),
        names=SQL(", ").join(names),
        table=table_identifier(table),
        joined=SQL(" AND ").join(joined),
    )


def chunk_end(table: CapturedTable, *, chunk_rows: int, resumed: bool) -> Composed:
    """Select, as text, the key of the last row of the next chunk; no row if less than a chunk is left."""
    # Qualified: a bare name would order by the output column of that name, which is text.
    keys = SQL(", ").join(SQL("t.{}").format(_column(column)) for column in table.key)
    texts = SQL(", ").join(SQL("t.{}::text").format(_column(column)) for column in table.key)
    return SQL("SELECT {texts} FROM {table} AS t {after} ORDER BY {keys} OFFSET {skipped} LIMIT 1").format(
        texts=texts,
        table=table_identifier(table),
        after=SQL("WHERE {}").format(_beyond(table, ">", "after")) if resumed else SQL(""),
        keys=keys,
        skipped=Literal(chunk_rows - 1),
    )


def chunk(table: CapturedTable, *, resumed: bool, bounded: bool) -> Composed:
    """Select key and row, as JSON text, of the rows after `after_1`, … (if resumed) up to `end_1`, … (if bounded)."""
    bounds = []
    if resumed:
        bounds.append(_beyond(table, ">", "after"))
    if bounded:
        bounds.append(_beyond(table, "<=", "end"))
    # row_to_json of a subquery in FROM costs half of what it costs in the select list.
    return SQL("""
        SELECT {key}, row_to_json(r.*)::text FROM (SELECT {values} FROM {table} AS t {where}) AS r
    """).format(
        key=_json_object([_json_field(column, SQL("r.{}").format(_column(column))) for column in table.key]),
        values=_wire_values(table.columns),
        table=table_identifier(table),
        where=SQL("WHERE {}").format(SQL(" AND ").join(bounds)) if bounds else SQL(""),
    )


def log_columns(table: CapturedTable) -> list[Identifier]:
    """Name the key columns of a table's change log: k1, k2 and so on."""
    return [Identifier(f"k{place}") for place in range(1, len(table.key) + 1)]


def log_type(column: Column) -> str:
    """Return the type of a key column in the change log: integers are wide there, all else is text."""
    return "bigint" if column.type in ("smallint", "integer", "bigint") else "text"


def _logged(column: Column, name: Identifier) -> Composed:
    """Read a key back from the log: as it is for integers, cast to the column's type for texts."""
    cast = SQL("") if log_type(column) == "bigint" else SQL(f"::{_doubled(column.cast)}")
    return SQL("changed.{}{}").format(name, cast)


def _records(table: CapturedTable, snapshot: Composable) -> Composed:
    """Select the log records, still visible or not then, of transactions that `snapshot` did not see."""
    part = SQL("""
        SELECT mark, {names} FROM {log}
        WHERE xid >= pg_snapshot_xmax({snapshot}) OR xid = ANY (ARRAY(SELECT pg_snapshot_xip({snapshot})))
    """)
    return SQL(" UNION ALL ").join(
        part.format(names=SQL(", ").join(log_columns(table)), log=log_name(table, number), snapshot=snapshot)
        for number in PARTS
    )


def _array_literals(names: Sequence[Identifier]) -> Composed:
    return SQL(", ").join(SQL("array_agg({})::text").format(name) for name in names)


def _beyond(table: CapturedTable, operator: str, parameter: str) -> Composed:
    """Compare the key with the text parameters `<parameter>_1`, … as one row value, which an index can answer."""
    return SQL("({keys}) {operator} ({bounds})").format(
        keys=SQL(", ").join(_column(column) for column in table.key),
        operator=SQL(operator),
        bounds=SQL(", ").join(
            SQL("%({}_{})s::{}").format(SQL(parameter), SQL(str(place)), SQL(_doubled(column.cast)))
            for place, column in enumerate(table.key, 1)
        ),
    )


def _column(column: Column) -> Identifier:
    return Identifier(_doubled(column.name))


def _doubled(text: str) -> str:
    # Every statement that names a column is executed with parameters, where psycopg reads %% as a percent sign.
    return text.replace("%", "%%")


def _json_object(fields: Sequence[Composable]) -> Composed:
    return SQL("'{{' || {} || '}}'").format(SQL(" || ',' || ").join(fields))


def _json_field(column: Column, value: Composable) -> Composable:
    """Write a key column as a field of a JSON object; building it by hand costs a fifth of row_to_json."""
    name = Literal(_doubled(f"{json.dumps(column.name, ensure_ascii=False)}:"))
    shown = value if log_type(column) == "bigint" else SQL("to_json({})").format(value)
    return SQL("{} || {}").format(name, shown)


def _wire_values(columns: Sequence[Column]) -> Composed:
    return SQL(", ").join(SQL("{} AS {}").format(_wire_value(column), _column(column)) for column in columns)


def _wire_value(column: Column) -> Composable:
    name = SQL("t.{}").format(_column(column))
    if column.type in _AS_TEXT:
        return SQL("{}::text").format(name)
    if column.type == "bytea":
        # encode() breaks its lines after 76 characters.
        return SQL("translate(encode({}, 'base64'), E'\\n', '')").format(name)
    if column.type == "timestamp with time zone":
        return _timestamp(name, SQL("timezone('UTC', {})").format(name), "Z")
    if column.type == "timestamp without time zone":
        return _timestamp(name, name, "")
    return name


def _timestamp(value: Composable, shown: Composable, zone: str) -> Composable:
    return SQL("CASE WHEN {value} {common_era} THEN to_char({shown}, {layout}) ELSE {value}::text END").format(
        value=value, common_era=_COMMON_ERA, shown=shown, layout=Literal(f'YYYY-MM-DD"T"HH24:MI:SS.US"{zone}"')
    )
