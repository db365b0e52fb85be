"""What an expression is worth for a row: SQL's meaning, in Python. None is NULL."""

import operator
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, Inexact
from typing import Any

from projector.column_types import ColumnType
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

Value = Decimal | str | bool | None
Row = tuple[object, ...]
Evaluate = Callable[[Row], Value]

# As exact as Postgres's numeric, whose products and sums are never rounded; what is no number is NaN, as there.
EXACT = Context(prec=200_000, Emax=999_999, Emin=-999_999, traps=[Inexact])
_NUMBERS = frozenset({ColumnType.BIGINT, ColumnType.INTEGER, ColumnType.NUMERIC})
_CALCULATIONS = {"+": EXACT.add, "-": EXACT.subtract, "*": EXACT.multiply}
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def evaluator(  # noqa: C901 - a case for each kind of expression
    expression: Expression, places: Mapping[str, int], types: Mapping[str, ColumnType]
) -> Evaluate:
    """Return what evaluates an expression of a row's decoded columns, each at its place among `places`."""

    def of(part: Expression) -> Evaluate:
        return evaluator(part, places, types)

    match expression:
        case ColumnOf(name):
            return _column(places[name], types[name])
        case Literal(value):
            return lambda _row: value
        case Compare(sign, left, right):
            return _comparison(_COMPARISONS[sign], of(left), of(right))
        case Calculate(sign, left, right):
            return _calculation(_CALCULATIONS[sign], of(left), of(right))
        case Both(left, right):
            return _decided(of(left), of(right), by=False)
        case Either(left, right):
            return _decided(of(left), of(right), by=True)
        case Negated(part):
            return _negation(of(part))
        case IsNull(part):
            value_of = of(part)
            return lambda row: value_of(row) is None
        case OneOf(part, literals):
            return _membership(of(part), frozenset(_ordered(literal.value) for literal in literals))
        case FirstKnown(parts):
            return _first_known([of(part) for part in parts])


def _column(place: int, column_type: ColumnType) -> Evaluate:
    if column_type in _NUMBERS:

        def number(row: Row) -> Decimal | None:
            value = row[place]
            return None if value is None else Decimal(value)  # type: ignore[arg-type] # an int, or a numeric's text

        return number
    return lambda row: row[place]  # type: ignore[return-value] # a text, or a truth value


def _ordered(value: object) -> object:
    """Return what compares as Postgres does: NaN equals itself and is greater than all numbers."""
    return (value.is_nan(), Decimal(0) if value.is_nan() else value) if isinstance(value, Decimal) else value


def _comparison(compare: Callable[[Any, Any], bool], left: Evaluate, right: Evaluate) -> Evaluate:
    def compared(row: Row) -> bool | None:
        one, other = left(row), right(row)
        return None if one is None or other is None else compare(_ordered(one), _ordered(other))

    return compared


def _calculation(calculate: Callable[[Decimal, Decimal], Decimal], left: Evaluate, right: Evaluate) -> Evaluate:
    def calculated(row: Row) -> Decimal | None:
        one, other = left(row), right(row)
        return None if one is None or other is None else calculate(one, other)  # type: ignore[arg-type] # numbers

    return calculated


def _decided(left: Evaluate, right: Evaluate, *, by: bool) -> Evaluate:
    """Return AND, which False decides, or OR, which True does; otherwise a NULL makes it NULL."""

    def decided(row: Row) -> bool | None:
        one = left(row)
        if one is by:
            return by
        other = right(row)
        if other is by:
            return by
        return None if one is None or other is None else not by

    return decided


def _negation(of: Evaluate) -> Evaluate:
    def negated(row: Row) -> bool | None:
        value = of(row)
        return None if value is None else not value

    return negated


def _membership(of: Evaluate, members: frozenset[object]) -> Evaluate:
    def is_member(row: Row) -> bool | None:
        value = of(row)
        return None if value is None else _ordered(value) in members

    return is_member


def _first_known(parts: list[Evaluate]) -> Evaluate:
    def first(row: Row) -> Value:
        return next((value for part in parts if (value := part(row)) is not None), None)

    return first
