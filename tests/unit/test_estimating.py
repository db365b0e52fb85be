"""How far topics without a cursor are thought to be applied."""

from datetime import UTC, datetime, timedelta

from projector.estimating import estimated_times
from projector.offsets import StoredOffset
from projector.topics import Topic

START = datetime(2026, 11, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def stored(partition: int, next_offset: int, seconds: float | None, *, topic_id: str = "a") -> StoredOffset:
    record_time = None if seconds is None else at(seconds)
    return StoredOffset("users", partition, topic_id, next_offset, record_time=record_time)


def topics(*high: int) -> dict[str, Topic]:
    return {"users": Topic("users", "a", low=[0] * len(high), high=high, delete_retention_seconds=1)}


def test_newest_record_counts_where_all_is_read() -> None:
    assert estimated_times([stored(0, 5, 7), stored(1, 3, 9), stored(2, 0, None)], topics(5, 3, 0)) == {"users": at(9)}


def test_partition_with_more_to_read_counts_by_its_last_record() -> None:
    places = [stored(0, 5, 7), stored(1, 3, 9), stored(2, 1, 8)]
    assert estimated_times(places, topics(6, 3, 2)) == {"users": at(7)}


def test_partition_with_more_to_read_and_no_time_says_nothing() -> None:
    assert estimated_times([stored(0, 5, 7), stored(1, 0, None)], topics(5, 1)) == {}
    assert estimated_times([stored(0, 0, None), stored(1, 5, 7)], topics(1, 6)) == {}


def test_topic_without_a_record_says_nothing() -> None:
    assert estimated_times([stored(0, 0, None)], topics(0)) == {}


def test_topic_that_was_made_again_says_nothing() -> None:
    assert estimated_times([stored(0, 5, 7, topic_id="before")], topics(5)) == {}
    assert estimated_times([stored(1, 5, 7)], topics(5)) == {}
