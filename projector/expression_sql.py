"""An expression as SQL, with the meaning that it has in Python: exact numbers, text by code points.

It is to be executed with parameters, be there none: psycopg then reads a doubled percent sign as one.
"""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from psycopg import sql

from projector.column_types import ColumnType
from projector.expression_types import Kind, kind_of
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

_CASTS = {
    # Sums of integers would overflow.
    ColumnType.BIGINT: "{}::numeric",
    ColumnType.INTEGER: "{}::numeric",
    ColumnType.NUMERIC: "{}::numeric",
    ColumnType.BOOLEAN: "{}::boolean",
    ColumnType.TEXT: '{}::text COLLATE "C"',
    ColumnType.UUID: "{}::uuid",
    ColumnType.TIMESTAMPTZ: "{}::timestamptz",
}


def as_sql(  # noqa: C901 - a case for each kind of expression
    expression: Expression, alias: str, types: Mapping[str, ColumnType]
) -> sql.Composed:
    """Return an expression over the row that `alias` names, in brackets."""

    def of(part: Expression) -> sql.Composed:
        return as_sql(part, alias, types)

    match expression:
        case ColumnOf(name):
            return sql.SQL(f"({_CASTS[types[name]]})").format(sql.Identifier(alias, name))
        case Literal(value):
            return _literal(value)
        case Compare(sign, left, right):
            return sql.SQL(f"({{}} {sign} {{}})").format(*_alike([left, right], alias, types))
        case Calculate(sign, left, right):
            return sql.SQL(f"({{}} {sign} {{}})").format(of(left), of(right))
        case Both(left, right):
            return sql.SQL("({} AND {})").format(of(left), of(right))
        case Either(left, right):
            return sql.SQL("({} OR {})").format(of(left), of(right))
        case Negated(part):
            return sql.SQL("(NOT {})").format(of(part))
        case IsNull(part):
            return sql.SQL("({} IS NULL)").format(of(part))
        case OneOf(part, literals):
            member, *members = _alike([part, *literals], alias, types)
            return sql.SQL("({} IN ({}))").format(member, sql.SQL(", ").join(members))
        case FirstKnown(parts):
            return sql.SQL("coalesce({})").format(sql.SQL(", ").join(map(of, parts)))


def _alike(parts: Sequence[Expression], alias: str, types: Mapping[str, ColumnType]) -> list[sql.Composed]:
    """Return expressions that are compared with each other; a text beside a uuid is one, too."""
    has_uuid = any(kind_of(part, types) is Kind.UUID for part in parts)
    return [
        _literal(part.value, type_name="uuid") if has_uuid and isinstance(part, Literal) else as_sql(part, alias, types)
        for part in parts
    ]


def _literal(value: Decimal | str | bool, *, type_name: str = 'text COLLATE "C"') -> sql.Composed:
    if isinstance(value, Decimal):
        return sql.SQL("{}::numeric").format(sql.Literal(format(value, "f")))
    if isinstance(value, bool):
        return sql.Composed([sql.SQL("true" if value else "false")])
    return sql.SQL(f"{{}}::{type_name}").format(sql.Literal(value.replace("%", "%%")))
