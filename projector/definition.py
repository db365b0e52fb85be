"""The language in which a view is declared: from one View come its tables, its SQL and its HTTP resource."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from cdc.errors import WireError
from cdc.wire import TableName
from projector.errors import DefinitionError

_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_PATH = re.compile(r"(/[A-Za-z0-9_.-]+)+/\{[A-Za-z_][A-Za-z0-9_]*\}")
RESERVED_COLUMNS = frozenset({"viewkeeper_present", "source_key"})


class ColumnType(StrEnum):
    """A column's type; the value is its name in Postgres."""

    BIGINT = "bigint"
    INTEGER = "integer"
    NUMERIC = "numeric"
    BOOLEAN = "boolean"
    TEXT = "text"
    UUID = "uuid"
    TIMESTAMPTZ = "timestamptz"


KEY_TYPES = frozenset({ColumnType.BIGINT, ColumnType.INTEGER, ColumnType.TEXT, ColumnType.UUID})
"""Types whose equality in SQL is equality of the bytes on the wire."""


class Format(StrEnum):
    """How a resource's field shows its column in JSON."""

    JSON = "json"  # a number, a string, a boolean
    STRING = "string"  # the value's text, quoted
    CALENDAR = "calendar"  # Tue Jan 22 15:14:44 +0000 2008


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a view's row, named and typed as in its source table."""

    name: str
    type: ColumnType


@dataclass(frozen=True, slots=True)
class Row:
    """The source table that gives each row of a view its columns; its key is the view's key."""

    of: str
    columns: tuple[Column, ...]


@dataclass(frozen=True, slots=True)
class Count:
    """A column that counts the rows of `of` whose column `by` equals the view's key; NULL counts for nobody."""

    name: str
    of: str
    by: str


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the resource's JSON: its name there, the view's column, the format."""

    name: str
    column: str
    format: Format = Format.JSON


@dataclass(frozen=True, slots=True)
class Resource:
    """How the view is served: a path that ends in the key's parameter, and the JSON's fields in order."""

    path: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class View:
    """A table that is kept in step with its source tables.

    Its columns are the row's columns, then the measures, in the order of their declaration. Raises DefinitionError
    when the definition contradicts itself.
    """

    name: str
    key: str
    row: Row
    measures: tuple[Count, ...]
    resource: Resource
    schema: str = "public"

    def __post_init__(self) -> None:
        for complaint in _complaints(self):
            raise DefinitionError(f"view {self.name!r}: {complaint}")

    @property
    def key_column(self) -> Column:
        """The key's column."""
        return next(column for column in self.row.columns if column.name == self.key)

    @property
    def value_columns(self) -> tuple[Column, ...]:
        """The row's columns other than the key."""
        return tuple(column for column in self.row.columns if column.name != self.key)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns that readers see, in order."""
        return (*(column.name for column in self.row.columns), *(measure.name for measure in self.measures))

    @property
    def counted_tables(self) -> tuple[TableName, ...]:
        """The tables that measures count, each once, in the order of their first use."""
        return tuple(dict.fromkeys(TableName.parse(measure.of) for measure in self.measures))

    @property
    def source_tables(self) -> tuple[TableName, ...]:
        """All tables that the view is computed from, the row's first."""
        return tuple(dict.fromkeys((TableName.parse(self.row.of), *self.counted_tables)))

    def group_columns(self, table: TableName) -> tuple[str, ...]:
        """Return the columns of a counted table that measures group by, each once."""
        return tuple(dict.fromkeys(measure.by for measure in self.measures if TableName.parse(measure.of) == table))


def _complaints(view: View) -> Iterator[str]:
    yield from _name_complaints(view)
    yield from _key_complaints(view)
    yield from _table_complaints(view)
    yield from _resource_complaints(view)


def _name_complaints(view: View) -> Iterator[str]:
    names = (view.schema, view.name, *view.column_names, *(measure.by for measure in view.measures))
    for name in names:
        if not _IDENTIFIER.fullmatch(name):
            yield f"{name!r} is no name: use lower-case letters, digits and _, at most 63"
        if name in RESERVED_COLUMNS:
            yield f"column {name!r} is Viewkeeper's own: give it another name"
    for name in sorted({name for name in view.column_names if view.column_names.count(name) > 1}):
        yield f"two columns are called {name!r}"


def _key_complaints(view: View) -> Iterator[str]:
    types = {column.name: column.type for column in view.row.columns}
    if view.key not in types:
        yield f"key {view.key!r} is no column of its row; those are {', '.join(types)}"
    elif types[view.key] not in KEY_TYPES:
        yield f"key {view.key!r} is {types[view.key]}; a key is one of {', '.join(sorted(KEY_TYPES))}"


def _table_complaints(view: View) -> Iterator[str]:
    for table in (view.row.of, *(measure.of for measure in view.measures)):
        try:
            TableName.parse(table)
        except WireError as error:
            yield str(error)
    if TableName.parse(view.row.of) in view.counted_tables:
        yield f"{view.row.of} gives the rows and is counted: a table is one or the other"


def _resource_complaints(view: View) -> Iterator[str]:
    if not _PATH.fullmatch(view.resource.path):
        yield f"path {view.resource.path!r}: write it as /name/{{key}}, with the one parameter at its end"
    names = [field.name for field in view.resource.fields]
    if len(set(names)) < len(names):
        yield "two fields of its resource have one name"
    types = {column.name: column.type for column in view.row.columns}
    for field in view.resource.fields:
        if field.column not in view.column_names:
            yield f"field {field.name!r} shows {field.column!r}, which is no column of the view"
        if field.format is Format.CALENDAR and types.get(field.column) is not ColumnType.TIMESTAMPTZ:
            yield f"field {field.name!r}: only a timestamptz has the format {field.format}"
