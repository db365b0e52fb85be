"""How a cursor moves: pure, with what was published as arguments."""

from collections.abc import Callable, Iterable
from datetime import datetime

from msgspec.structs import replace

from cdc.cursor import Cursor, TableCursor, Watermark
from cdc.tables import CapturedTable

NextOffsets = Callable[[str], tuple[int, ...]]


def begun(
    cursor: Cursor,
    tables: Iterable[CapturedTable],
    *,
    topic: Callable[[CapturedTable], str],
    snapshot: str,
    next_offsets: NextOffsets,
) -> Cursor:
    """Add tables whose own snapshot begins now; changes that `snapshot` does not see are for the polls."""
    fresh = {
        str(table.name): TableCursor(
            topic=topic(table),
            attachment=table.attachment,
            snapshot=snapshot,
            complete=False,
            next_offsets=next_offsets(topic(table)),
        )
        for table in tables
    }
    return replace(cursor, tables={**cursor.tables, **fresh})


def polled(
    cursor: Cursor, tables: Iterable[CapturedTable], *, time: datetime, snapshot: str | None, next_offsets: NextOffsets
) -> Cursor:
    """Move `tables` to a round's snapshot and, where their own snapshot is complete, their watermarks to its time.

    Without a snapshot, when the round was idle, only the watermarks' time moves: nothing visible has changed since
    the previous snapshot.
    """
    moved = dict(cursor.tables)
    for table in tables:
        before = moved[str(table.name)]
        offsets = next_offsets(before.topic)
        moved[str(table.name)] = replace(
            before,
            snapshot=snapshot or before.snapshot,
            next_offsets=offsets,
            watermark=_watermark(before, time, offsets) if before.complete else None,
        )
    return replace(cursor, tables=moved)


def chunked(cursor: Cursor, table: CapturedTable, *, end: tuple[str, ...] | None, next_offsets: NextOffsets) -> Cursor:
    """Note that a chunk that ends at key `end` was published; None when it was the last of the table's snapshot."""
    before = cursor.tables[str(table.name)]
    after = replace(before, resume_after=end, complete=end is None, next_offsets=next_offsets(before.topic))
    return replace(cursor, tables={**cursor.tables, str(table.name): after})


def _watermark(before: TableCursor, time: datetime, next_offsets: tuple[int, ...]) -> Watermark:
    # A watermark never goes back: while the source's clock is behind, the last time stands and is uncertain.
    if before.watermark is not None and time < before.watermark.time:
        return Watermark(time=before.watermark.time, next_offsets=next_offsets, uncertain=True)
    return Watermark(time=time, next_offsets=next_offsets)
