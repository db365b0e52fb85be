"""Which standbys commits wait for, by the setting synchronous_standby_names."""

import pytest

from cdc.slots import is_awaited

NAME = "viewkeeper-cdc viewkeeper wal"


@pytest.mark.parametrize(
    ("standby_names", "expected"),
    [
        ("", False),
        ("*", True),
        ('"*"', True),
        ("FIRST 1 (a, *)", True),
        ("2(a,*)", True),
        (f'"{NAME}"', True),
        (f'"{NAME.upper()}", a', True),
        (f'ANY 1 (a, "{NAME}")', True),
        ('a, "viewkeeper-cdc other wal"', False),
        (f'"""{NAME}"""', False),
        ("FIRST 2 (a, b, c)", False),
    ],
)
def test_a_standby_is_awaited_if_it_or_any_is_listed(standby_names: str, *, expected: bool) -> None:
    assert is_awaited(standby_names, NAME) is expected


def test_a_name_without_spaces_is_listed_without_quotes_too() -> None:
    assert is_awaited("ANY 1 (a, Standby)", "standby")
