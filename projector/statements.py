"""The SQL of one version of a view, built once from its definition. Nothing here is executed.

Columns of values travel as array literals (column_text.py), one parameter a column.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from psycopg import sql

from cdc.wire import TableName
from projector.column_types import ColumnType
from projector.contributions import slots
from projector.definition import Measure, View
from projector.tables import SCHEMA, SOURCE_KEY, contribution_table_name, present_name, view_table_name

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

# Parameters: for each row its table's changed keys, one array a column, whether each is present, each of its columns;
# then keys with increments, each measure.
# One statement in key order, so that two instances wait for each other and neither deadlock nor lose an increment.
# A NULL in a present column says that nothing is new of that row: its columns stay as they are.
APPLY = """
INSERT INTO {view} AS stored ({columns})
SELECT {proposed}
FROM {changed}
ORDER BY {key}
ON CONFLICT ({key}) DO UPDATE
SET {assignments}
"""

CHANGED_ROWS = """unnest({arrays}) AS {name} ({columns})"""

SET_PRESENT = """{present} = coalesce(excluded.{present}, stored.{present})"""

SET_VALUE = """{value} = CASE WHEN excluded.{present} IS NULL THEN stored.{value} ELSE excluded.{value} END"""

# Parameters: keys that lost something. Their rows are locked by APPLY, in its order.
REMOVE_EMPTY = """
DELETE FROM {view} AS stored
WHERE {is_lost} AND {nothing_present}{nothing_counted}
"""

# For a key of several columns.
REMOVE_EMPTY_OF = """
DELETE FROM {view} AS stored
USING unnest({key_arrays}) AS lost ({key})
WHERE {is_lost} AND {nothing_present}{nothing_counted}
"""


@dataclass(frozen=True, slots=True)
class ContributionStatements:
    """The statements of one counted table's contributions, and the `types` of its slots."""

    types: tuple[ColumnType, ...]
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
    stored = slots(view, table)
    groups = [sql.Identifier(slot.name) for slot in stored]
    parts = {
        "contributions": sql.Identifier(SCHEMA, contribution_table_name(view, version, table)),
        "source_key": sql.Identifier(SOURCE_KEY),
        "groups": _comma(groups),
        # As records have them: psycopg would make objects of uuids.
        "groups_as_read": _comma(
            sql.SQL("{}::text").format(group) if slot.type is ColumnType.UUID else group
            for slot, group in zip(stored, groups, strict=True)
        ),
        "group_arrays": _comma(_array(slot.type) for slot in stored),
        "set_groups": _comma(sql.SQL("{0} = changed.{0}").format(group) for group in groups),
    }
    texts = (READ_CONTRIBUTIONS, COPY_CONTRIBUTIONS, UPDATE_CONTRIBUTIONS, DELETE_CONTRIBUTIONS)
    return ContributionStatements(tuple(slot.type for slot in stored), *(_text(template, parts) for template in texts))


def _apply(view: View, version: int) -> bytes:
    key = _names(view.key_names)
    presents = [sql.Identifier(present_name(place)) for place in range(len(view.rows))]
    values = [_names(column.name for column in view.value_columns(row)) for row in view.rows]
    measures = _names(measure.name for measure in view.measures)
    kept = [part for present, columns in zip(presents, values, strict=True) for part in (present, *columns)]
    set_rows = [
        assignment
        for present, columns in zip(presents, values, strict=True)
        for assignment in (
            sql.SQL(SET_PRESENT).format(present=present),
            *(sql.SQL(SET_VALUE).format(present=present, value=value) for value in columns),
        )
    ]
    set_measures = [sql.SQL("{} = {}").format(sql.Identifier(one.name), _sum(one)) for one in view.measures]
    return _text(
        APPLY,
        {
            "view": sql.Identifier(SCHEMA, view_table_name(view, version)),
            "key": _comma(key),
            "columns": _comma([*key, *kept, *measures]),
            "proposed": _comma([*key, *kept, *map(_first, view.measures)]),
            "changed": _changed(view),
            "assignments": sql.SQL(",\n    ").join([*set_rows, *set_measures]),
        },
    )


def _changed(view: View) -> sql.Composed:
    """Return what the rows and the increments of a batch are read from, joined by key."""
    key_types = [column.type.value for column in view.key_columns]
    parts = [
        (
            f"changed_{place + 1}",
            [*view.key_names, present_name(place), *(column.name for column in view.value_columns(row))],
            [*key_types, "boolean", *(column.type.value for column in view.value_columns(row))],
        )
        for place, row in enumerate(view.rows)
    ]
    measures = [measure.name for measure in view.measures], [measure.type.value for measure in view.measures]
    parts.append(("increment", [*view.key_names, *measures[0]], [*key_types, *measures[1]]))
    first, *others = [
        sql.SQL(CHANGED_ROWS).format(
            name=sql.Identifier(name), columns=_comma(_names(columns)), arrays=_comma(map(_array, types))
        )
        for name, columns, types in parts
    ]
    using = _comma(_names(view.key_names))
    joined = [sql.SQL("\nFULL JOIN {} USING ({})").format(other, using) for other in others]
    return sql.Composed([first, *joined])


def _first(measure: Measure) -> sql.Composed:
    return _trimmed(measure, sql.SQL("coalesce({}, 0)").format(sql.Identifier(measure.name)))


def _sum(measure: Measure) -> sql.Composed:
    return _trimmed(measure, sql.SQL("stored.{0} + excluded.{0}").format(sql.Identifier(measure.name)))


def _trimmed(measure: Measure, value: sql.Composed) -> sql.Composed:
    # No zeros at the end, of 0.50 + 0.50 or of what was taken back: a sum's text depends on what is in it alone.
    return sql.SQL("trim_scale({})").format(value) if measure.type is ColumnType.NUMERIC else value


def _remove_empty(view: View, version: int) -> bytes:
    key = _names(view.key_names)
    arrays = [_array(column.type) for column in view.key_columns]
    is_lost = (
        sql.SQL("stored.{} = ANY ({})").format(key[0], arrays[0])
        if len(key) == 1
        else sql.SQL(" AND ").join([sql.SQL("stored.{0} = lost.{0}").format(name) for name in key])
    )
    presents = [sql.Identifier(present_name(place)) for place in range(len(view.rows))]
    return _text(
        REMOVE_EMPTY if len(key) == 1 else REMOVE_EMPTY_OF,
        {
            "view": sql.Identifier(SCHEMA, view_table_name(view, version)),
            "key": _comma(key),
            "key_arrays": _comma(arrays),
            "is_lost": is_lost,
            "nothing_present": sql.SQL(" AND ").join(
                [sql.SQL("stored.{} IS NOT TRUE").format(present) for present in presents]
            ),
            "nothing_counted": sql.Composed(
                [sql.SQL(" AND stored.{} = 0").format(sql.Identifier(one.name)) for one in view.measures]
            ),
        },
    )


def _array(type_name: str) -> sql.SQL:
    return sql.SQL(f"%s::{type_name}[]")


def _names(names: Iterable[str]) -> list[sql.Identifier]:
    return [sql.Identifier(name) for name in names]


def _comma(parts: Iterable[sql.Composable]) -> sql.Composed:
    return sql.SQL(", ").join(parts)


def _text(template: str, parts: dict[str, sql.Composable]) -> bytes:
    return sql.SQL(template).format(**parts).as_bytes(None)
