"""Expressions of views have one meaning: what Python makes of a row, Postgres makes of it."""

from collections.abc import Sequence
from decimal import Decimal

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projector.column_types import ColumnType
from projector.expression_sql import as_sql
from projector.expression_values import evaluator
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

pytestmark = pytest.mark.newest_postgres

TYPES = {
    "n": ColumnType.NUMERIC,
    "i": ColumnType.INTEGER,
    "b": ColumnType.BIGINT,
    "t": ColumnType.TEXT,
    "u": ColumnType.TEXT,
    "f": ColumnType.BOOLEAN,
    "g": ColumnType.BOOLEAN,
}
PLACES = {name: place for place, name in enumerate(TYPES)}
SIGNS = st.sampled_from(["=", "<>", "<", "<=", ">", ">="])

# Few of each, so that they meet.
numerals = st.sampled_from(["0", "1", "-1", "1.0", "1.50", "-0.001", "99999999999999999999.9", "NaN", "Infinity"])
words = st.sampled_from(["", "a", "A", "ä", "z", "it's", "\U0001f600", "\uffff", " a", 'q"\\', "5%", "5%%", "%s"])
rows = st.tuples(
    st.none() | numerals | st.just("-Infinity"),
    st.none() | st.integers(-2, 2) | st.just(2**31 - 1),
    st.none() | st.integers(-2, 2) | st.just(-(2**63)),
    st.none() | words,
    st.none() | words,
    st.none() | st.booleans(),
    st.none() | st.booleans(),
)
finite = numerals.filter(lambda text: text[-1].isdigit()).map(Decimal)


def _columns(*names: str) -> st.SearchStrategy[Expression]:
    return st.sampled_from(names).map(ColumnOf)


def _coalesced(parts: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    return st.lists(parts, min_size=1, max_size=3).map(lambda some: FirstKnown(tuple(some)))


numbers: st.SearchStrategy[Expression] = st.recursive(
    _columns("n", "i", "b") | finite.map(Literal),
    lambda some: st.builds(Calculate, st.sampled_from("+-*"), some, some) | _coalesced(some),
    max_leaves=5,
)
texts: st.SearchStrategy[Expression] = st.recursive(_columns("t", "u") | words.map(Literal), _coalesced, max_leaves=3)
members = st.builds(OneOf, numbers, st.lists(finite.map(Literal), min_size=1, max_size=3).map(tuple)) | st.builds(
    OneOf, texts, st.lists(words.map(Literal), min_size=1, max_size=3).map(tuple)
)
truths: st.SearchStrategy[Expression] = st.recursive(
    _columns("f", "g")
    | st.booleans().map(Literal)
    | members
    | st.builds(Compare, SIGNS, numbers, numbers)
    | st.builds(Compare, SIGNS, texts, texts)
    | st.builds(IsNull, numbers | texts),
    lambda some: (
        st.builds(Both, some, some)
        | st.builds(Either, some, some)
        | st.builds(Negated, some)
        | st.builds(IsNull, some)
        | st.builds(Compare, st.sampled_from(["=", "<>"]), some, some)
        | _coalesced(some)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(numbers | truths | texts, rows), min_size=20, max_size=20))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_python_and_postgres_agree(source_url: str, cases: Sequence[tuple[Expression, tuple[object, ...]]]) -> None:
    with psycopg.connect(source_url, autocommit=True) as session:
        for expression, row in cases:
            given_row = ", ".join(f"%s::{kind} AS {name}" for name, kind in TYPES.items())
            query = (
                b"SELECT " + as_sql(expression, "r", TYPES).as_bytes(None) + f" FROM (SELECT {given_row}) r".encode()
            )
            (expected,) = session.execute(query, row).fetchone() or (None,)
            found = evaluator(expression, PLACES, TYPES)(row)
            assert _comparable(found) == _comparable(expected), (expression, row)


def _comparable(value: object) -> object:
    return "NaN" if isinstance(value, Decimal) and value.is_nan() else value
