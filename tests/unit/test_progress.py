"""How a cursor moves, without a database or a broker."""

from datetime import UTC, datetime, timedelta

from cdc.cursor import Cursor, TableCursor, Watermark, decode_cursor
from cdc.progress import begun, chunked, polled
from cdc.tables import CapturedTable, Column, Kind, Level
from cdc.wire import TableName

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
KEY = (Column("user_id", "bigint", "bigint"),)
USERS = CapturedTable(1, 16384, TableName("public", "users"), Kind.TABLE, Level.STATEMENT, KEY, KEY)
TWEETS = CapturedTable(2, 16385, TableName("public", "tweets"), Kind.TABLE, Level.STATEMENT, KEY, KEY)


def offsets(_topic: str) -> tuple[int, ...]:
    return (7, 8)


def cursor_of(*tables: CapturedTable, complete: bool) -> Cursor:
    entry = {
        str(table.name): TableCursor(
            topic=str(table.name), attachment=table.attachment, snapshot="5:5:", complete=complete, next_offsets=(0, 0)
        )
        for table in tables
    }
    return Cursor(capture="c", token="t", tables=entry)


def test_a_new_table_begins_at_the_rounds_snapshot_without_a_watermark() -> None:
    cursor = begun(
        cursor_of(USERS, complete=True),
        [TWEETS],
        topic=lambda table: f"p.{table.name}",
        snapshot="9:9:",
        next_offsets=offsets,
    )
    assert cursor.tables["public.tweets"] == TableCursor(
        topic="p.public.tweets", attachment=2, snapshot="9:9:", complete=False, next_offsets=(7, 8)
    )
    assert cursor.tables["public.users"].snapshot == "5:5:"


def test_a_table_without_a_complete_snapshot_has_no_watermark() -> None:
    cursor = polled(cursor_of(USERS, complete=False), [USERS], time=NOON, snapshot="9:9:", next_offsets=offsets)
    assert cursor.tables["public.users"].snapshot == "9:9:"
    assert cursor.tables["public.users"].watermark is None


def test_a_table_that_sat_the_round_out_stays_where_it_was() -> None:
    before = cursor_of(USERS, TWEETS, complete=True)
    cursor = polled(before, [USERS], time=NOON, snapshot="9:9:", next_offsets=offsets)
    assert cursor.tables["public.users"].watermark == Watermark(time=NOON, next_offsets=(7, 8))
    assert cursor.tables["public.tweets"] == before.tables["public.tweets"]


def test_an_idle_round_moves_only_the_time() -> None:
    cursor = polled(cursor_of(USERS, complete=True), [USERS], time=NOON, snapshot=None, next_offsets=offsets)
    assert cursor.tables["public.users"].snapshot == "5:5:"
    assert cursor.tables["public.users"].watermark == Watermark(time=NOON, next_offsets=(7, 8))


def test_c14_a_watermark_is_uncertain_while_the_clock_is_behind() -> None:
    noon = polled(cursor_of(USERS, complete=True), [USERS], time=NOON, snapshot="9:9:", next_offsets=offsets)
    behind = polled(
        noon, [USERS], time=NOON - timedelta(seconds=1), snapshot="10:10:", next_offsets=lambda _topic: (9, 9)
    )
    assert behind.tables["public.users"].watermark == Watermark(time=NOON, next_offsets=(9, 9), uncertain=True)
    after = polled(behind, [USERS], time=NOON + timedelta(seconds=1), snapshot="11:11:", next_offsets=offsets)
    assert after.tables["public.users"].watermark == Watermark(
        time=NOON + timedelta(seconds=1), next_offsets=(7, 8), uncertain=False
    )


def test_the_last_chunk_makes_the_snapshot_complete() -> None:
    first = chunked(cursor_of(USERS, complete=False), USERS, end=("41",), next_offsets=offsets)
    assert (first.tables["public.users"].resume_after, first.tables["public.users"].complete) == (("41",), False)
    last = chunked(first, USERS, end=None, next_offsets=offsets)
    assert (last.tables["public.users"].resume_after, last.tables["public.users"].complete) == (None, True)


def test_a_cursor_survives_its_encoding() -> None:
    cursor = polled(cursor_of(USERS, complete=True), [USERS], time=NOON, snapshot="9:11:10", next_offsets=offsets)
    assert decode_cursor(cursor.encode(), where="test") == cursor
