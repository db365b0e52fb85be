"""Writes what a batch does to one version of a view, in the caller's transaction."""

from collections.abc import Iterable, Mapping

from psycopg import Cursor

from projector.changes import Changes, Groups, Key
from projector.column_text import array_literal, copy_rows, plain_array, text_array
from projector.definition import View
from projector.projection import ContributionChanges, Projection, project
from projector.statements import ContributionStatements, build_statements


class Writer:
    """Applies changes to the tables of one version of a view."""

    def __init__(self, view: View, version: int) -> None:
        self._view = view
        self._statements = build_statements(view, version)

    def apply(self, cursor: Cursor, changes: Changes) -> None:
        """Apply a batch's changes: read what its rows contributed, project, write."""
        stored = {
            table: self._stored(cursor, self._statements.contributions[table], changed)
            for table, changed in changes.counted.items()
        }
        projection = project(self._view, changes, stored)
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
            groups = map(self._keys, _groups(changes.updated))
            cursor.execute(statements.update, [text_array(changes.updated), *groups])
        if changes.deleted:
            cursor.execute(statements.delete, [text_array(changes.deleted)])

    def _write_rows(self, cursor: Cursor, projection: Projection) -> None:
        counted = set[Key]().union(*projection.increments.values())
        if not counted and not projection.rows:
            return
        increments = [projection.increments.get(measure.name, {}) for measure in self._view.measures]
        parameters = [
            self._keys(projection.rows),
            plain_array(row is not None for row in projection.rows.values()),
            *self._row_columns(projection),
            self._keys(counted),
            *(plain_array(net.get(key, 0) for key in counted) for net in increments),
        ]
        cursor.execute(self._statements.apply, parameters)
        if projection.losers:
            cursor.execute(self._statements.remove_empty, [self._keys(projection.losers)])

    def _row_columns(self, projection: Projection) -> list[str]:
        columns = self._view.value_columns
        cleared = (None,) * len(columns)
        rows = [cleared if row is None else row for row in projection.rows.values()]
        return [array_literal(column.type, [row[place] for row in rows]) for place, column in enumerate(columns)]

    def _keys(self, keys: Iterable[Key | None]) -> str:
        return array_literal(self._view.key_column.type, keys)


def _groups(contributions: Mapping[str, Groups]) -> Iterable[tuple[Key | None, ...]]:
    return zip(*contributions.values(), strict=True)
