"""Writes what a batch does to one version of a view, in the caller's transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from psycopg import Cursor

from projector.changelog import ViewChangelog
from projector.changes import Changes, Groups, Key, RowValues
from projector.column_text import array_literal, copy_rows, plain_array, text_array
from projector.column_types import ColumnType
from projector.contributions import measure_places
from projector.definition import Column, View
from projector.projection import ContributionChanges, Projection, project
from projector.statements import ContributionStatements, build_statements


class Writer:
    """Applies changes to the tables of one version of a view."""

    def __init__(self, view: View, version: int) -> None:
        self._measures = view.measures
        self._measure_places = measure_places(view)
        self._key_types = [column.type for column in view.key_columns]
        self._value_columns = {
            table: view.value_columns(row) for table, row in zip(view.row_tables, view.rows, strict=True)
        }
        self._statements = build_statements(view, version)
        self._changelog = ViewChangelog(view, version)

    def apply(self, cursor: Cursor, changes: Changes) -> None:
        """Apply a batch's changes: read what its rows contributed, project, write."""
        stored = {
            table: self._stored(cursor, self._statements.contributions[table], changed)
            for table, changed in changes.counted.items()
        }
        projection = project(self._measure_places, changes, stored)
        for table, contributions in projection.contributions.items():
            self._write_contributions(cursor, self._statements.contributions[table], contributions)
        self._write_rows(cursor, projection)

    def _stored(
        self, cursor: Cursor, statements: ContributionStatements, changed: Mapping[str, Groups | None]
    ) -> dict[str, Groups]:
        cursor.execute(statements.read, [text_array(changed)])
        return {row[0]: row[1:] for row in cursor}

    def _write_contributions(
        self, cursor: Cursor, statements: ContributionStatements, changes: ContributionChanges
    ) -> None:
        if changes.inserted:
            with cursor.copy(statements.copy) as copy:
                copy.write(copy_rows([changes.inserted, *_groups(changes.inserted)]))
        if changes.updated:
            columns = zip(statements.types, _groups(changes.updated), strict=True)
            groups = [array_literal(column_type, _as_text(column_type, values)) for column_type, values in columns]
            cursor.execute(statements.update, [text_array(changes.updated), *groups])
        if changes.deleted:
            cursor.execute(statements.delete, [text_array(changes.deleted)])

    def _write_rows(self, cursor: Cursor, projection: Projection) -> None:
        counted = set[Key]().union(*projection.increments.values())
        if not counted and not projection.rows:
            return
        parameters = [
            *(
                literal
                for table, columns in self._value_columns.items()
                for literal in self._row_arrays(columns, projection.rows.get(table, {}))
            ),
            *self._key_arrays(counted),
            *(
                array_literal(measure.type, _as_text(measure.type, [net.get(key, 0) for key in counted]))
                for measure in self._measures
                for net in [projection.increments.get(measure.name, {})]
            ),
        ]
        cursor.execute(self._statements.apply, parameters)
        if projection.losers:
            cursor.execute(self._statements.remove_empty, self._key_arrays(projection.losers))
        changed = counted.union(*projection.rows.values())
        self._changelog.log(cursor, lambda: self._key_arrays(changed))

    def _row_arrays(self, columns: Sequence[Column], rows: Mapping[Key, RowValues | None]) -> list[str]:
        cleared = (None,) * len(columns)
        values = [cleared if row is None else row for row in rows.values()]
        return [
            *self._key_arrays(rows),
            plain_array(row is not None for row in rows.values()),
            *(array_literal(column.type, [row[place] for row in values]) for place, column in enumerate(columns)),
        ]

    def _key_arrays(self, keys: Collection[Key]) -> list[str]:
        """Return an array for each of the key's columns."""
        if len(self._key_types) == 1:
            return [array_literal(self._key_types[0], keys)]
        columns: Iterable[Iterable[object]] = zip(*keys, strict=True) if keys else [()] * len(self._key_types)
        return [array_literal(kind, column) for kind, column in zip(self._key_types, columns, strict=True)]


def _groups(contributions: Mapping[str, Groups]) -> Iterable[Groups]:
    return zip(*contributions.values(), strict=True)


def _as_text(column_type: ColumnType, values: Iterable[object]) -> Iterable[object]:
    """Return numerics, which are numbers here, as the text that their arrays are made of."""
    if column_type is not ColumnType.NUMERIC:
        return values
    return [None if value is None else str(value) for value in values]
