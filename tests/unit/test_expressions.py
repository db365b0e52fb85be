"""Expressions of views: what is read, how it is typed, and what is refused with words."""

from decimal import Decimal

import pytest

from projector.column_types import ColumnType
from projector.errors import DefinitionError
from projector.expression_sql import as_sql
from projector.expression_types import Kind, columns_in, kind_of
from projector.expression_values import evaluator
from projector.expressions import parse

TYPES = {
    "status": ColumnType.TEXT,
    "price": ColumnType.NUMERIC,
    "quantity": ColumnType.INTEGER,
    "paid": ColumnType.BOOLEAN,
    "of": ColumnType.UUID,
    "at": ColumnType.TIMESTAMPTZ,
    "odd name": ColumnType.BIGINT,
}
ROW = ("it's", "1.50", 3, True, "0190163d-8694-739b-aea5-966c26f8ad91", "2020-01-01T00:00:00.000000Z", None)


def _value(text: str) -> object:
    return evaluator(parse(text), {name: place for place, name in enumerate(TYPES)}, TYPES)(ROW)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("price * quantity - -1", Decimal("5.50")),
        ("-(price + 1) * 2", Decimal("-5.00")),
        ("1 - 2 - 3", Decimal(-4)),
        ("status = 'it''s' AND NOT quantity > 3", True),
        ("FALSE OR TRUE AND FALSE", False),
        ("not paid or price is null", False),
        ('"odd name" IS NULL', True),
        ('"odd name" = 1', None),
        ('"odd name" = 1 AND FALSE', False),
        ('"odd name" = 1 OR paid', True),
        ('NOT ("odd name" = 1)', None),
        ('"odd name" IN (1, 2)', None),
        ('coalesce("odd name", quantity, 7)', Decimal(3)),
        ("quantity NOT IN (-3, 4)", True),
        ("of = '0190163d-8694-739b-aea5-966c26f8ad91'", True),
        ("price != 1.5", False),
        ("at IS NOT NULL", True),
    ],
)
def test_it_means_what_sql_means(text: str, value: object) -> None:
    assert _value(text) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "at the end"),
        ("price >", "a column, a number"),
        ("price > 1 1", "an operator or the end"),
        ("price / 2", "none of the expressions"),
        ("lower(status) = 'x'", "an operator or the end"),
        ("status LIKE 'a%'", "an operator or the end"),
        ("price = NULL", "a column, a number"),
        ("price IN (quantity)", "a column, a number"),
        ("price IN ()", "a column, a number"),
        ("status = 'open", "none of the expressions"),
        ("price > 1; DROP TABLE x", "none of the expressions"),
        ("(" * 60 + "paid" + ")" * 60, "nested more than"),
        (" OR ".join(["paid"] * 1_000), "joins more than 200 terms; IN may have any number of constants"),
        ("quantity" + " + 1 * 2 - 3" * 100, "joins more than 200 terms"),
        ('paid IN ("true")', "a column, a number"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        parse(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("discount > 1", "column 'discount', whose type is not declared"),
        ("price = status", "= compares a number with text"),
        ("price + status", "[+] is of numbers, and one here is text"),
        ("price AND paid", "AND and OR are of truth values, and one here is a number"),
        ("NOT price", "NOT is of a truth value"),
        ("paid < TRUE", "< is of numbers and of text, not of a truth value"),
        ("of = 'x'", "'x' is no uuid"),
        ("of < '0190163d-8694-739b-aea5-966c26f8ad91'", "not of a uuid"),
        ("at = at", "times are compared by nothing but IS NULL"),
        ("coalesce(price, status)", "coalesce[(][)] is of one type, and has a number and text"),
        ("status IN ('a', 1)", "= compares text with a number"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        kind_of(parse(text), TYPES)


def test_the_deepest_that_is_read_is_typed_run_and_written_in_sql() -> None:
    deepest = "(" * 50 + "paid" + " AND paid)" * 50 + " OR paid" * 150
    assert kind_of(parse(deepest), TYPES) is Kind.BOOLEAN
    assert columns_in(parse(deepest)) == ("paid",)
    assert _value(deepest) is True
    assert as_sql(parse(deepest), "t", TYPES).as_bytes(None).count(b"paid") == 201


def test_it_knows_its_columns_and_its_kind() -> None:
    expression = parse("coalesce(price, quantity) > 1 AND price < 5")
    assert columns_in(expression) == ("price", "quantity")
    assert kind_of(expression, TYPES) is Kind.BOOLEAN
