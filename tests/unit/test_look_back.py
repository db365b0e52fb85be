"""Which rows of a window come late, without a database."""

from cdc.look_back import LookBack

FIRST, SECOND, THIRD = ("10:00", "1"), ("10:01", "2"), ("10:02", "3")


def test_rows_of_the_first_walk_are_late_and_later_only_those_that_were_not_there() -> None:
    look_back = LookBack(60)
    assert look_back.late([FIRST, THIRD], is_last=True, now=0) == [FIRST, THIRD]
    assert look_back.late([FIRST, SECOND, THIRD], is_last=True, now=6) == [SECOND]


def test_rows_that_were_polled_are_not_late() -> None:
    look_back = LookBack(60)
    look_back.note([FIRST])
    assert look_back.late([FIRST, SECOND], is_last=True, now=0) == [SECOND]


def test_a_row_with_another_timestamp_is_another_one() -> None:
    look_back = LookBack(60)
    look_back.note([FIRST])
    assert look_back.late([("10:03", "1")], is_last=True, now=0) == [("10:03", "1")]


def test_a_walk_goes_on_where_its_page_ended_and_is_due_again_after_a_tenth_of_the_window() -> None:
    look_back = LookBack(60)
    look_back.late([FIRST], is_last=False, now=0)
    resumed_after = look_back.after
    assert resumed_after == FIRST
    assert look_back.is_due(0)
    look_back.note([THIRD])
    look_back.late([SECOND], is_last=True, now=1)
    assert look_back.after is None
    assert not look_back.is_due(6.9)
    assert look_back.is_due(7)
    assert look_back.late([FIRST, SECOND, THIRD], is_last=True, now=7) == []


def test_what_has_left_the_window_is_forgotten() -> None:
    look_back = LookBack(60)
    look_back.note([FIRST])
    look_back.late([FIRST], is_last=True, now=0)
    look_back.late([SECOND], is_last=True, now=6)
    assert look_back.late([FIRST, SECOND], is_last=True, now=12) == [FIRST]


def test_after_forgetting_all_rows_are_late_again_at_once() -> None:
    look_back = LookBack(60)
    look_back.late([FIRST], is_last=True, now=0)
    look_back.forget()
    assert look_back.is_due(0)
    assert look_back.late([FIRST], is_last=True, now=0) == [FIRST]


def test_without_a_window_it_is_never_due_and_remembers_nothing() -> None:
    look_back = LookBack(0)
    look_back.note([FIRST])
    assert not look_back.is_due(1e9)
