"""How far a table's snapshot has come, in rows, rate and time left. Pure."""

from datetime import datetime

import msgspec

from cdc.cursor import TableCursor
from runtime.words import duration_words


class SnapshotProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot that is being read: so many `rows` of about `total_rows` are published.

    `total_rows` is the planner's guess, None if the table was never analyzed or has more rows by now; without it
    `seconds_left` is None. `rows_per_second` is None until there are rows, and while no capture runs.
    """

    rows: int
    total_rows: int | None
    rows_per_second: float | None
    seconds_left: float | None


class SweepProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A search for keys that are gone: so many of the topic's `total_offsets` are looked up."""

    offsets: int
    total_offsets: int


def snapshot_progress(
    entry: TableCursor, *, total_rows: int | None, now: datetime, is_running: bool
) -> SnapshotProgress | None:
    """Return how far the reading of a table's rows has come at the source's time `now`, None if it is not read."""
    if entry.reading is None:
        return None
    rows = entry.reading.rows
    if total_rows is not None and total_rows < rows:
        total_rows = None
    seconds = (now - entry.reading.began).total_seconds()
    rate = rows / seconds if is_running and rows and seconds > 0 else None
    left = (total_rows - rows) / rate if rate and total_rows is not None else None
    return SnapshotProgress(rows=rows, total_rows=total_rows, rows_per_second=rate, seconds_left=left)


def sweep_progress(entry: TableCursor) -> SweepProgress | None:
    """Return how far the search for keys that are gone has come, None if there is none under way."""
    if entry.sweep is None or entry.reading is not None:
        return None
    ends = entry.sweep.end_offsets
    # A partition that is read to its end may be read further while others are not.
    offsets = sum(map(min, entry.sweep.next_offsets, ends))
    return SweepProgress(offsets=offsets, total_offsets=sum(ends))


def rows_words(progress: SnapshotProgress) -> str:
    """Say it in words: rows done, rate, time left."""
    total = f" of about {progress.total_rows:,}" if progress.total_rows is not None else ""
    words = [f"{progress.rows:,}{total} rows"]
    if progress.rows_per_second is not None:
        words.append(f"{progress.rows_per_second:,.0f} rows/s")
    if progress.seconds_left is not None:
        words.append(f"{duration_words(progress.seconds_left)} left")
    return ", ".join(words)


def sweep_words(progress: SweepProgress) -> str:
    """Say how far the search for keys that are gone has come."""
    return f"{progress.offsets:,} of {progress.total_offsets:,} offsets"
