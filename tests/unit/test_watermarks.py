"""Watermarks: which times a view reflects."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.cursor import Cursor, TableCursor, Watermark
from projector.watermarks import PENDING_CANDIDATES, Watermarks

START = datetime(2026, 11, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def table(
    topic: str, *next_offsets: int, seconds: float = 0, complete: bool = True, uncertain: bool = False
) -> TableCursor:
    watermark = Watermark(time=at(seconds), next_offsets=next_offsets, uncertain=uncertain)
    return TableCursor(
        topic=topic, attachment=1, position="1:1:", complete=complete, next_offsets=next_offsets, watermark=watermark
    )


def cursor(*tables: TableCursor, capture: str = "main") -> Cursor:
    return Cursor(capture=capture, token="t", tables={table.topic: table for table in tables})


def test_time_is_reached_once_every_partition_is() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 3, 0), table("tweets", 5, 2)), offset=0)
    reached = {("users", 0): 3, ("users", 1): 0, ("tweets", 0): 5}
    assert watermarks.newest_covered({**reached, ("tweets", 1): 1}) is None
    assert watermarks.newest_covered(reached) is None
    candidate = watermarks.newest_covered({**reached, ("tweets", 1): 2})
    assert candidate is not None
    assert candidate.time == at(0)


def test_positions_beyond_the_last_record_count_too() -> None:
    watermarks = Watermarks(["users"])
    watermarks.add(cursor(table("users", 3)), offset=0)
    assert watermarks.newest_covered({("users", 0): 4}) is not None


def test_table_of_no_view_holds_nothing_back() -> None:
    watermarks = Watermarks(["users"])
    watermarks.add(cursor(table("users", 1), table("other", 99)), offset=0)
    assert watermarks.newest_covered({("users", 0): 1}) is not None


def test_table_without_a_word_holds_the_view_back() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 0)), offset=0)
    assert not watermarks.pending


def test_table_without_a_complete_snapshot_holds_the_view_back() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 0), table("tweets", 0, complete=False)), offset=0)
    assert not watermarks.pending


@pytest.mark.parametrize(
    "later",
    [
        {"users": table("users", 2, seconds=2, complete=False)},
        {"tweets": table("tweets", 0, seconds=2)},
        {"users": msgspec.structs.replace(table("users", 5, seconds=2), attachment=2)},
    ],
    ids=["read anew", "left out", "attached anew"],
)
def test_table_takes_back_what_was_said_before(later: dict[str, TableCursor]) -> None:
    watermarks = Watermarks(["users"])
    watermarks.add(cursor(table("users", 1, seconds=1)), offset=0)
    watermarks.add(Cursor(capture="main", token="t", tables=later), offset=1)
    assert watermarks.newest_covered({("users", 0): 4}) is None


def test_topic_that_was_made_again_says_nothing_of_the_one_that_was_read() -> None:
    watermarks = Watermarks(["users", "tweets"], {"users": "first"})
    for seconds, topic_id in enumerate(["first", "second", ""]):
        users = msgspec.structs.replace(table("users", 1, seconds=seconds), topic_id=topic_id)
        tweets = msgspec.structs.replace(table("tweets", 1, seconds=seconds), topic_id="not read yet")
        watermarks.add(cursor(users, tweets), offset=seconds)
        assert watermarks.pending is (topic_id != "second")


def test_oldest_time_of_several_captures_counts() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 1, seconds=10), capture="a"), offset=0)
    assert not watermarks.pending
    watermarks.add(cursor(table("tweets", 1, seconds=4), capture="b"), offset=1)
    watermarks.add(cursor(table("users", 2, seconds=20), capture="a"), offset=2)
    candidate = watermarks.newest_covered({("users", 0): 2, ("tweets", 0): 1})
    assert candidate is not None
    assert candidate.time == at(4)
    assert candidate.cursor_offset == 1, "b's record must be read again after a restart"


def test_newest_covered_time_wins_and_earlier_ones_are_forgotten() -> None:
    watermarks = Watermarks(["users"])
    for number in range(5):
        watermarks.add(cursor(table("users", number, seconds=number)), offset=number)
    candidate = watermarks.newest_covered({("users", 0): 3})
    assert candidate is not None
    assert candidate.time == at(3)
    watermarks.reflected(candidate)
    assert watermarks.pending
    assert watermarks.newest_covered({("users", 0): 3}) is None


def test_uncertain_clock_is_flagged() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 0), table("tweets", 0, uncertain=True)), offset=0)
    candidate = watermarks.newest_covered({("users", 0): 0, ("tweets", 0): 0})
    assert candidate is not None
    assert candidate.flags == ("uncertain",)


def test_rows_held_back_are_flagged_while_a_table_of_the_view_has_some() -> None:
    watermarks = Watermarks(["users", "tweets"])
    some = msgspec.structs.replace(table("tweets", 1), held_back=('{"tweet_id":1}',))
    watermarks.add(cursor(table("users", 0), some), offset=0)
    first = watermarks.newest_covered({("users", 0): 0, ("tweets", 0): 1})
    assert first is not None
    assert first.flags == ("held_back",)
    watermarks.add(cursor(table("users", 0, seconds=1), table("tweets", 2, seconds=1, uncertain=True)), offset=1)
    second = watermarks.newest_covered({("users", 0): 0, ("tweets", 0): 2})
    assert second is not None
    assert second.flags == ("uncertain",)


def test_rows_held_back_of_a_table_of_no_view_are_not_flagged() -> None:
    watermarks = Watermarks(["users"])
    other = msgspec.structs.replace(table("other", 1), held_back=("{}",))
    watermarks.add(cursor(table("users", 1), other), offset=0)
    candidate = watermarks.newest_covered({("users", 0): 1})
    assert candidate is not None
    assert candidate.flags == ()


@settings(max_examples=20)
@given(st.integers(1, 3 * PENDING_CANDIDATES), st.integers(0, 3 * PENDING_CANDIDATES))
def test_thinned_candidates_never_claim_too_much(records: int, reached: int) -> None:
    watermarks = Watermarks(["users"])
    for number in range(records):
        watermarks.add(cursor(table("users", number, seconds=number)), offset=number)
    candidate = watermarks.newest_covered({("users", 0): reached})
    assert candidate is not None, "the oldest candidate stays"
    assert candidate.time <= at(reached)
    if reached >= records - 1:
        assert candidate.time == at(records - 1), "the newest candidate stays"


def test_topic_that_is_named_later_takes_back_what_was_said_without_it() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 1, seconds=1)), offset=0)
    watermarks.estimate({"tweets": at(5)})
    assert watermarks.pending
    watermarks.add(cursor(table("tweets", 9, seconds=2), capture="other"), offset=1)
    assert watermarks.newest_covered({("users", 0): 1, ("tweets", 0): 8}) is None


def test_estimate_beside_a_watermark_that_is_not_covered_says_nothing() -> None:
    watermarks = Watermarks(["users", "tweets"])
    watermarks.add(cursor(table("users", 2, seconds=1)), offset=0)
    watermarks.estimate({"tweets": at(5)})
    assert watermarks.newest_covered({("users", 0): 1, ("tweets", 0): 8}) is None


def test_stored_estimate_waits_for_the_next_one() -> None:
    watermarks = Watermarks(["users"])
    watermarks.estimate({"users": at(1)})
    assert watermarks.pending
    reached = watermarks.newest_covered({})
    assert reached is not None
    assert (reached.time, reached.flags, reached.cursor_offset) == (at(1), ("estimate",), None)
    watermarks.reflected(reached)
    assert not watermarks.pending
