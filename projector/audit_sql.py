"""The audit's SQL, built from a view's definition: the same rows from the source by SQL, and as the view has them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from cdc.wire import TableName
from projector.changes import Key
from projector.column_types import ColumnType
from projector.definition import Column, Sum, View
from projector.expression_sql import as_sql
from projector.expressions import parse
from projector.keys import keys_by_column

# Each returns the key's columns and the row as JSON text, from columns of the same names and types on both sides.
SOURCE_ROWS = """
SELECT {key_as_read}, row_to_json(recomputed)::text
FROM (
    SELECT {columns}
    FROM {row_table} AS {row_alias}
    {joined_rows}
    {counts}
    {where}
) AS recomputed
ORDER BY {order}
"""

JOINED_ROW = """
    LEFT JOIN {row_table} AS {row_alias} ON {is_key}
"""

COUNTED = """
    LEFT JOIN (
        SELECT {by}, {measured} AS measured
        FROM {of}
        WHERE {condition}
        GROUP BY {groups}
    ) AS {alias} ON {is_key}
"""

VIEW_ROWS = """
SELECT {key_as_read}, row_to_json(shown)::text
FROM (
    SELECT {columns}
    FROM {view}
    {where}
) AS shown
ORDER BY {order}
"""

# Of a table with columns that are padded with blanks on the wire, and so in the view.
PADDED_TABLE = """(
        SELECT {columns}
        FROM {table}
    )"""

# All rows are passed over, as they come; no more than the keys that are wanted is kept.
SAMPLED_KEYS = """
SELECT {key_as_read}
FROM {table}
ORDER BY random()
LIMIT %(count)s
"""


@dataclass(frozen=True, slots=True)
class AuditStatements:
    """All rows in key order, or (`…_of`, with `key_parameters`) those of some keys, from the source and the view.

    `…_keys` give a random sample of `count` keys.
    """

    source_rows: bytes
    source_rows_of: bytes
    view_rows: bytes
    view_rows_of: bytes
    source_keys: bytes
    view_keys: bytes


Padded = Mapping[TableName, Mapping[str, int]]
"""The source's columns that are padded with blanks on the wire, by table, each with its length."""


def build_audit_statements(view: View, padded: Padded) -> AuditStatements:
    """Build the statements of a view's audit."""
    return AuditStatements(
        source_rows=_source_rows(view, padded, some=False),
        source_rows_of=_source_rows(view, padded, some=True),
        view_rows=_view_rows(view, some=False),
        view_rows_of=_view_rows(view, some=True),
        source_keys=_sampled_keys(view, _table(view.rows[0].of)),
        view_keys=_sampled_keys(view, sql.Identifier(view.schema, view.name)),
    )


def key_parameters(view: View, keys: Iterable[Key]) -> dict[str, list[object]]:
    """Return the parameters of the statements that read the rows of some keys."""
    return {_parameter(place): column for place, column in enumerate(keys_by_column(view, keys))}


def key_and_row(read: Sequence[Any]) -> tuple[Key, str]:
    """Return what a statement has read as a key and a row."""
    *key, row = read
    return as_key(key), row


def as_key(read: Sequence[Any]) -> Key:
    """Return the columns of a key as the key, a tuple where they are several."""
    return read[0] if len(read) == 1 else tuple(read)


def _source_rows(view: View, padded: Padded, *, some: bool) -> bytes:
    columns = [
        sql.SQL("{}::{} AS {}").format(
            sql.Identifier(_row(place), column.name), sql.SQL(column.type.value), sql.Identifier(column.name)
        )
        for place, row in enumerate(view.rows)
        for column in row.columns
    ]
    counts = [
        sql.SQL("coalesce({}.measured, 0) AS {}").format(sql.Identifier(_alias(place)), sql.Identifier(measure.name))
        for place, measure in enumerate(view.measures)
    ]
    return (
        sql.SQL(SOURCE_ROWS)
        .format(
            key_as_read=_key_as_read(view),
            columns=sql.SQL(", ").join([*columns, *counts]),
            row_table=_row_table(view, 0, padded),
            row_alias=sql.Identifier(_row(0)),
            joined_rows=sql.Composed([_joined_row(view, place, padded) for place in range(1, len(view.rows))]),
            counts=sql.Composed([_counted(view, place, padded, some=some) for place in range(len(view.measures))]),
            where=_where(_row(0), view.key_columns) if some else sql.SQL(""),
            order=_order(view),
        )
        .as_bytes(None)
    )


def _joined_row(view: View, place: int, padded: Padded) -> sql.Composed:
    row = view.rows[place]
    return sql.SQL(JOINED_ROW).format(
        row_table=_row_table(view, place, padded),
        row_alias=sql.Identifier(_row(place)),
        is_key=_is_key(view, _row(place), [column.name for column in view.key_of_row(row)]),
    )


