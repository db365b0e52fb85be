"""The parts that a view is declared of: columns, rows, measures, and how it is served."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from projector.column_types import ColumnType

Names = str | tuple[str, ...]
"""One column's name, or those of several in their order."""


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
    """A source table that gives each row of a view some of its columns; its key is the view's key.

    Of several, the first lists the key's columns among its own, and decides which rows there are. The others list
    what they add; `key` names their key columns, in the order of the view's, where they are called otherwise.
    """

    of: str
    columns: tuple[Column, ...]
    key: Names | None = None


class Count(msgspec.Struct, frozen=True, tag="count", tag_field="measure", omit_defaults=True):
    """A column that counts the rows of `of` whose column `by` equals the view's key; NULL counts for nobody.

    For a key of several columns `by` names as many, in the key's order; a row with NULL in any counts for nobody.
    With `where`, an expression over `columns` of `of` (see expressions.py), only rows for which it is true.
    """

    name: str
    of: str
    by: Names
    where: str | None = None
    columns: tuple[Column, ...] = ()

    @property
    def type(self) -> ColumnType:
        """The column's type."""
        return ColumnType.BIGINT

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns that `by` names."""
        return as_names(self.by)


class Sum(msgspec.Struct, frozen=True, tag="sum", tag_field="measure", omit_defaults=True):
    """A column, numeric and exact, that sums `value` over the rows of `of` whose column `by` equals the view's key.

    It is 0 without any, and NULL adds nothing. `by`, `where` and `columns` are as in Count; `value` is an expression
    over `columns`, too. NaN and infinity cannot be taken back from a sum: they stop the projector.
    """

    name: str
    of: str
    by: Names
    value: str
    where: str | None = None
    columns: tuple[Column, ...] = ()

    @property
    def type(self) -> ColumnType:
        """The column's type."""
        return ColumnType.NUMERIC

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns that `by` names."""
        return as_names(self.by)


Measure = Count | Sum


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the resource's JSON: its name there, the view's column, the format."""

    name: str
    column: str
    format: Format = Format.JSON


@dataclass(frozen=True, slots=True)
class Resource:
    """How the view is served: a path with a parameter for each column of the key, in order, and the JSON's fields."""

    path: str
    fields: tuple[Field, ...]

    @property
    def segments(self) -> tuple[str, ...]:
        """What stands between the path's slashes."""
        return tuple(self.path.split("/")[1:])

    @property
    def parameters(self) -> dict[int, str]:
        """Names of the path's parameters, by the place of their segment."""
        return {place: part[1:-1] for place, part in enumerate(self.segments) if part.startswith("{")}


def as_names(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names, however many there are."""
    return (names,) if isinstance(names, str) else tuple(names)
