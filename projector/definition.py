"""The language in which a view is declared: from one View come its tables, its SQL and its HTTP resource."""

from dataclasses import Field as Part
from dataclasses import dataclass, fields
from typing import Any

import msgspec

from cdc.wire import TableName
from projector.column_types import KEY_TYPES as KEY_TYPES
from projector.column_types import ColumnType as ColumnType
from projector.complaints import complaints
from projector.errors import DefinitionError
from projector.parts import Column as Column
from projector.parts import Count as Count
from projector.parts import Field as Field
from projector.parts import Format as Format
from projector.parts import Measure as Measure
from projector.parts import Names, as_names
from projector.parts import Resource as Resource
from projector.parts import Row as Row
from projector.parts import Sum as Sum


@dataclass(frozen=True, slots=True)
class View:
    """A table that is kept in step with its source tables.

    `key` names one column or several; `row` is one Row, or several that share the key. The view's columns are those
    of its rows, then the measures, in the order of their declaration. `indexes` name columns of the view, one tuple an
    index. Raises DefinitionError when the definition contradicts itself.
    """

    name: str
    key: Names
    row: Row | tuple[Row, ...]
    measures: tuple[Measure, ...]
    resource: Resource
    schema: str = "public"
    indexes: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for part in fields(self):
            object.__setattr__(self, part.name, _as_stored(self, part))
        for complaint in complaints(self):
            raise DefinitionError(f"view {self.name!r}: {complaint}")

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows' source tables; the first decides which rows there are."""
        return (self.row,) if isinstance(self.row, Row) else tuple(self.row)

    @property
    def key_names(self) -> tuple[str, ...]:
        """Names of the key's columns, in its order."""
        return as_names(self.key)

    @property
    def key_columns(self) -> tuple[Column, ...]:
        """The key's columns, in its order."""
        columns = {column.name: column for column in self.rows[0].columns}
        return tuple(columns[name] for name in self.key_names)

    @property
    def row_columns(self) -> tuple[Column, ...]:
        """The columns of all rows, the key's among them."""
        return tuple(column for row in self.rows for column in row.columns)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns that readers see, in order."""
        return (*(column.name for column in self.row_columns), *(measure.name for measure in self.measures))

    @property
    def row_tables(self) -> tuple[TableName, ...]:
        """The tables that give rows their columns, in the order of `rows`."""
        return tuple(TableName.parse(row.of) for row in self.rows)

    @property
    def counted_tables(self) -> tuple[TableName, ...]:
        """The tables that measures count, each once, in the order of their first use."""
        return tuple(dict.fromkeys(TableName.parse(measure.of) for measure in self.measures))

    @property
    def source_tables(self) -> tuple[TableName, ...]:
        """All tables that the view is computed from, the rows' first."""
        return tuple(dict.fromkeys((*self.row_tables, *self.counted_tables)))

    def value_columns(self, row: Row) -> tuple[Column, ...]:
        """Return a row's columns other than the key's."""
        return tuple(column for column in row.columns if column.name not in self.key_names)

    def key_of_row(self, row: Row) -> tuple[Column, ...]:
        """Return the key's columns as they are called in a row's table."""
        names = self.key_names if row.key is None else as_names(row.key)
        return tuple(Column(name, column.type) for name, column in zip(names, self.key_columns, strict=True))

    def measures_of(self, table: TableName) -> tuple[Measure, ...]:
        """Return the measures over a table, in the order of their declaration."""
        return tuple(measure for measure in self.measures if TableName.parse(measure.of) == table)

    def groups_of(self, measure: Measure) -> dict[str, ColumnType]:
        """Return the columns that a measure groups by, with their types: those of the key's columns in order."""
        return {name: column.type for name, column in zip(measure.group_columns, self.key_columns, strict=True)}

    def columns_of(self, table: TableName) -> dict[str, ColumnType]:
        """Return the columns of a counted table that measures read, with their types: groups first."""
        measures = self.measures_of(table)
        groups = {name: kind for measure in measures for name, kind in self.groups_of(measure).items()}
        return groups | {column.name: column.type for measure in measures for column in measure.columns}


def _as_stored(view: View, part: Part[Any]) -> object:
    """Return a part of a declaration as the registry will give it back: lists as tuples, names of types as types."""
    try:
        return msgspec.convert(msgspec.to_builtins(getattr(view, part.name)), part.type)
    except (msgspec.ValidationError, TypeError) as error:
        hint = ": a tuple of one thing is (thing,), with a comma" if "Expected `array`" in str(error) else ""
        raise DefinitionError(f"view {view.name!r}: {part.name}: {error}{hint}") from error
