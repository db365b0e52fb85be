"""How a table's part of the cursor moves, without a database or a broker."""

from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from cdc.cursor import Cursor, Fingerprint, Reading, Sweep, TableCursor, Watermark, decode_cursor
from cdc.progress import Phase, begun, bounded, chunked, phase, published, swept, truncated, waiting
from cdc.rounds import KnownBy

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
LOOKS = Fingerprint(shape="s", files="f")
NEW = TableCursor(topic="p.public.users", attachment=1, position=None, complete=False, next_offsets=(0, 0))


def begin(table: TableCursor, *, end_offsets: tuple[int, ...] = (0, 0), request: int | None = None) -> TableCursor:
    return bounded(
        begun(table, position="5:5:", fingerprint=LOOKS, time=NOON, request=request), end_offsets=end_offsets
    )


def truncate(table: TableCursor, *, end_offsets: tuple[int, ...] = (4, 4)) -> TableCursor:
    return bounded(truncated(table), end_offsets=end_offsets)


def complete() -> TableCursor:
    return chunked(begin(NEW), end=None, rows=3)


def publish(table: TableCursor, before: TableCursor | None, time: datetime | None, offset: int = 7) -> TableCursor:
    return published(table, before, next_offsets=(offset, offset), known=KnownBy(time))


def test_a_new_table_waits_and_then_reads() -> None:
    assert phase(NEW) is Phase.WAITING
    table = begin(NEW)
    assert (phase(table), table.position, table.fingerprint) == (Phase.READING, "5:5:", LOOKS)
    assert publish(table, None, NOON).watermark is None


def test_chunks_move_the_key_that_the_next_one_begins_after() -> None:
    table = chunked(chunked(begin(NEW), end=("41",), rows=10), end=("52",), rows=5)
    assert table.reading == Reading(began=NOON, resume_after=("52",), rows=15)
    assert phase(table) is Phase.READING


def test_the_last_chunk_makes_a_table_with_an_empty_topic_complete() -> None:
    assert phase(complete()) is Phase.COMPLETE


def test_c4_a_table_whose_topic_held_keys_is_complete_only_after_they_were_looked_up() -> None:
    table = chunked(begin(NEW, end_offsets=(3, 0)), end=None, rows=1)
    assert phase(table) is Phase.SWEEPING
    assert publish(table, None, NOON).watermark is None
    on_its_way = swept(table, next_offsets=(2, 0))
    assert on_its_way.sweep == Sweep(next_offsets=(2, 0), end_offsets=(3, 0))
    assert phase(swept(on_its_way, next_offsets=None)) is Phase.COMPLETE


def test_a_truncate_is_swept_behind_a_snapshot_that_is_being_read() -> None:
    table = truncate(begin(NEW))
    assert phase(table) is Phase.READING
    assert phase(chunked(table, end=None, rows=0)) is Phase.SWEEPING


def test_a_truncate_of_a_complete_table_takes_its_watermark_until_the_sweep_is_done() -> None:
    before = publish(complete(), None, NOON)
    table = truncate(before)
    assert phase(table) is Phase.SWEEPING
    assert publish(table, before, NOON).watermark is None
    assert publish(swept(table, next_offsets=None), before, NOON).watermark is not None


def test_a_truncate_of_a_table_whose_topic_is_empty_needs_no_sweep() -> None:
    assert phase(truncate(complete(), end_offsets=(0, 0))) is Phase.COMPLETE


def test_c4_a_table_is_not_complete_while_it_is_not_known_where_its_topic_ends() -> None:
    unknown = begun(NEW, position="5:5:", fingerprint=LOOKS, time=NOON)
    assert phase(chunked(unknown, end=None, rows=1)) is Phase.SWEEPING
    assert phase(truncated(complete())) is Phase.SWEEPING


def test_a_table_that_waits_has_no_position_and_keeps_nothing_half_done() -> None:
    table = waiting(truncate(begin(NEW)))
    assert (phase(table), table.position, table.reading, table.sweep) == (Phase.WAITING, None, None, None)


def test_a_request_that_was_begun_is_remembered() -> None:
    assert begin(begin(NEW, request=12)).request == 12


def test_a_table_that_sat_the_round_out_keeps_its_watermark() -> None:
    before = publish(complete(), None, NOON)
    assert publish(before, before, None, offset=9).watermark == before.watermark


def test_another_attachments_watermark_is_not_taken_over() -> None:
    before = publish(complete(), None, NOON)
    anew = chunked(begin(replace(NEW, attachment=2)), end=None, rows=0)
    assert publish(anew, before, None).watermark is None


def test_c14_a_watermark_is_uncertain_while_the_clock_is_behind() -> None:
    noon = publish(complete(), None, NOON)
    behind = publish(noon, noon, NOON - timedelta(seconds=1), offset=9)
    assert behind.watermark == Watermark(time=NOON, next_offsets=(9, 9), uncertain=True)
    after = publish(behind, behind, NOON + timedelta(seconds=1), offset=9)
    assert after.watermark == Watermark(time=NOON + timedelta(seconds=1), next_offsets=(9, 9), uncertain=False)


def test_w5_an_estimate_is_uncertain_and_the_end_of_a_pass_is_not() -> None:
    whole = replace(NEW, pass_began=NOON)
    reading = publish(replace(begin(whole), pass_began=NOON), None, None)
    ended = publish(chunked(reading, end=None, rows=3), reading, None)
    assert ended.watermark == Watermark(time=NOON, next_offsets=(7, 7))
    later = NOON + timedelta(seconds=1)
    polled = published(ended, ended, next_offsets=(8, 8), known=KnownBy(later, uncertain=True))
    assert polled.watermark == Watermark(time=later, next_offsets=(8, 8), uncertain=True)
    swept_before = publish(truncate(polled), polled, None, offset=8)
    assert swept_before.watermark == polled.watermark
    assert publish(swept(swept_before, next_offsets=None), swept_before, None, offset=9).watermark == polled.watermark


def test_a_cursor_survives_its_encoding() -> None:
    table = publish(truncate(begin(NEW, request=3)), None, None)
    cursor = Cursor(capture="c", token="t", tables={"public.users": table})
    assert decode_cursor(cursor.encode(), where="test") == cursor
