"""The audit's SQL, built from a view's definition: the same rows from the source by SQL, and as the view has them."""

from dataclasses import dataclass

from psycopg import sql

from cdc.wire import TableName
from projector.definition import ColumnType, Count, View

# Each returns the key and the row as JSON text, from columns of the same names and types on both sides.
SOURCE_ROWS = """
SELECT {key_as_read}, row_to_json(recomputed)::text
FROM (
    SELECT {columns}
    FROM {row_table} AS source_row
    {counts}
    {where}
) AS recomputed
ORDER BY {order}
"""

COUNTED = """
    LEFT JOIN (
        SELECT {by}::{key_type} AS counted_key, count(*) AS counted
        FROM {of}
        {where}
        GROUP BY 1
    ) AS {alias} ON {alias}.counted_key = source_row.{key}::{key_type}
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


@dataclass(frozen=True, slots=True)
class AuditStatements:
    """All rows in key order, or (`…_of`, parameter `keys`) those of some keys, from the source and from the view."""

    source_rows: bytes
    source_rows_of: bytes
    view_rows: bytes
    view_rows_of: bytes


def build_audit_statements(view: View) -> AuditStatements:
    """Build the statements of a view's audit."""
    return AuditStatements(
        source_rows=_source_rows(view, some=False),
        source_rows_of=_source_rows(view, some=True),
        view_rows=_view_rows(view, some=False),
        view_rows_of=_view_rows(view, some=True),
    )


def _source_rows(view: View, *, some: bool) -> bytes:
    columns = [
        sql.SQL("source_row.{0}::{1} AS {0}").format(sql.Identifier(column.name), sql.SQL(column.type.value))
        for column in view.row.columns
    ]
    counts = [
        sql.SQL("coalesce({}.counted, 0) AS {}").format(_alias(place), sql.Identifier(measure.name))
        for place, measure in enumerate(view.measures)
    ]
    return (
        sql.SQL(SOURCE_ROWS)
        .format(
            key_as_read=_key_as_read(view),
            columns=sql.SQL(", ").join([*columns, *counts]),
            row_table=_table(view.row.of),
            counts=sql.Composed([_counted(view, place, some=some) for place in range(len(view.measures))]),
            where=_where(view, "source_row", view.key) if some else sql.SQL(""),
            order=_order(view),
        )
        .as_bytes(None)
    )


def _counted(view: View, place: int, *, some: bool) -> sql.Composed:
    measure: Count = view.measures[place]
    return sql.SQL(COUNTED).format(
        by=sql.Identifier(measure.by),
        of=sql.SQL("{} AS counted_row").format(_table(measure.of)),
        where=_where(view, "counted_row", measure.by) if some else sql.SQL(""),
        alias=_alias(place),
        key=sql.Identifier(view.key),
        key_type=_key_type(view),
    )


def _view_rows(view: View, *, some: bool) -> bytes:
    return (
        sql.SQL(VIEW_ROWS)
        .format(
            key_as_read=_key_as_read(view),
            columns=sql.SQL(", ").join(map(sql.Identifier, view.column_names)),
            view=sql.SQL("{} AS view_row").format(sql.Identifier(view.schema, view.name)),
            where=_where(view, "view_row", view.key) if some else sql.SQL(""),
            order=_order(view),
        )
        .as_bytes(None)
    )


def _where(view: View, alias: str, column: str) -> sql.Composed:
    return sql.SQL("WHERE {}::{key_type} = ANY (%(keys)s::{key_type}[])").format(
        sql.Identifier(alias, column), key_type=_key_type(view)
    )


def _key_as_read(view: View) -> sql.Composable:
    key = sql.Identifier(view.key)
    return sql.SQL("{}::text").format(key) if view.key_column.type is ColumnType.UUID else key


def _order(view: View) -> sql.Composable:
    # As Python orders what it reads: text by code points.
    key = sql.Identifier(view.key)
    return sql.SQL('{} COLLATE "C"').format(key) if view.key_column.type is ColumnType.TEXT else key


def _key_type(view: View) -> sql.SQL:
    return sql.SQL(view.key_column.type.value)


def _table(name: str) -> sql.Identifier:
    table = TableName.parse(name)
    return sql.Identifier(table.schema, table.name)


def _alias(place: int) -> sql.Identifier:
    return sql.Identifier(f"measure_{place}")
