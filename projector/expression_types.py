"""What type an expression has; what would mean different things in Python and in SQL is refused."""

import re
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum

from projector.column_types import ColumnType
from projector.errors import DefinitionError
from projector.expressions import (
    Both,
    Calculate,
    ColumnOf,
    Compare,
    Either,
    Expression,
    FirstKnown,
    IsNull,
    Literal,
    Negated,
    OneOf,
)

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Kind(StrEnum):
    """What can be compared with what."""

    NUMBER = "a number"
    TEXT = "text"
    BOOLEAN = "a truth value"
    UUID = "a uuid"
    TIME = "a time"


_KINDS = {
    ColumnType.BIGINT: Kind.NUMBER,
    ColumnType.INTEGER: Kind.NUMBER,
    ColumnType.NUMERIC: Kind.NUMBER,
    ColumnType.BOOLEAN: Kind.BOOLEAN,
    ColumnType.TEXT: Kind.TEXT,
    ColumnType.UUID: Kind.UUID,
    ColumnType.TIMESTAMPTZ: Kind.TIME,
}
_ORDERED = frozenset({Kind.NUMBER, Kind.TEXT})

Types = Mapping[str, ColumnType]
"""The types of a source table's columns, by name, as far as they are declared."""


def columns_in(expression: Expression) -> tuple[str, ...]:
    """Return the columns that an expression reads, each once, in the order of their first use."""
    match expression:
        case ColumnOf(name):
            return (name,)
        case Literal():
            return ()
        case Compare(_, left, right) | Calculate(_, left, right) | Both(left, right) | Either(left, right):
            parts: tuple[Expression, ...] = (left, right)
        case Negated(of) | IsNull(of) | OneOf(of, _):
            parts = (of,)
        case FirstKnown(of):
            parts = of
    return tuple(dict.fromkeys(name for part in parts for name in columns_in(part)))


def kind_of(expression: Expression, types: Types) -> Kind:  # noqa: C901 - a case for each kind of expression
    """Return what kind of value an expression has; raise DefinitionError where types do not go together."""
    match expression:
        case ColumnOf(name):
            return _column(name, types)
        case Literal(value):
            return _literal(value)
        case Compare(sign, left, right):
            _demand_comparable(sign, left, right, types)
        case Calculate(sign, left, right):
            for part in (left, right):
                _demand(part, Kind.NUMBER, f"{sign} is of numbers", types)
            return Kind.NUMBER
        case Both(left, right) | Either(left, right):
            for part in (left, right):
                _demand(part, Kind.BOOLEAN, "AND and OR are of truth values", types)
        case Negated(of):
            _demand(of, Kind.BOOLEAN, "NOT is of a truth value", types)
        case IsNull(of):
            kind_of(of, types)
        case OneOf(of, literals):
            for literal in literals:
                _demand_comparable("=", of, literal, types)
        case FirstKnown(of):
            return _first_known(of, types)
    return Kind.BOOLEAN


def _column(name: str, types: Types) -> Kind:
    if name not in types:
        declared = ", ".join(types) or "none"
        raise DefinitionError(f"it reads column {name!r}, whose type is not declared: add it to `columns` ({declared})")
    return _KINDS[types[name]]


def _literal(value: Decimal | str | bool) -> Kind:
    if isinstance(value, bool):
        return Kind.BOOLEAN
    return Kind.NUMBER if isinstance(value, Decimal) else Kind.TEXT


def _demand(expression: Expression, kind: Kind, rule: str, types: Types) -> None:
    found = kind_of(expression, types)
    if found is not kind:
        raise DefinitionError(f"{rule}, and one here is {found}")


def _demand_comparable(sign: str, left: Expression, right: Expression, types: Types) -> None:
    kinds = [kind_of(left, types), kind_of(right, types)]
    literals = [side.value for side in (left, right) if isinstance(side, Literal)]
    if Kind.UUID in kinds and Kind.TEXT in kinds and literals:
        wrong = [value for value in literals if not _UUID.fullmatch(str(value))]
        if wrong:
            raise DefinitionError(f"{wrong[0]!r} is no uuid in lower case")
        kinds = [Kind.UUID, Kind.UUID]
    if kinds[0] is not kinds[1]:
        raise DefinitionError(f"{sign} compares {kinds[0]} with {kinds[1]}")
    if kinds[0] is Kind.TIME:
        raise DefinitionError("times are compared by nothing but IS NULL")
    if sign not in ("=", "<>") and kinds[0] not in _ORDERED:
        raise DefinitionError(f"{sign} is of numbers and of text, not of {kinds[0]}")


def _first_known(of: tuple[Expression, ...], types: Types) -> Kind:
    kinds = list(dict.fromkeys(kind_of(part, types) for part in of))
    if len(kinds) > 1:
        raise DefinitionError(f"coalesce() is of one type, and has {' and '.join(kinds)}")
    if kinds[0] in (Kind.TIME, Kind.UUID):
        raise DefinitionError(f"coalesce() is of numbers, text and truth values, not of {kinds[0]}")
    return kinds[0]
