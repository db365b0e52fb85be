"""Whether a key differs, by several looks at source, topic and source again."""

import pytest

from cdc.judging import CONFIRMATIONS, Judge, Kind, Outcome, difference, digest

KEY = b'{"id":1}'
A, B, C = digest(b"a"), digest(b"b"), digest(b"c")


def looks(*seen: tuple[bytes | None, bytes | None, bytes | None]) -> list[Kind | Outcome | None]:
    judge = Judge()
    return [judge.verdict(KEY, *look) for look in seen]


@pytest.mark.parametrize("shown", [A, B])
def test_an_image_that_equals_either_row_is_right(shown: bytes) -> None:
    assert looks((A, shown, B)) == [Outcome.EQUAL]


def test_no_row_and_no_image_are_equal() -> None:
    assert looks((None, None, None)) == [Outcome.EQUAL]


@pytest.mark.parametrize(("row", "shown", "kind"), [(A, B, Kind.STALE), (A, None, Kind.MISSING), (None, A, Kind.GHOST)])
def test_a_difference_is_one_when_it_was_seen_often_enough(row: bytes | None, shown: bytes | None, kind: Kind) -> None:
    assert difference(row, shown) is kind
    assert looks(*[(row, shown, row)] * CONFIRMATIONS) == [*[None] * (CONFIRMATIONS - 1), kind]


def test_a_row_that_moves_while_it_is_looked_at_tells_nothing() -> None:
    assert looks(*[(A, C, B)] * 2 * CONFIRMATIONS) == [None] * 2 * CONFIRMATIONS


def test_another_image_or_another_row_is_counted_anew() -> None:
    nearly = [(A, B, A)] * (CONFIRMATIONS - 1)
    assert looks(*nearly, (A, C, A), *nearly) == [None] * (2 * CONFIRMATIONS - 1)
    assert looks(*nearly, (C, B, C), *nearly) == [None] * (2 * CONFIRMATIONS - 1)
    assert looks(*nearly, (A, C, B), (A, B, A))[-1] is Kind.STALE, "a look that tells nothing takes nothing back"
