"""Why a view's row is as it is: its measures beside the stored contributions that they are made of."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from psycopg import Connection, IsolationLevel, sql
from psycopg.rows import dict_row

from projector.changes import Partition
from projector.column_types import ColumnType
from projector.contributions import MeasurePlaces, measure_places, slots
from projector.definition import Column, View
from projector.keys import key_of, parse_key
from projector.offsets import Offsets
from projector.registry import ViewVersion, active_versions
from projector.tables import PRESENT, SCHEMA, SOURCE_KEY, contribution_table_name, view_table_name
from runtime.postgres import translated

FEW = 3
"""So many source keys are named from each end."""

_ROW = "SELECT {columns}, {present} FROM {view} WHERE {is_key}"
# Infinite, or of a year that Python has not: any of them is a text.
_TIME = "to_json({column}) #>> '{{}}' AS {column}"
_AS_OF = "SELECT as_of, flags FROM public.viewkeeper_as_of WHERE view = %s"
_CONTRIBUTED = "SELECT count(*), {amount} FROM {contributions} WHERE {is_key}"
_KEYS = "SELECT {source_key} FROM {contributions} WHERE {is_key} ORDER BY {source_key} {order} LIMIT {few}"


class MeasureExplained(msgspec.Struct, frozen=True, kw_only=True):
    """A measure's value in the view, and what the stored contributions of its table give: equal always.

    `rows` is how many source rows count for the key; `first` and `last` have a few of their keys as they are in the
    topic. Everything before `next_offsets`, one a partition, is applied.
    """

    measure: str
    value: int | Decimal
    contributed: int | Decimal
    rows: int
    first: tuple[str, ...]
    last: tuple[str, ...]
    topic: str
    next_offsets: tuple[int, ...]


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """A view's row, with times as ISO 8601 text.

    `is_shown` is false while its source row was not seen, or is gone: readers see nothing of it.
    """

    view: str
    version: int
    key: str
    is_shown: bool
    row: dict[str, Any] | None
    as_of: datetime | None
    as_of_flags: tuple[str, ...]
    measures: tuple[MeasureExplained, ...]

    @property
    def disagreeing(self) -> tuple[str, ...]:
        """Names of the measures that are not what their contributions give."""
        return tuple(one.measure for one in self.measures if one.value != one.contributed)


def explain(connection: Connection, view: View, key: str, *, where: str) -> Explained:
    """Explain the row of a key, all of it as of one moment.

    Each measure reads its table of contributions, which no index leads into by the view's key. Raises DefinitionError
    for a key that is none, and as `active_versions` does.
    """
    with translated(where):
        (version,) = active_versions(connection, [view], where=where)
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        with connection.transaction():
            return _explained(connection, version, key)


def _explained(connection: Connection, version: ViewVersion, key: str) -> Explained:
    view, number = version.view, version.version
    table = sql.Identifier(SCHEMA, view_table_name(view, number))
    values = parse_key(view, key)
    found = sql.SQL(_ROW).format(
        columns=sql.SQL(", ").join(map(_as_shown, view.row_columns)),
        present=sql.SQL(", ").join(map(sql.Identifier, (*(measure.name for measure in view.measures), PRESENT))),
        view=table,
        is_key=_is(view.key_names),
    )
    with connection.cursor(row_factory=dict_row) as cursor:
        with key_of(view, key):
            cursor.execute(found, values)
        stored = cursor.fetchone()
    is_shown = stored is not None and stored[PRESENT] is True
    as_of, flags = connection.execute(_AS_OF, [view.name]).fetchone() or (None, [])
    offsets = {at.place: at.next_offset for at in Offsets(view.name, number).read(connection)}
    return Explained(
        view=view.name,
        version=number,
        key=key,
        is_shown=is_shown,
        row={name: stored[name] for name in view.column_names} if stored is not None and is_shown else None,
        as_of=as_of,
        as_of_flags=tuple(flags),
        measures=tuple(
            _measure(connection, version, measure, values, (stored or {}).get(measure.name, 0), offsets)
            for measure in measure_places(view)
        ),
    )


def _measure(
    connection: Connection,
    version: ViewVersion,
    measure: MeasurePlaces,
    key: Sequence[str],
    value: int | Decimal,
    offsets: Mapping[Partition, int],
) -> MeasureExplained:
    table = measure.table
    # As it is stored: whatever the prefix is called now, records came from there.
    topic = next((topic for topic, _ in offsets if topic.endswith(f".{table}")), str(table))
    names = [slot.name for slot in slots(version.view, table)]
    parts = {
        "contributions": sql.Identifier(SCHEMA, contribution_table_name(version.view, version.version, table)),
        "is_key": _is(names[place] for place in measure.key),
        "amount": sql.SQL("trim_scale(coalesce(sum({}), 0))").format(sql.Identifier(names[measure.amount]))
        if measure.amount is not None
        else sql.SQL("count(*)"),
        "source_key": sql.Identifier(SOURCE_KEY),
        "few": sql.Literal(FEW),
    }
    rows, contributed = connection.execute(sql.SQL(_CONTRIBUTED).format(**parts), key).fetchone() or (0, 0)

    def ends(order: str) -> tuple[str, ...]:
        query = sql.SQL(_KEYS).format(order=sql.SQL(order), **parts)
        return tuple(name for (name,) in connection.execute(query, key))

    return MeasureExplained(
        measure=measure.name,
        value=value,
        contributed=contributed,
        rows=rows,
        first=ends("ASC"),
        last=tuple(reversed(ends("DESC"))),
        topic=topic,
        next_offsets=tuple(offsets[place] for place in sorted(offsets) if place[0] == topic),
    )


def _as_shown(column: Column) -> sql.Composable:
    name = sql.Identifier(column.name)
    return sql.SQL(_TIME).format(column=name) if column.type is ColumnType.TIMESTAMPTZ else name


def _is(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in names)