def _counted(view: View, place: int, padded: Padded, *, some: bool) -> sql.Composed:
    measure = view.measures[place]
    table = TableName.parse(measure.of)
    types = view.columns_of(table)
    groups = [Column(*column) for column in view.groups_of(measure).items()]
    measured: sql.Composable = sql.SQL("count(*)")
    if isinstance(measure, Sum):
        # As the view writes a sum: without the zeros that are at its end.
        measured = sql.SQL("trim_scale(coalesce(sum({}), 0))").format(
            as_sql(parse(measure.value), "counted_row", types)
        )
    conditions: list[sql.Composable] = [sql.SQL("true")]
    if some:
        conditions.append(_is_one_of("counted_row", groups))
    if measure.where is not None:
        conditions.append(as_sql(parse(measure.where), "counted_row", types))
    keys = [f"key_{number}" for number in range(1, len(groups) + 1)]
    return sql.SQL(COUNTED).format(
        by=sql.SQL(", ").join(
            sql.SQL("{}::{} AS {}").format(sql.Identifier(group.name), sql.SQL(group.type.value), sql.Identifier(key))
            for group, key in zip(groups, keys, strict=True)
        ),
        groups=sql.SQL(", ").join(map(sql.Literal, range(1, len(groups) + 1))),
        measured=measured,
        of=sql.SQL("{} AS counted_row").format(_as_on_the_wire(table, types, padded)),
        condition=sql.SQL(" AND ").join(conditions),
        alias=sql.Identifier(_alias(place)),
        is_key=_is_key(view, _alias(place), keys),
    )


def _view_rows(view: View, *, some: bool) -> bytes:
    return (
        sql.SQL(VIEW_ROWS)
        .format(
            key_as_read=_key_as_read(view),
            columns=sql.SQL(", ").join(map(sql.Identifier, view.column_names)),
            view=sql.SQL("{} AS view_row").format(sql.Identifier(view.schema, view.name)),
            where=_where("view_row", view.key_columns) if some else sql.SQL(""),
            order=_order(view),
        )
        .as_bytes(None)
    )


def _sampled_keys(view: View, table: sql.Identifier) -> bytes:
    return sql.SQL(SAMPLED_KEYS).format(key_as_read=_key_as_read(view), table=table).as_bytes(None)


def _where(alias: str, columns: Sequence[Column]) -> sql.Composed:
    return sql.SQL("WHERE {}").format(_is_one_of(alias, columns))


def _is_one_of(alias: str, columns: Sequence[Column]) -> sql.Composed:
    """Return that some columns, of the key's types in order, are one of the keys in the parameters."""
    names = [
        sql.SQL("{}::{}").format(sql.Identifier(alias, column.name), sql.SQL(column.type.value)) for column in columns
    ]
    arrays = [
        sql.SQL(f"%({_parameter(place)})s::{{}}[]").format(sql.SQL(column.type.value))
        for place, column in enumerate(columns)
    ]
    if len(columns) == 1:
        return sql.SQL("{} = ANY ({})").format(names[0], arrays[0])
    comma = sql.SQL(", ")
    return sql.SQL("({}) IN (SELECT * FROM unnest({}))").format(comma.join(names), comma.join(arrays))


def _is_key(view: View, alias: str, columns: Sequence[str]) -> sql.Composed:
    """Return that some columns are the key of the row."""
    return sql.SQL(" AND ").join(
        sql.SQL("{0}::{2} = {1}::{2}").format(
            sql.Identifier(alias, column), sql.Identifier(_row(0), key.name), sql.SQL(key.type.value)
        )
        for column, key in zip(columns, view.key_columns, strict=True)
    )


def _key_as_read(view: View) -> sql.Composable:
    return sql.SQL(", ").join(
        sql.SQL("{}::text" if column.type is ColumnType.UUID else "{}").format(sql.Identifier(column.name))
        for column in view.key_columns
    )


def _order(view: View) -> sql.Composable:
    # As Python orders what it reads: text by code points.
    return sql.SQL(", ").join(
        sql.SQL('{} COLLATE "C"' if column.type is ColumnType.TEXT else "{}").format(sql.Identifier(column.name))
        for column in view.key_columns
    )


def _parameter(place: int) -> str:
    return f"keys_{place + 1}"


def _table(name: str) -> sql.Identifier:
    table = TableName.parse(name)
    return sql.Identifier(table.schema, table.name)


def _row_table(view: View, place: int, padded: Padded) -> sql.Composable:
    row = view.rows[place]
    names = dict.fromkeys(column.name for column in (*view.key_of_row(row), *row.columns))
    return _as_on_the_wire(TableName.parse(row.of), names, padded)


def _as_on_the_wire(table: TableName, names: Iterable[str], padded: Padded) -> sql.Composable:
    """Return a source table, or what reads these columns of it, if some would be read without their padding."""
    found = sql.Identifier(table.schema, table.name)
    lengths = padded.get(table, {})
    if lengths.keys().isdisjoint(names):
        return found
    columns = [
        sql.SQL("rpad({0}::text, {1}) AS {0}").format(sql.Identifier(name), sql.Literal(lengths[name]))
        if name in lengths
        else sql.Identifier(name)
        for name in names
    ]
    return sql.SQL(PADDED_TABLE).format(columns=sql.SQL(", ").join(columns), table=found)


def _row(place: int) -> str:
    return "source_row" if place == 0 else f"source_row_{place + 1}"


def _alias(place: int) -> str:
    return f"measure_{place}"
