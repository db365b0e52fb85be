"""Which rows of a window come late, without a database."""

import pytest

import cdc.look_back
from cdc.look_back import LookBack, Order, Walked

FIRST, SECOND, THIRD, FOURTH = ("10:00", "1"), ("10:01", "2"), ("10:02", "3"), ("10:03", "4")


def asked(*rows: Order, version: int = 1, is_open: bool = False) -> list[Walked]:
    """Return rows that the walk is asked for, the next one too if they are open."""
    return [Walked(row, version, is_asked=True, is_open=is_open, is_cut=False) for row in rows]


def polled(*rows: Order, version: int = 1) -> dict[Order, int]:
    """Return rows as a poll notes them."""
    return dict.fromkeys(rows, version)


def begun(place: Order = FOURTH, *, xmin: str = "10", now: float = 0) -> LookBack:
    """Return one with a walk up to a place."""
    look_back = LookBack(60)
    look_back.resume("09:00", "5")
    look_back.turn(place, xmin, now)
    return look_back


def walk(look_back: LookBack, rows: list[Walked], *, xmin: str, now: float) -> list[Order]:
    """Go over a window of a page."""
    look_back.turn(FOURTH, xmin, now)
    return look_back.late(rows, is_last=True, now=now)


def begins(look_back: LookBack, place: Order, *, now: float) -> bool:
    """Return whether a walk begins now."""
    look_back.turn(place, "20", now)
    return look_back.until == place


def test_rows_that_the_server_is_asked_for_are_late() -> None:
    assert begun().late(asked(FIRST, THIRD), is_last=True, now=0) == [FIRST, THIRD]


def test_a_row_whose_transaction_had_ended_when_the_walk_before_began_is_not_late() -> None:
    known = Walked(FIRST, 1, is_asked=False, is_open=False, is_cut=True)
    assert begun().late([known, *asked(SECOND)], is_last=True, now=0) == [SECOND]


def test_the_next_walk_asks_for_transactions_that_had_not_ended_when_this_one_began() -> None:
    look_back = begun(xmin="10")
    assert (look_back.since, look_back.begun) == ("5", "10")
    look_back.late([], is_last=True, now=0)
    look_back.turn(FOURTH, "20", 6)
    assert (look_back.since, look_back.begun) == ("10", "20")


def test_what_it_is_asked_for_again_is_remembered_and_nothing_else() -> None:
    look_back = begun()
    look_back.late([*asked(FIRST), *asked(SECOND, is_open=True)], is_last=True, now=0)
    assert walk(look_back, asked(FIRST, SECOND, is_open=True), xmin="20", now=6) == [FIRST]
    assert walk(look_back, asked(FIRST, SECOND), xmin="30", now=12) == []
    assert walk(look_back, asked(FIRST, SECOND), xmin="40", now=18) == [FIRST, SECOND]


def test_rows_that_were_polled_are_not_late() -> None:
    look_back = LookBack(60)
    look_back.note(polled(FIRST))
    assert walk(look_back, asked(FIRST, SECOND), xmin="10", now=0) == [SECOND]


def test_rows_that_were_polled_during_a_walk_are_not_late_in_the_next() -> None:
    look_back = begun()
    look_back.note(polled(THIRD))
    look_back.late([], is_last=True, now=0)
    assert walk(look_back, asked(SECOND, THIRD), xmin="20", now=6) == [SECOND]


def test_a_row_with_another_timestamp_is_another_one() -> None:
    look_back = LookBack(60)
    look_back.note(polled(FIRST))
    assert walk(look_back, asked(("10:03", "1")), xmin="10", now=0) == [("10:03", "1")]


def test_another_version_of_a_row_is_late_and_then_remembered() -> None:
    look_back = LookBack(60)
    look_back.note(polled(FIRST, SECOND))
    newer = asked(FIRST, version=2, is_open=True)
    assert walk(look_back, [*newer, *asked(SECOND)], xmin="10", now=0) == [FIRST]
    assert walk(look_back, newer, xmin="20", now=6) == []
    assert walk(look_back, asked(FIRST, version=3), xmin="30", now=12) == [FIRST]


