"""How a table's part of the cursor moves: pure, with what was read and published as arguments."""

from datetime import datetime
from enum import StrEnum

from msgspec.structs import replace

from cdc.cursor import Fingerprint, Reading, Sweep, TableCursor, Watermark
from cdc.rounds import KnownBy


class Phase(StrEnum):
    """What a table needs next, besides the polls."""

    WAITING = "waiting to be read anew"
    READING = "its snapshot is being read"
    SWEEPING = "keys that are gone are being looked for"
    COMPLETE = "complete"


def phase(table: TableCursor) -> Phase:
    """Return what a table needs next."""
    if table.position is None:
        return Phase.WAITING
    if table.reading is not None:
        return Phase.READING
    return Phase.COMPLETE if table.complete else Phase.SWEEPING


def waiting(table: TableCursor) -> TableCursor:
    """Give up a table's position: it is to be read anew, once that can begin."""
    return replace(table, position=None, complete=False, reading=None, sweep=None)


def begun(
    table: TableCursor,
    *,
    position: str,
    fingerprint: Fingerprint | None,
    time: datetime,
    request: int | None = None,
    pass_began: datetime | None = None,
) -> TableCursor:
    """Begin a table's own snapshot; changes beyond `position` are for the polls.

    With `pass_began` the polls may miss some, and its end alone tells for sure what is published. Then keys that the
    topic holds are looked up: those that are gone would stay for ever.
    """
    return replace(
        table,
        position=position,
        complete=False,
        fingerprint=fingerprint,
        reading=Reading(began=time),
        sweep=_sweep(table),
        request=table.request if request is None else request,
        pass_began=pass_began,
    )


def chunked(table: TableCursor, *, end: tuple[str, ...] | None, rows: int) -> TableCursor:
    """Note that a chunk of so many rows ends at key `end`, None when it was the last of the table's snapshot."""
    if table.reading is None:
        return table
    if end is None:
        return replace(table, reading=None, complete=table.sweep is None)
    return replace(table, reading=replace(table.reading, resume_after=end, rows=table.reading.rows + rows))


def truncated(table: TableCursor) -> TableCursor:
    """Note a TRUNCATE, which logs no keys: every key that the topic holds is to be looked up, as in `begun`."""
    return replace(table, sweep=_sweep(table), complete=False)


def bounded(table: TableCursor, *, end_offsets: tuple[int, ...]) -> TableCursor:
    """Let a table's sweep end where its topic does; there is nothing to be looked up in one that is empty."""
    if table.sweep is None or not any(end_offsets):
        return swept(table, next_offsets=None)
    return replace(table, sweep=replace(table.sweep, end_offsets=end_offsets))


def swept(table: TableCursor, *, next_offsets: tuple[int, ...] | None) -> TableCursor:
    """Note that the sweep has come so far; None when it is at its end."""
    if table.sweep is None:
        return table
    if next_offsets is None:
        return replace(table, sweep=None, complete=table.reading is None)
    return replace(table, sweep=replace(table.sweep, next_offsets=next_offsets))


def published(
    table: TableCursor,
    before: TableCursor | None,
    *,
    next_offsets: tuple[int, ...],
    known: KnownBy,
    held_back: tuple[str, ...] = (),
) -> TableCursor:
    """Complete a table's part with what the publisher knows; `before` is the part that was published last.

    By a time that is `known` everything committed by then has been published, or is thought to be if it is uncertain:
    the watermark moves there. Without one it stays, and a table that is not complete has none. Where passes alone tell
    for sure, it stays during one, and is certain at its end.
    """
    same = before if before is not None and before.attachment == table.attachment else None
    earlier = same.watermark if same else None
    if table.pass_began is not None and same and same.topic_id == table.topic_id:
        watermark = _passed(table, same, next_offsets)
    else:
        watermark = earlier if table.complete else None
    if table.complete and known.time is not None:
        watermark = _watermark(watermark, known.time, next_offsets, uncertain=known.uncertain)
    return replace(table, next_offsets=next_offsets, watermark=watermark, held_back=held_back)


def _sweep(table: TableCursor) -> Sweep:
    return Sweep(next_offsets=(0,) * len(table.next_offsets), end_offsets=())


def _passed(table: TableCursor, before: TableCursor, next_offsets: tuple[int, ...]) -> Watermark | None:
    """Return the watermark of a table that is read anew now and then: a certain one with the end of a pass."""
    earlier, began = before.watermark, table.pass_began
    is_end = table.complete and not before.complete
    # After a sweep by itself the newest pass is long ago, and what is known since then is an estimate.
    if not is_end or began is None or (earlier is not None and began < earlier.time):
        return earlier
    return Watermark(time=began, next_offsets=next_offsets)


def _watermark(
    before: Watermark | None, time: datetime, next_offsets: tuple[int, ...], *, uncertain: bool
) -> Watermark:
    # A watermark never goes back: while the source's clock is behind, the last time stands and is uncertain.
    if before is not None and time < before.time:
        return Watermark(time=before.time, next_offsets=next_offsets, uncertain=True)
    return Watermark(time=time, next_offsets=next_offsets, uncertain=uncertain)
