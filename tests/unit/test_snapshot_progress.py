"""How far a snapshot has come: rows, rate, time left, and their words."""

from datetime import UTC, datetime, timedelta

import pytest

from cdc.cursor import Reading, Sweep, TableCursor
from cdc.snapshot_progress import rows_words, snapshot_progress, sweep_progress
from runtime.words import duration_words

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
SWEEP = Sweep(next_offsets=(3, 14), end_offsets=(10, 10))


def entry(rows: int | None, sweep: Sweep | None = None) -> TableCursor:
    reading = None if rows is None else Reading(began=BEGAN, rows=rows)
    return TableCursor(
        topic="t", attachment=1, position="1:1:", complete=False, next_offsets=(0,), reading=reading, sweep=sweep
    )


def words(rows: int, total_rows: int | None, *, is_running: bool = True) -> str:
    now = BEGAN + timedelta(seconds=10)
    progress = snapshot_progress(entry(rows), total_rows=total_rows, now=now, is_running=is_running)
    assert progress is not None
    return rows_words(progress)


def test_rate_and_time_left_follow_from_what_was_read() -> None:
    assert words(20_000, 100_000) == "20,000 of about 100,000 rows, 2,000 rows/s, 40 s left"


def test_without_a_total_nothing_is_left() -> None:
    assert words(20_000, None) == "20,000 rows, 2,000 rows/s"


def test_a_total_that_was_passed_was_wrong() -> None:
    assert words(20_000, 19_999) == "20,000 rows, 2,000 rows/s"


def test_no_rate_is_claimed_while_no_capture_runs_or_before_the_first_rows() -> None:
    assert words(20_000, 100_000, is_running=False) == "20,000 of about 100,000 rows"
    assert words(0, 100_000) == "0 of about 100,000 rows"


def test_keys_are_looked_up_once_the_rows_are_read() -> None:
    assert sweep_progress(entry(5, SWEEP)) is None
    found = sweep_progress(entry(None, SWEEP))
    assert found is not None
    assert (found.offsets, found.total_offsets) == (13, 20)
    assert snapshot_progress(entry(None), total_rows=1, now=BEGAN, is_running=True) is None


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3_600, "1 h"),
        (18_600, "5 h 10 min"),
        (7 * 86_400, "7 d"),
        (183_600, "2 d 3 h"),
    ],
)
def test_a_span_has_two_units_at_most(seconds: float, expected: str) -> None:
    assert duration_words(seconds) == expected