def test_what_polls_may_be_asked_for_again_is_what_the_next_walk_asks_for() -> None:
    look_back = begun(xmin="10")
    assert look_back.open_since == "10"
    look_back.late([], is_last=True, now=0)
    assert look_back.open_since == "10"


def test_a_walk_goes_on_where_its_page_ended_and_is_due_again_after_a_tenth_of_the_window() -> None:
    look_back = begun(THIRD)
    look_back.late(asked(FIRST), is_last=False, now=0)
    assert (look_back.after, look_back.until) == (FIRST, THIRD)
    look_back.turn(FOURTH, "20", 100)
    assert (look_back.after, look_back.until) == (FIRST, THIRD), "one at a time"
    look_back.late(asked(SECOND), is_last=True, now=1)
    assert (look_back.after, look_back.until) == (None, None)
    assert not begins(look_back, FOURTH, now=6.9)
    assert begins(look_back, FOURTH, now=7)


def test_a_window_is_counted_from_what_was_the_newest_when_the_walk_before_began() -> None:
    look_back = begun(THIRD)
    look_back.resume("11:00", "99")
    assert look_back.newest == "09:00"
    look_back.late(asked(FIRST), is_last=False, now=0)
    assert look_back.newest == "09:00"
    look_back.late(asked(SECOND), is_last=True, now=1)
    assert look_back.newest == THIRD[0]


def test_after_forgetting_all_rows_are_asked_for_again_at_once_and_late() -> None:
    look_back = begun()
    look_back.late(asked(FIRST, is_open=True), is_last=True, now=0)
    look_back.forget("09:30", "7")
    look_back.turn(FOURTH, "20", 0)
    assert (look_back.newest, look_back.since, look_back.until) == ("09:30", "7", FOURTH)
    assert look_back.late(asked(FIRST), is_last=True, now=0) == [FIRST]


@pytest.mark.parametrize(
    ("xmin", "since"),
    [("5", "5"), (str(2**31 + 4), "5"), ("4", None), (str(2**31 + 5), None)],
    ids=["the same", "long ago", "another server's", "too long ago"],
)
def test_transactions_that_cannot_be_compared_are_all_asked_for(xmin: str, since: str | None) -> None:
    assert begun(xmin=xmin).since == since


def test_many_rows_begin_a_walk_and_those_behind_it_are_not_remembered_beyond_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cdc.look_back, "MOST_REMEMBERED", 4)
    look_back = begun()
    look_back.late([], is_last=True, now=0)
    rows = [("11:00", str(number)) for number in range(10)]
    look_back.note(polled(*rows[:1]))
    assert not begins(look_back, FOURTH, now=1)
    look_back.note(polled(*rows[1:2]))
    assert begins(look_back, rows[1], now=1)
    # Of a transaction that is open since before.
    look_back.note(polled(*rows[2:]))
    assert look_back.late(asked(*rows[:2]), is_last=True, now=1) == []
    assert not begins(look_back, rows[-1], now=60.9), "what is not remembered is not published all the time"
    assert begins(look_back, rows[-1], now=61)
    assert look_back.late(asked(*rows[2:]), is_last=True, now=61) == rows[6:]


def test_rows_that_tell_no_transaction_are_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdc.look_back, "MOST_REMEMBERED", 1)
    look_back = LookBack(60, bounded=False)
    look_back.note(polled(FIRST, SECOND))
    assert walk(look_back, asked(FIRST, SECOND, is_open=True), xmin="10", now=0) == []
    assert walk(look_back, asked(FIRST, SECOND, is_open=True), xmin="20", now=6) == []


def test_without_a_window_it_never_begins_and_remembers_nothing() -> None:
    look_back = LookBack(0)
    look_back.note(polled(FIRST))
    look_back.turn(FOURTH, "10", 1e9)
    assert look_back.until is None
