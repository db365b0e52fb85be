"""How a position among polled rows is written, and when the next sweep is due by it, without a database."""

from datetime import UTC, datetime, timedelta

import pytest

from cdc.polling import NOTHING, Polling, Position
from tests.unit.polled_items import POLLED

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_position_reads_back_as_it_was_written() -> None:
    position = Position(by=("id bigint",), after=("7",), swept_at=NOON, keys_request=3)
    assert Polling(POLLED, NOTHING).position(position.text()) == position


def test_a_look_back_is_counted_from_the_one_before_or_from_the_position() -> None:
    position = Position(by=("timestamp updated_at", "id"), after=("12:00", "7"))
    assert position.newest == "12:00"
    assert Position(by=position.by, after=position.after, looked_at="11:00").newest == "11:00"
    assert Position(by=position.by, after=None).newest is None


def test_one_in_another_order_is_none() -> None:
    polling = Polling(POLLED, NOTHING)
    assert polling.position(Position(by=("timestamp updated_at", "id"), after=("x", "7")).text()) is None
    assert polling.position(None) is None
    assert polling.position("10:20:") is None


def test_one_that_tells_of_no_sweep_goes_on_and_sweeps_at_once() -> None:
    position = Polling(POLLED, NOTHING).position('{"by":["id bigint"],"after":["7"]}')
    assert position == Position(by=("id bigint",), after=("7",))
    assert position.is_due(NOON, 3600)


@pytest.mark.parametrize(
    ("seconds", "is_due"),
    [(0, False), (9.9, False), (10, True), (1000, True), (-1, True)],
    ids=["now", "before", "then", "long after", "a clock that was set back"],
)
def test_a_sweep_is_due_so_long_after_the_newest_one(seconds: float, is_due: bool) -> None:
    position = Position(by=("id",), after=None, swept_at=NOON)
    assert position.is_due(NOON + timedelta(seconds=seconds), 10) is is_due
