"""The SQL of one version of a view, built once from its definition. Nothing here is executed.

Columns of values travel as array literals (column_text.py), one parameter a column.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from cdc.wire import TableName
from projector.definition import ColumnType, View
from projector.tables import PRESENT, SCHEMA, SOURCE_KEY, contribution_table_name, view_table_name

# Parameters: source keys. Only keys that have a stored contribution come back.
READ_CONTRIBUTIONS = """
SELECT {source_key}, {groups_as_read}
FROM unnest(%s::text[]) AS changed ({source_key})
JOIN {contributions} USING ({source_key})
"""

# Rows: source keys, which are known to be new, and each group column. COPY costs Postgres a quarter less than INSERT.
COPY_CONTRIBUTIONS = """
COPY {contributions} ({source_key}, {groups}) FROM STDIN
"""

# Parameters: source keys, then each group column.
UPDATE_CONTRIBUTIONS = """
UPDATE {contributions} AS stored
SET {set_groups}
FROM unnest(%s::text[], {group_arrays}) AS changed ({source_key}, {groups})
WHERE stored.{source_key} = changed.{source_key}
"""

# Parameters: source keys.
DELETE_CONTRIBUTIONS = """
DELETE FROM {contributions}
WHERE {source_key} = ANY (%s::text[])
"""

# Parameters: keys of changed rows, whether each is present, each of its columns; keys with increments, each measure.
# One statement in key order, so that two instances wait for each other and neither deadlock nor lose an increment.
# A NULL in the present column says that the key has increments only: its row stays as it is.
APPLY = """
INSERT INTO {view} AS stored ({columns})
SELECT {proposed}
FROM unnest({row_arrays}) AS changed ({row_columns})
FULL JOIN unnest({increment_arrays}) AS increment ({increment_columns}) USING ({key})
ORDER BY {key}
ON CONFLICT ({key}) DO UPDATE
SET {present} = coalesce(excluded.{present}, stored.{present}){assignments}
"""

# Parameters: keys that lost something. Their rows are locked by APPLY, in its order.
REMOVE_EMPTY = """
DELETE FROM {view}
WHERE {key} = ANY (%s::{key_type}[]) AND {present} IS NOT TRUE{nothing_counted}
"""


@dataclass(frozen=True, slots=True)
class ContributionStatements:
    """The statements of one counted table's contributions."""

    read: bytes
    copy: bytes
    update: bytes
    delete: bytes


@dataclass(frozen=True, slots=True)
class ViewStatements:
    """The statements of one version of a view."""

    contributions: dict[TableName, ContributionStatements]
    apply: bytes
    remove_empty: bytes


def build_statements(view: View, version: int) -> ViewStatements:
    """Build a version's statements."""
    return ViewStatements(
        contributions={table: _contributions(view, version, table) for table in view.counted_tables},
        apply=_apply(view, version),
        remove_empty=_remove_empty(view, version),
    )


def _contributions(view: View, version: int, table: TableName) -> ContributionStatements:
    groups = [sql.Identifier(name) for name in view.group_columns(table)]
    parts = {
        "contributions": sql.Identifier(SCHEMA, contribution_table_name(view, version, table)),
        "source_key": sql.Identifier(SOURCE_KEY),
        "groups": _comma(groups),
        # As records have them: psycopg would make objects of uuids.
        "groups_as_read": _comma(
            sql.SQL("{}::text").format(group) if view.key_column.type is ColumnType.UUID else group for group in groups
        ),
        "group_arrays": _comma(_array(view.key_column.type) for _ in groups),
        "set_groups": _comma(sql.SQL("{0} = changed.{0}").format(group) for group in groups),
    }
    texts = (READ_CONTRIBUTIONS, COPY_CONTRIBUTIONS, UPDATE_CONTRIBUTIONS, DELETE_CONTRIBUTIONS)
    return ContributionStatements(*(_text(template, parts) for template in texts))


def _apply(view: View, version: int) -> bytes:
    key = sql.Identifier(view.key)
    present = sql.Identifier(PRESENT)
    values = [sql.Identifier(column.name) for column in view.value_columns]
    measures = [sql.Identifier(measure.name) for measure in view.measures]
    keep_or_replace = sql.SQL(",\n    {0} = CASE WHEN excluded.{present} IS NULL THEN stored.{0} ELSE excluded.{0} END")
    return _text(
        APPLY,
        {
            **_view_parts(view, version),
            "columns": _comma([key, present, *values, *measures]),
            "proposed": _comma(
                [key, present, *values, *(sql.SQL("coalesce({}, 0)").format(measure) for measure in measures)]
            ),
            "row_arrays": _comma(
                _array(name)
                for name in (view.key_column.type, "boolean", *(column.type for column in view.value_columns))
            ),
            "row_columns": _comma([key, present, *values]),
            "increment_arrays": _comma(_array(name) for name in (view.key_column.type, *("bigint" for _ in measures))),
            "increment_columns": _comma([key, *measures]),
            "assignments": sql.Composed(
                [
                    *(keep_or_replace.format(value, present=present) for value in values),
                    *(sql.SQL(",\n    {0} = stored.{0} + excluded.{0}").format(measure) for measure in measures),
                ]
            ),
        },
    )


def _remove_empty(view: View, version: int) -> bytes:
    nothing = [sql.SQL(" AND {} = 0").format(sql.Identifier(measure.name)) for measure in view.measures]
    return _text(REMOVE_EMPTY, {**_view_parts(view, version), "nothing_counted": sql.Composed(nothing)})


def _view_parts(view: View, version: int) -> dict[str, sql.Composable]:
    return {
        "view": sql.Identifier(SCHEMA, view_table_name(view, version)),
        "key": sql.Identifier(view.key),
        "key_type": sql.SQL(view.key_column.type.value),
        "present": sql.Identifier(PRESENT),
    }


def _array(type_name: str) -> sql.SQL:
    return sql.SQL(f"%s::{type_name}[]")


def _comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _text(template: str, parts: dict[str, sql.Composable]) -> bytes:
    return sql.SQL(template).format(**parts).as_bytes(None)
