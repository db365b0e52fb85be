"""Few that spoil a question for all are found, with as few questions as may be."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from cdc.halving import halved


@given(st.sets(st.integers(0, 99), max_size=5), st.integers(0, 100))
def test_all_are_answered_but_those_that_spoil_it(bad: set[int], count: int) -> None:
    asked = 0

    def total(numbers: Sequence[int]) -> int | None:
        nonlocal asked
        asked += 1
        return None if bad & set(numbers) else sum(numbers)

    found = list(halved(range(count), total))
    assert [number for numbers, _ in found for number in numbers] == list(range(count))
    assert {numbers[0] for numbers, answer in found if answer is None} == bad & set(range(count))
    assert all(answer == sum(numbers) for numbers, answer in found if answer is not None)
    assert asked <= 1 + 2 * 7 * len(bad)
